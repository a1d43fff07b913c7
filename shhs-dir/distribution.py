"""Dist Loss: sorted predictions against quantiles of the training labels.

`pseudo_labels` gives the labels that a batch would have, in rising order, if it were drawn evenly
from their density; `dist_loss` compares them with the batch's predictions, sorted.
Source: Nie et al., ICLR 2025, arXiv 2411.15216; the soft sort is Blondel et al.'s (ICML 2020).
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import gaussian_kde

from contrast import in_full_precision
from loss import weighted_l1_loss
from moments import widest

SMALLEST_STRENGTH = 1e-9  # below it the sort's steps leave no digits to the values
ONE_BLOCK = 1e-9  # values of the isotonic fit at most so far apart form a block (released code)


def density_on(train_labels, grid, bandwidth_factor=0.5):
    """Return the labels' density at the points of a grid, float64 [G] of sum 1.

    Args:
        train_labels: [N]; those outside the grid are left out.
        grid: rising points [G].
        bandwidth_factor: width of the Gaussian kernel, in standard deviations of the labels.

    Raises:
        ValueError: if no label is within the grid.
    """
    labels = np.asarray(train_labels, dtype=np.float64).reshape(-1)
    labels = labels[(labels >= grid[0]) & (labels <= grid[-1])]
    if not len(labels):
        raise ValueError(f"no training label is within the grid of {grid[0]} to {grid[-1]}")
    if labels.min() == labels.max():  # a kernel of no width
        return np.float64(np.arange(len(grid)) == np.abs(grid - labels[0]).argmin())
    density = gaussian_kde(labels, bandwidth_factor)(grid)
    return density / density.sum()


def counts_on(density, batch_size):
    """Return how often each point of the grid stands among the pseudo-labels, long [G].

    Expected counts are rounded, those of either tail together, and what is then missing is spread
    around the most frequent point, as in the released code. Where that fails, as in a batch of one
    sample, the counts are those of even quantiles.
    """
    expected = batch_size * density
    G = len(density)
    forward = expected.cumsum()
    backward = expected[::-1].cumsum()
    first = int((forward < 1).sum())
    last = G - 1 - int((backward < 1).sum())
    counts = np.zeros(G, dtype=np.int64)
    if first < last:
        counts[first + 1 : last] = expected[first + 1 : last].round()
        counts[first] = round(forward[first])
        counts[last] = round(backward[G - 1 - last])
        missing = batch_size - counts.sum()
        start = np.clip(counts.argmax() - abs(missing) // 2, 0, max(G - abs(missing), 0))
        counts[start : start + abs(missing)] += np.sign(missing)
    if counts.sum() == batch_size and counts.min() >= 0:
        return counts
    quantiles = (np.arange(batch_size) + 0.5) / batch_size
    places = np.searchsorted(density.cumsum(), quantiles).clip(max=G - 1)
    return np.bincount(places, minlength=G)


def pseudo_labels(train_labels, batch_size, grid, bandwidth_factor=0.5):
    """Return the rising labels that a batch is expected to have, float64 tensor [batch_size].

    Args:
        train_labels, grid, bandwidth_factor: as for `density_on`.
        batch_size: number of samples.

    Raises:
        ValueError: as `density_on`.
    """
    grid = np.asarray(grid, dtype=np.float64)
    density = density_on(train_labels, grid, bandwidth_factor)
    return torch.from_numpy(np.repeat(grid, counts_on(density, batch_size)))


def soft_sort(values, strength):
    """Sort values in rising order so that far neighbours share their gradients.

    Args:
        values: [N], or [N, d] for each column alone.
        strength: ε, per unit of the values, from 1e-9 on; 0 sorts hard. The result is the hard
            sort's unless a gap between neighbours exceeds 1/ε.

    Returns:
        Tensor of the values' shape and type. A block of pooled neighbours has the mean of the
        incoming gradients each.

    In float64 inside, where the device has it; time and memory grow with N².
    """
    if strength != 0 and not SMALLEST_STRENGTH <= strength < float("inf"):
        raise ValueError(f"strength must be 0, or {SMALLEST_STRENGTH} or more, got {strength}")
    rising = values.sort(dim=0).values
    if strength == 0:
        return rising
    rows = widest(rising).reshape(len(values), -1).T  # [d, N]
    N = rows.shape[1]
    steps = torch.arange(N, 0, -1, dtype=rows.dtype, device=rows.device) / strength
    fit = non_increasing_fit(rows.detach() + steps)
    # Within a block the fit is one value: the block's mean, of which the gradient follows.
    falls = F.pad(fit[:, :-1] - fit[:, 1:] > ONE_BLOCK, (1, 0))
    block = falls.cumsum(1)
    sizes = torch.zeros_like(rows).scatter_add(1, block, torch.ones_like(rows))
    sums = torch.zeros_like(rows).scatter_add(1, block, rows + steps)
    means = (sums / sizes.clamp_min(1)).gather(1, block)
    return (means - steps).T.reshape(values.shape).to(values.dtype)


def non_increasing_fit(rows):
    """Return the non-increasing sequences nearest to rows [d, N] in squares (isotonic regression).

    By its closed form: the least over all starts of the greatest mean over all ends.
    """
    N = rows.shape[1]
    sums = torch.cat([torch.zeros_like(rows[:, :1]), rows.cumsum(1)], dim=1)
    places = torch.arange(N, device=rows.device)
    lengths = places[None, :] - places[:, None] + 1
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / lengths.clamp_min(1)
    means = means.masked_fill(lengths < 1, -torch.inf)
    greatest = means.flip(2).cummax(2).values.flip(2)
    greatest = greatest.masked_fill(lengths < 1, torch.inf)
    return greatest.amin(1)


@in_full_precision
def dist_loss(preds, targets, pseudo_labels, strength, weights=None, loss=weighted_l1_loss):
    """Distance of the sorted predictions from the pseudo-labels, plus that of each from its target.

    Args:
        preds, targets: [N] or [N, d].
        pseudo_labels: of `pseudo_labels`, for N samples: [N] or [N, d].
        strength: as for `soft_sort`.
        weights: [N]; in the first term the k-th belongs to the k-th of the sorted predictions, as
            in the released code.
        loss: function of (inputs, targets, weights), as in `loss.py`.

    Returns:
        Scalar.
    """
    targets = torch.as_tensor(targets, dtype=preds.dtype, device=preds.device)
    wanted = torch.as_tensor(pseudo_labels, dtype=preds.dtype, device=preds.device)
    wanted = wanted.reshape(len(wanted), -1).expand(-1, preds[:1].numel()).reshape(preds.shape)
    return loss(soft_sort(preds, strength), wanted, weights) + loss(preds, targets, weights)
