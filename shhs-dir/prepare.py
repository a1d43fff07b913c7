"""Nights of SHHS: EDF files and a table of scores -> `<data_dir>/shhs.csv` and nights as HDF5.

Each recording becomes `<data_dir>/nights/<id>.h5` (spectrograms of EEG and ECG, breathing; see
`night_signals.py`); `shhs.csv` (`id,score,path,split`) lists those that can be used and
`skipped.csv` (`id,path,reason,detail`) all others. Validation and test are balanced over the
scores. A stopped run is resumed; a night is made again if its file (size, time of change),
--min_minutes or --unit has changed since.

    python prepare.py                                     # what download.py or demo_data.py wrote
    python prepare.py --raw /data/shhs --covariates scores.csv --score_column gh
    python prepare.py --check                             # verifies shhs.csv

No official split exists: a seeded draw per score, with a cap that brings about 14 % of the nights
to validation and as many to test, as in the paper's set (1,892 / 369 / 369, from notes, not
verified).
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

import program
from datasets import SCORE, SPLITS, Nights, read_meta
from edf_night import Fault, source_of
from fetch import sole_use
from files import write_atomically
from held_out import add_held_out, check_held_out, describe_split
from night_file import has_seal, write_night
from own_signals import (
    add_signals,
    check_signals,
    least_minutes,
    signals_of,
    with_common_units,
    words_of,
)
from recordings import SUFFIXES, VERSION, read_recording
from score_table import EXPECTED, SCORE_COLUMNS, read_scores, split_by_flags
from target import add_target, check_target

EDF_NAME = "shhs2-{id}.edf"  # of SHHS's files
SKIPPED = ["id", "path", "reason", "detail"]  # columns of skipped.csv


def find_files(raw, suffix, scores):
    """Return {name in lower case: path} of files with a suffix below a folder, but their scores."""
    files = {}
    for folder, _, names in os.walk(raw):
        for name in sorted(names):
            path = Path(folder) / name
            if name.lower().endswith(suffix) and path.resolve() != scores.resolve():
                if name.lower() in files:
                    raise ValueError(f"{files[name.lower()]} and {path} have one name: keep one")
                files[name.lower()] = path
    if not files:
        raise FileNotFoundError(
            f"no {suffix} file below {raw}: `python download.py` says how to get the nights, "
            "`python demo_data.py` writes simulated ones"
        )
    return files


def version_of(path):
    """Return a sort key that puts 0.10 behind 0.9: a name's whole numbers, then the name."""
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


def choose_nights(table, files, template, target=SCORE):
    """Return the rows that have one file and a score, with `file`, and the others' faults.

    Returns:
        DataFrame (id, score, file) and a list of (id, path, reason, detail).
    """
    skipped = []
    kept = []
    used = set()
    names = [template.replace("{id}", night).lower() for night in table["id"]]
    times = Counter(names)  # ids that differ only in case would share a file
    for number, (night, score, name) in enumerate(zip(table["id"], table["score"], names)):
        file = files.get(name)
        used.add(name)
        fault = None
        if not re.fullmatch(r"[\w-]+", night):
            fault = ("id", f"{night!r} in line {number + 2} is no id of letters, digits, _ and -")
        elif times[name] > 1:
            fault = ("duplicate_id", f"line {number + 2} is one of several")
        elif file is None:
            fault = ("no_file", f"{name} is not there")
        elif not np.isfinite(score):
            fault = ("no_score", f"the {target.name} is missing or no number")
        elif not target.low <= score <= target.high:
            fault = ("score_range", f"{score} is outside {target.range}")
        if fault:
            skipped.append((night, str(file or ""), *fault))
        else:
            kept.append((night, float(score), file))
    skipped += [("", str(files[k]), "no_row", "no such id") for k in sorted(set(files) - used)]
    return pd.DataFrame(kept, columns=["id", "score", "file"]), skipped


def prepare_night(task):
    """Make one night; returns (reason, detail, '') of its fault, or ('', what it lacks, units)."""
    file, target, signals, min_minutes, unit = task
    layout = words_of(signals)
    try:
        source = source_of(file, min_minutes, unit, layout and f" {layout} {VERSION}")
        # A damaged one is made again.
        with contextlib.suppress(OSError, KeyError, ValueError), h5py.File(target) as made:
            has_seal(made.attrs)  # an error if it is another's
            if made.attrs["source"] == source:
                return "", made.attrs["lacking"], made.attrs.get("units", "")
        night = read_recording(file, signals, min_minutes, unit)
    except Fault as fault:
        target.unlink(missing_ok=True)  # made from the file as it was before
        return fault.reason, fault.detail, ""
    write_night(target, night, source, layout)
    return "", night["lacking"], night.get("units", "")


