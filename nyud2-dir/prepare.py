"""Data of NYUD2-DIR: the labelled .mat file unpacked, the FDS subset, the balanced test mask.

    python prepare.py --check                                    # what `download.py` fetched
    python prepare.py                                            # subset and mask that are missing
    python prepare.py --labeled_mat nyu_depth_v2_labeled.mat     # 795 + 654 pairs and both
    python prepare.py --target rain --low 0 --high 200           # your own maps: checks, subset

The labelled file of NYU Depth v2 (2.8 GB, cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html) holds
795 pairs to train with instead of the official archive's 50,688, and the same 654 test pairs.
"""

import argparse
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

import program
from depth_cache import load_pair
from depth_maps import BUCKET_START, CROP, DEPTH, TEST_UNIT, crop_of, label_to_bucket
from fetch import check_room, sole_use
from files import write_atomically
from map_flags import add_maps, check_maps
from outside import check_inside, h5_array, reading, shown
from pair_lists import (
    MASK,
    SUBSET,
    TEST,
    TRAIN,
    balanced_mask,
    hold_out,
    official_split,
    read_mask,
    read_pairs,
    rows_of_subset,
)

EXPECTED = {TRAIN: 50_688, TEST: 654, SUBSET: 600}  # rows of the official lists
LEAST_PIXELS = 10_000  # in the test mask: a hundred for each bucket
SUBSET_SIZE = 600  # images whose features FDS takes its statistics from (released code)


# ---- the labelled file ---------------------------------------------------------------------


def unpack_labeled(path, data_dir, is_test):
    """Write the pairs of a labelled .mat file in the layout of the official archive.

    Training depths get 8 bits (255 is 10 m), test depths 16 (millimetres), as there. A training
    pair goes to a folder of its scene, by which whole scenes are held out later.

    Args:
        path: MATLAB 7.3 file, which is HDF5 with columns first: images [N, 3, W, H] uint8, depths
            [N, W, H] float32 in metres, scenes [1, N] references to names.
        data_dir: folder for nyu2_train, nyu2_test and the two lists.
        is_test: bool [N], which pairs go to the test set.

    Raises:
        FileNotFoundError, ValueError: without the file, or if it is another one.
    """
    import h5py

    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: `python download.py` says where it is given")
    with reading(path, "fetch nyu_depth_v2_labeled.mat again"), h5py.File(path, "r") as file:
        images, depths, scenes = (h5_array(file, name) for name in ("images", "depths", "scenes"))
        if images.shape[:1] != is_test.shape:
            raise ValueError(f"images are {list(images.shape)}, {len(is_test)} are needed")
        n, (width, height) = len(is_test), images.shape[2:] if images.ndim == 4 else (0, 0)
        right = (
            images.shape == (n, 3, width, height) and images.dtype == np.uint8
            and depths.shape == (n, width, height) and depths.dtype.kind == "f"
            and scenes.shape == (1, n) and 3 * width == 4 * height
        )  # fmt: skip
        if not right:
            raise ValueError(
                f"it has images {images.dtype} {list(images.shape)}, depths {depths.dtype} "
                f"{list(depths.shape)} and scenes {list(scenes.shape)}: uint8 [N, 3, W, H], float "
                "[N, W, H] and [1, N] with W:H = 4:3 are needed"
            )
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        check_room(data_dir, images.nbytes + 2 * depths.size)  # png and jpg take less
        lists = {TRAIN: [], TEST: []}
        for i in tqdm(range(len(is_test)), "pairs"):
            names = write_pair(file, i, Path(data_dir), is_test[i])
            lists[TEST if is_test[i] else TRAIN].append([f"data/{name}" for name in names])
    for name, rows in lists.items():
        write_list(Path(data_dir) / name, rows)


