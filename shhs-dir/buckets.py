"""Buckets of a continuous label: equal on a linear or logarithmic scale, or equally full.

LDS counts labels by bucket, FDS takes its statistics by bucket (`label_to_bucket`). On a heavy
tail, such as prices, equal widths put nearly all labels into a few buckets: the scale 'log' helps,
or 'symlog' where labels are zero or negative. NumPy and `lds.py` are all it needs.
"""

import numpy as np

from lds import on_scale

LARGEST_DECADE = 37.0  # 10 to the power of more leaves float32


def functions_for(values):
    """Return the module whose functions take these values: torch for tensors, else numpy."""
    if not hasattr(values, "detach"):
        return np
    import torch  # only here: who has tensors has it

    return torch


def from_scale(values, scale):
    """Return values, array or tensor, from a scale to their unit: the inverse of `lds.on_scale`."""
    xp = functions_for(values)
    if scale == "linear":
        return values
    values = xp.clip(values, -LARGEST_DECADE, LARGEST_DECADE)
    if scale == "log":
        return 10.0**values
    return xp.sign(values) * (10.0 ** xp.abs(values) - 1)


class Buckets:
    """A `label_to_bucket` by the buckets' lower edges; it can be pickled.

    Args:
        edges: lower edges of the buckets [B], rising. Labels outside go to the end buckets.

    Called with an array or a tensor of any shape, it returns bucket numbers 0 ... B - 1 of the same
    kind, as long. Edges and labels are compared in float32, as training has them.

    Raises:
        ValueError: for edges that do not rise.
    """

    def __init__(self, edges):
        self.edges, self.sent = np.asarray(edges, dtype=np.float32), {}
        if self.edges.ndim != 1 or not len(self.edges) or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"the buckets' lower edges must rise, also in float32, got {edges}")

    def __len__(self):
        return len(self.edges)

    def __call__(self, labels):
        inner = self.edges[1:]
        xp = functions_for(labels)
        if xp is np:
            return np.searchsorted(inner, np.asarray(labels, dtype=np.float32), side="right")
        if labels.device not in self.sent:  # once: each sending would wait for a GPU
            self.sent[labels.device] = xp.from_numpy(inner).to(labels.device)
        labels = labels.detach().float().contiguous()
        return xp.bucketize(labels, self.sent[labels.device], right=True)


def scaled_buckets(low, high, bins, scale):
    """Return `Buckets` that cut [low, high] into equal parts on a scale.

    Raises:
        ValueError: for an empty range, no bucket, or the logarithm of a low end that has none.
    """
    if scale == "log" and not low > 0:
        raise ValueError(f"the scale log needs labels above 0, got {low}: symlog takes any")
    if not high > low or bins < 1:
        raise ValueError(f"need low < high and bins >= 1, got {low=}, {high=}, {bins=}")
    bottom, top = on_scale(np.array([low, high], dtype=np.float64), scale)
    return Buckets(from_scale(np.linspace(bottom, top, bins + 1)[:-1], scale))


def log_buckets(low, high, bins):
    """Return `Buckets` of equal ratio between two ends above 0: prices, counts, sizes."""
    return scaled_buckets(low, high, bins, "log")


def symlog_buckets(low, high, bins):
    """Return `Buckets` as `log_buckets`, but of equal width near 0: for zeros and both signs."""
    return scaled_buckets(low, high, bins, "symlog")


def quantile_buckets(labels, bins):
    """Return `Buckets` that hold about as many of these labels each; where labels tie, fewer.

    Args:
        labels: of the training set [N]. Each edge is one of them, so no bucket is empty.
        bins: most buckets.
    """
    labels = np.asarray(labels, dtype=np.float32).reshape(-1)
    return Buckets(np.unique(np.quantile(labels, np.arange(bins) / bins, method="higher")))
