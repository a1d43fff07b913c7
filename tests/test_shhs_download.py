"""shhs-dir's download.py: nothing without a token, and the token kept out of sight."""

import hashlib
import json
import traceback
import urllib.request

import pytest

from conftest import load
from range_server import serve

download = load("shhs-dir", "download")

TOKEN = "1234-secretToken_9"


@pytest.fixture
def no_network(monkeypatch):
    """Any request is an error."""
    monkeypatch.delenv("NSRR_TOKEN", raising=False)

    def refuse(*_, **__):
        raise AssertionError("a request was made")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_no_token_no_request(no_network, capsys, tmp_path):
    download.main(["--data_dir", str(tmp_path)])
    (tmp_path / "empty").write_text("\n")
    download.main(["--token_file", str(tmp_path / "empty"), "--list"])
    assert capsys.readouterr().out.count("data use agreement") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    with pytest.raises(ValueError, match="copy it again"):
        download.main(["--token", "a/../b"])


@pytest.fixture
def host(monkeypatch):
    """A host with two recordings and a table."""
    monkeypatch.delenv("NSRR_TOKEN", raising=False)
    files = {
        "datasets/shhs2-dataset-0.1.csv": b"nsrrid,gh_s2\n1,50\n", "datasets/notes.txt": b"no",
        "polysomnography/edfs/shhs2/shhs2-200001.edf": b"night" * 1000,
        "polysomnography/edfs/shhs2/shhs2-200002.edf": b"other" * 1000,
    }  # fmt: skip
    with serve() as server:
        for folder in download.FOLDERS:
            rows = [
                {"full_path": path, "is_file": True, "file_size": len(content),
                 "file_checksum_md5": hashlib.md5(content).hexdigest()}
                for path, content in files.items() if path.startswith(folder + "/")
            ]  # fmt: skip
            rows.append({"full_path": folder + "/more", "is_file": False})
            query = f"auth_token={TOKEN}&path={folder.replace('/', '%2F')}"
            server.pages[f"/api/v1/datasets/shhs/files.json?{query}"] = json.dumps(rows).encode()
        for path, content in files.items():
            server.pages[f"/datasets/shhs/files/a/{TOKEN}/{path}"] = content
        server.files = files
        yield server


def run(host, tmp_path, *more):
    (tmp_path / "token").write_text(TOKEN + "\n")
    download.main(["--data_dir", str(tmp_path), "--token_file", str(tmp_path / "token"),
                   "--base_url", host.url, *more])  # fmt: skip


def test_fetches_what_is_needed_once(host, tmp_path, capsys):
    run(host, tmp_path, "--list")
    assert not (tmp_path / "shhs").exists()
    assert "200002.edf" in capsys.readouterr().out
    run(host, tmp_path)
    needed = {path: content for path, content in host.files.items() if "notes" not in path}
    for path, content in needed.items():
        assert (tmp_path / "shhs" / path).read_bytes() == content
    assert not (tmp_path / "shhs/datasets/notes.txt").exists()
    asked = len(host.asked)
    run(host, tmp_path)
    assert len(host.asked) == asked + 2  # the lists alone
    assert TOKEN not in capsys.readouterr().out


def test_another_content_is_refused(host, tmp_path):
    path = "polysomnography/edfs/shhs2/shhs2-200001.edf"
    for content, message in ((b"NIGHT" * 1000, "has the MD5"), (b"cut", "has 3 bytes, the host")):
        host.pages[f"/datasets/shhs/files/a/{TOKEN}/{path}"] = content
        with pytest.raises(ValueError, match=message):
            run(host, tmp_path, "--what", "nights", "--limit", "1")
        assert not (tmp_path / "shhs" / path).exists()


def change_rows(host, change, folder="polysomnography"):
    """Let the host's list of a folder say something else of each file."""
    for page, content in host.pages.items():
        if f"path={folder}" in page:
            rows = [{**row, **change(row)} for row in json.loads(content) if row["is_file"]]
            host.pages[page] = json.dumps(rows).encode()


