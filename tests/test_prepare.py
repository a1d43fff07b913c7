"""The balanced split of the ages, and the meta file that prepare.py writes and checks."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, load

prepare = load("agedb-dir", "prepare")
meta_file = load("agedb-dir", "meta_file")


def split_by_the_words(ages, paths, cap, seed):
    """The routine as `balanced_split` describes it, word by word, on lists of paths."""
    random.seed(seed)
    result = dict.fromkeys(paths, "train")
    for age in range(121):
        of_age = [path for path, a in zip(paths, ages) if int(a) == age]
        random.shuffle(of_age)
        n = min(len(of_age) // 3, cap)
        result.update(dict.fromkeys(of_age[:n], "val"))
        result.update(dict.fromkeys(of_age[n : 2 * n], "test"))
    return [result[path] for path in paths]


@settings(max_examples=60, deadline=None)
@given(
    ages=st.lists(
        # Not within rounding below a whole age, which counts as that one.
        st.integers(0, 8) | st.integers(110, 130) | st.floats(0, 3).map(lambda x: round(x, 3)),
        max_size=80,
    ),
    cap=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_split_is_the_routine_word_by_word(ages, cap, seed):
    paths = [f"f/{i}.jpg" for i in range(len(ages))]
    state = random.getstate()
    try:
        expected = split_by_the_words(ages, paths, cap, seed)
        random.seed(1)
        before = random.getstate()
        assert meta_file.balanced_split(ages, paths, cap, seed) == expected
        assert random.getstate() == before  # the caller's random numbers are untouched
    finally:
        random.setstate(state)
    counts = Counter((int(age), split) for age, split in zip(ages, expected))
    for age in {int(age) for age in ages}:
        total = sum(counts[age, split] for split in ("train", "val", "test"))
        n = min(total // 3, cap) if age <= 120 else 0
        assert (counts[age, "val"], counts[age, "test"]) == (n, n)


def test_the_official_file_is_reproduced(shared_data):
    meta = pd.read_csv(shared_data / "agedb.csv")
    split = meta_file.balanced_split(meta["age"], meta["path"], cap=30)
    assert split == meta["split"].tolist()
    assert Counter(split) == prepare.EXPECTED
    # The order of the rows matters: by file name the counts stay and the split does not.
    by_name = meta.sort_values("path")
    other = meta_file.balanced_split(by_name["age"], by_name["path"].tolist(), cap=30)
    assert Counter(other) == prepare.EXPECTED
    assert other != by_name["split"].tolist()


def test_utkface_is_reproduced_and_passes_the_check(shared_data, capsys):
    folder = shared_data / "utkface"
    meta = pd.read_csv(folder / "utkface.csv")
    assert meta_file.balanced_split(meta["age"], meta["path"], 30) == meta["split"].tolist()
    assert prepare.main(["--data_dir", str(folder), "--dataset", "utkface", "--check"]) == 0
    assert "18,919" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ages", "paths", "cap", "message"),
    [
        ([1, 2], ["a"], 3, "one age a path"),
        ([1, -2], ["a", "b"], 3, "row 1 has age -2"),
        ([1, float("nan")], ["a", "b"], 3, "row 1 has age nan"),
        ([1, float("inf")], ["a", "b"], 3, "row 1 has age inf"),
        ([1, 2, 3], ["a", "b", "a"], 3, "1 paths occur twice, the first 'a'"),
        ([1], ["a"], -1, "cap is -1"),
    ],
)
def test_split_refuses(ages, paths, cap, message):
    with pytest.raises(ValueError, match=message):
        meta_file.balanced_split(ages, paths, cap)


@pytest.fixture
def faces(tmp_path):
    """A data folder of 200 faces: empty files, of which the names alone matter here."""
    (tmp_path / "AgeDB").mkdir()
    ages = np.random.default_rng(3).integers(20, 26, 200)
    for i, age in enumerate(ages):
        (tmp_path / "AgeDB" / f"{i}_JaneMc_Doe_{age}_{'mf'[i % 2]}.jpg").touch()
    (tmp_path / "AgeDB" / "Thumbs.db").touch()
    return tmp_path


def run(folder, *flags):
    return prepare.main(["--data_dir", str(folder), *flags])


def test_the_folder_is_listed_by_name(faces, capsys):
    assert run(faces, "--cap", "5") == 0
    out = capsys.readouterr().out
    assert "NOT the official split" in out
    assert "val       30   expected   2,140   DIFFERS" in out
    meta = pd.read_csv(faces / "agedb.csv")
    assert list(meta.columns) == ["age", "path", "split"]
    names = sorted(path.name for path in (faces / "AgeDB").glob("*.jpg"))
    assert meta["path"].tolist() == [f"AgeDB/{name}" for name in names]
    assert meta["age"].tolist() == [int(name.split("_")[-2]) for name in names]
    assert Counter(meta["split"]) == {"train": 140, "val": 30, "test": 30}  # six ages, cap 5
    assert b"\r" not in (faces / "agedb.csv").read_bytes()
    assert not list(faces.glob(".*.tmp"))


def test_another_seed_is_another_split(faces):
    run(faces)
    first = pd.read_csv(faces / "agedb.csv")
    run(faces, "--overwrite", "--seed", "1")
    second = pd.read_csv(faces / "agedb.csv")
    assert first["path"].equals(second["path"])
    assert Counter(first["split"]) == Counter(second["split"])
    assert not first["split"].equals(second["split"])


def test_an_existing_file_stays_without_overwrite(faces):
    (faces / "agedb.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"--check.*--overwrite"):
        run(faces)
    assert (faces / "agedb.csv").read_text() == "mine"
    assert run(faces, "--overwrite") == 0
    assert len(pd.read_csv(faces / "agedb.csv")) == 200


def test_a_failed_write_leaves_the_old_file(faces, monkeypatch):
    (faces / "agedb.csv").write_text("mine")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(prepare.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run(faces, "--overwrite")
    assert (faces / "agedb.csv").read_text() == "mine"
    assert not list(faces.glob(".*.tmp"))


def test_names_that_do_not_parse_are_an_error_or_reported(faces, capsys):
    bad = [f"face{i:02}.jpg" for i in range(12)] + ["7_NoGender_30.jpg"]
    for name in bad:
        (faces / "AgeDB" / name).touch()
    with pytest.raises(ValueError, match=r"13 of 213 names.*--skip_unparsed") as error:
        run(faces)
    shown = sorted(bad)[:10]
    assert all(name in str(error.value) for name in shown)
    assert "face09.jpg" not in str(error.value)  # the first ten alone
    assert not (faces / "agedb.csv").exists()
    assert run(faces, "--skip_unparsed") == 0
    assert "left out: 13 of 213 names" in capsys.readouterr().out
    assert len(pd.read_csv(faces / "agedb.csv")) == 200


def test_a_name_that_is_no_text_is_reported(faces):
    try:
        open(bytes(faces / "AgeDB") + b"/900_St\x82phane_30_f.jpg", "wb").close()
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    with pytest.raises(ValueError, match=r"1 of 201 names.*St\\udc82phane"):
        run(faces)


def test_no_faces_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download\.py"):
        run(tmp_path)
    (tmp_path / "AgeDB").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.jpg"):
        run(tmp_path)
    with pytest.raises(FileNotFoundError, match="--split_file"):
        run(tmp_path, "--check")


def test_check_passes_on_the_expected_counts(faces, monkeypatch, capsys):
    expected = {"train": 140, "val": 30, "test": 30}
    monkeypatch.setattr(prepare, "EXPECTED", expected)
    run(faces, "--cap", "5")
    before = (faces / "agedb.csv").read_bytes()
    assert run(faces, "--cap", "5", "--check") == 0
    assert "as it should be" in capsys.readouterr().out
    assert (faces / "agedb.csv").read_bytes() == before


def test_check_reports_each_kind_of_problem(faces, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "EXPECTED", {"train": 140, "val": 30, "test": 30})
    run(faces, "--cap", "5")
    meta = pd.read_csv(faces / "agedb.csv")

    moved = meta.copy()  # a face of val and one of train trade places: the counts stay
    val, train = moved.index[moved["split"] == "val"][0], moved.index[moved["split"] == "train"][0]
    moved.loc[[val, train], "split"] = ["train", "val"]
    moved.to_csv(faces / "agedb.csv", index=False)
    capsys.readouterr()
    assert run(faces, "--cap", "5", "--check") == 1
    out = capsys.readouterr().out
    assert "2 of 200 rows differ from the split of cap 5 and seed 666" in out
    assert f"line {min(val, train) + 2}" in out
    assert "not the expected" not in out

    meta.to_csv(faces / "agedb.csv", index=False)
    gone = meta["path"][7]
    (faces / gone).unlink()
    assert run(faces, "--cap", "5", "--check") == 1
    out = capsys.readouterr().out
    assert f"1 of 200 images are not in {faces}: {gone}" in out
    assert "rows differ" not in out

    meta[meta["path"] != gone].to_csv(faces / "agedb.csv", index=False)
    assert run(faces, "--cap", "5", "--check") == 1
    assert "not the expected" in capsys.readouterr().out


def test_own_faces_from_a_table(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    rows = [(f"own/{i}.png", 30 + i % 2 + 0.5 * (i % 3 == 0)) for i in range(40)]
    for path, _ in rows:
        (tmp_path / path).touch()
    own = pd.DataFrame(rows, columns=["path", "age"]).assign(camera="x")
    own.to_csv(tmp_path / "list.csv", index=False)
    flags = ("--dataset", "own", "--meta", str(tmp_path / "list.csv"), "--cap", "4")
    assert run(tmp_path, *flags) == 0
    meta = pd.read_csv(tmp_path / "own.csv")
    assert list(meta.columns) == ["age", "path", "split"]
    assert meta["path"].tolist() == [path for path, _ in rows]
    assert meta["age"].tolist() == [age for _, age in rows]
    assert Counter(meta["split"]) == {"train": 24, "val": 8, "test": 8}
    assert "expected" not in capsys.readouterr().out
    check = ("--dataset", "own", "--cap", "4", "--check")
    assert run(tmp_path, *check) == 0
    assert "differ" not in capsys.readouterr().out
    # Of your own data --check takes a split of --curate, or one made by hand.
    curate = ("--dataset", "some", "--meta", str(tmp_path / "own.csv"), "--curate", "31", "31.1")
    assert run(tmp_path, *curate) == 0
    meta.assign(split=["test", "val", "train", "train"] * 10).to_csv(tmp_path / "hand.csv")
    for name in ("some", "hand"):
        assert run(tmp_path, *check[2:], "--dataset", name) == 0
        assert "rows differ from the split of cap 4" in capsys.readouterr().out
    meta.replace("val", "dev").to_csv(tmp_path / "hand.csv")
    assert run(tmp_path, *check[2:], "--dataset", "hand") == 1
    assert "its splits are dev, test, train, not" in capsys.readouterr().out
    (tmp_path / "own" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images are not in .*own/3\.png"):
        run(tmp_path, *flags, "--overwrite")
    capsys.readouterr()
    assert run(tmp_path, *check) == 1
    assert "own/3.png; correct the paths\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,file\n3,a.jpg\n", "lacks path"),
        ("age,path\n3,a.jpg\n\nold,b.jpg\n", "line 4: the age 'old'"),
        ("age,path\n,a.jpg\n", "line 2: the age ''"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "--dataset", "own", "--meta", str(tmp_path / "list.csv"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--meta", "x.csv"],
        ["--dataset", "own"],
        ["--dataset", "../own", "--meta", "x.csv"],
        ["--dataset", "own", "--meta", "x.csv", "--check"],
        ["--check", "--overwrite"],
        ["--no_such_flag"],
    ],
)
def test_conflicting_flags_end_in_a_usage_error(tmp_path, flags):
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *flags)
    assert error.value.code == 2


def test_the_script_runs_from_its_folder(faces):
    command = [sys.executable, "prepare.py", "--data_dir", str(faces), "--cap", "5"]
    folder = ROOT / "agedb-dir"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check = subprocess.run([*command, "--check"], cwd=folder, capture_output=True, check=False)
    assert check.returncode == 1  # 200 faces are not AgeDB's 16,488
