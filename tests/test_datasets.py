"""Labels, weights, image cache, augmentation and batches of the age folders."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision import transforms

from conftest import ROOT, load

augmentation = load("agedb-dir", "augmentation")
datasets = load("agedb-dir", "datasets")
image_cache = load("agedb-dir", "image_cache")
batches = load("agedb-dir", "batches")


@pytest.fixture
def faces(tmp_path):
    """Twelve noise images of several sizes and modes, and their meta file."""
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "AgeDB").mkdir()
    for i in range(12):
        shape = (40 + 5 * i, 64 + 3 * i) + ((3,) if i % 3 else ())
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        path = f"AgeDB/{i}_Name_{20 + i}_f.jpg"
        Image.fromarray(pixels).save(tmp_path / path)
        rows.append((20 + i, path, ("train", "train", "val", "test")[i % 4]))
    pd.DataFrame(rows, columns=["age", "path", "split"]).to_csv(tmp_path / "agedb.csv", index=False)
    return tmp_path


def per_file(files, size, *augmentation):
    """The pipeline a reader would write with torchvision, one file at a time."""
    pipeline = transforms.Compose([
        transforms.Resize((size, size)), *augmentation, transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    return torch.stack([pipeline(Image.open(file).convert("RGB")) for file in files])


def test_an_image_in_two_splits_is_named(faces, caplog):
    meta = datasets.read_meta(faces, "agedb")
    assert not caplog.text
    more = meta.iloc[[0, 0, 1]].assign(split=["test", "train", "train"])  # rows 0 and 1 train
    pd.concat([meta, more]).to_csv(faces / "own.csv", index=False)
    datasets.read_meta(faces, "own")
    assert f"1 images are in more than one split: {meta['path'][0]}\n" in caplog.text


@pytest.mark.parametrize("cached", [True, False])
def test_evaluation_equals_per_file_pipeline(faces, cached):
    meta = datasets.read_meta(faces, "agedb")
    cache = faces / "cache" if cached else None
    images = image_cache.Images(faces, meta["path"], 32, cache, quiet=True)
    rows = np.array([7, 0, 3, 11])
    got = augmentation.normalize(images.read(rows))
    expected = per_file([faces / meta["path"][row] for row in rows], 32)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("size", [5, 32, 33])
def test_batches_equal_the_per_file_pipeline(faces, cached, size):
    meta = datasets.read_meta(faces, "agedb")
    cache = faces / "cache" if cached else None
    images = image_cache.Images(faces, meta["path"], size, cache, quiet=True)
    rows = np.array([7, 0, 3, 3, 11, 2, 9])
    loader = datasets.Loader(images, rows, np.arange(7), np.ones(121), batches.Sharing(3, 0, "cpu"))
    # One buffer holds every batch, so each is copied.
    got = torch.cat([batch.images.clone() for batch in loader.evaluate()])
    assert torch.equal(got, per_file([faces / meta["path"][row] for row in rows], size))
    for piece, image in zip(images.one_by_one(rows), images.read(rows), strict=True):
        assert torch.equal(piece[0], image)


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (3, 7, 11, 3), (2, 1, 1, 3)])
def test_bytes_are_normalised_bit_for_bit(shape):
    images = (torch.arange(int(np.prod(shape))) % 256).byte().view(shape)
    expected = (images.float() / 255 - 0.5) / 0.5
    out = torch.full(shape, 7.0)
    assert torch.equal(augmentation.normalize(images, out), expected.permute(0, 3, 1, 2))
    assert torch.equal(out, expected)


def by_slices(images, *draws):
    return torch.cat(list(augmentation.augment(images.split(1), *draws)))


@pytest.mark.parametrize("crop", [augmentation.crop_by_index, by_slices])
def test_augment_equals_torchvision_for_every_draw(faces, crop):
    file = faces / "AgeDB/5_Name_25_f.jpg"
    pixels = image_cache.load_image(file, 24)
    image = Image.open(file).convert("RGB").resize((24, 24), Image.Resampling.BILINEAR)
    padded = F.pad(image, 16)
    draws = [(t, l, f) for t in range(0, 33, 4) for l in range(0, 33, 4) for f in (False, True)]
    top, left, flip = (torch.tensor(column) for column in zip(*draws))
    images = torch.from_numpy(pixels.copy()).expand(len(draws), -1, -1, -1).contiguous()
    got = crop(images, top, left, flip)
    for i, (t, l, f) in enumerate(draws):
        expected = F.crop(padded, t, l, 24, 24)
        expected = F.hflip(expected) if f else expected
        assert torch.equal(got[i].permute(2, 0, 1), F.pil_to_tensor(expected)), draws[i]


@pytest.mark.parametrize("size", [8, 15, 16])
def test_crops_of_images_smaller_than_the_padding(size):
    images = torch.randint(1, 256, (33 * 33, size, size, 3), dtype=torch.uint8)
    top, left = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(33)] * 2, indexing="ij"))
    flip = (top + left) % 2 == 0
    expected = augmentation.crop_by_index(images, top, left, flip)
    assert torch.equal(by_slices(images, top, left, flip), expected)


# ---- meta file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fault"),
    [(",a.jpg,train", "no number"), ("old,a.jpg,train", "no number"),
     ("-1,a.jpg,train", "no number"), ("201,a.jpg,train", "no number"),
     ("30,a.jpg,dev", "split other"), ("30,,train", "no path")],
)  # fmt: skip
def test_faulty_rows_are_named(tmp_path, row, fault):
    good = "20,b.jpg,train\n21,c.jpg,val\n22,d.jpg,test\n"
    (tmp_path / "own.csv").write_text(f"age,path,split\n{good}{row}\n{good}{row}\n")
    with pytest.raises(ValueError, match=rf"2 rows with .*{fault}.*\(lines 5, 9\)"):
        datasets.read_meta(tmp_path, "own")


def test_blank_lines_count_and_are_passed_over(tmp_path):
    rows = "20,NA,train\n\n21,c.jpg,val\n\n22,d.jpg,test\n"
    (tmp_path / "own.csv").write_text(f"age,path,split\n{rows}\n")
    assert datasets.read_meta(tmp_path, "own")["path"].tolist() == ["NA", "c.jpg", "d.jpg"]
    (tmp_path / "own.csv").write_text(f"age,path,split\n{rows}300,e.jpg,train\n")
    with pytest.raises(ValueError, match=r"1 rows .*\(lines 7\)"):
        datasets.read_meta(tmp_path, "own")
    (tmp_path / "own.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"own\.csv cannot be read"):
        datasets.read_meta(tmp_path, "own")


def test_sixteen_bit_images_are_refused(faces):
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(faces / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png \(mode I.*8 bits"):
        image_cache.Images(faces, ["deep.png"], 16, None, quiet=True)


def test_data_folders_share_a_cache(faces, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (9, 9), (0, 0, 255)).save(other / "own.png")
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    for _ in range(2):
        image_cache.Images(faces, paths, 16, faces / "cache", quiet=True)
        image_cache.Images(other, ["own.png"], 16, faces / "cache", quiet=True)
    assert len(list((faces / "cache").glob("*.npy"))) == 2


def test_ten_faulty_lines_are_named(tmp_path):
    rows = "nan,a.jpg,train\n" * 11
    (tmp_path / "own.csv").write_text(f"age,path,split\n{rows}")
    with pytest.raises(
        ValueError, match=r"11 rows .*\(lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 \.\.\."
    ):
        datasets.read_meta(tmp_path, "own")


def test_faulty_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"own\.csv is missing.*demo_data"):
        datasets.read_meta(tmp_path, "own")
    (tmp_path / "own.csv").write_text("age,file\n20,b.jpg\n")
    with pytest.raises(ValueError, match="lacks path, split"):
        datasets.read_meta(tmp_path, "own")
    (tmp_path / "own.csv").write_text("age,path,split\n20,b.jpg,train\n")
    with pytest.raises(ValueError, match="no row of split val, test"):
        datasets.read_meta(tmp_path, "own")


# ---- image cache ---------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_all_bad_images_are_counted_before_training(faces, cached):
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    cache = faces / "cache" if cached else None
    with pytest.raises(FileNotFoundError, match="11 of 23 files are missing") as error:
        image_cache.Images(faces, paths + [f"no{i}.jpg" for i in range(11)], 16, cache, quiet=True)
    assert str(error.value).count("no") == 10
    for row in (2, 5):
        (faces / paths[row]).write_bytes((faces / paths[row]).read_bytes()[:200])
    (faces / paths[7]).write_text("no image")
    with pytest.raises(ValueError, match="3 of 12 images cannot be used") as error:
        image_cache.Images(faces, paths, 16, cache, quiet=True)
    assert all(paths[row] in str(error.value) for row in (2, 5, 7))


def test_cache_is_reused_until_a_file_changes(faces, monkeypatch):
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    decoded = []
    plain = image_cache.load_image
    monkeypatch.setattr(
        image_cache, "load_image", lambda f, s, *_: decoded.append(str(f)) or plain(f, s)
    )

    def open_images(size=16):
        decoded.clear()
        return image_cache.Images(faces, paths, size, faces / "cache", quiet=True)

    open_images()
    assert len(decoded) == 12
    open_images()
    assert not decoded
    open_images(20)
    assert len(decoded) == 12
    Image.new("RGB", (30, 30), (255, 0, 0)).save(faces / paths[4])
    changed = open_images()
    assert len(decoded) == 12
    assert changed.read([4])[0, 8, 8].tolist() == [254, 0, 0]
    assert len(list((faces / "cache").glob("*_16_*.npy"))) == 1  # the old one is gone


def test_a_file_of_another_time_is_decoded_again(faces):
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    one = faces / "one.bmp"  # two bitmaps of one size in bytes
    for seconds, colour in ((10**9, (255, 0, 0)), (10**9 + 5, (0, 255, 0))):
        Image.new("RGB", (20, 20), colour).save(one)
        os.utime(one, (seconds, seconds))
        images = image_cache.Images(faces, [*paths, "one.bmp"], 16, faces / "cache", quiet=True)
        assert images.read([12])[0, 8, 8].tolist() == list(colour)


@pytest.mark.parametrize("cached", [True, False])
def test_bad_images_are_named_and_the_lock_is_given_back(faces, cached):
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    whole = {path: (faces / path).read_bytes() for path in paths}
    for path in paths[1:]:
        (faces / path).write_text("no image")
    cache = faces / "cache" if cached else None
    with pytest.raises(ValueError, match="11 of 12 images cannot be used") as error:
        image_cache.Images(faces, paths, 16, cache, quiet=True)
    assert sum(path in str(error.value) for path in paths) == 3
    assert str(error.value).count("and 8 more (") == 1
    for path in paths:
        (faces / path).write_bytes(whole[path])
    # The error is still held, as a notebook holds it: whoever tries again must not wait for it.
    built = []

    def build():
        built.append(image_cache.Images(faces, paths, 16, cache, quiet=True).read(range(12)))

    thread = threading.Thread(target=build, daemon=True)
    thread.start()
    thread.join(30)
    assert len(built) == 1
    expected = np.stack([image_cache.load_image(faces / path, 16) for path in paths])
    np.testing.assert_array_equal(built[0], expected)


def test_an_interrupted_build_resumes(faces, monkeypatch):
    paths = datasets.read_meta(faces, "agedb")["path"].tolist()
    expected = image_cache.Images(faces, paths, 16, None, quiet=True).read(range(12))
    plain, decoded = image_cache.load_image, []

    def interrupted(file, size, *_):
        decoded.append(file)
        if len(decoded) == 8:
            raise KeyboardInterrupt
        return plain(file, size)

    monkeypatch.setattr(image_cache, "load_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_cache.Images(faces, paths, 16, faces / "cache", workers=1, quiet=True)
    done = len(decoded) - 1
    decoded.clear()
    monkeypatch.setattr(
        image_cache, "load_image", lambda f, s, *_: decoded.append(f) or plain(f, s)
    )
    images = image_cache.Images(faces, paths, 16, faces / "cache", quiet=True)
    assert 0 < len(decoded) <= 12 - done + 4  # threads that were at work may have stored theirs
    assert torch.equal(images.read(range(12)), expected)
    assert not list((faces / "cache").glob("*.partial"))


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from datasets import read_meta
from image_cache import Images
images = Images(sys.argv[2], read_meta(sys.argv[2], "agedb")["path"], 48, sys.argv[2] + "/cache")
print(int(images.read(range(12)).sum()))
"""


