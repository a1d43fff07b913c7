"""download.py of AgeDB: unpacks whole archives alone, and fetches the official split file alone.

Python's zipfile reads encrypted archives but writes none, so `make_zip` writes them, after
PKWARE's APPNOTE (4.3.7, 4.3.12, 4.3.16 for the records, 6.1 for the cipher).
"""

import hashlib
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from conftest import ROOT, load

download = load("agedb-dir", "download")
prepare = load("agedb-dir", "prepare")

PASSWORD = b"open sesame"


def crc_step(crc, byte):
    """One byte of CRC-32 without the inversions before and after, as the cipher's keys use it."""
    return zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def zip_crypto(plain, password):
    """Encrypt bytes with the traditional PKWARE cipher."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte):
        keys[0] = crc_step(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc_step(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    cipher = bytearray()
    for byte in plain:
        key = (keys[2] | 2) & 0xFFFF
        cipher.append(byte ^ ((key * (key ^ 1) >> 8) & 255))
        update(byte)
    return bytes(cipher)


def make_zip(members, password=None, modes=None, sizes=None, methods=None, damage=None):
    """Return the bytes of an archive with `members` {name (text or raw bytes): content}.

    `modes`, `sizes` and `methods` override one member's Unix mode, declared size and compression
    method in the headers; `damage` names a member of which one stored byte is changed.
    """
    modes, sizes, methods = modes or {}, sizes or {}, methods or {}
    out, central = io.BytesIO(), b""
    for name, content in members.items():
        raw = name if isinstance(name, bytes) else name.encode()
        flags = 0 if isinstance(name, bytes) or name.isascii() else 0x800  # bit 11: UTF-8
        crc = zlib.crc32(content)
        deflate = zlib.compressobj(wbits=-15)
        data = deflate.compress(content) + deflate.flush()
        if password is not None:
            flags |= 1
            data = zip_crypto(bytes(range(11)) + bytes([crc >> 24]) + data, password)
        if name == damage:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        size = sizes.get(name, len(content))
        common = struct.pack("<HHHHIIIH", flags, methods.get(name, 8), 0, 33, crc, len(data), size,
                             len(raw))  # fmt: skip
        offset = out.tell()
        out.write(struct.pack("<IH", 0x04034B50, 20) + common + struct.pack("<H", 0) + raw + data)
        mode = modes.get(name, stat.S_IFREG | 0o644)
        central += struct.pack("<IHH", 0x02014B50, 3 << 8 | 20, 20) + common
        central += struct.pack("<HHHHII", 0, 0, 0, 0, mode << 16, offset) + raw
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(central),
                      out.tell(), 0)  # fmt: skip
    return out.getvalue() + central + end


def images(top="AgeDB/", n=6):
    """Members that stand for faces: random bytes, which deflate cannot shrink."""
    rng = np.random.default_rng(5)
    return {f"{top}{i}_Jane_{30 + i}_f.jpg": rng.bytes(2000 + 300 * i) for i in range(n)}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with an empty data folder; archives of six faces count as whole."""
    monkeypatch.setattr(download, "IMAGES", 6)
    monkeypatch.delenv("AGEDB_PASSWORD", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "data").mkdir()
    return tmp_path


def unpack(work, content, *flags):
    (work / "AgeDB.zip").write_bytes(content)
    download.main(["--zip", str(work / "AgeDB.zip"), "--data_dir", str(work / "data"), *flags])


def listing(folder):
    """Names in a folder, but for the lock, which some versions of filelock leave."""
    return sorted(set(os.listdir(folder)) - {".download.lock"})


def assert_refused(work, content, message, *flags, error=ValueError):
    with pytest.raises(error, match=message):
        unpack(work, content, *flags)
    assert listing(work / "data") == []  # nothing looks complete, nothing lies about
    assert sorted(os.listdir(work)) == ["AgeDB.zip", "data"]


def test_the_encryptor_is_one_that_zipfile_reads():
    members = images()
    with zipfile.ZipFile(io.BytesIO(make_zip(members, PASSWORD))) as archive:
        for name, content in members.items():
            assert archive.getinfo(name).flag_bits & 1
            assert archive.read(name, pwd=PASSWORD) == content
        with pytest.raises(RuntimeError, match="password required"):
            archive.read(name)


