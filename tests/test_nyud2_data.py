"""nyud2-dir's data scripts: labelled file, subset, mask, archive, downloads, rendered rooms."""

import functools
import http.server
import io
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import load

Sharing = load("nyud2-dir", "batches").Sharing
datasets = load("nyud2-dir", "datasets")
demo_data = load("nyud2-dir", "demo_data")
demo_rooms = load("nyud2-dir", "demo.rooms")
depth_cache = load("nyud2-dir", "depth_cache")
download = load("nyud2-dir", "download")
pair_lists = load("nyud2-dir", "pair_lists")
prepare = load("nyud2-dir", "prepare")

# ---- prepare.py ----------------------------------------------------------------------------


def test_mask_takes_as_many_of_each_bucket_as_the_rarest_has():
    rng = np.random.default_rng(0)
    buckets = rng.choice([7, 20, 21, 99, 255], (5, 20, 30), p=[0.1, 0.5, 0.2, 0.01, 0.19])
    buckets = buckets.astype(np.uint8)
    rarest = (buckets == 99).sum()
    mask, each = prepare.balanced_mask(buckets, seed=1)
    assert each == rarest
    assert (
        np.bincount(buckets[mask == 1]).tolist()
        == np.bincount(np.repeat([7, 20, 21, 99], rarest)).tolist()
    )
    assert np.array_equal(mask, prepare.balanced_mask(buckets, seed=1)[0])
    assert not np.array_equal(mask, prepare.balanced_mask(buckets, seed=2)[0])
    mask, each = prepare.balanced_mask(buckets, seed=1, least=100)
    assert [(mask[buckets == b]).sum() for b in (7, 20, 99, 255)] == [100, 100, rarest, 0]
    with pytest.raises(ValueError, match="no pixel"):
        prepare.balanced_mask(np.full((1, 2, 2), 255, np.uint8), 0)


