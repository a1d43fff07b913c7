"""ConR for depth maps: images of near mean depth get near features, `--regularizer conr`.

A whole map is one sample: its mean depth is the label, its mean prediction the prediction, its
feature map the feature. Source: Keramati et al., ICLR 2024, arXiv 2309.06651; written from the
formulas.
"""

import torch

from depth_maps import known


def conr_loss(
    features, labels, preds, weights=None, omega=0.2, temperature=0.07, push=0.2, official=False
):
    """Pull features of near labels together, push those that only predictions bring near (ConR).

    Args:
        features: of N maps, [N, D, h, w], raw; float16 and bfloat16 are taken to float32.
        labels, preds: mean of each map [N]; predictions get no gradient. NaN: compared with none.
        weights: mean weight of each map [N], or None for 1; they scale an anchor's pushes.
        omega: labels, or predictions, at most so far apart are near; in their unit.
        temperature: by which cosines are divided.
        push: per unit of the label, the weight of a push by the distance of two labels.
        official: as the released code does, add 1 to the denominator for each key that is not
            positive, and count the anchor among the positives that its part is divided by.

    Returns:
        Scalar: the mean over all anchors; one without a positive or without a negative adds 0.

    Time grows with N²·D·h·w. Features are not copied if float32 and channels last, as the network
    gives them; else once. The backward pass makes two tensors of their size.
    """
    similarity = cosines(features) / temperature
    labels, preds = (x.detach().to(similarity) for x in (labels, preds))
    weights = torch.ones_like(labels) if weights is None else weights.to(similarity)
    apart = (labels[:, None] - labels).abs()
    positive = (apart <= omega).fill_diagonal_(False)
    negative = (apart > omega) & ((preds[:, None] - preds).abs() <= omega)
    pushes = push * weights[:, None] * apart
    terms = torch.where(negative, similarity + pushes.log(), -torch.inf)
    terms = torch.where(positive, similarity, terms)
    positives = positive.sum(1)
    if official:
        others = (len(labels) - positives).to(terms)
        terms = torch.cat([terms, others.log()[:, None]], dim=1)
    active = (positives > 0) & negative.any(1)
    # Without this, an anchor that has no term at all would make every gradient NaN.
    terms = terms.masked_fill(~active[:, None], 0.0)
    loss = positives * torch.logsumexp(terms, 1) - (similarity * positive).sum(1)
    return torch.where(active, loss / (positives + official).clamp_min(1), 0.0).mean()


def cosines(features):
    """Return the cosines between flattened feature maps [N, D, h, w]: [N, N], without a copy."""
    with torch.autocast(features.device.type, enabled=False):
        rows = features.movedim(1, -1).flatten(1)  # channels last: a view
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        products = rows @ rows.T
    squares = products.diagonal()
    lengths = torch.where(squares > 0, squares, 1.0).sqrt()
    return products / (lengths[:, None] * lengths)


def mean_of(maps, seen):
    """Return the mean of each map's pixels [N, 1, h, w] where `seen`: [N], NaN where none is."""
    return torch.where(seen, maps, 0.0).sum((1, 2, 3)) / seen.sum((1, 2, 3))


def added_loss(args, target, batch, preds, features):
    """Return what ConR adds to a batch's loss: a scalar, of this process's part of the batch.

    Args:
        args, target, batch: the flags, `target.Target` and `datasets.Batch`.
        preds, features: as the network gives them, predictions in float32.

    Pixels without a label count in no mean, though those of rotation's corners do in the loss.
    """
    seen = known(batch.depths, batch.mask, target)
    maps = target.scaled(batch.depths), preds, batch.weights
    means = [None if x is None else mean_of(x, seen) for x in maps]
    options = args.conr_omega, args.temperature, args.conr_push, args.conr_official
    return args.regularizer_weight * conr_loss(features, *means, *options)