def test_two_processes_build_at_once(faces):
    command = [sys.executable, "-c", BUILD, str(ROOT / "agedb-dir"), str(faces)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {int(process.communicate(timeout=120)[0]) for process in both}
    paths = datasets.read_meta(faces, "agedb")["path"]
    files = image_cache.Images(faces, paths, 48, None, quiet=True)
    assert sums == {int(files.read(range(12)).sum())}
    assert all(process.returncode == 0 for process in both)
    left = [path.suffix for path in (faces / "cache").iterdir() if path.suffix != ".lock"]
    assert sorted(left) == [".npy", ".rows"]  # the images and their checksums


KILLED = """
import os
import image_cache
plain, decoded = image_cache.load_image, []
def load_image(file, size, turned=None):
    decoded.append(file)
    return plain(file, size) if len(decoded) < 8 else os._exit(9)
image_cache.load_image = load_image
"""


def test_a_killed_build_resumes(faces, monkeypatch):
    """The process ends at the eighth of twelve images with no chance to tidy up."""
    script = BUILD.replace("from datasets", KILLED + "from datasets").replace(
        '"/cache")', '"/cache", "images", workers=1)'
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "agedb-dir"), str(faces)], timeout=120
    )
    assert killed.returncode == 9
    plain, decoded = image_cache.load_image, []
    monkeypatch.setattr(
        image_cache, "load_image", lambda f, s, *_: decoded.append(f) or plain(f, s)
    )
    paths = datasets.read_meta(faces, "agedb")["path"]
    images = image_cache.Images(faces, paths, 48, faces / "cache", quiet=True)
    assert sorted(decoded) == sorted(str(faces / path) for path in paths[7:])
    np.testing.assert_array_equal(
        images.read([2, 9]), [plain(faces / paths[i], 48) for i in (2, 9)]
    )


