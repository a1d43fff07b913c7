"""What a run leaves in its folder, read and checked: for the figures and tables of `report.py`."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from figures import SHOTS
from outside import check_archive, check_lines, read_json, reading, shown

AGAIN = "`python train.py --resume` with the run's other flags writes it again"
# What the figures and tables take from results.json, and of what type.
NEEDED = {
    "benchmark": str, "method": str, "seed": int, "target": dict, "main_metrics": list,
    "higher_is_better": list, "metrics": dict, "wall_seconds": (int, float), "config": dict,
}  # fmt: skip
# What they take from the tables, all numbers.
COLUMNS = {
    "predictions": ("label", "prediction"),
    "label_density": ("label", "count", "emp_label_dist", "eff_label_dist", "weight"),
}
STATISTICS = ("running_mean", "smoothed_mean", "running_var", "smoothed_var")


def load_run(folder):
    """Read all that a run folder holds.

    Args:
        folder: path of a folder written by train.py.

    Returns:
        The dictionary of `results.json` with `folder` (Path), `epochs` (list of dictionaries, in
        order), `predictions`, `label_density` (DataFrame) and `fds_statistics` (dictionary of
        arrays). The last three are None where the run has no such file.

    Raises:
        FileNotFoundError: without `results.json`.
        ValueError: naming a file that is damaged.
    """
    folder = Path(folder).resolve()
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no results.json in {folder}: it is no run folder, or its run has not finished "
            f"({AGAIN})"
        )
    run = {"sample": "sample"} | read_json(path, AGAIN)  # what a label belongs to, or a pixel
    with reading(path, AGAIN):
        check_results(run)
    path = folder / "epochs.jsonl"
    run |= {"folder": folder, "epochs": read_epochs(path)}
    check_lines(path, run["epochs"], run["config"].get("val_interval"))
    for name, columns in COLUMNS.items():
        path = folder / f"{name}.csv"
        with reading(path, AGAIN):
            run[name] = read_numbers(path, columns) if path.is_file() else None
    with reading(folder / "predictions.csv", AGAIN):
        check_rows(run)
    path = folder / "fds_statistics.npz"
    with reading(path, AGAIN):
        run["fds_statistics"] = read_statistics(path) if path.is_file() else None
    return run


def check_results(run):
    """Refuse results of which no figures and tables can be made; any error says why."""
    if missing := [key for key in NEEDED if key not in run]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key, kind in NEEDED.items():
        if not isinstance(run[key], kind):
            raise ValueError(f"its {key} is {shown(run[key])}")
    if not isinstance(run["target"]["name"], str) or not isinstance(
        run.get("best_epoch"), (int, float, type(None))
    ):
        raise ValueError("its target or best_epoch is none")
    for key in ("place_flags", "changed_flags"):
        if not all(isinstance(flag, str) for flag in run.get(key, ())):
            raise ValueError(f"its {key} is {shown(run[key])}")
    for shots in run["metrics"].values():
        for shot in SHOTS:
            if int(shots[shot]["num_samples"]) < 0:
                raise ValueError(f"its num_samples is {shots[shot]['num_samples']}")
            for metric in run["main_metrics"]:
                if not np.isfinite(float(shots[shot][metric] or 0)):
                    raise ValueError(f"its {metric} is {shots[shot][metric]}")


def check_rows(run):
    """Refuse predictions of fewer or more samples than the metrics are of; pixels are a sample."""
    table = run["predictions"]
    if table is None or "split" not in table or {"y", "x"} <= {*table}:
        return
    for split, shots in run["metrics"].items():
        rows, number = int((table["split"] == split).sum()), int(shots["overall"]["num_samples"])
        if rows != number:
            raise ValueError(f"it has {rows} rows of {split}, and the metrics are of {number}")


def read_epochs(path):
    """Return the lines of `epochs.jsonl` by epoch; one cut off when the run was killed is none."""
    epochs = {}
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, OverflowError):
            row = json.loads(line)
            number = float(row["epoch"])
            if np.isfinite(number) and isinstance(row["val"], dict) and "train_loss" in row:
                epochs[number] = row  # a resumed run repeats epochs: the last time counts
    return [epochs[number] for number in sorted(epochs)]


def read_numbers(path, columns):
    """Return a table of a run in which these columns are numbers; any error says what is wrong."""
    table = pd.read_csv(path)
    for name in columns:
        table[name] = table[name].astype(np.float64)
    labels = table["label"].to_numpy()
    if table.empty or not np.isfinite(labels).all():
        raise ValueError("it has no row, or a label that is no number")
    if "count" in table and not (np.diff(labels) > 0).all():
        raise ValueError("its labels do not rise")
    if "count" in table and not table["count"].between(0, 2**53).all():
        raise ValueError("its counts are none")
    return table


def read_statistics(path):
    """Return the arrays of `fds_statistics.npz`, buckets first; any error says what is wrong."""
    check_archive(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: np.asarray(file[name]) for name in file.files}
    labels = arrays["label"].astype(np.float64)
    right = labels.ndim == 1 and arrays["num_samples_tracked"].shape == labels.shape
    shape = (len(labels), arrays["running_mean"].shape[-1])
    if not right or any(arrays[name].shape != shape for name in STATISTICS):
        raise ValueError("its arrays do not go together")
    if not all(array.dtype.kind in "iuf" for array in arrays.values()):
        raise ValueError("its arrays are no numbers")
    return arrays
