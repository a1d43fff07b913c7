"""Each block of Python in README.md, RECIPES.md and MIGRATING.md is taken out of it and run."""

import copy
import re
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from conftest import ROOT, load
from plain import PlainFDS

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# By page, the start of a heading and how many blocks stand under it.
EXPECTED = {
    "README.md": {"Use it": 3},
    "RECIPES.md": {
        "FDS": 1, "Float": 1, "Heavy": 1, "Gradient": 1, "Dense": 1, "Several": 1, "Lightning": 2,
    },
    "MIGRATING.md": {"Our `fds.py`": 2},
}  # fmt: skip
WINDOW = gaussian_filter1d(np.eye(5)[2], sigma=2)


def blocks(page):
    """Return {heading: [its blocks of Python]} of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    sections = re.split(r"^(##+ .+)$", text, flags=re.MULTILINE)[1:]
    found = {h.strip("# "): BLOCK.findall(body) for h, body in zip(sections[::2], sections[1::2])}
    return {heading: codes for heading, codes in found.items() if codes}


def codes_of(page, start):
    """Return the blocks of the one section whose heading begins so."""
    (codes,) = [codes for heading, codes in blocks(page).items() if heading.startswith(start)]
    return codes


CSV, LDS, FDS = codes_of("README.md", "Use it")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that runs a block where the files of the methods can be imported."""
    for name in ("fds", "moments", "lds", "loss", "buckets"):
        monkeypatch.setitem(sys.modules, name, load("agedb-dir", name))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def execute(code, names=None):
        names = {"__name__": "recipe"} if names is None else names
        exec(compile(code, "recipe", "exec"), names)
        return names

    return execute


