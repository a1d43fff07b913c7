"""Zero-shot labels: what leaves the training set, the regions, their metrics and the figure."""

import json

import numpy as np
import pandas as pd
import pytest

from conftest import load

regions = load("agedb-dir", "regions")
zero_shot = load("agedb-dir", "zero_shot")
CURATE = "--curate 0 15 45 60 85 200".split()


def test_regions_against_a_plain_rule():
    rng = np.random.default_rng(0)
    train = rng.choice([20, 21, 30, 31, 32], 40)
    labels = rng.integers(10, 45, 200)
    parts = regions.zero_shot_parts(labels, train)
    for place, label in enumerate(labels):
        expected = "with_data" if label in train else "interpolation"
        expected = "extrapolation" if label < 20 or label > 32 else expected
        assert [name for name, part in parts.items() if part[place]] == [expected]
    assert regions.zero_shot_parts(train, train) == {}


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir"])
def test_curated_ages_leave_training_only_and_the_official_split_stays(folder, tmp_path, capsys):
    prepare = load(folder, "prepare")
    rng = np.random.default_rng(1)
    meta = pd.DataFrame({"age": rng.integers(5, 95, 300)})
    meta["path"] = [f"{row}.jpg" for row in range(len(meta))]
    meta["split"] = rng.permutation(["train"] * 200 + ["val"] * 50 + ["test"] * 50)
    meta.to_csv(tmp_path / "whole.csv", index=False)
    for path in meta["path"]:
        (tmp_path / path).touch()
    flags = ["--data_dir", str(tmp_path), "--meta", str(tmp_path / "whole.csv")]
    assert prepare.main([*flags, "--dataset", "zero", *CURATE]) == 0
    gap = (meta["age"] < 15) | meta["age"].between(45, 59) | (meta["age"] >= 85)
    kept = meta[~(gap & (meta["split"] == "train"))].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "zero.csv"), kept)
    said = capsys.readouterr().out
    young = ((meta["age"] < 15) & (meta["split"] == "train")).sum()
    assert f"{len(meta) - len(kept)} training samples left out ({young} of 0 to 15, " in said
    for words in (["10"], ["30", "20"]):
        with pytest.raises(SystemExit):
            prepare.parse_args([*flags, "--dataset", "zero", "--curate", *words])
    with pytest.raises(SystemExit):
        prepare.parse_args(["--data_dir", str(tmp_path), *CURATE])  # would replace the whole set
    for ends, message in (("0 200", "leaves no training"), ("100 200", "labels are 5 to 94")):
        with pytest.raises(ValueError, match=message):
            prepare.main([*flags, "--dataset", "none", "--curate", *ends.split()])
    meta[meta["split"] != "train"].to_csv(tmp_path / "whole.csv", index=False)
    with pytest.raises(ValueError, match="leaves no training sample"):
        prepare.main([*flags, "--dataset", "none", "--curate", "0", "15"])


def test_metrics_of_ages_and_tables_have_the_regions():
    train = np.repeat([20.0, 21.0, 40.0], 30)
    labels = np.array([20.0, 30.0, 40.0, 50.0, 10.0])
    preds = labels + np.arange(1, 6)
    ages = load("agedb-dir", "metrics").shot_metrics(preds, labels, train)
    tables = load("uci-dir", "metrics")
    bins = load("uci-dir", "bins").Bins(19.5, 40.5, 21)  # as after prepare.py
    rows = tables.shot_metrics(preds, labels, train, tables.ShotRule(bins, 100, 20))
    for metrics in (ages, rows):
        mae = {name: metrics[name]["mae"] for name in regions.REGIONS}
        assert mae == {"with_data": 2.0, "interpolation": 2.0, "extrapolation": 4.5}
    assert {*load("agedb-dir", "metrics").shot_metrics(preds, labels, labels)} == {
        "overall", "many", "medium", "few"
    }  # fmt: skip


def write_run(folder, method, seed, offsets):
    """A run whose error is known by label, with two labels beyond the trained buckets."""
    run = folder / f"{method}_{seed}"
    run.mkdir()
    labels = np.arange(8, 16)
    table = pd.DataFrame({"label": labels, "prediction": labels + offsets, "split": "test"})
    table.to_csv(run / "predictions.csv", index=False)
    density = {"label": np.arange(9, 15), "count": [4, 5, 0, 0, 6, 7]}
    density |= {"emp_label_dist": np.nan, "eff_label_dist": np.nan, "weight": 1.0}
    pd.DataFrame(density).to_csv(run / "label_density.csv", index=False)
    error = np.abs(offsets)
    parts = {"overall": error, "with_data": error[[1, 2, 5, 6]], "interpolation": error[[3, 4]]}
    parts |= {"extrapolation": error[[0, 7]], "many": error, "medium": error, "few": error}
    test = {n: {"mae": e.mean(), "num_samples": len(e)} for n, e in parts.items()}
    facts = {"benchmark": "uci-dir", "method": method, "seed": seed, "main_metrics": ["mae"]}
    facts |= {"target": {"name": "y", "unit": "m"}, "higher_is_better": [], "wall_seconds": 1}
    facts |= {"metrics": {"test": test}, "config": {}, "commit": "c", "command": "x"}
    (run / "results.json").write_text(json.dumps(facts))
    return run


def test_table_and_figure_show_the_gain(tmp_path, capsys):
    offsets = np.array([5.0, 1, 1, 3, 3, 1, 1, 5])
    runs = [write_run(tmp_path, "VANILLA", seed, offsets + seed) for seed in (0, 1)]
    runs.append(write_run(tmp_path, "LDS", 0, offsets - 0.5))
    zero_shot.main([*map(str, runs), "--out", str(tmp_path / "gain.png")])
    said = capsys.readouterr().out
    assert "| VANILLA | 3.00 ± 0.71 | 1.50 ± 0.71 | 3.50 ± 0.71 | 5.50 ± 0.71 | 2 |" in said
    assert "| LDS | 2.00 | 0.50 | 2.50 | 4.50 | 1 |" in said
    assert (tmp_path / "gain.png").stat().st_size > 10_000
    loaded = [load("agedb-dir", "report").load_run(run) for run in runs]
    axes = zero_shot.draw_gain(loaded).axes[0]
    (line,) = (line for line in axes.lines if line.get_label() == "LDS")
    assert line.get_xdata() == pytest.approx(np.arange(8, 16) + 0.5)
    assert line.get_ydata() == pytest.approx(np.full(8, 1.0))
    results = json.loads((runs[0] / "results.json").read_text())
    del results["metrics"]["test"]["with_data"]
    (runs[0] / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="no zero-shot labels"):
        zero_shot.main([str(runs[0])])
