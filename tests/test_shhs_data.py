"""shhs-dir's data: EDF files, spectrograms, channel names, faults, split, simulated nights."""

import argparse
import os
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.signal

from conftest import ROOT, load

pyedflib = pytest.importorskip("pyedflib")
edf_night = load("shhs-dir", "edf_night")
night_file = load("shhs-dir", "night_file")
night_signals = load("shhs-dir", "night_signals")
demo_night = load("shhs-dir", "demo.night")
demo_data = load("shhs-dir", "demo_data")
prepare = load("shhs-dir", "prepare")
score_table = load("shhs-dir", "score_table")
night_figures = load("shhs-dir", "night_figures")
datasets = load("shhs-dir", "datasets")
held_out = load("shhs-dir", "held_out")

SECONDS = 90


def channel(label, rate=125, unit="uV", samples=None, seed=0):
    """A channel of noise, or of the samples given."""
    if samples is None:
        samples = np.random.default_rng(seed).normal(0, 30, rate * SECONDS)
    return label, rate, unit, samples


def good_channels():
    bands = [channel(label, 10, "", seed=k) for k, label in enumerate(("THOR RES", "ABDO RES"))]
    return [channel("EEG"), channel("ECG", seed=1), *bands]


def write_edf(path, channels, limit=400.0):
    """Write channels (label, rate, unit, samples) as plain EDF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = [
        {
            "label": label, "dimension": unit, "sample_frequency": rate, "physical_max": limit,
            "physical_min": -limit, "digital_max": 32767, "digital_min": -32768,
            "transducer": "", "prefilter": "",
        }
        for label, rate, unit, _ in channels
    ]  # fmt: skip
    with pyedflib.EdfWriter(str(path), len(channels), pyedflib.FILETYPE_EDF) as writer:
        writer.setSignalHeaders(headers)
        writer.writeSamples([np.asarray(c[3], dtype=np.float64) for c in channels])
    return path


def read(path, **options):
    return edf_night.read_night(path, **{"min_minutes": 1, **options})


def reason_of(path, **options):
    with pytest.raises(edf_night.Fault) as caught:
        read(path, **options)
    return caught.value.reason


# ---- EDF ------------------------------------------------------------------------------------


def test_edf_round_trip(tmp_path):
    """What is written comes back to a digital step, in µV, with rates and stages."""
    rng = np.random.default_rng(3)
    stages, channels = demo_night.make_night(demo_night.Traits(0.8, 0.7, 0.6, 0.2), 3, rng)
    demo_data.write_edf(tmp_path / "night.edf", stages, channels)
    with pyedflib.EdfReader(str(tmp_path / "night.edf")) as reader:
        names = {"eeg": "EEG", "ecg": "ECG", "chest": "THOR RES", "abdomen": "ABDO RES"}
        for name, label in names.items():
            samples, rate = edf_night.read_channel(reader, name, "")
            limit, unit = demo_data.LIMITS.get(label, (demo_data.BREATHING_LIMIT, ""))
            scale = edf_night.MICROVOLTS.get(unit.lower(), 1.0)
            expected = np.clip(channels[label], -limit, limit) * scale
            assert rate == (125 if label in ("EEG", "ECG") else 10)
            np.testing.assert_allclose(samples, expected, atol=2 * limit * scale / 65535)
        np.testing.assert_array_equal(edf_night.read_stages(reader, len(stages)), stages)
        assert (edf_night.read_stages(reader, len(stages) + 2)[-2:] == -1).all()


def test_real_recording(shared_data):
    """A file of another recorder: its names and unit are known, it has no breathing."""
    path = shared_data / "edf" / "Subject00_1.edf"
    with pyedflib.EdfReader(str(path)) as reader:
        for name, label in (("eeg", "EEG C4"), ("ecg", "ECG ECG")):
            samples, rate = edf_night.read_channel(reader, name, "")
            number = reader.getSignalLabels().index(label)
            scale = edf_night.MICROVOLTS[reader.getPhysicalDimension(number).strip().lower()]
            np.testing.assert_array_equal(samples, reader.readSignal(number) * scale)
            assert night_signals.spectrogram(name, samples, rate).shape[1] % 180 == 0
    assert reason_of(path) == "missing_channel"


# ---- spectrograms ---------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "hop", "rows"), [(256, 128, 64), (64, 32, 22), (64, 16, 32)])
def test_power_spectrum_is_scipys(window, hop, rows, monkeypatch):
    samples = np.random.default_rng(0).normal(5, 40, 128 * 40).astype(np.float32)
    hertz, _, expected = scipy.signal.spectrogram(
        samples.astype(np.float64), 128, "hann", window, window - hop, detrend="constant",
        scaling="density", mode="psd",
    )  # fmt: skip
    ours = night_signals.power_spectrum(samples, window, hop, rows)
    np.testing.assert_allclose(ours, expected[1 : rows + 1], rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(night_signals, "BLOCK", 7)  # in blocks it is the same
    np.testing.assert_array_equal(ours, night_signals.power_spectrum(samples, window, hop, rows))
    if window == 256:
        np.testing.assert_allclose(hertz[1:65], night_signals.frequencies("eeg"))


@pytest.mark.parametrize("rate", [100, 125, 200, 256, 500])
def test_spectrogram_of_a_tone(rate):
    """10 Hz of 20 µV give the density of scipy's Hann window, whatever the file's rate."""
    time = np.arange(rate * 60) / rate
    decibels = night_signals.spectrogram("eeg", 20 * np.sin(2 * np.pi * 10 * time), rate)
    assert decibels.shape == (64, 60)
    assert night_signals.frequencies("eeg")[decibels[:, 30].argmax()] == 10
    # Amplitude²/2 spread over 1.5 bins of 0.5 Hz, the equivalent noise width of a Hann window.
    assert decibels[19, 5:-5].astype(float) == pytest.approx(10 * np.log10(200 / 0.75), abs=0.2)
    assert decibels[40, 1:-1].max() < -35


def test_columns_lie_where_the_sound_is():
    """A burst in second 40 is seen there, in the EEG's column and in the ECG's four."""
    samples = np.zeros(125 * 90)
    samples[125 * 40 : 125 * 41] = np.random.default_rng(0).normal(0, 50, 125)
    eeg = night_signals.spectrogram("eeg", samples, 125).astype(float).mean(axis=0)
    ecg = night_signals.spectrogram("ecg", samples, 125).astype(float).mean(axis=0)
    assert eeg.shape == (90,)
    assert eeg.argmax() == 40
    assert ecg.shape == (360,)
    assert set(np.argsort(ecg)[-4:]) == {160, 161, 162, 163}
    assert eeg[:38].max() == eeg[43:].max() == pytest.approx(-40, abs=0.1)


def test_breathing_forgets_unit_and_offset():
    rng = np.random.default_rng(0)
    samples = np.sin(np.arange(10 * 95) / 4) + rng.normal(0, 0.1, 950)
    ours = night_signals.breathing(samples, 10)
    assert ours.shape == (900,)
    np.testing.assert_allclose(ours, night_signals.breathing(3 + 250 * samples, 10), atol=0.01)
    assert abs(np.median(ours.astype(float))) < 0.2
    assert np.abs(night_signals.breathing([*samples, 1e9, 1e9], 10)).max() <= 8


# ---- channel names and faults ---------------------------------------------------------------


@pytest.mark.parametrize("name", list(edf_night.CHANNELS))
def test_every_alias_is_found(tmp_path, name):
    for k, alias in enumerate(edf_night.CHANNELS[name]):
        shown = (alias.lower(), alias.upper().replace("-", " "), alias)[k % 3][:16]
        path = write_edf(tmp_path / f"{k}.edf", [channel("Other"), channel(shown)])
        with pyedflib.EdfReader(str(path)) as reader:
            samples, _ = edf_night.read_channel(reader, name, "")
            np.testing.assert_array_equal(samples, reader.readSignal(1))


def test_the_preferred_channel_is_taken_and_the_next_where_it_is_flat(tmp_path):
    second = channel("EEG(sec)", seed=5)
    night = read(write_edf(tmp_path / "a.edf", [second, *good_channels()]))
    alone = read(write_edf(tmp_path / "b.edf", good_channels()))
    np.testing.assert_array_equal(night["eeg"], alone["eeg"])
    flat = channel("EEG", samples=np.zeros(125 * SECONDS))
    night = read(write_edf(tmp_path / "c.edf", [flat, second, *good_channels()[1:]]))
    other = channel("EEG", samples=second[3])
    alone = read(write_edf(tmp_path / "d.edf", [other, *good_channels()[1:]]))
    np.testing.assert_array_equal(night["eeg"], alone["eeg"])


def test_units(tmp_path):
    def eeg_in(unit, scale):
        eeg = channel("EEG", 125, unit, good_channels()[0][3] * scale)
        return write_edf(tmp_path / "night.edf", [eeg, *good_channels()[1:]])

    in_microvolts = read(eeg_in("uV", 1))["eeg"]
    in_millivolts = read(eeg_in("mV", 0.1))["eeg"].astype(float)  # coarser steps: a little noise
    np.testing.assert_allclose(np.median(in_millivolts - in_microvolts), 40, atol=0.05)
    assert reason_of(eeg_in("", 1)) == "unit"
    np.testing.assert_array_equal(read(eeg_in("", 1), unit="uV")["eeg"], in_microvolts)
    assert reason_of(eeg_in("mmHg", 1), unit="uV") == "unit"


def faulty(fault, path):
    """Write a recording with a fault."""
    eeg, ecg, *bands = good_channels()
    half_flat = channel("EEG", samples=np.where(np.arange(125 * SECONDS) < 125 * 50, 0, eeg[3]))
    flat = [(label, rate, unit, 0 * samples) for label, rate, unit, samples in bands]
    channels = {
        "missing_channel": [eeg, *bands], "rate": [eeg, channel("ECG", 50), *bands],
        "unit": [channel("EEG", 125, "%"), ecg, *bands], "flat": [half_flat, ecg, *bands],
        "flat_bands": [eeg, ecg, *flat], "no_band": [eeg, ecg],
    }  # fmt: skip
    write_edf(path, channels.get(fault, good_channels()))
    content = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif fault == "unreadable":
        path.write_bytes(b"MZ" + content[2:])
    elif fault == "cut_header":
        path.write_bytes(content[:400])
    elif fault == "no_records":
        path.write_bytes(content[:236] + b"-1      " + content[244:])
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(name, name) for name in "missing_channel rate unit flat truncated unreadable".split()]
    + [("flat_bands", "flat"), ("no_band", "missing_channel"), ("cut_header", "unreadable"),
       ("no_records", "unreadable"), ("length", "length")],
)  # fmt: skip
def test_faults(tmp_path, fault, reason):
    minutes = 2 if fault == "length" else 1
    assert reason_of(faulty(fault, tmp_path / "a.edf"), min_minutes=minutes) == reason


def with_largest(path, value, number=0):
    """Let the header give a channel another physical maximum."""
    content = bytearray(path.read_bytes())
    place = 256 + 112 * int(content[252:256]) + 8 * number
    content[place : place + 8] = value.ljust(8)
    path.write_bytes(content)
    return path


def test_a_signal_beyond_all_belief_is_no_night(tmp_path):
    """Such a header would make a night of infinities, and those a network of NaN."""
    assert reason_of(with_largest(faulty(None, tmp_path / "a.edf"), b"1e30")) == "range"
    in_volts = write_edf(tmp_path / "b.edf", [channel("EEG", 125, "V"), *good_channels()[1:]])
    assert reason_of(in_volts) == "range"
    night = read(with_largest(faulty(None, tmp_path / "c.edf"), b"8000000", 2))
    assert night["lacking"] == "airflow missing_channel"  # breathing may be in any unit


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_night_of_no_finite_numbers_is_refused(tmp_path, value):
    night = read(faulty(None, tmp_path / "a.edf"))
    night["ecg"][3, 5] = value
    night_file.write_night(tmp_path / "a.h5", night, "")
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read .ecg is not finite"):
        datasets.Nights(tmp_path, ["a.h5"])


@pytest.mark.parametrize("seconds", [1, 10, 29])
def test_less_than_a_frame_is_no_night(tmp_path, seconds):
    channels = [(label, rate, unit, samples[: rate * seconds])
                for label, rate, unit, samples in good_channels()]  # fmt: skip
    assert reason_of(write_edf(tmp_path / "a.edf", channels), min_minutes=0) == "length"


def test_one_band_is_enough(tmp_path):
    eeg, ecg, chest, _ = good_channels()
    night = read(write_edf(tmp_path / "a.edf", [eeg, ecg, chest]))
    assert night["lacking"] == "abdomen missing_channel, airflow missing_channel"
    assert night["breathing"][0].any()
    assert not night["breathing"][1:].any()


# ---- prepare.py -----------------------------------------------------------------------------


def write_raw(data_dir, scores, faults=()):
    """Write recordings and the table of scores; `faults` are {id: fault}."""
    faults, folder = dict(faults), data_dir / "shhs" / "edfs"
    for night in scores:
        if faults.get(night) != "no_file":
            faulty(faults.get(night), folder / f"shhs2-{night}.edf")
    table = data_dir / "shhs" / "datasets" / "shhs2-dataset-0.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{night},{score}\n" for night, score in scores.items())
    table.write_text("nsrrid,age_s2,gh_s2\n" + rows.replace(",", ",70,"), encoding="utf-8")
    return table


def run_prepare(data_dir, *more):
    flags = ["--data_dir", data_dir, "--min_minutes", 1, "--workers", 1, *more]
    return prepare.main(list(map(str, flags)))


def test_nothing_is_left_out_in_silence(tmp_path, capsys):
    scores = {k: 50 for k in range(1, 5)}
    faults = {11: "truncated", 12: "missing_channel", 13: "rate", 14: "flat", 15: "no_file"}
    odd = {21: "", 22: "NaN", 23: "good", 24: -1, 25: 100.5, 26: "inf"}
    table = write_raw(tmp_path, {**scores, **dict.fromkeys(faults, 60), **odd}, faults)
    with open(table, "a", encoding="utf-8") as file:
        file.write("31,70,40\n31,70,40\n../9,70,40\n")
    faulty(None, tmp_path / "shhs" / "shhs2-99.edf")
    assert run_prepare(tmp_path) == 0
    meta = pd.read_csv(tmp_path / "shhs.csv")
    assert meta["id"].tolist() == [1, 2, 3, 4]
    skipped = pd.read_csv(tmp_path / "skipped.csv", dtype=str, keep_default_na=False)
    reasons = dict(zip(skipped["id"], skipped["reason"]))
    assert reasons == {
        **{str(night): fault for night, fault in faults.items()}, "21": "no_score",
        "22": "no_score", "23": "no_score", "24": "score_range", "25": "score_range",
        "26": "no_score", "31": "duplicate_id", "../9": "id", "": "no_row",
    }  # fmt: skip
    assert len(skipped) == len(reasons) + 1  # 31 stands there twice
    assert (skipped["detail"] != "").all()
    assert "left out: 4 no_score" in capsys.readouterr().out
    assert sorted(path.stem for path in (tmp_path / "nights").glob("*.h5")) == list("1234")


def test_a_link_that_leads_nowhere_stops_nothing(tmp_path):
    write_raw(tmp_path, {1: 50, 2: 60, 3: 50, 4: 50}, {2: "no_file"})
    (tmp_path / "shhs/edfs/shhs2-2.edf").symlink_to(tmp_path / "gone.edf")
    assert run_prepare(tmp_path) == 0
    skipped = pd.read_csv(tmp_path / "skipped.csv", dtype=str)
    assert skipped[["id", "reason"]].to_numpy().tolist() == [["2", "unreadable"]]


def test_ids_of_other_tables(tmp_path):
    """A byte order mark, letters beyond ASCII, _ and -; ids that differ in case share a file."""
    ids = ["Mül-1", "b_2", "b-3", "Cc", "cC", "d e"]
    write_raw(tmp_path, dict.fromkeys(ids, 50), {"cC": "no_file"})
    table = tmp_path / "shhs" / "datasets" / "shhs2-dataset-0.csv"
    for encoding in ("utf-8-sig", "utf-8", "latin-1"):
        rows = "".join(f"{night},50.5,\n" for night in ids)
        table.write_text("nsrrid,gh_s2,\n" + rows, encoding=encoding)
        assert run_prepare(tmp_path, "--overwrite") == 0
        meta = pd.read_csv(tmp_path / "shhs.csv")
        assert meta["id"].tolist() == ["Mül-1", "b_2", "b-3"]
        skipped = pd.read_csv(tmp_path / "skipped.csv")
        assert skipped["reason"].tolist() == ["duplicate_id", "duplicate_id", "id"]
    assert score_table.read_scores(table, "nsrrid", None)["score"].tolist() == [50.5] * 6


@pytest.mark.filterwarnings("ignore:Length of header")
def test_a_comma_too_many_at_the_end_shifts_nothing(tmp_path):
    (tmp_path / "a.csv").write_text("nsrrid,gh_s2\n7,50,\n8,60,\n")
    found = score_table.read_scores(tmp_path / "a.csv", "nsrrid", None)
    assert found.to_numpy().tolist() == [["7", 50], ["8", 60]]


@pytest.mark.parametrize("text", ["", "nsrrid,gh_s2\n", "nsrrid,gh_s2\n1,2\n3,4,5\n"])
def test_what_is_no_table_is_named(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv (is no table|has no row)"):
        score_table.read_scores(tmp_path / "a.csv", "nsrrid", None)


def test_the_newest_table_is_taken_and_named(tmp_path, capsys):
    table = write_raw(tmp_path, {1: 50, 2: 50, 3: 50})
    for version, score in (("0.9.0", 60), ("0.21.0", 70), ("0.3.0", 100.0000001)):
        other = table.with_name(f"shhs2-dataset-{version}.csv")
        rows = "".join(f"{night},{score}\n" for night in (1, 2, 3))
        other.write_text(f"nsrrid,gh_s2\n{rows}")
    run_prepare(tmp_path)
    assert pd.read_csv(tmp_path / "shhs.csv")["score"].tolist() == [70] * 3
    assert "column gh_s2 of" in (said := capsys.readouterr().out)
    assert "shhs2-dataset-0.21.0.csv" in said
    with pytest.raises(ValueError, match="no night"):
        run_prepare(tmp_path, "--overwrite", "--covariates", other)
    assert "100.0000001 is outside" in (tmp_path / "skipped.csv").read_text()


def test_a_set_of_which_nothing_can_be_held_out_is_no_set(tmp_path):
    write_raw(tmp_path, {1: 50, 2: 50, 3: 60, 4: 60})
    with pytest.raises(ValueError, match=r"no bucket of health score .* has three nights"):
        run_prepare(tmp_path)
    assert not (tmp_path / "shhs.csv").exists()


def start_workers(body):
    """Start prepare.py's pool in a process, with a task of our own for the nights."""
    script = f"""
import os, time, pandas, prepare
def task(_):
    {body}
prepare.prepare_night = task
args = prepare.parse_args(["--data_dir", "x", "--workers", "2"])
prepare.prepare_nights(args, pandas.DataFrame({{"id": ["1", "2"], "file": ["a", "b"]}}))
"""
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT / "shhs-dir", text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="its task must be inherited by fork")
def test_workers_end_with_a_prepare_that_is_killed():
    process = start_workers('print("here", flush=True); time.sleep(60)')
    assert process.stdout.readline().startswith("here")  # the two may write into one line
    process.kill()
    process.communicate(timeout=20)  # returns when the workers, who hold the pipe too, are gone


