"""Checkpoints of a run: `{state_dict, epoch, error, metric}`, epoch the last finished one.

That is NYUD2's released format, whose files hold no optimizer, and numpy scalars in `error` and
`metric`. Ours hold more next to it (optimizer, best epoch, flags, scaler).
"""

import logging

import restoring
from checkpoint_file import dictionary_of, load_checkpoint, number_of, weights_of
from utils import load_state
from within import Within

LAST = "checkpoint.pth.tar"
BEST = "checkpoint_best.pth.tar"
FINAL = "checkpoint_final.pth.tar"
FORMAT = "nyud2-dir"  # tells our files from the official ones
PROGRESS = ("error", "best_epoch", "wall_seconds")
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


def state_of(run, model, optimizer, progress):
    """Return what a checkpoint holds; the arguments are those of `save`."""
    return {
        **progress,
        "epoch": progress["epoch"] - 1,
        "state_dict": model.state_dict(),
        "format": FORMAT,
        **restoring.training_state(run, optimizer),
    }


def save(run, model, optimizer, progress, is_best):
    """Write the checkpoint of a finished epoch.

    Args:
        run, model, optimizer: of the run.
        progress: dictionary of `epoch` (the next one), `PROGRESS` (error is the least so far), and
            `metric`, the epoch's metrics over all pixels.
        is_best: whether this epoch is the best so far.
    """
    # The last one comes last: a run stopped in between resumes from the epoch before.
    names = [BEST, LAST] if is_best else [LAST]
    if progress["epoch"] == run.args.epochs:
        names.insert(0, FINAL)
    state = state_of(run, model, optimizer, progress)
    restoring.write_checkpoint(run, dict.fromkeys(names, state))


def pixels_of(noted, path, buckets):
    """Return the training pixels per bucket of which a run has its shots, None for fixed lists.

    Args:
        noted, path: what the run noted of its training set, as `evaluation.noted_in`, and the
            file; official and older ones hold none.
        buckets: how many there are.

    Raises:
        ValueError: if they are no such numbers.
    """
    pixels = noted.get("pixels")
    whole = isinstance(pixels, list) and all(type(n) is int and n >= 0 for n in pixels)
    if pixels is not None and not (whole and len(pixels) == buckets and any(pixels)):
        raise ValueError(f"{path} is damaged: its pixels per bucket are no {buckets} counts")
    return pixels


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
        The next epoch, and what the file says of `PROGRESS`.

    Raises:
        ValueError: if it is another model's or another optimizer's.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
        raise ValueError(f"{path} does not say its epoch: start from its weights with --pretrained")
    epoch = int(number_of(checkpoint, "epoch", path)) + 1
    if epoch > run.args.epochs:
        raise ValueError(
            f"{path} has {epoch} epochs already: --epochs {run.args.epochs} is too few"
        )
    untouched = load_weights(model, weights_of(checkpoint, path), path)
    if FDS + "epoch" in untouched:
        restoring.start_statistics(model.FDS, epoch, path)
    restoring.restore_training(run, path, checkpoint, optimizer)
    if "optimizer" not in checkpoint:
        logging.warning("%s holds no optimizer: a fresh one starts from its weights", path)
    # The official error is the test set's, and of an epoch whose weights are not in the file. With
    # another --select or --seed it is of other pictures than those that choose the epoch now.
    config = dictionary_of(checkpoint, "config", path)
    same = all(config.get(flag) == getattr(run.args, flag) for flag in ("select", "seed"))
    known = checkpoint.get("format") == FORMAT and same
    names = [name for name in PROGRESS if known and checkpoint.get(name) is not None]
    progress = {name: number_of(checkpoint, name, path) for name in names}
    if not restoring.keep_best(run, path, BEST):  # what the best epoch's weights were is unknown
        progress |= {"error": float("inf"), "best_epoch": None}
    logging.info("Resuming from %s at epoch %d", path, epoch)
    return progress | {"epoch": epoch}
