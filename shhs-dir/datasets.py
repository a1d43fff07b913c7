"""Nights with health scores: meta file, label buckets, LDS weights and padded batches.

`prepare.py` makes `shhs.csv` and the nights. A batch holds nights of different length, padded with
zeros to the longest; `frames` says how much of each is real.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import convolve1d

from night_signals import SIGNALS
from utils import get_lds_kernel_window

MAX_SCORE = 100  # SF-36 general health, 0 (worst) to 100
BUCKETS = 100  # of width 1; 100 shares the last one with 99
SPLITS = ("train", "val", "test")


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels):
    """Return the bucket min(int(score), 99) of each score, as long, same shape and kind."""
    if isinstance(labels, torch.Tensor):
        return labels.long().clamp(max=BUCKETS - 1)
    return np.minimum(np.asarray(labels).astype(np.int64), BUCKETS - 1)


def label_density(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the value per bucket that re-weighting divides by, before and after LDS.

    Args:
        labels: scores of the training set [N], 0 to 100.
        reweight: 'none' and 'inverse' take the count, 'sqrt_inv' its square root.
        lds, lds_kernel, lds_ks, lds_sigma: smoothing of the value over buckets.

    Returns:
        emp_label_dist [100] and eff_label_dist [100], the latter None without LDS.

    Raises:
        ValueError: for an unknown `reweight`, or LDS without re-weighting.
    """
    counts = np.bincount(label_to_bucket(np.asarray(labels)).reshape(-1), minlength=BUCKETS)
    if reweight not in ("none", "sqrt_inv", "inverse"):
        raise ValueError(f"reweight must be none, sqrt_inv or inverse; got {reweight!r}")
    if lds and reweight == "none":
        raise ValueError("LDS smooths the weights: give --reweight sqrt_inv or inverse with --lds")
    emp_label_dist = np.sqrt(counts) if reweight == "sqrt_inv" else counts
    if not lds:
        return emp_label_dist, None
    # Integer counts stay integers, so smoothed counts are truncated: the released code does so in
    # its other benchmarks. A bucket with a sample keeps at least 1, as the window's peak is 1.
    window = get_lds_kernel_window(lds_kernel, lds_ks, lds_sigma)
    return emp_label_dist, convolve1d(emp_label_dist, weights=window, mode="constant")


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training sample's loss, with mean 1.

    Args: as for `label_density`.

    Returns:
        float32 array [N].

    Source: section 3.1 of the paper; the scaling is that of the released code's other benchmarks.
    """
    labels = np.asarray(labels).reshape(-1)
    density = label_density(labels, reweight, lds, lds_kernel, lds_ks, lds_sigma)
    if reweight == "none":
        return np.ones(len(labels), dtype=np.float32)
    value = density[0] if density[1] is None else density[1]
    weights = 1.0 / value[label_to_bucket(labels)]
    return (weights * (len(weights) / weights.sum())).astype(np.float32)


# ---- meta file and nights ------------------------------------------------------------------


def read_meta(data_dir):
    """Read and check `<data_dir>/shhs.csv`.

    Args:
        data_dir: folder of the csv; its paths are relative to it.

    Returns:
        DataFrame with columns id, score (float32, 0 to 100), path, split ('train', 'val', 'test').

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
    try:
        meta = pd.read_csv(file, dtype=str, na_filter=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no UTF-8 csv with id,score,path,split: {error}") from error
    columns = ["id", "score", "path", "split"]
    if missing := [column for column in columns if column not in meta.columns]:
        raise ValueError(f"{file} lacks column {', '.join(missing)}: it has {list(meta.columns)}")
    meta = meta[columns]
    meta["score"] = pd.to_numeric(meta["score"], errors="coerce").astype(np.float32)
    checks = {
        f"a score that is no number from 0 to {MAX_SCORE}": ~meta["score"].between(0, MAX_SCORE),
        f"a split other than {', '.join(SPLITS)}": ~meta["split"].isin(SPLITS),
        "a path that occurs twice": meta["path"].duplicated(),
    }
    for fault, rows in checks.items():
        if rows.any():
            lines = ", ".join(str(line) for line in meta.index[rows][:10] + 2)
            raise ValueError(
                f"{file}: {rows.sum()} rows with {fault} (lines {lines}): correct or remove them"
            )
    absent = [path for path in meta["path"] if not (Path(data_dir) / path).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(meta)} nights are not in {data_dir}: {', '.join(absent[:10])}; "
            "`python prepare.py --overwrite` makes those that are missing"
        )
    empty = [split for split in SPLITS if not (meta["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: more nights are needed")
    return meta


class Nights:
    """The nights of a meta file, read by row number.

    Args:
        data_dir, paths: folder, and paths relative to it.

    Raises:
        ValueError: naming a file that is no night of `prepare.py`.
    """

    def __init__(self, data_dir, paths):
        self.files = [Path(data_dir) / path for path in paths]
        self.frames = np.zeros(len(self.files), dtype=np.int64)
        shape = {name: (len(self.files), 2, signal.channels) for name, signal in SIGNALS.items()}
        self.moments = {name: np.zeros(shape[name]) for name in SIGNALS}
        for row, file in enumerate(self.files):
            try:
                with h5py.File(file) as night:
                    self.frames[row] = night.attrs["frames"]
                    if self.frames[row] < 1:
                        raise ValueError("it has no frame")
                    for name, signal in SIGNALS.items():
                        if night[name].shape != (signal.channels, self.frames[row] * signal.frame):
                            raise ValueError(f"{name} has the shape {night[name].shape}")
                        attrs = night[name].attrs
                        self.moments[name][row] = attrs["mean"], attrs["mean_square"]
                        if not np.isfinite(self.moments[name][row]).all():
                            raise ValueError(f"{name} is not finite")
            except (OSError, KeyError, ValueError) as error:
                raise ValueError(
                    f"{file} is no night as prepare.py writes it ({error}): remove it and make it "
                    "again with `python prepare.py --overwrite`"
                ) from error

    def scale(self, rows):
        """Return `{signal: (mean, std)}` [channels] over all columns of some nights, float32."""
        share = (self.frames[rows] / self.frames[rows].sum())[:, None]
        result = {}
        for name, moments in self.moments.items():
            mean, square = ((moments[rows, k] * share).sum(axis=0) for k in (0, 1))
            std = np.sqrt(np.maximum(square - mean**2, 0))
            std[std < 1e-3] = 1.0  # a breathing channel that no night has
            result[name] = tuple(torch.from_numpy(x.astype(np.float32)) for x in (mean, std))
        return result

    def read(self, rows):
        """Return `{signal: float16 [n, channels, columns]}`, padded with zeros to the longest."""
        longest, batch = self.frames[rows].max(), {}
        for name, signal in SIGNALS.items():
            shape = (len(rows), signal.channels, longest * signal.frame)
            batch[name] = torch.zeros(shape, dtype=torch.float16)
        for k, row in enumerate(rows):
            with h5py.File(self.files[row]) as night:
                for name, padded in batch.items():
                    array = torch.from_numpy(night[name][()])
                    padded[k, :, : array.shape[1]] = array
        return batch


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs; `share` scales this process's mean loss to its part of the batch."""

    signals: dict  # float16 [n, channels, columns] by signal
    frames: torch.Tensor  # long [n], real frames of each night, on the CPU
    labels: torch.Tensor  # float32 [n, 1], 0 to 100
    weights: torch.Tensor  # float32 [n, 1]
    share: float


class Loader:
    """Batches of one split, cut into equal parts for the processes.

    Args:
        nights: `Nights`.
        rows: row numbers of the split in the meta file.
        labels, weights: float32 arrays over the split [N].
        batch_size: over all processes together.
        device: where batches go.
        rank, processes: this process's number, and how many there are.
        seed: with the epoch, the source of the order, which is the same for any number of
            processes.
    """

    def __init__(self, nights, rows, labels, weights, batch_size, device, rank, processes, seed):
        self.nights, self.rows = nights, np.asarray(rows)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.float32)).unsqueeze(1)
        self.weights = torch.from_numpy(np.asarray(weights, dtype=np.float32)).unsqueeze(1)
        self.batch_size, self.device, self.seed = batch_size, torch.device(device), seed
        self.rank, self.processes = rank, processes

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def train(self, epoch, statistics=False):
        """Yield shuffled batches; the statistics pass draws an order of its own."""
        rng = np.random.default_rng([self.seed, epoch, int(statistics)])
        order = rng.permutation(len(self.rows))
        parts, shares = [], []
        for start in range(0, len(order), self.batch_size):
            whole = order[start : start + self.batch_size]
            part = np.array_split(whole, self.processes)[self.rank]
            shares.append(len(part) * self.processes / len(whole))
            # A process left without a night takes one along that counts for nothing.
            parts.append(part if len(part) else whole[:1])
        yield from self._batches(parts, shares)

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        part = np.array_split(np.arange(len(self.rows)), self.processes)[self.rank]
        parts = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        yield from self._batches(parts, [1.0] * len(parts))

    def _batches(self, parts, shares):
        """Yield the batches of these parts, read by a thread two batches ahead."""

        def read(part):
            signals = self.nights.read(self.rows[part])
            if self.device.type == "cuda":
                signals = {name: array.pin_memory() for name, array in signals.items()}
            return signals

        def batch(part, share, reading):
            signals = reading.result()
            signals = {k: x.to(self.device, non_blocking=True) for k, x in signals.items()}
            frames = torch.from_numpy(self.nights.frames[self.rows[part]])
            labels, weights = self.labels[part].to(self.device), self.weights[part].to(self.device)
            return Batch(signals, frames, labels, weights, share)

        waiting = deque()
        with ThreadPoolExecutor(1) as pool:
            for part, share in zip(parts, shares):
                waiting.append((part, share, pool.submit(read, part)))
                if len(waiting) > 2:
                    yield batch(*waiting.popleft())
            for parts_left in waiting:
                yield batch(*parts_left)
