"""Depth buckets, LDS weights of pixels and batches.

A batch is read as uint8 (see `depth_cache.py`) and augmented on the device (see `transforms.py`);
the weight of a pixel is looked up there by its bucket.
"""

from typing import NamedTuple

import numpy as np
import torch

from batches import Batches, Part
from depth_maps import BUCKET_START, BUCKETS, TEST_UNIT, TRAIN_UNIT, crop_of, label_to_bucket
from lds import bucket_weights as weights_of_density
from lds import label_density
from transforms import Draws, draw_augmentation, transform_test, transform_train

LDS_RULE = {"mode": "reflect"}  # LDS mirrors the density at its ends (released code)
TRAIN_PAIRS = 50_688  # rows of the official nyu2_train.csv, to which TRAIN_COUNTS belongs
CPU_PIECE = 4  # pairs of a batch that the CPU takes at a time, so that they stay in its cache
# Pixels of the official training set per bucket, 7 to 99, as the released code lists them.
OFFICIAL_COUNTS = """
25848691 24732940 53324326 69112955 54455432 95637682 71403954 117244217 84813007 126524456
84486706 133130272 95464874 146051415 146133612 96561379 138366677 89680276 127689043 81608990
119121178 74360607 106839384 97595765 66718296 90661239 53103021 83340912 51365604 71262770
42243737 65860580 38415940 53647559 54038467 28335524 41485143 32106001 35936734 23966211 32018765
19297203 31503743 21681574 16363187 25743420 12769509 17675327 13147819 15798560 9547180 14933200
9663019 12887283 11803562 7656609 11515700 7756306 9046228 5114894 8653419 6859433 8001904 6430700
3305839 6318461 3486268 5621065 4030498 3839488 3220208 4483027 2555777 4685983 3145082 2951048
2762369 2367581 2546089 2343867 2481579 1722140 3018892 2325197 1952354 2047038 1858707 2052729
1348558 2487278 1314198 3338550 1132666
"""
TRAIN_COUNTS = np.array([0] * BUCKET_START + [int(count) for count in OFFICIAL_COUNTS.split()])


# ---- labels and weights --------------------------------------------------------------------


def bucket_weights(
    counts,
    reweight,
    lds=False,
    lds_kernel="gaussian",
    lds_ks=5,
    lds_sigma=2,
    *,
    bucket_start=BUCKET_START,
):
    """Return the weight of a pixel's loss by its bucket, float32 [100]; the pixels' mean is 1.

    Args:
        counts: training pixels per bucket [100].
        reweight, lds, lds_kernel, lds_ks, lds_sigma: as for `lds.label_density`.
        bucket_start: first bucket; those before it take its value.

    Raises:
        ValueError: as `lds.label_density`.
    """
    window = lds_kernel, lds_ks, lds_sigma
    density = label_density(counts, reweight, lds, *window, start=bucket_start, **LDS_RULE)
    return weights_of_density(density, counts, reweight)


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


# ---- data ----------------------------------------------------------------------------------


