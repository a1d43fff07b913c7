"""Regression losses: with a weight per sample, and those of later methods.

Each `weighted_*_loss` takes `inputs` and `targets` of one shape (N first) and is the mean over all
elements (equation 2 of the paper). `weights` scales each sample's part. It is a tensor, numpy array
or list of shape [N] or [N, 1], or of the targets' own shape for a weight per element (pixel).

The later methods' losses compare a batch as a whole: `preds` and `targets` are [N] or [N, d], and
half precision is taken to float32 first.
"""

import torch

SMALLEST_VARIANCE = 1e-12  # a noise of 0 would divide by it
SMALLEST_PART = 1e-7  # of GAR, and its smallest deviation (released code)


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


# ---- Balanced MSE --------------------------------------------------------------------------


def _full(x, like=None):
    """A tensor in float32 at least, or in the precision and on the device of another."""
    if like is not None:
        return torch.as_tensor(x, dtype=like.dtype, device=like.device)
    return x if x.dtype == torch.float64 else x.float()


def _rows(preds, targets):
    """Return predictions and targets as [N, d], in float32 at least."""
    preds = _full(preds)
    targets = _full(targets, preds)
    _error(preds, targets)  # which checks their shapes
    if not preds.numel():
        raise ValueError("a batch needs at least one sample")
    return preds.reshape(len(preds), -1), targets.reshape(len(preds), -1)


def _square_distances(points, others):
    """Squared distances of points [N, d] to others [M, d]: [N, M]."""
    # Not by the binomial formula, which cancels where the two are near each other.
    return (points.unsqueeze(1) - others.unsqueeze(0)).square().sum(-1)


def _balanced(preds, targets, noise_sigma, log_integral):
    """Mean of 2σ²·(‖p − y‖² / 2σ² + log ∫N(y'; p, σ²I)·p_train(y') dy'), the log as a function."""
    variance = _full(noise_sigma, preds).square().clamp_min(SMALLEST_VARIANCE)
    rows = (preds - targets).square().sum(1) / (2 * variance) + log_integral(variance)
    # The factor brings back the scale of the MSE; the noise learns from the bracket alone.
    return (2 * variance).detach() * rows.mean()


def bmc_loss(preds, targets, noise_sigma, all_targets=None):
    """Balanced MSE with the batch's targets as the label distribution (BMC).

    Args:
        preds, targets: [N] or [N, d].
        noise_sigma: σ, number or scalar tensor, in the unit of the targets; may be learned.
        all_targets: [M] or [M, d], those of all processes' parts of the batch; else `targets`.

    Returns: scalar; it and its gradients are 0 for one target. Time and memory grow with N·M·d.

    Source: Ren et al., CVPR 2022, arXiv 2203.16427.
    """
    preds, targets = _rows(preds, targets)
    others = targets if all_targets is None else _full(all_targets, preds)
    others = others.reshape(-1, preds.shape[1])

    def log_integral(variance):
        return torch.logsumexp(-_square_distances(preds, others) / (2 * variance), 1)

    return _balanced(preds, targets, noise_sigma, log_integral)


def gai_loss(preds, targets, mixture, noise_sigma):
    """Balanced MSE with a Gaussian mixture as the label distribution (GAI).

    Args:
        preds, targets, noise_sigma: as for `bmc_loss`.
        mixture: weights [K], means [K, d] and covariances [K, d, d] of the training labels.

    Returns: scalar, which may be negative. Time and memory grow with N·K·d.
    """
    preds, targets = _rows(preds, targets)
    weights, means, covariances = (_full(part, preds) for part in mixture)
    d = preds.shape[1]
    offsets = preds.unsqueeze(1) - means.reshape(-1, d)
    spreads = covariances.reshape(-1, d, d)
    if d > 1:  # along their axes the covariances are diagonal, with the noise and without
        spreads, axes = torch.linalg.eigh(spreads)
        offsets = (offsets.unsqueeze(-1) * axes).sum(-2)  # autocast leaves a sum in full precision
    spreads = spreads.reshape(-1, d)

    def log_integral(variance):
        spread = spreads + variance
        exponents = -0.5 * (offsets.square() / spread + spread.log()).sum(-1)
        # The density's own (2πσ²)^(d/2) has lost its 2π against the components'.
        return torch.logsumexp(weights.log() + exponents, 1) + 0.5 * d * variance.log()

    return _balanced(preds, targets, noise_sigma, log_integral)


def bni_loss(preds, targets, centers, weights, noise_sigma):
    """Balanced MSE with the label density over bins as the label distribution (BNI).

    Args:
        preds, targets, noise_sigma: as for `bmc_loss`.
        centers: of the bins, [B] or [B, d], in the unit of the targets.
        weights: the bins' parts of the training labels [B], of sum 1; 0 leaves a bin out.

    Returns: scalar, which may be negative. Time and memory grow with N·B·d.
    """
    preds, targets = _rows(preds, targets)
    weights = _full(weights, preds)
    centers = _full(centers, preds).reshape(len(weights), -1)

    def log_integral(variance):
        exponents = -_square_distances(preds, centers) / (2 * variance)
        return torch.logsumexp(weights.log() + exponents, 1)

    return _balanced(preds, targets, noise_sigma, log_integral)


# ---- UVOTE and GAR -------------------------------------------------------------------------


def uvote_loss(means, log_scales, targets, weights, clip=(-5.0, 5.0)):
    """Weighted negative log-likelihood of each expert's Laplace distribution (UVOTE).

    Args:
        means, log_scales: the experts' outputs [M, N]; a log-scale is the log of b in
            exp(−|y − mean| / b) / 2b.
        targets: [N].
        weights: of each sample for each expert [M, N].
        clip: bounds of the log-scales; beyond them they have no gradient.

    Returns: the mean over the samples, [M].

    Source: Jiang et al., GCPR 2024, arXiv 2305.15178.
    """
    means = _full(means)
    scales = _full(log_scales).clamp(*clip).exp() + 1e-10  # released code
    error = _full(targets, means).reshape(1, -1) - means
    return (_full(weights, means) * ((2 * scales).log() + error.abs() / scales)).mean(1)


def gar_loss(preds, targets, alpha):
    """Error, standardised error and centred error of a batch in one (GAR).

    Args:
        preds, targets: [N] or [N, d].
        alpha: > 0; the smaller, the more the largest of the three parts counts.

    Returns:
        Scalar: α·log(mean of (part / f)^(1/α)), whose gradient takes f, the largest or smallest
        part, as a constant. Of one sample, or of equal ones, only the error has a gradient.

    Source: Zhu et al., ICML 2025, arXiv 2402.06104.
    """
    if not alpha > 0:
        raise ValueError(f"alpha of GAR must be > 0, got {alpha}")
    preds, targets = _rows(preds, targets)

    def standardised(x):
        centred = x - x.mean(0)
        variance = centred.square().sum(0) / max(len(x) - 1, 1)
        return centred / variance.clamp_min(SMALLEST_PART**2).sqrt()

    shape = 0.5 * (standardised(preds) - standardised(targets)).square().mean()
    error = preds - targets
    spread = 0.5 * (error - error.mean(0)).square().mean()
    parts = torch.stack([shape, error.abs().mean(), spread]) + SMALLEST_PART
    factor = 1 if alpha == 1 else (parts.max() if alpha < 1 else parts.min()).detach()
    return alpha * ((parts / factor) ** (1 / alpha)).mean().log()
