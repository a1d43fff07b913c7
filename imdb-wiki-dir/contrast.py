"""Losses on the features of a batch: ConR, Rank-N-Contrast, Ordinal Entropy and SRL.

Each compares the samples of a batch with one another and is a differentiable scalar. Autocast is
off inside, and half precision is taken to float32: exp(1 / 0.07) is above all that float16 holds.
Where a batch has nothing to compare, the loss and its gradients are 0. Labels are [N], or [N, d],
whose distance is the sum of the differences.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from moments import widest

SMALLEST = 1e-6  # distance that Ordinal Entropy sees at least (released code)
SPREAD = 0.1  # weight of the variance of neighbours' cosines in SRL (released code)


def in_full_precision(function):
    """Decorate a loss: no autocast, and tensors of half precision as float32."""

    def full(x):
        half = isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)
        return x.float() if half else x

    @functools.wraps(function)
    def wrapped(*args, **options):
        options = {name: full(x) for name, x in options.items()}
        device = next(x.device for x in (*args, *options.values()) if isinstance(x, torch.Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*map(full, args), **options)

    return wrapped


def unit(x):
    """Return the rows of x with length 1; a row of zeros stays, without a gradient."""
    return F.normalize(x, dim=-1) * (x != 0).any(-1, keepdim=True)


def rows_of(values, like):
    """Return labels or predictions as [N, d], in the precision of the features."""
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device).detach()
    return values.reshape(len(values), -1)


class _Euclidean(torch.autograd.Function):
    """Distances between rows [N, D], exact where two are near; the gradient by matrix products."""

    @staticmethod
    def forward(ctx, x):
        apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, apart)
        return apart

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, apart = ctx.saved_tensors
        pull = widest(torch.where(apart > 0, grad / apart, 0.0))
        pull += pull.T.clone()
        wide = widest(x) - widest(x).mean(0)
        return (pull.sum(1, keepdim=True) * wide - pull @ wide).to(x.dtype)


def rounding(values):
    """Return by how much distances between rows [N, d] may be off, as decimals are rounded."""
    largest = values.abs().nan_to_num(0.0, 0.0).max() if values.numel() else 0.0
    return 8 * torch.finfo(values.dtype).eps * largest * values.shape[1]


# ---- ConR ----------------------------------------------------------------------------------


@in_full_precision
def conr_loss(
    features, labels, preds, weights=None, omega=1, temperature=0.07, push=0.01, official=False
):
    """Pull features of near labels together, push those that only predictions bring near (ConR).

    Args:
        features: [m, D]; with two views of each sample, one view after the other.
        labels, preds: [m] or [m, d]; the predictions get no gradient.
        weights: of the samples [m], or None for 1. They count twice: an anchor's push and its part.
        omega: labels, or predictions, at most so far apart are near.
        temperature: by which cosines are divided.
        push: per unit of the label, the growth of a push with the distance of two labels.
        official: add 1 to the denominator for each key that is not positive, as released.

    Returns:
        Scalar: the mean over all anchors; one without a positive or without a negative adds 0.

    Time grows with m²·D, memory with m². Source: Keramati et al., ICLR 2024, arXiv 2309.06651.
    """
    m = len(features)
    u = unit(features)
    labels = rows_of(labels, features)
    apart = torch.cdist(labels, labels, p=1)
    near = apart <= omega + rounding(labels)
    positive = near & ~torch.eye(m, dtype=torch.bool, device=u.device)
    preds = rows_of(preds, features)
    negative = ~near & (torch.cdist(preds, preds, p=1) <= omega)
    weights = torch.ones_like(u[:, 0]) if weights is None else rows_of(weights, u).flatten()
    similarity = u @ u.T / temperature
    terms = torch.where(negative, similarity + weights.log()[:, None] + push * apart, -torch.inf)
    terms = torch.where(positive, similarity, terms)
    positives = positive.sum(1)
    if official:
        terms = torch.cat([terms, (m - positives).to(u.dtype).log()[:, None]], dim=1)
    active = (positives > 0) & negative.any(1)
    # Without this, an anchor that has no term at all would make every gradient NaN.
    terms = terms.masked_fill(~active[:, None], 0.0)
    pulled = (similarity * positive).sum(1) / positives.clamp_min(1)
    loss = torch.where(active, torch.logsumexp(terms, 1) - pulled, 0.0)
    return (weights * loss).sum() / max(m, 1)


# ---- Rank-N-Contrast -----------------------------------------------------------------------


@in_full_precision
def rnc_loss(features, labels, temperature=2.0):
    """Rank each sample's others by their label's distance, and contrast by rank (Rank-N-Contrast).

    Args:
        features: [m, D], or [n, views, D] with labels of the n samples; not normalised.
        labels: [m] or [m, d].
        temperature: by which distances of features are divided.

    Returns:
        Scalar; 0 for fewer than two rows.

    Time grows with m²·(D + log m), memory with m². Source: Zha et al., NeurIPS 2023.
    """
    labels = rows_of(labels, features)
    if features.ndim == 3:
        labels = labels.repeat_interleave(features.shape[1], 0)
        features = features.flatten(0, 1)
    m = len(features)
    if m < 2:
        return features.sum() * 0
    similarity = -_Euclidean.apply(features) / temperature
    apart = torch.cdist(labels, labels, p=1).fill_diagonal_(-1.0)  # itself last, to be cut off
    apart, order = apart.sort(dim=1, descending=True)
    similarity = similarity.gather(1, order)[:, :-1]
    totals = torch.logcumsumexp(similarity, dim=1)
    # A row is contrasted with all that are as far or farther: the total at the end of its ties.
    last = apart[:, :-1] - apart[:, 1:] > rounding(labels)
    place = torch.where(last, torch.arange(m - 1, device=last.device), m - 2)
    ends = place.flip(1).cummin(1).values.flip(1)
    return (totals.gather(1, ends) - similarity).sum() / (m * (m - 1))


# ---- Ordinal Entropy -----------------------------------------------------------------------


@in_full_precision
def ordinal_entropy_loss(features, labels):
    """Spread the centres of labels by the labels' distance, draw each feature to its centre.

    Args:
        features: [N, D].
        labels: [N] or [N, d]; samples share a centre if their labels are exactly equal.

    Returns:
        Scalar: tightness minus diversity. One label alone has no diversity, and a label of one
        sample no tightness.

    Time grows with N·D + C²·D, memory with N·D + C², for C labels. Source: Zhang et al., ICLR 2023.
    """
    values, number = rows_of(labels, features).unique(dim=0, return_inverse=True)
    counts = torch.bincount(number, minlength=len(values))[:, None]
    centres = torch.zeros_like(features[: len(values)]).index_add(0, number, features) / counts
    centres = unit(centres)
    squares = (unit(features) - centres[number]).square().sum(1)
    off = squares > 0
    tightness = torch.where(off, squares, 1.0).sqrt() * off
    tightness = tightness.sum() / off.sum().clamp_min(1)
    if len(values) < 2:
        return tightness
    gaps = F.pdist(values, p=1).clamp_min(SMALLEST)
    diversity = F.pdist(centres).clamp_min(SMALLEST) * (gaps - gaps.min()) / gaps.max()
    return tightness - diversity.mean()


# ---- SRL -----------------------------------------------------------------------------------


class SRL(nn.Module):
    """Surrogate of all labels' features, and the three losses that shape it (SRL).

    Args:
        bins: K, number of label buckets.
        dim: d, width of the features.
        points: on the unit sphere [P, d], or how many of them are drawn.

    The surrogate [K, d], a buffer, holds a unit row for each bucket seen in earlier epochs, and
    zeros for the others. Source: Dong et al., CVPR 2025, arXiv 2503.00876.
    """

    def __init__(self, bins, dim, points=1000):
        super().__init__()
        drawn = points if isinstance(points, torch.Tensor) else torch.randn(points, dim)
        self.register_buffer("points", F.normalize(drawn, dim=1))
        self.register_buffer("surrogate", self.points.new_zeros(bins, dim))
        self.register_buffer("sums", self.points.new_zeros(bins, dim))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.long))

    def centroids(self, features, buckets):
        """Return each bucket's mean unit feature, else its row of the surrogate, else 0: [K, d]."""
        u = unit(features)
        sums = torch.zeros_like(self.surrogate).to(u.dtype).index_add(0, buckets, u)
        counts = torch.bincount(buckets, minlength=len(sums))[:, None]
        means = torch.where(counts > 0, sums / counts.clamp_min(1), self.surrogate.to(u.dtype))
        return unit(means)

    @in_full_precision
    def forward(self, features, buckets, temperature=0.1):
        """Return the three losses of a batch.

        Args:
            features: [N, d].
            buckets: of the labels, [N], 0 ... K − 1.
            temperature: by which cosines are divided in the contrast.

        Returns:
            Dictionary of scalars: "con" draws each feature to its own bucket's centroid, "env"
            spreads the centroids over the sphere, "hom" keeps neighbours near each other, evenly.
            Time grows with (N + P)·K·d, memory with (N + P)·K.
        """
        buckets = buckets.reshape(-1).long()
        C = self.centroids(features, buckets)
        known = (C != 0).any(1).index_fill(0, buckets, True)
        logits = unit(features) @ C.detach().T / temperature
        logits = logits.masked_fill(~known, -torch.inf)
        con = F.cross_entropy(logits, buckets)
        row = C[known]
        env = 1 - (self.points.to(C.dtype) @ row.T).amax(1).mean()
        cosines = (row[1:] * row[:-1]).sum(1)
        spread = cosines.var() if len(cosines) > 1 else 0.0
        return {"con": con, "env": env, "hom": SPREAD * spread - cosines.sum()}

    @torch.no_grad()
    def accumulate(self, features, buckets):
        """Add a batch, the whole one in each process, to the epoch's centroids."""
        buckets = buckets.reshape(-1).long()
        self.sums.index_add_(0, buckets, unit(features.to(self.sums.dtype)))
        self.counts += torch.bincount(buckets, minlength=len(self.counts))

    @torch.no_grad()
    def update(self, momentum):
        """Move the surrogate to the epoch's centroids but for a part `momentum`; new ones whole."""
        means = self.sums / self.counts.clamp_min(1)[:, None]
        new = unit(torch.where(self.counts[:, None] > 0, means, self.surrogate))
        old = torch.where((self.surrogate != 0).any(1, keepdim=True), self.surrogate, new)
        self.surrogate.copy_(momentum * old + (1 - momentum) * new)
        self.sums.zero_()
        self.counts.zero_()