def write_labeled(path, n, scenes):
    """Write a labelled file as MATLAB does: columns first, names by reference."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 480, 640, 3), dtype=np.uint8)
    depths = rng.uniform(0.7, 9.9, (n, 480, 640)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1)
        names = []
        for i, scene in enumerate(scenes):
            codes = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            names.append(file.create_dataset(f"#refs#/{i}", data=codes))
        references = np.array([[name.ref for name in names]], dtype=h5py.ref_dtype)
        file.create_dataset("scenes", data=references, dtype=h5py.ref_dtype)
    return images, depths


def test_labelled_file(tmp_path):
    scenes = ["kitchen_0001", "kitchen_0001", "office_0002", "bath_0003"]
    images, depths = write_labeled(tmp_path / "labeled.mat", 4, scenes)
    is_test = np.array([False, True, False, False])
    prepare.unpack_labeled(tmp_path / "labeled.mat", tmp_path, is_test)
    train = pair_lists.read_pairs(tmp_path, "nyu2_train.csv")
    test = pair_lists.read_pairs(tmp_path, "nyu2_test.csv")
    assert train["image"].tolist() == [
        "nyu2_train/kitchen_0001_out/00000.jpg", "nyu2_train/office_0002_out/00002.jpg",
        "nyu2_train/bath_0003_out/00003.jpg",
    ]  # fmt: skip
    assert test.to_numpy().tolist() == [["nyu2_test/00001_colors.png", "nyu2_test/00001_depth.png"]]
    with Image.open(tmp_path / test["image"][0]) as picture:
        assert np.array_equal(np.asarray(picture), images[1])
    with Image.open(tmp_path / test["depth"][0]) as picture:
        np.testing.assert_allclose(np.asarray(picture) / 1000, depths[1], atol=6e-4)
    with Image.open(tmp_path / train["depth"][2]) as picture:
        assert picture.mode == "L"
        np.testing.assert_allclose(np.asarray(picture) / 25.5, depths[3], atol=0.02)
    assert pair_lists.hold_out(train["image"].tolist(), 0).sum() == 1
    # Subset and mask follow; the mask covers the test pixels of the crop.
    assert prepare.main(["--data_dir", str(tmp_path)]) == 0
    assert pair_lists.read_mask(tmp_path, 1).shape == (1, 228, 304)
    rows = pair_lists.rows_of_subset(tmp_path, "nyu2_train_FDS_subset.csv", train["image"])
    assert rows.tolist() == [0, 1, 2]


def test_another_labelled_file_is_refused(tmp_path):
    write_labeled(tmp_path / "labeled.mat", 1, ["kitchen_0001"])
    with pytest.raises(ValueError, match="1449 are needed"):
        prepare.main(["--data_dir", str(tmp_path), "--labeled_mat", str(tmp_path / "labeled.mat")])
    (tmp_path / "broken.mat").write_bytes(b"MATLAB 7.3" * 100)
    with pytest.raises(ValueError, match=r"broken\.mat cannot be read"):
        prepare.unpack_labeled(tmp_path / "broken.mat", tmp_path, np.zeros(1, bool))
    with pytest.raises(FileNotFoundError, match=r"download\.py"):
        prepare.unpack_labeled(tmp_path / "none.mat", tmp_path, np.zeros(1, bool))


def test_a_scene_that_leads_out_of_the_folder(tmp_path):
    write_labeled(tmp_path / "labeled.mat", 1, ["../../outside"])
    with pytest.raises(ValueError, match="names a scene"):
        prepare.unpack_labeled(tmp_path / "labeled.mat", tmp_path / "data", np.zeros(1, bool))
    assert not [path for path in (tmp_path / "data").glob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("name", "change"),
    [("images", lambda x: x.astype(np.float32)), ("images", lambda x: x[:, 0]),
     ("images", lambda x: np.concatenate([x, x[:, :1]], 1)), ("depths", lambda x: x[:, ::2]),
     ("depths", lambda x: x.transpose(0, 2, 1)), ("scenes", lambda x: x[:, :1]),
     ("depths", lambda x: x.astype(np.uint16))],
)  # fmt: skip
def test_labelled_arrays_of_another_shape_or_type(tmp_path, name, change):
    h5py = pytest.importorskip("h5py")
    write_labeled(tmp_path / "labeled.mat", 2, ["kitchen_0001", "bath_0002"])
    with h5py.File(tmp_path / "labeled.mat", "r+") as file:
        values, kind = file[name][()], file[name].dtype
        del file[name]
        file.create_dataset(name, data=change(values), dtype=kind if name == "scenes" else None)
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, W, H\]"):
        prepare.unpack_labeled(tmp_path / "labeled.mat", tmp_path / "data", np.zeros(2, bool))
    assert not [path for path in (tmp_path / "data").glob("*") if path.suffix != ".lock"]


def test_official_split_has_654_test_pairs():
    split = pair_lists.official_split()
    assert (len(split), split.sum()) == (1449, 654)
    assert np.flatnonzero(split)[:5].tolist() == [0, 1, 8, 13, 14]


# ---- rendered rooms ------------------------------------------------------------------------


def render(argv, folder):
    demo_data.main(["--out", str(folder), "--scenes", "3", "--frames", "2", "--test", "2",
                    "--workers", "1", *argv])  # fmt: skip


def test_demo_has_the_official_layout(tmp_path, capsys):
    render([], tmp_path / "a")
    render(["--contact_sheet", str(tmp_path / "sheet.png")], tmp_path / "b")
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    files.discard(Path(".download.lock"))
    assert len(files) == 2 * 6 + 2 * 2 + 5
    for file in files:  # the same seed gives the same files
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert (tmp_path / "sheet.png").is_file()
    train = pair_lists.read_pairs(tmp_path / "a", "nyu2_train.csv")
    test = pair_lists.read_pairs(tmp_path / "a", "nyu2_test.csv")
    for name, mode in ((train["depth"][0], "L"), (test["depth"][0], "I;16")):
        with Image.open(tmp_path / "a" / name) as picture:
            assert (picture.mode, picture.size) == (mode, (320, 240))
    assert pair_lists.read_mask(tmp_path / "a", 2).any()
    # Both parts of a scene are held out together.
    assert pair_lists.hold_out(train["image"].tolist(), 0).sum() == 2
    with pytest.raises(ValueError, match="--overwrite"):
        render([], tmp_path / "a")
    render(["--overwrite", "--seed", "1"], tmp_path / "a")
    first = pair_lists.read_pairs(tmp_path / "a", "nyu2_test.csv")["image"][0]
    assert (tmp_path / "a" / first).read_bytes() != (tmp_path / "b" / first).read_bytes()


def test_demo_never_replaces_other_data(tmp_path):
    (tmp_path / "nyu2_train/kitchen_0001a_out").mkdir(parents=True)
    (tmp_path / "nyu2_train.csv").write_text("data/a.jpg,data/a.png\n")
    with pytest.raises(ValueError, match="no demo"):
        render(["--overwrite"], tmp_path)
    assert (tmp_path / "nyu2_train/kitchen_0001a_out").is_dir()


def room(**options):
    """A room of 3 × 8 × 2.5 m without furniture."""
    grey = np.full(3, 0.5, np.float32)
    surface = demo_rooms.Solid(True, grey, grey, grey, "plain", 1.0)
    fields = dict(kind="hall", size=np.float32([3, 8, 2.5]), surfaces=[surface] * 4, solids=[],
                  lamps=np.float32([[1.5, 1, 2]]))  # fmt: skip
    return demo_rooms.Scene(**{**fields, **options})


def test_depth_is_exact():
    eye = np.float32([1.5, 1, 1.25])
    ahead = np.float32([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # right, down, forward
    image, depth = demo_rooms.render(room(), (eye, ahead), 240)
    assert image.shape == (240, 320, 3)
    assert depth[120, 160] == pytest.approx(7, abs=1e-4)
    # Along the optical axis, not along the ray: the far wall has one depth.
    assert np.ptp(depth[115:125, 150:170]) < 1e-4
    # The floor, 1.25 m below: depth = 1.25 · focal length / rows below the middle.
    row = 239
    expected = 1.25 * demo_rooms.FOCAL / ((row + 0.5 - 120) / 240)
    assert depth[row, 160] == pytest.approx(expected, rel=1e-4)
    ball = demo_rooms.Solid(False, np.float32([1.5, 4, 1.25]), np.full(3, 0.5, np.float32),
                            np.ones(3, np.float32), "plain", 1.0)  # fmt: skip
    box = demo_rooms.Solid(True, np.float32([1, 3, 0]), np.float32([2, 3.5, 1]),
                           np.ones(3, np.float32), "checks", 0.1)  # fmt: skip
    _, depth = demo_rooms.render(room(solids=[ball, box]), (eye, ahead), 240)
    assert depth[120, 160] == pytest.approx(2.5, abs=1e-3)
    below = 120 + round(240 * demo_rooms.FOCAL * 0.5 / 2)
    assert depth[below, 160] == pytest.approx(2.0, abs=1e-3)
    _, depth = demo_rooms.render(room(size=np.float32([3, 14, 2.5])), (eye, ahead), 240)
    assert depth.max() == 10


def test_depths_of_rooms_are_skewed():
    pixels = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pixels.append(demo_data.take_picture(rng, demo_rooms.make_scene(rng), 60)[1].ravel())
    pixels = np.concatenate(pixels)
    assert 1.5 < np.median(pixels) < 4
    assert (pixels > 6).mean() < 0.25
    assert pixels.min() >= 0.4
    assert pixels.max() <= 10


# ---- download.py ---------------------------------------------------------------------------


def archive_content():
    """Names and bytes of a small official archive."""
    names = ["data/nyu2_train/a_0001_out/1.jpg", "data/nyu2_train/a_0001_out/1.png",
             "data/nyu2_test/00000_colors.png", "data/nyu2_test/00000_depth.png"]  # fmt: skip
    content = {name: name.encode() for name in names}
    content["data/nyu2_train.csv"] = b"data/nyu2_train/a_0001_out/1.jpg,x\n"
    content["data/nyu2_test.csv"] = b"data/nyu2_test/00000_colors.png,y\n"
    content["data/readme.txt"] = b"left out"
    return content


def write_archive(path, content, kind="zip"):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, value in content.items():
                file.writestr(name, value)
    else:
        with tarfile.open(path, "w:gz") as file:
            for name, value in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(value)
                file.addfile(member, io.BytesIO(value))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_is_unpacked(tmp_path, kind):
    path, out = tmp_path / "archive", tmp_path / "data"
    write_archive(path, archive_content(), kind)
    download.unpack_pairs(path, out)
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == {name.removeprefix("data/") for name in archive_content()} - {"readme.txt"}
    with pytest.raises(ValueError, match="--overwrite"):
        download.unpack_pairs(path, out)
    download.unpack_pairs(path, out, overwrite=True)
    assert not (out / "nyu2.partial").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("../nyu2_train/x.png", "leads out"), ("other/nyu2_test.csv", "occurs twice")],
)
def test_harmful_archives_are_refused(tmp_path, name, message):
    path = tmp_path / "archive"
    write_archive(path, {**archive_content(), name: b"x"})
    with pytest.raises(ValueError, match=message):
        download.unpack_pairs(path, tmp_path / "data")
    assert not list(tmp_path.rglob("*.csv"))


def test_damaged_foreign_and_large_archives(tmp_path):
    path, out = tmp_path / "archive", tmp_path / "data"
    with pytest.raises(FileNotFoundError):
        download.unpack_pairs(path, out)
    path.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="cut, damaged or no zip or tar"):
        download.unpack_pairs(path, out)
    write_archive(path, {"data/readme.txt": b"x"})
    with pytest.raises(ValueError, match="lacks nyu2_train"):
        download.unpack_pairs(path, out)
    write_archive(path, archive_content())
    with pytest.raises(ValueError, match="--max_gb"):
        download.unpack_pairs(path, out, max_gb=1e-9)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"data/nyu2_train.csv") + 25] ^= 1  # in a member's content
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="nothing was kept"):
        download.unpack_pairs(path, out)
    assert not list(out.glob("*"))


@pytest.fixture
def server(tmp_path):
    """A folder served over HTTP on this machine; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{host.server_port}"
        host.shutdown()


