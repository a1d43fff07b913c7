"""Feature distribution smoothing (FDS), section 3.2 of "Delving into Deep Imbalanced Regression".

The mean and variance of the last layer's features are tracked for each bucket of the label, and
smoothed over neighbouring buckets. Each training feature is moved from its bucket's own statistics
to the smoothed ones. Nothing is done at inference. One epoch e of training runs

    smoothed = fds.smooth(features, labels, e)       # in the forward pass of training
    fds.accumulate(features, labels, e)              # raw features, per batch of the training set
    fds.update_last_epoch_stats(e)                   # after the epoch
    fds.update_running_stats(epoch=e)                # or (features, labels, e) for whole arrays
"""

import itertools
import warnings

import numpy as np
import torch
from torch import nn

from lds import get_lds_kernel_window
from moments import CHUNK_ROWS, BucketMoments, blocks_of, piece_numel, widest

VARIANTS = ("official", "paper", "live", "calibrated")
MIN_SUM = 1e-10  # a bucket whose variances add up to less is not calibrated (released code)


def whole_number(labels):
    """Return the whole part of each label as long: the bucket where none is said."""
    return torch.floor(widest(labels)).clamp(-(2**31), 2**31).long()


class UniformBuckets:
    """A `label_to_bucket` that cuts [low, high] into equal buckets.

    Args:
        low, high: ends of the label's range, in its unit; labels outside go to the end buckets.
        bins: number of buckets, >= 1.

    Called with labels of any shape, it returns their bucket numbers 0 ... bins - 1 as long.

    Raises:
        ValueError: for an empty range or no bucket.
    """

    def __init__(self, low, high, bins):
        if not high > low or bins < 1:
            raise ValueError(f"need low < high and bins >= 1, got {low=}, {high=}, {bins=}")
        self.low, self.high, self.bins = low, high, bins

    def __call__(self, labels):
        position = (widest(torch.as_tensor(labels)) - self.low) / (self.high - self.low)
        return (position * self.bins).floor().clamp(0, self.bins - 1).long()


uniform_buckets = UniformBuckets  # its name as a function