def end_with_parent():
    """Let a worker end with prepare.py, even if that is killed and cannot stop it."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_nights(args, nights):
    """Make all nights in parallel; returns what `prepare_night` does of each, in order."""
    folder = args.data_dir / "nights"
    what = f"{args.noun}s"
    how = signals_of(args), args.min_minutes, args.signal_unit
    tasks = [(file, folder / f"{n}.h5", *how) for n, file in zip(nights["id"], nights["file"])]
    if args.workers == 1:
        return [prepare_night(task) for task in tqdm(tasks, what, unit=args.noun)]
    # A worker holds one night at a time.
    with ProcessPoolExecutor(args.workers, initializer=end_with_parent) as pool:
        try:
            return list(tqdm(pool.map(prepare_night, tasks), what, len(tasks), unit=args.noun))
        except BrokenProcessPool:
            raise ValueError(
                "a worker was ended from outside, as where memory runs out: those made are kept, "
                f"give the command again with fewer than --workers {args.workers}"
            ) from None


def report_counts(args, meta, skipped, lacking):
    """Print the recordings by split, and what was left out or is incomplete."""
    counts = Counter(meta["split"])
    target = SCORE.of(args)
    own = target.own or args.channels or args.edf_name != EDF_NAME
    for name in SPLITS:
        paper = "" if own else f"   paper (from notes, not verified) {EXPECTED[name]:,}"
        print(f"{name:>6} {counts[name]:>6,}{paper}")
    if own and {"train", "test"} <= {*counts}:
        describe_split(target, meta["score"], meta["split"], args)
    for what, found in (("left out", [row[2] for row in skipped]), ("incomplete", lacking)):
        for reason, number in Counter(filter(None, found)).most_common():
            print(f"{what}: {number:,} {reason}")


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default="./data", help="folder of shhs.csv and nights/")
    add("--raw", type=Path, help="folder below which the .edf files lie [<data_dir>/shhs]")
    add("--covariates", type=Path, help="scores [newest <raw>/datasets/shhs2-dataset*.csv]")
    add("--id_column", default="nsrrid", help="column of the ids")
    add("--score_column", help=f"column of the scores [--target, or {' or '.join(SCORE_COLUMNS)}]")
    add("--edf_name", "--file_name", default=EDF_NAME, help="name of an id's file")
    unit_help = "of EEG, ECG or own channels if a file says none; the score's is a flag of train.py"
    add("--unit", dest="signal_unit", default="", choices=("", "uV", "mV", "V"), help=unit_help)
    # The target's unit changes no file.
    add_target(lambda flag, **facts: flag == "--unit" or add(flag, **facts), SCORE)
    minutes_help = "a shorter recording is left out [120, of your own signals one frame]"
    add("--min_minutes", type=float, help=minutes_help)
    add_signals(add)
    add("--cap", type=int, help="most of a bucket in val, and in test [about 14 %% in each]")
    add_held_out(add, "--cap", "none")
    add("--seed", type=int, default=666, help="of the split")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes, a night each")
    add("--overwrite", action="store_true", help="replace an existing shhs.csv")
    add("--allow_outside", action="store_true", help="with --check: nights may lie elsewhere")
    add("--check", action="store_true", help="check shhs.csv and its nights, write nothing")
    args = parser.parse_args(argv)
    if "{id}" not in args.edf_name or args.workers < 1 or (args.cap is not None and args.cap < 1):
        parser.error("--edf_name must hold {id}; --workers and --cap must be 1 or more")
    check_target(parser, args, SCORE)
    check_signals(parser, args)
    check_held_out(parser, args, None, False)
    suffix = Path(args.edf_name).suffix.lower()
    if suffix not in (SUFFIXES if args.channels else (".edf",)):
        parser.error(
            f"--file_name must end in .edf or, with --channels, .csv or .npy: got {suffix}"
        )
    args.min_minutes = least_minutes(args.min_minutes, signals_of(args))
    args.score_column = args.score_column or args.target
    args.noun = "recording" if args.channels else "night"
    args.raw = args.raw or args.data_dir / "shhs"
    return args


def main(argv=None):
    """Make the nights and the meta file, or check them; returns the exit status."""
    args = parse_args(argv)
    path = args.data_dir / "shhs.csv"
    target = SCORE.of(args)
    if args.check:
        meta = read_meta(args.data_dir, target)
        nights = Nights(args.data_dir, meta["path"], args.allow_outside, signals_of(args))
        for row in tqdm(range(len(meta)), f"{args.noun}s", unit=args.noun):
            nights.read([row])  # which verifies its checksums
        report_counts(args, meta, [], [])
        return 0
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: verify it with --check or replace it with --overwrite")
    tables = sorted((args.raw / "datasets").glob("shhs2-dataset*.csv"), key=version_of)
    covariates = args.covariates or (tables or [args.raw / "datasets" / "shhs2-dataset.csv"])[-1]
    table = read_scores(covariates, args.id_column, args.score_column)
    files = find_files(args.raw, Path(args.edf_name).suffix.lower(), covariates)
    nights, skipped = choose_nights(table, files, args.edf_name, target)
    with sole_use(args.data_dir / "nights"):
        results = with_common_units(prepare_nights(args, nights), signals_of(args))
    for (night, _, file), (reason, detail) in zip(nights.itertuples(index=False), results):
        if reason:
            skipped.append((night, str(file), reason, detail))
    text = pd.DataFrame(skipped, columns=SKIPPED).to_csv(index=False, lineterminator="\n")
    with sole_use(args.data_dir):
        write_atomically(args.data_dir / "skipped.csv", text.encode())
    usable = np.array([not reason for reason, _ in results], dtype=bool)
    meta = nights.loc[usable, ["id", "score"]].reset_index(drop=True)
    meta["path"] = [f"nights/{night}.h5" for night in meta["id"]]
    if meta.empty:
        raise ValueError(f"no {args.noun} can be used: {args.data_dir / 'skipped.csv'} says why")
    meta["split"], most = split_by_flags(meta["score"], args, target)
    with sole_use(args.data_dir):
        write_atomically(path, meta.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {path}, {len(meta):,} {args.noun}s, {most}")
    report_counts(args, meta, skipped, [lacking for reason, lacking in results if not reason])
    return 0


if __name__ == "__main__":
    program.run(main)
