"""What a table's columns become: standardised numbers, flags of missing cells, one-hot categories.

`fit_columns` takes medians, means, deviations and categories from the training rows alone and
returns them as plain values, for a JSON file and a checkpoint; `encode` applies them to any rows.
"""

import numpy as np
import pandas as pd

from table_file import as_numbers

NUMBER, CATEGORY = "number", "category"
MOSTLY = 0.95  # share of numbers among a column's filled cells from which it counts as numbers
ID_ROWS = 20  # fewer rows do not show that a column only numbers them
SPLIT = "split"  # the column that prepare.py adds
RARE = 5  # categories with fewer training rows share one column, `other`
NO_VALUE = ""  # the category of a missing cell
SHOWN = 20  # names of columns


def is_number(values):
    """Whether a column is one of numbers; a few other cells then count as missing."""
    if pd.api.types.is_bool_dtype(values):
        return False
    if pd.api.types.is_numeric_dtype(values):
        return True
    filled = values.notna().sum()
    return bool(filled) and np.isfinite(as_numbers(values)).sum() >= MOSTLY * filled


def as_text(values):
    """Return a column as text, object array [N]; TRUE and true read True."""
    if pd.api.types.is_float_dtype(values):  # whole numbers that missing cells made fractions
        text = values.map("{:.15g}".format)
    else:
        text = values.astype(object).map(as_word)
    return text.where(values.notna(), NO_VALUE).to_numpy(dtype=object)


def as_word(value):
    """Return a cell as text, with one spelling of true and false."""
    text = str(value).strip()
    return text.capitalize() if text.lower() in ("true", "false") else text


# ---- which columns -------------------------------------------------------------------------


def choose_columns(frame, args, labelled):
    """Choose the inputs.

    Args:
        frame: DataFrame as read; ids number its rows with those that have no label.
        args: the flags target, group, drop, keep, max_values.
        labelled: bool [N], the rows with a label.

    Returns:
        List of the inputs' names, and {name: why it is left out}.

    Raises:
        ValueError: for a column that is not there, or text columns with too many values.
    """
    named = [args.target, *filter(None, [args.group]), *args.drop, *args.keep]
    unknown = [name for name in named if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"no column {unknown}: the table has {', '.join(map(repr, frame.columns))}"
        )
    if SPLIT in frame.columns and SPLIT not in args.drop:
        raise ValueError(f"a column is called {SPLIT!r}, as ours will be: rename or --drop it")
    left_out = {args.target: "target"}
    left_out |= {name: "group" for name in [args.group] if name}
    left_out |= {name: "--drop" for name in args.drop}
    inputs, refused = [], []
    for name in frame.columns:
        if name in left_out:
            continue
        reason = None if name in args.keep else id_reason(frame[name])
        if reason:
            left_out[name] = reason
            continue
        inputs.append(name)
        if not is_number(frame[name][labelled]):
            values = pd.unique(as_text(frame[name][labelled]))
            if len(values) > args.max_values:
                refused.append(f"{name!r} ({len(values)} values such as {str(values[0])[:40]!r})")
    if refused:
        raise ValueError(
            f"text columns with more than --max_values {args.max_values} values: "
            f"{', '.join(refused)}. Leave them out with --drop, or turn them into numbers or fewer "
            "categories; if they are numbers, see --decimal and --missing"
        )
    if not inputs:
        raise ValueError(f"no column is left as an input: {left_out}")
    return inputs, left_out


def id_reason(values):
    """Return why a column looks as if it only numbered or named the rows, None if it does not."""
    if len(values) < ID_ROWS or values.isna().any() or not values.is_unique:
        return None
    if not is_number(values):
        return "another text in each row"
    numbers = as_numbers(values)
    if not (np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()):
        return None
    steps = np.diff(numbers)
    in_order = (steps > 0).all() or (steps < 0).all()
    return "numbers the rows" if in_order or np.ptp(numbers) == len(numbers) - 1 else None


# ---- what becomes of them ------------------------------------------------------------------


def fit_columns(frame, train):
    """Find what to do with each column, from the training rows alone.

    Args:
        frame: DataFrame of the inputs.
        train: bool [N], the training rows.

    Returns:
        List of dictionaries: of numbers `name, kind, median, mean, std, flag` (whether missing
        cells are marked in a column of their own), of categories `name, kind, values, other`; and
        the names of the columns that are constant in the training rows.
    """
    columns, constant = [], []
    for name in frame.columns:
        values = frame[name][train]
        fit = fit_numbers if is_number(frame[name]) else fit_categories
        column = fit(values)
        if column is None:
            constant.append(name)
        else:
            columns.append({"name": name, **column})
    return columns, constant


