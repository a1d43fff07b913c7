"""Losses of later methods in a run: flags, priors, weights, heads, checkpoints, processes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from conftest import ROOT, load
from contract import CONTRACTS

train = load("uci-dir", "train")
criterion = load("uci-dir", "criterion")
heads = load("uci-dir", "heads")
demo_data = load("uci-dir", "demo_data")
prepare = load("uci-dir", "prepare")
age_datasets = load("agedb-dir", "datasets")
GOLDEN = ROOT.parent / "shared" / "golden" / "successors.npz"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("shared/golden/successors.npz is not here")
    with np.load(GOLDEN) as file:
        return dict(file)


def args_of(*words):
    return train.parse_args([str(word) for word in words])


# ---- priors, weights and heads -------------------------------------------------------------


def log_likelihood(values, mixture):
    weights, means, variances = (np.ravel(part) for part in mixture)
    square = (np.asarray(values)[:, None] - means) ** 2 / variances
    density = weights * np.exp(-square / 2) / np.sqrt(2 * np.pi * variances)
    return np.log(density.sum(1)).mean()


def test_the_mixture_is_as_likely_as_the_library_s(golden):
    labels = golden["in/train_labels"]
    values, counts = np.unique(labels, return_counts=True)
    ours = criterion.fit_mixture(values, counts)
    assert ours[0].sum() == pytest.approx(1)
    assert [part.shape for part in ours] == [(8,), (8, 1), (8, 1, 1)]
    # Its own last figure is of the step before; the released code stops at a gain of 1e-3.
    assert log_likelihood(labels, ours) > golden["gai/gmm_lower_bound"] - 1e-3
    scaled = criterion.fit_mixture(values * 1e-4 + 5, counts)
    np.testing.assert_allclose(scaled[1], ours[1] * 1e-4 + 5, rtol=1e-6)


def test_the_mixture_of_known_parts_and_of_few_labels():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.normal(-5, 1, 30_000), rng.normal(4, 0.5, 10_000)])
    weights, means, covariances = criterion.fit_mixture(*np.unique(labels, return_counts=True), 2)
    np.testing.assert_allclose(weights, [0.75, 0.25], atol=1e-3)
    np.testing.assert_allclose(means.ravel(), [-5, 4], atol=0.03)
    np.testing.assert_allclose(covariances.ravel(), [1, 0.25], rtol=0.05)
    for values in ([7.0], [7.0, 8.0]):
        parts = criterion.fit_mixture(np.array(values), np.ones(len(values)))
        assert all(np.isfinite(part).all() for part in parts)
        assert len(parts[0]) == len(values)


def test_the_prior_of_bni(golden):
    counts = np.bincount(golden["in/train_labels"], minlength=121)
    args = args_of("--loss", "bni")
    density = criterion.density_of(args, counts, age_datasets.LDS_RULE)
    centers, weights = criterion.prior_of(args, golden["in/train_labels"], np.arange(121), density)
    np.testing.assert_array_equal(centers, golden["bni/centers"])
    np.testing.assert_allclose(weights, golden["bni/weights"], rtol=1e-12)
    # Smoothed it is the plain convolution of the counts, neither bounded nor cut.
    args = args_of("--loss", "bni", "--lds", "--lds_kernel", "triang", "--lds_ks", 3)
    density = criterion.density_of(args, counts, {"clip": (5, 1000), "truncate": True})
    centers, weights = criterion.prior_of(args, None, np.arange(121), density)
    smoothed = np.convolve(counts, [0.5, 1, 0.5], mode="same")
    np.testing.assert_array_equal(centers, np.flatnonzero(smoothed))
    np.testing.assert_allclose(weights, smoothed[smoothed > 0] / smoothed.sum())


def test_the_weights_of_experts(golden):
    labels = golden["in/train_labels"]
    counts = np.bincount(labels, minlength=121)
    by_age = criterion.weights_of(
        args_of("--experts", 3), labels, np.arange(121), counts, age_datasets.LDS_RULE
    )
    np.testing.assert_allclose(by_age[labels].T, golden["uvote/train_weights"], rtol=1e-6)


def test_dense_weights_of_a_run_are_those_at_the_labels():
    labels = np.random.default_rng(1).gamma(2, 3, 100)
    args = args_of("--reweight", "dense", "--dense_alpha", 0.8)
    ours = criterion.weights_at(args, labels, None, None)
    expected = load("uci-dir", "lds").dense_weights(labels, 0.8)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


class Constant(nn.Module):
    """A head whose output is given."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.as_tensor(values)

    def forward(self, features):
        return self.values


