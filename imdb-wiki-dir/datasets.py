"""Faces with ages: meta file, label buckets, LDS weights and batches.

A batch is read as one uint8 array (see `image_cache.py`), and cropped, mirrored and normalised
on the device as one array.
"""

import logging
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
CPU_PIECE = 4  # images of a batch that the CPU takes at a time, so that they stay in its cache
CROP_PADDING = 16  # pixels of zeros around a training image (released code)
SPLITS = ("train", "val", "test")


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels):
    """Return the bucket min(int(age), 120) of each age, as long, same shape and kind as given."""
    if isinstance(labels, torch.Tensor):
        return labels.clamp(max=AGE_BUCKETS - 1).long()
    return np.minimum(labels, AGE_BUCKETS - 1).astype(np.int64)


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
    labels = np.asarray(labels).reshape(-1)
    if not (np.isfinite(labels) & (labels >= 0)).all():
        raise ValueError("ages must be finite and 0 or more: remove the others first")
    counts = np.bincount(label_to_bucket(labels), minlength=AGE_BUCKETS)
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
            f"{file} is missing: `python download.py --split_file` fetches the official "
            "one, `python prepare.py` makes one, `python demo_data.py` generates data; --dataset "
            "NAME and --data_dir choose another"
        )
    try:
        # Blank lines are kept until the others have their numbers; a path may be called NA.
        meta = pd.read_csv(file, dtype=str, skip_blank_lines=False, na_filter=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no UTF-8 csv with age,path,split: {error}") from error
    if not isinstance(meta.index, pd.RangeIndex):
        raise ValueError(f"{file}: its rows have more fields than its header {list(meta.columns)}")
    missing = [column for column in ("age", "path", "split") if column not in meta.columns]
    if missing:
        found = ", ".join(map(repr, meta.columns))
        raise ValueError(f"{file} lacks column {', '.join(missing)}: it has {found}")
    meta = meta[["age", "path", "split"]].fillna("")
    meta = meta[(meta != "").any(axis=1)]
    meta["age"] = pd.to_numeric(meta["age"], errors="coerce").astype(np.float32)
    checks = {
        f"an age that is no number from 0 to {MAX_AGE}": ~meta["age"].between(0, MAX_AGE),
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
    empty = [split for split in SPLITS if not (meta["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: prepare.py makes a split")
    paths = meta[["path", "split"]].drop_duplicates()["path"]
    shared = paths[paths.duplicated()].unique()
    if len(shared):
        names = ", ".join(shared[:3])
        logging.warning("%s: %d images are in more than one split: %s", file, len(shared), names)
    return meta.reset_index(drop=True)


# ---- batches -------------------------------------------------------------------------------


def normalize(images, out=None):
    """Map uint8 images [n, H, W, 3] to (x / 255 − 0.5) / 0.5 as the network takes them.

    Args:
        images: the images.
        out: float32 tensor of their shape to write into, or None.

    Returns:
        float32 [n, 3, H, W] in channels-last memory.
    """
    out = torch.empty(images.shape, device=images.device) if out is None else out
    # Dividing by 127.5 rounds as dividing by 255 and then by 0.5 does.
    return torch.div(images, 127.5, out=out).sub_(1.0).permute(0, 3, 1, 2)


def augment(images, top, left, flip):
    """Crop each image from its zero-padded self, then mirror some of them, as one batch.

    Args:
        images: [n, H, W, C].
        top, left: offsets of each crop, long [n] in 0 ... 2·CROP_PADDING.
        flip: bool [n], which images to mirror left to right.

    Returns:
        Tensor of the shape of `images`.
    """
    # The same pixels: on the CPU a slice is a plain copy of memory and an index is not, on a
    # GPU one index is one kernel.
    crop = crop_by_slices if images.device.type == "cpu" else crop_by_index
    return crop(images, top, left, flip)


def crop_by_index(images, top, left, flip):
    """`augment` in four operations on the whole batch."""
    n, H, W, C = images.shape
    padded = torch.nn.functional.pad(images, [0, 0] + [CROP_PADDING] * 4)
    image, row = padded.stride(0), padded.stride(1)
    # A view of every possible crop, [n, top, left, H, W·C]; indexing copies the chosen ones.
    offsets = 2 * CROP_PADDING + 1
    crops = padded.as_strided((n, offsets, offsets, H, W * C), (image, row, C, row, 1))
    crops = crops[torch.arange(n, device=images.device), top, left].view(n, H, W, C)
    return torch.where(flip[:, None, None, None], crops.flip(2), crops)


def crop_by_slices(images, top, left, flip):
    """`augment` by copying what each crop keeps of its image."""
    H, W = images.shape[1:3]
    crops = torch.zeros_like(images)
    # Of an image smaller than the padding nothing may be left: an offset ends at its size.
    down, right = (top - CROP_PADDING).clamp(-H, H), (left - CROP_PADDING).clamp(-W, W)
    draws = zip(down.tolist(), right.tolist(), flip.tolist())
    for crop, image, (down, right, mirror) in zip(crops, images, draws):
        # The crop lies `down` rows below the image's top; a negative number is above it.
        up, down, before, right = max(-down, 0), max(down, 0), max(-right, 0), max(right, 0)
        crop[up : H - down, before : W - right] = image[down : H - up, right : W - before]
        if mirror:
            crop.copy_(crop.flip(1))
    return crops


class Batch(NamedTuple):
    """What one step needs; `share` scales this process's mean loss to its part of the batch."""

    images: torch.Tensor  # float32 [n, 3, H, W]; on the CPU the next batch overwrites them
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
        self.buffer = None

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
            yield self._batch(images, part, share, (*offsets[:, part], flips[part]))

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        part = np.array_split(np.arange(len(self.rows)), self.processes)[self.rank]
        size = -(-self.batch_size // self.processes)  # all together hold a batch, as in training
        parts = [part[i : i + size] for i in range(0, len(part), size)]
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

    def _batch(self, images, part, share, draws=()):
        """Augment by the draws, if any, normalise, and put labels and weights beside."""
        n, on_cpu = len(images), self.device.type == "cpu"
        draws = [draw.to(self.device) for draw in draws]
        # Fresh memory costs the CPU more time than the arithmetic does: one buffer for all batches.
        if not on_cpu or self.buffer is None or len(self.buffer) < n:
            self.buffer = torch.empty(images.shape, device=self.device)
        step = CPU_PIECE if on_cpu else n
        for i in range(0, n, step):
            few = images[i : i + step]
            few = augment(few, *(draw[i : i + step] for draw in draws)) if draws else few
            normalize(few, self.buffer[i : i + len(few)])
        labels, weights = self.labels[part].to(self.device), self.weights[part].to(self.device)
        return Batch(self.buffer[:n].permute(0, 3, 1, 2), labels, weights, share)
