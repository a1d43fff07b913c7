"""The generated pairs: same bytes for the same seed, layout, balance, and scores one can learn."""

import csv
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from conftest import ROOT, load

demo_data = load("sts-b-dir", "demo_data")
sentences = load("sts-b-dir", "demo.sentences")
NAMES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}
HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".lock"}


def rows_of(path):
    with open(path, encoding="utf-8", newline="\n") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def main(out, *flags):
    demo_data.main(["--out", str(out), *map(str, flags)])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    main(out)
    return out


@pytest.fixture(scope="module")
def vectors(demo):
    lines = (demo / "vectors.txt").read_text(encoding="utf-8").splitlines()
    return {line.split(" ")[0]: np.array(line.split(" ")[1:], dtype=float) for line in lines}


def words_of(sentence):
    return re.findall(r"\w+|[.,]", sentence)


def test_the_script_gives_the_same_bytes_and_another_seed_others(demo, tmp_path):
    done = subprocess.run(
        [sys.executable, "demo_data.py", "--out", str(tmp_path / "a")],
        cwd=ROOT / "sts-b-dir", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"train +1,500\n +val +200\n +test +200\n", done.stdout)
    assert contents(tmp_path / "a") == contents(demo)
    assert sorted(contents(demo)) == sorted([*NAMES.values(), "vectors.txt"])
    main(tmp_path / "b", "--seed", 1)
    for name, content in contents(tmp_path / "b").items():
        assert content != contents(demo)[name]


def test_layout_is_the_official_one_and_training_can_read_it(demo):
    for name in NAMES.values():
        rows = rows_of(demo / name)
        assert list(rows[0]) == HEADER
        assert [row["index"] for row in rows] == [str(i) for i in range(len(rows))]
        for row in rows:
            assert re.fullmatch(r"[0-4]\.\d{3}|5\.000", row["score"])
            assert None not in row.values()
            for sentence in (row["sentence1"], row["sentence2"]):
                assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+,?)+ [a-z]+\.", sentence)
                assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", sentence.lower())
    pairs = load("sts-b-dir", "pair_file").read_pairs(demo)
    assert Counter(pairs["split"]) == {"train": 1500, "val": 200, "test": 200}


def test_validation_and_test_are_balanced_and_train_is_skewed(demo):
    bins = {
        name: Counter(min(int(float(row["score"]) / 0.25), 19) for row in rows_of(demo / file))
        for name, file in NAMES.items()
    }
    for name in ("val", "test"):
        assert bins[name] == dict.fromkeys(range(20), 10)
    assert len(bins["train"]) == 20
    assert max(bins["train"].values()) > 5 * min(bins["train"].values())
    scores = [float(row["score"]) for row in rows_of(demo / NAMES["train"])]
    buckets = np.bincount(load("sts-b-dir", "datasets").label_to_bucket(scores), minlength=50)
    assert np.median(buckets[::2]) > 5 * np.median(buckets[1::2])  # few-shot buckets in between


def test_the_training_set_is_as_skewed_as_the_real_one(demo, shared_data):
    counts = [
        np.bincount(
            [min(int(float(row["score"]) * 4), 19) for row in rows_of(folder / NAMES["train"])]
        )
        for folder in (demo, shared_data / "sts_b_dir")
    ]
    np.testing.assert_allclose(counts[0] / 1500, counts[1] / 5249, atol=1 / 1500)


def test_no_pair_occurs_twice(demo):
    pairs = [
        frozenset((row["sentence1"], row["sentence2"]))
        for name in NAMES.values()
        for row in rows_of(demo / name)
    ]
    assert len(set(pairs)) == len(pairs)


def test_every_word_has_a_vector_and_those_of_one_meaning_are_near(demo, vectors):
    tokenize = load("sts-b-dir", "datasets").tokenize
    texts = [
        row[column]
        for name in NAMES.values()
        for row in rows_of(demo / name)
        for column in ("sentence1", "sentence2")
    ]
    assert {word for words in tokenize(texts) for word in words} <= set(vectors)
    assert {len(vector) for vector in vectors.values()} == {32}
    read = load("sts-b-dir", "embeddings").read_word_vectors
    matrix, found = read(demo / "vectors.txt", list(vectors), 32, quiet=True)
    assert found.all()
    np.testing.assert_allclose(matrix, list(vectors.values()), rtol=1e-6)

    def cosine(a, b):
        a, b = vectors[a], vectors[b]
        return a @ b / np.sqrt((a @ a) * (b @ b))

    same = [cosine(*p) for p in (("boy", "lad"), ("car", "automobile"), ("forest", "woods"))]
    related = [cosine(*p) for p in (("boy", "girl"), ("car", "truck"), ("red", "blue"))]
    other = [cosine(*p) for p in (("boy", "truck"), ("car", "woods"), ("red", "watching"))]
    assert min(same) > 0.85
    assert np.mean(same) > np.mean(related) + 0.2 > np.mean(other) + 0.4


