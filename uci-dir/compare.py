"""Which method helps on a table: several trained with several seeds, one table, one figure.

Called by `train.py --compare`. A method is taken only if its validation error is lower than plain
training's by more than chance explains; the test set is reported and decides nothing.
"""

import argparse
import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

import figures
import report
import run_folder
import trees
from bins import label_to_bucket
from files import write_atomically
from metrics import SHOTS
from outside import read_json

SQINV = {"reweight": "sqrt_inv"}
TREES = {"model": trees.NAME}  # chance plays no part in them: one run is enough
METHODS = {
    "VANILLA": {},
    "SQINV": SQINV,
    "SQINV+LDS": SQINV | {"lds": True},
    "SQINV+FDS": SQINV | {"fds": True},
    "SQINV+LDS+FDS": SQINV | {"lds": True, "fds": True},
    "TREES": TREES,
    "TREES SQINV+LDS": TREES | SQINV | {"lds": True},
}
PLAIN = "VANILLA"
LEVEL = 0.95  # of the intervals
RESAMPLES = 2000
STYLES = {  # line of each method
    "VANILLA": {"color": figures.VERMILLION, "ls": "-", "marker": "o"},
    "SQINV": {"color": figures.DARK, "ls": "--", "marker": "s"},
    "SQINV+LDS": {"color": figures.BLUE, "ls": "-.", "marker": "^"},
    "SQINV+FDS": {"color": figures.GREEN, "ls": ":", "marker": "v"},
    "SQINV+LDS+FDS": {"color": figures.BROWN, "ls": "--", "marker": "D"},
    "TREES": {"color": "black", "ls": ":", "marker": "x"},
    "TREES SQINV+LDS": {"color": "black", "ls": "--", "marker": "+"},
}


# ---- runs ----------------------------------------------------------------------------------


def train_all(args, run_name, train):
    """Train what is not finished; returns {method: [run of each seed]}, as `report.load_run`.

    Trees have one run.

    Args:
        args: the flags of train.py.
        run_name, train: of train.py: flags -> name of the run folder; trains as flags say.

    Raises:
        ValueError: if a run of these flags exists, but of another preparation of the table.
    """
    note = Path(args.data_dir) / f"{args.dataset}.json"
    runs = {method: [] for method in METHODS}
    for seed in range(args.seed, args.seed + args.seeds):
        for method, options in METHODS.items():
            if "model" in options and runs[method]:
                continue
            own = argparse.Namespace(**vars(args) | options | {"seed": seed, "track": "none"})
            folder = run_folder.find_run_folder(own.store_root, run_name(own))
            if args.overwrite or not (folder / "results.json").is_file():
                own.overwrite = True
                with quiet():
                    train(own)
            run = report.load_run(folder)
            preparation = read_json(note, "prepare the table again")
            if run["config"]["preparation"] != preparation or run["config"]["epoch"] != args.epoch:
                raise ValueError(
                    f"{folder} is of another preparation of {args.dataset}, or another --epoch: "
                    "--overwrite replaces it, --store_root FOLDER keeps it"
                )
            mae = run["metrics"]["val"]["overall"]["mae"]
            seconds = run["wall_seconds"]
            print(f"{method}, seed {seed}: validation MAE {mae:.4g} ({seconds:.0f} s)", flush=True)
            runs[method].append(run)
    return runs


