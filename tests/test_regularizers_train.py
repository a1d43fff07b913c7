"""--regularizer in train.py: flags, names, resuming, views, several processes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, load

train = load("uci-dir", "train")
demo_data = load("uci-dir", "demo_data")
regularizers = load("uci-dir", "regularizers")
lds = load("uci-dir", "lds")
results = load("uci-dir", "results")
faces_train = load("agedb-dir", "train")
datasets = load("agedb-dir", "datasets")
batches = load("agedb-dir", "batches")
tiny_run = load("tests", "tiny_run")
pairs_train = load("sts-b-dir", "train")
sentences = load("tests", "test_sts_b_train")
nights_train = load("shhs-dir", "train")
nights = load("tests", "test_shhs_train")
METHODS = load("agedb-dir", "regularizer_flags").METHODS[1:]
TWO_PROCESSES = """
import sys
sys.path.insert(0, ".")
from types import SimpleNamespace
import numpy as np
import torch
import flags
import regularizer_flags
import regularizers
import utils
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
z, y, p = torch.randn(9, 4), torch.randint(0, 4, (9, 1)).float(), torch.randn(9, 1)
layer = torch.nn.Linear(4, 4).double()
own = slice(0, 5) if rank == 0 else slice(5, 9)
rows = [regularizers.gather_rows(x) for x in (layer(z[own].double()), y[own].double(), p[own])]
loss = regularizers.conr_loss(*rows, omega=1, temperature=0.5)
share = (5 if rank == 0 else 4) * 2 / 9
(gradient,) = torch.autograd.grad(loss * share, layer.weight)
torch.distributed.all_reduce(gradient)  # DDP takes the mean
whole = regularizers.conr_loss(layer(z.double()), y, p, omega=1, temperature=0.5)
(expected,) = torch.autograd.grad(whole, layer.weight)
torch.testing.assert_close((loss, gradient / 2), (whole, expected))
assert whole > 0

def made(*words):
    parser = flags.Parser("")
    regularizer_flags.add_regularizer(parser, "", {"conr": [1.0], "srl": [1.0] * 3}, 0.1)
    args = parser.parse_args(["--regularizer", *words])
    args.gather = True
    torch.manual_seed(rank)
    made = regularizers.make(SimpleNamespace(args=args, parser=parser), 4, y, np.arange(4.0))
    if words[0] == "srl":
        made.projection = torch.nn.Identity()
    return made

# The second process has no sample of the first batch, and a part of the second one.
conr, srl = made("conr", "--temperature", "0.5"), made("srl")
held = slice(None) if rank == 0 else slice(0, 1)
w = torch.ones(9, 1)
got = conr(z[held], y[held], p[held], w[held], 2.0 - 2 * rank)
expected = regularizers.conr_loss(z, y, p, omega=1, temperature=0.5)
torch.testing.assert_close(got, expected)
srl(z[held], y[held], p[held], w[held], 2.0 - 2 * rank)
utils.broadcast_buffers(srl)  # as each evaluation does, in sentences within an epoch
srl(z[own], y[own], p[own], w[own], share)
buckets = y.flatten().long()
assert srl.surrogate.counts.tolist() == (2 * torch.bincount(buckets, minlength=4)).tolist()
u = torch.nn.functional.normalize(z)
torch.testing.assert_close(srl.surrogate.sums, 2 * torch.zeros(4, 4).index_add(0, buckets, u))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    demo_data.main(["--out", str(folder), "--rows", "301"])
    return folder


def command(tables, store, *words):
    fixed = f"--dataset demo --data_dir {tables} --store_root {store} --track none --device cpu"
    return [*fixed.split(), "--batch_size", "50", *map(str, words)]


