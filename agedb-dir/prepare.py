"""Meta file of AgeDB-DIR, `<data_dir>/agedb.csv` (`age,path,split`), with the balanced split.

The training set keeps the imbalance of the ages; validation and test get at most 30 faces of
each age, so that frequent ages weigh no more there than others: 12,208 / 2,140 / 2,140 faces.

The split depends on the order of the rows. The published numbers belong to the official
`agedb.csv`, which `python download.py --split_file` fetches; a folder listing has another order
and gives another split, of the same sizes.

    python prepare.py --check                                  # the file that is there
    python prepare.py                                          # from a listing of data/AgeDB
    python prepare.py --dataset my_faces --meta my_faces.csv   # your own `age,path`
"""

import argparse
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from utils import write_atomically

SPLITS = ("train", "val", "test")
EXPECTED = {"train": 12_208, "val": 2_140, "test": 2_140}  # AgeDB-DIR, paper and official file
MAX_AGE = 120  # the split goes through the ages 0 to 120; older faces stay in train
LARGEST_AGE = 200  # what train.py takes, as datasets.py has it
CAP = 30  # AgeDB's largest number of faces per age in val, and in test
NAME = re.compile(r"(\d+)_(.+)_(\d+)_([mf])\.jpg")  # 35_JaneDoe_41_f.jpg: id, name, age, gender


def balanced_split(ages, paths, cap, seed=666):
    """Assign each face to train, val or test so that val and test are balanced over the ages.

    For each whole age 0 to 120 in turn its faces are shuffled in row order, then
    n = min(count // 3, cap) go to val, the next n to test and the rest to train. Faces older than
    120 (AgeDB has none) stay in train, which leaves the draw of the others as it is.

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
        raise ValueError(f"cap is {cap}: it must be >= 0 (30 for AgeDB)")
    invalid = np.flatnonzero(~(np.isfinite(ages) & (ages >= 0)))
    if len(invalid):
        raise ValueError(f"row {invalid[0]} has age {ages[invalid[0]]}: ages must be >= 0, finite")
    duplicates = pd.Index(paths).duplicated()
    if duplicates.any():
        first = paths[int(np.flatnonzero(duplicates)[0])]
        raise ValueError(f"{duplicates.sum()} paths occur twice, the first {first!a}: keep one row")

    whole = np.minimum(ages, MAX_AGE + 1).astype(np.int64)
    order = np.argsort(whole, kind="stable")  # row order within an age
    edges = np.searchsorted(whole[order], np.arange(MAX_AGE + 2))
    split = np.full(len(ages), "train", dtype=object)
    rng = random.Random(seed)
    for age in range(MAX_AGE + 1):
        # A shuffle draws by the length of the list alone: rows stand for their paths.
        rows = order[edges[age] : edges[age + 1]].tolist()
        rng.shuffle(rows)
        n = min(len(rows) // 3, cap)
        split[rows[:n]] = "val"
        split[rows[n : 2 * n]] = "test"
    return split.tolist()


def scan_faces(data_dir, skip_unparsed=False):
    """Return the rows (`age`, `path`) of the faces in `<data_dir>/AgeDB`, sorted by file name."""
    folder = Path(data_dir) / "AgeDB"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: `python download.py` says how to get it")
    names = sorted(e.name for e in os.scandir(folder) if e.name.endswith(".jpg") and e.is_file())
    if not names:
        raise FileNotFoundError(f"{folder} holds no .jpg file: `python download.py` says more")
    # A name with bytes that are no text cannot be written into a CSV file.
    matches = {name: NAME.fullmatch(name) if name.isprintable() else None for name in names}
    unparsed = [name for name in names if matches[name] is None]
    if unparsed:
        text = f"{len(unparsed)} of {len(names)} names are not <id>_<name>_<age>_<gender>.jpg"
        text += ": " + ", ".join(map(ascii, unparsed[:10]))
        if not skip_unparsed:
            raise ValueError(f"{text}; rename them, or leave them out with --skip_unparsed")
        print(f"left out: {text}")
    rows = [(int(match[3]), f"AgeDB/{name}") for name, match in matches.items() if match]
    return pd.DataFrame(rows, columns=["age", "path"])


def read_meta(path, columns):
    """Read a CSV file of `age`, `path` and what else `columns` names; ages become numbers."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no file {path}: check the path (`python download.py --split_file` fetches AgeDB's "
            "agedb.csv)"
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
    """Print the number of faces per split beside the expected one, and return the counts."""
    counts = {name: list(split).count(name) for name in SPLITS}
    for name in SPLITS:
        note = f"   expected {expected[name]:>7,}" if expected else ""
        note += "   DIFFERS" if expected and counts[name] != expected[name] else ""
        print(f"{name:>6} {counts[name]:>8,}{note}")
    return counts


