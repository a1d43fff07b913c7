"""Depth buckets, LDS weights of pixels and batches.

A batch is read as uint8 (see `depth_cache.py`) and augmented on the device (see `transforms.py`);
the weight of a pixel is looked up there by its bucket.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import convolve1d

from transforms import (
    TEST_UNIT,
    TRAIN_UNIT,
    crop_of,
    draw_augmentation,
    transform_test,
    transform_train,
)
from utils import get_lds_kernel_window

BUCKETS, BUCKET_START = 100, 7  # of 0.1 m; the nearest training pixel is in bucket 7
TRAIN_PAIRS = 50_688  # rows of the official nyu2_train.csv, to which TRAIN_COUNTS belongs
CPU_PIECE = 4  # pairs of a batch that the CPU takes at a time, so that they stay in its cache
# Pixels of the official training set per bucket, 7 to 99, as the released code lists them.
TRAIN_COUNTS = np.array([0] * 7 + [int(count) for count in """
25848691 24732940 53324326 69112955 54455432 95637682 71403954 117244217 84813007 126524456
84486706 133130272 95464874 146051415 146133612 96561379 138366677 89680276 127689043 81608990
119121178 74360607 106839384 97595765 66718296 90661239 53103021 83340912 51365604 71262770
42243737 65860580 38415940 53647559 54038467 28335524 41485143 32106001 35936734 23966211 32018765
19297203 31503743 21681574 16363187 25743420 12769509 17675327 13147819 15798560 9547180 14933200
9663019 12887283 11803562 7656609 11515700 7756306 9046228 5114894 8653419 6859433 8001904 6430700
3305839 6318461 3486268 5621065 4030498 3839488 3220208 4483027 2555777 4685983 3145082 2951048
2762369 2367581 2546089 2343867 2481579 1722140 3018892 2325197 1952354 2047038 1858707 2052729
1348558 2487278 1314198 3338550 1132666
""".split()])  # fmt: skip


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels):
    """Return the bucket min(int(10·depth), 99) of each depth, as long, same shape and kind."""
    # In float32, as the buckets are defined.
    if isinstance(labels, torch.Tensor):
        return (labels.float() * 10).long().clamp(max=BUCKETS - 1)
    tenths = np.asarray(labels).astype(np.float32) * np.float32(10)
    return np.minimum(tenths.astype(np.int64), BUCKETS - 1)


def label_density(
    counts, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2,
    bucket_start=BUCKET_START,
):  # fmt: skip
    """Return the value per bucket that re-weighting divides by, before and after LDS.

    Args:
        counts: training pixels per bucket [100].
        reweight: 'none' and 'inverse' take the count, 'sqrt_inv' its square root.
        lds, lds_kernel, lds_ks, lds_sigma: smoothing of the value over buckets.
        bucket_start: first bucket; those before it take its value.

    Returns:
        emp_label_dist [100] and eff_label_dist [100], float64, the latter None without LDS.

    Raises:
        ValueError: for an unknown `reweight`, LDS without re-weighting, or counts that are empty.
    """
    if reweight not in ("none", "sqrt_inv", "inverse"):
        raise ValueError(f"reweight must be none, sqrt_inv or inverse; got {reweight!r}")
    if lds and reweight == "none":
        raise ValueError("LDS smooths the weights: give --reweight sqrt_inv or inverse with --lds")
    values = np.array(counts, dtype=np.float64)
    if values.shape != (BUCKETS,) or not values[bucket_start:].any():
        raise ValueError(f"{BUCKETS} counts with pixels from bucket {bucket_start} on are needed")
    values = np.sqrt(values) if reweight == "sqrt_inv" else values
    densities = [values]
    if lds:
        window = get_lds_kernel_window(lds_kernel, lds_ks, lds_sigma)
        smoothed = convolve1d(values[bucket_start:], weights=window, mode="reflect")
        densities.append(np.concatenate([values[:bucket_start], smoothed]))
    for density in densities:
        density[:bucket_start] = density[bucket_start]
    return densities[0], densities[1] if lds else None


def bucket_weights(
    counts, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2,
    bucket_start=BUCKET_START,
):  # fmt: skip
    """Return the weight of a pixel's loss by its bucket; the training pixels' mean is 1.

    Args: as for `label_density`.

    Returns:
        float32 array [100]. A bucket without pixels takes the weight of the nearest one that has
        some: interpolated pixels fall in it too.

    Source: section 3.1 of the paper; the scaling is the released code's.
    """
    counts = np.asarray(counts, dtype=np.float64)
    density = label_density(counts, reweight, lds, lds_kernel, lds_ks, lds_sigma, bucket_start)
    if reweight == "none":
        return np.ones(BUCKETS, dtype=np.float32)
    value = density[0] if density[1] is None else density[1]
    held = np.flatnonzero(value > 0)
    value = value[held[np.abs(np.arange(BUCKETS)[:, None] - held).argmin(axis=1)]]
    return (counts.sum() / (counts / value).sum() / value).astype(np.float32)


def count_pixels(pairs, rows):
    """Count the pixels of 8-bit training depths per bucket [100], as the official counts were.

    Those of the crop count; a pixel without depth does not, and a nearer one than 0.7 m counts in
    the first bucket, whose weight it gets.
    """
    histogram = np.zeros(256, dtype=np.int64)
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        images, depths = pairs.read(part)
        top, left, height, width = crop_of(images, pairs.downscale)
        depths = depths[:, top : top + height, left : left + width]
        histogram += torch.bincount(depths.flatten(), minlength=256).numpy()
    buckets = label_to_bucket(np.arange(256) * TRAIN_UNIT).clip(min=BUCKET_START)
    return np.bincount(buckets[1:], weights=histogram[1:], minlength=BUCKETS).astype(np.int64)


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs; `share` scales this process's mean loss to its part of the batch."""

    images: torch.Tensor  # float32 [n, 3, H, W]; on the CPU the next batch overwrites them
    depths: torch.Tensor  # float32 [n, 1, h, w], metres
    weights: torch.Tensor | None  # float32, of a pixel, in the shape of `depths`
    mask: torch.Tensor | None  # bool, which pixels are evaluated, in the shape of `depths`
    rows: np.ndarray  # numbers [n] within the split
    share: float


