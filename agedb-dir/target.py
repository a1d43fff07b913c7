"""What is predicted: its name, unit, range, buckets and scale, and whether they fit the labels.

Section 3 of each `train.py` holds its benchmark's target. `--target` and the flags with it replace
it by your own: buckets, weights, FDS, shots, metrics, checks and figures follow.
"""

import functools
import logging
import math
from typing import NamedTuple

import numpy as np

from buckets import Buckets, from_scale, functions_for
from lds import SCALES, on_scale

BINS = 50  # buckets of your own range, unless --bin_width says otherwise
MOST_BUCKETS = 10_000
FEW_BUCKETS = 10  # filled ones, below which neither weights nor statistics say much
LARGE_WEIGHT = 50.0
TAKEN = ("path", "split", "sentence1", "sentence2")  # columns of the data that are no labels
# The ages' range is about as long, so that learning rate and losses made for ages fit.
SPAN = 100.0
WORDS = ("target", "unit")  # flags that are text; the others are numbers, but for the scale
ENDS = ("low", "high", "scale")  # flags that call for another width of the buckets


class Target(NamedTuple):
    """A target, with `low`, `high` and `bin_width` in its unit, or the width in decades."""

    name: str
    unit: str
    low: float  # ends of the buckets; labels below or above go to the end buckets
    high: float
    bin_width: float  # on the scale: in decades on 'log' and 'symlog'
    scale: str = "linear"
    limit: float | None = None  # largest label that is taken, where that is not `high`
    many: int = 100  # a bucket with more training samples is many-shot (section 4 of the paper)
    few: int = 20  # one with fewer is few-shot
    own: bool = False  # not the benchmark's
    span: float = SPAN  # what the network predicts of your own target goes from 0 to this

    def of(self, args):
        """Return the target with what the flags of `add_target` change."""
        flags = (*WORDS, *ENDS, "bin_width", "many", "few")
        given = {flag: getattr(args, flag, None) for flag in flags}
        given = {flag: value for flag, value in given.items() if value is not None}
        own = bool(given.keys() - {"many", "few"})
        if "target" in given:
            name = given.pop("target")
            given = {"unit": "", **given, "name": name}
        target = self._replace(**given)
        if own:
            target = target._replace(own=True, limit=None)
        if given.keys() & {*ENDS} and "bin_width" not in given:
            low, high = target.ends
            target = target._replace(bin_width=(high - low) / BINS)
        return target

    @property
    def ends(self):
        """Ends of the range on the scale; a ValueError if it cannot be used."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"--low {self.low:g} must be below --high {self.high:g}")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(
                f"--scale log needs --low above 0, got {self.low:g}: --scale symlog takes zeros"
            )
        return on_scale(np.array([self.low, self.high], dtype=np.float64), self.scale)

    @property
    def edges(self):
        """Lower edges of the buckets [B], in the unit; a ValueError if they cannot be used."""
        low, high = self.ends
        if not self.bin_width > 0 or (high - low) / self.bin_width > MOST_BUCKETS:
            raise ValueError(
                f"--bin_width {self.bin_width:g} must be above 0 and make at most {MOST_BUCKETS} "
                f"buckets from {low:g} to {high:g}"
            )
        number = max(1, math.ceil((high - low) / self.bin_width - 1e-6))
        low = self.low if self.scale == "linear" else low
        return from_scale(low + self.bin_width * np.arange(number), self.scale)

    @property
    def middles(self):
        """Middles of the buckets [B], in the unit; the benchmark's own labels are whole numbers."""
        if not self.own:
            return self.edges
        low, _ = self.ends
        return from_scale(low + self.bin_width * (np.arange(len(self.edges)) + 0.5), self.scale)

    @property
    def buckets(self):
        """The `label_to_bucket` of arrays and tensors."""
        return buckets_of(self)

    @property
    def words(self):
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def a_name(self):
        """Name with its article."""
        return f"a{'n' * (self.name[:1].lower() in 'aeiou')} {self.name}"

    @property
    def record(self):
        """What `results.json` says of it."""
        record = {"name": self.name, "unit": self.unit}
        if self.own:
            record |= {"low": self.low, "high": self.high, "scale": self.scale}
        return record

    def outside(self, labels):
        """Return which labels of an array are no number of the range, bool."""
        labels = np.asarray(labels, dtype=np.float32)
        top = self.high if self.limit is None else self.limit
        return ~((labels >= np.float32(self.low)) & (labels <= np.float32(top)))

    @property
    def range(self):
        """The range in words, with the flags that give another."""
        top = self.high if self.limit is None else self.limit
        return f"{self.low:g} to {top:g} (--low and --high give another range)"

    def narrow(self, labels):
        """Say in words that labels fill less than a quarter of the range, on its scale; else ''."""
        labels = np.asarray(labels, dtype=np.float64)
        low, high = self.ends
        if np.ptp(on_scale(labels, self.scale)) >= (high - low) / 4:
            return ""
        ends = f"{labels.min():g} to {labels.max():g}"
        return f"the labels go from {ends}, less than a quarter of the range {self.range}"

    def shots_of_counts(self, counts):
        """Name the shot of buckets with these counts of training samples, object array."""
        return np.select([counts > self.many, counts < self.few], ["many", "few"], "medium")

    def scaled(self, labels):
        """Return what the network is to predict of labels, tensor: its benchmark's as they are."""
        if not self.own:
            return labels
        low, high = self.ends
        factor = self.span / (high - low)
        return (on_scale(labels, self.scale, functions_for(labels)) - low) * factor

    def unscaled(self, values):
        """Return labels of what the network predicts, an array or a tensor."""
        if not self.own:
            return values
        low, high = self.ends
        return from_scale(values * ((high - low) / self.span) + low, self.scale)

    def fds_options(self, args, bucket_num, bucket_start):
        """Return the arguments of `fds.FDS` that your own target changes.

        Args:
            args: the flags.
            bucket_num, bucket_start: their defaults, which belong to the benchmark.
        """
        if not self.own:
            return {}
        B = len(self.buckets)
        return {
            "label_to_bucket": self.buckets,
            "bucket_num": B if args.bucket_num == bucket_num else min(args.bucket_num, B),
            "bucket_start": 0 if args.bucket_start == bucket_start else args.bucket_start,
        }


