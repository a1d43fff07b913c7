"""Images by row number, from a memory-mapped uint8 array that is decoded and resized once."""

import hashlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

CACHE_VERSION = 2  # part of the array's name: raise it when its content changes


def load_image(file, img_size):
    """Decode an image file and resize it: uint8 array [img_size, img_size, 3]."""
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: save it with 8 bits a channel")
        image = image.convert("RGB").resize((img_size, img_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


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
        ValueError: naming the first ten of the files that are no image.

    The array's name holds a digest of the paths and of the files' sizes and times: a changed
    file gives another name, and the array is built anew. A build that was interrupted goes on.
    """

    def __init__(self, data_dir, paths, img_size, cache, name="images", workers=8, quiet=False):
        self.files = [os.path.join(data_dir, path) for path in paths]
        self.img_size, self.quiet = img_size, quiet
        self.workers = max(1, min(workers, os.cpu_count() or 1))
        digest = hashlib.sha256(f"{CACHE_VERSION} {img_size}".encode())
        missing = []
        for path, file in zip(paths, self.files):
            try:
                facts = os.stat(file)
                digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
            except OSError:
                missing.append(file)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.files)} images are missing: "
                f"{', '.join(missing[:10])}; check --data_dir, or the paths in the csv"
            )
        self.array = None
        if cache is None:
            self._decode_all(range(len(self.files)), lambda row, image: None, "Checking images")
        else:
            # Data folders that share a cache keep an array each.
            place = hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:8]
            name = f"{name}_{img_size}_{place}"
            self.array = self._open(Path(cache), name, digest.hexdigest()[:16])

    def read(self, rows):
        """Return the images of these rows: uint8 tensor [n, img_size, img_size, 3]."""
        if self.array is not None:
            return torch.from_numpy(self.array.take(rows, axis=0))
        with ThreadPoolExecutor(self.workers) as pool:
            images = list(pool.map(lambda row: load_image(self.files[row], self.img_size), rows))
        return torch.from_numpy(np.stack(images))

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
        resume = partial.is_file() and noted.is_file() and noted.stat().st_size == shape[0]
        if not resume:
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape).flush()
            noted.write_bytes(bytes(shape[0]))
        array = np.lib.format.open_memmap(partial, mode="r+")
        done = np.memmap(noted, dtype=np.uint8, mode="r+")

        def store(row, image):
            array[row] = image
            done[row] = 1

        self._decode_all(np.flatnonzero(done == 0), store, f"Caching images at {self.img_size}²")
        array.flush()
        os.replace(partial, target)
        noted.unlink()

    def _decode_all(self, rows, store, title):
        """Decode rows in parallel, then name all that failed."""
        failed = []

        def decode(row):
            try:
                store(row, load_image(self.files[row], self.img_size))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                failed.append(f"{self.files[row]} ({error})")

        with ThreadPoolExecutor(self.workers) as pool:
            done = pool.map(decode, rows)
            deque(tqdm(done, title, len(rows), disable=self.quiet or not len(rows)), maxlen=0)
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(self.files)} images cannot be read: "
                f"{', '.join(sorted(failed)[:10])}; replace them or remove their rows from the csv"
            )