class Loader:
    """Batches of one split, cut into equal parts for the processes.

    Args:
        pairs: `depth_cache.Pairs`.
        rows: row numbers of the split in `pairs`.
        batch_size: over all processes together.
        device: where batches go.
        rank, processes: this process's number, and how many there are.
        seed: with the epoch, the source of the order and of the augmentation. Both are drawn for
            the whole split at once, so they do not depend on the number of processes.
        weights: float32 [100], weight of a pixel by bucket, or None.
        mask: bool [N, h, w], pixels to evaluate, or None for all that have a depth.
    """

    def __init__(
        self, pairs, rows, batch_size, device, rank, processes, seed, weights=None, mask=None
    ):
        self.pairs, self.rows, self.mask = pairs, np.asarray(rows), mask
        self.batch_size, self.device, self.seed = batch_size, torch.device(device), seed
        self.rank, self.processes = rank, processes
        self.weights = None if weights is None else torch.as_tensor(weights, device=self.device)
        self.buffer = None

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def train(self, epoch):
        """Yield shuffled, augmented batches."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.rows))
        yield from self._steps(order, draw_augmentation(rng, len(self.rows)))

    def statistics(self):
        """Yield the split in order, as in training but not augmented."""
        yield from self._steps(np.arange(len(self.rows)))

    def evaluate(self):
        """Yield this process's part of the split in order, depths at the images' size."""
        own = np.array_split(np.arange(len(self.rows)), self.processes)[self.rank]
        parts = [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
        for part, pair in self._read(parts):
            yield self.prepare(part, *pair)

    def pick(self, n):
        """Return a `Batch` for evaluation of n pairs spread evenly over the split."""
        part = np.unique(np.linspace(0, len(self.rows) - 1, n).astype(int))
        pair = self.pairs.read(self.rows[part])
        return self.prepare(part, *(x.to(self.device) for x in pair))

    def prepare(self, part, images, depths):
        """Return the `Batch` for evaluation of pairs as read from the cache."""
        unit = TRAIN_UNIT if self.pairs.bits == 8 else TEST_UNIT
        images, depths = transform_test(images, depths, unit, self.pairs.downscale)
        mask = None
        if self.mask is not None:
            mask = torch.from_numpy(self.mask[part]).to(self.device)[:, None]
        return Batch(images, depths, None, mask, part, 1.0)

    def _steps(self, order, draws=None):
        """Cut an order of the split into steps, each of them into the processes' parts."""
        parts, shares = [], []
        for start in range(0, len(order), self.batch_size):
            whole = order[start : start + self.batch_size]
            part = np.array_split(whole, self.processes)[self.rank]
            shares.append(len(part) * self.processes / len(whole))
            # A process left without a sample takes one along that counts for nothing.
            parts.append(part if len(part) else whole[:1])
        for (part, pair), share in zip(self._read(parts), shares):
            images, depths = self._transform(part, *pair, draws)
            weights = None if self.weights is None else self.weights[label_to_bucket(depths)]
            yield Batch(images, depths, weights, None, part, share)

    def _read(self, parts):
        """Yield each part with its pairs on the device, read by a thread two batches ahead."""

        def read(part):
            pair = self.pairs.read(self.rows[part])
            return [x.pin_memory() for x in pair] if self.device.type == "cuda" else pair

        waiting = deque()
        with ThreadPoolExecutor(1) as pool:
            for part in parts:
                waiting.append((part, pool.submit(read, part)))
                if len(waiting) > 2:
                    part, pair = waiting.popleft()
                    yield part, [x.to(self.device, non_blocking=True) for x in pair.result()]
            for part, pair in waiting:
                yield part, [x.to(self.device, non_blocking=True) for x in pair.result()]

    def _transform(self, part, images, depths, draws):
        """Augment by the draws of this part, if any, and normalise."""
        n, on_cpu = len(images), self.device.type == "cpu"
        draws = None if draws is None else draws.take(torch.from_numpy(part), self.device)
        _, _, height, width = crop_of(images, self.pairs.downscale)
        # Fresh memory costs the CPU more time than the arithmetic does: one buffer for all batches.
        if not on_cpu or self.buffer is None or len(self.buffer) < n:
            self.buffer = torch.empty(n, 3, height, width, device=self.device)
        step, out = CPU_PIECE if on_cpu else n, []
        for i in range(0, n, step):
            few = slice(i, i + step)
            own = None if draws is None else draws.take(few, self.device)
            _, depth = transform_train(
                images[few], depths[few], own, self.pairs.downscale, self.buffer[:n][few]
            )
            out.append(depth)
        return self.buffer[:n], torch.cat(out)
