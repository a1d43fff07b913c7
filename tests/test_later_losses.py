"""The losses and weights of later methods: golden values, slow transcriptions, limits."""

import math

import numpy as np
import pytest
import torch

from conftest import ROOT, load

loss = load("agedb-dir", "loss")
lds = load("agedb-dir", "lds")
GOLDEN = ROOT.parent / "shared" / "golden" / "successors.npz"

# ---- golden values -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("shared/golden/successors.npz is not here")
    with np.load(GOLDEN) as file:
        return dict(file)


def mixture_of(golden, name):
    return [golden[f"{name}/gmm_{part}"] for part in ("weights", "means", "variances")]


CALLS = {  # golden key: its predictions and targets, σ, and the loss of them
    **{f"bmc/sigma{s}": ("", s, lambda g, p, y, v: loss.bmc_loss(p, y, v)) for s in (1, 8)},
    "bmc2d/sigma1.5": ("_2d", 1.5, lambda g, p, y, v: loss.bmc_loss(p, y, v)),
    **{
        f"gai/sigma{s}": ("", s, lambda g, p, y, v: loss.gai_loss(p, y, mixture_of(g, "gai"), v))
        for s in (1, 10)
    },
    "gai2d/sigma1.5": (
        "_2d", 1.5, lambda g, p, y, v: loss.gai_loss(p, y, mixture_of(g, "gai2d"), v)
    ),
    **{
        f"bni/sigma{s}": (
            "", s, lambda g, p, y, v: loss.bni_loss(p, y, g["bni/centers"], g["bni/weights"], v)
        )
        for s in (1, 10)
    },
    **{f"gar/alpha{a:g}": ("", None, lambda g, p, y, v, a=a: loss.gar_loss(p, y, a))
       for a in (0.2, 1, 2)},
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("key", CALLS)
def test_golden_values_and_gradients(golden, key, dtype, rtol):
    suffix, sigma, call = CALLS[key]
    preds = torch.tensor(golden[f"in/preds{suffix}"], dtype=dtype, requires_grad=True)
    targets = torch.tensor(golden[f"in/labels{suffix}"], dtype=dtype)
    noise = None if sigma is None else torch.tensor(float(sigma), dtype=dtype, requires_grad=True)
    value = call(golden, preds, targets, noise)
    value.backward()
    close = {"rtol": rtol, "atol": rtol}
    np.testing.assert_allclose(value.item(), golden[f"{key}/loss"], **close)
    np.testing.assert_allclose(preds.grad, golden[f"{key}/grad_pred"], **close)
    if noise is not None:
        np.testing.assert_allclose(noise.grad, golden[f"{key}/grad_sigma"], **close)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_uvote(golden, dtype, rtol):
    means = torch.tensor(golden["uvote/mu"], dtype=dtype, requires_grad=True)
    log_scales = torch.tensor(golden["uvote/log_scale"], dtype=dtype, requires_grad=True)
    targets, weights = golden["in/labels"], golden["uvote/batch_weights"]
    each = loss.uvote_loss(means, log_scales, targets, weights)
    np.testing.assert_allclose(each.detach(), golden["uvote/nll_each"], rtol=rtol)
    np.testing.assert_allclose(each.sum().item(), golden["uvote/total_static"], rtol=rtol)
    total = each[0] + (30 / 90) ** 2 * each[1:].sum()
    np.testing.assert_allclose(total.item(), golden["uvote/total_dynamic_epoch30of90"], rtol=rtol)
    total.backward()
    for tensor, key in ((means, "mu"), (log_scales, "log_scale")):
        np.testing.assert_allclose(tensor.grad, golden[f"uvote/grad_{key}"], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("alpha", [0.5, 1, 2])
def test_golden_dense_weights(golden, alpha):
    """The released code looks the density up on a grid; ours is exact: 0.24 % of the largest."""
    key = f"denseweight/alpha{alpha}"
    largest = golden[f"{key}/weights"].max()
    for ours, theirs in (((), "weights"), ((golden["denseweight/new_labels"],), "new_weights")):
        ours = lds.dense_weights(golden["in/train_labels"], alpha, *ours)
        np.testing.assert_allclose(ours, golden[f"{key}/{theirs}"], atol=2.4e-3 * largest)


def test_golden_balanced_mae(golden):
    target = load("agedb-dir", "meta_file").AGE
    arguments = golden["in/preds"], golden["in/labels"], golden["in/train_labels"], target
    ours = load("agedb-dir", "metrics").shot_metrics(*arguments)["overall"]["bmae"]
    assert ours == pytest.approx(golden["bmae/value"].item(), rel=1e-9)


# ---- slow transcriptions -------------------------------------------------------------------


def normal(x, mean, covariance):
    """Density of a normal distribution at x, with plain determinants and inverses."""
    x, mean = np.atleast_1d(x), np.atleast_1d(mean)
    covariance = np.atleast_2d(covariance)
    square = (x - mean) @ np.linalg.inv(covariance) @ (x - mean)
    return math.exp(-square / 2) / math.sqrt(np.linalg.det(2 * math.pi * covariance))


def balanced(preds, targets, sigma, integral):
    """Balanced MSE from its definition, a sample at a time."""
    total = 0.0
    for p, y in zip(preds, targets):
        noise = sigma**2 * np.eye(len(p))
        total += math.log(integral(p, noise)) - math.log(normal(y, p, noise))
    return 2 * sigma**2 * total / len(preds)


def batch(d, n=9):
    rng = np.random.default_rng(d)
    return rng.normal(0, 2, (n, d)), rng.normal(0, 2, (n, d))


def gradient(function, x, step=1e-6):
    """Central differences of a function of an array."""
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        out[index] = (ends[0] - ends[1]) / (2 * step)
    return out


MIXTURE = {
    1: ([0.3, 0.7], [[-1.0], [2.0]], [[[0.5]], [[2.0]]]),
    2: ([0.3, 0.7], [[-1.0, 0.0], [2.0, 1.0]], [[[0.5, 0.2], [0.2, 0.4]], [[2.0, -1], [-1, 3.0]]]),
    3: ([1.0], [[1.0, 0.0, -1.0]], [np.diag([0.1, 1.0, 2.0])]),
}


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", ["bmc", "gai", "bni"])
def test_balanced_mse_by_its_definition(name, d):
    preds, targets = batch(d)
    sigma = 1.3
    centers, weights = np.random.default_rng(0).normal(0, 2, (5, d)), np.array([1, 2, 0, 3, 4]) / 10
    if name == "bmc":

        def integral(p, noise):  # not divided by the number of targets
            return sum(normal(y, p, noise) for y in targets)

        ours = [lambda p, v: loss.bmc_loss(p, torch.tensor(targets), v)]
    elif name == "gai":

        def integral(p, noise):
            return sum(w * normal(p, m, np.array(s) + noise) for w, m, s in zip(*MIXTURE[d]))

        parts = [np.array(part) for part in MIXTURE[d]]
        ours = [lambda p, v: loss.gai_loss(p, torch.tensor(targets), parts, v)]
    else:

        def integral(p, noise):
            return sum(w * normal(c, p, noise) for w, c in zip(weights, centers))

        ours = [lambda p, v: loss.bni_loss(p, torch.tensor(targets), centers, weights, v)]
        if d == 1:
            ours.append(
                lambda p, v: loss.bni_loss(p, torch.tensor(targets), centers[:, 0], weights, v)
            )
    slow = balanced(preds, targets, sigma, integral)
    slope = gradient(lambda p: balanced(p, targets, sigma, integral), preds)

    def bracket(s):  # the factor 2σ² has no part in the gradient
        return balanced(preds, targets, s[0], integral) / s[0] ** 2 * sigma**2

    noise_slope = gradient(bracket, np.array([sigma]))
    for function in ours:
        inputs = torch.tensor(preds, requires_grad=True)
        noise = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
        value = function(inputs, noise)
        value.backward()
        assert value.item() == pytest.approx(slow, rel=1e-9)
        np.testing.assert_allclose(inputs.grad, slope, rtol=1e-5, atol=1e-7)
        assert noise.grad.item() == pytest.approx(noise_slope[0], rel=1e-5)


def test_bmc_over_the_targets_of_all_processes():
    """The parts' gradients, averaged, are those of the whole batch."""
    preds, targets = (torch.tensor(x) for x in batch(2, 8))
    whole = preds.clone().requires_grad_()
    loss.bmc_loss(whole, targets, 2.0).backward()
    parts = preds.clone().requires_grad_()
    for rows in (slice(0, 3), slice(3, 8)):
        share = len(targets[rows]) / len(targets)
        (share * loss.bmc_loss(parts[rows], targets[rows], 2.0, all_targets=targets)).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_uvote_by_its_definition():
    rng = np.random.default_rng(3)
    means, log_scales, targets = (
        rng.normal(size=(2, 4)),
        rng.normal(size=(2, 4)),
        rng.normal(size=4),
    )
    log_scales[0, 1], log_scales[1, 2] = 7, -9  # past the bounds
    weights = rng.uniform(0.5, 2, (2, 4))
    got = loss.uvote_loss(*map(torch.tensor, (means, log_scales)), targets, weights)
    for m in range(2):
        total = 0.0
        for n in range(4):
            b = math.exp(min(max(log_scales[m, n], -5), 5))
            total -= weights[m, n] * math.log(math.exp(-abs(targets[n] - means[m, n]) / b) / 2 / b)
        assert got[m].item() == pytest.approx(total / 4, rel=1e-7)
    wide = loss.uvote_loss(*map(torch.tensor, (means, log_scales)), targets, weights, (-5.0, 10.0))
    assert wide[0] != got[0]
    assert wide[1] == got[1]


@pytest.mark.parametrize("alpha", [0.3, 1, 3])
@pytest.mark.parametrize("d", [1, 2])
def test_gar_by_its_definition(alpha, d):
    preds, targets = batch(d)
    error = preds - targets
    correlation = [np.corrcoef(preds[:, k], targets[:, k])[0, 1] for k in range(d)]
    n = len(preds)
    shape = (n - 1) / n * np.mean(1 - np.array(correlation))
    parts = np.array([shape, np.abs(error).mean(), error.var(0).mean() / 2]) + 1e-7
    factor = parts.max() if alpha < 1 else parts.min() if alpha > 1 else 1.0
    expected = alpha * math.log(((parts / factor) ** (1 / alpha)).mean())
    got = loss.gar_loss(torch.tensor(preds), torch.tensor(targets), alpha)
    assert got.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0, 0.7, 1.0, 3.0])
