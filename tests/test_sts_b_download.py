"""download.py of STS-B: resumes what broke off, and unpacks whole archives alone."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import ROOT, load

download = load("sts-b-dir", "download")
fetch = load("sts-b-dir", "fetch")


class Host:
    """A loopback server of `pages`: path -> content. It can break off, and forget ranges."""

    def __init__(self):
        self.pages, self.asked, self.cuts = {}, [], []
        self.ranges, self.tag, self.status, self.length = True, None, None, True
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.answer(self)

            def do_HEAD(self):
                host.answer(self)

            def log_message(self, *_):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        content = self.pages.get(handler.path)
        status, start = self.status or (404 if content is None else 200), 0
        content = b"no such page" if content is None else content
        size = len(content)
        changed = handler.headers.get("If-Range", self.tag) != self.tag
        if status == 200 and wanted and self.ranges and not changed:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < size else 416
        handler.send_response(status)
        if status in (206, 416):
            span = f"bytes {start}-{size - 1}/{size}" if status == 206 else f"bytes */{size}"
            handler.send_header("Content-Range", span)
        content = b"" if status == 416 else content[start:]
        if self.length:
            handler.send_header("Content-Length", str(len(content)))
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.end_headers()
        if status in (200, 206) and self.cuts:  # the line breaks after so many bytes
            content = content[: self.cuts.pop(0)]
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch, "WAIT", 0.001)
    host = Host()
    yield host
    host.close()


CONTENT = np.random.default_rng(0).bytes(300_000)


def listing(folder):
    """Content by name, but for the lock, which some versions of filelock leave."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.name != ".download.lock"}


# ---- the resumed fetch ----


def test_a_break_in_the_middle_is_resumed_by_range(host, tmp_path):
    host.pages["/big"], host.cuts = CONTENT, [100_000, 50_000, 1]
    fetch.fetch(f"{host.url}/big", tmp_path / "sub" / "big")
    assert listing(tmp_path / "sub") == {"big": CONTENT}
    assert [wanted for _, wanted in host.asked] == [
        None, "bytes=100000-", "bytes=150000-", "bytes=150001-",
    ]  # fmt: skip


def test_the_next_start_resumes_too(host, tmp_path, monkeypatch):
    host.pages["/big"], host.tag, host.cuts = CONTENT, '"v1"', [70_000] + [0] * fetch.TRIES
    with pytest.raises(ValueError, match=r"70,000 of 300,000 bytes.*give the command again"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert (tmp_path / "big.part").read_bytes() == CONTENT[:70_000]
    assert not (tmp_path / "big").exists()
    host.asked.clear()
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert host.asked == [("/big", "bytes=70000-")]
    assert listing(tmp_path) == {"big": CONTENT}


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(host, tmp_path):
    host.pages["/big"], host.tag, host.cuts = CONTENT, '"v1"', [70_000] + [0] * fetch.TRIES
    with pytest.raises(ValueError, match="70,000 of"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big")
    host.pages["/big"], host.tag = CONTENT[::-1], '"v2"'
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT[::-1]}


def test_a_host_without_ranges_sends_it_all_again(host, tmp_path):
    host.pages["/big"], host.cuts, host.ranges = CONTENT, [100_000, 200_000], False
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT}


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_whole_or_too_long(host, tmp_path, there):
    host.pages["/big"] = CONTENT
    (tmp_path / "big.part").write_bytes(there)
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT}


def test_a_host_that_tells_no_length(host, tmp_path, capsys):
    host.pages["/big"], host.length = CONTENT, False
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT}
    assert "does not say how long big is" in capsys.readouterr().out
    host.length = True
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert capsys.readouterr().out == ""


