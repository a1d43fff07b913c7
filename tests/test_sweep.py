"""Sweeps: cells of a table file, a kill in the middle, failures, and what is kept."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import contract
from conftest import ROOT, load

sweep = load("tools", "sweep")

TABLE = """
folder = "{folder}"
out = "results/never-written"
store_root = "checkpoint/tiny"
seeds = [0, 1]
flags = "--dataset tiny --epoch 3 --hidden 4 --track none"
prepare = "--csv {folder}/raw.csv --target y --name tiny"
prepared = "data/tiny.json"
[rows]
"VANILLA" = ""
"SQINV+LDS" = "--reweight sqrt_inv --lds"
"RRT INV" = "--reweight inverse --retrain_fc --pretrained {{VANILLA}}"
"RNC" = "--retrain_fc --reweight none --pretrained {{FEATURES}}"
"BROKEN" = "--pretrained nowhere.pth.tar"
[pretraining]
"FEATURES" = ""
"""
METHODS = ("VANILLA", "SQINV+LDS", "RRT INV", "RNC")


@pytest.fixture
def place(tmp_path):
    """A copy of uci-dir with a table of 120 rows, and its table file."""

    def make(name):
        folder = tmp_path / name
        shutil.copytree(
            ROOT / "uci-dir", folder, ignore=shutil.ignore_patterns("data", "checkpoint")
        )
        rng = np.random.default_rng(0)
        x = rng.normal(size=120)
        frame = pd.DataFrame({"x": x, "y": np.round(np.exp(x) * 3 + rng.normal(size=120))})
        frame.to_csv(folder / "raw.csv", index=False)
        table = tmp_path / f"{name}.toml"
        table.write_text(TABLE.format(folder=folder))
        return table, tmp_path / f"{name}_out"

    return make


def start(table, out, *flags):
    words = [sys.executable, ROOT / "tools/sweep.py", table, "--out", out, *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def content(out):
    """What a table is made of: metrics and flags, without times and paths."""
    results = {}
    for path in out.glob("*/results.json"):
        result = json.loads(path.read_text())
        key = result["method"], result["seed"]
        with np.load(path.with_name("errors.npz")) as arrays:
            errors = pd.DataFrame(dict(arrays))
        for shot, name in ((slice(None), "overall"), (0, "many"), (1, "medium"), (2, "few")):
            part = errors if name == "overall" else errors[errors["shot"] == shot]
            metrics = result["metrics"]["test"][name]
            assert len(part) == metrics["num_samples"]
            assert part["error"].astype(float).mean() == pytest.approx(metrics["mae"], rel=1e-3)
        results[key] = result["metrics"], result["config"], errors["error"].tolist()
    return results


def test_a_killed_sweep_ends_with_the_table_of_the_unbroken_one(place):
    table, out = place("unbroken")
    sweeping = start(table, out, "--jobs", "2")
    said, _ = sweeping.communicate(timeout=240)
    assert sweeping.returncode == 1, said
    unbroken = content(out)
    assert {*unbroken} == {(m, s) for m in METHODS for s in (0, 1)}
    errors = json.loads((out / "errors.json").read_text())
    assert {*errors} == {"BROKEN, seed 0", "BROKEN, seed 1"}
    assert "nowhere.pth.tar" in errors["BROKEN, seed 0"]["error"][-1]

    table, out = place("killed")
    sweeping = start(table, out)
    lines = iter(sweeping.stdout.readline, "")
    assert any(line.startswith("3/12 cells") for line in lines)
    sweeping.send_signal(signal.SIGKILL)
    sweeping.wait()
    time.sleep(0.3)  # its child ends with it
    held = {path: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    assert len(held) == 2
    with sweep.FileLock(out.with_name("killed") / "checkpoint/tiny/logs/.lock", timeout=0):
        said, _ = start(table, out).communicate(timeout=240)  # a second sweep would run cells twice
    assert "another sweep is at work" in said
    said, _ = start(table, out).communicate(timeout=240)
    assert "10 of 12 cells to run" in said
    assert "process" not in said  # no run folder was still in use
    assert content(out) == unbroken
    assert all(path.stat().st_mtime_ns == before for path, before in held.items())


def test_the_process_that_forks_does_not_initialise_cuda(place):
    """Its children could not use a GPU: asking whether CUDA is available initialises the driver."""
    table, out = place("forked")
    words = [str(table), "--out", str(out), "--only", "VANILLA", "--seeds", "0"]
    words += ["--flags=--epoch 1"]
    script = f"""
