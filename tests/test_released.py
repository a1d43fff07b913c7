"""Checkpoints of others: the official release's, published folders, names on the Hub."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from conftest import SHARED, load

released = load("agedb-dir", "released")
publish = load("tools", "publish")
WITH_OFFICIAL = ("agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir")
METRICS = {
    "overall": {"mae": 7.0, "gm": 4.0, "num_samples": 9},
    "many": {"mae": 6.5, "gm": 3.5, "num_samples": 6},
    "medium": {"mae": 8.25, "gm": 5.5, "num_samples": 3},
    "few": {"mae": float("nan"), "gm": float("nan"), "num_samples": 0},
}


# ---- the official release ------------------------------------------------------------------


@pytest.fixture
def drive(monkeypatch):
    """A Google Drive whose files are (bytes or tensors) by id; what was asked of it."""
    gdown = pytest.importorskip("gdown")
    files, asked = {}, []

    def fetched(id, output, resume):
        asked.append((id, resume))
        lock = FileLock(Path(output).parent / ".download.lock", is_singleton=True)
        assert lock.is_locked == (id != "abc")  # by every download.py; "abc" is fetched without
        if id not in files:
            raise gdown.exceptions.FileURLRetrievalError("quota exceeded")
        content = files[id]
        if isinstance(content, bytes):
            Path(output).write_bytes(content)
        else:
            torch.save(content, output)
        return output

    monkeypatch.setattr(gdown, "download", fetched)
    return SimpleNamespace(files=files, asked=asked)


@pytest.mark.parametrize("folder", WITH_OFFICIAL)
def test_official_checkpoints_by_their_flag(folder, drive, tmp_path, capsys, monkeypatch):
    download = load(folder, "download")
    monkeypatch.setitem(sys.modules, "released", load(folder, "released"))  # imported when needed
    assert set(download.OFFICIAL) == {"lds", "fds", "lds_fds"}
    drive_id, metric, figures = download.OFFICIAL["lds_fds"]
    drive.files[drive_id] = {"state_dict": {"module.linear.weight": torch.ones(1, 2)}}
    command = ["--checkpoint", "lds_fds", "--data_dir", str(tmp_path)]
    download.main(command)
    (path,) = (p for p in tmp_path.iterdir() if p.suffix in (".tar", ".th"))
    assert f"--evaluate --eval_model {path}" in capsys.readouterr().out
    note = json.loads(path.with_name(path.name + ".expected.json").read_text())
    assert [note["metrics"]["test"][shot][metric] for shot in released.SHOTS] == list(figures)
    download.main(command)  # what is there is not fetched again
    assert drive.asked == [(drive_id, True)]
    torch.save({"state_dict": {"module.linear.weight": torch.zeros(1, 2)}}, path)
    with pytest.raises(ValueError, match=r"is not the file of .*sha256"):
        download.main(command)
    with pytest.raises(ValueError, match=rf"quota.*{download.OFFICIAL['fds'][0]}.*browser"):
        download.main(["--checkpoint", "fds", "--data_dir", str(tmp_path)])


@pytest.mark.parametrize("folder", WITH_OFFICIAL)
def test_official_ids_and_figures_are_those_of_the_design(folder):
    design = SHARED / "DESIGN.md"
    if not design.is_file():
        pytest.skip("the design (shared/DESIGN.md beside the repository) is not here")
    text = design.read_text(encoding="utf-8")
    text = text[text.index("Released checkpoints (Google Drive ids)") :].split("\n")[0]
    ids, figures = text.split("Expected test numbers")
    name = {"agedb-dir": "AgeDB", "imdb-wiki-dir": "IMDB-WIKI", "nyud2-dir": "NYUD2",
            "sts-b-dir": "STS-B"}[folder]  # fmt: skip
    official = load(folder, "download").OFFICIAL
    part = ids[ids.index(f"{name} LDS") :].split(";")[0]
    names = ("lds", "fds", "lds_fds")
    assert re.findall(r"`([\w-]{20,})`", part) == [official[k][0] for k in names]
    part = re.search(rf"{name} (?:MAE|RMSE|MSE) ([\d. ·]+)", figures)[1]
    rows = [tuple(float(x.rstrip(".")) for x in row.split()) for row in part.split("·")]
    assert rows == [official[k][2] for k in names]


def test_a_page_in_place_of_a_checkpoint(drive, tmp_path):
    drive.files["abc"] = b"<html>too many downloads</html>"
    with pytest.raises(ValueError, match=r"is no checkpoint.*delete it and fetch"):
        released.fetch_official("abc", "mae", (1, 2, 3, 4), tmp_path / "official.pth.tar")
    assert not (tmp_path / "official.pth.tar.expected.json").exists()


# ---- names ---------------------------------------------------------------------------------


def write_published(folder, weight=1.0):
    folder.mkdir(parents=True)
    save_file({"linear.weight": torch.full((1, 2), weight)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model": "resnet18"}')
    return folder


def test_find(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, revision, allow_patterns):
        asked.append((repository, revision))
        if repository == "nobody/none":
            raise OSError("404")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    folder = write_published(tmp_path / "hub")
    file = folder / "model.safetensors"
    assert released.find(folder) == released.find(file) == file
    # What can only be meant as a file is never asked of the Hub.
    for local in ("runs/typo.pth.tar", "hub/none", "none.th", "/a/b", "../x/y", "a/b/c"):
        assert released.find(local) == Path(local)
    assert asked == []
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        released.load(released.find("runs/typo.pth.tar"))
    assert released.find("someone/ages") == file
    assert released.find("someone/ages@v1.0") == file
    assert asked == [("someone/ages", None), ("someone/ages", "v1.0")]
    with pytest.raises(ValueError, match=r"gives no nobody/none.*404"):
        released.find("nobody/none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a folder without model.safetensors"):
        released.find("empty")


def test_load(tmp_path):
    folder = write_published(tmp_path / "published", 3.0)
    content = released.load(folder / "model.safetensors")
    assert content["config"] == {"model": "resnet18"}
    assert torch.equal(content["state_dict"]["linear.weight"], torch.full((1, 2), 3.0))
    state, path = released.find_weights(folder)
    assert list(state) == ["linear.weight"]
    assert path == folder / "model.safetensors"
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="cannot be read"):
        released.load(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read"):
        released.load(folder / "model.safetensors")


def test_take_flags(caplog):
    caplog.set_level("INFO")
    args = SimpleNamespace(model="resnet50", img_size=224, lr=1.0)
    checkpoint = {"config": {"model": "resnet18", "img_size": 224, "lr": 2.0}}
    released.take_flags(args, checkpoint, "x.pth", ("model", "img_size"))
    assert vars(args) == {"model": "resnet18", "img_size": 224, "lr": 1.0}
    assert "--model resnet18, with which x.pth" in caplog.text
    released.take_flags(args, {"weight": torch.ones(1)}, "x.pth", ("model",))  # an official one
    assert args.model == "resnet18"
    for value in ("64", 64.5, -1, [64]):
        with pytest.raises(ValueError, match="--img_size"):
            released.take_flags(args, {"config": {"img_size": value}}, "x.pth", ("img_size",))


def test_log_expected(tmp_path, caplog):
    caplog.set_level("INFO")
    released.log_expected(tmp_path / "own.pth.tar", METRICS)
    assert caplog.text == ""
    folder = write_published(tmp_path / "published")
    note = json.loads(json.dumps({"metrics": {"test": METRICS}}).replace("NaN", "null"))
    note["metrics"]["test"]["many"]["mae"] = 6.25
    (folder / "results.json").write_text(json.dumps(note))
    released.log_expected(folder / "model.safetensors", METRICS)
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["mae,", "here", "7.000", "6.500", "8.250", "–"] in lines
    assert ["mae,", "published", "7.000", "6.250", "8.250", "–"] in lines
    assert ["gm,", "published", "4.000", "3.500", "5.500", "–"] in lines
    assert "num_samples" not in caplog.text
    for damaged in (
        '{"m',
        "[]",
        '{"metrics": {}}',
        '{"metrics": {"test": {"overall": {"mae": 1}}}}',
    ):
        caplog.clear()
        (folder / "results.json").write_text(damaged)
        released.log_expected(folder / "model.safetensors", METRICS)  # own figures are out already
        assert "No published figures can be read" in caplog.text


# ---- publishing ----------------------------------------------------------------------------


def write_run(folder):
    """A run folder of the ages' kind with weights that share memory, as tied ones do."""
    folder.mkdir()
    shared = torch.arange(6.0)
    state = {"module.linear.weight": shared.view(2, 3), "module.tied": shared.view(3, 2)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "ckpt.best.pth.tar")
    results = {
        "benchmark": "agedb-dir", "method": "SQINV+LDS+FDS (paper)", "seed": 4, "commit": "abc123",
        "command": "python train.py --data_dir /home/me/faces --lr 1 --resume ~/old/ckpt.pth.tar",
        "config": {"model": "resnet18", "data_dir": "/home/me/faces", "lr": 1e-3, "img_size": 64},
        "metrics": {"test": METRICS}, "target": {"name": "age", "unit": "years"}, "best_epoch": 2,
        "wall_seconds": 5400.0, "device": "cpu", "versions": {"torch": "2.9"},
        "main_metrics": ["mae"], "higher_is_better": [],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results).replace("NaN", "null"))
    return folder


