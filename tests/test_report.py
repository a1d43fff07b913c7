"""Tables and figures of run folders: their numbers by hand, and which figures are drawn."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT, load

report = load("agedb-dir", "report")
drawing = load("agedb-dir", "figures")

SHOTS = ("overall", "many", "medium", "few")


def shots(metric_values, num_samples=(60, 30, 20, 10)):
    """{shot: metrics} from {metric: four values}, in the order of SHOTS."""
    table = {}
    for number, shot in enumerate(SHOTS):
        table[shot] = {metric: values[number] for metric, values in metric_values.items()}
        table[shot]["num_samples"] = num_samples[number]
    return table


def write_run(folder, metrics=None, **entries):
    """Write a run folder that holds `results.json` alone; returns the folder."""
    results = {
        "benchmark": "agedb-dir", "method": "VANILLA", "seed": 0, "commit": "abc1234",
        "command": "python train.py", "wall_seconds": 120.0, "best_epoch": 1,
        "target": {"name": "age", "unit": "years"}, "main_metrics": ["mae"],
        "higher_is_better": [], "config": {"lr": 0.001},
        "metrics": {"test": metrics or shots({"mae": (7.0, 6.0, 8.0, 9.0)})},
    }  # fmt: skip
    results |= entries
    results["config"] = results["config"] | {"seed": results["seed"]}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def write_epochs(folder, rows):
    """Write `epochs.jsonl` with (epoch, training loss) rows."""
    for epoch, loss in rows:
        line = {"epoch": epoch, "train_loss": loss, "lr": 0.1, "seconds": {"train": 1.0}}
        line["val"] = shots({"mae": (loss, loss - 1, loss + 1, None)})
        with open(folder / "epochs.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_predictions(folder, table):
    """Write `predictions.csv` of the test set, and into the results of how many samples it is."""
    table.to_csv(folder / "predictions.csv", index=False)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["metrics"]["test"]["overall"]["num_samples"] = len(table)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def write_data(folder, edges, lds=True, fds=True, predictions=True, features=12):
    """Write the other files: a skewed density, noisy predictions, features smooth in the label."""
    rng = np.random.default_rng(3)
    edges, B = np.asarray(edges), len(edges)
    counts = (400 * np.exp(-0.5 * ((np.arange(B) - B / 3) / (B / 8)) ** 2)).astype(int)
    density = pd.DataFrame({"bucket": range(B), "label": edges, "count": counts})
    density["emp_label_dist"] = np.sqrt(counts)
    smoothed = np.convolve(np.sqrt(counts), [0.25, 0.5, 0.25], mode="same")
    density["eff_label_dist"] = smoothed if lds else np.nan
    density["weight"] = [1 / value if n else np.nan for value, n in zip(smoothed, counts)]
    density.to_csv(folder / "label_density.csv", index=False)
    if predictions:
        labels = np.repeat(edges, np.minimum(counts, 8)).astype(float)
        table = pd.DataFrame({"path": "x", "label": labels, "split": "test"})
        table["prediction"] = labels + rng.normal(0, np.ptp(edges) / 15, len(labels))
        write_predictions(folder, table)
    if fds:
        mean = 1 + np.linspace(-1, 1, B)[:, None] * rng.normal(size=features)
        arrays = {"running_mean": mean, "smoothed_mean": mean * 0.9 + 0.1}
        arrays |= {"running_var": mean**2 + 0.1, "smoothed_var": mean**2 + 0.2}
        arrays = {name: array.astype("float32") for name, array in arrays.items()}
        tracked = counts.astype("float32")
        np.savez(folder / "fds_statistics.npz", label=edges, num_samples_tracked=tracked, **arrays)


def table_of(*folders, split="test"):
    """Markdown of the table as {method: {header: cell}}, and its DataFrame."""
    markdown, frame = report.make_table([report.load_run(f) for f in folders], split)
    lines = [line.strip("|\n").split("|") for line in markdown.splitlines()]
    header, rule, *rows = [[cell.strip() for cell in line] for line in lines]
    assert set(rule) <= {"---", "---:"}
    return {row[0]: dict(zip(header, row)) for row in rows}, frame


# ---- tables --------------------------------------------------------------------------------


def test_mean_and_sample_standard_deviation_over_seeds(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), shots({"mae": (7 + seed, 6, 8, 9)}), seed=seed,
                  wall_seconds=6000.0 * (1 + seed))
        for seed in range(3)
    ]  # fmt: skip
    rows, frame = table_of(*folders)
    row = rows["VANILLA"]
    assert row["MAE all"] == "8.00 ± 1.00"  # 7, 8, 9: the sample's 1, not the population's 0.82
    assert row["MAE few"] == "9.00 ± 0.00"
    assert row["seeds"] == "3"
    assert row["minutes"] == "200.0"
    assert frame.loc[0, "mae_overall"] == 8
    assert frame.loc[0, "mae_overall_std"] == 1
    assert frame.loc[0, "seed"] == "0; 1; 2"


def test_one_seed_has_no_deviation_and_one_row_no_best(tmp_path):
    rows, frame = table_of(write_run(tmp_path / "run"))
    assert rows["VANILLA"]["MAE many"] == "6.00"
    assert "**" not in str(rows)
    assert math.isnan(frame.loc[0, "mae_many_std"])


def test_best_is_bold_by_column_with_ties_and_where_higher_is_better(tmp_path):
    kinds = {"main_metrics": ["mae", "pearson"], "higher_is_better": ["pearson"]}
    first = {"mae": (7.004, 6.0, 8.0, 9.0), "pearson": (0.7, 0.9, 0.5, 0.1)}
    second = {"mae": (6.996, 6.5, 8.0, 8.0), "pearson": (0.8, 0.8, 0.5, -0.1)}
    rows, _ = table_of(
        write_run(tmp_path / "a", shots(first), method="A", **kinds),
        write_run(tmp_path / "b", shots(second), method="B", **kinds),
    )
    best = {
        name: [h for h, cell in row.items() if cell.startswith("**")] for name, row in rows.items()
    }
    # 7.004 and 6.996 print alike, so both are bold; so do the equal columns.
    ties = ["MAE all", "MAE medium", "pearson medium"]
    assert sorted(best["A"]) == sorted([*ties, "MAE many", "pearson many", "pearson few"])
    assert sorted(best["B"]) == sorted([*ties, "MAE few", "pearson all"])
    assert rows["B"]["pearson all"] == "**0.800**"
    assert rows["B"]["MAE all"] == "**7.00**"


def test_a_shot_without_samples_is_a_dash_and_a_diverged_run_is_nan(tmp_path):
    empty = shots({"mae": (7.0, 6.0, 8.0, None)}, (60, 40, 20, 0))
    diverged = shots({"mae": (None, None, 8.5, None)}, (60, 40, 20, 0))
    rows, frame = table_of(
        write_run(tmp_path / "a", empty, method="A"),
        write_run(tmp_path / "b", diverged, method="B"),
    )
    assert [rows[name]["MAE few"] for name in "AB"] == ["–", "–"]
    assert rows["B"]["MAE all"] == "nan"
    assert rows["A"]["MAE all"] == "**7.00**"
    assert math.isnan(frame.loc[1, "mae_overall"])


def test_one_diverged_seed_is_not_averaged_away(tmp_path):
    rows, _ = table_of(
        write_run(tmp_path / "0"),
        write_run(tmp_path / "1", shots({"mae": (None, 6.0, 8.0, 9.0)}), seed=1),
    )
    assert rows["VANILLA"]["MAE all"] == "nan ± nan"
    assert rows["VANILLA"]["MAE many"] == "6.00 ± 0.00"


def test_rows_keep_the_given_order_and_configurations_apart(tmp_path):
    def pretrained(seed):
        return (
            f"checkpoint/agedb_seed_{seed}/ckpt.best.pth.tar"
            if seed
            else "checkpoint/agedb/ckpt.best.pth.tar"
        )

    settings = [("RRT", 1, 0.001), ("A", 0, 0.001), ("RRT", 0, 0.001), ("RRT", 0, 0.01)]
    folders = [
        write_run(tmp_path / str(number), method=method, seed=seed,
                  config={"lr": lr, "pretrained": pretrained(seed), "resume": str(number)})
        for number, (method, seed, lr) in enumerate(settings)
    ]  # fmt: skip
    rows, frame = table_of(*folders)
    assert list(rows) == ["RRT (lr 0.001)", "A", "RRT (lr 0.01)"]
    assert list(frame["seed"]) == ["1; 0", "0", "0"]


def test_a_flag_that_came_later_parts_no_rows_unless_it_was_used(tmp_path):
    """Runs of an older version lack the flag; those of the newer one have its default."""
    old = write_run(tmp_path / "old", seed=0, config={"lr": 0.1})
    new = write_run(tmp_path / "new", seed=1, config={"lr": 0.1, "alpha": 1.0})
    rows, _ = table_of(old, new)
    assert list(rows) == ["VANILLA"]
    used = write_run(tmp_path / "used", seed=2, config={"lr": 0.1, "alpha": 2.0})
    rows, _ = table_of(old, new, used)
    assert len(rows) == 3
    entries = {"seed": 3, "config": {"lr": 0.1, "alpha": 2.0}, "changed_flags": ["alpha"]}
    rows, _ = table_of(old, write_run(tmp_path / "said", **entries))
    assert list(rows) == ["VANILLA", "VANILLA (alpha 2.0)"]


def test_what_cannot_be_one_table_is_an_error(tmp_path):
    a, again = write_run(tmp_path / "a"), write_run(tmp_path / "again")
    depth = write_run(tmp_path / "d", benchmark="nyud2-dir")
    price = write_run(tmp_path / "p", target={"name": "price", "unit": "EUR"})
    with pytest.raises(ValueError, match="one target, got age years, price EUR"):
        table_of(a, price)
    with pytest.raises(ValueError, match="one benchmark, got agedb-dir, nyud2-dir"):
        table_of(a, depth)
    with pytest.raises(ValueError, match=r"seeds \[0, 0\] in .*a, .*again"):
        table_of(a, again)
    with pytest.raises(ValueError, match="metrics of test, none of val"):
        table_of(a, split="val")
    with pytest.raises(ValueError, match="got no run"):
        table_of()


# ---- run folders ---------------------------------------------------------------------------


def test_folders_that_hold_no_finished_run_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no results.json in .*elsewhere.*has not finished"
    ):
        report.load_run(tmp_path / "elsewhere")
    (tmp_path / "results.json").write_text('{"benchmark": "agedb-', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        report.load_run(tmp_path)
    (tmp_path / "results.json").write_text('{"benchmark": "agedb-dir"}', encoding="utf-8")
    with pytest.raises(ValueError, match="lacks method, seed"):
        report.load_run(tmp_path)


def test_resumed_and_cut_epochs(tmp_path):
    folder = write_run(tmp_path / "run")
    write_epochs(folder, [(0, 9.0), (1, 8.0), (2, 7.5), (1, 8.5), (2, 7.0)])
    with open(folder / "epochs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "train_lo')
    epochs = report.load_run(folder)["epochs"]
    assert [(row["epoch"], row["train_loss"]) for row in epochs] == [(0, 9.0), (1, 8.5), (2, 7.0)]


def test_a_line_that_is_lost_amid_the_epochs_is_noticed(tmp_path):
    folder = write_run(tmp_path / "run")
    write_epochs(folder, [(3, 9.0), (4, 8.0), (6, 7.0)])
    with pytest.raises(ValueError, match=r"no line stands between the epochs 4 and 6.*restore it"):
        report.load_run(folder)
    steps = write_run(tmp_path / "steps", config={"val_interval": 20})
    for step in (20, 40, 80):
        line = {"epoch": step / 13, "step": step, "train_loss": 1.0, "val": {}}
        report.load_run(steps)
        with open(steps / "epochs.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"between the epochs 3.07\d* and 6.15"):
        report.load_run(steps)


# ---- numbers in the figures ----------------------------------------------------------------


def test_error_by_label_against_a_loop():
    rng = np.random.default_rng(0)
    labels, edges = rng.uniform(0, 12, 300), np.arange(3, 10)
    labels = labels[(labels < 5) | (labels >= 6)]  # bucket 2 stays empty
    preds = labels + rng.normal(size=len(labels))
    table = drawing.error_by_label(labels, preds, edges)
    assert list(table.index) == [0, 1, 3, 4, 5, 6]
    for bucket in table.index:
        low = -np.inf if bucket == 0 else edges[bucket]
        high = np.inf if bucket == 6 else edges[bucket + 1]
        errors = [abs(p - y) for p, y in zip(preds, labels) if low <= y < high]
        assert table.loc[bucket, "mae"] == pytest.approx(sum(errors) / len(errors), rel=1e-12)
        assert table.loc[bucket, "num_samples"] == len(errors)


def test_a_label_on_a_bucket_edge_counts_in_the_bucket_above():
    edges = np.linspace(0, 5, 51)[:-1].astype("float32").astype(float)
    labels = [number / 10 for number in range(50)]  # in float64: 0.7 < float32(0.7), 0.3 > ...
    assert list(drawing.label_to_bucket(labels, edges)) == list(range(50))
    assert list(drawing.label_to_bucket([-1.0, 5.0], edges)) == [0, 49]


def test_cosine_similarity_closed_form():
    angles = np.deg2rad([0, 30, 90, 180])
    vectors = np.array([[r * np.cos(a), r * np.sin(a)] for r, a in zip([1, 5, 2, 3], angles)])
    expected = [math.sqrt(3) / 2, 1, 0.5, -math.sqrt(3) / 2]
    assert drawing.cosine_similarity(vectors, 1) == pytest.approx(expected, abs=1e-12)
    vectors[2] = 0
    assert np.isnan(drawing.cosine_similarity(vectors, 1)).tolist() == [False, False, True, False]


def lines_of(fig, axes):
    """{label: (x, y)} of the labelled lines of one of a figure's axes."""
    lines = fig.axes[axes].get_lines()
    return {line.get_label(): line.get_data() for line in lines if line.get_label()[0] != "_"}


