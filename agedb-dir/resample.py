"""SMOTER and SMOGN: synthetic training samples where labels are rare, for comparison.

Source: Torgo et al., "SMOTE for Regression" (EPIA 2013), and Branco et al., "SMOGN: a
Pre-processing Approach for Imbalanced Regression" (PMLR 74, 2017). The samples that a relevance
function calls rare form regions of the label. Within a region a sample (the seed) and one of its
nearest neighbours give a synthetic sample between the two. In SMOGN a neighbour too far away
gives way to Gaussian noise around the seed.

`draw` says what each synthetic sample is made of, `Synthetic.make` makes it.
Time and memory grow with the number of rare samples N as N·log N and N, as long as points have few
columns; with many, time is N² at worst.
"""

import argparse
import logging
from typing import NamedTuple

import numpy as np

from flags import SYNTHETIC, TRAINING
from relevance import RELEVANCES, relevance_of

METHODS = ("none", "smoter", "smogn")
BALANCE = "balance"
MOST_SYNTHETIC = 10_000  # for each rare sample; Torgo et al. add up to 5
MEDIAN_OF = 2000  # most samples of a region to which a seed's distances are taken, for their median
PIECE = 512  # seeds whose distances are held at a time
STREAM = 15  # keeps these draws apart from those of an epoch's batches

# ---- flags ---------------------------------------------------------------------------------


def amount(text):
    """Read --oversample: 'balance', or a number of 0 or more."""
    if text == BALANCE:
        return text
    value = float(text)
    if not 0 <= value <= MOST_SYNTHETIC:
        raise argparse.ArgumentTypeError(f"{text:.20} is not 0 or more, to {MOST_SYNTHETIC}")
    return value


def add_resample(parser, relevance, oversample):
    """Add the flags; `relevance` and `oversample` are the benchmark's defaults."""
    add = parser.section(SYNTHETIC, TRAINING)
    add("--resample", default="none", choices=METHODS, help="method of the synthetic samples")
    relevance_help = "what is rare: ends of a box plot, or few- and medium-shot buckets"
    add("--relevance", default=relevance, choices=RELEVANCES, help=relevance_help)
    add("--relevance_threshold", type=float, default=0.5, help="rare from here on, in (0, 1]")
    add("--k_neighbors", type=int, default=5, help="neighbours of which one is drawn")
    add("--perturbation", type=float, default=0.02, help="most noise of smogn, in deviations")
    oversample_help = "synthetic samples for each rare one, or balance: all regions become equal"
    add("--oversample", type=amount, default=oversample, help=oversample_help)
    undersample_help = "cut regions of frequent labels to the size of a balance"
    add("--undersample", action="store_true", help=undersample_help)


def check_resample(parser, args):
    """End with a message where these flags cannot be used."""
    if not 0 < args.relevance_threshold <= 1:
        parser.error(f"--relevance_threshold {args.relevance_threshold} must be in (0, 1]")
    if args.k_neighbors < 1:
        parser.error(f"--k_neighbors must be 1 or more, got {args.k_neighbors}")
    if not 0 <= args.perturbation < float("inf"):
        parser.error(f"--perturbation must be 0 or more, got {args.perturbation}")
    group = parser.groups[SYNTHETIC]
    changed = [f"--{flag}" for flag in group if not parser.is_default(args, flag)]
    if changed and args.resample == "none":
        parser.error(f"{', '.join(changed)} needs --resample smoter or --resample smogn")


# ---- what the synthetic samples are made of ------------------------------------------------


def regions(labels, shots, args):
    """Cut the training samples, by rising label, wherever rare and frequent ones meet.

    Args:
        labels: of the training set [N].
        shots: shot of each sample [N], 'many', 'medium' or 'few', for --relevance density.
        args: the flags.

    Returns:
        Two lists of arrays of sample numbers: the rare regions, and the others.

    Raises:
        ValueError: if no sample is rare, or all are.
    """
    values = relevance_of(labels, shots, args.relevance)
    order = np.argsort(labels, kind="stable")
    rare = values[order].round(12) >= args.relevance_threshold  # a spline may end at 1 - 4e-16
    if rare.all() or not rare.any():
        raise ValueError(
            f"--resample {args.resample}: {'every' if rare.all() else 'no'} training label is "
            f"rare; their relevance reaches from {values.min():.2f} to {values.max():.2f}: choose "
            f"another --relevance ({', '.join(RELEVANCES)}) or --relevance_threshold"
        )
    parts = np.split(order, np.flatnonzero(rare[1:] != rare[:-1]) + 1)
    first = 1 - int(rare[0])  # rare and frequent regions alternate
    return parts[first::2], parts[1 - first :: 2]


class Synthetic(NamedTuple):
    """What M synthetic samples are made of."""

    seeds: np.ndarray  # sample numbers, long [M]
    partners: np.ndarray  # the neighbours', long [M]
    ways: np.ndarray  # part of the way to the neighbour: [M, 1], with categories [M, D]
    noise: np.ndarray  # float [M], in deviations of the seed's region; 0 if interpolated
    region: np.ndarray  # long [M]
    labels: np.ndarray  # float64 [M]
    deviations: np.ndarray  # of each region's points, 0 for categories, [regions, D]

    def make(self, numbers, seeds, partners, deviations, seed):
        """Make some of the samples, of inputs or of whatever else is given.

        Args:
            numbers: which of the M, long [m].
            seeds, partners: what their seeds and their neighbours hold, float [m, ..., D].
            deviations: of each region, [regions, ..., D].
            seed: of the noise; a sample's noise depends on nothing else.

        Returns:
            Array [m, ..., D].
        """
        ways = self.ways[numbers]
        ways = ways.reshape(len(ways), *[1] * (seeds.ndim - 2), ways.shape[1])
        made = seeds + ways * (partners - seeds)
        for row in np.flatnonzero(self.noise[numbers]):
            number = numbers[row]
            rng = np.random.default_rng([seed, STREAM, number])
            spread = self.noise[number] * deviations[self.region[number]]
            made[row] += spread * rng.standard_normal(made[row].shape)
        return made


