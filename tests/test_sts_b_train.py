"""sts-b-dir's train.py: resuming, processes, two stages, encoders, errors, what it leaves."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, load

FOLDER = ROOT / "sts-b-dir"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
N_TRAIN, N_EVAL = 33, 12  # 33 = 4 · 8 + 1: the last batch has one pair for two processes
LDS_FDS = "--reweight inverse --lds --fds".split()
WORDS = "red blue green small large old new cat dog bird house tree runs sits sleeps".split()
DIM = 8

train = load("sts-b-dir", "train")
checkpoints = load("sts-b-dir", "checkpoints")
restoring = load("sts-b-dir", "restoring")
run_folder = load("sts-b-dir", "run_folder")


def write_pairs(folder, n_train, n_eval):
    """Pairs of sentences of few words, whose similarity follows how many words they share."""
    rng = np.random.default_rng(7)
    for name, n in (("train", n_train), ("dev", n_eval), ("test", n_eval)):
        lines = ["sentence1\tsentence2\tscore"]
        for _ in range(n):
            first = rng.choice(WORDS, int(rng.integers(3, 8)), replace=False)
            shared = int(rng.integers(0, len(first) + 1))
            others = [word for word in WORDS if word not in first]
            second = [*first[:shared], *rng.choice(others, len(first) - shared)]
            score = 5 * shared / len(first)
            lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{score:.3f}")
        (folder / f"{name}_new.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vectors = rng.standard_normal((len(WORDS), DIM)).round(4)
    text = "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(WORDS, vectors))
    (folder / "vectors.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), N_TRAIN, N_EVAL)


def flags(data, store, *more):
    """Flags of a run of seconds: an epoch of 5 batches, a validation each 3 steps."""
    fixed = "--d_hid 6 --batch_size 8 --val_interval 3 --max_vals 8 --lr 0.01 --device cpu"
    fixed += f" --track none --d_word {DIM} --word_embs_file {data}/vectors.txt --cache none"
    return [*fixed.split(), "--data_dir", str(data), "--store_root", str(store), *map(str, more)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*args, launcher=(sys.executable,), folder=FOLDER, check=True):
    """Run train.py from within the folder and return the finished process."""
    done = subprocess.run(
        [*launcher, "train.py", *args], cwd=folder, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_here(*args):
    """Run `main` in this process, which spares the start of another."""
    return train.main(list(map(str, args)))


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


# ---- runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["extra_pass", "online"])
def finished(request, data, tmp_path_factory):
    """An unbroken run with LDS and FDS, and its flag of the statistics."""
    store = tmp_path_factory.mktemp("finished")
    more = (*LDS_FDS, "--fds_stats", request.param)
    forward, seen = train.SimilarityRegressor.forward, set()

    def watched(self, *inputs):
        seen.add(inputs[3:4])
        return forward(self, *inputs)

    with mock.patch.object(train.SimilarityRegressor, "forward", watched):
        run_here(*flags(data, store, *more))
    # No other epoch in training, none in evaluation: a compiled network has a graph for each.
    assert seen == {(), (0,), (1,)}
    return only_run(store), more


@pytest.mark.slow
def test_run_leaves_all_its_files(finished, data):
    folder, _ = finished
    held = {path.name for path in folder.iterdir()}
    assert held >= {
        "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "training.log",
        "fds_statistics.npz", "model_state.th", "model_state_best.th", "training_state.th",
        "vocab.txt", "figures",
    }  # fmt: skip
    assert not [name for name in held if "next" in name or name.endswith(".tmp")]
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {
        "error_by_label", "predictions", "learning_curves", "label_density", "fds_statistics",
        "fds_similarity",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert (results["method"], results["seed"]) == ("INV+LDS+FDS", 111)
    predictions = pd.read_csv(folder / "predictions.csv")
    for split, file in (("val", "dev"), ("test", "test")):
        part = predictions[predictions["split"] == split]
        pairs = pd.read_csv(data / f"{file}_new.tsv", sep="\t")
        assert part["sentence1"].tolist() == pairs["sentence1"].tolist()
        assert part["sentence2"].tolist() == pairs["sentence2"].tolist()
        np.testing.assert_allclose(part["label"], pairs["score"], atol=1e-6)
        mse = ((part["prediction"] - part["label"]) ** 2).mean()
        assert results["metrics"][split]["overall"]["mse"] == pytest.approx(mse, rel=1e-5)
        pearson = np.corrcoef(part["prediction"], part["label"])[0, 1]
        assert results["metrics"][split]["overall"]["pearson"] == pytest.approx(pearson, rel=1e-5)
    rows = [json.loads(line) for line in (folder / "epochs.jsonl").open()]
    assert [row["step"] for row in rows] == [3 * (i + 1) for i in range(8)]
    assert rows[-1]["epoch"] == pytest.approx(24 / 5)
    best = min(rows, key=lambda row: row["val"]["overall"]["mse"])
    assert results["best_step"] == best["step"]
    assert results["metrics"]["val"]["overall"] == best["val"]["overall"]
    state = load_state(folder / "model_state.th")
    assert all(isinstance(value, torch.Tensor) for value in state.values())  # weights alone
    assert state["FDS.num_samples_tracked"].sum() == 4 * N_TRAIN  # 24 steps: four whole epochs
    assert float(state["FDS.epoch"]) == 3


def kill_at(arguments, store, step, delay):
    """Start a run and kill it some time after the checkpoint of a step; False if it had ended."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=FOLDER, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        files = list(store.glob("*/training_state.th"))
        if files and load_state(files[0])["step"] >= step:
            break
        time.sleep(0.002)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()  # SIGKILL: no chance to tidy up
    process.wait()
    return alive


