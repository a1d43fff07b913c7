"""What a run's checkpoints hold apart from weights and progress, and how a run resumes from one."""

import logging
from pathlib import Path

from checkpoint_file import NO_CHECKPOINT, dictionary_of, is_stage_one, load_checkpoint, number_of
from flags import PLACE
from outside import reading
from utils import save_checkpoint, write_atomically

WITHIN = "within_epoch.pth.tar"  # checkpoint of a run that was ended within an epoch


def is_within_epoch(folder, last):
    """Whether a run was ended within the epoch that follows its last checkpoint."""
    if not (folder / WITHIN).is_file():
        return False
    places = []
    for path in (folder / WITHIN, folder / last):
        try:
            checkpoint = load_checkpoint(path)
            places.append(number_of(checkpoint, "step" if "step" in checkpoint else "epoch", path))
        except FileNotFoundError:  # ended within the first epoch
            places.append(-1)
        except (ValueError, TypeError, KeyError) as error:
            logging.warning("%s is left out: %s", path, error)
            places.append(-2)
    return places[0] >= places[1]


def start_statistics(module, epoch, path):
    """Let FDS begin in a run that has been without it so far.

    Args:
        module: the run's `fds.FDS`; it counts epochs from the first that it sees.
        epoch: the next one to be trained.
        path: the checkpoint without statistics, for the message.
    """
    module.start_update = max(module.start_update, epoch)
    module.epoch.fill_(module.start_update)
    logging.warning("%s has no statistics of FDS: they start in this run", path)


def write_checkpoint(run, files):
    """Write the checkpoint of an epoch; one within that epoch is of no use then.

    Args:
        run: `Run`.
        files: what each file is to hold, by its name, in the order of writing.
    """
    if run.is_main:
        for name, content in files.items():
            save_checkpoint(run.folder / name, content)
        (run.folder / WITHIN).unlink(missing_ok=True)
    if run.within is not None:
        run.within.epoch_is_saved()


def training_state(run, optimizer):
    """Return what a checkpoint holds apart from weights and progress."""
    state = {"optimizer": optimizer.state_dict(), "config": vars(run.args)}
    state |= {"data": run.data, "inputs": run.inputs, "training": run.training}
    if run.accelerator.scaler is not None:
        state["scaler"] = run.accelerator.scaler.state_dict()
    return state


def restore_training(run, path, checkpoint, optimizer):
    """Load a checkpoint's `training_state`, as far as it has one, and name flags that changed.

    Args:
        run: `Run`.
        path, checkpoint: the file and its content.
        optimizer: of the run.

    Raises:
        ValueError: if it is another optimizer's, or one of other parameters, or of other data.
    """
    config = dictionary_of(checkpoint, "config", path)
    if is_stage_one(config) != is_stage_one(vars(run.args)):
        raise ValueError(
            f"of {path} and this run one is pretrain.py's, one train.py's: train.py takes features "
            "with --pretrained CKPT --retrain_fc --reweight none"
        )
    epochs = config.get("epoch")
    if is_stage_one(config) and epochs != run.args.epoch:
        raise ValueError(
            f"{path} was pretrained for {epochs} epochs, over which its learning rate falls: give "
            f"--epoch {epochs}, or --store_name NAME for another run"
        )
    others = ["rows, labels or splits"] if checkpoint.get("data", run.data) != run.data else []
    for name, digest in dictionary_of(checkpoint, "inputs", path).items():
        if run.inputs.get(name, digest) != digest:  # what either lacks is not compared
            others.append(name.partition(",")[0])
    if others and not run.args.data_changed:
        raise ValueError(
            f"{path} was trained on other {' and '.join(others)} than now: restore them, or give "
            "--data_changed to continue with these"
        )
    if "within" in checkpoint:
        held = dictionary_of(checkpoint, "within", path)
        run.held = {**held, "config": config}
    place = run.parser.flags_of(PLACE)
    for flag, before in config.items():
        now = getattr(run.args, flag, before)
        if flag not in place and now != before:
            logging.warning("--%s was %s in the run so far and is %s now", flag, before, now)
    if "optimizer" in checkpoint:
        own = optimizer.state_dict()["param_groups"]
        with reading(path, NO_CHECKPOINT):
            theirs = checkpoint["optimizer"]["param_groups"]
            sizes = [len(group["params"]) for group in theirs]
            same = sizes == [len(group["params"]) for group in own]
            same &= ("betas" in own[0]) == ("betas" in theirs[0])
        if not same:
            raise ValueError(
                f"{path} was trained with another --optimizer, --retrain_fc, --loss or "
                "--regularizer: give the same, or start from its weights with --pretrained"
            )
        with reading(path, NO_CHECKPOINT):
            optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint.get("scaler") and run.accelerator.scaler is not None:
        with reading(path, NO_CHECKPOINT):
            run.accelerator.scaler.load_state_dict(checkpoint["scaler"])


def keep_best(run, path, name):
    """Copy the best epoch's checkpoint into the run folder, if the run comes from elsewhere.

    Args:
        run: `Run`.
        path: checkpoint from which the run resumes.
        name: file name of the best epoch's checkpoint; without one next to `path`, `path` itself
            is taken.

    Returns:
        Whether it is the best epoch's.
    """
    best, near = run.folder / name, Path(path).with_name(name)
    # Within the first epoch no best one exists yet.
    if best.is_file() or (Path(path).name == WITHIN and not near.is_file()):
        return True
    if run.is_main:
        write_atomically(best, (near if near.is_file() else Path(path)).read_bytes())
    return near.is_file()
