"""within.py: several processes, a second signal, what cannot be resumed and what is not saved."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch

from conftest import ROOT, load
from contract import CONTRACTS, weights_in

(CONTRACT,) = (contract for contract in CONTRACTS if contract.folder == "uci-dir")
within = load("uci-dir", "within")
restoring = load("uci-dir", "restoring")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return CONTRACT.make_data(tmp_path_factory.mktemp("data"))


def run(data, store, *more):
    """Train in this process, without figures; returns the run's folder."""
    with mock.patch.object(CONTRACT.train.report, "draw_run"):
        CONTRACT.train.main(CONTRACT.argv(data, store, *more))
    return folder_in(store)


def folder_in(store):
    (folder,) = store.iterdir()
    return folder


def stop(data, store, step, *more):
    """Train until SIGTERM comes in the step of this number; returns the run's folder."""
    count, after_step = 0, within.Within.after_step

    def stopping(self):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGTERM)
        after_step(self)

    with mock.patch.object(within.Within, "after_step", stopping), pytest.raises(SystemExit) as end:
        run(data, store, *more)
    assert end.value.code == 0
    return folder_in(store)


def assert_same(a, b):
    a, b = (weights_in(folder / CONTRACT.last) for folder in (a, b))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An unbroken run of two epochs of five steps."""
    return run(data, tmp_path_factory.mktemp("whole"), "--epoch", 2)


def test_saving_often_changes_nothing(data, whole, tmp_path):
    folder = run(data, tmp_path, "--epoch", 2, "--save_every", 1e-9)
    assert_same(folder, whole)
    assert not (folder / within.WITHIN).exists()


def test_a_run_that_was_saved_within_an_epoch_and_killed(data, whole, tmp_path):
    """No signal was seen: the last file within the epoch is what the run resumes from."""
    store, save, count = tmp_path / "store", within.Within._save, 0

    def dying(self):
        nonlocal count
        count += 1
        save(self)
        if count == 8:
            raise KeyboardInterrupt

    with mock.patch.object(within.Within, "_save", dying), pytest.raises(KeyboardInterrupt):
        run(data, store, "--epoch", 2, "--save_every", 1e-9)
    with mock.patch.object(within.Within, "after_step") as after_step:
        assert_same(run(data, store, "--epoch", 2, "--resume"), whole)
    assert after_step.call_count == 10 - 8


def test_a_damaged_file_within_an_epoch_costs_the_epoch_only(data, whole, tmp_path):
    folder = stop(data, tmp_path, 8, "--epoch", 2)
    path = folder / within.WITHIN
    path.write_bytes(path.read_bytes()[:-1000])
    assert_same(run(data, tmp_path, "--epoch", 2, "--resume"), whole)
    assert f"Resuming from {folder / CONTRACT.last}" in (folder / "training.log").read_text()


def test_a_file_of_an_epoch_that_was_finished_later(data, whole, tmp_path):
    old = stop(data, tmp_path / "stopped", 3, "--epoch", 2) / within.WITHIN
    folder = tmp_path / "finished" / whole.name
    shutil.copytree(whole, folder)
    shutil.copy(old, folder)
    assert_same(run(data, tmp_path / "finished", "--epoch", 2, "--resume"), whole)
    assert not (folder / within.WITHIN).exists()


def test_an_epoch_is_resumed_with_the_same_steps_only(data, tmp_path):
    path = stop(data, tmp_path / "stopped", 3, "--epoch", 2) / within.WITHIN
    more = ("--epoch", 2, "--resume", path)
    with pytest.raises(ValueError, match=r"begun with batch_size 16, not 8: give the same"):
        run(data, tmp_path / "smaller", *more, "--batch_size", 8)
    with pytest.raises(ValueError, match=r"begun with seed 0, not 1.*last epoch's checkpoint"):
        run(data, tmp_path / "other", *more, "--seed", 1)


def test_a_loss_that_is_not_finite_is_not_saved(data, tmp_path):
    add = CONTRACT.train.Steps.add

    def broken(self, loss, *more):
        add(self, loss * float("nan"), *more)

    with (
        mock.patch.object(CONTRACT.train.Steps, "add", broken),
        pytest.raises(FloatingPointError, match="epoch 0, step 0: the last good checkpoint stays"),
    ):
        run(data, tmp_path, "--save_every", 1e-9)
    assert not (folder_in(tmp_path) / within.WITHIN).exists()


@pytest.mark.parametrize("more", ["", "--overwrite", "--resume", "--resume a/b.tar", "--resume=b"])
def test_the_command_that_resumes(more):
    found = within.to_resume(f"python train.py {more} --data_dir 'my data' --fds")
    assert found == "python train.py --data_dir 'my data' --fds --resume"


# ---- several processes ---------------------------------------------------------------------


def assert_close(a, b):
    """Two processes add up in another order than one."""
    a, b = (weights_in(folder / CONTRACT.last) for folder in (a, b))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_processes_stop_at_the_same_step(data, whole, tmp_path):
    """A signal to one of them is enough."""

    def child(rank, environment):
        os.environ.update({**environment, "RANK": rank, "LOCAL_RANK": rank})
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        count, after_step = 0, within.Within.after_step

        def stopping(self):
            nonlocal count
            count += 1
            if rank == "1" and count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(self)

        with mock.patch.object(within.Within, "after_step", stopping):
            run(data, tmp_path, "--epoch", 2, "--resume")

    path, done = None, []
    while path is None or path.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        fork = multiprocessing.get_context("fork")
        both = [fork.Process(target=child, args=(rank, shared)) for rank in "01"]
        for process in both:
            process.start()
        for process in both:
            process.join(120)
            process.kill()
            assert process.exitcode == 0
        path = folder_in(tmp_path) / within.WITHIN
        if path.exists():
            held = torch.load(path, weights_only=True)["within"]
            done.append([p["passes"][held["interrupted"]]["done"] for p in held["processes"]])
    assert done == [[3, 3], [1, 1], [4, 4]]  # of two epochs of five steps, three at a time
    assert_close(folder_in(tmp_path), whole)


DIES_ONCE = """
import os, sys
sys.path.insert(0, {folder!r})
import train, within
after_step, count = within.Within.after_step, 0