@pytest.mark.slow
def test_killed_run_resumes_bit_identical(finished, data, tmp_path):
    folder, more = finished
    arguments = flags(data, tmp_path, *more, "--resume")
    killed = [kill_at(arguments, tmp_path, step, 0.01) for step in (3, 12)]
    assert any(killed)
    run(*arguments)
    resumed = only_run(tmp_path)
    assert "Resuming from" in (resumed / "training.log").read_text()
    for name in ("model_state.th", "model_state_best.th"):
        assert_same_state(load_state(resumed / name), load_state(folder / name))
    ours, theirs = (load_state(f / "training_state.th") for f in (resumed, folder))
    for key in ("step", "history", "best_loss", "best_step"):
        assert ours[key] == theirs[key]
    assert (resumed / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    rows = [json.loads(line) for line in (resumed / "epochs.jsonl").open()]
    assert [row["step"] for row in rows] == [3 * (i + 1) for i in range(8)]


@pytest.mark.slow
def test_more_validations_resume_a_finished_run(finished, data, tmp_path):
    folder, more = finished
    shutil.copytree(folder, tmp_path / folder.name)
    run_here(*flags(data, tmp_path, *more, "--resume", "--max_vals", 10))
    rows = [json.loads(line) for line in (only_run(tmp_path) / "epochs.jsonl").open()]
    assert [row["step"] for row in rows] == [3 * (i + 1) for i in range(10)]


@pytest.mark.slow
def test_what_a_resumed_run_may_change(finished, data, tmp_path):
    folder, more = finished
    shutil.copytree(folder, tmp_path / folder.name)
    before = tmp_path / folder.name / "training_state.th"
    new = ("--store_name", "new", "--resume", before)
    run_here(*flags(data, tmp_path, *more, *new, "--max_vals", 9, "--lr", 0.02))
    (other,) = (path for path in tmp_path.iterdir() if path.name.startswith("new"))
    rate = torch.load(other / "training_state.th", weights_only=True)["optimizer"]["param_groups"]
    assert rate[0]["lr"] == 0.02  # the flag's, not the checkpoint's
    # Another number of batches would put the epochs out of step.
    new = ("--store_name", "third", "--resume", before)
    with pytest.raises(ValueError, match=r"5 batches an epoch, here there are 3.*--batch_size"):
        run_here(*flags(data, tmp_path, *more, *new, "--batch_size", 16))
    assert not list(tmp_path.glob("third*"))  # nothing is left that the next start trips over
    before.unlink()
    with pytest.raises(ValueError, match=r"finished but its training_state\.th is missing"):
        run_here(*flags(data, tmp_path, *more, "--resume"))
    assert (tmp_path / folder.name / "model_state_best.th").is_file()


@pytest.mark.slow
def test_fds_starts_where_a_run_without_it_is_resumed(data, tmp_path):
    run_here(*flags(data, tmp_path / "without", "--max_vals", 3))
    checkpoint = only_run(tmp_path / "without") / "model_state.th"
    run_here(*flags(data, tmp_path / "with", "--max_vals", 8, "--fds", "--resume", checkpoint))
    folder = only_run(tmp_path / "with")
    assert "no statistics of FDS: they start" in (folder / "training.log").read_text()
    state = load_state(folder / "model_state.th")
    assert state["FDS.num_samples_tracked"].sum() > 0
    assert state["FDS.running_mean_last_epoch"].any()  # so they calibrate the next epoch


@pytest.mark.slow
def test_published_run_evaluates_and_is_started_from(finished, data, tmp_path, capsys):
    folder, out = finished[0], tmp_path / "published"
    load("tools", "publish").main([str(folder), "--out", str(out)])
    # The network is that of its config.json, whatever the flags say.
    more = ("--evaluate", "--eval_model", out, "--device", "cpu", "--d_hid", 9)
    metrics = run_here("--data_dir", data, "--store_root", tmp_path / "none", *more)
    expected = json.loads((folder / "results.json").read_text())["metrics"]["test"]
    assert metrics["overall"] == pytest.approx(expected["overall"], rel=1e-6)
    assert "mse, published" in capsys.readouterr().out
    run_here(*flags(data, tmp_path / "new", "--pretrained", out, "--max_vals", 1))
    assert (only_run(tmp_path / "new") / "results.json").is_file()


@pytest.mark.slow
def test_weights_alone_are_evaluated_with_the_flags_next_to_them(finished, data, tmp_path):
    """Those of results.json, or of training_state.th before the run has finished."""
    expected = json.loads((finished[0] / "results.json").read_text())["metrics"]["test"]
    for name in ("results.json", "training_state.th"):
        for file in (name, "model_state_best.th", "vocab.txt"):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(finished[0] / file, tmp_path / name)
        weights = tmp_path / name / "model_state_best.th"
        more = ("--evaluate", "--eval_model", weights, "--device", "cpu", "--d_hid", 9)
        metrics = run_here("--data_dir", data, "--store_root", tmp_path / "none", *more)
        assert metrics["overall"] == pytest.approx(expected["overall"], rel=1e-6)


@pytest.mark.slow
def test_a_compiled_run_equals_a_plain_one(data, tmp_path, monkeypatch):
    """All but the LSTM, whose packed sequences cannot be compiled; traced, without a compiler."""
    traced = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    metrics = [
        run_here(*flags(data, tmp_path / str(i), "--max_vals", 1, *more))["overall"]["mse"]
        for i, more in enumerate(((), ("--compile",)))
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), LDS_FDS])
def test_training_learns_what_pairs_share(tmp_path, more):
    data = write_pairs(tmp_path, 1500, 200)
    more = ("--d_hid", 24, "--batch_size", 32, "--max_vals", 12, "--val_interval", 47, *more)
    run_here(*flags(data, tmp_path / "runs", *more, "--patience", 12))
    results = json.loads((only_run(tmp_path / "runs") / "results.json").read_text())
    mean = pd.read_csv(data / "train_new.tsv", sep="\t")["score"].mean()
    scores = pd.read_csv(data / "test_new.tsv", sep="\t")["score"]
    error = results["metrics"]["test"]["overall"]["mse"]
    assert error < 0.5 * ((scores - mean) ** 2).mean()


