"""Checkpoints of others: the official release's from Google Drive, ours from the Hugging Face Hub.

Our published checkpoints are folders of `model.safetensors`, `config.json` (the run's flags) and
`results.json`. `download.py` leaves an official file's published figures next to it. `train.py
--evaluate` prints them under its own.
"""

import json
import logging
import os
import re
from pathlib import Path

import pandas as pd

from checkpoint_file import check_tensors, dictionary_of, is_stage_one, load_checkpoint, weights_of
from fetch import compare_with_record, fetch_from_drive, write_record
from files import write_atomically
from flags import NETWORK
from outside import read_json, reading, shown

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RESULTS = "results.json"
TRAINING = "training_state.th"  # of an STS-B run, next to the weights alone
SIGNED = ("low", "high", "no_label")  # flags that may be below 0
FILES = (WEIGHTS, CONFIG, RESULTS, "vocab.txt", "README.md")  # of a published folder
BESTS = ("ckpt.best.pth.tar", "checkpoint_best.pth.tar", "model_state_best.th")  # of a run
EXPECTED = ".expected.json"  # appended to an official file's name
SHOTS = ("overall", "many", "medium", "few")
# OWNER/NAME, as the Hub lets them be called, and a branch, tag or commit without folders.
HUB_NAME = re.compile(r"(?!.*\.\.)(\w[\w.-]{0,95})/(\w[\w.-]{0,95})(@\w[\w.-]{0,95})?", re.ASCII)
LOCAL_SUFFIXES = (".safetensors", ".tar", ".th", ".pth", ".pt")
FETCHED = ("encoder",)  # flags that name what would be fetched: a file cannot set them


# ---- the official release ------------------------------------------------------------------


def fetch_official(drive_id, metric, figures, path):
    """Fetch a released checkpoint, verify that it is one, and note its published figures.

    Args:
        drive_id: of Google Drive.
        metric: name of the metric whose figures are known, as in `metrics.py`.
        figures: on the test set, of all labels and the many-, medium- and few-shot ones.
        path: `pathlib.Path` of the file.

    Raises:
        ValueError: Drive gives none, or no checkpoint, or another than the first time.
    """
    fetch_from_drive(drive_id, path)
    try:
        weights_of(load_checkpoint(path), path)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint: delete it and fetch it again") from error
    write_record(path, compare_with_record(path))
    test = {shot: {metric: figure} for shot, figure in zip(SHOTS, figures)}
    note = {"source": "README of the official release", "metrics": {"test": test}}
    write_atomically(path.with_name(path.name + EXPECTED), json.dumps(note).encode())
    print(f"next: python train.py --evaluate --eval_model {path}")


# ---- any checkpoint by its name ------------------------------------------------------------


def find(name):
    """Return the path of a checkpoint.

    Args:
        name: a file; a run folder, for its best epoch; a published folder; or OWNER/NAME[@REVISION]
            of the latter on the Hub, which is fetched once and then taken from the cache of
            huggingface_hub.

    Raises:
        FileNotFoundError, ValueError: if there is none, or the Hub gives none.
    """
    path = Path(name)
    if os.path.isdir(path):
        held = [path / file for file in (WEIGHTS, *BESTS) if (path / file).is_file()]
        if not held:
            raise ValueError(
                f"{path} is a folder without {WEIGHTS} or a best checkpoint, of names "
                f"{', '.join(BESTS)}: give the file of a checkpoint in it"
            )
        return held[0]
    local = os.path.exists(path) or os.path.isdir(path.parent) or path.suffix in LOCAL_SUFFIXES
    if local or not HUB_NAME.fullmatch(str(name)):
        return path
    from huggingface_hub import snapshot_download  # only here: a file on the disk needs none of it

    repository, _, revision = str(name).partition("@")
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=FILES)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no file {name}, and the Hugging Face Hub gives no {repository} ({error}): check the "
            "name, or fetch its folder by hand and give that"
        ) from error
    return find(Path(folder).resolve())


