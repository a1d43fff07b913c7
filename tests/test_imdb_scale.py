"""The age set at size: the cache over crashes and full disks, and what benchmarks/ measures."""

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, load

image_cache = load("imdb-wiki-dir", "image_cache")
scale = load("benchmarks", "imdb_scale")


@pytest.fixture
def faces(tmp_path):
    """Ten noise images and their meta file."""
    rng = np.random.default_rng(0)
    (tmp_path / "imdb_crop").mkdir()
    paths = [f"imdb_crop/{i}.png" for i in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(1, 256, (30, 30, 3), dtype=np.uint8)).save(tmp_path / path)
    splits = ["train", "val", "test", *["train"] * 7]
    pd.DataFrame({"age": 30, "path": paths, "split": splits}).to_csv(
        tmp_path / "imdb_wiki.csv", index=False
    )
    return tmp_path, paths


def open_images(faces, size=17):
    folder, paths = faces
    return image_cache.Images(folder, paths, size, folder / "cache", "imdb_wiki", quiet=True)


def plain(faces, size=17):
    """Each image by itself."""
    return np.stack([image_cache.load_image(faces[0] / path, size) for path in faces[1]])


def break_off(faces, monkeypatch, after):
    """Start a build that ends after some images, as a kill would end it."""
    load_image, calls = image_cache.load_image, []

    def broken(file, size, *_):
        calls.append(file)
        if len(calls) > after:
            raise KeyboardInterrupt
        return load_image(file, size)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "load_image", broken)
        patch.setattr(os, "cpu_count", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            open_images(faces)
    (partial,) = (faces[0] / "cache").glob("*.partial")
    return partial


def decoded_by(faces, monkeypatch):
    """Build to the end and return the numbers of the images that were decoded for it."""
    load_image, calls = image_cache.load_image, []
    with monkeypatch.context() as patch:
        patch.setattr(
            image_cache, "load_image", lambda f, s, *_: calls.append(str(f)) or load_image(f, s)
        )
        images = open_images(faces)
    np.testing.assert_array_equal(images.read(range(10)), plain(faces))
    assert sorted(p.suffix for p in (faces[0] / "cache").iterdir()) == [".lock", ".npy", ".rows"]
    return sorted(int(file.split("/")[-1].split(".")[0]) for file in calls)


def test_a_row_that_the_crash_of_a_machine_tore_is_decoded_again(faces, monkeypatch):
    """Noted as done and only partly on the disk: what a power cut may leave."""
    partial = break_off(faces, monkeypatch, after=6)
    array = np.lib.format.open_memmap(partial, mode="r+")
    array[1, 9:] = 0  # torn
    array[4] = 0  # lost
    array.flush()
    assert decoded_by(faces, monkeypatch) == [1, 4, 6, 7, 8, 9]


def test_notes_of_another_length_start_the_build_anew(faces, monkeypatch):
    partial = break_off(faces, monkeypatch, after=6)
    partial.with_suffix(".rows").write_bytes(bytes(10))
    assert decoded_by(faces, monkeypatch) == list(range(10))


@pytest.mark.parametrize("length", [0, 5, 50, 127])
def test_an_array_cut_in_its_header_starts_the_build_anew(faces, monkeypatch, length):
    os.truncate(break_off(faces, monkeypatch, after=6), length)
    assert decoded_by(faces, monkeypatch) == list(range(10))


def test_an_array_cut_in_its_pixels_is_filled_up(faces, monkeypatch):
    os.truncate(break_off(faces, monkeypatch, after=6), 128 + 3 * 17 * 17 * 3)
    assert decoded_by(faces, monkeypatch) == list(range(3, 10))


def test_a_file_that_changes_during_the_break_starts_the_build_anew(faces, monkeypatch):
    break_off(faces, monkeypatch, after=6)
    Image.new("RGB", (40, 40), (9, 99, 199)).save(faces[0] / faces[1][2])
    assert decoded_by(faces, monkeypatch) == list(range(10))


def test_a_disk_too_full_for_the_cache_is_told(faces, monkeypatch):
    usage = type("usage", (), {"free": 3000})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match=r"needs [\d,]+ bytes more, 3,000 are free.*--cache"):
            open_images(faces, 64)
    assert [p.suffix for p in (faces[0] / "cache").iterdir()] == [".lock"]

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, "not on this disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(ValueError, match="make room"):
            open_images(faces, 64)
        patch.setattr(os, "posix_fallocate", unable, raising=False)
        np.testing.assert_array_equal(open_images(faces, 64).read(range(10)), plain(faces, 64))


