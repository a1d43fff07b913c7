"""Your own target: buckets, the record that a run takes from its flags, weights in one call."""

import argparse
import copy
import json
import pickle
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load
from tiny_run import TinyNet

buckets = load("agedb-dir", "buckets")
target = load("agedb-dir", "target")
lds = load("agedb-dir", "lds")
datasets = load("agedb-dir", "datasets")
fds = load("agedb-dir", "fds")


def flags(text, benchmark=datasets.AGE):
    """The target that a command line's flags make."""
    parser = argparse.ArgumentParser()
    target.add_target(parser.add_argument, benchmark)
    args = parser.parse_args(text.split())
    target.check_target(parser, args, benchmark)
    return benchmark.of(args)


# ---- buckets -------------------------------------------------------------------------------


def test_log_buckets_have_edges_of_one_ratio():
    ours = buckets.log_buckets(1, 10_000, 8)
    np.testing.assert_allclose(ours.edges, 10 ** (np.arange(8) / 2), rtol=1e-6)
    assert ours([0.5, 1, 3.1, 3.2, 99, 100, 9_999, 1e6]).tolist() == [0, 0, 0, 1, 3, 4, 7, 7]


def test_symlog_buckets_are_symmetric_and_take_zero():
    ours = buckets.symlog_buckets(-99, 99, 4)
    np.testing.assert_allclose(ours.edges, [-99, -9, 0, 9], atol=1e-5)
    assert ours(np.array([-50, -9, -1, 0, 5, 9, 80])).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_quantile_buckets_with_ties_are_all_filled():
    labels = np.repeat([0, 1, 2, 3], 250)
    ours = buckets.quantile_buckets(labels, 7)
    assert np.bincount(ours(labels)).tolist() == [250] * 4
    spread = np.random.default_rng(0).gamma(2, 10, 1000)
    assert np.bincount(buckets.quantile_buckets(spread, 20)(spread)).tolist() == [50] * 20


@pytest.fixture
def as_in_a_program(monkeypatch):
    """The folder's modules under their own names, as where its programs run."""
    modules = (buckets, buckets.Buckets), (fds, fds.FDS), (lds, lds.SampleWeights)
    for module, known in modules:
        monkeypatch.setitem(sys.modules, known.__module__, module)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_buckets_keep_shape_and_kind_and_can_be_pickled(as_in_a_program, kind):
    labels = kind([[0.1, 0.3], [0.7, 5.0]])
    ours = pickle.loads(pickle.dumps(buckets.Buckets(np.arange(10) / 10)))
    found = ours(labels)
    # In float32, as training has labels: 0.3 and 0.7 are the edges themselves.
    assert type(found) is type(labels)
    assert found.tolist() == [[1, 3], [7, 9]]


@pytest.mark.parametrize("edges", [[], [1.0, 1.0], [1e9, 1e9 + 1]])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(ValueError, match="must rise"):
        buckets.Buckets(edges)


def test_a_network_with_log_buckets_is_saved_whole(as_in_a_program, tmp_path):
    module = fds.FDS(3, 8, ks=3, label_to_bucket=buckets.log_buckets(1, 1e4, 8))
    torch.save(module, tmp_path / "module.pt")
    back = torch.load(tmp_path / "module.pt", weights_only=False)
    assert back.label_to_bucket(torch.tensor([2.0, 200.0])).tolist() == [0, 4]


# ---- weights in one call -------------------------------------------------------------------


def test_lds_weights_are_those_of_the_steps_by_hand(as_in_a_program):
    labels = np.random.default_rng(0).lognormal(4, 1.5, 2000)
    weights = lds.lds_weights(labels, bins=30, scale="log", reweight="inverse", lds_ks=3)
    edges = np.geomspace(labels.min(), labels.max(), 31)[1:-1]
    bucket = np.digitize(labels, edges)
    counts = np.bincount(bucket, minlength=30)
    by_hand = 1 / np.convolve(counts, lds.get_lds_kernel_window("gaussian", 3, 2), "same")[bucket]
    np.testing.assert_allclose(weights, by_hand / by_hand.mean(), rtol=1e-5)
    np.testing.assert_array_equal(weights.transform(labels[:50]), weights[:50])
    assert weights.transform([-1, 1e9]).tolist() == [*weights[[labels.argmin(), labels.argmax()]]]
    for again in (pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights)):
        np.testing.assert_array_equal(again.transform(labels), weights)
    assert type(2 * weights) is np.ndarray  # whose transform would give the weights before
    assert isinstance(weights.mean(), np.floating)
    with pytest.raises(ValueError, match="must be finite"):
        weights.transform([1.0, np.nan])


