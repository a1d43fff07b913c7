"""Tables of a sweep: the paper's figures next to ours, and whether a row is better than VANILLA.

    python tools/evidence.py results/tables/sts_b_parity.toml                  # Markdown
    python tools/evidence.py results/tables/sts_b_dir.toml --format latex
    python tools/evidence.py results/tables/branco.toml --format csv > all_digits.csv

Differences to VANILLA are paired by seed, that is by split where each seed draws its own. Where
each run of both has `errors.npz` of the same test samples and the metric is MAE or MSE, their 95 %
interval is a bootstrap with samples and seeds both drawn again. Else it is Student's t over the
seeds, which knows nothing of the samples. A star says that it lies on the better side of zero, a
circle on the worse; neither stands without three seeds.
"""

import argparse
import re
import sys
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from sweep import results_of, rows_of

ROOT = Path(__file__).resolve().parent.parent
PLAIN = "VANILLA"
SHOTS = {"overall": "all", "many": "many", "medium": "medium", "few": "few"}
HIGHER_IS_BETTER = ("pearson", "spearman", "r2", "delta1", "delta2", "delta3")
POWERS = {"mae": 1, "mse": 2}  # metrics that are means over samples: of which power of the error
LEVEL, RESAMPLES = 0.95, 2000
MARKS = {"better": "*", "worse": "°", "": ""}
LEAST_SEEDS = 3  # of an interval: chance makes two agree too often

# ---- runs ----------------------------------------------------------------------------------


def load_runs(table, out):
    """Read the finished runs of a table.

    Args:
        table: dictionary of the TOML file.
        out: folder of its results.

    Returns:
        DataFrame with a line per set, method, seed, shot and metric; {(set, method, seed): errors
        and shots of the test samples}; minutes of all runs together.
    """
    lines, errors, minutes = [], {}, 0.0
    rows = rows_of(table)
    for name in table.get("sets", {"": {}}):
        for run in runs_of_set(out, name):
            if run["method"] not in rows:
                continue
            key = {"set": name, "method": run["method"], "seed": run["seed"]}
            minutes += run["wall_seconds"] / 60
            metrics = run.get("test") or run["metrics"]["test"]
            for shot, values in metrics.items():
                lines += [{**key, "shot": shot, "metric": m, "value": v} for m, v in values.items()]
            if "errors" in run:
                errors[tuple(key.values())] = run["errors"]
    columns = ["set", "method", "seed", "shot", "metric", "value"]
    frame = pd.DataFrame(lines, columns=columns).astype({"value": float})
    return frame, errors, minutes


def runs_of_set(out, name):
    """Yield the results of a set, with its `errors` where they were kept.

    Raises:
        ValueError: for two runs of a method with one seed, naming both.
    """
    found = {}
    for (_, method, seed), path, run in results_of(out, name):
        key = method, seed
        if key in found:
            raise ValueError(f"{key} is in {found[key]} and again in {path}: keep one of them")
        found[key] = path
        if path.with_name("errors.npz").is_file() and path.suffix == ".json":
            with np.load(path.with_name("errors.npz")) as arrays:
                run["errors"] = dict(arrays)
        yield run


# ---- differences ---------------------------------------------------------------------------


def bootstrap(differences, seed=0):
    """Return the interval of a mean, seeds and samples both drawn again.

    Of few seeds, draws from themselves vary too little: the seeds' deviations are widened, so that
    the interval is about Student's where samples play no part.

    Args:
        differences: of each seed and test sample [S, N], S > 1.
        seed: of the draws.

    Returns:
        Its lower and upper end.
    """
    rng, (S, N) = np.random.default_rng(seed), differences.shape
    level = (1 + LEVEL) / 2
    widened = np.sqrt(S / (S - 1)) * stats.t.ppf(level, S - 1) / stats.norm.ppf(level)
    of_seeds = differences.mean(axis=1, keepdims=True) - differences.mean()
    differences = differences + (widened - 1) * of_seeds
    seeds = rng.multinomial(S, np.full(S, 1 / S), RESAMPLES) / S
    samples = rng.multinomial(N, np.full(N, 1 / N), RESAMPLES) / N
    means = np.einsum("rs,sn,rn->r", seeds, differences, samples, optimize=True)
    return np.quantile(means, [1 - level, level])


