"""The training loss that the flags ask for, and what the losses of later methods need.

Their functions are in `loss.py`, their flags in `loss_flags.py`, what they add to the network in
`heads.py`.
"""

import functools

import numpy as np
import torch

import flags
import loss as losses
from lds import bucket_weights, dense_weights, label_density
from loss_flags import BALANCED

COMPONENTS = 8  # of gai's mixture (released code, ages)
EM_STEPS = 200
EM_GAIN = 1e-5  # in the mean log-likelihood: a smaller one ends the fit

# ---- weights and priors --------------------------------------------------------------------


def density_of(args, counts, rule):
    """Return the label density before and after LDS, as `lds.label_density`.

    Args:
        args: the flags.
        counts: training samples per bucket [B].
        rule: the benchmark's further arguments of `lds.label_density`.
    """
    options = flags.lds_options(args)
    if args.lds and args.reweight == "none":  # bni's prior is a density, not a weight
        bare = {key: rule[key] for key in ("mode", "start") if key in rule}
        return label_density(counts, "inverse", **options, **bare)
    reweight = "none" if args.reweight == flags.DENSE else args.reweight
    return label_density(counts, reweight, **options, **rule)


def weights_of(args, labels, values, counts, rule):
    """Return the weight of a training sample by its bucket: [B], or [B, M] for M experts.

    Args:
        labels: of the training samples [N], on the scale of the buckets.
        values: middle of each bucket, there [B].
        args, counts, rule: as for `density_of`.
    """
    if args.reweight == flags.DENSE:
        return dense_weights(labels, args.dense_alpha, values).astype(np.float32)
    if not args.experts:
        return bucket_weights(density_of(args, counts, rule), counts, args.reweight)
    weights = [np.ones(len(counts), dtype=np.float32)]
    for power in np.linspace(0, 1, args.experts)[1:]:  # the m-th divides by count^power
        density = label_density(counts, power, **flags.lds_options(args), **rule)
        weights.append(bucket_weights(density, counts))
    return np.stack(weights, axis=1)


def weights_at(args, labels, buckets, weights):
    """Return the weights of training samples [N]: their buckets', or DenseWeight's at each label.

    Args:
        labels, buckets: of the samples [N], labels on the scale of the buckets.
        args, weights: the flags, and what `weights_of` returns.
    """
    if args.reweight == flags.DENSE:
        return dense_weights(labels, args.dense_alpha).astype(np.float32)
    return weights[buckets]


def prior_of(args, targets, values, density, components=COMPONENTS):
    """Return what gai and bni need to know of the training labels, else None.

    Args:
        args: the flags.
        targets: training labels in the unit of predictions [N], or None where only counts are kept.
        values: middle of each bucket, in that unit [B].
        density: what `density_of` returns.
        components: most of gai's mixture.
    """
    before, after = density
    if args.loss == "gai":
        if targets is not None:
            values, before = np.unique(targets, return_counts=True)
        return fit_mixture(values[before > 0], before[before > 0], components)
    if args.loss != "bni":
        return None
    mass = before if after is None else after
    held = (mass > 0) & np.isfinite(values)
    return values[held], mass[held] / mass[held].sum()


def fit_mixture(values, counts, components=COMPONENTS):
    """Fit a Gaussian mixture to labels by expectation–maximisation.

    Args:
        values: distinct labels [V].
        counts: how often each occurs [V].
        components: most of the mixture.

    Returns:
        Weights [K], means [K, 1] and covariances [K, 1, 1], float64.

    It starts from parts of equal mass, moved as by k-means, so it draws nothing.
    """
    order = np.argsort(values)
    values = np.float64(values)[order]
    parts = np.float64(counts)[order] / np.sum(counts)
    place = (np.cumsum(parts) - parts / 2) * components
    group = np.unique(place.astype(int), return_inverse=True)[1]
    for _ in range(EM_STEPS):
        means = np.bincount(group, parts * values) / np.bincount(group, parts)
        nearest = np.searchsorted((means[1:] + means[:-1]) / 2, values)
        if (nearest == group).all():
            break
        group = np.unique(nearest, return_inverse=True)[1]
    belongs = np.eye(group.max() + 1)[group]
    centre = parts @ values
    # A component on one label alone keeps a width.
    least = max(1e-6 * parts @ (values - centre) ** 2, 1e-12)
    before = -np.inf
    for _ in range(EM_STEPS):
        mass = parts[:, None] * belongs
        weights = mass.sum(0)
        means = values @ mass / weights
        variances = (mass * (values[:, None] - means) ** 2).sum(0) / weights + least
        logs = np.log(weights) - 0.5 * np.log(2 * np.pi * variances)
        logs = logs - (values[:, None] - means) ** 2 / (2 * variances)
        highest = logs.max(1, keepdims=True)
        density = np.exp(logs - highest)
        likelihood = parts @ (np.log(density.sum(1)) + highest[:, 0])
        belongs = density / density.sum(1, keepdims=True)
        if likelihood - before < EM_GAIN:
            break
        before = likelihood
    return weights, means[:, None], variances[:, None, None]