def test_dense_weights_by_their_definition(alpha):
    rng = np.random.default_rng(5)
    labels = np.concatenate([rng.normal(0, 1, 30), rng.gamma(2, 3, 40).round()])
    new = np.array([-5.0, 0.3, 100.0])
    width = 1.06 * labels.std() * len(labels) ** -0.2

    def density(x):
        return sum(math.exp(-(((x - y) / width) ** 2) / 2) for y in labels)

    highest = max(map(density, labels))
    raw = np.array([max(1 - alpha * density(y) / highest, 1e-6) for y in labels])
    np.testing.assert_allclose(lds.dense_weights(labels, alpha), raw / raw.mean(), rtol=1e-9)
    expected = [max(1 - alpha * density(y) / highest, 1e-6) / raw.mean() for y in new]
    np.testing.assert_allclose(lds.dense_weights(labels, alpha, new), expected, rtol=1e-9)


# ---- limits --------------------------------------------------------------------------------

ALL = {
    "bmc": lambda p, y, v: loss.bmc_loss(p, y, v),
    "gai": lambda p, y, v: loss.gai_loss(p, y, MIXTURE[1], v),
    "bni": lambda p, y, v: loss.bni_loss(p, y, [0.0, 1.0, 5.0], [0.2, 0.0, 0.8], v),
    "gar": lambda p, y, v: loss.gar_loss(p, y, 0.2),
}
LIMITS = {  # predictions, targets, σ
    "one sample": ([3.0], [1.0], 1.0),
    "all labels equal": ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 1.0),
    "all predictions equal": ([2.0, 2.0, 2.0], [1.0, 5.0, 9.0], 1.0),
    "nothing to learn": ([2.0, 2.0], [2.0, 2.0], 1.0),
    "duplicates": ([1.0, 1.0, 4.0, 4.0], [1.0, 1.0, 9.0, 9.0], 1.0),
    "far outside the prior": ([3.0, 4000.0], [-5000.0, 4000.0], 0.1),
    "no noise": ([1.0, 2.0, 3.0], [1.0, 5.0, 9.0], 0.0),
    "much noise": ([1.0, 2.0, 3.0], [1.0, 5.0, 9.0], 1e4),
    "negative noise": ([1.0, 2.0, 3.0], [1.0, 5.0, 9.0], -2.0),
}


