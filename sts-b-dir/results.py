"""What a run writes: its epochs and, at its end, metrics, label density, statistics of FDS."""

import json
import logging
import time

import numpy as np
import pandas as pd
import torch

from batches import EXPLODED
from files import to_json, write_atomically
from flags import OPTIONAL, PLACE
from outside import check_lines

STAYS = "the last good checkpoint stays"
RANGE = 100  # of ages, for which EXPLODED is; other labels have their own

# ---- epochs --------------------------------------------------------------------------------


def start_epochs(run, first, held):
    """Open the event files, and cut `epochs.jsonl` back to what the checkpoint holds.

    Args:
        run: `Run`.
        first: next step among the events; those from there on are written again.
        held: lines of epochs below this number stay.
    """
    args, file = run.args, run.folder / "epochs.jsonl"
    if args.track != "none":
        config = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str, bool))}
        options = {"tensorboard": {"purge_step": first}} if args.track == "tensorboard" else {}
        run.accelerator.init_trackers("events", config=config, init_kwargs=options)
    if run.is_main and file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if epoch_of(line) < held]
        check_lines(file, [json.loads(line) for line in kept], getattr(args, "val_interval", None))
        write_atomically(file, "".join(kept).encode())


def epoch_of(line):
    """Return the epoch of a line of `epochs.jsonl`, infinity if it was cut off or is damaged."""
    try:
        return json.loads(line)["epoch"] if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


def check_weights(model, where):
    """Refuse weights that must not be saved: they would take the place of a good checkpoint.

    Args:
        model: the network.
        where: of the training, for the message: 'after epoch 3'.

    Raises:
        FloatingPointError: if one is not finite.
    """
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise FloatingPointError(
            f"weights are not finite {where} ({', '.join(broken[:3])}), so the loss has exploded: "
            f"{STAYS}; try a smaller --lr, or --precision fp32"
        )


def check_epoch(model, row, metric, labels):
    """Refuse an epoch whose weights are not finite, or whose validation error has exploded.

    Args:
        model: the network after the epoch.
        row, labels: as for `write_epoch`.
        metric: the error that is looked at.

    Raises:
        FloatingPointError: as `check_weights`, and for the error.
    """
    where = f"after epoch {row['epoch']:g}"
    check_weights(model, where)
    value = row["val"]["overall"][metric]
    if not np.isfinite(value):
        raise FloatingPointError(
            f"the validation {metric} is {value} {where}, though all weights are finite: {STAYS}; "
            "look for NaN and infinities in the validation data"
        )
    error = np.sqrt(value) if metric == "mse" else value
    if error * RANGE > EXPLODED * (np.ptp(labels) or RANGE):
        raise FloatingPointError(
            f"the validation {metric} is {value:.3g} {where}, so the loss has exploded: {STAYS}; "
            "try a smaller --lr, or --resume the best epoch's checkpoint"
        )


