"""The page that benchmarks/bench.py writes, and what experiments on FDS keep."""

import contextlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT, load

sys.path.insert(0, str(ROOT / "benchmarks"))
bench = load("benchmarks", "bench")
common = load("benchmarks", "common")
methods = load("benchmarks", "methods")


def test_what_a_step_keeps_leaves_the_weights_out():
    model, x = torch.nn.Linear(4, 4), torch.ones(8, 4, requires_grad=True)
    assert methods.kept_bytes(lambda: model(x).sum().backward(), model) == x.nbytes


def test_the_page_holds_tables_and_notes(monkeypatch, capsys):
    common.show([("smooth", 0.02, 0.001, ">= 10")])
    table = capsys.readouterr().out
    assert "| smooth | 20.00 | 1.00 | 20.0 | >= 10 |" in table.splitlines()
    program = f"print({table!r}); print('2 MiB at the peak')"
    real = bench.subprocess.run

    def run(command, **options):
        return real([sys.executable, "-c", program], **options)

    monkeypatch.setattr(bench.subprocess, "run", run)
    measured = {"fds": bench.measure("fds")}
    monkeypatch.setattr(bench.subprocess, "run", real)
    assert measured["fds"][1] == ["2 MiB at the peak"]
    page = bench.page(measured, 3.2)
    assert "## FDS on features\n" in page
    assert "\n".join(table.splitlines()[:3]) in page
    assert "```text\n2 MiB at the peak\n```" in page
    for name in bench.PROGRAMS:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_own_bucket_calibrates_by_the_first_prediction_alone():
    """By the recipe written out; labels, which it is given in training, change nothing."""
    experiment = load("benchmarks", "own_bucket")
    fds = load("uci-dir", "fds")
    torch.manual_seed(0)
    module = fds.FDS(4, 10, ks=3, sigma=1)
    net = experiment.OwnBuckets(3, (4,), module)
    net.scale = SimpleNamespace(invert=lambda scaled: 10 * scaled)
    inputs = torch.randn(50, 3)
    labels = torch.arange(50.0)[:, None] % 10
    with torch.no_grad():
        for epoch in range(3):
            module.accumulate(net.hidden(inputs), labels, epoch)
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(epoch=epoch)
        features = net.hidden(inputs)
        first = net.linear(features)
        expected = net.linear(module.smooth(features.clone(), 10 * first, 2))
        assert not torch.allclose(expected, first)
        for given in (labels, labels.flip(0)):
            torch.testing.assert_close(net(inputs, given, 2)[0], expected)
        torch.testing.assert_close(net.eval()(inputs)[0], expected)


def test_the_table_of_own_buckets_is_paired_by_seed(tmp_path, monkeypatch):
    """Against figures worked out by hand: differences 1, 2, 3 and −1, 0, 1 of three seeds."""
    experiment = load("benchmarks", "own_bucket")
    monkeypatch.setattr(experiment, "KEPT", tmp_path)
    monkeypatch.setattr(experiment, "SETS", {"concrete": "Concrete", "airfoil": "not run yet"})
    errors = {"SQINV": (4, 9, 5), "SQINV+FDS": (6, 11, 7), experiment.METHOD: (5, 11, 8)}
    for method, values in errors.items():
        own = tmp_path / "own_bucket" if method == experiment.METHOD else tmp_path
        for seed, value in reversed(list(enumerate(values))):
            test = {shot: {"mae": value} for shot in ("overall", "few")}
            result = dict(seed=seed, commit="", device="cpu", wall_seconds=1)
            common.keep(own, "concrete", method, "", result, test=test)
    every, few = experiment.table().splitlines()[2:]
    # Student's t of two degrees of freedom times 1 / √3: 4.3027 · 0.5774 = 2.484
    cells = "6.00 | 8.00 | 8.00 | +2.00 (−0.48 to 4.48) | +0.00 (−2.48 to 2.48)"
    assert every == f"| Concrete | all | {cells} |"
    assert few == f"| Concrete | few | {cells} |"


def test_what_leaks_is_asked_once_and_kept(tmp_path, monkeypatch):
    """Raw errors are those that train.py gives the same weights; kept runs are not done again."""
    experiment = load("benchmarks", "table_leak")
    load("uci-dir", "demo_data").main(["--out", str(tmp_path / "data"), "--rows", "300"])
    flags = f"--data_dir {tmp_path}/data --epoch 5"
    monkeypatch.setattr(experiment, "KEPT", tmp_path / "leak")
    monkeypatch.setattr(experiment, "prepare", lambda *args: None)
    monkeypatch.setattr(experiment, "SEEDS", range(1))
    cases = {"demo": {"VANILLA": flags, "FDS": f"{flags} --fds"}}
    monkeypatch.setattr(experiment, "CASES", cases)
    maes, real = [], experiment.trained

    @contextlib.contextmanager
    def watched(train, words):
        with real(train, words) as (run, results):
            weights = ["--eval_model", str(run / "ckpt.pth.tar"), "--device", "cpu"]
            places = ["--store_root", str(tmp_path / "evaluated")]
            metrics = train.main([*words.split(), "--evaluate", *weights, *places])
            maes.append(metrics["overall"]["mae"])
            yield run, results

    monkeypatch.setattr(experiment, "trained", watched)
    experiment.main()
    runs = [*experiment.evidence.runs_of_set(tmp_path / "leak", "demo")]
    plain, fds = (run["figures"] for run in runs)
    assert [line["test: raw"] for line in (plain, fds)] == pytest.approx(maes, rel=1e-5)
    assert "train: own label" not in plain
    assert abs(fds["r(shift, dealt)"]) <= 1
    assert fds["train: own label"] != fds["train: dealt label"] != fds["train: raw"]
    rows = experiment.table().splitlines()
    assert rows[2] == f"| Demo, VANILLA (1) | {plain['train: raw']:.2f} |  |  | {maes[0]:.2f} |  |"
    experiment.main()
    assert len(maes) == 2
    with open(tmp_path / "leak" / "demo.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(runs[0]) + "\n")
    with pytest.raises(ValueError, match="keep one of them"):
        experiment.table()


def test_experiments_prepare_their_sets_as_the_sweeps_do(tmp_path, monkeypatch):
    given = []
    prepare = SimpleNamespace(main=lambda words: given.append(words))
    train = SimpleNamespace(prepare=prepare)
    monkeypatch.chdir(tmp_path)
    common.prepare(train, "branco.toml", "Accel", 2)
    words = "--csv data/raw/branco/Accel.csv --target acceleration --missing 9999 --seed 2"
    assert given == [[*words.split(), "--data_dir", "./data/branco/seed_2"]]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "concrete.json").touch()
    common.prepare(train, "uci_dir.toml", "concrete", 0)
    assert len(given) == 1