@functools.cache
def buckets_of(target):
    """Return `Buckets` of a target."""
    return Buckets(target.edges)


def add_target(add, target, counted="training samples"):
    """Add the flags of the target.

    Args:
        add: what adds a flag, as `add_argument` does.
        target: the benchmark's `Target`.
        counted: what `many` and `few` are.
    """
    add(
        "--target",
        metavar="NAME",
        help=f"your own target, by its name or its column's [{target.name}]",
    )
    add("--unit", help=f"its unit, for tables and figures [{target.unit or 'none'}]")
    add("--low", type=float, help=f"lower end of its range [{target.low:g}]")
    add("--high", type=float, help=f"upper end [{target.high:g}]")
    width_help = f"of a bucket, with --scale log or symlog in decades [{target.bin_width:g}; "
    add("--bin_width", type=float, help=f"{width_help}{BINS} buckets of your own range]")
    scale_help = f"of buckets and network; log or symlog for heavy tails [{target.scale}]"
    add("--scale", choices=SCALES, help=scale_help)
    many_help = f"many-shot: buckets with more {counted} [{target.many}]"
    add("--many", type=int, help=many_help)
    add("--few", type=int, help=f"few-shot: buckets with fewer [{target.few}]")


def check_target(parser, args, target):
    """End with a message where the flags of the target cannot be used."""
    if args.target in TAKEN:
        parser.error(f"--target {args.target} is another column's name: rename that of the labels")
    try:
        target = target.of(args)
        buckets_of(target)
    except ValueError as error:
        parser.error(" ".join(str(error).split()))  # NumPy breaks the lines of an array
    if not 0 <= target.few <= target.many + 1:
        parser.error(f"--few {target.few} must be from 0 to --many {target.many} + 1")


def check_counts(target, counts, args, weights, labels=None):
    """Look whether the buckets fit the training labels, and warn if they hardly do.

    Args:
        target: `Target`.
        counts: training samples per bucket [B].
        args: the flags of LDS and FDS.
        weights: weight of a sample by its bucket [B].
        labels: of the training set [N]; few different ones cannot fill many buckets.

    Raises:
        ValueError: for LDS or FDS where finer buckets are needed.
    """
    filled = int(np.count_nonzero(counts))
    need = max(FEW_BUCKETS, args.lds * args.lds_ks, args.fds * args.fds_ks)
    if labels is not None:
        need = min(need, len(np.unique(labels)))
    share = counts.max() / counts.sum()
    where = f"the training labels fill {filled} of {len(counts)} buckets of {target.words}"
    if filled < max(need, 2):
        if args.lds or args.fds:
            raise ValueError(
                f"{where}, too few for --lds or --fds (fewer than {max(need, 2)}): --low, --high "
                "and --bin_width make finer ones"
            )
        logging.warning("%s: --low, --high and --bin_width make finer ones", where)
    elif labels is not None and target.narrow(labels):
        logging.warning(target.narrow(labels))
    elif share > 0.5:
        log = ", or for a heavy tail --scale log or symlog, cuts it"
        tail = log if target.scale == "linear" else " cuts it, unless it is one label"
        text = "%s, and one bucket holds %.0f %%: a smaller --bin_width%s"
        logging.warning(text, where, 100 * share, tail)
    largest = weights[counts > 0].max()
    if largest > LARGE_WEIGHT:
        helps = ["wider buckets"]
        helps += ["--scale log or symlog"] * (target.scale == "linear")
        helps += ["--reweight sqrt_inv"] * (args.reweight != "sqrt_inv")
        text = "The largest weight of a sample is %.0f, made milder by %s"
        logging.warning(text, largest, " or ".join(helps))