def student(differences):
    """Return the interval of a mean by Student's t; NaN for fewer than three.

    Args:
        differences: of each seed [S].
    """
    S = len(differences)
    if S < LEAST_SEEDS:
        return np.full(2, np.nan)
    reach = stats.t.ppf((1 + LEVEL) / 2, S - 1) * np.std(differences, ddof=1) / np.sqrt(S)
    return np.mean(differences) + np.array([-reach, reach])


def interval(pairs, differences, metric, shot):
    """Return the interval of the difference of two methods.

    Args:
        pairs: the errors of both in each seed, None where they were not kept.
        differences: of the metric in each seed [S].
        metric, shot: what is compared.
    """
    known = shot in SHOTS and metric in POWERS and all(own and plain for own, plain in pairs)
    # Where each seed drew its own split, no test sample is drawn in all of them.
    runs = [run for pair in pairs for run in pair] if known else []
    same = all(np.array_equal(run["shot"], runs[0]["shot"]) for run in runs)
    if len(pairs) < LEAST_SEEDS or not known or not same:
        return student(differences)
    raw = [[np.float64(run["error"]) ** POWERS[metric] for run in pair] for pair in pairs]
    place = list(SHOTS).index(shot) - 1
    kept = np.isin(pairs[0][0]["shot"], [place] if place >= 0 else [0, 1, 2])
    return bootstrap(np.stack([own - plain for own, plain in raw])[:, kept])


def summarize(table, out):
    """Return all figures of a table: a line per set, metric, shot and method.

    Args:
        table: dictionary of the TOML file; its `metrics` say which, else the paper's do, and its
            `shots` the order of the paper's figures, if it is another.
        out: folder of its results.

    Returns:
        DataFrame with the columns paper, mean, std, seeds, difference (to the paper), versus
        (VANILLA), low, high (ends of its interval) and verdict ('better', 'worse' or '').
    """
    frame, errors, _ = load_runs(table, out)
    if PLAIN not in {*frame["method"]}:
        print(f"no run of {PLAIN} in {out}: no differences to it", file=sys.stderr)
    paper = table.get("paper", {})
    metrics = table.get("metrics") or [*paper] or ["mae"]
    found = sorted({*frame["metric"]})
    if found and not {*metrics} <= {*found}:
        raise ValueError(f"`metrics` must be of those that the runs have, {found}; got {metrics}")
    cells = dict([*frame.groupby(["set", "metric", "shot"])])
    known = {*frame["method"], *(method for rows in paper.values() for method in rows)}
    methods = [method for method in rows_of(table) if method in known]
    lines, shots = [], table.get("shots", [*SHOTS])
    for name, metric, shot, method in product(table.get("sets", [""]), metrics, shots, methods):
        part = cells.get((name, metric, shot), frame[:0]).set_index("seed")
        own, plain = (part[part["method"] == m]["value"] for m in (method, PLAIN))
        difference = (own - plain).dropna() if method != PLAIN else own[:0]
        pairs = [[errors.get((name, m, s)) for m in (method, PLAIN)] for s in difference.index]
        low, high = interval(pairs, difference.to_numpy(), metric, shot)
        below, above = high < 0, low > 0
        if metric in HIGHER_IS_BETTER:
            below, above = above, below
        given = paper.get(metric, {}).get(method, [np.nan] * len(shots))[shots.index(shot)]
        line = {"set": name, "metric": metric, "shot": shot, "method": method, "paper": given}
        line |= {"mean": own.mean(), "std": own.std(ddof=1), "seeds": own.count()}
        line |= {"difference": own.mean() - given, "versus": difference.mean()}
        line |= {"low": low, "high": high}
        lines.append(line | {"verdict": "better" if below else "worse" if above else ""})
    if not lines:
        raise ValueError(f"{out} has no run of this table: python tools/sweep.py runs them")
    return pd.DataFrame(lines)


