"""uci-dir: buckets, weights, scales, columns, metrics, the network, trees kept as tensors."""

import itertools
import pickle
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import load

columns = load("uci-dir", "columns")
datasets = load("uci-dir", "datasets")
metrics = load("uci-dir", "metrics")
mlp = load("uci-dir", "mlp")
trees = load("uci-dir", "trees")
fds = load("uci-dir", "fds")
split = load("uci-dir", "split")
compare = load("uci-dir", "compare")
bins = load("uci-dir", "bins")
BINS = bins.Bins(0.5, 20.5, 20)


# ---- labels and weights --------------------------------------------------------------------


def test_buckets_of_arrays_and_tensors(monkeypatch):
    labels = np.array([[1.0, 20.0], [-5.0, 99.0]])
    expected = [[0, 19], [0, 19]]
    monkeypatch.setitem(sys.modules, "bins", bins)
    bucket = pickle.loads(pickle.dumps(partial(bins.label_to_bucket, bins=BINS)))
    assert bucket(labels).tolist() == expected
    found = bucket(torch.from_numpy(labels).float())
    assert found.tolist() == expected
    assert found.dtype == torch.long
    assert BINS.edges.tolist() == [0.5 + i for i in range(20)]


def test_weights_are_those_of_plain_loops():
    labels = np.repeat(np.arange(1, 21), np.r_[np.arange(1, 20), 60])
    counts = np.r_[np.arange(1, 20), 60]
    window = [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]
    smoothed = [
        sum(
            window[k + 2] * np.sqrt(counts[b + k]) for k in range(-2, 3) if 0 <= b + k < len(counts)
        )
        for b in range(20)
    ]
    expected = np.array([1 / smoothed[label - 1] for label in labels])
    found = datasets.sample_weights(
        labels, BINS, "sqrt_inv", lds=True, lds_kernel="triang", lds_ks=5
    )
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match="finite"):
        datasets.sample_weights([1.0, np.nan], BINS, "inverse")


@pytest.mark.parametrize("kind", datasets.TARGET_SCALES)
def test_target_scale_is_inverted(kind):
    labels = np.random.default_rng(0).lognormal(3, 1, 200)
    scale = datasets.TargetScale(kind, datasets.target_statistics(labels))
    scaled = scale.scale(labels)
    np.testing.assert_allclose(scale.invert(scaled), labels, rtol=1e-12)
    if kind != "none":
        assert abs(scaled.mean()) < 1e-9
        assert scaled.std() == pytest.approx(1)
    assert np.isfinite(scale.invert(np.array([1e9]))).all() or kind != "log"


def test_logarithm_needs_labels_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        datasets.TargetScale("log", datasets.target_statistics(np.array([0.0, 1.0, 2.0])))


# ---- columns -------------------------------------------------------------------------------


def frame_of_both_kinds():
    numbers = [1.0, 2.0, np.nan, 4.0, 100.0, np.inf, 7.0, 8.0] * 3
    colours = (["red"] * 3 + ["blue"] * 2 + ["green", None, "blue"]) * 3
    return pd.DataFrame(
        {"size": numbers, "colour": colours, "same": 3.0, "flag": [True, False] * 12}
    )


def test_columns_come_from_training_rows_alone():
    frame = frame_of_both_kinds()
    train = np.arange(24) % 4 != 0
    fitted, constant = columns.fit_columns(frame, train)
    other = frame.copy()
    other.loc[~train, "size"] = 1e9
    other.loc[~train, "colour"] = "never seen"
    other.loc[~train, "same"] = -1.0
    assert columns.fit_columns(other, train) == (fitted, constant)
    assert constant == ["same"]
    size = next(column for column in fitted if column["name"] == "size")
    known = [x for x, t in zip(frame["size"], train) if t and np.isfinite(x)]
    assert size["median"] == np.median(known)
    filled = [x if np.isfinite(x) else size["median"] for x, t in zip(frame["size"], train) if t]
    assert size["mean"] == pytest.approx(np.mean(filled))
    assert size["std"] == pytest.approx(np.std(filled))


