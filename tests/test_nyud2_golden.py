"""nyud2-dir against the numbers that the official release of 2021 computes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load

datasets = load("nyud2-dir", "datasets")
depth_net = load("nyud2-dir", "depth_net")
fds = load("nyud2-dir", "fds")
metrics = load("nyud2-dir", "metrics")
pair_lists = load("nyud2-dir", "pair_lists")
transforms = load("nyud2-dir", "transforms")

RTOL = 1e-5


def test_bucket_weights(golden):
    with np.load(golden / "weights_nyud2.npz") as file:
        counts = file["train_bucket_counts"]
        assert np.array_equal(datasets.TRAIN_COUNTS, counts)
        names = [name for name in file.files if name != "train_bucket_counts"]
        assert len(names) == 8
        for name in names:
            reweight = "inverse" if name.startswith("inverse") else "sqrt_inv"
            options = {}
            if "_lds_" in name:
                kernel, ks, sigma = name.rpartition("_lds_")[2].split("_")
                options = dict(lds=True, lds_kernel=kernel, lds_ks=int(ks), lds_sigma=float(sigma))
            weights = datasets.bucket_weights(counts, reweight, **options)
            assert weights.dtype == np.float32
            np.testing.assert_allclose(weights, file[name], rtol=RTOL, err_msg=name)
            # The mean over the training pixels is 1.
            assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-5)


def test_metrics_by_shot(golden):
    names = {
        "MSE": "mse", "RMSE": "rmse", "ABS_REL": "abs_rel", "LG10": "log10", "MAE": "mae",
        "DELTA1": "delta1", "DELTA2": "delta2", "DELTA3": "delta3", "NUM": "num_samples",
    }  # fmt: skip
    with np.load(golden / "metrics_nyud2.npz") as file:
        result = metrics.shot_metrics(file["output"], file["depth"])
        for shot in metrics.SHOTS:
            for theirs, ours in names.items():
                expected = float(file[f"{shot}_{theirs}"])
                assert result[shot][ours] == pytest.approx(expected, rel=RTOL), (shot, ours)


def test_shot_lists(golden):
    bins = json.loads((golden / "shot_bins.json").read_text())["nyud2_shot_bins"]
    shots = metrics.shots_of_buckets()
    for shot, buckets in bins.items():
        assert np.flatnonzero(shots == shot).tolist() == buckets


def scaled(array, resample, size=(320, 240)):
    """A picture at 240 pixels of height, as a batch of one."""
    picture = np.asarray(Image.fromarray(array).resize(size, resample))
    return torch.from_numpy(picture.astype(np.int32 if picture.dtype == np.uint16 else np.uint8))[
        None
    ]


def test_transforms(golden):
    with np.load(golden / "transforms_nyud2.npz") as file:
        data = dict(file)
    images = scaled(data["image"], Image.Resampling.BILINEAR)
    depth8 = scaled(data["depth8"], Image.Resampling.NEAREST)
    depth16 = scaled(data["depth16"], Image.Resampling.NEAREST)
    both = torch.cat([images, depth8[..., None]], dim=3)
    for name, (image, depth) in {
        "train": transforms.transform_train(both),
        "test": transforms.transform_test(images, depth16),
    }.items():
        np.testing.assert_allclose(image[0].numpy(), data[f"{name}_image"], atol=1e-5)
        np.testing.assert_allclose(depth[0].numpy(), data[f"{name}_depth"], atol=1e-5)
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    draws = transforms.Draws(
        torch.tensor([False]), torch.tensor([3.7], dtype=torch.float64), nothing,
        torch.arange(3)[None], nothing,
    )  # fmt: skip
    image, depth = transforms.transform_train(both, draws)
    # The official code interpolates by splines of order 2, ours bilinearly.
    assert np.abs(image[0].numpy() - data["rotated_3p7deg_image"]).mean() <= 0.03
    assert np.abs(depth[0].numpy() - data["rotated_3p7deg_depth"]).mean() <= 0.03


def test_resnet50_state_and_output(golden):
    filler = {}
    exec((golden / "fill_weights.py").read_text(), filler)
    statistics = fds.FDS(128, bucket_num=100, bucket_start=7)
    model = depth_net.DepthNet("resnet50", statistics)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = json.loads((golden / "state_dict_nyud2_fds.json").read_text())
    assert list(shapes.items()) == list(expected.items())
    state = filler["fill"](model.state_dict(), 20210718)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    images = np.random.default_rng(20210718).standard_normal((1, 3, 228, 304)).astype(np.float32)
    with torch.no_grad():
        preds, features = model.eval()(torch.from_numpy(images))
    with np.load(golden / "model_nyud2.npz") as file:
        np.testing.assert_allclose(preds.numpy(), file["outputs"], rtol=1e-4, atol=1e-5)
    assert features.shape == (1, 128, 114, 152)


def test_official_lists(shared_data):
    """The split of the labelled file, and the scenes of the official file names."""
    folder = shared_data / "nyud2"
    names = pd.read_csv(folder / "official_nyu2_test.csv", header=None)[0]
    numbers = names.str.extract(r"(\d+)_colors")[0].astype(int)
    assert np.flatnonzero(pair_lists.official_split()).tolist() == numbers.tolist()
    subset = pair_lists.read_pairs(folder, "official_nyu2_train_FDS_subset.csv")["image"].to_numpy()
    assert len(subset) == 600
    held_out = pair_lists.hold_out(subset, seed=0)
    scenes = [path.split("/")[1].removesuffix("_out").rstrip("abcdefghi") for path in subset]
    assert not {s for s, h in zip(scenes, held_out) if h} & {
        s for s, h in zip(scenes, held_out) if not h
    }
    assert round(0.1 * len(set(scenes))) == len({s for s, h in zip(scenes, held_out) if h})
