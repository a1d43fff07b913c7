"""Every method of uci-dir on the four tables of UCI-DIR, with several seeds.

One process, one thread, run after run; what is finished is not run again. Only `results.json` of a
run is kept, without the preparation, which is the same in all of a set.

    OMP_NUM_THREADS=1 nice python benchmarks/uci_grid.py --tables uci-dir/data/raw --work /tmp/grid
"""

import argparse
import contextlib
import io
import json
import logging
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {  # column and unit of the target
    "real_estate": ("Y", "10,000 TWD / ping"),
    "concrete": ("Strength", "MPa"),
    "airfoil": ("Pressure", "dB"),
    "abalone": ("Rings", "rings"),
}
LDS, FDS = "--lds", "--fds"
TREES = "--model hist_gradient_boosting"
METHODS = (
    "", "--reweight inverse", "--reweight sqrt_inv", f"--reweight sqrt_inv {LDS}",
    f"--reweight sqrt_inv {FDS}", f"--reweight sqrt_inv {LDS} {FDS}", "--loss focal_l1",
    "--reweight inverse --retrain_fc --pretrained {vanilla}", TREES,
    f"{TREES} --reweight sqrt_inv {LDS}", "--resample smoter", "--resample smogn",
)  # fmt: skip


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tables", type=Path, required=True, help="folder of the four csv files")
    add("--work", type=Path, required=True, help="folder for prepared tables and runs")
    add("--out", type=Path, default=ROOT / "results/uci-dir", help="folder of the results")
    add("--seeds", type=int, default=10, help="of each method")
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
        text = json.dumps(results, indent=1, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
        mae = results["metrics"]["test"]["overall"]["mae"]
        print(f"{name}: MAE {mae:.3f}, {results['wall_seconds']:.0f} s", flush=True)
    return name


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
    for name, (target, unit) in TARGETS.items():
        if not Path("data", f"{name}.csv").is_file():
            prepare.main(["--csv", str(tables / f"{name}.csv"), "--target", target, "--unit", unit])
        kept = out / name / "preparation.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(Path("data", f"{name}.json").read_bytes())
    logging.disable(logging.INFO)
    for seed in range(args.seeds):
        for name in TARGETS:
            vanilla = ""
            for method in (flags for flags in METHODS if args.only in flags):
                flags = method.format(vanilla=f"checkpoint/{vanilla}/ckpt.best.pth.tar").split()
                flags = ["--dataset", name, *flags, "--seed", str(seed), "--track", "none"]
                run = run_once(train, flags, out)
                vanilla = vanilla or run  # the first method's


if __name__ == "__main__":
    main()
