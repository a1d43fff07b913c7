"""Losses and metrics against closed forms."""

import numpy as np
import pytest
import torch

from conftest import load

loss = load("agedb-dir", "loss")
metrics = load("agedb-dir", "metrics")

E = np.array([0.0, 0.5, -2.0, 4.0])  # errors
TARGETS = np.array([10.0, 20.0, 30.0, 40.0])
W = np.array([1.0, 2.0, 0.5, 4.0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


CLOSED_FORMS = {
    "mse": (E**2, {}),
    "l1": (np.abs(E), {}),
    "focal_mse": (E**2 * (2 * sigmoid(0.2 * np.abs(E)) - 1), {}),
    "focal_l1": (np.abs(E) * np.tanh(0.5 * np.abs(E)) ** 2,
                 {"activate": "tanh", "beta": 0.5, "gamma": 2}),
    "huber": (np.where(np.abs(E) < 1.5, 0.5 * E**2 / 1.5, np.abs(E) - 0.75), {"beta": 1.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("kind", ["none", "list", "array", "column", "tensor"])
def test_losses(name, kind):
    expected, options = CLOSED_FORMS[name]
    weights = {
        "none": None, "list": W.tolist(), "array": W, "column": torch.tensor(W).unsqueeze(1),
        "tensor": torch.tensor(W),
    }[kind]  # fmt: skip
    expected = (expected * (1 if kind == "none" else W)).mean()
    for shape in ((4,), (4, 1)):
        inputs = torch.tensor(TARGETS + E).reshape(shape)
        for targets_shape in ((4,), (4, 1)):
            targets = torch.tensor(TARGETS).reshape(targets_shape)
            got = getattr(loss, f"weighted_{name}_loss")(inputs, targets, weights, **options)
            assert got.item() == pytest.approx(expected, rel=1e-6)


def test_a_weight_per_pixel():
    inputs, targets = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    weights = torch.arange(24.0).reshape(2, 1, 3, 4)
    assert loss.weighted_mse_loss(inputs, targets, weights).item() == pytest.approx(11.5)
    per_sample = loss.weighted_mse_loss(inputs, targets, [1.0, 3.0])
    assert per_sample.item() == pytest.approx(2.0)


def test_huber_is_smooth_where_its_parts_meet():
    error = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss.weighted_huber_loss(error, torch.zeros(1), beta=0.7).backward()
    assert error.grad.item() == pytest.approx(1.0)
    value = loss.weighted_huber_loss(error, torch.zeros(1), beta=0.7).item()
    assert value == pytest.approx(0.5 * 0.7)


def test_losses_refuse_what_does_not_fit():
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="one value per sample"):
        loss.weighted_l1_loss(x, x, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="must match"):
        loss.weighted_l1_loss(x, torch.zeros(3))
    with pytest.raises(ValueError, match="sigmoid"):
        loss.weighted_focal_l1_loss(x, x, activate="relu")
    with pytest.raises(ValueError, match="beta"):
        loss.weighted_huber_loss(x, x, beta=0)


def test_metrics_by_hand():
    labels = [30, 30, 31, 50]
    result = metrics.shot_metrics([31, 28, 31, 58], labels)["overall"]
    assert result["mse"] == pytest.approx((1 + 4 + 0 + 64) / 4)
    assert result["mae"] == pytest.approx(11 / 4)
    # bMAE: the mean of (1 + 2) / 2 at age 30, 0 at 31 and 8 at 50.
    assert result["bmae"] == pytest.approx((1.5 + 0 + 8) / 3)
    # The error of zero counts as 1e-10.
    assert result["gm"] == pytest.approx((1 * 2 * 1e-10 * 8) ** 0.25, rel=1e-6)
    assert result["num_samples"] == 4


def test_thresholds_of_the_shots():
    counts = {10: 19, 11: 20, 12: 100, 13: 101, 130: 150}
    train = np.repeat(list(counts), list(counts.values())).astype(float)
    shots = metrics.shot_of(np.array([10, 11, 12, 13, 14, 130, 199, 12.9]), train)
    assert shots.tolist() == "few medium medium many few many few medium".split()


def test_a_shot_without_samples_is_nan():
    result = metrics.shot_metrics([1.0], [2.0], train_labels=[2.0])
    assert np.isnan(result["many"]["mae"])
    assert result["many"]["num_samples"] == 0
    assert result["few"]["mae"] == 1.0
    with pytest.raises(ValueError, match="2 predictions"):
        metrics.shot_metrics([1, 2], [1])


def test_losses_refuse_pixels_in_another_layout():
    with pytest.raises(ValueError, match="must match"):
        loss.weighted_mse_loss(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 4, 3))
    with pytest.raises(ValueError, match="must match"):
        loss.weighted_mse_loss(torch.zeros(3, 1), torch.zeros(1, 3))
    assert loss.weighted_mse_loss(torch.zeros(2, 1, 3, 4), torch.ones(2, 3, 4)).item() == 1


def test_metrics_refuse_labels_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        metrics.shot_metrics([1, 2], [1, float("nan")], [1, 2])
