"""Evaluation of a checkpoint: on the splits that the data have, with or without training rows.

Shots follow the training set. A run notes what they need, such as its training samples per bucket,
in its checkpoints and in `results.json`; it is taken from there where the data lack training rows.
"""

import logging
import os
from pathlib import Path

import numpy as np

import released
import results
from checkpoint_file import dictionary_of, load_checkpoint
from outside import read_json, reading

FOLDER = "evaluation"  # in the checkpoint's run folder, whose own predictions stay as they are
KEPT = ("results.json", "epochs.jsonl")  # show a run folder
SPLITS = ("val", "test")
MOST_SAMPLES = 10**8  # of a training set; a file that says more is damaged


# ---- where its predictions go --------------------------------------------------------------


def load(run, best):
    """Return path and content of the checkpoint to evaluate, as `released.load_for_evaluation`.

    The run's folder becomes the one that gets the predictions; nothing is written yet.

    Raises:
        ValueError: if that folder has predictions already, or cannot be written.
    """
    path, checkpoint = released.load_for_evaluation(run, best)
    run.folder = folder_of(path, run.args)
    file = run.folder / FOLDER / "predictions.csv"
    if file.exists() and not run.args.overwrite:
        raise ValueError(f"{file} exists: move it away, or --overwrite replaces it")
    if not is_writable(file.parent):
        raise ValueError(f"{file} cannot be written: give another --store_root")
    return path, checkpoint


def folder_of(path, args):
    """Return the folder that gets the evaluation of a checkpoint.

    That is its run folder. A published folder, a name on the Hub, a file elsewhere and a run that
    cannot be written get a folder of their name in --store_root.

    Args:
        path: of the checkpoint.
        args: the flags.
    """
    path, given = Path(path), args.eval_model or args.resume
    name = path.name
    while Path(name).suffix in released.LOCAL_SUFFIXES:
        name = Path(name).stem
    if path.suffix == ".safetensors":
        name = path.parent.resolve().name if os.path.exists(given) else given.replace("/", "_")
    elif path.name in released.BESTS or any(path.with_name(kept).is_file() for kept in KEPT):
        if is_writable(path.parent / FOLDER):
            return path.parent
        name = path.parent.resolve().name
        logging.warning("%s cannot be written: predictions go to --store_root", path.parent)
    return Path(args.store_root) / name


def is_writable(folder):
    """Whether a folder, which need not exist yet, can be written."""
    while not folder.is_dir():
        folder = folder.parent
    return os.access(folder, os.W_OK)


# ---- what it needs, and what it leaves -----------------------------------------------------


def splits_in(column):
    """Return which of val and test a column of splits names; a ValueError if none."""
    held = set(column)
    found = [split for split in SPLITS if split in held]
    if not found:
        raise ValueError("the data have no row of split val or test: nothing can be evaluated")
    return found


def on_splits(evaluate, run, model, data):
    """Evaluate val and test, as far as `data` have a loader of them.

    Args:
        evaluate: of train.py; run, model and data are its arguments.

    Returns:
        `{split: metrics by shot}`, and `{split: answers}`.
    """
    metrics, answers = {}, {}
    for split in [split for split in SPLITS if split in data.loaders]:
        metrics[split], answers[split] = evaluate(run, model, data, split)
    return metrics, answers


def noted_in(path, checkpoint):
    """Return what a run noted of its training set; {} if nothing says it.

    Args:
        path, checkpoint: the file that is evaluated and its content; next to weights alone, the
            run's `results.json` or `training_state.th` says it.
    """
    noted = dictionary_of(checkpoint, "training", path)
    for name in (released.RESULTS, released.TRAINING):
        file = Path(path).with_name(name)
        if not noted and file.is_file():
            read = (
                load_checkpoint(file)
                if name == released.TRAINING
                else read_json(file, "move it away")
            )
            noted = dictionary_of(read, "training", file)
    return noted


def training_of(path, checkpoint):
    """Return what a run noted of its training set, for data without training rows.

    Args:
        path, checkpoint: as for `noted_in`.

    Returns:
        Dictionary of `counts`, training samples per bucket, long [B], and what its benchmark adds.

    Raises:
        ValueError: if nothing says it, or it is damaged.
    """
    noted = noted_in(path, checkpoint)
    if not noted:
        raise ValueError(
            f"{path} does not say how many training samples each bucket had, and the data have no "
            "training row, so no shot is known: evaluate it with the training rows"
        )
    with reading(path, "evaluate it with the training rows"):
        counts = np.array(noted["counts"])
        if counts.ndim != 1 or (len(counts) and counts.dtype.kind != "i"):
            raise ValueError("its training counts are no list of whole numbers")
        if (counts < 0).any() or counts.sum(dtype=float) > MOST_SAMPLES:
            raise ValueError("its training counts are below 0 or too many")
    return {**noted, "counts": counts.astype(np.int64)}


def finish(run, path, metrics, predictions):
    """Print metrics by shot, next to published ones, and write `evaluation/predictions.csv`.

    Args:
        run: `run_folder.Run`.
        path: of the checkpoint.
        metrics: `{split: {shot: {metric: value}}}`.
        predictions: DataFrame with the columns of a run's own `predictions.csv`.

    Returns:
        The metrics of the test set, without one those of the validation set.
    """
    for split, found in metrics.items():
        logging.info("%s, %s set:\n%s", path, split, results.metrics_table(found))
    if "test" in metrics:
        released.log_expected(path, metrics["test"])
    if run.is_main:
        folder = run.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        results.write_predictions(folder, predictions)
        logging.info("Predictions are in %s", folder / "predictions.csv")
    return metrics.get("test") or metrics["val"]