def test_a_limit_is_of_recordings_alone(host, tmp_path, capsys):
    dictionary = "datasets/shhs-data-dictionary-0.1-variables.csv"
    change_rows(host, lambda row: {"file_size": None, "file_checksum_md5": None}, "datasets")
    for page in host.pages:
        if page.endswith("path=datasets"):
            rows = [*json.loads(host.pages[page]), {"full_path": dictionary, "is_file": True}]
            host.pages[page] = json.dumps(rows).encode()
    host.pages[f"/datasets/shhs/files/a/{TOKEN}/{dictionary}"] = b"words"
    run(host, tmp_path, "--limit", "1")
    held = {path.name for path in (tmp_path / "shhs").rglob("*.*") if path.is_file()}
    assert held == {"shhs2-dataset-0.1.csv", dictionary[9:], "shhs2-200001.edf"}
    with pytest.raises(SystemExit):
        run(host, tmp_path, "--limit", "0")
    assert "1 or more" in capsys.readouterr().err


def test_digits_in_any_case_and_a_file_without(host, tmp_path):
    change_rows(host, lambda row: {"file_checksum_md5": row["file_checksum_md5"].upper()})
    run(host, tmp_path)
    asked = len(host.asked)
    run(host, tmp_path)
    assert len(host.asked) == asked + 2
    # Without an MD5 a file that was cut off is told by its size.
    change_rows(host, lambda row: {"file_checksum_md5": ""})
    path = "polysomnography/edfs/shhs2/shhs2-200001.edf"
    (tmp_path / "shhs" / path).write_bytes(b"night")
    run(host, tmp_path)
    assert (tmp_path / "shhs" / path).read_bytes() == host.files[path]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"full_path": 5}, "no list"), ({"full_path": None}, "no list"),
     ({"file_checksum_md5": 17}, "no list"), ({"file_size": "many"}, "no list"),
     ({"is_file": False}, "lists 0 files"),
     ({"full_path": "polysomnography/edfs/shhs2/a.txt"}, "none of those needed")],
)  # fmt: skip
def test_a_list_of_another_form_is_refused(host, tmp_path, change, message):
    change_rows(host, lambda row: change)
    with pytest.raises(ValueError, match=message):
        run(host, tmp_path, "--list")


def test_token_files(host, tmp_path):
    file = tmp_path / "mine"
    given = ["--token_file", str(file), "--base_url", host.url, "--list"]
    with pytest.raises(ValueError, match=r"cannot read .*mine.*how to get a token"):
        download.main(given)
    file.write_bytes(b"\xef\xbb\xbf" + TOKEN.encode() + b"\r\n")
    download.main(given)
    file.write_bytes(TOKEN.encode("utf-16"))
    with pytest.raises(ValueError, match=r"mine is no text in UTF-8") as caught:
        download.main(given)
    assert caught.value.__suppress_context__


def test_a_message_never_holds_the_token(host, tmp_path):
    pages = [page for page in host.pages if "notes" not in page]
    assert len(pages) == 5
    for page in pages:
        content = host.pages.pop(page)
        with pytest.raises(ValueError, match="<token>") as caught:
            run(host, tmp_path)
        text = "".join(traceback.format_exception(caught.value))
        assert TOKEN not in text
        host.pages[page] = content


@pytest.mark.parametrize("path", ["../../x.edf", "/x.edf", "other/shhs2-1.edf"])
def test_a_path_that_leads_out_is_refused(host, tmp_path, path):
    for page in host.pages:
        if page.endswith("path=datasets"):
            row = {"full_path": path, "is_file": True}
            host.pages[page] = json.dumps([row]).encode()
    with pytest.raises(ValueError, match="refused"):
        run(host, tmp_path)
    host.pages = {page: b"<html>" for page in host.pages}
    with pytest.raises(ValueError, match="no list"):
        run(host, tmp_path)