def draw(labels, shots, points, args, categories=None):
    """Draw the synthetic samples of a training set.

    Args:
        labels, shots, args: as for `regions`.
        points: function from sample numbers [n] to points [n, D], between which a Euclidean
            distance says how near two samples are.
        categories: number of the category to which each column of the points belongs, -1 for
            numbers, long [D]. A synthetic sample takes a category whole, from either side.

    Returns:
        `Synthetic`, and the numbers of the samples that stay, rising: all without --undersample.
    """
    rare, others = regions(labels, shots, args)
    size = len(labels) / (len(rare) + len(others))  # of a region, in balance (Branco et al.)
    rng = np.random.default_rng([args.seed, STREAM])
    parts = []
    for number, members in enumerate(rare):
        times = args.oversample
        if times == BALANCE:
            times = max(round(size) / len(members) - 1, 0)
        if len(members) == 1:
            logging.warning("label %g is rare and alone: it has no neighbour", labels[members[0]])
            times = 0
        of_region = labels[members], points(members), times, args, categories, rng
        part = draw_region(*of_region)
        seeds, partners = members[part.seeds], members[part.partners]
        region = np.full(len(seeds), number)
        parts.append(part._replace(seeds=seeds, partners=partners, region=region))
    stay = [*rare]
    for members in others:
        few = args.undersample and len(members) > size
        stay.append(rng.choice(members, round(size), replace=False) if few else members)
    synthetic = Synthetic(*map(np.concatenate, zip(*parts)))
    stay = np.sort(np.concatenate(stay))
    message = "%s: %d synthetic samples from %d rare ones in %d regions; %d of %d samples stay"
    sizes = len(synthetic.seeds), sum(map(len, rare)), len(rare), len(stay), len(labels)
    logging.info(message, args.resample.upper(), *sizes)
    return synthetic, stay


def draw_region(labels, points, times, args, categories, rng):
    """Draw the synthetic samples of one region, `times` for each of its n; `Synthetic` of it."""
    n, number = len(labels), round(times * len(labels))
    rest = rng.choice(n, number % n, replace=False)
    seeds = np.concatenate([np.tile(np.arange(n), number // n), rest])
    points = np.asarray(points, dtype=np.float64)
    partners = seeds
    if number:
        near = neighbours(points, min(args.k_neighbors, n - 1))
        partners = near[seeds, rng.integers(near.shape[1], size=number)]
    ways = rng.random((number, 1))
    deviations = points.std(axis=0)
    if categories is not None:
        heads = rng.random((number, categories.max(initial=-1) + 1)) < 0.5
        is_number = categories < 0
        taken = np.hstack([heads, np.zeros((number, 1), dtype=bool)])[:, categories]
        ways = np.where(is_number, ways, taken)
        deviations = np.where(is_number, deviations, 0.0)
    gap = points[partners] - points[seeds]
    # The target is the mean of both, weighted by the inverse of the distance to each.
    to_seed, to_partner = (np.linalg.norm(way * gap, axis=1) for way in (ways, 1 - ways))
    together = to_seed + to_partner
    way = np.divide(to_seed, together, out=np.full(number, 0.5), where=together > 0)
    synthetic = labels[seeds] + way * (labels[partners] - labels[seeds])
    noise = np.zeros(number)
    if args.resample == "smogn" and number:
        limit = half_median(points, rng)[seeds]
        far = np.linalg.norm(gap, axis=1) >= limit
        noise = np.where(far, np.minimum(limit, args.perturbation), 0.0)
        moved = labels[seeds] + noise * labels.std() * rng.standard_normal(number)
        # Published noise may leave the region; ours makes no label outside it.
        synthetic = np.where(far, moved.clip(labels.min(), labels.max()), synthetic)
        ways = np.where(far[:, None], 0.0, ways)
    region = np.zeros(number, dtype=np.int64)
    return Synthetic(seeds, partners, ways, noise, region, synthetic, deviations[None])


def neighbours(points, k):
    """Return the k nearest other points of each point, long [n, k]."""
    from scipy.spatial import cKDTree  # here: the command line is answered without it

    _, near = cKDTree(points).query(points, k=k + 1)
    # A point is nearest to itself, unless others are equal: then one of them takes its place.
    own = near == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True
    return near[~own].reshape(-1, k)


def half_median(points, rng):
    """Return half the median distance of each point to those of its region, float [n].

    A region of more than `MEDIAN_OF` points is represented by so many, drawn at random.
    """
    from scipy.spatial.distance import cdist

    others = points
    if len(points) > MEDIAN_OF:
        others = points[rng.choice(len(points), MEDIAN_OF, replace=False)]
    starts = range(0, len(points), PIECE)
    pieces = [np.median(cdist(points[start : start + PIECE], others), axis=1) for start in starts]
    return np.concatenate(pieces) / 2
