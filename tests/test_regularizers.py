"""The later methods' losses: their authors' figures, slow transcriptions, and where they end."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import isotonic_regression

from conftest import load

regularizers = load("agedb-dir", "regularizers")
contrast = load("agedb-dir", "contrast")
distribution = load("agedb-dir", "distribution")
losses = load("agedb-dir", "loss")

PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-5}
AGES = np.arange(121)
NEAR = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def rows(golden):
    with np.load(golden / "successors.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(params=PRECISIONS, ids=str)
def precise(request, rows):
    """Function that takes a golden array as a tensor, and one that compares with golden arrays."""
    dtype, tolerance = request.param, PRECISIONS[request.param]

    def take(name):
        values = torch.from_numpy(rows[name])
        return values.to(dtype) if values.is_floating_point() else values

    def compare(loss, value, variable, gradient):
        assert loss.dtype == dtype
        assert_allclose(loss.item(), rows[value], rtol=tolerance, atol=tolerance)
        got = torch.autograd.grad(loss, variable, retain_graph=True)[0].double().numpy()
        expected = rows[gradient]
        scale = max(abs(expected).max(), 1e-3)
        assert_allclose(
            got.reshape(expected.shape), expected, rtol=tolerance, atol=tolerance * scale
        )

    return take, compare


# ---- the authors' figures ------------------------------------------------------------------


def test_conr_as_released(precise):
    take, compare = precise
    features = torch.cat([take("in/features_v1"), take("in/features_v2")]).requires_grad_()
    labels, weights = take("in/labels").repeat(2), take("in/weights").repeat(2)
    cases = {
        "noweights": ("conr/preds_2n", None, {}),
        "weights": ("conr/preds_2n", weights, {}),
        "weights_t0.2": ("conr/preds_2n", weights, {"temperature": 0.2}),
        "no_negatives": ("conr/no_negatives_preds", weights, {}),
    }
    for name, (preds, w, options) in cases.items():
        options["official"] = True
        loss = regularizers.conr_loss(features, labels, take(preds), w, **options)
        compare(loss, f"conr/{name}/loss", features, f"conr/{name}/grad_features")


def test_rank_n_contrast_as_released(precise, rows):
    take, compare = precise
    views = torch.stack([take("in/features_v1"), take("in/features_v2")], 1).requires_grad_()
    labels = take("in/labels")
    for t in (2, 0.5):
        loss = regularizers.rnc_loss(views, labels, t)
        compare(loss, f"rnc/t{t}/loss", views, f"rnc/t{t}/grad_features")
    flat = torch.cat([views[:, 0], views[:, 1]])
    assert_allclose(regularizers.rnc_loss(flat, labels.repeat(2)).item(), rows["rnc/t2/loss"], 1e-5)
    for name, y in (("labels2d_t2", take("in/labels_2d")), ("all_equal_t2", labels * 0)):
        got = regularizers.rnc_loss(views, y).item()
        assert_allclose(got, rows[f"rnc/{name}/loss"], rtol=1e-6)
    assert regularizers.rnc_loss(views[:1], labels[:1]).item() == rows["rnc/batch1/loss"] == 0


def test_ordinal_entropy_as_released(precise, rows):
    take, compare = precise
    features = take("in/features_v1").requires_grad_()
    loss = regularizers.ordinal_entropy_loss(features, take("in/labels"))
    compare(loss, "oe/age/loss", features, "oe/age/grad_features")
    # The other version takes ten rows, here of ten labels: each is its own centre.
    ten = rows["oe/synthetic/sampled_rows"]
    loss = regularizers.ordinal_entropy_loss(features[ten], take("in/labels")[ten])
    compare(loss, "oe/synthetic/loss", features, "oe/synthetic/grad_features")


def test_srl_as_released_in_the_papers_sign(precise, rows):
    take, compare = precise
    features, labels = take("in/features_v1").requires_grad_(), take("in/labels")
    srl = regularizers.SRL(102, 16, take("srl/points"))
    srl.surrogate.copy_(take("srl/surrogate_in"))
    for name, loss in srl(features, labels).items():
        compare(loss, f"srl/agedb/{name}_loss", features, f"srl/agedb/{name}_grad_features")
    tolerance = {"rtol": PRECISIONS[features.dtype], "atol": 0.1 * PRECISIONS[features.dtype]}
    # A batch of the surrogate's own rows leaves it as it is.
    own = srl(srl.surrogate.clone(), torch.arange(102))
    for name, key in (("env", "srl/env_on"), ("hom", "srl/hom_agedb_on")):
        assert_allclose(own[name], rows[f"{key}_surrogate_in"], **tolerance)
    completed = srl.centroids(features, labels).detach()
    assert_allclose(completed, rows["srl/surrogate_completed"], **tolerance)
    cosines = (completed[1:] * completed[:-1]).sum()  # the other sign drives neighbours apart
    assert_allclose(rows["srl/imdb/hom_loss"] - rows["srl/agedb/hom_loss"], 2 * cosines, rtol=1e-5)
    srl.accumulate(features[:20], labels[:20])
    srl.accumulate(features[20:], labels[20:])
    srl.update(0.9)
    expected = rows["srl/surrogate_after_update_m0.9"]
    assert_allclose(srl.surrogate, expected, **tolerance)
    assert not srl.counts.any()


@pytest.mark.parametrize("strength", [0.1, 0.01, 1])
def test_dist_loss_as_released(strength, precise, rows):
    take, compare = precise
    preds = take("in/preds").requires_grad_()
    wanted = regularizers.pseudo_labels(rows["in/train_labels"], 32, AGES)
    sorted_ = regularizers.soft_sort(preds, strength).detach()
    assert_allclose(sorted_, rows[f"dist/soft_sorted_eps{strength}"], rtol=1e-6)
    for name, loss in (("L1", losses.weighted_l1_loss), ("L2", losses.weighted_mse_loss)):
        for end, weights in (("", None), ("_w", take("in/weights"))):
            key = f"dist/{name}_eps{strength}{end}"
            targets = take("in/labels")
            got = regularizers.dist_loss(preds, targets, wanted, strength, weights, loss)
            total = {f"{key}/total": rows[f"{key}/loss_total_dist_plain"][0]}
            rows |= total
            compare(got, f"{key}/total", preds, f"{key}/grad_pred")


def test_pseudo_labels_as_released(rows):
    labels = rows["in/train_labels"]
    assert_allclose(distribution.density_on(labels, AGES), rows["dist/density"], **NEAR)
    for B in (32, 256, 512):
        got = regularizers.pseudo_labels(labels, B, AGES)
        assert got.tolist() == rows[f"dist/batch{B}/pseudo_labels"].tolist()


# ---- slow transcriptions of the formulas ---------------------------------------------------


def drawn(seed, n=14, D=5, d=1):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.standard_normal((n, D))).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 9, (n, d)).astype(float)) * 1.5
    preds = labels + torch.from_numpy(rng.standard_normal((n, d)) * 2)
    return features, labels, preds, torch.from_numpy(rng.random(n) + 0.2)


def same(got, expected, variable):
    assert_allclose(got.item(), expected.item(), **NEAR)
    ours, theirs = (torch.autograd.grad(x, variable, retain_graph=True)[0] for x in (got, expected))
    assert_allclose(ours, theirs, **NEAR)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("d", [1, 2])
def test_conr_by_its_formula(official, d):
    z, y, p, w = drawn(1, d=d)
    omega, temperature, push, m = 2.0, 0.3, 0.05, len(z)
    u = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(m):
        gaps = [(y[i] - y[j]).abs().sum() for j in range(m)]
        positives = [j for j in range(m) if j != i and gaps[j] <= omega]
        negatives = [j for j in range(m) if gaps[j] > omega and (p[i] - p[j]).abs().sum() <= omega]
        if not positives or not negatives:
            continue
        s = [(u[i] @ u[j]) / temperature for j in range(m)]
        denominator = sum(torch.exp(s[j]) for j in positives)
        denominator = denominator + sum(
            w[i] * torch.exp(push * gaps[j]) * torch.exp(s[j]) for j in negatives
        )
        denominator = denominator + official * (m - len(positives))
        total = total + w[i] * sum(denominator.log() - s[j] for j in positives) / len(positives)
    got = regularizers.conr_loss(z, y, p, w, omega, temperature, push, official)
    assert total > 0
    same(got, total / m, z)


@pytest.mark.parametrize("d", [1, 2])
def test_rank_n_contrast_by_its_formula(d):
    z, y, _, _ = drawn(2, d=d)
    m, total = len(z), 0.0
    for i in range(m):
        others = [j for j in range(m) if j != i]
        s = {j: -(z[i] - z[j]).square().sum().sqrt() / 2.0 for j in others}
        gap = {j: (y[i] - y[j]).abs().sum() for j in others}
        for j in others:
            total = total - s[j] + sum(s[k].exp() for k in others if gap[k] >= gap[j]).log()
    same(regularizers.rnc_loss(z, y), total / (m * (m - 1)), z)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_euclidean_distances_and_their_gradient(scale):
    """Against torch.cdist in float64; rows that are near each other lie far from the origin."""
    generator = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(40, 6, generator=generator).double() * scale
    x[7] = x[3]
    weights = torch.randn(40, 40, generator=generator).double()
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        given = x.clone().to(dtype).requires_grad_()
        exact = given.detach().clone().double().requires_grad_()
        expected = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
        got = contrast._Euclidean.apply(given)
        assert_allclose(got.detach(), expected.detach(), rtol=tolerance, atol=0)
        got.backward(weights.to(dtype))
        expected.backward(weights)
        assert_allclose(given.grad, exact.grad, rtol=tolerance, atol=tolerance)


def test_euclidean_distances_have_a_gradient_of_all_digits():
    """Of two tight clusters far apart, where float32's products would cancel; and no second one."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    x[10:] += 50
    exact = x.double().requires_grad_()
    weights = torch.randn(20, 20, generator=torch.Generator().manual_seed(1))
    torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist").backward(
        weights.double()
    )
    x.requires_grad_()
    got = torch.autograd.grad(contrast._Euclidean.apply(x), x, weights, create_graph=True)[0]
    assert_allclose(got.detach(), exact.grad, rtol=2e-6, atol=2e-6)
    with pytest.raises(RuntimeError, match="grad"):
        got.sum().backward()


