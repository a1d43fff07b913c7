"""Every method of uci-dir on the tables of UCI-DIR or of the literature, with several seeds.

One process, one thread, run after run; what is finished is not run again. Kept are `results.json`
of a run, without the preparation, and the error of each test row.

    OMP_NUM_THREADS=1 nice python benchmarks/uci_grid.py --tables uci-dir/data/raw --work /tmp/grid
    OMP_NUM_THREADS=1 nice python benchmarks/uci_grid.py --grid branco --tables DIR --work /tmp/grid

`--grid branco` is 15 sets of the literature on imbalanced regression (Branco, Torgo and Ribeiro):
the target is the first column, and 9999 marks a missing value in some. The least have 200 rows, so
each seed there draws its own split.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {  # of each grid: column and unit of the target
    "uci": {
        "real_estate": ("Y", "10,000 TWD / ping"),
        "concrete": ("Strength", "MPa"),
        "airfoil": ("Pressure", "dB"),
        "abalone": ("Rings", "rings"),
    },
    "branco": {
        **{f"a{number}": (f"a{number}", "") for number in (1, 2, 3, 4, 6, 7)},
        "boston": ("HousValue", "1,000 USD"), "Accel": ("acceleration", ""),
        "fuelCons": ("fuel.consumption.country", ""), "availPwr": ("available.power", ""),
        "maxTorque": ("maximal.torque", ""), "Abalone": ("Rings", "rings"), "bank8FM": ("rej", ""),
        "heat": ("heat", ""), "cpuSm": ("usr", ""),
    },
}  # fmt: skip
# Epochs of branco's sets, by training rows: a run of any method takes from 600 to 5,000 steps.
EPOCHS = ((1_000, 200), (2_000, 100), (10_000, 50))
LDS, FDS = "--lds", "--fds"
TREES = "--model hist_gradient_boosting"
METHODS = (
    "", "--reweight inverse", "--reweight sqrt_inv", f"--reweight sqrt_inv {LDS}",
    f"--reweight sqrt_inv {FDS}", f"--reweight sqrt_inv {LDS} {FDS}", "--loss focal_l1",
    "--reweight inverse --retrain_fc --pretrained {vanilla}", TREES,
    f"{TREES} --reweight sqrt_inv {LDS}", "--resample smoter", "--resample smogn",
    f"{TREES} --resample smoter", f"{TREES} --resample smogn",
)  # fmt: skip
# UCI-DIR's grid has no trees with synthetic rows, the other none of INV, which lost on the first.
LEFT_OUT = {"uci": METHODS[12:], "branco": METHODS[1:2]}


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--grid", choices=[*TARGETS], default="uci", help="which tables")
    add("--tables", type=Path, required=True, help="folder of their csv files")
    add("--work", type=Path, required=True, help="folder for prepared tables and runs")
    add("--out", type=Path, default=ROOT / "results/uci-dir", help="folder of the results")
    add("--seeds", type=int, nargs="+", default=[*range(10)], help="of each method, in this order")
    add("--only", default="", help="run the methods whose flags contain this")
    return parser.parse_args(argv)


def run_once(train, flags, out):
    """Train with `flags` unless its results are in `out`; returns the run's name."""
    args = train.parse_args(flags)
    name = "".join(train.run_name(args))
    target = out / args.dataset / name / "results.json"
    if not target.is_file():
        sys.argv = ["train.py", *flags]  # what the results show as the command
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            train.main([*flags, "--overwrite"])
        results = json.loads(Path("checkpoint", name, "results.json").read_text(encoding="utf-8"))
        del results["config"]["preparation"]
        if args.model != "mlp":  # whose flags do not tell them apart
            results["method"] = f"TREES {results['method']}".removesuffix(" VANILLA")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_errors(Path("checkpoint", name, "predictions.csv"), target.with_name("errors.npy"))
        text = json.dumps(results, indent=1, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
        mae = results["metrics"]["test"]["overall"]["mae"]
        print(f"{name}: MAE {mae:.3f}, {results['wall_seconds']:.0f} s", flush=True)
    return name


def write_errors(predictions, path):
    """Write |prediction - label| of the test rows in their order, float16 [N]."""
    table = pd.read_csv(predictions).query("split == 'test'")
    np.save(path, np.float16(np.abs(table["prediction"] - table["label"])))


def flags_of(grid, table):
    """Yield the flags of each method of a grid for a prepared table."""
    rows = int((pd.read_csv(table)["split"] == "train").sum())
    for method in METHODS:
        if method in LEFT_OUT[grid]:
            continue
        if grid == "branco" and TREES not in method:
            method += f" --epoch {next(epochs for most, epochs in EPOCHS if rows < most)}"
        yield method


def prepare_table(prepare, grid, csv, seed):
    """Prepare a table unless that has been done; returns the folder of what was prepared."""
    target, unit = TARGETS[grid][csv.stem]
    flags, folder = ["--csv", str(csv), "--target", target, "--unit", unit], Path("data")
    if grid == "branco":
        folder /= f"seed_{seed}"
        flags += ["--missing", "9999", "--seed", str(seed)]
    if not (folder / csv.name).is_file():
        prepare.main([*flags, "--data_dir", str(folder)])
    return folder


def main(argv=None):
    """Run what is missing."""
    args = parse_args(argv)
    tables, out = args.tables.resolve(), args.out.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)  # so that the paths in the results are short and the same everywhere
    sys.path.insert(0, str(ROOT / "uci-dir"))
    import prepare
    import train

    train.report.draw_run = lambda folder: None  # figures take longer than a small set's training
    facts = train.utils.run_facts()  # of the code that is loaded now, whatever is committed later
    train.utils.run_facts = lambda: facts | {"command": f"python {shlex.join(sys.argv)}"}
    logging.disable(logging.INFO)
    for seed, name in itertools.product(args.seeds, TARGETS[args.grid]):
        data = prepare_table(prepare, args.grid, tables / f"{name}.csv", seed)
        kept = out / name / "preparation.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.is_file():
            kept.write_bytes((data / f"{name}.json").read_bytes())
        vanilla = ""
        for method in flags_of(args.grid, data / f"{name}.csv"):
            if args.only in method:
                flags = method.format(vanilla=f"checkpoint/{vanilla}/ckpt.best.pth.tar").split()
                flags = ["--dataset", name, "--data_dir", f"./{data}", *flags]
                run = run_once(train, [*flags, "--seed", str(seed), "--track", "none"], out)
                vanilla = vanilla or run  # the first method's


if __name__ == "__main__":
    main()