@pytest.fixture
def float64():
    """Let torch make float64 tensors, so that a rule is met to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_every_block_is_run_here():
    for page, sections in EXPECTED.items():
        assert {start: len(codes_of(page, start)) for start in sections} == sections
        assert sum(map(len, blocks(page).values())) == sum(sections.values())


# ---- FDS against the rules -----------------------------------------------------------------


def train_plainly(extractor, regressor, data, live, calibrated, start=0):
    """Train by the rules of FDS, bucket by bucket in numpy; returns the plain FDS."""
    inputs, labels = data
    bucket = np.clip(np.floor(labels[:, 0].numpy()).astype(int), start, 99) - start
    plain = PlainFDS(100 - start, 16, WINDOW, live=live, calibrated=calibrated)
    optimizer = torch.optim.Adam([*extractor.parameters(), *regressor.parameters()])
    for epoch in range(5):
        for rows in torch.randperm(512).split(64):
            features = extractor(inputs[rows])
            # Calibration is affine in the features: read off at 0 and at 1.
            shift, top = (plain.smooth(np.full((64, 16), x), bucket[rows], epoch) for x in (0, 1))
            smoothed = features * torch.from_numpy(top - shift) + torch.from_numpy(shift)
            loss = (regressor(smoothed) - labels[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.end_epoch(extractor(inputs).detach().numpy(), bucket, epoch)
    return plain


def both_trainings(run, code, names_of_parts, data_names, **rules):
    """Run a recipe and the plain loop from one start; compare them, return the last weights.

    Args:
        run: the fixture.
        code: the recipe; its training begins at `for epoch`.
        names_of_parts: expressions for its extractor, last layer and FDS.
        data_names: its inputs and labels.
        rules: of `train_plainly`.
    """
    setup, begin, training = code.partition("for epoch in range(5):")
    names = run(setup)
    extractor, regressor, _ = (eval(part, names) for part in names_of_parts)
    plain_parts = copy.deepcopy((extractor, regressor))
    state = torch.get_rng_state()
    run(begin + training, names)
    torch.set_rng_state(state)
    plain = train_plainly(*plain_parts, [names[name] for name in data_names], **rules)
    for own, other in zip((extractor, regressor), plain_parts):
        for ours, theirs in zip(own.parameters(), other.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    module = eval(names_of_parts[2], names)
    for name, expected in {
        "running_mean": plain.mean, "running_var": plain.var,
        "running_mean_last_epoch": plain.m1, "running_var_last_epoch": plain.v1,
        "smoothed_mean_last_epoch": plain.m2, "smoothed_var_last_epoch": plain.v2,
    }.items():  # fmt: skip
        np.testing.assert_allclose(getattr(module, name), expected, rtol=1e-8, atol=1e-10)
    return regressor.weight.detach().clone()


PARTS_ALONE = {
    'variant="official"': dict(live=True, calibrated=True),
    'variant="paper"': dict(live=False, calibrated=False),
    'variant="paper", live_statistics=True': dict(live=True, calibrated=False),
    'variant="paper", calibrated_statistics=True': dict(live=False, calibrated=True),
}


def test_the_readmes_fds_follows_the_rules_of_both_variants(run, float64):
    parts = ("extractor", "regressor", "fds")
    ends = []
    for arguments, rules in PARTS_ALONE.items():
        assert FDS.count('variant="official"') == 1
        torch.manual_seed(0)
        code = FDS.replace('variant="official"', arguments)
        ends.append(both_trainings(run, code, parts, ("inputs", "labels"), **rules))
    # The comparison can tell the four from each other.
    for number, end in enumerate(ends):
        for other in ends[:number]:
            assert (end - other).abs().max() > 1e-5


def test_a_network_with_fds_inside_follows_the_official_rule(run, float64):
    parts = ("model.extractor", "model.regressor", "model.FDS")
    code = codes_of("RECIPES.md", "FDS")[0]
    both_trainings(run, code, parts, ("inputs", "labels"), live=True, calibrated=True)


def test_a_program_built_on_the_official_files_follows_the_official_rule(run, float64):
    """It returns raw features, collects them as arrays, and hands them back at once."""
    parts = ("model.extractor", "model.linear", "model.FDS")
    code = codes_of("MIGRATING.md", "Our `fds.py`")[0]
    rules = dict(live=True, calibrated=True, start=3)
    both_trainings(run, code, parts, ("inputs", "targets"), **rules)


def test_the_official_buckets_are_the_folders_and_the_bare_calls_warn(run):
    names = run(codes_of("MIGRATING.md", "Our `fds.py`")[1])
    depths, scores = torch.linspace(0.7, 10, 94_301), torch.linspace(0, 5, 50_001)
    for name, labels, folder, start in (
        ("depth", depths, "nyud2-dir", 7), ("sentences", scores, "sts-b-dir", 0),
    ):  # fmt: skip
        expected = load(folder, "datasets").label_to_bucket(labels) - start
        assert torch.equal(names[name].label_to_bucket(labels), expected)
    for labels, bare, found in (
        (depths[:-1], dict(bucket_num=100, bucket_start=7), "3 of 93"),
        (scores[:-1], dict(bucket_num=50, bucket_start=0), "5 of 50"),
    ):
        module = names["FDS"](feature_dim=2, **bare)
        with pytest.warns(UserWarning, match=f"fill {found} buckets: pass label_to_bucket"):
            module.update_running_stats(torch.randn(len(labels), 2), labels, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = names["FDS"](2, 100, 7, label_to_bucket=names["depth"].label_to_bucket)
        module.update_running_stats(torch.randn(len(depths), 2), depths, 0)


# ---- weights -------------------------------------------------------------------------------


def weights_by_hand(bucket, bins, root=True):
    """Return LDS's weights [N] from numpy alone, mean 1."""
    counts = np.bincount(bucket, minlength=bins).astype(float)
    padded = np.pad(np.sqrt(counts) if root else counts, 2)
    weights = 1 / np.convolve(padded, WINDOW / WINDOW.max(), mode="valid")[bucket]
    return weights / weights.mean()


def test_lds(run):
    names = run(LDS)
    np.testing.assert_allclose(names["weights"], weights_by_hand(names["bucket"], 100), rtol=1e-5)


