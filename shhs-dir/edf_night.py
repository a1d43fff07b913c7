"""One night from an EDF file: which channels it has, what is wrong with it, its arrays.

A night that cannot be used ends in a `Fault` with a reason of one word, which `prepare.py` writes
into `skipped.csv`.
"""

import os
import re
import stat
from pathlib import Path

import numpy as np

from night_signals import FRAME_SECONDS, SIGNALS, breathing, spectrogram

VERSION = 1  # of the arrays: raise it when their content changes, and nights are made again
# Known names of a channel, the preferred first, compared without case, blanks and punctuation.
# SHHS calls C4/A1 "EEG" and C3/A2 "EEG(sec)"; the others are those of common recorders.
CHANNELS = {
    "eeg": (
        "EEG", "C4-A1", "C4-M1", "EEG C4-A1", "EEG C4-M1", "C4", "EEG C4", "EEG(sec)", "EEG sec",
        "EEG2", "C3-A2", "C3-M2", "EEG C3-A2", "EEG C3-M2", "C3", "EEG C3",
    ),
    "ecg": ("ECG", "EKG", "ECG1", "ECG I", "ECG II", "ECG ECG", "ECG L-ECG R", "EKG1-EKG2"),
    "chest": ("THOR RES", "Thorax", "Thor", "Thoracic", "Chest", "RIP Thorax", "Thor Effort"),
    "abdomen": ("ABDO RES", "Abdomen", "Abdo", "ABD", "Abdominal", "RIP Abdomen", "Abdo Effort"),
    "airflow": ("AIRFLOW", "NEW AIR", "NEW A/F", "NEWAIR", "Air Flow", "Flow", "Nasal", "AUX AIR"),
}  # fmt: skip
# Lowest and highest believable rate, Hz: the lowest still holds the frequencies that are used.
RATES = {"eeg": (64, 2048), "ecg": (88, 2048), "chest": (4, 512)}
RATES["abdomen"] = RATES["airflow"] = RATES["chest"]
# No amplifier goes further: a header that says so is damaged, or names a wrong unit.
LARGEST = {"eeg": 1e6, "ecg": 1e6}  # µV
LARGEST_BREATH = 1e12  # of an arbitrary unit
MICROVOLTS = {"nv": 1e-3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "mv": 1e3, "v": 1e6}
FLAT_SHARE = 0.5  # of the seconds: a channel that stands still for longer is no signal
LONGEST_HOURS = 24.0
STAGES = ("W", "N1", "N2", "N3", "R")  # numbers 0 ... 4 in a night's `stages`, −1 is unknown
STAGE_NAMES = {"w": 0, "wake": 0, "1": 1, "n1": 1, "2": 2, "n2": 2, "3": 3, "4": 3, "n3": 3,
               "r": 4, "rem": 4}  # fmt: skip


class Fault(ValueError):
    """Why a night is left out: a reason of one word, and what was found."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):  # so that it comes back whole from another process
        return Fault, (self.reason, self.detail)


def normalized(label):
    """Return a channel's name as names are compared."""
    return re.sub(r"[\W_]", "", label).lower()


def check_length(path):
    """Raise a Fault unless the file is an EDF and as long as its header says."""
    with open(path, "rb") as file:
        head = file.read(256)
        if len(head) < 256 or head[:8].strip() != b"0":
            raise Fault("unreadable", "it does not begin as an EDF file")
        try:
            header = int(head[184:192])
            records = int(head[236:244])
            n = int(head[252:256])
            file.seek(256 + 216 * n)
            samples = [int(file.read(8)) for _ in range(n)]
        except ValueError:
            raise Fault("unreadable", "its header is damaged or cut off") from None
    expected = header + 2 * records * sum(samples)
    size = os.path.getsize(path)
    if records < 1 or header != 256 * (n + 1):
        raise Fault("unreadable", f"its header gives {records} records and {header} bytes")
    if size < expected:
        raise Fault("truncated", f"{size:,} of {expected:,} bytes")


def open_edf(path):
    """Return the open reader of an EDF file, or raise a Fault."""
    import pyedflib  # training needs no EDF reader

    try:
        check_length(path)
        return pyedflib.EdfReader(str(path))
    except OSError as error:
        raise Fault("unreadable", str(error).replace(str(path), Path(path).name)) from None


