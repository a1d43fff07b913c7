"""Metrics of tables, over all test rows and by shot.

MAE, MSE, GM (geometric mean of the absolute error), R², Pearson's correlation, bMAE (the mean over
buckets of each bucket's MAE) and SERA, the squared error–relevance area of Ribeiro and Moniz
(Machine Learning 109, 2020). A shot's buckets follow from the training counts and the thresholds
that `prepare.py` chose.
"""

from typing import NamedTuple

import numpy as np

from bins import Bins, label_counts, label_to_bucket
from lds import on_scale
from outside import reading
from regions import zero_shot_parts
from relevance import relevance, relevance_points

SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mae", "mse", "gm", "r2", "pearson", "bmae", "sera")
MAIN_METRICS = ("mae", "gm")
HIGHER_IS_BETTER = ("r2", "pearson")
# An error of zero would make the geometric mean zero: it counts as this (released code).
SMALLEST_ERROR = 1e-10


class ShotRule(NamedTuple):
    """Which buckets are many-shot and few-shot."""

    bins: Bins
    many: int  # more training rows than this in a bucket
    few: int  # fewer than this


def sera(preds, labels, points):
    """Return the area under the squared error of the labels at least t relevant, t from 0 to 1.

    A label of relevance φ counts for every t up to φ, so the area is Σ φ·(pred − label)². NaN
    where the training labels have no extreme values: nothing is relevant then.
    """
    if not any(height for _, height in points):
        return float("nan")
    return float(np.sum(relevance(labels, points) * (preds - labels) ** 2))


# ---- for an evaluation without training rows ------------------------------------------------


def training_facts(labels, bins):
    """Return what a run notes of its training labels [N]: counts by bucket, SERA's relevance."""
    points = [[float(x), float(y)] for x, y in relevance_points(labels)]
    return {"counts": label_counts(labels, bins).tolist(), "relevance": points}


def training_of(noted, bins, path):
    """Return labels [N] in the same buckets as the training set's, and its relevance points.

    Args:
        noted: `training_facts`, from the checkpoint `path`.
        bins: `Bins`.
    """
    with reading(path, "evaluate it with the training rows"):
        if len(noted["counts"]) != bins.number:
            raise ValueError(f"{len(noted['counts'])} training counts for {bins.number} buckets")
        points = sorted((float(x), float(y)) for x, y in noted["relevance"])
    return np.repeat(bins.middles, noted["counts"]), points


# ---- by shot -------------------------------------------------------------------------------


def shots_of_buckets(train_labels, rule):
    """Name the shot of each bucket: object array [B] of 'many', 'medium' and 'few'.

    Args:
        train_labels: labels of the training set [N].
        rule: `ShotRule`.
    """
    counts = label_counts(train_labels, rule.bins)
    return np.select([counts > rule.many, counts < rule.few], ["many", "few"], "medium")


def groups_of(labels, rule):
    """Return the bucket of each label [N], long, not bounded by the first and last one."""
    bins = rule.bins
    inside = label_to_bucket(labels, bins)
    values = np.asarray(labels, dtype=float)
    if bins.scale == "log":
        values = np.maximum(values, np.finfo(float).tiny)
    beyond = np.floor((on_scale(values, bins.scale) - bins.ends[0]) / bins.width).astype(int)
    return np.where((labels < bins.low) | (labels > bins.high), beyond, inside)


def shot_metrics(preds, labels, train_labels=None, rule=None, points=None):
    """Compute every metric over all rows and by shot.

    Args:
        preds, labels: arrays or lists [N], in the unit of the target.
        train_labels: of the training set; without them there is only 'overall', and no SERA.
        rule: `ShotRule`, needed with them; without it bMAE is the mean over distinct labels.
        points: of SERA's relevance, where `train_labels` say no more than their buckets.

    Returns:
        `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has too few rows. Where
        training lacks a label, its regions come on top (`regions.REGIONS`).

    Raises:
        ValueError: if preds and labels differ in length, or a label is not finite.
    """
    preds = np.asarray(preds, dtype=np.float64).reshape(-1)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(preds) != len(labels):
        raise ValueError(f"{len(preds)} predictions for {len(labels)} labels")
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite: remove those that are NaN or infinite first")
    parts = {"overall": np.ones(len(labels), dtype=bool)}
    points = points or []
    buckets = np.unique(labels, return_inverse=True)[1]
    if rule is not None:
        buckets = label_to_bucket(labels, rule.bins)
    if train_labels is not None:
        points = points or relevance_points(train_labels)
        shots = shots_of_buckets(train_labels, rule)[buckets]
        parts |= {shot: shots == shot for shot in SHOTS[1:]}
        parts |= zero_shot_parts(groups_of(labels, rule), groups_of(train_labels, rule))
    return {
        shot: _metrics(preds[part], labels[part], buckets[part], points)
        for shot, part in parts.items()
    }


def _metrics(preds, labels, buckets, points):
    """Metrics of one group of rows."""
    N = len(labels)
    if N == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    error = np.abs(preds - labels)
    counts = np.bincount(buckets)
    by_bucket = np.bincount(buckets, weights=error)[counts > 0] / counts[counts > 0]
    spread = labels - labels.mean()
    spread_of_preds = preds - preds.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - np.sum(error**2) / np.sum(spread**2)
        product = np.sum(spread * spread_of_preds)
        pearson = product / np.sqrt(np.sum(spread**2) * np.sum(spread_of_preds**2))
    values = {
        "mae": error.mean(),
        "mse": np.mean(error**2),
        "gm": np.exp(np.mean(np.log(np.maximum(error, SMALLEST_ERROR)))),
        "r2": r2 if np.isfinite(r2) else np.nan,
        "pearson": pearson,
        "bmae": by_bucket.mean(),
        "sera": sera(preds, labels, points),
    }
    return {metric: float(value) for metric, value in values.items()} | {"num_samples": N}
