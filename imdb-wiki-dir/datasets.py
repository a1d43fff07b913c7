"""Faces with ages: meta file, label buckets, LDS weights and batches.

A batch is read as one uint8 array (see `image_cache.py`), and cropped, mirrored and normalised
on the device as one array.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from augmentation import CROP_PADDING, augment, normalize
from batches import Batches
from lds import bucket_weights, label_density
from meta_file import AGE
from outside import read_table, shown

# With `inverse` the released code keeps counts within bounds, empty ages too, and truncates
# smoothed counts: the published numbers hold both. Your own target's counts stay as they are.
LDS_RULE = {"clip": (5, 1000), "truncate": True}
SPLITS = ("train", "val", "test")


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels, target=AGE):
    """Return the bucket of each label, as long, same shape and kind; ages: min(int(age), 120)."""
    return target.buckets(labels)


def label_counts(labels, target=AGE):
    """Return the number of labels [N] in each bucket, long [B]; arguments as above.

    Raises:
        ValueError: for labels that are not finite or below the range: of ages 0.
    """
    labels = np.asarray(labels).reshape(-1)
    if not (np.isfinite(labels) & (labels >= target.low)).all():
        raise ValueError(f"labels must be finite and {target.low:g} or more: remove the others")
    return np.bincount(label_to_bucket(labels, target), minlength=len(target.buckets))


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training sample's loss, float32 [N] with mean 1.

    Args:
        labels: ages of the training set [N], in years.
        reweight, lds, lds_kernel, lds_ks, lds_sigma: as for `lds.label_density`.

    Raises:
        ValueError: as `label_counts` and `lds.label_density`.
    """
    counts = label_counts(labels)
    density = label_density(counts, reweight, lds, lds_kernel, lds_ks, lds_sigma, **LDS_RULE)
    weights = bucket_weights(density, counts, reweight)
    return weights[label_to_bucket(np.asarray(labels).reshape(-1))]


# ---- meta file -----------------------------------------------------------------------------


def read_meta(data_dir, dataset, target=AGE, needed=SPLITS):
    """Read and check `<data_dir>/<dataset>.csv`.

    Args:
        data_dir: folder of the csv; its paths are relative to it.
        dataset: name of the csv without ending.
        target: `target.Target`, whose name is that of the column of labels.
        needed: splits that must have rows.

    Returns:
        DataFrame with columns age (float32) or your own, path, split (one of SPLITS).

    Raises:
        FileNotFoundError: without that file.
        ValueError: naming the column, or the rows, that cannot be used.
    """
    name = target.name
    file = Path(data_dir) / f"{dataset}.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: `python download.py --split_file` fetches the official "
            "one, `python prepare.py` makes one, `python demo_data.py` generates data; --dataset "
            "NAME and --data_dir choose another"
        )
    columns = (name, "path", "split")
    meta = read_table(file, columns, f"correct it to a UTF-8 csv with {','.join(columns)}")
    meta = meta[(meta != "").any(axis=1)]
    meta[name] = pd.to_numeric(meta[name], errors="coerce").astype(np.float32)
    checks = {
        f"{target.a_name} that is no number from {target.range}": target.outside(meta[name]),
        f"a split other than {', '.join(SPLITS)}": ~meta["split"].isin(SPLITS),
        "no path": meta["path"] == "",
    }
    for fault, rows in checks.items():
        if rows.any():
            # The header is line 1 of the file, so row 0 stands in line 2.
            lines = [str(line) for line in meta.index[rows] + 2]
            lines = ", ".join(lines[:10]) + " ..." * (len(lines) > 10)
            raise ValueError(
                f"{file}: {rows.sum()} rows with {fault} (lines {lines}): correct or remove them"
            )
    empty = [split for split in needed if not (meta["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: prepare.py makes a split")
    paths = meta[["path", "split"]].drop_duplicates()["path"]
    shared = paths[paths.duplicated()].unique()
    if len(shared):
        names = ", ".join(map(shown, shared[:3]))
        logging.warning("%s: %d images are in more than one split: %s", file, len(shared), names)
    return meta.reset_index(drop=True)


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs."""

    images: torch.Tensor  # float32 [n, 3, H, W]; on the CPU the next batch overwrites them
    labels: torch.Tensor  # float32 [n, 1], in the target's unit
    weights: torch.Tensor  # float32 [n, 1]
    share: float  # as in `batches.Part`
    size: int
    views: torch.Tensor | None = None  # two more of each image, [2·n, 3, H, W]


class Loader(Batches):
    """Batches of one split.

    Args:
        images: `image_cache.Images`.
        rows: row numbers of the split in the meta file.
        labels: of the split [N], in the target's unit.
        weights: weight of a sample by its bucket [B].
        sharing: `batches.Sharing`.
        target: `target.Target`.
    """

    def __init__(self, images, rows, labels, weights, sharing, target=AGE):
        super().__init__(len(rows), sharing)
        self.images, self.rows = images, np.asarray(rows)
        self.labels = np.asarray(labels, dtype=np.float32)
        weights = np.asarray(weights, dtype=np.float32)
        self.weights = weights[label_to_bucket(self.labels, target)]
        self.buffer = None

    def train(self, epoch, statistics=False, views=False):
        """Yield shuffled, augmented batches; the statistics pass draws its own."""
        rng = np.random.default_rng([self.sharing.seed, epoch, int(statistics)])
        order = rng.permutation(self.N)
        draws = [self._draw(rng) for _ in range(3 if views else 1)]

        def read(rows):
            return *self._samples(rows), [[draw[rows] for draw in of_view] for of_view in draws]

        for part, data in self.read_ahead(self.parts(self.cut(order)), read):
            yield self._batch(part, *data)

    def _draw(self, rng):
        """Draw top, left and flip of all images, [N] each."""
        offsets = torch.from_numpy(rng.integers(0, 2 * CROP_PADDING + 1, size=(2, self.N)))
        return [*offsets, torch.from_numpy(rng.random(self.N) < 0.5)]

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        for part, data in self.read_ahead(self.parts_in_order(), self._samples):
            yield self._batch(part, *data)

    def read(self, rows):
        """Return the images of some of the split's rows: uint8 [n, H, W, 3]."""
        return self.images.read(self.rows[rows])

    def _samples(self, rows):
        """Return pieces of the images, labels and weights [n, 1] of some of the split's rows."""
        labels, weights = (
            torch.from_numpy(values[rows]).unsqueeze(1) for values in (self.labels, self.weights)
        )
        # The CPU takes image after image, which stay in its cache.
        on_cpu = self.device.type == "cpu"
        pieces = self.images.one_by_one(self.rows[rows]) if on_cpu else [self.read(rows)]
        return pieces, labels, weights

    def _batch(self, part, pieces, labels, weights, draws=((),)):
        """Augment by each of the draws, and normalise."""
        n, on_cpu = len(labels), self.device.type == "cpu"
        # Fresh memory costs the CPU more time than the arithmetic does: one buffer for all batches.
        if not on_cpu or self.buffer is None or len(self.buffer) < len(draws) * n:
            shape = (len(draws) * n, *pieces[0].shape[1:])
            self.buffer = torch.empty(shape, device=self.device)
        step = len(pieces[0])
        for first, of_view in enumerate(draws):
            for i, few in enumerate(augment(pieces, *of_view) if of_view else pieces):
                start = first * n + i * step
                normalize(few, self.buffer[start : start + step])
        made = self.buffer[: len(draws) * n].permute(0, 3, 1, 2)
        views = made[n:] if len(draws) > 1 else None
        return Batch(made[:n], labels, weights, part.share, part.size, views)
