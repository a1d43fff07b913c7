"""shhs-dir on your own signals and scores: any channels, rate, window, range; CSV, .npy and EDF."""

import json

import numpy as np
import pandas as pd
import pytest

from conftest import load
from test_shhs_data import write_edf

recordings = load("shhs-dir", "recordings")
own_signals = load("shhs-dir", "own_signals")
Fault = load("shhs-dir", "edf_night").Fault
prepare = load("shhs-dir", "prepare")
train = load("shhs-dir", "train")
predict = load("shhs-dir", "predict")
night_figures = load("shhs-dir", "night_figures")
RATE, SECONDS, N = 50, 10, 120
RNG = np.random.default_rng(0)
# Name of the score, its values, its flags, and the kind of the files.
SCORES = {
    "interval": (
        RNG.lognormal(6.5, 0.4, N).clip(300, 2000),
        "--low 300 --high 2000 --scale log",
        "csv",
    ),
    "mood": (RNG.normal(3, 4, N).clip(-2, 16), "--low -2 --high 16 --many 9 --few 4", "npy"),
}


def signals(text):
    """The layout that a command line's flags make."""
    return own_signals.signals_of(train.parse_args(text.split()))


def make_recordings(folder, kind, scores):
    """Write ECGs of ten seconds, in volts: the higher the score, the further apart the beats."""
    rng = np.random.default_rng(1)
    ranks = np.argsort(np.argsort(scores)) / len(scores)
    for number, rank in enumerate(ranks):
        lead = 1e-4 * rng.normal(size=RATE * SECONDS)
        lead[:: int(15 + 60 * rank)] += 1e-3
        both = np.stack([lead, -lead / 2], axis=1)
        if kind == "npy":
            np.save(folder / f"{number}.npy", both)
            continue
        table = {"time": np.arange(len(lead)) / RATE, "V2": both[:, 1], "lead II": both[:, 0]}
        pd.DataFrame(table).to_csv(folder / f"{number}.csv", index=False)


def read_leads(file):
    """The two channels of a CSV recording [T, 2]."""
    return pd.read_csv(file)[["lead II", "V2"]].to_numpy()


