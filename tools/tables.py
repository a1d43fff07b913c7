"""Write the result tables of the READMEs from the runs in results/, or check that they agree.

A table stands between two lines of a README:

    <!-- table: results/agedb-dir/utkface -->
    <!-- end of table -->

With `/*` behind the folder, it is one table of all the sets in it. A file of `tools/sweep.py` in
its place gives the tables of `tools/evidence.py`, with `#short` behind it those of the rows in its
entry `short` alone, and `sweeps` the list of those files. The table of the root README, a line per
benchmark, stands after `<!-- table: benchmarks -->`, that of the later methods after
`<!-- table: methods -->`, and those of the devices of `make gpu` after `<!-- table: gpu -->`. The
name of an experiment of benchmarks/, `own_bucket` or `table_leak`, gives that program's table.

    python tools/tables.py            # check; exit status 1 if a table differs
    python tools/tables.py --write    # write them again
"""

import argparse
import json
import re
import sys

import numpy as np

import evidence
from load import ROOT, load

report = load("agedb-dir", "report")  # the same file in every folder
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
# A line per benchmark: folder, name and metric, the paper's figures (its tables 1 to 5) for all and
# for few-shot labels, the methods below, and where our runs are: a folder of results/, in words.
# Three methods: plain training, weights with LDS, and both LDS and FDS.
BENCHMARKS = (
    ("agedb-dir", "AgeDB-DIR, MAE", "MAE", "7.77 7.67 7.55", "13.67 10.89 10.79", "SQINV",
     "utkface", "UTKFace's faces, small network"),
    ("imdb-wiki-dir", "IMDB-WIKI-DIR, MAE", "MAE", "8.06 7.83 7.78", "26.33 22.51 22.19", "SQINV",
     "", "not run"),
    ("nyud2-dir", "NYUD2-DIR, RMSE in m", "RMSE", "1.477 1.387 1.338", "2.123 1.954 1.880", "INV",
     "labeled", "1,449 labelled pairs, small network"),
    ("sts-b-dir", "STS-B-DIR, MSE", "MSE", ".974 .914 .907", ".984 .955 .942", "INV",
     "small", "the official pairs, small network"),
    ("shhs-dir", "SHHS-DIR, MAE", "MAE", "15.36 14.14 13.76", "16.94 16.05 15.07", "INV",
     "demo", "simulated nights"),
)  # fmt: skip
# Of the later methods' table: what our runs are of, folder of results/, set of data, metric.
OURS = (
    ("Abalone, MAE", "uci-dir", "abalone", "mae"),
    ("faces, MAE", "agedb-dir/utkface", "", "mae"),
    ("sentences, MSE", "sts-b-dir/minilm", "", "mse"),
)


def runs_below(folder):
    """Return the runs of a folder of results/, in the order of its table."""
    runs = [report.load_run(path.parent) for path in sorted(folder.glob("*/results.json"))]
    return sorted(runs, key=order_of)


def order_of(run):
    """Sort key of a run: fewer methods first, then LDS, FDS, its variants, seeds."""
    config = run["config"]
    methods = (config["lds"], config["fds"])
    return (config["reweight"] != "none", sum(methods), methods[1], run["method"], run["seed"])


def table_of(folder):
    """Return the table in Markdown of all runs below a folder of results/."""
    runs = runs_below(folder)
    if not runs:
        return "No run yet.\n"
    markdown, _ = report.make_table(runs)
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    place = "/".join(folder.parts[-3:])
    return f"\n{markdown}\nCommit {commits}; commands and all metrics are in `{place}/`.\n\n"


