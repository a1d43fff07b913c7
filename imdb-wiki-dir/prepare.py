"""Meta file of IMDB-WIKI-DIR, `<data_dir>/imdb_wiki.csv` (`age,path,split`), balanced split.

The training set keeps the imbalance of the ages. Validation and test get at most 150 faces of
each age, so that frequent ages weigh no more there than others: 191,509 / 11,022 / 11,022 faces.

    python prepare.py                                          # from imdb.mat and wiki.mat
    python prepare.py --check                                  # verifies the file
    python prepare.py --dataset zero --meta data/imdb_wiki.csv --curate 0 15 45 60 85 200
    python prepare.py --dataset my_faces --meta my_faces.csv   # your own `age,path`
    python prepare.py --dataset flats --meta flats.csv --target price --low 0 --high 1500
"""

import argparse
import re
from pathlib import Path

import pandas as pd

import program
from fetch import sole_use
from files import write_atomically
from held_out import add_held_out, check_held_out, describe_split
from matlab_meta import SOURCES, read_faces
from meta_file import AGE, check_meta, missing_paths, read_ages, report_counts, split_own
from outside import shown
from regions import check_ends, curated
from target import add_target, check_target

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


def faces_of_table(args, target):
    """Return the rows (label, `path`) of your own table; its images must exist.

    With --curate they have their `split` already.
    """
    columns = ("path", "split") if args.curate else ("path",)
    meta = read_ages(args.meta, (target.name, *columns))
    missing = missing_paths(args.data_dir, meta["path"], args.allow_outside)
    if missing:
        first = ", ".join(map(shown, missing[:10]))
        raise FileNotFoundError(f"{len(missing)} images are not in {args.data_dir}: {first}")
    return meta


def write_meta(meta, path, args, expected=None):
    """Split the faces (label, `path`) by the flags, write the meta file and print its counts."""
    target = AGE.of(args)
    if not args.curate:
        meta = meta.assign(split=split_own(meta, args, target))
    meta = curated(meta, args.curate, target.name)
    with sole_use(path.parent):
        write_atomically(path, meta.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {path}, {len(meta):,} {'images' if target.own else 'faces'}")
    report_counts(meta["split"], expected)
    if args.meta:
        describe_split(target, meta[target.name], meta["split"], args)
    return meta


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other are an error."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--dataset", default=DATASET, help="the meta file is <dataset>.csv")
    parser.add_argument("--meta", type=Path, help="your own faces: a CSV file with age,path")
    cap_help = f"most faces per age, or bucket, in val, and in test [{CAP}]"
    parser.add_argument("--cap", type=int, help=cap_help)
    add_held_out(parser.add_argument, "--cap")
    add_target(parser.add_argument, AGE)
    parser.add_argument("--seed", type=int, default=666, help="of the split; the official is 666")
    outside_help = "paths in the table may lead out of --data_dir"
    parser.add_argument("--allow_outside", action="store_true", help=outside_help)
    curate_help = "LOW HIGH …: leave --meta's training faces of these labels out, keep its split"
    parser.add_argument("--curate", type=float, nargs="+", default=[], help=curate_help)
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
    check_held_out(parser, args, CAP, args.dataset != DATASET)
    check_target(parser, args, AGE)
    check_ends(parser, args.curate)
    if args.curate and not args.meta:
        parser.error("--curate needs --meta FILE, with a split, and --dataset NAME")
    return args


def main(argv=None):
    """Write the meta file, or verify it with --check; returns the exit status."""
    args = parse_args(argv)
    path = args.data_dir / f"{args.dataset}.csv"
    expected = EXPECTED if args.dataset == DATASET else None
    if args.check:
        problems = check_meta(path, args, AGE.of(args), expected)
        print("\n".join(problems) or f"{path} is as it should be")
        return int(bool(problems))
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: verify it with --check or replace it with --overwrite")
    own = args.meta is not None
    meta = faces_of_table(args, AGE.of(args)) if own else faces_of_sources(args.data_dir)
    write_meta(meta, path, args, expected)
    return 0


if __name__ == "__main__":
    program.run(main)
