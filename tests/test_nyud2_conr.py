"""ConR for depth maps: its authors' figures, a slow transcription, where it ends, training."""

import json
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

import tiny_depth_net
from conftest import load
from test_depth_target import CALM, write_lists

conr = load("nyud2-dir", "conr")
datasets = load("nyud2-dir", "datasets")
train = load("nyud2-dir", "train")
NEAR = dict(rtol=1e-9, atol=1e-12)
CONR = "--regularizer conr".split()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_as_released(golden, dtype, tolerance):
    with np.load(golden / "successors.npz", allow_pickle=False) as file:
        row = {name[9:]: file[name] for name in file.files if name.startswith("conr_nyu/")}
    z, *maps = (
        torch.from_numpy(row[name]).to(dtype) for name in ("features", "depth", "output", "weights")
    )
    z.requires_grad_()
    means = [conr.mean_of(x, torch.ones_like(x, dtype=bool)) for x in maps]
    loss = conr.conr_loss(z, *means, official=True)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.dtype == dtype
    assert_allclose(loss.item(), row["loss"], rtol=tolerance)
    assert_allclose(gradient, row["grad_features"], rtol=tolerance, atol=tolerance)
    plain = conr.conr_loss(z, *means)  # each anchor has one positive: half of the divisor
    assert 0 < plain < 2 * loss


def drawn(n=14, dtype=torch.float64):
    """Features of n maps, and their mean depths, predictions and weights."""
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((n, 3, 2, 4))).to(dtype).requires_grad_()
    labels = np.append(rng.integers(0, 12, n - 1) * 0.3, 5.0)  # the last is alone
    columns = labels, labels + rng.normal(0, 0.6, n), rng.random(n) + 0.2
    return z, *(torch.from_numpy(column).to(dtype) for column in columns)


@pytest.mark.parametrize("official", [False, True])
def test_by_its_formula(official):
    z, y, p, w = drawn()
    omega, temperature, push, n = 0.4, 0.3, 0.7, len(z)
    rows = [x / x.square().sum().sqrt() for x in z]
    total, idle = 0.0, {"positives": 0, "negatives": 0}
    for i in range(n):
        positives = [j for j in range(n) if j != i and abs(y[i] - y[j]) <= omega]
        negatives = [
            j for j in range(n) if abs(y[i] - y[j]) > omega and abs(p[i] - p[j]) <= omega
        ]  # fmt: skip
        idle["positives"] += not positives
        idle["negatives"] += not negatives
        if not positives or not negatives:
            continue
        s = [(rows[i] * row).sum() / temperature for row in rows]
        denominator = sum(s[j].exp() for j in positives)
        for j in negatives:
            denominator = denominator + push * w[i] * abs(y[i] - y[j]) * s[j].exp()
        if official:
            denominator = denominator + n - len(positives)
        part = sum(denominator.log() - s[j] for j in positives)
        total = total + part / (len(positives) + official)
    assert min(idle.values()) > 0
    got = conr.conr_loss(z, y, p, w, omega, temperature, push, official)
    assert not conr.conr_loss(z.detach(), y, p.requires_grad_(), w, omega).requires_grad
    assert_allclose(got.item(), total.item() / n, **NEAR)
    ours, theirs = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (got, total / n))
    assert_allclose(ours, theirs, **NEAR)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("kind", ["one", "equal", "distinct", "far", "none", "zeros", "no push"])
def test_no_batch_gives_nan(kind, official):
    z, y, p, w = drawn()
    z = z.detach() * (kind != "zeros")
    keep = slice(0, 1 if kind == "one" else None)
    y = {"equal": y * 0 + 3, "distinct": torch.arange(14.0) * 9, "none": y * torch.nan}.get(kind, y)
    p = torch.arange(14.0) * 9 if kind == "far" else p
    z = z[keep].requires_grad_()
    push = 0.0 if kind == "no push" else 0.2
    loss = conr.conr_loss(z, y[keep], p[keep], w[keep], push=push, official=official)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()
    assert (loss == 0) == (kind not in ("zeros", "no push"))  # nothing to compare
    assert gradient.any() == (kind == "no push") or kind == "zeros"


