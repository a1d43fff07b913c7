"""Lists of image and depth pairs, the scenes that are held out, the mask of the test pixels."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from depth_maps import BUCKETS, CROP, SIZE
from outside import reading, shown

TRAIN, TEST = "nyu2_train.csv", "nyu2_test.csv"
SUBSET = "nyu2_train_FDS_subset.csv"
MASK = "test_balanced_mask.npy"
HELD_OUT = 0.1  # share of the training scenes that are held out to choose the epoch
BLOCK = 25  # most consecutive files that stand for a scene where nothing tells the scene
# Rows of both lists, of the official archive and of the labelled file: their shots are fixed.
OFFICIAL_PAIRS = ((50_688, 654), (795, 654))
LABELED = 1449  # pairs of the labelled file of NYU Depth v2
# One bit per pair, in the file's order: the 654 test pairs of the official split, which is the data
# set's own (testNdxs of its splits.mat).
TEST_PAIRS = (
    "c087c81fffe601be001e1fe000000e0fbc8000e003bf1fffffc3f01c00000040010383f801fc07380ffe0003"
    "3ff00001fc38003c0007e0ff0007cff80000001fbffc38e00e3fffe03e03c03e18f800fc1861c31f9f87cce0"
    "7f8c1f3c030003ffffffe001f07c0e00fffc70fc0e00000000700e071e00e003ce7f8003e0f0700e01c60198"
    "c0003ff1ff7f780e3fe301fffc7e673f01f0fff1f07ce003c7ff803f0ffee7f06000f3f038f0198001fe7f83"
    "fc0f0780ff80"
)


def read_pairs(data_dir, name):
    """Read a csv of image and depth paths without header, such as `nyu2_train.csv`.

    Args:
        data_dir: folder of the csv; a path's first part, `data/`, stands for this folder.
        name: of the csv.

    Returns:
        DataFrame with the columns image and depth: paths within `data_dir`.

    Raises:
        FileNotFoundError, ValueError: if there is none, or it has no such rows.
    """
    file = Path(data_dir) / name
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: `python download.py` fetches the official data, `python "
            "prepare.py` makes it, `python demo_data.py` generates some; --data_dir is the folder"
        )
    with reading(file, "correct it to a csv of image,depth"):
        table = pd.read_csv(file, header=None, dtype=str, na_filter=False)
    if table.shape[1] != 2 or (table == "").any(axis=None):
        raise ValueError(f"{file} must have two columns, image and depth, and no header or blank")
    table.columns = ["image", "depth"]
    if not any(Path(path).suffix for path in table.iloc[0]):
        raise ValueError(
            f"{file} has a header, {', '.join(map(shown, table.iloc[0]))}: remove that line"
        )
    return table.apply(lambda column: column.str.strip().str.removeprefix("data/"))


def hold_out(paths, seed):
    """Choose the training images that are held out: whole scenes, a seeded tenth of them.

    A scene is the images' folder without `_out` and the letter before it (`kitchen_0004b_out` is a
    part of kitchen_0004). If all are in one folder, blocks of consecutive files stand for it: of 25
    or, so that no more than a tenth is held out, of fewer.

    Returns:
        bool array [N].

    Raises:
        ValueError: if there are fewer than two scenes.
    """
    folders = [path.rpartition("/")[0] for path in paths]
    if len(set(folders)) > 1:
        scenes = np.array([re.sub(r"(?<=\d)[a-z]?(_out)?$", "", folder) for folder in folders])
    else:
        block = max(1, min(BLOCK, round(HELD_OUT * len(paths))))
        scenes = np.argsort(np.argsort(np.array(paths, dtype=object))) // block
    names = np.unique(scenes)
    if len(names) < 2:
        raise ValueError(
            f"one scene, of {len(paths)} images: nothing to hold out. Add more, or give train.py "
            "--select test and prepare.py --subset"
        )
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(HELD_OUT * len(names)))]
    return np.isin(scenes, chosen)


def read_mask(data_dir, images, downscale=1):
    """Read `test_balanced_mask.npy`, which says which test pixels count: bool [N, h, w].

    Raises:
        FileNotFoundError, ValueError: without it, or if it is not a mask of these images.
    """
    file, (height, width) = Path(data_dir) / MASK, CROP
    again = "`python download.py --split_files` fetches the official one, prepare.py makes one"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {again}")
    with reading(file, again):
        mask = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(mask, np.ndarray):
            raise ValueError("an archive of arrays")
    if mask.shape != (images, height, width) or mask.dtype not in (np.uint8, bool):
        raise ValueError(
            f"{file} is {mask.dtype} {list(mask.shape)}; for the {images} rows of nyu2_test.csv "
            f"it must be uint8 {[images, height, width]}: {again}"
        )
    # Scaling by nearest neighbours takes the pixel behind the middle of each square; the crop of
    # the smaller depths starts elsewhere than the mask does. Both lead to the first pixel here.
    top, left = (
        (side // downscale - crop // downscale) // 2 * downscale + downscale // 2
        - (side - crop) // 2
        for side, crop in zip(SIZE, CROP)
    )  # fmt: skip
    mask = np.asarray(mask[:, top::downscale, left::downscale]) != 0
    if not mask.any():
        raise ValueError(f"{file} chooses no pixel: {again}")
    return mask


def balanced_mask(buckets, seed, least=0):
    """Choose equally many pixels of every bucket: as many as the rarest filled one has.

    Args:
        buckets: uint8 [N, h, w], bucket of each pixel, 255 for one without depth.
        seed: of the draw.
        least: pixels to take of a bucket, or all it has, where the rarest has fewer.

    Returns:
        uint8 [N, h, w], 1 where a pixel counts, and the number of pixels per bucket.

    Source: the test set of the paper's appendix; its official mask is another draw.
    """
    counts = np.bincount(buckets.reshape(-1), minlength=256)[:BUCKETS]
    if not counts.any():
        raise ValueError("the test set has no pixel with a depth: nothing to choose")
    each = max(counts[counts > 0].min(), least)
    rng = np.random.default_rng(seed)
    mask = np.zeros(buckets.size, dtype=np.uint8)
    for bucket in np.flatnonzero(counts):
        places = np.flatnonzero(buckets.reshape(-1) == bucket)
        mask[rng.permutation(places)[:each]] = 1
    return mask.reshape(buckets.shape), int(each)


def rows_of_subset(data_dir, name, paths, held_out=()):
    """Return the row numbers, within the training images, of the FDS subset's rows.

    Args:
        data_dir: folder of the csv.
        name: of the subset's csv.
        paths: images of the training set [N].
        held_out: bool [N], those that are left out; none if empty.

    Raises:
        FileNotFoundError, ValueError: without the csv, or if it names other images, or none.
    """
    row_of = {path: row for row, path in enumerate(paths)}
    subset = read_pairs(data_dir, name)["image"]
    foreign = [path for path in subset if path not in row_of]
    if foreign:
        raise ValueError(
            f"{len(foreign)} of {len(subset)} images of {name} are not in {TRAIN}, such as "
            f"{shown(foreign[0])}: `python prepare.py --subset` draws another"
        )
    rows = np.array([row_of[path] for path in subset], dtype=np.int64)
    rows = rows[~held_out[rows]] if len(held_out) else rows
    if not len(rows):
        raise ValueError(f"all images of {name} are held out: draw a larger subset")
    return rows


def official_split():
    """Return which pairs of the labelled file are the official test pairs: bool [1449]."""
    bits = np.frombuffer(bytes.fromhex(TEST_PAIRS), dtype=np.uint8)
    return np.unpackbits(bits)[:LABELED].astype(bool)