@pytest.mark.skipif(sys.platform != "linux", reason="its task must be inherited by fork")
def test_a_killed_worker_says_what_to_do():
    _, said = start_workers("os._exit(9)").communicate(timeout=60)
    assert "fewer than --workers 2" in said


def test_a_stopped_run_goes_on_and_a_changed_file_is_made_again(tmp_path, monkeypatch):
    write_raw(tmp_path, {k: 50 for k in range(1, 7)})
    made, write = [], prepare.write_night

    def write_three(path, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(path.stem)
        write(path, *rest)

    monkeypatch.setattr(prepare, "write_night", write_three)
    with pytest.raises(KeyboardInterrupt):
        run_prepare(tmp_path)
    assert not (tmp_path / "shhs.csv").exists()

    def write_all(path, *rest):
        made.append(path.stem)
        write(path, *rest)

    monkeypatch.setattr(prepare, "write_night", write_all)
    run_prepare(tmp_path)
    assert made == list("123456")
    with pytest.raises(ValueError, match=r"exists.*--overwrite"):
        run_prepare(tmp_path)
    os.utime(tmp_path / "shhs" / "edfs" / "shhs2-2.edf", (1, 1))
    faulty("flat", tmp_path / "shhs" / "edfs" / "shhs2-3.edf")
    (tmp_path / "nights" / "4.h5").write_bytes(b"cut")
    run_prepare(tmp_path, "--overwrite")
    assert made[6:] == ["2", "4"]
    assert not (tmp_path / "nights" / "3.h5").exists()
    assert run_prepare(tmp_path, "--check") == 0


def test_several_processes_make_the_same(tmp_path):
    for name in ("one", "two"):
        write_raw(tmp_path / name, {k: 50 for k in range(1, 6)}, {2: "truncated"})
    run_prepare(tmp_path / "one")
    command = [sys.executable, "prepare.py", "--data_dir", tmp_path / "two", "--workers", "2"]
    subprocess.run([*command, "--min_minutes", "1"], cwd=ROOT / "shhs-dir", check=True,
                   capture_output=True, timeout=120)  # fmt: skip
    assert (tmp_path / "one/shhs.csv").read_bytes() == (tmp_path / "two/shhs.csv").read_bytes()
    for path in (tmp_path / "one" / "nights").glob("*.h5"):
        with h5py.File(path) as a, h5py.File(tmp_path / "two" / "nights" / path.name) as b:
            for name in a:
                np.testing.assert_array_equal(a[name][()], b[name][()])


def test_what_prepare_says(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download\.py"):
        run_prepare(tmp_path)
    table = write_raw(tmp_path, {1: 50})
    with pytest.raises(ValueError, match=r"lacks nsrrid or health.*gh_s2.*--score_column"):
        run_prepare(tmp_path, "--score_column", "health")
    with pytest.raises(SystemExit):
        run_prepare(tmp_path, "--edf_name", "night.edf")
    again = faulty(None, tmp_path / "shhs" / "again" / "SHHS2-1.edf")
    with pytest.raises(ValueError, match="have one name"):
        run_prepare(tmp_path)
    again.unlink()
    table.write_text("nsrrid,gh_s2\n1,\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no night can be used.*skipped\.csv"):
        run_prepare(tmp_path)


def test_split_is_balanced_and_reaches_the_papers_sizes():
    rng = np.random.default_rng(0)
    scores = np.clip(rng.normal(72, 20, 2630).round(), 0, 100)
    split, cap = score_table.balanced_split(scores)
    counts = pd.Series(split).value_counts()
    assert counts["val"] == counts["test"]
    assert abs(counts["val"] - 369) < 30
    buckets = np.minimum(scores, 99)
    for name in ("val", "test"):
        held = pd.Series(buckets[np.array(split) == name]).value_counts()
        expected = (pd.Series(buckets).value_counts() // 3).clip(upper=cap)
        assert held.to_dict() == expected[expected > 0].to_dict()
    assert score_table.balanced_split(scores, cap)[0] == split
    assert score_table.balanced_split(scores, seed=1)[0] != split
    assert score_table.balanced_split([50, 60])[0] == ["train", "train"]
    pair = np.array(score_table.balanced_split([50] * 90 + [60] * 9, (20, 5))[0])
    held = [[(part == name).sum() for name in ("val", "test")] for part in (pair[:90], pair[90:])]
    assert held == [[20, 5], [3, 3]]


def test_advice_on_a_split_is_given_only_where_it_helps(capsys):
    args = argparse.Namespace(cap=5, val_per_bin=None, test_per_bin=None, max_held_out=None)
    target = datasets.SCORE._replace(name="qt", low=0, high=200, bin_width=10, own=True)
    labels = np.repeat(np.arange(5.0, 205, 10), [6, 12] * 10)  # 2 or 4 of a bucket at most

    def told(cap, kept):
        split, _ = score_table.balanced_split(labels[:kept], cap, target=target)
        held_out.describe_split(target, labels[:kept], split, args)
        return capsys.readouterr().out

    reached = told(4, 180)
    assert "60 samples in 20 of 20 buckets, a third of each" in reached
    assert "only more data helps" in reached
    assert "--few 4 --many 4" in reached  # training keeps 2 or 4 of a bucket
    assert "a larger --test_per_bin holds out more" in told(1, 180)
    assert "smaller --bin_width" not in told(1, 180)  # 20 labels fill 20 buckets already
    args.max_held_out = 0.2
    assert "a larger --max_held_out" in told(1, 180)


# ---- simulated nights and pictures ----------------------------------------------------------


def test_the_same_seed_simulates_the_same_files(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo_data.main(["--out", str(tmp_path / name), "--nights", "2", "--minutes", "1.5",
                        "--workers", "1", "--seed", str(seed)])  # fmt: skip
    files = {n: sorted((tmp_path / n).rglob("*.*")) for n in "abc"}
    contents = {n: [path.read_bytes() for path in files[n]] for n in "abc"}
    assert [path.name for path in files["a"]][:2] == ["shhs2-dataset-demo.csv", "shhs2-900001.edf"]
    assert contents["a"] == contents["b"] != contents["c"]
    with pytest.raises(ValueError, match="--overwrite"):
        demo_data.main(["--out", str(tmp_path / "a"), "--workers", "1"])
    files["a"][1].rename(files["a"][1].with_name("shhs2-200001.edf"))
    with pytest.raises(ValueError, match="other nights"):
        demo_data.main(["--out", str(tmp_path / "a"), "--overwrite"])


def test_simulated_scores_are_skewed_and_follow_the_night():
    drawn = [demo_night.draw_sleeper(np.random.default_rng([0, k])) for k in range(800)]
    scores = np.array([score for _, score in drawn])
    sums = np.array([100 * np.dot(traits, demo_night.WEIGHTS) for traits, _ in drawn])
    assert scores.min() >= 0
    assert scores.max() <= 100
    assert (scores > 60).mean() > 0.6
    assert 0 < (scores < 40).mean() < 0.15
    assert np.abs(scores - sums).mean() < np.abs(scores - np.median(scores)).mean() / 3


def test_simulated_signals_show_the_traits():
    """Heart rate, apnoeas and deep sleep can be read off the signals."""
    facts = []
    for traits in (demo_night.Traits(1, 1, 1, 1), demo_night.Traits(0, 0, 0, 0)):
        rng = np.random.default_rng(1)
        stages, channels = demo_night.make_night(traits, 20, rng)
        peaks, _ = scipy.signal.find_peaks(channels["ECG"], height=0.6, distance=30)
        flow = np.abs(channels["AIRFLOW"]).reshape(-1, 100).max(axis=1)
        facts.append((len(peaks) / 20, (flow < 0.3 * np.median(flow)).mean(), (stages == 3).mean()))
    (rate, still, deep), (poor_rate, poor_still, poor_deep) = facts
    assert rate == pytest.approx(56, abs=6)
    assert poor_rate == pytest.approx(82, abs=6)
    assert still < 0.01 < 0.05 < poor_still
    assert deep > poor_deep


def test_picture_of_a_night(tmp_path):
    stages, channels = demo_night.make_night(
        demo_night.Traits(0.9, 0.9, 0.9, 0.5), 10, np.random.default_rng(0)
    )
    demo_data.write_edf(tmp_path / "night.edf", stages, channels)
    night = read(tmp_path / "night.edf")
    night_file.write_night(tmp_path / "night.h5", night, "")
    night_figures.main([str(tmp_path / "night.h5"), "--out", str(tmp_path)])
    assert (tmp_path / "night.png").stat().st_size > 20_000
    fig = night_figures.draw_night(tmp_path / "night.h5")
    assert "10 minutes" in fig.get_suptitle()
    assert any(ax.get_xlabel() == "minutes" for ax in fig.axes)
    depth = night_figures.depth_of_sleep(night["eeg"].astype(float))
    deep, awake = depth[stages == 3], depth[stages <= 1]
    assert len(depth) == len(stages)
    assert not len(deep) or not len(awake) or deep.mean() > awake.mean()


@pytest.mark.parametrize("columns", [1, 2000, 2001, 115_200])
def test_a_narrowed_picture_holds_every_column(columns, tmp_path):
    image = np.random.default_rng(0).normal(0, 1, (3, columns)).astype(np.float32)
    means, share = night_figures.narrowed(image)
    step = round(share * columns / means.shape[1])
    assert means.shape[1] <= 2000
    for k in (0, means.shape[1] // 2, means.shape[1] - 1):
        part = image[:, k * step : (k + 1) * step]
        np.testing.assert_allclose(means[:, k], part.mean(axis=1), atol=1e-5)
    assert (means.shape[1] - 1) * step < columns <= means.shape[1] * step
