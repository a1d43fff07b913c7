"""sts-b-dir's data, network and metrics: the official release's numbers, and closed forms."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from conftest import ROOT, load

batches = load("sts-b-dir", "batches")
bilstm = load("sts-b-dir", "bilstm")
datasets = load("sts-b-dir", "datasets")
pair_file = load("sts-b-dir", "pair_file")
fds = load("sts-b-dir", "fds")
lds = load("sts-b-dir", "lds")
metrics = load("sts-b-dir", "metrics")
recurrence = load("sts-b-dir", "recurrence")
text = load("sts-b-dir", "text")

RTOL = 1e-5


def parse_weights_name(name):
    """`inverse_lds_gaussian_5_2` -> arguments of sample_weights."""
    reweight, _, lds = name.partition("_lds_")
    if not lds:
        return {"reweight": reweight}
    kernel, ks, sigma = lds.split("_")
    return dict(
        reweight=reweight, lds=True, lds_kernel=kernel, lds_ks=int(ks), lds_sigma=float(sigma)
    )


# ---- the official release's numbers --------------------------------------------------------


@pytest.fixture(scope="module")
def extract():
    """What of the golden numbers is kept in the repository."""
    with np.load(ROOT / "tests/data/golden_small_sts_b.npz") as file:
        arrays = {name: file[name] for name in file.files}

    def group(name):
        return {k.partition("__")[2]: v for k, v in arrays.items() if k.startswith(f"{name}__")}

    return group


def test_weights_of_the_real_labels(golden):
    with np.load(golden / "weights_sts_b.npz") as file:
        assert len(file.files) == 9
        for name in set(file.files) - {"labels"}:
            weights = datasets.sample_weights(file["labels"], **parse_weights_name(name))
            np.testing.assert_allclose(weights, file[name], rtol=RTOL, err_msg=name)
            assert weights.mean() == pytest.approx(1, rel=1e-5)


def test_weights_from_the_extract(extract):
    expected = extract("weight")
    counts = expected.pop("counts")
    middles = (datasets.EDGES[:-1] + datasets.EDGES[1:]) / 2
    labels, first = np.repeat(middles, counts), np.cumsum(counts) - counts
    assert len(expected) == 8
    for name, weight in expected.items():
        weights = datasets.sample_weights(labels, **parse_weights_name(name))
        np.testing.assert_allclose(weights[first], weight, rtol=RTOL, err_msg=name)


def test_metrics(extract):
    expected = extract("metric")
    got = metrics.shot_metrics(5 * expected["preds_unit"].astype(float), expected["labels"])
    names = ("mse mse", "mae l1", "gm gmean", "pearson pearsonr", "spearman spearmanr")
    for shot in metrics.SHOTS:
        for ours, theirs in map(str.split, (*names, "num_samples num_samples")):
            value = float(expected[f"{shot}_{theirs}"])
            assert got[shot][ours] == pytest.approx(value, rel=RTOL), (shot, ours)


def test_shots_are_the_official_lists(golden):
    bins = json.loads((golden / "shot_bins.json").read_text())["sts_b_shot_bins"]
    shots = metrics.shots_of_buckets()
    for shot, numbers in bins.items():
        assert np.flatnonzero(shots == shot).tolist() == sorted(numbers)


def test_names_of_the_state(golden):
    expected = json.loads((golden / "state_dict_sts_b_fds.json").read_text())
    model = bilstm.SimilarityRegressor(bilstm.LSTMEncoder(60, 30, 24), fds.FDS(192, 50))
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


def test_outputs_of_the_network(extract):
    model = bilstm.SimilarityRegressor(bilstm.LSTMEncoder(60, 30, 24))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in extract("model").items()})
    run = extract("run")
    width = max(run["tokens1"].shape[1], run["tokens2"].shape[1])
    ids = np.zeros((32, width), dtype=np.int64)
    ids[:16, : run["tokens1"].shape[1]] = run["tokens1"]
    ids[16:, : run["tokens2"].shape[1]] = run["tokens2"]
    with torch.no_grad():
        preds, features = model.eval()(torch.from_numpy(ids), (ids > 0).sum(1).tolist())
    np.testing.assert_allclose(features[:, ::8], run["pair_features"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(preds, run["outputs"], rtol=1e-4, atol=1e-6)
    mse = np.mean((preds.numpy() - run["labels"] / 5) ** 2)
    assert mse == pytest.approx(float(run["loss_mse"]), rel=1e-4)


# ---- labels and metrics --------------------------------------------------------------------


def test_bins_are_compared_in_float32():
    labels = np.arange(0, 5.0001, 0.1)  # in float64, 0.3 lies below float32's edge 0.3
    expected = [*range(50), 49]
    assert datasets.label_to_bucket(labels).tolist() == expected
    assert datasets.label_to_bucket(torch.from_numpy(labels)).tolist() == expected
    column = torch.tensor([[0.0], [4.999], [5.0]])
    assert datasets.label_to_bucket(column).tolist() == [[0], [49], [49]]
    for i, label in enumerate(np.random.default_rng(0).uniform(0, 5, 500).astype(np.float32)):
        bucket = int(datasets.label_to_bucket(label))
        assert datasets.EDGES[bucket] <= label < datasets.EDGES[bucket + 1], i


def test_truncated_lds_by_hand():
    counts = datasets.label_counts(np.repeat([0.05, 0.15, 0.25], [3, 1, 2]))
    assert counts.tolist() == [3, 1, 2, *[0] * 47]
    window = {"lds": True, "lds_kernel": "triang", "lds_ks": 3, "lds_sigma": 1, "truncate": True}
    emp, eff = lds.label_density(counts, "inverse", **window)
    assert emp[:4].tolist() == [3, 1, 2, 0]  # the window is ½, 1, ½
    assert eff[:4].tolist() == [3, 3, 2, 1]  # of 3.5, 3.5, 2.5, 1
    _, eff = lds.label_density(counts, "sqrt_inv", **window)
    assert eff[1] == pytest.approx(1 + (np.sqrt(3) + np.sqrt(2)) / 2)
    with pytest.raises(ValueError, match="reweight"):
        datasets.sample_weights([1.0], "none", lds=True)


@pytest.mark.parametrize("n", [25, 50, 73])
def test_any_number_of_equal_bins(n):
    """Bins, counts and shots against a search through float32 edges, label by label."""
    labels = np.concatenate([np.arange(0, 5.0001, 0.1), np.random.default_rng(n).uniform(0, 5, 99)])
    labels = labels.astype(np.float32)
    edges = [np.float32(edge) for edge in np.linspace(0, 5, n + 1)]
    expected = [max(i for i in range(n) if edges[i] <= label) for label in labels]
    own = datasets.bucket_edges(n)
    assert own.tolist() == edges
    assert datasets.label_to_bucket(labels, own).tolist() == expected
    assert datasets.label_to_bucket(torch.from_numpy(labels), own).tolist() == expected
    counts = [expected.count(i) for i in range(n)]
    assert datasets.label_counts(labels, own).tolist() == counts
    # The official lists are of 50 bins; another bin's shot is that of the one with its lower edge.
    official = metrics.shots_of_buckets()
    of_50 = [np.float32(edge) for edge in np.linspace(0, 5, 51)]
    shots = [official[max(i for i in range(50) if of_50[i] <= edge)] for edge in edges[:-1]]
    assert metrics.shots_of_buckets(own).tolist() == shots


def test_metrics_by_hand_and_at_the_edges():
    labels, preds = [0.05, 0.15, 0.25, 0.25], [0.55, 0.15, 0.75, 1.25]
    got = metrics.shot_metrics(preds, labels)
    assert [got[shot]["num_samples"] for shot in metrics.SHOTS] == [4, 1, 2, 1]
    errors = np.array([0.5, 0, 0.5, 1.0])
    assert got["overall"]["mse"] == pytest.approx(np.mean(errors**2))
    assert got["overall"]["bmae"] == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert got["overall"]["gm"] == pytest.approx((0.5 * 1e-10 * 0.5 * 1.0) ** 0.25)
    assert got["overall"]["pearson"] == pytest.approx(np.corrcoef(preds, labels)[0, 1])
    assert got["overall"]["spearman"] == pytest.approx(stats.spearmanr(preds, labels)[0])
    assert np.isnan(got["many"]["pearson"])
    assert got["many"]["mse"] == pytest.approx(0.25)
    assert np.isnan(metrics.shot_metrics([], [])["overall"]["mse"])
    assert np.isnan(metrics.shot_metrics([1, 1, 1], [1, 2, 3])["overall"]["pearson"])
    with pytest.raises(ValueError, match="2 predictions for 1"):
        metrics.shot_metrics([1, 2], [1])


# ---- files, words, ids ---------------------------------------------------------------------

HEADER = "index\tgenre\tsentence1\tsentence2\tscore\n"


def write_split(folder, train=None):
    """Three files of three pairs."""
    rows = "0\tg\tA cat sat.\tThe cat sat.\t4.2\n1\tg\tDogs run .\tA cat .\t0.000\n"
    rows += '2\tg\tShe said "no" here\tShe said so\t2.5\n'
    for name in pair_file.FILES.values():
        (folder / name).write_text(HEADER + rows, encoding="utf-8")
    if train is not None:
        (folder / "train_new.tsv").write_text(train, encoding="utf-8")
    return folder


def test_read_pairs(tmp_path):
    pairs = pair_file.read_pairs(write_split(tmp_path))
    assert pairs["split"].tolist() == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert pairs["label"].dtype == np.float32
    assert pairs["sentence1"][2] == 'She said "no" here'  # quotes are text, as in GLUE's files
    windows = (tmp_path / "dev_new.tsv").read_text().replace("\n", "\r\n")
    (tmp_path / "dev_new.tsv").write_bytes(b"\xef\xbb\xbf" + windows.encode())
    pd.testing.assert_frame_equal(pair_file.read_pairs(tmp_path), pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [(HEADER + "0\tg\ta b\t1.0\n", "line 2 has 4 columns, the header 5"),
     (HEADER + "0\tg\ta\tb\t1.0\n1\tg\ta\tb\tx\n", "line 3 has the score 'x'"),
     (HEADER + "0\tg\ta\tb\t5.1\n", "with a decimal point, from 0 to 5"),
     (HEADER + "0\tg\ta\tb\tnan\n", "'nan'"), (HEADER + "0\tg\ta\tb\t-0.1\n", "'-0.1'"),
     (HEADER + "0\tg\t \tb\t1\n", "line 2 has an empty sentence"),
     (HEADER + "0\tg\ta\tb\t1\n\n1\tg\ta\tb\t1\n", "line 3 has 1 columns"),
     (HEADER, "holds no pair"), ("sentence1\tscore\na\t1\n", "lacks the column sentence2"),
     ("", "lacks the column")],
)  # fmt: skip
def test_a_malformed_row_stops_with_its_line(tmp_path, content, message):
    write_split(tmp_path, content)
    with pytest.raises(ValueError, match=r"train_new\.tsv.*") as error:
        pair_file.read_pairs(tmp_path)
    assert message in str(error.value)


def test_all_faults_are_counted(tmp_path):
    write_split(tmp_path, HEADER + "0\tg\ta\tb\t9\n" * 25)
    with pytest.raises(ValueError, match="and 15 more"):
        pair_file.read_pairs(tmp_path)
    (tmp_path / "test_new.tsv").unlink()
    write_split(tmp_path)
    (tmp_path / "test_new.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"download\.py"):
        pair_file.read_pairs(tmp_path)


def arguments(folder, **more):
    options = dict(data_dir=folder, encoder="", tokenizer="sentence", max_seq_len=40,
                   max_word_v_size=30_000, glove=1, d_word=3, seed=0, cache="none",
                   word_embs_file=folder / "vectors.txt")  # fmt: skip
    return SimpleNamespace(**{**options, **more})


def test_ids_by_count_then_by_first_appearance(tmp_path):
    corpus = text.read_corpus(arguments(write_split(tmp_path)))
    # Counted by hand in train's first sentences, its second ones, and so on; case is kept.
    assert corpus.words[:2] == ["@@PADDING@@", "@@UNKNOWN@@"]
    # '.' 4 · 3, cat 3 · 3, then those of 6 in order of appearance: A, sat, She, said.
    assert corpus.words[2:8] == [".", "cat", "A", "sat", "She", "said"]
    first = [corpus.words[i] for i in corpus.ids[0][0]]
    assert first == ["A", "cat", "sat", "."]
    assert corpus.words[2:].index("Dogs") < corpus.words[2:].index("The")  # first sentences first
    few = text.read_corpus(arguments(tmp_path, max_word_v_size=3, max_seq_len=2))
    assert len(few.words) == 5
    assert max(len(s) for part in few.ids for s in part) == 2
    assert few.ids[0][1].count(1) >= 1  # Dogs, run: unknown


def test_vocabulary_beside_a_checkpoint_is_used(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    made = text.read_corpus(arguments(write_split(data)))
    words = [*made.words[:2], *reversed(made.words[2:-1])]  # another order, one word less
    (tmp_path / "vocab.txt").write_text("".join(f"{w}\n" for w in words), encoding="utf-8")
    corpus = text.read_corpus(arguments(data), tmp_path / "model_state_best.th")
    assert corpus.words == words
    for ids, others in zip(corpus.ids[0], made.ids[0]):
        expected = [made.words[i] if made.words[i] in words else "@@UNKNOWN@@" for i in others]
        assert [words[i] for i in ids] == expected
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        text.check_rows({text.WORDS: torch.zeros(len(made.words), 3)}, words, "file.th")
    text.check_rows({f"module.{text.WORDS}": torch.zeros(len(words), 3)}, words, "file.th")
    (tmp_path / "vocab.txt").write_text("no\nvocabulary\n")
    with pytest.raises(ValueError, match="restore it, or remove it"):
        text.read_corpus(arguments(data), tmp_path / "model_state_best.th")


def test_word_vectors(tmp_path, caplog):
    write_split(tmp_path)
    (tmp_path / "vectors.txt").write_text("cat 1 2 3\nsat 4 5 6\nzebra 7 8 9\n")
    corpus = text.read_corpus(arguments(tmp_path))
    with caplog.at_level("INFO"):
        vectors = text.word_vectors(arguments(tmp_path), corpus)
    assert vectors.shape == (len(corpus.words), 3)
    assert vectors[0].tolist() == [0, 0, 0]
    assert vectors[corpus.words.index("cat")].tolist() == [1, 2, 3]
    assert vectors[corpus.words.index("sat")].tolist() == [4, 5, 6]
    lacking = [i for i, w in enumerate(corpus.words) if i and w not in ("cat", "sat")]
    assert np.abs(vectors[lacking]).min() > 0  # drawn
    tokens = sum(len(s) for part in corpus.ids for s in part)
    assert f"{100 * 15 / tokens:.1f} % of all tokens" in caplog.text  # cat 9 times, sat 6 times
    again = text.word_vectors(arguments(tmp_path), corpus)
    np.testing.assert_array_equal(again, vectors)
    other = text.word_vectors(arguments(tmp_path, seed=1), corpus)
    assert not np.array_equal(other[lacking], vectors[lacking])


def test_punkt_without_its_data_says_what_helps(monkeypatch):
    import nltk.tokenize

    def lacking(*args, **options):
        raise LookupError("punkt_tab")

    monkeypatch.setattr(nltk.tokenize, "word_tokenize", lacking)
    with pytest.raises(FileNotFoundError, match=r"nltk\.downloader punkt_tab"):
        datasets.tokenize(["A cat."], "punkt")


# ---- network -------------------------------------------------------------------------------


def test_padding_and_neighbours_do_not_change_an_encoding():
    torch.manual_seed(0)
    encoder = bilstm.LSTMEncoder(30, 8, 5, highway_layers=1).eval()
    ids = torch.randint(2, 30, (4, 9))
    lengths = [3, 9, 1, 5]
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
    with torch.no_grad():
        together = encoder(ids, lengths)
        for row, length in enumerate(lengths):
            alone = encoder(ids[row : row + 1, :length], [length])
            torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-6)


def test_training_mode_gives_finite_gradients():
    """The maximum must not meet 0 · −inf where dropout and padding fall together."""
    torch.manual_seed(0)
    model = bilstm.SimilarityRegressor(bilstm.LSTMEncoder(30, 8, 5, dropout=0.5))
    ids = torch.randint(2, 30, (8, 6))
    preds, features = model(ids, [6, 1, 2, 3, 1, 6, 4, 2])
    preds.sum().backward()
    assert torch.isfinite(features).all()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert model.pair_encoder.words.weight.grad is None  # frozen


@pytest.mark.parametrize("layers", [1, 3])
def test_packed_recurrence_is_the_lstm_of_torch(layers, monkeypatch):
    """Outputs and every gradient, with sentences of one word and several of one length."""
    used, apply = [], recurrence.PackedRecurrence.apply
    monkeypatch.setattr(
        recurrence.PackedRecurrence, "apply", lambda *a: used.append(1) or apply(*a)
    )
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(7, 5, layers, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(6, 9, 7, requires_grad=True), [3, 9, 1, 5, 9, 2]
    results = []
    for run in (lambda packed: lstm(packed)[0], lambda packed: recurrence.run_packed(lstm, packed)):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        data = run(packed).data
        weights = torch.linspace(-1, 1, data.numel()).view_as(data)
        grads = torch.autograd.grad((data.sin() * weights).sum(), [x, *lstm.parameters()])
        results.append([data, *grads])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(used) == 2 * layers  # the second did not come from torch's own path


def test_pair_features_are_u_v_difference_product():
    model = bilstm.SimilarityRegressor(bilstm.LSTMEncoder(30, 8, 5)).eval()
    ids = torch.randint(2, 30, (6, 4))
    with torch.no_grad():
        u, v = model.pair_encoder(ids[:3], [4] * 3), model.pair_encoder(ids[3:], [4] * 3)
        features = model.pair_features(ids, [4] * 6)
    expected = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_highway_by_formula():
    torch.manual_seed(0)
    layer = bilstm.Highway(3, 1)
    (linear,) = layer._layers
    assert linear.bias[3:].tolist() == [1, 1, 1]
    x = torch.randn(5, 3)
    changed, gate = (x @ linear.weight.T + linear.bias).split(3, dim=1)
    gate = 1 / (1 + torch.exp(-gate))
    torch.testing.assert_close(layer(x), gate * x + (1 - gate) * changed.clamp(min=0))


def test_fds_of_another_width_is_refused():
    with pytest.raises(ValueError, match="40 features, FDS 12"):
        bilstm.SimilarityRegressor(bilstm.LSTMEncoder(30, 8, 5), fds.FDS(12, 50))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_text_encoder_ignores_padding(pooling):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20,
    )  # fmt: skip
    encoder = bilstm.TextEncoder(transformers.BertModel(config), pooling=pooling).eval()
    assert encoder.sentence_dim == 16
    ids, lengths = torch.randint(1, 40, (3, 7)), [7, 2, 4]
    with torch.no_grad():
        together = encoder(ids, lengths)
        for row, length in enumerate(lengths):
            alone = encoder(ids[row : row + 1, :length], [length])
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_an_encoder_is_found_in_a_package(tmp_path, monkeypatch):
    import transformers

    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, vocab_size=20)
    config.save_pretrained(tmp_path / "an_encoder" / "model")
    (tmp_path / "an_encoder" / "__init__.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert text.load_pretrained("AutoConfig", "an-encoder").hidden_size == 8
    for name in ("json", "owner/an-encoder", str(tmp_path / "an_encoder" / "model"), "no-package"):
        assert text.find_encoder(name) == name


def test_a_compiled_text_encoder_reuses_its_graphs():
    """Lengths come with the batch as a tensor: other numbers need no other graph."""

    class Words(torch.nn.Embedding):
        config = SimpleNamespace(hidden_size=8)

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(last_hidden_state=super().forward(input_ids))

    torch.manual_seed(0)
    network = bilstm.SimilarityRegressor(bilstm.TextEncoder(Words(100, 8), dropout=0.0))
    graphs, batches_seen = [], list(make_loader(n=96).train(0))
    want = [network(batch.ids, batch.packing.lengths.tolist())[0] for batch in batches_seen]
    torch._dynamo.reset()
    network.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for batch, expected in zip(batches_seen, want):
        torch.testing.assert_close(network(batch.ids, batch.packing)[0], expected, rtol=0, atol=0)
    torch._dynamo.reset()
    assert len({tuple(batch.packing.lengths.tolist()) for batch in batches_seen}) == 12
    assert len(graphs) <= 2  # of the first length, and of any


# ---- batches -------------------------------------------------------------------------------


def make_loader(n=37, rank=0, processes=1, seed=0, grouped=False):
    rng = np.random.default_rng(3)
    ids = [[[int(i) + 2] * int(rng.integers(1, 9)) for i in range(n)] for _ in range(2)]
    sharing = batches.Sharing(8, seed, torch.device("cpu"), rank, processes)
    return datasets.Loader(ids, np.linspace(0, 5, n), np.arange(n), sharing, grouped)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_holds_every_pair_once(grouped):
    loader = make_loader(seed=5, grouped=grouped)
    epoch = list(loader.train(0))
    assert len(epoch) == len(loader) == 5
    assert sorted(len(b.labels) for b in epoch) == [5, 8, 8, 8, 8]  # no short batch is dropped
    rows = [int(w) for b in epoch for w in b.weights]
    assert sorted(rows) == list(range(37))
    for batch in epoch:
        n = len(batch.labels)
        assert batch.ids.shape == (2 * n, max(batch.packing.lengths))
        for i in range(2 * n):
            row, length = int(batch.weights[i % n]), batch.packing.lengths[i]
            padding = [0] * (max(batch.packing.lengths) - length)
            assert batch.ids[i].tolist() == [row + 2] * length + padding
    again = [int(w) for b in loader.train(0) for w in b.weights]
    other = [int(w) for b in loader.train(1) for w in b.weights]
    assert again == rows
    assert other != rows
    part = [int(w) for b in loader.train(0, slice(2, 4)) for w in b.weights]
    sizes = np.cumsum([0, *(len(b.labels) for b in epoch)])
    assert part == rows[sizes[2] : sizes[4]]


def test_grouping_by_length_saves_padding():
    padded = {}
    for grouped in (False, True):
        epoch = make_loader(n=400, grouped=grouped).train(0)
        padded[grouped] = sum(b.ids.numel() - sum(b.packing.lengths) for b in epoch)
    assert padded[True] < 0.6 * padded[False]


def test_two_processes_share_each_batch():
    whole = list(make_loader(n=33).train(0))
    parts = [list(make_loader(n=33, rank=rank, processes=2).train(0)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts):
        held = [part for part in (first, second) if part.share]
        rows = [int(w) for part in held for w in part.weights]
        assert rows == [int(w) for w in batch.weights]
        assert sum(p.share * len(p.labels) for p in held) == pytest.approx(
            sum(len(p.labels) ** 2 for p in held) * 2 / len(batch.labels)
        )
    assert [len(w.labels) for w in whole][-1] == 1
    assert parts[1][-1].share == 0
    evaluated = [list(make_loader(n=33, rank=rank, processes=2).evaluate()) for rank in (0, 1)]
    labels = [float(label) for part in evaluated for b in part for label in b.labels]
    np.testing.assert_allclose(labels, np.linspace(0, 5, 33), rtol=1e-6)
    # Both together hold a batch of 8 at a time.
    assert {len(b.labels) for part in evaluated for b in part} == {4, 1}
