"""The generated faces: same bytes for the same seed, layout, split, shots, a readable age."""

import random
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT, load

FOLDER = ROOT / "agedb-dir"
NAME = re.compile(r"AgeDB/(\d+)_(Demo[a-z]+)_(\d+)_([mf])\.jpg")


def run(out, *flags):
    """Run the script as a user does, in its folder."""
    command = [sys.executable, "demo_data.py", "--out", str(out), *map(str, flags)]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=120)


def contents(out):
    """Every file below `out` with its bytes."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def reference_split(rows):
    """Section 6 of the design again, with lists and dictionaries and the global generator."""
    by_age, split = defaultdict(list), {}
    for age, path in rows:
        by_age[age].append(path)
    random.seed(666)
    for age in range(121):
        paths = by_age[age]
        random.shuffle(paths)
        n = min(len(paths) // 3, 30)
        for i, path in enumerate(paths):
            split[path] = "val" if i < n else "test" if i < 2 * n else "train"
    return [split[path] for _, path in rows]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo set made with one worker, with a contact sheet."""
    out = tmp_path_factory.mktemp("demo")
    flags = ("--num_images", 100, "--img_size", 40, "--seed", 3, "--workers", 1)
    done = run(out, *flags, "--contact_sheet", out / "sheets" / "faces.png")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_same_seed_gives_same_bytes_for_any_number_of_workers(demo, tmp_path):
    flags = ("--num_images", 100, "--img_size", 40)
    again = run(tmp_path / "a", *flags, "--seed", 3, "--workers", 3)
    other = run(tmp_path / "b", *flags, "--seed", 4, "--workers", 2)
    assert again.returncode == other.returncode == 0, again.stderr + other.stderr
    expected = {name: c for name, c in contents(demo[0]).items() if not name.startswith("sheets")}
    assert len(expected) == 101
    assert contents(tmp_path / "a") == expected
    assert set(contents(tmp_path / "b").values()).isdisjoint(expected.values())


def test_layout_is_agedbs(demo):
    out, printed = demo
    meta = pd.read_csv(out / "agedb.csv")
    assert list(meta.columns) == ["age", "path", "split"]
    assert len(meta) == meta["path"].nunique() == 100
    for row, (age, path) in enumerate(zip(meta["age"], meta["path"])):
        number, _, age_in_name, _ = NAME.fullmatch(path).groups()
        assert (int(number), int(age_in_name)) == (row, age)
    genders = Counter(path[-5] for path in meta["path"])
    assert min(genders["m"], genders["f"]) > 25
    with Image.open(out / meta["path"][0]) as face:
        assert (face.size, face.mode, face.format) == ((40, 40), "RGB", "JPEG")
    on_disk = {f"AgeDB/{p.name}" for p in (out / "AgeDB").iterdir()}
    assert on_disk == set(meta["path"])
    for name, count in meta["split"].value_counts().items():
        assert re.search(rf"{name} +{count}\b", printed)
    with Image.open(out / "sheets" / "faces.png") as sheet:
        assert sheet.width > 1000


def test_split_is_the_official_routine(demo):
    meta = pd.read_csv(demo[0] / "agedb.csv")
    assert meta["split"].tolist() == reference_split(list(zip(meta["age"], meta["path"])))
    assert set(meta["split"]) == {"train", "val", "test"}


