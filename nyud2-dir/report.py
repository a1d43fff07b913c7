"""Figures and tables of finished runs, from what train.py leaves in a run folder.

Nothing here knows a benchmark: the target, its unit and the metrics come from `results.json`.

    python report.py RUN                              # figures into RUN/figures, a table of one run
    python report.py RUN_A RUN_B --table both.md      # a table of two, with all digits in both.csv
    python report.py RUN --anchor 30                  # similarity of feature statistics to label 30
"""

import argparse
from pathlib import Path

import program

# ---- command line --------------------------------------------------------------------------


def parse_args(argv=None):
    """Read the command line."""
    usage = "%(prog)s RUN_FOLDER ... [flags]   (--help lists them)"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_FOLDER", help="folder written by train.py")
    add("--out", type=Path, metavar="DIR", help="figures into DIR/<run name>, not <run>/figures")
    add("--split", choices=("val", "test"), default="test", help="set to report (default: test)")
    add("--table", type=Path, metavar="FILE.md", help="write the table there and to FILE.csv")
    add("--anchor", type=float, metavar="LABEL", help="label to whose bucket FDS's are compared")
    add("--debug", action="store_true", help="show where a mistake was noticed")
    args = parser.parse_args(argv)
    if args.table and args.table.suffix != ".md":
        parser.error(f"--table must name a file that ends in .md, got {args.table}")
    names = [Path(folder).resolve().name for folder in args.runs]
    if args.out and len(set(names)) < len(names):
        parser.error(f"--out needs run folders of different names, got {', '.join(names)}")
    return args


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below

import functools
import json
import re
import sys
import zlib

import numpy as np
import pandas as pd

import outside
from figures import METRICS, SHOTS, make_figures
from files import write_atomically
from run_files import AGAIN, load_run

# Flags that say where a run ran, not what it trained: they do not part the seeds of one method.
# Newer results name them as `place_flags`.
FORMER_PLACE_FLAGS = (
    "resume overwrite evaluate eval_model store_root store_name suffix name log_file print_freq "
    "workers cache track device gpu cuda"
).split()

# ---- figures --------------------------------------------------------------------------------


def draw_run(run_folder, out=None, split="test", anchor=None):
    """Draw those figures of a run for which it has the files.

    Args:
        run_folder: folder of the run.
        out: folder for the figures; default: `figures` in the run folder.
        split: 'val' or 'test', whose predictions are drawn.
        anchor: label to whose bucket `fds_similarity.png` compares the others; default: the one
            with the most samples.

    Returns:
        List of the paths written.

    Raises:
        FileNotFoundError, ValueError: as `load_run`; for a split without predictions or an anchor
            without samples.
    """
    run = load_run(run_folder)
    out = Path(out) if out else run["folder"] / "figures"
    try:
        figures = make_figures(run, split, anchor)
        for name, fig in figures.items():
            draw = functools.partial(fig.savefig, format="png")
            write_atomically(out / f"{name}.png", draw)
    except (ValueError, OSError):  # which say what is wrong
        raise
    except Exception as error:  # of files that hold what no run writes
        raise ValueError(f"{run['folder']} is damaged ({outside.shown(error)}): {AGAIN}") from error
    return [out / f"{name}.png" for name in figures]


# ---- tables --------------------------------------------------------------------------------


def flags_older_runs_lack(runs):
    """Return the flags that some runs lack and all others leave at one value, their default.

    They came later. Older runs do not say which flags they change: the value is the default then.
    """
    values = {}
    changed = {flag for run in runs for flag in run.get("changed_flags", ())}
    for run in runs:
        for key, value in run["config"].items():
            values.setdefault(key, []).append(json.dumps(value))
    shared = {key for key, own in values.items() if len(own) < len(runs) and len(set(own)) == 1}
    return shared - changed


def short(value):
    """Return a flag's value, or of a dictionary, such as a table's preparation, a checksum."""
    return f"{zlib.crc32(json.dumps(value).encode()):08x}" if isinstance(value, dict) else value


def group_seeds(runs):
    """Return {name of the row: its runs}, a row being one method and configuration."""
    benchmarks = ", ".join(sorted({run["benchmark"] for run in runs}))
    if not runs or benchmarks != runs[0]["benchmark"]:
        raise ValueError(f"a table takes runs of one benchmark, got {benchmarks or 'no run'}")
    targets = {f"{run['target']['name']} {run['target'].get('unit', '')}".strip() for run in runs}
    if len(targets) > 1:
        raise ValueError(f"a table takes runs of one target, got {', '.join(sorted(targets))}")
    groups = {}
    lacking = {
        method: flags_older_runs_lack([run for run in runs if run["method"] == method])
        for method in {run["method"] for run in runs}
    }
    for run in runs:
        left_out = {"seed", *FORMER_PLACE_FLAGS, *run.get("place_flags", ())}
        left_out |= lacking[run["method"]]
        config = {key: value for key, value in run["config"].items() if key not in left_out}
        # The path of another run, as in --pretrained, may differ only in that run's seed.
        config = re.sub(r"_seed_\d+", "", json.dumps(config, sort_keys=True))
        groups.setdefault((run["method"], config), []).append(run)
    rows = {}
    for (method, config), row in groups.items():
        seeds = [run["seed"] for run in row]
        if len(set(seeds)) < len(seeds):
            folders = ", ".join(str(run["folder"]) for run in row)
            raise ValueError(f"{method} has the seeds {seeds} in {folders}: give each seed once")
        others = [json.loads(other) for name, other in groups if name == method]
        flags = {key: short(value) for key, value in json.loads(config).items()}.items()
        others = [{key: short(value) for key, value in other.items()} for other in others]
        own = [f"{key} {value}" for key, value in flags if any(o.get(key) != value for o in others)]
        rows[f"{method} ({', '.join(own)})" if own else method] = row
    return rows


