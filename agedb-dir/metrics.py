"""Metrics of the age benchmarks, over all test images and by shot (section 4 of the paper).

Shots follow the training set's count at an image's integer age: many > 100, few < 20, medium
between. MSE and MAE are in years² and years, GM is the geometric mean of the absolute error,
bMAE the mean over ages of each age's MAE. Your own target has its buckets in place of ages.
"""

import numpy as np

from datasets import AGE, label_to_bucket
from regions import zero_shot_parts

SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mse", "mae", "gm", "bmae")
MAIN_METRICS = ("mae", "gm")  # the columns of the paper's tables
# An error of zero would make the geometric mean zero: it counts as this (released code).
SMALLEST_ERROR = 1e-10


def groups_of(labels, target):
    """Return the group of each label [N], long: an age's integer part, however old; or a bucket."""
    if target.own:
        return label_to_bucket(labels, target)
    return np.floor(labels).astype(int)


def shot_of(labels, train_labels, target=AGE):
    """Name the shot of each label: object array [N] of 'many', 'medium' and 'few'.

    Args:
        labels, train_labels: arrays in the target's unit; an age counts as its integer part.
        target: `target.Target`.
    """
    groups = groups_of(labels, target)
    train_groups = groups_of(train_labels, target)
    counts = np.bincount(train_groups, minlength=max(groups.max(initial=0), 0) + 1)[groups]
    return target.shots_of_counts(counts)


def count_groups(labels, target=AGE):
    """Return the number of training labels [N] in each group, as a list; `labels_of` inverts it."""
    return np.bincount(groups_of(labels, target)).tolist()


def labels_of(counts, target=AGE):
    """Return labels [N] with these counts of groups: each the lower end of its group.

    Raises:
        ValueError: if there are more groups than buckets of your own target.
    """
    if target.own and len(counts) > len(target.buckets):
        raise ValueError(
            f"{len(counts)} training counts for {len(target.buckets)} buckets of {target.words}: "
            "evaluate with the training rows"
        )
    starts = target.edges if target.own else np.arange(len(counts))
    return np.repeat(starts[: len(counts)], counts)


def shots_of_buckets(train_labels, target=AGE):
    """Name the shot of each bucket of `datasets.label_to_bucket`: object array [B].

    Args:
        train_labels: of the training set [N], in the target's unit.
        target: `target.Target`.
    """
    return shot_of(target.buckets.edges, train_labels, target)


def shot_metrics(preds, labels, train_labels=None, target=AGE):
    """Compute every metric over all samples and by shot.

    Args:
        preds, labels: arrays or lists [N], in the target's unit.
        train_labels: of the training set, which decide the shots; None gives only overall.
        target: `target.Target`.

    Returns:
        `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has no sample. Where
        training lacks a label, its regions come on top (`regions.REGIONS`).

    Raises:
        ValueError: if preds and labels differ in length.
    """
    preds = np.asarray(preds, dtype=np.float64).reshape(-1)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(preds) != len(labels):
        raise ValueError(f"{len(preds)} predictions for {len(labels)} labels")
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite: remove those that are NaN or infinite first")
    parts = {"overall": np.ones(len(labels), dtype=bool)}
    groups = groups_of(labels, target)
    if train_labels is not None:
        train_labels = np.asarray(train_labels, dtype=np.float64).reshape(-1)
        shots = shot_of(labels, train_labels, target)
        parts |= {shot: shots == shot for shot in SHOTS[1:]}
        parts |= zero_shot_parts(groups, groups_of(train_labels, target))
    return {shot: _metrics(preds[part], labels[part], groups[part]) for shot, part in parts.items()}


def _metrics(preds, labels, groups):
    """Metrics of one group of samples."""
    if len(labels) == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    error = np.abs(preds - labels)
    _, group = np.unique(groups, return_inverse=True)
    mae_per_group = np.bincount(group, weights=error) / np.bincount(group)
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(error)),
        "gm": float(np.exp(np.mean(np.log(np.maximum(error, SMALLEST_ERROR))))),
        "bmae": float(np.mean(mae_per_group)),
        "num_samples": len(labels),
    }