@pytest.mark.parametrize("code", [CSV, codes_of("RECIPES.md", "Gradient")[0]], ids=["csv", "trees"])
def test_arrays_need_no_pytorch(code, tmp_path):
    """Both run where PyTorch cannot be imported, and give LDS's weights."""
    labels = np.random.default_rng(0).gamma(2.0, 900.0, 400)
    pd.DataFrame({"rooms": np.arange(400), "price": labels}).to_csv(tmp_path / "mine.csv")
    (tmp_path / "torch.py").write_text("raise ImportError('no PyTorch here')", encoding="utf-8")
    shutil.copy(ROOT / "agedb-dir/lds.py", tmp_path)
    code += "\nimport numpy as np; np.save('weights.npy', weights / weights.mean())"
    code += "\nnp.save('bucket.npy', bucket)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights, bucket = np.load(tmp_path / "weights.npy"), np.load(tmp_path / "bucket.npy")
    if "mine.csv" in code:
        written = pd.read_csv(tmp_path / "mine_weights.csv")["sample_weight"]
        np.testing.assert_allclose(written, weights)
    expected = weights_by_hand(bucket, 50 if "mine.csv" in code else 100)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_weights_help_gradient_boosting_as_the_recipe_says(run):
    code = codes_of("RECIPES.md", "Gradient")[0]
    assert code.count("default_rng(0)") == 1
    errors = []
    for seed in range(10):
        names = run(code.replace("default_rng(0)", f"default_rng({seed})"))
        X, y = names["X"], names["y"]
        plain = type(names["model"])().fit(X, y)
        rng, labels = np.random.default_rng(1000 + seed), np.linspace(0, y.max(), 2000)
        inputs = np.sin(labels[:, None] / [5, 10, 20, 40]) + 0.3 * rng.standard_normal((2000, 4))
        off = [np.abs(model.predict(inputs) - labels) for model in (plain, names["model"])]
        errors.append([part for error in off for part in (error.mean(), error[labels > 50].mean())])
    before, rare_before, after, rare_after = np.mean(errors, axis=0)
    text = " ".join((ROOT / "RECIPES.md").read_text(encoding="utf-8").split())
    said = re.search(r"error from ([\d.]+) to ([\d.]+)\. Above .*? from ([\d.]+) to ([\d.]+)", text)
    # Another release of scikit-learn, or another processor, may grow other trees.
    expected = (before, after, rare_before, rare_after)
    np.testing.assert_allclose([float(number) for number in said.groups()], expected, atol=0.3)


# ---- other labels --------------------------------------------------------------------------


def test_float_labels_and_quantiles(run):
    names = run(codes_of("RECIPES.md", "Float")[0])
    assert names["bucket"].tolist() == [5, 17, 20, 26, 39]
    train_labels = torch.from_numpy(names["train_labels"])
    module = names["quantile_fds"]
    assert torch.bincount(module.label_to_bucket(train_labels)).tolist() == [50] * 20
    module.update_running_stats(torch.randn(1000, 16), train_labels.float(), 0)
    assert (module.num_samples_tracked > 40).all()


def test_heavy_tails(run):
    names = run(codes_of("RECIPES.md", "Heavy")[0])
    price, weights = names["price"], names["weights"]
    edges = np.geomspace(price.min(), price.max(), 51)[1:-1]
    bucket = np.digitize(price, edges)
    np.testing.assert_allclose(weights, weights_by_hand(bucket, 50), rtol=1e-5)
    expected = [weights[bucket == number][0] for number in np.digitize([20, 2000], edges)]
    assert names["new"].tolist() == expected
    assert names["model"].predict(names["X"]).min() > 0
    assert names["fds"].label_to_bucket(torch.from_numpy(price)).tolist() == bucket.tolist()