def test_a_map_without_labels_is_compared_with_none():
    z, y, p, w = drawn()
    maps = y[:, None, None, None] + torch.tensor([[-1.0, 1.0], [50.0, 7.0]])
    seen = torch.tensor([[True, True], [False, False]]).expand(14, 1, 2, 2).clone()
    assert_allclose(conr.mean_of(maps, seen), y, **NEAR)
    seen[5] = False
    y, p, w = (torch.where(torch.arange(14) == 5, torch.nan, x) for x in (y, p, w))
    assert_allclose(conr.mean_of(maps, seen), y, **NEAR)
    loss = conr.conr_loss(z, y, p, w)
    others = [x[torch.arange(14) != 5] for x in (z, y, p, w)]
    assert_allclose(loss.item() * 14, conr.conr_loss(*others).item() * 13, **NEAR)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()
    assert loss > 0


def test_half_precision_autocast_and_no_copy():
    """exp(1 / 0.07) overflows float16; features as the network lays them out are read in place."""
    z, y, p, w = drawn(dtype=torch.float32)
    half = z.detach().bfloat16()
    expected = conr.conr_loss(half.float(), y, p, w, temperature=0.01)
    kept = []
    for x in (half, half.float().to(memory_format=torch.channels_last)):
        x.requires_grad_()
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        ):
            loss = conr.conr_loss(x, y, p, w, temperature=0.01)
        assert loss.dtype == torch.float32
        assert_allclose(loss.item(), expected.item(), rtol=1e-5)
        assert torch.autograd.grad(loss, x)[0].isfinite().all()
        big = {t.data_ptr() for t in kept if t.numel() == x.numel()}
        assert len(big) == 1
        kept.clear()
    assert big == {x.data_ptr()}


def test_means_are_over_pixels_with_a_label():
    """Corners without depth, which rotation leaves, would make a picture look near."""
    z, y, p, w = drawn(dtype=torch.float32)
    depths = y[:, None, None, None].repeat(1, 1, 4, 4) + 1
    preds, weights = (x[:, None, None, None].repeat(1, 1, 4, 4) for x in (p, w))
    depths[::2, :, 0], preds[::2, :, 0], weights[::2, :, 0] = 0.0, 90.0, 70.0
    batch = datasets.Batch(None, depths, weights, None, None, 1.0, 14)
    args = train.parse_args([*CONR, "--regularizer_weight", "3", "--conr_push", "0.5"])
    got = conr.added_loss(args, train.DEPTH.of(args), batch, preds, z)
    expected = 3 * conr.conr_loss(z, y + 1, p, w, temperature=0.2, push=0.5)
    assert expected > 0
    assert_allclose(got.item(), expected.item(), rtol=1e-5)
    batch = batch._replace(weights=None, mask=depths > 0)
    got = conr.added_loss(args, SimpleNamespace(own=True, scaled=lambda x: 2 * x), batch, preds, z)
    expected = 3 * conr.conr_loss(z, 2 * (y + 1), p, temperature=0.2, push=0.5)
    assert_allclose(got.item(), expected.item(), rtol=1e-5)


