"""nyud2-dir's train.py run as people run it: resuming, processes, two stages, what it leaves."""

import json
import os
import re
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

FOLDER = ROOT / "nyud2-dir"
TINY = str(ROOT / "tests/tiny_depth_run.py")
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


def run_tiny(*args, **options):
    return run(FOLDER, *args, script=TINY, **options)


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


def kill_in_epoch(arguments, store, epoch, delay):
    """Start a run and kill it `delay` seconds into an epoch; False if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=FOLDER, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        checkpoints = list(store.glob("*/checkpoint.pth.tar"))
        if checkpoints and load_state(checkpoints[0])["epoch"] == epoch - 1:
            break
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()  # SIGKILL: no chance to tidy up
    process.wait()
    return alive


def test_killed_run_resumes_bit_identical(finished, rooms, tmp_path):
    arguments = flags(rooms, tmp_path, "--epochs", 3, *LDS_FDS, "--resume")
    assert kill_in_epoch(arguments, tmp_path, epoch=1, delay=0.2)
    killed_again = kill_in_epoch(arguments, tmp_path, epoch=2, delay=0.05)
    run(*arguments)
    resumed = only_run(tmp_path)
    log = (resumed / "training_log.log").read_text()
    assert "checkpoint.pth.tar at epoch 1" in log
    assert re.search(r"checkpoint\.pth\.tar at epoch [23]", log) or not killed_again
    for name in ("checkpoint.pth.tar", "checkpoint_best.pth.tar", "checkpoint_final.pth.tar"):
        ours, theirs = load_state(resumed / name), load_state(finished / name)
        assert_same_state(ours["state_dict"], theirs["state_dict"])
        assert (ours["epoch"], ours["error"]) == (theirs["epoch"], theirs["error"])
    for name in ("predictions.csv", "error_by_depth.csv"):
        assert (resumed / name).read_bytes() == (finished / name).read_bytes()
    rows = [json.loads(line) for line in (resumed / "epochs.jsonl").open()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize("more", [(), ("--fds_stats", "online", "--fds_variant", "official")])
def test_two_processes_equal_one(rooms, tmp_path, more):
    folders = {}
    for processes, launcher in ((1, (sys.executable,)), (2, TORCHRUN)):
        store = tmp_path / str(processes)
        run_tiny(*flags(rooms, store, "--epochs", 2, *LDS_FDS, *more), launcher=launcher)
        folders[processes] = only_run(store)
    one, two = (load_state(folders[k] / "checkpoint.pth.tar")["state_dict"] for k in (1, 2))
    # Interpolated depths at a bucket's edge are the same in both: the batches are.
    assert torch.equal(one["R.FDS.num_samples_tracked"], two["R.FDS.num_samples_tracked"])
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    tables = [pd.read_csv(folders[k] / "predictions.csv") for k in (1, 2)]
    keys = ["path", "y", "x", "label", "split"]
    pd.testing.assert_frame_equal(tables[0][keys], tables[1][keys])
    np.testing.assert_allclose(tables[1]["prediction"], tables[0]["prediction"], rtol=1e-3)
    first, second = (json.loads((folders[k] / "results.json").read_text()) for k in (1, 2))
    assert (first["processes"], second["processes"]) == (1, 2)
    for shot, metrics in first["metrics"]["test"].items():
        for metric in ("rmse", "mae", "abs_rel", "num_samples"):
            other = second["metrics"]["test"][shot][metric]
            assert other == metrics[metric] or other == pytest.approx(metrics[metric], rel=1e-3)


def test_retraining_the_head_leaves_the_rest(finished, rooms, tmp_path):
    pretrained = finished / "checkpoint_best.pth.tar"
    run(*flags(rooms, tmp_path, "--epochs", 1, "--reweight", "inverse", "--retrain_fc", "--fds",
               "--pretrained", pretrained))  # fmt: skip
    folder = only_run(tmp_path)
    assert "_inverse_fds_gau_5_2_0_1_0.9_retrain_fc_" in folder.name
    before = load_state(pretrained)["state_dict"]
    after = load_state(folder / "checkpoint.pth.tar")["state_dict"]
    for name, value in after.items():
        if name.startswith("R."):
            if name.endswith("weight"):
                assert not torch.equal(value, before[name]), name
        elif not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, before[name]), name
    # FDS starts afresh: one epoch has been tracked.
    samples = "R.FDS.num_samples_tracked"
    assert torch.equal(3 * after[samples], load_state(finished / "checkpoint.pth.tar")[
        "state_dict"][samples])  # fmt: skip


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


def test_official_checkpoint_evaluates(finished, rooms, tmp_path):
    official_file(finished, tmp_path / "official.pth.tar")
    store = tmp_path / "store"
    for fds in ((), ("--fds",)):  # the file has statistics, whether the model wants them or not
        done = run(*flags(rooms, store, "--evaluate", "--eval_model",
                          tmp_path / "official.pth.tar", *fds))  # fmt: skip
        expected = json.loads((finished / "results.json").read_text())["metrics"]["test"]["overall"]
        lines = done.stdout.splitlines()
        header = next(line.split() for line in lines if line.split()[:1] == ["mse"])
        values = next(line.split()[1:] for line in lines if line.startswith("overall"))
        shown = dict(zip(header, map(float, values)))
        assert shown["rmse"] == pytest.approx(expected["rmse"], abs=6e-4)
        assert shown["num_samples"] == expected["num_samples"]
        assert not store.exists()


def test_published_run_evaluates_by_its_folder(finished, rooms, tmp_path):
    out = tmp_path / "published"
    load("tools", "publish").main([str(finished), "--out", str(out)])
    done = run("--data_dir", rooms, "--device", "cpu", "--evaluate", "--eval_model", out)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rmse, ")]
    (_, _, *here), (_, _, *published) = lines
    assert here == published


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


def test_folder_runs_alone(rooms, tmp_path):
    """Copied out of the repository, the folder needs nothing that it left behind."""
    alone = tmp_path / "elsewhere"
    shutil.copytree(
        FOLDER, alone, ignore=shutil.ignore_patterns("data", "checkpoint", "__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "train.py", *flags(rooms, tmp_path / "store", "--epochs", 1)],
        cwd=alone, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((only_run(tmp_path / "store") / "results.json").read_text())
    assert results["commit"] is None


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
