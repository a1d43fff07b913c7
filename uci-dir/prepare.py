"""From any table with a header line to a prepared one: inputs, label buckets, balanced split.

Training keeps the imbalance of the target; from each bucket of the label at most a third goes to
validation and as much to test, capped, so that frequent labels weigh little more there than others.
What the inputs are scaled and filled with comes from the training rows alone.

    python prepare.py --csv mine.csv --target price          # data/mine.csv and data/mine.json
    python prepare.py --csv mine.csv --target price --bin_width 50 --group house --missing 9999
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from columns import as_text, fit_columns, is_number, width_of
from datasets import SPLITS, Bins, label_counts, label_to_bucket
from fetch import sha256_of
from metrics import SHOTS, ShotRule, shots_of_buckets
from table_file import as_numbers, read_table
from utils import write_atomically

FORMAT = 1  # of the .json
MAX_BINS = 100  # automatic ones; those of the ages and of depth are as many
EVAL_SHARE = 0.10  # of the rows at most in validation, and in test, if --cap does not say it
LEAST_CAP = 5  # even where that is more
ID_ROWS = 20  # fewer rows do not show that a column only numbers them
SPLIT = "split"

# ---- columns -------------------------------------------------------------------------------


def choose_columns(frame, args):
    """Choose the inputs.

    Args:
        frame: DataFrame of the labelled rows.
        args: the flags target, group, drop, keep, max_values.

    Returns:
        List of the inputs' names, and {name: why it is left out}.

    Raises:
        ValueError: for a column that is not there, or text columns with too many values.
    """
    named = [args.target, *filter(None, [args.group]), *args.drop, *args.keep]
    unknown = [name for name in named if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"no column {unknown}: the table has {', '.join(map(repr, frame.columns))}"
        )
    if SPLIT in frame.columns and SPLIT not in args.drop:
        raise ValueError(f"a column is called {SPLIT!r}, as ours will be: rename or --drop it")
    left_out = {args.target: "target"}
    left_out |= {name: "group" for name in [args.group] if name}
    left_out |= {name: "--drop" for name in args.drop}
    inputs, refused = [], []
    for name in frame.columns:
        if name in left_out:
            continue
        reason = None if name in args.keep else id_reason(frame[name])
        if reason:
            left_out[name] = reason
            continue
        inputs.append(name)
        if not is_number(frame[name]):
            values = pd.unique(as_text(frame[name]))
            if len(values) > args.max_values:
                refused.append(f"{name!r} ({len(values)} values such as {str(values[0])[:40]!r})")
    if refused:
        raise ValueError(
            f"text columns with more than --max_values {args.max_values} values: "
            f"{', '.join(refused)}. Leave them out with --drop, or turn them into numbers or fewer "
            "categories; if they are numbers, see --decimal and --missing"
        )
    if not inputs:
        raise ValueError(f"no column is left as an input: {left_out}")
    return inputs, left_out


def id_reason(values):
    """Return why a column looks as if it only numbered or named the rows, None if it does not."""
    if len(values) < ID_ROWS or values.isna().any() or not values.is_unique:
        return None
    if not is_number(values):
        return "another text in each row"
    numbers = as_numbers(values)
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()
    return "numbers the rows" if whole and np.ptp(numbers) == len(numbers) - 1 else None


# ---- labels --------------------------------------------------------------------------------


def labels_of(frame, target):
    """Return the labels, float64 [N], NaN where the cell is empty or infinite.

    Raises:
        ValueError: if cells are text, or fewer than two different labels are left.
    """
    values = frame[target]
    labels = as_numbers(values)
    text = values.notna().to_numpy() & np.isnan(pd.to_numeric(values, errors="coerce").to_numpy())
    if pd.api.types.is_bool_dtype(values) or text.any():
        row = int(np.flatnonzero(text)[0]) if text.any() else 0
        raise ValueError(
            f"the target {target!r} is no column of numbers: row {row} has {values.iloc[row]!r}; "
            "see --decimal, and --missing for cells that mean no value"
        )
    filled = labels[~np.isnan(labels)]
    if len(np.unique(filled)) < 2:
        raise ValueError(f"the target {target!r} has {len(filled)} labels, all the same or none")
    return labels


def choose_bins(labels, number=None, width=None):
    """Cut the range of the labels into equal buckets.

    Args:
        labels: [N].
        number, width: as asked for; both None for an automatic choice.

    Returns:
        `Bins`, and a sentence that says why.
    """
    low, high = float(labels.min()), float(labels.max())
    whole = bool((labels == np.round(labels)).all())
    if number:
        return Bins(low, high, number), f"--bins {number}"
    if width:
        why = f"--bin_width {width:g}"
    elif whole and high - low < MAX_BINS:
        width, why = 1.0, "the labels are whole numbers: one bucket each, as with ages"
    else:
        width, why = automatic_width(labels)
    # Whole labels lie in the middle of their bucket, where no rounding moves them to the next.
    start = low - 0.5 if whole and width == round(width) else np.floor(low / width) * width
    number = int(np.floor((high - start) / width)) + 1
    return Bins(float(start), float(start + number * width), number), why


def automatic_width(labels):
    """Return a round width by the rule of Freedman and Diaconis (1981), and how it came about."""
    distance = np.subtract(*np.percentile(labels, (75, 25)))
    ideal = 2 * distance / np.cbrt(len(labels))
    least = np.ptp(labels) / (MAX_BINS - 1)
    widths = [factor * 10.0**power for power in range(-12, 13) for factor in (1, 2, 5)]
    width = min(widths, key=lambda w: abs(np.log(w / max(ideal, least))))
    if width < least:
        width = min((w for w in widths if w >= least), default=least)
    why = f"2 · quartile distance / cube root of the rows (Freedman–Diaconis) = {ideal:.3g}"
    limit = f", at most {MAX_BINS} buckets" if ideal < least else ""
    return width, f"{why}, rounded to {width:g}{limit}"


# ---- split ---------------------------------------------------------------------------------


def automatic_cap(counts):
    """Return the largest cap at which val and test have at most 10 % of the rows each; 5 at least.

    Args:
        counts: rows per bucket [B].
    """
    cap = LEAST_CAP
    while cap < counts.max() // 3:
        if np.minimum(counts // 3, cap + 1).sum() > EVAL_SHARE * counts.sum():
            break
        cap += 1
    return cap


def balanced_split(buckets, cap, seed, groups=None):
    """Assign each row to train, val or test so that val and test are balanced over the buckets.

    In each bucket in turn the rows are shuffled; n = min(count // 3, cap) of them go to val, the
    next n to test. Groups are taken as a whole, in the bucket of their median row, as long as they
    fit into those n.

    Args:
        buckets: bucket of each row [N].
        cap: most rows of a bucket in val, and in test.
        seed: of the shuffles.
        groups: what must stay together [N], or None.

    Returns:
        Object array [N] of 'train', 'val' and 'test'.
    """
    table = pd.DataFrame({"bucket": buckets, "group": np.arange(len(buckets))})
    if groups is not None:
        table["group"] = pd.factorize(groups)[0]
    units = table.groupby("group")["bucket"].agg(["median", "size"])
    bucket_of, sizes = units["median"].to_numpy().astype(int), units["size"].to_numpy()
    rng = np.random.default_rng(seed)
    split = np.full(len(units), "train", dtype=object)
    for bucket in np.unique(bucket_of):
        members = rng.permutation(np.flatnonzero(bucket_of == bucket))
        room = min(sizes[members].sum() // 3, cap)
        left = dict.fromkeys(("val", "test"), room)
        for unit in members:
            fitting = [name for name, rows in left.items() if rows >= sizes[unit]]
            if fitting:
                split[unit] = fitting[0]
                left[fitting[0]] -= sizes[unit]
    return split[table["group"]]


def choose_shots(counts, test_counts, many=None, few=None):
    """Return the thresholds of the shots.

    By default few-shot are the buckets with the fewest training rows that together have a third of
    the test rows, many-shot those with the most that have a third: so each shot can be measured.

    Args:
        counts, test_counts: training and test rows per bucket [B].
        many, few: as asked for, or None.

    Raises:
        ValueError: if they contradict each other.
    """
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    reached = np.cumsum(test_counts[order]) - test_counts[order] / 2  # up to a bucket's middle
    share = reached / test_counts.sum()
    if few is None:
        few = int(counts[order][share >= 1 / 3].min())
    if many is None:
        many = int(counts[order][share <= 2 / 3].max())
    if few > many + 1:
        raise ValueError(f"--few {few} must not lie above --many {many}")
    return many, few


# ---- the whole -----------------------------------------------------------------------------


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
    if args.target not in frame.columns:
        raise ValueError(
            f"no column {args.target!r}: the table has {', '.join(map(repr, frame.columns))}"
        )
    labels = labels_of(frame, args.target)
    kept = ~np.isnan(labels)
    frame, labels = frame[kept].reset_index(drop=True), labels[kept]
    lines = [f"{(~kept).sum()} rows without a label left out"] if not kept.all() else []
    inputs, left_out = choose_columns(frame, args)
    bins, why = choose_bins(labels, args.bins, args.bin_width)
    counts = label_counts(labels, bins)
    cap = args.cap or automatic_cap(counts)
    groups = as_text(frame[args.group]) if args.group else None
    split = balanced_split(label_to_bucket(labels, bins), cap, args.seed, groups)
    train = split == "train"
    if {*split} != {*SPLITS}:
        raise ValueError(
            f"{len(labels)} rows in {(counts > 0).sum()} buckets leave nothing to validate on: a "
            "bucket needs 3 rows (or groups that fit); --bins or --bin_width makes fewer buckets"
        )
    bins = cut_to(bins, label_to_bucket(labels[train], bins))
    columns, constant = fit_columns(frame[inputs], train)
    left_out |= {name: "constant in training" for name in constant}
    if not columns:
        raise ValueError(f"no column is left as an input: {left_out}")
    by_split = [label_counts(labels[split == name], bins) for name in ("train", "test")]
    many, few = choose_shots(*by_split, args.many, args.few)
    preparation = {
        "format": FORMAT,
        "target": {"name": args.target, "unit": args.unit, **statistics_of(labels[train])},
        "columns": columns,
        "left_out": left_out,
        "bins": list(bins),
        "shots": {"many": many, "few": few},
        "split": {"seed": args.seed, "cap": cap, "group": args.group},
        "missing": list(args.missing),
    }
    names = [column["name"] for column in columns]
    table = frame[names].assign(**{args.target: labels, SPLIT: split})
    lines += describe_columns(frame, columns, left_out)
    lines.append(f"{bins.number} buckets of {(bins.high - bins.low) / bins.number:g}: {why}")
    return table, preparation, lines + describe_split(labels, split, ShotRule(bins, many, few), cap)


def cut_to(bins, train_buckets):
    """Return the bins from the first to the last that has a training row, two at least."""
    width = (bins.high - bins.low) / bins.number
    first, last = train_buckets.min(), max(train_buckets.max(), train_buckets.min() + 1)
    if (first, last) == (0, bins.number - 1):
        return bins
    low, high = bins.low + first * width, bins.low + (last + 1) * width
    return Bins(float(low), float(high), int(last - first + 1))


def statistics_of(labels):
    """Return mean and deviation of training labels and, if all are above 0, of their logarithms."""
    statistics = {"mean": float(labels.mean()), "std": float(labels.std()) or 1.0}
    logs = np.log(labels) if labels.min() > 0 else None
    statistics["log_mean"] = None if logs is None else float(logs.mean())
    statistics["log_std"] = None if logs is None else float(logs.std()) or 1.0
    return statistics


def describe_columns(frame, columns, left_out):
    """Return lines on inputs, missing cells and columns left out."""
    numbers = sum(column["kind"] == "number" for column in columns)
    lines = [
        f"{numbers} columns of numbers, {len(columns) - numbers} of categories: "
        f"{width_of(columns)} inputs"
    ]
    for column in columns:
        values = frame[column["name"]]
        if column["kind"] == "number":
            missing = int(np.isnan(as_numbers(values)).sum())
            odd = missing - int(values.isna().sum())
            note = f" ({odd} infinite or no number)" * bool(odd)
            filling = f"filled with the training median {column['median']:g}"
            mark = ", marked in a column of their own" * column["flag"]
            lines += [f"  {column['name']}: {missing} missing{note}, {filling}{mark}"] * bool(
                missing
            )
        elif values.isna().any():
            lines.append(f"  {column['name']}: {values.isna().sum()} missing, as a category")
    shown = {name: why for name, why in left_out.items() if why not in ("target", "group")}
    lines += [f"  {name!r} left out: {why}" for name, why in shown.items()]
    if any(why not in ("constant in training", "--drop") for why in shown.values()):
        lines.append("  (--keep COLUMN uses it all the same)")
    return lines


def describe_split(labels, split, rule, cap):
    """Return the table of buckets and rows per shot."""
    shots = shots_of_buckets(labels[split == "train"], rule)
    rows = shots[label_to_bucket(labels, rule.bins)]
    lines = [
        f"at most {cap} rows of a bucket in val, and in test; many-shot: more than {rule.many} "
        f"training rows in a bucket, few-shot: fewer than {rule.few}",
        f"{'shot':>8}{'buckets':>9}" + "".join(f"{name:>9}" for name in SPLITS),
    ]
    for shot in (*SHOTS[1:], "all"):
        here = np.ones(len(rows), bool) if shot == "all" else rows == shot
        counts = [int((here & (split == name)).sum()) for name in SPLITS]
        buckets = len(shots) if shot == "all" else int((shots == shot).sum())
        lines.append(f"{shot:>8}{buckets:>9,}" + "".join(f"{count:>9,}" for count in counts))
    return lines


def prepare_file(args):
    """Read `args.csv`, prepare it and write both files; returns the path of the csv.

    Raises:
        FileNotFoundError, ValueError: as `read_table` and `prepare`; or if other files are there.
    """
    name = args.name or args.csv.stem
    path, note = (args.data_dir / f"{name}.{suffix}" for suffix in ("csv", "json"))
    if path.resolve() == args.csv.resolve():
        raise ValueError(f"{path} is the given table itself: give another --name or --data_dir")
    held = [str(file) for file in (path, note) if file.exists()]
    if held and not args.overwrite:
        raise ValueError(f"{' and '.join(held)} exist: --overwrite replaces them, or give a --name")
    frame, form = read_table(args.csv, args.separator, args.decimal, args.missing, args.encoding)
    print(f"{args.csv}: {form}")
    table, preparation, lines = prepare(frame, args)
    preparation["source"] = {"file": args.csv.name, "sha256": sha256_of(args.csv)}
    print("\n".join(lines))
    write_atomically(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
    text = json.dumps(preparation, indent=1, ensure_ascii=False)
    write_atomically(note, text.encode() + b"\n")
    print(f"wrote {path} and {note}; next: python train.py --dataset {name}")
    return path


def prepare_once(csv, target, data_dir):
    """Prepare a table with the default flags if that has not been done; returns its name.

    Raises:
        ValueError: if another table, or another target, has been prepared under this name.
    """
    argv = ["--csv", str(csv), "--target", target, "--data_dir", str(data_dir)]
    args = parse_args(argv)
    note = args.data_dir / f"{args.csv.stem}.json"
    if not note.is_file():
        return prepare_file(args).stem
    preparation = json.loads(note.read_text(encoding="utf-8"))
    made_of = preparation["source"]["sha256"], preparation["target"]["name"]
    if made_of != (sha256_of(args.csv), target):
        raise ValueError(
            f"{note} is of another table or target than {csv} and {target!r}: `python prepare.py "
            "--overwrite` prepares it again, --name NAME under another name"
        )
    print(f"{note}: prepared before, taken as it is")
    return args.csv.stem


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
    width.add_argument("--bin_width", type=float, help="their width, in the target's unit")
    add(
        "--cap",
        type=int,
        help="most rows of a bucket in val, and in test [10 %% of the rows, >= 5]",
    )
    add("--many", type=int, help="many-shot: buckets with more training rows [a third of test]")
    add("--few", type=int, help="few-shot: buckets with fewer training rows [a third of test]")
    add("--seed", type=int, default=0, help="of the split")
    add("--overwrite", action="store_true", help="replace an earlier preparation")
    args = parser.parse_args(argv)
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
    if args.bin_width is not None and not 0 < args.bin_width < float("inf"):
        parser.error(f"--bin_width must be above 0, got {args.bin_width}")
    return args


def main(argv=None):
    """Prepare a table; returns the path of the csv."""
    return prepare_file(parse_args(argv))


if __name__ == "__main__":
    main()
