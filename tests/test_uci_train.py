"""uci-dir's train.py run as people run it: resuming, processes, two stages, trees, predictions."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, load

train = load("uci-dir", "train")
demo_data = load("uci-dir", "demo_data")
datasets = load("uci-dir", "datasets")
prepare = load("uci-dir", "prepare")
FOLDER = ROOT / "uci-dir"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LDS_FDS = "--reweight sqrt_inv --lds --fds".split()
FEW = ("--track", "none", "--device", "cpu", "--batch_size", "50")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The generated table, prepared; batches of 50 leave a short last one."""
    folder = tmp_path_factory.mktemp("tables")
    demo_data.main(["--out", str(folder), "--rows", "401"])
    return folder


def flags(tables, store, *more):
    fixed = ["--dataset", "demo", "--data_dir", tables, "--store_root", store, *FEW]
    return [str(word) for word in (*fixed, *more)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*args, launcher=(sys.executable,), cwd=FOLDER, check=True):
    """Run train.py from within a folder and return the finished process."""
    done = subprocess.run(
        [*launcher, "train.py", *map(str, args)], cwd=cwd, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def only_run(store):
    (folder,) = store.iterdir()
    return folder


def load_state(path):
    return torch.load(path, weights_only=True)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tables, tmp_path_factory):
    """An unbroken run with LDS and FDS."""
    store = tmp_path_factory.mktemp("finished")
    train.main(flags(tables, store, "--epoch", 12, *LDS_FDS))
    return only_run(store)


def test_a_run_that_ended_meanwhile_is_not_replaced(tables, tmp_path, monkeypatch):
    """One that trained while this one read its data, and left the folder before it was opened."""
    words, build, done = flags(tables, tmp_path, "--epoch", 1), train.build_data, []

    def build_late(run, *rest):
        data = build(run, *rest)
        if not done:
            done.append(True)
            train.main(words)
        return data

    monkeypatch.setattr(train, "build_data", build_late)
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    with pytest.raises(ValueError, match="another process has trained"):
        train.main(words)
    monkeypatch.undo()
    assert results_of(only_run(tmp_path))["best_epoch"] == 0
    with pytest.raises(ValueError, match="no name of a folder"):
        train.main([*words, "--store_name", "../elsewhere"])


def test_run_leaves_all_its_files(finished, tables):
    held = {path.name for path in finished.iterdir()}
    assert held >= {
        "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "training.log",
        "fds_statistics.npz", "ckpt.pth.tar", "ckpt.best.pth.tar", "figures",
    }  # fmt: skip
    results, table = results_of(finished), pd.read_csv(tables / "demo.csv")
    assert results["method"] == "SQINV+LDS+FDS"
    assert results["target"] == {"name": "price", "unit": "thousand"}
    predictions = pd.read_csv(finished / "predictions.csv")
    for split in ("val", "test"):
        part = predictions[predictions["split"] == split]
        own = table[table["split"] == split]
        assert part["row"].tolist() == own.index.tolist()
        np.testing.assert_allclose(part["label"], own["price"])
        error = (part["prediction"] - part["label"]).abs()
        assert results["metrics"][split]["overall"]["mae"] == pytest.approx(error.mean(), rel=1e-5)
    epochs = [json.loads(line) for line in (finished / "epochs.jsonl").open()]
    best = min(epochs, key=lambda row: row["val"]["overall"]["mae"])
    assert results["best_epoch"] == best["epoch"]
    N = int((table["split"] == "train").sum())
    state = load_state(finished / "ckpt.pth.tar")
    assert state["state_dict"]["FDS.num_samples_tracked"].sum() == 12 * N
    density = pd.read_csv(finished / "label_density.csv")
    assert density["count"].sum() == N
    assert len(density) == state["state_dict"]["FDS.num_samples_tracked"].numel()


