"""Reading a table that somebody brings: encoding, separator, decimal mark, header, missing values.

Cells are taken as they stand: text that looks like a formula or a path is text.
"""

import codecs
import csv
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from outside import reading, shown

# Cells that mean "no value"; --missing adds others, such as 9999.
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?", "-", "inf", "-inf")
SEPARATORS = (",", ";", "\t", "|")
HEAD = 2**18  # bytes of the file from which its form is found
RECORDS = 100  # of them


def read_table(path, separator=None, decimal=None, missing=(), encoding=None):
    """Read a table with a header line.

    Args:
        path: of the file.
        separator, decimal, encoding: None to find them.
        missing: further cells that mean "no value".

    Returns:
        DataFrame with a column for each of the file's, and a sentence on its form.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table: empty, one column, names given twice, rows of other lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: check the path")
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise ValueError(f"{path} is empty: a header line and rows are needed")
    encoding = encoding or find_encoding(head)
    if encoding == "utf-8" and not is_utf8(path):
        encoding = "cp1252"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read as {encoding} ({shown(error)}): see --encoding"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} holds NUL characters: it is no text, or UTF-16 (see --encoding)")
    whole = len(head) < HEAD
    with reading(path, "see --separator"):
        separator = separator or find_separator(text, whole)
        records = first_records(text, separator, whole)
    header = check_header(path, records[0], separator)
    # pandas would take a row's first fields as its name; of later rows it says so itself.
    if len(records) > 1 and len(records[1]) > len(header):
        raise ValueError(f"{path}: its rows have more fields than its header, {len(header)}")
    decimal = decimal or find_decimal(records[1:], separator)
    options = {"sep": separator, "decimal": decimal, "encoding": encoding}
    marks = [*MISSING, *missing]
    try:
        frame = pd.read_csv(
            path, **options, names=header, header=0, na_values=marks, keep_default_na=False,
            skipinitialspace=True, low_memory=False,
        )  # fmt: skip
    except Exception as error:  # of pandas, or of Python's csv
        raise ValueError(
            f"{path} is no table with the separator {separator!r} ({shown(error)}): see --separator"
        ) from error
    if frame.empty:
        raise ValueError(f"{path} has a header and no row")
    form = f"separator {separator!r}, decimal mark {decimal!r}, {encoding}"
    return frame, f"{len(frame):,} rows, {len(header)} columns, {form}"


def find_encoding(head):
    """Return the encoding that a file's first bytes say, else 'utf-8'."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8"


def is_utf8(path):
    """Whether a whole file is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        try:
            while piece := file.read(2**24):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def first_records(text, separator, whole):
    """Return the first records of a file's first text, without one that is cut off."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    records = [record for record in reader if any(cell.strip() for cell in record)]
    return records[: RECORDS if whole else max(min(len(records) - 1, RECORDS), 1)]


def find_separator(text, whole):
    """Return the separator with which most records have as many fields as the header."""

    def fit(separator):
        widths = [len(record) for record in first_records(text, separator, whole)]
        same = widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0
        return same, widths[0] if widths else 0

    return max(SEPARATORS, key=fit)


def find_decimal(records, separator):
    """Return ',' if more cells read 1,5 than 1.5, else '.'."""
    if separator == ",":
        return "."
    cells = [cell.strip() for record in records for cell in record]
    commas, points = (
        sum(bool(re.fullmatch(rf"[+-]?\d*{mark}\d+", cell)) for cell in cells)
        for mark in (",", r"\.")
    )
    return "," if commas > points else "."


def check_header(path, names, separator):
    """Return the columns' names, stripped; an empty one is called unnamed_<number>.

    Raises:
        ValueError: for one column, a name given twice, or a first line of numbers.
    """
    names = [name.strip() or f"unnamed_{number}" for number, name in enumerate(names, start=1)]
    if len(names) == 1:
        raise ValueError(
            f"{path} has one column with the separator {separator!r}: --separator names another"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(
            f"{path} has several columns called {', '.join(twice)}: rename all but one"
        )
    if all(re.fullmatch(r"[+-]?[\d.,]+([eE][+-]?\d+)?", name) for name in names):
        raise ValueError(f"{path} begins with numbers, {names[:5]}: its first line must be names")
    return names


def as_numbers(values):
    """Return a column as float64 [N], NaN where a cell is no finite number."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan)
