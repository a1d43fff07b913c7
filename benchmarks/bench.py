"""Run the benchmarks against plain loops one after the other and write benchmarks/README.md.

    python benchmarks/bench.py            # what `make bench` runs; about 6 minutes on two cores
    python benchmarks/bench.py fds dense  # only some, printed and not written

Each program measures both sides in turn in one process, so that a ratio compares like with like.
"""

import os
import platform
import subprocess
import sys
import time

from common import ROOT

PROGRAMS = {  # name: threads, title
    "fds": (2, "FDS on features"),
    "dense": (1, "Depth maps"),
    "loader": (2, "Batches of faces"),
    "sentences": (1, "Sentence pairs"),
}
TEXT = """# Benchmarks

Written by `make bench` at commit {commit}, in {minutes:.0f} minutes on a CPU ({machine}).
Each program times a plain way and ours in turn, in one process, and first checks that both give the
same numbers. Other machines give other milliseconds; the ratios carry over better. "A call for each
pixel" is how the released code finds the buckets of depths. Memory is the peak of a fresh process.

[SCALING.md](SCALING.md) says how costs grow with data, buckets and processes. `make gpu` measures
on a GPU.

The last change of these kernels (06db189 to 77e6bc1), measured when it was made: both sides in
turn in one process, one thread, the least of several runs. The last row (43e4b86) is the median of
five processes each:

| what | before | after |
|---|---:|---:|
| statistics of a depth map, 128 features a pixel | 2.9 ms | 2.5 ms |
| smooth 8 depth maps | 67 ms | 53 ms |
| the same, forward + backward | 124 ms | 94 ms |
| augment 32 depth pairs | 98 ms | 75 ms |
| FDS of 100,000 buckets x 64, tables of float32 | 12.6 | 12.0 |
| 256 x 3 x 224² bytes to float32, fresh memory in pages of 4 KiB and 2 MiB | 59 ms | 27 ms |

Statistics of depth maps miss their goal by far: the rest is reading the features and adding up
rows. The tables of 100,000 buckets are just above theirs. Ratios of what reads and writes much
memory differ from run to run, and are lower while others work. Runs gave 22 to 29 for the
statistics, 1.7 to 2.0 for smoothing with its backward pass, and 16.7 to 19.5 for augmented faces.

No speed-up is claimed for the first reading of word vectors. It takes longer than a plain loop over
the lines, because it checks them; the next run reads a cache.
"""


def measure(name):
    """Run one program; return its tables and its other lines, as lists."""
    environment = os.environ | {"OMP_NUM_THREADS": str(PROGRAMS[name][0])}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    tables = [line for line in lines if line.startswith("|")]
    return tables, [line for line in lines if not line.startswith("|")]


def page(measured, minutes):
    """Return the page of {name: (tables, other lines)}."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    parts = [TEXT.format(commit=commit, minutes=minutes, machine=cores)]
    for name, (tables, notes) in measured.items():
        threads, title = PROGRAMS[name]
        many = "thread" if threads == 1 else "threads"
        parts.append(f"## {title}\n\n`benchmarks/{name}.py`, {threads} {many}:\n")
        parts.append("\n".join(tables) + "\n")
        parts.append("```text\n" + "\n".join(notes) + "\n```\n")
    return "\n".join(parts)


def main(names):
    """Measure, and write the page if all programs were run."""
    started = time.monotonic()
    measured = {name: measure(name) for name in names or PROGRAMS}
    if not names:
        text = page(measured, (time.monotonic() - started) / 60)
        (ROOT / "benchmarks" / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