def test_experts_answer_and_learn_as_published(golden):
    experts = heads.Experts(4, 3)
    assert experts.mean.weight.std() < 0.02
    assert not experts.log_scale.bias.any()
    experts.mean = Constant(golden["uvote/mu"].T)
    experts.log_scale = Constant(golden["uvote/log_scale"].T)
    preds, std = experts.eval()(None).T
    np.testing.assert_allclose(preds, golden["uvote/pred_minvar"])
    np.testing.assert_allclose(std, golden["uvote/std_minvar"], rtol=1e-6)
    outputs = experts.train()(None)
    weights = torch.tensor(golden["uvote/batch_weights"].T)
    batch = SimpleNamespace(weights=weights, share=1.0)
    targets = torch.tensor(golden["in/labels"]).unsqueeze(1)
    model, place = SimpleNamespace(linear=experts), SimpleNamespace(device="cpu")

    def total(schedule, done):
        run = SimpleNamespace(accelerator=place, args=args_of("--experts", 3))
        run.args.expert_schedule = schedule
        return criterion.Criterion(run, model, None, None, done)(outputs, targets, batch).item()

    rising = golden["uvote/total_dynamic_epoch30of90"]
    assert total("rise", 30 / 90) == pytest.approx(rising)
    assert total("constant", 30 / 90) == pytest.approx(golden["uvote/total_static"])
    first = golden["uvote/nll_each"][0]
    assert total("fade", 30 / 90) == pytest.approx(rising - first / 9)