def features(rows, vectors):
    """[N, 64]: how well each sentence's words are matched by the other's, and mean vectors."""
    table = []
    for row in rows:
        u, v = (
            np.stack([vectors[word] for word in words_of(row[column])])
            for column in ("sentence1", "sentence2")
        )
        table.append(np.concatenate([np.abs(u.max(0) - v.max(0)), (u.mean(0) - v.mean(0)) ** 2]))
    return np.stack(table)


def ridge(x, y, x_test):
    mean, std = x.mean(0), x.std(0)
    x, x_test = (x - mean) / (std + 1e-9), (x_test - mean) / (std + 1e-9)
    return x_test @ np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean()))


def test_the_score_can_be_read_from_the_sentences(demo, vectors):
    train, test = (rows_of(demo / NAMES[name]) for name in ("train", "test"))
    x, x_test = features(train, vectors), features(test, vectors)
    y, y_test = (np.array([float(row["score"]) for row in rows]) for rows in (train, test))
    assert np.corrcoef(ridge(x, y, x_test), y_test)[0, 1] > 0.7
    # Neither sentence alone tells it, nor does a fit to scores of other pairs.
    alone = [[row | {"sentence2": "."} for row in rows] for rows in (train, test)]
    fitted = ridge(features(alone[0], vectors), y, features(alone[1], vectors))
    assert abs(np.corrcoef(fitted, y_test)[0, 1]) < 0.3
    shuffled = np.random.default_rng(0).permutation(y)
    assert abs(np.corrcoef(ridge(x, shuffled, x_test), y_test)[0, 1]) < 0.3


def meanings_of(sentence):
    """The meaning of each part, looked up in the vocabulary by its words."""
    found = {}
    for part, meanings in sentences.VOCABULARY.items():
        for meaning, words in meanings.items():
            if set(words) & set(words_of(sentence.lower())):
                assert part not in found
                found[part] = meaning
    assert len(found) == 5
    return found


@pytest.mark.parametrize("score", [0, 0.6, 1.9, 2.5, 3.333, 4.1, 5])
def test_a_pair_keeps_as_much_meaning_as_its_score_says(score):
    rng = np.random.default_rng(3)
    shares = {"subject": 0.25, "verb": 0.3, "object": 0.25, "adjective": 0.1, "place": 0.1}
    for _ in range(40):
        first, second = map(meanings_of, sentences.make_pair(score, rng))
        kept = sum(
            share * (1 if first[p] == second[p] else 0.5 if first[p][0] == second[p][0] else 0)
            for p, share in shares.items()
        )
        assert abs(5 * kept - score) <= 0.3 + 1e-9


@pytest.mark.parametrize("score", [-0.1, 5.1, float("nan")])
def test_a_score_outside_is_an_error(score):
    with pytest.raises(ValueError, match="must be in"):
        sentences.make_pair(score, np.random.default_rng(0))


def test_sizes_that_do_not_divide(tmp_path):
    main(tmp_path, "--n_train", 7, "--n_val", 33, "--n_test", 1)
    counts = {name: len(rows_of(tmp_path / file)) for name, file in NAMES.items()}
    assert counts == {"train": 7, "val": 33, "test": 1}
    bins = Counter(int(float(r["score"]) / 0.25) for r in rows_of(tmp_path / NAMES["val"]))
    assert set(bins.values()) <= {1, 2}


def test_existing_and_foreign_files_are_kept(tmp_path):
    small = ("--n_train", 20, "--n_val", 20, "--n_test", 20)
    main(tmp_path, *small)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="--overwrite"):
        main(tmp_path, *small, "--seed", 1)
    assert contents(tmp_path) == before
    main(tmp_path, *small, "--seed", 1, "--overwrite")
    after = contents(tmp_path)
    assert not set(after.values()) & set(before.values())
    real = after["dev_new.tsv"].replace(b"\tdemo\tdemo\t", b"\tmain-news\theadlines\t")
    (tmp_path / "dev_new.tsv").write_bytes(real)
    with pytest.raises(ValueError, match=r"dev_new\.tsv holds other pairs"):
        main(tmp_path, *small, "--overwrite")
    assert contents(tmp_path) == after | {"dev_new.tsv": real}


@pytest.mark.parametrize(("flag", "value"), [("--n_train", 0), ("--n_test", -1), ("--seed", -1)])
def test_wrong_flags_are_errors_that_name_the_flag(flag, value, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(tmp_path, flag, value)
    assert f"{flag} is {value}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
