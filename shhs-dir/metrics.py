"""Metrics of SHHS-DIR, over all test nights and by shot (section 4 of the paper).

Shots follow the training set's count at a night's score, as a bucket of width 1: many > 100,
few < 20, medium between. The score has no unit: MAE is in points of 0 to 100, GM is the geometric
mean of the absolute error, bMAE the mean over buckets of each bucket's MAE. Your own target has its
own buckets and unit.
"""

import numpy as np

from datasets import SCORE, label_counts, label_to_bucket

SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mse", "mae", "gm", "bmae")
MAIN_METRICS = ("mae", "gm")  # the columns of the paper's table
# An error of zero would make the geometric mean zero: it counts as this (released code, ages).
SMALLEST_ERROR = 1e-10


def shots_of_buckets(train_labels, target=SCORE):
    """Name the shot of each bucket: object array [B] of 'many', 'medium' and 'few'.

    Args:
        train_labels: scores of the training set [N].
        target: `target.Target` of the scores.
    """
    return target.shots_of_counts(label_counts(train_labels, target))


def shot_metrics(preds, labels, train_labels=None, target=SCORE):
    """Compute every metric over all samples and by shot.

    Args:
        preds, labels: arrays or lists [N] of scores.
        train_labels: scores of the training set, which decide the shots; None gives only overall.
        target: `target.Target` of the scores.

    Returns:
        `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has no sample.

    Raises:
        ValueError: if preds and labels differ in length, or labels are not finite.
    """
    preds = np.asarray(preds, dtype=np.float64).reshape(-1)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(preds) != len(labels):
        raise ValueError(f"{len(preds)} predictions for {len(labels)} labels")
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite: remove those that are NaN or infinite first")
    parts = {"overall": np.ones(len(labels), dtype=bool)}
    if train_labels is not None:
        shots = shots_of_buckets(train_labels, target)[label_to_bucket(labels, target)]
        parts |= {shot: shots == shot for shot in SHOTS[1:]}
    return {shot: _metrics(preds[part], labels[part], target) for shot, part in parts.items()}


def _metrics(preds, labels, target):
    """Metrics of one group of samples."""
    if len(labels) == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    error = np.abs(preds - labels)
    _, bucket = np.unique(label_to_bucket(labels, target), return_inverse=True)
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(error)),
        "gm": float(np.exp(np.mean(np.log(np.maximum(error, SMALLEST_ERROR))))),
        "bmae": float(np.mean(np.bincount(bucket, weights=error) / np.bincount(bucket))),
        "num_samples": len(labels),
    }