def write_pair(file, i, data_dir, is_test):
    """Write pair i of the open .mat file and return the names of its image and its depth map."""
    image = Image.fromarray(np.ascontiguousarray(file["images"][i].transpose(2, 1, 0)))
    depth = file["depths"][i].T.astype(np.float64)
    if is_test:
        stem = f"nyu2_test/{i:05d}"
        names = f"{stem}_colors.png", f"{stem}_depth.png"
        values = np.clip(np.round(depth * 1000), 0, 65535).astype(np.uint16)
    else:
        name = file[file["scenes"][0, i]].name
        scene = "".join(map(chr, np.ravel(h5_array(file, name)[()])))
        if not re.fullmatch(r"\w{1,100}", scene):  # it becomes the name of a folder
            raise ValueError(f"it names a scene {scene[:100]!a}: use letters, digits and _ only")
        names = tuple(f"nyu2_train/{scene}_out/{i:05d}.{kind}" for kind in ("jpg", "png"))
        values = np.clip(np.round(depth / 10 * 255), 0, 255).astype(np.uint8)
    for name, picture in zip(names, (image, Image.fromarray(values))):
        (data_dir / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(data_dir / name, quality=95)
    return names


def write_list(path, rows):
    """Write a csv of image,depth without header."""
    text = pd.DataFrame(rows).to_csv(index=False, header=False, lineterminator="\n")
    with sole_use(path.parent):
        write_atomically(path, text.encode())
    print(f"wrote {path}, {len(rows):,} rows")


# ---- subset and mask -----------------------------------------------------------------------


def test_buckets(data_dir, allow_outside):
    """Return the bucket of each test pixel within the crop: uint8 [N, 228, 304].

    It is 255 for a pixel without depth, and for one nearer than the first bucket: evaluation
    counts those in other buckets.
    """
    table = read_pairs(data_dir, TEST)
    check_inside(data_dir, table.to_numpy().flatten().tolist(), allow_outside)
    files = [[Path(data_dir) / name for name in row] for row in table.to_numpy()]
    buckets = np.empty((len(files), *CROP), dtype=np.uint8)

    def read(row):
        again = "fetch both again, or give --target and the flags with it for maps of another kind"
        with reading(" and ".join(map(str, files[row])), again):
            pair = load_pair(*files[row], bits=16)
        top, left, height, width = crop_of(pair[None])
        low, high = np.moveaxis(pair[top : top + height, left : left + width, 3:], 2, 0)
        depth = (low.astype(np.int64) + 256 * high.astype(np.int64)) * TEST_UNIT
        found = label_to_bucket(depth)
        buckets[row] = np.where(found >= BUCKET_START, found, 255)

    with ThreadPoolExecutor() as pool:
        list(tqdm(pool.map(read, range(len(files))), "test depths", len(files)))
    return buckets


def make_subset(data_dir, seed, size=SUBSET_SIZE):
    """Draw and write the FDS subset: training rows in their order, all if there are fewer."""
    table = read_pairs(data_dir, TRAIN)
    rows = np.sort(np.random.default_rng(seed).permutation(len(table))[:size])
    write_list(Path(data_dir) / SUBSET, ("data/" + table.iloc[rows]).to_numpy().tolist())


def make_mask(data_dir, seed, least=0, allow_outside=False):
    """Draw and write the balanced test mask."""
    mask, each = balanced_mask(test_buckets(data_dir, allow_outside), seed, least)
    path = Path(data_dir) / MASK
    with sole_use(path.parent):
        write_atomically(path, lambda file: np.save(file, mask))
    print(f"wrote {path}: {mask.sum():,} of {mask.size:,} pixels, {each:,} of each bucket")
    if mask.sum() < LEAST_PIXELS:
        print(
            f"warning: fewer than {LEAST_PIXELS:,} pixels, so metrics will be noisy: "
            "`prepare.py --mask --overwrite --least N` takes N of a bucket or all it has"
        )


def check(data_dir):
    """Print the rows of the lists next to the expected ones; return what is wrong, in sentences."""
    problems = []
    tables = {name: read_pairs(data_dir, name) for name in EXPECTED}
    for name, table in tables.items():
        print(f"{name:>30} {len(table):>7,}   expected {EXPECTED[name]:>7,}")
        if len(table) != EXPECTED[name]:
            problems.append(f"{name} is not the official list, which has {EXPECTED[name]:,} rows")
        missing = [p for p in table.to_numpy().flat if not os.path.isfile(Path(data_dir) / p)]
        if missing:
            problems.append(f"{len(missing)} files of {name} are missing, as {shown(missing[0])}")
    rows_of_subset(data_dir, SUBSET, tables[TRAIN]["image"])
    mask = read_mask(data_dir, len(tables[TEST]))
    print(f"{MASK:>30} {mask.sum():>7,} pixels")
    return problems


# ---- command line --------------------------------------------------------------------------


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="folder of the data")
    add("--labeled_mat", type=Path, help="nyu_depth_v2_labeled.mat, to be unpacked")
    add("--subset", action="store_true", help="make the FDS subset only")
    add("--mask", action="store_true", help="make the test mask only")
    add("--least", type=int, default=0, help="pixels of a bucket that the mask takes at least")
    add("--seed", type=int, default=0, help="of subset and mask")
    add("--allow_outside", action="store_true", help="paths in the lists may leave --data_dir")
    add("--overwrite", action="store_true", help="replace existing files, which stay otherwise")
    add("--check", action="store_true", help="only verify the data, write nothing")
    add_maps(add)
    args = parser.parse_args(argv)
    check_maps(parser, args)
    if DEPTH.of(args).own and (args.mask or args.check or args.labeled_mat):
        parser.error("--mask, --check and --labeled_mat are for depths: no --target and the like")
    return args


def main(argv=None):
    """Unpack, draw subset and mask, or verify; returns the exit status."""
    args = parse_args(argv)
    if args.check:
        problems = check(args.data_dir)
        print("\n".join(problems) or f"{args.data_dir} is as the official archive")
        return int(bool(problems))
    if args.labeled_mat:
        held = [name for name in (TRAIN, TEST) if (args.data_dir / name).exists()]
        if held and not args.overwrite:
            raise ValueError(f"{args.data_dir} has {', '.join(held)}: --overwrite replaces them")
        unpack_labeled(args.labeled_mat, args.data_dir, official_split())
    own = DEPTH.of(args).own  # all labelled test pixels count, and need no mask
    if own:
        from maps import describe_maps  # only here, as it takes torch along

        describe_maps(args)
    both = not (args.subset or args.mask)
    if both:  # train.py refuses a set of which nothing can be held out
        hold_out(read_pairs(args.data_dir, TRAIN)["image"], args.seed)
    # Another set of images has another subset; the official mask fits its 654 test images.
    stale = args.overwrite or args.labeled_mat
    # The mask first: it reads the test depths, and other maps end here, before a file is written.
    if not own and (args.mask or both) and (args.overwrite or not (args.data_dir / MASK).exists()):
        make_mask(args.data_dir, args.seed, args.least, args.allow_outside)
    if (args.subset or both) and (stale or not (args.data_dir / SUBSET).exists()):
        make_subset(args.data_dir, args.seed)
    return 0


if __name__ == "__main__":
    program.run(main)