def test_lds_weights_refuse_labels_without_a_logarithm():
    with pytest.raises(ValueError, match="symlog"):
        lds.lds_weights([0.0, 1.0, 2.0], scale="log")
    with pytest.raises(ValueError, match="finite"):
        lds.lds_weights([1.0, float("nan")])


# ---- the record ----------------------------------------------------------------------------


def test_the_benchmarks_target_is_as_it_was():
    age = flags("")
    assert age == datasets.AGE
    ages = np.float32([0, 0.9, 1, 119.9, 120, 186, 200])
    assert datasets.label_to_bucket(ages).tolist() == [0, 0, 1, 119, 120, 120, 120]
    assert age.edges.tolist() == list(range(121))
    assert age.edges.dtype.kind == "i"
    assert age.record == {"name": "age", "unit": "years"}
    labels = torch.tensor([[3.0]])
    assert age.scaled(labels) is labels
    assert age.unscaled(ages) is ages


def test_your_own_range_has_fifty_buckets_and_its_own_words():
    price = flags("--target price --low 0 --high 1500")
    assert price.words == "price"
    assert len(price.buckets) == 50
    assert price.buckets([0, 29.9, 30, 1500]).tolist() == [0, 0, 1, 49]
    assert price.outside([-0.1, 0, 1500, 1501, float("nan")]).tolist() == [1, 0, 0, 1, 1]
    assert flags("--high 150 --bin_width 1 --unit months").words == "age (months)"
    assert flags("--many 5 --few 2").shots_of_counts(np.array([6, 5, 2, 1])).tolist() == [
        "many", "medium", "medium", "few",
    ]  # fmt: skip


