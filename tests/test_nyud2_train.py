"""nyud2-dir's train.py run as people run it: resuming, processes, two stages, what it leaves."""

import json
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tiny_depth_net
from conftest import ROOT, load

FOLDER = ROOT / "nyud2-dir"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LDS_FDS = "--reweight inverse --lds --fds".split()

pytestmark = pytest.mark.slow


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*args, launcher=(sys.executable,), script="train.py", check=True):
    """Run a script from within the folder and return the finished process."""
    done = subprocess.run(
        [*launcher, script, *map(str, args)], cwd=FOLDER, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_tiny(*args):
    """Train in this process with a network of three layers."""
    train, module = load("nyud2-dir", "train"), load("nyud2-dir", "fds").FDS
    to_bucket = load("nyud2-dir", "datasets").label_to_bucket
    builder = tiny_depth_net.make_builder(module, to_bucket)
    with mock.patch.object(train, "build_model", builder):
        return train.main(list(map(str, args)))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """21 training pairs of seven scenes and five test pairs."""
    folder = tmp_path_factory.mktemp("rooms") / "data"
    run("--out", folder, "--scenes", 7, "--frames", 3, "--test", 5, "--workers", 1,
        script="demo_data.py")  # fmt: skip
    return folder


def flags(rooms, store, *more):
    """Flags of a run of seconds; 18 of the 21 pairs train, so the last batch has one."""
    fixed = "--model mini --downscale 4 --batch_size 17 --lr 1e-3 --device cpu --track none".split()
    return [*fixed, "--data_dir", str(rooms), "--store_root", str(store), *map(str, more)]


def only_run(store):
    (folder,) = store.iterdir()
    return folder


def load_state(path):
    return load("nyud2-dir", "utils").load_checkpoint(path)


def assert_same_state(a, b):
    """Bit for bit the same weights and buffers."""
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def finished(rooms, tmp_path_factory):
    """An unbroken run of three epochs with LDS and FDS."""
    store = tmp_path_factory.mktemp("finished")
    run(*flags(rooms, store, "--epochs", 3, *LDS_FDS))
    return only_run(store)


def test_run_leaves_all_its_files(finished, rooms):
    assert finished.name.startswith("nyud2_lds_gau_5_2_fds_gau_5_2_0_1_0.9_lr_0.001_bs_17")
    held = {path.name for path in finished.iterdir()}
    assert held >= {
        "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "training_log.log",
        "fds_statistics.npz", "error_by_depth.csv", "checkpoint.pth.tar", "figures",
        "checkpoint_best.pth.tar", "checkpoint_final.pth.tar",
    }  # fmt: skip
    figures = {path.stem for path in (finished / "figures").iterdir()}
    assert figures == {
        "error_by_label", "predictions", "learning_curves", "label_density", "fds_statistics",
        "fds_similarity", "examples", "error_by_depth",
    }  # fmt: skip
    results = json.loads((finished / "results.json").read_text())
    assert results["method"] == "INV+LDS+FDS"
    assert set(results["metrics"]) == {"val", "test"}
    mask = np.load(rooms / "test_balanced_mask.npy")[:, ::4, 2::4]
    overall = results["metrics"]["test"]["overall"]
    assert overall["num_samples"] == mask.sum()
    table = pd.read_csv(finished / "error_by_depth.csv")
    part = table[table["split"] == "test"]
    assert part["pixels"].sum() == mask.sum()
    assert np.average(part["mse"], weights=part["pixels"]) == pytest.approx(overall["mse"])
    pixels = pd.read_csv(finished / "predictions.csv")
    assert set(pixels["split"]) == {"val", "test"}
    assert (pixels["label"] > 0).all()
    epochs = [json.loads(line) for line in (finished / "epochs.jsonl").open()]
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    best = min(epochs, key=lambda row: row["val"]["overall"]["rmse"])
    assert results["best_epoch"] == best["epoch"]
    assert results["metrics"]["val"]["overall"] == best["val"]["overall"]


def test_checkpoint_format(finished):
    for name, epoch in (("checkpoint", 2), ("checkpoint_final", 2)):
        checkpoint = load_state(finished / f"{name}.pth.tar")
        assert {"state_dict", "epoch", "error", "metric", "optimizer"} <= set(checkpoint)
        assert checkpoint["epoch"] == epoch  # the last finished one
        assert checkpoint["metric"]["rmse"] > 0
    # Six of the 21 pairs are FDS's subset; those of the held-out scene are left out of it.
    tracked = checkpoint["state_dict"]["R.FDS.num_samples_tracked"].sum().item()
    images = tracked / 3 / (29 * 38)
    assert images == int(images)
    assert 2 <= images <= 5


def official_file(finished, path, prefix="module."):
    """Write a checkpoint as the official release does: four keys, numpy scalars, no optimizer."""
    state = load_state(finished / "checkpoint_best.pth.tar")["state_dict"]
    torch.save(
        {
            "state_dict": {prefix + name: value for name, value in state.items()},
            "epoch": 2,
            "error": np.float64(1.25),
            "metric": {"RMSE": np.float64(1.25), "DELTA1": np.float32(0.5)},
        },
        path,
    )


def test_going_on_from_an_official_checkpoint(finished, rooms, tmp_path):
    official_file(finished, tmp_path / "official.pth.tar", prefix="")
    done = run(*flags(rooms, tmp_path / "runs", "--epochs", 4, *LDS_FDS, "--resume",
                      tmp_path / "official.pth.tar"))  # fmt: skip
    assert "no optimizer: a fresh one" in done.stdout
    assert "at epoch 3" in done.stdout
    folder = only_run(tmp_path / "runs")
    epochs = [json.loads(line)["epoch"] for line in (folder / "epochs.jsonl").open()]
    assert epochs == [3]
    # Its error is of another set, so the first epoch of ours is the best so far.
    assert json.loads((folder / "results.json").read_text())["best_epoch"] == 3


def test_an_error_of_other_pictures_chooses_no_epoch(finished, rooms, tmp_path):
    """What the held-out scenes gave is no measure for the test set, or for other scenes."""
    checkpoint = load_state(finished / "checkpoint.pth.tar")
    checkpoint["error"], checkpoint["best_epoch"] = 1e-3, 0
    checkpoint.pop("digest")
    torch.save(checkpoint, tmp_path / "checkpoint.pth.tar")
    for name, more in (("test", ["--select", "test"]), ("seed", ["--seed", 3])):
        run(*flags(rooms, tmp_path / name, "--epochs", 4, *LDS_FDS, *more, "--resume",
                   tmp_path / "checkpoint.pth.tar"))  # fmt: skip
        results = json.loads((only_run(tmp_path / name) / "results.json").read_text())
        assert results["best_epoch"] == 3


def test_fds_starts_where_a_run_without_it_is_gone_on_from(rooms, tmp_path):
    run(*flags(rooms, tmp_path / "without", "--epochs", 1))
    checkpoint = only_run(tmp_path / "without") / "checkpoint.pth.tar"
    done = run(*flags(rooms, tmp_path / "with", "--epochs", 4, "--fds", "--resume", checkpoint))
    assert "no statistics of FDS: they start" in done.stdout
    state = load_state(only_run(tmp_path / "with") / "checkpoint.pth.tar")["state_dict"]
    assert state["R.FDS.num_samples_tracked"].sum() > 0
    assert state["R.FDS.running_mean_last_epoch"].any()  # so they calibrate the next epoch


def test_choosing_by_the_test_set_as_the_released_code(rooms, tmp_path):
    run_tiny(*flags(rooms, tmp_path, "--epochs", 2, "--select", "test"))
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert set(results["metrics"]) == {"test"}
    epochs = [json.loads(line) for line in (only_run(tmp_path) / "epochs.jsonl").open()]
    best = min(epochs, key=lambda row: row["val"]["overall"]["rmse"])
    assert best["val"]["overall"] == results["metrics"]["test"]["overall"]


def write_slopes(folder):
    """Write 30 sloping planes whose colour goes from blue to red with the depth."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320] / 240
    lists = {"nyu2_train": [], "nyu2_test": []}
    for i in range(30):
        slope, split = rng.uniform(-3, 3, 2), "nyu2_train" if i < 24 else "nyu2_test"
        depth = np.clip(rng.uniform(2, 7) + slope[0] * (x - 0.5) + slope[1] * (y - 0.5), 0.8, 9.9)
        colours = np.stack([depth, np.full_like(depth, 3), 10 - depth], axis=2) * 25
        values = np.uint8(depth * 25.5) if split == "nyu2_train" else np.uint16(depth * 1000)
        stem = f"{split}/slope_{i:04d}_out/1"
        (folder / stem).parent.mkdir(parents=True)
        Image.fromarray(np.uint8(colours)).save(folder / f"{stem}.jpg")
        Image.fromarray(values).save(folder / f"{stem}.png")
        lists[split].append(f"data/{stem}.jpg,data/{stem}.png\n")
    for split, rows in lists.items():
        (folder / f"{split}.csv").write_text("".join(rows))
    np.save(folder / "test_balanced_mask.npy", np.ones((6, 228, 304), np.uint8))


def test_training_beats_the_mean_depth(tmp_path):
    write_slopes(tmp_path / "data")
    more = ("--epochs", 40, "--lr_step", 30, "--batch_size", 6, "--lr", 0.03)
    run_tiny(*flags(tmp_path / "data", tmp_path / "runs", *more))
    pixels = pd.read_csv(only_run(tmp_path / "runs") / "predictions.csv")
    pixels = pixels[pixels["split"] == "test"]
    density = pd.read_csv(only_run(tmp_path / "runs") / "label_density.csv")
    mean = np.average(density["label"] + 0.05, weights=density["count"])
    rmse = ((pixels["prediction"] - pixels["label"]) ** 2).mean() ** 0.5
    assert rmse < 0.7 * ((mean - pixels["label"]) ** 2).mean() ** 0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_run(rooms, tmp_path, precision):
    arguments = [a for a in flags(rooms, tmp_path, "--epochs", 2, *LDS_FDS) if a != "cpu"]
    arguments.insert(arguments.index("--device") + 1, "cuda")
    subprocess.run(
        [sys.executable, "train.py", *arguments, "--precision", precision], cwd=FOLDER, check=True,
        timeout=300,
    )  # fmt: skip
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert results["device"].startswith("cuda")
    assert np.isfinite(results["metrics"]["test"]["overall"]["rmse"])