def dying(self):
    global count
    after_step(self)
    count += 1
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and count == 7:
        os._exit(9)

within.Within.after_step = dying
train.report.draw_run = print
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_what_torchrun_restarts_resumes_by_itself(data, whole, tmp_path):
    """Within the epoch; --overwrite replaced what lay there, and is not meant twice."""
    script, store = tmp_path / "dies_once.py", tmp_path / "store"
    script.write_text(DIES_ONCE.format(folder=str(ROOT / "uci-dir")))
    shutil.copytree(whole, store / whole.name)
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2 --max-restarts=1".split()
    more = ("--epoch", 2, "--overwrite", "--save_every", 1e-9)
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *CONTRACT.argv(data, store, *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    log = (store / whole.name / "training.log").read_text()
    assert log.count("within_epoch.pth.tar at epoch 1") == 1
    assert_close(store / whole.name, whole)


# ---- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_a_second_signal_ends_at_once(data, tmp_path, wait):
    """But what a launcher passes on of the first is no second one."""

    def child():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

        def slow(self):
            (tmp_path / "step").touch()
            for _ in range(100):
                time.sleep(0.01)
            after_step(self)

        after_step = within.Within.after_step
        with (
            mock.patch.multiple(within.Within, after_step=slow),
            mock.patch.multiple(within, ECHO=0.2 if wait else 20.0),
        ):
            run(data, tmp_path / "store", "--epoch", 2)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    while not (tmp_path / "step").exists():
        time.sleep(0.01)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(wait)
    process.join(60)
    assert process.exitcode == (-signal.SIGTERM if wait else 0)
    assert (folder_in(tmp_path / "store") / within.WITHIN).exists() == (not wait)


@pytest.mark.parametrize("line", range(5))
def test_an_echo_while_the_first_is_noted_is_no_second_one(line):
    """The next signal may interrupt the handler before any of its lines."""
    noting, passed = object.__new__(within.Within), []
    noting.signal, noting.noted_at, noting.run = None, 0.0, mock.Mock(is_main=False)
    noting.handlers = {}  # a second signal would look there for the handler before

    def trace(frame, event, argument):
        if frame.f_code is within.Within._note.__code__:
            passed.extend([event] * (event == "line"))
            if event == "line" and len(passed) == line + 1:
                noting._note(signal.SIGTERM, frame)
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        noting._note(signal.SIGTERM, None)
    finally:
        sys.settrace(before)
    assert noting.signal == "SIGTERM"
    assert len(passed) >= 2


def test_an_ignored_signal_stays_ignored(data, tmp_path):
    """As nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = []

    def look(self):
        seen.append(signal.getsignal(signal.SIGHUP))

    with mock.patch.object(within.Within, "after_step", look):
        run(data, tmp_path, "--epoch", 1)
    signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN] * 5
