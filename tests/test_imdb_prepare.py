"""IMDB-WIKI's MATLAB files become the meta file: rows, order, ages, split, and what is refused."""

import datetime
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from conftest import ROOT, load

prepare = load("imdb-wiki-dir", "prepare")
matlab_meta = load("imdb-wiki-dir", "matlab_meta")

NAN, INF = float("nan"), float("inf")


def matlab_day(*day):
    """A day as MATLAB counts it."""
    return datetime.date(*day).toordinal() + 366


def cells(values):
    column = np.empty((1, len(values)), dtype=object)
    column[0] = list(values)
    return column


def write_mat(folder, source, rows, dob=np.int32, year=np.float64):
    """Write `<source>_crop/<source>.mat` of rows (dob, photo_taken, path, score, second score)."""
    columns = list(zip(*rows))
    struct = {
        "dob": np.array([columns[0]], dtype=dob),
        "photo_taken": np.array([columns[1]], dtype=year),
        "full_path": cells(columns[2]),
        "gender": np.array([[1.0, NAN] * (len(rows) // 2 + 1)])[:, : len(rows)],
        "name": cells(["Somebody"] * len(rows)),
        "face_location": cells([np.array([[1.0, 2.0, 3.0, 4.0]])] * len(rows)),
        "face_score": np.array([columns[3]]),
        "second_face_score": np.array([columns[4]]),
    }
    (folder / f"{source}_crop").mkdir(exist_ok=True)
    savemat(folder / f"{source}_crop" / f"{source}.mat", {source: struct})


def one_by_one(source, rows):
    """The rule in the design's words, row by row, by the standard library alone."""
    kept = []
    for dob, year, path, score, second in rows:
        if not score >= 1 or not (math.isnan(second) or second <= 0):
            continue
        if math.isnan(year) or math.isnan(dob):
            continue
        born = datetime.date.fromordinal(max(int(dob) - 366, 1))
        age = int(year) - born.year
        if born.month >= 7:
            age -= 1
        if 0 <= age <= 200:
            kept.append((age, f"{source}_crop/{path}"))
    return kept


def golden_rows():
    """Rows at each edge of the rule, with the age expected of each; None: the row is left out."""
    good = (2.5, NAN)  # scores of one clear face
    return [
        ((matlab_day(1980, 6, 30), 2000, "01/a.jpg", *good), 20),
        ((matlab_day(1980, 7, 1), 2000, "01/b.jpg", *good), 19),
        ((matlab_day(1980, 12, 31), 1981, "01/c.jpg", *good), 0),
        ((matlab_day(1980, 12, 31), 1980, "01/d.jpg", *good), None),  # -1
        ((matlab_day(1980, 1, 1), 1980, "01/e.jpg", *good), 0),
        ((matlab_day(1800, 1, 1), 2000, "02/f.jpg", *good), 200),
        ((matlab_day(1799, 1, 1), 2000, "02/g.jpg", *good), None),  # 201
        ((matlab_day(1799, 8, 1), 2000, "02/h.jpg", *good), 200),
        ((1, 2000, "02/i.jpg", *good), None),  # nonsense: the year 1
        ((366, 2000, "02/j.jpg", *good), None),
        ((367, 150, "02/k.jpg", *good), 149),  # 1 January of the year 1
        ((-5, 2000, "02/l.jpg", *good), None),
        ((matlab_day(1980, 1, 1), NAN, "03/m.jpg", *good), None),
        ((matlab_day(1980, 1, 1), 2000, "03/n.jpg", 1.0, NAN), 20),
        ((matlab_day(1980, 1, 1), 2000, "03/o.jpg", 0.999, NAN), None),
        ((matlab_day(1980, 1, 1), 2000, "03/p.jpg", -INF, NAN), None),
        ((matlab_day(1980, 1, 1), 2000, "03/q.jpg", NAN, NAN), None),
        ((matlab_day(1980, 1, 1), 2000, "03/r.jpg", 3.0, 0.0), 20),
        ((matlab_day(1980, 1, 1), 2000, "03/s.jpg", 3.0, -1.5), 20),
        ((matlab_day(1980, 1, 1), 2000, "03/t.jpg", 3.0, 1e-9), None),
        ((matlab_day(9999, 12, 31), 2000, "03/u.jpg", *good), None),
    ]


def test_the_rule_at_its_edges(tmp_path):
    rows = [row for row, _ in golden_rows()]
    write_mat(tmp_path, "imdb", rows)
    table, left_out = matlab_meta.read_faces(tmp_path, "imdb")
    expected = [(age, f"imdb_crop/{row[2]}") for row, age in golden_rows() if age is not None]
    assert list(table.itertuples(index=False, name=None)) == expected == one_by_one("imdb", rows)
    assert left_out == {
        "no face of score >= 1": 3, "a second face": 1, "no year of the photo": 1,
        "a date of birth before the year 1": 3, "an age below 0 or above 200": 3,
    }  # fmt: skip


def random_rows(count, seed):
    """Rows as of the real files, with each kind of fault in some."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        dob = int(rng.integers(matlab_day(1750, 1, 1), matlab_day(2020, 1, 1)))
        dob = int(rng.integers(-1000, 800)) if rng.random() < 0.1 else dob
        year = NAN if rng.random() < 0.05 else int(rng.integers(1900, 2016))
        score = float(rng.choice([-INF, 0.5, 1, 2, 5, NAN]))
        second = float(rng.choice([NAN, NAN, -2, 0, 0.5, 4]))
        rows.append((dob, year, f"{i % 100:02}/nm{i}_{i}.jpg", score, second))
    return rows


def test_both_files_in_order_equal_the_plain_loop(tmp_path, capsys):
    imdb, wiki = random_rows(3000, 1), random_rows(900, 2)
    write_mat(tmp_path, "imdb", imdb)
    write_mat(tmp_path, "wiki", wiki, dob=np.float64)
    assert prepare.main(["--data_dir", str(tmp_path), "--cap", "2"]) == 0
    meta = pd.read_csv(tmp_path / "imdb_wiki.csv")
    assert list(meta.columns) == ["age", "path", "split"]
    expected = one_by_one("imdb", imdb) + one_by_one("wiki", wiki)
    assert list(zip(meta["age"], meta["path"])) == expected
    assert len(expected) > 500
    # The split: the first n of each age's shuffle, by the plain routine and the global generator.
    for age, group in meta.groupby("age"):
        n = min(len(group) // 3, 2) if age <= 120 else 0
        counts = Counter(group["split"])
        assert (counts["val"], counts["test"]) == (n, n)
    out = capsys.readouterr().out
    assert "imdb.mat: 3,000 rows" in out
    assert "wiki.mat: 900 rows" in out
    kept = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) kept", out))
    left = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) with ", out))
    assert (kept, kept + left) == (len(meta), 3900)
    assert out.count("DIFFERS") == 3
    assert "expected 191,509" in out


def test_unsigned_years_and_fractions_of_days(tmp_path):
    """MATLAB stores whole numbers as unsigned ones: a difference must not wrap around."""
    rows = [(matlab_day(2005, 3, 1), 2004, "00/a.jpg", 2.0, NAN)]  # -1, or 65535 unsigned
    rows += [(matlab_day(1990, 3, 1), 2004, "00/b.jpg", 2.0, NAN)]
    write_mat(tmp_path, "wiki", rows, dob=np.uint32, year=np.uint16)
    assert matlab_meta.read_faces(tmp_path, "wiki")[0]["age"].tolist() == [14]
    rows = [
        (matlab_day(1990, 6, 30) + 0.9, 2004, "00/b.jpg", 2.0, NAN),
        (NAN, 2004, "00/c.jpg", 2.0, NAN),
    ]
    write_mat(tmp_path, "wiki", rows, dob=np.float64)
    table, left_out = matlab_meta.read_faces(tmp_path, "wiki")
    assert table["age"].tolist() == [14]
    assert left_out["a date of birth before the year 1"] == 1


def test_one_row_alone_is_read(tmp_path):
    write_mat(tmp_path, "wiki", [(matlab_day(1990, 3, 1), 2004, "00/a.jpg", 2.0, NAN)])
    table, _ = matlab_meta.read_faces(tmp_path, "wiki")
    assert table.values.tolist() == [[14, "wiki_crop/00/a.jpg"]]


@pytest.mark.parametrize(
    "path",
    ["../a.jpg", "/etc/a.jpg", "00/../../a.jpg", "", "00//a.jpg", "00\\a.jpg", ".hidden", "00/"],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, path):
    good = (matlab_day(1990, 3, 1), 2004, "00/a.jpg", 2.0, NAN)
    write_mat(tmp_path, "wiki", [good, (good[0], 2004, path, 2.0, NAN)])
    with pytest.raises(ValueError, match="1 paths are no names of files below"):
        matlab_meta.read_faces(tmp_path, "wiki")


def test_files_that_are_no_use(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imdb\.mat.*download\.py --images"):
        prepare.main(["--data_dir", str(tmp_path)])
    (tmp_path / "imdb_crop").mkdir()
    file = tmp_path / "imdb_crop" / "imdb.mat"
    write_mat(tmp_path, "imdb", random_rows(50, 0))
    whole = file.read_bytes()
    for content in (b"", b"no MATLAB file" * 50, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"imdb\.mat (cannot be read|lacks)"):
            prepare.main(["--data_dir", str(tmp_path)])
    savemat(file, {"imdb": {"dob": np.ones((1, 3)), "photo_taken": np.ones((1, 3))}})
    with pytest.raises(ValueError, match=r"lacks imdb\.full_path, imdb\.face_score"):
        prepare.main(["--data_dir", str(tmp_path)])
    savemat(file, {"wiki": {"dob": np.ones((1, 3))}})
    with pytest.raises(ValueError, match=r"lacks imdb\.dob"):
        prepare.main(["--data_dir", str(tmp_path)])
    struct = {name: np.ones((1, 3)) for name in matlab_meta.FIELDS} | {"dob": np.ones((1, 4))}
    savemat(file, {"imdb": struct})
    with pytest.raises(ValueError, match=r"differ in length.*4"):
        prepare.main(["--data_dir", str(tmp_path)])
    assert not (tmp_path / "imdb_wiki.csv").exists()


def test_fields_that_are_no_numbers_are_told_with_their_file(tmp_path):
    (tmp_path / "imdb_crop").mkdir()
    file = tmp_path / "imdb_crop" / "imdb.mat"
    day = matlab_day(1980, 1, 1)
    good = {name: np.ones((1, 2)) for name in matlab_meta.FIELDS}
    good |= {"dob": np.full((1, 2), day), "full_path": cells(["0/a.jpg", "0/b.jpg"])}
    wrong = {
        "cells": cells([np.array([[day]]), "x"]), "text": np.array([["ab", "cd"]]),
        "complex": np.array([[day + 0j, day + 1j]]),
    }  # fmt: skip
    for kind, column in wrong.items():
        savemat(file, {"imdb": good | {"dob": column}})
        with pytest.raises(ValueError, match=r"imdb\.mat .*imdb\.dob holds no numbers"):
            print(kind, matlab_meta.read_faces(tmp_path, "imdb"))
    structs = np.zeros((1, 2), dtype=[(name, object) for name in matlab_meta.FIELDS])
    savemat(file, {"imdb": structs})
    with pytest.raises(ValueError, match=r"imdb\.mat .*imdb is an array of 2 structs"):
        matlab_meta.read_faces(tmp_path, "imdb")
    savemat(file, {"imdb": good})
    assert len(matlab_meta.read_faces(tmp_path, "imdb")[0]) == 0  # each has a second face


def test_check_and_overwrite(tmp_path, monkeypatch, capsys):
    for source in ("imdb", "wiki"):
        write_mat(tmp_path, source, random_rows(600, 3))
    run = ["--data_dir", str(tmp_path), "--cap", "1"]
    assert prepare.main(run) == 0
    meta = pd.read_csv(tmp_path / "imdb_wiki.csv")
    with pytest.raises(ValueError, match=r"--check.*--overwrite"):
        prepare.main(run)
    assert prepare.main([*run, "--check"]) == 1
    assert f"{len(meta)} of {len(meta)} images are not in" in capsys.readouterr().out
    for path in meta["path"]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(prepare, "EXPECTED", dict(Counter(meta["split"])))
    assert prepare.main([*run, "--check"]) == 0
    assert prepare.main([*run[:2], "--check"]) == 1  # another cap is another split
    assert prepare.main([*run, "--overwrite", "--seed", "1"]) == 0
    other = pd.read_csv(tmp_path / "imdb_wiki.csv")
    assert other["path"].equals(meta["path"])
    assert not other["split"].equals(meta["split"])


def test_own_faces_from_a_table(tmp_path):
    rows = [(f"{i}.png", 30 + i % 2) for i in range(40)]
    for path, _ in rows:
        (tmp_path / path).touch()
    pd.DataFrame(rows, columns=["path", "age"]).to_csv(tmp_path / "list.csv", index=False)
    flags = ["--data_dir", str(tmp_path), "--dataset", "own", "--meta", str(tmp_path / "list.csv")]
    assert prepare.main([*flags, "--cap", "4"]) == 0
    assert Counter(pd.read_csv(tmp_path / "own.csv")["split"]) == {"train": 24, "val": 8, "test": 8}
    (tmp_path / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images are not in .*3\.png"):
        prepare.main([*flags, "--overwrite"])


@pytest.mark.parametrize(
    "flags", [["--meta", "x.csv"], ["--dataset", "own"], ["--check", "--overwrite"], ["--no_flag"]]
)
def test_conflicting_flags_end_in_a_usage_error(tmp_path, flags):
    with pytest.raises(SystemExit) as error:
        prepare.main(["--data_dir", str(tmp_path), *flags])
    assert error.value.code == 2


def test_the_script_runs_from_its_folder(tmp_path):
    for source in ("imdb", "wiki"):
        write_mat(tmp_path, source, random_rows(600, 4))
    done = subprocess.run(
        [sys.executable, "prepare.py", "--data_dir", str(tmp_path)],
        cwd=ROOT / "imdb-wiki-dir", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "expected  11,022" in done.stdout
