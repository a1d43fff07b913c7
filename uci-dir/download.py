"""The four tables of UCI-DIR from the UCI Machine Learning Repository (CC BY 4.0).

Each is checked by its number of rows and by the sha256 of its sorted values, so a file fetched by
hand, in another order of rows or columns, serves as well.

    python download.py                     # all four, 0.3 MB, to data/raw/<name>.csv
    python download.py --files FOLDER      # checks <name>.csv of a folder instead of fetching

`python prepare.py --csv data/raw/abalone.csv --target Rings` makes the split.
"""

import argparse
import hashlib
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import program
from fetch import fetch_small, sole_use
from files import write_atomically
from table_file import read_table

BASE_URL = "https://archive.ics.uci.edu/static/public"
ROW_NUMBER = "No"  # of real_estate: no value, and not in every file


class Source(NamedTuple):
    """A table of the repository."""

    number: int  # of the data set
    rows: int
    sha256: str  # as `digest_of` gives it
    columns: str  # our names, in the file's order; the last is the target


# Concrete's and real estate's archives hold Excel files: the repository's data.csv is text in all.
SETS = {
    "abalone": Source(
        1, 4177, "57560d60abcffb4ec4853aa2de5f86a186b6abd49ba04623c20f192bc854271c",
        "Sex Length Diameter Height Wweight Sweight Vweight Shweight Rings",
    ),
    "airfoil": Source(
        291, 1503, "2f55275c0d9f5bd990ce66fed122cf72049d5d9094b3a7d27dea19cb4241f7e1",
        "Freq Angle Length Vel Displ Pressure",
    ),
    "concrete": Source(
        165, 1030, "9e2d0d4d0df082a79ec23d01473d122d7e54b17276864556529bd62b01496b18",
        "Cement Slag FlyAsh Water Superplasticizer CoarseAggregate FineAggregate Age Strength",
    ),
    "real_estate": Source(
        477, 414, "880ca83c17418a179871b29ae1019b83d25c5d025fb3df57a99bfb3dd20779f6",
        "X1_transaction_date X2_house_age X3_distance_to_the_nearest_MRT_station "
        "X4_number_of_convenience_stores X5_latitude X6_longitude Y",
    ),
}  # fmt: skip


def digest_of(table):
    """Return the sha256 of a table's cells, sorted; numbers with 9 digits, without row numbers."""
    cells = []
    for name in table.columns.drop(ROW_NUMBER, errors="ignore"):
        is_text = not pd.api.types.is_numeric_dtype(table[name])
        cells += table[name].tolist() if is_text else [f"{cell:.9g}" for cell in table[name]]
    return hashlib.sha256("\n".join(sorted(cells)).encode()).hexdigest()


def check(name, path):
    """Read a table and compare it with what is known of it; returns it under our columns' names.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is another table.
    """
    source = SETS[name]
    table, _ = read_table(path)
    if len(table) != source.rows:
        raise ValueError(f"{path} has {len(table):,} rows, {name} has {source.rows:,}")
    if digest_of(table) != source.sha256:
        raise ValueError(
            f"{path} has other values than {name} (sha256 of the sorted values "
            f"{digest_of(table)}): fetch it by hand from {BASE_URL.replace('/static/public', '')}"
            f"/dataset/{source.number} and give its folder with --files"
        )
    table = table.drop(columns=ROW_NUMBER, errors="ignore")
    return table.set_axis(source.columns.split(), axis=1)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--set", choices=SETS, nargs="+", default=[*SETS], help="which tables")
    parser.add_argument("--files", type=Path, help="folder with the tables, instead of fetching")
    parser.add_argument("--base_url", default=BASE_URL, help="of the repository, for a mirror")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser.parse_args(argv)


def main(argv=None):
    """Fetch and check the tables."""
    args = parse_args(argv)
    raw = args.data_dir / "raw"
    with sole_use(raw):
        for name in args.set:
            file = raw / f"{name}.csv"
            if file.exists() and not args.overwrite:
                check(name, file)
                print(f"{file} exists, and is right")
                continue
            given = (args.files or raw) / f"{name}{'' if args.files else '.download'}.csv"
            if not args.files:
                url = f"{args.base_url.rstrip('/')}/{SETS[name].number}/data.csv"
                fetch_small({given: (url, None)}, args.overwrite)
            table = check(name, given)
            write_atomically(file, table.to_csv(index=False, lineterminator="\n").encode())
            target = SETS[name].columns.split()[-1]
            print(f"wrote {file}; next: python prepare.py --csv {file} --target {target}")


if __name__ == "__main__":
    program.run(main)