@pytest.mark.slow
def test_killed_run_resumes_bit_identical(finished, tables, tmp_path):
    arguments = flags(tables, tmp_path, "--epoch", 12, *LDS_FDS, "--resume")
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=FOLDER, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        held = list(tmp_path.glob("*/epochs.jsonl"))
        if held and len(held[0].read_text().splitlines()) >= 3:
            break
        time.sleep(0.002)
    process.kill()  # SIGKILL: no chance to tidy up
    process.wait()
    folder = only_run(tmp_path)
    assert not (folder / "results.json").exists()
    run(*arguments)
    assert "Resuming from" in (folder / "training.log").read_text()
    for name in ("ckpt.pth.tar", "ckpt.best.pth.tar"):
        ours, theirs = load_state(folder / name), load_state(finished / name)
        for key, value in theirs["state_dict"].items():
            assert torch.equal(ours["state_dict"][key], value), key
        assert (ours["epoch"], ours["best_loss"]) == (theirs["epoch"], theirs["best_loss"])
    assert (folder / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    rows = [json.loads(line)["epoch"] for line in (folder / "epochs.jsonl").open()]
    assert rows == list(range(12))


def test_a_finite_explosion_is_not_saved(tables, tmp_path):
    few = flags(tables, tmp_path / "a", "--hidden", 8, "--batch_size", 2000)
    train.main([*few, "--epoch", "2"])
    good = only_run(tmp_path / "a") / "ckpt.pth.tar"
    again = flags(tables, tmp_path / "b", "--hidden", 8, "--batch_size", 2000, "--lr", 900_000)
    with pytest.raises(FloatingPointError, match=r"exploded: .* or --resume the best epoch"):
        train.main([*again, "--epoch", "6", "--resume", str(good)])
    assert not (only_run(tmp_path / "b") / "ckpt.pth.tar").exists()


def test_resuming_on_another_preparation_is_refused(finished, tables, tmp_path):
    store, data = tmp_path / "store", tmp_path / "data"
    shutil.copytree(tables, data)
    shutil.copytree(finished, store / finished.name)
    argv = ["--csv", str(data / "raw" / "demo.csv"), "--target", "price", "--overwrite"]
    prepare.main([*argv, "--data_dir", str(data), "--seed", "1"])
    with pytest.raises(ValueError, match="another preparation"):
        train.main(flags(data, store, "--epoch", 13, *LDS_FDS, "--resume"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fds_stats", "online", "--fds_variant", "paper")])
def test_two_processes_equal_one(tables, tmp_path, more):
    folders = {}
    for processes, launcher in ((1, (sys.executable,)), (2, TORCHRUN)):
        store = tmp_path / str(processes)
        run(*flags(tables, store, "--epoch", 3, *LDS_FDS, *more), launcher=launcher)
        folders[processes] = only_run(store)
    one, two = (load_state(folders[k] / "ckpt.pth.tar")["state_dict"] for k in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    tables = [pd.read_csv(folders[k] / "predictions.csv") for k in (1, 2)]
    assert tables[0]["row"].tolist() == tables[1]["row"].tolist()
    np.testing.assert_allclose(tables[1]["prediction"], tables[0]["prediction"], rtol=1e-3)


def test_fds_and_lds_change_what_they_should(tables, tmp_path):
    weights, states = {}, {}
    for method in ("", "--reweight sqrt_inv", "--reweight sqrt_inv --lds", "--fds"):
        store = tmp_path / (method.replace(" ", "") or "none")
        train.main(flags(tables, store, "--epoch", 4, *method.split()))
        weights[method] = pd.read_csv(only_run(store) / "label_density.csv")["weight"].dropna()
        states[method] = load_state(only_run(store) / "ckpt.pth.tar")["state_dict"]
    assert (weights[""] == 1).all()
    assert (weights["--fds"] == 1).all()
    table, preparation = datasets.read_prepared(tables, "demo")
    labels = table.loc[table["split"] == "train", "price"].to_numpy()
    filled = np.unique(datasets.label_to_bucket(labels, preparation["bins"]), return_index=True)[1]
    for method, lds in (("--reweight sqrt_inv", False), ("--reweight sqrt_inv --lds", True)):
        expected = datasets.sample_weights(labels, preparation["bins"], "sqrt_inv", lds)
        np.testing.assert_allclose(weights[method], expected[filled], rtol=1e-6)
    same = [torch.equal(states[""][name], states["--fds"][name]) for name in states[""]]
    assert not all(same)


def test_retraining_the_regressor_leaves_the_rest(finished, tables, tmp_path):
    pretrained = finished / "ckpt.best.pth.tar"
    more = ("--reweight", "inverse", "--retrain_fc", "--pretrained", pretrained)
    train.main(flags(tables, tmp_path, "--epoch", 2, *more))
    before = load_state(pretrained)["state_dict"]
    after = load_state(only_run(tmp_path) / "ckpt.pth.tar")["state_dict"]
    for name, value in after.items():
        assert torch.equal(value, before[name]) != name.startswith("linear."), name


@pytest.mark.parametrize("model", ["mlp", "hist_gradient_boosting"])
def test_predictions_come_back(tables, tmp_path, model, monkeypatch):
    if model != "mlp":
        pytest.importorskip("sklearn")
    scale = ("--target_scale", "log")
    train.main(flags(tables, tmp_path / "store", "--epoch", 3, "--model", model, *scale))
    folder = only_run(tmp_path / "store")
    expected = pd.read_csv(folder / "predictions.csv")
    assert (expected["prediction"] > 0).all()
    # New rows: those of val and test as they stand in the raw file, other columns around them.
    prepared = pd.read_csv(tables / "demo.csv", dtype=str, keep_default_na=False)
    rows = prepared.iloc[expected["row"]].drop(columns=["price", "split"])
    rows = rows[rows.columns[::-1]].assign(note="=1+1", prediction="theirs")
    rows.to_csv(tmp_path / "new.csv", index=False, sep=";")
    best = folder / "ckpt.best.pth.tar"
    command = ["--predict", str(tmp_path / "new.csv"), "--eval_model", str(best), "--device", "cpu"]
    out = train.main(command)
    found = pd.read_csv(out)
    assert list(found.columns) == [*rows.columns, "prediction_"]
    assert (found["prediction"] == "theirs").all()
    np.testing.assert_allclose(found["prediction_"], expected["prediction"], rtol=1e-5)
    with pytest.raises(ValueError, match="--overwrite"):
        train.main(command)
    rows.drop(columns="area").to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(ValueError, match=r"lacks the columns 'area'"):
        train.main([*command, "--overwrite"])


def test_evaluation_prints_what_training_found(finished, tables, tmp_path, capsys):
    more = ("--evaluate", "--eval_model", finished / "ckpt.best.pth.tar")
    metrics = train.main(flags(tables, tmp_path, *more))
    expected = results_of(finished)["metrics"]["test"]
    for shot in expected:
        assert metrics[shot] == pytest.approx(expected[shot], nan_ok=True)
    assert (finished / "evaluation" / "predictions.csv").is_file()


def test_trees_keep_the_best_round(tables, tmp_path):
    pytest.importorskip("sklearn")
    more = ("--model", "hist_gradient_boosting", "--epoch", 40, "--reweight", "sqrt_inv", "--lds")
    train.main(flags(tables, tmp_path, *more))
    folder = only_run(tmp_path)
    epochs = [json.loads(line) for line in (folder / "epochs.jsonl").open()]
    values = [row["val"]["overall"]["mae"] for row in epochs]
    results = results_of(folder)
    assert len(values) == 40
    assert results["best_epoch"] == int(np.argmin(values))
    assert results["metrics"]["val"]["overall"]["mae"] == pytest.approx(min(values), rel=1e-5)


@pytest.mark.slow
def test_from_a_table_to_an_answer(tables, tmp_path, capsys):
    pytest.importorskip("sklearn")
    csv = shutil.copy(tables / "raw" / "demo.csv", tmp_path / "mine.csv")
    command = ["--csv", str(csv), "--target", "price", "--data_dir", str(tmp_path / "data")]
    command += ["--store_root", str(tmp_path / "runs"), "--compare", "--seeds", "2", "--epoch", "5"]
    command += ["--device", "cpu"]
    best = train.main(command)
    runs = tmp_path / "runs"
    text = (runs / "mine_compare.md").read_text()
    digits = pd.read_csv(runs / "mine_compare.csv")
    assert (f"take {best}" if best else "take none") in text
    assert (runs / "mine_compare.png").stat().st_size > 10_000
    # Each figure of the table is that of the runs.
    for method, seeds in digits.groupby("method"):
        name = {"TREES": "boosting_adam", "VANILLA": "mlp_adam"}.get(method, "never")
        folders = [f for f in runs.glob("mine_*") if f.is_dir() and name in f.name]
        if folders:
            maes = [results_of(f)["metrics"]["test"]["overall"]["mae"] for f in folders]
            overall = seeds.set_index("shot").loc["overall"]
            assert overall["mae"] == pytest.approx(np.mean(maes), rel=1e-5)
            assert overall["low"] < overall["mae"] < overall["high"]
            assert overall["seeds"] == len(folders) == (1 if method == "TREES" else 2)
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert len(before) == 12
    chosen = text.split("--model '")[1].split("'")[0]
    assert Path(chosen).parent == runs  # what the last line tells to predict with
    assert train.main(command) == best  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/results.json")} == before
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("--lds", "--lds smooths the weights"),
        ("--csv mine.csv", "go together"),
        ("--hidden 0", "--hidden must be 1"),
        ("--model hist_gradient_boosting --fds", "trees have no features"),
        ("--model hist_gradient_boosting --loss huber", "trees have no features"),
        ("--compare --fds", "--compare chooses"),
        ("--compare --lds", "--compare chooses"),
        ("--compare --loss huber", "--compare chooses"),
        ("--compare --model hist_gradient_boosting", "--compare chooses"),
        ("--seeds 0", "--seeds must be 1"),
        ("--save_every nan", "--save_every must be 0 or more"),
        ("--save_every inf", "--save_every must be 0 or more"),
        ("--schedule -1", "--schedule must be 0 or more"),
        (f"--seed {10**30}", f"got {10**30}; most is {2**32 - 1}"),
        (f"--hidden 8 {10**10}", "--hidden must be a number of at most"),
        ("--temperature nan", "--temperature must be a number"),
        ("--oversample 1e9", "1e9 is not 0 or more, to 10000"),
        ("--fds_sigma 1e9", "sigma must be between 1e-6 and 1e6"),
        ("--lds_ks 100000000001", "--lds_ks, --lds_sigma: ks 100000000001 is above 20000"),
        ("--no_such_flag", "unrecognized"),
    ],
)
def test_flags_that_cannot_be_used(words, match, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(words.split())
    assert match in capsys.readouterr().err


def test_each_flag_that_changes_training_changes_the_name():
    names = {
        "".join(train.run_name(train.parse_args(words.split())))
        for words in (
            "", "--hidden 8", "--target_scale log", "--loss mse", "--lr 0.1", "--batch_size 9",
            "--seed 1", "--schedule 5", "--reweight inverse", "--reweight sqrt_inv --lds",
            "--reweight inverse --lds", "--fds", "--fds --fds_variant paper", "--bucket_num 5",
            "--model hist_gradient_boosting", "--dataset airfoil",
        )
    }  # fmt: skip
    assert len(names) == 16


@pytest.mark.slow
def test_folder_runs_alone(tables, tmp_path):
    """Copied out of the repository, the folder needs nothing that it left behind."""
    alone = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("data", "checkpoint", "__pycache__")
    shutil.copytree(FOLDER, alone, ignore=ignored)
    run(*flags(tables, tmp_path / "store", "--epoch", 1), cwd=alone)
    assert results_of(only_run(tmp_path / "store"))["commit"] is None


@pytest.mark.slow
def test_training_learns_the_generated_labels(tables, tmp_path):
    train.main(flags(tables, tmp_path, "--epoch", 60))
    predictions = pd.read_csv(only_run(tmp_path) / "predictions.csv")
    table = pd.read_csv(tables / "demo.csv")
    median = table.loc[table["split"] == "train", "price"].median()
    error = (predictions["prediction"] - predictions["label"]).abs().mean()
    assert error < 0.5 * (predictions["label"] - median).abs().mean()
