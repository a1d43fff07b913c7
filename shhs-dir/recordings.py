"""A recording -> what the network sees of it: a night in EDF, or your own channels of any file.

What cannot be used ends in an `edf_night.Fault`, as there.
"""

import re
from io import BytesIO
from pathlib import Path

import numpy as np

from edf_night import Fault, normalized, open_edf, read_night
from night_signals import resample
from outside import shown
from own_signals import LONGEST_SECONDS

VERSION = 2  # of what is read of your own signals: raise it when that changes, as in `edf_night`
SUFFIXES = (".csv", ".npy", ".edf")  # of your own signals
# Seconds of the units in the name of a CSV file's column of times, and of those in no name.
UNITS = {"s": 1, "sec": 1, "seconds": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
ANY_UNIT = (1, 1e-3, 1e-6, 1e-9)
# Such a name in small letters: `time`, `t_ms`, `time [s]`, `timestamp`, `seconds`.
TIMES = re.compile(rf"(?:time[\W_]*stamp|times?|ts?|(?=sec|ms))[\W_]*({'|'.join(UNITS)})?[\W_]*")
LONGEST_STEP = 2.01  # of the usual one: rounded times may have steps of a tick and of two
RATE_ERROR = 0.01  # relative, of --rate against the times


def read_recording(path, signals, min_minutes, unit=""):
    """Read a file and compute what the network sees of it.

    Args:
        path: of a night in EDF or, with your own signals, of a file with one of SUFFIXES.
        signals: as `signals_of` returns them.
        min_minutes: a shorter one is left out; it needs a frame at least.
        unit: as for `edf_night.read_night`; of your own signals that of every channel whose file
            gives none.

    Returns:
        As `edf_night.read_night`: your own signal is 'own', float32 [channels, columns], and
        'units' its channels' units with commas between, '' where none is known.

    Raises:
        Fault: if it cannot be used.
    """
    if "own" not in signals:
        return read_night(path, min_minutes, unit)
    own = signals["own"]
    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise Fault("unreadable", f"its name ends in {kind}, taken are {' '.join(SUFFIXES)}")
    read = {".csv": read_csv, ".npy": read_npy, ".edf": read_edf}[kind]
    samples, units = read(path, own)
    frames = samples.shape[1] // own.frame
    seconds = samples.shape[1] / own.columns
    if frames < 1 or not 60 * min_minutes <= seconds <= LONGEST_SECONDS:
        limits = f"{max(60 * min_minutes, own.seconds):g} seconds to 24 hours"
        raise Fault("length", f"{seconds:.2f} seconds, taken are {limits}")
    with np.errstate(over="ignore"):
        samples = samples[:, : frames * own.frame].astype(np.float32)
    if not np.isfinite(samples).all():
        bad = own.channel_names[int(np.argmin(np.isfinite(samples).all(axis=1)))]
        raise Fault("range", f"{bad} has values that are no finite numbers")
    stages = np.full(frames, -1, dtype=np.int8)
    units = [stated or unit for stated in units]
    units = ",".join(units) if any(units) else ""
    return {"own": samples, "stages": stages, "lacking": "", "units": units}


def read_csv(path, own):
    """Return the channels [C, T] of a CSV file, by name or in order, and no units."""
    import pandas as pd

    try:
        # Two lines, as text: a row of more cells than the header is an error with its line here,
        # where pandas would make row names of its first cells.
        # An empty line is a missing value, except at the end.
        content = Path(path).read_bytes().rstrip()
        options = {"skipinitialspace": True, "skip_blank_lines": False}
        header = pd.read_csv(BytesIO(content), nrows=2, header=None, dtype=str, **options).iloc[0]
        # Channels may have numbers for names.
        named = pd.to_numeric(header, errors="coerce").isna().any()
        named |= sorted(map(str, header)) == sorted(own.channel_names)
        table = pd.read_csv(BytesIO(content), header=0 if named else None, **options)
        if named:
            labels = [str(label).strip() for label in header.fillna("")]
            found = find_channels(own, labels)
            check_times(table, labels, found, own.columns)
            table = table.iloc[:, found]
        samples = table.to_numpy(dtype=np.float64)
    except Fault:
        raise
    except Exception as error:  # of pandas, which has a dozen kinds
        raise Fault("unreadable", f"it is no table of numbers ({shown(error)})") from None
    return in_order(samples, own)


def check_times(table, labels, found, rate):
    """Raise a Fault if a column of times falls, has a gap or tells another rate than --rate.

    Args:
        table: of the file, its column of times in any of ANY_UNIT, a count of samples or ISO text.
        labels: its columns' names.
        found: numbers of the channels, which are no times.
        rate: that of --rate.
    """
    import pandas as pd

    for number, label in enumerate(labels):
        name = TIMES.fullmatch(label.lower())
        if not name or number in found:
            continue
        column = table.iloc[:, number]
        units = (UNITS[name[1]],) if name[1] else ANY_UNIT
        times = pd.to_numeric(column, errors="coerce")
        if times.isna().all():
            stamps = pd.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
            times = (stamps - stamps.min()).dt.total_seconds()
            units = (1,)
        times = times.to_numpy(dtype=np.float64)
        steps = np.diff(times)
        if not np.isfinite(times).all() or not steps.any():
            continue
        # Of times in whole seconds or the like, many samples have the same.
        longest = LONGEST_STEP * np.median(steps[steps > 0]) if steps.max() > 0 else 0
        odd = (steps < 0) | (steps > longest)
        if odd.any():
            row = int(np.argmax(odd))
            told = f"goes from {column.iloc[row]} to {column.iloc[row + 1]} in line {row + 3}"
            raise Fault("rate", f"its column {shown(label)} {shown(told)}")
        if not rate_fits(times, units, rate):
            step = units[0] * (times[-1] - times[0]) / len(steps)
            told = f"column {shown(label)} has a step of {step:g} s, {1 / step:g} Hz"
            raise Fault("rate", f"its {told}, and --rate is {rate:g}")


def rate_fits(times, units, rate):
    """Return whether rising times [T], in one of the units, agree with a rate, or count samples."""
    span = times[-1] - times[0]
    count = len(times) - 1
    seconds = count / rate
    rounding = np.ptp(np.diff(times))
    fits = [abs(span * u - seconds) <= RATE_ERROR * seconds + rounding * u for u in units]
    return any(fits) or (len(units) > 1 and span == count)


def read_npy(path, own):
    """Return the channels [C, T] of an array [T, C], or [T] of one, and no units."""
    try:
        # Mapped: a damaged header may claim more than memory holds.
        samples = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(samples, np.ndarray) or samples.dtype.kind not in "iufb":
            raise ValueError(f"its numbers are {getattr(samples, 'dtype', 'packed')}")
    except Exception as error:  # NumPy has a dozen kinds
        raise Fault("unreadable", f"it is no array of numbers ({shown(error)})") from None
    return in_order(samples[:, None] if samples.ndim == 1 else samples, own)


def in_order(samples, own):
    """Return samples [T, C] as [C, T], without units, or a Fault for more or fewer channels."""
    if samples.ndim != 2 or samples.shape[1] != own.channels:
        shape = list(samples.shape)
        raise Fault("missing_channel", f"it is {shape}, needed is [T, {own.channels}]")
    return samples.T, [""] * own.channels


def read_edf(path, own):
    """Return the channels [C, T] of an EDF file at the rate of --rate, and their units."""
    with open_edf(path) as reader:
        found = find_channels(own, [label.strip() for label in reader.getSignalLabels()])
        units = [reader.getPhysicalDimension(number).strip() for number in found]
        # A channel that has the rate already stays as it is.
        channels = []
        for number in found:
            samples = reader.readSignal(number)
            rate = reader.getSampleFrequency(number)
            same = rate == own.columns
            channels.append(samples if same else resample(samples, rate, own.columns))
    shortest = min(map(len, channels))
    return np.stack([samples[:shortest] for samples in channels]), units


def find_channels(own, labels):
    """Return the number of each channel among a file's labels: of the same name, else of a similar.

    Raises:
        Fault: if a channel has none or several, or two channels have the same.
    """
    found = {}
    for name in own.channel_names:
        same = [number for number, label in enumerate(labels) if label == name]
        # `V1+` and `V1-` are similar: signs and case do not count.
        key = normalized(name)
        similar = [number for number, label in enumerate(labels) if normalized(label) == key != ""]
        numbers = same or similar
        if not numbers:
            raise Fault("missing_channel", f"no {name} among {shown(', '.join(labels))}")
        if len(numbers) > 1:
            both = " and ".join(shown(labels[number]) for number in numbers[:2])
            raise Fault("missing_channel", f"{name} may be {both}: use the exact name")
        (number,) = numbers
        if number in found:
            both = f"{found[number]} and {name}"
            raise Fault("missing_channel", f"{both} are both {shown(labels[number])}")
        found[number] = name
    return list(found)