def test_figures_show_the_numbers(tmp_path):
    folder, edges = write_run(tmp_path / "run"), np.arange(40)
    write_epochs(folder, [(0, 9.0), (1, 8.0)])
    write_data(folder, edges)
    run = report.load_run(folder)
    figures = drawing.make_figures(run, "test", 10)
    test, fds = run["predictions"], run["fds_statistics"]

    x, y = lines_of(figures["error_by_label"], 0)["MAE of a bucket"]
    expected = (test["prediction"] - test["label"]).abs().groupby(test["label"]).mean()
    assert x.tolist() == (expected.index + 0.5).tolist()
    assert y == pytest.approx(expected.to_numpy())

    curves = lines_of(figures["learning_curves"], 1)
    assert curves["many"][1].tolist() == [8.0, 7.0]
    assert np.isnan(curves["few"][1]).all()

    bars = sum(bar.get_height() for bar in figures["label_density"].axes[0].patches)
    assert bars == pytest.approx(1)
    assert lines_of(figures["label_density"], 0)["after LDS"][1].sum() == pytest.approx(1)

    tracked = fds["num_samples_tracked"] > 0
    assert 0 < tracked.sum() < len(tracked)
    for axes, kind in enumerate(("mean", "var")):
        lines = lines_of(figures["fds_similarity"], axes)
        for stage, label in {"running": "before smoothing", "smoothed": "after smoothing"}.items():
            vectors = fds[f"{stage}_{kind}"].astype(float)
            unit = vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))
            expected = np.where(tracked, unit @ unit[10], np.nan)
            assert lines[label][1] == pytest.approx(expected, abs=1e-5, nan_ok=True)

    mean, panels = fds["running_mean"], figures["fds_statistics"].axes
    widest = (mean[tracked].max(axis=0) - mean[tracked].min(axis=0)).argmax()
    assert panels[1].get_title() == f"feature {widest}"
    shown = lines_of(figures["fds_statistics"], 1)["before smoothing"][1]
    expected = np.where(tracked, mean[:, widest], np.nan)
    assert shown == pytest.approx(expected, nan_ok=True)


