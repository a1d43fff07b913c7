"""uci-dir: any table, read and prepared; what cannot be used is refused with a reason."""

import hashlib
import json
import math
import shutil
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import load

prepare = load("uci-dir", "prepare")
table_file = load("uci-dir", "table_file")
split = load("uci-dir", "split")
datasets = load("uci-dir", "datasets")
demo_data = load("uci-dir", "demo_data")
download = load("uci-dir", "download")
metrics = load("uci-dir", "metrics")
columns = load("uci-dir", "columns")
new_rows = load("uci-dir", "new_rows")
Bins = load("uci-dir", "bins").Bins


def table_of(N=300, seed=0):
    """A table with a skewed target."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2, 2, N)
    colour = rng.choice(["red", "blue"], N)
    return pd.DataFrame(
        {"x": x.round(4), "colour": colour, "y": (3 * x + (colour == "red")).round(2)}
    )


def write(folder, text, name="mine.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def run(folder, path, *flags, target="y"):
    """Prepare a table; returns the prepared table and the preparation."""
    data = folder / "data"
    argv = ["--csv", str(path), "--target", target, "--data_dir", str(data), "--overwrite"]
    prepare.main([*argv, *map(str, flags)])
    return datasets.read_prepared(data, path.stem)


# ---- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sep", "decimal", "encoding"),
    [
        (",", ".", "utf-8"), (";", ",", "utf-8"), ("\t", ".", "utf-8-sig"), (";", ".", "utf-16"),
        ("|", ".", "cp1252"),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_table(tmp_path, sep, decimal, encoding):
    table = table_of().replace({"colour": {"red": "grün"}})
    text = table.to_csv(index=False, sep=sep, decimal=decimal)
    frame, form = table_file.read_table(write(tmp_path, text, encoding=encoding))
    pd.testing.assert_frame_equal(frame, table, check_dtype=False)
    assert f"separator {sep!r}, decimal mark {decimal!r}, {encoding}" in form


def test_quotes_with_newlines_and_separators(tmp_path):
    text = 'name,"the\nnote",y\n"a, b","line 1\nline 2",1\nc,"say ""x""",2\n'
    frame, _ = table_file.read_table(write(tmp_path, text))
    assert list(frame.columns) == ["name", "the\nnote", "y"]
    assert frame["the\nnote"].tolist() == ["line 1\nline 2", 'say "x"']


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"x,y\n", "no row"),
        (b"y\n1\n2\n", "one column"),
        (b"x,y,x\n1,2,3\n", "several columns called x"),
        (b"1,2.5,3\n4,5,6\n", "first line must be names"),
        (b"x,y\n1,2,3\n4,5,6\n", "more fields than its header"),
        (b"x,y\n1,2\n3,4,5\n", "--separator"),
        (b"\x00\x01x,y\n\x00", "NUL"),
    ],
)
def test_no_table(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        table_file.read_table(write(tmp_path, text))


@pytest.mark.parametrize("preface", ["", ",,\n", "sep=;\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_before_the_header_and_ends_of_lines(tmp_path, preface, end):
    """As Excel writes them; one odd cell keeps no other from being a number."""
    text = preface + "x;z;y\n1,5;2;3\n2,25;k.A.;4\n-3,5;1,5;5\n"
    frame, _ = table_file.read_table(write(tmp_path, text.replace("\n", end)))
    assert table_file.as_numbers(frame["x"]).tolist() == [1.5, 2.25, -3.5]
    assert table_file.as_numbers(frame["z"])[[0, 2]].tolist() == [2, 1.5]
    assert frame["y"].tolist() == [3, 4, 5]


def test_new_rows_are_read_as_training_rows_were(tmp_path):
    """Whatever else stands in the file: categories that look like numbers, one column, a form."""
    table = table_of(300)
    table["flag"] = ["TRUE", "false", "maybe"] * 100
    table["code"] = ["01", "2.0", "A1", "A1"] * 75
    table.loc[table["flag"] == "maybe", "y"] = np.nan  # the odd cells have no label
    text = table.to_csv(index=False, sep=":")
    prepared, preparation = run(tmp_path, write(tmp_path, text), "--separator", ":")
    values = {c["name"]: c["values"] for c in preparation["columns"] if "values" in c}
    assert values == {
        "colour": ["blue", "red"],
        "flag": ["False", "True"],
        "code": ["01", "2.0", "A1"],
    }
    new = table[(table["flag"] != "maybe") & (table["code"] != "A1")].reset_index(drop=True)
    path = write(tmp_path, new.to_csv(index=False, sep=":"), "new.csv")
    frame, _ = new_rows.read_new(path, preparation)
    inputs, unknown = columns.encode(frame, preparation["columns"])
    assert not unknown
    again, _ = columns.encode(prepared[prepared["code"] != "A1"], preparation["columns"])
    np.testing.assert_array_equal(inputs, again)
    one = [c for c in preparation["columns"] if c["name"] == "x"]
    form = {"columns": one, "missing": []}
    frame, _ = new_rows.read_new(write(tmp_path, "x\n1,5\n-2\n"), form)
    assert table_file.as_numbers(frame["x"]).tolist() == [1.5, -2]


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone.csv"):
        table_file.read_table(tmp_path / "gone.csv")


# ---- targets and columns -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="y"), "no column 'y'.*'x', 'colour'"),
        (lambda t: t.assign(y=7), "all the same"),
        (lambda t: t.assign(y=np.nan), "0 labels"),
        (lambda t: t.assign(y=["low"] * 299 + ["1"]), "row 0 has 'low'"),
        (lambda t: t.assign(y=t["y"].gt(3)), "write 1 and 0"),
        (lambda t: t.assign(y=t["y"] * 1e200), "rescale it"),
        (lambda t: t.assign(x=t["x"] * 1e299), "too large to standardise"),
        (lambda t: t[["x", "y"]].assign(x=1), "no column is left"),
        (lambda t: t.head(2), "nothing to validate on"),
        (lambda t: t.assign(split="train"), "'split'"),
        (lambda t: t.assign(town=[f"t{i % 100}" for i in range(300)]), r"'town' \(100 values"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, change, match):
    path = write(tmp_path, change(table_of()).to_csv(index=False))
    with pytest.raises(ValueError, match=match):
        run(tmp_path, path)
    assert not (tmp_path / "data" / "mine.csv").exists()


def test_columns_that_are_left_out_are_named(tmp_path, capsys):
    table = table_of().assign(fixed=1, name=[f"n{i}" for i in range(300)])
    table.insert(0, "", range(300))  # as pandas writes an index
    path = write(tmp_path, table.to_csv(index=False))
    prepared, preparation = run(tmp_path, path)
    assert list(prepared.columns) == ["x", "colour", "y", "split"]
    out = capsys.readouterr().out
    for name, why in (("unnamed_1", "numbers the rows"), ("name", "another text in each row"),
                      ("fixed", "constant in training")):  # fmt: skip
        assert preparation["left_out"][name] == why
        assert f"{name!r} left out: {why}" in out
    prepared, _ = run(tmp_path, path, "--keep", "unnamed_1", "--drop", "x")
    assert list(prepared.columns) == ["unnamed_1", "colour", "y", "split"]


def test_missing_cells_and_labels(tmp_path, capsys):
    table = table_of()
    table.loc[:9, "y"], table.loc[10:19, "x"] = np.nan, np.inf
    table.loc[20:39, "x"], table.loc[40:44, "colour"] = 9999, "?"
    path = write(tmp_path, table.to_csv(index=False))
    prepared, preparation = run(tmp_path, path, "--missing", "9999")
    out = capsys.readouterr().out
    assert "10 rows without a label left out" in out
    assert "x: 30 missing" in out
    assert "colour: 5 missing, as a category" in out
    assert len(prepared) == 290
    assert prepared["x"].isna().sum() == 30
    x = preparation["columns"][0]
    assert x["flag"] is True
    assert x["median"] == prepared.loc[prepared["split"] == "train", "x"].median()


def test_cells_are_text_and_nothing_more(tmp_path):
    table = table_of()
    odd = ['=HYPERLINK("http://x")', "../../etc/passwd", "@SUM(A1)", "red"]
    table["colour"] = [odd[i % 4] for i in range(300)]
    prepared, preparation = run(tmp_path, write(tmp_path, table.to_csv(index=False)))
    assert preparation["columns"][1]["values"] == sorted(odd)
    assert set(prepared["colour"]) == set(odd)


def test_earlier_preparation_is_not_replaced_unasked(tmp_path):
    path = write(tmp_path, table_of().to_csv(index=False))
    argv = ["--csv", str(path), "--target", "y", "--data_dir", str(tmp_path / "data")]
    prepare.main(argv)
    with pytest.raises(ValueError, match="--overwrite"):
        prepare.main(argv)
    with pytest.raises(ValueError, match="the given table itself"):
        prepare.main([*argv[:-1], str(tmp_path), "--overwrite"])
    assert prepare.prepare_once(path, "y", tmp_path / "data") == "mine"
    with pytest.raises(ValueError, match=r"another table .* or another target, 'y'"):
        prepare.prepare_once(path, "x", tmp_path / "data")


# ---- buckets, split, shots -----------------------------------------------------------------


def test_whole_labels_have_a_bucket_each():
    bins, why = split.choose_bins(np.array([1.0, 4.0, 30.0]))
    assert bins[:3] == (0.5, 30.5, 30)
    assert "whole numbers" in why
    labels = np.arange(1.0, 31)
    assert datasets.label_to_bucket(labels, bins).tolist() == list(range(30))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e7])
@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
def test_automatic_buckets_are_round_and_few(scale, sigma):
    labels = np.random.default_rng(0).lognormal(0, sigma, 2000) * scale
    bins, _ = split.choose_bins(labels)
    assert 9 <= bins.number <= 101
    assert bins.low <= labels.min()
    assert labels.max() < bins.high
    width = (bins.high - bins.low) / bins.number
    digits = width / 10 ** math.floor(math.log10(width) + 1e-9)
    assert any(digits == pytest.approx(round_one) for round_one in (1, 2, 5, 10))


@pytest.mark.parametrize("scale", ["log", "symlog"])
def test_a_heavy_tail_is_cut_in_decades(tmp_path, capsys, scale):
    table = table_of(900)
    table["y"] = 10 ** np.random.default_rng(0).gamma(2, 0.5, 900) - (scale == "symlog")
    path = write(tmp_path, table.to_csv(index=False))
    _, plain = run(tmp_path, path)
    assert "one bucket holds" in capsys.readouterr().out
    assert len(plain["bins"]) == 3
    prepared, preparation = run(
        tmp_path, path, "--scale", scale, "--bin_width", "0.1", "--overwrite"
    )
    assert "one bucket holds" not in capsys.readouterr().out
    assert preparation["bins"][3] == scale
    bins = Bins(*preparation["bins"])
    labels = prepared.loc[prepared["split"] == "train", "y"].to_numpy()
    decades = np.log10(labels + (scale == "symlog"))
    tenths = np.floor(10 * decades).astype(int)
    found = datasets.label_to_bucket(labels, bins)
    assert (found == tenths - tenths.min()).mean() > 0.99  # but for rounding at an edge
    assert found.max() == bins.number - 1
    assert datasets.label_to_bucket(torch.tensor(labels), bins).tolist() == found.tolist()
    assert datasets.label_to_bucket(bins.middles, bins).tolist() == list(range(bins.number))
    np.testing.assert_allclose(np.diff(np.log10(bins.edges + (scale == "symlog"))), 0.1)
    # Labels outside go to the end buckets, those that have no logarithm too.
    assert datasets.label_to_bucket(np.array([-5.0, 0.0, 1e9]), bins).tolist() == [
        0, 0, bins.number - 1
    ]  # fmt: skip
    rule = metrics.ShotRule(bins, **preparation["shots"])
    assert metrics.groups_of(np.array([1e9]), rule)[0] > bins.number
    with pytest.raises(ValueError, match="--scale symlog"):
        split.choose_bins(np.array([0.0, 1.0]), scale="log")


def test_split_is_balanced_and_seeded():
    buckets = np.repeat(np.arange(6), [1, 2, 3, 10, 50, 300])
    found = split.balanced_split(buckets, 12, seed=3)
    for name in ("val", "test"):
        counts = np.bincount(buckets[found == name], minlength=6)
        assert counts.tolist() == [0, 0, 1, 3, 12, 12]
    assert (found == split.balanced_split(buckets, 12, seed=3)).all()
    assert (found != split.balanced_split(buckets, 12, seed=4)).any()


@pytest.mark.parametrize(
    ("counts", "cap"),
    # 33 of 333 rows are 10 %: 10 + 1 + 22. Too few rows, and very many, end at 5 and at 150.
    [([30, 3, 300], 22), ([9, 9], 5), ([10**6, 10**5, 10], 150)],
)
def test_automatic_cap(counts, cap):
    assert split.automatic_cap(np.array(counts)) == cap


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    buckets, groups = rng.integers(0, 5, 600), rng.integers(0, 150, 600).astype(str)
    found = split.balanced_split(buckets, 40, seed=0, groups=groups)
    assert set(found) == {"train", "val", "test"}
    for group in set(groups):
        assert len(set(found[groups == group])) == 1


def test_a_row_without_a_group_is_alone():
    groups = prepare.groups_of(pd.Series(["a", np.nan, "a", np.nan, "0"]))
    assert len(set(groups)) == 4
    assert groups[0] == groups[2]


@pytest.mark.parametrize(
    ("counts", "test_counts", "expected"),
    [
        ([623, 177], [50, 50], (177, 178)),  # two labels: none is medium-shot
        ([2000, 10, 9, 0], [150, 5, 4, 0], (2000, 2000)),
        ([90, 60, 30], [10, 10, 10], (60, 60)),
        ([0, 40, 0, 20], [30, 10, 30, 10], (20, 21)),  # tested, but left out of training
    ],
)
def test_shots_of_any_counts(counts, test_counts, expected):
    assert split.choose_shots(np.array(counts), np.array(test_counts)) == expected


def test_any_table_gets_shots():
    """Heavy tails and rare labels too; a given threshold moves the other one."""
    rng = np.random.default_rng(0)
    for draw in range(200):
        labels = rng.lognormal(0, rng.uniform(0, 3), 300) if draw % 2 else rng.random(300) < 0.1
        bins, _ = split.choose_bins(np.float64(labels))
        counts = metrics.groups_of(np.float64(labels), metrics.ShotRule(bins, 1, 1))
        counts = np.bincount(counts, minlength=bins.number)
        test_counts = np.minimum(counts // 3, 5)
        many, few = split.choose_shots(counts - 2 * test_counts, test_counts)
        assert few <= many + 1
        assert split.choose_shots(counts, test_counts, few=10**6)[0] >= 10**6 - 1
        assert split.choose_shots(counts, test_counts, many=0)[1] <= 1


def test_each_shot_has_about_a_third_of_the_test_rows(tmp_path):
    table = demo_data.make_demo(2000)
    path = write(tmp_path, table.to_csv(index=False))
    prepared, preparation = run(tmp_path, path, target="price")
    bins = Bins(*preparation["bins"])
    buckets = datasets.label_to_bucket(prepared["price"].to_numpy(), bins)
    counts = np.bincount(buckets[prepared["split"] == "train"], minlength=bins.number)
    assert counts[0] > 0
    assert counts[-1] > 0
    own = counts[buckets[prepared["split"] == "test"]]
    many, few = preparation["shots"]["many"], preparation["shots"]["few"]
    for share in ((own > many).mean(), (own < few).mean()):
        assert 0.25 < share < 0.42
    _, asked = run(tmp_path, path, "--many", 100, "--few", 20, target="price")
    assert asked["shots"] == {"many": 100, "few": 20}


def test_preparation_knows_nothing_of_val_and_test(tmp_path):
    table = table_of(400)
    path = write(tmp_path, table.to_csv(index=False))
    prepared, before = run(tmp_path, path)
    held = (prepared["split"] != "train").to_numpy()
    table.loc[held, "x"] = 1e6
    table.loc[held, "colour"] = "green"
    _, after = run(tmp_path, write(tmp_path, table.to_csv(index=False)))
    same = ("columns", "target", "bins", "shots")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    labels = prepared.loc[~held, "y"]
    assert before["target"]["mean"] == pytest.approx(labels.mean())
    assert before["target"]["std"] == pytest.approx(labels.std(ddof=0))


def test_curated_labels_are_not_in_training(tmp_path):
    path = write(tmp_path, table_of().to_csv(index=False))
    whole, _ = run(tmp_path, path)
    curated, preparation = run(tmp_path, path, "--curate", 8, 9, 9, 12)
    gap = whole["y"].ge(8) & whole["y"].lt(12)
    kept = whole[~(gap & whole["split"].eq("train"))].reset_index(drop=True)
    pd.testing.assert_frame_equal(curated, kept)
    assert (gap & whole["split"].eq("test")).any()
    rule = metrics.ShotRule(Bins(*preparation["bins"]), **preparation["shots"])
    train_labels = curated.loc[curated["split"] == "train", "y"]
    shot = metrics.shots_of_buckets(train_labels, rule)
    with pytest.raises(ValueError, match="has no training sample: their labels are"):
        run(tmp_path, path, "--overwrite", "--curate", 1000, 2000)
    assert shot[datasets.label_to_bucket(np.array([10.0]), rule.bins)[0]] == "few"


# ---- prepared files ------------------------------------------------------------------------


def test_damaged_preparation_is_named(tmp_path):
    run(tmp_path, write(tmp_path, table_of().to_csv(index=False)))
    data = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match=r"demo_data\.py"):
        datasets.read_prepared(data, "other")
    shutil.copy(data / "mine.csv", data / "other.csv")
    note = json.loads((data / "mine.json").read_text())
    del note["bins"]
    (data / "other.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match="damaged"):
        datasets.read_prepared(data, "other")
    text = (data / "mine.csv").read_text().replace("train", "tarin", 1)
    (data / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match="lines"):
        datasets.read_prepared(data, "mine")


def test_large_table_in_bounded_memory(tmp_path):
    """A tenth of 10⁶ rows × 50 columns; the whole was measured by hand (README)."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(20_000, 50)).round(3))
    table.columns = [f"c{i}" for i in range(50)]
    path = write(tmp_path, table.to_csv(index=False))
    tracemalloc.start()
    prepared, _ = run(tmp_path, path, target="c0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(prepared) == 20_000
    assert peak < 12 * table.to_numpy().nbytes


# ---- data ----------------------------------------------------------------------------------


def test_demo_table_has_the_truth_it_claims(tmp_path):
    table = demo_data.make_demo(4000, seed=1)
    ratio = np.log(table["price"] / demo_data.true_price(table)).dropna()
    assert ratio.std() == pytest.approx(demo_data.NOISE, rel=0.1)
    assert abs(ratio.mean()) < 0.01
    demo_data.main(["--out", str(tmp_path), "--rows", "400"])
    prepared, preparation = datasets.read_prepared(tmp_path, "demo")
    assert len(prepared) == 400
    assert preparation["left_out"]["id"] == "numbers the rows"
    with pytest.raises(ValueError, match="--overwrite"):
        demo_data.main(["--out", str(tmp_path), "--rows", "400"])


def test_diabetes_table(tmp_path):
    pytest.importorskip("sklearn")
    demo_data.main(["--set", "diabetes", "--out", str(tmp_path)])
    prepared, _ = datasets.read_prepared(tmp_path, "diabetes")
    assert prepared.shape == (442, 12)


def fetched_by_rows(tmp_path, shared_data, name):
    """The table as somebody else might have it: other order of rows and columns, other names."""
    table = pd.read_csv(shared_data / "uci" / f"{name}.csv").sample(frac=1, random_state=0)
    (tmp_path / "given").mkdir()
    table.to_csv(tmp_path / "given" / f"{name}.csv", index=False)
    return table


def test_downloads_are_checked_by_their_values(tmp_path, shared_data):
    fetched_by_rows(tmp_path, shared_data, "real_estate")
    argv = ["--set", "real_estate", "--files", str(tmp_path / "given"), "--data_dir", str(tmp_path)]
    download.main(argv)
    table = pd.read_csv(tmp_path / "raw" / "real_estate.csv")
    assert table.shape == (414, 7)
    assert list(table.columns)[-1] == "Y"
    download.main(argv)  # it is there, and right
    file = tmp_path / "given" / "real_estate.csv"
    file.write_text(file.read_text().replace("37.9", "37.8", 1))
    with pytest.raises(ValueError, match="other values"):
        download.main([*argv, "--overwrite"])


def test_download_from_a_mirror(tmp_path, monkeypatch, shared_data):
    content = (shared_data / "uci" / "airfoil.csv").read_bytes()
    (tmp_path / "mirror" / "291").mkdir(parents=True)
    (tmp_path / "mirror" / "291" / "data.csv").write_bytes(content)
    url = (tmp_path / "mirror").as_uri()
    download.main(["--set", "airfoil", "--base_url", url, "--data_dir", str(tmp_path)])
    table = pd.read_csv(tmp_path / "raw" / "airfoil.csv")
    assert table.shape == (1503, 6)
    cells = sorted(f"{cell:.9g}" for cell in table.to_numpy().ravel())
    digest = hashlib.sha256("\n".join(cells).encode()).hexdigest()
    assert digest == download.SETS["airfoil"].sha256
