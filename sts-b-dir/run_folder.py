"""The folder of a run: its name, opening and resuming it, its epochs, its results."""

import json
import logging
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from utils import (
    load_checkpoint,
    load_state,
    save_checkpoint,
    to_json,
    weights_of,
    write_atomically,
)

# What a run writes, and so what --overwrite removes; nothing else in the folder is touched.
OUTPUTS = (
    "results.json epochs.jsonl predictions.csv label_density.csv fds_statistics.npz figures "
    "events *.log *.pth.tar *.th .*.tmp"
).split()
# What shows that a run got as far as the end of an epoch: it is not replaced unasked.
RESULTS = ("results.json", "epochs.jsonl", "*.pth.tar", "*.th")
# Flags that may differ between the parts of one run.
FREE_FLAGS = (
    "resume overwrite evaluate eval_model store_root print_freq workers cache data_dir track "
    "device gpu cuda name log_file max_vals epoch epochs"
).split()


# ---- names ---------------------------------------------------------------------------------


def name_of_methods(args):
    """Return the middle part of a run folder's name: re-weighting, LDS, FDS, retraining."""
    parts = []
    if args.reweight != "none" and not args.lds:
        parts.append(args.reweight)
    for method in ("lds", "fds"):
        if getattr(args, method):
            kernel, ks, sigma = (getattr(args, f"{method}_{k}") for k in ("kernel", "ks", "sigma"))
            parts += [method, kernel[:3], ks] + ([sigma] if kernel != "triang" else [])
    if args.fds:
        parts += [args.start_update, args.start_smooth, args.fds_mmt]
    if args.retrain_fc:
        parts.append("retrain_fc")
    return "".join(f"_{part}" for part in parts)


def name_of_flags(args, parser, flags, variant):
    """Return the end of a run folder's name, which keeps runs apart that the rest names alike.

    Args:
        args: parsed arguments.
        parser: their parser, for the defaults.
        flags: names of the flags that change what is trained.
        variant: the benchmark's default of --fds_variant.
    """
    parts = [args.fds_variant] if args.fds and args.fds_variant != variant else []
    parts += [args.reweight] if args.lds else []
    for flag in flags:
        value = getattr(args, flag)
        if value != parser.get_default(flag):
            value = "-".join(map(str, value)) if isinstance(value, list) else value
            value = Path(value).name if isinstance(value, str) else value  # of a path, its end
            parts.append(flag if value is True else f"{flag}_{value}")
    return "".join(f"_{part}" for part in parts)


def method_name(args, variant):
    """Return a run's name in the tables, in the paper's words: 'SQINV+LDS+FDS'."""
    base = {"none": "VANILLA", "sqrt_inv": "SQINV", "inverse": "INV"}[args.reweight]
    if args.loss.startswith("focal"):
        base = "FOCAL-R" if base == "VANILLA" else f"FOCAL-R {base}"
    base = f"RRT {base}" if args.retrain_fc else base
    fds = "+FDS" if args.fds_variant == variant else f"+FDS ({args.fds_variant})"
    return base + "+LDS" * args.lds + fds * args.fds


def find_run_folder(root, name):
    """Return the run folder of that name, also one in which whole numbers are spelled 2 for 2.0."""

    def canonical(text):
        return re.sub(r"(?<=_)(\d+)\.0(?=_|$)", r"\1", text)

    root = Path(root)
    if not (root / name).exists() and root.is_dir():
        for folder in sorted(root.iterdir()):
            if canonical(folder.name) == canonical(name):
                return folder
    return root / name


# ---- opening and resuming ------------------------------------------------------------------


def find_checkpoint(folder, resume, overwrite, last):
    """Say which checkpoint a run goes on from; nothing is changed yet.

    Args:
        folder: the run folder.
        resume: '' (a new run), 'auto' (go on in the folder) or a checkpoint's path.
        overwrite: an earlier run's outputs may be replaced.
        last: file name of the last epoch's checkpoint.

    Returns:
        Path of the checkpoint, or None to start from the beginning.

    Raises:
        ValueError: if the folder holds a run and neither is asked for.
    """
    held = [path for pattern in RESULTS for path in folder.glob(pattern)]
    if held and not (resume or overwrite):
        raise ValueError(
            f"{folder} holds a run ({', '.join(sorted(path.name for path in held)[:5])}): "
            "--resume goes on with it, --overwrite replaces it, --store_name NAME keeps both"
        )
    if resume not in ("", "auto"):
        if held and Path(resume).resolve().parent != folder.resolve():
            raise ValueError(
                f"{folder} holds a run, and {resume} is another's: --resume without a path goes on "
                "with the former, --store_name NAME goes on with the latter in a folder of its own"
            )
        return Path(resume)
    if resume and not (folder / last).is_file():
        if (folder / "results.json").is_file():
            raise ValueError(
                f"{folder} holds a finished run without its {last}, so it cannot be gone on with: "
                "--overwrite replaces it, --pretrained starts another from its weights"
            )
        near = sorted(path.parent.name for path in folder.parent.glob(f"*/{last}"))
        others = f"; other runs there: {', '.join(near[:10])}" if near else ""
        logging.warning("Nothing to resume in %s: starting with epoch 0%s", folder, others)
        return None
    return folder / last if resume else None


