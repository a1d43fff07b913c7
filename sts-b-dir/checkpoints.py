"""Checkpoints of STS-B-DIR: all that a run needs to resume, and the weights alone.

`training_state.th` is what a run resumes from. As in the released code `model_state.th` holds only
the weights; it is written from that file's, after it, and so may be a validation behind if the run
was killed in between. Earlier versions kept the weights in `model_state.th` alone.
"""

import logging
from pathlib import Path

import restoring
from batches import gather
from checkpoint_file import NO_CHECKPOINT, load_checkpoint, number_of, weights_of
from fetch import sha256_of
from heads import set_lr
from outside import reading
from restoring import WITHIN
from utils import load_state, save_checkpoint
from within import Within, give_moments, moments_of

MODEL = "model_state.th"
LAST = "training_state.th"
BEST = "model_state_best.th"
NEXT_LAST = "training_state_next.th"  # an earlier version's, while it wrote
PROGRESS = ("step", "history", "best_loss", "best_step", "wall_seconds")


# ---- reading -------------------------------------------------------------------------------


def read(path):
    """Read a checkpoint to resume from.

    Args:
        path: of `LAST`, of `WITHIN`, or of the `MODEL` next to the former.

    Returns:
        The weights, and the dictionary of all else.

    Raises:
        FileNotFoundError: without `LAST`.
        ValueError: if it is another file, or an earlier version's two that do not match.
    """
    folder, name = Path(path).parent, Path(path).name
    if name not in (MODEL, LAST, WITHIN):
        raise ValueError(
            f"--resume takes a {LAST} that this program wrote, got {path}: start from the weights "
            "of another file with --pretrained"
        )
    file = folder / (name if name == WITHIN else LAST)
    if not file.is_file():
        raise FileNotFoundError(
            f"no {LAST} next to {path}, so it does not say how far its run was: start from its "
            "weights with --pretrained"
        )
    training = load_checkpoint(file)
    if not isinstance(training, dict):
        raise ValueError(f"{file} is no checkpoint of this program: {NO_CHECKPOINT}")
    return (weights_of(training, file), training) if "state_dict" in training else read_pair(folder)


def read_pair(folder):
    """Read an earlier version's two files, which belong together by a digest."""
    found = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else None
    # Killed between two renamings: the new weights are in place, the rest is not yet.
    for name in (LAST, NEXT_LAST):
        if (folder / name).is_file():
            training = load_checkpoint(folder / name)
            if isinstance(training, dict) and training.get("model_sha256") == found:
                return weights_of(load_checkpoint(folder / MODEL), folder / MODEL), training
    raise ValueError(
        f"{folder / MODEL} does not belong to {LAST}: --overwrite starts from the beginning"
    )


def check_epochs(path, per_epoch):
    """Raise ValueError if a run's epochs had another number of batches, and so end elsewhere.

    Args:
        path: as for `read`, or None.
        per_epoch: batches of an epoch now.
    """
    if path is None:
        return
    _, training = read(path)
    before = training.get("per_epoch", per_epoch)
    if before != per_epoch:
        raise ValueError(
            f"{path} is of a run with {before} batches an epoch, here there are {per_epoch}: give "
            "its --batch_size and --data_dir, or start from its weights with --pretrained"
        )


# ---- save and restore ----------------------------------------------------------------------


def state_of(run, model, optimizer, progress):
    """Return what a checkpoint holds; the arguments are those of `save`."""
    training = restoring.training_state(run, optimizer)
    return {**progress, "state_dict": model.state_dict(), **training}


def save(run, model, optimizer, progress, is_best):
    """Write the checkpoint of a validation.

    Args:
        run, model, optimizer: of the run.
        progress: dictionary of `PROGRESS` and `per_epoch`, the number of batches of an epoch.
        is_best: whether this validation is the best so far.
    """
    state = state_of(run, model, optimizer, progress)
    moments = gather(run.accelerator, [moments_of(model.FDS)])
    if any(moments):  # amid an epoch
        state["moments"] = moments
    best = {BEST: state["state_dict"]} if is_best else {}
    files = {**best, LAST: state, MODEL: state["state_dict"]}
    restoring.write_checkpoint(run, files)


def saving(run, model, optimizer, progress):
    """Return the context in which a run is also saved between, as `within.Within`."""
    return Within(run, model, lambda: state_of(run, model, optimizer, progress))


def restore(run, path, model, optimizer):
    """Load a checkpoint to resume from it.

    Args:
        run, model, optimizer: of the run.
        path: as for `read`. If it lies elsewhere, the best weights next to it are copied into the
            run folder, or the last ones.

    Returns:
        What it says of `PROGRESS`.

    Raises:
        FileNotFoundError, ValueError: as `read`, and if it is another model's or optimizer's.
    """
    weights, training = read(path)
    with reading(path, NO_CHECKPOINT):
        done = len([float(loss) for loss in training["history"]])
        per_epoch = int(training["per_epoch"])
    if done > run.args.max_vals:
        raise ValueError(
            f"{path} has {done} validations already: --max_vals {run.args.max_vals} is too few"
        )
    untouched = load_state(model, weights, path)
    names = [name for name in PROGRESS if name != "history" and training.get(name) is not None]
    progress = {name: number_of(training, name, path) for name in names}
    progress["history"] = training["history"]
    if "FDS.epoch" in untouched:
        restoring.start_statistics(model.FDS, progress["step"] // per_epoch, path)
    restoring.restore_training(run, path, training, optimizer)
    set_lr(optimizer, run.args.lr)  # the flag rules, as in the folders that set it each epoch
    if model.FDS is not None and training.get("moments"):
        restore_moments(run, path, training["moments"], model.FDS)
    near = Path(path)
    if near.name != WITHIN:
        if run.is_main:
            save_checkpoint(run.folder / MODEL, weights)  # it may be a validation behind
        best = near.with_name(BEST)
        near = best if best.is_file() else run.folder / MODEL
    if not restoring.keep_best(run, near, BEST):
        # What the best weights were is unknown: the last ones stand in for them.
        progress |= {"best_loss": float("inf"), "best_step": progress["step"]}
    logging.info("Resuming from %s after %d steps", path, progress["step"])
    return progress


def restore_moments(run, path, moments, module):
    """Give FDS back its sums of the epoch in which a validation was."""
    processes = run.accelerator.num_processes
    if len(moments) != processes:
        raise ValueError(
            f"{path} was written within an epoch by {len(moments)} processes, each with its part "
            f"of FDS's statistics: resume with as many, not {processes}"
        )
    give_moments(module, moments[run.accelerator.process_index], run.accelerator.device)