def flat_share(samples, rate):
    """Return the share of the seconds in which a signal [n] does not move."""
    step = max(1, round(rate))
    seconds = samples[: len(samples) // step * step].reshape(-1, step)
    return float(np.mean(np.ptp(seconds, axis=1) == 0)) if len(seconds) else 1.0


def read_channel(reader, name, unit):
    """Return samples and rate of a channel of CHANNELS, of its names the first without a fault.

    Args:
        reader: an open `pyedflib.EdfReader`.
        name: key of CHANNELS.
        unit: of EEG and ECG where the file gives none, or ''.

    Raises:
        Fault: missing_channel, rate, unit, range or flat; of several channels, the first one's.
    """
    labels = [normalized(label) for label in reader.getSignalLabels()]
    wanted = [normalized(label) for label in CHANNELS[name]]
    faults, (low, high) = [], RATES[name]
    held = [number for number, label in enumerate(labels) if label in wanted]
    for number in sorted(held, key=lambda number: wanted.index(labels[number])):
        shown = f"{name} ({reader.getLabel(number).strip()})"
        rate, scale = reader.getSampleFrequency(number), 1.0
        if name in ("eeg", "ecg"):
            given = reader.getPhysicalDimension(number).strip() or unit
            scale = MICROVOLTS.get(given.lower())
        if not low <= rate <= high:
            faults.append(Fault("rate", f"{shown} has {rate:g} Hz, taken are {low} to {high}"))
        elif scale is None:
            faults.append(Fault("unit", f"{shown} is in {given!r}, taken are uV, mV and V; --unit"))
        else:
            samples = reader.readSignal(number) * scale
            largest = np.maximum(samples.max(initial=0), -samples.min(initial=0))
            limit = LARGEST.get(name, LARGEST_BREATH)
            if not largest <= limit:  # NaN is not, either
                detail = f"{shown} goes to {largest:.3g}, taken is up to {limit:g}"
                faults.append(Fault("range", detail + " µV" * (name in LARGEST)))
                continue
            share = flat_share(samples, rate)
            if share <= FLAT_SHARE:
                return samples, rate
            faults.append(Fault("flat", f"{shown} stands still in {share:.0%} of the seconds"))
    if faults:
        raise faults[0]
    have = ", ".join(label.strip() for label in reader.getSignalLabels())
    raise Fault("missing_channel", f"no {name} among {have}")


def read_stages(reader, frames):
    """Return the sleep stage of each frame from an EDF+ file's annotations, int8, −1 unknown."""
    stages = np.full(frames, -1, dtype=np.int8)
    for onset, duration, text in zip(*reader.readAnnotations()):
        stage = STAGE_NAMES.get(text.lower().removeprefix("sleep stage").strip(), -1)
        first = round(onset / FRAME_SECONDS)
        if stage >= 0 and first >= 0:
            last = first + max(1, round(max(duration, 0) / FRAME_SECONDS))
            stages[first:last] = stage
    return stages


def read_night(path, min_minutes=120.0, unit=""):
    """Read an EDF file and compute what the network sees of the night.

    Args:
        path: of the file.
        min_minutes: a shorter recording is no night; it needs a frame at least.
        unit: of EEG and ECG where the file gives none: 'uV', 'mV' or 'V'.

    Returns:
        `{signal: float16 [channels, columns]}` as `night_signals` describes, 'stages' (int8
        [frames]) and 'lacking' (breathing channels that are zero, with the reason).

    Raises:
        Fault: if the night cannot be used.
    """
    with open_edf(path) as reader:
        minutes = reader.file_duration / 60
        least = max(min_minutes, FRAME_SECONDS / 60)
        if not least <= minutes <= 60 * LONGEST_HOURS:
            limits = f"{least:g} minutes to {LONGEST_HOURS:g} hours"
            raise Fault("length", f"{minutes:.2f} minutes, taken are {limits}")
        night = {}
        lacking = {}
        layout = SIGNALS["breathing"]
        for name in ("eeg", "ecg"):
            night[name] = spectrogram(name, *read_channel(reader, name, unit))
        # Rates that do not divide the length may leave one signal a column short of a frame.
        frames = min(night[name].shape[1] // SIGNALS[name].frame for name in night)
        night = {name: array[:, : frames * SIGNALS[name].frame] for name, array in night.items()}
        night["breathing"] = np.zeros((layout.channels, frames * layout.frame), dtype=np.float16)
        for row, name in zip(night["breathing"], layout.channel_names):
            try:
                samples = breathing(*read_channel(reader, name, unit))[: len(row)]
                row[: len(samples)] = samples
            except Fault as fault:
                lacking[name] = fault
        if len(lacking) == layout.channels:  # one of the three is enough
            others = ", ".join(f"{name} {lacking[name].reason}" for name in ("abdomen", "airflow"))
            raise Fault(lacking["chest"].reason, f"{lacking['chest'].detail}; {others}")
        night["stages"] = read_stages(reader, frames)
        night["lacking"] = ", ".join(f"{name} {f.reason}" for name, f in lacking.items())
    return night


def source_of(path, min_minutes, unit, layout=""):
    """Return facts that tell whether an earlier night still matches its EDF file, or a Fault."""
    try:
        facts = os.stat(path)
    except OSError as error:  # a link that leads nowhere, or a file that is gone by now
        raise Fault("unreadable", error.strerror) from None
    if not stat.S_ISREG(facts.st_mode):  # reading a pipe would never end
        raise Fault("unreadable", "it is no file")
    return f"{VERSION} {facts.st_size} {facts.st_mtime_ns} {min_minutes:g} {unit}{layout}"
