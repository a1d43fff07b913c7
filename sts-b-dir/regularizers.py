"""Regularizers: what later methods add to the loss of a batch, to compare with LDS and FDS.

`--regularizer` chooses ConR, Ordinal Entropy, SRL or Dist Loss, and each is called alike:

    loss = criterion(...) + model.regularizer(features, labels, preds, weights)

It is part of the model, so that checkpoints hold what it has learned. Of several processes each
sees its own part of a batch; ConR sees the whole with --gather. The losses themselves are in
`contrast.py` and `distribution.py`; Rank-N-Contrast has a program of its own, `pretrain.py`.
"""

import numpy as np
import torch
from torch import nn
from torch.distributed.nn.functional import all_gather

from contrast import SRL, conr_loss, ordinal_entropy_loss, rnc_loss  # noqa: F401
from distribution import counts_on, density_on, dist_loss, pseudo_labels, soft_sort  # noqa: F401
from loss import weighted_l1_loss, weighted_mse_loss

STEPS = 100  # of a grid over the labels' range: ages have as many
SRL_DIM = 128  # width of its projection (released code)
SRL_POINTS = 1000  # on the sphere (released code)

# ---- the interface -------------------------------------------------------------------------


def make(run, feature_dim, labels, grid=STEPS):
    """Return the `Regularizer` that the flags choose, or one that adds nothing.

    Args:
        run: `run_folder.Run`.
        feature_dim: D, width of the network's features.
        labels: of the training set [N] or [N, 1], in the unit of the predictions.
        grid: evenly spaced labels [G] over their range, in that unit, or the number of equal steps.
            The step is what the flags count in; the grid gives SRL's buckets and the points of Dist
            Loss's density.
    """
    if run.args.regularizer == "none":
        return NoRegularizer()
    labels = torch.as_tensor(labels, dtype=torch.float64).flatten().cpu()
    if np.ndim(grid) == 0:
        grid = np.linspace(labels.min().item(), labels.max().item(), grid + 1)
    return Regularizer(run, feature_dim, labels.numpy(), np.asarray(grid, dtype=np.float64))


class NoRegularizer(nn.Module):
    """What `--regularizer none` adds: nothing."""

    def forward(self, features, labels, preds, weights, share=1.0):
        """Return 0."""
        return 0.0

    def end_epoch(self):
        """Do nothing."""


class Regularizer(nn.Module):
    """A method that adds to the loss; the arguments are those of `make`."""

    def __init__(self, run, feature_dim, labels, grid):
        super().__init__()
        self.args = args = run.args
        self.labels, self.grid = labels, grid
        weights, temperatures = run.parser.regularizer_defaults
        self.weights = args.regularizer_weight or weights[args.regularizer]
        self.temperature = args.temperature or temperatures.get(args.regularizer)
        self.step = float(grid[1] - grid[0]) or 1.0  # 0 where all labels are equal
        self.counted = slice(None)  # of a process's rows, those that are samples of the batch
        self.wanted = {}  # pseudo-labels of each size of a batch
        self.method = getattr(self, args.regularizer)
        if args.regularizer == "srl":
            width = min(SRL_DIM, feature_dim)
            self.projection = nn.Linear(feature_dim, width)
            self.surrogate = SRL(len(grid), width, SRL_POINTS)
            self.register_buffer("epochs", torch.zeros((), dtype=torch.long))

    def forward(self, features, labels, preds, weights, share=1.0):
        """Return what a batch adds to its loss.

        Args:
            features: raw ones of the network [N, D]; for ConR also of more views, one view after
                the other, [views · N, D] with predictions [views · N, 1].
            labels, preds, weights: [N, 1]; labels in the unit of the predictions.
            share: of these samples in the batch, as in `batches.Part`; those of 0 are not compared
                with another process's.

        Returns:
            Scalar, differentiable in features and predictions.
        """
        self.counted = slice(None if share else 0)
        return self.method(features, labels.detach(), preds, weights.detach())

    def conr(self, features, labels, preds, weights):
        """ConR of the batch, in one or more views."""
        views = len(features) // len(labels)
        rows = [features, labels.repeat(views, 1), preds.detach(), weights.repeat(views, 1)]
        if getattr(self.args, "gather", False):  # not every benchmark has it
            rows = [gather_rows(x[self.counted]) for x in rows]
        features, labels, preds, weights = rows
        options = self.args.conr_omega, self.temperature, self.args.conr_push
        near = labels / self.step, preds.float() / self.step
        loss = conr_loss(features, *near, weights, *options, self.args.conr_official)
        return self.weights[0] * loss

    def ordinal_entropy(self, features, labels, preds, weights):
        """Ordinal Entropy of the batch."""
        return self.weights[0] * ordinal_entropy_loss(features, labels)

    def srl(self, features, labels, preds, weights):
        """SRL's three losses; nothing in the first epoch, which only gathers a surrogate."""
        projected = self.projection(features)
        buckets = ((labels - self.grid[0]) / self.step).round().clamp(0, len(self.grid) - 1)
        # The sums are the same in all processes: an evaluation gives them those of the first.
        rows = gather_rows(projected.detach().float()[self.counted])
        self.surrogate.accumulate(rows, gather_rows(buckets[self.counted]))
        if self.epochs == 0:
            return projected.sum() * 0  # so that the projection has a gradient in every step
        parts = self.surrogate(projected, buckets, self.temperature)
        return sum(w * parts[name] for w, name in zip(self.weights, ("con", "env", "hom")))

    def dist(self, features, labels, preds, weights):
        """Dist Loss's term of the sorted predictions; the other one is the run's own loss.

        A weight stays with its sample where the released code gives it to a rank.
        """
        preds = preds.float()
        n = len(preds)
        if n not in self.wanted:
            wanted = pseudo_labels(self.labels, n, self.grid)
            self.wanted[n] = wanted.to(preds)[:, None]
        ranked = weights.flatten()[preds.detach().flatten().argsort()]
        loss = weighted_mse_loss if self.args.loss == "mse" else weighted_l1_loss
        made = soft_sort(preds, self.args.dist_strength / self.step)
        return self.weights[0] * loss(made, self.wanted[n], ranked)

    def end_epoch(self):
        """Take over what the epoch has gathered."""
        if self.args.regularizer == "srl":
            self.surrogate.update(self.args.srl_momentum)
            self.epochs += 1


def gather_rows(x):
    """Return the rows of all processes [M, ...], with gradients; x itself in one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    sizes = [torch.zeros(1, device=x.device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, torch.full_like(sizes[0], len(x)))
    sizes = [int(size) for size in sizes]
    padding = x.new_zeros(max(sizes) - len(x), *x.shape[1:])
    parts = all_gather(torch.cat([x, padding]))
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
