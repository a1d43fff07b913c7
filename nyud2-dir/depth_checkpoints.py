"""Checkpoints in NYUD2's format: `{state_dict, epoch, error, metric}`, epoch the last finished.

Ours hold more beside (optimizer, best epoch, flags); the official ones hold no optimizer, and
numpy scalars in `error` and `metric`.
"""

import logging
from pathlib import Path

from run_folder import restore_training, start_statistics
from utils import load_checkpoint, load_state, weights_of, write_atomically

FDS = "R.FDS."  # where the statistics lie in the network


def load_weights(model, state_dict, path, skip=()):
    """Load weights into a model, with or without `module.` and with or without FDS's buffers.

    Args, Returns and Raises are those of `utils.load_state`. Statistics that the file lacks, or
    that the model has no FDS for, are left.
    """
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if model.FDS is None:
        given = {name: value for name, value in given.items() if not name.startswith(FDS)}
    lacking = () if any(name.startswith(FDS) for name in given) else (FDS,)
    return load_state(model, given, path, skip=(*lacking, *skip))


def make_state(model, optimizer, accelerator, progress, row, args):
    """Return the checkpoint of a finished epoch.

    Args:
        model, optimizer, accelerator, args: of the run.
        progress: the run's `epoch` (the next one), `error` (the least so far), `best_epoch`,
            `wall_seconds`.
        row: the epoch's line; its metrics over all pixels are the file's `metric`.
    """
    state = {
        **progress, "epoch": progress["epoch"] - 1, "metric": row["val"]["overall"],
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
        "config": vars(args), "format": "nyud2-dir",
    }  # fmt: skip
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    return state


def restore(path, accelerator, model, optimizer, args, best):
    """Load a checkpoint, an official one too, to go on from it.

    Args:
        path: the checkpoint.
        accelerator, model, optimizer, args: of the run.
        best: path in the run folder for the best epoch's checkpoint. If the run comes from
            elsewhere, the best beside `path` is copied there, or `path` itself.

    Returns:
        Dictionary of the next epoch (`epoch`), the least error and the best epoch so far, and the
        seconds spent.

    Raises:
        ValueError: if it is another model's or another optimizer's.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
        raise ValueError(f"{path} does not say its epoch: start from its weights with --pretrained")
    untouched = load_weights(model, weights_of(checkpoint, path), path)
    if FDS + "epoch" in untouched:
        start_statistics(model.FDS, int(checkpoint["epoch"]) + 1, path)
    restore_training(path, checkpoint, accelerator, optimizer, args)
    # The official error is the test set's, and of an epoch whose weights are not in the file; with
    # another --select or --seed it is of other pictures than the ones that choose now.
    config = checkpoint.get("config", {})
    same = all(config.get(flag) == getattr(args, flag) for flag in ("select", "seed"))
    ours = checkpoint.get("format") == "nyud2-dir" and same
    kept = ("error", "best_epoch", "wall_seconds") if ours else ()
    progress = {key: checkpoint[key] for key in kept} | {"epoch": int(checkpoint["epoch"]) + 1}
    if "optimizer" not in checkpoint:
        logging.warning("%s holds no optimizer: a fresh one goes on from its weights", path)
    if not best.is_file():
        beside = Path(path).with_name(best.name)
        if not (ours and beside.is_file()):  # what the best epoch's weights were is not known
            beside, progress["error"], progress["best_epoch"] = Path(path), float("inf"), None
        if accelerator.is_main_process:
            write_atomically(best, beside.read_bytes())
    logging.info("Going on from %s at epoch %d", path, progress["epoch"])
    return progress