def send(handler, status, content=b"", **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


OTHER = CONTENT[::-1] + b"more"


@pytest.mark.parametrize(
    ("tag", "new_tag", "content", "total"),
    [('"v1"', '"v2"', CONTENT[::-1], None), ("", "", OTHER, None), ("", "", CONTENT, "*")],
)
def test_a_range_of_another_file_is_never_added(host, tmp_path, tag, new_tag, content, total):
    """Hosts that pass over If-Range, or have no tags: the rest of a file that was replaced."""

    def answer(handler):
        wanted = handler.headers.get("Range")
        host.asked.append(wanted)
        if len(host.asked) == 1:  # the old file, broken off
            length = str(len(CONTENT))
            return send(handler, 200, CONTENT[:70_000], Content_Length=length, ETag=tag)
        if not wanted:
            return send(handler, 200, content, Content_Length=str(len(content)), ETag=new_tag)
        span = f"bytes 70000-{len(content) - 1}/{total or len(content)}"
        rest = content[70_000:]
        return send(handler, 206, rest, Content_Range=span, ETag=new_tag,
                    Content_Length=str(len(rest)))  # fmt: skip

    host.answer = answer
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": content}
    assert host.asked == [None, "bytes=70000-", None]


def test_a_host_that_makes_it_start_again_for_ever_is_given_up(host, tmp_path):
    def answer(handler):
        host.asked.append(handler.headers.get("Range"))
        if host.asked[-1]:
            return send(handler, 206, b"x", Content_Range="bytes 7-7/*", Content_Length="1")
        return send(handler, 200, CONTENT[:7], Content_Length=str(len(CONTENT)))

    host.answer = answer
    with pytest.raises(ValueError, match="starts again"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert len(host.asked) == 2 * fetch.TRIES


@pytest.mark.parametrize("span", [{}, {"Content_Range": "bytes */*"}])
def test_a_refused_range_without_a_length_costs_nothing_that_is_here(host, tmp_path, span):
    size = str(len(CONTENT))

    def answer(handler):
        if handler.headers.get("Range"):
            return send(handler, 416, Content_Length="0", **span)
        whole = handler.path == "/two"  # of /big no byte is needed any more, and none arrives
        return send(handler, 200, CONTENT if whole else b"", Content_Length=size)

    host.answer = answer
    (tmp_path / "big.part").write_bytes(CONTENT)
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT}
    (tmp_path / "two.part").write_bytes(CONTENT[:9])
    fetch.fetch(f"{host.url}/two", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_a_host_that_refuses_all_leaves_the_part(host, tmp_path):
    host.answer = lambda handler: send(handler, 416, Content_Length="0")
    (tmp_path / "big.part").write_bytes(b"some")
    with pytest.raises(ValueError, match="416"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big.part": b"some"}


@pytest.mark.parametrize("status", [408, 429])
def test_a_busy_host_is_asked_again(host, tmp_path, status):
    plain, statuses = host.answer, [status, status]

    def answer(handler):
        host.status = statuses.pop() if statuses else None
        plain(handler)

    host.pages["/big"], host.answer = CONTENT, answer
    fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert listing(tmp_path) == {"big": CONTENT}
    assert len(host.asked) == 3


def test_a_length_is_asked_for_ahead(host):
    host.pages["/big"] = CONTENT
    assert fetch.length_of(f"{host.url}/big") == len(CONTENT)
    assert fetch.length_of(f"{host.url}/none") is None
    assert fetch.length_of("http://127.0.0.1:9/x") is None
    host.length = False
    assert fetch.length_of(f"{host.url}/big") is None


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 5), (503, 5)])
def test_an_error_of_the_host_is_told_and_the_part_kept(host, tmp_path, status, tries):
    host.status = status
    (tmp_path / "big.part").write_bytes(b"some")
    with pytest.raises(ValueError, match=f"{status}.*by hand and put it at .*big"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big")
    assert len(host.asked) == tries
    assert listing(tmp_path) == {"big.part": b"some"}


def test_no_host_and_no_address(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(ValueError, match=r"cannot fetch http://127\.0\.0\.1:9/x"):
        fetch.fetch("http://127.0.0.1:9/x", tmp_path / "x")
    for url in ("x.zip", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="no address"):
            fetch.fetch(url, tmp_path / "x")
    assert listing(tmp_path) == {}


def test_the_disk_is_looked_at_first(host, tmp_path, monkeypatch):
    host.pages["/big"] = CONTENT
    free = SimpleNamespace(free=800_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ValueError, match="1,080,000 bytes are needed, 800,000 free"):
        fetch.fetch(f"{host.url}/big", tmp_path / "big", unpacked=2.6)
    assert listing(tmp_path) == {}
    fetch.fetch(f"{host.url}/big", tmp_path / "big", unpacked=1.5)
    assert listing(tmp_path) == {"big": CONTENT}


# ---- archives ----


def make_zip(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


RAW = {"train.tsv": b"index\tscore\n" * 900, "dev.tsv": b"index\tscore\n" * 300}
RAW_ZIP = make_zip(
    {
        "STS-B/": b"",
        **{f"STS-B/{name}": content for name, content in RAW.items()},
        "STS-B/test.tsv": b"no scores",
        "STS-B/original/train.tsv": b"of another layout",
    }
)


def get(host, folder, what, *flags):
    urls = {"raw": "--raw_url", "glove": "--glove_url"}
    name = {"raw": "STS-B.zip", "glove": "glove.840B.300d.zip"}[what]
    place = ("--data_dir", str(folder), "--glove_dir", str(folder))
    download.main(["--what", what, urls[what], f"{host.url}/{name}", *place, *flags])


def test_raw_files_are_fetched_unpacked_and_recorded(host, tmp_path, capsys):
    host.pages["/STS-B.zip"], host.cuts = RAW_ZIP, [200]
    get(host, tmp_path / "d", "raw")
    found = listing(tmp_path / "d")
    record = f"{hashlib.sha256(RAW_ZIP).hexdigest()}  STS-B.zip\n"
    assert found == {**RAW, "STS-B.zip": RAW_ZIP, "STS-B.zip.sha256": record.encode()}
    assert not any(path.is_dir() for path in (tmp_path / "d").iterdir())
    asked = len(host.asked)
    os.unlink(tmp_path / "d" / "STS-B.zip")
    get(host, tmp_path / "d", "raw")  # all is there: nothing is asked
    assert len(host.asked) == asked
    assert "--overwrite" in capsys.readouterr().out


def test_vectors_are_unpacked_and_an_archive_put_there_by_hand_is_used(host, tmp_path):
    text = b"cat 1 2 3\n" * 5000
    archive = make_zip({"glove.840B.300d.txt": text, "notes.pdf": b"x"})
    (tmp_path / "glove.840B.300d.zip").write_bytes(archive)
    get(host, tmp_path, "glove")
    assert host.asked == []
    assert (tmp_path / "glove.840B.300d.txt").read_bytes() == text
    os.unlink(tmp_path / "glove.840B.300d.txt")
    get(host, tmp_path, "glove")  # unpacked again from the archive that is there
    assert (tmp_path / "glove.840B.300d.txt").read_bytes() == text


def test_another_archive_than_the_first_is_refused(host, tmp_path):
    host.pages["/STS-B.zip"] = RAW_ZIP
    get(host, tmp_path, "raw")
    before = listing(tmp_path)
    host.pages["/STS-B.zip"] = make_zip({"train.tsv": b"other", "dev.tsv": b"other"})
    with pytest.raises(ValueError, match=r"is not the file of .*STS-B\.zip\.sha256"):
        get(host, tmp_path, "raw", "--overwrite")
    after = listing(tmp_path)
    assert {name: after[name] for name in RAW} == {name: before[name] for name in RAW}
    os.unlink(tmp_path / "STS-B.zip.sha256")
    get(host, tmp_path, "raw", "--overwrite")
    assert (tmp_path / "train.tsv").read_bytes() == b"other"


def test_files_of_another_origin_stay_and_nothing_is_asked(host, tmp_path):
    (tmp_path / "dev.tsv").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"dev\.tsv.*--overwrite"):
        get(host, tmp_path, "raw")
    (tmp_path / "glove.840B.300d.txt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"glove\.840B\.300d\.txt.*--overwrite"):
        get(host, tmp_path, "glove")
    assert host.asked == []
    assert set(listing(tmp_path).values()) == {b"mine"}
    host.pages["/STS-B.zip"] = RAW_ZIP
    get(host, tmp_path, "raw", "--overwrite")
    assert (tmp_path / "dev.tsv").read_bytes() == RAW["dev.tsv"]


def damaged(content):
    """The archive with one bit turned over within the first member's data."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = next(m for m in archive.infolist() if m.file_size)
    place = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


WHOLE = {"STS-B/train.tsv": os.urandom(3000), "STS-B/dev.tsv": b"b"}


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (damaged(make_zip(WHOLE)), "damaged.*delete .*STS-B.zip and fetch|damaged .*delete it"),
        (make_zip(WHOLE)[:2000], "damaged.*delete .*STS-B.zip and fetch|damaged .*delete it"),
        (b"<html>try later</html>", "damaged.*delete .*STS-B.zip and fetch|damaged .*delete it"),
        (make_zip({**WHOLE, "../x.tsv": b""}), "leads out"),
        (make_zip({**WHOLE, "other/dev.tsv": b"c"}), "occurs twice"),
        (make_zip({"STS-B/train.tsv": b"a"}), r"no dev\.tsv"),
        (make_zip({"train.tsv": b"", "dev.tsv": b"\0" * 2_000_000}), "above 0.001"),
    ],
)
def test_an_archive_that_is_damaged_or_could_do_harm_is_refused(host, tmp_path, archive, message):
    host.pages["/STS-B.zip"] = archive
    for name in RAW:
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=message):
        get(host, tmp_path, "raw", "--overwrite", "--max_gb", "0.001")
    found = listing(tmp_path)
    assert found.pop("STS-B.zip") == archive
    assert found == dict.fromkeys(RAW, b"mine")  # nothing recorded, replaced or half unpacked
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_unpacking_needs_room_too(host, tmp_path, monkeypatch):
    (tmp_path / "STS-B.zip").write_bytes(RAW_ZIP)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match="16,384 bytes are needed, 10,000 free"):
        get(host, tmp_path, "raw")
    assert listing(tmp_path) == {"STS-B.zip": RAW_ZIP}


# ---- the official split ----

SPLIT = {"train_new.tsv": b"train", "dev_new.tsv": b"dev", "test_new.tsv": b"test"}
FOLDER = "/mirror/sts-b-dir/glue_data/STS-B/"


@pytest.fixture
def split(host, monkeypatch):
    names = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}
    for key, name in names.items():
        monkeypatch.setitem(download.OFFICIAL_SHA256, key, hashlib.sha256(SPLIT[name]).hexdigest())
    host.pages |= {FOLDER + name: content for name, content in SPLIT.items()}
    return host


def get_split(host, folder, *flags):
    base = f"{host.url}/mirror/"
    download.main(["--what", "split", "--base_url", base, "--data_dir", str(folder), *flags])


def test_the_split_is_fetched_once(split, tmp_path):
    get_split(split, tmp_path / "d")
    assert listing(tmp_path / "d") == SPLIT
    assert len(split.asked) == 3
    get_split(split, tmp_path / "d")  # the right files are there: nothing is asked
    assert len(split.asked) == 3
    (tmp_path / "d" / "dev_new.tsv").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"dev_new\.tsv is not the official.*--overwrite"):
        get_split(split, tmp_path / "d")
    assert len(split.asked) == 3
    get_split(split, tmp_path / "d", "--overwrite")
    assert listing(tmp_path / "d") == SPLIT
    assert len(split.asked) == 4


@pytest.mark.parametrize("there", [{}, {"train_new.tsv": b"mine"}])
def test_a_split_that_is_not_whole_leaves_things_as_they_were(split, tmp_path, there):
    for name, content in there.items():
        (tmp_path / name).write_bytes(content)
    split.pages[FOLDER + "test_new.tsv"] = b"another"
    with pytest.raises(ValueError, match=r"has the sha256 .*not kept"):
        get_split(split, tmp_path, "--overwrite")
    del split.pages[FOLDER + "test_new.tsv"]
    with pytest.raises(ValueError, match=r"404.*by hand, put it at .*test_new\.tsv"):
        get_split(split, tmp_path, "--overwrite")
    split.pages[FOLDER + "test_new.tsv"], split.cuts = b"test", [9, 9, 2]
    with pytest.raises(ValueError, match="IncompleteRead"):
        get_split(split, tmp_path, "--overwrite")
    assert listing(tmp_path) == there


def test_the_real_split_files_have_the_constant_checksums(shared_data, tmp_path, host):
    for name in SPLIT:
        (tmp_path / name).write_bytes((shared_data / "sts_b_dir" / name).read_bytes())
    get_split(host, tmp_path)  # accepted as they are: nobody is asked
    assert host.asked == []


# ---- the command line ----


def test_without_arguments_it_says_what_there_is():
    done = subprocess.run(
        [sys.executable, "download.py"],
        cwd=ROOT / "sts-b-dir", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("--what split", "--what raw", "--what glove", "--check", "demo_data.py"):
        assert part in done.stdout


def test_the_addresses_are_those_of_the_sources():
    args = download.parse_args([])
    assert args.raw_url == "https://dl.fbaipublicfiles.com/glue/data/STS-B.zip"
    assert args.glove_url == "http://nlp.stanford.edu/data/glove.840B.300d.zip"
    assert (str(args.data_dir), str(args.glove_dir)) == ("glue_data/STS-B", "glove")
    with pytest.raises(SystemExit) as error:
        download.main(["--what", "all"])
    assert error.value.code == 2