@pytest.mark.parametrize("case", LIMITS)
@pytest.mark.parametrize("name", ALL)
def test_limits_are_finite(name, case):
    preds, targets, sigma = LIMITS[case]
    preds = torch.tensor(preds, requires_grad=True)
    noise = torch.tensor(sigma, requires_grad=True)
    value = ALL[name](preds, torch.tensor(targets), noise)
    value.backward()
    assert value.isfinite()
    assert preds.grad.isfinite().all()
    assert noise.grad is None or noise.grad.isfinite()


def test_known_limits():
    one = torch.tensor([3.0], requires_grad=True)
    assert loss.bmc_loss(one, torch.tensor([1.0]), 1.0).item() == 0
    preds, targets = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 5.0, 9.0])
    # Without noise: the squared error, less that of the nearest target or bin.
    assert loss.bmc_loss(preds, targets, 1e-3).item() == pytest.approx((0 + 8 + 32) / 3, rel=1e-4)
    assert loss.bmc_loss(preds, targets, -2.0) == loss.bmc_loss(preds, targets, 2.0)
    # A flat prior balances nothing: the gradient is that of the MSE.
    inputs = preds.clone().requires_grad_()
    loss.bni_loss(
        inputs, targets, torch.arange(-500, 500) / 2, torch.full((1000,), 1e-3), 2.0
    ).backward()
    torch.testing.assert_close(inputs.grad, 2 * (preds - targets) / 3, rtol=1e-4, atol=1e-5)
    same = torch.tensor([2.0, 2.0], requires_grad=True)
    loss.gar_loss(same, torch.tensor([5.0, 5.0]), 1.0).backward()
    assert same.grad.tolist() == [-same.grad.abs()[0].item()] * 2 != [0.0, 0.0]


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_shapes(name):
    preds, targets = torch.tensor([10.0, 200.0, 300.0]), torch.tensor([11.0, 400.0, 310.0])
    expected = ALL[name](preds, targets, 2.0)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        column = ALL[name](preds.half().unsqueeze(1), targets.unsqueeze(1), torch.tensor(2.0))
    assert column.dtype == torch.float32
    torch.testing.assert_close(column, expected)
    for wrong in (torch.ones(2), torch.ones(3, 2)):
        with pytest.raises(ValueError, match="must match"):
            ALL[name](preds, wrong, 2.0)
    with pytest.raises(ValueError, match="at least one"):
        ALL[name](torch.ones(0), torch.ones(0), 2.0)