def test_three_thousand_faces_hold_every_shot_several_times():
    density = load("agedb-dir", "demo_data").age_density()
    ages = np.arange(1, 102)
    assert density.sum() == pytest.approx(1)
    assert ages[density.argmax()] == 35
    assert density.min() > 0
    assert density[ages > 35].sum() > density[ages < 35].sum()
    for seed in range(20):
        drawn = np.random.default_rng(seed).choice(ages, 3000, p=density)
        counts = np.bincount(drawn, minlength=121)
        train = counts - 2 * np.minimum(counts // 3, 30)
        assert (train > 100).sum() >= 3
        assert ((train >= 20) & (train <= 100)).sum() >= 4
        assert ((train > 0) & (train < 20)).sum() >= 50
        # Each shot is also tested on enough faces for its column of the table.
        tested = np.minimum(counts // 3, 30)
        for shot in (train > 100, (train >= 20) & (train <= 100), train < 20):
            assert tested[shot].sum() >= 60


def features(face):
    """Brightness and strength of edges on a 20 x 20 grid, of the standardised grey picture."""
    grey = np.asarray(face.convert("L").resize((60, 60)), dtype=float)
    grey = (grey - grey.mean()) / grey.std()
    across = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    down = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    pooled = [a.reshape(20, 3, 20, 3).mean(axis=(1, 3)) for a in (grey, across, down)]
    return np.concatenate([pooled[0].ravel(), *(np.sqrt(a).ravel() for a in pooled[1:])])


def ridge_mae(x, ages, fitted):
    """Error, relative to guessing the mean, of a ridge regression fitted on the first rows."""
    x = (x - x[:fitted].mean(0)) / (x[:fitted].std(0) + 1e-6)
    mean = ages[:fitted].mean()
    gram = x[:fitted] @ x[:fitted].T + 100 * np.eye(fitted)
    predicted = x[fitted:] @ x[:fitted].T @ np.linalg.solve(gram, ages[:fitted] - mean) + mean
    truth = ages[fitted:]
    return np.abs(predicted - truth).mean() / np.abs(truth - mean).mean()


@pytest.fixture(scope="module")
def faces_of_all_ages():
    """Faces, and their ages drawn evenly from 1 to 100."""
    make_face = load("agedb-dir", "demo.picture").make_face
    ages = np.random.default_rng(0).integers(1, 101, 400)
    faces = [make_face(a, np.random.default_rng([1, i]), 60) for i, a in enumerate(ages.tolist())]
    return faces, ages.astype(float)


def test_age_can_be_read_from_the_face(faces_of_all_ages):
    faces, ages = faces_of_all_ages
    x = np.stack([features(face) for face in faces])
    assert ridge_mae(x, ages, 300) < 0.6  # 0.37 to 0.52 over seeds
    # Fitted to ages that do not belong to the faces, the same regression is no use.
    assert ridge_mae(x, np.random.default_rng(2).permutation(ages), 300) > 0.8


def test_one_brightness_does_not_tell_the_age(faces_of_all_ages):
    faces, ages = faces_of_all_ages
    grey = np.stack([np.asarray(face.convert("L"), dtype=float).ravel() for face in faces])
    grey = (grey - grey.mean(0)) / grey.std(0)
    correlation = grey.T @ ((ages - ages.mean()) / ages.std()) / len(ages)
    assert np.abs(correlation).max() < 0.75


def test_face_depends_on_the_generator_and_the_age_alone():
    make_face = load("agedb-dir", "demo.picture").make_face
    first, again, older = (
        make_face(age, np.random.default_rng(7), img_size=32, gender="f") for age in (20, 20, 70)
    )
    assert first.tobytes() == again.tobytes() != older.tobytes()
    assert (first.size, first.mode) == ((32, 32), "RGB")


@pytest.mark.parametrize(
    "arguments",
    [(-1, 64, None), (121, 64, None), (float("nan"), 64, None), (30, 8, None), (30, 64, "x")],
)
def test_wrong_arguments_of_make_face_are_errors(arguments):
    age, img_size, gender = arguments
    with pytest.raises(ValueError, match="must be in"):
        load("agedb-dir", "demo.picture").make_face(age, np.random.default_rng(0), img_size, gender)


def test_existing_meta_file_and_foreign_faces_are_kept(tmp_path, capsys):
    main = load("agedb-dir", "demo_data").main
    flags = ["--out", str(tmp_path), "--num_images", "4", "--img_size", "16", "--workers", "1"]
    main(flags)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="--overwrite"):
        main([*flags, "--seed", "1"])
    assert contents(tmp_path) == before

    other = tmp_path / "AgeDB" / "notes.txt"
    other.write_text("mine")
    main([*flags, "--seed", "1", "--overwrite"])
    after = contents(tmp_path)
    assert after.pop("AgeDB/notes.txt") == b"mine"
    assert len(after) == 5  # the faces of seed 0 are gone, else `prepare.py` would list them
    assert set(after) & set(before) == {"agedb.csv"}

    real = tmp_path / "AgeDB" / "7_JaneDoe_41_f.jpg"
    real.write_bytes(b"a real face")
    with pytest.raises(ValueError, match="7_JaneDoe_41_f"):
        main([*flags, "--overwrite"])
    assert contents(tmp_path) == after | {
        "AgeDB/notes.txt": b"mine",
        "AgeDB/7_JaneDoe_41_f.jpg": b"a real face",
    }


@pytest.mark.parametrize(
    ("flag", "value"), [("--num_images", "0"), ("--img_size", "8"), ("--contact_sheet", "a.gif")]
)
def test_wrong_flags_are_errors_that_name_the_flag(flag, value, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load("agedb-dir", "demo_data").main(["--out", str(tmp_path), flag, value])
    assert f"{flag} is {value}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
