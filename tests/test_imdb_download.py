"""IMDB-WIKI's archives: fetched over breaks, verified, unpacked safely; the official split file."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from conftest import ROOT, load
from range_server import serve

download = load("imdb-wiki-dir", "download")
fetch = load("imdb-wiki-dir", "fetch")
unpacking = load("imdb-wiki-dir", "unpack")

SPLIT_PAGE = "/imdb-wiki-dir/data/imdb_wiki.csv"


def member(name, content=b"", kind=tarfile.REGTYPE, link="", **fields):
    """A member of an archive and its content."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), link
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def make_tar(members, format=tarfile.GNU_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def crop(source="imdb", n=6):
    """Members that stand for a source's archive."""
    rng = np.random.default_rng(len(source))
    images = [member(f"{source}_crop/{i % 3:02}/nm{i}.jpg", rng.bytes(900 + i)) for i in range(n)]
    folders = [member(f"{source}_crop/{i:02}", kind=tarfile.DIRTYPE) for i in range(3)]
    return [*folders, *images, member(f"{source}_crop/{source}.mat", b"MATLAB")]


def files_below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def unpack(data, content, overwrite=False, name="imdb_crop.tar"):
    (data / name).write_bytes(content)
    return unpacking.unpack_archive(data / name, data, overwrite)


def listing(data):
    """Names in a folder, but for the lock, which some versions of filelock leave."""
    return sorted(set(os.listdir(data)) - {".download.lock"})


def assert_refused(data, content, message):
    with pytest.raises(ValueError, match=message):
        unpack(data, content)
    assert listing(data) == ["imdb_crop.tar"]  # nothing looks complete, nothing lies about
    assert os.listdir(data.parent) == ["data"]


# ---- unpacking -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("before", ["", "./"])
def test_round_trip(data, format, before, capsys):
    members = [*crop(), member("imdb_crop/read me.txt", b"x")]
    for info, _ in members:
        info.name = before + info.name
    content = make_tar(members, format)
    assert unpack(data, content) == 6
    expected = {info.name.removeprefix(before): c for info, c in members if info.isreg()}
    del expected["imdb_crop/read me.txt"]
    matlab = hashlib.sha256(expected["imdb_crop/imdb.mat"]).hexdigest()
    expected["imdb_crop/imdb.mat.sha256"] = f"{matlab}  imdb.mat\n".encode()
    assert files_below(data / "imdb_crop") == {
        n[len("imdb_crop/") :]: c for n, c in expected.items()
    }
    assert "read me.txt" in capsys.readouterr().out
    record = (data / "imdb_crop.tar.sha256").read_text()
    assert record == f"{hashlib.sha256(content).hexdigest()}  imdb_crop.tar\n"
    assert not list(data.glob("*.partial"))


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "imdb_crop/../../a.jpg", "/tmp/a.jpg", "imdb_crop/00/../../../a.jpg",
     "wiki_crop/a.jpg", "a.jpg", "imdb_crop\\..\\..\\a.jpg", "imdb_crop//a.jpg", "../a.txt"],
)  # fmt: skip
def test_a_member_that_leads_out_is_refused(data, name):
    assert_refused(data, make_tar([*crop(), member(name, b"x")]), "leads out|refused")
    assert_refused(data, make_tar([member(name, b"x"), *crop()], tarfile.PAX_FORMAT), "refused")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
@pytest.mark.parametrize("name", ["imdb_crop/00/a.jpg", "imdb_crop/link"])
@pytest.mark.parametrize("link", ["imdb_crop/00/nm0.jpg", "/etc/passwd", "../../../x"])
def test_a_link_or_device_is_refused(data, kind, name, link):
    assert_refused(data, make_tar([*crop(), member(name, kind=kind, link=link)]), "refused")


def test_a_link_to_a_folder_cannot_be_written_through(data):
    link = member("imdb_crop/out", kind=tarfile.SYMTYPE, link="../..")
    assert_refused(data, make_tar([link, member("imdb_crop/out/a.jpg", b"x"), *crop()]), "refused")


