"""Health scores, or your own target, of new nights by a trained model; no scores are needed.

    python predict.py --model checkpoint/RUN nights/*.edf --out predictions.csv

In Python: `predict.load("checkpoint/RUN").predict(["night.edf"])`, a table.
"""

import new_inputs
import program

SUFFIXES = (".edf", ".h5")
OWN_SUFFIXES = (".csv", ".npy", *SUFFIXES)  # of a model of your own signals


def parse_args(argv=None):
    """Parse the command line."""
    inputs = "recordings (EDF; your own signals also CSV or .npy), .h5 of prepare.py, or folders"
    parser = new_inputs.make_parser(__doc__, inputs, 8)
    minutes_help = "shorter recordings are left out, as in prepare.py"
    parser.add_argument("--min_minutes", type=float, help=minutes_help)
    unit_help = "of EEG, ECG or your own channels where a file gives none"
    parser.add_argument("--unit", default="", choices=("", "uV", "mV", "V"), help=unit_help)
    return new_inputs.parse_args(parser, argv)


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

import train
from criterion import columns_of, in_unit
from night_file import check_values, read_facts
from own_signals import convert, layout_fault, least_minutes, signals_of
from recordings import read_recording


class Predictor:
    """A trained model that takes new nights.

    Args:
        name: run folder, file of a checkpoint, or OWNER/NAME on the Hugging Face Hub.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
        min_minutes, unit: as for `recordings.read_recording`; None takes 120, or one frame of
            your own signals.

    Raises:
        FileNotFoundError, ValueError: without such a checkpoint.
    """

    def __init__(self, name, device="auto", min_minutes=None, unit=""):
        path, checkpoint, self.args = new_inputs.find_model(train, name)
        self.signals = signals_of(self.args)
        # Recordings in other units are brought to these.
        self.units = str(train.evaluation.noted_in(path, checkpoint).get("units", ""))
        self.min_minutes = least_minutes(min_minutes, self.signals)
        self.unit = unit
        self.device = new_inputs.device_of(device)
        model = train.build_model(self.args)
        train.utils.load_state(model, train.utils.weights_of(checkpoint, path), path)
        self.model = model.to(self.device).eval()

    def predict(self, inputs, batch_size=8, quiet=True):
        """Predict nights.

        Args:
            inputs: paths of recordings or nights, of folders of them, or patterns.
            batch_size, quiet: nights of a batch; show no progress bar.

        Returns:
            DataFrame of path and prediction, in the target's unit, and of experts `std`. Nights
            that cannot be used are not in it: its `attrs["faults"]` lists (path, error).
        """
        files = new_inputs.files_of(inputs, OWN_SUFFIXES if self.args.channels else SUFFIXES)
        given = files, self.read, self.answer, batch_size, quiet
        rows, answers, faults = new_inputs.read_and_answer(*given)
        table = pd.DataFrame({"path": [str(files[row]) for row in rows], **columns_of(answers)})
        table.attrs[new_inputs.FAULTS] = faults
        return table

    def read(self, file):
        """Return what the network sees of a night: {signal: [channels, columns]}."""
        if Path(file).suffix.lower() != ".h5":
            night = read_recording(file, self.signals, self.min_minutes, self.unit)
            values = {name: night[name] for name in self.signals}
            return convert(values, self.signals, night.get("units", ""), self.units)
        with h5py.File(file) as night:
            if fault := layout_fault(night.attrs.get("layout", ""), self.signals):
                raise ValueError(fault)
            read_facts(night, self.signals)
            values = {name: night[name][()] for name in self.signals}
            for name, array in values.items():
                check_values(night[name], array)
            return convert(values, self.signals, night.attrs.get("units", ""), self.units)

    @torch.inference_mode()
    def answer(self, nights):
        """Return the answers to such nights, [n, 1] or [n, 2], in the target's unit."""
        first, layout = next(iter(self.signals.items()))
        frames = [night[first].shape[1] // layout.frame for night in nights]
        signals = {}
        for name, signal in self.signals.items():
            shape = (len(nights), signal.channels, max(frames) * signal.frame)
            padded = np.zeros(shape, dtype=signal.dtype)
            for row, night in zip(padded, nights):
                row[:, : night[name].shape[1]] = night[name]
            signals[name] = torch.from_numpy(padded).to(self.device)
        answers = self.model(signals, frames)[0].float().cpu().numpy()
        target = train.TARGET.of(self.args)
        return (in_unit(answers, target.unscaled) if target.own else answers).tolist()


load = Predictor


def main(argv=None):
    """Write the predictions; returns the exit status, 1 if an input could not be used."""
    args = parse_args(argv)
    model = load(args.model, args.device, args.min_minutes, args.unit)
    return new_inputs.finish(model.predict(args.inputs, args.batch_size, quiet=False), args.out)


if __name__ == "__main__":
    program.run(main)
