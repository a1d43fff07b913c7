"""An extract of the official release's numbers, kept here for where the whole of them is absent.

`test_golden.py` compares with all of them. The extract holds every kernel window, loss and age
metric, one weight per age, and four of twelve features over three epochs of FDS's trajectory.
"""

import numpy as np
import pytest
import torch

from conftest import ROOT, load

fds = load("agedb-dir", "fds")
loss = load("agedb-dir", "loss")
utils = load("agedb-dir", "utils")
metrics = load("agedb-dir", "metrics")
datasets = load("agedb-dir", "datasets")


@pytest.fixture(scope="module")
def extract():
    with np.load(ROOT / "tests/data/golden_small.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def group(name):
        return {k.split("__")[1]: v for k, v in arrays.items() if k.startswith(f"{name}__")}

    return group


def test_windows(extract):
    windows = extract("window")
    assert len(windows) == 30
    for name, expected in windows.items():
        method, kernel, ks, sigma = name.split("_")
        window = utils.get_lds_kernel_window(kernel, int(ks), float(sigma))
        window = window / window.sum() if method == "fds" else window
        np.testing.assert_allclose(window, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["mse", "l1", "focal_mse", "focal_l1", "huber"])
def test_losses(extract, name):
    data = extract("losses")
    for benchmark, options in (
        ("age", {"focal_mse": {"beta": 0.2}, "focal_l1": {"beta": 0.2}, "huber": {"beta": 1.0}}),
        ("sts", {"focal_mse": {"beta": 20}, "focal_l1": {"beta": 20}, "huber": {"beta": 0.3}}),
    ):
        preds = torch.from_numpy(data[f"{benchmark}_preds"])
        targets = torch.from_numpy(data[f"{benchmark}_targets"])
        function = getattr(loss, f"weighted_{name}_loss")
        for suffix, weights in (("", None), ("_weighted", data["weights"])):
            got = function(preds, targets, weights, **options.get(name, {})).item()
            assert got == pytest.approx(data[f"{benchmark}_{name}{suffix}"], rel=1e-5)


def test_weights(extract):
    data = extract("weights")
    labels, first = data.pop("labels"), data.pop("first")
    assert len(data) == 10
    for name, expected in data.items():
        reweight = "inverse" if "inverse" in name else "sqrt_inv"
        _, _, lds = name.partition("_lds_")
        kernel, ks, sigma = lds.split("_") if lds else ("gaussian", 5, 2)
        weights = datasets.sample_weights(
            labels, reweight, bool(lds), kernel, int(ks), float(sigma)
        )
        np.testing.assert_allclose(weights[first], expected, rtol=1e-5, err_msg=name)


def test_metrics(extract):
    data = extract("metrics")
    result = metrics.shot_metrics(data["preds"], data["labels"], data["train_labels"])
    names = {"overall": "overall", "many": "many", "median": "medium", "low": "few"}
    for theirs, ours in names.items():
        for their_metric, metric in (("mse", "mse"), ("l1", "mae"), ("gmean", "gm")):
            expected = float(data[f"{theirs}_{their_metric}"])
            assert result[ours][metric] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_fds_trajectory(extract, variant):
    data = {name: torch.from_numpy(value) for name, value in extract("fds").items()}
    module = fds.FDS(
        4, bucket_num=100, bucket_start=3, variant=variant, calibrated_statistics=False
    )
    for e in range(3):
        key = f"epoch{e}_batch0"
        smoothed = module.smooth(data[f"{key}_features"], data[f"{key}_labels"], e)
        expected = data[f"{variant}_{key}_smoothed"]
        torch.testing.assert_close(smoothed, expected, rtol=1e-5, atol=2e-6)
        module.update_last_epoch_stats(e)
        module.update_running_stats(data[f"epoch{e}_features"], data[f"epoch{e}_labels"], e)
        for buffer, value in module.state_dict().items():
            expected = data[f"{variant}_epoch{e}_{buffer}"].to(value.dtype)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=2e-6)
