"""How much of your own data is held out for validation and test, and whether that will do.

`prepare.py` gives at most a third of each bucket to validation and as much to test, up to a cap.
On a small data set that leaves little to train on, so the cap is lowered.
"""

import numpy as np

from target import FEW_BUCKETS

MAX_HELD_OUT = 0.4  # of your own data, validation and test together
LEAST_TEST, LEAST_BUCKETS = 100, 20  # below which metrics by shot are mostly noise


def add_held_out(add, cap, share=f"{MAX_HELD_OUT} of your own data"):
    """Add the flags: `add` does as `add_argument`, `cap` and `share` name the defaults."""
    add("--val_per_bin", type=int, help=f"most of a bucket in val [{cap}]")
    add("--test_per_bin", type=int, help=f"most of a bucket in test [{cap}]")
    share_help = f"largest share of the data in val and test [{share}]"
    add("--max_held_out", type=float, help=share_help)


def check_held_out(parser, args, cap, own):
    """End with a message where the flags cannot be used, and fill those that were not given.

    Args:
        parser, args: the parser, and what it parsed.
        cap: of each bucket in val, and in test, unless flags say otherwise; None leaves it open.
        own: whether this is your own data; a benchmark's are split as published.
    """
    for flag in ("val_per_bin", "test_per_bin"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more, got {getattr(args, flag)}")
    if args.max_held_out is not None and not 0 < args.max_held_out <= 1:
        parser.error(f"--max_held_out must be above 0 and at most 1, got {args.max_held_out}")
    given = args.cap, args.val_per_bin, args.test_per_bin, args.max_held_out
    if own and given == (None,) * 4:
        args.max_held_out = MAX_HELD_OUT
    args.cap = cap if args.cap is None else args.cap


def caps_of(args, counts):
    """Return the largest numbers of a bucket in val and in test, and print if they were lowered.

    Args:
        args: the flags.
        counts: samples of each bucket [B].
    """
    given = [args.val_per_bin or args.cap, args.test_per_bin or args.cap]
    if args.max_held_out is None:
        return given
    counts = np.asarray(counts)
    caps = given
    # At most a third of a bucket goes to each of the two.
    while (
        sum(np.minimum(counts // 3, cap).sum() for cap in caps) > args.max_held_out * counts.sum()
    ):
        if max(caps) == 1:
            break
        caps = [cap - (cap == max(caps)) for cap in caps]
    if caps != given:
        print(
            f"at most {caps[0]} of a bucket in val and {caps[1]} in test, lowered from {given[0]} "
            f"and {given[1]} by --max_held_out {args.max_held_out:g}"
        )
    return caps


def describe_split(target, labels, split, args, bins=None):
    """Print what the split of your own data means for training, with what helps, if anything does.

    Args:
        target: `target.Target`.
        labels, split: label and 'train', 'val' or 'test' of each sample [N].
        args: the flags of `add_held_out`.
        bins: number of each sample's bin [N] in the split, where that is not its bucket.
    """
    labels = np.asarray(labels)
    split = np.asarray(split)
    buckets = target.buckets(labels)
    bins = buckets if bins is None else bins
    third = np.bincount(bins) // 3
    reached = (np.bincount(bins[split == "test"], minlength=len(third)) >= third).all()
    counts = np.bincount(buckets[split == "train"], minlength=len(target.buckets))
    tested = buckets[split == "test"]
    names, numbers = np.unique(target.shots_of_counts(counts)[tested], return_counts=True)
    shots = ", ".join(f"{number} {name}-shot" for name, number in zip(names, numbers))
    used = len(np.unique(tested))
    most = ", a third of each, which is the most" if reached else ""
    print(f"test: {len(tested)} samples in {used} of {len(counts)} buckets{most}: {shots}")
    filled = int(np.count_nonzero(counts))
    distinct = len(np.unique(labels))
    narrow = target.narrow(labels)
    finer = "other --low and --high make" if narrow else "a smaller --bin_width makes"
    if len(tested) < LEAST_TEST or used < LEAST_BUCKETS:
        helps = []
        if len(tested) < LEAST_TEST and not reached:
            flag = "--max_held_out" if args.max_held_out else "--test_per_bin"
            helps.append(f"a larger {flag} holds out more")
        if filled < LEAST_BUCKETS <= min(distinct, len(labels) // 3):
            helps.append(f"{finer} more buckets")
        print(
            f"warning: fewer than {LEAST_TEST} test samples or {LEAST_BUCKETS} buckets, so metrics "
            f"will be noisy: {', '.join(helps) or 'only more data helps'}"
        )
    if len(names) == 1:
        print(f"warning: all test samples are of one shot{shot_flags(counts[tested])}")
    if filled < min(FEW_BUCKETS, distinct):
        print(
            f"warning: training fills {filled} buckets, too few for --lds and --fds: "
            f"{narrow or f'{finer} more'}"
        )
    elif narrow:
        print(f"warning: {narrow}")


def shot_flags(counts):
    """Return the flags that cut these training counts of test samples [N] in words, or ''."""
    values = np.unique(counts)
    if len(values) < 2:
        return ""
    part = max(1, len(values) // 3)
    few = values[part]
    many = max(few, values[-1 - part])
    return f": --few {few} --many {many} here and in train.py tells rare labels from frequent ones"
