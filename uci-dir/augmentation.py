"""Two views of each row of a table, for pretraining.

A table has no crop that leaves the label as it is. Noise of a tenth of a standard deviation makes
rows that are near each other in any case, and an input replaced by its mean, 0, keeps the features
from resting on one column. Both are our choice: Rank-N-Contrast was published for images.
"""

from typing import NamedTuple

import torch

NOISE = 0.1  # in standard deviations of the inputs
DROPPED = 0.1  # part of the inputs


class Pairs(NamedTuple):
    """What one step of pretraining needs."""

    views: torch.Tensor  # float32 [2·n, D], one view after the other
    labels: torch.Tensor  # float32 [n, 1]
    share: float  # as in `batches.Part`
    size: int


def pairs(loader, epoch):
    """Yield an epoch's shuffled batches with two views of each row, as `Pairs`."""
    for batch in loader.train(epoch):
        views = torch.cat([vary(batch.inputs), vary(batch.inputs)])
        yield Pairs(views, batch.labels, batch.share, batch.size)


def vary(inputs):
    """Return a view of standardised rows [n, D], drawn from PyTorch's global state."""
    kept = torch.rand_like(inputs) >= DROPPED
    return (inputs + NOISE * torch.randn_like(inputs)) * kept
