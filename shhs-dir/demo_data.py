"""Simulate nights as SHHS stores them, so that the folder runs without SHHS.

It writes `<out>/shhs/polysomnography/edfs/shhs2/shhs2-<id>.edf` (EDF+, sleep stages as annotations)
and `<out>/shhs/datasets/shhs2-dataset-demo.csv` (`nsrrid,gh_s2`), from which `prepare.py` makes
`shhs.csv` as it does from the real files. The scores are skewed as the real ones are; nobody slept
these nights, and no number obtained on them says anything about health.

    # 1,600 nights of 6 minutes, 0.4 GB, two minutes of CPU time, shared among the processes
    python demo_data.py --out ./data --nights 1600 --minutes 6 --seed 0
    python prepare.py --min_minutes 3
"""

import argparse
import datetime
import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import program
from demo.night import BREATHING_RATE, EEG_RATE, FRAME_SECONDS, STAGES, draw_sleeper, make_night
from files import write_atomically

FIRST_ID = 900_000  # SHHS's own ids are from 200,000 on
EVENING = datetime.datetime(2000, 1, 1, 22)  # each file says so, so that it is the same each time
LIMITS = {"EEG": (400.0, "uV"), "ECG": (5.0, "mV")}  # largest value and unit
BREATHING_LIMIT = 10.0


def write_edf(path, stages, channels):
    """Write a night as EDF+.

    Args:
        path: of the file.
        stages: number of each frame's stage in STAGES.
        channels: `{label: samples}` as `demo.night.make_night` returns them.
    """
    import pyedflib

    headers = []
    for label in channels:
        limit, unit = LIMITS.get(label, (BREATHING_LIMIT, ""))
        rate = EEG_RATE if label in LIMITS else BREATHING_RATE
        headers.append({
            "label": label, "dimension": unit, "sample_frequency": rate, "physical_max": limit,
            "physical_min": -limit, "digital_max": 32767, "digital_min": -32768,
            "transducer": "simulated", "prefilter": "",
        })  # fmt: skip
    temporary = path.with_suffix(".tmp")
    with pyedflib.EdfWriter(str(temporary), len(channels), pyedflib.FILETYPE_EDFPLUS) as writer:
        writer.setSignalHeaders(headers)
        writer.setStartdatetime(EVENING)
        samples = [
            np.clip(channels[h["label"]], h["physical_min"], h["physical_max"]) for h in headers
        ]
        writer.writeSamples(samples)
        edges = np.flatnonzero(np.diff(stages, prepend=-1, append=-1))
        for start, end in itertools.pairwise(edges):
            onset = start * FRAME_SECONDS
            duration = (end - start) * FRAME_SECONDS
            writer.writeAnnotation(onset, duration, f"Sleep stage {STAGES[stages[start]]}")
    os.replace(temporary, path)


def make_file(index, folder, minutes, seed):
    """Simulate and write one night; returns id and score. It depends only on seed and number."""
    rng = np.random.default_rng([seed, index])
    traits, score = draw_sleeper(rng)
    # Nights differ in length, as real ones do.
    stages, channels = make_night(traits, minutes * rng.uniform(0.8, 1.2), rng)
    night = FIRST_ID + index
    write_edf(folder / f"shhs2-{night}.edf", stages, channels)
    return night, score


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--nights", type=int, default=1600, help="number of nights")
    parser.add_argument("--minutes", type=float, default=6.0, help="mean length of a night")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace the nights there")
    args = parser.parse_args(argv)
    for flag, least in (("nights", 1), ("minutes", 1), ("seed", 0), ("workers", 1)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be >= {least}")
    if args.nights >= 100_000:
        parser.error(f"--nights is {args.nights}: an id has room for 99,999")
    return args


def main(argv=None):
    """Write the nights, then the table of scores, and print the next command."""
    args = parse_args(argv)
    folder = args.out / "shhs" / "polysomnography" / "edfs" / "shhs2"
    held = list(folder.glob("*.edf"))
    foreign = [path.name for path in held if not path.name.startswith("shhs2-9")]
    if foreign:
        raise ValueError(f"{folder} holds other nights, as {foreign[0]!a}: give another --out")
    if held and not args.overwrite:
        raise ValueError(f"{folder} holds nights: replace them with --overwrite, or another --out")
    for path in held:
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(make_file, folder=folder, minutes=args.minutes, seed=args.seed)
    numbers = range(1, args.nights + 1)
    progress = partial(tqdm, total=args.nights, desc="nights", unit="night")
    if args.workers == 1:
        rows = list(progress(map(make, numbers)))
    else:
        with ProcessPoolExecutor(args.workers) as pool:
            rows = list(progress(pool.map(make, numbers, chunksize=4)))
    table = pd.DataFrame(rows, columns=["nsrrid", "gh_s2"])
    text = table.to_csv(index=False, lineterminator="\n")
    path = args.out / "shhs" / "datasets" / "shhs2-dataset-demo.csv"
    write_atomically(path, text.encode())
    print(f"wrote {args.nights:,} nights in {folder}, scores in {path}")
    print(f"next: python prepare.py --data_dir {args.out} --min_minutes {args.minutes / 2:g}")


if __name__ == "__main__":
    program.run(main)
