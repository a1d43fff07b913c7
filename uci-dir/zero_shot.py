"""Zero-shot labels in finished runs: a table by region, and the gain of each bucket as a figure.

    python zero_shot.py checkpoint/VANILLA checkpoint/LDS checkpoint/LDS_FDS --out gain.png

The runs are of data prepared with `--curate`. The first one's method is what the others are
compared with; several seeds of a method are averaged.
"""

import argparse
from pathlib import Path

import numpy as np

import figures
import program
import report
from regions import REGIONS

PARTS = {"overall": "all", **{region: region.replace("_", " ") for region in REGIONS}}


def make_table(runs, split="test"):
    """Return the table in Markdown: a row per method, by region, mean ± std over the seeds.

    Args:
        runs: list of what `report.load_run` returns.
        split: 'val' or 'test'.

    Raises:
        ValueError: for a run without zero-shot labels.
    """
    for run in runs:
        if REGIONS[0] not in run["metrics"][split]:
            raise ValueError(f"{run['folder']} has no zero-shot labels: see prepare.py --curate")
    metrics = runs[0]["main_metrics"]
    names = [figures.METRICS.get(metric, (metric,))[0] for metric in metrics]
    lines = [["method", *(f"{name} {part}" for name in names for part in PARTS.values()), "seeds"]]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for method, row in report.group_seeds(runs).items():
        cells = [method]
        for metric in metrics:
            for part in PARTS:
                values = [run["metrics"][split][part] for run in row]
                held = values[0]["num_samples"] > 0
                values = np.array([value[metric] for value in values], dtype=float)
                spread = f" ± {values.std(ddof=1):.2f}" if len(row) > 1 else ""
                cells.append(f"{values.mean():.2f}{spread}" if held else "–")
        lines.append([*cells, str(len(row))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def errors_of(row, edges, split):
    """Return the MAE of each bucket [B], mean over a method's runs, NaN where no test label is."""
    values = np.full((len(row), len(edges)), np.nan)
    for number, run in enumerate(row):
        table = run["predictions"]
        table = table[table["split"] == split]
        errors = figures.error_by_label(table["label"], table["prediction"], edges)
        values[number, errors.index] = errors["mae"]
    return values.mean(axis=0)


def draw_gain(runs, split="test"):
    """Return the figure: how much lower than the first method's each bucket's MAE is.

    Args:
        runs, split: as for `make_table`; each run with predictions and label density.
    """
    density, labels = runs[0]["label_density"], runs[0]["predictions"]["label"]
    edges, counts = density["label"].to_numpy(), density["count"].to_numpy()
    width = edges[1] - edges[0]  # buckets are equal; those without training may lie beyond them
    below = int(max(0, np.ceil((edges[0] - labels.min()) / width)))
    above = int(max(0, np.floor((labels.max() - edges[-1]) / width)))
    edges = edges[0] + width * np.arange(-below, len(edges) + above)
    counts = np.pad(counts, (below, above))
    plain, *others = report.group_seeds(runs).items()
    fig, [[ax]] = figures.new_figure(runs[0], title=f"\nMAE of {plain[0]} minus MAE of the others")
    figures.draw_background(ax, edges, counts, "training samples")
    centres, _ = figures.centres_and_widths(edges)
    for (method, row), mark in zip(others, "os^Dv*"):
        gain = errors_of(plain[1], edges, split) - errors_of(row, edges, split)
        ax.plot(centres, gain, ls="-", lw=0.8, marker=mark, ms=4, label=method)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel=figures.with_unit(runs[0]), ylabel=f"gain in {figures.with_unit(runs[0], 'mae')}")
    fig.legend(loc="outside lower center", ncols=4)
    return fig


def main(argv=None):
    """Print the table, and draw the figure with --out."""
    usage = "%(prog)s RUN_FOLDER ... [flags]   (--help lists them)"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="written by train.py")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="figure of the gain")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="set to report")
    args = parser.parse_args(argv)
    try:
        runs = [report.load_run(folder) for folder in args.runs]
        print(make_table(runs, args.split), end="")
        if args.out:
            draw_gain(runs, args.split).savefig(args.out)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"zero_shot.py: {error}") from error


if __name__ == "__main__":
    program.run(main)