class Data(NamedTuple):
    """A run's data."""

    loaders: dict  # `Loader` of test and, but for an evaluation, of train, val and FDS's subset
    paths: dict  # paths of the images of val and test, [N] each
    counts: np.ndarray | None = None  # training pixels per bucket, long [100]
    density: tuple = ()  # label density before and after LDS, [100] each
    weights: np.ndarray | None = None  # weight of a pixel by its bucket, float32 [100]
    pixels: list | None = None  # training pixels that say the shots; None: the fixed lists do


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs."""

    images: torch.Tensor  # float32 [n, 3, H, W]; on the CPU the next batch overwrites them
    depths: torch.Tensor  # float32 [n, 1, h, w], metres
    weights: torch.Tensor | None  # float32, of a pixel, in the shape of `depths`
    mask: torch.Tensor | None  # bool, which pixels are evaluated, in the shape of `depths`
    rows: np.ndarray  # numbers [n] within the split
    share: float  # as in `batches.Part`
    size: int


def pixels_of(batch, preds, loss):
    """Return the predictions that count in a loss, and the batch with their depths and weights.

    The empty corners that rotation leaves have depth 0; in mse they count, as in the released code.
    """
    if batch.mask is None and loss == "mse":
        return preds, batch
    seen = batch.depths >= BUCKET_START / 10 if batch.mask is None else batch.mask
    weights = None if batch.weights is None else batch.weights[seen]
    return preds[seen], batch._replace(depths=batch.depths[seen], weights=weights)


class Loader(Batches):
    """Batches of one split.

    Args:
        pairs: `depth_cache.Pairs`.
        rows: row numbers of the split in `pairs`.
        sharing: `batches.Sharing`.
        weights: float32 [100], weight of a pixel by bucket, or None.
        mask: bool [N, h, w], pixels to evaluate, or None for all that have a depth.
    """

    def __init__(self, pairs, rows, sharing, weights=None, mask=None):
        super().__init__(len(rows), sharing)
        self.pairs = pairs
        self.rows = np.asarray(rows)
        # On the device once, since each sending waits for it.
        self.mask = None if mask is None else torch.as_tensor(mask, device=self.device)
        self.weights = None if weights is None else torch.as_tensor(weights, device=self.device)
        self.buffer = None

    def train(self, epoch):
        """Yield shuffled, augmented batches."""
        rng = np.random.default_rng([self.sharing.seed, epoch])
        order = rng.permutation(self.N)
        yield from self._train_batches(order, draw_augmentation(rng, self.N))

    def statistics(self):
        """Yield the split in order, as in training but not augmented."""
        yield from self._train_batches(np.arange(self.N))

    def evaluate(self):
        """Yield this process's part of the split in order, depths at the images' size."""
        for part, both in self.read_ahead(self.parts_in_order(), self._together):
            yield self._test_batch(part, *self.pairs.parted(both))

    def pick(self, n):
        """Return a `Batch` for evaluation of n pairs spread evenly over the split."""
        rows = np.unique(np.linspace(0, self.N - 1, n).astype(int))
        pair = [tensor.to(self.device) for tensor in self.read(rows)]
        return self._test_batch(Part(rows, 1.0, len(rows)), *pair)

    def read(self, rows):
        """Return images and depths of some of the split's rows, as `depth_cache.Pairs.read`."""
        return self.pairs.read(self.rows[rows])

    def _together(self, rows):
        """Return the bytes of some of the split's rows, which are parted on the device."""
        return self.pairs.read_together(self.rows[rows])

    def _train_batches(self, order, draws=None):
        """Yield the batches of an order of the split, augmented if there are draws."""

        def read(rows):
            return self._together(rows), () if draws is None else tuple(draws.take(rows, "cpu"))

        for part, (both, own) in self.read_ahead(self.parts(self.cut(order)), read):
            own = Draws(*own) if own else None
            images, depths = self._transform(both, own)
            weights = None if self.weights is None else self.weights[label_to_bucket(depths)]
            yield Batch(images, depths, weights, None, *part)

    def _transform(self, both, draws):
        """Augment the bytes of 8-bit pairs by the draws, if any, and normalise."""
        n, on_cpu = len(both), self.device.type == "cpu"
        _, _, height, width = crop_of(both, self.pairs.downscale)
        # Fresh memory costs the CPU more time than the arithmetic does: one buffer for all batches.
        if not on_cpu or self.buffer is None or len(self.buffer) < n:
            self.buffer = torch.empty(n, 3, height, width, device=self.device)
        step = CPU_PIECE if on_cpu else n
        halved = []
        for i in range(0, n, step):
            few = slice(i, i + step)
            own = None if draws is None else draws.take(few, self.device)
            out = self.buffer[:n][few]
            halved.append(transform_train(both[few], own, self.pairs.downscale, out)[1])
        return self.buffer[:n], torch.cat(halved)

    def _test_batch(self, part, images, depths):
        """Return the `Batch` for evaluation of pairs as read from the cache."""
        unit = TRAIN_UNIT if self.pairs.bits == 8 else TEST_UNIT
        images, depths = transform_test(images, depths, unit, self.pairs.downscale)
        mask = None
        if self.mask is not None:
            span = range(part.rows[0], part.rows[-1] + 1)
            in_order = len(span) == len(part.rows)  # those of `pick` are not
            mask = self.mask[slice(span.start, span.stop) if in_order else part.rows][:, None]
        return Batch(images, depths, None, mask, *part)