# ---- the loss itself -----------------------------------------------------------------------


def weighted_loss(args, focal_beta, huber_beta):
    """Return the loss (inputs, targets, weights) -> scalar, or None if --loss is no weighted one.

    Args:
        args: the flags.
        focal_beta, huber_beta: the benchmark's slopes, see `loss.py`.
    """
    function = getattr(losses, f"weighted_{args.loss}_loss", None)
    if args.loss.startswith("focal"):
        return functools.partial(function, beta=focal_beta)
    return functools.partial(function, beta=huber_beta) if args.loss == "huber" else function


class Criterion:
    """The training loss of a batch.

    Args:
        run: `run_folder.Run`.
        model: the network.
        plain: weighted loss (inputs, targets, weights) -> scalar, where the flags ask for one.
        prior: what `prior_of` returns.
        done: how much of the training is over, 0 ... 1.
    """

    def __init__(self, run, model, plain, prior=None, done=0.0):
        self.args = run.args
        self.accelerator = run.accelerator
        self.model = model
        self.plain = plain
        self.done = done
        options = {"dtype": torch.float32, "device": run.accelerator.device}
        self.prior = [torch.as_tensor(part, **options) for part in prior or ()]

    def __call__(self, preds, targets, batch):
        """Return the loss, a scalar, of this process's part of a batch.

        Args:
            preds: outputs of the network, float32 [n, 1], or [n, 2·M] of experts.
            targets: what they should be [n, 1].
            batch: with `weights` and `share`.
        """
        name = self.args.loss
        if self.args.experts:
            return self._of_experts(preds, targets, batch.weights)
        if name == "gar":
            return losses.gar_loss(preds, targets, self.args.gar_alpha)
        if name not in BALANCED:
            return self.plain(preds, targets, batch.weights)
        noise = self.model.noise_sigma
        if name == "bmc":
            return losses.bmc_loss(preds, targets, noise, self._gathered(targets, batch.share))
        if name == "gai":
            return losses.gai_loss(preds, targets, self.prior, noise)
        return losses.bni_loss(preds, targets, *self.prior, noise)

    def _of_experts(self, preds, targets, weights):
        """The experts' losses in one; the further the training, the more the later ones count."""
        means, log_scales = preds.T.chunk(2)
        weights = weights.reshape(len(preds), -1).T
        first, *others = losses.uvote_loss(
            means, log_scales, targets, weights, self.model.linear.clip
        )
        schedule = self.args.expert_schedule
        rising = 1.0 if schedule == "constant" else self.done**2
        falling = 1.0 - rising if schedule == "fade" else 1.0
        return falling * first + rising * sum(others)

    def _gathered(self, targets, share):
        """With --gather the targets [M, d] of all processes, else None."""
        processes = self.accelerator.num_processes
        if not self.args.gather or processes == 1:
            return None
        # All send as many rows; what is no target of the batch is NaN.
        most = -(-self.args.batch_size // processes)
        rows = targets.new_full((most, targets[0].numel()), float("nan"))
        if share:
            rows[: len(targets)] = targets.reshape(len(targets), -1)
        rows = self.accelerator.gather(rows)
        return rows[rows.isfinite().all(dim=1)]


def in_unit(answers, invert):
    """Return a network's answers in the unit of labels; a deviation is half of what it spans there.

    Args:
        answers: array [N, 1], or of experts [N, 2].
        invert: function of arrays, from what the network predicts to labels.
    """
    preds = answers[:, :1]
    std = answers[:, 1:]
    return np.hstack([invert(preds), (invert(preds + std) - invert(preds - std)) / 2])


def columns_of(answers):
    """Return predictions [N, 1], or experts' answers [N, 2], as columns of a table."""
    answers = np.asarray(answers) if len(answers) else np.empty((0, 1))
    return dict(zip(("prediction", "std"), answers.T))
