"""Metrics of NYUD2-DIR over pixels, over all and by shot (section 4 of the paper).

A pixel's shot follows from its depth's bucket of 0.1 m. With the official pairs the released code's
lists say it. With others it follows from the training pixels: a bucket is many-shot with more than
70 % of an even share, the mean of the filled buckets, and few-shot below 30 %. In the official
pixels that rule gives the same lists. Only sums per bucket are kept.
"""

import numpy as np
import torch

from datasets import BUCKET_START, BUCKETS
from depth_maps import DEPTH, buckets_of, known

MANY = [*range(9, 46), 47, 49]  # lists of the released code
MEDIUM = [7, 8, 46, 48, *range(50, 57), 58, 60, 61, 63]
SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mse", "rmse", "abs_rel", "log10", "mae", "delta1", "delta2", "delta3", "bmae")
RATIOS = ("abs_rel", "log10", "delta1", "delta2", "delta3")
MAIN_METRICS = ("rmse", "delta1")  # the columns of the paper's table
OWN_METRICS = ("rmse", "mae")  # of your own target
HIGHER_IS_BETTER = ["delta1", "delta2", "delta3"]
SUMS = ("count", "mse", "mae", "abs_rel", "log10", "delta1", "delta2", "delta3")
# A prediction of zero or less has no ratio and no logarithm: there it counts as this.
SMALLEST_DEPTH = 1e-3  # metres


def shots_of_buckets(counts=None, target=DEPTH):
    """Name the shot of each bucket: object array [B] of 'many', 'medium' and 'few'.

    Args:
        counts: training pixels per bucket [B]; None: the lists of the official pairs.
        target: `target.Target`, with `many` and `few` in per cent of an even share.
    """
    if counts is not None:
        counts = np.asarray(counts)
        even = counts.sum() / np.count_nonzero(counts)
        return target.shots_of_counts(100 * counts / even)
    shots = np.full(BUCKETS, "few", dtype=object)
    shots[MANY] = "many"
    shots[MEDIUM] = "medium"
    return shots


class BucketSums:
    """Running sums of every metric per bucket of the true depth.

    Args:
        device: where the pixels are.
        shots: of the buckets [B], as `shots_of_buckets` names them; None: of the official pairs.
        target: `target.Target`.

    `sums` is float64 [B, 8], with the columns SUMS; sums of several processes are added.
    """

    def __init__(self, device="cpu", shots=None, target=DEPTH):
        self.target = target
        self.shots = shots_of_buckets() if shots is None else shots
        self.sums = torch.zeros(len(self.shots), len(SUMS), dtype=torch.float64, device=device)

    def add(self, preds, labels, mask=None):
        """Add the pixels of a batch.

        Args:
            preds, labels: tensors of one shape, in metres.
            mask: which of them count, bool, same shape; None: those with a depth above 0.

        Raises:
            ValueError: if shapes differ.
        """
        if preds.shape != labels.shape or (mask is not None and mask.shape != labels.shape):
            shapes = [tuple(x.shape) for x in (preds, labels, mask) if x is not None]
            raise ValueError(f"predictions, depths and mask must have one shape, got {shapes}")
        mask = known(labels, mask, self.target)
        preds, labels = preds[mask].float(), labels[mask].float()
        bucket = buckets_of(self.target)(labels)
        error = (preds - labels).abs()
        positive = preds.clamp(min=SMALLEST_DEPTH)
        ratio = torch.maximum(positive / labels, labels / positive)
        columns = [
            torch.ones_like(error),
            error.double().square(),
            error,
            error / labels,
            (positive.log10() - labels.log10()).abs(),
            ratio < 1.25,
            ratio < 1.25**2,
            ratio < 1.25**3,
        ]
        for total, column in zip(self.sums.T, columns):
            total += torch.bincount(bucket, weights=column.double(), minlength=len(self.sums))

    def metrics(self, balanced=False):
        """Compute every metric over all pixels and by shot.

        Args:
            balanced: weigh every bucket alike, which is what a balanced mask gives on average;
                pixels nearer than the first bucket count in it.

        Returns:
            `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has no pixel.
        """
        sums = self.sums.cpu().clone()
        if balanced and not self.target.own:
            sums[BUCKET_START] += sums[:BUCKET_START].sum(0)
            sums[:BUCKET_START] = 0
        result = {}
        for shot in SHOTS:
            part = sums if shot == "overall" else sums[torch.from_numpy(self.shots == shot)]
            found = _metrics(part[part[:, 0] > 0], balanced)
            result[shot] = {name: found[name] for name in found if name not in self.left_out}
        return result

    @property
    def left_out(self):
        """Metrics that labels of zero or less do not have."""
        return RATIOS if self.target.own and self.target.low <= 0 else ()

    def by_bucket(self):
        """Return the mean of every column of SUMS per bucket [B, 8], NaN where it is empty."""
        sums = self.sums.cpu().clone()
        sums[:, 1:] /= sums[:, :1]
        return sums


def _metrics(sums, balanced):
    """Metrics of the buckets whose sums [n, 8] are given."""
    count = int(sums[:, 0].sum())
    if count == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    means = sums[:, 1:] / sums[:, :1]
    mean = means.mean(0) if balanced else sums[:, 1:].sum(0) / count
    result = dict(zip(SUMS[1:], mean.tolist()))
    result |= {"rmse": result["mse"] ** 0.5, "bmae": means[:, SUMS.index("mae") - 1].mean().item()}
    return {metric: result[metric] for metric in METRICS} | {"num_samples": count}


def shot_metrics(preds, labels, train_labels=None):
    """Compute every metric over all pixels and by shot.

    Args:
        preds, labels: tensors or arrays of one shape, in metres; pixels without depth are left out.
        train_labels: not used, the shots are fixed; accepted as in the other benchmarks.

    Returns:
        As `BucketSums.metrics`.

    Raises:
        ValueError: if shapes differ.
    """
    preds = torch.as_tensor(preds)
    labels = torch.as_tensor(labels)
    sums = BucketSums(labels.device)
    sums.add(preds, labels)
    return sums.metrics()
