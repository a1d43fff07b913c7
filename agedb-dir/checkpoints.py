"""Checkpoints of a run: `{epoch, model, best_loss, state_dict, optimizer}`, epoch the next one.

That is the released age folders' format; ours hold more next to it (best epoch, flags, scaler).
"""

import logging

import restoring
from checkpoint_file import load_checkpoint, number_of, weights_of
from utils import load_state
from within import Within

LAST, BEST = "ckpt.pth.tar", "ckpt.best.pth.tar"
PROGRESS = ("epoch", "best_loss", "best_epoch", "wall_seconds")


def state_of(run, model, optimizer, progress):
    """Return what a checkpoint holds; the arguments are those of `save`."""
    return {
        **progress,
        "model": getattr(run.args, "model", type(model).__name__),
        "state_dict": model.state_dict(),
        **restoring.training_state(run, optimizer),
    }


def save(run, model, optimizer, progress, is_best):
    """Write the checkpoint of a finished epoch.

    Args:
        run, model, optimizer: of the run.
        progress: dictionary of `PROGRESS`.
        is_best: whether this epoch is the best so far.
    """
    # The last one comes last: a run stopped in between resumes from the epoch before.
    names = [BEST, LAST] if is_best else [LAST]
    state = state_of(run, model, optimizer, progress)
    restoring.write_checkpoint(run, dict.fromkeys(names, state))


def saving(run, model, optimizer, progress):
    """Return the context in which a run is also saved within an epoch, as `within.Within`."""
    return Within(run, model, lambda: state_of(run, model, optimizer, progress))


def restore(run, path, model, optimizer):
    """Load a checkpoint, an official one too, to resume from it.

    Args:
        run, model, optimizer: of the run.
        path: the checkpoint. If it lies elsewhere, the best one next to it is copied into the run
            folder, or the checkpoint itself.

    Returns:
        What it says of `PROGRESS`.

    Raises:
        ValueError: if it is another model's or another optimizer's.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
        raise ValueError(f"{path} does not say its epoch: start from its weights with --pretrained")
    epoch = int(number_of(checkpoint, "epoch", path))
    if epoch > run.args.epoch:
        raise ValueError(f"{path} has {epoch} epochs already: --epoch {run.args.epoch} is too few")
    untouched = load_state(model, weights_of(checkpoint, path), path)
    if "FDS.epoch" in untouched:
        restoring.start_statistics(model.FDS, epoch, path)
    restoring.restore_training(run, path, checkpoint, optimizer)
    progress = {"best_loss": float("inf"), "best_epoch": None}
    for name in PROGRESS:
        if checkpoint.get(name) is not None:
            progress[name] = number_of(checkpoint, name, path)
    progress["epoch"] = epoch
    if not restoring.keep_best(run, path, BEST):  # what the best epoch's weights were is unknown
        progress |= {"best_loss": float("inf"), "best_epoch": None}
    logging.info("Resuming from %s at epoch %d", path, progress["epoch"])
    return progress