def test_gai_in_a_low_precision_region():
    """Autocast must not take its matrices to bfloat16."""
    preds, targets = (torch.tensor(x, dtype=torch.float32) for x in batch(2))
    with torch.autocast("cpu", torch.bfloat16):
        low = loss.gai_loss(preds, targets, MIXTURE[2], 1.5)
    torch.testing.assert_close(low, loss.gai_loss(preds, targets, MIXTURE[2], 1.5))


def test_dense_weights_at_limits():
    rng = np.random.default_rng(1)
    labels = rng.gamma(2, 10, 200)
    ours = lds.dense_weights(labels, 1.0)
    # Not so in the released code, whose grid ends at an absolute density.
    np.testing.assert_allclose(lds.dense_weights(labels * 1e6 + 5e7, 1.0), ours, rtol=1e-6)
    assert ours.mean() == pytest.approx(1)
    assert (ours > 0).all()
    assert (lds.dense_weights(labels, 0.0) == 1).all()
    assert lds.dense_weights([3.0, 3.0], 1.0, [3.0, 9.0]).tolist() == [1, 1]
    assert lds.dense_weights([3.0], 1.0).tolist() == [1]
    for wrong, alpha in (([], 1.0), ([1.0, np.nan], 1.0), (labels, -1.0), (labels, np.nan)):
        with pytest.raises(ValueError, match=r"labels must be finite|alpha of DenseWeight"):
            lds.dense_weights(wrong, alpha)
    with pytest.raises(ValueError, match="alpha of GAR"):
        loss.gar_loss(torch.ones(2), torch.ones(2), 0)
