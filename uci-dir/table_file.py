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
LARGEST = 1e100  # label whose square, and sums of it, are numbers


def read_table(path, form=(None, None, None), missing=(), known=None):
    """Read a table with a header line.

    Args:
        path: of the file.
        form: separator, decimal and encoding, each None to find it.
        missing: further cells that mean "no value".
        known: columns of a preparation, where new rows are read: its categories stay text as they
            stand in the file, and one column is enough.

    Returns:
        DataFrame with a column for each of the file's, and a sentence on its form.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table: empty, one column, names given twice, longer rows.
    """
    separator, decimal, encoding = form
    path = Path(path)
    text, whole, encoding = read_head(path, encoding)
    with reading(path, "see --separator"):
        text, before, named = without_preface(text)
        separator = separator or named or find_separator(text, whole)
        records = first_records(text, separator, whole)
    header = check_header(path, records[0], separator, least=1 if known else 2)
    # pandas would take a row's first fields as its name; of later rows it says so itself.
    if len(records) > 1 and len(records[1]) > len(header):
        raise ValueError(f"{path}: its rows have more fields than its header, {len(header)}")
    decimal = decimal or find_decimal(records[1:], separator)
    options = {"sep": separator, "decimal": decimal, "encoding": encoding, "skiprows": before}
    options["dtype"] = {column["name"]: str for column in known or () if "values" in column}
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
    if decimal == ",":
        frame = frame.apply(with_points)
    said = f"separator {separator!r}, decimal mark {decimal!r}, {encoding}"
    return frame, f"{len(frame):,} rows, {len(header)} columns, {said}"


def read_head(path, encoding=None):
    """Return a file's first text, whether that is all of it, and its encoding; errors as above."""
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
    return text, len(head) < HEAD, encoding


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


def without_preface(text):
    """Take off the lines before the header: without a letter, or as `sep=;`, which Excel writes.

    Returns:
        The text behind them, how many there are, and the separator that they name, or None.
    """
    lines = io.StringIO(text, newline=None).readlines()
    named = None
    for before, line in enumerate(lines):
        found = re.fullmatch(r"sep=(.)\s*", line.lstrip("\ufeff"))
        named = found[1] if found else named
        if not found and line.strip("\ufeff \n\"'" + "".join(SEPARATORS)):
            return "".join(lines[before:]), before, named
    return text, 0, named


def with_points(values):
    """Return a column of text whose cells such as '1,5' read '1.5', as other columns do already."""
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return values
    return values.str.replace(r"^([+-]?\d*),(\d+)$", r"\1.\2", regex=True)


def first_records(text, separator, whole):
    """Return the first records of a file's first text, without one that is cut off."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    records = [record for record in reader if any(cell.strip() for cell in record)]
    return records[: RECORDS if whole else max(min(len(records) - 1, RECORDS), 1)]


def find_separator(text, whole):
    """Return the separator with which most records have as many fields as the header.

    A header of one column has a tabulator: a comma in its rows is then a decimal mark.
    """

    def fit(separator):
        widths = [len(record) for record in first_records(text, separator, whole)]
        same = widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0
        return same, widths[0] if widths else 0

    best = max(SEPARATORS, key=fit)
    return best if fit(best)[0] else "\t"


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


def check_header(path, names, separator, least=2):
    """Return the columns' names, stripped; an empty one is called unnamed_<number>.

    Raises:
        ValueError: for less than `least` columns, a name given twice, or a first line of numbers.
    """
    names = [name.strip() or f"unnamed_{number}" for number, name in enumerate(names, start=1)]
    if len(names) < least:
        raise ValueError(
            f"{path} has one column with the separator {separator!r}, and with those of "
            f"{' '.join(map(repr, SEPARATORS))}: --separator names another"
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


def labels_of(frame, target):
    """Return the labels, float64 [N], NaN where the cell is empty or infinite.

    Raises:
        ValueError: without that column, or if cells are text, too large, or all alike.
    """
    if target not in frame.columns:
        raise ValueError(f"no column {target!r}: the table has {', '.join(map(repr, frame))}")
    values = frame[target]
    labels = as_numbers(values)
    if pd.api.types.is_bool_dtype(values):
        raise ValueError(f"the target {target!r} is true or false: write 1 and 0")
    text = values.notna().to_numpy() & np.isnan(pd.to_numeric(values, errors="coerce").to_numpy())
    if text.any():
        row = int(np.flatnonzero(text)[0])
        raise ValueError(
            f"the target {target!r} is no column of numbers: row {row} has {values.iloc[row]!r}; "
            "write plain numbers, without units; --missing names cells that mean no value"
        )
    filled = labels[~np.isnan(labels)]
    if len(np.unique(filled)) < 2:
        raise ValueError(f"the target {target!r} has {len(filled)} labels, all the same or none")
    if np.abs(filled).max() > LARGEST:
        raise ValueError(f"the target {target!r} goes up to {np.abs(filled).max():.3g}: rescale it")
    return labels