def test_encoding_cell_by_cell():
    frame = frame_of_both_kinds()
    fitted, _ = columns.fit_columns(frame, np.ones(24, bool))
    inputs, unknown = columns.encode(frame, fitted)
    size, colour, flag = fitted
    assert [colour["values"], colour["other"]] == [["blue", "red"], True]  # green: 3 rows
    assert flag["values"] == ["False", "True"]
    assert inputs.shape == (24, columns.width_of(fitted))
    row = inputs[2]  # size missing, red, True
    standard = (size["median"] - size["mean"]) / size["std"]
    np.testing.assert_allclose(row, [standard, 1, 0, 1, 0, 0, 1], rtol=1e-6)
    assert unknown == {"size": 6, "colour": 6}
    new = pd.DataFrame({"size": ["5", "x"], "colour": ["violet", "red"], "flag": [True, True]})
    inputs, unknown = columns.encode(new, fitted)
    assert unknown == {"size": 1, "colour": 1}
    assert inputs[0, 2:5].tolist() == [0, 0, 1]  # other
    with pytest.raises(ValueError, match="'colour'"):
        columns.encode(new.drop(columns="colour"), fitted, "new.csv")


def test_whole_numbers_stay_categories_when_cells_are_missing():
    text = pd.Series(["a1", "7", "7", "b"] * 5)
    fitted = columns.fit_categories(text)
    hot, strange = columns.encode_categories(pd.Series([7, np.nan]), fitted)
    assert hot[0].tolist() == [1.0 if value == "7" else 0.0 for value in fitted["values"]]
    assert strange == 1


# ---- metrics -------------------------------------------------------------------------------


def plain_relevance(y, points):
    """Cubic between the control points with slope 0, as a loop."""
    if y <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y <= x1:
            u = (y - x0) / (x1 - x0)
            return y0 + (y1 - y0) * (3 * u**2 - 2 * u**3)
    return points[-1][1]


def test_sera_is_the_area_of_its_definition():
    rng = np.random.default_rng(1)
    labels, test = rng.lognormal(2, 0.6, 500), rng.lognormal(2, 0.8, 90)
    preds = test + rng.normal(0, 2, 90)
    points = metrics.relevance_points(labels)
    assert [height for _, height in points] == [0, 0, 1]  # the upper tail alone is extreme
    phi = np.array([plain_relevance(y, points) for y in test])
    np.testing.assert_allclose(metrics.relevance(test, points), phi, atol=1e-12)
    # The published definition: for t from 0 to 1 the squared error of labels at least t relevant.
    grid = np.linspace(0, 1, 20001)
    curve = [np.sum((preds - test)[phi >= t] ** 2) for t in grid]
    area = np.sum((np.array(curve[1:]) + curve[:-1]) / 2) * (grid[1] - grid[0])
    assert metrics.sera(preds, test, points) == pytest.approx(area, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("abalone", "Rings", [(4, 1), (9, 0), (15, 1)]),
        ("concrete", None, [(2.33, 0), (34.445, 0), (79.4, 1)]),
    ],
)
def test_control_points_of_published_tables(shared_data, name, column, expected):
    """The points that the R package UBL and Python's smogn give."""
    table = pd.read_csv(shared_data / "uci" / f"{name}.csv")
    labels = table[column or table.columns[-1]]
    np.testing.assert_allclose(metrics.relevance_points(labels), expected)


def test_sera_without_extremes_is_nan():
    labels = np.arange(30.0)
    found = metrics.shot_metrics(labels, labels, labels, metrics.ShotRule(BINS, 5, 1))
    assert np.isnan(found["overall"]["sera"])


def test_every_metric_by_plain_loops():
    rng = np.random.default_rng(2)
    train = rng.choice(20, 300, p=np.r_[np.full(10, 0.095), np.full(10, 0.005)]) + 1.0
    labels = np.repeat(np.arange(1.0, 21), 3)
    preds = labels + rng.normal(0, 3, 60)
    preds[0] = labels[0]
    rule = metrics.ShotRule(BINS, 20, 4)
    found = metrics.shot_metrics(preds, labels, train, rule)
    points = metrics.relevance_points(train)
    for shot in metrics.SHOTS:
        chosen = []
        for p, y in zip(preds, labels):
            count = sum(t == y for t in train)
            own = "many" if count > 20 else "few" if count < 4 else "medium"
            if shot in ("overall", own):
                chosen.append((p, y))
        errors = [abs(p - y) for p, y in chosen]
        p, y = np.array(chosen).T
        by_label = [np.mean([e for e, v in zip(errors, y) if v == label]) for label in set(y)]
        expected = {
            "mae": np.mean(errors),
            "mse": np.mean(np.square(errors)),
            "gm": np.exp(np.mean([np.log(max(e, 1e-10)) for e in errors])),
            "r2": 1 - np.sum((p - y) ** 2) / np.sum((y - y.mean()) ** 2),
            "pearson": np.corrcoef(p, y)[0, 1],
            "bmae": np.mean(by_label),
            "sera": sum(plain_relevance(b, points) * (a - b) ** 2 for a, b in chosen),
            "num_samples": len(chosen),
        }
        assert len(chosen) > 3
        assert found[shot] == pytest.approx(expected, rel=1e-9), shot
    empty = metrics.shot_metrics(preds[:0], labels[:0], train, rule)["few"]
    assert empty["num_samples"] == 0
    assert np.isnan(empty["mae"])
    with pytest.raises(ValueError, match="59 predictions"):
        metrics.shot_metrics(preds[1:], labels)


