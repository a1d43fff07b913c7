"""Faces with ages: meta file, label buckets, LDS weights and batches.

A batch is read as one uint8 array (see `image_cache.py`), and cropped, mirrored and normalised
on the device as one array.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import convolve1d

from utils import get_lds_kernel_window

AGE_BUCKETS = 121  # integer ages 0 ... 120, all above in the last (released code)
MAX_AGE = 200  # years; IMDB-WIKI's labels reach 186, what lies above is a mistake in the file
INVERSE_CLIP = (5, 1000)  # bounds of the counts with `inverse` (released code)
CROP_PADDING = 16  # pixels of zeros around a training image (released code)
SPLITS = ("train", "val", "test")


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels):
    """Return the bucket min(int(age), 120) of each age, as long, same shape and kind as given."""
    if isinstance(labels, torch.Tensor):
        return labels.long().clamp(max=AGE_BUCKETS - 1)
    return np.minimum(np.asarray(labels).astype(np.int64), AGE_BUCKETS - 1)


def label_density(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the value per bucket that re-weighting divides by, before and after LDS.

    Args:
        labels: ages of the training set [N], in years.
        reweight: 'none' and 'inverse' take the count (with 'inverse' clipped to [5, 1000], empty
            buckets too), 'sqrt_inv' its square root.
        lds, lds_kernel, lds_ks, lds_sigma: smoothing of the value over buckets.

    Returns:
        emp_label_dist [121] and eff_label_dist [121], the latter None without LDS.

    Raises:
        ValueError: for an unknown `reweight`, or LDS without re-weighting.
    """
    counts = np.bincount(label_to_bucket(np.asarray(labels)).reshape(-1), minlength=AGE_BUCKETS)
    if reweight not in ("none", "sqrt_inv", "inverse"):
        raise ValueError(f"reweight must be none, sqrt_inv or inverse; got {reweight!r}")
    if lds and reweight == "none":
        raise ValueError("LDS smooths the weights: give --reweight sqrt_inv or inverse with --lds")
    if reweight == "sqrt_inv":
        emp_label_dist = np.sqrt(counts)
    else:
        emp_label_dist = np.clip(counts, *INVERSE_CLIP) if reweight == "inverse" else counts
    if not lds:
        return emp_label_dist, None
    # Integer counts stay integers here, so smoothed counts are truncated: the published numbers
    # hold that.
    window = get_lds_kernel_window(lds_kernel, lds_ks, lds_sigma)
    return emp_label_dist, convolve1d(emp_label_dist, weights=window, mode="constant")


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training sample's loss, with mean 1.

    Args: as for `label_density`.

    Returns:
        float32 array [N].

    Source: section 3.1 of the paper; the scaling is the released code's.
    """
    labels = np.asarray(labels).reshape(-1)
    density = label_density(labels, reweight, lds, lds_kernel, lds_ks, lds_sigma)
    if reweight == "none":
        return np.ones(len(labels), dtype=np.float32)
    value = density[0] if density[1] is None else density[1]
    weights = 1.0 / value[label_to_bucket(labels)]
    return (weights * (len(weights) / weights.sum())).astype(np.float32)


# ---- meta file -----------------------------------------------------------------------------


def read_meta(data_dir, dataset):
    """Read and check `<data_dir>/<dataset>.csv`.

    Args:
        data_dir: folder of the csv; its paths are relative to it.
        dataset: name of the csv without ending.

    Returns:
        DataFrame with columns age (float32, years), path, split ('train', 'val', 'test').

    Raises:
        FileNotFoundError: without that file.
        ValueError: naming the column, or the rows, that cannot be used.
    """
    file = Path(data_dir) / f"{dataset}.csv"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: `python download.py --split_file` fetches AgeDB's, `python "
            "prepare.py` makes one, `python demo_data.py` generates data; --dataset NAME and "
            "--data_dir choose another"
        )
    meta = pd.read_csv(file, dtype={"path": str, "split": str})
    missing = [column for column in ("age", "path", "split") if column not in meta.columns]
    if missing:
        raise ValueError(f"{file} lacks column {', '.join(missing)}: it needs age,path,split")
    meta["age"] = pd.to_numeric(meta["age"], errors="coerce").astype(np.float32)
    checks = {
        f"an age that is no number from 0 to {MAX_AGE}": ~meta["age"].between(0, MAX_AGE),
        f"a split other than {', '.join(SPLITS)}": ~meta["split"].isin(SPLITS),
        "no path": meta["path"].isna(),
    }
    for fault, rows in checks.items():
        if rows.any():
            # The header is line 1 of the file, so row 0 stands in line 2.
            lines = [str(line) for line in np.flatnonzero(rows) + 2]
            lines = ", ".join(lines[:10]) + " ..." * (len(lines) > 10)
            raise ValueError(
                f"{file}: {rows.sum()} rows with {fault} (lines {lines}): correct or remove them"
            )
    empty = [split for split in SPLITS if not (meta["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: prepare.py makes a split")
    return meta[["age", "path", "split"]]


# ---- batches -------------------------------------------------------------------------------


def normalize(images):
    """Map uint8 images to (x / 255 − 0.5) / 0.5 as float32, in the layout of the network."""
    # Dividing by 127.5 rounds as dividing by 255 and then by 0.5 does.
    return torch.div(images.contiguous(memory_format=torch.channels_last), 127.5).sub_(1.0)


def augment(images, top, left, flip):
    """Crop each image from its zero-padded self, then mirror some, all as one batch.

    Args:
        images: [n, 3, H, W].
        top, left: offsets of each crop, long [n] in 0 ... 2·CROP_PADDING.
        flip: bool [n], which images to mirror left to right.

    Returns:
        Tensor of the shape of `images`.
    """
    n, _, H, W = images.shape
    padded = torch.nn.functional.pad(images, [CROP_PADDING] * 4)
    # A view of every possible crop, [n, 3, top, left, H, W]; indexing copies the chosen ones.
    crops = padded.unfold(2, H, 1).unfold(3, W, 1)
    crops = crops[torch.arange(n, device=images.device), :, top, left]
    return torch.where(flip[:, None, None, None], crops.flip(-1), crops)


class Batch(NamedTuple):
    """What one step needs; `share` scales this process's mean loss to its part of the batch."""

    images: torch.Tensor  # float32 [n, 3, H, W]
    labels: torch.Tensor  # float32 [n, 1], years
    weights: torch.Tensor  # float32 [n, 1]
    share: float


