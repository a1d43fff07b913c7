"""agedb-dir's train.py run as people run it: resuming, processes, two stages, what it leaves."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT

FOLDER = ROOT / "agedb-dir"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
N_TRAIN, N_EVAL = 49, 11  # 49 = 3 · 16 + 1: the last batch has one sample for two processes
LDS_FDS = (
    "--reweight sqrt_inv --lds --lds_ks 5 --lds_sigma 2 --fds --fds_ks 5 --fds_sigma 2"
).split()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Small images whose brightness follows the age, skewed as real ages are."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(7)
    rows = []
    (folder / "AgeDB").mkdir()
    for i in range(N_TRAIN + 2 * N_EVAL):
        age = int(rng.choice([20, 21, 22, 23, 30, 45, 60], p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05]))
        split = "train" if i < N_TRAIN else "val" if i < N_TRAIN + N_EVAL else "test"
        pixels = np.clip(rng.normal(3 * age, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        path = f"AgeDB/{i}_Name_{age}_f.jpg"
        Image.fromarray(pixels).save(folder / path)
        rows.append((age, path, split))
    pd.DataFrame(rows, columns=["age", "path", "split"]).to_csv(folder / "agedb.csv", index=False)
    return folder


def flags(faces, store, *more):
    """Flags of a run of seconds."""
    fixed = "--model resnet18 --img_size 40 --batch_size 16 --device cpu --track none".split()
    return [*fixed, "--data_dir", str(faces), "--store_root", str(store), *map(str, more)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*args, launcher=(sys.executable,), script="train.py", check=True):
    """Run a script from within the folder and return the finished process."""
    done = subprocess.run(
        [*launcher, script, *args], cwd=FOLDER, env=environment(), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def only_run(store):
    (folder,) = store.iterdir()
    return folder


def load_state(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def finished(faces, tmp_path_factory):
    """An unbroken run of three epochs with LDS and FDS."""
    store = tmp_path_factory.mktemp("finished")
    run(*flags(faces, store, "--epoch", 3, *LDS_FDS))
    return only_run(store)


@pytest.mark.slow
def test_run_leaves_all_its_files(finished, faces):
    held = {path.name for path in finished.iterdir()}
    assert held >= {
        "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "training.log",
        "fds_statistics.npz", "ckpt.pth.tar", "ckpt.best.pth.tar", "figures",
    }  # fmt: skip
    figures = {path.stem for path in (finished / "figures").iterdir()}
    assert figures == {
        "error_by_label", "predictions", "learning_curves", "label_density", "fds_statistics",
        "fds_similarity",
    }  # fmt: skip
    results = json.loads((finished / "results.json").read_text())
    assert results["method"] == "SQINV+LDS+FDS"
    assert results["seed"] == 0
    predictions = pd.read_csv(finished / "predictions.csv")
    meta = pd.read_csv(faces / "agedb.csv")
    for split in ("val", "test"):
        part = predictions[predictions["split"] == split]
        assert part["path"].tolist() == meta.loc[meta["split"] == split, "path"].tolist()
        mae = (part["prediction"] - part["label"]).abs().mean()
        assert results["metrics"][split]["overall"]["mae"] == pytest.approx(mae, rel=1e-5)
    assert results["metrics"]["test"]["many"]["mae"] is None  # no age has 100 training images
    epochs = [json.loads(line) for line in (finished / "epochs.jsonl").open()]
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    # The best epoch is the one whose validation MAE the results repeat.
    best = min(epochs, key=lambda row: row["val"]["overall"]["mae"])
    assert results["best_epoch"] == best["epoch"]
    assert results["metrics"]["val"]["overall"] == best["val"]["overall"]
    checkpoint = load_state(finished / "ckpt.pth.tar")
    assert {"epoch", "model", "best_loss", "state_dict", "optimizer"} <= set(checkpoint)
    assert checkpoint["epoch"] == 3
    assert checkpoint["state_dict"]["FDS.num_samples_tracked"].sum() == 3 * N_TRAIN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_run(faces, tmp_path, precision):
    arguments = [a for a in flags(faces, tmp_path, "--epoch", 2, *LDS_FDS) if a != "cpu"]
    arguments.insert(arguments.index("--device") + 1, "cuda")
    subprocess.run(
        [sys.executable, "train.py", *arguments, "--precision", precision], cwd=FOLDER, check=True,
        timeout=300,
    )  # fmt: skip
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert results["device"].startswith("cuda")
    assert np.isfinite(results["metrics"]["test"]["overall"]["mae"])
