"""Meta file of IMDB-WIKI-DIR, `<data_dir>/imdb_wiki.csv` (`age,path,split`), balanced split.

The training set keeps the imbalance of the ages. Validation and test get at most 150 faces of
each age, so that frequent ages weigh no more there than others: 191,509 / 11,022 / 11,022 faces.

    python prepare.py                                          # from imdb.mat and wiki.mat
    python prepare.py --check                                  # verifies the file
    python prepare.py --dataset my_faces --meta my_faces.csv   # your own `age,path`
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from matlab_meta import LARGEST_AGE, SOURCES, read_faces
from meta_file import balanced_split, check_meta, missing_paths, read_ages, report_counts
from utils import write_atomically

DATASET = "imdb_wiki"
EXPECTED = {"train": 191_509, "val": 11_022, "test": 11_022}  # IMDB-WIKI-DIR, paper
CAP = 150  # IMDB-WIKI's largest number of faces per age in val, and in test


def faces_of_sources(data_dir):
    """Return the rows (`age`, `path`) of imdb.mat, then of wiki.mat; print what is left out."""
    tables = []
    for source in SOURCES:
        table, left_out = read_faces(data_dir, source)
        total = len(table) + sum(left_out.values())
        print(f"{source}.mat: {total:,} rows, {len(table):,} kept; left out:")
        for reason, number in left_out.items():
            print(f"  {number:>8,} with {reason}")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def faces_of_table(path, data_dir):
    """Return the rows (`age`, `path`) of your own table; its images must exist."""
    meta = read_ages(path, ("age", "path"))
    missing = missing_paths(data_dir, meta["path"])
    if missing:
        first = ", ".join(map(ascii, missing[:10]))
        raise FileNotFoundError(f"{len(missing)} images are not in {data_dir}: {first}")
    return meta


def write_meta(meta, path, cap=CAP, seed=666, expected=None):
    """Split the faces (`age`, `path`), write the meta file and print its counts."""
    if (meta["age"] > LARGEST_AGE).any():
        row = int(np.flatnonzero(meta["age"] > LARGEST_AGE)[0])
        raise ValueError(
            f"row {row} has age {meta['age'][row]:g}: train.py takes 0 to {LARGEST_AGE}"
        )
    meta = meta.assign(split=balanced_split(meta["age"], meta["path"], cap, seed))
    if not (meta["split"] == "val").any():
        raise ValueError("no age has three faces, so none goes to val and test: add faces")
    write_atomically(path, meta.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {path}, {len(meta):,} faces")
    report_counts(meta["split"], expected)
    return meta


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other are an error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--dataset", default=DATASET, help="the meta file is <dataset>.csv")
    parser.add_argument("--meta", type=Path, help="your own faces: a CSV file with age,path")
    parser.add_argument("--cap", type=int, default=CAP, help="most faces per age in val, and test")
    parser.add_argument("--seed", type=int, default=666, help="of the split; the official is 666")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--overwrite", action="store_true", help="replace an existing meta file")
    mode.add_argument("--check", action="store_true", help="verify the meta file, write nothing")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"\w[\w.-]*", args.dataset):
        parser.error(f"--dataset is {args.dataset!r}: a plain name, it becomes <dataset>.csv")
    if args.meta and (args.check or args.dataset == DATASET):
        parser.error(f"--meta goes with --dataset NAME (not {DATASET}) and without --check")
    if not (args.meta or args.check or args.dataset == DATASET):
        parser.error(f"--dataset {args.dataset} needs --meta FILE with the columns age,path")
    return args


def main(argv=None):
    """Write the meta file, or verify it with --check; returns the exit status."""
    args = parse_args(argv)
    path = args.data_dir / f"{args.dataset}.csv"
    expected = EXPECTED if args.dataset == DATASET else None
    if args.check:
        problems = check_meta(path, args.data_dir, args.cap, args.seed, expected)
        print("\n".join(problems) or f"{path} is as it should be")
        return int(bool(problems))
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: verify it with --check or replace it with --overwrite")
    if args.meta:
        meta = faces_of_table(args.meta, args.data_dir)
    else:
        meta = faces_of_sources(args.data_dir)
    write_meta(meta, path, args.cap, args.seed, expected)
    return 0


if __name__ == "__main__":
    sys.exit(main())