@pytest.mark.slow
def test_a_hugging_face_encoder_in_place_of_the_lstm(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path / "tiny-bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=48,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "tiny-bert")
    more = ("--encoder", tmp_path / "tiny-bert", *LDS_FDS)
    run_here(*flags(data, tmp_path / "runs", *more))
    folder = only_run(tmp_path / "runs")
    assert "_encoder_tiny-bert" in folder.name
    assert not (folder / "vocab.txt").exists()
    state = load_state(folder / "model_state.th")
    assert state["FDS.running_mean"].shape == (50, 48)
    start = transformers.BertModel.from_pretrained(tmp_path / "tiny-bert").state_dict()
    name = "encoder.layer.0.output.dense.weight"
    trained = state[f"pair_encoder.encoder.{name}"]
    assert not torch.equal(trained, start[name])  # it is trained ...
    assert (trained - start[name]).abs().max() < 0.4  # ... from the weights that were given
    results = json.loads((folder / "results.json").read_text())
    got = run_here(*flags(data, tmp_path / "runs", *more, "--evaluate"))
    assert got["overall"] == pytest.approx(results["metrics"]["test"]["overall"], rel=1e-5)
    run(*flags(data, tmp_path / "two", *more, "--max_vals", 1), launcher=TORCHRUN)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_run(data, tmp_path, precision):
    arguments = [a for a in flags(data, tmp_path, *LDS_FDS) if a != "cpu"]
    arguments.insert(arguments.index("--device") + 1, "cuda")
    subprocess.run(
        [sys.executable, "train.py", *arguments, "--precision", precision], cwd=FOLDER, check=True,
        timeout=300,
    )  # fmt: skip
    results = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert results["device"].startswith("cuda")
    assert np.isfinite(results["metrics"]["test"]["overall"]["mse"])


# ---- bins ----------------------------------------------------------------------------------


def weights_by_hand(labels, n):
    """Bin, count, smoothed count and weight with INV + LDS, in plain loops over float32 edges."""
    edges = [np.float32(edge) for edge in np.linspace(0, 5, n + 1)]
    bins = np.array([max(i for i in range(n) if edges[i] <= label) for label in labels])
    counts = [int((bins == i).sum()) for i in range(n)]
    window = {0: 1.0, 1: 0.5}  # triangular, of three bins
    smoothed = [int(sum(window.get(abs(i - j), 0) * counts[j] for j in range(n))) for i in range(n)]
    weights = np.array([1 / smoothed[i] for i in bins])
    return bins, counts, smoothed, weights * len(weights) / weights.sum()


@pytest.mark.slow
@pytest.mark.parametrize("n", [25, 50])
def test_bucket_num_cuts_the_similarities_for_lds_and_fds(data, tmp_path, n):
    lds = "--reweight inverse --lds --lds_kernel triang --lds_ks 3".split()
    arguments = flags(data, tmp_path, "--fds", "--bucket_num", n, "--max_vals", 2, *lds)
    args = train.parse_args(arguments)
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1)
    made = train.build_data(
        SimpleNamespace(args=args, accelerator=alone, note_data=lambda *_: None)
    )
    labels = pd.read_csv(data / "train_new.tsv", sep="\t")["score"].to_numpy(np.float32)
    bins, counts, smoothed, weights = weights_by_hand(labels, n)
    np.testing.assert_allclose(made.loaders["train"].weights, weights, rtol=1e-6)
    assert made.loaders["train"].weights.std() > 0.1
    module = train.build_model(args, made.corpus).FDS
    assert module.label_to_bucket(labels).tolist() == bins.tolist()
    assert len(module.running_mean) == n

    run_here(*arguments)
    table = pd.read_csv(only_run(tmp_path) / "label_density.csv")
    lower = np.linspace(0, 5, n + 1)[:-1]
    np.testing.assert_allclose(table["label"], lower, atol=1e-6)
    assert table["count"].tolist() == counts
    assert table["emp_label_dist"].tolist() == counts
    assert table["eff_label_dist"].tolist() == smoothed
    weight_of_bin = {i: weight for i, weight in zip(bins, weights)}
    expected = [weight_of_bin.get(i, np.nan) for i in range(n)]
    np.testing.assert_allclose(table["weight"], expected, rtol=1e-6)
    # Shots are those of the bins of 0.1 of this training set, which holds a few pairs in each.
    assert set(table["shot"]) == {"few"}
    with np.load(only_run(tmp_path) / "fds_statistics.npz") as arrays:
        np.testing.assert_allclose(arrays["label"], lower, atol=1e-6)
        assert arrays["num_samples_tracked"].tolist() == counts  # one epoch of 6 steps was whole


