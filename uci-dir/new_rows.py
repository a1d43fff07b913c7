"""New rows for a trained model: encoded as its training rows were, written with predictions.

python train.py --predict new.csv --eval_model checkpoint/RUN/ckpt.best.pth.tar
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from batches import Sharing, gather
from columns import NUMBER, encode
from criterion import columns_of, in_unit
from datasets import Loader, TargetScale, check_preparation
from files import write_atomically
from outside import reading, shown
from table_file import read_table


class NewRows(NamedTuple):
    """A table of new rows."""

    frame: pd.DataFrame  # as read
    inputs: np.ndarray  # float32 [N, D]
    out: Path  # where predictions go


def read_rows(file, preparation, overwrite=False):
    """Read new rows, and say which of their cells training did not know.

    Args:
        file: path of the table; columns go by name, others than the inputs are passed over.
        preparation: of the checkpoint.
        overwrite: whether earlier predictions may be replaced.

    Returns:
        `NewRows`.

    Raises:
        FileNotFoundError: without the table.
        ValueError: naming the columns that are missing, as `readable_rows`, or if predictions
            exist already.
    """
    file = Path(file)
    out = file.with_name(f"{file.stem}.predictions.csv")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: --overwrite replaces it")
    frame, form = read_new(file, preparation)
    frame, fault = readable_rows(frame, preparation["columns"])
    inputs, unknown = encode(frame, preparation["columns"], str(file))
    logging.info("%s: %s", file, form)
    if fault:
        logging.warning("%s: %s", file, fault)
    for name, cells in unknown.items():
        logging.warning("%s: %d cells are missing, or no category of training", name, cells)
    return NewRows(frame, inputs, out)


def read_new(file, preparation):
    """Return a table of new rows and a sentence on its form; errors are those of `read_table`."""
    form = preparation.get("form", (None, None, None))
    return read_table(file, form, preparation["missing"], preparation["columns"])


def readable_rows(frame, columns):
    """Return the rows without text in a column of numbers, and a sentence on the others, or ''.

    Args:
        frame: the rows.
        columns: of a preparation.

    Raises:
        ValueError: if no row is left.
    """
    names = [c["name"] for c in columns if c["kind"] == NUMBER and c["name"] in frame]
    cells = frame[names]
    numbers = cells.apply(pd.to_numeric, errors="coerce")
    wrong = (cells.notna() & numbers.isna()).to_numpy()
    if not wrong.any():
        return frame, ""
    left_out = wrong.any(axis=1)
    row, column = np.argwhere(wrong)[0]
    said = (
        f"{wrong.sum()} cells are no numbers, the first {shown(cells.iat[row, column])!r} (column "
        f"{names[column]!r}, row {row + 1} below the header): {left_out.sum()} rows are left out; "
        "write numbers as in training, and leave a cell empty that has none"
    )
    if left_out.all():
        raise ValueError(said)
    return frame[~left_out], said


def with_columns(frame, columns, taken=()):
    """Return a DataFrame with further columns, {name: values [N]}; its own keep their names.

    Names in `taken` are not used either.
    """
    free = {}
    for name, values in columns.items():
        while name in frame or name in taken:
            name += "_"
        free[name] = values
    return pd.concat([frame, pd.DataFrame(free, index=frame.index)], axis=1)


def write(rows, columns, checkpoint):
    """Write the rows with further columns, and say by which checkpoint they are.

    Args:
        rows: `NewRows`.
        columns: {name: values [N]}; `prediction`, and of experts `std`.
        checkpoint: path of it.
    """
    frame = with_columns(rows.frame, columns)
    write_atomically(rows.out, frame.to_csv(index=False, lineterminator="\n").encode())
    logging.info("%d predictions by %s: %s", len(frame), checkpoint, rows.out)


@torch.no_grad()
def predict_rows(run, model, loader, scale):
    """Return the answers to a loader's rows in order, float64 [N, 1], in the target's unit.

    Those of experts are [N, 2], with the standard deviation.
    """
    model.eval()
    answers = []
    for batch in loader.evaluate():
        with run.accelerator.autocast():
            answers.extend(model(batch.inputs)[0].cpu().double().tolist())
    answers = np.array(gather(run.accelerator, answers))
    return answers_in_unit(answers, scale)


def answers_in_unit(answers, scale):
    """Return a network's answers [N, 1], of experts [N, 2], in the target's unit, with ten digits.

    So what is measured is what is written; float32 would lose the tens of 45,000,000.
    """
    answers = in_unit(answers, scale.invert)
    return np.reshape([float(f"{value:.10g}") for value in answers.flat], answers.shape)


def preparation_of(checkpoint, path):
    """Return how a checkpoint's table was prepared; a ValueError if its content does not say."""
    preparation = checkpoint.get("config", {}).get("preparation")
    with reading(path, "it does not say how its table was prepared; give one of this folder"):
        check_preparation(preparation)
    return preparation


def run_prediction(run, loaded):
    """Write the rows of --predict with a column `prediction`; returns the path of that file.

    Args:
        run: `run_folder.Run`.
        loaded: path, content and model of the checkpoint.
    """
    args, (path, _, model) = run.args, loaded
    rows = read_rows(args.predict, args.preparation, args.overwrite)
    nothing = np.zeros(len(rows.inputs))
    loader = Loader(rows.inputs, nothing, nothing, nothing, Sharing.of(args, run.accelerator))
    scale = TargetScale(args.target_scale, args.preparation["target"])
    answers = predict_rows(run, model, loader, scale)
    if run.is_main:
        write(rows, columns_of(answers), path)
    return rows.out