def fit_numbers(values):
    """Return the statistics of a column of numbers, None if it is constant."""
    numbers = as_numbers(values)
    missing = np.isnan(numbers)
    if missing.all() or (np.nanmin(numbers) == np.nanmax(numbers) and not missing.any()):
        return None
    median = float(np.nanmedian(numbers))
    numbers = np.where(missing, median, numbers)
    with np.errstate(over="ignore"):
        statistics = {"median": median, "mean": float(numbers.mean()), "std": float(numbers.std())}
    if numbers.min() == numbers.max():  # constant but for its missing cells
        statistics["std"] = 1.0
    if not np.isfinite(statistics["std"]):
        raise ValueError(
            f"column {values.name!r} has numbers up to {np.abs(numbers).max():.3g}, too large to "
            "standardise: rescale it, or --drop it"
        )
    return {"kind": NUMBER, **statistics, "flag": bool(missing.any())}


def fit_categories(values):
    """Return the categories of a column of text, None if it is constant."""
    names, counts = np.unique(as_text(values).astype(str), return_counts=True)
    kept = [str(name) for name in names[counts >= RARE]]
    if len(kept) + (len(kept) < len(names)) < 2:
        return None
    return {"kind": CATEGORY, "values": kept, "other": len(kept) < len(names)}


def width_of(columns):
    """Return how many inputs the columns become."""
    return sum(
        1 + column["flag"] if column["kind"] == NUMBER else len(column["values"]) + column["other"]
        for column in columns
    )


def encode(frame, columns, place="the table"):
    """Turn rows into inputs.

    Args:
        frame: DataFrame with those columns, by name; others are passed over.
        columns: as `fit_columns` returns them.
        place: where the rows come from, for the message.

    Returns:
        float32 [N, D]; and for each column the number of cells that were missing or, of
        categories, not known from training: {name: number}, without the zeros.

    Raises:
        ValueError: naming the columns that are missing.
    """
    lacking = [column["name"] for column in columns if column["name"] not in frame.columns]
    if lacking:
        raise ValueError(
            f"{place} lacks the columns {', '.join(map(repr, lacking))}: it has "
            f"{', '.join(map(repr, frame.columns))}"
        )
    inputs = np.zeros((len(frame), width_of(columns)), np.float32)
    unknown = {}
    start = 0
    for column in columns:
        values = frame[column["name"]]
        code = encode_numbers if column["kind"] == NUMBER else encode_categories
        part, strange = code(values, column)
        inputs[:, start : start + part.shape[1]] = part
        start += part.shape[1]
        if strange:
            unknown[column["name"]] = int(strange)
    return inputs, unknown


def encode_numbers(values, column):
    """Return numbers as [N, 1] or, with the flag of missing cells, [N, 2]; and how many missed."""
    numbers = as_numbers(values)
    missing = np.isnan(numbers)
    numbers = (np.where(missing, column["median"], numbers) - column["mean"]) / column["std"]
    parts = [numbers, missing] if column["flag"] else [numbers]
    return np.stack(parts, axis=1), missing.sum()


def encode_categories(values, column):
    """Return categories one-hot [N, number of them]; and how many cells were in no training row.

    What training has not seen goes to `other`; without that it is a row of zeros.
    """
    place = {as_word(name): number for number, name in enumerate(column["values"])}
    other = len(place) if column["other"] else -1
    codes = np.array([place.get(text, other) for text in as_text(values)], dtype=np.int64)
    hot = np.zeros((len(codes), len(place) + column["other"]), np.float32)
    seen = codes >= 0
    hot[np.flatnonzero(seen), codes[seen]] = 1
    return hot, (codes == other).sum()


def describe_columns(frame, columns, left_out):
    """Return lines on inputs, missing cells and columns left out."""
    names = {kind: [c["name"] for c in columns if c["kind"] == kind] for kind in (NUMBER, CATEGORY)}
    lines = [
        f"{len(names[NUMBER])} columns of numbers, {len(names[CATEGORY])} of categories: "
        f"{width_of(columns)} inputs"
    ]
    for kind, plural in ((NUMBER, "numbers"), (CATEGORY, "categories")):
        more = f" and {len(names[kind]) - SHOWN} more" * (len(names[kind]) > SHOWN)
        lines += [f"  {plural}: {', '.join(names[kind][:SHOWN])}{more}"] * bool(names[kind])
    for column in columns:
        values = frame[column["name"]]
        if column["kind"] == "number":
            missing = int(np.isnan(as_numbers(values)).sum())
            odd = missing - int(values.isna().sum())
            note = f" ({odd} infinite or no number)" * bool(odd)
            filled = f"filled with the training median {column['median']:g}"
            mark = ", marked in a column of their own" * column["flag"]
            text = f"  {column['name']}: {missing} missing{note}, {filled}{mark}"
            lines += [text] * bool(missing)
        elif values.isna().any():
            lines.append(f"  {column['name']}: {values.isna().sum()} missing, as a category")
    shown = {name: why for name, why in left_out.items() if why not in ("target", "group")}
    lines += [f"  {name!r} left out: {why}" for name, why in shown.items()]
    if any(why not in ("constant in training", "--drop") for why in shown.values()):
        lines.append("  (--keep COLUMN uses it all the same)")
    return lines
