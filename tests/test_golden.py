"""agedb-dir against the numbers that the official release of 2021 computes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import load

fds = load("agedb-dir", "fds")
loss = load("agedb-dir", "loss")
utils = load("agedb-dir", "utils")
metrics = load("agedb-dir", "metrics")
datasets = load("agedb-dir", "datasets")

RTOL = 1e-5


def test_kernel_windows(golden):
    with np.load(golden / "kernel_windows.npz") as windows:
        assert len(windows.files) == 30
        for name in windows.files:
            method, kernel, ks, sigma = name.split("_")
            window = utils.get_lds_kernel_window(kernel, int(ks), float(sigma))
            if method == "fds":
                window = window / window.sum()
            np.testing.assert_allclose(window, windows[name], rtol=RTOL)


@pytest.mark.parametrize("benchmark", ["age", "sts"])
def test_losses(golden, benchmark):
    settings = {"age": {"beta": 0.2, "huber": 1.0}, "sts": {"beta": 20, "huber": 0.3}}[benchmark]
    with np.load(golden / "losses.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    preds, targets = data[f"{benchmark}_preds"], data[f"{benchmark}_targets"]
    checked = 0
    for name, expected in data.items():
        if not name.startswith(benchmark) or name.endswith(("preds", "targets")):
            continue
        kind = name.removeprefix(f"{benchmark}_").removesuffix("_weighted")
        weights = data["weights"] if name.endswith("_weighted") else None
        options = {}
        if kind.endswith("_tanh_b0.5_g2"):
            kind = kind.removesuffix("_tanh_b0.5_g2")
            options = {"activate": "tanh", "beta": 0.5, "gamma": 2}
        elif kind.startswith("focal"):
            options = {"beta": settings["beta"]}
        elif kind == "huber":
            options = {"beta": settings["huber"]}
        got = getattr(loss, f"weighted_{kind}_loss")(preds, targets, weights, **options)
        assert got.item() == pytest.approx(expected.item(), rel=RTOL), name
        checked += 1
    assert checked >= 10


def parse_weights_name(name):
    """`agedb_train_inverse_lds_gaussian_5_2` -> ('agedb_train', arguments of sample_weights)."""
    labels, _, rest = name.partition("_inverse" if "_inverse" in name else "_sqrt_inv")
    arguments = {"reweight": "inverse" if "_inverse" in name else "sqrt_inv"}
    if rest:
        _, _, kernel, ks, sigma = rest.split("_")
        arguments |= dict(lds=True, lds_kernel=kernel, lds_ks=int(ks), lds_sigma=float(sigma))
    return labels, arguments


def test_age_weights(golden, shared_data):
    meta = pd.read_csv(shared_data / "agedb.csv")
    with np.load(golden / "weights_age.npz") as file:
        labels = {
            "syn": file["labels_syn"],
            "agedb_train": meta.loc[meta["split"] == "train", "age"].to_numpy(),
        }
        names = [name for name in file.files if name != "labels_syn"]
        assert len(names) == 20
        for name in names:
            group, arguments = parse_weights_name(name)
            weights = datasets.sample_weights(labels[group], **arguments)
            assert weights.dtype == np.float32
            np.testing.assert_allclose(weights, file[name], rtol=RTOL, err_msg=name)
            assert weights.mean() == pytest.approx(1, rel=1e-4)


TRAJECTORIES = {
    "agedb": dict(bucket_num=100, bucket_start=3),
    "imdb_wiki": dict(
        bucket_num=60, start_update=1, start_smooth=2, kernel="laplace", ks=9, sigma=1, momentum=0.7
    ),
    "no_momentum": dict(bucket_num=60, kernel="triang", ks=7, sigma=1, momentum=None),
    "sts_b": dict(bucket_num=50, clip=(0.5, 2), fill_empty=True),
    "nyud2": dict(bucket_num=100, bucket_start=7, clip=(0.2, 5)),
}


def sts_b_bucket(labels):
    """50 bins on [0, 5] with edges in float32, 5.0 in the last (DESIGN's table of buckets)."""
    edges = torch.linspace(0, 5, 51, dtype=torch.float64).float()
    return torch.bucketize(labels.float(), edges, right=True).sub(1).clamp(0, 49)


def depth_bucket(labels):
    return (labels.float() * 10).long()


# The official NYUD2 code computes the paper's variant: there is one golden file.
CASES = [(name, v) for name in TRAJECTORIES for v in ("official", "paper")]
CASES.remove(("nyud2", "official"))


@pytest.mark.parametrize(("name", "variant"), CASES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_fds_trajectory(golden, name, variant, streamed):
    with np.load(golden / f"fds_{name}.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files}
    to_bucket = {"sts_b": sts_b_bucket, "nyud2": depth_bucket}.get(name)
    module = fds.FDS(
        data["epoch0_features"].shape[1],
        label_to_bucket=to_bucket,
        variant=variant,
        calibrated_statistics=False,  # the files hold the features as they are taken
        **TRAJECTORIES[name],
    )
    compared = 0
    for e in range(5):
        for j in range(9):
            key = f"epoch{e}_batch{j}"
            if f"{key}_features" not in data:
                break
            features = data[f"{key}_features"]
            before = features.clone()
            smoothed = module.smooth(features, data[f"{key}_labels"], e)
            torch.testing.assert_close(
                smoothed, data[f"{variant}_{key}_smoothed"], rtol=RTOL, atol=2e-6
            )
            assert torch.equal(features, before)
            compared += 1
        features, labels = data[f"epoch{e}_features"], data[f"epoch{e}_labels"]
        module.update_last_epoch_stats(e)
        if streamed:
            for part_features, part_labels in zip(features.split(37), labels.split(37)):
                module.accumulate(part_features, part_labels, e)
            module.update_running_stats(epoch=e)
        else:
            module.update_running_stats(features, labels, e)
        for buffer, value in module.state_dict().items():
            expected = data[f"{variant}_epoch{e}_{buffer}"]
            torch.testing.assert_close(
                value, expected.to(value.dtype), rtol=RTOL, atol=2e-6, msg=f"epoch {e} {buffer}"
            )
            assert value.shape == expected.shape
    assert compared >= 5


def test_age_metrics(golden):
    with np.load(golden / "metrics_age.npz") as file:
        result = metrics.shot_metrics(file["preds"], file["labels"], file["train_labels"])
        for theirs, ours in [
            ("overall", "overall"), ("many", "many"), ("median", "medium"), ("low", "few"),
        ]:  # fmt: skip
            for their_metric, metric in [("mse", "mse"), ("l1", "mae"), ("gmean", "gm")]:
                expected = float(file[f"{theirs}_{their_metric}"])
                assert result[ours][metric] == pytest.approx(expected, rel=RTOL)


def filled_resnet50(golden):
    """The official ResNet-50 with the golden weights, and what it is compared with."""
    resnet, filler = load("agedb-dir", "resnet"), {}
    exec((golden / "fill_weights.py").read_text(), filler)
    model = resnet.AgeResNet("resnet50", fds.FDS(2048, bucket_num=100, bucket_start=3))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = json.loads((golden / "state_dict_age_resnet50_fds.json").read_text())
    assert list(shapes.items()) == list(expected.items())
    state = filler["fill"](model.state_dict(), 20210718)
    return model, {name: torch.from_numpy(value) for name, value in state.items()}


def test_resnet50_outputs(golden):
    model, state = filled_resnet50(golden)
    model.load_state_dict(state, strict=False)
    images = np.random.default_rng(20210718).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        preds, features = model.eval()(torch.from_numpy(images))
    with np.load(golden / "model_age_resnet50.npz") as file:
        np.testing.assert_allclose(preds.numpy(), file["outputs"], rtol=1e-4)
    assert features.shape == (2, 2048)
