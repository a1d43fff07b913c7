"""What a finished run leaves in its folder: metrics, label density, statistics of FDS."""

import json
import time

import numpy as np
import pandas as pd

from flags import PLACE, RESAMPLING, method_name
from utils import to_json, write_atomically


def metrics_table(metrics):
    """Return the metrics of one split by shot as text, with a dash for a shot without samples."""
    frame = pd.DataFrame(metrics).T.astype({"num_samples": int})
    return frame.to_string(float_format=lambda v: f"{v:.3f}", na_rep="–")


def write_results(run, metrics, **facts):
    """Write `results.json`: what was run, on what, and every metric by shot.

    Args:
        run: `Run`.
        metrics: `{split: {shot: {metric: value}}}`.
        facts: further entries: benchmark, target, main_metrics, best_epoch, wall_seconds.
    """
    without_effect = run.parser.flags_of(PLACE)
    if getattr(run.args, "resample", "none") == "none":
        without_effect += [flag for flag in RESAMPLING if flag in run.parser.roles]
    results = {
        **run.facts,
        **facts,
        "method": method_name(run.args, run.parser),
        "seed": run.args.seed,
        "device": str(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "metrics": metrics,
        "config": vars(run.args),
        "place_flags": without_effect,  # those of config that change no result
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(json.loads(to_json(results)), indent=1, ensure_ascii=False)
    write_atomically(run.folder / "results.json", text.encode() + b"\n")


def write_label_density(folder, labels, shots, counts, density, weights):
    """Write `label_density.csv`, a row per bucket.

    Args:
        folder: the run folder.
        labels: lower edge of each bucket [B], in the unit of the target.
        shots: shot of each bucket [B]: 'many', 'medium' or 'few'.
        counts: training samples per bucket [B].
        density: the pair before and after LDS, each [B]; None leaves a blank.
        weights: weight of a sample in each bucket [B]; left blank where there is none.
    """
    emp_label_dist, eff_label_dist = density
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
