"""Image and depth pairs by row number, from a memory-mapped array decoded and checked once."""

import errno
import hashlib
import os
import shutil
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from transforms import SIZE, crop_of

CACHE_VERSION = 2  # part of the array's name: raise it when its content changes
MODES = {8: ("L",), 16: ("I;16", "I;16L", "I;16B", "I")}  # Pillow's, by bits of a depth map


def load_pair(image_file, depth_file, bits, downscale=1):
    """Decode an image and its depth map and scale both to 320 × 240 / downscale.

    Args:
        image_file, depth_file: paths.
        bits: 8 for training depths (255 is 10 m), 16 for test depths (millimetres).
        downscale: 1, 2 or 4.

    Returns:
        uint8 array [240, 320, 3 + bits / 8]: red, green, blue, then the depth's bytes, low first.

    Raises:
        ValueError: if the two do not go together or a depth map has no depth.
    """
    with Image.open(image_file) as image, Image.open(depth_file) as depth:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"the image's mode is {image.mode}: save it with 8 bits a channel")
        if depth.mode not in MODES[bits]:
            raise ValueError(
                f"the depth map's mode is {depth.mode}: {bits} bits of grey are needed"
            )
        if image.size != depth.size:
            (w, h), (depth_w, depth_h) = image.size, depth.size
            raise ValueError(f"the image is {w}×{h} and its depth map {depth_w}×{depth_h}")
        width, height = image.size
        if 3 * width != 4 * height or height < SIZE[0]:
            raise ValueError(f"{width}×{height} pixels: 4:3 and at least 320×240 are needed")
        target = SIZE[1] // downscale, SIZE[0] // downscale
        image = image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
        values = np.asarray(depth).astype(np.int64)
        if not 0 <= values.min() <= values.max() < 2**bits:
            raise ValueError(f"the depth map holds values outside of {bits} bits")
        # In two steps, so that at every downscale the pixels are among those of the mask.
        depth = depth.resize(SIZE[::-1], Image.Resampling.NEAREST)
        depth = np.asarray(depth.resize(target, Image.Resampling.NEAREST)).astype(f"<u{bits // 8}")
        top, left, height, width = crop_of(depth[None], downscale)
        if not depth[top : top + height, left : left + width].any():
            raise ValueError(f"the depth map is 0 everywhere within the crop of {width}×{height}")
    depth = np.ascontiguousarray(depth)[..., None].view(np.uint8)
    return np.concatenate([np.asarray(image), depth], axis=2)


