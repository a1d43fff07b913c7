"""archive.py: one rule for what could do harm and one for what is damaged, in zip and tar files."""

import io
import itertools
import os
import stat
import tarfile
import zipfile

import pytest

from conftest import load

archive = load("agedb-dir", "archive")
KINDS = ("zip", "tar", "tar.gz", "tar.xz")


def write_archive(path, content, kind="zip"):
    """Write {name: bytes, None for a folder} as an archive, names as they are."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, value in content.items():
                file.writestr(zipfile.ZipInfo(name), value or b"")
        return path
    with tarfile.open(path, f"w:{kind[4:]}") as file:
        for name, value in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(value or b"")
            member.type = tarfile.DIRTYPE if value is None else tarfile.REGTYPE
            file.addfile(member, io.BytesIO(value or b""))
    return path


def everything(sizes):
    return {name: name for name in sizes}


def files_below(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_names_as_tools_write_them(tmp_path, kind, capsys):
    content = {"./a/": None, "./a/1.txt": b"one", "./a/./b\\2.txt": b"two", "3.txt": b"three",
               "__MACOSX/a/._1.txt": b"x", "a/._1.txt": b"x"}  # fmt: skip
    path, out = write_archive(tmp_path / "x", content, kind), tmp_path / "out"
    sizes = {"a/1.txt": 3, "a/b/2.txt": 3, "3.txt": 5}

    def choose(found):
        assert found == sizes
        return {"a/1.txt": "c/one", "a/b/2.txt": "c/d/two"}

    assert archive.unpack(path, out, choose) == ["c/one", "c/d/two"]
    assert files_below(out) == {"c/one": b"one", "c/d/two": b"two"}
    assert "2 files, 0.00 GB; 1 others are left out: '3.txt'" in capsys.readouterr().out


PARTS = ("..", ".", "", "a", "b", "C:", "..a")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_every_name_stays_within_or_is_refused(tmp_path, kind, separator):
    """All names of up to three such parts; where one leads is asked of the system's own rule."""
    out, refused = tmp_path / "deep/er/out", 0
    for parts in itertools.chain(*(itertools.product(PARTS, repeat=n) for n in (1, 2, 3))):
        name = separator.join(parts)
        if parts[-1] in ("", ".", "..") or not name:
            continue
        path = write_archive(tmp_path / "x", {name: b"x", "whole.txt": b"y"}, kind)
        if ".." in parts or "" in parts or "C:" in parts:
            with pytest.raises(ValueError, match="leads out"):
                archive.unpack(path, out, everything)
            refused += 1
            continue
        archive.unpack(path, out, everything)
        place = os.path.normpath("/".join(parts))
        assert files_below(tmp_path / "deep") == {
            f"er/out/{place}": b"x", "er/out/whole.txt": b"y"
        }  # fmt: skip
        for file in (out / "whole.txt", out / place):
            file.unlink()
        for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
    assert refused > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "x"]


@pytest.mark.parametrize("name", ["link", "link/"])
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFSOCK, stat.S_IFBLK])
def test_links_and_devices_are_refused_even_as_folders(tmp_path, name, kind):
    with zipfile.ZipFile(tmp_path / "x", "w") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, b"/etc")
    with pytest.raises(ValueError, match="is a link or device"):
        archive.unpack(tmp_path / "x", tmp_path / "out", everything)


@pytest.mark.parametrize("kind", KINDS)
def test_one_place_twice_is_refused(tmp_path, kind):
    path = write_archive(tmp_path / "x", {"a/1.txt": b"1", "a/./1.txt": b"2"}, kind)
    with pytest.raises(ValueError, match=r"'a/1\.txt' occurs twice"):
        archive.unpack(path, tmp_path / "out", everything)
    path = write_archive(tmp_path / "x", {"a/1.txt": b"1", "b/1.txt": b"2"}, kind)
    with pytest.raises(ValueError, match=r"'1\.txt' occurs twice"):
        archive.unpack(path, tmp_path / "out", lambda sizes: dict.fromkeys(sizes, "1.txt"))
    path = write_archive(tmp_path / "x", {"a": b"1", "a/1.txt": b"2"}, kind)
    with pytest.raises(ValueError, match=r"'a/1\.txt' occurs twice"):
        archive.unpack(path, tmp_path / "out", everything)
    assert files_below(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_of_an_archive_leaves_anything(tmp_path, kind):
    content = {f"{i}.bin": os.urandom(700) for i in range(4)}
    path, out = write_archive(tmp_path / "x", content, kind), tmp_path / "out"
    archive.unpack(path, out, everything)
    assert files_below(out) == content
    whole = path.read_bytes()
    # A tar file is filled up by zeros, of which the first block alone is asked for.
    needed = 4 * (512 + 1024) + 512 if kind == "tar" else len(whole)
    for length in range(0, needed, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"damaged.*delete .*fetch it again"):
            archive.unpack(path, tmp_path / "new", everything)
        assert list((tmp_path / "new").iterdir()) == []


def test_what_is_there_is_replaced_whole_or_not_at_all(tmp_path):
    path, out = write_archive(tmp_path / "x", {"a/1": b"1", "b": b"2"}), tmp_path / "out"
    (out / "b").mkdir(parents=True)
    (out / "b/old").touch()
    (out / "a").write_bytes(b"a file")
    with pytest.raises(ValueError, match=r"out holds a, b: --overwrite"):
        archive.unpack(path, out, everything)
    archive.unpack(path, out, everything, overwrite=True)
    assert files_below(out) == {"a/1": b"1", "b": b"2"}
    (out / "b").unlink()
    (out / "b").symlink_to(tmp_path / "x")
    with pytest.raises(ValueError, match="b is a symbolic link, which is never replaced"):
        archive.unpack(path, out, everything, overwrite=True)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_grows_too_much_is_refused_before_anything_is_written(tmp_path, kind):
    path = write_archive(tmp_path / "x", {"a": bytes(3_000_000)}, kind)
    with pytest.raises(ValueError, match=r"0\.003 GB when unpacked, above 0\.002: see --max_gb"):
        archive.unpack(path, tmp_path / "out", everything, max_gb=0.002)
    assert list((tmp_path / "out").iterdir()) == []
    archive.unpack(path, tmp_path / "out", everything, max_gb=0.003)
