"""Kill runs of every folder at random moments, resume them, and compare with an unbroken run.

    python tests/kills.py --moments 21      # of each folder; minutes on two idle cores

A run is killed, resumed and killed again until it ends. Its weights, predictions and epochs must
then be those of the unbroken run, bit for bit. The counts go into benchmarks/RELIABILITY.md.
"""

import argparse
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

from conftest import ROOT
from contract import CONTRACTS
from test_contract import assert_same_run, only_run, start

sys.path.append(str(ROOT / "benchmarks"))

from reliability import write_section

KINDS = {  # column of the table -> signals to choose from, flags
    "SIGKILL": (("SIGKILL",), ()),
    "SIGKILL, saved each step": (("SIGKILL",), ("--save_every", 1e-9)),
    "SIGTERM, SIGINT, SIGHUP": (("SIGTERM", "SIGINT", "SIGHUP"), ()),
}
STATISTICS = ("extra_pass", "online")
TEXT = """
`python tests/kills.py` ends runs of three epochs at random moments, resumes them and ends them
again, until they are through: {moments} moments in {minutes:.0f} minutes, with seed {seed}.
Weights, predictions and lines of `epochs.jsonl` must then be those of an unbroken run, bit for bit.
Half of the runs take FDS's statistics in a pass of their own, half in the training pass. *Within an
epoch* counts how often a run resumed amid one; many moments fall into the start of a process.

`tests/test_contract.py` and `tests/test_within.py` have short forms. They also cover two processes
of which one gets a signal, a restart by torchrun, and two runs in one folder.
`tests/test_disk_full.py` fills a disk. Not covered: GPUs and NCCL, power loss, Windows.
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


def break_run(contract, data, store, kind, statistics, rng):
    """Break a run until it ends of itself.

    Returns:
        Number of times it was broken, and of those in which it resumed within an epoch.
    """
    signals, flags = KINDS[kind]
    more = (*contract.lines(3), *contract.lds_fds.split(), "--fds_stats", statistics, *flags)
    argv, broken, span = contract.argv(data, store, *more, "--resume"), 0, 0.5
    while True:
        process, begun = start(contract.train.main, argv), time.monotonic()
        # A life that is too short for an epoch is followed by longer ones.
        process.join(rng.uniform(0, span))
        number = getattr(signal, signals[rng.integers(len(signals))])
        if not end_by(process, number):
            break
        broken += 1
        span = min(1.3 * span, 60)
        if time.monotonic() - begun > 600:
            raise RuntimeError("a life took ten minutes")
    if process.exitcode:
        raise RuntimeError(f"the run ended with status {process.exitcode}")
    log = "".join(path.read_text() for path in only_run(store).glob("*.log"))
    resumed = [line for line in log.splitlines() if "Resuming from" in line]
    return broken, sum("within_epoch.pth.tar" in line for line in resumed)


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
    for kind in KINDS:
        number = 0
        while counts[kind] < -(-moments // len(KINDS)):
            statistics, store = STATISTICS[number % 2], work / "broken"
            broken, within = break_run(contract, data, store, kind, statistics, rng)
            counts[kind] += broken
            counts["within an epoch"] += within
            try:
                assert_same_run(contract, only_run(store), whole[statistics])
            except AssertionError as error:
                print(f"{contract.folder}, {kind}, {statistics}: {error}", flush=True)
                counts["differ"] += 1
            shutil.rmtree(store)
            number += 1
        print(contract.folder, dict(counts), flush=True)
    return counts


def main(argv=None):
    """Break the runs of the folders, and write the section of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=21, help="of each folder, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folders", nargs="*", help="these alone; then no page is written")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun, columns = time.monotonic(), (*KINDS, "within an epoch", "differ")
    table, total = [["folder", *columns]], Counter()
    for contract in CONTRACTS:
        if args.folders and contract.folder not in args.folders:
            continue
        rng = np.random.default_rng([args.seed, len(table)])
        with (
            tempfile.TemporaryDirectory() as work,
            mock.patch.object(contract.train.report, "draw_run"),
        ):
            counts = break_folder(contract, args.moments, rng, Path(work))
        total += counts
        table.append([contract.folder, *(counts[column] for column in columns)])
    if not args.folders:
        minutes, moments = (time.monotonic() - begun) / 60, sum(total[kind] for kind in KINDS)
        text = TEXT.format(moments=moments, minutes=minutes, seed=args.seed)
        write_section("kills", 2, "Runs that are killed or stopped", text, table)
    return int(total["differ"] > 0)


if __name__ == "__main__":
    sys.exit(main())
