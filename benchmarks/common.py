"""What the benchmarks share: alternating timings, a table of ratios, trainings, kept lines."""

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
os.environ.setdefault("TQDM_DISABLE", "1")  # no bars among the figures

from load import exposed, load  # noqa: E402 - found through the line above

__all__ = ["exposed", "keep", "load", "medians", "peak_of", "print_peak", "show", "trained"]


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
    """Print rows of (what, plain seconds, our seconds, goal) as a Markdown table; also as JSON."""
    print("| what | plain ms | ours ms | ratio | goal |\n|---|---:|---:|---:|---|")
    for what, plain, ours, goal in rows:
        print(f"| {what} | {1e3 * plain:.2f} | {1e3 * ours:.2f} | {plain / ours:.1f} | {goal} |")
    print()
    if path:
        keys = ("what", "plain_seconds", "our_seconds", "goal")
        lines = [json.dumps(dict(zip(keys, row)) | {"ratio": row[1] / row[2]}) for row in rows]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def peak_of(file, what):
    """Return the MiB by which a benchmark's `--memory_of what` raises a fresh process's peak."""
    command = [sys.executable, file, "--memory_of", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(prepare, call):
    """Print how far a call raises this process's peak above what it holds before (Linux)."""
    given = prepare()

    def status(key):
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{key}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = status("VmRSS")
    result = call(*given)
    print(status("VmHWM") - before)
    return result


@contextlib.contextmanager
def trained(train, flags):
    """Train in silence, and forget the checkpoints afterwards.

    Args:
        train: a folder's train.py as a module; the working directory is that folder.
        flags: text.

    Yields:
        The run folder, and its `results.json` as a dictionary.
    """
    unseen = io.StringIO()
    with tempfile.TemporaryDirectory() as store:
        with contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
            train.main([*flags.split(), "--store_root", store, "--track", "none"])
        (run,) = Path(store).iterdir()
        yield run, json.loads((run / "results.json").read_text(encoding="utf-8"))


def keep(path, line):
    """Add a dictionary to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