def test_split_files(server, tmp_path):
    folder, url = server
    out = tmp_path / "data"
    with pytest.raises(ValueError, match=r"prepare\.py"):
        download.fetch_split_files(out, url)
    (folder / "nyu2_train_FDS_subset.csv").write_text("data/nyu2_train/a/1.jpg,b\n")
    (folder / "test_balanced_mask.npy").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not kept"):
        download.fetch_split_files(out, url)
    assert not (out / "test_balanced_mask.npy").exists()
    np.save(folder / "test_balanced_mask.npy", np.ones((1, 228, 304), np.uint8))
    download.main(["--split_files", "--data_dir", str(out), "--base_url", url])
    assert pair_lists.read_mask(out, 1).all()
    # Another file than the first one fetched is noticed, before it replaces what is there.
    (out / "test_balanced_mask.npy").write_bytes(b"mine")
    np.save(folder / "test_balanced_mask.npy", np.zeros((1, 228, 304), np.uint8))
    with pytest.raises(ValueError, match=r"has the sha256 .*not as in .*sha256"):
        download.fetch_split_files(out, url, overwrite=True)
    assert (out / "test_balanced_mask.npy").read_bytes() == b"mine"


@pytest.mark.parametrize("size", [(320, 240), (640, 480), (800, 600)])
def test_mask_chooses_the_same_pixels_at_every_downscale(tmp_path, size):
    """What is evaluated of a smaller size has the bucket for which the mask chose it."""
    rng, names = np.random.default_rng(0), []
    (tmp_path / "nyu2_test").mkdir()
    for i in range(3):
        Image.new("RGB", size).save(tmp_path / f"nyu2_test/{i}.png")
        depth = rng.integers(300, 10_500, (size[1], size[0])).astype(np.uint16)
        Image.fromarray(depth).save(tmp_path / f"nyu2_test/{i}_depth.png")
        names.append([f"data/nyu2_test/{i}.png", f"data/nyu2_test/{i}_depth.png"])
    prepare.write_list(tmp_path / "nyu2_test.csv", names)
    prepare.make_mask(tmp_path, seed=0)
    chosen = np.load(tmp_path / "test_balanced_mask.npy")
    buckets = prepare.test_buckets(tmp_path, False)
    assert set(buckets[chosen > 0]) == set(range(7, 100))
    table = pair_lists.read_pairs(tmp_path, "nyu2_test.csv")
    for downscale, (top, left) in {1: (0, 0), 2: (1, 1), 4: (0, 2)}.items():
        pairs = depth_cache.Pairs(tmp_path, table, 16, None, "t", downscale, quiet=True)
        mask = pair_lists.read_mask(tmp_path, 3, downscale)
        loader = datasets.Loader(pairs, np.arange(3), Sharing(2, 0, "cpu"), mask=mask)
        for batch, rows in zip(loader.evaluate(), ([0, 1], [2])):
            found = datasets.label_to_bucket(batch.depths)[batch.mask].numpy()
            expected = buckets[rows, top::downscale, left::downscale]
            assert np.array_equal(
                found, expected[chosen[rows, top::downscale, left::downscale] > 0]
            )
            assert len(found)
            assert batch.mask.data_ptr() == loader.mask[rows[0]].data_ptr()  # sent once, not now
        assert np.array_equal(loader.pick(2).mask[:, 0], mask[[0, 2]])


def test_drive(tmp_path, monkeypatch):
    gdown = pytest.importorskip("gdown")
    calls = []

    def fetched(id, output, resume):
        calls.append((id, resume))
        write_archive(output, archive_content())
        return output

    monkeypatch.setattr(gdown, "download", fetched)
    monkeypatch.setattr(download, "fetch_split_files", lambda *args: None)
    download.main(["--data_dir", str(tmp_path)])
    assert calls == [(download.ARCHIVE_ID, True)]
    assert (tmp_path / "nyu2_train.csv").is_file()
    assert (tmp_path / "nyud2_archive.sha256").is_file()
    download.main(["--data_dir", str(tmp_path)])  # what is there is not unpacked again
    assert len(calls) == 1
    (tmp_path / "nyu2_train.csv").write_text("first\n")
    write_archive(tmp_path / "nyud2_archive", {**archive_content(), "data/more.txt": b"other"})
    with pytest.raises(ValueError, match=r"not the file of .*sha256"):
        download.main(["--data_dir", str(tmp_path), "--overwrite"])
    assert (tmp_path / "nyu2_train.csv").read_text() == "first\n"  # and not replaced