def test_lightning_calls_fds_in_order(run, monkeypatch):
    """Its hooks are called by hand: the package is not among the requirements."""
    module = types.ModuleType("lightning")
    module.LightningModule = torch.nn.Module
    monkeypatch.setitem(sys.modules, "lightning", module)
    model = run(codes_of("RECIPES.md", "Lightning")[0])["Network"]()
    optimizer = model.configure_optimizers()
    labels = 100 * torch.rand(64, 1)
    batch = torch.randn(64, 8), labels, torch.ones(64, 1)
    for model.current_epoch in range(3):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
        model.on_train_epoch_end()
    assert model.FDS.num_samples_tracked.sum() == 3 * 64
    assert int(model.FDS.epoch) == 2


def test_transformers_trainer_updates_fds(run):
    names = run(codes_of("RECIPES.md", "Lightning")[1])
    module = names["trainer"].model.FDS
    assert module.num_samples_tracked.sum() == 3 * 256
    assert int(module.epoch) == 2
    bucket = names["labels"].long()[:, 0]
    counted = torch.bincount(bucket, minlength=100)
    assert torch.equal(module.num_samples_tracked.cpu() / 3, counted.float())


def test_a_csv_whose_labels_are_no_numbers_is_refused(run, tmp_path):
    prices = [str(price) for price in range(500)]
    prices[7] = "unknown"
    pd.DataFrame({"price": prices}).to_csv(tmp_path / "mine.csv")
    assert len(run(CSV)["table"]) == 499
    pd.DataFrame({"price": [f"{price:,.2f}" for price in range(900, 1100)]}).to_csv("mine.csv")
    with pytest.raises(ValueError, match=r"100 of 200 labels are no numbers.*'1,000\.00'"):
        run(CSV)


def test_dense(run):
    names = run(codes_of("RECIPES.md", "Dense")[0])
    assert names["smoothed"].shape == names["features"].shape
    assert names["rows"].shape == (int(names["measured"].sum()), 16)
    # Rows and maps are calibrated alike.
    chosen = names["smoothed"].permute(0, 2, 3, 1)[names["measured"]]
    torch.testing.assert_close(names["rows"], chosen)
    weights = weights_by_hand(names["bucket"].flatten(), 93, root=False).reshape(2, 1, 12, 9)
    error = (names["preds"] - names["depth"]).square().detach() * torch.from_numpy(weights)
    assert names["loss"].item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_several_targets(run):
    names = run(codes_of("RECIPES.md", "Several")[0])
    bucket, window, joint_weights = names["bucket"], names["window"], names["joint_weights"]
    for t in range(2):
        expected = weights_by_hand(bucket[:, t], 20, root=False)
        np.testing.assert_allclose(names["weights"][:, t], expected, rtol=1e-5)
    # Of two samples with one bucket in the first target, the joint weights tell the second apart.
    first = np.bincount(bucket[:, 0], minlength=20).argmax()
    assert np.unique(joint_weights[bucket[:, 0] == first]).size > 5
    counts = np.histogram2d(*bucket.T, bins=20, range=[(0, 20)] * 2)[0]
    padded, own = np.pad(counts, 2), np.outer(window, window)
    i, j = bucket[0]
    density = (padded[i : i + 5, j : j + 5] * own).sum()
    assert names["joint"][i, j] == pytest.approx(density)
    error = (torch.cat(names["preds"], dim=1) - names["labels"]).square().detach().numpy()
    expected = (error * joint_weights[:, None]).mean()
    assert names["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_four_files_in_a_folder_of_their_own_are_enough(tmp_path):
    for name in ("fds", "moments", "lds", "loss"):
        shutil.copy(ROOT / "agedb-dir" / f"{name}.py", tmp_path)
    code = "\n".join((LDS, FDS, codes_of("RECIPES.md", "Dense")[0]))
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_recipes_are_as_short_as_it_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "LDS in six lines" in text
    assert "a loop of twelve lines" in text
    lds = [line for line in LDS.splitlines() if line and "import numpy" not in line]
    loop = FDS[FDS.index("for epoch in") : FDS.index("preds = regressor(extractor(inputs))")]
    assert (len(lds), len(loop.splitlines())) == (6, 12)
    for page in EXPECTED:
        for codes in blocks(page).values():
            for line in "\n".join(codes).splitlines():
                assert len(line) <= 100, line
