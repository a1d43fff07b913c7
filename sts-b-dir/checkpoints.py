"""Checkpoints of STS-B-DIR: weights and the rest in two files that belong together.

As in the released code `model_state.th` holds the weights alone; what else a run needs to go on is
in `training_state.th`, which says by a digest to which weights it belongs. A crash at any moment
leaves a pair that matches: new files get another name until both are whole.
"""

import logging
from os import replace
from pathlib import Path

from fds import BucketMoments
from released import sha256_of
from run_folder import restore_training, start_statistics
from utils import load_checkpoint, load_state, save_checkpoint, weights_of

MODEL, TRAINING, BEST = "model_state.th", "training_state.th", "model_state_best.th"
NEXT_MODEL, NEXT_TRAINING = "model_state_next.th", "training_state_next.th"


def save(folder, weights, training, best):
    """Write the pair, and before it the best weights if these are.

    Args:
        folder: the run folder.
        weights: state of the model.
        training: dictionary of all else.
        best: whether these are the best weights so far.
    """
    # Killed between the two renamings below, the last time: the pair is made whole first.
    if (folder / NEXT_TRAINING).is_file() and not (folder / NEXT_MODEL).exists():
        replace(folder / NEXT_TRAINING, folder / TRAINING)
    if best:
        save_checkpoint(folder / BEST, weights)
    save_checkpoint(folder / NEXT_MODEL, weights)
    digest = sha256_of(folder / NEXT_MODEL)
    save_checkpoint(folder / NEXT_TRAINING, {**training, "model_sha256": digest})
    replace(folder / NEXT_MODEL, folder / MODEL)
    replace(folder / NEXT_TRAINING, folder / TRAINING)


def load(path):
    """Read the pair of which `path` is one file.

    Returns:
        The weights and the dictionary of all else.

    Raises:
        FileNotFoundError: without one of the two.
        ValueError: if they do not belong together.
    """
    folder, stem = Path(path).parent, Path(path).name
    if stem not in (MODEL, TRAINING):
        raise ValueError(
            f"--resume takes a {MODEL} or {TRAINING} of ours, got {path}: start from the weights "
            "of another file with --pretrained"
        )
    if not (folder / TRAINING).is_file():
        raise FileNotFoundError(
            f"no {TRAINING} beside {path}, so it does not say how far its run was: start from its "
            "weights with --pretrained"
        )
    found = sha256_of(folder / MODEL) if (folder / MODEL).is_file() else None
    # Killed between the two renamings: the new weights are in place, the rest is not yet.
    for name in (TRAINING, NEXT_TRAINING):
        if (folder / name).is_file():
            training = load_checkpoint(folder / name)
            if isinstance(training, dict) and training.get("model_sha256") == found:
                return weights_of(load_checkpoint(folder / MODEL), folder / MODEL), training
    raise ValueError(f"{folder / MODEL} is not the one of {TRAINING}: --overwrite starts anew")


def restore(path, accelerator, model, optimizer, args, best, per_epoch):
    """Load a checkpoint to go on from it.

    Args:
        path: one file of the pair.
        accelerator, model, optimizer, args: of the run.
        best: path in the run folder for the best weights. If the run comes from elsewhere, the
            best beside `path` are copied there, or the last if there are none.
        per_epoch: batches of an epoch.

    Returns:
        Dictionary of step, history (validation losses), best_loss, best_step, wall_seconds.

    Raises:
        FileNotFoundError, ValueError: as `load`, and if it is another model's or optimizer's.
    """
    weights, training = load(path)
    if training.get("per_epoch", per_epoch) != per_epoch:
        raise ValueError(
            f"{path} is of a run with {training['per_epoch']} batches an epoch, here there are "
            f"{per_epoch}: give its --batch_size and --data_dir, or start from its weights with "
            "--pretrained"
        )
    untouched = load_state(model, weights, path)
    if "FDS.epoch" in untouched:
        start_statistics(model.FDS, training["step"] // per_epoch, path)
    restore_training(path, training, accelerator, optimizer, args)
    for group in optimizer.param_groups:
        group["lr"] = args.lr  # the flag rules, as in the folders that set it each epoch
    if model.FDS is not None and training.get("moments"):
        parts, processes = training["moments"], accelerator.num_processes
        if len(parts) != processes:
            raise ValueError(
                f"{path} was written within an epoch by {len(parts)} processes, each with its part "
                f"of FDS's statistics: resume with as many, not {processes}"
            )
        own = parts[accelerator.process_index]
        model.FDS.moments = BucketMoments(*(part.to(accelerator.device) for part in own))
    progress = {key: training[key] for key in ("step", "history", "best_loss", "best_step")}
    progress["wall_seconds"] = training["wall_seconds"]
    if not best.is_file():
        beside = Path(path).with_name(BEST)
        if not beside.is_file():  # what the best weights were is not known
            beside, progress["best_loss"] = Path(path).with_name(MODEL), float("inf")
        if accelerator.is_main_process:
            save_checkpoint(best, weights_of(load_checkpoint(beside), beside))
    logging.info("Going on from %s after %d steps", path, progress["step"])
    return progress
