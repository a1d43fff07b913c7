"""What the benchmarks share: alternating timings, a table of ratios, trainings, kept lines."""

import contextlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
os.environ.setdefault("TQDM_DISABLE", "1")  # no bars among the figures

from load import exposed, load  # noqa: E402 - found through the line above

__all__ = [
    "exposed", "keep", "load", "medians", "peak_of", "prepare", "print_peak", "show", "trained"
]  # fmt: skip


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


def prepare(train, file, name, seed):
    """Prepare a set of a sweep's table as the sweep does, unless that was done.

    Args:
        train: a folder's train.py as a module; the working directory is that folder.
        file: the table's name in results/tables.
        name, seed: of the set and the run.
    """
    table = tomllib.loads((ROOT / "results/tables" / file).read_text(encoding="utf-8"))
    known = {**table["sets"][name], "set": name, "seed": seed}
    if not Path(table["prepared"].format_map(known)).is_file():
        train.prepare.main(shlex.split(table["prepare"].format_map(known)))


@contextlib.contextmanager
def trained(train, flags):
    """Train in silence with one thread of the processor, and forget the checkpoints afterwards.

    Args:
        train: a folder's train.py as a module; the working directory is that folder.
        flags: text.

    Yields:
        The run folder, and its `results.json` as a dictionary.
    """
    unseen = io.StringIO()
    train.torch.set_num_threads(1)  # another number gives other last digits
    fixed = ["--device", "cpu", "--track", "none"]
    with tempfile.TemporaryDirectory() as store:
        with contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
            train.main([*flags.split(), "--store_root", store, *fixed])
        (run,) = Path(store).iterdir()
        yield run, json.loads((run / "results.json").read_text(encoding="utf-8"))


def keep(folder, name, method, flags, result, **figures):
    """Add a line to a set's file, which `evidence.runs_of_set` reads.

    Args:
        folder, name: of the file and the set.
        method, flags: what was trained.
        result: its `results.json`.
        **figures: what was measured.
    """
    line = {"method": method, "flags": flags}
    line |= {key: result[key] for key in ("seed", "commit", "device", "wall_seconds")}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line | figures) + "\n")
