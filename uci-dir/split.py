"""Label buckets, the balanced split over them, and the shots, of any target.

The buckets are cut over the range of all labels, as the split is by label; those that training
then uses reach from its first to its last label.
"""

import numpy as np
import pandas as pd

from bins import Bins, label_counts, label_to_bucket
from buckets import from_scale
from datasets import MOST_BUCKETS, SPLITS
from lds import on_scale
from metrics import SHOTS, shots_of_buckets

MIN_BINS, MAX_BINS = 10, 100  # automatic ones; those of the ages and of depth are 100
EVAL_SHARE = 0.10  # of the rows at most in validation, and in test, if --cap does not say it
LEAST_CAP, MOST_CAP = 5, 150  # rows of a bucket in each; the paper's largest, of IMDB-WIKI, is 150

# ---- buckets -------------------------------------------------------------------------------


def choose_bins(labels, number=None, width=None, scale="linear"):
    """Cut the range of the labels into equal buckets.

    Args:
        labels: [N].
        number, width: as asked for; both None for an automatic choice.
        scale: on which they are equal: 'linear', or 'log' or 'symlog', whose widths are decades.

    Returns:
        `Bins`, and a sentence that says why.

    Raises:
        ValueError: for the logarithm of labels that are not above 0.
    """
    if scale == "log" and labels.min() <= 0:
        raise ValueError(
            f"--scale log needs labels above 0, the least is {labels.min():g}: --scale symlog"
        )
    values = on_scale(labels, scale)
    low, high = float(values.min()), float(values.max())
    whole = scale == "linear" and bool((labels == np.round(labels)).all())
    if number:
        return Bins(float(labels.min()), float(labels.max()), number, scale), f"--bins {number}"
    if width:
        why = f"--bin_width {width:g}"
    elif whole and high - low < MAX_BINS:
        width = 1.0
        why = "the labels are whole numbers: one bucket each, as with ages"
    else:
        width, why = automatic_width(values)
    # Whole labels lie in the middle of their bucket, where no rounding moves them to the next.
    start = low - 0.5 if whole and width == round(width) else np.floor(low / width) * width
    number = np.floor((high - start) / width) + 1
    if number > MOST_BUCKETS:
        raise ValueError(
            f"--bin_width {width:g} makes {number:,.0f} buckets, {MOST_BUCKETS:,} at most"
        )
    number = int(number)
    ends = from_scale(np.array([start, start + number * width]), scale)
    return Bins(*ends.tolist(), number, scale), why


def automatic_width(labels):
    """Return a round width by the rule of Freedman and Diaconis (1981), and how it came about."""
    distance = np.subtract(*np.percentile(labels, (75, 25)))
    ideal = 2 * distance / np.cbrt(len(labels))
    least = np.ptp(labels) / (MAX_BINS - 1)
    most = np.ptp(labels) / MIN_BINS
    widths = [factor * 10.0**power for power in range(-12, 13) for factor in (1, 2, 5)]
    fitting = [width for width in widths if least <= width <= most] or [most]
    width = min(fitting, key=lambda w: abs(np.log(w / max(ideal, least))))
    why = f"2 · quartile distance / cube root of the rows (Freedman–Diaconis) = {ideal:.3g}"
    return width, f"{why}, as a round number, with {MIN_BINS} to {MAX_BINS} buckets"


def trained_bins(bins, train_labels):
    """Return the bins from the first to the last that has a training row, two at least."""
    train_buckets = label_to_bucket(train_labels, bins)
    first = train_buckets.min()
    last = max(train_buckets.max(), train_buckets.min() + 1)
    if (first, last) == (0, bins.number - 1):
        return bins
    positions = bins.ends[0] + np.array([first, last + 1]) * bins.width
    ends = from_scale(positions, bins.scale)
    return Bins(*ends.tolist(), int(last - first + 1), bins.scale)


# ---- split ---------------------------------------------------------------------------------