class Loader:
    """Batches of one split, cut into equal parts for the processes.

    Args:
        images: `image_cache.Images`.
        rows: row numbers of the split in the meta file.
        labels, weights: float32 arrays over the split [N].
        batch_size: over all processes together.
        device: where batches go.
        rank, processes: this process's number, and how many there are.
        seed: with the epoch, the source of the order and of the augmentation. Both are drawn for
            the whole split at once, so they do not depend on the number of processes.
    """

    def __init__(self, images, rows, labels, weights, batch_size, device, rank, processes, seed):
        self.images, self.rows = images, np.asarray(rows)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.float32)).unsqueeze(1)
        self.weights = torch.from_numpy(np.asarray(weights, dtype=np.float32)).unsqueeze(1)
        self.batch_size, self.device, self.seed = batch_size, torch.device(device), seed
        self.rank, self.processes = rank, processes

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def train(self, epoch, statistics=False):
        """Yield shuffled, augmented batches; the statistics pass draws anew."""
        rng = np.random.default_rng([self.seed, epoch, int(statistics)])
        N = len(self.rows)
        order = rng.permutation(N)
        offsets = torch.from_numpy(rng.integers(0, 2 * CROP_PADDING + 1, size=(2, N)))
        flips = torch.from_numpy(rng.random(N) < 0.5)
        parts, shares = [], []
        for start in range(0, N, self.batch_size):
            whole = order[start : start + self.batch_size]
            part = np.array_split(whole, self.processes)[self.rank]
            shares.append(len(part) * self.processes / len(whole))
            # A process left without a sample takes one along that counts for nothing.
            parts.append(part if len(part) else whole[:1])
        for (part, images), share in zip(self._read(parts), shares):
            top, left = offsets[:, part].to(self.device)
            images = augment(images, top, left, flips[part].to(self.device))
            yield self._batch(images, part, share)

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        part = np.array_split(np.arange(len(self.rows)), self.processes)[self.rank]
        parts = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        for part, images in self._read(parts):
            yield self._batch(images, part, 1.0)

    def _read(self, parts):
        """Yield each part with its images on the device, read by a thread two batches ahead."""

        def read(part):
            images = self.images.read(self.rows[part])
            return images.pin_memory() if self.device.type == "cuda" else images

        waiting = deque()
        with ThreadPoolExecutor(1) as pool:
            for part in parts:
                waiting.append((part, pool.submit(read, part)))
                if len(waiting) > 2:
                    part, images = waiting.popleft()
                    yield part, images.result().to(self.device, non_blocking=True)
            for part, images in waiting:
                yield part, images.result().to(self.device, non_blocking=True)

    def _batch(self, images, part, share):
        labels, weights = self.labels[part].to(self.device), self.weights[part].to(self.device)
        return Batch(normalize(images), labels, weights, share)
