"""nyud2-dir on maps of your own: shots, files of any kind, targets of any range."""

import json
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tiny_depth_net
from conftest import load

CALM = "--device cpu --workers 1 --track none --cache none --batch_size 4 --epochs 2 --lr 1e-2"


def train_tiny(folder, *more):
    """Train or evaluate in this process with a network of three layers."""
    train = load("nyud2-dir", "train")
    net = lambda name, module, fresh: tiny_depth_net.TinyNet(module)  # noqa: E731
    words = [*CALM.split(), "--data_dir", folder, "--store_root", folder / "runs", *more]
    with mock.patch.multiple(train, DepthNet=net, feature_dim_of=lambda name: 8):
        metrics = train.main(list(map(str, words)))
        runs = list((folder / "runs").glob("*"))
    return metrics, runs[0] if runs else None


def write_lists(folder, suffix):
    """Write the lists of 12 training pairs of six scenes and of 4 test pairs."""
    pairs = [
        f"data/s_{i // 2:04d}_out/{i}.png,data/s_{i // 2:04d}_out/{i}{suffix}" for i in range(16)
    ]
    (folder / "nyu2_train.csv").write_text("\n".join(pairs[:12]) + "\n")
    (folder / "nyu2_test.csv").write_text("\n".join(pairs[12:]) + "\n")
    for line in pairs:
        (folder / line.split(",")[0][5:]).parent.mkdir(exist_ok=True)
    return [[folder / name[5:] for name in line.split(",")] for line in pairs]


# ---- shots ---------------------------------------------------------------------------------


def test_the_rule_of_shares_gives_the_released_lists_of_the_official_pixels():
    metrics, datasets = load("nyud2-dir", "metrics"), load("nyud2-dir", "datasets")
    fixed = metrics.shots_of_buckets()
    assert metrics.shots_of_buckets(datasets.TRAIN_COUNTS).tolist() == fixed.tolist()
    shots = metrics.shots_of_buckets([0, 71, 69, 30, 230, 29, 171])  # an even share is 100
    assert shots.tolist() == ["few", "many", "medium", "medium", "many", "few", "many"]


def test_shots_of_own_pairs_follow_their_training_pixels(tmp_path, monkeypatch):
    """Most pixels lie beyond 8 m, where the fixed lists say few-shot."""
    rng = np.random.default_rng(0)
    for i, (image, depth) in enumerate(write_lists(tmp_path, "_d.png")):
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(image)
        metres = np.where(np.arange(320) < 32, 2.05, 8.0 + 0.1 * rng.integers(0, 10, (240, 320)))
        values = metres * 25.5 if i < 12 else metres * 1000
        Image.fromarray(np.rint(values).astype(np.uint8 if i < 12 else np.uint16)).save(depth)
    load("nyud2-dir", "prepare").main(["--data_dir", str(tmp_path)])
    monkeypatch.setattr(load("nyud2-dir", "train").report, "draw_run", lambda folder: None)
    found, folder = train_tiny(tmp_path, "--model", "mini", "--downscale", 4)
    density = pd.read_csv(folder / "label_density.csv")
    even = density["count"].sum() / (density["count"] > 0).sum()
    shots = np.select([density["count"] > 0.7 * even, density["count"] < 0.3 * even],
                      ["many", "few"], "medium")  # fmt: skip
    assert density["shot"].tolist() == shots.tolist()
    assert shots[85] == "many"
    table = pd.read_csv(folder / "error_by_depth.csv")
    assert table["shot"].tolist() == [shots[round(10 * label)] for label in table["label"]]
    test = table[table["split"] == "test"]
    assert found["many"]["num_samples"] == test["pixels"][test["shot"] == "many"].sum() > 0
    # An evaluation has them from the checkpoint, without a training pair.
    (tmp_path / "nyu2_train.csv").unlink()
    again, _ = train_tiny(tmp_path, "--model", "mini", "--downscale", 4, "--evaluate",
                          "--eval_model", folder)  # fmt: skip
    assert again == found
    with pytest.raises(ValueError, match="no 100 counts"):
        load("nyud2-dir", "checkpoints").pixels_of({"pixels": [1, -2]}, "x", 100)


# ---- maps of any kind ----------------------------------------------------------------------


