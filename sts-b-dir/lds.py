"""Label distribution smoothing (LDS), section 3.1 of "Delving into Deep Imbalanced Regression".

The counts of the training labels, bucket by bucket, are convolved with a symmetric window. The
smoothed density gives the weight of each sample's loss:

    counts = np.bincount(bucket, minlength=B)             # bucket of each training label [N]
    density = label_density(counts, "sqrt_inv", lds=True)  # before and after smoothing
    weights = bucket_weights(density, counts)[bucket]      # [N], mean 1

`lds_weights` does it all at once, `dense_weights` gives DenseWeight's, for comparison. NumPy and
SciPy are all they need.
"""

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter1d

KERNELS = ("gaussian", "triang", "laplace")
REWEIGHTS = ("none", "sqrt_inv", "inverse")
SMALLEST_DENSE = 1e-6  # of DenseWeight's weights, before they are scaled (released code)
SCALES = ("linear", "log", "symlog")
ROUNDING = 1e-9  # a sum of counts such as 14.999999999 is meant as 15, not as 14


def get_lds_kernel_window(kernel, ks, sigma):
    """Return the symmetric window with which LDS convolves the label density.

    Args:
        kernel: 'gaussian', 'triang' or 'laplace'.
        ks: length of the window in buckets, odd and >= 1.
        sigma: width of the kernel in buckets, 1e-6 to 1e6; 'triang' has none.

    Returns:
        Float array [ks] with 1, its peak, at the centre.

    Raises:
        ValueError: for an unknown kernel, an even or non-positive ks, or another sigma.

    Source: section 3.1 of the paper. The Gaussian is a unit impulse filtered within the window
    with a reflecting edge, as in the released code, so its ends lie above exp(−x²/2σ²).
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
    if int(ks) != ks or ks < 1 or ks % 2 == 0:
        raise ValueError(f"ks must be odd and >= 1 (say {max(int(ks) // 2 * 2 + 1, 1)}), got {ks}")
    if not 1e-6 < sigma < 1e6:
        raise ValueError(f"sigma must be between 1e-6 and 1e6, got {sigma}")
    ks, half = int(ks), int(ks) // 2
    if kernel == "triang":
        return 2 * (half + 1 - np.abs(np.arange(-half, half + 1))) / (ks + 1.0)
    if kernel == "gaussian":
        window = gaussian_filter1d(np.eye(ks)[half], sigma=sigma)
    else:
        window = np.exp(-np.abs(np.arange(-half, half + 1)) / sigma)
    # A sigma near ks lifts the reflected ends above the centre, by less than 3e-4: they are cut.
    return np.minimum(window / window[half], 1.0)


def label_density(
    counts,
    reweight,
    lds=False,
    lds_kernel="gaussian",
    lds_ks=5,
    lds_sigma=2,
    *,
    clip=None,
    mode="constant",
    start=0,
    truncate=False,
):
    """Return the value per bucket that re-weighting divides by, before and after LDS.

    Args:
        counts: training samples per bucket [B].
        reweight: 'none' and 'inverse' (INV) take the count, 'sqrt_inv' (SQINV) its square root, a
            number in (0, 1] that power of it.
        lds, lds_kernel, lds_ks, lds_sigma: smoothing of the value over buckets.
        clip: (low, high) bounds of the counts with 'inverse', or None.
        mode: how `scipy.ndimage.convolve1d` continues the values past the first and last bucket.
        start: first bucket that counts; those before it take its value, or that of the next one
            if it is empty.
        truncate: cut smoothed counts to whole numbers, as the released code does in the ages and
            STS-B: its published numbers hold that. Only with 'inverse'.

    Returns:
        emp_label_dist [B] and eff_label_dist [B], float64; the latter is None without LDS.

    Raises:
        ValueError: for counts that are negative, not finite or all 0, an unknown `reweight`, or
            LDS without re-weighting.

    Source: section 3.1 of the paper. 'sqrt_inv' smooths √count, as the released code does.
    """
    values = np.array(counts, dtype=np.float64)
    power = {"none": 0, "sqrt_inv": 0.5, "inverse": 1}.get(reweight, reweight)
    if reweight not in REWEIGHTS and (isinstance(power, str) or not 0 < power <= 1):
        raise ValueError(f"reweight must be one of {', '.join(REWEIGHTS)}; got {reweight!r}")
    if lds and power == 0:
        raise ValueError("LDS smooths the weights: give --reweight sqrt_inv or inverse with --lds")
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"counts [B] must be finite and 0 or more, got {counts}")
    if not values[start:].any():
        raise ValueError(f"no bucket from {start} on has a sample: nothing can be weighted")
    if power == 1 and clip is not None:
        values = np.clip(values, *clip)
    elif 0 < power < 1:
        values = np.sqrt(values) if power == 0.5 else values**power
    values[:start] = first_above_zero(values[start:])
    if not lds:
        return values, None
    window = get_lds_kernel_window(lds_kernel, lds_ks, lds_sigma)
    smoothed = values.copy()
    smoothed[start:] = convolve1d(values[start:], weights=window, mode=mode)
    if truncate and power == 1:
        smoothed = np.floor(smoothed + ROUNDING)
    smoothed[:start] = first_above_zero(smoothed[start:])
    return values, smoothed


def first_above_zero(values):
    """Return the first value above zero of an array that has one."""
    return values[np.argmax(values > 0)]


def bucket_weights(density, counts, reweight=None):
    """Return the weight of a sample's loss by its bucket; the mean over the samples is 1.

    Args:
        density: the pair that `label_density` returns.
        counts: training samples per bucket [B].
        reweight: with 'none' all weights are 1.

    Returns:
        float32 array [B]. A bucket without samples takes the weight of the nearest one that has
        some (of two, the lower): interpolated labels may fall in it.

    Raises:
        ValueError: if a weight would not be finite and above 0.

    Source: section 3.1 of the paper; the scaling is the released code's.
    """
    if reweight == "none":
        return np.ones(len(counts), dtype=np.float32)
    emp_label_dist, eff_label_dist = density
    counts = np.asarray(counts, dtype=np.float64)
    value = emp_label_dist if eff_label_dist is None else eff_label_dist
    filled = np.flatnonzero(counts > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = 1.0 / value[filled]
        weights *= counts.sum() / (counts[filled] * weights).sum()
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"a weight is not finite: the densities of filled buckets are {value[filled]}"
        )
    nearest = np.abs(np.arange(len(counts))[:, None] - filled).argmin(axis=1)
    return weights[nearest].astype(np.float32)


def dense_weights(labels, alpha=1.0, new_labels=None):
    """Return DenseWeight's weights: 1 − α·density, the density scaled to a maximum of 1.

    Args:
        labels: of the training set [N], in any unit.
        alpha: 0 (all weights are 1) or more; from 1 on the densest labels hardly count.
        new_labels: [M]; without them the weights are those of the training labels.

    Returns:
        float64 array, [N] or [M]; the mean over the training labels is 1.

    Raises:
        ValueError: for labels that are not finite, or alpha below 0.

    The density is SciPy's Gaussian kernel estimate, with the released code's width
    1.06·deviation·N^(−1/5), and its maximum that at the labels themselves. The released code takes
    both from a grid, whose maximum may lie between labels of few values: weights of five ratings
    differ by up to a tenth of the largest. Time grows with the number of distinct labels times
    that of labels asked for. Source: Steininger et al., Machine Learning 110 (2021).
    """
    from scipy.stats import gaussian_kde  # only here: it takes long to import

    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    new = labels if new_labels is None else np.asarray(new_labels, dtype=np.float64).reshape(-1)
    if not (len(labels) and np.isfinite(labels).all() and np.isfinite(new).all()):
        raise ValueError("labels must be finite, and one at least: remove the others first")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha of DenseWeight must be 0 or more, got {alpha}")
    values, counts = np.unique(labels, return_counts=True)
    if len(values) == 1:
        return np.ones(len(new))
    # In deviations, so that the unit of the labels does not matter.
    centre = labels.mean()
    deviation = labels.std()
    values = (values - centre) / deviation
    kde = gaussian_kde(values, bw_method=1.0, weights=counts)
    kde.set_bandwidth(1.06 * len(labels) ** -0.2 / np.sqrt(kde.covariance[0, 0]))
    at_values = kde(values)
    highest = at_values.max()

    def weigh(density):
        return np.maximum(1 - alpha * density / highest, SMALLEST_DENSE)

    scale = np.average(weigh(at_values), weights=counts)
    asked, places = np.unique((new - centre) / deviation, return_inverse=True)
    return (weigh(kde(asked)) / scale)[places]


# ---- weights in one call -------------------------------------------------------------------


def on_scale(values, scale, xp=np):
    """Return values y on a scale: y, log10(y) or sign(y)·log10(1 + |y|); `xp`: numpy or torch."""
    if scale == "symlog":
        return xp.sign(values) * xp.log10(1 + xp.abs(values))
    return xp.log10(values) if scale == "log" else values


class SampleWeights(np.ndarray):
    """Weights of samples [N], mean 1; `transform` gives those of labels that were not counted.

    What is computed from them is a plain array or number.
    """

    def __array_finalize__(self, other):
        self.rule = getattr(other, "rule", None)

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return np.asarray(array)[()]

    def __reduce__(self):
        return restored, (np.asarray(self), self.rule)

    def transform(self, labels):
        """Return the weights of labels, array of any shape; labels beyond the first take an end's.

        Raises:
            ValueError: for labels that are not finite.
        """
        by_bucket, inner, scale, ends = self.rule
        labels = np.asarray(labels, dtype=np.float64)
        if not np.isfinite(labels).all():
            raise ValueError("labels must be finite: remove the others first")
        position = on_scale(np.clip(labels, *ends), scale)
        return by_bucket[np.searchsorted(inner, position, "right")]


def restored(values, rule):
    """Return `SampleWeights` of an array and its rule, as pickle and copy take them apart."""
    weights = values.view(SampleWeights)
    weights.rule = rule
    return weights


def lds_weights(labels, bins=50, scale="linear", reweight="sqrt_inv", **window):
    """Return the weight of each sample's loss after LDS.

    Args:
        labels: of the training set [N].
        bins: number of equal buckets from the smallest label to the largest.
        scale: on which they are equal: 'linear', or 'log' or 'symlog' for heavy tails.
        reweight: 'sqrt_inv' or 'inverse'.
        window: `lds_kernel`, `lds_ks` and `lds_sigma` of `label_density`.

    Returns:
        `SampleWeights`, float32 [N].

    Raises:
        ValueError: for labels, bins or a scale that cannot be used; as `label_density`.
    """
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    if not len(labels) or not np.isfinite(labels).all() or bins < 1:
        raise ValueError("labels must be finite, one at least, and bins 1 or more")
    if scale not in SCALES or (scale == "log" and labels.min() <= 0):
        raise ValueError(f"{scale=} must be linear, symlog or, for labels above 0, log")
    position = on_scale(labels, scale)
    inner = np.linspace(position.min(), position.max(), bins + 1)[1:-1]
    bucket = np.searchsorted(inner, position, "right")
    counts = np.bincount(bucket, minlength=bins)
    by_bucket = bucket_weights(label_density(counts, reweight, lds=True, **window), counts)
    rule = by_bucket, inner, scale, (labels.min(), labels.max())
    return restored(by_bucket[bucket], rule)