class Pairs:
    """The pairs of a csv, read by row number.

    Args:
        root: the data folder.
        table: DataFrame of paths within it, with the columns image and depth.
        bits: of the depth maps, 8 or 16.
        cache: folder of the memory-mapped array, or None to decode the files at each reading.
        name: beginning of the array's file name.
        downscale: 1, 2 or 4.
        workers: threads that decode.
        quiet: show no progress bar.

    Raises:
        FileNotFoundError: naming the first ten of the files that are missing.
        ValueError: naming the first ten of the pairs that cannot be used.

    The array's name holds a digest of the paths and of the files' sizes and times: a changed
    file gives another name, and the array is built anew. A build that was interrupted goes on.
    """

    def __init__(self, root, table, bits, cache, name, downscale=1, workers=8, quiet=False):
        self.files = [
            (os.path.join(root, image), os.path.join(root, depth))
            for image, depth in zip(table["image"], table["depth"])
        ]
        self.bits, self.downscale, self.quiet = bits, downscale, quiet
        self.workers = max(1, min(workers, os.cpu_count() or 1))
        digest = hashlib.sha256(f"{CACHE_VERSION} {downscale} {bits}".encode())
        missing = []
        for file in [file for pair in self.files for file in pair]:
            try:
                facts = os.stat(file)
                digest.update(f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
            except OSError:
                missing.append(file)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {2 * len(self.files)} files are missing: "
                f"{', '.join(missing[:10])}; check --data_dir, or the paths in the csv"
            )
        self.shape = (SIZE[0] // downscale, SIZE[1] // downscale, 3 + bits // 8)
        self.array = None
        if cache is None:
            self._decode_all(range(len(self.files)), lambda row, pair: None, "Checking pairs")
        else:
            # Data folders that share a cache keep an array each.
            place = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:8]
            self.array = self._open(Path(cache), f"{name}_{downscale}_{place}", digest.hexdigest())

    def __len__(self):
        return len(self.files)

    def read(self, rows):
        """Return images uint8 [n, H, W, 3] and depths [n, H, W], uint8 or int32, of these rows."""
        if self.array is not None:
            both = torch.from_numpy(self.array.take(rows, axis=0))
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                pairs = pool.map(lambda row: load_pair(*self.files[row], *self._format), rows)
                both = torch.from_numpy(np.stack(list(pairs)))
        if self.bits == 8:
            return both[..., :3], both[..., 3]
        return both[..., :3], both[..., 3].int() + 256 * both[..., 4].int()

    @property
    def _format(self):
        return self.bits, self.downscale

    def _open(self, folder, name, digest):
        """Map the finished array, building it first if this process is the first to want it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock").acquire()
        except OSError as error:
            raise ValueError(
                f"the cache cannot be written to {folder} ({error}): give --cache DIR a folder "
                "that can be written, or --cache none"
            ) from error
        with lock:
            array = folder / f"{name}_{digest[:16]}.npy"
            if not array.is_file():
                self._build(array)
                for old in folder.glob(f"{name}_*"):  # of files that have changed since
                    if old != array:
                        old.unlink()
            try:
                return np.load(array, mmap_mode="r")
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"{array} is damaged ({error}): delete it") from error

    def _build(self, target):
        """Decode into a partial array and note which rows are done; rename when all are."""
        partial, noted = target.with_suffix(".partial"), target.with_suffix(".rows")
        shape = (len(self.files), *self.shape)
        held = [file.stat().st_size if file.is_file() else 0 for file in (partial, noted)]
        if held[0] <= np.prod(shape) or held[1] != 4 * shape[0]:
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape).flush()
            noted.write_bytes(bytes(4 * shape[0]))
        reserve(partial, noted)
        array = np.lib.format.open_memmap(partial, mode="r+")
        # A row's checksum, 0 before it is done: after a crash of the machine the disk may hold
        # the note of a row and not the row.
        sums = np.memmap(noted, dtype=np.uint32, mode="r+")

        def store(row, pair):
            array[row] = pair
            sums[row] = check_sum(pair)

        whole = [row for row in np.flatnonzero(sums) if sums[row] == check_sum(array[row])]
        rows = np.delete(np.arange(len(self)), whole)
        self._decode_all(rows, store, f"Caching {len(self)} pairs")
        array.flush()
        os.replace(partial, target)
        noted.unlink()

    def _decode_all(self, rows, store, title):
        """Decode rows in parallel, then name all that failed."""
        failed = []

        def decode(row):
            try:
                store(row, load_pair(*self.files[row], *self._format))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                failed.append(f"{' and '.join(self.files[row])} ({error})")

        with ThreadPoolExecutor(self.workers) as pool:
            done = pool.map(decode, rows)
            deque(tqdm(done, title, len(rows), disable=self.quiet or not len(rows)), maxlen=0)
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(self)} pairs cannot be used: "
                f"{', '.join(sorted(failed)[:10])}; replace them or remove their rows from the csv"
            )


def check_sum(row):
    """Return a checksum of a row, never 0."""
    return zlib.crc32(row) or 1


def reserve(partial, noted):
    """Claim the disk space of a file that has its length but not all of its content yet.

    Writing a mapped page for which the disk has no room would end the process without a word.
    """
    facts, free = partial.stat(), shutil.disk_usage(partial.parent).free
    needed = facts.st_size - 512 * facts.st_blocks  # st_blocks counts 512 bytes
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, "the disk is full")
        if hasattr(os, "posix_fallocate"):
            with open(partial, "r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, facts.st_size)
    except OSError as error:
        if error.errno == errno.ENOSPC:  # any other: the disk cannot claim, only be asked
            partial.unlink()
            noted.unlink()
            raise ValueError(
                f"the cache needs {needed:,} bytes more, {free:,} are free in {partial.parent}: "
                "make room, give --cache DIR on a larger disk, or --cache none"
            ) from error
