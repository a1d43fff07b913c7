"""Files from outside: what is looked at before one is trusted, and damage said in one line."""

import contextlib
import itertools
import json
import mmap
import os
import pickle
import re
import reprlib
import zipfile
from pathlib import Path

LONGEST = 300  # letters of a foreign text that a message shows
ADVICE = re.compile("weights_only|allow_pickle")  # a library's, to run what a file holds
PICKLE = 0x80  # its first byte
LARGEST_JSON = 2**26  # bytes; ours have some thousand

# ---- messages ------------------------------------------------------------------------------


def clean(text):
    """Return text with its control characters spelled out, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in str(text))


def shown(value):
    """Return a value, or what an error says, in one line of at most LONGEST letters."""
    if isinstance(value, pickle.UnpicklingError):  # its advice is to run what the file holds
        named = re.search(r"GLOBAL (\S+)", str(value))
        return f"it holds {clean(named[1])[:LONGEST]}, no plain value" if named else "no pickle"
    if isinstance(value, BaseException):
        text = " ".join(str(value).split()) or type(value).__name__
        text = f"no {text}" if isinstance(value, KeyError) else text
        if ADVICE.search(text):
            return "it is damaged, of another kind, or holds more than plain values"
    else:
        text = value if isinstance(value, str) else reprlib.repr(value)
    text = clean(" ".join(text.split()))
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


@contextlib.contextmanager
def reading(path, remedy):
    """Let whatever a library raises over a damaged file end in one line.

    Args:
        path: of the file.
        remedy: what helps, the end of the message.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: naming file, damage and remedy.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {shown(str(path))}: {remedy}") from error
    except Exception as error:  # the libraries have dozens of kinds
        raise ValueError(f"{shown(str(path))} cannot be read ({shown(error)}): {remedy}") from error


def check_lines(path, rows, interval=None):
    """Refuse an `epochs.jsonl` from whose middle a line is lost.

    Args:
        path: of the file, for the message.
        rows: dictionaries of its lines, each epoch once, in order.
        interval: steps from one line to the next, or None where each epoch has a line.

    Raises:
        ValueError: naming the epochs next to the gap.
    """
    name, most = ("epoch", 1) if interval is None else ("step", interval)
    with reading(path, "restore it, or remove it to do without the epochs so far"):
        for before, after in itertools.pairwise(rows):
            if name in before and float(after[name]) - float(before[name]) > most:
                raise ValueError(
                    f"no line stands between the epochs {before['epoch']} and {after['epoch']}"
                )


# ---- paths ---------------------------------------------------------------------------------


def check_inside(folder, names, allow_outside=False):
    """Refuse paths, taken from a file, that lead out of their folder: by `..`, a root or a link.

    Args:
        folder: to which they are relative.
        names: list of the paths.
        allow_outside: let them pass, as --allow_outside does.

    Raises:
        ValueError: naming the first ten.
    """
    if allow_outside:
        return
    base = os.path.realpath(folder)
    folders = {}  # a look-up for each of many files would take long
    outside = []
    for name in names:
        parent = os.path.dirname(name)
        if parent not in folders:
            folders[parent] = _is_below(os.path.join(base, parent), base)
        path = os.path.join(base, name)
        if not folders[parent] or (os.path.islink(path) and not _is_below(path, base)):
            outside.append(name)
    if outside:
        raise ValueError(
            f"{len(outside)} paths lead out of {folder}: {', '.join(map(shown, outside[:10]))}; "
            "correct them, or give --allow_outside if that is meant"
        )


def _is_below(path, base):
    """Whether a path, its links followed, lies in a folder."""
    with contextlib.suppress(ValueError):  # a NUL in it
        path = os.path.realpath(path)
    return path == base or path.startswith(os.path.join(base, ""))


def h5_array(file, name):
    """Return an array of an open HDF5 file that lies in this file itself.

    Args:
        file: `h5py.File` or group.
        name: of the array.

    Raises:
        ValueError: for none, or one that is a group, a link or kept in another file.
    """
    import h5py  # only folders with such files have it

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is missing or a link")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise ValueError(f"{name} is no array of this file")
    return array


# ---- content -------------------------------------------------------------------------------


def read_json(path, remedy):
    """Return the dictionary that a JSON file holds; arguments and errors as for `reading`."""
    path = Path(path)
    with reading(path, remedy):
        size = path.stat().st_size
        if size > LARGEST_JSON or not path.is_file():
            raise ValueError(f"{size:,} bytes are no such file")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {shown(value)}")
    return value


def read_table(path, columns, remedy):
    """Read a CSV file as text, blank lines too, so that row i stands in line i + 2.

    Args:
        path, remedy: as for `reading`.
        columns: names of the columns that are needed.

    Returns:
        DataFrame of these columns; a field that a row lacks is "".

    Raises:
        FileNotFoundError, ValueError: as `reading`, or if the file lacks a column.
    """
    import pandas as pd

    with reading(path, remedy):
        if not os.path.isfile(path):
            raise FileNotFoundError
        # A field may say NA, and mean it.
        table = pd.read_csv(path, dtype=str, skip_blank_lines=False, na_filter=False)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError(f"its rows have more fields than its header {list(table.columns)}")
        if lacking := [name for name in columns if name not in table.columns]:
            raise ValueError(f"it lacks {', '.join(lacking)} and has {list(table.columns)}")
        return table[list(columns)].fillna("")


def check_archive(path):
    """Verify a checkpoint or .npz file, a zip archive of parts that are not packed, by its CRCs.

    A file that is no archive, as checkpoints once were, passes. One that would unpack to more
    than its own size, or make memory from a number, does not.

    Raises:
        ValueError, zipfile.BadZipFile: if it does not.
    """
    if not os.path.getsize(path):
        raise ValueError("it is empty")
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[0] != PICKLE:
                    raise ValueError("it is neither an archive nor a pickle")
                pickles = [content.find(b"bytearray") >= 0]
        else:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                claimed = sum(member.file_size for member in members)
                size = os.path.getsize(path)
                if claimed > size:
                    raise ValueError(f"it claims {claimed:,} bytes and has {size:,}")
                if broken := archive.testzip():
                    raise ValueError(f"the checksum of {shown(broken)} is wrong")
                names = [name for name in archive.namelist() if name.endswith(".pkl")]
                pickles = [b"bytearray" in archive.read(name) for name in names]
    if any(pickles):
        raise ValueError("it holds a bytearray, no tensor or plain value")