# ---- tables --------------------------------------------------------------------------------


def number(value, digits, sign=False):
    """Return a number as text, a dash for none."""
    if not np.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def titled(metric):
    """Return a metric's name as a table has it."""
    return metric.upper() if len(metric) <= 4 else metric


def shown_as(shot):
    """Return a shot's name, or a zero-shot region's, as a table has it."""
    return SHOTS.get(shot, shot.replace("_", " "))


def columns_of(part, shot, digits):
    """Return the columns of one shot: what the paper has, what we have, and the differences."""
    columns, shown = {}, shown_as(shot)
    if part["paper"].notna().any():
        columns[f"{shown}: paper"] = [number(value, digits) for value in part["paper"]]
    ours = [
        number(line.mean, digits) + f" ± {number(line.std, digits)}" * (line.seeds > 1)
        for line in part.drop(columns="set").itertuples()
    ]
    columns[f"{shown}: ours"] = ours
    if part["difference"].notna().any():
        columns[f"{shown}: − paper"] = [
            number(value, digits, sign=True) for value in part["difference"]
        ]
    versus = [
        number(line.versus, digits, sign=True)
        + f" ({number(line.low, digits)} to {number(line.high, digits)})" * (line.low == line.low)
        + MARKS[line.verdict]
        for line in part.itertuples()
    ]
    columns[f"{shown}: − {PLAIN}"] = versus
    return columns


def table_of_rows(figures, metric, shots):
    """Return the table of one metric of a sweep without sets: a row per method."""
    part = figures[figures["metric"] == metric]
    digits = 2 if np.nanmax(part[["mean", "paper"]], initial=0) >= 5 else 3
    columns = {}
    for shot in shots:
        cells = part[part["shot"] == shot]
        columns.setdefault("method", [*cells["method"]])
        columns.setdefault("seeds", [str(seeds) for seeds in cells["seeds"]])
        columns |= columns_of(cells, shot, digits)
    return columns


