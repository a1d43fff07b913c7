"""The balanced split of the sentence pairs, and the files that prepare.py writes and checks."""

import csv
import hashlib
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, load

prepare = load("sts-b-dir", "prepare")

HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
NAMES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}


def rows_of(path):
    """The rows of a file as dictionaries, read by Python's csv module with quotes switched off."""
    with open(path, encoding="utf-8", newline="\n") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def pair(row):
    return frozenset((row["sentence1"], row["sentence2"]))


def identity(row):
    return tuple(row[column] for column in HEADER[1:])


def bin_of(score):
    """The bin by comparison with each edge."""
    return max(i for i in range(20) if i * 0.25 <= float(score))


def write_tsv(path, rows, header=HEADER):
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def made_up(count, seed=0):
    """Rows of the raw layout with distinct sentences and scores as annotators give them."""
    rng = random.Random(seed)
    return [
        [i, "main-news", "headlines", "2015", f"{i:04}", "none", "none",
         f'No. {i} said "yes', f"It’s the answer {i}.", f"{rng.randrange(26) / 5:.3f}"]
        for i in range(count)
    ]  # fmt: skip


def run(*flags):
    return prepare.main([*map(str, flags)])


@pytest.fixture
def raw(tmp_path):
    """A folder with made-up train.tsv and dev.tsv, 2,000 pairs together."""
    rows = made_up(2000)
    write_tsv(tmp_path / "train.tsv", rows[:1500])
    write_tsv(tmp_path / "dev.tsv", rows[1500:])
    return tmp_path


# ---- the draw ----


@settings(max_examples=80, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.2, 0.25, 1, 2.5, 4.75, 4.999, 5.0]), max_size=70),
    cap=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_each_bin_gives_val_and_test_the_same_number(scores, cap, seed):
    random.seed(1)
    before = random.getstate()
    split = prepare.balanced_split(scores, list(range(len(scores))), cap, seed)
    assert random.getstate() == before  # the caller's random numbers are untouched
    assert list(split) == list(prepare.balanced_split(scores, list(range(len(scores))), cap, seed))
    counts = Counter((bin_of(score), name) for score, name in zip(scores, split))
    for number in {bin_of(score) for score in scores}:
        total = sum(counts[number, name] for name in NAMES)
        n = min(total // 3, cap)
        assert (counts[number, "val"], counts[number, "test"]) == (n, n)


def test_every_pair_may_be_drawn_and_the_seed_decides():
    scores, pairs = [3.0] * 30, list(range(30))
    splits = [prepare.balanced_split(scores, pairs, 5, seed) for seed in range(200)]
    for name in ("val", "test"):  # 5 of 30: 33 of 200 draws, give or take 5.3
        often = [sum(split[row] == name for split in splits) for row in pairs]
        assert min(often) > 8
        assert max(often) < 60
    assert len({tuple(split) for split in splits}) == 200


def test_a_pair_that_occurs_twice_stays_in_train():
    scores, pairs = [1.0] * 20, [*"aabbccdd", *range(12)]
    for seed in range(50):
        split = prepare.balanced_split(scores, pairs, 50, seed)
        assert set(split[:8]) == {"train"}
        assert Counter(split) == {"train": 8, "val": 6, "test": 6}  # 20 // 3 of each
    assert set(prepare.balanced_split([1.0] * 6, [*"aabbcc"], 50)) == {"train"}


@pytest.mark.parametrize(
    ("scores", "pairs", "message"),
    [
        ([1, 2], ["a"], "one a pair"),
        ([1, 5.01], ["a", "b"], "row 1 has the score 5.01"),
        ([-0.1, 2], ["a", "b"], "row 0 has the score -0.1"),
        ([1, float("nan")], ["a", "b"], "row 1 has the score nan"),
    ],
)
def test_split_refuses(scores, pairs, message):
    with pytest.raises(ValueError, match=message):
        prepare.balanced_split(scores, pairs)


# ---- the real data ----


def test_the_official_files_pass_the_check(shared_data, capsys):
    assert run("--check", "--data_dir", shared_data / "sts_b_dir") == 0
    out = capsys.readouterr().out
    assert "5,249   expected  5,249\n" in out
    assert "official files by their sha256: train_new.tsv, dev_new.tsv, test_new.tsv" in out
    assert "30 pairs of sentences are in two splits" in out


def test_the_real_pairs_give_the_expected_counts(shared_data, tmp_path, capsys):
    official = [row for name in NAMES.values() for row in rows_of(shared_data / "sts_b_dir" / name)]
    random.Random(4).shuffle(official)
    write_tsv(tmp_path / "train.tsv", [row.values() for row in official[:5749]])  # GLUE's sizes
    write_tsv(tmp_path / "dev.tsv", [row.values() for row in official[5749:]])
    flags = ("--raw_dir", tmp_path, "--data_dir", tmp_path / "out")
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "DIFFERS" not in out
    assert "NOT the official one" in out
    splits = {name: rows_of(tmp_path / "out" / file) for name, file in NAMES.items()}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 5249, "val": 1000, "test": 1000,
    }  # fmt: skip
    pooled = Counter(identity(row) for rows in splits.values() for row in rows)
    assert pooled == Counter(map(identity, official))
    for name in ("val", "test"):
        counts = Counter(bin_of(row["score"]) for row in splits[name])
        assert counts == dict.fromkeys(range(20), 50)
    sets = [{pair(row) for row in rows} for rows in splits.values()]
    assert len(sets[0] | sets[1] | sets[2]) == sum(map(len, sets))
    assert run("--check", *flags[2:]) == 0
    assert "official files by their sha256: none" in capsys.readouterr().out


