"""The meta file of an age data set, `age,path,split`: reading, the balanced split, checks.

The training set keeps the imbalance of the ages. Validation and test get at most `cap` faces of
each age, so that frequent ages weigh no more there than others. The split depends on the order of
the rows.
"""

import os
import random
from pathlib import Path

import numpy as np
import pandas as pd

SPLITS = ("train", "val", "test")
LAST_SPLIT_AGE = 120  # the split goes through the ages 0 to 120; older faces stay in train


def balanced_split(ages, paths, cap, seed=666):
    """Assign each face to train, val or test so that val and test are balanced over the ages.

    For each whole age 0 to 120 in turn its faces are shuffled in row order. Then
    n = min(count // 3, cap) go to val, the next n to test and the rest to train. Faces older than
    120 stay in train, without a draw.

    Args:
        ages: [N] ages in years, >= 0; a fraction counts for the whole age below it.
        paths: [N] paths, no two equal: an image must not be in two splits.
        cap: largest number of faces per age in val, and in test.
        seed: of the shuffles; 666 gives the official split on the official row order.
    Returns:
        N strings, "train", "val" or "test", in row order.
    Raises:
        ValueError: lengths differ, an age is negative or not finite, a path occurs twice.
    Source: the split column of the official `agedb.csv`, which this returns exactly.
    """
    ages = np.asarray(ages, dtype=np.float64)
    if ages.shape != (len(paths),):
        raise ValueError(f"ages of shape {ages.shape} for {len(paths)} paths: give one age a path")
    if cap < 0:
        raise ValueError(f"cap is {cap}: it must be >= 0")
    invalid = np.flatnonzero(~(np.isfinite(ages) & (ages >= 0)))
    if len(invalid):
        raise ValueError(f"row {invalid[0]} has age {ages[invalid[0]]}: ages must be >= 0, finite")
    duplicates = pd.Index(paths).duplicated()
    if duplicates.any():
        first = paths[int(np.flatnonzero(duplicates)[0])]
        raise ValueError(f"{duplicates.sum()} paths occur twice, the first {first!a}: keep one row")

    whole = np.minimum(ages, LAST_SPLIT_AGE + 1).astype(np.int64)
    order = np.argsort(whole, kind="stable")  # row order within an age
    edges = np.searchsorted(whole[order], np.arange(LAST_SPLIT_AGE + 2))
    split = np.full(len(ages), "train", dtype=object)
    rng = random.Random(seed)
    for age in range(LAST_SPLIT_AGE + 1):
        # A shuffle depends only on the length of the list: rows stand for their paths.
        rows = order[edges[age] : edges[age + 1]].tolist()
        rng.shuffle(rows)
        n = min(len(rows) // 3, cap)
        split[rows[:n]] = "val"
        split[rows[n : 2 * n]] = "test"
    return split.tolist()


def read_ages(path, columns):
    """Read a CSV file of `age`, `path` and what else `columns` names; ages become numbers."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no file {path}: check the path (`python download.py --split_file` fetches the "
            "official one)"
        )
    meta = pd.read_csv(path, dtype=str, keep_default_na=False)
    lacking = [column for column in columns if column not in meta.columns]
    if lacking:
        raise ValueError(f"{path} has the columns {list(meta.columns)} and lacks {lacking}")
    text, meta["age"] = meta["age"], pd.to_numeric(meta["age"], errors="coerce")
    if meta["age"].isna().any():
        row = int(np.flatnonzero(meta["age"].isna())[0])
        raise ValueError(f"{path}, row {row}: the age {text[row]!r} is not a number")
    return meta[list(columns)]


def missing_paths(data_dir, paths):
    """Return those of `paths` that are no file below `data_dir`, in order."""
    return [path for path in paths if not os.path.isfile(os.path.join(data_dir, path))]


def report_counts(split, expected=None):
    """Print the number of faces per split next to the expected one, and return the counts."""
    counts = {name: list(split).count(name) for name in SPLITS}
    for name in SPLITS:
        note = f"   expected {expected[name]:>7,}" if expected else ""
        note += "   DIFFERS" if expected and counts[name] != expected[name] else ""
        print(f"{name:>6} {counts[name]:>8,}{note}")
    return counts


def check_meta(path, data_dir, cap, seed=666, expected=None):
    """Print the counts of a meta file and return what is wrong with it, as a list of sentences."""
    meta = read_ages(path, ("age", "path", "split"))
    problems = []
    counts = report_counts(meta["split"], expected)
    if expected is not None and counts != expected:
        problems.append(f"the counts are not the expected {expected}")
    missing = missing_paths(data_dir, meta["path"])
    if missing:
        first = ", ".join(map(ascii, missing[:10]))
        problems.append(
            f"{len(missing)} of {len(meta)} images are not in {data_dir}: {first}; `python "
            "download.py` says how to get them"
        )
    split = balanced_split(meta["age"], meta["path"], cap, seed)
    wrong = [row for row, name in enumerate(split) if meta["split"][row] != name]
    if wrong:
        problems.append(
            f"{len(wrong)} of {len(meta)} rows differ from the split of cap {cap} and seed {seed}; "
            f"the first, row {wrong[0]}, is {meta['split'][wrong[0]]!r}"
        )
    return problems
