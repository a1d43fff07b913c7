"""Images by row number, from a memory-mapped uint8 array that is decoded and resized once.

The first run builds the array. To build it ahead, say on every node of a cluster:

    python image_cache.py --data_dir ./data --dataset NAME --img_size 224
"""

import argparse
import errno
import hashlib
import mmap
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from datasets import read_meta

CACHE_VERSION = 2  # part of the array's name: raise it when its content changes
PIECE = 256  # most rows of a task: one task for each of 213,553 images would cost memory


def load_image(file, img_size):
    """Decode an image file and resize it: uint8 array [img_size, img_size, 3]."""
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: save it with 8 bits a channel")
        image = image.convert("RGB").resize((img_size, img_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def check_sum(image):
    """Return a checksum of an image's pixels that is never 0, the mark of a row not done."""
    return zlib.adler32(image) or 1


class Images:
    """The images of a meta file, read by row number as uint8 [n, img_size, img_size, 3].

    Args:
        data_dir, paths: folder, and paths relative to it.
        img_size: side of the resized images, pixels.
        cache: folder of the memory-mapped array, or None to decode the files at each reading.
        name: beginning of the array's file name.
        workers: threads that decode.
        quiet: show no progress bar.

    Raises:
        FileNotFoundError: naming the first ten of the files that are missing.
        ValueError: naming the first ten of the files that are no image; or the disk is too full.

    The array's name holds a digest of the paths and of the files' sizes and times: a changed
    file gives another name, and the array is built anew. A build that was interrupted goes on.
    """

    def __init__(self, data_dir, paths, img_size, cache, name="images", workers=8, quiet=False):
        self.files = [os.path.join(data_dir, path) for path in paths]
        self.img_size, self.quiet = img_size, quiet
        self.workers = max(1, min(workers, os.cpu_count() or 1))
        key = self._digest(paths)
        self.array = None
        if cache is None:
            self._decode_all(range(len(self.files)), lambda row, image: None, "Checking images")
        else:
            # Data folders that share a cache keep an array each.
            place = hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:8]
            name = f"{name}_{img_size}_{place}"
            self.array = self._open(Path(cache), name, key)

    def read(self, rows):
        """Return the images of these rows: uint8 tensor [n, img_size, img_size, 3]."""
        if self.array is not None:
            self._announce(rows)
            return torch.from_numpy(self.array.take(rows, axis=0))
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(lambda row: load_image(self.files[row], self.img_size), rows))
        return torch.from_numpy(np.stack(images))

    def _announce(self, rows):
        """Ask the system for all pages of these rows at once.

        Of an array larger than memory most rows lie on the disk. Without the announcement each
        page of 4 KiB is waited for in turn, ten times as long on the disk it was measured on.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):  # Windows
            return
        size = self.array[0].nbytes
        for row in rows:
            start = self.array.offset + int(row) * size
            page = start - start % mmap.PAGESIZE
            self.array.base.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _in_pieces(self, function, rows):
        """Yield function(some of the rows) for all rows, in order, computed by all threads."""
        step = max(1, min(PIECE, len(rows) // (4 * self.workers)))
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(function, [rows[i : i + step] for i in range(0, len(rows), step)])

    def _digest(self, paths):
        """Return a digest of the paths and their files' sizes and times."""
        paths, missing = list(paths), []

        def facts_of(rows):
            lines = []
            for row in rows:
                try:
                    facts = os.stat(self.files[row])
                    lines.append(f"{paths[row]}\0{facts.st_size}\0{facts.st_mtime_ns}\n")
                except OSError:
                    missing.append(row)
            return "".join(lines).encode()

        digest = hashlib.sha256(f"{CACHE_VERSION} {self.img_size}".encode())
        for facts in self._in_pieces(facts_of, range(len(paths))):
            digest.update(facts)
        if missing:
            first = ", ".join(self.files[row] for row in sorted(missing)[:10])
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.files)} images are missing: {first}; check "
                "--data_dir, or the paths in the csv"
            )
        return digest.hexdigest()[:16]

    def _open(self, folder, name, key):
        """Map the finished array, building it first if this process is the first to want it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock").acquire()
        except OSError as error:
            raise ValueError(
                f"the image cache cannot be written to {folder} ({error}): give --cache DIR "
                "a folder that can be written, or --cache none"
            ) from error
        with lock:
            array = folder / f"{name}_{key}.npy"
            if not array.is_file():
                self._build(array)
                for old in folder.glob(f"{name}_*"):  # of files that have changed since
                    if old != array:
                        old.unlink()
            return np.load(array, mmap_mode="r")

    def _build(self, target):
        """Decode into a partial array and note which rows are done; rename when all are."""
        partial, noted = target.with_suffix(".partial"), target.with_suffix(".rows")
        shape = (len(self.files), self.img_size, self.img_size, 3)
        try:
            array = np.lib.format.open_memmap(partial, mode="r+")
            resume = array.shape == shape and noted.stat().st_size == 4 * shape[0]
        except (FileNotFoundError, ValueError):  # there is none, or it is cut in its header
            resume = False
        if not resume:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            array.flush()
            noted.write_bytes(bytes(4 * shape[0]))
        reserve(partial)
        # A row's checksum, 0 before it is done: after a crash of the machine the disk may hold
        # the note of a row and not the row.
        sums = np.memmap(noted, dtype=np.uint32, mode="r+")

        def is_done(rows):
            return [row for row in rows if sums[row] and sums[row] == check_sum(array[row])]

        def store(row, image):
            array[row] = image
            sums[row] = check_sum(image)

        done = [row for rows in self._in_pieces(is_done, np.flatnonzero(sums)) for row in rows]
        rows = np.delete(np.arange(shape[0]), done)
        self._decode_all(rows, store, f"Caching images at {self.img_size}²")
        array.flush()
        os.replace(partial, target)
        noted.unlink()

    def _decode_all(self, rows, store, title):
        """Decode rows in parallel, then name all that failed."""
        failed = []

        def decode(rows):
            for row in rows:
                try:
                    store(row, load_image(self.files[row], self.img_size))
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    failed.append(f"{self.files[row]} ({error})")
            return len(rows)

        with tqdm(desc=title, total=len(rows), disable=self.quiet or not len(rows)) as progress:
            for number in self._in_pieces(decode, rows):
                progress.update(number)
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(self.files)} images cannot be read: "
                f"{', '.join(sorted(failed)[:10])}; replace them or remove their rows from the csv"
            )


def reserve(file):
    """Claim the disk space of a file that has its length but not all of its content yet.

    Writing a mapped page for which the disk has no room would end the process without a word.
    """
    facts, free = file.stat(), shutil.disk_usage(file.parent).free
    needed = facts.st_size - 512 * facts.st_blocks  # st_blocks counts 512 bytes
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, "the disk is full")
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, facts.st_size)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # any other: the disk cannot claim, only be asked
            file.unlink()
            file.with_suffix(".rows").unlink()  # the notes of its rows
            raise ValueError(
                f"the image cache needs {needed:,} bytes more, {free:,} are free in {file.parent}: "
                "make room, give --cache DIR on a larger disk, or --cache none"
            ) from error


def main(argv=None):
    """Build the array of a meta file's images."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", default="./data", help="folder of the csv and of the images")
    parser.add_argument("--dataset", required=True, help="reads <data_dir>/<dataset>.csv")
    parser.add_argument("--img_size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--cache", type=Path, help="folder of the array [<data_dir>/cache]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    args = parser.parse_args(argv)
    if args.img_size < 1:
        parser.error(f"--img_size must be 1 or more, got {args.img_size}")
    cache = args.cache or Path(args.data_dir) / "cache"
    paths = read_meta(args.data_dir, args.dataset)["path"]
    images = Images(args.data_dir, paths, args.img_size, cache, args.dataset, args.workers)
    print(f"{len(paths):,} images at {args.img_size}² in {images.array.filename}")


if __name__ == "__main__":
    main()