def test_a_sparse_member_is_refused(data):
    """It could claim any size; sizes of others are bounded by the archive's own."""
    info, content = member("imdb_crop/00/a.jpg", b"x" * 512)
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": info.name,
        "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512",
    }  # fmt: skip
    assert_refused(data, make_tar([*crop(), (info, content)], tarfile.PAX_FORMAT), "sparse")


def test_a_member_twice_and_a_file_as_a_folder_are_refused(data):
    assert_refused(data, make_tar([*crop(), member("imdb_crop/00/nm0.jpg", b"x")]), "occurs twice")
    below = member("imdb_crop/00/nm0.jpg/x.jpg", b"x")
    assert_refused(data, make_tar([*crop(), below]), "occurs twice")


def test_an_archive_that_is_cut_or_damaged_is_refused(data):
    content = make_tar(crop())
    end = content.rindex(b"MATLAB") + 512
    cuts = (0, 100, 511, 512, 1536, len(content) // 3, len(content) // 2, end - 506)
    for length in cuts:  # within a header, within an image, between two members
        assert_refused(data, content[:length], "is cut, damaged|holds no")
    third = content.index(b"imdb_crop/00/nm3.jpg")
    damaged = content[: third + 150] + b"9" + content[third + 151 :]  # in a header's checksum
    assert_refused(data, damaged, "is cut, damaged .*no archive from byte")
    whole = make_tar([crop()[-1], *crop()[:-1]])  # the MATLAB file is there, images are not
    for archive in (content, whole):
        lost = archive.index(b"imdb_crop/00/nm3.jpg")
        hole = archive[:lost] + bytes(512) + archive[lost + 512 :]  # zeros end an archive
        assert_refused(data, hole, "is cut, damaged .*no archive from byte")
    assert_refused(data, whole + make_tar(crop()), "is cut, damaged .*no archive from byte")
    assert_refused(data, b"<html>log in first</html>" * 50, "is cut, damaged")
    assert_refused(data, make_tar(crop()[:-1]), r"holds no imdb_crop/imdb\.mat")


def test_another_archive_than_the_first_is_refused(data):
    unpack(data, make_tar(crop()))
    with pytest.raises(ValueError, match="--overwrite"):
        unpack(data, make_tar(crop()))
    with pytest.raises(ValueError, match=r"is not the file of .*sha256"):
        unpack(data, make_tar(crop(n=7)), overwrite=True)
    assert len(files_below(data / "imdb_crop")) == 8  # the first one's, and two of the .mat
    (data / "imdb_crop.tar.sha256").unlink()
    assert unpack(data, make_tar(crop(n=7)), overwrite=True) == 7
    assert len(files_below(data / "imdb_crop")) == 9


def test_a_full_disk_is_told_before_anything_is_written(data, monkeypatch):
    usage = type("usage", (), {"free": 5000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(data, make_tar(crop()), "bytes are needed, 5,000 free in .*make room")


def test_an_interrupted_run_leaves_nothing_and_the_next_one_works(data, monkeypatch):
    copy, calls = shutil.copyfileobj, []

    def interrupted(source, target):
        calls.append(copy(source, target))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(data, make_tar(crop()))
    assert listing(data) == ["imdb_crop.tar"]
    (data / "imdb_crop.partial/00").mkdir(parents=True)  # what a killed run leaves
    (data / "imdb_crop.partial/00/nm0.jpg").write_bytes(b"half")
    assert unpack(data, make_tar(crop())) == 6


def test_what_a_killed_run_left_does_not_take_the_room(data, monkeypatch):
    left = data / "imdb_crop.partial/00/nm0.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(30_000))

    def usage(_):
        return type("usage", (), {"free": 40_000 - (left.stat().st_size if left.exists() else 0)})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert unpack(data, make_tar(crop())) == 6


@pytest.mark.parametrize("leads", [True, False])
def test_a_link_in_the_place_of_the_folder_stays(data, server, leads):
    """Said before anything is fetched; without --overwrite what it leads to is simply there."""
    if leads:
        (data.parent / "disk").mkdir()
        (data.parent / "disk/old.jpg").touch()
    (data / "imdb_crop").symlink_to(data.parent / "disk")
    serve_archives(server)
    with pytest.raises(ValueError, match=r"imdb_crop is a symbolic link.*remove it"):
        images(data, server, "--overwrite")
    assert server.asked == []
    with pytest.raises(ValueError, match="is a symbolic link"):
        unpack(data, make_tar(crop()), overwrite=True)
    assert listing(data) == ["imdb_crop", "imdb_crop.tar"]
    if leads:
        assert os.listdir(data.parent / "disk") == ["old.jpg"]
        images(data, server)
        assert (data / "imdb_crop").is_symlink()


RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import download, shutil
data, copy = Path(sys.argv[2]), shutil.copyfileobj

def slow(source, file):
    copy(source, file)
    if ".partial" in file.name:
        (data / "begun").touch()
    end = time.monotonic() + 20
    while (data / "begun").exists() and not (data / "go").exists() and time.monotonic() < end:
        time.sleep(0.01)

shutil.copyfileobj = slow
download.main(["--images", "--data_dir", str(data), "--base_url", sys.argv[3]])
"""


def test_two_at_once_take_turns(data, server):
    """The second neither deletes what the first is unpacking nor fetches anything again."""
    serve_archives(server)
    command = [sys.executable, "-c", RUN, ROOT / "imdb-wiki-dir", data, f"{server.url}/m"]
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipe) as first:
        while not (data / "begun").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with subprocess.Popen(command, **pipe) as second:
            line = second.stdout.readline()
            (data / "go").touch()
            out = second.stdout.read()
    assert (first.returncode, second.returncode) == (0, 0)
    assert line.startswith(f"another process fetches or unpacks in {data}")
    assert out.count("exists: --overwrite") == 2
    for source in ("imdb", "wiki"):
        assert len(files_below(data / f"{source}_crop")) == 8
    assert sorted(path for path, _ in server.asked) == sorted(server.pages)


# ---- fetching ------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server of this machine alone: see `range_server`."""
    with serve() as httpd:
        yield httpd


def serve_archives(server):
    server.pages = {f"/m/{s}_crop.tar": make_tar(crop(s)) for s in ("imdb", "wiki")}


def images(data, server, *flags):
    download.main(["--images", "--base_url", f"{server.url}/m/", "--data_dir", str(data), *flags])


def test_a_download_is_resumed_after_breaks(data, server):
    serve_archives(server)
    server.breaks = {"/m/imdb_crop.tar": 3}
    images(data, server)
    total = len(server.pages["/m/imdb_crop.tar"])
    ranges = [wanted for path, wanted in server.asked if path == "/m/imdb_crop.tar"]
    starts = [int(wanted.removeprefix("bytes=").rstrip("-")) for wanted in ranges[1:]]
    assert ranges[0] is None
    assert len(starts) == 3
    assert 0 < starts[0] < starts[1] < starts[2] < total  # no byte was asked for twice
    assert (data / "imdb_crop.tar").read_bytes() == server.pages["/m/imdb_crop.tar"]
    for source in ("imdb", "wiki"):
        names = {info.name for info, _ in crop(source) if info.isreg()}
        names.add(f"{source}_crop/{source}.mat.sha256")
        assert {f"{source}_crop/{name}" for name in files_below(data / f"{source}_crop")} == names
    # Given again, the command leaves alone what is there.
    asked = len(server.asked)
    images(data, server)
    assert len(server.asked) == asked


def test_the_next_command_resumes_too(data, server):
    serve_archives(server)
    server.breaks, server.dies = {"/m/imdb_crop.tar": 2}, True
    with pytest.raises(ValueError, match=r"cannot fetch .*imdb_crop\.tar.*resumes"):
        images(data, server)
    have = (data / "imdb_crop.tar.part").stat().st_size
    assert 0 < have < len(server.pages["/m/imdb_crop.tar"])
    assert not (data / "imdb_crop.tar").exists()
    server.down.clear()
    server.asked.clear()
    images(data, server)
    assert server.asked[0] == ("/m/imdb_crop.tar", f"bytes={have}-")
    assert (data / "wiki_crop" / "wiki.mat").is_file()


def test_a_file_that_changed_or_a_host_without_ranges_starts_again(data, server):
    serve_archives(server)
    other = make_tar(crop("imdb", n=9))
    for ranges in (True, False):
        (data / "imdb_crop.tar.part").write_bytes(other[:2000])
        (data / "imdb_crop.tar.version").write_text('"another"')
        server.ranges = ranges
        images(data, server, "--overwrite")
        assert (data / "imdb_crop.tar").read_bytes() == server.pages["/m/imdb_crop.tar"]
        (data / "imdb_crop.tar").unlink()


def test_a_missing_page_and_a_full_disk(data, server, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot fetch .*404"):
        images(data, server)
    serve_archives(server)
    usage = type("usage", (), {"free": 9000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"9,000 free in .*make room"):
        images(data, server)
    assert not (data / "imdb_crop.tar").exists()


def test_both_archives_must_find_room_before_one_is_fetched(data, server, monkeypatch):
    """Room for the first alone: told by the host's lengths, before hours are spent on it."""
    serve_archives(server)
    total = sum(len(page) for page in server.pages.values())
    needed = int((1 + unpacking.UNPACKED) * total)
    usage = type("usage", (), {"free": needed - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=rf"{needed:,} bytes are needed, {needed - 1:,} free"):
        images(data, server)
    assert server.asked == []
    assert listing(data) == []
    usage.free = 10 * total
    images(data, server)
    # What is there is only unpacked, and what is unpacked needs nothing.
    shutil.rmtree(data / "imdb_crop")
    usage.free = len(crop()) * 4096  # a file fills up its last block
    images(data, server)
    assert (data / "imdb_crop/imdb.mat").is_file()


def test_an_archive_of_another_number_of_images_is_to_be_kept(data, server, monkeypatch, capsys):
    serve_archives(server)
    monkeypatch.setattr(download, "IMAGES", {"imdb": 460_723, "wiki": 6})
    images(data, server)
    out = capsys.readouterr().out
    assert f"DIFFERS: 460,723 images expected. Keep {data / 'imdb_crop.tar'}" in out
    assert f"{data / 'wiki_crop.tar'} may be deleted" in out
    assert f"{data / 'imdb_crop.tar'} may be deleted" not in out


def split_file(counts, path="imdb_crop/00/a"):
    lines = [f"30,{path}{split}{i}.jpg,{split}\n" for split, n in counts.items() for i in range(n)]
    return ("age,path,split\n" + "".join(lines)).encode()


def test_the_official_split_file(data, server, monkeypatch):
    counts = {"train": 30, "val": 4, "test": 4}
    monkeypatch.setattr(download, "EXPECTED", counts)
    content = split_file(counts)
    flags = ["--split_file", "--split_url", server.url, "--data_dir", str(data)]
    server.pages[SPLIT_PAGE] = split_file(counts | {"val": 5})
    with pytest.raises(ValueError, match="other counts: it was not kept"):
        download.main(flags)
    assert listing(data) == []
    server.pages[SPLIT_PAGE] = content
    download.main(flags)
    assert (data / "imdb_wiki.csv").read_bytes() == content
    asked = len(server.asked)
    download.main(flags)
    assert len(server.asked) == asked
    (data / "imdb_wiki.csv").write_bytes(b"mine")
    with pytest.raises(ValueError, match="--overwrite"):
        download.main(flags)
    server.pages[SPLIT_PAGE] = split_file(counts, "imdb_crop/01/b")  # other rows, the same counts
    with pytest.raises(ValueError, match=r"has the sha256 .*not as in .*sha256"):
        download.main([*flags, "--overwrite"])
    assert (data / "imdb_wiki.csv").read_bytes() == b"mine"
    server.pages[SPLIT_PAGE] = content
    download.main([*flags, "--overwrite"])
    assert (data / "imdb_wiki.csv").read_bytes() == content


def test_without_arguments_it_says_what_to_do(capsys):
    download.main([])
    out = capsys.readouterr().out
    assert all(part in out for part in ("--images", "prepare.py", "--split_file", "demo_data.py"))
    with pytest.raises(SystemExit):
        download.main(["--no_such_flag"])
