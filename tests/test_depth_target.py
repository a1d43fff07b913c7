"""nyud2-dir on maps of your own: shots, files of any kind, targets of any range."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tiny_depth_net
from conftest import load

CALM = "--device cpu --workers 1 --track none --cache none --batch_size 4 --epochs 2 --lr 1e-2"


def train_tiny(folder, *more):
    """Train or evaluate in this process with a network of three layers."""
    train = load("nyud2-dir", "train")
    net = lambda name, module, fresh: tiny_depth_net.TinyNet(module)  # noqa: E731
    words = [*CALM.split(), "--data_dir", folder, "--store_root", folder / "runs", *more]
    with mock.patch.multiple(train, DepthNet=net, feature_dim_of=lambda name: 8):
        metrics = train.main(list(map(str, words)))
        runs = list((folder / "runs").glob("*"))
    return metrics, runs[0] if runs else None


def write_lists(folder, suffix):
    """Write the lists of 12 training pairs of six scenes and of 4 test pairs."""
    pairs = [
        f"data/s_{i // 2:04d}_out/{i}.png,data/s_{i // 2:04d}_out/{i}{suffix}" for i in range(16)
    ]
    (folder / "nyu2_train.csv").write_text("\n".join(pairs[:12]) + "\n")
    (folder / "nyu2_test.csv").write_text("\n".join(pairs[12:]) + "\n")
    for line in pairs:
        (folder / line.split(",")[0][5:]).parent.mkdir(exist_ok=True)
    return [[folder / name[5:] for name in line.split(",")] for line in pairs]


# ---- shots ---------------------------------------------------------------------------------


def test_the_rule_of_shares_gives_the_released_lists_of_the_official_pixels():
    metrics, datasets = load("nyud2-dir", "metrics"), load("nyud2-dir", "datasets")
    fixed = metrics.shots_of_buckets()
    assert metrics.shots_of_buckets(datasets.TRAIN_COUNTS).tolist() == fixed.tolist()
    shots = metrics.shots_of_buckets([0, 71, 69, 30, 230, 29, 171])  # an even share is 100
    assert shots.tolist() == ["few", "many", "medium", "medium", "many", "few", "many"]


def test_shots_of_own_pairs_follow_their_training_pixels(tmp_path):
    """Most pixels lie beyond 8 m, where the fixed lists say few-shot."""
    rng = np.random.default_rng(0)
    for i, (image, depth) in enumerate(write_lists(tmp_path, "_d.png")):
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(image)
        metres = np.where(np.arange(320) < 32, 2.05, 8.0 + 0.1 * rng.integers(0, 10, (240, 320)))
        values = metres * 25.5 if i < 12 else metres * 1000
        Image.fromarray(np.rint(values).astype(np.uint8 if i < 12 else np.uint16)).save(depth)
    load("nyud2-dir", "prepare").main(["--data_dir", str(tmp_path)])
    found, folder = train_tiny(tmp_path, "--model", "mini", "--downscale", 4)
    density = pd.read_csv(folder / "label_density.csv")
    even = density["count"].sum() / (density["count"] > 0).sum()
    shots = np.select([density["count"] > 0.7 * even, density["count"] < 0.3 * even],
                      ["many", "few"], "medium")  # fmt: skip
    assert density["shot"].tolist() == shots.tolist()
    assert shots[85] == "many"
    table = pd.read_csv(folder / "error_by_depth.csv")
    assert table["shot"].tolist() == [shots[round(10 * label)] for label in table["label"]]
    test = table[table["split"] == "test"]
    assert found["many"]["num_samples"] == test["pixels"][test["shot"] == "many"].sum() > 0
    # An evaluation has them from the checkpoint, without a training pair.
    (tmp_path / "nyu2_train.csv").unlink()
    again, _ = train_tiny(tmp_path, "--model", "mini", "--downscale", 4, "--evaluate",
                          "--eval_model", folder)  # fmt: skip
    assert again == found
    with pytest.raises(ValueError, match="no 100 counts"):
        load("nyud2-dir", "checkpoints").pixels_of({"pixels": [1, -2]}, "x", 100)