def test_a_dollar_sign_in_a_name_is_drawn_as_it_is(tmp_path):
    name = r"price in $\frac{$"
    folder = write_run(tmp_path / "run", method="$^$", target={"name": name, "unit": "$"})
    write_data(folder, range(20))
    write_epochs(folder, [(0, 9.0)])
    assert len(report.draw_run(folder)) == 6


def test_a_cut_table_and_impossible_numbers_are_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    write_data(folder, range(20))
    file, results = folder / "predictions.csv", folder / "results.json"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-5]))
    with pytest.raises(ValueError, match=rf"has {len(lines) - 6} rows of test.*{len(lines) - 1}"):
        report.load_run(folder)
    text = results.read_text()
    for old, new in (('"num_samples": 30', '"num_samples": -30'), ('"mae": 9.0', '"mae": 1e999')):
        results.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"its (num_samples is -30|mae is inf)"):
            report.load_run(folder)


def test_running_median_and_band(tmp_path):
    folder = write_run(tmp_path / "run")
    # At each label 11 predictions, 5 below to 5 above it: symmetric, so the median is the label.
    table = pd.DataFrame({"label": np.repeat(np.arange(61), 11), "path": "x", "split": "test"})
    table["prediction"] = table["label"] + np.tile(np.arange(-5, 6), 61)
    table.loc[table["label"].between(20, 40), "label"] = 0  # no label there: a gap in the line
    write_predictions(folder, table)
    fig = drawing.make_figures(report.load_run(folder), "test", None)["predictions"]
    x, y = lines_of(fig, 0)["running median"]
    assert np.isnan(y).any()
    inner = (x >= 3) & (x <= 58)
    assert inner.sum() > 40
    assert not ((x > 20) & (x < 40)).any()
    assert y[inner] == pytest.approx(x[inner], abs=1e-9)
    band = next(c for c in fig.axes[0].collections if c.get_label() == "10–90 %").get_paths()
    ends = np.concatenate([path.vertices for path in band])
    one = ends[np.isclose(ends[:, 0], 10.5), 1]  # the window of the labels 9 to 12
    window = np.concatenate([label + np.arange(-5, 6) for label in range(9, 13)])
    assert one.min() == pytest.approx(np.quantile(window, 0.1))
    assert one.max() == pytest.approx(np.quantile(window, 0.9))