@contextlib.contextmanager
def quiet():
    """Keep the lines of each epoch and the progress bars off the terminal."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def errors_of(runs, split):
    """Return {method: absolute errors [seeds, rows]}, of trees [1, rows]; and the labels [rows]."""
    errors = {}
    for method, seeds in runs.items():
        tables = [run["predictions"] for run in seeds]
        tables = [table[table["split"] == split] for table in tables]
        labels = tables[0]["label"].to_numpy()
        errors[method] = np.stack([np.abs(table["prediction"] - labels) for table in tables])
    return errors, labels


# ---- intervals and decision ----------------------------------------------------------------


def interval(errors, level=LEVEL, seed=0):
    """Return lower and upper end of a mean's bootstrap interval, seeds and rows both drawn again.

    Args:
        errors: [seeds, rows].
        level: of the interval.
        seed: of the draws: the same draws for every method.
    """
    rng, (S, N) = np.random.default_rng(seed), errors.shape
    end = (1 + level) / 2
    if S > 1:  # draws from few seeds vary too little: about Student's interval where rows agree
        widened = np.sqrt(S / (S - 1)) * stats.t.ppf(end, S - 1) / stats.norm.ppf(end)
        errors = errors + (widened - 1) * (errors.mean(axis=1, keepdims=True) - errors.mean())
    draws = ((rng.integers(0, S, S), rng.integers(0, N, N)) for _ in range(RESAMPLES))
    means = [errors[seeds].mean(axis=0)[rows].mean() for seeds, rows in draws]
    return np.quantile(means, [1 - end, end])


def decide(errors):
    """Return the method to take, None if no one is better than plain training, and the reasons.

    Args:
        errors: {method: absolute validation errors [seeds, rows]}.

    The intervals are of the difference in a row and a seed; their level allows for the number of
    methods (Bonferroni).
    """
    others = [method for method in errors if method != PLAIN]
    level = 1 - (1 - LEVEL) / len(others)
    better, lines = {}, []
    for method in others:
        difference = errors[method] - errors[PLAIN]
        low, high = interval(difference, level)
        verdict = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
        lines.append(
            f"{method:>15}: {difference.mean():+.4g} ({low:+.4g} to {high:+.4g}) {verdict}"
        )
        if high < 0:
            better[method] = errors[method].mean()
    return min(better, key=better.get, default=None), lines


# ---- table and figure ----------------------------------------------------------------------


def make_table(errors, shots):
    """Return the table in Markdown, and all digits as a DataFrame.

    Args:
        errors: {method: absolute test errors [seeds, rows]}.
        shots: shot of each row [rows].
    """
    lines = [["method", *(f"MAE {figures.SHOTS[shot]}" for shot in SHOTS)]]
    lines.append(["---", *["---:"] * len(SHOTS)])
    digits = []
    for method, values in errors.items():
        cells = [method]
        for shot in SHOTS:
            part = values if shot == "overall" else values[:, shots == shot]
            if not part.size:
                cells.append("–")
                continue
            low, high = interval(part)
            cells.append(f"{part.mean():.4g} ({low:.4g}–{high:.4g})")
            row = {"method": method, "shot": shot, "rows": part.shape[1], "seeds": len(part)}
            digits.append(row | {"mae": part.mean(), "low": low, "high": high})
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines), pd.DataFrame(digits)


def draw(runs, errors, labels):
    """Return the figure: MAE of each bucket by method, over the training rows."""
    run = next(iter(runs.values()))[0]
    density = run["label_density"]
    edges = density["label"].to_numpy()
    fig = Figure((8, 5), dpi=150, layout="constrained")
    ax = fig.subplots()
    figures.draw_background(ax, edges, density["count"].to_numpy(), "training rows")
    centres, _ = figures.centres_and_widths(edges)
    for method, values in errors.items():
        by_bucket = figures.error_by_label(labels, labels + values.mean(axis=0), edges)
        style = STYLES[method] | {"ms": 4, "lw": 1.2, "label": method}
        ax.plot(centres[by_bucket.index], by_bucket["mae"], **style)
    ax.set(xlabel=figures.with_unit(run), ylabel=figures.with_unit(run, "mae"), ylim=(0, None))
    ends = [run["target"].get(end) for end in ("low", "high")]  # of a scale that is not linear
    ax.set(xscale=run["target"].get("scale", "linear"), xlim=ends)
    ax.spines[["top", "right"]].set_visible(False)
    name = run["config"]["dataset"].replace("$", r"\$")
    title = f"{name}: test set, {len(labels)} rows, mean of the seeds"
    ax.set_title(title, fontsize="medium")
    fig.legend(loc="outside lower center", ncols=4, frameon=False)
    return fig


def compare(args, run_name, train):
    """Train the methods, write table and figure, and say which one to take.

    Args:
        args, run_name, train: as for `train_all`.

    Returns:
        Name of the method to take, or None.
    """
    runs = train_all(args, run_name, train)
    errors, labels = errors_of(runs, "test")
    preparation = runs[PLAIN][0]["config"]["preparation"]
    buckets = label_to_bucket(labels, preparation["bins"])
    shots = runs[PLAIN][0]["label_density"]["shot"].to_numpy()[buckets]
    markdown, digits = make_table(errors, shots)
    best, reasons = decide(errors_of(runs, "val")[0])
    many = preparation["shots"]["many"]
    few = preparation["shots"]["few"]
    answer = f"take {best}" if best else "take none of them: plain training is as good"
    rare = "What happens to rare labels stands in the column few, what it costs in the column many."
    if not (shots == "few").any():
        rare = (
            "No test row is few-shot, so this says nothing of rare labels: prepare the table again "
            "with --scale log or symlog, or other --bins."
        )
    chosen = min(runs[best or PLAIN], key=lambda run: run["metrics"]["val"]["overall"]["mae"])
    unit = figures.with_unit(runs[PLAIN][0], "mae")
    text = f"""# {args.dataset}: {unit} on the test set, {args.seeds} seed{"s" * (args.seeds > 1)}

{markdown}
In brackets: {LEVEL:.0%} intervals, rows and seeds drawn again. Many-shot: buckets with more than
{many} training rows; few-shot: with fewer than {few}.

On the validation set, MAE minus that of {PLAIN}, intervals for {len(METHODS) - 1} comparisons:

{chr(10).join(reasons)}

Answer: {answer}. {rare}

Its run that is best in validation predicts new rows:
python predict.py --model '{chosen["folder"]}' NEW.csv
"""
    out = Path(args.store_root) / f"{args.dataset}_compare.md"
    write_atomically(out, text.encode())
    write_atomically(out.with_suffix(".csv"), digits.to_csv(index=False).encode())
    figure = draw(runs, errors, labels)
    write_atomically(out.with_suffix(".png"), lambda file: figure.savefig(file, format="png"))
    print(f"\n{text}\nwrote {out}, its .csv and its .png")
    return best
