"""pretrain.py, Rank-N-Contrast: its views, its epochs, resuming, and the second stage."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load

pretrain = load("uci-dir", "pretrain")
train = load("uci-dir", "train")
rows = load("uci-dir", "augmentation")
predict = load("uci-dir", "predict")
demo_data = load("uci-dir", "demo_data")
faces_pretrain = load("agedb-dir", "pretrain")
faces_views = load("agedb-dir", "augmentation")
tiny_run = load("tests", "tiny_run")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    demo_data.main(["--out", str(folder), "--rows", "301"])
    return folder


def command(tables, store, *words):
    fixed = ["--dataset", "demo", "--data_dir", tables, "--store_root", store]
    return [str(word) for word in (*fixed, "--track", "none", "--device", "cpu", *words)]


def test_two_stages(tables, tmp_path, monkeypatch):
    """A resumed run equals an unbroken one; its features rank the labels; RRT leaves them alone."""
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    whole = pretrain.main(command(tables, tmp_path / "whole", "--epoch", 12))
    # The schedule depends on the number of epochs, so a run that ends early is cut from within.
    save, cut = pretrain.checkpoints.save, []

    def save_and_stop(run, model, optimizer, progress, is_best):
        save(run, model, optimizer, progress, is_best)
        if progress["epoch"] == 5 and not cut:
            cut.append(True)
            raise InterruptedError

    monkeypatch.setattr(pretrain.checkpoints, "save", save_and_stop)
    words = command(tables, tmp_path / "parts", "--epoch", 12)
    with pytest.raises(InterruptedError):
        pretrain.main(words)
    parts = pretrain.main([*words, "--resume"])
    with pytest.raises(ValueError, match="pretrained for 12 epochs"):
        pretrain.main([*command(tables, tmp_path / "parts", "--epoch", 13), "--resume"])
    ours, theirs = (torch.load(path, weights_only=True)["state_dict"] for path in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    stage_two = ["--pretrained", whole, "--retrain_fc", "--reweight", "none", "--epoch", 2]
    train.main(command(tables, tmp_path / "two", *stage_two))
    (folder,) = (tmp_path / "two").iterdir()
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["method"] == "RNC"
    made = torch.load(folder / "ckpt.pth.tar", weights_only=True)["state_dict"]
    changed = [name for name in made if not torch.equal(made[name], ours[name])]
    assert changed == ["linear.weight", "linear.bias"]
    train.main(command(tables, tmp_path / "whole", "--epoch", 1, "--resume"))
    assert len([*(tmp_path / "whole").iterdir()]) == 2, "pretraining is no run of train.py"
    of_folder = train.main(
        command(tables, tmp_path / "of", "--pretrained", whole.parent, *stage_two[2:])
    )
    assert of_folder == json.loads((folder / "results.json").read_text("utf-8"))["metrics"]["test"]
    for words in (["--evaluate", "--eval_model"], ["--resume"]):
        with pytest.raises(ValueError, match=r"pretrain\.py.* --retrain_fc --reweight none"):
            train.main(command(tables, tmp_path / "no", *words, whole))
    with pytest.raises(ValueError, match="last layer is not trained yet"):
        predict.load(whole.parent, device="cpu")


def test_second_stage_of_another_network_needs_weights(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    train.main(command(tables, tmp_path, "--epoch", 1))
    (folder,) = tmp_path.iterdir()
    words = ["--retrain_fc", "--reweight", "none", "--pretrained"]
    with pytest.raises(ValueError, match=r"needs something against .* features of pretrain\.py"):
        train.main(command(tables, tmp_path, *words, folder / "ckpt.pth.tar"))
    with pytest.raises(FileNotFoundError, match="missing"):
        train.main(command(tables, tmp_path, *words, "missing"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--fds", "--fds"),
        ("--reweight inverse", "--reweight"),
        ("--regularizer conr", "--regularizer"),
        ("--dist_loss", "--regularizer"),
        ("--srl_momentum 0.1", "--srl_momentum"),
        ("--gather", "--gather"),
        ("--lds_ks 9", "--lds_ks"),
        ("--start_smooth 3", "--start_smooth"),
        ("--oversample 2", "--oversample"),
        ("--fds_stats online", "--fds_stats"),
        ("--fix_noise_sigma", "--fix_noise_sigma"),
        ("--gar_alpha 1", "--gar_alpha"),
        ("--model hist_gradient_boosting", "trees"),
        ("--retrain_fc", "no use for --retrain_fc"),
        ("--batch_size 1", "2 or more"),
        ("--temperature 0", "above 0"),
        ("--epoch 0", "1 or more"),
    ],
)
def test_conflicts(words, message, capsys):
    with pytest.raises(SystemExit):
        pretrain.parse_args(words.split())
    assert message in capsys.readouterr().err


def test_learning_rate_as_published():
    """lr_e = η + (lr − η)(1 + cos(π·e / E)) / 2 with e from 1 and η = lr / 1000."""
    args = faces_pretrain.parse_args([])
    assert (args.lr, args.epoch, args.batch_size, args.momentum) == (0.5, 400, 256, 0.9)
    rates = [faces_pretrain.cosine_lr(args, epoch) for epoch in (0, 199, 399)]
    first = 0.0005 + 0.4995 * (1 + math.cos(math.pi / 400)) / 2
    np.testing.assert_allclose(rates, [first, 0.0005 + 0.4995 / 2, 0.0005])


def test_views_of_rows():
    torch.manual_seed(0)
    inputs = torch.full((400, 50), 3.0)
    view = rows.vary(inputs)
    dropped = view == 0
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (view[~dropped] - 3).std().item() == pytest.approx(0.1, abs=0.01)


def test_views_of_faces():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 20, 20, 3), dtype=torch.uint8)
    first, second = faces_views.vary(images), faces_views.vary(images)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)


def test_faces_learn_to_rank(tmp_path, monkeypatch):
    """Brightness follows the age, so the loss falls; the checkpoint is of all epochs."""
    rng, table = np.random.default_rng(0), []
    for i in range(40):
        age = int(rng.integers(0, 50))
        pixels = np.full((40, 40, 3), 5 * age, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        table.append((age, f"{i}.png", "train" if i < 32 else "val" if i < 36 else "test"))
    table = pd.DataFrame(table, columns=["age", "path", "split"])
    table.to_csv(tmp_path / "agedb.csv", index=False)
    builder, told = tiny_run.make_builder(faces_pretrain.train.FDS), []

    def build_model(args, fresh=False):
        told.append("ImageNet" if fresh and args.imagenet_weights else "nothing")
        return builder(args)

    monkeypatch.setattr(faces_pretrain.train, "build_model", build_model)
    compiler = lambda model, dynamic=False: told.append("compiled")  # noqa: E731
    monkeypatch.setattr(tiny_run.TinyNet, "compile", compiler)
    fixed = "--img_size 40 --batch_size 16 --epoch 6 --lr 0.1 --device cpu".split()
    fixed += ["--imagenet_weights", "--compile"]
    places = ["--data_dir", str(tmp_path), "--store_root", str(tmp_path / "runs")]
    path = faces_pretrain.main([*fixed, *places])
    log = path.with_name("training.log").read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"Epoch \d: loss (.*)", log)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert told == ["ImageNet", "compiled"]
    held = torch.load(path, weights_only=True)
    assert (held["epoch"], held["config"]["pretraining"]) == (6, "rnc")
