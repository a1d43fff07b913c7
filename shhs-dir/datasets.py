"""Nights with health scores: meta file, label buckets, LDS weights and padded batches.

`prepare.py` makes `shhs.csv` and the nights. A batch holds nights of different length, padded with
zeros to the longest; `packing` says how much of each is real.
"""

import os
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from batches import Batches
from lds import bucket_weights, label_density
from night_file import check_values, has_seal, read_facts
from night_signals import SIGNALS
from outside import check_inside, h5_array, read_table, reading, shown
from own_signals import layout_fault
from packing import Packing
from target import Target

SCORE = Target("health score", "points", 0, 100, 1)  # SF-36 general health, 0 (worst) to 100
BUCKETS = 100  # of width 1; 100 shares the last one with 99
# Counts are not clipped; with `inverse` smoothed ones are truncated, as in released benchmarks.
LDS_RULE = {"truncate": True}
SPLITS = ("train", "val", "test")
COLUMNS = ["id", "score", "path", "split"]  # of the meta file
NO_NIGHT = "remove it and make it again with `python prepare.py --overwrite`"
MIN_SPREAD = 1e-3  # a channel that varies less is constant: breathing that no night has


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels, target=SCORE):
    """Return the bucket of each score, SHHS's min(int(score), 99): long, same shape and kind."""
    return target.buckets(labels)


def label_counts(labels, target=SCORE):
    """Return the number of scores in each bucket, long [B].

    Args:
        labels: scores [N].
        target: `target.Target` of the scores.

    Raises:
        ValueError: for scores that are not finite, or are below the range.
    """
    labels = np.asarray(labels).reshape(-1)
    if not (np.isfinite(labels) & (labels >= target.low)).all():
        raise ValueError(f"scores must be finite and {target.low:g} or more: remove the others")
    return np.bincount(label_to_bucket(labels, target), minlength=len(target.buckets))


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training night's loss, float32 [N] with mean 1.

    Args:
        labels: scores of the training set [N], as for `label_counts`, which may raise a ValueError.
        reweight, lds, lds_kernel, lds_ks, lds_sigma: as for `lds.label_density`.
    """
    counts = label_counts(labels)
    density = label_density(counts, reweight, lds, lds_kernel, lds_ks, lds_sigma, **LDS_RULE)
    weights = bucket_weights(density, counts, reweight)
    return weights[label_to_bucket(np.asarray(labels).reshape(-1))]


# ---- meta file and nights ------------------------------------------------------------------


def read_meta(data_dir, target=SCORE, needed=SPLITS):
    """Read and check `<data_dir>/shhs.csv`.

    Args:
        data_dir: folder of the csv; its paths are relative to it.
        target: `target.Target` of the scores.
        needed: splits that must have rows.

    Returns:
        DataFrame with columns id, score (float32), path, split ('train', 'val', 'test').

    Raises:
        FileNotFoundError: without that file, or naming the first ten nights that are missing.
        ValueError: naming the column, or the rows, that cannot be used.
    """
    file = Path(data_dir) / "shhs.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: `python prepare.py` makes it from SHHS's recordings or from those "
            "that `python demo_data.py` simulates; --data_dir chooses another folder"
        )
    meta = read_table(file, COLUMNS, "`python prepare.py --overwrite` writes it again")
    meta = meta[(meta != "").any(axis=1)]
    meta["score"] = pd.to_numeric(meta["score"], errors="coerce").astype(np.float32)
    checks = {
        f"a score that is no number from {target.range}": target.outside(meta["score"]),
        f"a split other than {', '.join(SPLITS)}": ~meta["split"].isin(SPLITS),
        "a path that occurs twice": meta["path"].duplicated(),
    }
    for fault, rows in checks.items():
        if rows.any():
            lines = ", ".join(str(line) for line in meta.index[rows][:10] + 2)
            raise ValueError(
                f"{file}: {rows.sum()} rows with {fault} (lines {lines}): correct or remove them"
            )
    absent = [path for path in meta["path"] if not os.path.isfile(os.path.join(data_dir, path))]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(meta)} nights are not in {data_dir}: "
            f"{', '.join(map(shown, absent[:10]))}; "
            "`python prepare.py --overwrite` makes those that are missing"
        )
    empty = [split for split in needed if not (meta["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: more nights are needed")
    return meta.reset_index(drop=True)


class Nights:
    """The nights of a meta file, read by row number.

    Args:
        data_dir, paths: folder, and paths relative to it.
        allow_outside: let paths lead out of it.
        signals: their layout, as `own_signals.signals_of` returns it.

    Raises:
        ValueError: naming a file that is no night of `prepare.py`, or paths that lead out.
    """

    def __init__(self, data_dir, paths, allow_outside=False, signals=SIGNALS):
        check_inside(data_dir, paths, allow_outside)
        self.signals = signals
        self.files = [Path(data_dir) / path for path in paths]
        n = len(self.files)
        self.frames = np.zeros(n, dtype=np.int64)
        # Mean and mean square of each channel of each night, [nights, 2, channels].
        self.moments = {name: np.zeros((n, 2, sig.channels)) for name, sig in signals.items()}
        # CRC-32 of each signal of each night, −1 where an earlier version wrote none.
        self.contents = np.zeros((n, len(signals)), dtype=np.int64)
        self.checked = np.zeros(n, dtype=bool)  # whether its values were compared with these
        self.units = ""  # of your own channels, if the recordings state them
        for row, file in enumerate(self.files):
            with reading(file, NO_NIGHT), h5py.File(file) as night:
                has_seal(night.attrs)  # before its flags are believed
                fault = layout_fault(night.attrs.get("layout", ""), signals)
                self.units = self.units or night.attrs.get("units", "")
                if not fault:
                    self.frames[row], moments, self.contents[row] = read_facts(night, signals)
            if fault:
                raise ValueError(f"{shown(str(file))}: {fault}; give the same flags")
            for name in signals:
                self.moments[name][row] = moments[name]

    def inputs(self):
        """Return what tells these nights from others, for `run_folder.Run.note_data`."""
        moments = [self.frames, *map(np.ravel, self.moments.values())]
        found = {"signals of nights": np.concatenate(moments)}
        if (self.contents >= 0).all():
            found["values of nights"] = self.contents
        return found

    def scale(self, rows):
        """Return `{signal: (mean, std)}` [channels] over all columns of some nights, float32."""
        import torch  # here: prepare.py looks at nights without it

        share = (self.frames[rows] / self.frames[rows].sum())[:, None, None]
        result = {}
        for name, moments in self.moments.items():
            mean, square = (moments[rows] * share).sum(axis=0)
            std = np.sqrt(np.maximum(square - mean**2, 0))
            least = 1e-7 * np.abs(mean) + 1e-30 if name == "own" else MIN_SPREAD  # own: any unit
            std[std < least] = 1.0
            result[name] = tuple(torch.from_numpy(x.astype(np.float32)) for x in (mean, std))
        return result

    def read(self, rows):
        """Return `{signal: [n, channels, columns]}`, padded with zeros to the longest."""
        import torch

        longest = self.frames[rows].max()
        batch = {}
        for name, signal in self.signals.items():
            shape = (len(rows), signal.channels, longest * signal.frame)
            batch[name] = torch.zeros(shape, dtype=getattr(torch, signal.dtype))
        for k, row in enumerate(rows):
            with reading(self.files[row], NO_NIGHT), h5py.File(self.files[row]) as night:
                for name, padded in batch.items():
                    array = h5_array(night, name)
                    values = array[()]
                    if not self.checked[row]:
                        check_values(array, values)
                    padded[k, :, : values.shape[1]] = torch.from_numpy(values)
            self.checked[row] = True
        return batch


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs."""

    signals: dict  # float16 [n, channels, columns] by signal
    packing: object  # `packing.Packing` of each night's frames
    labels: object  # tensor, float32 [n, 1], in the target's unit
    weights: object  # tensor, float32 [n, 1]
    share: float  # as in `batches.Part`
    size: int