# ---- files ----


def test_files_have_the_official_layout_and_lose_nothing(raw, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--raw_dir", raw, "--data_dir", out, "--seed", 7) == 0
    assert "DIFFERS" in capsys.readouterr().out  # 2,000 pairs are not STS-B's 7,249
    content = {file: (out / file).read_bytes() for file in NAMES.values()}
    assert sorted(path.name for path in out.glob("[!.]*")) == sorted(content)
    found = []
    for name, file in NAMES.items():
        rows = rows_of(out / file)
        assert list(rows[0]) == HEADER
        assert [row["index"] for row in rows] == [str(i) for i in range(len(rows))]
        assert b"\r" not in content[file]
        found += map(identity, rows)
        # As by `balanced_split` on the rows of train.tsv, then those of dev.tsv.
        given = [*rows_of(raw / "train.tsv"), *rows_of(raw / "dev.tsv")]
        split = prepare.balanced_split(
            [float(row["score"]) for row in given], [*range(2000)], 50, 7
        )
        assert [*map(identity, rows)] == [
            identity(row) for row, chosen in zip(given, split) if chosen == name
        ]
    assert Counter(found) == Counter(tuple(map(str, row[1:])) for row in made_up(2000))
    run("--raw_dir", raw, "--data_dir", out, "--overwrite", "--seed", 7)
    assert content == {file: (out / file).read_bytes() for file in NAMES.values()}
    run("--raw_dir", raw, "--data_dir", out, "--overwrite", "--seed", 8)
    assert content["test_new.tsv"] != (out / "test_new.tsv").read_bytes()


def test_existing_files_stay_without_overwrite(raw):
    (raw / "dev_new.tsv").write_text("mine")
    with pytest.raises(ValueError, match=r"dev_new\.tsv.*--check.*--overwrite"):
        run("--raw_dir", raw, "--data_dir", raw)
    assert (raw / "dev_new.tsv").read_text() == "mine"
    assert not (raw / "train_new.tsv").exists()


def test_bad_input_leaves_existing_files(raw):
    run("--raw_dir", raw, "--data_dir", raw)
    before = {file: (raw / file).read_bytes() for file in NAMES.values()}
    with open(raw / "dev.tsv", "a", encoding="utf-8") as file:
        file.write("2000\tmain-news\tx\t2015\t1\tnone\tnone\tA.\tB.\tfive\n")
    with pytest.raises(ValueError, match=r"dev\.tsv.*line 502 .*'five'"):
        run("--raw_dir", raw, "--data_dir", raw, "--overwrite")
    assert before == {file: (raw / file).read_bytes() for file in NAMES.values()}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"A.\tB.\t1\tmore", "line 3 "),
        (b"A.\tB.", "line 3 "),
        (b"A.\t \t1", "line 3 "),
        (b"A.\tB.\t5.01", "line 3 .*'5.01'"),
        (b"A.\tB.\tnan", "line 3 .*'nan'"),
        (b"", "line 3 "),
        (b"A.\t\xffB.\t1", "UTF-8"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_with_its_line(tmp_path, line, message):
    content = b"sentence1\tsentence2\tscore\nC.\tD.\t1\n" + line + b"\nE.\tF.\t2\n"
    (tmp_path / "list.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.tsv.*{message}"):
        run("--meta", tmp_path / "list.tsv", "--data_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_and_columns_name_what_helps(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.tsv.*download\.py --what raw"):
        run("--raw_dir", tmp_path, "--data_dir", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train_new\.tsv.*download\.py"):
        run("--check", "--data_dir", tmp_path)
    (tmp_path / "list.tsv").write_text("sentence1;sentence2;score\na;b;1\n")
    with pytest.raises(ValueError, match=r"sentence1, sentence2, score.*tabs or commas"):
        run("--meta", tmp_path / "list.tsv", "--data_dir", tmp_path / "out")
    write_tsv(tmp_path / "list.tsv", [["a", "b", "1", "c"]], [*HEADER[-3:], "score"])
    with pytest.raises(ValueError, match="score twice: rename one"):
        run("--meta", tmp_path / "list.tsv", "--data_dir", tmp_path / "out")


def test_a_target_next_to_a_column_score_is_the_one_asked_for(tmp_path, capsys):
    rows = [[f"Pair {i}, one.", f"Pair {i}, two.", i % 6, 20 * (i % 6)] for i in range(60)]
    write_tsv(tmp_path / "own.tsv", rows, ["sentence1", "sentence2", "score", "grade"])
    flags = ("--data_dir", tmp_path / "out", *"--target grade --low 0 --high 100 --cap 2".split())
    assert run("--meta", tmp_path / "own.tsv", *flags) == 0
    scores = [
        float(row["score"]) for file in NAMES.values() for row in rows_of(tmp_path / "out" / file)
    ]
    assert sorted(scores) == sorted(float(row[3]) for row in rows)
    assert run("--check", *flags) == 0
    assert "DIFFERS" not in capsys.readouterr().out


def test_own_pairs_with_three_columns_and_windows_line_ends(tmp_path, capsys):
    lines = [f"{i % 6}\tPair {i}, one.\textra\tPair {i}, two." for i in range(60)]
    text = "\ufeff" + "\r\n".join(["score\tsentence1\tnote\tsentence2", *lines]) + "\r\n"
    (tmp_path / "own.tsv").write_bytes(text.encode())
    flags = ("--meta", tmp_path / "own.tsv", "--data_dir", tmp_path / "out")
    assert run(*flags, "--cap", 2) == 0
    assert "expected" not in capsys.readouterr().out
    assert run("--check", *flags[2:], "--cap", 2) == 0
    assert "expected" not in capsys.readouterr().out
    rows = {name: rows_of(tmp_path / "out" / file) for name, file in NAMES.items()}
    assert {name: len(part) for name, part in rows.items()} == {"train": 36, "val": 12, "test": 12}
    for part in rows.values():
        for row in part:
            i = int(row["old_index"])
            assert identity(row) == (
                "none", "none", "none", str(i), "none", "none",
                f"Pair {i}, one.", f"Pair {i}, two.", str(i % 6),
            )  # fmt: skip
    assert run(*flags, "--check") == 0
    pairs = load("sts-b-dir", "pair_file").read_pairs(tmp_path / "out")  # as training reads them
    assert Counter(pairs["split"]) == {"train": 36, "val": 12, "test": 12}


def test_too_few_pairs_are_an_error(tmp_path):
    write_tsv(tmp_path / "own.tsv", [["a", "b", 1], ["c", "d", 1], ["e", "f", 3]], HEADER[-3:])
    with pytest.raises(ValueError, match="no bin has three"):
        run("--meta", tmp_path / "own.tsv", "--data_dir", tmp_path / "out")


def test_check_reports_each_kind_of_problem(tmp_path, capsys, monkeypatch):
    write_tsv(tmp_path / "own.tsv", [row[-3:] for row in made_up(600)], HEADER[-3:])
    out, flags = tmp_path / "out", ("--meta", tmp_path / "own.tsv", "--data_dir", tmp_path / "out")
    run(*flags)
    good = {file: (out / file).read_bytes() for file in NAMES.values()}

    def problems(**changed):
        for file, content in good.items():
            (out / file).write_bytes(changed.get(file.split("_")[0], content))
        capsys.readouterr()
        status = run(*flags, "--check")
        text = capsys.readouterr().out
        assert status == ("as it should be" not in text)
        return text

    assert "as it should be" in problems()
    lines = {file.split("_")[0]: content.splitlines(True) for file, content in good.items()}
    swapped = lines["test"][1].split(b"\t")
    swapped[7:9] = swapped[8:6:-1]  # the same two sentences the other way round
    text = problems(train=good["train_new.tsv"] + b"\t".join(swapped))
    assert "1 pairs are in two splits" in text
    assert "1 are not in --meta" in text
    text = problems(test=b"".join(lines["test"][:-1]))
    assert "1 pairs of --meta are in no split" in text
    assert "val and test differ" in text
    assert "two splits" not in text
    run("--check", "--data_dir", out)  # pairs without a genre are not STS-B's: no counts are known
    assert "expected" not in capsys.readouterr().out
    digest = hashlib.sha256(good["test_new.tsv"]).hexdigest()
    monkeypatch.setitem(prepare.OFFICIAL_SHA256, "test", digest)
    assert "only some are official" in problems()


@pytest.mark.parametrize(
    "flags", [["--meta", "x.tsv"], ["--check", "--overwrite"], ["--cap", "0"], ["--no_such_flag"]]
)
def test_conflicting_flags_end_in_a_usage_error(flags):
    with pytest.raises(SystemExit) as error:
        run(*flags)
    assert error.value.code == 2


def test_the_script_runs_from_its_folder(raw):
    command = [sys.executable, "prepare.py", "--raw_dir", str(raw), "--data_dir", str(raw)]
    folder = ROOT / "sts-b-dir"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(len(rows_of(raw / file)) for file in NAMES.values()) == 2000
    assert run("--check", "--data_dir", raw) == 1  # 2,000 pairs are not STS-B's 7,249