import os, sys
import torch
sys.path.insert(0, {str(ROOT / "tools")!r})
import sweep
first, asked = os.getpid(), torch.cuda.is_available
def is_available():
    assert os.getpid() != first, "the process that forks has asked"
    return asked()
torch.cuda.is_available = is_available
sys.exit(sweep.main({words!r}))
"""
    for cells in (1, 0):  # the second time there are results of a device
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{cells} of 1 cells to run" in done.stdout


# ---- cells ---------------------------------------------------------------------------------


def cells_of(text):
    import tomllib

    table = {"store_root": "checkpoint/t", "sets": {"": {}}} | tomllib.loads(text)
    return table, sweep.cells_of(table, load("uci-dir", "train"), "best")


def test_cells_of_sets_seeds_values_and_bases():
    _, cells = cells_of("""
        seeds = [3, 4]
        flags = "--dataset {set} --epoch {epoch}"
        [sets]
        a = {epoch = 5}
        b = {epoch = 6}
        [over]
        ks = [5, 9]
        [rows]
        "VANILLA" = ""
        "LDS {ks}" = "--reweight sqrt_inv --lds --lds_ks {ks}"
        "RRT" = "--reweight inverse --retrain_fc --pretrained {VANILLA}"
    """)
    titles = [cell.title for cell in cells]
    rows = ["VANILLA", "LDS 5", "LDS 9", "RRT"]
    assert titles == [f"{s} {row}, seed {n}" for n in (3, 4) for s in "ab" for row in rows]
    assert [cell.args.epoch for cell in cells[:8]] == [5] * 4 + [6] * 4
    assert [cell.args.lds_ks for cell in cells[1:3]] == [5, 9]
    assert cells[7].bases == [cells[4]]
    assert cells[7].args.pretrained == f"{cells[4].run}/best"
    assert cells[7].args.seed == 3


@pytest.mark.parametrize(
    "file", sorted((ROOT / "results/tables").glob("*.toml")), ids=lambda f: f.stem
)
def test_flags_of_the_tables_parse_and_the_papers_rows_are_theirs(file):
    table = sweep.read_table(file)
    table["seeds"] = table["seeds"][:1]
    load_own = functools.partial(load, table["folder"])
    cells = sweep.cells_of(table, load_own("train"), "best", load_own)
    programs = {cell.program: cell.command[1] for cell in cells}
    assert programs.items() <= {"train": "train.py", "pretrain": "pretrain.py"}.items()
    for rows in table.get("paper", {}).values():
        assert {*rows} <= {cell.row for cell in cells}


def test_what_is_no_table_is_named(tmp_path):
    file = tmp_path / "t.toml"
    good = 'folder = "x"\nout = "x"\nflags = ""\nseeds = [0]\n[rows]\na = "--lds"\n'
    for text, word in {
        "rows = ": "no TOML",
        'folder = "x"\ncolour = 1': r"missing .*'rows'.*unknown \['colour'\]",
        good.replace("[0]", "3"): "seeds must be a list, got 3",
        good.replace("[0]", '["a"]'): "at least one row and one seed",
        good.replace('"x"', "3"): "folder must be a text, got 3",
        good.replace('"--lds"', '["--lds"]'): r"flags of a must be a text, got \['--lds'\]",
        good + "[sets]\n[over]\n[cluster]\n[short]\n": "short must be a list",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            sweep.read_table(file)
    with pytest.raises(ValueError, match="RRT: 'VANILA' is neither"):
        cells_of('seeds = [0]\nflags = ""\n[rows]\nRRT = "--pretrained {VANILA}"')
    with pytest.raises(ValueError, match="a: No closing quotation"):
        cells_of("""seeds = [0]\nflags = ""\n[rows]\na = "--lr '3" """)
    with pytest.raises(ValueError, match=r"a \{k\}: \[over\] has values of \['ks'\] only"):
        cells_of('seeds = [0]\nflags = ""\n[over]\nks = [1]\n[rows]\n"a {k}" = ""')
    with pytest.raises(ValueError, match="a, seed 0 and b, seed 0 have the same flags"):
        cells_of('seeds = [0]\nflags = ""\n[rows]\na = ""\nb = "--lr 1e-3"')


def result_of(cell, command=None, **facts):
    result = {"method": cell.row, "seed": cell.seed, "wall_seconds": 120.0}
    return result | {"command": command or " ".join(cell.command)} | facts


def test_finished_cells_are_known_by_method_seed_and_flags(tmp_path):
    train = load("uci-dir", "train")
    table, (vanilla, lds) = cells_of(
        'folder = "uci-dir"\nseeds = [0]\nflags = "--epoch 5"\nminutes = 7\n'
        '[rows]\nVANILLA = ""\nLDS = "--reweight sqrt_inv --lds"'
    )
    results = sweep.Results(tmp_path, table, train)
    results.expect([vanilla, lds])
    assert [vanilla.minutes, lds.minutes] == [7, 7]
    file = tmp_path / "any name" / "results.json"
    file.parent.mkdir()
    file.write_text(json.dumps(result_of(vanilla, "python train.py --epoch 5 --track none")))
    results = sweep.Results(tmp_path, table, train)
    assert results.is_finished(vanilla)
    assert not results.is_finished(lds)
    results.expect([lds])
    assert lds.minutes == 2  # that of the other row
    file.write_text(json.dumps(result_of(vanilla, device="cuda:0 (GPU)")))
    results = sweep.Results(tmp_path, table, train)
    assert results.is_finished(vanilla)
    results.expect([lds])
    assert lds.minutes == (2 if torch.cuda.is_available() else 7)  # a GPU's say nothing of a CPU
    args = sweep.parse_args(["t.toml", "--flags=--precision bf16"])
    (first, *_), _ = sweep.missing_cells(args, table, results, train, "best")
    assert (first.row, first.args.precision) == ("LDS", "bf16")
    file.write_text(json.dumps(result_of(vanilla, "python train.py --epoch 5 --precision bf16")))
    assert sweep.Results(tmp_path, table, train).is_finished(vanilla)  # as it ran elsewhere
    file.write_text(json.dumps(result_of(vanilla, "python train.py --epoch 9")))
    with pytest.raises(ValueError, match=r"is of \{'epoch': 9\}"):
        sweep.Results(tmp_path, table, train).is_finished(vanilla)
    (tmp_path / "runs.jsonl").write_text(json.dumps(result_of(vanilla)))
    with pytest.raises(ValueError, match=r"runs\.jsonl and again in .*any name"):
        sweep.Results(tmp_path, table, train)


def test_errors_of_a_large_unit_stay_finite(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "figures", load("uci-dir", "figures"))
    shots, labels = ["many", "medium", "few"], [0.0, 1e5, 2e5]
    pd.DataFrame({"label": labels, "shot": shots}).to_csv(tmp_path / "label_density.csv")
    predictions = {"label": labels, "prediction": [1e6, 1e5, 2e5], "split": "test"}
    pd.DataFrame(predictions).to_csv(tmp_path / "predictions.csv")
    sweep.write_errors(tmp_path, tmp_path / "errors.npz", 3)
    with np.load(tmp_path / "errors.npz") as kept:
        assert kept["error"].tolist() == [1e6, 0, 0]
        assert kept["shot"].tolist() == [0, 1, 2]


def test_lines_keep_test_metrics_and_a_run_once(tmp_path):
    train = load("uci-dir", "train")
    table, (cell,) = cells_of(
        'folder = "uci-dir"\nlines = true\nseeds = [0]\nflags = ""\n[rows]\nTREES = ""'
    )
    table["folder"] = tmp_path
    cell.args.store_root = str(tmp_path / "runs")
    run = tmp_path / cell.run
    run.mkdir(parents=True)
    metrics = {"test": {"overall": {"mae": 1.23456789, "sera": None}}, "val": {}}
    facts = {"metrics": metrics, "config": {}, "commit": "c", "best_epoch": 3, "device": "cpu"}
    (run / "results.json").write_text(json.dumps(result_of(cell, **facts)))
    results = sweep.Results(tmp_path / "out", table, train)
    assert results.is_finished(cell)
    results.collect(cell)
    late = sweep.Results(tmp_path / "out2", table, train)
    late.out = tmp_path / "out"  # a --dry-run has kept it since this one looked
    late.collect(cell)
    (line,) = Path(tmp_path / "out/runs.jsonl").read_text().splitlines()
    assert json.loads(line)["test"] == {"overall": {"mae": 1.23457, "sera": None}}
    assert sweep.Results(tmp_path / "out", table, train).is_finished(cell)


def test_an_error_is_forgotten_and_a_list_says_what_comes_first(tmp_path, capsys):
    table, cells = cells_of(
        'folder = "uci-dir"\nseeds = [0]\nflags = ""\nprepare = "--csv a"\nprepared = "no"\n'
        '[rows]\nVANILLA = ""\nRRT = "--retrain_fc --reweight inverse --pretrained {VANILLA}"'
    )
    sweep.print_commands(cells, "uci-dir")
    printed = capsys.readouterr()
    assert printed.err.startswith("first: cd uci-dir && python prepare.py --csv a\nthese lines")
    assert "checkpoints: [2]" in printed.err
    assert len(printed.out.splitlines()) == 2
    results = sweep.Results(tmp_path, table, load("uci-dir", "train"))
    (tmp_path / "log").write_text("it failed")
    for cell in cells:
        results.note(cell, tmp_path / "log")
    results.seconds[results.key(cells[0])] = 1.0  # run by hand since
    assert results.is_finished(cells[0])
    assert [*json.loads((tmp_path / "errors.json").read_text())] == ["RRT, seed 0"]
    args = sweep.parse_args(["t.toml", "--only", "VANILA"])
    with pytest.raises(ValueError, match="no cell contains 'VANILA'; there is 'RRT, seed 0'"):
        sweep.missing_cells(args, table, results, load("uci-dir", "train"), "best")


def test_flags_that_cannot_be_used(monkeypatch, capsys):
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    for words, match in (
        (("--cluster", "slurm"), "pip install submitit"),
        (("--jobs", "0"), "1 or"),
    ):
        with pytest.raises(SystemExit):
            sweep.parse_args(["t.toml", *words])
        assert match in capsys.readouterr().err


def test_ages_left_out_are_prepared_in_a_folder_of_faces(tmp_path):
    """As the files of Table 6 do; train.py of ages imports no preparation."""
    folder = tmp_path / "faces"
    left = shutil.ignore_patterns("data", "checkpoint")
    shutil.copytree(ROOT / "agedb-dir", folder, ignore=left)
    (folder / "data").mkdir()
    contract.make_faces(folder / "data", "whole")
    table = tmp_path / "zero.toml"
    table.write_text(f'''
folder = "{folder}"
out = "results/never-written"
seeds = [0]
flags = "--dataset zero --model resnet18 --img_size 32 --epoch 1 --device cpu --track none"
prepare = "--dataset zero --meta data/whole.csv --curate 21 22 45 46"
prepared = "data/zero.csv"
[rows]
"VANILLA" = ""
''')
    out = tmp_path / "out"
    said, _ = start(table, out).communicate(timeout=240)
    assert "1/1 cells" in said, said
    (path,) = out.glob("*/results.json")
    test = json.loads(path.read_text())["metrics"]["test"]
    whole = pd.read_csv(folder / "data" / "whole.csv").query("split == 'test'")["age"]
    for region, age in (("interpolation", 21), ("extrapolation", 45)):
        assert test[region]["num_samples"] == (whole == age).sum() > 0


def test_submitit_runs_cells_as_jobs(place, tmp_path):
    pytest.importorskip("submitit", reason="submitit, an optional dependency, is not installed")
    table, out = place("cluster")
    words = ("--cluster", "local", "--jobs", "2", "--seeds", "0", "--only", "VANILLA")
    said, _ = start(table, out, *words).communicate(timeout=240)
    assert "1/1 cells" in said, said
    assert [key for key in content(out)] == [("VANILLA", 0)]