# ---- models --------------------------------------------------------------------------------


def test_network_and_its_calibration():
    torch.manual_seed(0)
    bucket = partial(bins.label_to_bucket, bins=BINS)
    module = fds.FDS(10, 20, ks=3, sigma=1, label_to_bucket=bucket)
    model = mlp.MLP(4, [20, 30, 10], module)
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    assert [s for n, s in shapes.items() if n.endswith("weight")] == [
        [20, 4],
        [30, 20],
        [10, 30],
        [1, 10],
    ]
    inputs, labels = torch.randn(50, 4), torch.randint(1, 21, (50, 1)).float()
    x = inputs
    for layer in (0, 2, 4):
        x = torch.relu(x @ model.hidden[layer].weight.T + model.hidden[layer].bias)
    preds, features = model(inputs, labels, 0)
    torch.testing.assert_close(features, x)
    torch.testing.assert_close(preds, x @ model.linear.weight.T + model.linear.bias)
    module.accumulate(features, labels, 0)
    module.update_last_epoch_stats(0)
    module.update_running_stats(epoch=0)
    module.update_last_epoch_stats(1)
    calibrated, raw = model(inputs, labels, 2)
    torch.testing.assert_close(raw, features)  # FDS is given raw ones
    torch.testing.assert_close(calibrated, model.linear(module.smooth(features, labels, 2)))
    assert not torch.allclose(calibrated, preds)
    torch.testing.assert_close(model.eval()(inputs)[0], preds)
    with pytest.raises(ValueError, match="10 features"):
        mlp.MLP(4, [10], fds.FDS(9))


def test_trees_as_tensors_predict_what_scikit_learn_does():
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 5)).astype(np.float32)
    inputs[:, 4] = inputs[:, 4] > 0
    targets = inputs[:, 0] ** 2 + inputs[:, 1] * inputs[:, 4] + rng.normal(0, 0.1, 400)
    fitted = ensemble.HistGradientBoostingRegressor(max_iter=30, early_stopping=False)
    fitted.fit(inputs, targets, sample_weight=rng.uniform(0.5, 2, 400))
    model = trees.Trees(30)
    for rounds, expected in enumerate(fitted.staged_predict(inputs), start=1):
        model.take(fitted, rounds)
        found = model(torch.from_numpy(inputs))[0].numpy().ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


# ---- comparison ----------------------------------------------------------------------------


def test_a_method_is_taken_only_beyond_chance():
    rng = np.random.default_rng(0)
    plain = rng.gamma(2, 1, (5, 200))
    errors = {"VANILLA": plain, "A": plain + rng.normal(0, 0.3, plain.shape), "B": plain - 0.2}
    best, lines = compare.decide(errors)
    assert best == "B"
    assert ["no clear difference" in line for line in lines] == [True, False]
    best, _ = compare.decide({"VANILLA": plain, "A": errors["A"], "C": plain + 0.2})
    assert best is None


def test_interval_covers_the_mean():
    """Of intervals of 80 %, about 80 % hold the true mean of rows."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        rows = rng.exponential(1, (1, 100))
        low, high = compare.interval(np.repeat(rows, 3, axis=0), 0.8)
        hits += low < 1 < high
    assert 38 <= hits <= 57


def test_interval_covers_the_mean_of_few_seeds(monkeypatch):
    """Where seeds alone differ, 95 % of intervals of five hold the truth; without widening 90 %."""
    monkeypatch.setattr(compare, "RESAMPLES", 300)
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(60):
        low, high = compare.interval(np.repeat(rng.normal(1, 1, (5, 1)), 20, axis=1))
        hits += low < 1 < high
    assert hits >= 55
