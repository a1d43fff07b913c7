"""An extract of the official release's depth figures, for where the whole of them is absent.

`test_nyud2_golden.py` compares with all of them. The extract holds every set of pixel weights, the
medium- and few-shot pixels of the metrics, each sixth row and column of the network's output, and
three of twelve channels over three epochs of FDS's trajectory.
"""

import zlib

import numpy as np
import pytest
import torch

from conftest import ROOT, load

datasets = load("nyud2-dir", "datasets")
depth_net = load("nyud2-dir", "depth_net")
fds = load("nyud2-dir", "fds")
metrics = load("nyud2-dir", "metrics")

SEED = 20210718  # of the weights and the input that the output belongs to


@pytest.fixture(scope="module")
def extract():
    with np.load(ROOT / "tests/data/golden_small_nyud2.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def group(name):
        return {k.split("__")[1]: v for k, v in arrays.items() if k.startswith(f"{name}__")}

    return group


def test_weights(extract):
    data = extract("weights")
    assert len(data) == 8
    for name, expected in data.items():
        reweight = "inverse" if name.startswith("inverse") else "sqrt_inv"
        lds = name.rpartition("_lds_")[2] if "_lds_" in name else ""
        kernel, ks, sigma = lds.split("_") if lds else ("gaussian", 5, 2)
        weights = datasets.bucket_weights(
            datasets.TRAIN_COUNTS, reweight, bool(lds), kernel, int(ks), float(sigma)
        )
        np.testing.assert_allclose(weights, expected, rtol=1e-5, err_msg=name)


def test_metrics(extract):
    data = extract("metrics")
    result = metrics.shot_metrics(data["output"], data["depth"])
    names = {name: name.lower() for name in ("MSE", "RMSE", "ABS_REL", "MAE")}
    names |= {f"DELTA{k}": f"delta{k}" for k in (1, 2, 3)} | {"LG10": "log10", "NUM": "num_samples"}
    for shot in ("medium", "few"):
        for theirs, ours in names.items():
            assert result[shot][ours] == pytest.approx(float(data[f"{shot}_{theirs}"]), rel=1e-5)


def fill(name, shape):
    """The weights under which the output was computed: each follows from its name and shape."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    noise = rng.standard_normal(shape)
    if name.endswith("running_var"):
        value = 1.0 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        value = noise * np.sqrt(1.0 / int(np.prod(shape[1:])))
    else:
        value = 1.0 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return torch.from_numpy(value.astype(np.float32))


def test_network(extract):
    model = depth_net.DepthNet("resnet50").eval()
    state = {name: fill(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
             if tensor.ndim}  # fmt: skip
    model.load_state_dict(state, strict=False)
    images = np.random.default_rng(SEED).standard_normal((1, 3, 228, 304)).astype(np.float32)
    with torch.no_grad():
        preds, _ = model(torch.from_numpy(images))
    expected = extract("model")["outputs"]
    np.testing.assert_allclose(preds[..., ::6, ::6].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_fds_trajectory(extract):
    data = {name: torch.from_numpy(value) for name, value in extract("fds").items()}
    module = fds.FDS(3, bucket_num=100, bucket_start=7, clip=(0.2, 5), variant="paper",
                     label_to_bucket=datasets.label_to_bucket)  # fmt: skip
    for e in range(3):
        key = f"epoch{e}_batch0"
        smoothed = module.smooth(data[f"{key}_features"], data[f"{key}_labels"], e)
        torch.testing.assert_close(smoothed, data[f"paper_{key}_smoothed"], rtol=1e-5, atol=2e-6)
        module.update_last_epoch_stats(e)
        module.update_running_stats(data[f"epoch{e}_features"], data[f"epoch{e}_labels"], e)
        for buffer, value in module.state_dict().items():
            expected = data[f"paper_epoch{e}_{buffer}"].to(value.dtype)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=2e-6)
