"""Rows of bytes by number, from a memory-mapped array that is made from files once."""

import hashlib
import logging
import mmap
import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from files import reserve
from image_file import UNREADABLE
from outside import check_inside, reading, shown

SHOWN = 3  # files that a message names for one reason
PIECE = 256  # most rows of a task: one task for each of 213,553 images would cost memory


class ArrayCache:
    """Rows made from files, read by row number as uint8 [n, *shape].

    A subclass has `load_row(*files)`: one row from the paths of its files. Before it calls this,
    it sets `what` (rows in messages), `shape` (of a row) and `settings` (what else a row needs).

    Args:
        data_dir: folder of the files.
        columns: one list of paths relative to it for each file that a row is made from.
        cache: folder of the array, or None to make the rows from the files at each reading.
        name: beginning of the array's file name.
        workers: threads that make rows.
        quiet: show no progress bar.
        allow_outside: let paths lead out of `data_dir`.

    Raises:
        FileNotFoundError, ValueError: naming the first ten of the files that are missing or lead
            out of the folder, or rows that cannot be made; or disk too full, or array damaged.

    The array's name holds a digest of the settings, the paths and the files' sizes and times. So a
    changed file gives another name, and the array is built again. An interrupted build resumes.
    """

    def __init__(self, data_dir, columns, cache, name, **options):
        self.data_dir = data_dir
        self.columns = [list(column) for column in columns]
        self.workers = max(1, min(options.get("workers", 8), os.cpu_count() or 1))
        self.quiet = options.get("quiet", False)
        self.allow_outside = options.get("allow_outside", False)
        self.turned = []  # files whose EXIF data say how to turn them
        key = self._digest()
        self.array = None
        self.sums = None  # checksum of each row of the array
        self.verified = np.zeros(len(self), dtype=bool)
        if cache is None:
            self._load_all(range(len(self)), lambda row, value: None, f"Checking {self.what}")
        else:
            # Data folders that share a cache keep an array each.
            place = hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:8]
            self.array = self._open(Path(cache), f"{name}_{place}", key)

    def __len__(self):
        return len(self.columns[0])

    def inputs(self, what):
        """Return what tells these rows from others, for `run_folder.Run.note_data`.

        Neither the place of the files nor their times count: a copied folder holds the same.

        Args:
            what: their name in messages.
        """
        found = {f"files of {what}": self.sizes}
        if self.sums is not None:
            found[f"pixels of {what}, {self.settings}"] = self.sums
        return found

    def read(self, rows):
        """Return these rows: uint8 tensor [n, *shape]."""
        import torch  # here: prepare.py decodes without it

        if self.array is not None:
            self._announce(rows)
            self._verify(rows)
            return torch.from_numpy(self.array.take(rows, axis=0))
        with ThreadPoolExecutor(self.workers) as pool:
            values = list(pool.map(lambda row: self.load_row(*self._files_of(row)), rows))
        return torch.from_numpy(np.stack(values))

    def _files_of(self, row):
        """Return the paths of a row's files."""
        return [os.path.join(self.data_dir, column[row]) for column in self.columns]

    def _announce(self, rows):
        """Ask the system for all pages of these rows at once.

        Of an array larger than memory most rows lie on the disk. Without the announcement each
        page of 4 KiB is waited for in turn: ten times as long, on the disk that was measured.
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

    def _digest(self):
        """Return a digest of the settings, the paths and the files' sizes and times."""
        missing = []
        all_sizes = []

        def facts_of(rows):
            lines = []
            sizes = []
            for column in self.columns:
                check_inside(self.data_dir, [column[row] for row in rows], self.allow_outside)
            for row in rows:
                for column, file in zip(self.columns, self._files_of(row)):
                    try:
                        facts = os.stat(file)
                    except (OSError, ValueError):  # none, or no name of a file
                        facts = None
                    if facts is None or not stat.S_ISREG(facts.st_mode):  # a pipe is never read
                        missing.append((row, file))
                    else:
                        sizes.append(facts.st_size)
                        lines.append(f"{column[row]}\0{facts.st_size}\0{facts.st_mtime_ns}\n")
            return "".join(lines).encode("utf-8", "surrogatepass"), sizes

        digest = hashlib.sha256(self.settings.encode())
        for facts, sizes in self._in_pieces(facts_of, range(len(self))):
            digest.update(facts)
            all_sizes += sizes
        self.sizes = np.array(all_sizes, dtype=np.int64)
        if missing:
            first = ", ".join(shown(file) for _, file in sorted(missing)[:10])
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.columns) * len(self)} files are missing: {first}; "
                "check --data_dir, or the paths in the csv"
            )
        return digest.hexdigest()[:16]

    def _open(self, folder, name, key):
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
            array = folder / f"{name}_{key}.npy"
            noted = array.with_suffix(".rows")
            if array.is_file() and not noted.is_file():
                logging.warning("%s is made again: its checksums %s are gone", array, noted.name)
                array.unlink()
            if not array.is_file():
                self._build(array)
                for old in folder.glob(f"{name}_*"):  # of files that have changed since
                    if old.stem != array.stem:
                        old.unlink()
            with reading(array, "delete it"):
                opened = np.load(array, mmap_mode="r")
                if opened.shape != (len(self), *self.shape) or opened.dtype != np.uint8:
                    raise ValueError(f"it is {opened.dtype} {list(opened.shape)}")
                self.sums = np.fromfile(noted, dtype=np.uint32)
                if len(self.sums) != len(self):
                    raise ValueError(f"{noted.name} has {len(self.sums)} checksums")
                return opened

    def _verify(self, rows):
        """Raise ValueError if rows are not as they were made; looked at when first read."""
        for row in rows:
            if not self.verified[row] and self.sums[row] != check_sum(self.array[row]):
                raise ValueError(
                    f"row {row} of {self.array.filename} is damaged: delete that file, the next "
                    "run makes it again"
                )
            self.verified[row] = True

    def _build(self, target):
        """Fill a partial array and note which rows are done; rename it when all are."""
        partial = target.with_suffix(".partial")
        noted = target.with_suffix(".rows")
        shape = (len(self), *self.shape)
        try:
            array = np.lib.format.open_memmap(partial, mode="r+")
            resume = array.shape == shape and noted.stat().st_size == 4 * shape[0]
        except (FileNotFoundError, ValueError):  # none exists, or its header is cut
            resume = False
        if not resume:
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            array.flush()
            noted.write_bytes(bytes(4 * shape[0]))
        reserve(partial, noted)
        # A row's checksum, 0 before it is done: after a crash of the machine the disk may hold
        # the note of a row and not the row.
        sums = np.memmap(noted, dtype=np.uint32, mode="r+")

        def is_done(rows):
            return [row for row in rows if sums[row] and sums[row] == check_sum(array[row])]

        def store(row, value):
            array[row] = value
            sums[row] = check_sum(value)

        done = [row for rows in self._in_pieces(is_done, np.flatnonzero(sums)) for row in rows]
        rows = np.delete(np.arange(shape[0]), done)
        self._load_all(rows, store, f"Caching {self.what} of {' × '.join(map(str, self.shape))}")
        array.flush()
        sums.flush()
        os.replace(partial, target)

    def _load_all(self, rows, store, title):
        """Make rows in parallel, then name all that failed."""
        failed = {}  # names by reason

        def load(rows):
            for row in rows:
                files = self._files_of(row)
                try:
                    store(row, self.load_row(*files))
                except UNREADABLE as error:
                    reason = shown(error)
                    for file in files:  # Pillow names it
                        reason = reason.replace(f" {str(file)!r}", "")
                    failed.setdefault(reason, []).append(" and ".join(map(shown, files)))
            return len(rows)

        with tqdm(desc=title, total=len(rows), disable=self.quiet or not len(rows)) as progress:
            for number in self._in_pieces(load, rows):
                progress.update(number)
        if self.turned:
            logging.info("%d images were turned as their EXIF data say", len(self.turned))
        if failed:
            told = []
            for reason, names in sorted(failed.items(), key=lambda item: min(item[1])):
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                told.append(f"{', '.join(sorted(names)[:SHOWN])}{more} ({reason})")
            raise ValueError(
                f"{sum(map(len, failed.values()))} of {len(self)} {self.what} cannot be used: "
                f"{', '.join(told[:10])}; replace them or remove their rows from the csv"
            )


def check_sum(row):
    """Return a checksum of a row's bytes that is never 0, the mark of a row not done."""
    return zlib.crc32(row) or 1
