"""Faces and ages from the MATLAB files of IMDB-WIKI, `imdb.mat` and `wiki.mat`.

Each file holds one struct whose fields have an entry for every image. `dob` is the date of birth
as MATLAB counts days, `photo_taken` a year, `full_path` the image. `face_score` of the detector is
-Inf where it found no face, `second_face_score` NaN where it found only one. Other fields are not
needed. An image counts if it shows one clear face and its age can be told.
"""

import contextlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat

from fetch import compare_with_record
from outside import reading, shown

SOURCES = ("imdb", "wiki")  # the meta file holds their rows in this order
FIELDS = ("dob", "photo_taken", "full_path", "face_score", "second_face_score")
LEAST_SCORE = 1  # of a clear face (released code)
MATLAB_YEAR = 366  # days from MATLAB's day 0 to Python's: MATLAB counts from a year 0
LAST_DAY = 3_652_059  # 31 December 9999, the last day that a date can be
MID_YEAR = 7  # who is born in July or later has not had the birthday when the photo is taken
MOST_MEMORY = 2**34  # bytes that reading may take; a damaged file may ask for any number
LARGEST_AGE = 200  # years; what lies above is a mistake in the dates
# A path leads into a folder: no part of it is empty or begins with a dot.
PATH = re.compile(r"(?:[^/\\\0.][^/\\\0]*/)*[^/\\\0.][^/\\\0]*")


def read_struct(file, name):
    """Return the FIELDS of the struct `name` of a MATLAB file, each an array [N].

    Raises:
        FileNotFoundError: without that file.
        ValueError: if it is no such file, or lacks the struct or a field.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file {file}: `python download.py --images` fetches it")
    compare_with_record(Path(file))
    # Over a damaged file SciPy's reader can end its whole process, so it gets one of its own.
    command = [sys.executable, __file__, str(file), name]
    with reading(file, "no whole MATLAB file of version 5; fetch it again"):
        child = subprocess.run(command, capture_output=True, check=False)
        if child.returncode:
            said = child.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ValueError(said[-1] if said else f"its reader ended with {child.returncode}")
        return pickle.loads(child.stdout)


def load_struct(file, name):
    """Do what `read_struct` does, in this process; errors may be any of SciPy's."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    struct = loadmat(file, squeeze_me=True, variable_names=[name]).get(name)
    fields = getattr(getattr(struct, "dtype", None), "names", None) or ()
    if lacking := [field for field in FIELDS if field not in fields]:
        raise ValueError(f"it lacks {', '.join(f'{name}.{field}' for field in lacking)}")
    if struct.size != 1:
        raise ValueError(f"{name} is an array of {struct.size} structs, not one struct")
    columns = {field: np.atleast_1d(struct[field].item()) for field in FIELDS}
    lengths = {field: column.shape for field, column in columns.items()}
    if len(set(lengths.values())) > 1 or columns["dob"].ndim > 1:
        raise ValueError(f"the fields of {name} differ in length: {lengths}")
    for field in FIELDS:
        if field != "full_path":  # years are unsigned there, and differences of them are not
            if columns[field].dtype.kind not in "uif":
                raise ValueError(f"{name}.{field} holds no numbers")
            columns[field] = columns[field].astype(np.float64)
    return columns


def ages_of(dob, photo_taken):
    """Return the age in years on each photo: the photo's year less the birth's, less 1 from July.

    Args:
        dob: days of birth as MATLAB counts them [N]; below the year 1 or NaN counts as its first.
        photo_taken: years [N].

    Returns:
        float64 array [N], NaN where the year of the photo is unknown.

    Source: the released code's meta file.
    """
    day = np.nan_to_num(np.trunc(dob) - MATLAB_YEAR, nan=1)
    day = np.clip(day, 1, LAST_DAY).astype(np.int64)
    months = (np.datetime64("0001-01-01") + (day - 1)).astype("datetime64[M]").astype(np.int64)
    years = 1970 + months // 12  # numpy counts months from January 1970
    photo_taken = np.where(np.isfinite(photo_taken), np.trunc(photo_taken), np.nan)
    return photo_taken - years - (months % 12 + 1 >= MID_YEAR)


def read_faces(data_dir, source):
    """Return the rows of a source that count, in its order, and how many do not, by reason.

    Args:
        data_dir: folder that holds `<source>_crop/<source>.mat`.
        source: 'imdb' or 'wiki'.

    Returns:
        DataFrame with columns age (int) and path (relative to `data_dir`), and a dictionary
        {reason: rows left out for it and for none before it}.

    Raises:
        FileNotFoundError, ValueError: as `read_struct`; or a path leads elsewhere.
    """
    file = Path(data_dir) / f"{source}_crop" / f"{source}.mat"
    columns = read_struct(file, source)
    ages = ages_of(columns["dob"], columns["photo_taken"])
    nonsense = ~(columns["dob"] > MATLAB_YEAR)  # NaN too
    plausible = (ages >= 0) & (ages <= LARGEST_AGE)
    checks = {
        f"no face of score >= {LEAST_SCORE}": ~(columns["face_score"] >= LEAST_SCORE),
        "a second face": columns["second_face_score"] > 0,
        "no year of the photo": np.isnan(ages),
        "a date of birth before the year 1": (nonsense & ~plausible) | np.isnan(columns["dob"]),
        f"an age below 0 or above {LARGEST_AGE}": ~plausible,
    }
    kept, left_out = np.ones(len(ages), dtype=bool), {}
    for reason, rows in checks.items():
        left_out[reason] = int((kept & rows).sum())
        kept &= ~rows
    paths = columns["full_path"][kept].tolist()
    if wrong := [path for path in paths if not (isinstance(path, str) and PATH.fullmatch(path))]:
        raise ValueError(
            f"{file}: {len(wrong)} paths are no names of files below its folder, the first "
            f"{shown(wrong[0])}"
        )
    paths = [f"{source}_crop/{path}" for path in paths]
    return pd.DataFrame({"age": ages[kept].astype(np.int64), "path": paths}), left_out


if __name__ == "__main__":
    pickle.dump(load_struct(*sys.argv[1:]), sys.stdout.buffer)
