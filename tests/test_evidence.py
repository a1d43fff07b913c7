"""Tables of sweeps: differences to VANILLA, their intervals, and what is shown of them."""

import json

import numpy as np
import pytest
from scipy import stats

from conftest import load

evidence = load("tools", "evidence")


def write_run(folder, method, seed, errors, shots=None, **metrics):
    """A run whose MAE follows from its errors, with `errors.npz` if `shots` are given."""
    shots_known = np.zeros(len(errors), int) if shots is None else np.asarray(shots)
    test = {}
    for place, shot in enumerate(("overall", "many", "medium", "few")):
        part = np.full(len(errors), True) if place == 0 else shots_known == place - 1
        mae = float(errors[part].mean()) if part.any() else None
        test[shot] = {"mae": mae, "num_samples": int(part.sum()), **metrics}
    run = folder / f"{method}_{seed}"
    run.mkdir(parents=True)
    result = {"method": method, "seed": seed, "wall_seconds": 60, "metrics": {"test": test}}
    (run / "results.json").write_text(json.dumps(result))
    if shots is not None:
        np.savez(run / "errors.npz", error=np.float16(errors), shot=np.uint8(shots_known))


def figures_of(table, out):
    figures = evidence.summarize(table, out)
    return figures.set_index(["set", "metric", "shot", "method"])


def test_student_interval_of_paired_seeds_against_scipy(tmp_path):
    rng = np.random.default_rng(0)
    plain, own = rng.normal(5, 1, (2, 6))
    for seed in range(6):
        write_run(tmp_path, "VANILLA", seed, plain[seed : seed + 1])
        write_run(tmp_path, "LDS", seed, own[seed : seed + 1] - 1.5)
    line = figures_of({"rows": {"VANILLA": "", "LDS": ""}}, tmp_path).loc[
        "", "mae", "overall", "LDS"
    ]
    expected = stats.ttest_rel(own - 1.5, plain).confidence_interval(0.95)
    assert line["versus"] == pytest.approx(np.mean(own - 1.5 - plain))
    assert [line["low"], line["high"]] == pytest.approx([*expected])
    assert line["verdict"] == ("better" if expected.high < 0 else "")


def test_bootstrap_interval_against_its_closed_form():
    """Of rows and seeds that add up, the variances of both means add up too."""
    rng = np.random.default_rng(1)
    samples, seeds = rng.normal(0, 2, 400), rng.normal(0, 0.5, 50)
    low, high = evidence.bootstrap(1 + samples + seeds[:, None])
    center = 1 + samples.mean() + seeds.mean()
    deviation = np.sqrt(samples.var() / 400 + seeds.var() / 50)
    assert [low, high] == pytest.approx(center + 1.96 * np.array([-1, 1]) * deviation, abs=0.03)


def test_few_seeds_of_equal_samples_have_students_interval():
    seeds = np.array([0.5, 1.4, 1.1])
    low, high = evidence.bootstrap(np.repeat(seeds[:, None], 50, axis=1))
    expected = stats.t(2).ppf(0.975) * stats.sem(seeds)
    # A mean of three drawn seeds is one of ten values, the outermost of which are widened ones.
    assert expected / 1.2 < (high - low) / 2 < expected * 1.2


def test_kept_errors_decide_by_shot_and_few_seeds_decide_nothing(tmp_path):
    rng = np.random.default_rng(2)
    shots = np.repeat([0, 2], 200)
    for seed in range(3):
        plain = rng.uniform(4, 6, 400)
        write_run(tmp_path, "VANILLA", seed, plain, shots)
        write_run(tmp_path, "LDS", seed, plain + np.where(shots == 2, -1, 0.5), shots)
        if seed < 2:
            write_run(tmp_path, "FDS", seed, plain - 1, shots)
    lines = figures_of({"rows": {"VANILLA": "", "LDS": "", "FDS": ""}}, tmp_path).loc["", "mae"]
    assert lines.loc["few", "LDS"]["verdict"] == "better"
    assert lines.loc["many", "LDS"]["verdict"] == "worse"
    assert lines.loc["few", "LDS"][["low", "high"]].tolist() == pytest.approx([-1, -1], abs=0.01)
    assert lines.loc["overall", "FDS"]["verdict"] == ""
    assert lines.loc["overall", "VANILLA"]["verdict"] == ""


def test_the_papers_figures_stand_next_to_ours_and_worse_cells_stay(tmp_path):
    for seed, mae in enumerate((7.0, 9.0)):
        write_run(tmp_path, "LDS", seed, np.array([mae]))
    table = {"rows": {"LDS": "", "RRT": "", "X": ""}, "paper": {"mae": {}}}
    table["paper"]["mae"] = {"LDS": [7.67, 6.98, 8.86, 10.89], "RRT": [7.72, 7.0, 8.75, 11.62]}
    columns = evidence.tables_of(table, tmp_path)["MAE"]
    assert columns["method"] == ["LDS", "RRT"]  # X has neither
    assert columns["all: paper"] == ["7.67", "7.72"]
    assert columns["all: ours"] == ["8.00 ± 1.41", "–"]
    assert columns["all: − paper"] == ["+0.33", "–"]
    text = evidence.latex(columns)
    assert r"LDS & 2 & 7.67 & 8.00 $\pm$ 1.41 & +0.33 & -- & 10.89" in text
    assert text.count(r"\\") == 3


