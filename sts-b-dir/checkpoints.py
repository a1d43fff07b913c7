"""Checkpoints of STS-B-DIR: weights and the rest in two files that belong together.

As in the released code `model_state.th` holds only the weights; what else a run needs to resume is
in `training_state.th`, which says by a digest to which weights it belongs. A crash at any moment
leaves a pair that matches: new files get another name until both are whole.
"""

import logging
from os import replace
from pathlib import Path

import run_folder
from batches import gather
from checkpoint_file import NO_CHECKPOINT, load_checkpoint, number_of, weights_of
from fds import BucketMoments
from fetch import sha256_of
from outside import reading
from utils import load_state, save_checkpoint

MODEL = "model_state.th"
LAST = "training_state.th"
BEST = "model_state_best.th"
NEXT_MODEL = "model_state_next.th"
NEXT_LAST = "training_state_next.th"
PROGRESS = ("step", "history", "best_loss", "best_step", "wall_seconds")


# ---- the pair of files ---------------------------------------------------------------------


def write_pair(folder, weights, training, is_best):
    """Write the pair, and first the best weights, if these are the best.

    Args:
        folder: the run folder.
        weights: state of the model.
        training: dictionary of all else.
        is_best: whether these are the best weights so far.
    """
    # Killed between the two renamings below, the last time: the pair is made whole first.
    if (folder / NEXT_LAST).is_file() and not (folder / NEXT_MODEL).exists():
        replace(folder / NEXT_LAST, folder / LAST)
    if is_best:
        save_checkpoint(folder / BEST, weights)
    save_checkpoint(folder / NEXT_MODEL, weights)
    digest = sha256_of(folder / NEXT_MODEL)
    save_checkpoint(folder / NEXT_LAST, {**training, "model_sha256": digest})
    replace(folder / NEXT_MODEL, folder / MODEL)
    replace(folder / NEXT_LAST, folder / LAST)


def read_pair(path):
    """Read the pair of which `path` is one file.

    Returns:
        The weights and the dictionary of all else.

    Raises:
        FileNotFoundError: without one of the two.
        ValueError: if they do not belong together.
    """
    folder, name = Path(path).parent, Path(path).name
    if name not in (MODEL, LAST):
        raise ValueError(
            f"--resume takes a {MODEL} or {LAST} that this program wrote, got {path}: start from "
            "the weights of another file with --pretrained"
        )
    if not (folder / LAST).is_file():
        raise FileNotFoundError(
            f"no {LAST} next to {path}, so it does not say how far its run was: start from its "
            "weights with --pretrained"
        )
    found = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else None
    # Killed between the two renamings: the new weights are in place, the rest is not yet.
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
        path: one file of its pair.
        per_epoch: batches of an epoch now.
    """
    _, training = read_pair(path)
    before = training.get("per_epoch", per_epoch)
    if before != per_epoch:
        raise ValueError(
            f"{path} is of a run with {before} batches an epoch, here there are {per_epoch}: give "
            "its --batch_size and --data_dir, or start from its weights with --pretrained"
        )


# ---- save and restore ----------------------------------------------------------------------


def save(run, model, optimizer, progress, is_best):
    """Write the checkpoint of a validation.

    Args:
        run, model, optimizer: of the run.
        progress: dictionary of `PROGRESS` and `per_epoch`, the number of batches of an epoch.
        is_best: whether this validation is the best so far.
    """
    moments = gather_moments(run, model)
    if run.is_main:
        training = {**progress, **run_folder.training_state(run, optimizer)}
        if moments:
            training["moments"] = moments
        write_pair(run.folder, model.state_dict(), training, is_best)


def gather_moments(run, model):
    """Return the parts of `fds.BucketMoments` of each process, or None, amid an epoch."""
    if model.FDS is None or run.args.fds_stats != "online":
        return None  # an extra pass is over before a validation
    own = model.FDS.moments
    own = None if own is None else tuple(part.cpu() for part in own.parts)
    moments = gather(run.accelerator, [own])
    return moments if any(moments) else None


def restore(run, path, model, optimizer):
    """Load a checkpoint to resume from it.

    Args:
        run, model, optimizer: of the run.
        path: one file of the pair. If it lies elsewhere, the best weights next to it are copied
            into the run folder, or the last ones.

    Returns:
        What it says of `PROGRESS`.

    Raises:
        FileNotFoundError, ValueError: as `read_pair`, and if it is another model's or optimizer's.
    """
    weights, training = read_pair(path)
    with reading(path, NO_CHECKPOINT):
        done = len([float(loss) for loss in training["history"]])
        per_epoch = int(training["per_epoch"])
    if done > run.args.max_vals:
        raise ValueError(
            f"{path} has {done} validations already: --max_vals {run.args.max_vals} is too few"
        )
    untouched = load_state(model, weights, path)
    progress = {name: number_of(training, name, path) for name in PROGRESS if name != "history"}
    progress["history"] = training["history"]
    if "FDS.epoch" in untouched:
        run_folder.start_statistics(model.FDS, progress["step"] // per_epoch, path)
    run_folder.restore_training(run, path, training, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = run.args.lr  # the flag rules, as in the folders that set it each epoch
    if model.FDS is not None and training.get("moments"):
        restore_moments(run, path, training["moments"], model.FDS)
    if not run_folder.keep_best(run, Path(path).with_name(MODEL), BEST):
        # What the best weights were is unknown: the last ones stand in for them.
        progress |= {"best_loss": float("inf"), "best_step": progress["step"]}
    logging.info("Resuming from %s after %d steps", path, progress["step"])
    return progress


def restore_moments(run, path, moments, module):
    """Give FDS back what `gather_moments` saved of the running epoch."""
    processes = run.accelerator.num_processes
    if len(moments) != processes:
        raise ValueError(
            f"{path} was written within an epoch by {len(moments)} processes, each with its part "
            f"of FDS's statistics: resume with as many, not {processes}"
        )
    own = moments[run.accelerator.process_index]
    if own is not None:
        module.moments = BucketMoments(*(part.to(run.accelerator.device) for part in own))
