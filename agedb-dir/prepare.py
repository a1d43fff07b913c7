"""Meta file of AgeDB-DIR, `<data_dir>/agedb.csv` (`age,path,split`), with the balanced split.

The training set keeps the imbalance of the ages. Validation and test get at most 30 faces of each
age, so that frequent ages weigh no more there than others: 12,208 / 2,140 / 2,140 faces.

The split depends on the order of the rows. The published numbers belong to the official
`agedb.csv`, which `python download.py --split_file` fetches; a folder listing has another order
and gives another split, of the same sizes.

    python prepare.py --check                                  # verifies the file
    python prepare.py                                          # from a listing of data/AgeDB
    python prepare.py --dataset zero --meta data/agedb.csv --curate 0 15 45 60 85 200
    python prepare.py --dataset my_faces --meta my_faces.csv   # your own `age,path`
    python prepare.py --dataset flats --meta flats.csv --target price --low 0 --high 1500
"""

import argparse
import os
import re
from pathlib import Path

import pandas as pd

import program
from fetch import sole_use
from files import write_atomically
from held_out import add_held_out, check_held_out, describe_split
from meta_file import AGE, check_meta, missing_paths, read_ages, report_counts, split_own
from outside import shown
from regions import check_ends, curated
from target import add_target, check_target

EXPECTED = {"train": 12_208, "val": 2_140, "test": 2_140}  # AgeDB-DIR, paper and official file
CAP = 30  # AgeDB's largest number of faces per age in val, and in test
NAME = re.compile(r"(\d+)_(.+)_(\d+)_([mf])\.jpg")  # 35_JaneDoe_41_f.jpg: id, name, age, gender


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


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other are an error."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--dataset", default="agedb", help="the meta file is <dataset>.csv")
    parser.add_argument("--meta", type=Path, help="your own faces: a CSV file with age,path")
    cap_help = f"most faces per age, or bucket, in val, and in test [{CAP}]"
    parser.add_argument("--cap", type=int, help=cap_help)
    parser.add_argument("--seed", type=int, default=666, help="of the split; the official is 666")
    add_held_out(parser.add_argument, "--cap")
    add_target(parser.add_argument, AGE)
    outside_help = "paths in the table may lead out of --data_dir"
    parser.add_argument("--allow_outside", action="store_true", help=outside_help)
    parser.add_argument("--skip_unparsed", action="store_true", help="leave out unreadable names")
    curate_help = "LOW HIGH …: leave --meta's training faces of these labels out, keep its split"
    parser.add_argument("--curate", type=float, nargs="+", default=[], help=curate_help)
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
    check_held_out(parser, args, CAP, args.dataset != "agedb")
    check_target(parser, args, AGE)
    check_ends(parser, args.curate)
    if args.curate and not args.meta:
        parser.error("--curate needs --meta FILE, with a split, and --dataset NAME")
    return args


def main(argv=None):
    """Write the meta file, or verify it with --check; returns the exit status."""
    args = parse_args(argv)
    target = AGE.of(args)
    path = args.data_dir / f"{args.dataset}.csv"
    expected = EXPECTED if args.dataset == "agedb" else None
    if args.check:
        problems = check_meta(path, args, target, expected)
        print("\n".join(problems) or f"{path} is as it should be")
        return int(bool(problems))
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: verify it with --check or replace it with --overwrite")
    if args.meta:
        columns = ("path", "split") if args.curate else ("path",)
        meta = read_ages(args.meta, (target.name, *columns))
        missing = missing_paths(args.data_dir, meta["path"], args.allow_outside)
        if missing:
            first = ", ".join(map(shown, missing[:10]))
            raise FileNotFoundError(f"{len(missing)} images are not in {args.data_dir}: {first}")
    else:
        meta = scan_faces(args.data_dir, args.skip_unparsed)
        print("The rows are in order of file name, so this is NOT the official split, which goes")
        print("with the published numbers: `python download.py --split_file` fetches that one.")
    if not args.curate:
        meta["split"] = split_own(meta, args, target)
    meta = curated(meta, args.curate, target.name)
    with sole_use(args.data_dir):
        write_atomically(path, meta.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {path}, {len(meta):,} {'images' if target.own else 'faces'}")
    report_counts(meta["split"], expected)
    if args.meta:
        describe_split(target, meta[target.name], meta["split"], args)
    return 0


if __name__ == "__main__":
    program.run(main)
