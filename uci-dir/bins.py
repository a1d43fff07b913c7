"""Buckets of a label over the range of a table, equal on a linear or logarithmic scale."""

from typing import NamedTuple

import numpy as np

from buckets import from_scale, functions_for
from lds import on_scale


class Bins(NamedTuple):
    """Buckets of the label between two ends, in its unit; they are equal on the scale."""

    low: float
    high: float
    number: int
    scale: str = "linear"  # as for `lds.on_scale`

    @property
    def ends(self):
        """Both ends on the scale."""
        return [float(on_scale(end, self.scale)) for end in (self.low, self.high)]

    @property
    def width(self):
        """Width of a bucket on the scale."""
        low, high = self.ends
        return (high - low) / self.number

    @property
    def edges(self):
        """Lower edges of the buckets [B]."""
        return from_scale(self.ends[0] + self.width * np.arange(self.number), self.scale)

    @property
    def middles(self):
        """Middles of the buckets [B]."""
        edges = self.ends[0] + self.width * np.arange(self.number)
        return from_scale(edges + self.width / 2, self.scale)

    def scaled(self, labels):
        """Return labels, array, on the scale; those outside the range are taken at its ends."""
        if self.scale == "linear":
            return labels
        return on_scale(np.clip(labels, self.low, self.high), self.scale)

    @property
    def record(self):
        """What `results.json` says of a scale that is not linear."""
        linear = self.scale == "linear"
        return {} if linear else {"low": self.low, "high": self.high, "scale": self.scale}


def label_to_bucket(labels, bins):
    """Return the bucket of each label, as long, same shape and kind as given.

    Args:
        labels: tensor or array, in the unit of the target; taken in float32, as training has them.
        bins: `Bins` or what makes one; labels outside go to the end buckets.

    `functools.partial(label_to_bucket, bins=bins)` can be pickled.
    """
    bins = Bins(*bins)
    low, high = bins.ends
    xp = functions_for(labels)
    if xp is np:
        labels = np.array(labels, dtype=np.float32).astype(np.float64)
    else:
        labels = labels.float()
        labels = labels if labels.device.type == "mps" else labels.double()  # it has no float64
    if bins.scale != "linear":
        labels = on_scale(xp.clip(labels, bins.low, bins.high), bins.scale, xp)
    position = xp.floor((labels - low) / (high - low) * bins.number).clip(0, bins.number - 1)
    return position.astype(np.int64) if xp is np else position.long()


def label_counts(labels, bins):
    """Return the number of labels [N] in each bucket, long [B]; a ValueError if not finite."""
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite: remove the others first")
    return np.bincount(label_to_bucket(labels, bins), minlength=bins[2])