def test_the_arrays_name_follows_from_the_files(faces):
    """As in earlier versions, so that an array of 32 GB is not built again after an update."""
    meta = datasets.read_meta(faces, "agedb")
    images = image_cache.Images(faces, meta["path"], 16, faces / "cache", "agedb", quiet=True)
    text = "2 16"
    for path in meta["path"]:
        facts = (faces / path).stat()
        text += f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
    place = hashlib.sha256(str(faces.resolve()).encode()).hexdigest()[:8]
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert os.path.basename(images.array.filename) == f"agedb_16_{place}_{digest}.npy"


def test_an_array_that_is_cut_is_named(faces):
    paths = datasets.read_meta(faces, "agedb")["path"]
    images = image_cache.Images(faces, paths, 16, faces / "cache", quiet=True)
    array = Path(images.array.filename)
    for length in (array.stat().st_size - 1, 50, 0):
        os.truncate(array, length)
        with pytest.raises(ValueError, match=rf"{array.name} cannot be read .*delete it"):
            image_cache.Images(faces, paths, 16, faces / "cache", quiet=True)


def test_a_cache_that_cannot_be_written_is_said(faces):
    (faces / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written.*--cache"):
        image_cache.Images(
            faces, ["AgeDB/0_Name_20_f.jpg"], 16, faces / "file" / "cache", quiet=True
        )


# ---- batches -------------------------------------------------------------------------------


class Coordinates:
    """Images whose pixels tell their own place and number: (row, column, number) from 1."""

    def __init__(self, count, size=40):
        grid = np.arange(1, size + 1)
        pixels = np.zeros((count, size, size, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1] = grid[:, None], grid
        pixels[..., 2] = np.arange(1, count + 1)[:, None, None]
        self.pixels = torch.from_numpy(pixels)

    def read(self, rows):
        return self.pixels[torch.as_tensor(rows)]

    def one_by_one(self, rows):
        return self.read(rows).split(1)


def make_loader(count, batch_size, rank=0, processes=1, seed=0):
    labels, rows = np.arange(count, dtype=np.float32), np.arange(count)
    sharing = batches.Sharing(batch_size, seed, "cpu", rank, processes)
    return datasets.Loader(Coordinates(count), rows, labels, np.arange(121) + 1, sharing)


def draws_of(batches):
    """Recover (number, top, left, flip) of each image from its middle pixels."""
    draws = []
    for batch in batches:
        if not batch.share:
            continue
        pixels = (batch.images * 127.5 + 127.5).round().int()
        row, column, number = pixels[:, :, 20, 20].T
        next_column = pixels[:, 1, 20, 21]
        flip = next_column < column
        left = torch.where(flip, column - 1 - 19, column - 1 - 20) + 16
        for values in zip(number, row - 1 - 20 + 16, left, flip, batch.labels):
            draws.append(tuple(int(v) for v in values))
    return draws


def test_draws_are_uniform():
    draws = np.array([d for e in range(40) for d in draws_of(make_loader(200, 64).train(e))])
    assert len(draws) == 8000
    for column in (1, 2):
        counts = np.bincount(draws[:, column], minlength=33)
        assert len(counts) == 33
        # 32 degrees of freedom: the chi-square statistic is below 62.5 with probability 0.999.
        assert ((counts - 8000 / 33) ** 2 / (8000 / 33)).sum() < 62.5
    assert abs(draws[:, 3].mean() - 0.5) < 0.02
    assert abs(np.corrcoef(draws[:, 1:4].T) - np.eye(3)).max() < 0.05


def test_epochs_and_passes_draw_anew_and_repeat():
    loader = make_loader(30, 8)
    first = draws_of(loader.train(0))
    assert draws_of(make_loader(30, 8).train(0)) == first
    others = [
        loader.train(1),
        loader.train(0, statistics=True),
        make_loader(30, 8, seed=1).train(0),
    ]
    assert all(draws_of(other) != first for other in others)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch(processes):
    """The same order and draws whatever the number of processes; no sample twice, none left out."""
    count, size = 25, 8  # the last batch has one sample
    whole = [draws_of([batch]) for batch in make_loader(count, size).train(3)]
    parts = [list(make_loader(count, size, r, processes).train(3)) for r in range(processes)]
    shares = np.array([[batch.share for batch in part] for part in parts])
    np.testing.assert_allclose(shares.sum(axis=0), processes)
    if processes > 1:
        assert shares[1:, -1].tolist() == [0.0] * (processes - 1)
    seen = []
    for rank in range(processes):
        for step, batch in enumerate(make_loader(count, size, rank, processes).train(3)):
            own = draws_of([batch])
            assert set(own) <= set(whole[step])
            assert len(own) == batch.share * len(whole[step]) / processes
            seen += own
            if batch.share:
                assert torch.equal(batch.weights, batch.labels + 1)
    assert sorted(seen) == sorted(draw for step in whole for draw in step)
    assert sorted(d[0] for d in seen) == list(range(1, count + 1))


@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_covers_each_row_once_in_order(processes):
    labels = [
        int(label)
        for rank in range(processes)
        for batch in make_loader(25, 4, rank, processes).evaluate()
        for label in batch.labels
    ]
    assert labels == list(range(25))


# ---- weights -------------------------------------------------------------------------------


def test_buckets():
    ages = [0.0, 29.99, 30.0, 119.5, 120.0, 186.0]
    expected = [0, 29, 30, 119, 120, 120]
    assert datasets.label_to_bucket(np.array(ages)).tolist() == expected
    tensor = datasets.label_to_bucket(torch.tensor(ages).reshape(2, 3))
    assert tensor.dtype == torch.long
    assert tensor.tolist() == [expected[:3], expected[3:]]


def test_weights_by_hand():
    labels = np.repeat([30, 31, 33], [4, 16, 1])
    weights = datasets.sample_weights(labels, "sqrt_inv")
    np.testing.assert_allclose(weights[[0, 4, 20]] / weights[20], [1 / 2, 1 / 4, 1], rtol=1e-6)
    assert weights.mean() == pytest.approx(1, rel=1e-6)
    # √count convolved with (½, 1, ½): 2 + 4/2, 4 + 2/2, 1 (its neighbours 32 and 34 are empty).
    weights = datasets.sample_weights(labels, "sqrt_inv", True, "triang", 3, 1)
    np.testing.assert_allclose(1 / weights[[0, 4, 20]] * weights[20], [4, 5, 1], rtol=1e-6)
    # Counts are clipped to [5, 1000], empty ones too, and smoothed counts cut to integers.
    weights = datasets.sample_weights(labels, "inverse", True, "triang", 3, 1)
    expected = [int(5 + 2.5 + 8), int(16 + 2.5 + 2.5), int(5 + 2.5 + 2.5)]
    np.testing.assert_allclose(1 / weights[[0, 4, 20]] * weights[20] * 10, expected, rtol=1e-6)
    assert datasets.sample_weights(labels, "none").tolist() == [1.0] * 21


@pytest.mark.parametrize("reweight", ["sqrt_inv", "inverse"])
@pytest.mark.parametrize("lds", [True, False])
def test_weights_are_finite_for_any_ages(reweight, lds):
    labels = np.concatenate([np.random.default_rng(0).integers(0, 201, 500), [0, 200, 120]])
    weights = datasets.sample_weights(labels, reweight, lds)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    with pytest.raises(ValueError, match="--reweight"):
        datasets.sample_weights(labels, "none", lds=True)


def test_rows_longer_than_the_header_are_refused(faces):
    lines = (faces / "agedb.csv").read_text().splitlines()
    long = [lines[0], *(f"{line},9" for line in lines[1:])]
    (faces / "own.csv").write_text("\n".join(long) + "\n")
    with pytest.raises(ValueError, match="more fields than its header"):
        datasets.read_meta(faces, "own")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -3.0])
def test_weights_of_impossible_ages_are_refused(wrong):
    with pytest.raises(ValueError, match="finite and 0 or more"):
        datasets.sample_weights([wrong, 2, 2], "sqrt_inv")
