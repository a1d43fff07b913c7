"""A run and its folder: finding, opening and resuming it."""

import hashlib
import logging
import os
import re
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

import restoring
import utils
from checkpoint_file import dictionary_of, is_stage_one
from files import write_atomically
from flags import PLACE, Parser

# What a run writes, and so what --overwrite removes; nothing else in the folder is touched.
OUTPUTS = (
    "results.json epochs.jsonl predictions.csv label_density.csv fds_statistics.npz figures "
    "error_by_depth.csv error_by_label.csv evaluation/predictions.csv events *.log *.pth.tar *.th "
    ".*.tmp"
).split()
# What shows that a run got as far as the end of an epoch: it is not replaced unasked.
RESULTS = ("results.json", "epochs.jsonl", "*.pth.tar", "*.th")
HOLDER = ".holder"  # says who holds the folder's lock
LENGTHS = ("epoch", "epochs", "max_vals")  # a resumed run may be longer


@dataclass
class Run:
    """What stays the same for a whole run, and what most sections of train.py need."""

    args: object  # the parsed flags
    parser: Parser  # knows the flags' roles and defaults
    accelerator: object  # accelerate's: device, precision, processes
    folder: Path
    facts: dict  # commit, command and versions at its start
    data: str = ""  # digest of the rows it trains and is judged on
    inputs: dict = field(default_factory=dict)  # digests of what else it reads, by its name
    seen: dict | None = None  # state of its folder when it was looked at, before data are read
    training: dict = field(default_factory=dict)  # what shots need: training samples per bucket
    lock: FileLock | None = None  # of the folder, in the process that writes files
    group: object = None  # of all processes, to wait in; None with one
    held: dict | None = None  # what its checkpoint has of an interrupted epoch
    within: object = None  # `within.Within`, while it trains

    @property
    def is_main(self):
        """Whether this is the process that writes files."""
        return self.accelerator.is_main_process

    def most(self, number):
        """Return the largest of the whole numbers that the processes give."""
        if self.group is None:
            return number
        most = torch.tensor(number)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, self.group)
        return int(most)

    def wait(self):
        """Wait for all processes, for hours if need be."""
        if self.group is not None:
            torch.distributed.barrier(self.group)

    def note_data(self, table, inputs=()):
        """Note what is trained on, so that a resumed run notices if it is other data.

        Here processes wait for the one that builds a cache.

        Args:
            table: DataFrame, a row per sample.
            inputs: dictionary of arrays that tell what else is read from other content. The name
                up to a comma is for messages; what follows says which can be compared.
        """
        self.wait()
        rows = pd.util.hash_pandas_object(table, index=False).to_numpy()
        self.data = hashlib.sha256(rows.tobytes()).hexdigest()
        self.note_inputs(dict(inputs))

    def note_inputs(self, inputs):
        """Note more of the inputs of `note_data`."""
        for name, array in inputs.items():
            self.inputs[name] = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def start(args, parser, name):
    """Set up devices, seed and log; nothing is written yet.

    Args:
        args, parser: the flags.
        name: of the run folder, as for `find_run_folder`.

    Returns:
        `Run`.
    """
    folder = find_run_folder(args.store_root, name)
    track = "none" if args.evaluate else args.track
    accelerator = utils.make_accelerator(args.device, args.precision, args.gpu, track, folder)
    utils.seed_everything(args.seed)
    utils.setup_logging(main_process=accelerator.is_main_process)
    group = utils.patient_group(accelerator)
    return Run(args, parser, accelerator, folder, utils.run_facts(), group=group)


def find_run_folder(root, name):
    """Return the path of a run's folder.

    A folder is also found where whole numbers are spelled 2 for 2.0, or where the flags that are
    not at their default stand in another order.

    Args:
        root: folder of the run folders.
        name: list of the released part of the name and of the flags behind it: `['agedb_...',
            '_seed_1']`.
    """

    def canonical(text):
        return re.sub(r"(?<=_)(\d+)\.0(?=_|$)", r"\1", text)

    root, whole = Path(root), "".join(name)
    if Path(whole).name != whole:
        raise ValueError(f"{whole} is no name of a folder: --store_name and --dataset take no path")
    if not (root / whole).exists() and root.is_dir():
        head, *parts = map(canonical, name)
        for folder in sorted(root.iterdir()):
            rest = canonical(folder.name)
            for part in sorted(parts, key=len, reverse=True):
                rest = rest.replace(part, "", 1)
            if rest == head and len(canonical(folder.name)) == len(canonical(whole)):
                return folder
    return root / whole


# ---- opening and resuming ------------------------------------------------------------------