def check_meta(path, data_dir, cap=CAP, seed=666, expected=None):
    """Print the counts of a meta file and return what is wrong with it, as a list of sentences."""
    meta, problems = read_meta(path, ("age", "path", "split")), []
    counts = report_counts(meta["split"], expected)
    if expected is not None and counts != expected:
        problems.append(f"the counts are not the expected {expected}")
    missing = missing_paths(data_dir, meta["path"])
    if missing:
        first = ", ".join(map(ascii, missing[:10]))
        problems.append(
            f"{len(missing)} of {len(meta)} images are not in {data_dir}: {first}; `python "
            "download.py` says how to get them and how to mend names spelled otherwise"
        )
    split = balanced_split(meta["age"], meta["path"], cap, seed)
    wrong = [row for row, name in enumerate(split) if meta["split"][row] != name]
    if wrong:
        problems.append(
            f"{len(wrong)} of {len(meta)} rows differ from the split of cap {cap} and seed {seed}; "
            f"the first, row {wrong[0]}, is {meta['split'][wrong[0]]!r}"
        )
    return problems


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other are an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--dataset", default="agedb", help="the meta file is <dataset>.csv")
    parser.add_argument("--meta", type=Path, help="your own faces: a CSV file with age,path")
    parser.add_argument("--cap", type=int, default=CAP, help="most faces per age in val, and test")
    parser.add_argument("--seed", type=int, default=666, help="of the split; the official is 666")
    parser.add_argument("--skip_unparsed", action="store_true", help="leave out unreadable names")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--overwrite", action="store_true", help="replace an existing meta file")
    mode.add_argument("--check", action="store_true", help="verify the meta file, write nothing")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"\w[\w.-]*", args.dataset):
        parser.error(f"--dataset is {args.dataset!r}: a plain name, it becomes <dataset>.csv")
    if args.meta and (args.check or args.dataset == "agedb"):
        parser.error("--meta goes with --dataset NAME (not agedb) and without --check")
    if not (args.meta or args.check or args.dataset == "agedb"):
        parser.error(f"--dataset {args.dataset} needs --meta FILE with the columns age,path")
    return args


def main(argv=None):
    """Write the meta file, or verify it with --check; returns the exit status."""
    args = parse_args(argv)
    path = args.data_dir / f"{args.dataset}.csv"
    expected = EXPECTED if args.dataset == "agedb" else None
    if args.check:
        problems = check_meta(path, args.data_dir, args.cap, args.seed, expected)
        print("\n".join(problems) or f"{path} is as it should be")
        return int(bool(problems))
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: verify it with --check or replace it with --overwrite")
    if args.meta:
        meta = read_meta(args.meta, ("age", "path"))
        missing = missing_paths(args.data_dir, meta["path"])
        if missing:
            first = ", ".join(map(ascii, missing[:10]))
            raise FileNotFoundError(f"{len(missing)} images are not in {args.data_dir}: {first}")
    else:
        meta = scan_faces(args.data_dir, args.skip_unparsed)
        print("The rows are in order of file name, so this is NOT the official split, which goes")
        print("with the published numbers: `python download.py --split_file` fetches that one.")
    meta["split"] = balanced_split(meta["age"], meta["path"], args.cap, args.seed)
    if not (meta["split"] == "val").any():
        raise ValueError("no age has three faces, so none goes to val and test: add faces")
    if (meta["age"] > LARGEST_AGE).any():
        row = int(np.flatnonzero(meta["age"] > LARGEST_AGE)[0])
        raise ValueError(
            f"row {row} has age {meta['age'][row]:g}: train.py takes 0 to {LARGEST_AGE}"
        )
    write_atomically(path, meta.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {path}, {len(meta):,} faces")
    report_counts(meta["split"], expected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