def save_map(path, values):
    """Write a map in the format of its name."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values)
    else:
        Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.npy", "f8"), ("a.npz", "i2"), ("a.tif", "f4"), ("a.png", "u1"), ("b.png", "u2")],
)
def test_a_map_of_any_kind_keeps_its_values(name, kind, tmp_path):
    values = np.arange(12).reshape(3, 4).astype(kind)
    save_map(tmp_path / name, values)
    found = load("nyud2-dir", "maps").read_map(tmp_path / name, 7)
    expected = np.where(values == 7, np.nan, values.astype("f4"))
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_map_is_refused(tmp_path):
    read_map = load("nyud2-dir", "maps").read_map
    np.save(tmp_path / "three.npy", np.zeros((3, 4, 2)))
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 4)), b=np.zeros((3, 4)))
    Image.new("RGB", (4, 3)).save(tmp_path / "colour.png")
    for name, message in (("three.npy", r"\[3, 4, 2\]"), ("two.npz", "2 arrays"),
                          ("colour.png", "mode is RGB")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_map(tmp_path / name)


OWN = {
    # Rain of which most pixels are true zeros: 256 x 256, symlog; -1 is a pixel no radar saw.
    "rain": (".npy", (256, 256), "--target rain --unit mm --low 0 --high 200 --scale symlog "
             "--no_label -1 --map_size 64 64 --reweight sqrt_inv --lds --fds"),
    # Depths in millimetres as float TIFF, 3:2, where NaN is no label.
    "depth": (".tif", (80, 120), "--unit mm --low 500 --high 9000 --map_size 64 96 "
              "--reweight inverse --lds --fds --fds_stats online"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_maps_from_files_to_predictions(name, tmp_path, monkeypatch, capsys):
    suffix, shape, words = OWN[name]
    rng = np.random.default_rng(0)
    for image, path in write_lists(tmp_path, suffix):
        bright = np.kron(rng.random((8, 8)), np.ones((shape[0] // 8, shape[1] // 8)))
        noise = rng.normal(0, 5, (*shape, 3))
        pixels = np.clip(255 * bright[..., None] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(image)
        labels = 500 + 8500 * bright
        if name == "rain":
            labels = np.where(bright < 0.6, 0.0, 10 ** (5.75 * (bright - 0.6)) - 1)
        labels[: shape[0] // 8] = -1 if name == "rain" else np.nan
        save_map(path, labels.astype(np.float32))
    if name == "depth":  # one set of figures will do
        monkeypatch.setattr(load("nyud2-dir", "train").report, "draw_run", lambda folder: None)
    own = [*words.split(), "--model", "mini"]
    flags = words.split(" --reweight")[0].split()
    monkeypatch.setitem(sys.modules, "maps", load("nyud2-dir", "maps"))  # imported late
    assert load("nyud2-dir", "prepare").main(["--data_dir", str(tmp_path), *flags]) == 0
    told = capsys.readouterr().out
    size = np.prod([int(side) for side in words.split("--map_size ")[1].split()[:2]])
    assert (
        "warning: fewer than 100 test maps or 20 filled buckets, so metrics will be noisy" in told
    )
    assert f"nyu2_test.csv: 4 maps, {4 * size * 7 // 8:,} pixels with a label" in told
    assert not (tmp_path / "test_balanced_mask.npy").exists()
    found, folder = train_tiny(tmp_path, *own)
    results = json.loads((folder / "results.json").read_text())
    assert results["target"]["name"] == name
    assert results["target"]["unit"] == "mm"
    assert results["main_metrics"] == ["rmse", "mae"]
    assert ("delta1" in found["overall"]) == (name == "depth")  # zeros have no ratio
    assert np.isfinite(found["overall"]["rmse"])
    # Seven eighths of each test map have a label, zeros too; 10 training maps are counted.
    assert found["overall"]["num_samples"] == 4 * size * 7 // 8
    density = pd.read_csv(folder / "label_density.csv")
    assert density["count"].sum() == 10 * size * 7 // 8
    assert len(density) == 50
    assert len(np.load(folder / "fds_statistics.npz")["label"]) == 50
    pixels = pd.read_csv(folder / "predictions.csv")
    assert (pixels["label"] == 0).any() == (name == "rain")
    assert (pixels["label"] >= 0).all()
    errors = "error_by_depth" if name == "depth" else "error_by_label"
    assert [path.name for path in folder.glob("error_by_*")] == [f"{errors}.csv"]
    assert [path.name for path in folder.glob("figures/error_by_*")] == [f"{errors}.png"]
    assert (folder / "figures" / "examples.png").exists()
    assert results["sample"] == "pixel"  # what the figures count
    # An evaluation takes the target from the checkpoint, and so does predict.py.
    again, _ = train_tiny(tmp_path, "--evaluate", "--eval_model", folder)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(found))
    predict = load("nyud2-dir", "predict")
    net = lambda name, module, fresh: tiny_depth_net.TinyNet(module)  # noqa: E731
    with mock.patch.multiple(predict.train, DepthNet=net, feature_dim_of=lambda name: 8):
        out = str(tmp_path / "out.csv")
        new = [str(tmp_path / "s_0007_out" / "15.png"), "--model", str(folder), "--out", out]
        assert predict.main([*new, "--device", "cpu"]) == 0
    table = pd.read_csv(out)
    values = np.load(table["map"][0])
    assert values.shape == shape
    kept = pixels[(pixels["split"] == "test") & pixels["path"].str.endswith("15.png")]
    height, width = (int(side) for side in words.split("--map_size ")[1].split()[:2])
    y = (2 * kept["y"] + 1) * shape[0] // (2 * height)
    x = (2 * kept["x"] + 1) * shape[1] // (2 * width)
    np.testing.assert_allclose(values[y, x], kept["prediction"], rtol=1e-3, atol=1e-3)


def test_colours_of_examples_follow_the_scale_and_say_what_lies_beyond():
    figures = load("nyud2-dir", "depth_figures")
    target = figures.DEPTH._replace(name="rain", low=0, high=99, scale="symlog", own=True)
    depths = torch.tensor([0.0, 1.0, 9.0, 99.0]).reshape(1, 1, 2, 2)
    batch = load("nyud2-dir", "datasets").Batch(
        torch.zeros(1, 3, 2, 2), depths, None, torch.ones(1, 1, 2, 2, dtype=torch.bool), 0, 1, 1
    )
    preds = torch.tensor([0.0, 1.0, 9.0, 9.0]).reshape(1, 1, 2, 2)  # once 90 too few
    fig = figures.draw_examples(batch, preds, "", target)
    _, truth, _, _, values, errors = fig.axes
    assert truth.images[0].norm(1.0) > 0.2  # on a linear scale 0.01
    bars = [axes._colorbar.extend for axes in (values, errors)]
    assert bars == ["neither", "min"]


def test_a_set_of_one_scene_is_no_set(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "maps", load("nyud2-dir", "maps"))
    for split in ("train", "test"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{split}.png")
        np.save(tmp_path / f"{split}.npy", np.ones((32, 32)))
        (tmp_path / f"nyu2_{split}.csv").write_text(f"data/{split}.png,data/{split}.npy\n")
    prepare = load("nyud2-dir", "prepare")
    words = ["--data_dir", str(tmp_path), *"--target x --low 0 --high 2 --map_size 32 32".split()]
    with pytest.raises(ValueError, match="one scene, of 1 images: nothing to hold out"):
        prepare.main(words)
    assert not (tmp_path / "nyu2_train_FDS_subset.csv").exists()
    assert prepare.main([*words, "--subset"]) == 0  # for --select test


def test_errors_say_of_how_many_pixels_they_are(tmp_path, monkeypatch):
    figures = load("nyud2-dir", "depth_figures")
    drawn = []
    monkeypatch.setattr(figures, "draw_examples", lambda *given: None)
    monkeypatch.setattr(figures, "save", lambda fig, path: drawn.append((fig, path.name)))
    table = pd.DataFrame({"pixels": [1200, 34], "mae": 1.0, "rmse": 2.0, "shot": "many"})
    target = figures.DEPTH._replace(name="rain", unit="mm", own=True)
    figures.draw_run(tmp_path, "run\ntest set", table, np.ones(len(target.buckets)), (), target)
    fig, name = drawn[0]
    assert name == "error_by_label.png"
    assert fig.get_suptitle() == "run\ntest set, 1,234 pixels"


def test_one_reason_is_said_once(tmp_path):
    maps, train = load("nyud2-dir", "maps"), load("nyud2-dir", "train")
    np.save(tmp_path / "m.npy", np.zeros((64, 32)))
    np.save(tmp_path / "n.npy", np.full((64, 64), 9.0))
    pairs = [[f"{number}.png", "m.npy"] for number in range(5)] + [["9.png", "n.npy"]]
    for image, _ in pairs:
        Image.new("RGB", (64, 64)).save(tmp_path / image)
    args = train.parse_args("--target x --low 0 --high 1 --map_size 32 32 --model mini".split())
    table = pd.DataFrame(pairs, columns=["image", "depth"])
    with pytest.raises(ValueError, match="6 of 6 pairs cannot be used") as error:
        maps.Maps(tmp_path, table, args, None, "x", quiet=True)
    names = [f"{tmp_path}/{number}.png and {tmp_path}/m.npy" for number in range(3)]
    reason = "(the image is 64×64, its map 32×64: another shape)"
    assert f": {', '.join(names)} and 2 more {reason}, {tmp_path}/9.png" in str(error.value)


def test_maps_that_do_not_fit_are_refused_with_what_helps(tmp_path):
    maps, train = load("nyud2-dir", "maps"), load("nyud2-dir", "train")
    Image.new("RGB", (64, 64)).save(tmp_path / "i.png")
    np.save(tmp_path / "m.npy", np.full((64, 64), -9999.0))
    np.save(tmp_path / "other.npy", np.zeros((64, 32)))
    args = train.parse_args("--target x --low 0 --high 1 --map_size 32 32 --model mini".split())
    table = pd.DataFrame([["i.png", "m.npy"]], columns=["image", "depth"])
    for file, message in (("m.npy", "-9999.*--no_label"), ("other.npy", "64×64, its map 32×64")):
        table["depth"] = file
        with pytest.raises(ValueError, match=message):
            maps.Maps(tmp_path, table, args, None, "x", quiet=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--map_size 64 64", "your own --target"), ("--high 80 --downscale 2", "no --downscale"),
        ("--target x --map_size 8 40", "sides from 32, got [8, 40]"),
        ("--target x --mask", "are for depths"),
    ],
)  # fmt: skip
def test_flags_of_maps_that_contradict(words, message, capsys):
    program = load("nyud2-dir", "prepare" if "--mask" in words else "train")
    with pytest.raises(SystemExit):
        program.parse_args(words.split())
    assert message in capsys.readouterr().err