def automatic_cap(counts):
    """Return the largest cap, from 5 to 150, at which val and test have at most 10 % of the rows.

    Args:
        counts: rows per bucket [B].
    """
    cap = LEAST_CAP
    while cap < min(counts.max() // 3, MOST_CAP):
        if np.minimum(counts // 3, cap + 1).sum() > EVAL_SHARE * counts.sum():
            break
        cap += 1
    return cap


def balanced_split(buckets, cap, seed, groups=None):
    """Assign each row to train, val or test so that val and test are balanced over the buckets.

    In each bucket in turn the rows are shuffled; n = min(count // 3, cap) of them go to val, the
    next n to test. Groups are taken as a whole, in the bucket of their median row, as long as they
    fit into those n.

    Args:
        buckets: bucket of each row [N].
        cap: most rows of a bucket in val, and in test.
        seed: of the shuffles.
        groups: what must stay together [N], or None.

    Returns:
        Object array [N] of 'train', 'val' and 'test'.
    """
    table = pd.DataFrame({"bucket": buckets, "group": np.arange(len(buckets))})
    if groups is not None:
        table["group"] = pd.factorize(groups)[0]
    units = table.groupby("group")["bucket"].agg(["median", "size"])
    bucket_of = units["median"].to_numpy().astype(int)
    sizes = units["size"].to_numpy()
    rng = np.random.default_rng(seed)
    split = np.full(len(units), "train", dtype=object)
    for bucket in np.unique(bucket_of):
        members = rng.permutation(np.flatnonzero(bucket_of == bucket))
        room = min(sizes[members].sum() // 3, cap)
        left = dict.fromkeys(("val", "test"), room)
        for unit in members:
            fitting = [name for name, rows in left.items() if rows >= sizes[unit]]
            if fitting:
                split[unit] = fitting[0]
                left[fitting[0]] -= sizes[unit]
    return split[table["group"]]


def choose_shots(counts, test_counts, many=None, few=None):
    """Return the thresholds of the shots.

    By default few-shot are the buckets with the fewest training rows that together have a third of
    the test rows, many-shot those with the most that have a third: so each shot can be measured.

    Args:
        counts, test_counts: training and test rows per bucket [B].
        many, few: as asked for, or None.

    Raises:
        ValueError: if they contradict each other.
    """
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    tested = test_counts[order].sum()
    if not tested:
        raise ValueError(
            "no test row lies in a bucket with training rows: widen it, or --curate less"
        )
    reached = np.cumsum(test_counts[order]) - test_counts[order] / 2  # up to a bucket's middle
    share = reached / tested
    # Where no bucket's middle lies in the second third, none is medium-shot.
    if many is None:
        many = int(counts[order][share <= 2 / 3].max())
        many = max(many, (few or 0) - 1)
    if few is None:
        few = min(int(counts[order][share >= 1 / 3].min()), many + 1)
    if few > many + 1:
        raise ValueError(f"--few {few} must not lie above --many {many}")
    return many, few


def describe_split(labels, split, rule, cap):
    """Return the table of buckets and rows per shot."""
    shots = shots_of_buckets(labels[split == "train"], rule)
    rows = shots[label_to_bucket(labels, rule.bins)]
    lines = [
        f"at most {cap} rows of a bucket in val, and in test; many-shot: more than {rule.many} "
        f"training rows in a bucket, few-shot: fewer than {rule.few}",
        f"{'shot':>8}{'buckets':>9}" + "".join(f"{name:>9}" for name in SPLITS),
    ]
    for shot in (*SHOTS[1:], "all"):
        here = np.ones(len(rows), bool) if shot == "all" else rows == shot
        counts = [int((here & (split == name)).sum()) for name in SPLITS]
        buckets = len(shots) if shot == "all" else int((shots == shot).sum())
        lines.append(f"{shot:>8}{buckets:>9,}" + "".join(f"{count:>9,}" for count in counts))
    empty = [shot for shot in ("many", "few") if not ((rows == shot) & (split == "test")).any()]
    if empty:
        lines.append(f"warning: no test row is {'- or '.join(empty)}-shot: other --bins may help")
    counts = label_counts(labels[split == "train"], rule.bins)
    share = counts.max() / counts.sum()
    if share > 0.5:
        log = ", or for a heavy tail --scale log or symlog," * (rule.bins.scale == "linear")
        tail = f"a smaller --bin_width{log} cuts it"
        lines.append(f"warning: one bucket holds {share:.0%} of the training rows: {tail}")
    return lines
