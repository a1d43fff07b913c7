"""What the network sees of a night: two spectrograms and breathing, in frames of 30 seconds.

The paper says EEG, ECG and breathing; window lengths, frequencies and scaling are ours:

| signal | array of a night of S seconds | unit |
|---|---|---|
| eeg | 64 frequencies, 0.5 to 32 Hz in steps of 0.5, one column a second | dB re 1 µV²/Hz |
| ecg | 22 frequencies, 2 to 44 Hz in steps of 2, four columns a second | dB re 1 µV²/Hz |
| breathing | chest, abdomen, airflow, ten samples a second | median 0, spread 1 |

A column of the EEG covers two seconds and resolves the bands of sleep. One of the ECG covers half a
second: a heart beat is a column or two, and its distance to the next can be read off.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

FRAME_SECONDS = 30  # the epoch of sleep scoring: a night is cut to whole ones
SPECTRUM_RATE = 128  # Hz; EEG and ECG of any rate are brought to it before their spectrogram
BREATHING_RATE = 10  # Hz, as the bands and the airflow of SHHS
BREATHING_CLIP = 8.0  # spreads; a band that comes loose swings further
FLOOR = 1e-4  # µV²/Hz added to a density, far below any amplifier's noise: silence is −40 dB
BLOCK = 4096  # columns computed at a time, which bounds the memory for a night


class Signal(NamedTuple):
    """How one signal is laid out; `columns` per second. Your own are made by `own_signals.py`."""

    channels: int  # frequencies, or breathing channels, or your own
    columns: int
    window: int  # samples of a spectrogram's window at SPECTRUM_RATE; 0 for none
    channel_names: tuple  # of the EDF file's channels, each one of CHANNELS
    seconds: float = FRAME_SECONDS  # of a frame
    dtype: str = "float16"

    @property
    def frame(self):
        """Columns of a frame."""
        return round(self.columns * self.seconds)


SIGNALS = {
    "eeg": Signal(64, 1, 256, ("eeg",)),
    "ecg": Signal(22, 4, 64, ("ecg",)),
    "breathing": Signal(3, BREATHING_RATE, 0, ("chest", "abdomen", "airflow")),
}


def frequencies(name):
    """Return the frequencies [channels] of a spectrogram's rows, Hz."""
    signal = SIGNALS[name]
    return np.arange(1, signal.channels + 1) * SPECTRUM_RATE / signal.window


def resample(samples, rate, target):
    """Bring samples [n] of `rate` Hz to `target` Hz by a polyphase filter, as float32."""
    from scipy.signal import resample_poly  # here: its import takes most of a second

    target, rate = (Fraction(hertz).limit_denominator(1000) for hertz in (target, rate))
    ratio = target / rate
    samples = np.asarray(samples, dtype=np.float32)
    return resample_poly(samples, ratio.numerator, ratio.denominator, padtype="line")


def power_spectrum(samples, window, hop, rows):
    """Return the power density of each window of a signal, as `scipy.signal.spectrogram` does.

    Args:
        samples: float array [n], µV, at SPECTRUM_RATE.
        window: samples of a window (Hann, its mean removed).
        hop: samples from one window to the next.
        rows: frequencies kept, from the one above zero on.

    Returns:
        float32 array [rows, 1 + (n - window) // hop], µV²/Hz, one-sided.
    """
    from scipy.signal import get_window

    taper = get_window("hann", window).astype(np.float32)
    scale = 2.0 / (SPECTRUM_RATE * np.square(taper, dtype=np.float64).sum())
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    density = np.empty((rows, len(frames)), dtype=np.float32)
    for start in range(0, len(frames), BLOCK):
        block = frames[start : start + BLOCK]
        block = (block - block.mean(axis=1, keepdims=True)) * taper
        power = np.abs(np.fft.rfft(block)[:, 1 : rows + 1]) ** 2
        density[:, start : start + BLOCK] = scale * power.T
    if rows == window // 2:
        density[-1] /= 2  # the highest frequency has no negative twin
    return density


def spectrogram(name, samples, rate):
    """Return the spectrogram of a signal in decibels.

    Args:
        name: 'eeg' or 'ecg'.
        samples: array [n], µV.
        rate: of the samples, Hz.

    Returns:
        float16 array [channels, columns · seconds], dB re 1 µV²/Hz, of the whole frames. A column's
        window is centred on the middle of the column's share of time; the ends are mirrored.
    """
    signal = SIGNALS[name]
    samples = resample(samples, rate, SPECTRUM_RATE)
    hop = SPECTRUM_RATE // signal.columns
    columns = len(samples) // (SPECTRUM_RATE * FRAME_SECONDS) * signal.frame
    margin = (signal.window - hop) // 2
    samples = np.pad(samples[: columns * hop], margin, mode="reflect")
    density = power_spectrum(samples, signal.window, hop, signal.channels)
    return (10 * np.log10(density + FLOOR)).astype(np.float16)


def breathing(samples, rate):
    """Return a breathing channel of arbitrary unit, at 10 Hz, comparable between nights.

    Args:
        samples: array [n].
        rate: of the samples, Hz.

    Returns:
        float16 array [10 · seconds] of the whole frames: median 0, the middle half of its values
        1.35 wide (as in a normal distribution of spread 1), cut at ±8.
    """
    samples = resample(samples, rate, BREATHING_RATE)
    frame = SIGNALS["breathing"].frame
    samples = samples[: len(samples) // frame * frame]
    low, middle, high = np.quantile(samples, (0.25, 0.5, 0.75))
    spread = max((high - low) / 1.349, 1e-6 * max(abs(low), abs(high)), 1e-12)
    return np.clip((samples - middle) / spread, -BREATHING_CLIP, BREATHING_CLIP).astype(np.float16)