def test_publish(tmp_path, capsys, monkeypatch):
    run, out = write_run(tmp_path / "run"), tmp_path / "published/ages"
    publish.main([str(run), "--out", str(out)])
    state, path = released.find_weights(out)
    assert torch.equal(state["linear.weight"], torch.arange(6.0).view(2, 3))
    assert torch.equal(state["tied"], torch.arange(6.0).view(3, 2))
    assert released.load(path)["config"] == {
        "model": "resnet18", "data_dir": "faces", "lr": 1e-3, "img_size": 64
    }  # fmt: skip
    for file in out.iterdir():
        assert b"/home/me" not in file.read_bytes()
    card = (out / "README.md").read_text()
    assert "python train.py --data_dir faces --lr 1 --resume ckpt.pth.tar\n" in card
    assert "\ntags: [deep-imbalanced-regression, agedb-dir, sqinv, lds, fds, paper]\n" in card
    assert "| overall | 9 | 7.000 | 4.000 |" in card
    assert "| few | 0 | – | – |" in card
    assert "at commit abc123, best epoch 2, 1.5 hours on cpu, torch 2.9" in card
    assert "AgeDB's images" in card
    for own in ({"config": {"dataset": "mine"}}, {"target": {"name": "price", "low": 5}}):
        results = json.loads((run / "results.json").read_text()) | own
        assert "AgeDB's images" not in publish.make_card(results, "mine")
    with pytest.raises(ValueError, match="--overwrite"):
        publish.main([str(run), "--out", str(out)])
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(publish, "save_file", mock.Mock(side_effect=OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):  # what is there stays until the new one is whole
        publish.main([str(run), "--out", str(out), "--overwrite"])
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    publish.main([str(run), "--out", str(out), "--overwrite"])
    assert {path.name for path in out.parent.iterdir()} == {out.name, f".{out.name}.lock"}
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.tex"):  # never more than such a folder
        publish.main([str(run), "--out", str(out), "--overwrite"])
    assert (out / "thesis.tex").exists()


def test_publish_what_is_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="finished run"):
        publish.main([str(tmp_path), "--out", str(tmp_path / "out")])
    run = write_run(tmp_path / "run")
    (run / "ckpt.best.pth.tar").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        publish.main([str(run), "--out", str(tmp_path / "out")])
    (run / "results.json").write_text('{"benchmark": "agedb-dir"}')
    with pytest.raises(ValueError, match="lacks"):
        publish.main([str(run), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


DAMAGED = [
    {"command": 5}, {"command": "'unclosed"}, {"command": None}, {"config": [1]}, {"config": "x"},
    {"benchmark": ["a"]}, {"benchmark": {}}, {"benchmark": "../agedb-dir"}, {"place_flags": 7},
    {"place_flags": None}, {"target": 3}, {"versions": [1]}, {"method": 3}, {"best_epoch": "two"},
    {"wall_seconds": "long"}, {"config": {"lr": "\ud800"}},
    {"metrics": {"test": METRICS | {"few": METRICS["few"] | {"gm": "much"}}}},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_publish_a_damaged_run(tmp_path, damage):
    run = write_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text()) | damage
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(
        ValueError, match=r"results\.json cannot be read \(.*writes it again"
    ) as caught:
        publish.main([str(run), "--out", str(tmp_path / "out")])
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_publish_cannot_steer_a_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    evil = "\x1b[2J\x1b]0;pwn\x07X"
    results = json.loads((run / "results.json").read_text())
    results |= dict.fromkeys(("method", "commit", "device", "seed"), evil) | {"seed": 4}
    results |= {"target": {"name": evil}, "versions": {"torch": evil}, "command": f"a '{evil}'"}
    (run / "results.json").write_text(json.dumps(results))
    publish.main([str(run), "--out", str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    for text in (card, capsys.readouterr().out):
        assert r"\x1b[2J\x1b]0;pwn\x07X" in text
        assert text.replace("\n", "").isprintable()


def content_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_publish_killed_between_its_renames(tmp_path, monkeypatch):
    run, out = write_run(tmp_path / "run"), tmp_path / "made/ages"
    words = [str(run), "--out", str(out), "--overwrite"]
    publish.main(words)
    (out / "README.md").write_text("the former one")
    former = content_of(out)
    rename = Path.rename

    def killed(path, target):
        if path.suffix == ".new":
            monkeypatch.setattr(publish, "mend", lambda out: None)  # the dead mend nothing
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        publish.main(words)
    monkeypatch.undo()
    left = {path.suffix for path in out.parent.iterdir()}
    assert left == {".new", ".old", ".lock"}
    (out.parent / ".ages.tex.1.old").mkdir()  # of another folder, `ages.tex`
    with pytest.raises(ValueError, match=r"holds README\.md"):  # the former one is back
        publish.main(words[:-1])
    assert content_of(out) == former
    assert {path.name for path in out.parent.iterdir()} == {"ages", ".ages.lock", ".ages.tex.1.old"}
    with FileLock(out.parent / ".ages.lock"), pytest.raises(ValueError, match="another process"):
        publish.main(words)
    publish.main(words)
    assert content_of(out).keys() == former.keys()
    assert content_of(out) != former


def test_publish_through_a_link(tmp_path):
    run, out, link = write_run(tmp_path / "run"), tmp_path / "made/ages", tmp_path / "latest"
    link.symlink_to(out)
    publish.main([str(run), "--out", str(link)])
    (out / "README.md").write_text("the former one")
    publish.main([str(run), "--out", str(link), "--overwrite"])
    assert link.readlink() == out
    assert "--eval_model ages" in (out / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "made", "latest"}


def test_published_facts(tmp_path):
    run = write_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["best_epoch"] = 0
    results["command"] = "python train.py --data_dir '/home/me/my faces' --cache=../../me/c --lr 1"
    (run / "results.json").write_text(json.dumps(results))
    publish.main([str(run), "--out", str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    assert "best epoch 0," in card
    assert "python train.py --data_dir 'my faces' --cache=c --lr 1\n" in card
    del results["metrics"]["test"]
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json cannot be read \(no 'test'\)"):
        publish.main([str(run), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="is a file"):
        publish.main([str(run), "--out", str(run / "results.json")])


def test_upload(tmp_path, monkeypatch, capsys):
    run, calls = write_run(tmp_path / "run"), []

    class Api:
        def create_repo(self, repository, private, exist_ok):
            calls.append((repository, private))
            if repository.startswith("refused"):
                raise OSError("401 Unauthorized")
            if repository.startswith("offline"):
                raise Exception("no route to host")  # an HTTP library's own kind

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(sorted(path.name for path in folder_path.iterdir()))
            return "https://hub/someone/ages"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = tmp_path / "out"
    publish.main([str(run), "--out", str(out), "--repo", "someone/ages", "--private"])
    files = ["README.md", "config.json", "model.safetensors", "results.json"]
    assert calls == [("someone/ages", True), files]
    assert "--eval_model someone/ages" in (out / "README.md").read_text()
    assert "https://hub/someone/ages" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"401 Unauthorized.*hf auth login"):
        publish.main([str(run), "--out", str(out), "--overwrite", "--repo", "refused/ages"])
    with pytest.raises(ValueError, match=r"no route to host.*is made and stays"):
        publish.main([str(run), "--out", str(out), "--overwrite", "--repo", "offline/ages"])
    assert (out / "model.safetensors").exists()
