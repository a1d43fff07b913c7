"""predict.py: which inputs are taken, how tables are read, and where a depth map lies."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load

new_inputs = load("agedb-dir", "new_inputs")
released = load("sts-b-dir", "released")
rooms = load("nyud2-dir", "predict")
pairs = load("sts-b-dir", "predict")
rows = load("uci-dir", "predict")


def test_files_of_inputs(tmp_path):
    for name in ("b.jpg", "a.JPG", "deep/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = [tmp_path / "b.jpg", tmp_path, str(tmp_path / "*.JPG"), "missing.jpg"]
    found = new_inputs.files_of(inputs, (".jpg", ".png"))
    assert [path.name for path in found] == ["b.jpg", "a.JPG", "c.png", "missing.jpg"]
    for one in (tmp_path, str(tmp_path)):  # not its letters, of which "/" is the whole disk
        assert len(new_inputs.files_of(one, (".jpg", ".png"))) == 3
    with pytest.raises(FileNotFoundError, match=r"\*.gif gives no file: taken are .jpg"):
        new_inputs.files_of([tmp_path / "*.gif"], (".jpg",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "table.txt"], "ends in .csv, got table.txt"),
        (["--batch_size", "0"], "--batch_size must be 1 or more, got 0"),
        (["--out", __file__.replace(".py", ".csv")], None),
    ],
)
def test_conflicts_of_flags(words, message, capsys):
    parser = new_inputs.make_parser("Try.", "files", 4)
    command = ["a.jpg", "--model", "run", *words]
    if message is None:
        assert new_inputs.parse_args(parser, command).batch_size == 4
        return
    with pytest.raises(SystemExit):
        new_inputs.parse_args(parser, command)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_missing_is_named(name, monkeypatch):
    for kind in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^--device {name}: PyTorch finds none here"):
        new_inputs.device_of(name)
    assert new_inputs.device_of("auto").type == "cpu"


def test_earlier_predictions_are_kept(tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.touch()
    parser = new_inputs.make_parser("Try.", "files", 4)
    with pytest.raises(SystemExit):
        new_inputs.parse_args(parser, ["a.jpg", "--model", "run", "--out", str(out)])
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_what_cannot_be_read_is_left_out():
    def read(item):
        return 10 / item

    def answer(values):
        return [value + 1 for value in values]

    found, answers, faults = new_inputs.read_and_answer([1, 0, 2, 0, 5], read, answer, 2)
    assert found == [0, 2, 4]
    assert answers == [11, 6, 3]
    assert [item for item, _ in faults] == [0, 0]
    assert isinstance(faults[0][1], ZeroDivisionError)


def test_an_image_that_is_read_is_not_warned_of(tmp_path):
    image = Image.new("P", (2, 2))
    image.putpalette(range(9))
    image.save(tmp_path / "a.png", transparency=bytes(range(3)))  # over which Pillow warns

    def read(file):
        with Image.open(file) as opened:
            return opened.convert("RGB")

    with pytest.warns(UserWarning, match="Transparency"):
        read(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        found, _, _ = new_inputs.read_and_answer([tmp_path / "a.png"], read, list, 1)
    assert found == [0]
    assert not caught


@pytest.mark.parametrize("pair", ["ab", ("a", None), ("a", "b", "c"), None])
def test_what_is_no_pair_is_named(pair):
    model = object.__new__(pairs.Predictor)  # no network is reached
    with pytest.raises(ValueError, match=r"^a pair is .sentence, sentence., both strings; got"):
        model.predict([("A cat.", "A dog."), pair])


@pytest.mark.parametrize("size", [(640, 480), (641, 300), (300, 641), (1, 1)])
def test_a_depth_map_lies_where_the_network_looks(size):
    """The largest 4:3 part at the middle; the frame around its crop has no depth."""
    W, H = size
    width, height = rooms.fitting(size)
    assert width <= W
    assert height <= H
    assert width == W or height == H
    assert min(W, H) == 1 or width / height == pytest.approx(4 / 3, rel=0.01)
    left, top = (W - width) // 2, (H - height) // 2
    depth = np.full((60, 80), 2.0, dtype=np.float32)
    placed = rooms.place(depth, (left, top, width, height, W, H))
    assert placed.shape == (H, W)
    assert placed.sum() == 2.0 * width * height


def test_depth_maps_are_written_in_millimetres(tmp_path):
    depth = np.array([[0.0, 1.2345], [70.0, 3.0]], dtype=np.float32)
    row = rooms.describe(depth, "room", tmp_path)
    assert row[:3] == pytest.approx([1.2345, 74.2345 / 3, 70.0])
    with Image.open(row[3]) as image:
        assert np.asarray(image).tolist() == [[0, 1234], [65535, 3000]]
    with Image.open(tmp_path / "room.preview.png") as image:
        assert (image.mode, image.size) == ("RGB", (2, 2))


def test_maps_of_one_name_do_not_replace_each_other(tmp_path):
    files = [tmp_path / name for name in ("a/x.jpg", "b/x.png", "y.jpg")]
    assert rooms.names_of(files) == ["x", "x_2", "y"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", " with tabs.csv"])
def test_pairs_are_read_by_their_columns(tmp_path, suffix):
    file = tmp_path / f"pairs{suffix}"
    table = pd.DataFrame({"id": [7], "sentence2": ["A dog, NA."], "sentence1": ['"A" cat']})
    if suffix == ".csv":
        table.to_csv(file, index=False)
    else:
        file.write_text('id\tsentence2\tsentence1\n7\tA dog, NA.\t"A" cat\n')
    assert pairs.read_pairs(file) == {2: ('"A" cat', "A dog, NA.")}
    file.write_text("sentence1\n")
    with pytest.raises(ValueError, match="lacks the column sentence2: it has 'sentence1'"):
        pairs.read_pairs(file)
    file.write_text("sentence1;sentence2\nA cat;A dog\nNo, a cat;A dog\n")
    with pytest.raises(ValueError, match="it lacks the column sentence1 and sentence2: it has"):
        pairs.read_pairs(file)


def test_cells_between_quotation_marks_are_warned_of(tmp_path, caplog):
    file = tmp_path / "pairs.tsv"
    text = 'sentence1\tsentence2\nA cat\t"A ""big"" dog"\n"No, a cat"\tA dog\n'
    file.write_text(text)
    assert pairs.read_pairs(file)[2] == ("A cat", '"A ""big"" dog"')
    assert (
        f"{file}: 2 cells begin and end with a quotation mark, the first in line 2" in caplog.text
    )
    caplog.clear()
    file.write_text(text.replace("sentence1", "genre\tsentence1").replace("\nA", "\nx\tA"))
    with pytest.raises(ValueError, match="line 3 has 2 columns"):
        pairs.read_pairs(file)
    assert not caplog.text  # the official files hold such sentences
    file.write_text(text.replace("sentence2", "sentence1\tsentence2"))
    with pytest.raises(ValueError, match="has the column sentence1 twice"):
        pairs.read_pairs(file)


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_row_longer_than_the_header_is_named(tmp_path, mark):
    """Where all rows are, pandas would take their first field for an index."""
    file = tmp_path / "pairs.csv"
    lines = ["sentence1,sentence2", "A cat,A dog", "", "A cat,A dog,", "No,a cat,A dog"]
    file.write_text("\n".join(line.replace(",", mark) for line in lines) + "\n")
    named = "line 4 has 3 columns, the header 2; line 5 has 3 columns, the header 2: correct"
    with pytest.raises(ValueError, match=f"^{named}"):
        pairs.read_pairs(file)
    file.write_text("\n".join(line.replace(",", mark) for line in lines[:3]) + "\n\n")
    assert pairs.read_pairs(file) == {2: ("A cat", "A dog")}


def test_bare_weights_take_their_flags_from_the_files_of_their_run(tmp_path, caplog):
    """Those of results.json, or of training_state.th while the run has not finished."""
    torch.save({"weight": torch.ones(2)}, tmp_path / "model_state_best.th")
    path = released.find(tmp_path)
    assert path == tmp_path / "model_state_best.th"
    assert released.load_with_flags(path)["config"] == {}
    with pytest.raises(FileNotFoundError, match=r"vocab.txt"):
        pairs.load(path)
    assert f"{path} names no flags, nor does a results.json next to it: taken as" in caplog.text
    torch.save({"config": {"d_hid": 8}, "step": 3}, tmp_path / "training_state.th")
    assert released.load_with_flags(path)["config"] == {"d_hid": 8}
    (tmp_path / "results.json").write_text(json.dumps({"config": {"d_hid": 7}}))
    assert released.load_with_flags(path)["config"] == {"d_hid": 7}


def test_an_export_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"v.pt2 is an export for other programs: give the run"):
        rows.load(tmp_path / "v.pt2")


def test_a_table_without_its_columns_is_named(tmp_path, capsys):
    """Others are predicted; columns of theirs keep their names."""
    folder = tmp_path / "data"
    load("uci-dir", "demo_data").main(["--out", str(folder), "--rows", "129"])
    flags = f"--data_dir {folder} --dataset demo --epoch 1 --device cpu --track none"
    train = load("uci-dir", "train")
    train.main([*flags.split(), "--store_root", str(tmp_path / "runs")])
    (run,) = (tmp_path / "runs").iterdir()
    shutil.rmtree(run / "figures", ignore_errors=True)
    table = pd.read_csv(folder / "demo.csv").drop(columns="split")
    table.assign(prediction=1).to_csv(tmp_path / "good.csv", index=False)
    table[table.columns[:1]].to_csv(tmp_path / "short.csv", index=False)
    names = [str(tmp_path / name) for name in ("good.csv", "short.csv")]
    out = tmp_path / "out.csv"
    assert rows.main([*names, "--model", str(run), "--out", str(out)]) == 1
    found = pd.read_csv(out)
    assert (found["prediction"] == 1).all()
    assert found["prediction_"].notna().all()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(names[1])
    assert line.count(names[1]) == 1
    # Text in a column of numbers is no missing cell: its row is left out, the others are not.
    mixed = table.astype({"area": object}).head(5)
    mixed.loc[[1, 3], "area"] = ["1,234.5", "abc"]
    mixed.loc[4, "area"] = np.nan
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    command = [str(tmp_path / "mixed.csv"), "--model", str(run), "--overwrite", "--out", str(out)]
    assert rows.main(command) == 1
    assert pd.read_csv(out)["floor"].tolist() == table["floor"][[0, 2, 4]].tolist()
    told = capsys.readouterr().err
    assert "2 cells are no numbers, the first '1,234.5' (column 'area', row 2 below" in told
    assert rows.load(run).predict(mixed).index.tolist() == [0, 2, 4]
    mixed[1::2].to_csv(tmp_path / "mixed.csv", index=False)
    assert rows.main(command) == 1
    assert pd.read_csv(out).empty
