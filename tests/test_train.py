"""agedb-dir's train.py run as people run it: resuming, processes, two stages, what it leaves."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, load

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


def assert_same_state(a, b):
    """Bit for bit the same weights and buffers."""
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


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


def kill_in_epoch(arguments, store, epoch, delay):
    """Start a run and kill it `delay` seconds into an epoch; False if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=FOLDER, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        checkpoints = list(store.glob("*/ckpt.pth.tar"))
        if checkpoints and load_state(checkpoints[0])["epoch"] == epoch:
            break
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()  # SIGKILL: no chance to tidy up
    process.wait()
    return alive


@pytest.mark.slow
def test_killed_run_resumes_bit_identical(finished, faces, tmp_path):
    arguments = flags(faces, tmp_path, "--epoch", 3, *LDS_FDS, "--resume")
    assert kill_in_epoch(arguments, tmp_path, epoch=1, delay=0.2)
    killed_again = kill_in_epoch(arguments, tmp_path, epoch=2, delay=0.4)
    run(*arguments)
    resumed = only_run(tmp_path)
    log = (resumed / "training.log").read_text()
    # It must have gone on from checkpoints of unfinished runs, not started again.
    assert "ckpt.pth.tar at epoch 1" in log
    assert "ckpt.pth.tar at epoch 2" in log or not killed_again
    for name in ("ckpt.pth.tar", "ckpt.best.pth.tar"):
        ours, theirs = load_state(resumed / name), load_state(finished / name)
        assert_same_state(ours["state_dict"], theirs["state_dict"])
        assert (ours["epoch"], ours["best_loss"]) == (theirs["epoch"], theirs["best_loss"])
    assert (resumed / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    rows = [json.loads(line) for line in (resumed / "epochs.jsonl").open()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert not list(resumed.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fds_stats", "online", "--fds_variant", "paper")])
def test_two_processes_equal_one(faces, tmp_path, more):
    folders = {}
    for processes, launcher in ((1, (sys.executable,)), (2, TORCHRUN)):
        store = tmp_path / str(processes)
        script = ROOT / "tests/tiny_run.py"
        run(str(FOLDER), *flags(faces, store, "--epoch", 2, *LDS_FDS, *more),
            launcher=launcher, script=str(script))  # fmt: skip
        folders[processes] = only_run(store)
    one, two = (load_state(folders[k] / "ckpt.pth.tar")["state_dict"] for k in (1, 2))
    assert torch.equal(one["FDS.num_samples_tracked"], two["FDS.num_samples_tracked"])
    assert one["FDS.num_samples_tracked"].sum() == 2 * N_TRAIN
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    tables = [pd.read_csv(folders[k] / "predictions.csv") for k in (1, 2)]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    np.testing.assert_allclose(tables[1]["prediction"], tables[0]["prediction"], rtol=1e-4)
    first, second = (json.loads((folders[k] / "results.json").read_text()) for k in (1, 2))
    assert (first["processes"], second["processes"]) == (1, 2)
    for shot, metrics in first["metrics"]["test"].items():
        for metric, value in metrics.items():
            other = second["metrics"]["test"][shot][metric]
            assert other == value or other == pytest.approx(value, rel=1e-3), (shot, metric)


@pytest.mark.slow
def test_retraining_the_regressor_leaves_the_rest(finished, faces, tmp_path):
    pretrained = finished / "ckpt.best.pth.tar"
    run(*flags(faces, tmp_path, "--epoch", 1, "--reweight", "inverse", "--retrain_fc",
               "--pretrained", pretrained))  # fmt: skip
    folder = only_run(tmp_path)
    assert "_inverse_retrain_fc_" in folder.name
    before = load_state(pretrained)["state_dict"]
    after = load_state(folder / "ckpt.pth.tar")["state_dict"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in after.items():
        if name.startswith("linear."):
            assert not torch.equal(value, before[name]), name
        elif not name.endswith(buffers):
            assert torch.equal(value, before[name]), name
    # As in the released code, batch norm goes on updating.
    assert not torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])


@pytest.mark.slow
def test_official_checkpoint_evaluates(finished, faces, tmp_path):
    """Names with `module.`, as DataParallel writes them; FDS buffers are no hindrance."""
    checkpoint = load_state(finished / "ckpt.best.pth.tar")
    state = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
    official = {key: checkpoint[key] for key in ("epoch", "model", "best_loss", "optimizer")}
    torch.save({**official, "state_dict": state}, tmp_path / "official.pth.tar")
    store = tmp_path / "store"
    done = run(*flags(faces, store, "--evaluate", "--eval_model", tmp_path / "official.pth.tar"))
    results = json.loads((finished / "results.json").read_text())
    expected = results["metrics"]["test"]["overall"]
    line = [line for line in done.stdout.splitlines() if line.startswith("overall")][-1].split()
    assert float(line[2]) == pytest.approx(expected["mae"], abs=6e-4)
    assert int(line[-1]) == N_EVAL
    assert not store.exists()


@pytest.mark.slow
def test_published_run_evaluates_by_its_folder(finished, faces, tmp_path):
    out, store = tmp_path / "published", tmp_path / "store"
    load("tools", "publish").main([str(finished), "--out", str(out)])
    # Network and size of the images are those of its config.json.
    done = run("--data_dir", faces, "--store_root", store, "--device", "cpu", "--evaluate",
               "--eval_model", out)  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("mae, ")]
    (_, _, *here), (_, _, *published) = lines
    expected = json.loads((finished / "results.json").read_text())["metrics"]["test"]
    assert here == published
    assert published[0] == f"{expected['overall']['mae']:.3f}"
    assert not store.exists()


@pytest.mark.slow
def test_training_learns_the_generated_labels(faces, tmp_path):
    """Brightness tells the age, so a few epochs must beat predicting the median."""
    run(*flags(faces, tmp_path, "--epoch", 12, "--schedule", 9, "--batch_size", 8))
    predictions = pd.read_csv(only_run(tmp_path) / "predictions.csv")
    meta = pd.read_csv(faces / "agedb.csv")
    median = meta.loc[meta["split"] == "train", "age"].median()
    error = (predictions["prediction"] - predictions["label"]).abs().mean()
    assert error < 0.75 * (predictions["label"] - median).abs().mean()


@pytest.mark.slow
def test_folder_runs_alone(faces, tmp_path):
    """Copied out of the repository, the folder needs nothing that it left behind."""
    alone = tmp_path / "elsewhere"
    shutil.copytree(
        FOLDER, alone, ignore=shutil.ignore_patterns("data", "checkpoint", "__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "train.py", *flags(faces, tmp_path / "store", "--epoch", 1)],
        cwd=alone, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((only_run(tmp_path / "store") / "results.json").read_text())
    assert results["commit"] is None


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
