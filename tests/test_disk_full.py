"""A full disk: said before or while a file is written, with its path, and what was there stays."""

import multiprocessing
import resource
import shutil
import signal
import subprocess
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from conftest import load
from contract import CONTRACTS, weights_in

files = load("agedb-dir", "files")
utils = load("agedb-dir", "utils")
WEIGHTS = {"w": torch.arange(500_000.0)}  # 2 MB
MESSAGE = r"no room for .*/new: {}.*bytes are needed, [\d,]+ free in .*make room"


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if done.returncode:
        pytest.skip("a test may mount no small disk here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_too_small_is_named_before_anything_is_written(disk):
    path = disk / "new"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=MESSAGE.format("2,000,000 ")):
        utils.save_checkpoint(path, WEIGHTS)
    with pytest.raises(ValueError, match=MESSAGE.format("3,000,000 ")):
        files.write_atomically(path, bytes(3_000_000))
    assert [(file.name, file.read_bytes()) for file in disk.iterdir()] == [("new", b"old")]


def test_a_disk_that_fills_while_a_file_is_written(disk):
    """Nobody said how long it is, or another program writes at the same time."""
    path = disk / "new"
    path.write_bytes(b"old")
    for write in (lambda file: file.write(bytes(3_000_000)), lambda f: torch.save(WEIGHTS, f)):
        with pytest.raises(ValueError, match=MESSAGE.format("")):
            files.write_atomically(path, write)
        assert [(file.name, file.read_bytes()) for file in disk.iterdir()] == [("new", b"old")]


def test_a_quota_that_ends_in_a_checkpoint(tmp_path):
    """The disk has room, but the process may write no more: PyTorch raises another error then."""

    def child(said):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            utils.save_checkpoint(tmp_path / "new", WEIGHTS)
        except ValueError as error:
            said.send(str(error))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    process.join(60)
    assert receiver.poll(), process.exitcode
    said = receiver.recv()
    assert said.startswith(f"no room for {tmp_path / 'new'}: 2,000,000 bytes are needed")
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_its_last_checkpoint_and_resumes(tmp_path):
    (contract,) = (contract for contract in CONTRACTS if contract.folder == "uci-dir")
    data, save = contract.make_data(tmp_path), contract.checkpoints.restoring.save_checkpoint

    def train(store, *more):
        argv = contract.argv(data, tmp_path / store, *contract.lines(2), *more)
        with mock.patch.object(contract.train.report, "draw_run"):
            contract.train.main(argv)

    def fuller(path, state):
        full = state.get("epoch") == 2
        free = SimpleNamespace(free=1000) if full else shutil.disk_usage(tmp_path)
        with mock.patch.object(shutil, "disk_usage", return_value=free):
            save(path, state)

    train("whole")
    with (
        mock.patch.object(contract.checkpoints.restoring, "save_checkpoint", fuller),
        pytest.raises(ValueError, match=r"no room for .*ckpt.*pth\.tar: [\d,]+ bytes.* 1,000 free"),
    ):
        train("full")
    (folder,) = (tmp_path / "full").iterdir()
    assert torch.load(folder / contract.last, weights_only=True)["epoch"] == 1
    train("full", "--resume")
    (whole,) = (tmp_path / "whole").iterdir()
    ours, theirs = (weights_in(path / contract.last) for path in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_was_changed_is_not_its_digests(tmp_path):
    """The archive's own checksums are right, the content is not; older files have no digest."""
    path = tmp_path / "ckpt.pth.tar"
    state = {"epoch": 3, "config": {"lr": 0.1, "schedule": [3, 4]}, "state_dict": dict(WEIGHTS)}
    utils.save_checkpoint(path, state)
    held = utils.load_checkpoint(path)
    assert len(held.pop("digest")) == 64
    assert held["epoch"] == 3
    assert torch.equal(held["state_dict"]["w"], WEIGHTS["w"])
    for change in ({"epoch": 4}, {"state_dict": {"w": WEIGHTS["w"] + 1}}, {"more": None}):
        torch.save({**torch.load(path, weights_only=True), **change}, tmp_path / "changed")
        with pytest.raises(ValueError, match="digest is another one's"):
            utils.load_checkpoint(tmp_path / "changed")
    torch.save(state, tmp_path / "older")
    assert utils.load_checkpoint(tmp_path / "older")["epoch"] == 3
