"""Tables that need no download: a generated one whose truth is known, and a real one.

`demo` is made-up flats with a price whose long upper tail has few rows: a known formula of the
inputs times noise of 10 %. It holds what real tables hold: a row number, a category, missing cells.
`diabetes` is the table of 442 patients that scikit-learn brings along (Efron and others, 2004).

    python demo_data.py                  # data/raw/demo.csv, and prepared data/demo.csv
    python demo_data.py --set diabetes   # the same of diabetes
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import prepare
import program
from files import write_atomically

NOISE = 0.1  # standard deviation of the logarithm of the price
DISTRICTS = {"harbour": 1.6, "centre": 1.3, "north": 1.0, "south": 0.9, "east": 0.7}
TARGETS = {"demo": ("price", "thousand"), "diabetes": ("progression", "")}


def true_price(table):
    """Return the price without noise, in thousands, [N].

    Args:
        table: DataFrame with area (m²), age (years), distance (km), floor and district.
    """
    price = 2.0 * table["area"] ** 1.1 * table["district"].map(DISTRICTS)
    return (
        price
        * np.exp(-0.08 * table["distance"] - 0.004 * table["age"])
        * (1 + 0.02 * table["floor"])
    )


def make_demo(N, seed=0):
    """Return a table of N flats, the price with noise, and some cells of `age` missing."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "id": np.arange(1, N + 1),
            "area": rng.gamma(4, 20, N).clip(15, 400).round(),
            "age": rng.uniform(0, 100, N).round(),
            "distance": rng.gamma(2, 3, N).clip(0.1, 30).round(1),
            "floor": rng.integers(0, 12, N),
            "district": rng.choice([*DISTRICTS], N, p=[0.05, 0.15, 0.3, 0.3, 0.2]),
        }
    )
    table["price"] = (true_price(table) * np.exp(rng.normal(0, NOISE, N))).round(2)
    table.loc[rng.random(N) < 0.03, "age"] = np.nan
    return table


def read_diabetes():
    """Return scikit-learn's diabetes table, in its units."""
    from sklearn.datasets import load_diabetes  # only here: seconds to import

    table = load_diabetes(as_frame=True, scaled=False).frame
    return table.rename(columns={"target": "progression"})


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--set", choices=TARGETS, default="demo", help="which table")
    parser.add_argument("--out", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--rows", type=int, default=2000, help="of the generated table")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same table")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    if args.rows < 50 or args.seed < 0:
        parser.error(f"--rows must be 50 or more and --seed 0 or more: {args.rows}, {args.seed}")
    return args


def main(argv=None):
    """Write a table, and prepare it."""
    args = parse_args(argv)
    raw = args.out / "raw" / f"{args.set}.csv"
    if raw.exists() and not args.overwrite:
        raise ValueError(f"{raw} exists: replace it with --overwrite or give another --out")
    table = make_demo(args.rows, args.seed) if args.set == "demo" else read_diabetes()
    write_atomically(raw, table.to_csv(index=False, lineterminator="\n").encode())
    print(f"wrote {raw}")
    if args.set == "demo":
        error = (table["price"] - true_price(make_demo(args.rows, args.seed).fillna(50))).abs()
        print(f"knowing the formula leaves a mean absolute error of {error.mean():.1f}, the noise")
    target, unit = TARGETS[args.set]
    flags = ["--csv", str(raw), "--target", target, "--unit", unit, "--data_dir", str(args.out)]
    prepare.main([*flags, "--overwrite"] if args.overwrite else flags)


if __name__ == "__main__":
    program.run(main)
