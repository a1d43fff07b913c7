"""Zero-shot labels: those of which the training set has no sample, within its range or beyond.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), Table 6: training labels of some
ranges are left out (`prepare.py --curate`), and the test set still has them.
"""

import numpy as np

REGIONS = ("with_data", "interpolation", "extrapolation")


def zero_shot_parts(groups, train_groups):
    """Return which samples belong to each region.

    Args:
        groups: whole numbers [N], such as ages; a label's bucket, not bounded by the outer ones.
        train_groups: the same of the training set.

    Returns:
        {region: bool [N]}; empty if the training set has a sample of each group.
    """
    held = np.unique(train_groups)
    known = np.isin(groups, held)
    if known.all():
        return {}
    inside = (groups >= held[0]) & (groups <= held[-1])
    return {"with_data": known, "interpolation": inside & ~known, "extrapolation": ~inside}


def curated(meta, ends, target):
    """Return a table without the training samples of some labels, and print their number.

    Args:
        meta: DataFrame with the target's column and split.
        ends: [low, high, low, high, …] of those labels, low <= label < high; none leaves all.
        target: name of its column.

    Raises:
        ValueError: if no training sample has such a label, or all have.
    """
    if not ends:
        return meta
    train = meta["split"] == "train"
    labels = meta[target].to_numpy(float)
    gap = np.zeros(len(meta), dtype=bool)
    counts = []
    for low, high in zip(ends[::2], ends[1::2]):
        inside = (labels >= low) & (labels < high) & train
        counts.append(f"{inside.sum():,} of {low:g} to {high:g}")
        gap |= inside
    if gap.sum() == train.sum():
        raise ValueError(f"--curate {ends} leaves no training sample: make its ranges smaller")
    if not gap.any():
        span = f"{labels[train].min():g} to {labels[train].max():g}"
        raise ValueError(f"--curate {ends} has no training sample: their labels are {span}")
    print(
        f"--curate: {gap.sum():,} training samples left out ({', '.join(counts)}), not val and test"
    )
    return meta[~gap].reset_index(drop=True)


def check_ends(parser, ends):
    """End with a message unless the ends of --curate are pairs that rise."""
    pairs = list(zip(ends[::2], ends[1::2]))
    if len(ends) % 2 or any(not low < high for low, high in pairs):
        parser.error(f"--curate takes pairs LOW HIGH with LOW below HIGH, got {ends}")
