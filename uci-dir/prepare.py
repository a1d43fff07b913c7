"""From any table with a header line to a prepared one: inputs, label buckets, balanced split.

Training keeps the imbalance of the target; from each bucket of the label at most a third goes to
validation and as much to test, capped, so that frequent labels weigh little more there than others.
What the inputs are scaled and filled with comes from the training rows alone.

    python prepare.py --csv mine.csv --target price          # data/mine.csv and data/mine.json
    python prepare.py --csv mine.csv --target price --bin_width 50 --group house --missing 9999
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

import program
from bins import label_counts, label_to_bucket
from columns import NO_VALUE, SPLIT, as_text, choose_columns, describe_columns, fit_columns
from datasets import MOST_BUCKETS, SPLITS, check_preparation, target_statistics
from fetch import sha256_of, sole_use
from files import write_atomically
from lds import SCALES
from metrics import ShotRule
from outside import clean, read_json, reading
from regions import check_ends, curated
from split import (
    automatic_cap,
    balanced_split,
    choose_bins,
    choose_shots,
    describe_split,
    trained_bins,
)
from table_file import labels_of, read_table


def groups_of(values):
    """Return what must stay together [N]: equal values; a row without one is alone."""
    groups = as_text(values)
    alone = groups == NO_VALUE
    groups[alone] = np.flatnonzero(alone)  # numbers, which equal no text
    return groups


def prepare(frame, args):
    """Prepare a table.

    Args:
        frame: DataFrame as read.
        args: the flags.

    Returns:
        DataFrame of inputs, target and `split`; the preparation, a dictionary of plain values; and
        lines to print.

    Raises:
        ValueError: for a table, a target or flags that cannot be used.
    """
    labels = labels_of(frame, args.target)
    kept = ~np.isnan(labels)
    inputs, left_out = choose_columns(frame, args, kept)
    frame, labels = frame[kept].reset_index(drop=True), labels[kept]
    lines = [f"{(~kept).sum()} rows without a label left out"] if not kept.all() else []
    bins, why = choose_bins(labels, args.bins, args.bin_width, args.scale)
    counts = label_counts(labels, bins)
    cap = args.cap or automatic_cap(counts)
    groups = groups_of(frame[args.group]) if args.group else None
    split = balanced_split(label_to_bucket(labels, bins), cap, args.seed, groups)
    frame = curated(frame.assign(**{args.target: labels, SPLIT: split}), args.curate, args.target)
    labels, split = frame[args.target].to_numpy(), frame[SPLIT].to_numpy()
    train = split == "train"
    if {*split} != {*SPLITS}:
        raise ValueError(
            f"{len(labels)} rows in {(counts > 0).sum()} buckets leave nothing to validate on: a "
            "bucket needs 3 rows (or groups that fit); --bins or --bin_width makes fewer buckets"
        )
    bins = trained_bins(bins, labels[train])
    columns, constant = fit_columns(frame[inputs], train)
    left_out |= {name: "constant in training" for name in constant}
    if not columns:
        raise ValueError(f"no column is left as an input: {left_out}")
    by_split = [label_counts(labels[split == name], bins) for name in ("train", "test")]
    many, few = choose_shots(*by_split, args.many, args.few)
    preparation = {
        "target": {"name": args.target, "unit": args.unit, **target_statistics(labels[train])},
        "columns": columns,
        "left_out": left_out,
        "bins": list(bins if bins.record else bins[:3]),
        "shots": {"many": many, "few": few},
        "split": {"seed": args.seed, "cap": cap, "group": args.group},
        "missing": list(args.missing),
    }
    form = form_of(args)
    if any(form):  # files of new rows are read in the same way
        preparation["form"] = form
    check_preparation(preparation)
    names = [column["name"] for column in columns]
    table = frame[[*names, args.target, SPLIT]]
    lines += describe_columns(frame, columns, left_out)
    decades = " decades" * (args.scale != "linear")
    lines.append(f"{bins.number} buckets of {bins.width:g}{decades}: {why}")
    return table, preparation, lines + describe_split(labels, split, ShotRule(bins, many, few), cap)


def form_of(args):
    """Return what is given of a file's form, None where it is to be found."""
    return [args.separator, args.decimal, args.encoding]