@pytest.mark.parametrize("name", SCORES)
def test_ecg_with_scores_of_any_range(name, tmp_path, monkeypatch, capsys):
    scores, words, kind = SCORES[name]
    (tmp_path / "raw").mkdir()
    make_recordings(tmp_path / "raw", kind, scores)
    table = tmp_path / "raw" / "scores.csv"
    pd.DataFrame({"id": range(N), name: scores}).to_csv(table, index=False)
    own = ["--target", name, *words.split(), "--data_dir", str(tmp_path)]
    own += ["--channels", "lead II,V2", "--rate", str(RATE), "--window", "2"]
    raw = ["--raw", str(table.parent), "--covariates", str(table), "--id_column", "id"]
    raw += ["--file_name", f"{{id}}.{kind}", "--workers", "1", "--cap", "2", "--unit", "V"]
    assert prepare.main([*own, *raw]) == 0
    assert prepare.main([*own, "--check"]) == 0
    told = capsys.readouterr().out
    assert "fewer than 100 test samples" in told
    assert "paper" not in told
    assert len(pd.read_csv(tmp_path / "skipped.csv")) == 0
    meta = pd.read_csv(tmp_path / "shhs.csv")
    np.testing.assert_allclose(meta["score"], scores)

    if name == "interval":  # one set of figures will do
        monkeypatch.setattr(train.report, "draw_run", lambda folder: None)
    small = "--width 8 --d_signal 8 --d_hid 16 --batch_size 16 --epoch 2 --lr 0.01 --device cpu"
    small += f" --reweight inverse --lds --fds --track none --store_root {tmp_path}/runs"
    train.main([*own, "--unit", "ms", *small.split()])
    (folder,) = (tmp_path / "runs").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["target"]["name"] == name
    assert results["target"]["unit"] == "ms"
    density = pd.read_csv(folder / "label_density.csv")
    assert len(density) == len(np.load(folder / "fds_statistics.npz")["label"]) == 50
    assert (density["eff_label_dist"] % 1 > 0.1).any()  # not truncated
    many, few = (9, 4) if name == "mood" else (100, 20)
    shots = np.select([density["count"] > many, density["count"] < few], ["many", "few"], "medium")
    assert density["shot"].tolist() == shots.tolist()
    assert density["weight"].max() > 1.2 * density["weight"].min()
    told = pd.read_csv(folder / "predictions.csv")
    told = told[told["split"] == "test"]
    error = (told["prediction"] - told["label"]).abs().mean()
    assert results["metrics"]["test"]["overall"]["mae"] == pytest.approx(error, rel=1e-4)
    spread = (told["label"] - np.median(scores)).abs().mean()
    assert error < 1.5 * spread  # in the unit of the scores
    # The checkpoint holds channels, rate, window and target: no flag is needed for new recordings.
    model = predict.load(folder, "cpu")
    stems = [path.split("/")[1].removesuffix(".h5") for path in told["path"]]
    new = model.predict([table.parent / f"{stem}.{kind}" for stem in stems])
    np.testing.assert_allclose(new["prediction"], told["prediction"], rtol=1e-3, atol=1e-3)
    made = model.predict([tmp_path / path for path in told["path"]])
    np.testing.assert_allclose(made["prediction"], told["prediction"], rtol=1e-3, atol=1e-3)
    # It holds the unit of the channels, too.
    lead, v2 = (np.load if kind == "npy" else read_leads)(table.parent / f"{stems[0]}.{kind}").T
    channels = [("V2", RATE, "mV", 1e3 * v2), ("lead II", RATE, "uV", 1e6 * lead)]
    edf = model.predict([write_edf(tmp_path / "new.edf", channels, 5000.0)])
    assert edf["prediction"][0] == pytest.approx(told["prediction"].iloc[0], rel=1e-2)
    if name == "mood":
        assert prepare.main([*own, *raw[:-1], "mV", "--overwrite"]) == 0
        with pytest.raises(ValueError, match="lead II is in mV here, and was in V in training"):
            train.main([*own, "--unit", "ms", *small.split(), "--evaluate"])
    with pytest.raises(ValueError, match=r"prepared with --channels lead II,V2 --rate 50"):
        train.main(["--data_dir", str(tmp_path), *own[2 : 2 + len(words.split())], *small.split()])


def test_your_own_channels_are_drawn(tmp_path):
    seen = signals("--channels ECG,V2 --rate 50 --window 2")
    samples = np.random.default_rng(2).normal(0, 1, (50 * 600, 2)).astype(np.float32)
    samples[12_345, 1] = 40.0  # a spike of one sample in more than a picture is wide
    np.save(tmp_path / "a.npy", samples)
    night = recordings.read_recording(tmp_path / "a.npy", seen, 0)
    layout = own_signals.words_of(seen)
    load("shhs-dir", "night_file").write_night(tmp_path / "a.h5", night, "", layout)
    night_figures.main([str(tmp_path / "a.h5"), "--out", str(tmp_path)])
    assert (tmp_path / "a.png").stat().st_size > 5000
    fig = night_figures.draw_night(tmp_path / "a.h5")
    assert [ax.get_ylabel() for ax in fig.axes] == ["ECG", "V2"]
    seconds, values = fig.axes[1].lines[0].get_data()
    assert len(values) < 5000
    assert values.max() == 40.0
    assert seconds[values.argmax()] == pytest.approx(12_345 / 50, abs=0.5)


def test_every_kind_of_file_gives_the_same_samples(tmp_path):
    seen = signals("--channels ECG,EEG --rate 100 --window 0.5")
    samples = np.random.default_rng(2).normal(0, 50, (6030, 2)).astype(np.float32)
    np.save(tmp_path / "a.npy", samples)
    pd.DataFrame(samples).to_csv(tmp_path / "b.csv", index=False, header=False)
    table = pd.DataFrame({"eeg": samples[:, 1], "t": 0, " Ecg ": samples[:, 0]})
    table.to_csv(tmp_path / "c.csv", index=False)
    files = ["a.npy", "b.csv", "c.csv"]
    for file in files:
        night = recordings.read_recording(tmp_path / file, seen, 0)
        np.testing.assert_allclose(night["own"], samples[:6000].T, rtol=1e-6)
        assert len(night["stages"]) == 120
    channels = [("EEG", 100, "uV", samples[:6000, 1]), ("ECG", 100, "mV", samples[:6000, 0])]
    write_edf(tmp_path / "d.edf", channels)
    night = recordings.read_recording(tmp_path / "d.edf", seen, 0)
    np.testing.assert_allclose(night["own"], samples[:6000].T, atol=0.02)
    # Another rate is brought to that of the flags: a slow tone stays what it is.
    tone = 50 * np.sin(2 * np.pi * np.arange(6000) / 200)
    write_edf(tmp_path / "e.edf", [("ECG", 200, "uV", tone)])
    night = recordings.read_recording(tmp_path / "e.edf", signals("--channels ECG --rate 100"), 0)
    np.testing.assert_allclose(night["own"][0, 100:-100], tone[::2][100:-100], atol=0.2)


