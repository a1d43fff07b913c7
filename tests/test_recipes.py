"""The root README's recipes: each block of Python is taken out of it and run."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, load

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def blocks():
    """Return {heading: [its blocks of Python]} of the root README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^(##+ .+)$", text, flags=re.MULTILINE)[1:]
    found = {h.strip("# "): BLOCK.findall(body) for h, body in zip(sections[::2], sections[1::2])}
    return {heading: codes for heading, codes in found.items() if codes}


def codes_of(start):
    """Return the blocks of the one section whose heading begins so."""
    (codes,) = [codes for heading, codes in blocks().items() if heading.startswith(start)]
    return codes


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that runs a block where the three files can be imported."""
    for name in ("fds", "loss", "utils"):
        monkeypatch.setitem(sys.modules, name, load("agedb-dir", name))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def execute(code):
        names = {"__name__": "recipe"}
        exec(compile(code, "README.md", "exec"), names)
        return names

    return execute


def test_every_block_is_run_here():
    expected = {"LDS": 1, "FDS": 1, "Float": 1, "From a CSV": 2, "Dense": 1, "Several": 1}
    assert {start: len(codes_of(start)) for start in expected} == expected
    assert sum(map(len, blocks().values())) == sum(expected.values())


def test_lds(run):
    names = run(codes_of("LDS")[0])
    assert names["weights"].mean() == pytest.approx(1)
    assert np.isfinite(names["weights"]).all()
    # The gradient of each prediction of 0 is -2 · weight · label / N.
    expected = -2 * names["weights"] * names["labels"] / 1000
    np.testing.assert_allclose(names["preds"].grad[:, 0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_fds(run):
    names = run(codes_of("FDS")[0])
    module = names["model"].FDS
    assert int(module.epoch) == 2
    assert module.num_samples_tracked.sum() == 3 * 512
    features = names["features"]
    assert module.smooth(features, names["labels"], 0) is features
    assert not torch.allclose(module.smooth(features, names["labels"], 3), features)
    assert names["preds"].shape == (512, 1)


def test_float_labels_and_quantiles(run):
    names = run(codes_of("Float")[0])
    assert names["bucket"].tolist() == [5, 17, 20, 26, 39]
    train_labels = torch.from_numpy(names["train_labels"])
    counts = torch.bincount(names["quantile_fds"].label_to_bucket(train_labels))
    assert counts.tolist() == [50] * 20
    module = names["quantile_fds"]
    module.update_running_stats(torch.randn(1000, 16), train_labels.float(), 0)
    assert (module.num_samples_tracked > 40).all()


@pytest.mark.parametrize("number", [0, 1])
def test_arrays_need_no_pytorch(number, tmp_path):
    """Both run where PyTorch cannot be imported, and give LDS's weights."""
    labels = np.random.default_rng(0).gamma(2.0, 900.0, 400)
    pd.DataFrame({"rooms": np.arange(400), "price": labels}).to_csv(tmp_path / "mine.csv")
    (tmp_path / "torch.py").write_text("raise ImportError('no PyTorch here')", encoding="utf-8")
    code = codes_of("From a CSV")[number]
    code += "\nimport numpy as np; np.save('weights.npy', weights / weights.mean())"
    code += "\nnp.save('bucket.npy', bucket)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights, bucket = np.load(tmp_path / "weights.npy"), np.load(tmp_path / "bucket.npy")
    if number == 0:
        np.testing.assert_allclose(
            pd.read_csv(tmp_path / "mine_weights.csv")["sample_weight"], weights
        )
    padded = np.pad(np.sqrt(np.bincount(bucket)), 2)
    window = load("agedb-dir", "utils").get_lds_kernel_window("gaussian", 5, 2)
    expected = 1 / np.convolve(padded, window, mode="valid")[bucket]
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-10)


def test_weights_help_gradient_boosting_where_labels_are_rare(run):
    names = run(codes_of("From a CSV")[1])
    X, y = names["X"], names["y"]
    plain = type(names["model"])().fit(X, y)
    rng, labels = np.random.default_rng(1), np.linspace(0, y.max(), 2000)
    inputs = np.sin(labels[:, None] / [5, 10, 20, 40]) + 0.3 * rng.standard_normal((2000, 4))
    rare = labels > 50
    errors = [np.abs(model.predict(inputs) - labels) for model in (plain, names["model"])]
    assert errors[1].mean() < errors[0].mean()
    assert errors[1][rare].mean() < errors[0][rare].mean() - 1


def test_dense(run):
    names = run(codes_of("Dense")[0])
    assert names["smoothed"].shape == names["features"].shape
    assert names["rows"].shape == (int(names["measured"].sum()), 16)
    # Rows and maps are calibrated alike.
    chosen = names["smoothed"].permute(0, 2, 3, 1)[names["measured"]]
    torch.testing.assert_close(names["rows"], chosen)
    error = (names["preds"] - names["depth"]).square() * names["weights"]
    torch.testing.assert_close(names["loss"], error.mean() / names["weights"].mean())


def test_several_targets(run):
    names = run(codes_of("Several")[0])
    weights, joint_weights = names["weights"], names["joint_weights"]
    assert weights.shape == (1000, 2)
    assert joint_weights.shape == (1000,)
    # Of two samples with one bucket in the first target, the joint weights tell the second apart.
    bucket, window = names["bucket"], names["window"]
    first = np.bincount(bucket[:, 0], minlength=20)
    np.testing.assert_allclose(np.unique(weights[bucket[:, 0] == first.argmax(), 0]).size, 1)
    assert np.unique(joint_weights[bucket[:, 0] == first.argmax()]).size > 5
    counts = np.histogram2d(*bucket.T, bins=20, range=[(0, 20)] * 2)[0]
    padded, own = np.pad(counts, 2), np.outer(window, window)
    i, j = bucket[0]
    density = (padded[i : i + 5, j : j + 5] * own).sum()
    assert names["joint"][i, j] == pytest.approx(density)
    error = (torch.cat(names["preds"], dim=1) - names["labels"]).square().detach().numpy()
    expected = (error * joint_weights[:, None]).mean()
    assert names["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_three_files_in_a_folder_of_their_own_are_enough(tmp_path):
    for name in ("fds", "loss", "utils"):
        shutil.copy(ROOT / "agedb-dir" / f"{name}.py", tmp_path)
    code = "\n".join(codes_of(start)[0] for start in ("LDS", "FDS", "Dense"))
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lines_of_the_recipes_are_short():
    for codes in blocks().values():
        for line in "\n".join(codes).splitlines():
            assert len(line) <= 100, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:\]\(|src=\")(?!https?://)([^)\"#]+)", text):
        assert (ROOT / target).exists(), target


def test_the_citation_file_is_read_by_its_readers():
    import yaml  # comes with accelerate

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["preferred-citation"]["year"] == 2021
