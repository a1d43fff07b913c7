"""Files of sentence pairs with a score: with tabs as the official ones, or with commas."""

import csv
import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from outside import reading, shown
from target import SPAN, Target

MAX_SCORE = 5.0  # similarities lie in [0, 5]; the network predicts a fifth of them
SIMILARITY = Target("similarity", "", 0.0, MAX_SCORE, 0.1)
FILES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}
OFFICIAL = {"train": 5_249, "val": 1_000, "test": 1_000}  # pairs of STS-B-DIR, paper and files
PAIR_COLUMNS = ("sentence1", "sentence2", "score")


def to_unit(labels, target):
    """Return what the network predicts of labels: a fifth of a similarity, else 0 ... 1."""
    return target.scaled(labels) / SPAN if target.own else labels / MAX_SCORE


def from_unit(values, target):
    """Return labels, of what the network predicts."""
    return target.unscaled(values * SPAN) if target.own else values * MAX_SCORE


def read_pairs(data_dir, target=SIMILARITY, needed=tuple(FILES)):
    """Read and check the three files of the split.

    Args:
        data_dir: folder of `train_new.tsv`, `dev_new.tsv` and `test_new.tsv`: tab-separated, with
            a header that names at least sentence1, sentence2 and score.
        target: `target.Target` of the scores.
        needed: splits whose file must exist.

    Returns:
        DataFrame with columns sentence1, sentence2, label (float32), split ('train', 'val',
        'test').

    Raises:
        FileNotFoundError: without one of them.
        ValueError: naming file and lines that cannot be used.
    """
    parts, held = [], any((Path(data_dir) / name).is_file() for name in FILES.values())
    for split, name in FILES.items():
        file = Path(data_dir) / name
        if not file.is_file():
            if split not in needed and held:
                continue
            raise FileNotFoundError(
                f"{file} is missing: `python download.py` fetches the official split, `python "
                "prepare.py` makes one, `python demo_data.py` generates data; --data_dir chooses "
                "another folder"
            )
        parts.append(read_tsv(file, target).assign(split=split))
    return pd.concat(parts, ignore_index=True)


def read_rows(file, quiet=False):
    """Return a file's header, and (line, fields) of each row: with tabs, or a CSV with commas.

    With tabs a quotation mark is a mark like any other, as in the official files; your own are
    warned of where it seems to enclose cells, unless `quiet`. In a CSV file it encloses a cell, and
    a tab or a line's end within becomes a blank.
    """
    with reading(file, "it must be UTF-8 text with tabs or commas"):
        text = Path(file).read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        if "\t" not in first and "," in first:
            reader = csv.reader(io.StringIO(text, newline=""))
            rows = [
                (reader.line_num, [" ".join(cell.split()) for cell in row]) for row in reader if row
            ]
        else:
            lines = text.removesuffix("\n").split("\n")
            rows = [(i, line.rstrip("\r").split("\t")) for i, line in enumerate(lines, start=1)]
            if not quiet and "genre" not in rows[0][1]:  # a column of the official files
                warn_of_marks(file, rows)
        return rows[0][1], rows[1:]


def warn_of_marks(file, rows):
    """Warn of cells between quotation marks, as pandas and Excel write them, with tabs."""
    cells = [(number, cell) for number, fields in rows for cell in fields]
    marked = [number for number, cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
    if marked:
        text = "%s: %d cells begin and end with a quotation mark, the first in line %d: %s"
        helps = "with tabs it belongs to the sentence; save with commas where it only encloses it"
        logging.warning(text, file, len(marked), marked[0], helps)


def columns_differ(header, rows):
    """Return a sentence for each row of `read_rows` that has not as many fields as its header."""
    return [
        f"line {number} has {len(fields)} columns, the header {len(header)}"
        for number, fields in rows
        if len(fields) != len(header)
    ]


def check_once(file, header, columns):
    """Raise ValueError if a header has one of the columns twice."""
    if twice := [column for column in columns if header.count(column) > 1]:
        raise ValueError(f"{file} has the column {', '.join(twice)} twice: rename one of them")


def some_of(faults):
    """Return the first ten faults in one line."""
    more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
    return f"{'; '.join(faults[:10])}{more}"


def read_tsv(file, target=SIMILARITY):
    """Read one file of pairs; any row that cannot be used is an error with its line.

    The scores are in the column `score`, or in one with the target's name.
    """
    header, found = read_rows(file)
    columns = (*PAIR_COLUMNS[:2], target.name if target.name in header else PAIR_COLUMNS[2])
    if missing := [column for column in columns if column not in header]:
        raise ValueError(
            f"{file} lacks the column {', '.join(missing)}: its header, cut at tabs or commas, is "
            f"{shown(header)}"
        )
    check_once(file, header, columns)
    places = [header.index(column) for column in columns]
    rows, faults = [], []
    for number, fields in found:
        if len(fields) != len(header):
            faults += columns_differ(header, [(number, fields)])
            continue
        first, second, score = (fields[place].strip() for place in places)
        try:
            label = float(score)
        except ValueError:
            label = float("nan")
        if target.outside(label):
            faults.append(f"line {number} has the score {shown(score)!r}")
        elif not (first and second):
            faults.append(f"line {number} has an empty sentence")
        rows.append((first, second, np.float32(label)))
    if faults:
        raise ValueError(
            f"{file}: {some_of(faults)}: correct or remove these rows; a score is a "
            f"number, with a decimal point, from {target.range}"
        )
    if not rows:
        raise ValueError(f"{file} holds no pair below its header")
    return pd.DataFrame(rows, columns=["sentence1", "sentence2", "label"])