@pytest.mark.parametrize("row", ["0.5,4.5,0", "0.5,4.5,"])
def test_a_row_of_more_cells_than_the_header_is_refused_with_its_line(row, tmp_path):
    seen = signals("--channels ECG,V2 --rate 50 --window 1")
    for line in (2, 9):
        rows = ["ECG,V2"] + ["0.5,4.5"] * 60
        rows[line - 1] = row
        if line == 2:
            rows[1:] = [row] * 60  # every row, as a writer with one column too many leaves them
        (tmp_path / "a.csv").write_text("\n".join(rows))
        with pytest.raises(Fault, match=rf"unreadable: .*Expected 2 fields in line {line}, saw 3"):
            recordings.read_recording(tmp_path / "a.csv", seen, 0)


@pytest.mark.parametrize("kind", ["csv", "edf"])
def test_channels_that_differ_in_punctuation_only(kind, tmp_path):
    samples = np.stack([np.arange(100), -np.arange(100)], axis=1)
    if kind == "csv":
        pd.DataFrame(samples, columns=["V1+", "V1-"]).to_csv(tmp_path / "a.csv", index=False)
    else:
        channels = [("V1+", 50, "uV", samples[:, 0]), ("V1-", 50, "uV", samples[:, 1])]
        write_edf(tmp_path / "a.edf", channels)

    def read(names):
        seen = signals(f"--channels {names} --rate 50 --window 1")
        return recordings.read_recording(tmp_path / f"a.{kind}", seen, 0)["own"]

    np.testing.assert_allclose(read("V1+"), samples.T[:1], atol=0.02)
    np.testing.assert_allclose(read("V1-,V1+"), samples.T[::-1], atol=0.02)
    with pytest.raises(Fault, match=r"v1 may be V1\+ and V1-: use the exact"):
        read("v1")


def test_recordings_of_an_older_version_are_made_again(tmp_path, monkeypatch):
    """Version 1 might have read another channel; without the file's change it would stay."""
    (tmp_path / "a.csv").write_text("P+\n" + "1\n" * 99)
    seen = signals("--channels P+ --rate 50 --window 1")
    task = (tmp_path / "a.csv", tmp_path / "a.h5", seen, 0, "")
    reads = []
    read = recordings.read_recording
    monkeypatch.setattr(prepare, "read_recording", lambda *a: reads.append(a) or read(*a))
    for version, made in ((1, 1), (2, 2), (2, 2)):
        monkeypatch.setattr(prepare, "VERSION", version)
        assert prepare.prepare_night(task) == ("", "", "")
        assert len(reads) == made


def test_two_channels_that_are_one_column(tmp_path):
    (tmp_path / "a.csv").write_text("P1,Q\n" + "1,2\n" * 99)
    seen = signals("--channels p+1,p-1 --rate 50 --window 1")
    with pytest.raises(Fault, match=r"p\+1 and p-1 are both P1"):
        recordings.read_recording(tmp_path / "a.csv", seen, 0)


@pytest.mark.parametrize("names", [[0, 1], [1, 0]])
def test_channels_may_have_numbers_for_names(names, tmp_path):
    samples = np.random.default_rng(3).normal(size=(50, 2))
    pd.DataFrame(samples, columns=names).to_csv(tmp_path / "a.csv", index=False)
    seen = signals("--channels 0,1 --rate 50 --window 1")
    night = recordings.read_recording(tmp_path / "a.csv", seen, 0)
    np.testing.assert_allclose(night["own"], samples[:, names].T, rtol=1e-6)


