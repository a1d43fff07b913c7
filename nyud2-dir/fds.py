"""Feature distribution smoothing (FDS), section 3.2 of "Delving into Deep Imbalanced Regression".

The mean and variance of the last layer's features are tracked for each bucket of the label,
smoothed over neighbouring buckets, and each training feature is moved from its bucket's own
statistics to the smoothed ones. Nothing is done at inference. One epoch e of training runs

    features = fds.smooth(features, labels, e)           # in the forward pass of training
    fds.accumulate(features, labels)                     # per batch, over the training set
    fds.update_last_epoch_stats(e)                       # after the epoch
    fds.update_running_stats(epoch=e)                    # or (features, labels, e) for arrays
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from utils import get_lds_kernel_window

# Rows of one pass over whole arrays are taken in pieces of this many numbers (2 MiB of float32),
# so that the temporaries stay in the cache and do not grow with the number of samples.
CHUNK_NUMEL = 2**19
CHUNK_ROWS = 2**12  # more of them, added up in float32, would cost a narrow bucket its digits


def whole_number(labels):
    """Return the whole part of each label as long: the bucket where none is said."""
    return torch.floor(labels.double()).clamp(-(2**31), 2**31).long()


def uniform_buckets(low, high, bins):
    """Return a `label_to_bucket` that cuts [low, high] into equal buckets.

    Args:
        low, high: ends of the label's range, in its unit; labels outside go to the end buckets.
        bins: number of buckets, >= 1.

    Returns:
        Function: tensor of labels, any shape -> long tensor of bucket numbers 0 ... bins - 1.

    Raises:
        ValueError: for an empty range or no bucket.
    """
    if not high > low or bins < 1:
        raise ValueError(f"need low < high and bins >= 1, got low={low}, high={high}, bins={bins}")

    def label_to_bucket(labels):
        position = (torch.as_tensor(labels).double() - low) * (bins / (high - low))
        return position.floor().clamp(0, bins - 1).long()

    return label_to_bucket


class FDS(nn.Module):
    """Feature distribution smoothing over the buckets of a continuous label.

    Args:
        feature_dim: D, number of features per sample (or channels, for dense features).
        bucket_num, bucket_start: buckets are numbered bucket_start ... bucket_num - 1, so there
            are B = bucket_num - bucket_start of them; labels outside go to the end buckets.
        start_update: first epoch whose features enter the statistics.
        start_smooth: first epoch in which features are calibrated.
        kernel, ks, sigma: window over buckets, as in `utils.get_lds_kernel_window`.
        momentum: of the running statistics; None weighs every sample of all epochs alike.
        label_to_bucket: function labels -> long bucket numbers of the same shape; the default is
            the floor of the label.
        clip: (low, high) bounds of the variance ratio.
        fill_empty: give a bucket without samples the average of its neighbours.
        variant: 'official' calibrates, as the released code did, from the statistics of the epoch
            just finished to the smoothed ones of the epoch before; 'paper' takes both from one
            epoch. Where the statistics are taken from (features before or after smoothing)
            is the training loop's part of the variant.

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
    ):
        super().__init__()
        if variant not in ("official", "paper"):
            raise ValueError(f"variant must be 'official' or 'paper', got {variant!r}")
        B = bucket_num - bucket_start
        window = get_lds_kernel_window(kernel, ks, sigma)
        if B < (ks + 1) // 2:
            raise ValueError(
                f"{B} buckets (bucket_num {bucket_num} - bucket_start {bucket_start}) are too few "
                f"to be padded for a window of {ks}: use at least {(ks + 1) // 2}, or a smaller ks"
            )
        self.feature_dim, self.bucket_num, self.bucket_start = feature_dim, bucket_num, bucket_start
        self.start_update, self.start_smooth = start_update, start_smooth
        self.momentum, self.clip = momentum, clip
        self.fill_empty, self.variant = fill_empty, variant
        self._label_to_bucket = label_to_bucket or whole_number

        # Released checkpoints hold these eight buffers under these names.
        self.register_buffer("epoch", torch.full((1,), float(start_update)))
        for name in ("running", "running_{}_last_epoch", "smoothed_{}_last_epoch"):
            name = name if "{}" in name else name + "_{}"
            self.register_buffer(name.format("mean"), torch.zeros(B, feature_dim))
            self.register_buffer(name.format("var"), torch.ones(B, feature_dim))
        self.register_buffer("num_samples_tracked", torch.zeros(B))
        # The convolution over buckets as a [B, B] matrix, padded as torch's `reflect`. In float64
        # a product with it is neither cast by autocast nor rounded to TF32.
        smoothing = np.zeros((B, B))
        source = np.pad(np.arange(B), ks // 2, mode="reflect")
        for offset, value in enumerate(window / window.sum()):
            np.add.at(smoothing, (np.arange(B), source[offset : offset + B]), value)
        self.register_buffer("_smoothing", torch.from_numpy(smoothing), persistent=False)
        # Per bucket the scale and, behind it, the shift of every feature: made after each update.
        self.register_buffer("_calibration", torch.zeros(B, 2 * feature_dim), persistent=False)
        # The epoch's (count, mean, squares) so far: whoever stops within an epoch keeps them.
        self.moments = None
        self._refresh_calibration()

    def label_to_bucket(self, labels):
        """Return the row of the statistics for each label: long, same shape, 0 ... B - 1."""
        bucket = self._label_to_bucket(torch.as_tensor(labels))
        return bucket.clamp(self.bucket_start, self.bucket_num - 1) - self.bucket_start

    def smooth_over_buckets(self, statistics):
        """Convolve statistics [B, D] over the buckets with the normalised window."""
        return (self._smoothing @ statistics.double()).to(statistics.dtype)

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
        bucket = self._buckets_of(features, labels)
        table = self._calibration.to(torch.promote_types(features.dtype, torch.float32))
        scale, shift = nn.functional.embedding(bucket, table).chunk(2, dim=-1)
        if features.ndim == 4:
            scale, shift = scale.permute(0, 3, 1, 2), shift.permute(0, 3, 1, 2)
        return torch.addcmul(shift, features.to(table.dtype), scale).to(features.dtype)

    @torch.no_grad()
    def accumulate(self, features, labels):
        """Add a batch to the epoch's statistics: O(B·D) memory however many samples come.

        Args:
            features, labels: as for `smooth`; each process passes its own samples.
        """
        features = torch.as_tensor(features).detach()
        bucket = self._buckets_of(features, labels)
        piece = max(1, min(CHUNK_ROWS, CHUNK_NUMEL // self.feature_dim))
        # A dense map [D, H, W] is turned to rows piece by piece: three times as fast as at once.
        dense = features.ndim == 4
        pairs = zip(features.flatten(2).mT, bucket.flatten(1)) if dense else [(features, bucket)]
        for rows, rows_bucket in pairs:
            for part, part_bucket in zip(rows.split(piece), rows_bucket.split(piece)):
                self.moments = _merge(self.moments, self._moments_of(part, part_bucket))

    @torch.no_grad()
    def update_last_epoch_stats(self, epoch):
        """Take the running statistics over as the last epoch's, and smooth them over buckets.

        Args:
            epoch: number of the epoch just trained; anything but the next one in turn is ignored.
        """
        if epoch != int(self.epoch) + 1:
            return
        self.epoch.fill_(epoch)
        for kind in ("mean", "var"):
            running = getattr(self, f"running_{kind}")
            getattr(self, f"running_{kind}_last_epoch").copy_(running)
            smoothed = self.smooth_over_buckets(running)
            getattr(self, f"smoothed_{kind}_last_epoch").copy_(smoothed)
        self._refresh_calibration()

    @torch.no_grad()
    def update_running_stats(self, features=None, labels=None, epoch=None):
        """Move the running statistics towards those of the epoch, reduced over all processes.

        Args:
            features, labels: whole arrays, as for `smooth`; leave both out after `accumulate`.
            epoch: number of the epoch just trained; ignored if before `start_update`.

        Raises:
            ValueError: without samples, or with features that are not finite.
        """
        if epoch is None:
            raise ValueError("update_running_stats needs the epoch: pass epoch=...")
        if features is not None and epoch >= int(self.epoch):
            self.moments = None
            self.accumulate(features, labels)
        local, self.moments = self.moments, None
        if epoch < int(self.epoch):
            return
        count, mean, squares = self._reduce(local)
        seen = count > 0
        if not seen.any():
            raise ValueError("no features to update from: call accumulate(features, labels) first")
        if not (torch.isfinite(mean).all() and torch.isfinite(squares).all()):
            raise ValueError(f"features of epoch {epoch} are not finite: statistics left unchanged")
        variance = squares / (count - 1).clamp(min=1).unsqueeze(1)  # of one sample: 0
        self.num_samples_tracked += count.to(self.num_samples_tracked.dtype)
        if epoch == self.start_update:
            keep = torch.zeros_like(count)
        elif self.momentum is None:
            keep = 1 - count / self.num_samples_tracked.double().clamp(min=1)
        else:
            keep = torch.full_like(count, self.momentum)
        keep = torch.where(seen, keep, 1.0).unsqueeze(1)
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_((1 - keep) * current + keep * running.double())
            if self.fill_empty:
                self._fill(running, seen.tolist())
            if self.variant == "official" and int(self.epoch) > self.start_update:
                # After its first update the released code's "last epoch" statistics are
                # references to the running ones, so they follow every later change.
                name = "running_mean" if running is self.running_mean else "running_var"
                getattr(self, name + "_last_epoch").copy_(running)
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

    def _moments_of(self, rows, bucket):
        """Count [B], mean [B, D] and sum of squared deviations [B, D] of rows [M, D]."""
        B = self.bucket_num - self.bucket_start
        rows = rows.contiguous().to(torch.promote_types(rows.dtype, torch.float32))
        count = torch.bincount(bucket, minlength=B).double()
        target = bucket.unsqueeze(1).expand_as(rows)
        mean = rows.new_zeros(B, self.feature_dim).scatter_add_(0, target, rows)
        mean /= count.clamp(min=1).to(rows.dtype).unsqueeze(1)
        deviations = mean.index_select(0, bucket).sub_(rows).square_()
        return count, mean, torch.zeros_like(mean).scatter_add_(0, target, deviations)

    def _reduce(self, local):
        """The moments of all processes together, merged in the order of their ranks."""
        if local is None:
            zeros = torch.zeros_like(self.running_mean, dtype=torch.float64)
            local = (zeros[:, 0].clone(), zeros, zeros.clone())
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return local
        gathered = []
        for moment in local:
            parts = [torch.empty_like(moment) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, moment.contiguous())
            gathered.append(parts)
        total = None
        for part in zip(*gathered):  # the first is taken over, the others merged into it
            total = _merge(total, part)
        return total

    @staticmethod
    def _fill(running, seen):
        """Give empty buckets their neighbours' average, from low to high, filled ones included."""
        last = len(seen) - 1
        for b in range(last + 1):
            if not seen[b]:
                lower, upper = (1, 1) if b == 0 else (b - 1, b + 1 if b < last else b - 1)
                running[b] = (running[lower] + running[upper]) / 2

    def _refresh_calibration(self):
        """Turn the statistics into one scale and one shift per bucket and feature."""
        m1, v1 = self.running_mean_last_epoch.double(), self.running_var_last_epoch.double()
        m2, v2 = self.smoothed_mean_last_epoch.double(), self.smoothed_var_last_epoch.double()
        usable = (v1 > 0) & (v2 >= 0) & (v1.sum(1, keepdim=True) >= 1e-10)
        ratio = torch.where(usable, v2 / v1.where(usable, torch.ones_like(v1)), 1.0)
        scale = torch.where(usable, ratio.clamp(*self.clip).sqrt(), 1.0)
        shift = torch.where(usable, m2 - m1 * scale, 0.0)
        self._calibration.copy_(torch.cat([scale, shift], dim=1))

    def _load_from_state_dict(self, *args, **kwargs):
        """Load the buffers, then renew what is computed from them."""
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh_calibration()


def _merge(total, part):
    """Merge (count, mean, sum of squared deviations) into a total by Chan's formula."""
    if total is None:
        return tuple(moment.double() for moment in part)
    (count, mean, squares), (part_count, part_mean, part_squares) = total, part
    share = (part_count / (count + part_count).clamp(min=1)).unsqueeze(1)
    delta = part_mean - mean
    mean = mean.addcmul_(delta, share)
    squares = squares.add_(part_squares).addcmul_(delta.square_(), share * count.unsqueeze(1))
    return count + part_count, mean, squares
