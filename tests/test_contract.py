"""Promises that every benchmark folder keeps; contract.py says what differs."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, load
from contract import CONTRACTS, keep_test, weights_in
from plain import PlainFDS

LEFT_BY_ALL = {
    "results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "fds_statistics.npz",
    "figures",
}  # fmt: skip
FIGURES = {
    "error_by_label", "predictions", "learning_curves", "label_density", "fds_statistics",
    "fds_similarity",
}  # fmt: skip
CONFLICTS = {
    "--lds": "--reweight sqrt_inv",
    "--lds --reweight sqrt_inv --lds_ks 4": "odd",
    "--fds --fds_sigma 0": "sigma",
    "--retrain_fc --reweight inverse": "--pretrained",
    "--resume --overwrite": "choose one",
    "--eval_model file": "--evaluate",
    "--no_such_flag": "unrecognized",
    "--batch 3": "unrecognized",  # flags are not abbreviated
    "--batch_size 0": "1 or more",
    "--bucket_num 9 --bucket_start 9": "must rise",
    "--bucket_num 9 --bucket_start 7 --fds": "(--fds_ks + 1) / 2",
    "--fds_mmt 1.5": "[0, 1]",
    "--lr 0": "above 0",
    "--lr inf": "above 0 and below",
    "--start_update -3": "0 or more",
    "--save_every -1": "0 or more",
    "--bucket_num 1000000": "must rise",
    "--gpu 0 --device cpu": "contradict",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are started: sums in the same order give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CONTRACTS, ids=lambda contract: contract.folder)
def contract(request):
    return request.param


@pytest.fixture(scope="module")
def data(contract, tmp_path_factory):
    return contract.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(contract, data, tmp_path_factory):
    """An unbroken run of three epochs (or validations) with LDS and FDS."""
    store = tmp_path_factory.mktemp("finished")
    contract.train.main(contract.argv(data, store, *contract.lines(3), *contract.lds_fds.split()))
    return only_run(store)


def here(contract, data, store, *more):
    """Train in this process, without the figures; returns the test metrics."""
    with mock.patch.object(contract.train.report, "draw_run"):
        return contract.train.main(contract.argv(data, store, *more))


def start(main, argv, **environment):
    """Start train.py's `main` in a process forked from this one: its modules are loaded already."""

    def child():
        os.environ.update(environment)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main(argv)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def only_run(store):
    (folder,) = Path(store).iterdir()
    return folder


def rows_of(folder):
    """The lines of a run's epochs.jsonl."""
    file = folder / "epochs.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def assert_same_weights(a, b):
    """Bit for bit the same weights and buffers."""
    a, b = weights_in(a), weights_in(b)
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_metrics(found, results):
    """What `main` returns and what results.json holds, where NaN is null."""
    assert json.loads(load("agedb-dir", "utils").to_json(found)) == results["metrics"]["test"]


# ---- the command line ----------------------------------------------------------------------


def test_released_flags_keep_their_defaults(contract):
    args = vars(contract.train.parse_args([]))
    assert {name: args[name] for name in contract.defaults} == contract.defaults
    parse = contract.train.parse_args
    assert parse(["--seed", "5"]).seed == parse(["--random_seed", "5"]).seed == 5
    assert parse(["--gpu", "-1"]).gpu == parse(["--cuda", "-1"]).gpu == -1
    assert parse(["--resume"]).resume == "auto"
    assert parse(["--resume", "file"]).resume == "file"
    for name in {"epoch", "epochs"} & set(args):
        assert vars(parse(["--epoch", "3"]))[name] == vars(parse(["--epochs", "3"]))[name] == 3


def test_what_changes_a_run_changes_its_folder(contract):
    """Each flag that is not its place, at another value, gives another folder or another error."""
    parser = contract.train.make_parser()
    plain = "".join(contract.train.run_name(contract.train.parse_args([])))
    args = contract.train.parse_args([])
    # Methods stand in the name when they are used; the length of a run may grow on resume.
    silent = {"epoch", "epochs", "max_vals", "start_epoch", "data_dir", "compile"}
    silent |= {name for name in vars(args) if name.startswith(("lds_", "fds_", "start_"))}
    silent |= {"huber_beta", "lds", "retrain_fc"}
    silent -= {"fds_stats"}
    checked = 0
    for action in parser._actions:
        flag = action.dest
        if parser.roles.get(flag, "place") == "place" or flag in silent:
            continue
        changed = contract.train.parse_args([])
        default = getattr(args, flag)
        if action.choices:
            value = next(choice for choice in action.choices if choice != default)
        elif isinstance(default, bool):
            value = not default
        elif isinstance(default, (int, float)):
            value = default + 1
        else:
            value = [1, 2] if isinstance(default, list) else "other"
        setattr(changed, flag, value)
        name = contract.train.run_name(changed)
        assert "".join(name) != plain, flag
        checked += 1
    assert checked > 8


