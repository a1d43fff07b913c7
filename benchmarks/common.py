"""What the benchmarks share: alternating timings, a table of ratios, loading a folder's file."""

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from load import load  # noqa: E402 - found through the line above

__all__ = ["load", "medians", "show"]


def medians(functions, runs=5, synchronize=lambda: None, warm=True):
    """Time functions in turn, so that a busy machine slows all alike.

    With `warm` a short one is called once more, unmeasured, before each measured call: what ran in
    between has taken the processor's cache, and on some machines memory, away from it.

    Returns:
        Median seconds of each, after one unmeasured call of each.
    """
    seconds = [[] for _ in functions]
    for run in range(runs + 1):
        for function, times in zip(functions, seconds):
            if warm and times and times[-1] < 0.5:
                function()
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if run:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def show(rows, path=None):
    """Print rows of (what, plain seconds, our seconds, goal) with their ratio; also as JSON."""
    print(f"{'what':<58}{'plain ms':>10}{'ours ms':>10}{'ratio':>8}  goal")
    for what, plain, ours, goal in rows:
        print(f"{what:<58}{1e3 * plain:>10.2f}{1e3 * ours:>10.2f}{plain / ours:>8.1f}  {goal}")
    if path:
        keys = ("what", "plain_seconds", "our_seconds", "goal")
        lines = [json.dumps(dict(zip(keys, row)) | {"ratio": row[1] / row[2]}) for row in rows]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