def fill_table(runs, split):
    """Return the table as {header: [(text, is it the best?) of each row]} and as a DataFrame."""
    for run in runs:
        if split not in run["metrics"]:
            held = ", ".join(run["metrics"])
            raise ValueError(f"{run['folder']} has metrics of {held}, none of {split}: see --split")
    names, rows = zip(*group_seeds(runs).items())
    columns = {"method": [(name, False) for name in names]}
    frame = pd.DataFrame({"benchmark": runs[0]["benchmark"], "split": split, "method": names})
    for metric in runs[0]["main_metrics"]:
        for shot in SHOTS:
            values = [[run["metrics"][split][shot][metric] for run in row] for row in rows]
            values = [pd.Series(seeds, dtype=float) for seeds in values]
            frame[f"{metric}_{shot}"] = [seeds.mean(skipna=False) for seeds in values]
            frame[f"{metric}_{shot}_std"] = [seeds.std(ddof=1, skipna=False) for seeds in values]
        # The paper gives ages with two digits, and depth and similarity, which are small, with 3.
        digits = 2 if frame[[f"{metric}_{shot}" for shot in SHOTS]].max(axis=None) >= 2.5 else 3
        for shot, shown in SHOTS.items():
            both = frame[[f"{metric}_{shot}", f"{metric}_{shot}_std"]]
            texts = both.map(f"{{:.{digits}f}}".format)
            means = texts[f"{metric}_{shot}"].astype(float)
            best = means.max() if metric in runs[0]["higher_is_better"] else means.min()
            cells = columns[f"{METRICS.get(metric, (metric,))[0]} {shown}"] = []
            for row, mean, (text, std) in zip(rows, means, texts.to_numpy()):
                if len(row) > 1:
                    text += f" ± {std}"
                if not any(run["metrics"][split][shot]["num_samples"] for run in row):
                    text = "–"
                cells.append((text, len(rows) > 1 and bool(mean == best)))
    frame["seeds"] = [len(row) for row in rows]
    frame["minutes"] = [np.mean([run["wall_seconds"] for run in row]) / 60 for row in rows]
    columns["seeds"] = [(str(number), False) for number in frame["seeds"]]
    columns["minutes"] = [(f"{minutes:.1f}", False) for minutes in frame["minutes"]]
    for key in ("seed", "commit", "command"):
        frame[key] = ["; ".join(str(run.get(key)) for run in row) for row in rows]
    return columns, frame


def make_table(runs, split="test"):
    """Make one table of runs of a benchmark: a row per method, mean ± std over its seeds.

    Args:
        runs: list of what `load_run` returns.
        split: 'val' or 'test'.

    Returns:
        The table in Markdown, and a DataFrame of all digits with seeds, commits and commands. Of
        two rows or more the best of a column is bold, and all that print alike with it; std is the
        sample standard deviation; a shot without samples is a dash, and NaN is `nan`.

    Raises:
        ValueError: for several benchmarks or targets, a seed given twice, a split that a run lacks.
    """
    columns, frame = fill_table(runs, split)
    lines = [list(columns), ["---"] + ["---:"] * (len(columns) - 1)]
    for row in zip(*columns.values()):
        # A bar in a name would begin another cell.
        texts = [(outside.shown(text).replace("|", "\\|"), best) for text, best in row]
        lines.append([f"**{text}**" if best else text for text, best in texts])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines), frame


def plain_table(columns, terminal):
    """Return the table in aligned text: its best cells are bold in a terminal, else starred."""
    aligned = []
    for header, cells in columns.items():
        star = any(best for _, best in cells) and not terminal
        texts = [header] + [outside.shown(text) + " *"[best] * star for text, best in cells]
        width = max(map(len, texts))
        texts = [text.ljust(width) if header == "method" else text.rjust(width) for text in texts]
        bold = [False] + [best and terminal for _, best in cells]
        aligned.append([f"\033[1m{text}\033[0m" if b else text for text, b in zip(texts, bold)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*aligned))


# ---- main ----------------------------------------------------------------------------------


def main(argv=None):
    """Draw each run given, print their table and write it if asked to."""
    args = parse_args(argv)
    runs = [load_run(folder) for folder in args.runs]
    markdown, frame = make_table(runs, args.split)
    for run in runs:
        out = args.out / run["folder"].name if args.out else None
        for path in draw_run(run["folder"], out, args.split, args.anchor):
            print(path)
    print(plain_table(fill_table(runs, args.split)[0], sys.stdout.isatty()))
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(markdown, encoding="utf-8", newline="\n")
        frame.to_csv(args.table.with_suffix(".csv"), index=False, lineterminator="\n")


if __name__ == "__main__":
    program.run(main)
