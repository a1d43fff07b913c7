"""Images by row number, from a memory-mapped uint8 array that is decoded and resized once.

The first run builds the array. To build it ahead, say on every node of a cluster:

    python image_cache.py --data_dir ./data --dataset NAME --img_size 224
"""

import argparse
import mmap
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

import program
from array_cache import ArrayCache
from image_file import open_image

MOST_PIXELS = 10_000  # of a side
CACHE_VERSION = 2  # part of the array's name: raise it when its content changes


def load_image(file, img_size, turned=None):
    """Decode an image file and resize it: uint8 array [img_size, img_size, 3].

    It is turned as its EXIF data say; the list `turned` then takes its path.
    """
    with open_image(file, turned) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: save it with 8 bits a channel")
        image = image.convert("RGB").resize((img_size, img_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


class Images(ArrayCache):
    """The images of a meta file, read by row number as uint8 [n, img_size, img_size, 3].

    Args:
        data_dir, paths: folder, and paths relative to it.
        img_size: side of the resized images, pixels.
        cache: folder of the memory-mapped array, or None to decode the files at each reading.
        name: beginning of the array's file name.
        options: `workers`, `quiet` and `allow_outside` of `ArrayCache`.

    Raises:
        FileNotFoundError, ValueError: as `ArrayCache`.
    """

    what = "images"

    def __init__(self, data_dir, paths, img_size, cache, name="images", **options):
        if img_size > MOST_PIXELS:
            raise ValueError(f"--img_size must be at most {MOST_PIXELS}, got {img_size}")
        self.shape = (img_size, img_size, 3)
        self.whole = None  # the array as a tensor
        self.settings = f"{CACHE_VERSION} {img_size}"
        super().__init__(data_dir, [paths], cache, f"{name}_{img_size}", **options)

    def load_row(self, file):
        """Return an image: uint8 array [img_size, img_size, 3]."""
        return load_image(file, self.shape[0], self.turned)

    def one_by_one(self, rows):
        """Return these rows as uint8 tensors [1, img_size, img_size, 3], never to be written to.

        Those of the array are not copied, only brought into memory.
        """
        if self.array is None:
            return self.read(rows).split(1)
        import torch  # here: prepare.py decodes without it

        self._announce(rows)
        self._verify(rows)
        # A byte of each page is read: here it may wait for the disk, ahead of the training.
        self.array[rows, :: max(1, mmap.PAGESIZE // (3 * self.shape[1])), 0, 0].sum()
        if self.whole is None:
            with warnings.catch_warnings(action="ignore"):  # the array is read-only
                self.whole = torch.from_numpy(self.array)
        return [self.whole[row : row + 1] for row in rows]


def main(argv=None):
    """Build the array of a meta file's images."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", default="./data", help="folder of the csv and of the images")
    parser.add_argument("--dataset", required=True, help="reads <data_dir>/<dataset>.csv")
    parser.add_argument("--img_size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--cache", type=Path, help="folder of the array [<data_dir>/cache]")
    outside_help = "paths in the csv may lead out of --data_dir"
    parser.add_argument("--allow_outside", action="store_true", help=outside_help)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    args = parser.parse_args(argv)
    if args.img_size < 1:
        parser.error(f"--img_size must be 1 or more, got {args.img_size}")
    from datasets import read_meta  # only here: its imports take seconds

    cache = args.cache or Path(args.data_dir) / "cache"
    paths = read_meta(args.data_dir, args.dataset)["path"]
    options = {"workers": args.workers, "allow_outside": args.allow_outside}
    images = Images(args.data_dir, paths, args.img_size, cache, args.dataset, **options)
    print(f"{len(paths):,} images at {args.img_size}² in {images.array.filename}")


if __name__ == "__main__":
    program.run(main)