def test_ordinal_entropy_by_its_formula():
    z, y, _, _ = drawn(3)
    values = sorted({v.item() for v in y})
    assert 2 < len(values) < len(y)  # some share a centre
    centre = {v: z[y[:, 0] == v].mean(0) for v in values}
    centre = {v: c / c.norm() for v, c in centre.items()}
    pairs = [(a, b) for a in values for b in values if a < b]
    gaps = [b - a for a, b in pairs]
    diversity = sum(
        (centre[a] - centre[b]).norm() * (b - a - min(gaps)) / max(gaps) for a, b in pairs
    ) / len(pairs)
    shared = [i for i in range(len(y)) if (y == y[i]).sum() > 1]
    tightness = sum((z[i] / z[i].norm() - centre[y[i].item()]).norm() for i in shared)
    same(regularizers.ordinal_entropy_loss(z, y), tightness / len(shared) - diversity, z)


def test_srl_by_its_formula():
    """Three of six buckets are in the batch, one is known from before, two were never seen."""
    z, _, _, _ = drawn(4, n=6)
    buckets = torch.tensor([0, 0, 2, 5, 5, 5])
    points = torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    srl = regularizers.SRL(6, 5, points)
    srl.surrogate[3] = torch.tensor([0.6, 0.8, 0, 0, 0])
    u = z / z.norm(dim=1, keepdim=True)
    centres = [u[buckets == k].mean(0) for k in (0, 2)] + [srl.surrogate[3], u[3:].mean(0)]
    centres = [c / c.norm() for c in centres]
    row = {0: 0, 2: 1, 3: 2, 5: 3}
    con = 0.0
    for i, bucket in enumerate(buckets.tolist()):
        s = torch.stack([u[i] @ c.detach() / 0.1 for c in centres])
        con = con - (s[row[bucket]] - s.exp().sum().log()) / len(u)
    env = 1 - sum(max(x @ c for c in centres) for x in points) / len(points)
    cosines = torch.stack([a @ b for a, b in itertools.pairwise(centres)])
    hom = 0.1 * (cosines - cosines.mean()).square().sum() / 2 - cosines.sum()
    for name, expected in {"con": con, "env": env, "hom": hom}.items():
        same(srl(z, buckets)[name], expected, z)