class _DensePieces(torch.autograd.Function):
    """x·scale + shift of maps by their pixels' buckets; keeps nothing of the features' size."""

    @staticmethod
    def forward(ctx, features, bucket, table):
        N, D, H, W = features.shape
        tables = [part.contiguous() for part in table.split(D, dim=1)]  # of the scale, the shift
        ctx.save_for_backward(bucket, tables[0])
        result = torch.empty_like(features)
        given, taken = features.movedim(1, -1), result.movedim(1, -1)
        rows = max(1, piece_numel(features.device) // max(1, W * D))
        piece = [max(1, min(N, rows // max(1, H))), max(1, min(H, rows))]  # maps, rows of each
        scratch = [table.new_empty(piece[0] * piece[1] * W, D) for _ in tables]
        for i, h in itertools.product(range(0, N, piece[0]), range(0, H, piece[1])):
            place = slice(i, i + piece[0]), slice(h, h + piece[1])
            pixels = given[place].to(table.dtype)
            own = bucket[place].flatten()
            scale, *shift = (
                torch.index_select(part, 0, own, out=room[: len(own)]).view(pixels.shape)
                for part, room in zip(tables, scratch)
            )
            if shift:
                torch.addcmul(*shift, pixels, scale, out=taken[place])
            else:
                torch.mul(pixels, scale, out=taken[place])
        return result

    @staticmethod
    def backward(ctx, grad):
        return _DensePieces.apply(grad, *ctx.saved_tensors), None, None


class FDS(nn.Module):
    """Feature distribution smoothing over the buckets of a continuous label.

    Args:
        feature_dim: D, number of features per sample (or channels, for dense features).
        bucket_num, bucket_start: buckets are numbered bucket_start ... bucket_num - 1, so there
            are B = bucket_num - bucket_start of them; labels outside go to the end buckets.
        start_update: first epoch whose features enter the statistics.
        start_smooth: first epoch in which features are calibrated.
        kernel, ks, sigma: window over buckets, as in `lds.get_lds_kernel_window`.
        momentum: of the running statistics; None weighs every sample of all epochs alike.
        label_to_bucket: function labels -> long bucket numbers of the same shape; the default is
            the floor of the label.
        clip: (low, high) bounds of the variance ratio.
        fill_empty: give a bucket without samples the average of its neighbours.
        variant: of the next two, 'official' (released code) sets both, 'live' or 'calibrated' one.
        live_statistics: calibrate from the statistics of the epoch just finished to the smoothed
            ones of the epoch before; without it both are of one epoch.
        calibrated_statistics: take the statistics from calibrated features. FDS is always given
            raw ones: it calibrates them itself, as in training at that epoch.

    Raises:
        ValueError: for a window, bucket range or variant that cannot be used.
    """

    def __init__(
        self,
        feature_dim,
        bucket_num=100,
        bucket_start=0,
        start_update=0,
        start_smooth=1,
        kernel="gaussian",
        ks=5,
        sigma=2,
        momentum=0.9,
        *,
        label_to_bucket=None,
        clip=(0.1, 10.0),
        fill_empty=False,
        variant="official",
        live_statistics=None,
        calibrated_statistics=None,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        window = get_lds_kernel_window(kernel, ks, sigma)
        B = bucket_num - bucket_start
        if B < (ks + 1) // 2:
            raise ValueError(
                f"{B} buckets (bucket_num {bucket_num} - bucket_start {bucket_start}) are too few "
                f"to be padded for a window of {ks}: use at least {(ks + 1) // 2}, or a smaller ks"
            )
        self.live_statistics, self.calibrated_statistics = (
            variant in ("official", part) if given is None else given
            for part, given in (("live", live_statistics), ("calibrated", calibrated_statistics))
        )
        self.feature_dim = feature_dim
        self.bucket_num, self.bucket_start = bucket_num, bucket_start
        self.start_update, self.start_smooth = start_update, start_smooth
        self.momentum, self.clip, self.fill_empty = momentum, clip, fill_empty
        self._label_to_bucket = label_to_bucket or whole_number

        # Released checkpoints hold these eight buffers under these names.
        self.register_buffer("epoch", torch.zeros(1))
        self.register_buffer("running_mean", torch.zeros(B, feature_dim))
        self.register_buffer("running_var", torch.ones(B, feature_dim))
        self.register_buffer("running_mean_last_epoch", torch.zeros(B, feature_dim))
        self.register_buffer("running_var_last_epoch", torch.ones(B, feature_dim))
        self.register_buffer("smoothed_mean_last_epoch", torch.zeros(B, feature_dim))
        self.register_buffer("smoothed_var_last_epoch", torch.ones(B, feature_dim))
        self.register_buffer("num_samples_tracked", torch.zeros(B))
        # No buffer: its numbers are read on the CPU, in float64, which not every device has.
        self.kernel_window = torch.from_numpy(window / window.sum())
        # Per bucket the scale and, behind it, the shift of every feature: made by each update.
        self.register_buffer("_calibration", torch.zeros(B, 2 * feature_dim), persistent=False)
        self.reset()

    def reset(self):
        """Forget all statistics, as before the first epoch."""
        for name, buffer in self.named_buffers():
            buffer.fill_(1.0 if "var" in name else 0.0)
        self.epoch.fill_(self.start_update)
        self.moments = None  # of the running epoch; to stop within an epoch, save them
        self._following = False  # whether the last epoch's statistics follow the running ones
        self._refresh_calibration()

    def label_to_bucket(self, labels):
        """Return the row of the statistics for each label: long, same shape, 0 ... B - 1."""
        bucket = self._label_to_bucket(torch.as_tensor(labels))
        return bucket.clamp(self.bucket_start, self.bucket_num - 1).sub_(self.bucket_start)

    def smooth_over_buckets(self, statistics, out=None):
        """Convolve statistics [B, D] over the buckets with the normalised window, in float64."""
        out = torch.empty_like(statistics) if out is None else out
        window, last = self.kernel_window.tolist(), len(statistics) - 1
        half = len(window) // 2
        padded = torch.arange(-half, last + half + 1, device=statistics.device).abs()
        padded = last - (last - padded).abs()  # mirrored at both ends
        for block in blocks_of(statistics):
            rows = widest(statistics[padded[block.start : block.stop + 2 * half]])
            size = len(rows) - 2 * half
            out[block] = sum(w * rows[k : k + size] for k, w in enumerate(window))
        return out

    def smooth(self, features, labels, epoch):
        """Calibrate training features from their bucket's statistics to the smoothed ones.

        Args:
            features: [N, D] or [N, D, H, W], any floating type; never written to.
            labels: [N] or [N, 1]; for dense features [N, 1, H, W] or [N, H, W].
            epoch: number of the running epoch, from 0.

        Returns:
            Tensor like `features`, differentiable in it; `features` itself before `start_smooth`.

        Source: equation 3 of the paper, with a diagonal covariance.
        """
        if epoch < self.start_smooth:
            return features
        features = torch.as_tensor(features)
        if self._stale:
            self._refresh_calibration()
        return self._calibrate(features, self._buckets_of(features, labels), self._calibration)

    @torch.no_grad()
    def accumulate(self, features, labels, epoch=None, keep=None):
        """Add a batch of raw features to the epoch's statistics.

        Args:
            features, labels: as for `smooth`; each process passes its own samples.
            epoch: number of the running epoch, needed with `calibrated_statistics`.
            keep: bool of the shape of `labels`, which samples to add; None for all.

        Raises:
            ValueError: without the epoch where it is needed.
        """
        features = torch.as_tensor(features).detach()
        bucket = self._buckets_of(features, labels)
        if self.calibrated_statistics:
            if epoch is None:
                raise ValueError("statistics of calibrated features need the epoch: pass epoch=...")
            if epoch >= self.start_smooth:  # as in training, until `smooth` follows an update
                features = self._calibrate(features, bucket, self._calibration)
        if keep is not None:
            bucket = bucket.masked_fill(~keep.reshape(bucket.shape), len(self.running_mean))
        if self.moments is None:
            self.moments = BucketMoments.empty(self.running_mean)
        if features.device.type != "cpu":
            self.moments.add(features.movedim(1, -1).flatten(0, -2), bucket.flatten())
            return
        # A dense map [D, H, W] at a time: its rows lie in the processor's cache when used again.
        dense = features.ndim == 4
        pairs = zip(features.flatten(2).mT, bucket.flatten(1)) if dense else [(features, bucket)]
        for rows, rows_bucket in pairs:
            for part, own in zip(rows.split(CHUNK_ROWS), rows_bucket.split(CHUNK_ROWS)):
                self.moments.add(part, own)

    @torch.no_grad()
    def update_last_epoch_stats(self, epoch):
        """Take the running statistics over as the last epoch's, and smooth them over buckets.

        Args:
            epoch: number of the epoch just trained; anything but the next one in turn is ignored.
        """
        if epoch != int(self.epoch) + 1:
            return
        self.epoch.fill_(epoch)
        self.running_mean_last_epoch.copy_(self.running_mean)
        self.running_var_last_epoch.copy_(self.running_var)
        self.smooth_over_buckets(self.running_mean, self.smoothed_mean_last_epoch)
        self.smooth_over_buckets(self.running_var, self.smoothed_var_last_epoch)
        # From here on the released code's "last epoch" statistics are references to the running
        # ones. Loading copies, so a new process starts without.
        self._following = self.live_statistics
        self._stale = True

    @torch.no_grad()
    def update_running_stats(self, features=None, labels=None, epoch=None):
        """Move the running statistics towards those of the epoch, reduced over all processes.

        Args:
            features, labels: whole arrays of raw features, as for `smooth`; leave both out after
                `accumulate`.
            epoch: number of the epoch just trained; ignored if before `start_update`.

        Raises:
            ValueError: without samples, or with features that are not finite.
        """
        if epoch is None:
            raise ValueError("update_running_stats needs the epoch: pass epoch=...")
        if features is not None and epoch >= int(self.epoch):
            self.moments = None
            self.accumulate(features, labels, epoch)
        local, self.moments = self.moments, None
        if epoch < int(self.epoch):
            return
        moments = (local or BucketMoments.empty(self.running_mean)).reduce()
        count, mean, squares = moments.parts
        seen = count > 0
        if not seen.any():
            raise ValueError("no features to update from: call accumulate(features, labels) first")
        if not torch.isfinite(mean.sum() + squares.sum()):
            raise ValueError(f"features of epoch {epoch} are not finite: statistics left unchanged")
        variance = squares.div_((count - 1).clamp(min=1).unsqueeze(1))  # of one sample: 0
        if not self.num_samples_tracked.any():
            self._warn_if_few(seen)
        self.num_samples_tracked += count.to(self.num_samples_tracked.dtype)
        if epoch == self.start_update:
            keep = torch.zeros_like(count)
        elif self.momentum is None:
            keep = 1 - count / widest(self.num_samples_tracked).clamp(min=1)
        else:
            keep = torch.full_like(count, self.momentum)
        keep = torch.where(seen, keep, 1.0).unsqueeze(1)
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            current *= 1 - keep
            for block in blocks_of(running):
                running[block] = current[block] + keep[block] * running[block]
            if self.fill_empty:
                self._fill(running, seen)
        if self._following:
            self.running_mean_last_epoch.copy_(self.running_mean)
            self.running_var_last_epoch.copy_(self.running_var)
            self._stale = True
        if self._stale:
            self._refresh_calibration()

    def _buckets_of(self, features, labels):
        """Bucket rows for features: [N], or [N, H, W] for dense ones."""
        shape = features.shape[:1] + features.shape[2:]
        if features.ndim not in (2, 4) or features.shape[1] != self.feature_dim:
            raise ValueError(
                f"features must be [N, {self.feature_dim}] or [N, {self.feature_dim}, H, W], "
                f"got {tuple(features.shape)}"
            )
        labels = torch.as_tensor(labels)
        if labels.shape not in (shape, (*shape[:1], 1, *shape[1:])):
            raise ValueError(
                f"one label for each feature vector: labels {tuple(labels.shape)} do not go with "
                f"features {tuple(features.shape)}"
            )
        # On a GPU looking would wait for it; there the files' labels are checked when read.
        on_cpu = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and not torch.isfinite(labels).all():
            raise ValueError("labels hold NaN or infinity: remove those samples first")
        return self.label_to_bucket(labels).reshape(shape).to(features.device)

    @staticmethod
    def _calibrate(features, bucket, table):
        """Apply equation 3, as one scale and one shift: x·√(v2/v1) + (m2 − m1·√(v2/v1))."""
        digits = torch.promote_types(features.dtype, torch.float32)
        table = table.to(features.device, digits)
        if features.ndim == 4 and not torch.compiler.is_compiling():
            return _DensePieces.apply(features, bucket, table)
        scale, shift = nn.functional.embedding(bucket, table).chunk(2, dim=-1)
        if features.ndim == 4:
            scale, shift = scale.permute(0, 3, 1, 2), shift.permute(0, 3, 1, 2)
        return torch.addcmul(shift, features.to(table.dtype), scale).to(features.dtype)

    def _refresh_calibration(self):
        """Turn the statistics into one scale and one shift per bucket and feature."""
        for block in blocks_of(self.running_mean):
            m1 = widest(self.running_mean_last_epoch[block])
            v1 = widest(self.running_var_last_epoch[block])
            m2 = widest(self.smoothed_mean_last_epoch[block])
            v2 = widest(self.smoothed_var_last_epoch[block])
            usable = (v1 > 0) & (v2 >= 0) & (v1.sum(1, keepdim=True) >= MIN_SUM)
            ratio = torch.where(usable, v2 / v1.where(usable, torch.ones_like(v1)), 1.0)
            scale = torch.where(usable, ratio.clamp(*self.clip).sqrt(), 1.0)
            shift = torch.where(usable, m2 - m1 * scale, 0.0)
            self._calibration[block] = torch.cat([scale, shift], dim=1)
        self._stale = False

    @staticmethod
    def _fill(running, seen):
        """Give empty buckets their neighbours' average, from low to high, filled ones included."""
        rows = running.numpy(force=True)  # NumPy: the least time a row
        for b in np.flatnonzero(~seen.numpy(force=True)):
            lower, upper = (1, 1) if b == 0 else (b - 1, b + 1 if b + 1 < len(seen) else b - 1)
            rows[b] = (rows[lower] + rows[upper]) / 2
        running.copy_(torch.from_numpy(rows))

    def _warn_if_few(self, seen):
        """Say that the buckets hardly fit the labels, after the first epoch's statistics."""
        if int(seen.sum()) < len(seen) / 4:
            warnings.warn(
                f"FDS: the labels fill {int(seen.sum())} of {len(seen)} buckets: pass "
                "label_to_bucket=UniformBuckets(low, high, bins), or another --bucket_num",
                stacklevel=4,
            )

    def _apply(self, fn, recurse=True):
        """Move the statistics with the network, but never to fewer digits (`model.half()`)."""

        def keep_digits(tensor):
            changed = fn(tensor)
            if changed.dtype.itemsize < tensor.dtype.itemsize:
                return tensor.to(changed.device)
            return changed

        if self.moments is not None:
            self.moments = BucketMoments(*map(keep_digits, self.moments.parts))
        return super()._apply(keep_digits, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        """Load the buffers, then compute again what is computed from them."""
        super()._load_from_state_dict(*args, **kwargs)
        self._following = False
        self._refresh_calibration()