def find_checkpoint(run, last):
    """Say from which checkpoint a run resumes; nothing is changed yet.

    Args:
        run: `Run`, with the flags --resume ('', 'auto' or a path) and --overwrite.
        last: file name of the last epoch's checkpoint.

    Returns:
        Path of the checkpoint, or None to start from the beginning.

    Raises:
        ValueError: if the folder holds a run and neither flag is given.
    """
    folder = run.folder
    if run.most(is_restarted(folder)):
        logging.info("Restarted by torchrun: the run resumes from its last checkpoint")
        run.args.overwrite = False
        own = any((folder / name).is_file() for name in (last, restoring.WITHIN))
        run.args.resume = "auto" if own else run.args.resume or "auto"
    resume = run.args.resume
    run.seen = state_of(folder)
    held = [folder / name for name in run.seen]
    if held and not (resume or run.args.overwrite):
        raise ValueError(
            f"{folder} holds a run ({', '.join(sorted(path.name for path in held)[:5])}): "
            "--resume continues it, --overwrite replaces it, --store_name NAME keeps both"
        )
    if resume not in ("", "auto"):
        if held and Path(resume).resolve().parent != folder.resolve():
            raise ValueError(
                f"{folder} holds a run, and {resume} is another's: --resume without a path "
                "continues the former, --store_name NAME continues the latter in its own folder"
            )
        return Path(resume)
    if resume and restoring.is_within_epoch(folder, last):
        return folder / restoring.WITHIN
    if resume and not (folder / last).is_file():
        if (folder / "results.json").is_file():
            raise ValueError(
                f"The run in {folder} is finished but its {last} is missing, so it cannot be "
                "resumed: --overwrite replaces it, --pretrained starts another from its weights"
            )
        return find_by_flags(run, last)
    return folder / last if resume else None


def is_restarted(folder):
    """Whether torchrun has restarted this process, and the folder was its before."""
    holder = folder / HOLDER
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and holder.is_file()
    return restarted and holder.read_text(encoding="utf-8").endswith(launch())


def launch():
    """Return what tells one start of torchrun from another, '' without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f", launch {name}" if name else ""


def find_by_flags(run, last):
    """Look for the run among its neighbours, under a name that an earlier version gave it.

    Returns:
        Path of the last epoch's checkpoint of the run whose flags are this one's, whose folder
        then becomes the run's; or None.
    """
    free = {*run.parser.flags_of(PLACE), *LENGTHS} - {"store_name"}  # that names another run
    own = {flag: value for flag, value in vars(run.args).items() if flag not in free}
    near = sorted(run.folder.parent.glob(f"*/{last}"))
    for path in near:
        try:
            config = dictionary_of(utils.load_checkpoint(path), "config", path)
        except (ValueError, AttributeError):
            continue  # damaged, or not one of our files
        if is_stage_one(config) != is_stage_one(vars(run.args)):
            continue
        if all(config.get(flag, run.parser.get_default(flag)) == own[flag] for flag in own):
            logging.info("%s is the run of these flags, under its earlier name", path.parent)
            run.folder = path.parent
            run.seen = state_of(path.parent)
            # The events belong there, too.
            run.accelerator.project_configuration.project_dir = str(path.parent)
            run.accelerator.project_configuration.logging_dir = str(path.parent)
            return path
    names = ", ".join(path.parent.name for path in near[:10])
    others = f"; other runs there: {names}" if near else ""
    logging.warning("Nothing to resume in %s: starting with epoch 0%s", run.folder, others)
    return None


def open_run_folder(run, log="training.log"):
    """Make the run folder, remove an earlier run's output with --overwrite, and start the log.

    Raises:
        ValueError: if another process is at work in the folder.
    """
    folder = run.folder
    run.wait()  # every process has looked before one changes anything
    if run.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        hold(run)
        if run.seen not in (None, state_of(folder)):
            run.lock.release(force=True)
            raise ValueError(
                f"another process has trained in {folder} since this one started, and has ended: "
                "--resume continues that run, --overwrite replaces it"
            )
        patterns = OUTPUTS if run.args.overwrite else [".*.tmp"]
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.accelerator.wait_for_everyone()
    utils.setup_logging(folder, log, main_process=run.is_main)
    logging.info("Run folder %s, device %s", folder, run.accelerator.device)


def state_of(folder):
    """Return {name: time of its last change} of what shows a run in a folder."""
    found = [path for pattern in RESULTS for path in folder.glob(pattern)]
    return {path.name: path.stat().st_mtime_ns for path in found}


def hold(run):
    """Keep other processes out of a run's folder; the lock dies with the process."""
    # Within one process, a notebook's say, a run that failed does not lock its successor out.
    run.lock = FileLock(run.folder / ".lock", is_singleton=True)
    holder = run.folder / HOLDER
    try:
        run.lock.acquire(timeout=0)
    except Timeout:
        said = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        raise ValueError(
            f"{said} is at work in {run.folder}: wait for it, or give --store_name NAME"
        ) from None
    text = f"process {os.getpid()} on {socket.gethostname()}{launch()}"
    write_atomically(holder, text.encode())


def close(run):
    """End the run's trackers, and let others into its folder."""
    run.accelerator.end_training()
    if run.is_main:
        if (run.folder / "results.json").is_file():
            logging.info("Results are in %s; next: python report.py %s", run.folder, run.folder)
            logging.info("or python predict.py --model %s INPUT", run.folder)
        if run.args.track == "tensorboard":
            logging.info("Curves: tensorboard --logdir %s", run.folder)
        (run.folder / HOLDER).unlink(missing_ok=True)
        run.lock.release(force=True)