class Loader(Batches):
    """Batches of one split.

    Args:
        nights: `Nights`.
        rows: row numbers of the split in the meta file.
        labels: scores of the split [N].
        weights: weight of a sample by its bucket [B].
        sharing: `batches.Sharing`.
        target: `target.Target` of the scores.
    """

    def __init__(self, nights, rows, labels, weights, sharing, target=SCORE):
        super().__init__(len(rows), sharing)
        self.nights = nights
        self.rows = np.asarray(rows)
        self.labels = np.asarray(labels, dtype=np.float32)
        self.weights = np.asarray(weights, dtype=np.float32)[label_to_bucket(self.labels, target)]

    def train(self, epoch, statistics=False):
        """Yield shuffled batches; the statistics pass draws its own order."""
        rng = np.random.default_rng([self.sharing.seed, epoch, int(statistics)])
        order = rng.permutation(self.N)
        yield from self._batches(self.parts(self.cut(order)))

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        yield from self._batches(self.parts_in_order())

    def read(self, rows):
        """Return the signals of some of the split's nights, as `Nights.read`."""
        return self.nights.read(self.rows[rows])

    def _samples(self, rows):
        """Return signals, packing, labels and weights [n, 1] of some of the split's nights."""
        import torch

        labels, weights = (torch.from_numpy(x[rows])[:, None] for x in (self.labels, self.weights))
        packing = Packing.of(self.nights.frames[self.rows[rows]])
        return self.read(rows), packing, labels, weights

    def _batches(self, parts):
        """Yield the batches of these parts."""
        for part, data in self.read_ahead(parts, self._samples):
            yield Batch(*data, part.share, part.size)