def write_epoch(run, model, row, main_metrics, labels=(0, 10)):
    """Add a line to `epochs.jsonl`, to the events and to the log, if the epoch is sound.

    Args:
        run, model: of the run.
        row: dictionary of the epoch: epoch, lr, train_loss, val (metrics by shot), seconds; `step`
            places it among the events where the epoch is no whole number.
        main_metrics: names of the metrics that the log shows.
        labels: of the training set [N], or their ends, in the unit of the error.

    Raises:
        FloatingPointError: as `check_epoch`.
    """
    check_epoch(model, row, main_metrics[0], labels)
    if run.is_main:
        with open(run.folder / "epochs.jsonl", "a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
    events = {"train/loss": row["train_loss"], "train/lr": row["lr"]}
    for shot, metrics in row["val"].items():
        events |= {f"val/{shot}/{m}": v for m, v in metrics.items() if np.isfinite(v)}
    run.accelerator.log(events, step=row.get("step", row["epoch"]))
    shown = ", ".join(f"{name} {row['val']['overall'][name]:.3f}" for name in main_metrics)
    logging.info("Epoch %g: train loss %.4f, validation %s", row["epoch"], row["train_loss"], shown)


# ---- results -------------------------------------------------------------------------------


def metrics_table(metrics):
    """Return the metrics of one split by shot as text, with a dash for a shot without samples."""
    frame = pd.DataFrame(metrics).T.astype({"num_samples": int})
    return frame.to_string(float_format=lambda v: f"{v:.3f}", na_rep="–")


def method_name(args, parser):
    """Return a run's name in the tables, in the paper's words: 'SQINV+LDS+FDS'."""
    names = {"none": "VANILLA", "sqrt_inv": "SQINV", "inverse": "INV", "dense": "DENSE"}
    base = names[args.reweight]
    if args.loss.startswith("focal"):
        base = "FOCAL-R" if base == "VANILLA" else f"FOCAL-R {base}"
    elif args.loss in ("bmc", "gai", "bni", "gar"):
        base = args.loss.upper()
    base = "UVOTE" if args.experts else base
    base = f"RRT {base}" if args.retrain_fc else base
    if getattr(args, "pretraining", ""):  # by pretrain.py
        stage_two = "" if base == "RRT VANILLA" else f" {base}"
        base = args.pretraining.upper() + stage_two
    if getattr(args, "resample", "none") != "none":  # not every benchmark has it
        alone = base == "VANILLA" or (args.lds and base in ("SQINV", "INV"))
        base = args.resample.upper() + f" {base}" * (not alone)
    is_default = parser.is_default(args, "fds_variant")
    fds = "+FDS" if is_default else f"+FDS ({args.fds_variant})"
    name = base + "+LDS" * args.lds + fds * args.fds
    regularizer = getattr(args, "regularizer", "none")
    if regularizer != "none":
        name = f"{name}+{regularizer.replace('_', ' ').upper()}".removeprefix("VANILLA+")
        name += " (official)" * args.conr_official
    return name


def named(device):
    """Return a device as text, a CUDA GPU with its model."""
    model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{model}"


def write_results(run, metrics, **facts):
    """Write `results.json`: what was run, on what, and every metric by shot.

    Args:
        run: `Run`.
        metrics: `{split: {shot: {metric: value}}}`.
        facts: further entries: benchmark, target, main_metrics, best_epoch, wall_seconds.
    """
    without_effect = run.parser.flags_of(PLACE)
    for switch, group in OPTIONAL.items():
        if getattr(run.args, switch, "none") == "none":
            without_effect += run.parser.groups.get(group, [])
    results = {
        **run.facts,
        **facts,
        "method": method_name(run.args, run.parser),
        "seed": run.args.seed,
        "device": named(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "metrics": metrics,
        "config": vars(run.args),
        "data": run.data,
        "inputs": run.inputs,
        "training": run.training,
        "place_flags": without_effect,  # those of config that change no result
        "changed_flags": [f for f in run.parser.roles if not run.parser.is_default(run.args, f)],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(json.loads(to_json(results)), indent=1, ensure_ascii=False)
    write_atomically(run.folder / "results.json", text.encode() + b"\n")


def write_predictions(folder, table):
    """Write `predictions.csv`, a DataFrame, into a folder."""
    text = table.to_csv(index=False, lineterminator="\n")
    write_atomically(folder / "predictions.csv", text.encode())


def write_label_density(folder, labels, shots, counts, density, weights):
    """Write `label_density.csv`, a row per bucket.

    Args:
        folder: the run folder.
        labels: lower edge of each bucket [B], in the unit of the target.
        shots: shot of each bucket [B]: 'many', 'medium' or 'few'.
        counts: training samples per bucket [B].
        density: the pair before and after LDS, each [B]; None leaves a blank.
        weights: weight of a sample in each bucket [B], or for each expert [B, M], whose mean is
            written; left blank where there is none.
    """
    emp_label_dist, eff_label_dist = density
    weights = np.reshape(weights, (len(labels), -1)).mean(axis=1)
    table = {
        "bucket": np.arange(len(labels)),
        "label": labels,
        "shot": shots,
        "count": counts,
        "emp_label_dist": emp_label_dist,
        "eff_label_dist": eff_label_dist,
        "weight": np.where(np.asarray(counts) > 0, weights, np.nan),
    }
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
