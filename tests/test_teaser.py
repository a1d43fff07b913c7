"""The teaser's pictures: real counts, statistics of a real FDS, frames with something on them."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve1d

from conftest import ROOT, SHARED, load

TEASER = ROOT / "teaser"
COUNTS = TEASER / "label_counts.csv"


@pytest.fixture(scope="module")
def make():
    return load("teaser", "make")


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(COUNTS, dtype=dict.fromkeys(("train", "val", "test"), "Int64"))


def sizes_of(table, benchmark):
    rows = table[table["benchmark"] == benchmark]
    return tuple(rows[split].sum(min_count=1) for split in ("train", "val", "test"))


def test_the_counts_add_up_to_the_known_sizes(table):
    assert sizes_of(table, "agedb_dir") == (12_208, 2_140, 2_140)
    assert sizes_of(table, "stsb_dir") == (5_249, 1_000, 1_000)
    assert sizes_of(table, "imdb_wiki_dir") == (191_509, 11_022, 11_022)
    depths = table[table["benchmark"] == "nyud2_dir"]
    official = load("nyud2-dir", "datasets").TRAIN_COUNTS
    assert depths["train"].tolist() == official[7:].tolist()
    assert depths[["val", "test"]].isna().all(axis=None)


def test_no_distribution_is_made_up(table):
    """Without counts by label a benchmark has one row, without a shot."""
    for benchmark in ("imdb_wiki_dir", "shhs_dir"):
        rows = table[table["benchmark"] == benchmark]
        assert len(rows) == 1
        assert rows["shot"].isna().all()


def test_the_shots_are_the_benchmarks_own(table):
    ages = table[table["benchmark"] == "agedb_dir"]
    labels = np.repeat(ages["label_low"], ages["train"].astype(int))
    shots = load("agedb-dir", "metrics").shot_of(ages["label_low"].to_numpy(), labels.to_numpy())
    assert ages["shot"].tolist() == shots.tolist()
    depths = table[table["benchmark"] == "nyud2_dir"]
    assert depths["shot"].tolist() == load("nyud2-dir", "metrics").shots_of_buckets()[7:].tolist()
    pairs = table[table["benchmark"] == "stsb_dir"]
    assert pairs["shot"].tolist() == load("sts-b-dir", "metrics").shots_of_buckets().tolist()


def test_the_counts_are_those_of_the_real_labels(make, tmp_path):
    if not (SHARED / "data").is_dir() or not (SHARED / "golden").is_dir():
        pytest.skip("the real labels (shared/data and shared/golden) are not here")
    make.main(["--counts", str(SHARED), "--only", "agedb_dir.png", "--out", str(tmp_path)])
    assert (tmp_path / "label_counts.csv").read_bytes() == COUNTS.read_bytes()


def test_counting_without_the_labels_names_the_file(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"agedb\.csv"):
        make.main(["--counts", str(tmp_path), "--out", str(tmp_path)])


def test_the_weights_of_lds_are_the_age_folders(make):
    data = load("teaser", "lds_animation").age_data()
    labels = np.repeat(data.ages, data.counts)
    sample_weights = load("agedb-dir", "datasets").sample_weights
    for own, options in ((data.plain, {}), (data.lds, dict(lds=True, lds_ks=5, lds_sigma=2))):
        expected = np.asarray(sample_weights(labels, "sqrt_inv", **options))
        np.testing.assert_allclose(np.repeat(own, data.counts), expected, rtol=1e-5)


def test_the_moved_features_are_what_fds_computes(make):
    shown = load("teaser", "fds_animation").scene()
    fds, rare = shown.run.fds, shown.rare
    assert (shown.counts > 1).all()
    assert 5 <= len(shown.own) == shown.counts[rare] <= 9
    assert torch.equal(
        shown.moved, fds.smooth(shown.own, shown.run.labels[shown.chosen], shown.run.epoch)
    )
    # Equation 3 of the paper by hand, from the running statistics that are drawn.
    features, *statistics = (part.double().numpy() for part in shown.run.history[-1])
    window = load("agedb-dir", "utils").get_lds_kernel_window("gaussian", 5, 2)
    mean, variance = statistics
    smooth_mean, smooth_variance = (
        convolve1d(part, window / window.sum(), axis=0, mode="mirror") for part in statistics
    )
    np.testing.assert_allclose(fds.smoothed_mean_last_epoch, smooth_mean, atol=1e-5)
    factor = np.sqrt(np.clip(smooth_variance[rare] / variance[rare], 0.1, 10))
    own = features[shown.chosen.numpy()]
    expected = (own - mean[rare]) * factor + smooth_mean[rare]
    np.testing.assert_allclose(shown.moved, expected, atol=1e-4)
    assert np.abs(expected - own).max() > 0.1


@pytest.mark.parametrize(
    ("name", "amounts", "expected"),
    [("lds_animation", (3, 3), 6), ("fds_animation", (2, 2, 3), 7), ("overview", (3,), 14)],
)
def test_an_animation_has_its_frames(make, name, amounts, expected):
    frames = load("teaser", name).frames(*amounts)
    assert len(frames) == expected
    assert frames[-1][1] >= 5000  # the last one stays
    content = load("teaser", "drawing").gif_bytes(frames)
    assert content == load("teaser", "drawing").gif_bytes(frames)
    with Image.open(io.BytesIO(content)) as gif:
        assert gif.n_frames == expected
        assert gif.info["loop"] == 2  # played three times, then at rest
        seen = set()
        for number in range(expected):
            gif.seek(number)
            picture = np.asarray(gif.convert("RGB"))
            assert tuple(picture[-1, -1]) == (255, 255, 255)
            assert 0.02 < (picture.min(2) < 200).mean() < 0.6
            seen.add(picture.tobytes())
        assert len(seen) == expected


def test_the_label_pictures_are_drawn(make, tmp_path, capsys):
    names = [name for name in make.NAMES if name.endswith("_dir.png")]
    assert len(names) == 3
    make.main(["--only", *names, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed
        with Image.open(tmp_path / name) as picture, Image.open(TEASER / name) as committed:
            assert picture.size == committed.size
            pixels = np.asarray(picture.convert("RGB"))
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def luminance(colour):
    """Relative luminance of WCAG 2.1 of a colour '#RRGGBB'."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    parts = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return parts @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_words_stand_out_from_the_page(make, theme):
    overview, shots = load("teaser", "overview"), load("teaser", "drawing").SHOTS
    page, text, _, lines = overview.THEMES[theme]
    colours = {text} | {lines.get(line[0], line[0]) for line in overview.LINES.values()}
    if theme == "light":
        colours |= {shots["many"][0], shots["few"][0]}
    names = {"white": "#FFFFFF", "black": "#000000"}
    page = luminance(names.get(page, page))
    for colour in colours:
        pair = sorted([page, luminance(names.get(colour, colour))])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, colour  # WCAG's bound for text
    styles = {line[1] for line in overview.LINES.values()}
    assert len(styles) == len(overview.LINES)  # told apart without colour, too


def test_the_committed_pictures_are_there_and_small(make):
    for name in make.NAMES:
        assert 5_000 < (TEASER / name).stat().st_size < 1_500_000, name
    assert {name for name in make.NAMES} == {path.name for path in TEASER.glob("*.[pg][ni][gf]")}
    for name, least in (("overview.gif", 40), ("lds.gif", 40), ("fds.gif", 40)):
        with Image.open(TEASER / name) as gif:
            assert gif.n_frames >= least
            assert gif.size[0] == 800
