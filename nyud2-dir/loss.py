"""Regression losses with a weight per sample, for LDS and re-weighting (equation 2 of the paper).

Each loss takes `inputs` and `targets` of one shape (N first) and is the mean over all elements.
`weights` scales each sample's part. It is a tensor, numpy array or list of shape [N] or [N, 1], or
of the targets' own shape for a weight per element (pixel).
"""

import torch


def _weighted_mean(loss, weights):
    """Mean of an elementwise loss, with the weights broadcast per sample."""
    if weights is not None:
        weights = torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)
        if weights.shape != loss.shape:
            if weights.numel() != len(loss):
                raise ValueError(
                    f"weights {tuple(weights.shape)} must hold one value per sample "
                    f"({len(loss)}) or have the shape of the loss {tuple(loss.shape)}"
                )
            # Left as [N], a weight would broadcast against [N, 1] to [N, N].
            weights = weights.reshape(-1, *[1] * (loss.ndim - 1))
        loss = loss * weights
    return loss.mean()


def _error(inputs, targets):
    """Signed error, with targets of [N] and [N, 1] alike taken in the shape of the inputs."""
    targets = torch.as_tensor(targets, device=inputs.device)
    shapes = [[n for n in x.shape if n > 1] for x in (inputs, targets)]
    if shapes[0] != shapes[1] or len(inputs) != len(targets):
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} must match"
        )
    return inputs - targets.reshape(inputs.shape)


def _focal_factor(error, activate, beta, gamma):
    """Factor of the focal losses, near 0 for small errors and 1 for large ones."""
    if activate == "tanh":
        return torch.tanh(beta * error.abs()) ** gamma
    if activate == "sigmoid":
        return (2 * torch.sigmoid(beta * error.abs()) - 1) ** gamma
    raise ValueError(f"activate must be 'sigmoid' or 'tanh', got {activate!r}")


def weighted_mse_loss(inputs, targets, weights=None):
    """Squared error, weighted per sample.

    Args: as in the module's docstring. Returns: scalar tensor. Raises: ValueError on a shape.
    """
    return _weighted_mean(_error(inputs, targets).square(), weights)


def weighted_l1_loss(inputs, targets, weights=None):
    """Absolute error, weighted per sample.

    Args: as in the module's docstring. Returns: scalar tensor. Raises: ValueError on a shape.
    """
    return _weighted_mean(_error(inputs, targets).abs(), weights)


def weighted_focal_mse_loss(inputs, targets, weights=None, activate="sigmoid", beta=0.2, gamma=1.0):
    """Squared error times a focal factor (Focal-R): (2·sigmoid(beta·|e|) − 1)^gamma, or tanh.

    Args:
        activate: 'sigmoid' or 'tanh'.
        beta: slope of the factor, in 1 / unit of the targets (0.2 for years, 20 on [0, 1]).
        gamma: exponent of the factor.

    Source: the released code; the paper writes sigmoid(|beta·e|)^gamma.
    """
    error = _error(inputs, targets)
    return _weighted_mean(error.square() * _focal_factor(error, activate, beta, gamma), weights)


def weighted_focal_l1_loss(inputs, targets, weights=None, activate="sigmoid", beta=0.2, gamma=1.0):
    """Absolute error times a focal factor (Focal-R); arguments of `weighted_focal_mse_loss`."""
    error = _error(inputs, targets)
    return _weighted_mean(error.abs() * _focal_factor(error, activate, beta, gamma), weights)


def weighted_huber_loss(inputs, targets, weights=None, beta=1.0):
    """Huber loss: 0.5·e² / beta below beta, |e| − 0.5·beta above.

    Args:
        beta: where the square turns into a line, > 0, in the unit of the targets.

    Raises:
        ValueError: for beta <= 0, or on a shape.
    """
    if beta <= 0:
        raise ValueError(f"beta of the huber loss must be > 0, got {beta}")
    error = _error(inputs, targets).abs()
    loss = torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta)
    return _weighted_mean(loss, weights)