def test_learning_rates_and_what_is_trained():
    def groups(*words):
        args = args_of(*words)
        net = nn.Module()
        net.hidden, net.linear = nn.Linear(2, 3), nn.Linear(3, 1)
        optimizer = torch.optim.Adam(
            heads.parameter_groups(args, heads.extend(net, args)), lr=args.lr
        )
        heads.set_lr(optimizer, 1e-4)
        return [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]

    retrain = ("--retrain_fc", "--pretrained", "f")
    assert groups() == [(4, 1e-4)]
    assert groups("--loss", "bmc", "--sigma_lr", 0.5) == [(4, 1e-4), (1, 0.5)]
    assert groups("--loss", "gai", "--fix_noise_sigma", *retrain) == [(2, 1e-4)]
    assert groups("--loss", "bni", *retrain) == [(2, 1e-4), (1, 0.01)]
    assert groups("--experts", 2) == [(4, 1e-4), (2, pytest.approx(1e-5))]
    assert groups("--experts", 2, *retrain) == [(2, 1e-4), (2, pytest.approx(1e-5))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--loss bmc --fix_noise_sigma --sigma_lr 0.1", "choose one"),
        ("--noise_sigma 2", "--noise_sigma needs --loss bmc, gai or bni"),
        ("--loss gai --gather", "--gather needs --loss bmc or"),
        ("--gar_alpha 2", "--gar_alpha needs --loss gar"),
        ("--reweight inverse --dense_alpha 2", "--dense_alpha needs --reweight dense"),
        ("--expert_schedule rise", "--expert_schedule needs --experts"),
        ("--experts 2 --loss bmc", "leave out --loss bmc"),
        ("--experts 2 --reweight inverse", "--experts takes no weights"),
        ("--experts -1", "--experts must be from 0"),
        ("--loss bni --reweight inverse --lds", "leave out --reweight inverse"),
        ("--loss gar --lds", "drop --lds"),
        ("--loss bmc --batch_size 1", "2 or more"),
        ("--reweight dense --lds", "--lds smooths the weights"),
        ("--reweight dense --dense_alpha -1", "--dense_alpha must be 0 or more"),
        ("--loss bmc --noise_sigma 0", "--noise_sigma must be above 0"),
        ("--loss gar --gar_alpha nan", "--gar_alpha must be a number"),
        ("--model hist_gradient_boosting --experts 2", "trees have no"),
        ("--compare --loss bmc", "--compare chooses"),
    ],
)
def test_conflicts_of_flags(words, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(words.split())
    assert message in capsys.readouterr().err


# ---- runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    demo_data.main(["--out", str(folder), "--rows", "101"])
    return folder


def flags(tables, store, *more):
    fixed = ("--dataset", "demo", "--data_dir", tables, "--store_root", store, "--track", "none")
    return [str(w) for w in (*fixed, "--device", "cpu", "--batch_size", 16, *more)]


def only_run(store):
    (folder,) = (path for path in store.iterdir() if path.is_dir())
    return folder


METHODS = {
    "BMC": "--loss bmc",
    "GAI": "--loss gai --target_scale log",
    "BNI+LDS": "--loss bni --lds --noise_sigma 0.5",
    "BNI+FDS": "--loss bni --fds --fix_noise_sigma",
    "GAR": "--loss gar",
    "DENSE+FDS": "--reweight dense --fds",
    "UVOTE+LDS+FDS": "--experts 3 --lds --fds",
    "UVOTE": "--experts 2 --target_scale log",
}


@pytest.fixture
def no_figures(monkeypatch):
    """They take longer than these runs."""
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_and_resumed_is_the_unbroken_one(tables, tmp_path, method, no_figures):
    words = METHODS[method].split()
    train.main(flags(tables, tmp_path / "whole", "--epoch", 3, *words))
    for epochs in (1, 3):
        again = ("--epoch", epochs, *words, "--resume")
        train.main(flags(tables, tmp_path / "parts", *again))
    whole, parts = (only_run(tmp_path / name) for name in ("whole", "parts"))
    kept = [torch.load(run / "ckpt.pth.tar", weights_only=True) for run in (whole, parts)]
    for name, value in kept[0]["state_dict"].items():
        assert torch.equal(value, kept[1]["state_dict"][name]), name
    results = json.loads((whole / "results.json").read_text())
    assert results["method"] == method
    # An evaluation needs none of the flags: heads come from the checkpoint.
    scale = [word for word in words if word in ("--target_scale", "log")]
    best = whole / "ckpt.best.pth.tar"
    metrics = train.main(flags(tables, tmp_path, "--evaluate", "--eval_model", best, *scale))
    assert metrics["overall"]["mae"] == pytest.approx(results["metrics"]["test"]["overall"]["mae"])
    predictions = pd.read_csv(whole / "predictions.csv")
    assert ("std" in predictions) == ("UVOTE" in method)
    if "UVOTE" in method:
        assert (predictions["std"] > 0).all()
    density = pd.read_csv(whole / "label_density.csv")
    assert density["eff_label_dist"].notna().all() == ("LDS" in method)
    if "--loss" in words and "gar" not in words:
        moved = kept[0]["state_dict"]["noise_sigma"] != float(results["config"]["noise_sigma"])
        assert moved == ("--fix_noise_sigma" not in words)


def test_two_stages_of_balanced_mse(tables, tmp_path, no_figures):
    """The second stage starts from plain training and learns the last layer and the noise."""
    train.main(flags(tables, tmp_path / "first", "--epoch", 1))
    first = only_run(tmp_path / "first") / "ckpt.best.pth.tar"
    words = ("--loss", "bmc", "--retrain_fc", "--pretrained", first, "--noise_sigma", 2)
    train.main(flags(tables, tmp_path / "second", "--epoch", 1, *words))
    folder = only_run(tmp_path / "second")
    before, after = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (first, folder / "ckpt.pth.tar")
    )
    assert after.pop("noise_sigma") != 2
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith("linear."), name
    assert json.loads((folder / "results.json").read_text())["method"] == "RRT BMC"
    # A third one has a noise of its own, not the second one's.
    words = (*words[:4], folder / "ckpt.pth.tar", "--noise_sigma", 3, "--fix_noise_sigma")
    train.main(flags(tables, tmp_path / "third", "--epoch", 1, *words))
    third = torch.load(only_run(tmp_path / "third") / "ckpt.pth.tar", weights_only=True)
    assert third["state_dict"]["noise_sigma"] == 3