def a_run(*words):
    parser = train.make_parser()
    return SimpleNamespace(parser=parser, args=parser.parse_args([*words]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--conr_official", "--conr_official needs --regularizer conr"),
        ("--regularizer srl --conr_omega 2", "--conr_omega needs --regularizer conr"),
        ("--regularizer conr --dist_strength 1", "needs --regularizer dist"),
        ("--temperature 0.1", "conr or srl"),
        ("--regularizer_weight 2", "needs --regularizer"),
        ("--regularizer srl --regularizer_weight 1", "takes 3"),
        ("--regularizer conr --regularizer_weight -1", "0 or more"),
        ("--regularizer conr --regularizer_weight nan", "must be a number"),
        ("--regularizer conr --regularizer_weight inf", "0 or more"),
        ("--dist_loss --regularizer conr", "is dist and conr: choose one"),
        ("--regularizer conr --dist_loss", "is conr and dist: choose one"),
        ("--dist_loss --dist_strength 1e-18", "must be 0, or 1e-06 or more"),
        ("--regularizer conr --temperature 0", "above 0"),
        ("--dist_loss --dist_strength inf", "0 or more"),
        ("--regularizer srl --srl_momentum 2", "[0, 1]"),
        ("--regularizer srl --retrain_fc --pretrained x --reweight inverse", "holds fixed"),
        ("--regularizer conr --compare", "--compare"),
        ("--regularizer conr --model hist_gradient_boosting", "trees"),
    ],
)
def test_conflicts(words, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(words.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name", "end"),
    [
        ("--regularizer conr", "CONR", "_regularizer_conr"),
        ("--regularizer conr --conr_official", "CONR (official)", "_conr_conr_official"),
        ("--reweight sqrt_inv --lds --fds --dist_loss", "SQINV+LDS+FDS+DIST", "_regularizer_dist"),
        ("--regularizer srl --regularizer_weight 1 2 .5", "SRL", "_regularizer_weight_1.0-2.0-0.5"),
        ("--regularizer ordinal_entropy --fds", "FDS+ORDINAL ENTROPY", "_ordinal_entropy"),
    ],
)
def test_names(words, name, end):
    args = train.parse_args(words.split())
    assert results.method_name(args, train.make_parser()) == name
    assert "".join(train.run_name(args)).endswith(end)


def test_none_adds_nothing():
    regularizer = regularizers.make(a_run(), 5, np.arange(9))
    assert regularizer(torch.ones(3, 5), *[torch.ones(3, 1)] * 3) == 0
    assert not regularizer.state_dict()


def test_srl_starts_with_its_second_epoch_and_dist_keeps_weights_with_samples():
    torch.manual_seed(0)
    z, y, w = torch.randn(6, 5), torch.arange(6.0)[:, None], torch.arange(1.0, 7)[:, None]
    srl = regularizers.make(a_run("--regularizer", "srl"), 5, np.arange(6))
    assert srl(z, y, y, w) == 0
    assert srl.surrogate.counts.sum() == 6
    srl.end_epoch()
    assert srl(z, y, y, w) != 0
    preds = torch.tensor([[3.0], [9], [1], [2], [0], [7]])
    dist = regularizers.make(a_run("--dist_loss"), 5, np.arange(101), np.arange(101.0))
    wanted = regularizers.pseudo_labels(np.arange(101), 6, np.arange(101.0))
    order = [4, 2, 3, 0, 5, 1]
    expected = sum(w[i, 0] * (preds[i, 0] - t).abs() for i, t in zip(order, wanted)) / 6
    assert dist(z, y, preds, w) == pytest.approx(expected.item(), rel=1e-6)


def test_two_views_are_compared_in_units_of_the_grid():
    torch.manual_seed(0)
    z, y, p, w = torch.randn(8, 5), torch.rand(4, 1), torch.rand(8, 1), torch.rand(4, 1)
    conr = regularizers.make(a_run("--regularizer", "conr"), 5, y, np.linspace(0, 1, 11))
    of_views = y.repeat(2, 1) * 10, p * 10, w.repeat(2, 1)
    expected = 0.2 * regularizers.conr_loss(z, *of_views)
    assert conr(z, y, p, w).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_unbroken_one(method, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(train.report, "draw_run", lambda folder: None)  # which takes seconds
    words = ["--regularizer", method, *"--reweight sqrt_inv --lds --fds".split()]
    for store, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            own = "--resume" if stop != stops[0] else "--overwrite"
            train.main(command(tables, tmp_path / store, "--epoch", stop, *words, own))
    folders = [next((tmp_path / store).iterdir()) for store in ("whole", "parts")]
    whole, parts = (torch.load(f / "ckpt.pth.tar", weights_only=True) for f in folders)
    assert set(whole["state_dict"]) == set(parts["state_dict"])
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    if method == "srl":
        assert whole["state_dict"]["regularizer.surrogate.surrogate"].any()
        assert whole["state_dict"]["regularizer.epochs"] == 4
    found = json.loads((folders[0] / "results.json").read_text(encoding="utf-8"))
    assert found["method"] == f"SQINV+LDS+FDS+{method.replace('_', ' ').upper()}"
    assert np.isfinite(found["metrics"]["test"]["overall"]["mae"])
    evaluated = ["--evaluate", "--eval_model", folders[0] / "ckpt.best.pth.tar"]
    again = train.main(command(tables, tmp_path / "other", *evaluated))  # without the flag
    assert again["overall"] == pytest.approx(found["metrics"]["test"]["overall"])


@pytest.fixture
def faces(tmp_path):
    """Small images whose brightness follows the age."""
    rng, rows = np.random.default_rng(0), []
    for i in range(34):
        age = int(rng.integers(20, 30))
        pixels = np.clip(rng.normal(5 * age, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append((age, f"{i}.png", "train" if i < 24 else "val" if i < 29 else "test"))
    table = pd.DataFrame(rows, columns=["age", "path", "split"])
    table.to_csv(tmp_path / "agedb.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("method", ["conr", "srl"])
def test_faces_are_resumed_bit_for_bit(method, faces, monkeypatch):
    monkeypatch.setattr(faces_train.report, "draw_run", lambda folder: None)
    monkeypatch.setattr(faces_train, "build_model", tiny_run.make_builder(faces_train.FDS))
    monkeypatch.setattr(faces_train, "feature_dim_of", lambda name: 8)
    fixed = "--img_size 40 --batch_size 16 --device cpu --track none --fds --fds_ks 5".split()
    fixed += ["--regularizer", method, "--data_dir", str(faces)]
    states = []
    for store, stops in (("whole", [3]), ("parts", [2, 3])):
        for stop in stops:
            own = ["--store_root", str(faces / store), "--epoch", str(stop)]
            faces_train.main([*fixed, *own, *["--resume"] * (stop != stops[0])])
        (folder,) = (faces / store).iterdir()
        states.append(torch.load(folder / "ckpt.pth.tar", weights_only=True)["state_dict"])
    whole, parts = states
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert ("regularizer.surrogate.surrogate" in whole) == (method == "srl")


def test_conr_sees_two_more_views_of_each_image():
    """The images of an epoch are those without views; a view is the image cropped and mirrored."""

    class Images:
        def read(self, rows):
            pixels = np.arange(1, 41)[:, None, None] + rows.reshape(-1, 1, 1, 1)
            return torch.from_numpy(np.uint8(np.broadcast_to(pixels, (len(rows), 40, 40, 3))))

        def one_by_one(self, rows):
            return self.read(rows).split(1)

    sharing = batches.Sharing(4, 0, torch.device("cpu"))
    labels = np.arange(20.0, 30)
    loader = datasets.Loader(Images(), np.arange(10) * 20, labels, np.ones(121), sharing)
    plain = [batch.images.clone() for batch in loader.train(1)]
    for images, batch in zip(plain, loader.train(1, views=True)):
        assert torch.equal(images, batch.images)
        n = len(batch.labels)
        assert batch.views.shape == (2 * n, 3, 40, 40)
        row = (batch.labels[:, 0] - 20) * 20  # its pixels are row + 1 to row + 40, and zeros around
        for views in (batch.images, batch.views[:n], batch.views[n:]):
            levels = ((views + 1) * 127.5).round()
            assert (levels.amax((1, 2, 3)) <= row + 40).all()
            inside = levels > 0
            assert (levels[inside] > row[:, None, None, None].expand_as(levels)[inside]).all()
        assert not torch.equal(batch.views[:n], batch.views[n:])


@pytest.mark.parametrize("method", ["conr", "srl"])
def test_sentences_are_resumed_bit_for_bit(method, tmp_path, monkeypatch):
    """The run is cut within its third epoch of 5 batches, at a validation."""
    monkeypatch.setattr(pairs_train.report, "draw_run", lambda folder: None)
    data = sentences.write_pairs(tmp_path, 33, 12)
    states = []
    for store, stops in (("whole", [4]), ("parts", [3, 4])):
        for stop in stops:
            words = ["--max_vals", stop, "--regularizer", method, *sentences.LDS_FDS]
            words += ["--resume"] * (stop != stops[0])
            pairs_train.main(sentences.flags(data, tmp_path / store, *words))
        (folder,) = (tmp_path / store).iterdir()
        states.append(torch.load(folder / "model_state.th", weights_only=True))
    whole, parts = states
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    if method == "srl":
        assert whole["regularizer.epochs"] == 2
        assert whole["regularizer.surrogate.counts"].sum() == 16  # of the epoch that has begun


@pytest.mark.parametrize("method", ["conr", "srl"])
def test_nights_learn_with_each(method, tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(nights_train.report, "draw_run", lambda folder: None)
    data = nights.nights.__wrapped__(tmp_path_factory)
    words = nights.flags(data, tmp_path, "--epoch", 3, "--regularizer", method)
    assert np.isfinite(nights_train.main(words)["overall"]["mae"])


def built(program, words):
    args = program.parse_args([str(word) for word in words])
    run = program.run_folder.start(args, program.make_parser(), program.run_name(args))
    return program.build_data(run)


def test_dense_weights_are_those_at_your_own_labels(faces, tmp_path_factory, tmp_path):
    """On the scale of the buckets, and not those at the middles, here of 7 each."""
    own = "--reweight dense --high 105 --device cpu --track none".split()
    linear = [*own, *"--low 0 --bin_width 7".split()]
    words = ["--img_size", 40, "--data_dir", faces, "--store_root", tmp_path / "faces"]
    data = nights.nights.__wrapped__(tmp_path_factory)
    pairs = sentences.write_pairs(tmp_path, 33, 12)
    symlog = [*own, "--scale", "symlog", "--low", "0"]
    for made, is_linear in (
        (built(faces_train, [*words, *linear]), True),
        (built(faces_train, [*words, *symlog]), False),
        (built(nights_train, nights.flags(data, tmp_path / "nights", *symlog)), False),
        (built(pairs_train, sentences.flags(pairs, tmp_path / "pairs", *symlog)), False),
    ):
        loader = made.loaders["train"]
        labels = np.float64(loader.labels)
        assert len({*labels}) >= 5
        expected = lds.dense_weights(labels if is_linear else np.log10(1 + labels))
        np.testing.assert_allclose(loader.weights, expected, rtol=1e-5)


def test_dense_weights_of_a_table_follow_its_buckets(tables, tmp_path):
    words = ["--target", "price", "--scale", "log", "--data_dir", str(tmp_path)]
    load("uci-dir", "prepare").main(["--csv", f"{tables}/raw/demo.csv", *words])
    made = built(train, command(tmp_path, tmp_path, "--reweight", "dense"))
    weights = np.ravel(made.loaders["train"].tensors[3])
    np.testing.assert_allclose(weights, lds.dense_weights(np.log10(made.labels)), rtol=1e-5)


@pytest.mark.slow
def test_conr_over_two_processes_equals_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(script)], cwd=ROOT / "uci-dir", env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