def prepare_file(args):
    """Read `args.csv`, prepare it and write both files; returns the path of the csv.

    Raises:
        FileNotFoundError, ValueError: as `read_table` and `prepare`; or if other files exist.
    """
    name = args.name or args.csv.stem
    path, note = (args.data_dir / f"{name}.{suffix}" for suffix in ("csv", "json"))
    if path.resolve() == args.csv.resolve():
        raise ValueError(f"{path} is the given table itself: give another --name or --data_dir")
    held = [str(file) for file in (path, note) if file.exists()]
    if held and not args.overwrite:
        raise ValueError(f"{' and '.join(held)} exist: --overwrite replaces them, or give a --name")
    frame, form = read_table(args.csv, form_of(args), args.missing)
    print(f"{args.csv}: {form}")
    table, preparation, lines = prepare(frame, args)
    preparation["source"] = {"file": args.csv.name, "sha256": sha256_of(args.csv)}
    print(clean("\n".join(lines)))
    text = json.dumps(preparation, indent=1, ensure_ascii=False)
    with sole_use(path.parent):
        write_atomically(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
        write_atomically(note, text.encode() + b"\n")
    print(f"wrote {path} and {note}; next: python train.py --dataset {name}")
    return path


def prepare_once(csv, target, data_dir):
    """Prepare a table with the default flags if that has not been done; returns its name.

    Raises:
        ValueError: if another table, or another target, has been prepared under this name.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--csv is for one process: `python prepare.py` first, then --dataset NAME")
    args = parse_args(["--csv", str(csv), "--target", target, "--data_dir", str(data_dir)])
    note = args.data_dir / f"{args.csv.stem}.json"
    if not note.is_file():
        return prepare_file(args).stem
    preparation = read_json(note, "remove it, and its csv")
    with reading(note, "remove it, and its csv"):
        made_of = preparation["source"]["sha256"], preparation["target"]["name"]
    if made_of != (sha256_of(args.csv), target):
        raise ValueError(
            f"{note} is of another table than {csv}, or another target, {made_of[1]!r}: "
            "`python prepare.py --csv FILE --target COLUMN --overwrite` prepares it again, and "
            "with --name NAME under another name, for --dataset NAME"
        )
    print(f"{note}: prepared before, taken as it is")
    return args.csv.stem


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--csv", type=Path, required=True, help="the table, with a header line")
    add("--target", required=True, metavar="COLUMN", help="column of the labels")
    add("--unit", default="", help="of the target, for tables and figures")
    add("--data_dir", type=Path, default="./data", help="folder of the prepared table")
    add("--name", default="", help="of the prepared table [that of the file]")
    add("--separator", help="between cells [found]")
    add("--decimal", choices=(".", ","), help="decimal mark [found]")
    add("--encoding", help="of the text [found]")
    add("--missing", nargs="*", default=[], metavar="CELL", help="further cells that mean no value")
    add("--drop", nargs="*", default=[], metavar="COLUMN", help="columns to leave out")
    add("--keep", nargs="*", default=[], metavar="COLUMN", help="columns that only look like ids")
    add("--max_values", type=int, default=50, help="most values of a text column")
    add("--group", metavar="COLUMN", help="rows with one value here stay in one split")
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--bins", type=int, help="number of label buckets [automatic]")
    width.add_argument("--bin_width", type=float, help="their width, in the unit or in decades")
    add("--scale", choices=SCALES, default="linear", help="of the buckets; log for a heavy tail")
    add(
        "--cap",
        type=int,
        help="most rows of a bucket in val, and in test [10 %% of the rows in each, 5 to 150]",
    )
    add("--many", type=int, help="many-shot: buckets with more training rows [a third of test]")
    add("--few", type=int, help="few-shot: buckets with fewer training rows [a third of test]")
    curate_help = "LOW HIGH …: leave out the training rows with these labels (zero-shot)"
    add("--curate", type=float, nargs="+", default=[], help=curate_help)
    add("--seed", type=int, default=0, help="of the split")
    add("--overwrite", action="store_true", help="replace an earlier preparation")
    args = parser.parse_args(argv)
    check_ends(parser, args.curate)
    for flag, least in {
        "bins": 2,
        "cap": 1,
        "max_values": 2,
        "many": 0,
        "few": 0,
        "seed": 0,
    }.items():
        if getattr(args, flag) is not None and getattr(args, flag) < least:
            parser.error(f"--{flag} must be {least} or more, got {getattr(args, flag)}")
    if args.bins is not None and args.bins > MOST_BUCKETS:
        parser.error(f"--bins must be at most {MOST_BUCKETS:,}, got {args.bins}")
    if args.bin_width is not None and not 0 < args.bin_width < float("inf"):
        parser.error(f"--bin_width must be above 0, got {args.bin_width}")
    return args


def main(argv=None):
    """Prepare a table; returns the path of the csv."""
    return prepare_file(parse_args(argv))


if __name__ == "__main__":
    program.run(main)