def test_shots_are_marked_where_the_density_file_names_them(tmp_path):
    folder = write_run(tmp_path / "run")
    write_data(folder, np.arange(40))
    density = pd.read_csv(folder / "label_density.csv")
    density["shot"] = np.where(density["count"] > 100, "many", "few")
    density.to_csv(folder / "label_density.csv", index=False)
    figures = drawing.make_figures(report.load_run(folder), "test", None)
    lines = lines_of(figures["error_by_label"], 0)
    assert {"many", "few"} <= lines.keys()
    assert "MAE of a bucket" not in lines
    assert lines["many"][0].tolist() == (density.index[density["count"] > 100] + 0.5).tolist()


# ---- figures as files ----------------------------------------------------------------------

ALL = (
    "predictions error_by_label learning_curves label_density fds_statistics fds_similarity".split()
)
CASES = {
    "ages, LDS and FDS": (np.arange(40), {}, ALL),
    "ages, plain": (np.arange(40), {"lds": False, "fds": False}, ALL[:3]),
    "dense": (np.arange(7, 40) / 10, {"predictions": False}, ALL[2:]),
    "text, one feature": (
        np.linspace(0, 5, 51)[:-1],
        {"lds": False, "features": 1},
        ALL[:3] + ALL[4:],
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_each_figure_is_written_where_its_file_is_held(tmp_path, case):
    edges, files, expected = CASES[case]
    folder = write_run(tmp_path / "run", target={"name": "label", "unit": None})
    write_epochs(folder, [(0, 9.0)])
    write_data(folder, edges, **files)
    paths = report.draw_run(folder)
    assert {path.name for path in paths} == {f"{name}.png" for name in expected}
    assert sorted(paths) == sorted((folder / "figures").iterdir())
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) >= 500
            assert image.convert("RGB").getcolors(20) is None  # over 20 colours: it is not blank


def test_a_run_without_other_files_draws_nothing(tmp_path):
    assert report.draw_run(write_run(tmp_path / "run"), out=tmp_path / "out") == []


def test_fds_that_never_tracked_a_sample_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    arrays = {
        f"{stage}_{kind}": np.zeros((5, 3))
        for stage in ("running", "smoothed")
        for kind in ("mean", "var")
    }
    np.savez(
        folder / "fds_statistics.npz", label=np.arange(5), num_samples_tracked=np.zeros(5), **arrays
    )
    assert report.draw_run(folder) == []


def test_what_cannot_be_drawn_is_an_error(tmp_path):
    folder = write_run(tmp_path / "run")
    write_data(folder, np.arange(40))
    with pytest.raises(ValueError, match="no finite prediction of val"):
        report.draw_run(folder, split="val")
    with pytest.raises(ValueError, match=r"--anchor 39 has no sample .*try .*\b12, 13\b"):
        report.draw_run(folder, anchor=39)
    assert not (folder / "figures").exists()


def test_predictions_that_are_not_finite_are_counted_not_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [
        "path,label,prediction,split",
        "a,1,2,test",
        "b,2,nan,test",
        "c,3,inf,test",
        "d,4,5,test",
    ]
    write_predictions(folder, pd.read_csv(io.StringIO("\n".join(rows))))
    fig = drawing.make_figures(report.load_run(folder), "test", None)["predictions"]
    assert "2 samples (2 without a finite prediction left out)" in fig.get_suptitle()
    assert fig.axes[0].collections[0].get_offsets().tolist() == [[1, 2], [4, 5]]


# ---- command line --------------------------------------------------------------------------


def run_script(*args):
    """Run report.py as people do, from within the folder."""
    command = [sys.executable, "report.py", *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT / "agedb-dir", capture_output=True, text=True, encoding="utf-8",
        timeout=120,
    )  # fmt: skip


def test_command_line_prints_and_writes_the_table(tmp_path):
    a = write_run(tmp_path / "a", method="VANILLA")
    b = write_run(tmp_path / "b", shots({"mae": (6.5, 6.25, 7.0, 8.0)}), method="LDS")
    write_epochs(a, [(0, 1.0)])
    done = run_script(a, b, "--table", tmp_path / "new" / "t.md", "--out", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    picture, header, first, second = done.stdout.splitlines()
    assert picture == str(tmp_path.resolve() / "figures" / "a" / "learning_curves.png")
    assert header.split() == "method MAE all MAE many MAE medium MAE few seeds minutes".split()
    assert first.split() == ["VANILLA", "7.00", "6.00*", "8.00", "9.00", "1", "2.0"]
    assert second.split() == ["LDS", "6.50*", "6.25", "7.00*", "8.00*", "1", "2.0"]
    assert len({line.index(end) for line, end in ((first, "6.00"), (second, "6.25"))}) == 1
    markdown, frame = report.make_table([report.load_run(folder) for folder in (a, b)])
    assert (tmp_path / "new" / "t.md").read_text(encoding="utf-8") == markdown
    assert "| VANILLA | 7.00 | **6.00** | 8.00 | 9.00 | 1 | 2.0 |" in markdown
    written = pd.read_csv(tmp_path / "new" / "t.csv")
    assert written["mae_many"].tolist() == frame["mae_many"].tolist() == [6.0, 6.25]


def test_a_terminal_sees_bold_and_no_stars(tmp_path):
    runs = [write_run(tmp_path / name, method=name) for name in "AB"]
    columns, _ = report.fill_table([report.load_run(folder) for folder in runs], "test")
    text = report.plain_table(columns, terminal=True)
    assert "\033[1m" in text
    assert "*" not in text
    bare = text.replace("\033[1m", "").replace("\033[0m", "").splitlines()
    assert len({len(line) for line in bare}) == 1


def test_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    a = write_run(tmp_path / "x" / "a")
    same_name = write_run(tmp_path / "y" / "a", method="LDS")
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("report.py: no results.json in")
    assert len(done.stderr.splitlines()) == 1
    for args, message in (
        ((a, "--table", "t.csv"), "ends in .md, got t.csv"),
        ((a, same_name, "--out", tmp_path / "o"), "different names, got a, a"),
        ((a, "--spilt", "val"), "unrecognized arguments: --spilt"),
    ):
        with pytest.raises(SystemExit) as stopped:
            report.main([str(arg) for arg in args])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_import_is_light():
    code = "import sys, report; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT / "agedb-dir", capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "set()", done.stderr