# ---- checkpoints ---------------------------------------------------------------------------


class Stub:
    """Stands in for a network or an optimizer: one weight, and its state."""

    FDS = None

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"w": torch.tensor([float(self.value)])}


def save(folder, step):
    """Write the checkpoint of a step whose weight is the step's number, the best so far."""
    accelerator = SimpleNamespace(num_processes=1, scaler=None)
    run = SimpleNamespace(folder=folder, is_main=True, within=None, accelerator=accelerator)
    run.args, run.data, run.inputs, run.training = SimpleNamespace(), "", {}, {}
    checkpoints.save(run, Stub(step), Stub(0), {"step": step}, is_best=True)


@pytest.mark.parametrize("crashes", [(0,), (1,), (2,), (2, 1), (1, 2), (2, 2), (0, 1)])
def test_a_crash_while_saving_leaves_one_step(tmp_path, monkeypatch, crashes):
    """The saving stops before a write: of the best, of all, of the bare weights."""
    save(tmp_path, 1)
    write, held = restoring.save_checkpoint, 1
    for step, crash in enumerate(crashes, start=2):
        calls = iter([True] * crash + [False])

        def counted(*args, calls=calls):
            if not next(calls):
                raise KeyboardInterrupt
            write(*args)

        monkeypatch.setattr(restoring, "save_checkpoint", counted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, step)
        held = step if crash == 2 else held
        for name in (checkpoints.LAST, checkpoints.MODEL):
            weights, training = checkpoints.read(tmp_path / name)
            assert weights["w"].item() == training["step"] == held
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / checkpoints.LAST, tmp_path / "copy")  # which is enough to resume
    assert checkpoints.read(tmp_path / "copy" / checkpoints.LAST)[0] == weights


