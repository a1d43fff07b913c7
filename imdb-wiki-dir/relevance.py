"""Relevance of labels: how much the rare ones among them count, from 0 to 1.

Resampling (`resample.py`) takes the labels that are relevant enough for rare; SERA, a metric of
tables, weights errors by it.
"""

import numpy as np

# Which labels are rare: those at both, or at one, of a box plot's ends, or those of rare buckets.
RELEVANCES = ("extremes", "low_extremes", "high_extremes", "density")
SHOT_RELEVANCE = {"many": 0.0, "medium": 0.5, "few": 1.0}
WHISKER = 1.5  # length of a box plot's whiskers, in quartile distances (Tukey)


def relevance_points(labels, kind="extremes"):
    """Return the control points of the relevance of labels: (label, relevance), rising.

    The median has relevance 0. On each side the end of the whisker has 1 if labels lie beyond it;
    else the last label has 0.

    Args:
        labels: of the training set [N].
        kind: 'extremes', or 'low_extremes' or 'high_extremes' alone.

    Source: Ribeiro and Moniz, 2020, section 3.1, with the quartiles of R's `boxplot.stats`.
    """
    labels = np.sort(np.asarray(labels, dtype=np.float64))
    N = len(labels)
    depth = (N + 3) // 2 / 2  # of Tukey's hinges, counted from 1
    low, high = (
        (labels[int(np.floor(place)) - 1] + labels[int(np.ceil(place)) - 1]) / 2
        for place in (depth, N + 1 - depth)
    )
    reach = WHISKER * (high - low)
    inside = labels[(labels >= low - reach) & (labels <= high + reach)]
    points = {}
    if kind != "high_extremes":
        points[inside[0]] = float(inside[0] > labels[0])
    if kind != "low_extremes":
        points[inside[-1]] = float(inside[-1] < labels[-1])
    points[float(np.median(labels))] = 0.0
    return sorted(points.items())


def relevance(labels, points):
    """Return the relevance of labels [N], in [0, 1].

    A piecewise cubic Hermite polynomial (PCHIP) with slope 0 at the control points, constant
    beyond the outer ones.
    """
    from scipy.interpolate import CubicHermiteSpline  # here: the command line needs none of it

    if len(points) < 2:
        return np.zeros(len(labels))
    x, y = np.array(points).T
    return CubicHermiteSpline(x, y, np.zeros_like(y))(np.clip(labels, x[0], x[-1]))


def relevance_of(labels, shots, kind):
    """Return the relevance of training labels [N], in [0, 1].

    Args:
        labels: of the training set [N].
        shots: shot of each [N], 'many', 'medium' or 'few': their relevance is 0, ½ and 1 with
            `kind` 'density'.
        kind: one of `RELEVANCES`.
    """
    if kind == "density":
        return np.array([SHOT_RELEVANCE[shot] for shot in shots])
    return relevance(labels, relevance_points(labels, kind))
