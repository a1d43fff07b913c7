"""shhs-dir's train.py: what it learns, what it leaves, resuming, two stages, what it says."""

import json
import multiprocessing
import os
import shutil
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, load

FOLDER = ROOT / "shhs-dir"
train = load("shhs-dir", "train")
checkpoints = load("shhs-dir", "checkpoints")
SIGNALS = load("shhs-dir", "night_signals").SIGNALS
LDS_FDS = "--reweight inverse --lds --fds".split()
N_TRAIN, N_EVAL = 17, 4  # 17 = 4 · 4 + 1: the last batch has one night for two processes

DEFAULTS = dict(
    lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2, fds=False, fds_kernel="gaussian",
    fds_ks=5, fds_sigma=2, start_update=0, start_smooth=1, bucket_num=100, bucket_start=0,
    fds_mmt=0.9, reweight="none", retrain_fc=False, pretrained="", store_root="checkpoint",
    store_name="shhs", lr=1e-3, batch_size=32, resume="", evaluate=False, eval_model="",
    data_dir="./data", gpu=None, loss="l1", epoch=80, schedule=[], print_freq=10, seed=0,
    device="auto", precision=None, compile=False, fds_variant="official", fds_stats="extra_pass",
    overwrite=False, track="tensorboard", width=64, d_signal=256, d_hid=256, rnn="gru",
    chunk=4096, weight_decay=0.0, max_grad_norm=5.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are started: sums in the same order give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Nights of one to three frames whose loudness follows the score, which is skewed."""
    folder = tmp_path_factory.mktemp("nights")
    (folder / "nights").mkdir()
    rng, rows = np.random.default_rng(7), []
    for k in range(N_TRAIN + 2 * N_EVAL):
        score = int(rng.choice([80, 77, 75, 60, 30], p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        frames = int(rng.integers(1, 4))
        with h5py.File(folder / f"nights/{k}.h5", "w") as file:
            file.attrs.update(source="", lacking="", frames=frames)
            for name, signal in SIGNALS.items():
                shape = (signal.channels, frames * signal.frame)
                file[name] = rng.normal(score / 50, 0.3, shape).astype(np.float16)
                values = file[name][()].astype(np.float64)
                file[name].attrs.update(mean=values.mean(1), mean_square=(values**2).mean(1))
        split = "train" if k < N_TRAIN else "val" if k < N_TRAIN + N_EVAL else "test"
        rows.append((1000 + k, score, f"nights/{k}.h5", split))
    table = pd.DataFrame(rows, columns=["id", "score", "path", "split"])
    table.to_csv(folder / "shhs.csv", index=False)
    return folder


def flags(nights, store, *more):
    """Flags of a run of a second."""
    fixed = "--width 8 --d_signal 8 --d_hid 8 --batch_size 4 --device cpu --track none".split()
    return [*fixed, "--data_dir", str(nights), "--store_root", str(store), *map(str, more)]


def run(nights, store, *more):
    """Train in this process, without the figures; returns the test metrics."""
    with mock.patch.object(train.report, "draw_run"):
        return train.main(flags(nights, store, *more))


def only_run(store):
    (folder,) = store.iterdir()
    return folder


def load_state(path):
    return torch.load(path, weights_only=True)


def epochs_of(folder):
    """The lines of a run's epochs."""
    return [json.loads(line) for line in (folder / "epochs.jsonl").open()]


def assert_same_state(a, b):
    """Bit for bit the same weights and buffers."""
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def finished(nights, tmp_path_factory):
    """An unbroken run of three epochs with LDS and FDS."""
    store = tmp_path_factory.mktemp("finished")
    train.main(flags(nights, store, "--epoch", 3, *LDS_FDS))
    return only_run(store)


# ---- flags ----------------------------------------------------------------------------------


def name_of(*given):
    return "".join(train.run_name(train.parse_args([*given])))


def test_what_changes_a_run_changes_its_folder():
    assert name_of() == "shhs_adam_l1_0.001_32"
    name = name_of(*LDS_FDS, "--rnn", "lstm")
    assert name == "shhs_lds_gau_5_2_fds_gau_5_2_0_1_0.9_adam_l1_0.001_32_inverse_rnn_lstm"
    given = [*LDS_FDS, "--seed", "1", "--width", "16", "--schedule", "2", "5"]
    other = name_of(*given, "--fds_variant", "paper")
    assert other.endswith("_paper_inverse_width_16_schedule_2-5_seed_1")
    one_flag = (
        "--width 8", "--d_signal 8", "--d_hid 8", "--rnn lstm", "--loss mse", "--lr 0.1",
        "--schedule 3", "--weight_decay 0.1", "--max_grad_norm 1", "--batch_size 8", "--seed 2",
        "--precision bf16", "--reweight inverse", "--fds", "--fds --start_update 1",
        "--fds --start_smooth 2", "--fds --bucket_num 90", "--fds --bucket_start 3",
        "--fds --fds_mmt 0.5", "--fds --fds_ks 7", "--fds --fds_stats online",
        "--fds --fds_variant paper", "--fds --fds_kernel laplace", "--fds --fds_sigma 1",
        "--channels ECG --rate 50", "--channels ECG --rate 50 --window 2", "--low 1", "--target x",
    )  # fmt: skip
    assert len({name_of(*flag.split()) for flag in one_flag}) == len(one_flag)
    assert name_of() not in {name_of(*flag.split()) for flag in one_flag}
    same = "--epoch 3 --print_freq 1 --chunk 64 --device cpu --track none --data_dir elsewhere"
    assert name_of(*same.split()) == name_of()
    roles = train.make_parser().flags_of
    own = "channels rate window target unit low high bin_width scale many few".split()
    network = ["width", "d_signal", "d_hid", "rnn", "experts"]
    assert roles("network") == [*own, *network]
    assert {"chunk", "device", "store_root", "print_freq"} <= set(roles("place"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lds", "--reweight sqrt_inv"), ("--lds --reweight inverse --lds_ks 4", "odd"),
     ("--fds --fds_sigma 0", "sigma"), ("--retrain_fc --reweight inverse", "--pretrained"),
     ("--resume --overwrite", "choose one"),
     ("--no_such_flag", "unrecognized"), ("--epoch 0", "1 or more"), ("--seed -1", "0 or more"),
     ("--width 12", "multiple of 8"), ("--rnn sru", "lstm"), ("--max_grad_norm 0", "above 0"),
     ("--gpu 0 --device cpu", "contradict"), ("--fds --bucket_num 2", "at least"),
     ("--bucket_num 101", "at most 100"), ("--bucket_start 100", "must rise"),
     ("--bucket_start -1", "from 0"), ("--d_signal 7", "even"), ("--chunk 0", "1 or more"),
     ("--weight_decay -1", "0 or more"), ("--data elsewhere", "unrecognized")],
)  # fmt: skip
def test_conflicts_of_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags.split())
    assert message in capsys.readouterr().err