def test_an_earlier_versions_two_files(tmp_path):
    """Their weights lay in `model_state.th` alone; a kill could leave one of them under a name."""
    model, last = tmp_path / checkpoints.MODEL, tmp_path / checkpoints.LAST
    torch.save({"w": torch.tensor([1.0])}, model)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    torch.save({"step": 7, "model_sha256": digest}, tmp_path / "training_state_next.th")
    torch.save({"step": 4, "model_sha256": "another"}, last)
    weights, training = checkpoints.read(model)
    assert (weights["w"].item(), training["step"]) == (1, 7)
    torch.save({"w": torch.tensor([5.0])}, model)
    with pytest.raises(ValueError, match="does not belong to"):
        checkpoints.read(model)
    last.unlink()
    with pytest.raises(FileNotFoundError, match="--pretrained"):
        checkpoints.read(model)
    with pytest.raises(ValueError, match="--pretrained"):
        checkpoints.read(tmp_path / "model_state_best.th")


# ---- flags and errors ----------------------------------------------------------------------

DEFAULTS = dict(
    lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2, fds=False, fds_kernel="gaussian",
    fds_ks=5, fds_sigma=2, start_update=0, start_smooth=1, bucket_num=50, bucket_start=0,
    fds_mmt=0.9, reweight="none", retrain_fc=False, pretrained="", store_root="checkpoint",
    store_name="sts", lr=1e-4, batch_size=128, resume="", evaluate=False, eval_model="",
    gpu=None, print_freq=10, seed=111, log_file="training.log", suffix="",
    word_embs_file="glove/glove.840B.300d.txt", task="sts-b", max_seq_len=40,
    max_word_v_size=30000, dropout_embs=0.2, d_word=300, glove=1, train_words=0, d_hid=1500,
    n_layers_enc=2, n_layers_highway=0, dropout=0.2, optimizer="adam", loss="mse", huber_beta=0.3,
    max_grad_norm=5, val_interval=400, max_vals=100, patience=10, data_dir="glue_data/STS-B",
    device="auto", precision=None, compile=False, fds_variant="official", fds_stats="extra_pass",
    overwrite=False, track="tensorboard", tokenizer="sentence", encoder="", pooling=None,
    group_by_length=False, cache=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "name"),
    [("", "sts_mse_seed_111_valint_400_patience_10_adam_0.0001_128"),
     ("--reweight inverse", "sts_inverse_mse_seed_111_valint_400_patience_10_adam_0.0001_128"),
     ("--loss huber --fds --suffix a",
      "sts_fds_gau_5_2_0_1_0.9_huber_beta_0.3_seed_111_valint_400_patience_10_adam_0.0001_128_a"),
     ("--reweight inverse --lds --lds_sigma 2 --d_hid 128 --random_seed 3",
      "sts_lds_gau_5_2.0_mse_seed_3_valint_400_patience_10_adam_0.0001_128_inverse_d_hid_128"),
     ("--max_grad_norm 1 --word_embs_file glove/glove50.txt --suffix a --max_vals 3",
      "sts_mse_seed_111_valint_400_patience_10_adam_0.0001_128_a_word_embs_file_glove50.txt-dea67a"
      "_max_grad_norm_1.0")],
)  # fmt: skip
def test_names_of_run_folders(flags, name):
    assert "".join(train.run_name(train.parse_args(flags.split()))) == name


