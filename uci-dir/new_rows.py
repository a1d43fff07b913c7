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
from columns import check_preparation, encode
from criterion import columns_of, in_unit
from datasets import Loader, TargetScale
from files import write_atomically
from outside import reading
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
        ValueError: naming the columns that are missing, or if predictions exist already.
    """
    file = Path(file)
    out = file.with_name(f"{file.stem}.predictions.csv")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: --overwrite replaces it")
    frame, form = read_table(file, missing=preparation["missing"])
    inputs, unknown = encode(frame, preparation["columns"], str(file))
    logging.info("%s: %s", file, form)
    for name, cells in unknown.items():
        logging.warning("%s: %d cells are missing, or were not in training", name, cells)
    return NewRows(frame, inputs, out)


def with_columns(frame, columns):
    """Return a DataFrame with further columns, {name: values [N]}; its own keep their names."""
    for name, values in columns.items():
        while name in frame:
            name += "_"
        frame = frame.assign(**{name: values})
    return frame


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
    """Return the answers to a loader's rows in order, float32 [N, 1], in the target's unit.

    Those of experts are [N, 2], with the standard deviation.
    """
    model.eval()
    answers = []
    for batch in loader.evaluate():
        with run.accelerator.autocast():
            answers.extend(model(batch.inputs)[0].cpu().double().tolist())
    answers = np.array(gather(run.accelerator, answers))
    return np.float32(in_unit(answers, scale.invert))


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
