"""Metrics of the age benchmarks, over all test images and by shot (section 4 of the paper).

Shots follow the training set's count at an image's integer age: many > 100, few < 20, medium
between. MSE and MAE are in years² and years, GM is the geometric mean of the absolute error,
bMAE the mean over ages of each age's MAE.
"""

import numpy as np

from datasets import AGE_BUCKETS

MANY_SHOT = 100  # section 4 of the paper: more than 100 training samples at that age
FEW_SHOT = 20  # fewer than 20
SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mse", "mae", "gm", "bmae")
MAIN_METRICS = ("mae", "gm")  # the columns of the paper's tables
# An error of zero would make the geometric mean zero: it counts as this (released code).
SMALLEST_ERROR = 1e-10


def shot_of(labels, train_labels):
    """Name the shot of each label: object array [N] of 'many', 'medium' and 'few'.

    Args:
        labels, train_labels: arrays of ages in years; an age counts as its integer part.
    """
    ages = np.floor(labels).astype(int)
    train_ages = np.floor(train_labels).astype(int)
    counts = np.bincount(train_ages, minlength=max(ages.max(initial=0), 0) + 1)[ages]
    return np.select([counts > MANY_SHOT, counts < FEW_SHOT], ["many", "few"], "medium")


def shots_of_buckets(train_labels):
    """Name the shot of each bucket of `datasets.label_to_bucket`: object array [121].

    Args:
        train_labels: ages of the training set [N], in years.
    """
    return shot_of(np.arange(AGE_BUCKETS), train_labels)


def shot_metrics(preds, labels, train_labels=None):
    """Compute every metric over all samples and by shot.

    Args:
        preds, labels: arrays or lists [N], in years.
        train_labels: ages of the training set, which decide the shots; None gives only overall.

    Returns:
        `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has no sample.

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
    if train_labels is not None:
        shots = shot_of(labels, np.asarray(train_labels, dtype=np.float64).reshape(-1))
        parts |= {shot: shots == shot for shot in SHOTS[1:]}
    return {shot: _metrics(preds[part], labels[part]) for shot, part in parts.items()}


def _metrics(preds, labels):
    """Metrics of one group of samples."""
    if len(labels) == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    error = np.abs(preds - labels)
    _, age = np.unique(np.floor(labels), return_inverse=True)
    mae_per_age = np.bincount(age, weights=error) / np.bincount(age)
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(error)),
        "gm": float(np.exp(np.mean(np.log(np.maximum(error, SMALLEST_ERROR))))),
        "bmae": float(np.mean(mae_per_age)),
        "num_samples": len(labels),
    }