def test_the_cache_can_be_built_ahead(faces, capsys, monkeypatch):
    folder = faces[0]
    monkeypatch.setitem(sys.modules, "datasets", load("imdb-wiki-dir", "datasets"))
    image_cache.main(["--data_dir", str(folder), "--dataset", "imdb_wiki", "--img_size", "17"])
    (built,) = (folder / "cache").glob("*.npy")
    assert f"10 images at 17² in {built}" in capsys.readouterr().out
    monkeypatch.setattr(image_cache, "load_image", None)  # training would decode nothing
    train = load("imdb-wiki-dir", "train")
    arguments = ["--data_dir", str(folder), "--img_size", "17", "--batch_size", "4"]
    args = train.parse_args([*arguments, "--device", "cpu", "--track", "none"])
    run = train.run_folder.start(args, train.make_parser(), ["unused"])
    loaders = train.build_data(run).loaders
    np.testing.assert_array_equal(loaders["train"].images.array, np.load(built))
    with pytest.raises(SystemExit):
        image_cache.main(["--dataset", "imdb_wiki", "--img_size", "0"])


@pytest.mark.parametrize("rows", [[9], [0, 9, 3], np.array([5, 5]), range(10)])
def test_rows_that_are_announced_are_the_rows_that_are_read(faces, rows):
    images = open_images(faces, 64)  # 12,288 bytes: rows begin within pages
    np.testing.assert_array_equal(images.read(rows), plain(faces, 64)[np.asarray(rows)])


def test_without_the_announcement_the_rows_are_the_same(faces, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_WILLNEED", raising=False)
    np.testing.assert_array_equal(open_images(faces).read([9, 2]), plain(faces)[[9, 2]])


# ---- benchmarks/imdb_scale.py --------------------------------------------------------------


@pytest.fixture
def holes(tmp_path):
    """Faces without content, at a size for tests."""
    scale.make_faces(tmp_path, 2000, 32)
    return tmp_path


def test_generated_faces_start_up_as_real_ones(holes):
    seconds = scale.start_up(holes, 32)
    assert set(seconds) == {"csv", "weights", "shots", "cache opened", "csv, weights, shots"}
    meta = pd.read_csv(holes / "imdb_wiki.csv")
    assert set(meta["split"]) == {"train", "val", "test"}
    (cache,) = (holes / "cache").glob("*.npy")
    assert cache.stat().st_blocks * 512 < 2000 * 32 * 32 * 3 < cache.stat().st_size  # sparse


@pytest.mark.slow
def test_memory_and_processes_are_measured(holes):
    result = scale.run_training(holes, 2, 32, 16, 3, "stub")
    # Two processes with PyTorch, and the launcher: far more than an empty figure.
    assert 200 < result["RssAnon of all, MiB"] < 3 * 1024
    assert result["training images/s"] > 0
    assert 0 < result["share waiting for data"] < 1


@pytest.mark.slow
def test_preparation_is_measured(tmp_path):
    result = scale.measure_prepare(tmp_path, {"imdb": 1500, "wiki": 500}, runs=1)
    assert result["rows"] == 2000
    assert result["seconds"] > 0


def test_the_gpu_part_on_a_cpu(tmp_path):
    """The part with a real network, of 18 layers: each figure is there and makes sense."""
    train = load("imdb-wiki-dir", "train")
    scale.make_faces(tmp_path, 8, 24)
    paths = pd.read_csv(tmp_path / "imdb_wiki.csv")["path"]
    images = image_cache.Images(tmp_path, paths, 24, tmp_path / "cache", "imdb_wiki", quiet=True)
    common = ["--device", "cpu", "--img_size", "24", "--model", "resnet18"]
    cases = {"fp32": ["--precision", "fp32"]}
    result = scale.measure_gpu(train, images, 8, cases, common)
    assert set(result) == set(cases)
    for row in result.values():
        assert len(row) == 7
        assert np.isfinite(list(row.values())).all()
        assert row["images/s from the cache"] > 0
        share = row["images/s from the cache"] / row["images/s, data on the device"]
        assert row["share (goal >= 0.9)"] == pytest.approx(share)
        assert 0 < row["extra pass, of an epoch (goal <= 0.25)"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu_its_part_is_skipped_with_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/imdb_scale.py", "--parts", "gpu", "--json", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gpu: skipped, no CUDA device is visible to PyTorch\n"
    assert json.loads((tmp_path / "out").read_text()) == {"gpu": None}
