"""Hostile files, made by hand, in every folder; and a short form of `make fuzz`."""

import contextlib
import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import zipfile
import zlib

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fuzz
import hostile_kinds
from conftest import BENCHMARK_FOLDERS, ROOT, load

# ---- checkpoints, in all folders -----------------------------------------------------------


class Call:
    """Pickled, a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive_of(content, **members):
    """Return a checkpoint's archive whose pickle is `content`, with other members on top."""
    whole = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(3)}}, whole)
    made = io.BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            is_pickle = name.endswith("data.pkl")
            new.writestr(name, content if is_pickle and content else old.read(name))
        for name, member in members.items():
            new.writestr(name, member, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def saved(state):
    """Return the bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def nested(depth):
    """Return a list within a list, so many times."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


ONE = {"weight": torch.ones(2, 4), "bias": torch.ones(2)}
LAUGHS = [["ha"] * 10]
for _ in range(30):
    LAUGHS = [LAUGHS] * 10
SHARED = ["x"]
for _ in range(26):
    SHARED = [SHARED, SHARED]
CHECKPOINTS = {
    "runs a command": archive_of(pickle.dumps({"state_dict": Call(os.system, "exit 1")}, 2)),
    "evaluates text": archive_of(pickle.dumps(Call(eval, "1"), 2)),
    "opens a file": archive_of(pickle.dumps(Call(open, "/etc/passwd"), 2)),
    "asks for an attribute": archive_of(pickle.dumps(Call(getattr, "a", "upper"), 2)),
    "makes 100 GB of a number": archive_of(pickle.dumps([Call(bytearray, 10**11)], 2)),
    "unpacks to more than it has": archive_of(None, bomb=bytes(10**7)),
    "claims a tensor of 4 TB": saved(
        {"state_dict": {"weight": torch.ones(1).expand(10**6, 10**6)}}
    ),
    "has a tensor without values": saved({"state_dict": {"weight": torch.ones(2, device="meta")}}),
    "has a sparse tensor": saved({"state_dict": {"weight": torch.eye(4).to_sparse()}}),
    "has a complex tensor": saved({"state_dict": {"weight": torch.ones(2, dtype=torch.cfloat)}}),
    "has numbers for names": saved({"state_dict": {1: torch.ones(2)}}),
    "has text for weights": saved({"state_dict": {"weight": "none"}}),
    "has a list for weights": saved({"state_dict": [torch.ones(2)]}),
    "is a number": saved(5),
    "is nested 200 times": saved({"state_dict": nested(200)}),
    "shares its lists": saved(
        {"state_dict": ONE, "epoch": 1, "config": {"a": SHARED}, "digest": ""}
    ),
    "laughs": saved({"state_dict": ONE, "epoch": LAUGHS}),
    "has text for its epoch": saved({"state_dict": ONE, "epoch": "two"}),
    "has NaN for its epoch": saved({"state_dict": ONE, "epoch": float("nan")}),
    "has an epoch below 0": saved({"state_dict": ONE, "epoch": -5}),
    "has a list for flags": saved({"state_dict": ONE, "epoch": 1, "config": [1]}),
    "has tensors for flags": saved(
        {"state_dict": ONE, "epoch": 1, "config": {"lr": torch.ones(2)}}
    ),
    "has no groups": saved({"state_dict": ONE, "epoch": 1, "optimizer": {"param_groups": 3}}),
    "is empty": b"",
    "is text": b"no checkpoint" * 99,
    "is a pickle from long ago": pickle.dumps({"state_dict": Call(os.system, "exit 1")}, 2),
}


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_in_one_line(tmp_path, folder, name):
    checkpoints = load(folder, "checkpoints")
    path = tmp_path / checkpoints.LAST
    path.write_bytes(CHECKPOINTS[name])
    model, optimizer = hostile_kinds.model_of()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        checkpoints.restore(hostile_kinds.run_of(tmp_path), path, model, optimizer)
    assert fuzz.is_one_line(caught.value, tmp_path), repr(caught.value)


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_each_flipped_bit_of_a_checkpoint_is_found_or_of_no_effect(tmp_path, folder):
    module = load(folder, "checkpoint_file")
    path = tmp_path / "ckpt.pth.tar"
    whole = saved(hostile_kinds.checkpoint_of())
    expected = fuzz.fingerprint(torch.load(io.BytesIO(whole), weights_only=True))
    rng = random.Random(0)
    for _ in range(40):
        path.write_bytes(fuzz.flip(whole, rng))
        with contextlib.suppress(ValueError):
            assert fuzz.fingerprint(module.load_checkpoint(path)) == expected


def test_a_payload_is_named_without_the_advice_to_run_it(tmp_path):
    path = tmp_path / "evil.pth.tar"
    path.write_bytes(CHECKPOINTS["runs a command"])
    with pytest.raises(ValueError, match=r"it holds \w+\.system, no plain value") as caught:
        load("agedb-dir", "checkpoint_file").load_checkpoint(path)
    assert "weights_only" not in str(caught.value)


def test_no_message_has_the_advice_to_trust_a_file(tmp_path):
    path = tmp_path / "file"
    run_files, outside = load("agedb-dir", "run_files"), load("agedb-dir", "outside")

    def statistics(path):
        with outside.reading(path, "again"):
            run_files.read_statistics(path)

    readers = load("agedb-dir", "checkpoint_file").load_checkpoint, statistics
    for content in (bytes(1000), b"text", b""):
        path.write_bytes(content)
        for read in readers:
            with pytest.raises(ValueError, match="cannot be read") as caught:
                read(path)
            assert not re.search("weights_only|allow_pickle|mmap", str(caught.value))


# ---- published folders ---------------------------------------------------------------------

NAMES = (
    "../../etc/passwd", "owner/..", "owner/name@../../x", "owner/name@refs/heads/x", "a/b/c",
    "owner/na me", "owner/name@", "öwner/name", "owner/name@a..b", "-owner/name", "owner\n/name",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_only_a_plain_name_goes_to_the_hub(name):
    released = load("agedb-dir", "released")
    assert released.HUB_NAME.fullmatch("owner/name@v1.0")
    assert not released.HUB_NAME.fullmatch(name)


def test_a_config_cannot_have_an_encoder_fetched(tmp_path):
    released = load("sts-b-dir", "released")
    checkpoint = {"config": {"encoder": "someone/model"}}
    given = fuzz.argparse.Namespace(encoder="")
    with pytest.raises(ValueError, match=r"someone/model.*give that flag yourself"):
        released.take_flags(given, checkpoint, tmp_path / "model.safetensors", ["encoder"])
    given.encoder = "someone/model"
    released.take_flags(given, checkpoint, tmp_path / "model.safetensors", ["encoder"])


def test_no_code_of_an_encoder_is_run():
    text = (ROOT / "sts-b-dir" / "text.py").read_text(encoding="utf-8")
    assert text.count("trust_remote_code=False") == 2
    assert len(re.findall(r"from_pretrained\(|from_config\(", text)) == 2


# ---- images --------------------------------------------------------------------------------


def png_of(bits):
    """Return a PNG of one row of pixels with 16 bits a channel, in red, green and blue."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    row = b"".join(struct.pack(">3H", value, value, value) for value in bits)
    head = struct.pack(">IIBBBBB", len(bits), 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def image_bytes(image, kind, **options):
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PLAIN = Image.new("RGB", (20, 10), (200, 30, 40))
BOMB_PNG = png_of([0]).replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000))
IMAGES = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "an icon": image_bytes(PLAIN.resize((16, 16)), "ICO"),
    "a PDF": image_bytes(PLAIN, "PDF"),
    "60,000 × 60,000 pixels": BOMB_PNG,
    "cut": image_bytes(PLAIN, "JPEG")[:300],
    "empty": b"",
    "an HTML page": b"<html>404</html>",
    "fractions": image_bytes(Image.new("F", (9, 9)), "TIFF"),
}


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir"])
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none_is_named(tmp_path, folder, name):
    (tmp_path / "face.jpg").write_bytes(IMAGES[name])
    with pytest.raises(ValueError, match=r"1 of 1 images cannot be used: .*face\.jpg"):
        load(folder, "image_cache").Images(tmp_path, ["face.jpg"], 16, None, quiet=True)


def test_every_image_is_opened_with_a_list_of_formats():
    for folder in BENCHMARK_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert text.count("Image.open(") == len(re.findall(r"Image\.open\(.*formats=", text)), (
                path
            )


def test_a_turned_photo_is_turned_and_said(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    halves = Image.new("RGB", (40, 20), (255, 0, 0))
    halves.paste((0, 0, 255), (20, 0, 40, 20))  # red on the left, blue on the right
    halves.save(tmp_path / "a.png", exif=exif)
    module = load("agedb-dir", "image_cache")
    with caplog.at_level("INFO"):
        images = module.Images(tmp_path, ["a.png"], 16, tmp_path / "cache", quiet=True)
    image = images.read([0])[0]
    assert (image[0, :, 0] > image[0, :, 2]).all()  # red above
    assert (image[-1, :, 0] < image[-1, :, 2]).all()  # blue below
    assert "1 images were turned" in caplog.text


def test_colours_of_sixteen_bits_are_scaled(tmp_path):
    values = [0, 255, 256, 1000, 30_000, 65_535]
    (tmp_path / "deep.png").write_bytes(png_of(values))
    with load("agedb-dir", "image_file").open_image(tmp_path / "deep.png") as image:
        read = np.asarray(image.convert("RGB"))[0, :, 1]
    np.testing.assert_allclose(read, np.array(values) / 65_535 * 255, atol=1)


# ---- paths ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """A data folder with links, a pipe and an image, next to a folder outside of it."""
    data = tmp_path / "data"
    (data / "inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (data / "a.png", data / "inside" / "a.png", tmp_path / "outside" / "a.png"):
        PLAIN.save(path)
    (data / "link.png").symlink_to(tmp_path / "outside" / "a.png")
    (data / "near.png").symlink_to(data / "a.png")
    (data / "folder").symlink_to(tmp_path / "outside")
    (data / "loop.png").symlink_to(data / "loop.png")
    os.mkfifo(data / "pipe.png")
    return data


LEAVING = (
    "../outside/a.png", "inside/../../outside/a.png", "/etc/hostname", "link.png", "folder/a.png",
)  # fmt: skip


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
@pytest.mark.parametrize("name", LEAVING)
def test_a_path_that_leaves_its_folder_is_refused(place, folder, name):
    outside = load(folder, "outside")
    with pytest.raises(ValueError, match=r"1 paths lead out of .*--allow_outside"):
        outside.check_inside(place, ["a.png", name])
    outside.check_inside(place, [name], allow_outside=True)
    outside.check_inside(place, ["inside/../a.png", "near.png", "loop.png", "not there", "a\0b"])


def test_the_folders_look_at_the_paths_in_their_files(place):
    table = pd.DataFrame({"image": ["link.png"], "depth": ["a.png"]})
    reads = {
        "agedb-dir": lambda **o: load("agedb-dir", "image_cache").Images(
            place, ["link.png"], 16, None, quiet=True, **o
        ),
        "nyud2-dir": lambda **o: load("nyud2-dir", "depth_cache").Pairs(
            place, table, 8, None, "t", quiet=True, **o
        ),
        "shhs-dir": lambda **o: load("shhs-dir", "datasets").Nights(place, ["link.png"], **o),
        "prepare": lambda **o: load("imdb-wiki-dir", "meta_file").missing_paths(
            place, ["link.png"], **o
        ),
    }
    for read in reads.values():
        with pytest.raises(ValueError, match=r"lead out of .*link\.png"):
            read()
    assert len(reads["agedb-dir"](allow_outside=True)) == 1
    assert reads["prepare"](allow_outside=True) == []


@pytest.mark.parametrize("name", ["pipe.png", "loop.png", "inside", "x" * 5000 + ".png", "a\0b"])
def test_what_is_no_file_is_not_opened(place, name):
    with pytest.raises(FileNotFoundError, match="1 of 1 files are missing") as caught:
        load("agedb-dir", "image_cache").Images(place, [name], 16, None, quiet=True)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


# ---- nights and other HDF5 -----------------------------------------------------------------


def as_group(file):
    """Put a group in the place of an array."""
    del file["eeg"]
    file.create_group("eeg")


def as_external_link(file):
    """Put a link to another file in its place."""
    del file["eeg"]
    file["eeg"] = h5py.ExternalLink("other.h5", "/eeg")


def as_soft_loop(file):
    """Put a link to itself in its place."""
    del file["eeg"]
    file["eeg"] = h5py.SoftLink("/eeg")


def as_raw_data(file):
    """Keep its values in another file."""
    shape = file["eeg"].shape
    del file["eeg"]
    secret = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("eeg", shape=shape, dtype="f2", external=secret)


def as_virtual(file):
    """Take its values from another file."""
    layout = h5py.VirtualLayout(file["eeg"].shape, "f2")
    layout[:] = h5py.VirtualSource("other.h5", "eeg", file["eeg"].shape)
    del file["eeg"]
    file.create_virtual_dataset("eeg", layout)


def as_text(file):
    """Put text in its place."""
    shape = file["eeg"].shape
    del file["eeg"]
    file["eeg"] = np.full(shape, b"x")


def with_nan(file):
    """Put NaN into it, as versions without a checksum could hold."""
    values = file["eeg"][()]
    values[0, 0] = np.nan
    file["eeg"][...] = values


def without_frames(file):
    """Say text for the number of its frames."""
    file.attrs["frames"] = "many"


def with_negative_moments(file):
    """Say less than nothing for the mean of its squares."""
    file["eeg"].attrs["mean_square"] = -file["eeg"].attrs["mean_square"]


def with_other_moments(file):
    """Say moments that could be, of other values."""
    file["eeg"].attrs["mean_square"] = 1.001 * file["eeg"].attrs["mean_square"]


def with_other_values(file):
    """Write its values again, and not its moments."""
    file["eeg"][...] = file["eeg"][()] + np.float16(0.125)


NIGHTS = (
    as_group, as_external_link, as_soft_loop, as_raw_data, as_virtual, as_text, with_nan,
    without_frames, with_negative_moments, with_other_moments, with_other_values,
)  # fmt: skip


def without_seals(file):
    """Turn a night into one of an earlier version."""
    del file.attrs["seal"]
    for name in ("eeg", "ecg", "breathing"):
        del file[name].attrs["seal"], file[name].attrs["content"]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", NIGHTS)
def test_a_hostile_night_is_refused(tmp_path, change, sealed):
    hostile_kinds.make_night(tmp_path)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        if not sealed:
            without_seals(file)
        change(file)
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read .*prepare\.py"):
        hostile_kinds.read_night(tmp_path)


def test_a_flipped_bit_in_a_night_is_found(tmp_path):
    hostile_kinds.make_night(tmp_path)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["eeg"].id.get_chunk_info(0).byte_offset
    content[place + 1000] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read"):
        hostile_kinds.read_night(tmp_path)


def test_a_flipped_bit_in_a_moment_is_found(tmp_path):
    """The scale of the inputs comes from the moments, which no checksum of HDF5's covers."""
    hostile_kinds.make_night(tmp_path)
    whole = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        moments = [file[name].attrs[kind] for name in file if name != "stages"
                   for kind in ("mean", "mean_square")]  # fmt: skip
    for held in moments:
        place = whole.index(held.tobytes())
        for bit in (0, 40, 52, 63):  # of the first channel's: lowest, middle, exponent, sign
            content = bytearray(whole)
            content[place + bit // 8] ^= 1 << bit % 8
            (tmp_path / "a.h5").write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.h5 cannot be read .*prepare\.py"):
                hostile_kinds.read_night(tmp_path)


def test_a_night_of_an_earlier_version_is_read_as_before(tmp_path):
    hostile_kinds.make_night(tmp_path)
    read, scale, *_ = hostile_kinds.read_night(tmp_path)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        without_seals(file)
    again, same, *_ = hostile_kinds.read_night(tmp_path)
    for name, signal in read.items():
        assert torch.equal(again[name], signal)
        assert all(map(torch.equal, same[name], scale[name]))


def test_a_resumed_run_is_told_of_other_values(tmp_path):
    """Values in another order have the same moments, so the digests hold their CRC-32 too."""
    module = load("shhs-dir", "night_file")
    rng = np.random.default_rng(0)
    night = {"stages": np.zeros(1, dtype=np.int8), "lacking": ""}
    for name, signal in load("shhs-dir", "night_signals").SIGNALS.items():
        night[name] = rng.integers(0, 9, (signal.channels, signal.frame)).astype(np.float16)
    inputs = []
    for name in ("a", "b"):
        module.write_night(tmp_path / f"{name}.h5", night, "")
        inputs.append(load("shhs-dir", "datasets").Nights(tmp_path, [f"{name}.h5"]).inputs())
        night["eeg"] = night["eeg"][:, ::-1]
    moments, values = ([given[key] for given in inputs]
                       for key in ("signals of nights", "values of nights"))  # fmt: skip
    assert np.array_equal(*moments)
    assert not np.array_equal(*values)


def test_a_pipe_is_no_recording(tmp_path):
    os.mkfifo(tmp_path / "a.edf")
    module = load("shhs-dir", "edf_night")
    with pytest.raises(module.Fault, match="no file"):
        module.source_of(tmp_path / "a.edf", 1.0, "")


# ---- caches and archives -------------------------------------------------------------------


def test_a_flipped_bit_in_a_cache_is_found_when_the_row_is_read(tmp_path):
    hostile_kinds.make_cache(tmp_path)
    path = next((tmp_path / "cache").glob("*.npy"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    paths = ["a.jpg", "a.png", "a.gif"]
    module = load("agedb-dir", "image_cache")
    images = module.Images(tmp_path, paths, 16, tmp_path / "cache", workers=1, quiet=True)
    images.read([0, 1])
    with pytest.raises(ValueError, match=r"row 2 of .*\.npy is damaged: delete"):
        images.read([2])


def tar_of(*members, end=b""):
    """Return a tar archive of (TarInfo, content), with bytes behind its end."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue() + end


def member_of(name, **facts):
    """Return a TarInfo."""
    member = tarfile.TarInfo(name)
    for fact, value in facts.items():
        setattr(member, fact, value)
    return member


def zip_of(name, content=b"x", **facts):
    """Return a zip archive of one file."""
    member = zipfile.ZipInfo(name)
    for fact, value in facts.items():
        setattr(member, fact, value)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return file.getvalue()


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(39 * 10**9)}
ARCHIVES = {
    "names ..": zip_of("../a.txt"),
    "names a root": zip_of("/a.txt"),
    "holds a symbolic link": tar_of((member_of("a", type=tarfile.SYMTYPE, linkname="/etc"), b"")),
    "holds a hard link": tar_of(
        (member_of("a", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")
    ),
    "holds a pipe": tar_of((member_of("a", type=tarfile.FIFOTYPE), b"")),
    "holds a device": tar_of((member_of("a", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "is sparse to 39 GB": tar_of((member_of("a", pax_headers=SPARSE), b"")),
    "claims 1 TB": member_of("a", size=10**12).tobuf() + bytes(10_240),
    "links in a zip": zip_of("a", b"/etc", external_attr=0o120777 << 16),
    "is zeros without an end": bytes(17 * 2**20),
    "has text behind its end": tar_of((member_of("a", size=1), b"x"), end=b"x" * 10_240),
}


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_leaves_nothing(tmp_path, folder, name):
    (tmp_path / "a.bin").write_bytes(ARCHIVES[name])
    out = tmp_path / "out"
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own message
        load(folder, "archive").unpack(
            tmp_path / "a.bin", out, lambda sizes: {n: n for n in sizes}, max_gb=1.0
        )
    assert not list(out.iterdir())


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(FileNotFoundError, match=r"no file .*a\.tar"):
        load("imdb-wiki-dir", "archive").unpack(tmp_path / "a.tar", tmp_path, dict)


def test_a_matlab_file_of_another_sha256_is_not_read(tmp_path):
    hostile_kinds.make_matlab(tmp_path)
    module = load("imdb-wiki-dir", "matlab_meta")
    file = tmp_path / "imdb_crop" / "imdb.mat"
    load("imdb-wiki-dir", "fetch").write_record(file, "0" * 64)
    with pytest.raises(ValueError, match=r"imdb\.mat .* is not the file of"):
        module.read_faces(tmp_path, "imdb")


# ---- run folders and text from files -------------------------------------------------------


def test_names_cannot_steer_a_terminal_or_a_table(tmp_path):
    hostile_kinds.make_run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    results["method"] = "A | B\x1b[2J\nC"
    (tmp_path / "results.json").write_text(json.dumps(results))
    markdown, _ = hostile_kinds.read_run(tmp_path)
    assert r"| A \| B\x1b[2J C |" in markdown
    outside = load("agedb-dir", "outside")
    assert outside.shown("a\x1b]0;title\x07\nb") == r"a\x1b]0;title\x07 b"
    assert outside.clean("MAE ± 0.1 – ²\n") == "MAE ± 0.1 – ²\n"
    assert len(outside.shown("x" * 5000)) < 320


RUNS = {
    "results.json": ("[" * 30_000, "[]", '{"benchmark": 1}', '{"a":' * 9_000),
    "label_density.csv": ("", "a,b\n1,2\n", "\0", "label,count\nx,y\n"),
    "predictions.csv": ("", "label,prediction\n1,x\n", "label\n1\n"),
    "fds_statistics.npz": ("", "PK\x03\x04", "text"),
}


@pytest.mark.parametrize(("name", "content"), [(n, c) for n, cs in RUNS.items() for c in cs])
def test_a_damaged_run_folder_is_named(tmp_path, name, content):
    hostile_kinds.make_run(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} cannot be read .* writes it again"):
        load("uci-dir", "report").load_run(tmp_path)


def test_the_page_is_made_from_its_files():
    reliability = fuzz.reliability
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page()


# ---- a short form of `make fuzz` -----------------------------------------------------------

SLOW = ("matlab", "edf", "run_figures")  # a second each


@pytest.mark.parametrize("name", hostile_kinds.KINDS)
def test_damaged_files_are_read_as_they_were_or_refused(tmp_path, name, capsys):
    kind = hostile_kinds.KINDS[name]
    kind.make(tmp_path)
    originals = {file: (tmp_path / file).read_bytes() for file in kind.files}
    kind.whole = fuzz.fingerprint(kind.read(tmp_path))
    for number in range(2 if name in SLOW else 12):
        outcome, detail = fuzz.try_case(kind, tmp_path, originals, number, "short")
        assert outcome in fuzz.GOOD, detail


def number_of_files():
    """Return how many hostile files stand above, each counted once, in however many folders."""
    groups = (CHECKPOINTS, NAMES, IMAGES, LEAVING, NIGHTS, ARCHIVES, *RUNS.values())
    return sum(map(len, groups))


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    left = [tmp_path / "nights" / ".1.h5.999.tmp", tmp_path / ".own.csv.999.tmp"]
    (tmp_path / "nights").mkdir()
    for path in left:
        path.touch()
    for folder in (tmp_path, tmp_path / "nights"):
        with load("shhs-dir", "fetch").sole_use(folder):
            pass
    assert not any(path.exists() for path in left)


def test_a_linked_vocabulary_is_not_published(tmp_path):
    publish = load("tools", "publish")
    (tmp_path / "run").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("key")
    (tmp_path / "run" / "vocab.txt").symlink_to(tmp_path / "secret")
    texts = {"config.json": b"{}"}
    with pytest.raises(ValueError, match="is a link: replace it"):
        publish.write_folder(
            tmp_path / "out", tmp_path / "run", "sts-b-dir", {"weight": torch.ones(2)}, texts
        )
    assert publish.plain("a | b\x1b[0m\nc") == r"a \| b\x1b[0m c"
