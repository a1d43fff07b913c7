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

from held_out import caps_of
from outside import check_inside, read_table, shown
from target import Target

# Integer ages 0 ... 120, all above in the last bucket (released code). IMDB-WIKI's labels reach
# 186, what lies above 200 is a mistake in the file.
AGE = Target("age", "years", 0, 121, 1, limit=200)
DRAWN = "_Demo[a-z]{6}_"  # in the names of drawn faces
SPLITS = ("train", "val", "test")
OFFICIAL = ("agedb.csv", "imdb_wiki.csv")


def split_buckets(labels, target):
    """Return the bucket of each label, in whose turn it is split; -1 for one that stays in train.

    Of ages these are the whole years 0 to 120; older faces stay in train.
    """
    stays = (np.asarray(labels) >= target.high) & (target.limit is not None)
    return np.where(stays, -1, target.buckets(labels))


def balanced_split(ages, paths, cap, seed=666, target=AGE):
    """Assign each face to train, val or test so that val and test are balanced over the ages.

    For each whole age 0 to 120 in turn its faces are shuffled in row order. Then
    n = min(count // 3, cap) go to val, the next n to test and the rest to train. Faces older than
    120 stay in train, without a draw. Of your own target each bucket takes an age's place.

    Args:
        ages: [N] ages in years, >= 0; a fraction counts for the whole age below it.
        paths: [N] paths, no two equal: an image must not be in two splits.
        cap: largest number of faces per age in val, and in test; or one for each, a pair.
        seed: of the shuffles; 666 gives the official split on the official row order.
        target: `target.Target` of the labels.
    Returns:
        N strings, "train", "val" or "test", in row order.
    Raises:
        ValueError: lengths differ, an age is negative or not finite, a path occurs twice.
    Source: the split column of the official `agedb.csv`, which this returns exactly.
    """
    ages = np.asarray(ages, dtype=np.float64)
    if ages.shape != (len(paths),):
        raise ValueError(f"ages of shape {ages.shape} for {len(paths)} paths: give one age a path")
    caps = (cap, cap) if isinstance(cap, int) else cap
    if min(caps) < 0:
        raise ValueError(f"cap is {cap}: it must be >= 0")
    invalid = np.flatnonzero(~(np.isfinite(ages) & (ages >= target.low)))
    if len(invalid):
        raise ValueError(
            f"row {invalid[0]} has {target.name} {ages[invalid[0]]}: "
            f"{target.name}s must be >= {target.low:g}, finite"
        )
    duplicates = pd.Index(paths).duplicated()
    if duplicates.any():
        first = list(paths)[int(np.flatnonzero(duplicates)[0])]
        raise ValueError(f"{duplicates.sum()} paths occur twice, the first {first!a}: keep one row")

    buckets = split_buckets(ages, target)
    order = np.argsort(buckets, kind="stable")  # row order within an age
    edges = np.searchsorted(buckets[order], np.arange(len(target.buckets) + 1))
    split = np.full(len(ages), "train", dtype=object)
    rng = random.Random(seed)
    for bucket in range(len(target.buckets)):
        # A shuffle depends only on the length of the list: rows stand for their paths.
        rows = order[edges[bucket] : edges[bucket + 1]].tolist()
        rng.shuffle(rows)
        val, test = (min(len(rows) // 3, most) for most in caps)
        split[rows[:val]] = "val"
        split[rows[val : val + test]] = "test"
    return split.tolist()


def split_own(meta, args, target):
    """Return the split of a table with the columns of `read_ages`, by the flags of prepare.py.

    Args:
        meta: DataFrame with the target's column and path.
        args: the flags; `cap`, `seed` and those of `held_out.add_held_out`.
        target: `target.Target`.

    Raises:
        ValueError: naming the line of a label outside the range; or nothing can be held out.
    """
    labels = meta[target.name].to_numpy(dtype=np.float64)
    outside = np.flatnonzero(target.outside(labels))
    if len(outside):
        line = meta.index[outside[0]] + 2
        raise ValueError(
            f"line {line} has {target.name} {labels[outside[0]]:g}: train.py takes "
            f"{target.range}; the {len(labels)} labels go from {labels.min():g} to {labels.max():g}"
        )
    buckets = split_buckets(labels, target)
    counts = np.bincount(buckets[buckets >= 0], minlength=len(target.buckets))
    caps = caps_of(args, counts)
    split = balanced_split(labels, meta["path"], caps, args.seed, target)
    if not {"val", "test"} <= set(split):
        raise ValueError(
            f"no bucket of {target.words} has three images, so none goes to val and test: add "
            "some, or make wider buckets with --bin_width"
        )
    return split


def read_ages(path, columns):
    """Read a CSV file of labels, the first of `columns`, and the others; labels become numbers.

    What stands in line i of the file has the index i - 2, as in `read_table`.
    """
    remedy = f"a CSV file with {','.join(columns)} and commas between is needed"
    if Path(path).name in OFFICIAL:
        remedy += " (`python download.py --split_file` fetches the official one)"
    meta = read_table(path, columns, remedy)
    meta = meta[(meta != "").any(axis=1)].copy()
    name = columns[0]
    text = meta[name]
    meta[name] = pd.to_numeric(text, errors="coerce")
    wrong = np.flatnonzero(~np.isfinite(meta[name].to_numpy(dtype=np.float64)))
    if len(wrong):
        row = text.index[wrong[0]]
        raise ValueError(
            f"{path}, line {row + 2}: the {name} {shown(text[row])!r} is not a number; a decimal "
            "point is needed, and no mark between thousands"
        )
    return meta


def missing_paths(data_dir, paths, allow_outside=False):
    """Return those of `paths` that are no file below `data_dir`, in order.

    Raises:
        ValueError: for paths that lead out of it, unless allowed to.
    """
    check_inside(data_dir, paths, allow_outside)
    return [path for path in paths if not os.path.isfile(os.path.join(data_dir, path))]


def report_counts(split, expected=None):
    """Print the number of faces per split next to the expected one, and return the counts."""
    counts = {name: list(split).count(name) for name in SPLITS}
    for name in SPLITS:
        note = f"   expected {expected[name]:>7,}" if expected else ""
        note += "   DIFFERS" if expected and counts[name] != expected[name] else ""
        print(f"{name:>6} {counts[name]:>8,}{note}")
    return counts


def check_meta(path, args, target, expected=None):
    """Print the counts of a meta file and return what is wrong with it, as a list of sentences.

    Args:
        path: of the file.
        args: the flags of prepare.py.
        target: `target.Target`.
        expected: number of faces by split; None for your own data, whose split may be any.
    """
    meta = read_ages(path, (target.name, "path", "split"))
    own = expected is None
    problems = []
    if expected and meta["path"].str.contains(DRAWN).all():
        print("these are the faces that demo_data.py draws, so no counts are expected")
        expected = None
    counts = report_counts(meta["split"], expected)
    if expected is not None and counts != expected:
        problems.append(f"the counts are not the expected {expected}")
    missing = missing_paths(args.data_dir, meta["path"], args.allow_outside)
    if missing:
        first = ", ".join(map(shown, missing[:10]))
        helps = "correct the paths" if own else "`python download.py` says how to get them"
        problems.append(
            f"{len(missing)} of {len(meta)} images are not in {args.data_dir}: {first}; {helps}"
        )
    named = set(meta["split"])
    if named != {*SPLITS}:
        problems.append(f"its splits are {', '.join(sorted(map(shown, named)))}, not {SPLITS}")
    wrong = meta["split"][meta["split"] != split_own(meta, args, target)]
    if len(wrong):
        differ = f"{len(wrong)} of {len(meta)} rows differ from the split of cap {args.cap} and "
        differ += f"seed {args.seed}; the first, line {wrong.index[0] + 2}, is {wrong.iloc[0]!r}"
        if own:
            print(f"{differ}: so it is after --curate, by hand, or with other flags")
        else:
            problems.append(differ)
    return problems