@pytest.mark.parametrize(("scale", "low"), [("linear", -2), ("log", 0.5), ("symlog", -2)])
def test_what_the_network_learns_spans_a_hundred_and_comes_back(scale, low):
    own = flags(f"--target x --low {low} --high 1500 --scale {scale}")
    labels = torch.linspace(low, 1500, 200, dtype=torch.float64)
    scaled = own.scaled(labels)
    assert torch.allclose(scaled[[0, -1]], torch.tensor([0.0, 100.0], dtype=torch.float64))
    np.testing.assert_allclose(own.unscaled(scaled.numpy()), labels.numpy(), rtol=1e-9, atol=1e-9)
    # Each bucket is as wide as the others in what the network learns.
    edges = own.scaled(torch.from_numpy(own.edges))
    np.testing.assert_allclose(np.diff(edges.numpy()), 2.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--low 5 --high 5", "must be below"), ("--scale log", "--scale symlog takes zeros"),
        ("--bin_width 0", "must be above 0"), ("--bin_width 1e-9", "at most 10000"),
        ("--target path", "--target path is another column's name"),
        ("--high nan", "must be below"), ("--few 300", "--many 100"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_used_end_with_what_helps(text, message, capsys):
    with pytest.raises(SystemExit):
        flags(text)
    assert message in capsys.readouterr().err


OPTIONS = {"lds": False, "fds": False, "lds_ks": 5, "fds_ks": 5, "reweight": "inverse"}


def options(**given):
    """Flags of LDS and FDS."""
    return argparse.Namespace(**{**OPTIONS, **given})


def test_labels_in_one_bucket_are_refused_by_lds_and_fds_and_warned_of_else(caplog):
    labels = np.random.default_rng(0).random(500)
    counts = datasets.label_counts(labels)
    ones = np.ones(len(counts))
    for method in ("lds", "fds"):
        with pytest.raises(ValueError, match=r"fill 1 of 121 buckets of age.*--bin_width"):
            target.check_counts(datasets.AGE, counts, options(**{method: True}), ones, labels)
    target.check_counts(datasets.AGE, counts, options(), ones, labels)
    assert "--low, --high and --bin_width" in caplog.text
    # Five grades fill no more than five buckets, however fine these are.
    grades = np.repeat(np.arange(5), 9)
    counts = datasets.label_counts(grades)
    target.check_counts(datasets.AGE, counts, options(lds=True), ones, grades)


def test_labels_of_a_small_part_of_the_range_are_named():
    scores = load("sts-b-dir", "pair_file").SIMILARITY
    said = scores.narrow(np.linspace(0, 1, 60))
    assert "0 to 1, less than a quarter of the range 0 to 5 (--low" in said
    assert not scores.narrow(np.linspace(2, 3.25, 60))  # a quarter
    decades = scores._replace(low=1, high=1e4, scale="log", own=True)
    assert decades.narrow([1.0, 9.0])
    assert not decades.narrow([1.0, 11.0])


def test_labels_from_0_to_1_call_for_another_range(capsys):
    held_out = load("agedb-dir", "held_out")
    labels = np.linspace(0, 1, 300)
    args = argparse.Namespace(max_held_out=0.4)
    held_out.describe_split(datasets.AGE, labels, np.repeat(["train", "val", "test"], 100), args)
    told = capsys.readouterr().out
    assert "--low and --high give another range" in told
    assert "--bin_width" not in told


def test_a_heavy_tail_is_named(caplog):
    labels = np.minimum(np.random.default_rng(0).lognormal(2, 1.5, 5000), 1500)
    price = flags("--target price --low 0 --high 1500")
    counts = datasets.label_counts(labels, price)
    weights = lds.bucket_weights(lds.label_density(counts, "inverse"), counts)
    target.check_counts(price, counts, options(), weights, labels)
    assert "one bucket holds" in caplog.text
    assert "--scale log" in caplog.text
    assert "largest weight" in caplog.text
    assert "--reweight sqrt_inv" in caplog.text
    # A flag that is set already is no advice.
    caplog.clear()
    price = flags("--target price --low 1 --high 1500 --scale log --bin_width 3")
    counts, weights = np.array([4000, *[10] * 11]), np.full(12, 60.0)
    target.check_counts(price, counts, options(reweight="sqrt_inv"), weights, labels)
    assert "one bucket holds" in caplog.text
    assert "wider buckets" in caplog.text
    assert "--scale log" not in caplog.text
    assert "--reweight" not in caplog.text


# ---- photos, from files to results ---------------------------------------------------------


def make_photos(folder, labels, name):
    """Write small pictures whose brightness follows the label's rank, and their table."""
    rng = np.random.default_rng(0)
    ranks = np.argsort(np.argsort(labels)) / len(labels)
    rows = []
    for number, (label, rank) in enumerate(zip(labels, ranks)):
        pixels = np.clip(rng.normal(40 + 170 * rank, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((label, f"{number}.png"))
    pd.DataFrame(rows, columns=[name, "path"]).to_csv(folder / "given.csv", index=False)


RNG = np.random.default_rng(1)
PHOTOS = {
    "share": (RNG.beta(2, 5, 240), "--low 0 --high 1"),
    "temperature": (np.clip(RNG.normal(3, 4, 240), -2, 16), "--unit °C --low -2 --high 16"),
    "rent": (1500 * RNG.beta(2, 5, 240), "--unit EUR --low 0 --high 1500 --bin_width 50"),
    "price": (RNG.lognormal(5, 1, 240), "--low 5 --high 5000 --scale log"),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_with_labels_of_any_range(name, tmp_path, monkeypatch, capsys):
    labels, words = PHOTOS[name]
    make_photos(tmp_path, labels, name)
    own = ["--target", name, *words.split()]
    words = ["--data_dir", str(tmp_path), "--dataset", "own"]
    table = ["--meta", f"{tmp_path}/given.csv"]
    assert load("agedb-dir", "prepare").main([*own, *words, *table]) == 0
    told = capsys.readouterr().out
    assert "--max_held_out 0.4" in told
    assert "fewer than 100 test samples" in told
    meta = pd.read_csv(tmp_path / "own.csv")
    assert list(meta) == [name, "path", "split"]
    assert (meta["split"] != "train").mean() <= 0.4

    train = load("agedb-dir", "train")
    monkeypatch.setattr(train, "AgeResNet", lambda name, module, fresh: TinyNet(module))
    monkeypatch.setattr(train, "feature_dim_of", lambda name: 8)
    words += "--reweight inverse --lds --fds --img_size 8 --batch_size 64 --epoch 3".split()
    words += ["--store_root", str(tmp_path / "runs"), "--cache", "none", "--track", "none"]
    words += ["--device", "cpu", "--workers", "1"]
    if name != "price":  # one set of figures will do
        monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    train.main([*own, *words])
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["target"]["name"] == name
    density = pd.read_csv(folder / "label_density.csv")
    assert density["emp_label_dist"].tolist() == density["count"].tolist()  # within no bounds
    assert (density["eff_label_dist"] % 1 > 0.1).any()
    assert density["weight"].max() > 1.2 * density["weight"].min()
    assert density["count"].sum() == (meta["split"] == "train").sum()
    assert len(np.load(folder / "fds_statistics.npz")["label"]) == len(density)
    told = pd.read_csv(folder / "predictions.csv")
    error = (told["prediction"] - told["label"]).abs()[told["split"] == "test"].mean()
    assert results["metrics"]["test"]["overall"]["mae"] == pytest.approx(error, rel=1e-4)
    # An evaluation takes the target from the checkpoint; only the column's file is to be named.
    again = train.main(["--evaluate", "--eval_model", f"{folder}/ckpt.best.pth.tar", *words])
    assert again["overall"]["mae"] == pytest.approx(results["metrics"]["test"]["overall"]["mae"])
    predict = load("agedb-dir", "predict")
    monkeypatch.setattr(predict.train, "AgeResNet", lambda name, module, fresh: TinyNet(module))
    model = predict.load(folder, "cpu")
    test = told[told["split"] == "test"]
    new = model.predict([tmp_path / path for path in test["path"]])
    np.testing.assert_allclose(new["prediction"], test["prediction"], rtol=1e-3, atol=1e-3)


def test_labels_outside_the_range_are_refused_with_what_helps(tmp_path):
    make_photos(tmp_path, np.linspace(-2, 16, 12), "age")
    words = ["--data_dir", str(tmp_path), "--dataset", "own", "--meta", f"{tmp_path}/given.csv"]
    with pytest.raises(ValueError, match=r"line 2 has age -2.*--low and --high.*from -2 to 16"):
        load("agedb-dir", "prepare").main(words)


# ---- pairs, from files to results ----------------------------------------------------------


WORDS = "red blue green small large old new cat dog bird house tree runs sits sleeps".split()
PAIRS = {
    "overlap": ("--low 0 --high 1", 1.0, "csv"),
    "grade": ("--low 1 --high 5 --many 9 --few 4", 4.0, "tsv"),
    "percent": ("--unit % --low 0 --high 100", 100.0, "csv"),
}


def make_pairs(file, name, low, span):
    """Write pairs of sentences whose score follows how many words they share."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(240):
        first = rng.choice(WORDS, 6, replace=False)
        shared = int(rng.choice(7, p=np.array([1, 1, 2, 4, 8, 6, 2]) / 24))
        others = rng.permutation([word for word in WORDS if word not in first])
        score = low + span * (shared / 6 * 0.9 + 0.1 * rng.random())
        rows.append((" ".join(first), " ".join([*first[:shared], *others[: 6 - shared]]), score))
    table = pd.DataFrame(rows, columns=["sentence1", "sentence2", name])
    table.to_csv(file, index=False, sep="," if file.suffix == ".csv" else "\t")


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_with_scores_of_any_range(name, tmp_path, monkeypatch, capsys):
    words, span, kind = PAIRS[name]
    own = ["--target", name, *words.split()]
    make_pairs(tmp_path / f"given.{kind}", name, float(words.split("--low ")[1].split()[0]), span)
    words = ["--data_dir", str(tmp_path / "split")]
    table = ["--meta", str(tmp_path / f"given.{kind}"), "--max_held_out", "0.5"]
    assert load("sts-b-dir", "prepare").main([*own, *words, *table]) == 0

    train = load("sts-b-dir", "train")
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    words += "--glove 0 --d_word 8 --d_hid 8 --n_layers_enc 1 --lr 1e-2 --batch_size 32".split()
    words += "--reweight inverse --lds --fds --val_interval 20 --max_vals 3 --device cpu".split()
    words += ["--store_root", str(tmp_path / "runs"), "--track", "none"]
    train.main([*own, *words])
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["target"]["name"] == name
    density = pd.read_csv(folder / "label_density.csv")
    assert density["emp_label_dist"].tolist() == density["count"].tolist()  # within no bounds
    assert (density["eff_label_dist"] % 1 > 0.1).any()
    many, few = (9, 4) if name == "grade" else (100, 20)
    expected = np.select(
        [density["count"] > many, density["count"] < few], ["many", "few"], "medium"
    )
    assert density["shot"].tolist() == expected.tolist()
    told = pd.read_csv(folder / "predictions.csv")
    told = told[told["split"] == "test"]
    error = told["prediction"] - told["label"]
    assert results["metrics"]["test"]["overall"]["mse"] == pytest.approx(
        (error**2).mean(), rel=1e-4
    )
    assert (error**2).mean() < told["label"].var() * 1.5  # in the unit of the scores
    model = load("sts-b-dir", "predict").load(folder, "cpu")
    new = model.predict(told[["sentence1", "sentence2"]].itertuples(index=False, name=None))
    np.testing.assert_allclose(new["prediction"], told["prediction"], rtol=1e-3)
    shots = dict(zip(density.index, density["shot"]))
    bucket = np.searchsorted(np.float32(density["label"][1:]), np.float32(told["label"]), "right")
    few = np.array([shots[number] for number in bucket]) == "few"
    assert results["metrics"]["test"]["few"]["num_samples"] == few.sum()
    asked = [("red cat runs", "blue cat runs")]
    expected = model.predict(asked)["prediction"].item()
    (folder / "results.json").unlink()  # as of a run that was killed
    killed = load("sts-b-dir", "predict").load(folder, "cpu")
    assert killed.predict(asked)["prediction"].item() == expected
    (tmp_path / "new.csv").write_text("sentence1,sentence2\nred cat,\nred cat,blue cat\n")
    command = [str(tmp_path / "new.csv"), "--model", str(folder), "--out", f"{tmp_path}/out.csv"]
    assert load("sts-b-dir", "predict").main(command) == 1
    assert len(pd.read_csv(tmp_path / "out.csv")) == 1
    assert f"{command[0]}, line 2: it has an empty sentence" in capsys.readouterr().err


def test_shots_of_pairs_are_fixed_for_the_official_counts_only():
    pair_file = load("sts-b-dir", "pair_file")
    metrics = load("sts-b-dir", "metrics")
    args = argparse.Namespace(bucket_num=50)
    rng = np.random.default_rng(0)
    for splits, fixed in ((pair_file.OFFICIAL, True), ({**pair_file.OFFICIAL, "train": 99}, False)):
        names = np.repeat(list(splits), list(splits.values()))
        pairs = pd.DataFrame({"split": names, "label": rng.uniform(0, 5, len(names))})
        rule, edges = metrics.rule_of(args, pairs, pair_file.SIMILARITY)
        assert (rule.counts is None) == fixed
        assert len(edges) == 51


# ---- depth maps ----------------------------------------------------------------------------


def test_a_ray_along_a_wall_meets_the_one_ahead():
    """Of three rows the middle one looks level: a part of its rays is 0."""
    rooms = load("nyud2-dir", "demo/rooms")
    scene = rooms.make_scene(np.random.default_rng(0))
    axes = np.float32([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, depth = rooms.render(scene, (scene.size / 2, axes), height=3)
    assert np.isfinite(image).all()
    assert ((depth > 0) & (depth <= 10)).all()
