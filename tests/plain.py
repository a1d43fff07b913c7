"""The rules of FDS as a plain loop over buckets in float64: slow, and independent of fds.py.

Arrays are numpy's. As in the released code, features are written over where they are smoothed, so
what a program hands back after `smooth` are calibrated features in the 'official' variant.
"""

import numpy as np


def reflect(values, window):
    """Convolve [B, D] over the first axis, edges reflected without repeating them."""
    half, last, out = len(window) // 2, len(values) - 1, np.zeros_like(values)
    for b in range(len(values)):
        for offset in range(-half, half + 1):
            source = abs(b + offset)
            source = 2 * last - source if source > last else source
            out[b] += window[offset + half] * values[source]
    return out


class PlainFDS:
    """FDS of D features in B buckets; `live` and `calibrated` as in the released code."""

    def __init__(
        self,
        B,
        D,
        window,
        *,
        live,
        calibrated,
        clip=(0.1, 10),
        momentum=0.9,
        start=(0, 1),
        fill=False,
    ):
        self.window = np.asarray(window) / np.sum(window)
        self.live, self.calibrated, self.clip, self.momentum = live, calibrated, clip, momentum
        self.start_update, self.start_smooth = start
        self.fill = fill  # whether an empty bucket takes its neighbours' average
        self.epoch = self.start_update
        self.mean, self.var = np.zeros((B, D)), np.ones((B, D))
        self.m1, self.v1, self.m2, self.v2 = (x.copy() for x in (self.mean, self.var) * 2)
        self.tracked = np.zeros(B)
        self.alias = False

    def smooth(self, features, bucket, epoch):
        """Return calibrated features."""
        out = np.array(features, dtype=np.float64)
        if epoch < self.start_smooth:
            return out
        for i, b in enumerate(bucket):
            if self.v1[b].sum() < 1e-10:
                continue
            usable = (self.v1[b] > 0) & (self.v2[b] >= 0)
            ratio = self.v2[b] / np.where(usable, self.v1[b], 1)
            moved = (out[i] - self.m1[b]) * np.sqrt(np.clip(ratio, *self.clip)) + self.m2[b]
            out[i] = np.where(usable, moved, out[i])
        return out

    def end_epoch(self, raw, bucket, epoch):
        """Update all statistics by the raw features of one pass over the training set."""
        taken = self.smooth(raw, bucket, epoch) if self.calibrated else np.asarray(raw)
        if epoch == self.epoch + 1:
            self.epoch = epoch
            self.alias = self.live
            self.m1, self.v1 = self.mean.copy(), self.var.copy()
            self.m2, self.v2 = reflect(self.mean, self.window), reflect(self.var, self.window)
        if epoch < self.epoch:
            return
        for b in np.unique(bucket):
            own = taken[bucket == b]
            self.tracked[b] += len(own)
            keep = self.momentum if self.momentum is not None else 1 - len(own) / self.tracked[b]
            keep = 0 if epoch == self.start_update else keep
            self.mean[b] = (1 - keep) * own.mean(axis=0) + keep * self.mean[b]
            current = own.var(axis=0, ddof=1) if len(own) > 1 else np.zeros(own.shape[1])
            self.var[b] = (1 - keep) * current + keep * self.var[b]
        if self.fill:
            for b in sorted(set(range(len(self.mean))) - set(bucket)):
                near = [other for other in (b - 1, b + 1) if 0 <= other < len(self.mean)]
                self.mean[b] = np.mean([self.mean[other] for other in near], axis=0)
                self.var[b] = np.mean([self.var[other] for other in near], axis=0)
        if self.alias:
            self.m1, self.v1 = self.mean.copy(), self.var.copy()