@pytest.mark.parametrize("top", ["AgeDB/", "", "download/AgeDB/", "AgeDB\\"])
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_round_trip(work, top, password):
    members = images(top)
    content = make_zip({**members, "__MACOSX/AgeDB/._x.jpg": b"", "read me.txt": b"x"}, password)
    unpack(work, content, *(["--password", password.decode()] if password else []))
    found = {path.name: path.read_bytes() for path in (work / "data" / "AgeDB").iterdir()}
    assert found == {name.removeprefix(top): data for name, data in members.items()}
    record = (work / "data" / "AgeDB.zip.sha256").read_text()
    assert record == f"{hashlib.sha256(content).hexdigest()}  AgeDB.zip\n"
    assert listing(work / "data") == ["AgeDB", "AgeDB.zip.sha256"]
    # The folder is as readable as any other one that this user makes.
    (work / "plain").mkdir()
    assert (work / "data" / "AgeDB").stat().st_mode == (work / "plain").stat().st_mode


def test_the_password_may_come_from_a_file_or_the_environment(work, monkeypatch):
    content = make_zip(images(), PASSWORD)
    (work / "secret").write_bytes(PASSWORD + b"\r\nnot this line\n")
    unpack(work, content, "--password_file", str(work / "secret"))
    monkeypatch.setenv("AGEDB_PASSWORD", PASSWORD.decode())
    unpack(work, content, "--overwrite")
    assert len(os.listdir(work / "data" / "AgeDB")) == 6


def test_a_wrong_password_is_an_error_even_where_the_header_lets_it_through(work):
    content = make_zip(images(), PASSWORD)
    let_through = 0
    for i in range(400):  # 1 in 256 passes the header's check byte
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            try:
                archive.open(archive.infolist()[0], pwd=b"%d" % i).close()
            except RuntimeError:
                if i:
                    continue
            else:
                let_through += 1
        assert_refused(work, content, "wrong --password_file or damaged", "--password", str(i))
    assert let_through
    assert_refused(work, content, "wrong --password_file .*password required")