def open_run_folder(accelerator, folder, overwrite):
    """Make the run folder, and with `overwrite` remove what an earlier run wrote there."""
    accelerator.wait_for_everyone()  # every process has looked before one of them changes it
    if accelerator.is_main_process:
        for path in [p for x in OUTPUTS if overwrite or x == ".*.tmp" for p in folder.glob(x)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def restore(path, accelerator, model, optimizer, args, best):
    """Load a checkpoint of the age folders' format, an official one too, to go on from it.

    Args:
        path: the checkpoint.
        accelerator, model, optimizer, args: of the run.
        best: path in the run folder for the best epoch's checkpoint. If the run comes from
            elsewhere, the best beside `path` is copied there, or `path` itself.

    Returns:
        Dictionary of the next epoch and of the best epoch so far.

    Raises:
        ValueError: if it is another model's or another optimizer's.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or "epoch" not in checkpoint:
        raise ValueError(f"{path} does not say its epoch: start from its weights with --pretrained")
    untouched = load_state(model, weights_of(checkpoint, path), path)
    if "FDS.epoch" in untouched:
        start_statistics(model.FDS, int(checkpoint["epoch"]), path)
    restore_training(path, checkpoint, accelerator, optimizer, args)
    kept = ("epoch", "best_loss", "best_epoch", "wall_seconds")
    progress = {key: checkpoint[key] for key in kept if key in checkpoint}
    progress["best_loss"] = float(progress.get("best_loss", float("inf")))
    if not best.is_file():
        beside = Path(path).with_name(best.name)
        if not beside.is_file():  # what the best epoch's weights were is not known
            beside, progress["best_loss"], progress["best_epoch"] = Path(path), float("inf"), None
        if accelerator.is_main_process:
            write_atomically(best, beside.read_bytes())
    logging.info("Going on from %s at epoch %d", path, progress["epoch"])
    return progress


def start_statistics(module, epoch, path):
    """Let FDS begin in a run that went without it so far.

    Args:
        module: the run's `fds.FDS`; it counts epochs from the first that it sees.
        epoch: the next one to be trained.
        path: the checkpoint without statistics, for the message.
    """
    module.start_update = max(module.start_update, epoch)
    module.epoch.fill_(module.start_update)
    logging.warning("%s has no statistics of FDS: they start in this run", path)


def restore_training(path, checkpoint, accelerator, optimizer, args):
    """Load what a checkpoint holds of optimizer and loss scaler, and name flags that changed.

    Args:
        path, checkpoint: the file and what it holds: 'optimizer', 'scaler', 'config', if any.
        accelerator, optimizer, args: of the run.

    Raises:
        ValueError: if it is another optimizer's, or one of other parameters.
    """
    for flag, before in checkpoint.get("config", {}).items():
        if flag not in FREE_FLAGS and getattr(args, flag, before) != before:
            now = getattr(args, flag)
            logging.warning("--%s was %s in the run so far and is %s now", flag, before, now)
    if "optimizer" in checkpoint:
        own = optimizer.state_dict()["param_groups"]
        theirs = checkpoint["optimizer"]["param_groups"]
        same = [len(group["params"]) for group in own] == [len(group["params"]) for group in theirs]
        if not same or ("betas" in own[0]) != ("betas" in theirs[0]):
            raise ValueError(
                f"{path} was trained with another --optimizer or --retrain_fc: give the same, or "
                "start from its weights with --pretrained"
            )
        optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint.get("scaler") and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint["scaler"])


def start_tracking(accelerator, args, first_epoch):
    """Open the event files; after a resume, epochs that are trained again replace the old ones."""
    if args.track == "none" or args.evaluate:
        return
    config = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str, bool))}
    options = {"tensorboard": {"purge_step": first_epoch}} if args.track == "tensorboard" else {}
    accelerator.init_trackers("events", config=config, init_kwargs=options)


def keep_epochs(folder, epochs):
    """Cut `epochs.jsonl` back to the epochs that the checkpoint holds."""
    file = folder / "epochs.jsonl"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if epoch_of(line) < epochs]
        write_atomically(file, "".join(kept).encode())


def epoch_of(line):
    """Return the epoch of a line of `epochs.jsonl`, infinity if it was cut off or is damaged."""
    try:
        return json.loads(line)["epoch"] if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def write_epoch(accelerator, folder, row):
    """Add a line to `epochs.jsonl` and to the events.

    Args:
        accelerator, folder: of the run.
        row: dictionary of the epoch: epoch, lr, train_loss, val (metrics by shot), seconds; `step`
            places it among the events where the epoch is no whole number.
    """
    if accelerator.is_main_process:
        with open(folder / "epochs.jsonl", "a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
    events = {"train/loss": row["train_loss"], "train/lr": row["lr"]}
    for shot, metrics in row.get("val", {}).items():
        events |= {f"val/{shot}/{m}": v for m, v in metrics.items() if np.isfinite(v)}
    accelerator.log(events, step=row.get("step", row["epoch"]))


def finish_epoch(accelerator, folder, row, state, files):
    """Write what an epoch leaves: a line of `epochs.jsonl`, events, checkpoints.

    Args:
        accelerator, folder, row: as for `write_epoch`.
        state: the checkpoint.
        files: names under which it is written; the last epoch's comes last, so that a run
            stopped between two of the steps goes on from the epoch before and writes all again.
    """
    write_epoch(accelerator, folder, row)
    if accelerator.is_main_process:
        for name in files:
            save_checkpoint(folder / name, state)


# ---- results -------------------------------------------------------------------------------


def metrics_table(metrics):
    """Return the metrics of one split by shot as text, with a dash for a shot without samples."""
    frame = pd.DataFrame(metrics).T.astype({"num_samples": int})
    return frame.to_string(float_format=lambda v: f"{v:.3f}", na_rep="–")


def write_results(accelerator, folder, args, metrics, **facts):
    """Write `results.json`: what was run, on what, and every metric by shot.

    Args:
        accelerator, folder, args: of the run.
        metrics: `{split: {shot: {metric: value}}}`.
        facts: further entries: `utils.run_facts()`, benchmark, method, target, wall_seconds.
    """
    config = {name: value for name, value in vars(args).items() if name != "name"}
    device = str(accelerator.device)
    results = {
        **facts, "seed": args.seed, "device": device,
        "processes": accelerator.num_processes, "metrics": metrics, "config": config,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    text = json.dumps(json.loads(to_json(results)), indent=1, ensure_ascii=False)
    write_atomically(folder / "results.json", text.encode() + b"\n")


def write_label_density(folder, labels, shots, counts, emp_label_dist, eff_label_dist, weights):
    """Write `label_density.csv`, a row per bucket.

    Args:
        folder: the run folder.
        labels: lower edge of each bucket [B], in the unit of the target.
        shots: shot of each bucket [B]: 'many', 'medium' or 'few'.
        counts: training samples per bucket [B].
        emp_label_dist, eff_label_dist: density before and after LDS [B]; None leaves a blank.
        weights: weight of a sample in each bucket [B], NaN where there is none.
    """
    table = {
        "bucket": np.arange(len(labels)), "label": labels, "shot": shots, "count": counts,
        "emp_label_dist": emp_label_dist, "eff_label_dist": eff_label_dist, "weight": weights,
    }  # fmt: skip
    text = pd.DataFrame(table).to_csv(index=False, lineterminator="\n")
    write_atomically(folder / "label_density.csv", text.encode())


def write_fds_statistics(folder, module, labels):
    """Write `fds_statistics.npz`: running statistics by bucket and the same smoothed.

    Args:
        folder: the run folder.
        module: the trained `fds.FDS`.
        labels: lower edge of each of its buckets [B], in the unit of the target.
    """
    arrays = {"label": np.asarray(labels), "num_samples_tracked": module.num_samples_tracked.cpu()}
    for kind in ("mean", "var"):
        running = getattr(module, f"running_{kind}")
        arrays[f"running_{kind}"] = running.cpu()
        arrays[f"smoothed_{kind}"] = module.smooth_over_buckets(running).cpu()
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_atomically(folder / "fds_statistics.npz", lambda file: np.savez(file, **arrays))