# ---- train.py ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--conr_official --temperature 1", "--temperature, --conr_official needs --regularizer"),
        ("--regularizer srl", "invalid choice"),
        ("--regularizer conr --gather", "not for maps"),
        ("--regularizer conr --temperature 0", "above 0"),
        ("--regularizer conr --conr_omega -1", "--conr_omega must be 0 or more, got -1.0"),
        ("--regularizer conr --conr_push inf", "--conr_push must be 0 or more"),
        ("--regularizer conr --regularizer_weight nan", "must be"),
        ("--regularizer conr --experts 2", "choose one"),
    ],
)
def test_conflicts(words, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(words.split())
    assert message in capsys.readouterr().err


def test_names():
    for words, name, end in (
        ("", "CONR", "_regularizer_conr"),
        ("--conr_official --fds", "FDS+CONR (official)", "_conr_conr_official"),
        ("--reweight inverse --lds --conr_push 1", "INV+LDS+CONR", "_conr_conr_push_1.0"),
        ("--loss bni --temperature 0.07", "BNI+CONR", "_temperature_0.07"),
    ):
        args = train.parse_args([*CONR, *words.split()])
        assert train.results.method_name(args, train.make_parser()) == name
        assert "".join(train.run_name(args)).endswith(end)


def write_pictures(folder, kind):
    """Write 12 training and 4 test pairs of flat maps whose depths come in near pairs."""
    rng = np.random.default_rng(0)
    for i, (image, path) in enumerate(write_lists(folder, "_depth.png" if kind == "m" else ".npy")):
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(image)
        depth = np.full((240, 320), 1 + i // 2 + 0.1 * (i % 2))
        if kind == "own":
            depth[:90] = np.nan
            np.save(path, depth.astype(np.float32))
        else:
            units = np.uint8(depth * 25.5) if i < 12 else np.uint16(depth * 1000)
            Image.fromarray(units).save(path)
    np.save(folder / "test_balanced_mask.npy", np.ones((4, 228, 304), np.uint8))


@pytest.fixture(params=["m", "own"])
def trained(request, tmp_path, monkeypatch):
    """A function that trains a tiny network in a store, and returns its run folder."""
    write_pictures(tmp_path, request.param)
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    monkeypatch.setattr(train.depth_figures, "draw_run", lambda *rest: None)
    monkeypatch.setitem(sys.modules, "maps", load("nyud2-dir", "maps"))
    own = (
        "--low 0 --high 10 --bin_width 0.1 --map_size 32 48"
        if request.param == "own"
        else "--downscale 4"
    )
    net = lambda name, module, fresh: tiny_depth_net.TinyNet(module)  # noqa: E731

    def run(store, *more):
        words = [*CALM.split(), *own.split(), "--model", "mini", "--data_dir", tmp_path]
        words += ["--store_root", tmp_path / store, *more]
        with mock.patch.multiple(train, DepthNet=net, feature_dim_of=lambda name: 8):
            train.main(list(map(str, words)))
        return next((tmp_path / store).iterdir())

    return run


def test_it_is_added_to_the_loss_and_resumed_bit_for_bit(trained):
    """An epoch of one step logs the loss of the untrained network."""
    logged = []
    for weight in (0, 0.2, 0.4):
        words = [*CONR, "--regularizer_weight", weight, "--batch_size", 12, "--epochs", 1]
        folder = trained(f"weight_{weight}", *words)
        logged.append(json.loads((folder / "epochs.jsonl").read_text())["train_loss"])
    plain = trained("plain", "--batch_size", 12, "--epochs", 1)
    assert json.loads((plain / "epochs.jsonl").read_text())["train_loss"] == logged[0]
    assert logged[1] > logged[0] + 0.01
    assert logged[2] - logged[0] == pytest.approx(2 * (logged[1] - logged[0]), rel=1e-3)
    words = [*CONR, *"--reweight inverse --lds --fds --fds_stats online".split()]
    whole = trained("whole", *words, "--epochs", 3)
    trained("parts", *words, "--epochs", 1)
    parts = trained("parts", *words, "--epochs", 3, "--resume")
    states = [
        torch.load(folder / "checkpoint.pth.tar", weights_only=False)["state_dict"]
        for folder in (whole, parts)
    ]  # fmt: skip
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    found = json.loads((whole / "results.json").read_text())
    assert found["method"] == "INV+LDS+FDS+CONR"
    assert np.isfinite(found["metrics"]["test"]["overall"]["rmse"])


@pytest.mark.parametrize("loss", ["gai", "bni"])
def test_with_balanced_mse(loss, trained):
    folder = trained(loss, *CONR, "--loss", loss, "--epochs", 1)
    found = json.loads((folder / "results.json").read_text())
    assert found["method"] == f"{loss.upper()}+CONR"
