"""Kill runs of every folder at random steps, resume them, and compare with an unbroken run.

    python tests/kills.py --moments 24      # of each folder; minutes on two idle cores

A run is killed, resumed and killed again until it ends. Its weights, predictions and epochs must
then be those of the unbroken run, bit for bit. The counts go into benchmarks/RELIABILITY.md.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from conftest import ROOT, load
from contract import CONTRACTS
from test_contract import assert_same_run, only_run, start

sys.path.append(str(ROOT / "benchmarks"))

from reliability import write_section

SECTION = ROOT / "benchmarks" / "reliability" / "kills.json"
KINDS = {  # column of the table -> signals to choose from, flags
    "SIGKILL": (("SIGKILL",), ()),
    "SIGKILL, saved each step": (("SIGKILL",), ("--save_every", 1e-9)),
    "SIGTERM, SIGINT, SIGHUP": (("SIGTERM", "SIGINT", "SIGHUP"), ()),
}
STATISTICS = ("extra_pass", "online")
START = 1.0  # seconds; moments that wait for no step fall into the first of them
TEXT = """
`python tests/kills.py` ends runs of three epochs, resumes them and ends them again, until they are
through: {moments} moments in {minutes:.0f} minutes, with seed {seed}. A moment is drawn as a number
of steps and a time after the last of them. *In training* counts those that came after a step of
the process; the others fall into its start. *Within an epoch* counts how often a run resumed amid
one. Only runs that saved each step, or got a signal that can be heeded, do so.

Weights, predictions and lines of `epochs.jsonl` must then be those of an unbroken run, bit for bit.
Half of the runs take FDS's statistics in a pass of their own, half in the training pass.

`tests/test_contract.py` and `tests/test_within.py` have short forms. They also cover two processes
of which one gets a signal, a restart by torchrun, and two runs in one folder.
`tests/test_disk_full.py` fills a disk. Not covered: restarts over several machines, GPUs and NCCL,
power loss, Windows.
"""


def end_by(process, number):
    """Send a signal to a process and wait for its end; returns whether it was still at work."""
    if not process.is_alive():
        return False
    os.kill(process.pid, number)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError(f"signal {number} did not end the run")
    return True


def counting(contract, number):
    """Return train.py's `main`, an event that it sets in a step, and the seconds of a step.

    Args:
        contract: of the folder.
        number: of the step, counted from 1 over all passes of the process.
    """
    context = multiprocessing.get_context("fork")
    event, seconds = context.Event(), context.Value("d", 0.0)
    within = load(contract.folder, "within").Within
    after_step, done = within.after_step, 0

    def counted(self):
        nonlocal done
        done += 1
        if done == number:
            seconds.value = self.current.seconds["train"] / self.current.done
            event.set()
        after_step(self)

    def main(argv):
        with mock.patch.object(within, "after_step", counted):
            contract.train.main(argv)

    return main, event, seconds


def wait_for_moment(process, event, seconds, rng):
    """Wait for the event and up to two steps more; returns early where the process ends first."""
    begun = time.monotonic()
    while process.is_alive() and not event.wait(0.1):
        if time.monotonic() - begun > 600:
            raise RuntimeError("a step was not reached in ten minutes")
    process.join(rng.uniform(0, 2 * seconds.value))


def break_run(contract, data, store, kind, statistics, rng):
    """Break a run until it ends of itself.

    Returns:
        Counter of the times it was broken, by columns of the table.
    """
    signals, flags = KINDS[kind]
    more = (*contract.lines(3), *contract.lds_fds.split(), "--fds_stats", statistics, *flags)
    argv, counts, span = contract.argv(data, store, *more, "--resume"), Counter(), 6.0
    while True:
        number = int(rng.integers(0, span))
        main, event, seconds = counting(contract, number)
        process = start(main, argv)
        if number:
            wait_for_moment(process, event, seconds, rng)
        else:
            process.join(rng.uniform(0, START))
        name = signals[rng.integers(len(signals))]
        if not end_by(process, getattr(signal, name)):
            break
        counts[kind] += 1
        counts["in training"] += event.is_set()
        span *= 1.3  # lives that are too short for an epoch are followed by longer ones
    if process.exitcode:
        raise RuntimeError(f"the run ended with status {process.exitcode}")
    log = "".join(path.read_text() for path in only_run(store).glob("*.log"))
    resumed = [line for line in log.splitlines() if "Resuming from" in line]
    counts["within an epoch"] = sum("within_epoch.pth.tar" in line for line in resumed)
    return counts


def break_folder(contract, moments, rng, work):
    """Break a folder's runs; returns the counts of each column of the table."""
    (work / "data").mkdir()
    data, counts, whole = contract.make_data(work / "data"), Counter(), {}
    for statistics in STATISTICS:
        store = work / f"whole_{statistics}"
        more = (*contract.lines(3), *contract.lds_fds.split(), "--fds_stats", statistics)
        process = start(contract.train.main, contract.argv(data, store, *more))
        process.join()
        whole[statistics] = only_run(store)
    for number_of_kind, kind in enumerate(KINDS, start=1):
        number = 0
        while counts["in training"] < moments * number_of_kind / len(KINDS):
            statistics, store = STATISTICS[number % 2], work / "broken"
            counts += break_run(contract, data, store, kind, statistics, rng)
            try:
                assert_same_run(contract, only_run(store), whole[statistics])
            except AssertionError as error:
                print(f"{contract.folder}, {kind}, {statistics}: {error}", flush=True)
                counts["differ"] += 1
            shutil.rmtree(store)
            number += 1
        print(contract.folder, dict(counts), flush=True)
    return counts


def write(row, minutes, seed):
    """Write one folder's row of the page; the others stay as they are.

    Args:
        row: dictionary of the columns of the table.
        minutes: that the folder took.
        seed: of the moments.
    """
    before = json.loads(SECTION.read_text(encoding="utf-8")) if SECTION.is_file() else {}
    kept = {line[0]: line for line in before.get("table", ())} if "minutes" in before else {}
    kept[row["folder"]] = list(row.values())
    took = {**before.get("minutes", {}), row["folder"]: minutes}
    rows = [kept[contract.folder] for contract in CONTRACTS if contract.folder in kept]
    kinds = slice(1, 1 + len(KINDS))
    moments = sum(sum(line[kinds]) for line in rows)
    text = TEXT.format(moments=moments, minutes=sum(took.values()), seed=seed)
    table = [list(row), *rows]
    write_section("kills", 2, "Runs that are killed or stopped", text, table, minutes=took)


def main(argv=None):
    """Break the runs of the folders, and write the section of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=24, help="in training, of each folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folders", nargs="*", help="these alone; the others' rows stay")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    differ = 0
    for number, contract in enumerate(CONTRACTS, start=1):
        if args.folders and contract.folder not in args.folders:
            continue
        begun, rng = time.monotonic(), np.random.default_rng([args.seed, number])
        with (
            tempfile.TemporaryDirectory() as work,
            mock.patch.object(contract.train.report, "draw_run"),
        ):
            counts = break_folder(contract, args.moments, rng, Path(work))
        differ += counts["differ"]
        columns = (*KINDS, "in training", "within an epoch", "differ")
        row = {"folder": contract.folder, **{column: counts[column] for column in columns}}
        write(row, (time.monotonic() - begun) / 60, args.seed)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