def cells_of(folder):
    """Return the cells of a folder's table: the header's, and each row's."""
    lines = report.make_table(runs_below(folder))[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return header, rows


def sets_table(folder, metric="MAE"):
    """Return the table of a benchmark of several sets: for each, all labels and few-shot ones."""
    columns = {}
    for place in sorted({path.parent.parent for path in folder.glob("*/*/results.json")}):
        header, rows = cells_of(place)
        if columns.setdefault("method", [row[0] for row in rows]) != [row[0] for row in rows]:
            raise ValueError(f"{place} has other methods than {columns['method']}")
        for shot in ("all", "few"):
            cells = [row[header.index(f"{metric} {shot}")] for row in rows]
            columns[f"{place.name.replace('_', ' ').capitalize()}, {shot}"] = cells
    lines = [[*columns], ["---"] + ["---:"] * (len(columns) - 1), *zip(*columns.values())]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def our_cells(folder, name, metric, methods):
    """Return what our runs gave, as text.

    Args:
        folder: of the results.
        name: of the set of data, or "".
        metric: 'mae', say.
        methods: rows.

    Returns:
        Cells of all labels, those of few-shot ones, and numbers of seeds; a dash without runs.
    """
    tests = {method: [] for method in methods}
    for run in evidence.runs_of_set(folder, name):
        if run["method"] in tests:
            tests[run["method"]].append(run.get("test") or run["metrics"]["test"])
    both = [[measured(own, shot, metric) for own in tests.values()] for shot in ("overall", "few")]
    means = [values.mean() for cells in both for values in cells if len(values)]
    digits = 2 if max(means, default=0) >= 2.5 else 3
    texts = [[spread(values, digits) for values in cells] for cells in both]
    return *texts, [len(own) for own in tests.values()]


def measured(tests, shot, metric):
    """Return the runs' values, without those of a shot that no test sample is in."""
    values = [test.get(shot, {}).get(metric) for test in tests]
    return np.array([value for value in values if value is not None])


def spread(values, digits):
    """Return mean and deviation of the seeds' values as text."""
    text = f"{values.mean():.{digits}f}" if len(values) else "–"
    return text + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def benchmark_table(root):
    """Return the root README's table: a line per benchmark, the paper's figures and ours."""
    lines = [["benchmark", "paper, all", "paper, few", "ours, all", "ours, few", "where ours ran"]]
    lines.append(["---"] * len(lines[0]))
    for folder, name, metric, every, few, weights, place, words in BENCHMARKS:
        ours = ["–", "–"]
        if place:
            methods = ("VANILLA", f"{weights}+LDS", f"{weights}+LDS+FDS")
            own = our_cells(root / "results" / folder / place, "", metric.lower(), methods)
            ours, seeds = [" → ".join(cells) for cells in own[:2]], min(own[2])
            words += ", 1 seed" if seeds == 1 else f", {seeds} seeds"
        paper = [figures.replace(" ", " → ") for figures in (every, few)]
        lines.append([name, *paper, *ours, f"[{words}]({folder}/README.md#results)"])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def methods_table(root):
    """Return the tables of `results/METHODS.md`: each later method, and its authors' faults."""
    methods = json.loads((root / "results/methods.json").read_text(encoding="utf-8"))
    costs = json.loads((root / "results/method_costs.json").read_text(encoding="utf-8"))
    plain = {"method": "plain", "row": "VANILLA", "flags": "", "source": "–", "licence": "–"}
    plain |= {"published": "7.77 / 6.62 / 9.55 / 13.67"}
    lines = [["method", "flags", "faces: time, memory", "table: time, memory", "published"]]
    for name, *_ in OURS:
        lines[0] += [f"{name}, all", "few", "seeds"]
    lines[0] += ["licence", "source"]
    lines.append(["---"] * len(lines[0]))
    for method in (plain, *methods):
        cost = costs.get(method["flags"] or "plain", {})
        cells = [method["method"], f"`{method['flags']}`" if method["flags"] else "–"]
        for folder in ("agedb-dir", "uci-dir"):
            own = cost.get(folder)
            cells.append(f"× {own['time']:.2f}, × {own['memory']:.2f}" if own else "–")
        own = []
        for _, place, name, metric in OURS:
            every, few, seeds = our_cells(root / "results" / place, name, metric, [method["row"]])
            own += [every[0], few[0], str(seeds[0] or "–")]
        lines.append([*cells, method["published"], *own, method["licence"], method["source"]])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    faults = [f"- {m['method']}: {m['faults']}.\n" for m in methods if m["faults"] != "–"]
    return f"\n{table}\nFaults of the authors' code:\n\n{''.join(faults)}\n"


def gpu_tables(root):
    """Return the tables of `results/gpu/README.md`: steps, kernels and loaders of each device."""
    made = ""
    for folder in sorted((root / "results/gpu").glob("*/")):
        if folder.name.endswith("_small"):  # a try, of small sizes
            continue
        read = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
            if not path.stem.endswith(".failed")
        }
        loaders = [facts for name, facts in read.items() if name.startswith("loader_")]
        tables = [
            ("Steps", read.get("steps"), step_lines),
            ("Kernels", read.get("kernels"), kernel_lines),
            *(("Training from the cache", facts, loader_lines) for facts in loaders),
        ]
        for what, facts, lines_of in tables:
            if facts is None:
                continue
            made += f"\n{what}: {facts['device']}, PyTorch {facts['torch']}, "
            made += f"commit {str(facts.get('commit'))[:7]}:\n\n"
            header, *lines = lines_of(facts)
            rule = ["---"] + ["---:"] * (len(header) - 1)
            made += "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *lines))
    return f"{made}\n"