def test_new_rows_get_a_deviation(tables, tmp_path, no_figures):
    train.main(flags(tables, tmp_path / "runs", "--epoch", 1, "--experts", 2))
    rows = pd.read_csv(tables / "demo.csv").head(5).assign(std="theirs")
    rows.to_csv(tmp_path / "new.csv", index=False)
    best = only_run(tmp_path / "runs") / "ckpt.best.pth.tar"
    words = ("--predict", tmp_path / "new.csv", "--eval_model", best)
    written = pd.read_csv(train.main(flags(tables, tmp_path, *words)))
    assert (written["std"] == "theirs").all()
    assert (written["std_"] > 0).all()
    assert written["prediction"].notna().all()


OTHERS = [  # folder, flags, method, and whether predictions come with a deviation
    ("agedb-dir", "--experts 2 --fds", "UVOTE+FDS", True),
    ("agedb-dir", "--reweight dense --target age --high 70 --bin_width 5", "DENSE", False),
    ("sts-b-dir", "--loss gai", "GAI", False),
    ("sts-b-dir", "--experts 3", "UVOTE", True),
    ("shhs-dir", "--experts 2 --lds", "UVOTE+LDS", True),
    ("nyud2-dir", "--loss bni --lds", "BNI+LDS", False),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data of each folder, made when first asked for."""
    made = {}

    def of(contract):
        if contract.folder not in made:
            path = tmp_path_factory.mktemp(contract.folder)
            made[contract.folder] = contract.make_data(path)
        return made[contract.folder]

    return of


@pytest.mark.parametrize(("folder", "words", "method", "deviates"), OTHERS)
def test_the_other_folders_resume_and_evaluate(
    made, tmp_path, monkeypatch, folder, words, method, deviates
):
    contract = next(contract for contract in CONTRACTS if contract.folder == folder)
    monkeypatch.setattr(contract.train.report, "draw_run", lambda folder: None)
    if contract.tiny and "--experts" not in words:
        extend, build = contract.train.heads.extend, contract.tiny()
        network = lambda args, fresh=False: extend(build(args, fresh), args)  # noqa: E731
        monkeypatch.setattr(contract.train, "build_model", network)
    data = made(contract)
    lines_of = {"nyud2-dir": (1,)}.get(folder, (1, 2))  # its runs take long
    for lines in lines_of:
        more = (*contract.lines(lines), *words.split(), "--resume")
        contract.train.main(contract.argv(data, tmp_path / "runs", *more))
    run = only_run(tmp_path / "runs")
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == method
    assert len((run / "epochs.jsonl").read_text().splitlines()) == lines_of[-1]
    again = ["--evaluate", "--eval_model", run / contract.best]
    if folder == "sts-b-dir":  # whose checkpoints hold the weights alone
        again += words.split()
    metrics = contract.train.main(contract.argv(data, tmp_path, *again))
    name = results["main_metrics"][0]
    assert metrics["overall"][name] == pytest.approx(results["metrics"]["test"]["overall"][name])
    assert ("std" in pd.read_csv(run / "predictions.csv")) == deviates


def test_the_networks_have_a_noise():
    nyud2 = load("nyud2-dir", "train")
    words = "--model mini --loss bni --noise_sigma 0.5 --retrain_fc --pretrained f"
    args = nyud2.parse_args(words.split())
    model = nyud2.build_model(args)
    names = {
        "noise_sigma",
        *(name for name, _ in model.named_parameters() if name.startswith("R.")),
    }
    nyud2.build_optimizer(args, model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names
    assert model.noise_sigma.item() == 0.5


@pytest.mark.parametrize("words", ["--experts 2", "--reweight dense", "--loss bmc"])
def test_methods_that_are_not_for_pixels(words, capsys):
    with pytest.raises(SystemExit):
        load("nyud2-dir", "train").parse_args(words.split())
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_as_one(tables, tmp_path, no_figures):
    """With --gather BMC compares with the whole batch, and the noise learns from all of it."""
    words = ("--epoch", 2, "--loss", "bmc", "--noise_sigma", 0.5)
    train.main(flags(tables, tmp_path / "one", *words))
    command = [sys.executable, *TORCHRUN, "train.py"]
    command += flags(tables, tmp_path / "two", *words, "--gather")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"capture_output": True, "text": True, "check": False, "env": environment}
    done = subprocess.run(command, cwd=ROOT / "uci-dir", **options)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (
        torch.load(only_run(tmp_path / store) / "ckpt.pth.tar", weights_only=True)["state_dict"]
        for store in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
