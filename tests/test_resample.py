"""SMOTER and SMOGN against plain loops of the published algorithms, and in runs of the folders."""

import json
import math
import subprocess
import tracemalloc
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch

import contract
import test_uci_train as uci
from conftest import load

resample = load("uci-dir", "resample")
relevance = load("uci-dir", "relevance")
rows_of = load("uci-dir", "synthetic_rows")
columns_of = load("uci-dir", "columns")
datasets, train = uci.datasets, uci.train
METHODS = ("smoter", "smogn")


def options(method, **changed):
    """The flags that `draw` reads."""
    flags = {
        "resample": method, "relevance": "extremes", "relevance_threshold": 0.5, "k_neighbors": 5,
        "perturbation": 0.02, "oversample": "balance", "undersample": False, "seed": 3,
    }  # fmt: skip
    return Namespace(**flags | changed)


@pytest.fixture(scope="module")
def mixed_table():
    """Inputs of numbers, one with missing cells, and categories; skewed labels; their columns."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(400, 3)) * (1, 50, 0.01), columns=list("abc"))
    frame.loc[rng.random(400) < 0.1, "b"] = np.nan
    frame["kind"] = rng.choice(["x", "y", "z"], 400)
    labels = np.exp(rng.normal(size=400)) * 10
    fitted, _ = columns_of.fit_columns(frame, np.ones(400, dtype=bool))
    inputs, _ = columns_of.encode(frame, fitted)
    return inputs, labels, fitted


# ---- plain loops ---------------------------------------------------------------------------


def plain_distance(one, other, inputs):
    """HEOM of two encoded rows a, b, mark of b, c, kind (one-hot of 3), number by number."""
    total = 0.0
    for column in (0, 1, 3):
        reach = inputs[:, column].max() - inputs[:, column].min()
        total += ((one[column] - other[column]) / reach) ** 2
    total += float(one[2] != other[2])
    total += float(list(one[4:]) != list(other[4:]))
    return math.sqrt(total)


def plain_regions(labels, threshold):
    """Runs of rare labels by rising label: whiskers at 1.5 quartile distances, PCHIP by hand."""
    ordered = sorted(labels)
    low, high = np.quantile(labels, [0.25, 0.75])
    inside = [y for y in ordered if low - 1.5 * (high - low) <= y <= high + 1.5 * (high - low)]
    median = np.median(labels)
    ends = {inside[0]: inside[0] > ordered[0], inside[-1]: inside[-1] < ordered[-1]}

    def relevant(y):
        (left, at_left), (right, at_right) = ends.items()
        end, height = (left, at_left) if y < median else (right, at_right)
        u = min((y - median) / (end - median), 1)
        return height * (3 * u**2 - 2 * u**3)

    found, run = [], []
    for number in sorted(range(len(labels)), key=lambda i: labels[i]):
        if relevant(labels[number]) >= threshold:
            run.append(number)
        elif run:
            found.append(run)
            run = []
    return [*found, run] if run else found


@pytest.mark.parametrize("method", METHODS)
def test_each_synthetic_row_follows_the_published_algorithm(mixed_table, method):
    inputs, labels, fitted = mixed_table
    args = options(method)
    regions = plain_regions(labels, 0.5)
    scale, categories = rows_of.distance_of(inputs, fitted)
    found, stay = resample.draw(labels, None, lambda r: inputs[r] / scale, args, categories)
    assert stay.tolist() == list(range(400))
    args.preparation = {"columns": fitted}
    made, targets = rows_of.with_synthetic_rows(inputs, labels, None, args)
    np.testing.assert_array_equal(made[:400], inputs)
    np.testing.assert_array_equal(targets[:400], labels)
    made, targets = made[400:], targets[400:]
    size = round(400 / (len(regions) + 1))  # rare ones at the ends, a frequent one between
    assert len(made) == sum(max(size - len(region), 0) for region in regions) > 50
    home = {number: region for region in regions for number in region}
    noisy, all_z = 0, []
    for i, (new, y) in enumerate(zip(made, targets)):
        seed, partner = int(found.seeds[i]), int(found.partners[i])
        region = home[seed]
        others = sorted(
            (plain_distance(inputs[seed], inputs[j], inputs), j) for j in region if j != seed
        )
        assert partner in [j for _, j in others[:5]]
        between = plain_distance(inputs[seed], inputs[partner], inputs)
        limit = np.median([0.0, *(d for d, _ in others)]) / 2
        is_noise = method == "smogn" and not between < limit
        noisy += is_noise
        # Categories, the mark among them, come whole from the two.
        parents = inputs[[seed]] if is_noise else inputs[[seed, partner]]
        assert list(new[4:]) in parents[:, 4:].tolist()
        assert new[2] in parents[:, 2]
        a, b = inputs[seed], inputs[partner]
        if is_noise:
            deviations = inputs[region].std(axis=0)[[0, 1, 3]] * min(limit, 0.02)
            z = (new - a)[[0, 1, 3]] / deviations
            all_z.extend(z)
            spread = labels[region].std() * min(limit, 0.02)
            assert abs(y - labels[seed]) < 5 * spread
        else:
            ways = [(new[c] - a[c]) / (b[c] - a[c]) for c in (0, 1, 3) if abs(b[c] - a[c]) > 0.1]
            np.testing.assert_allclose(ways, ways[0], atol=1e-4)  # one draw for all numbers
            assert 0 <= ways[0] <= 1
            to_seed, to_partner = (plain_distance(new, parent, inputs) for parent in (a, b))
            y_seed, y_partner = labels[seed], labels[partner]
            expected = (to_partner * y_seed + to_seed * y_partner) / (to_seed + to_partner)
            assert y == pytest.approx(expected, rel=1e-4)
        assert labels[region].min() <= y <= labels[region].max()
    assert (noisy > 5) == (method == "smogn")
    if noisy:  # as many deviations as a normal draw has, in each column's own unit
        assert 0.6 < np.std(all_z) < 1.5
        assert np.abs(all_z).max() < 5


def test_noise_has_the_deviation_it_should():
    rng = np.random.default_rng(0)
    labels, points = np.sort(rng.exponential(size=3000)), rng.normal(size=(3000, 20))
    points[:, 1] *= 3
    args = options("smogn", oversample=20.0, perturbation=0.01)
    found, _ = resample.draw(labels, None, lambda rows: points[rows], args)
    far = np.flatnonzero(found.noise)
    made = found.make(far, points[found.seeds[far]], points[found.partners[far]],
                      found.deviations, 3)  # fmt: skip
    region = points[np.unique(found.seeds)]
    z = (made - points[found.seeds[far]]) / region.std(axis=0) / found.noise[far, None]
    assert len(far) > 200
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.1)
    assert found.noise.max() <= 0.01
    again = found.make(far[5:6], *(points[part[far[5:6]]] for part in found[:2]),
                       found.deviations, 3)  # fmt: skip
    np.testing.assert_array_equal(again[0], made[5])  # alone as among others


def test_half_the_median_counts_the_point_itself():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    half = resample.half_median(points, None)
    np.testing.assert_allclose(half, [1.0, 0.75, 1.25, 2.5])  # of (0, 1, 3, 7), (0, 1, 2, 6) ...


def test_neighbours_are_others_even_among_equal_points():
    points = np.repeat([[0.0], [1.0]], 6, axis=0)
    near = resample.neighbours(points, 3)
    for number, row in enumerate(near):
        assert number not in row
        assert len(set(row)) == 3
        assert {number // 6} == set(row // 6)


def test_a_threshold_of_one_takes_what_lies_at_the_whisker_and_beyond():
    """At this whisker the spline ends at 1 - 4e-16."""
    labels = np.array([*np.linspace(0.4231637028836499, 16.459636486872444, 99), 21.75397153911242])
    points = [(0.4231637028836499, 0.0), (8.441400094878167, 0.0), (21.75397153911242, 1.0)]
    assert relevance.relevance(labels, points).max() == pytest.approx(1, abs=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "relevance_of", lambda *_: relevance.relevance(labels, points))
        rare, _ = resample.regions(labels, None, options("smoter", relevance_threshold=1.0))
    assert [part.tolist() for part in rare] == [[99]]


@pytest.mark.parametrize(
    ("name", "column", "threshold", "sizes", "times", "package"),
    [
        ("abalone", "Rings", 0.5, (448, 2769, 960), (3.107, 1.45), 4160),
        ("abalone", "Rings", 0.8, (189, 3498, 490), (7.365, 2.841), 4888),
        ("concrete", "Strength", 0.5, (917, 113), (4.558,), 916),
        ("concrete", "Strength", 0.8, (975, 55), (9.364,), 974),
    ],
)
def test_published_regions_and_amounts(shared_data, name, column, threshold, sizes, times, package):
    """Sizes of the regions and shares of a balance, as the published packages find them.

    `package` is the number of rows that Python's smogn 0.1.2 returns. It drops from a frequent
    region the share that a balance keeps, and rounds the rows of each rare one down.
    """
    frame = pd.read_csv(shared_data / "uci" / f"{name}.csv")
    labels = frame[column if column in frame else frame.columns[-1]].to_numpy(np.float64)
    args = options("smoter", relevance_threshold=threshold, undersample=True)
    rare, others = resample.regions(labels, None, args)
    found = sorted((labels[part].min(), len(part)) for part in [*rare, *others])
    assert tuple(size for _, size in found) == sizes
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    synthetic, stay = resample.draw(labels, None, lambda rows: points[rows], args)
    made = np.bincount(synthetic.region)
    assert [(len(p) + n) / len(p) for p, n in zip(rare, made)] == pytest.approx(times, abs=0.01)
    size = round(len(labels) / len(sizes))
    assert len(stay) == sum(map(len, rare)) + sum(min(len(part), size) for part in others)
    assert set(np.concatenate(rare)) <= set(stay)
    kept = sum(len(part) - size for part in others)
    extra = [len(p) * (size // len(p) - 1) + int(len(p) * (size / len(p) % 1)) for p in rare]
    assert sum(map(len, rare)) + kept + sum(extra) == package
    assert len(stay) + len(synthetic.seeds) == pytest.approx(len(labels), abs=len(sizes))
    # That package's labels reach 118.95 MPa and 34 rings; the tables' end at 82.6 and 29.
    args.resample = "smogn"
    noisy, _ = resample.draw(labels, None, lambda rows: points[rows], args)
    for number, part in enumerate(rare):
        own = noisy.labels[noisy.region == number]
        assert labels[part].min() <= own.min() <= own.max() <= labels[part].max()


def test_no_synthetic_label_is_frequent():
    """Also where buckets of rare and frequent labels alternate."""
    rng = np.random.default_rng(2)
    labels = np.concatenate([rng.uniform(0, 100, 400), rng.uniform(30, 60, 2000)])
    shots = np.where(labels.astype(int) % 7 < 3, "many", np.where(labels < 50, "few", "medium"))
    points = rng.normal(size=(len(labels), 4))
    for method in METHODS:
        for threshold, rare in ((0.5, ("few", "medium")), (0.6, ("few",))):
            args = options(method, relevance="density", oversample=2.5,
                           relevance_threshold=threshold)  # fmt: skip
            found, _ = resample.draw(labels, shots, lambda rows: points[rows], args)
            assert set(shots[found.seeds]) == set(shots[found.partners]) == set(rare)
            assert (found.labels.astype(int) % 7 >= 3).all()
            number = np.isin(shots, rare).sum()
            assert len(found.labels) == pytest.approx(2.5 * number, abs=20)


def test_extremes_of_one_side():
    labels = np.concatenate([np.arange(40, 60), [0.0, 100.0]])
    for kind, at in (("extremes", (1, 1)), ("low_extremes", (1, 0)), ("high_extremes", (0, 1))):
        values = relevance.relevance_of(labels, None, kind)
        assert (values[-2], values[-1]) == at
        assert abs(values[:20]).max() <= 1
    with pytest.raises(ValueError, match="no training label is rare"):
        resample.regions(np.arange(50.0), None, options("smoter"))
    with pytest.raises(ValueError, match="every training label is rare"):
        resample.regions(np.arange(5.0), ["few"] * 5, options("smoter", relevance="density"))


def test_a_rare_label_alone_is_left_alone(caplog):
    labels = np.concatenate([np.arange(40.0, 60.0), [1000.0]])
    shots, args = ["many"] * 20 + ["few"], options("smogn", relevance="density")
    found, stay = resample.draw(labels, shots, lambda rows: labels[rows, None], args)
    assert len(found.labels) == 0
    assert len(stay) == 21
    assert "alone" in caplog.text


def test_memory_grows_with_the_samples_not_their_square():
    rng, peaks = np.random.default_rng(0), []
    for N in (10_000, 40_000):
        labels, points = rng.exponential(size=N), rng.normal(size=(N, 3))
        shots = np.where(labels > 0.5, "few", "many")
        tracemalloc.start()
        args = options("smogn", relevance="density", oversample=1.0)
        resample.draw(labels, shots, lambda rows, points=points: points[rows], args)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 1e8  # the distances between 24,000 rare samples alone would be 4.6e9 bytes


# ---- tables --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    uci.demo_data.main(["--out", str(folder), "--rows", "401"])
    return folder


def table_data(tables, store, *more):
    args = train.parse_args(uci.flags(tables, store, *more))
    run = train.run_folder.start(args, train.make_parser(), train.run_name(args))
    return run, train.build_data(run)


@pytest.mark.parametrize("method", METHODS)
def test_only_training_changes_and_the_density_counts_it(tables, tmp_path, method):
    _, plain = table_data(tables, tmp_path)
    lds = ("--reweight", "sqrt_inv", "--lds")
    run, data = table_data(tables, tmp_path, "--resample", method, *lds)
    for split in ("val", "test"):
        for ours, theirs in zip(data.loaders[split].tensors, plain.loaders[split].tensors):
            assert torch.equal(ours, theirs)
    N = plain.loaders["train"].N
    added = data.loaders["train"].N - N
    assert added > 20
    tensors = (part.loaders["train"].tensors[:3] for part in (data, plain))
    for ours, theirs in zip(*tensors):
        assert torch.equal(ours[:N], theirs)
    labels = data.loaders["train"].tensors[1].numpy().ravel()
    bins = data.rule.bins
    expected = np.bincount(datasets.label_to_bucket(labels, bins), minlength=bins.number)
    np.testing.assert_array_equal(data.counts, expected)
    assert expected.sum() == N + added
    weights = datasets.sample_weights(labels, bins, "sqrt_inv", lds=True)
    np.testing.assert_allclose(data.loaders["train"].tensors[3].ravel(), weights, rtol=1e-6)
    # Shots, and so the metrics, are those of the real rows.
    np.testing.assert_array_equal(data.labels, plain.labels)
    model = train.build_model(run.args)
    (ours, _), (theirs, _) = (train.evaluate(run, model, part, "test") for part in (data, plain))
    for shot, metrics in theirs.items():
        assert ours[shot] == pytest.approx(metrics, nan_ok=True)


def test_seeds_draw_other_rows_and_the_same_again(tables, tmp_path):
    more = ("--resample", "smogn")
    made = [
        table_data(tables, tmp_path, *more, "--seed", seed)[1].loaders["train"].tensors[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert made[0].shape == made[2].shape
    assert not torch.equal(made[0], made[2])


@pytest.mark.slow
def test_a_killed_run_with_synthetic_rows_resumes_bit_identical(tables, tmp_path):
    """And it trains on all rows: FDS tracks real and synthetic ones."""
    more = ("--resample", "smogn", "--epoch", 8, *uci.LDS_FDS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(uci.flags(tables, whole, *more))
    saved, number = train.checkpoints.save, 0

    def save(*args):
        nonlocal number
        saved(*args)
        number += 1
        if number == 3:
            raise KeyboardInterrupt

    train.checkpoints.save = save
    try:
        with pytest.raises(KeyboardInterrupt):
            train.main(uci.flags(tables, parts, *more))
    finally:
        train.checkpoints.save = saved
    train.main(uci.flags(tables, parts, *more, "--resume"))
    one, two = uci.only_run(whole), uci.only_run(parts)
    states = [uci.load_state(folder / "ckpt.pth.tar")["state_dict"] for folder in (one, two)]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert (one / "predictions.csv").read_bytes() == (two / "predictions.csv").read_bytes()
    results = json.loads((one / "results.json").read_text())
    assert results["method"] == "SMOGN+LDS+FDS"
    rows = pd.read_csv(one / "label_density.csv")["count"].sum()
    assert states[0]["FDS.num_samples_tracked"].sum() == 8 * rows


@pytest.mark.slow
def test_two_processes_with_synthetic_rows_equal_one(tables, tmp_path):
    uci.test_two_processes_equal_one(tables, tmp_path, ("--resample", "smogn"))


def test_trees_learn_from_synthetic_rows(tables, tmp_path):
    """And flags of a method that is off tell no runs apart in tables."""
    pytest.importorskip("sklearn")
    trees = ("--model", "hist_gradient_boosting", "--epoch", 10)
    found = []
    for number, more in enumerate(((), ("--resample", "smoter"))):
        store = tmp_path / str(number)
        train.main(uci.flags(tables, store, *trees, *more))
        found.append(uci.results_of(uci.only_run(store)))
    plain, smoter = found
    assert plain["metrics"]["test"] != smoter["metrics"]["test"]
    assert {"resample", "k_neighbors"} <= set(plain["place_flags"])
    assert "resample" not in smoter["place_flags"]


# ---- flags ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir", "sts-b-dir", "uci-dir"])
def test_flags(folder, capsys):
    own = load(folder, "train")
    plain = "".join(own.run_name(own.parse_args([])))
    words = "--resample smogn --k_neighbors 3 --oversample 1.5 --perturbation 0.1 --undersample"
    name = "".join(own.run_name(own.parse_args(words.split())))
    assert name == plain + "".join(
        f"_{part}" for part in ("resample_smogn", "k_neighbors_3", "perturbation_0.1",
                                "oversample_1.5", "undersample")
    )  # fmt: skip
    wrong = {
        "--k_neighbors 3": "needs --resample", "--resample smoter --k_neighbors 0": "1 or more",
        "--resample smoter --relevance_threshold 0": "(0, 1]", "--oversample -1": "0 or more",
        "--resample smogn --perturbation -1": "0 or more", "--oversample some": "invalid",
    }  # fmt: skip
    for words, message in wrong.items():
        with pytest.raises(SystemExit):
            own.parse_args(words.split())
        assert message in capsys.readouterr().err, words


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "SMOTER"),
        ("--reweight sqrt_inv", "SMOTER SQINV"),
        ("--reweight sqrt_inv --lds", "SMOTER+LDS"),
        ("--reweight inverse --lds --fds", "SMOTER+LDS+FDS"),
        ("--fds", "SMOTER+FDS"),
        ("--loss focal_l1", "SMOTER FOCAL-R"),
    ],
)
def test_names_in_tables(words, name):
    args = train.parse_args(["--resample", "smoter", *words.split()])
    assert load("uci-dir", "results").method_name(args, train.make_parser()) == name


# ---- faces ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return contract.make_faces(tmp_path_factory.mktemp("faces"), "agedb")


def face_data(faces, store, *more):
    own = load("agedb-dir", "train")
    record = next(c for c in contract.CONTRACTS if c.folder == "agedb-dir")
    args = own.parse_args(record.argv(faces, store, *more))
    run = own.run_folder.start(args, own.make_parser(), own.run_name(args))
    return own, run, own.build_data(run)


FACES = ("--relevance", "high_extremes", "--relevance_threshold", "0.3", "--oversample", "4")


@pytest.mark.parametrize("method", METHODS)
def test_synthetic_faces_are_mixed_on_the_batch(faces, tmp_path, method):
    _, _, plain = face_data(faces, tmp_path)
    cached = {path.name: path.read_bytes() for path in (faces / "cache").iterdir()}
    _, _, data = face_data(faces, tmp_path, "--resample", method, *FACES)
    assert {path.name: path.read_bytes() for path in (faces / "cache").iterdir()} == cached
    loader, real = data.loaders["train"], plain.loaders["train"]
    found, N, M = loader.images.synthetic, real.N, loader.N - real.N
    assert M == len(found.labels) > 8
    pixels = real.read(np.arange(N)).numpy().astype(np.float64)
    everything = loader.read(np.arange(loader.N)[::-1]).numpy()[::-1]
    np.testing.assert_array_equal(everything[:N], pixels)
    small = pixels.reshape(N, 40, 40, 3) / 255
    for i, image in enumerate(everything[N:].astype(np.float64)):
        a, b = pixels[found.seeds[i]], pixels[found.partners[i]]
        if found.noise[i]:
            region = np.unique(found.seeds[found.region == found.region[i]])
            assert np.abs(image - a).max() <= 1 + 6 * 0.02 * 255 * small[region].std(axis=0).max()
            assert np.abs(image - a).mean() < 3
            continue
        way = float(found.ways[i, 0])
        assert np.abs(image - (a + way * (b - a))).max() <= 0.5 + 1e-3  # rounded
        ages = real.labels[[found.seeds[i], found.partners[i]]]
        assert found.labels[i] == pytest.approx(ages[0] + way * (ages[1] - ages[0]), rel=1e-5)
    for split in ("val", "test"):
        own = np.arange(data.loaders[split].N)
        assert torch.equal(data.loaders[split].read(own), plain.loaders[split].read(own))
        np.testing.assert_array_equal(data.loaders[split].labels, plain.loaders[split].labels)
    np.testing.assert_array_equal(data.labels, plain.labels)
    assert data.counts.sum() == N + M


def test_thumbnails_are_means_over_areas(faces, tmp_path):
    module = load("agedb-dir", "synthetic_faces")
    more = ("--img_size", "32", "--batch_size", "49", "--cache", "none")
    images = face_data(faces, tmp_path, *more)[2].loaders["train"].images
    found = module.thumbnails(images, np.arange(5)).reshape(5, 16, 16, 3)
    pixels = images.read(np.arange(5)).numpy() / 255
    expected = pixels.reshape(5, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_faces_resume_and_two_processes_equal_one(faces, tmp_path, monkeypatch):
    record = next(c for c in contract.CONTRACTS if c.folder == "agedb-dir")
    monkeypatch.setattr(record.train, "build_model", record.tiny())
    more = ("--resample", "smogn", *FACES, "--reweight", "sqrt_inv", "--lds", "--fds")
    for store, lengths in (("whole", (4,)), ("parts", (2, 4))):
        for number, epochs in enumerate(lengths):
            resume = ("--resume",) if number else ()
            argv = record.argv(faces, tmp_path / store, *more, "--epoch", epochs, *resume)
            record.train.main(argv)
    argv = record.argv(faces, tmp_path / "two", *more, "--epoch", 4)
    script = [*uci.TORCHRUN, uci.ROOT / "tests" / "tiny_run.py", uci.ROOT / "agedb-dir", *argv]
    subprocess.run(script, env=uci.environment(), check=True, capture_output=True, timeout=300)
    folders = [uci.only_run(tmp_path / store) for store in ("whole", "parts", "two")]
    states = [uci.load_state(folder / "ckpt.pth.tar")["state_dict"] for folder in folders]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
        torch.testing.assert_close(states[2][name], value, rtol=1e-3, atol=1e-4, msg=name)
    rows = pd.read_csv(folders[0] / "label_density.csv")["count"].sum()
    assert states[0]["FDS.num_samples_tracked"].sum() == 4 * rows > 4 * 49


# ---- sentence pairs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return contract.make_pairs(tmp_path_factory.mktemp("pairs"))


PAIRS = next(c for c in contract.CONTRACTS if c.folder == "sts-b-dir")
RARE = ("--relevance_threshold", "1", "--many", "3", "--few", "2")  # few-shot alone: bins of one


def pair_data(pairs, store, *more):
    own = PAIRS.train
    args = own.parse_args(PAIRS.argv(pairs, store, *more))
    run = own.run_folder.start(args, own.make_parser(), own.run_name(args))
    return own, run, own.build_data(run)


@pytest.mark.parametrize("method", METHODS)
def test_synthetic_pairs_mix_the_encodings(pairs, tmp_path, method):
    own, run, plain = pair_data(pairs, tmp_path)
    more = ("--resample", method, *RARE, "--perturbation", "0.2", "--oversample", "3")
    _, _, data = pair_data(pairs, tmp_path, *more)
    real, loader = plain.loaders["train"], data.loaders["train"]
    N, M = real.N, loader.N - real.N
    partners, ways, shift = loader.pairs
    assert (partners[:N] == -1).all()
    assert (partners[N:] >= 0).all()
    assert M > 10
    shots = load("sts-b-dir", "metrics").shot_of(loader.labels, data.rule)
    bins = load("sts-b-dir", "datasets").label_to_bucket(loader.labels)
    # A bin without a pair parts no region, whatever its shot.
    assert all(shot == "few" or b not in bins[:N] for shot, b in zip(shots[N:], bins[N:]))
    model = own.build_model(run.args, data.corpus, fresh=True).eval()
    vectors = model.pair_encoder.words.weight.detach().numpy()

    def sentences(row):
        ids = loader.ids[row]
        return [ids[column, : loader.lengths[row, column]].tolist() for column in (0, 1)]

    def encode(row, shifts):
        """Both sentences alone, their word vectors replaced by shifted ones."""
        found = []
        for sentence, moved in zip(sentences(row), shifts):
            stand_in = torch.arange(len(sentence)).unsqueeze(0)
            kept = model.pair_encoder.words.weight.data
            model.pair_encoder.words.weight.data = torch.tensor(vectors[sentence] + moved)
            found.append(model.pair_encoder(stand_in, [len(sentence)])[0])
            model.pair_encoder.words.weight.data = kept
        return found

    noisy, seen = 0, 0
    with torch.no_grad():
        for batch, rows in zip(loader.train(0), loader.order(0)):
            _, features = model(batch.ids, batch.packing, blend=batch.blend)
            assert len(features) == len(batch.labels) == len(rows)
            np.testing.assert_array_equal(batch.labels.ravel(), loader.labels[rows])
            for row, feature in zip(rows, features):
                seen += 1
                noisy += np.abs(shift[row]).max() > 0
                u, v = encode(row, shift[row])
                if partners[row] >= 0:
                    way = float(ways[row, 0])
                    others = encode(partners[row], np.zeros_like(shift[row]))
                    u, v = (own + way * (near - own) for own, near in zip((u, v), others))
                expected = torch.cat([u, v, (u - v).abs(), u * v])
                torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)
    assert seen == N + M
    assert (noisy > 0) == (method == "smogn")
    # Neighbours are near by the mean word vectors, within a run of rare labels.
    home = [next(r for r in range(N) if sentences(r) == sentences(row)) for row in range(N, N + M)]
    points = [[vectors[sentence].mean(axis=0) for sentence in sentences(row)] for row in range(N)]
    points, y = np.array(points).reshape(N, -1), real.labels
    frequent = y[shots[:N] != "few"]
    for row, seed in zip(range(N, N + M), home):
        region = [
            r
            for r in np.flatnonzero(shots[:N] == "few")
            if r != seed
            and not ((frequent > min(y[r], y[seed])) & (frequent < max(y[r], y[seed]))).any()
        ]
        region.sort(key=lambda r: np.linalg.norm(points[r] - points[seed]))
        assert partners[row] in region[:5]
        if not shift[row].any():
            low, high = sorted(y[[seed, partners[row]]])
            assert low - 1e-6 <= loader.labels[row] <= high + 1e-6
    for split in ("val", "test"):
        ours, theirs = data.loaders[split], plain.loaders[split]
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert data.counts.sum() == N + M


def test_a_hugging_face_encoder_takes_shifted_vectors():
    transformers = pytest.importorskip("transformers")
    bilstm = load("sts-b-dir", "bilstm")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    encoder = bilstm.TextEncoder(transformers.BertModel(config)).eval()
    ids, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), [3, 2]
    shift = torch.randn(2, 8)
    with torch.no_grad():
        plain, moved = encoder(ids, lengths), encoder(ids, lengths, shift)
        still = encoder(ids, lengths, torch.zeros(2, 8))
        torch.testing.assert_close(still, plain)
        words = encoder.encoder.embeddings.word_embeddings.weight
        words[4] += shift[1]
        words[5] += shift[1]
        torch.testing.assert_close(encoder(ids, lengths)[1], moved[1])


@pytest.mark.slow
def test_pairs_resume_and_two_processes_equal_one(pairs, tmp_path):
    more = ("--resample", "smogn", *RARE, *PAIRS.lds_fds.split(), "--dropout", "0")
    states = {}
    for store, lengths in (("whole", (4,)), ("parts", (2, 4)), ("two", (4,))):
        for number, n in enumerate(lengths):
            resume = ("--resume",) if number else ()
            argv = PAIRS.argv(pairs, tmp_path / store, *more, *PAIRS.lines(n), *resume)
            if store == "two":
                launcher = uci.TORCHRUN
                uci.run(*argv, launcher=launcher, cwd=uci.ROOT / "sts-b-dir")
            else:
                PAIRS.train.main(argv)
        folder = uci.only_run(tmp_path / store)
        states[store] = uci.load_state(folder / "model_state.th")
    for name, value in states["whole"].items():
        torch.testing.assert_close(states["parts"][name], value, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(states["two"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert json.loads((folder / "results.json").read_text())["method"] == "SMOGN+LDS+FDS"