@pytest.mark.parametrize(
    "name",
    [
        "../1_a_3_f.jpg",
        "AgeDB/../../1_a_3_f.jpg",
        "/tmp/1_a_3_f.jpg",
        "AgeDB\\..\\..\\1_a_3_f.jpg",
        "\\\\host\\1_a_3_f.jpg",
        "C:\\1_a_3_f.jpg",
        "AgeDB/1_a_3_f.jpg\0.txt",
        "../notes.txt",  # even what would be left out
    ],
)
def test_a_member_that_leads_out_is_refused(work, name):
    assert_refused(work, make_zip({**images(), name: b"x"}), "leads out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
@pytest.mark.parametrize("name", ["AgeDB/9_a_3_f.jpg", "AgeDB/link"])
def test_a_link_or_device_is_refused(work, kind, name):
    content = make_zip({**images(), name: b"/etc/passwd"}, modes={name: kind | 0o777})
    assert_refused(work, content, "link or device")


def test_an_archive_that_is_cut_or_damaged_is_refused(work):
    members = images()
    content = make_zip(members)
    for length in (0, 3, len(content) // 2, len(content) - 1):
        assert_refused(work, content[:length], "cut, damaged or no zip")
    # Without a part of it the offsets are wrong, before the file's start or amid other data.
    assert_refused(work, content[:3000] + content[3500:], "cut, damaged or no zip .*outside")
    first = content.index(b"PK\1\2")
    offset = first + 42  # of the local header, in the first central record
    beyond = content[:offset] + struct.pack("<I", len(content)) + content[offset + 4 :]
    assert_refused(work, beyond, "cut, damaged or no zip .*outside")
    amid = content[:offset] + struct.pack("<I", 1000) + content[offset + 4 :]
    assert_refused(work, amid, "damaged archive")
    last = list(members)[-1]
    assert_refused(work, make_zip(members, damage=last), "^damaged archive.*5_Jane_35_f")
    assert_refused(work, b"<html>log in first</html>", "cut, damaged or no zip")


def test_what_python_cannot_read_names_the_way_out(work):
    name = next(iter(images()))
    content = make_zip(images(), PASSWORD, methods={name: 99})
    assert_refused(work, content, "say AES.*7z x AgeDB.zip", "--password", "open sesame")


def test_an_archive_without_all_faces_is_refused(work):
    assert_refused(work, make_zip(images(n=5)), "5 faces in 1 folders, expected 6")
    assert_refused(work, make_zip({}), "0 faces")
    two = {**images("a/", 3), **images("b/", 6)}
    assert_refused(work, make_zip(two), "9 faces in 2 folders")
    del two["b/0_Jane_30_f.jpg"], two["b/1_Jane_31_f.jpg"], two["b/2_Jane_32_f.jpg"]
    assert_refused(work, make_zip(two), "6 faces in 2 folders")


def test_a_zip_bomb_is_refused_and_the_limit_can_be_raised(work):
    members = images()
    name = next(iter(members))
    bomb = make_zip(members, sizes={name: 2**31})
    assert_refused(work, bomb, r"2\.15 GB .* above 1: see --max_gb", "--max_gb", "1")
    small = make_zip(members)
    assert_refused(work, small, "see --max_gb", "--max_gb", "1e-6")
    unpack(work, small, "--max_gb", "1")


def test_a_member_that_declares_too_little_writes_no_more_than_that(work):
    members = images()
    name = next(iter(members))
    assert_refused(work, make_zip({**members, name: bytes(10**6)}, sizes={name: 10}), "CRC")


def test_a_full_disk_is_told_before_anything_is_written(work, monkeypatch):
    usage = type("usage", (), {"free": 5000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(work, make_zip(images()), "5,000 free in .*make room")


def test_an_interrupted_run_leaves_nothing_and_the_next_one_works(work, monkeypatch):
    copy, calls = shutil.copyfileobj, []

    def interrupted(source, target):
        calls.append(copy(source, target))
        if len(calls) == 3:
            raise KeyboardInterrupt

    content = make_zip(images())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        assert_refused(work, content, None, error=KeyboardInterrupt)
    (work / "data" / "AgeDB.partial").mkdir()  # what a killed run leaves
    (work / "data" / "AgeDB.partial" / "0_Jane_30_f.jpg").write_bytes(b"half")
    unpack(work, content)
    assert listing(work / "data") == ["AgeDB", "AgeDB.zip.sha256"]
    assert len(os.listdir(work / "data" / "AgeDB")) == 6


def test_what_is_there_stays_without_overwrite(work):
    (work / "data" / "AgeDB").mkdir()
    (work / "data" / "AgeDB" / "mine.jpg").touch()
    with pytest.raises(ValueError, match="--overwrite"):
        unpack(work, make_zip(images()))
    with pytest.raises(ValueError, match="damaged"):  # a bad archive does not cost the old folder
        unpack(work, make_zip(images(), damage="AgeDB/3_Jane_33_f.jpg"), "--overwrite")
    assert os.listdir(work / "data" / "AgeDB") == ["mine.jpg"]
    unpack(work, make_zip(images()), "--overwrite")
    assert "mine.jpg" not in os.listdir(work / "data" / "AgeDB")


def test_another_archive_than_the_recorded_one_is_refused(work):
    unpack(work, make_zip(images()))
    other = make_zip({**images(), "more.txt": b"x"})
    with pytest.raises(ValueError, match=r"is not the file of .*AgeDB\.zip\.sha256"):
        unpack(work, other, "--overwrite")
    (work / "data" / "AgeDB.zip.sha256").unlink()
    unpack(work, other, "--overwrite")


def test_no_archive_is_an_error(work):
    with pytest.raises(FileNotFoundError, match=r"download\.py"):
        download.main(["--zip", str(work / "no.zip"), "--data_dir", str(work / "data")])


def test_names_become_those_of_the_official_file(work, capsys):
    # Byte 0x82 is é in code page 437, which zipfile assumes, and the Cyrillic В in 866.
    members = images(n=4)
    members |= {b"AgeDB/8_St\x82phane_40_f.jpg": b"raw", "AgeDB/9_Mylène_41_f.jpg": b"utf-8"}
    official = [*images(n=4), "AgeDB/8_StВphane_40_f.jpg", "AgeDB/9_MylКne_41_f.jpg"]
    gone = "AgeDB/77_Not_There_50_m.jpg"
    rows = "".join(f"{path.split('_')[-2]},{path},train\n" for path in [*official, gone])
    (work / "data" / "agedb.csv").write_text("age,path,split\n" + rows, encoding="utf-8")
    unpack(work, make_zip(members))
    assert "2 faces renamed as agedb.csv spells them, 1 missing" in capsys.readouterr().out
    assert {f"AgeDB/{name}" for name in os.listdir(work / "data" / "AgeDB")} == set(official)
    assert (work / "data" / official[4]).read_bytes() == b"raw"
    assert (work / "data" / official[5]).read_bytes() == b"utf-8"
    assert download.match_names(work / "data") == 0


def test_ids_of_the_official_file_tell_the_faces_apart(shared_data):
    paths = prepare.read_ages(shared_data / "agedb.csv", ("age", "path"))["path"]
    matches = [prepare.NAME.fullmatch(path.removeprefix("AgeDB/")) for path in paths]
    assert len({match[1] for match in matches}) == len(paths) == 16_488
    assert sum(not path.isascii() for path in paths) == 131


# ---- the split file ----


@pytest.fixture
def server():
    """A loopback server; `pages` maps a path to (status, content, declared length)."""
    pages, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, content, length = pages.get(self.path, (404, b"no such page", None))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    httpd.pages, httpd.asked = pages, asked
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/mirror"
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


SPLIT = b"age,path,split\n30,AgeDB/1_Jane_30_f.jpg,train\n"
PAGE = "/mirror/agedb-dir/data/agedb.csv"


def fetch(work, url, *flags):
    download.main(["--split_file", "--base_url", url, "--data_dir", str(work / "data"), *flags])


def test_the_split_file_is_fetched_once(work, server, monkeypatch):
    monkeypatch.setattr(download, "SPLIT_SHA256", hashlib.sha256(SPLIT).hexdigest())
    server.pages[PAGE] = (200, SPLIT, None)
    fetch(work, server.url + "/")
    assert (work / "data" / "agedb.csv").read_bytes() == SPLIT
    assert listing(work / "data") == ["agedb.csv"]
    fetch(work, server.url)  # the right file is there: nothing is asked
    assert server.asked == [PAGE]


def test_another_split_file_stays_without_overwrite(work, server, monkeypatch):
    monkeypatch.setattr(download, "SPLIT_SHA256", hashlib.sha256(SPLIT).hexdigest())
    server.pages[PAGE] = (200, SPLIT, None)
    (work / "data" / "agedb.csv").write_bytes(b"mine")
    with pytest.raises(ValueError, match="--overwrite"):
        fetch(work, server.url)
    assert (work / "data" / "agedb.csv").read_bytes() == b"mine"
    assert server.asked == []
    fetch(work, server.url, "--overwrite")
    assert (work / "data" / "agedb.csv").read_bytes() == SPLIT


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ((200, SPLIT, None), "has the sha256 .*not kept"),  # not the official content
        ((404, b"gone", None), "404.*fetch it by hand"),
        ((200, SPLIT, len(SPLIT) + 10), "IncompleteRead|bytes read"),  # the line was cut
    ],
)
@pytest.mark.parametrize("there", [None, b"mine"])
def test_a_fetch_that_fails_leaves_things_as_they_were(work, server, page, message, there):
    server.pages[PAGE] = page
    if there:
        (work / "data" / "agedb.csv").write_bytes(there)
    with pytest.raises(ValueError, match=message):
        fetch(work, server.url, "--overwrite")
    assert listing(work / "data") == (["agedb.csv"] if there else [])
    if there:
        assert (work / "data" / "agedb.csv").read_bytes() == there


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no-url"])
def test_an_unreachable_host_names_the_url_and_the_place(work, url):
    with pytest.raises(ValueError, match="cannot fetch") as error:
        fetch(work, url)
    assert f"{url}/agedb-dir/data/agedb.csv" in str(error.value)
    assert str(work / "data" / "agedb.csv") in str(error.value)
    assert listing(work / "data") == []


def test_the_real_split_file_has_the_constant_checksum(work, shared_data):
    content = (shared_data / "agedb.csv").read_bytes()
    (work / "data" / "agedb.csv").write_bytes(content)
    fetch(work, "http://127.0.0.1:9")  # accepted as it is: nobody is asked
    assert content.count(b"\n") - 1 == sum(prepare.EXPECTED.values())


# ---- the command line ----


def test_without_arguments_it_says_what_to_do():
    done = subprocess.run(
        [sys.executable, "download.py"],
        cwd=ROOT / "agedb-dir", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("https://ibug.doc.ic.ac.uk/resources/agedb", "--zip", "--split_file", "--check"):
        assert part in done.stdout


@pytest.mark.parametrize("flags", [["--password", "a", "--password_file", "b"], ["--no_such_flag"]])
def test_conflicting_flags_end_in_a_usage_error(flags):
    with pytest.raises(SystemExit) as error:
        download.main(flags)
    assert error.value.code == 2