def test_a_folder_named_before_the_order_changed_is_found(tmp_path):
    args = train.parse_args(["--d_hid", "64", "--d_word", "32", "--fds_stats", "online"])
    before = "sts_mse_seed_111_valint_400_patience_10_adam_0.0001_128_d_hid_64_d_word_32"
    (tmp_path / f"{before}_fds_stats_online").mkdir()
    found = run_folder.find_run_folder(tmp_path, train.run_name(args))
    assert found.name == f"{before}_fds_stats_online"


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lds", "--reweight sqrt_inv"), ("--lds --reweight inverse --lds_ks 4", "odd"),
     ("--fds --fds_sigma 0", "sigma"), ("--retrain_fc", "--pretrained"),
     ("--resume --overwrite", "choose one"), ("--no_such_flag", "unrecognized"),
     ("--val_interval 0", "1 or more"), ("--random_seed -1 --resume", "draws a new one"),
     ("--cuda 0 --device cpu", "contradict"), ("--pooling max", "--encoder"),
     ("--dropout 1", "--dropout"), ("--fds --bucket_num 2", "--bucket_num"),
     ("--bucket_num 5 --bucket_start 5", "must rise"), ("--bucket_start -5", "from 0"),
     ("--max_grad_norm 0", "--max_grad_norm"), ("--n_layers_highway -1", "--n_layers_highway"),
     ("--target grade --high 100 --bucket_num 20", "give --bin_width"),
     ("--patience -1", "--patience"), ("--n_layers_enc 0", "--n_layers_enc"),
     ("--log_file logs/a.log", "a name"), ("--eval_model a.th", "--evaluate")],
)  # fmt: skip
def test_conflicts_of_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags.split())
    assert message in capsys.readouterr().err


def test_each_process_would_draw_its_own_seed(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        train.parse_args(["--random_seed", "-1"])
    assert "give the run's" in capsys.readouterr().err


def test_spans_of_steps_end_with_epochs_and_validations():
    spans = train.spans_to_validation
    assert spans(0, 5, 3) == [range(0, 3)]
    assert spans(3, 5, 3) == [range(3, 5), range(5, 6)]
    assert spans(4, 5, 5) == [range(4, 5)]  # of a run that was validated at other steps before
    assert spans(6, 2, 7) == [range(6, 7)]
    assert spans(7, 2, 7) == [range(7, 8), range(8, 10), range(10, 12), range(12, 14)]


def test_patience():
    """patience + 2 validations are done, and the latest is no lower than the last ones."""
    stop = train.out_of_patience
    assert not stop([3, 3], 1)  # two validations, three are needed
    assert stop([1, 3, 3], 1)  # ties count
    assert not stop([3, 2, 1], 1)
    assert not stop([1, 4, 3], 1)  # the best is old, but the latest is lower than the one before
    assert stop([1, 2, 3, 4], 2)
    assert not stop([9, 1, 5, 4], 2)
    assert stop([9, 1, 5, 5], 2)