def table_of_sets(figures, metric, shot):
    """Return the table of one metric of a sweep with sets: a row per set, a column per method."""
    part = figures[(figures["metric"] == metric) & (figures["shot"] == shot)]
    columns = {"set": [], "seeds": []}
    for name, cells in part.groupby("set", sort=False):
        if not cells["seeds"].any():
            continue
        columns["set"].append(name)
        seeds = sorted({*cells["seeds"]})
        columns["seeds"].append("–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))))
        for line in cells.itertuples():
            text = f"{line.mean:,.0f}" if line.mean >= 1000 else f"{line.mean:.3g}"
            text = text if np.isfinite(line.mean) else "–"
            columns.setdefault(line.method, []).append(text + MARKS[line.verdict])
    return columns


def table_of_wins(figures, asked):
    """Return, over sets, a method's mean rank and how often it is better than VANILLA.

    Args:
        figures: as `summarize` returns them.
        asked: list of (metric, shot).
    """
    methods = [*figures["method"].unique()]
    columns = {"method": methods}
    for metric, shot in asked:
        part = figures[(figures["metric"] == metric) & (figures["shot"] == shot)]
        means = part.pivot_table(index="set", columns="method", values="mean")
        means = means.reindex(columns=methods).dropna()
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        ranks = (sign * means).rank(axis=1).mean()
        title = f"{titled(metric)} {shown_as(shot)}"
        columns[f"{title}: rank"] = [number(ranks[method], 1) for method in methods]
        cells = columns[f"{title}: better on"] = []
        for method in methods:
            verdicts = part[(part["method"] == method) & part["set"].isin(means.index)]["verdict"]
            if method == PLAIN or PLAIN not in methods:
                cells.append("–")
                continue
            lower = (sign * means[method] < sign * means[PLAIN]).sum()
            clear = " / ".join(str((verdicts == word).sum()) for word in ("better", "worse"))
            cells.append(f"{lower} of {len(means)} ({clear})")
    return columns


def markdown(columns):
    """Return a table in Markdown."""
    lines = [[*columns], ["---"] + ["---:"] * (len(columns) - 1), *zip(*columns.values())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(columns):
    """Return a table in LaTeX, for the package booktabs."""
    rows = [[re.sub(r"([&%#_])", r"\\\1", cell) for cell in row] for row in zip(*columns.values())]
    lines = [" & ".join(line) + r" \\" for line in ([*columns], *rows)]
    lines.insert(1, r"\midrule")
    text = "\n".join([r"\toprule", *lines, r"\bottomrule"])
    for sign, command in {
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "°": r"$^\circ$",
    }.items():
        text = text.replace(sign, command)
    return f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n{text}\n\\end{{tabular}}\n"


def tables_of(table, out, shots=None):
    """Return {caption: columns} of all tables of a sweep; its `shots`, or all and few, if None."""
    figures = summarize(table, out)
    shots = shots or table.get("shots", ["overall", "few"])
    metrics = [*figures["metric"].unique()]
    if "sets" not in table:
        return {titled(metric): table_of_rows(figures, metric, shots) for metric in metrics}
    asked = [(metric, shot) for metric in metrics for shot in shots]
    asked = [(m, s) for m, s in asked if m == "mae" or s == "overall"]
    tables = {"All sets": table_of_wins(figures, asked)}
    for metric, shot in asked:
        tables[f"{titled(metric)} {shown_as(shot)}"] = table_of_sets(figures, metric, shot)
    return tables


def all_tables(file, root=ROOT, short=False):
    """Return the tables of a TOML file, or of its `short` rows, in Markdown with captions."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    if short:
        rows = rows_of(table)
        table |= {"rows": {row: rows[row][0] for row in table["short"]}, "over": {}}
    tables = tables_of(table, root / table["out"])
    return "\n".join(f"{caption}:\n\n{markdown(columns)}" for caption, columns in tables.items())


def table_of_sweeps(root):
    """Return the table of all sweeps: how many of their cells are finished, and in what time."""
    columns = {"file": [], "results": [], "rows × seeds finished": [], "hours": []}
    for file in sorted((root / "results/tables").glob("*.toml")):
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        frame, _, minutes = load_runs(table, root / table["out"])
        finished = len(frame[["set", "method", "seed"]].drop_duplicates())
        number = len(rows_of(table)) * len(table["seeds"]) * len(table.get("sets", [""]))
        columns["file"].append(f"[{file.stem}](tables/{file.name})")
        columns["results"].append(f"`{table['out'].removeprefix('results/')}`")
        columns["rows × seeds finished"].append(f"{finished} of {number}")
        columns["hours"].append(f"{minutes / 60:.1f}" if finished else "–")
    return markdown(columns)


# ---- command line --------------------------------------------------------------------------


def main(argv=None):
    """Print the tables of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("table", type=Path, help="TOML file of tools/sweep.py")
    add("--out", type=Path, help="folder of the results [the table's]")
    add("--format", choices=("markdown", "csv", "latex"), default="markdown", help="of the output")
    add("--shots", nargs="+", choices=[*SHOTS], help="which to show [all and few]")
    args = parser.parse_args(argv)
    made = {"markdown": markdown, "latex": latex}.get(args.format)
    try:
        table = tomllib.loads(args.table.read_text(encoding="utf-8"))
        out = args.out or ROOT / table["out"]
        if args.format == "csv":
            summarize(table, out).to_csv(sys.stdout, index=False, lineterminator="\n")
            return
        for caption, columns in tables_of(table, out, args.shots).items():
            print(f"{caption}\n\n{made(columns)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"evidence.py: {error}") from error


if __name__ == "__main__":
    main()