# ---- runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_leaves_all_its_files(finished, nights):
    held = {path.name for path in finished.iterdir()}
    assert held >= {
        "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "training.log",
        "fds_statistics.npz", "ckpt.pth.tar", "ckpt.best.pth.tar", "figures",
    }  # fmt: skip
    assert {path.stem for path in (finished / "figures").iterdir()} == {
        "error_by_label", "predictions", "learning_curves", "label_density", "fds_statistics",
        "fds_similarity",
    }  # fmt: skip
    results = json.loads((finished / "results.json").read_text())
    assert results["method"] == "INV+LDS+FDS"
    predictions, meta = pd.read_csv(finished / "predictions.csv"), pd.read_csv(nights / "shhs.csv")
    for split in ("val", "test"):
        part = predictions[predictions["split"] == split]
        assert part["path"].tolist() == meta.loc[meta["split"] == split, "path"].tolist()
        assert part["label"].tolist() == meta.loc[meta["split"] == split, "score"].tolist()
        mae = (part["prediction"] - part["label"]).abs().mean()
        assert results["metrics"][split]["overall"]["mae"] == pytest.approx(mae, rel=1e-5)
    epochs = epochs_of(finished)
    best = min(epochs, key=lambda row: row["val"]["overall"]["mae"])
    assert results["best_epoch"] == best["epoch"]
    checkpoint = load_state(finished / "ckpt.pth.tar")
    assert {"epoch", "model", "best_loss", "state_dict", "optimizer"} <= set(checkpoint)
    assert checkpoint["state_dict"]["FDS.num_samples_tracked"].sum() == 3 * N_TRAIN
    density = pd.read_csv(finished / "label_density.csv")
    assert len(density) == 100
    assert density["count"].sum() == N_TRAIN
    # A sample's weight has the mean 1; of a score without nights none is written.
    held = density["count"] > 0
    assert (density["weight"] * density["count"])[held].sum() == pytest.approx(N_TRAIN)
    assert density["weight"].notna().equals(held)


def start(arguments, **environment):
    """Start train.py's main in a process forked from this one: it has its modules already."""

    def main():
        os.environ.update(environment)
        train.main(arguments)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


