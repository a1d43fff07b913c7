"""Predictions for new rows of a table by a trained model; no labels are needed.

    python predict.py --model checkpoint/RUN new.csv --out predictions.csv

Columns go by their names; others are carried along. In Python:
`predict.load("checkpoint/RUN").predict(frame)`, with a pandas DataFrame.
"""

import new_inputs
import program

SUFFIXES = (".csv", ".tsv", ".txt", ".data")


def parse_args(argv=None):
    """Parse the command line."""
    inputs = "tables of rows, folders of them, or patterns"
    return new_inputs.parse_args(new_inputs.make_parser(__doc__, inputs, 8192), argv)


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import logging
import sys

import numpy as np
import pandas as pd
import torch

import train
from columns import encode
from criterion import columns_of
from datasets import TargetScale
from new_rows import answers_in_unit, preparation_of, read_new, readable_rows, with_columns


class Predictor:
    """A trained model that takes new rows.

    Args:
        name: run folder, file of a checkpoint, or OWNER/NAME on the Hugging Face Hub. What becomes
            of the columns is the checkpoint's.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        FileNotFoundError, ValueError: without such a checkpoint.
    """

    def __init__(self, name, device="auto"):
        path, checkpoint, self.args = new_inputs.find_model(train, name)
        self.preparation = preparation_of(checkpoint, path)
        self.args.preparation = self.preparation
        self.scale = TargetScale(self.args.target_scale, self.preparation["target"])
        self.device = new_inputs.device_of(device)
        state = train.utils.weights_of(checkpoint, path)
        model = train.build_model(self.args, state)
        train.utils.load_state(model, state, path)
        self.model = model.to(self.device).eval()

    def predict(self, frame, batch_size=8192, place="the table", taken=()):
        """Return a copy of a DataFrame with a column `prediction` and, of experts, `std`.

        Args:
            frame: the rows; columns go by name, a cell that training did not know is warned about.
            batch_size: rows that are predicted together.
            place: where the rows come from, for messages.
            taken: names that the new columns must not have.

        Rows with text in a column of numbers are not in it: its `attrs["faults"]` then holds
        (place, sentence on them).

        Raises:
            ValueError: naming the columns that are missing; or if no row can be read.
        """
        frame, fault = readable_rows(frame, self.preparation["columns"])
        inputs, unknown = encode(frame, self.preparation["columns"], place)
        for name, cells in unknown.items():
            given = place, name, cells
            logging.warning("%s, %s: %d cells are missing, or no category of training", *given)
        starts = range(0, len(inputs), batch_size)
        answers = [self.answer(inputs[start : start + batch_size]) for start in starts]
        table = with_columns(frame, columns_of(np.concatenate(answers)), taken)
        table.attrs[new_inputs.FAULTS] = [(place, fault)] if fault else []
        return table

    @torch.inference_mode()
    def answer(self, inputs):
        """Return the answers to encoded rows, float64 [n, 1] in the target's unit.

        Those of experts are [n, 2], with the standard deviation.
        """
        inputs = torch.from_numpy(np.asarray(inputs, dtype=np.float32)).to(self.device)
        answers = self.model(inputs)[0].cpu().double().numpy()
        return answers_in_unit(answers, self.scale)


load = Predictor


def main(argv=None):
    """Write the rows with predictions; returns 1 if a table could not be used, else 0."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    model = load(args.model, args.device)
    frames = {}
    tables = []
    faults = []
    files = new_inputs.files_of(args.inputs, SUFFIXES)
    for file in files:
        try:
            frames[file], _ = read_new(file, model.preparation)
        except (ValueError, OSError) as error:
            faults.append((file, error))
    taken = {name for frame in frames.values() for name in frame}  # one name in all of them
    for file, frame in frames.items():
        try:
            table = model.predict(frame, args.batch_size, str(file), taken)
        except ValueError as error:
            faults.append((file, error))
            continue
        faults += table.attrs.pop(new_inputs.FAULTS)
        source = {"file": str(file)} if len(files) > 1 else {}
        tables.append(with_columns(table, source, taken))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"prediction": []})
    table.attrs[new_inputs.FAULTS] = faults
    return new_inputs.finish(table, args.out)


if __name__ == "__main__":
    program.run(main)