def load(path):
    """Read a checkpoint as data only.

    Args:
        path: as `find` returns it.

    Returns:
        Its content; of a published one the dictionary of `state_dict` and `config`.

    Raises:
        FileNotFoundError, ValueError: as `utils.load_checkpoint`.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        return load_checkpoint(path)
    from safetensors.torch import load_file

    file, again = path.with_name(CONFIG), "fetch the folder again"
    with reading(path, again):
        state = load_file(path)
        check_tensors(state, path.stat().st_size)
    return {"state_dict": state, "config": read_json(file, again) if file.exists() else {}}


def load_with_flags(path):
    """Return the weights of a checkpoint under 'state_dict', its run's flags under 'config'.

    Of weights alone those are taken from the run's files next to them; arguments and errors are
    those of `load`, and a ValueError for a network of pretrain.py, which predicts nothing yet.
    """
    checkpoint = load(path)
    weights_of(checkpoint, path)
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint, "config": config_next_to(Path(path))}
    if is_stage_one(dictionary_of(checkpoint, "config", path)):
        raise ValueError(
            f"{path} holds features of pretrain.py, whose last layer is not trained yet: "
            f"train.py --pretrained {path} --retrain_fc --reweight none"
        )
    return checkpoint


def find_weights(name):
    """Return the names -> tensors of a checkpoint, and its path; as `find` and `load`."""
    path = find(name)
    return weights_of(load(path), path), path


def note_stage_one(args, path, balances):
    """Note in the flags by which method of pretrain.py the checkpoint was trained: 'rnc', or ''.

    Raises:
        ValueError: if by none, and nothing acts against the imbalance in --retrain_fc.
    """
    args.pretraining = str(dictionary_of(load(path), "config", path).get("pretraining", ""))
    if args.retrain_fc and not (balances or args.pretraining):
        raise ValueError(
            "--retrain_fc needs something against the imbalance: --reweight, or --loss bmc, gai, "
            f"bni or gar, or --experts, or features of pretrain.py, which {path} does not hold"
        )


def load_for_evaluation(run, best):
    """Return the path and the content of the checkpoint that is to be evaluated.

    The flags that make the network are taken from it.

    Args:
        run: `run_folder.Run`: --eval_model says which checkpoint, else --resume, else it is the
            best in the run folder; its flags are changed.
        best: file name of the latter.

    Raises:
        FileNotFoundError, ValueError: as `find`, `load` and `take_flags`.
    """
    given = run.args.eval_model or run.args.resume.removeprefix("auto")
    path = find(given or run.folder / best)
    checkpoint = load_with_flags(path)
    take_flags(run.args, checkpoint, path, run.parser.flags_of(NETWORK))
    return path, checkpoint


def config_next_to(path):
    """Return the flags of the run whose weights alone a file holds; {} if no file there says them.

    Args:
        path: of STS-B's weights, in a run folder.
    """
    results, training = path.with_name(RESULTS), path.with_name(TRAINING)
    if results.is_file():
        remedy = "move it away, and give the flags of the network"
        return dictionary_of(read_json(results, remedy), "config", results)
    return (
        dictionary_of(load_checkpoint(training), "config", training) if training.is_file() else {}
    )


def take_flags(args, checkpoint, path, flags):
    """Set the flags that make the network to what they were when a checkpoint was trained.

    Args:
        args: of the evaluation; changed.
        checkpoint, path: the content of the file, which has the flags under 'config', if any.
        flags: names of those flags.

    Raises:
        ValueError: if the file's flag is of another type, or a number below 0.
    """
    config = dictionary_of(checkpoint, "config", path)
    taken = []
    for flag in flags:
        value = config.get(flag, getattr(args, flag))
        now = getattr(args, flag)
        if value == now:
            continue
        numbers = isinstance(value, (int, float)) and value < 0 and flag not in SIGNED
        if numbers or (None not in (value, now) and type(value) is not type(now)):
            raise ValueError(f"{path} is damaged: its config has --{flag} {shown(value)}")
        if flag in FETCHED and value:
            raise ValueError(
                f"{path} was trained with --{flag} {shown(value)}, which would be fetched and run: "
                "give that flag yourself if you trust it"
            )
        taken.append(f"--{flag} {value}")
        setattr(args, flag, value)
    if taken:
        logging.info("%s, with which %s was trained", ", ".join(taken), path)


def log_expected(path, metrics):
    """Log the published figures of a checkpoint, if any, next to those that were found.

    Args:
        path: of the checkpoint.
        metrics: of the test set by shot, `{shot: {metric: value}}`.
    """
    path = Path(path)
    note = path.with_name(path.name + EXPECTED)
    if path.suffix == ".safetensors":
        note = path.with_name(RESULTS)
    if not note.is_file():
        return
    rows = {}
    try:
        with reading(note, "evaluation needs none"):
            expected = json.loads(note.read_text(encoding="utf-8"))["metrics"]["test"]
            for metric in expected["overall"]:
                if metric != "num_samples" and metric in metrics["overall"]:
                    for side, of in (("here", metrics), ("published", expected)):
                        rows[f"{metric}, {side}"] = [of[shot][metric] for shot in SHOTS]
            # JSON has no NaN: a shot without samples is null there.
            table = pd.DataFrame.from_dict(rows, "index", columns=SHOTS).astype(float)
    except ValueError as error:
        return logging.warning("No published figures can be read: %s", error)
    text = table.to_string(float_format=lambda value: f"{value:.3f}", na_rep="–")
    logging.info("Test set, here and as published with %s:\n%s", path, text)
