"""The page that benchmarks/bench.py writes."""

import sys
from types import SimpleNamespace

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
