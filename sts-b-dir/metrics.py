"""Metrics of STS-B-DIR, over all test pairs and by shot (section 4 of the paper).

Shots are fixed lists of the 50 bins of 0.1 with the official files. With others they follow from
the training pairs of a bin. All is in the unit of the scores, 0 ... 5: MSE and MAE, GM (the
geometric mean of the absolute error), bMAE (the mean over bins of each bin's MAE), Pearson's and
Spearman's correlation.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr

from datasets import BUCKETS, EDGES, edges_of, label_counts, label_to_bucket
from evaluation import training_of
from pair_file import OFFICIAL, SIMILARITY
from target import Target

# Numbers of the bins of 0.1, from the released code: those with more than 100 training pairs, and
# with 35 to 98; the others, few, have at most 27.
MANY = (0, *range(10, 27, 2), 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 49)
MEDIUM = (2, 4, 6, 8, 27, 35, 37)
SHOTS = ("overall", "many", "medium", "few")
METRICS = ("mse", "mae", "gm", "bmae", "pearson", "spearman")
MAIN_METRICS = ("mse", "pearson")  # the columns of the paper's table
HIGHER_IS_BETTER = ("pearson", "spearman")
# An error of zero would make the geometric mean zero: it counts as this (released code).
SMALLEST_ERROR = 1e-10


class ShotRule(NamedTuple):
    """What decides a pair's shot."""

    edges: np.ndarray = EDGES  # of the bins [B + 1]
    counts: np.ndarray | None = None  # training pairs of each bin [B]; None: the fixed lists
    target: Target = SIMILARITY


OFFICIAL_RULE = ShotRule()


def rule_of(args, pairs, target, evaluated=None):
    """Return a run's `ShotRule`, with fixed lists for files of the official counts, and its bins.

    Args:
        args, target: the flags and the `target.Target`.
        pairs: what `pair_file.read_pairs` returns.
        evaluated: path and content of a checkpoint, which says the counts of an evaluation
            without training pairs: none where the lists are fixed.

    Raises:
        ValueError: if it does not, or says those of other bins.
    """
    if target == SIMILARITY and pairs["split"].value_counts().to_dict() == OFFICIAL:
        return OFFICIAL_RULE, edges_of(args, target)
    edges = edges_of(args, target) if target.own else EDGES
    labels = pairs["label"][pairs["split"] == "train"].to_numpy()
    counts = label_counts(labels, edges)
    if evaluated is not None and not len(labels):
        counts = training_of(*evaluated)["counts"]
        if not len(counts) and target == SIMILARITY:
            return OFFICIAL_RULE, edges_of(args, target)
        if len(counts) != len(edges) - 1:
            raise ValueError(
                f"{evaluated[0]} has {len(counts)} training counts for {len(edges) - 1} bins: "
                "evaluate it with the training pairs"
            )
    return ShotRule(edges, counts, target), edges_of(args, target)


def shot_of(labels, rule=OFFICIAL_RULE):
    """Name the shot of each label by its bin: object array of 'many', 'medium' and 'few'."""
    if rule.counts is None:
        shots = np.full(BUCKETS, "few", dtype=object)
        shots[list(MANY)] = "many"
        shots[list(MEDIUM)] = "medium"
    else:
        shots = rule.target.shots_of_counts(rule.counts)
    return shots[label_to_bucket(labels, rule.edges)]


def shots_of_buckets(edges=EDGES, rule=OFFICIAL_RULE):
    """Name the shot of each bin: object array [B] of 'many', 'medium' and 'few'.

    Args:
        edges: of the bins [B + 1]. The shots belong to the bins of the rule, of 0.1 by default, so
            one of other bins is that of its lower edge.
        rule: `ShotRule`.
    """
    return shot_of(edges[:-1], rule)


def shot_metrics(preds, labels, train_labels=None, rule=OFFICIAL_RULE):
    """Compute every metric over all pairs and by shot.

    Args:
        preds, labels: arrays or lists [N], in the unit of the scores.
        train_labels: not needed, the rule says the shots; here because other benchmarks need it.
        rule: `ShotRule`; without it that of the official files.

    Returns:
        `{shot: {metric: float, 'num_samples': int}}`; NaN where a shot has no pair, and in a
        correlation of fewer than two pairs or of a constant.

    Raises:
        ValueError: if preds and labels differ in length.
    """
    preds = np.asarray(preds, dtype=np.float64).reshape(-1)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if len(preds) != len(labels):
        raise ValueError(f"{len(preds)} predictions for {len(labels)} labels")
    buckets = label_to_bucket(labels, rule.edges)
    shots = shot_of(labels, rule)
    parts = {"overall": np.ones(len(labels), dtype=bool)}
    parts |= {shot: shots == shot for shot in SHOTS[1:]}
    return {shot: _metrics(preds[p], labels[p], buckets[p]) for shot, p in parts.items()}


def _metrics(preds, labels, buckets):
    """Metrics of one group of pairs."""
    if len(labels) == 0:
        return {metric: float("nan") for metric in METRICS} | {"num_samples": 0}
    error = np.abs(preds - labels)
    held, count = np.unique(buckets, return_inverse=True, return_counts=True)[1:]
    return {
        "mse": float(np.mean(error**2)),
        "mae": float(np.mean(error)),
        "gm": float(np.exp(np.mean(np.log(np.maximum(error, SMALLEST_ERROR))))),
        "bmae": float(np.mean(np.bincount(held, weights=error) / count)),
        "pearson": _correlation(pearsonr, preds, labels),
        "spearman": _correlation(spearmanr, preds, labels),
        "num_samples": len(labels),
    }


def _correlation(function, preds, labels):
    """Correlation of predictions and labels; NaN where it is not defined."""
    if len(labels) < 2 or not np.isfinite(preds).all():
        return float("nan")
    with warnings.catch_warnings():  # of a constant, whose correlation is NaN
        warnings.simplefilter("ignore")
        return float(function(preds, labels)[0])
