"""Files that are written whole, and lines of JSON: no torch, so that data scripts start fast."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # of disk or quota


def check_room(folder, needed, what="what is to be written", error=None):
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it is to lie; it exists.
        needed: bytes.
        what: the name of it, for the message.
        error: what the disk said already, or None to compare its free bytes.

    Raises:
        ValueError: if it has no room.
    """
    free = shutil.disk_usage(folder).free
    if error is not None or needed > free:
        raise ValueError(
            f"no room for {what}: {needed:,.0f} bytes are needed, {free:,} free in {folder}; "
            "make room, then give the same command, with --resume for a run"
        ) from error


def write_atomically(path, content, needed=0):
    """Write a file so that a crash leaves either the old one or the new one, whole.

    Args:
        path: of the file; its folder is made if missing.
        content: bytes, or a function that writes to the open binary file it is given.
        needed: bytes that the function will write, as far as known.

    Raises:
        ValueError: if the disk has no room; the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = len(content) if isinstance(content, bytes) else needed
    check_room(path.parent, needed, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ or error  # PyTorch's own error hides the disk's
        if getattr(cause, "errno", None) in FULL:
            check_room(path.parent, needed, path, error)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def reserve(partial, noted):
    """Claim the disk space of an array whose file has its length, and is still to be filled.

    Writing a mapped page for which the disk has no room would end the process without a word.

    Args:
        partial: path of the array.
        noted: path of the notes of its rows, deleted with it if the disk is too full.
    """
    facts = partial.stat()
    free = shutil.disk_usage(partial.parent).free
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


def to_json(value):
    """Return a line of JSON in which numpy numbers are plain and NaN is null."""

    def plain(x):
        if isinstance(x, dict):
            return {str(key): plain(item) for key, item in x.items()}
        if isinstance(x, (list, tuple, np.ndarray)):
            return [plain(item) for item in x]
        if isinstance(x, (float, np.floating)):
            return float(x) if np.isfinite(x) else None
        return x.item() if isinstance(x, np.generic) else x

    return json.dumps(plain(value), allow_nan=False)