def step_lines(facts):
    """Return the lines of the table of timed steps."""
    ms = {tuple(name.rsplit(", ", 1)): row["ms"] for name, row in facts["rows"].items()}
    lines = [["step", "ms", "LDS", "FDS", "FDS, online"]]
    for step in dict.fromkeys(step for step, _ in ms):
        bare = ms.get((step, "bare"), np.nan)
        ratios = [ms.get((step, kind), np.nan) / bare for kind in ("lds", "fds", "online")]
        cells = [f"{bare:.1f}", *(f"× {ratio:.3f}" for ratio in ratios)]
        lines.append([step, *("–" if "nan" in cell else cell for cell in cells)])
    return lines


def kernel_lines(facts):
    """Return the lines of the table of FDS alone."""
    calls = ("smooth", "smooth, forward + backward", "statistics")
    lines = [["FDS, ms (part of a copy's speed)", "calibrate", "and back", "statistics"]]
    for name, row in facts["rows"].items():
        cells = [f"{row[c]['ms']:.2f} ({row[c]['share_of_copy']:.0%})" for c in calls]
        lines.append([name, *cells])
    return lines


def loader_lines(facts):
    """Return the lines of the table of training from the cache in one precision."""
    ((case, row),) = facts["metrics"].items()
    shown = {what: f"{x:,.0f}" if "images/s" in what else f"{x:.1%}" for what, x in row.items()}
    return [["what", case], *([what, cell] for what, cell in shown.items())]


def renew(text, root=ROOT):
    """Return a README's text with its tables rebuilt."""

    def table(match):
        if match[2] == "benchmarks":
            made = benchmark_table(root)
        elif match[2] == "methods":
            made = methods_table(root)
        elif match[2] == "gpu":
            made = gpu_tables(root)
        elif match[2] in ("own_bucket", "table_leak"):
            made = f"\n{load('benchmarks', match[2]).table()}\n\n"
        elif match[2] == "sweeps":
            made = "\n" + evidence.table_of_sweeps(root) + "\n"
        elif match[2].endswith(".toml"):
            made = "\n" + evidence.all_tables(root / match[2], root) + "\n"
        elif match[2].endswith(".toml#short"):
            file = root / match[2].removesuffix("#short")
            made = "\n" + evidence.all_tables(file, root, short=True) + "\n"
        elif match[2].endswith("/*"):
            made = sets_table(root / match[2].removesuffix("/*"))
        else:
            made = table_of(root / match[2])
        return match[1] + made + match[4]

    return TABLE.sub(table, text)


def main(argv=None):
    """Check or write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables again")
    args = parser.parse_args(argv)
    stale = []
    readmes = ("README.md", "*-dir/README.md", "results/**/*.md")
    for path in sorted(path for pattern in readmes for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if renew(text) != text:
            stale.append(path.relative_to(ROOT))
            if args.write:
                path.write_text(renew(text), encoding="utf-8", newline="\n")
    for path in stale:
        print(f"{path}: tables {'written' if args.write else 'differ: tools/tables.py --write'}")
    return int(bool(stale) and not args.write)


if __name__ == "__main__":
    sys.exit(main())