@pytest.mark.parametrize("strength", [0.05, 0.3, 2.0])
def test_soft_sort_by_isotonic_regression(strength):
    """Values by SciPy's pooling of adjacent violators, gradients as means over its blocks."""
    x = torch.from_numpy(np.random.default_rng(5).normal(0, 9, 40)).requires_grad_()
    steps = np.arange(40, 0, -1) / strength
    rising = np.sort(x.detach().numpy())
    fit = isotonic_regression(rising + steps, increasing=False)
    made = regularizers.soft_sort(x, strength)
    assert_allclose(made.detach(), fit.x - steps, rtol=1e-9, atol=1e-9)
    incoming = torch.linspace(-1, 2, 40, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(made, x, incoming)
    expected = np.empty(40)
    for first, last in itertools.pairwise(fit.blocks):
        expected[first:last] = incoming[first:last].mean()
    assert_allclose(gradient[x.argsort()], expected, **NEAR)


def test_soft_sort_is_the_hard_one_unless_a_gap_is_wide():
    x = torch.tensor([7.0, 1.0, 3.0, 16.0, 4.5, 6.0], dtype=torch.float64, requires_grad=True)
    w = torch.arange(6.0, dtype=torch.float64)
    hard, soft, pooled = (regularizers.soft_sort(x, strength) for strength in (0, 0.1, 0.2))
    assert_allclose(soft.detach(), hard.detach(), **NEAR)  # the widest gap is 9, below 1 / 0.1
    for made in (hard, soft):
        assert torch.autograd.grad(made, x, w)[0].tolist() == [4, 0, 1, 5, 2, 3]
    assert pooled[-1] < 16  # and above 1 / 0.2
    assert_allclose(torch.autograd.grad(pooled, x, w)[0][[0, 3]], [4.5, 4.5])
    for strength in (1e-18, 1e-310, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="strength must be 0"):
            regularizers.soft_sort(x, strength)
    columns = torch.stack([x, -x], 1)
    both = regularizers.soft_sort(columns, 0.2)
    assert_allclose(both[:, 0].detach(), pooled.detach(), **NEAR)


def test_decimals_are_compared_as_they_are_written():
    """Float32 rounds decimals, so that 18 of these 100 neighbours were more than one bin apart."""
    z = torch.randn(51, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.arange(51.0)
    rounded = whole / 10 / 5 / 0.02
    assert ((rounded.diff() > 1).sum() + (rounded.diff() < 1).sum()) > 10
    pair = [regularizers.conr_loss(z, y, whole / 5, omega=1) for y in (whole, rounded)]
    pair += [regularizers.rnc_loss(z, y) for y in (whole, whole / 10)]
    assert_allclose(pair[1], pair[0], rtol=1e-5)
    assert_allclose(pair[3], pair[2], rtol=1e-5)


# ---- where they end ------------------------------------------------------------------------


def finite(loss, variable):
    gradient = torch.autograd.grad(loss, variable, retain_graph=True, allow_unused=True)[0]
    return bool(loss.isfinite()) and (gradient is None or bool(gradient.isfinite().all()))


@pytest.mark.parametrize("kind", ["one", "equal labels", "distinct", "duplicates", "zeros"])
def test_no_batch_gives_nan(kind):
    z, y, p, w = drawn(6)
    if kind == "one":
        z, y, p, w = z[:1], y[:1], p[:1], w[:1]
    z = z.detach()
    z = z[:1].repeat(len(z), 1) if kind == "duplicates" else z * (kind != "zeros")
    y = y * 0 + 3 if kind == "equal labels" else y
    y = torch.arange(len(y), dtype=y.dtype)[:, None] * 10 if kind == "distinct" else y
    z.requires_grad_()
    p.requires_grad_()
    for official in (False, True):
        assert finite(regularizers.conr_loss(z, y, p, w, official=official), z)
    assert finite(regularizers.rnc_loss(z, y), z)
    assert finite(regularizers.ordinal_entropy_loss(z, y), z)
    for loss in regularizers.SRL(140, 5, 20).double()(z, y.long()).values():
        assert finite(loss, z)
    for strength in (0, 0.1):
        wanted = regularizers.pseudo_labels(y, len(y), np.arange(200))
        assert finite(regularizers.dist_loss(p, y, wanted, strength), p)


def test_conr_with_anchors_that_have_nothing_to_compare(rows):
    """Without a second view some anchors have no positive; the released code gives NaN then."""
    take = {name: torch.from_numpy(rows[f"in/{name}"]) for name in ("features_v1", "labels")}
    z = take["features_v1"].requires_grad_()
    preds = torch.from_numpy(rows["conr/preds_2n"][:32])
    assert math.isnan(rows["conr/single_view/loss"])
    loss = regularizers.conr_loss(z, take["labels"], preds)
    assert loss > 0
    assert finite(loss, z)
    # A label that is no number shows in the loss, which then ends the run.
    unknown = take["labels"].double().index_fill(0, torch.tensor([3]), math.nan)
    assert regularizers.conr_loss(z, unknown, preds, omega=20).isnan()
    no_positive = regularizers.conr_loss(z, torch.arange(32) * 100.0, preds)
    assert no_positive.item() == 0
    assert finite(no_positive, z)


def test_half_precision_and_autocast():
    """exp(1 / 0.07) overflows float16, and distances of 256 underflow exp in float32."""
    z, y, p, w = (x.detach().float() for x in drawn(7))
    cases = {
        "conr": lambda x: regularizers.conr_loss(x, y, p, w, 3),
        "rnc": lambda x: regularizers.rnc_loss(x * 256, y),
        "oe": lambda x: regularizers.ordinal_entropy_loss(x, y),
        "srl": lambda x: regularizers.SRL(20, 5, torch.eye(5))(x, y.long())["con"],
    }
    for name, loss in cases.items():
        half = z.to(torch.bfloat16)
        exact = loss(half.float())
        for x in (half, half.float()):
            x.requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                got = loss(x)
            assert_allclose(got.item(), exact.item(), rtol=1e-5, err_msg=name)
            assert got.dtype == torch.float32
            assert finite(got, x), name


def test_pseudo_labels_of_any_batch_size():
    labels = np.random.default_rng(8).integers(20, 60, 300)
    for B in (1, 2, 3, 7, 64, 1000):
        for grid in (np.arange(5), np.arange(10, 70), np.linspace(0, 100, 7)):
            if grid[-1] < 20:
                with pytest.raises(ValueError, match="0 to 4"):
                    regularizers.pseudo_labels(labels, B, grid)
                continue
            got = regularizers.pseudo_labels(labels, B, grid)
            assert len(got) == B
            assert (got.diff() >= 0).all()
            assert abs(got.mean() - 40) < 20
    assert regularizers.pseudo_labels(np.full(9, 33), 4, np.arange(50)).tolist() == [33.0] * 4


def test_a_bucket_seen_for_the_first_time_enters_the_surrogate_whole():
    srl = regularizers.SRL(4, 3, 10)
    srl.accumulate(torch.eye(3), torch.tensor([0, 1, 1]))
    srl.update(0.9)
    assert_allclose(srl.surrogate[0], [1, 0, 0])
    assert_allclose(srl.surrogate[1], [0, 0.5**0.5, 0.5**0.5], rtol=1e-6)
    assert not srl.surrogate[2:].any()
    assert set(srl.state_dict()) == {"points", "surrogate", "sums", "counts"}