def test_empty_lines_at_the_end_are_no_samples(tmp_path):
    (tmp_path / "a.csv").write_text("ECG\n" + "1\n" * 99 + "2\n\n \r\n\n")
    seen = signals("--channels ECG --rate 50 --window 1")
    night = recordings.read_recording(tmp_path / "a.csv", seen, 0)
    assert night["own"].tolist() == [[1] * 99 + [2]]


@pytest.mark.parametrize(
    ("times", "refused"),
    [
        (np.arange(500) / 500, True), (np.round(np.arange(500) / 256, 3), True),
        (np.arange(500) * 2, True),  # milliseconds
        (np.arange(500) / 250, False), (np.round(np.arange(500) / 251, 3), False),
        (np.arange(500) * 4 + 7e5, False), (np.arange(500) * 4e6, False), (np.arange(500), False),
        (np.arange(500) // 3 / 500, True), (np.arange(500) // 3 * 3 / 250, False),
        (np.arange(500) // 250, False), (np.arange(500) // 50, True),
        (np.zeros(500), False), (["12:00:01"] * 500, False),
    ],
)  # fmt: skip
def test_times_that_tell_another_rate(times, refused, tmp_path):
    seen = signals("--channels ECG --rate 250 --window 1")
    samples = np.random.default_rng(4).normal(size=500)
    table = pd.DataFrame({"Time": times, "ECG": samples})
    table.to_csv(tmp_path / "a.csv", index=False)
    if refused:
        with pytest.raises(Fault, match=r"rate: its column Time .* and --rate is 250"):
            recordings.read_recording(tmp_path / "a.csv", seen, 0)
    else:
        night = recordings.read_recording(tmp_path / "a.csv", seen, 0)
        np.testing.assert_allclose(night["own"][0], samples, rtol=1e-6)


FIRST = pd.Timestamp("2024-03-31T23:59:59.5")
SECONDS_OF = np.arange(500) / 250


def iso(seconds):
    """Times as text."""
    return [(FIRST + pd.Timedelta(seconds=second)).isoformat() for second in seconds]


@pytest.mark.parametrize(
    ("name", "times", "told"),
    [
        ("time_ms", SECONDS_OF * 1e3, ""), ("time (us)", SECONDS_OF * 1e6, ""),
        ("Time [s]", SECONDS_OF + 1.7e9, ""), ("timestamp", iso(SECONDS_OF), ""),
        ("time_ms", np.arange(500), "time_ms has a step of 0.001 s, 1000 Hz, and --rate is 250"),
        ("time (ms)", SECONDS_OF * 2e3, r"time \(ms\) has a step of 0.008 s, 125 Hz, and"),
        ("timestamp", iso(SECONDS_OF / 2), "timestamp has a step of 0.002 s, 500 Hz, and"),
        ("t", SECONDS_OF * 1.02, "t has a step of 0.00408 s, 245.098 Hz, and"),
        ("seconds", np.arange(500), "seconds has a step of 1 s, 1 Hz, and"),
        ("time", SECONDS_OF + (SECONDS_OF >= 1), "time goes from 0.996 to 2.0 in line 252"),
        ("time", SECONDS_OF % 1, "time goes from 0.996 to 0.0 in line 252"),
        ("timestamp", iso(SECONDS_OF % 1), r"goes from \S+T00:00:00.496\S* to \S+ in line 252"),
    ],
)  # fmt: skip
def test_times_with_units_as_text_and_with_gaps(name, times, told, tmp_path):
    pd.DataFrame({"ECG": np.ones(500), name: times}).to_csv(tmp_path / "a.csv", index=False)
    seen = signals("--channels ECG --rate 250 --window 1")
    if told:
        with pytest.raises(Fault, match=f"rate: its column .*{told}"):
            recordings.read_recording(tmp_path / "a.csv", seen, 0)
    else:
        assert recordings.read_recording(tmp_path / "a.csv", seen, 0)["own"].shape == (1, 500)


@pytest.mark.parametrize("channel", ["T", "ECG"])
def test_columns_that_are_no_times(channel, tmp_path):
    """A channel of that name, and a column of which one is missing."""
    times = SECONDS_OF[::-1].copy()
    times[3] = times[3] if channel == "T" else np.nan
    table = pd.DataFrame({"ECG": 1, "T": times})
    table.to_csv(tmp_path / "a.csv", index=False)
    seen = signals(f"--channels {channel} --rate 250 --window 1")
    night = recordings.read_recording(tmp_path / "a.csv", seen, 0)
    np.testing.assert_allclose(night["own"][0], table[channel], rtol=1e-6)


@pytest.mark.parametrize(("rate", "target"), [(200, 33.3333), (256, 102.4), (102.4, 33.3333)])
def test_rates_with_decimals(rate, target, tmp_path):
    """A slow tone stays what it is at a rate that no small fraction of the other's gives."""
    times = np.arange(int(60 * rate)) / rate
    night_signals = load("shhs-dir", "night_signals")
    found = night_signals.resample(50 * np.sin(2 * np.pi * times / 5), rate, target)
    assert len(found) == pytest.approx(60 * target, abs=2)
    expected = 50 * np.sin(2 * np.pi * np.arange(len(found)) / target / 5)
    np.testing.assert_allclose(found[50:-50], expected[50:-50], atol=0.2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "ECG\n1\n", "length"), ("a.csv", "EKG\n" + "1\n" * 99, "missing_channel"),
        ("a.csv", "ECG\n" + "1\n" * 99 + "x\n", "unreadable"), ("a.csv", "", "unreadable"),
        ("a.csv", "ECG\n" + "1\n" * 99 + "inf\n", "range"),
        ("a.csv", "ECG\n" + "1\n" * 99 + "\n2\n", "range"),
        ("a.csv", "1,2\n" * 99, "missing_channel"),
        ("a.npy", "no array", "unreadable"), ("a.wav", "RIFF", "unreadable"),
        ("a.edf", "0       ", "unreadable"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_has_a_reason(name, content, reason, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(Fault) as caught:
        recordings.read_recording(
            tmp_path / name, signals("--channels ECG --rate 50 --window 2"), 0
        )
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--rate 50", "belong to --channels"), ("--channels ECG", "needs --rate"),
        ("--channels ECG,ECG --rate 50", "different names"),
        ("--channels ECG --rate 50 --window 0.1", "holds 5 samples"),
        ("--channels ECG --rate 50 --window -1", "above 0"),
        ("--channels ECG --rate nan", "needs --rate"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_used(text, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(text.split())
    assert message in capsys.readouterr().err


def test_recordings_in_rarer_units_are_left_out(tmp_path):
    samples = np.random.default_rng(5).normal(0, 2, 500)
    for number, unit in enumerate(["mV"] * 4 + ["uV", "", "MV"]):
        write_edf(tmp_path / "raw" / f"{number}.edf", [("ECG", 100, unit, samples)], 10)
    table = tmp_path / "scores.csv"
    table.write_text("id,score\n" + "".join(f"{number},50\n" for number in range(7)))
    flags = f"--channels ECG --rate 100 --window 1 --data_dir {tmp_path} --raw {tmp_path}/raw"
    flags += f" --covariates {table} --id_column id --score_column score --file_name {{id}}.edf"
    for _ in range(2):  # made, and found as they were made
        assert prepare.main([*flags.split(), "--workers", "1", "--overwrite"]) == 0
        skipped = pd.read_csv(tmp_path / "skipped.csv")
        assert skipped[["id", "reason"]].to_numpy().tolist() == [[4, "unit"]]
        assert skipped["detail"][0] == "ECG is in uV, and in most recordings in mV"


def test_units_that_cannot_be_converted():
    seen = signals("--channels ECG,SpO2 --rate 50")
    values = {"own": np.ones((2, 3))}
    own_signals.convert(values, seen, "µV,%", "V,%")
    np.testing.assert_allclose(values["own"], [[1e-6] * 3, [1] * 3])
    with pytest.raises(ValueError, match="SpO2 is in mV, and in training it was in %"):
        own_signals.convert(values, seen, "V,mV", "V,%")


def test_a_table_without_channels_says_what_helps(capsys):
    with pytest.raises(SystemExit):
        prepare.parse_args(["--file_name", "{id}.csv"])
    assert "--channels" in capsys.readouterr().err