def test_wins_and_ranks_over_sets(tmp_path):
    values = {"a": (3, 2, 4), "b": (1, 2, 3), "c": (5, 1, 2)}
    for name, row in values.items():
        lines = [
            {"method": m, "seed": seed, "wall_seconds": 1, "test": {"overall": {"mae": v + seed}}}
            for m, v in zip(("VANILLA", "LDS", "FDS"), row)
            for seed in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    rows = {"VANILLA": "", "LDS": "", "FDS": "", "never run": ""}
    table = {"rows": rows, "sets": {"a": {}, "b": {}, "c": {}}}
    columns = evidence.tables_of(table, tmp_path, ["overall"])["All sets"]
    assert columns["MAE all: rank"] == ["2.0", "1.3", "2.7"]
    assert columns["MAE all: better on"] == ["–", "2 of 3 (2 / 1)", "1 of 3 (1 / 2)"]


def figures_of_two(out, metrics=("mae",)):
    return figures_of({"rows": {"VANILLA": "", "LDS": ""}, "metrics": metrics}, out)


def test_students_interval_stands_where_seeds_have_other_test_samples_or_errors_are_missing(
    tmp_path,
):
    rng = np.random.default_rng(3)
    for kind in ("samples", "shots", "missing"):
        differences = []
        for seed in range(4):
            plain = rng.uniform(4, 6, 20 + seed * (kind == "samples"))
            own = plain - rng.uniform(0, 2)
            shots = np.arange(len(plain)) % 3 if kind != "shots" else rng.permutation(20) % 3
            write_run(tmp_path / kind, "VANILLA", seed, plain, shots)
            kept = None if kind == "missing" and seed == 2 else shots
            write_run(tmp_path / kind, "LDS", seed, own, kept)
            differences.append(own.mean() - plain.mean())
        line = figures_of_two(tmp_path / kind).loc["", "mae", "overall", "LDS"]
        expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert [line["low"], line["high"]] == pytest.approx([*expected])


def test_a_seed_twice_is_refused_and_one_without_a_figure_does_not_count(tmp_path, capsys):
    for seed in range(3):
        for method in ("VANILLA", "LDS"):
            write_run(tmp_path, method, seed, np.array([seed + 4.0]))
    lines = figures_of_two(tmp_path).loc["", "mae"]
    assert lines.loc["overall", "LDS"]["seeds"] == 3
    assert lines.loc["few", "LDS"]["seeds"] == 0  # no test sample is in it
    again = {"method": "LDS", "seed": 1, "wall_seconds": 1, "test": {"overall": {"mae": 4}}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(again) + "\n")
    with pytest.raises(ValueError, match=r"'LDS', 1.*runs\.jsonl and again in .*LDS_1"):
        figures_of_two(tmp_path)
    with pytest.raises(ValueError, match="has no run of this table"):
        figures_of_two(tmp_path / "empty")


def test_the_papers_figures_of_a_share_are_shares():
    """Ours of Pearson and delta are up to 1, so the difference to a percentage means nothing."""
    for file in (evidence.ROOT / "results/tables").glob("*.toml"):
        for metric, rows in (
            evidence.tomllib.loads(file.read_text("utf-8")).get("paper", {}).items()
        ):
            if metric in evidence.HIGHER_IS_BETTER:
                assert np.max([*rows.values()]) <= 1, file


def test_a_cut_line_and_an_unknown_metric_are_named(tmp_path):
    table = {"rows": {"VANILLA": ""}, "metrics": ["maa"]}
    write_run(tmp_path, "VANILLA", 0, np.ones(3))
    with pytest.raises(ValueError, match=r"of those that the runs have, \['mae'.*got \['maa'\]"):
        evidence.summarize(table, tmp_path)
    (tmp_path / "runs.jsonl").write_text('{"method": "VANIL')
    with pytest.raises(ValueError, match=r"line 1 of .*runs\.jsonl is no JSON"):
        evidence.summarize(table, tmp_path)


def test_latex_escapes_what_it_would_take_for_its_own():
    text = evidence.latex({"method": ["A_B & 5 %"], "all": ["1 ± 2"]})
    assert r"A\_B \& 5 \% & 1 $\pm$ 2 \\" in text


@pytest.mark.parametrize("rows", ['A = ""', 'A = ""\nVANILLA = ""'])
def test_without_a_run_of_plain_training_the_rest_is_shown(rows, tmp_path, capsys):
    text = f'folder = "uci-dir"\nout = "none"\nseeds = [0]\nmetrics = ["mae"]\n[rows]\n{rows}\n'
    said = f"no run of VANILLA in {tmp_path}: no differences to it\n"
    file = tmp_path / "table.toml"
    for sets, expected in (("", "| A | 1 | 2.000 |"), ("[sets.x]\n", "| A | 1.0 | – |")):
        file.write_text(text + sets)
        write_run(tmp_path / ("x" if sets else ""), "A", 0, np.array([1.0, 3.0]))
        evidence.main([str(file), "--out", str(tmp_path)])
        shown = capsys.readouterr()
        assert expected in shown.out
        assert shown.err == said