@pytest.mark.slow
def test_chunks_and_steps_of_looking_change_nothing(finished, nights, tmp_path):
    """With chunks of two frames, each computed again in the backward pass, the run is the same."""
    run(nights, tmp_path, "--epoch", 3, *LDS_FDS, "--chunk", 2, "--print_freq", 1)
    ours, theirs = (
        pd.read_csv(folder / "predictions.csv") for folder in (only_run(tmp_path), finished)
    )
    np.testing.assert_allclose(ours["prediction"], theirs["prediction"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "method"),
    [("--reweight sqrt_inv --rnn lstm", "SQINV"), ("--reweight inverse --lds", "INV+LDS"),
     ("--reweight inverse --fds --fds_stats online", "INV+FDS"),
     ("--reweight inverse --lds --fds --fds_variant paper", "INV+LDS+FDS (paper)"),
     ("--loss focal_l1 --seed 3", "FOCAL-R"), ("--loss mse --weight_decay 0.01", "VANILLA")],
)  # fmt: skip
def test_the_methods_run(nights, tmp_path, more, method):
    metrics = run(nights, tmp_path, "--epoch", 2, *more.split())
    assert np.isfinite(metrics["overall"]["mae"])
    assert json.loads((only_run(tmp_path) / "results.json").read_text())["method"] == method


@pytest.mark.slow
def test_the_logged_loss_is_a_mean_over_nights(nights, tmp_path, monkeypatch):
    """The last batch holds one night of 17, and counts for one."""
    criterion, seen = train.build_loss, []

    def noted(args):
        def loss(preds, labels, weights):
            value = criterion(args)(preds, labels, weights)
            seen.append((len(labels), value.item()))
            return value

        return loss

    monkeypatch.setattr(train, "build_loss", noted)
    run(nights, tmp_path, "--epoch", 1)
    sizes, values = zip(*seen)
    assert sizes == (4, 4, 4, 4, 1)
    (row,) = epochs_of(only_run(tmp_path))
    assert row["train_loss"] == pytest.approx(np.average(values, weights=sizes))
    assert row["train_loss"] != pytest.approx(np.mean(values))


@pytest.mark.slow
def test_statistics_that_start_late(nights, tmp_path):
    """Before its first epoch FDS leaves a run as it is; a stop in between changes nothing."""
    late = ("--fds", "--start_update", 1, "--start_smooth", 2)
    run(nights, tmp_path / "plain", "--epoch", 4)
    run(nights, tmp_path / "late", "--epoch", 4, *late)
    folder = only_run(tmp_path / "late")
    plain, ours = epochs_of(only_run(tmp_path / "plain")), epochs_of(folder)
    assert ["statistics" in row["seconds"] for row in ours] == [False, True, True, True]
    # Epoch 1 makes the first statistics, and epoch 2 is the first with two of them to compare: so
    # the calibration, which nothing else does, moves the weights from epoch 3 on.
    same = [(a["train_loss"], a["val"]) == (b["train_loss"], b["val"]) for a, b in zip(plain, ours)]
    assert same == [True, True, True, False]
    state = load_state(folder / checkpoints.LAST)["state_dict"]
    assert state["FDS.num_samples_tracked"].sum() == 3 * N_TRAIN
    assert int(state["FDS.epoch"]) == 3
    for epochs in (1, 2, 4):  # stopped before the first statistics, and before the calibration
        more = () if epochs == 1 else ("--resume",)
        run(nights, tmp_path / "stopped", "--epoch", epochs, *late, *more)
    resumed = load_state(only_run(tmp_path / "stopped") / checkpoints.LAST)["state_dict"]
    assert_same_state(resumed, state)


# ---- simulated nights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """160 simulated nights of two minutes, from EDF files."""
    pytest.importorskip("pyedflib")
    folder = tmp_path_factory.mktemp("simulated")
    demo = f"--out {folder} --nights 160 --minutes 2 --workers 1 --seed 0"
    load("shhs-dir", "demo_data").main(demo.split())
    made = f"--data_dir {folder} --min_minutes 1 --workers 1"
    load("shhs-dir", "prepare").main(made.split())
    shutil.rmtree(folder / "shhs")
    return folder


@pytest.mark.slow
def test_training_beats_the_median_by_far(simulated, tmp_path):
    """Heart rate, apnoeas and depth of sleep tell the score of nights never seen."""
    sizes = "--width 8 --d_signal 16 --d_hid 16 --batch_size 4 --lr 2e-3".split()
    run(simulated, tmp_path, *sizes, "--epoch", 8, "--schedule", 6)
    predictions = pd.read_csv(only_run(tmp_path) / "predictions.csv")
    meta = pd.read_csv(simulated / "shhs.csv")
    median = meta.loc[meta["split"] == "train", "score"].median()
    error = (predictions["prediction"] - predictions["label"]).abs().mean()
    assert error < 0.65 * (predictions["label"] - median).abs().mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_run(nights, tmp_path, precision):
    arguments = flags(nights, tmp_path, "--epoch", 2, *LDS_FDS, "--precision", precision)
    arguments[arguments.index("cpu")] = "cuda"
    metrics = train.main([*arguments, "--chunk", "2"])
    assert np.isfinite(metrics["overall"]["mae"])