@pytest.mark.parametrize("flags", CONFLICTS)
def test_conflicts_of_flags(contract, flags, capsys):
    with pytest.raises(SystemExit):
        contract.train.parse_args(flags.split())
    assert CONFLICTS[flags] in capsys.readouterr().err


def test_help_explains_every_flag(contract, capsys):
    with pytest.raises(SystemExit) as end:
        contract.train.parse_args(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    parser = contract.train.make_parser()
    assert "first epoch in the statistics (default: 0)" in " ".join(text.split())
    assert "(default: None)" not in text
    for action in parser._actions:
        assert action.help, action.dest
        assert all(option in text for option in action.option_strings)
    assert set(parser.roles) == {a.dest for a in parser._actions} - {"help"}


# ---- what a run leaves ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_all_its_files(contract, finished):
    held = {path.name for path in finished.iterdir()}
    assert held >= LEFT_BY_ALL | {contract.last, contract.best, *contract.files}
    assert [path for path in held if path.endswith(".log")]
    assert not list(finished.glob(".*.tmp"))
    assert {path.stem for path in (finished / "figures").iterdir()} >= FIGURES
    results, rows = results_of(finished), rows_of(finished)
    assert len(rows) == 3
    assert results["method"].endswith("+LDS+FDS")
    assert results["benchmark"] == contract.folder
    assert set(results["place_flags"]) < set(results["config"])
    # The best epoch's validation is repeated in the results.
    assert results["metrics"]["val"]["overall"] in [row["val"]["overall"] for row in rows]
    density = pd.read_csv(finished / "label_density.csv")
    samples = density["count"] > 0
    assert density.loc[samples, "weight"].notna().all()
    assert density.loc[~samples, "weight"].isna().all()
    mean = np.average(density.loc[samples, "weight"], weights=density.loc[samples, "count"])
    assert mean == pytest.approx(1, abs=1e-4)
    assert density["eff_label_dist"].notna().all()


def evaluated_in(folder):
    return pd.read_csv(folder / "evaluation" / "predictions.csv")


def copy_of(finished, folder):
    """A run folder with the same files, as hard links: what is replaced stays in `finished`."""
    return shutil.copytree(finished, folder, copy_function=os.link)


def test_an_evaluation_lands_in_its_checkpoints_run(contract, data, finished, tmp_path):
    """Not in the run that the flags name; what is there is kept, as is a training's lock."""
    runs = [copy_of(finished, tmp_path / name) for name in ("first", "second")]
    file = runs[1] / contract.best
    content = torch.load(file, weights_only=True)
    content.pop("digest", None)
    state = content.get("state_dict", content)
    names = [name for name in state if name.startswith(contract.head) and name.endswith("bias")]
    state[names[-1]] += 0.01
    file.unlink()
    torch.save(content, file)
    (runs[0] / ".holder").write_text("process 1")
    before = [{path.name for path in run.iterdir()} for run in runs]
    words = contract.argv(data, tmp_path / "store", "--evaluate", "--eval_model")
    metrics = [contract.train.main([*words, str(run / contract.best)]) for run in runs]
    assert [{path.name for path in run.iterdir()} - {"evaluation"} for run in runs] == before
    assert not (tmp_path / "store").exists()
    assert_same_metrics(metrics[0], results_of(finished))
    own = pd.read_csv(finished / "predictions.csv")
    if contract.folder == "nyud2-dir":  # only the test set is evaluated
        own = own[own["split"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(evaluated_in(runs[0]), own)
    other = evaluated_in(runs[1])
    assert (other["prediction"] > own["prediction"]).all()
    kept = runs[1] / "evaluation" / "predictions.csv"
    kept.write_text("mine")
    words.append(str(runs[1]))
    late = mock.patch.object(contract.train, "evaluate", side_effect=AssertionError("too late"))
    with late, pytest.raises(ValueError, match=rf"{kept} exists.*--overwrite"):
        contract.train.main(words)
    assert kept.read_text() == "mine"
    contract.train.main([*words, "--overwrite"])
    pd.testing.assert_frame_equal(evaluated_in(runs[1]), other)
    assert (runs[1] / "results.json").is_file()


@pytest.mark.parametrize(
    ("given", "file", "expected"),
    [
        ("store/run", "store/run/ckpt.best.pth.tar", "store/run"),
        ("store/run/ckpt.pth.tar", "store/run/ckpt.pth.tar", "store/run"),
        ("alone/ckpt.best.pth.tar", "alone/ckpt.best.pth.tar", "alone"),
        ("alone/v1.2.pth.tar", "alone/v1.2.pth.tar", "new/v1.2"),
        ("mine", "mine/model.safetensors", "new/mine"),
        ("mine/model.safetensors", "mine/model.safetensors", "new/mine"),
        ("someone/ages@v1", "hub/snapshots/0123/model.safetensors", "new/someone_ages@v1"),
        ("fixed/run", "fixed/run/ckpt.best.pth.tar", "new/run"),
    ],
)
def test_the_folder_of_an_evaluation(given, file, expected, tmp_path, monkeypatch):
    """The run's own, else one of the checkpoint's name; `fixed` cannot be written."""
    monkeypatch.chdir(tmp_path)
    for path in ("store/run/epochs.jsonl", "mine/results.json", file):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    evaluation, args = load("agedb-dir", "evaluation"), mock.Mock(eval_model=given)
    args.store_root = "new"
    monkeypatch.setattr(evaluation.os, "access", lambda path, mode: "fixed" not in str(path))
    assert evaluation.folder_of(Path(file), args) == Path(expected)


def test_evaluation_needs_no_training_rows(contract, data, finished, tmp_path):
    """The test rows alone get the run's own metrics by shot, and its own predictions."""
    alone, store, published = (tmp_path / name for name in ("data", "store", "published"))
    shutil.copytree(data, alone)
    keep_test(alone)
    load("tools", "publish").main([str(finished), "--out", str(published)])
    own = pd.read_csv(finished / "predictions.csv")
    own = own[own["split"] == "test"].drop(columns="row", errors="ignore")
    run = copy_of(finished, tmp_path / "run")
    for model, folder in ((run, run), (published, store / "published")):
        found = here(contract, alone, store, "--evaluate", "--eval_model", model)
        assert_same_metrics(found, results_of(finished))
        left = evaluated_in(folder).drop(columns="row", errors="ignore")  # numbers in the table
        pd.testing.assert_frame_equal(left, own.reset_index(drop=True))
    if contract.folder == "nyud2-dir":  # without them its shots are fixed lists
        return
    (published / "results.json").unlink()  # an earlier version's files lack the counts
    with pytest.raises(ValueError, match="does not say how many training samples"):
        here(contract, alone, store, "--evaluate", "--eval_model", published, "--overwrite")


def test_counts_of_training_labels_say_their_shots():
    """Ages beyond the last bucket have a count of their own; your own target has its buckets."""
    metrics = load("agedb-dir", "metrics")
    target = load("agedb-dir", "target").Target
    labels = np.repeat([3.5, 20.0, 120.0, 130.25, 186.0], [1, 101, 20, 19, 100])
    asked = np.array([3.0, 4.0, 20.9, 120.5, 130.0, 186.0, 190.0])
    own = target("price", "", 1.0, 1000.0, 0.1, scale="log", own=True)
    for given in (metrics.AGE, own):
        counts = metrics.count_groups(labels, given)
        assert sum(counts) == len(labels)
        again = metrics.labels_of(np.array(counts), given)
        before, after = (metrics.shot_metrics(asked, asked, x, given) for x in (labels, again))
        np.testing.assert_equal(after, before)
        assert before["many"]["num_samples"]
        assert before["interpolation"]["num_samples"]
    with pytest.raises(ValueError, match="31 training counts for 30 buckets"):
        metrics.labels_of(np.ones(31, dtype=int), own)


def test_an_evaluation_of_training_rows_alone_says_so():
    with pytest.raises(ValueError, match="no row of split val or test"):
        load("agedb-dir", "evaluation").splits_in(["train"])


@pytest.mark.parametrize("counts", [[1.5], [-1], "3", [[1]], [10**9], ["a"], [1, [2]]])
def test_damaged_training_counts_are_an_error(counts):
    evaluation = load("agedb-dir", "evaluation")
    with pytest.raises(ValueError, match="evaluate it with the training rows"):
        evaluation.training_of("a.tar", {"training": {"counts": counts}})


@pytest.mark.slow
def test_new_inputs_get_the_runs_own_predictions(contract, data, finished, tmp_path, capsys):
    """From a run folder and inputs without labels; what cannot be read is named."""
    predict = load(contract.folder, "predict")
    inputs, out = contract.inputs(data, tmp_path), tmp_path / "out.csv"
    missing = str(tmp_path / "missing.png")
    command = ["--model", str(finished), "--device", "cpu", "--out", str(out)]
    assert predict.main([*command, *inputs, missing]) == 1
    printed = capsys.readouterr()
    assert printed.err.strip().splitlines()[-1].startswith(f"{missing}: ")
    found = pd.read_csv(out)
    before = pd.read_csv(finished / "predictions.csv", keep_default_na=False)
    before = before[before["split"] == "test"]
    if contract.folder != "nyud2-dir":
        assert found["prediction"].to_numpy() == pytest.approx(before["prediction"], abs=1e-4)
        return
    assert found["path"].tolist() == inputs
    model = predict.load(finished, "cpu")
    for path, pixels in before.groupby("path"):
        image, _ = model.read(data / path)
        crop = model.answer([image])[0][1:58, 2:78]  # the middle of 60 × 80
        values = crop[pixels["y"], pixels["x"]]
        assert values == pytest.approx(pixels["prediction"].clip(lower=0), abs=1e-4)


def test_a_released_file_evaluates(contract, data, finished, tmp_path):
    """In the official format, with DataParallel's names, wanted with FDS or without."""
    if contract.official is None:
        pytest.skip("no official code of it exists")
    utils = load("agedb-dir", "utils")
    file = tmp_path / f"official{Path(contract.best).suffix}"
    torch.save(contract.official(utils.load_checkpoint(finished / contract.best)), file)
    for name in ("vocab.txt",):
        if (finished / name).is_file():
            shutil.copy(finished / name, tmp_path)
    for more in ((), ("--fds", "--overwrite")):
        found = here(contract, data, tmp_path / "store", "--evaluate", "--eval_model", file, *more)
        own = results_of(finished)
        if contract.folder == "nyud2-dir":  # without a run's note of its pixels: the fixed shots
            found = {"overall": found["overall"]}
            own["metrics"]["test"] = {"overall": own["metrics"]["test"]["overall"]}
        assert_same_metrics(found, own)


@pytest.mark.slow
def test_a_published_run_evaluates(contract, data, finished, tmp_path):
    out = tmp_path / "published"
    load("tools", "publish").main([str(finished), "--out", str(out)])
    found = here(contract, data, tmp_path / "store", "--evaluate", "--eval_model", out)
    assert_same_metrics(found, results_of(finished))
    config = json.loads((out / "config.json").read_text())
    assert str(data) not in json.dumps(config)


# ---- resuming ------------------------------------------------------------------------------


def kill_after(contract, argv, store, lines, delay):
    """Start a run and kill it `delay` seconds after a line of epochs.jsonl; False if it ended."""
    process = start(contract.train.main, argv)
    deadline = time.monotonic() + 240
    while process.is_alive() and time.monotonic() < deadline:
        folders = list(store.iterdir()) if store.is_dir() else []
        if folders and len(rows_of(folders[0])) >= lines:
            break
        time.sleep(0.005)
    time.sleep(delay)
    alive = process.is_alive()
    process.kill()  # SIGKILL: no chance to tidy up
    process.join()
    return alive


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identical(contract, data, finished, tmp_path):
    more = (*contract.lines(3), *contract.lds_fds.split(), "--resume")
    argv = contract.argv(data, tmp_path, *more)
    killed = kill_after(contract, argv, tmp_path, lines=1, delay=0.02)
    held = rows_of(only_run(tmp_path))
    assert held
    assert killed or len(held) == 3
    here(contract, data, tmp_path, *more)
    resumed = only_run(tmp_path)
    log = "".join(path.read_text() for path in resumed.glob("*.log"))
    assert "Resuming from" in log or len(held) == 1  # killed before its first checkpoint
    for name in (contract.last, contract.best):
        assert_same_weights(resumed / name, finished / name)
    assert (resumed / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    assert [row["epoch"] for row in rows_of(resumed)] == [r["epoch"] for r in rows_of(finished)]
    assert not list(resumed.glob(".*.tmp"))


def assert_same_run(contract, folder, finished):
    """Weights, predictions and each line of epochs.jsonl, except for its seconds."""
    for name in (contract.last, contract.best):
        assert_same_weights(folder / name, finished / name)
    assert (folder / "predictions.csv").read_bytes() == (finished / "predictions.csv").read_bytes()
    rows = [[{**row, "seconds": None} for row in rows_of(path)] for path in (folder, finished)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_signal_stops_within_an_epoch(contract, data, finished, tmp_path):
    """In a training pass, and in one of statistics where it has steps; resumed bit for bit."""
    within, taken = load(contract.folder, "within"), {"Within": 0, "statistics": 0}
    after_step = within.Within.after_step

    def stopping(self):
        kind = "statistics" if "statistics" in self.current.title else "Within"
        taken[kind] += 1
        if taken[kind] == 3:
            number = signal.SIGTERM if kind == "Within" else signal.SIGINT
            signal.raise_signal(number)
        after_step(self)

    more = (*contract.lines(3), *contract.lds_fds.split(), "--resume")
    before, stops = signal.getsignal(signal.SIGTERM), 0
    with mock.patch.object(within.Within, "after_step", stopping):
        while stops < 3:
            try:
                here(contract, data, tmp_path, *more)
                break
            except SystemExit as end:
                stops += end.code == 0
            folder = only_run(tmp_path)
            assert (folder / within.WITHIN).is_file()
            assert not (folder / ".holder").exists()
            log = next(folder.glob("*.log")).read_text()
            assert log.count("Stopped within an epoch. To resume: ") == stops
            assert signal.getsignal(signal.SIGTERM) == before
    assert stops == 1 + (taken["statistics"] >= 3)
    assert_same_run(contract, folder, finished)
    assert not (folder / within.WITHIN).exists()


@pytest.mark.slow
def test_an_existing_run_is_kept(contract, data, finished, tmp_path):
    shutil.copytree(finished, tmp_path / finished.name)
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    more = (*contract.lines(3), *contract.lds_fds.split())
    with pytest.raises(ValueError, match=r"holds a run.*--resume.*--overwrite"):
        here(contract, data, tmp_path, *more)
    copy = tmp_path / finished.name
    assert {p.name: p.read_bytes() for p in copy.iterdir() if p.is_file()} == before
    # A finished run that is resumed ends where it was.
    assert_same_metrics(here(contract, data, tmp_path, *more, "--resume"), results_of(finished))
    (copy / "notes.txt").write_text("mine")
    old = [copy / name for name in ("evaluation/predictions.csv", "error_by_depth.csv")]
    old[0].parent.mkdir(exist_ok=True)
    for path in old:
        path.write_text("of the run that is replaced")
    here(contract, data, tmp_path, *contract.lines(1), *contract.lds_fds.split(), "--overwrite")
    assert (copy / "notes.txt").read_text() == "mine"
    assert not [path for path in old if path.is_file() and "replaced" in path.read_text()]
    assert len(rows_of(copy)) == 1


@pytest.mark.slow
def test_a_run_does_not_mix_with_other_data_or_fewer_epochs(contract, data, finished, tmp_path):
    shutil.copytree(finished, tmp_path / finished.name)
    kept = {
        p.name: p.read_bytes() for p in finished.iterdir() if p.is_file() and p.suffix != ".log"
    }
    more = (*contract.lds_fds.split(), "--resume")
    with pytest.raises(ValueError, match="already"):
        here(contract, data, tmp_path, *contract.lines(2), *more)
    note = contract.train.run_folder.Run.note_data

    def other_rows(run, table, inputs=()):
        note(run, table.iloc[::-1].reset_index(drop=True), inputs)

    with mock.patch.object(contract.train.run_folder.Run, "note_data", other_rows):
        with pytest.raises(ValueError, match=r"other rows, labels or splits.*--data_changed"):
            here(contract, data, tmp_path, *contract.lines(4), *more)
        for name, content in kept.items():
            assert (tmp_path / finished.name / name).read_bytes() == content, name
        here(contract, data, tmp_path, *contract.lines(4), *more, "--data_changed")
    assert len(rows_of(tmp_path / finished.name)) == 4


@pytest.mark.slow
def test_a_run_notices_what_else_it_reads(contract, data, finished, tmp_path):
    """Pixels, signals, token ids; a copy elsewhere holds the same. Tables have rows alone."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("cache"))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    options = (*contract.lds_fds.split(), "--resume", run / contract.last)

    def resumed(store, *more):
        return here(contract, copy, tmp_path / store, *contract.lines(3), *options, *more)

    assert_same_metrics(resumed("same"), results_of(finished))
    if contract.change is None:
        assert not results_of(finished)["inputs"]
        return
    contract.change(copy, run)
    kept = sorted(path.name for path in run.iterdir())
    with pytest.raises(ValueError, match=rf"other .*{contract.changed}.* --data_changed"):
        resumed("other")
    assert kept == sorted(path.name for path in run.iterdir())


@pytest.mark.slow
def test_a_run_under_an_earlier_name_is_found_by_its_flags(contract, data, finished, tmp_path):
    """Earlier versions left some flags out of the name; another run's folder is not taken."""
    earlier = tmp_path / "earlier_name"
    shutil.copytree(finished, earlier)
    more = (*contract.lines(3), *contract.lds_fds.split(), "--resume", "--track", "tensorboard")
    assert_same_metrics(here(contract, data, tmp_path, *more), results_of(finished))
    assert only_run(tmp_path) == earlier
    assert (earlier / "events").is_dir()
    here(contract, data, tmp_path, *contract.lines(1), "--resume")  # a run without LDS and FDS
    assert len(list(tmp_path.iterdir())) == 2
    named = (*contract.lines(1), *contract.lds_fds.split(), "--resume", "--store_name", "named")
    here(contract, data, tmp_path, *named)  # nor where the user gives it a name
    assert len(list(tmp_path.iterdir())) == 3
    assert len(rows_of(earlier)) == 3


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(contract, data, tmp_path):
    """The second is refused while the first lives; a killed one leaves the folder free."""
    argv = contract.argv(data, tmp_path, *contract.lines(500))
    process = start(contract.train.main, argv)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/.holder")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for more in (["--resume"], ["--overwrite"]):
        with pytest.raises(ValueError, match=rf"process {process.pid} on .* is at work"):
            here(contract, data, tmp_path, *contract.lines(500), *more)
    assert process.is_alive()
    process.kill()
    process.join()
    here(contract, data, tmp_path, *contract.lines(1), "--overwrite")
    folder = only_run(tmp_path)
    assert len(rows_of(folder)) == 1
    assert not (folder / ".holder").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_named(contract, data, finished, tmp_path):
    best = finished / contract.best
    with pytest.raises(ValueError, match="another model's weights"):
        here(contract, data, tmp_path, "--pretrained", best, *contract.other.split())
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        here(contract, data, tmp_path, "--evaluate", "--eval_model", tmp_path / "none")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- methods -------------------------------------------------------------------------------


@pytest.mark.slow
def test_retraining_the_head_leaves_the_rest(contract, data, finished, tmp_path):
    pretrained = finished / contract.best
    here(contract, data, tmp_path, *contract.lines(1), "--reweight", "inverse", "--retrain_fc",
         "--pretrained", pretrained)  # fmt: skip
    folder = only_run(tmp_path)
    assert "_inverse_retrain_fc_" in folder.name
    assert results_of(folder)["method"] == "RRT INV"
    before, after = weights_in(pretrained), weights_in(folder / contract.last)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    heads = 0
    for name, value in after.items():
        if name.startswith(contract.head):
            heads += not torch.equal(value, before[name])
        elif not name.endswith(buffers):
            assert torch.equal(value, before[name]), name
    assert heads >= 2


@pytest.mark.slow
def test_statistics_that_start_late(contract, data, tmp_path):
    """Before --start_update no pass is run: batch norm would move once more."""
    train, asked = contract.train, []
    update = train.update_fds_statistics

    def noted(run, model, loader, epoch):
        asked.append(epoch)
        return update(run, model, loader, epoch)

    late = "--fds --start_update 2 --start_smooth 3".split()
    with mock.patch.object(train, "update_fds_statistics", noted):
        here(contract, data, tmp_path / "late", *contract.lines(2), *late)
        assert not [epoch for epoch in asked if epoch < 2]
        here(contract, data, tmp_path / "plain", *contract.lines(2))
    late, plain = (weights_in(only_run(tmp_path / n) / contract.last) for n in ("late", "plain"))
    if not asked:  # as long as nothing has started, FDS changes nothing
        for name, value in plain.items():
            assert torch.equal(value, late[name]), name
    assert (late[next(n for n in late if n.endswith("FDS.epoch"))] >= 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_statistics_are_those_of_the_rules(contract, data, tmp_path, variant):
    """The network hands back raw features, and what the pass makes of them is a plain loop's."""
    train, update, held = contract.train, contract.train.update_fds_statistics, {}

    def rows_of_dense(values):
        """Pixels as rows: [N, D, H, W] -> [N · H · W, D]."""
        values = values.detach().double()
        return (values.movedim(1, -1).flatten(0, -2) if values.ndim == 4 else values).numpy()

    def checked(run, model, loader, epoch):
        module, features, buckets = model.FDS, [], []
        smooth, accumulate = module.smooth, module.accumulate

        def noted_smooth(raw, labels, e):
            held["raw"] = raw.detach().clone()
            return smooth(raw, labels, e)

        def noted_accumulate(given, labels, e, keep=None):
            assert torch.equal(given, held["raw"])
            rows = slice(None) if keep is None else keep.flatten().numpy()
            features.append(rows_of_dense(given)[rows])
            buckets.append(module.label_to_bucket(labels).flatten().numpy()[rows])
            return accumulate(given, labels, e, keep)

        with (
            mock.patch.object(module, "smooth", noted_smooth),
            mock.patch.object(module, "accumulate", noted_accumulate),
        ):
            seconds = update(run, model, loader, epoch)
        B, D = module.running_mean.shape
        official = variant == "official"
        options = {"live": official, "calibrated": official, "clip": module.clip}
        options["fill"] = module.fill_empty
        plain = held.setdefault("plain", PlainFDS(B, D, module.kernel_window.numpy(), **options))
        plain.end_epoch(np.concatenate(features), np.concatenate(buckets), epoch)
        for name, value in (
            ("running_mean", plain.mean), ("running_var", plain.var),
            ("running_mean_last_epoch", plain.m1), ("running_var_last_epoch", plain.v1),
            ("smoothed_mean_last_epoch", plain.m2), ("smoothed_var_last_epoch", plain.v2),
        ):  # fmt: skip
            np.testing.assert_allclose(
                getattr(module, name), value, rtol=1e-3, atol=1e-5, err_msg=f"{epoch} {name}"
            )
        held["epochs"] = epoch + 1
        return seconds

    flags = ["--fds", "--fds_variant", variant, *contract.lines(4)]
    with mock.patch.object(train, "update_fds_statistics", checked):
        here(contract, data, tmp_path, *flags)
    assert held["epochs"] >= 2
    assert not np.allclose(held["plain"].m2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--fds_stats online --fds_variant {other}"])
def test_two_processes_equal_one(contract, data, tmp_path, more):
    other = "paper" if contract.defaults["fds_variant"] == "official" else "official"
    more = more.format(other=other).split()
    flags = (*contract.lines(2), *contract.lds_fds.split(), *contract.alike.split(), *more)
    stores = [tmp_path / "1", tmp_path / "2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}  # what torchrun sets
    build_model = contract.tiny() if contract.tiny else contract.train.build_model
    with mock.patch.object(contract.train, "build_model", build_model):
        here(contract, data, stores[0], *flags)
        argv = contract.argv(data, stores[1], *flags)
        both = [start(contract.train.main, argv, RANK=r, LOCAL_RANK=r, **shared) for r in "01"]
    for process in both:
        process.join(300)
        process.kill()
        assert process.exitcode == 0
    folders = [only_run(store) for store in stores]
    one, two = (weights_in(folder / contract.last) for folder in folders)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    results = [results_of(folder) for folder in folders]
    assert [result["processes"] for result in results] == [1, 2]
    losses = [[row["train_loss"] for row in rows_of(folder)] for folder in folders]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for shot, metrics in results[0]["metrics"]["test"].items():
        for metric, value in metrics.items():
            second = results[1]["metrics"]["test"][shot][metric]
            assert second == value or second == pytest.approx(value, rel=1e-3), (shot, metric)


@pytest.mark.slow
def test_a_loss_that_explodes_keeps_the_checkpoint(contract, data, finished, tmp_path):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    before = (folder / contract.last).read_bytes()
    more = (*contract.lines(5), *contract.lds_fds.split(), "--resume")
    name = next(n for n in dir(contract.train.criterion.losses) if n.startswith("weighted_")
                and n in used_losses(contract))  # fmt: skip
    poisoned = getattr(contract.train.criterion.losses, name)

    def loss(*args, **options):
        return poisoned(*args, **options) * float("nan")

    with (
        mock.patch.object(contract.train.criterion.losses, name, loss),
        pytest.raises(FloatingPointError, match=r"nan at epoch \d+, step \d+.*checkpoint stays"),
    ):
        here(contract, data, tmp_path, *more)
    assert (folder / contract.last).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["weights", "validation"])
def test_an_epoch_that_is_not_finite_is_not_saved(contract, data, finished, tmp_path, fault):
    """The last step may explode, or the validation data hold NaN: what was good stays."""
    train, folder = contract.train, tmp_path / finished.name
    shutil.copytree(finished, folder)
    files = [p for p in folder.glob("[!.]*") if p.is_file() and p.suffix != ".log"]
    before = {path.name: path.read_bytes() for path in files}
    evaluate, fit = train.evaluate, train.train_one_epoch

    def broken_evaluate(run, model, *more):
        metrics, preds = evaluate(run, model, *more)
        return {
            shot: dict.fromkeys(values, float("nan")) for shot, values in metrics.items()
        }, preds

    def broken_fit(run, net, model, *more):
        row = fit(run, net, model, *more)
        with torch.no_grad():
            first = next(model.parameters())
            first[(0,) * first.ndim] = float("inf")
        return row

    name, function = {
        "weights": ("train_one_epoch", broken_fit), "validation": ("evaluate", broken_evaluate),
    }[fault]  # fmt: skip
    more = (*contract.lines(4), *contract.lds_fds.split(), "--resume")
    with (
        mock.patch.object(train, name, function),
        # FDS may be the first to notice, in the statistics of the features.
        pytest.raises((FloatingPointError, ValueError), match=r"not finite|validation .* is nan"),
    ):
        here(contract, data, tmp_path, *more)
    for name, content in before.items():
        assert (folder / name).read_bytes() == content, name
    here(contract, data, tmp_path, *more)
    assert len(rows_of(folder)) == 4


def used_losses(contract):
    """Names of the folder's default loss."""
    return {f"weighted_{contract.defaults.get('loss', 'mse')}_loss"}


@pytest.mark.slow
def test_a_short_training_beats_a_constant(contract, data, tmp_path):
    if not contract.learning:
        pytest.skip("test_*_train.py of the folder does it on more data")
    metrics = here(contract, data, tmp_path, *contract.learning.split())
    predictions = pd.read_csv(only_run(tmp_path) / "predictions.csv")
    labels = predictions.loc[predictions["split"] == "test", "label"]
    assert metrics["overall"]["mae"] < 0.9 * (labels - labels.median()).abs().mean()


@pytest.mark.slow
def test_the_folder_runs_alone(contract, data, tmp_path):
    """Copied out of the repository it needs nothing that it left behind; torchrun starts it."""
    alone = tmp_path / "elsewhere"
    left = shutil.ignore_patterns("data", "glue_data", "glove", "checkpoint", "__pycache__")
    shutil.copytree(ROOT / contract.folder, alone, ignore=left)
    argv = contract.argv(data, tmp_path / "store", *contract.lines(1), *contract.lds_fds.split())
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2 train.py".split()
    done = subprocess.run(
        [sys.executable, *launcher, *argv],
        cwd=alone,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    results = results_of(only_run(tmp_path / "store"))
    assert results["processes"] == 2
    assert results["commit"] is None
