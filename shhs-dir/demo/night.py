"""A simulated night: sleep stages, EEG, ECG and breathing that follow a few traits of a sleeper.

Everything is crude on purpose: bands of noise whose power depends on the stage, a heart beat of
five bumps, breaths as a sine. It is meant to exercise the code and to hold something to learn, and
no number obtained on it says anything about sleep.
"""

from typing import NamedTuple

import numpy as np

EEG_RATE = ECG_RATE = 125  # Hz, as in SHHS
BREATHING_RATE = 10
FRAME_SECONDS = 30
STAGES = ("W", "N1", "N2", "N3", "R")
BANDS = ((0.5, 4), (4, 8), (8, 12), (12, 15), (15, 32))  # Hz: delta, theta, alpha, sigma, beta
BAND_MICROVOLTS = np.array([  # of each band (columns) in each stage (rows), root mean square
    [8, 6, 14, 4, 6], [10, 10, 7, 4, 4], [18, 9, 5, 8, 3], [45, 9, 4, 4, 2], [10, 11, 5, 3, 4],
])  # fmt: skip
# Chance of each next stage (columns) after a frame in a stage (rows), of an average sleeper.
NEXT_STAGE = np.array([
    [0.80, 0.20, 0.00, 0.00, 0.00], [0.10, 0.50, 0.35, 0.00, 0.05], [0.03, 0.03, 0.80, 0.10, 0.04],
    [0.01, 0.01, 0.10, 0.88, 0.00], [0.04, 0.04, 0.04, 0.00, 0.88],
])  # fmt: skip
BUMPS = (
    (-0.17, 0.10, 0.022),
    (-0.03, -0.12, 0.009),
    (0.0, 1.0, 0.011),
    (0.03, -0.22, 0.010),
    (0.25, 0.28, 0.045),
)  # fmt: skip - P, Q, R, S, T: seconds after R, mV, seconds wide


class Traits(NamedTuple):
    """Of a sleeper, each 0 (poor) to 1 (good)."""

    depth: float  # much deep sleep, high delta waves
    continuity: float  # few awakenings
    heart: float  # slow, and varying with the breath
    breath: float  # few apnoeas


WEIGHTS = Traits(0.30, 0.15, 0.30, 0.25)  # of the score
SCORE_NOISE = 5.0  # points; no night tells all of somebody's health


def draw_sleeper(rng):
    """Return the traits of a random sleeper and their score, a whole number of 0 to 100.

    The traits go together, and most sleepers are well: as in the real set, low scores are rare.
    """
    vitality = rng.beta(4.0, 1.6)
    traits = Traits(*np.clip(vitality + rng.normal(0, 0.15, len(Traits._fields)), 0, 1))
    score = 100 * np.dot(traits, WEIGHTS) + rng.normal(0, SCORE_NOISE)
    # Five answers make SF-36's score; "good" and "very good" to the first put it 2 above a multiple
    # of 5, the other answers on one. So scores are unequal neighbours with empty ones between.
    offset = 2 * (rng.random() < (0.8 if 35 <= score < 92 else 0.1))
    return traits, int(np.clip(5 * np.round((score - offset) / 5) + offset, 0, 100))


def draw_stages(traits, frames, rng):
    """Return the stage of each frame [frames], a Markov chain that starts anywhere in a night."""
    chance = NEXT_STAGE.copy()
    chance[1:, :2] *= 3.0 * (1 - traits.continuity) + 0.2  # to wake and to the lightest sleep
    chance[2, 3] *= 0.2 + 2.0 * traits.depth
    chance[3, 3] *= 0.7 + 0.5 * traits.depth
    chance /= chance.sum(axis=1, keepdims=True)
    stages, stage = [], 2
    for _ in range(frames + 20):  # the first twenty forget where the chain began
        stage = rng.choice(len(STAGES), p=chance[stage])
        stages.append(stage)
    return np.array(stages[20:])


def band_noise(n, rate, low, high, rng):
    """Return noise [n] of the frequencies low to high, root mean square 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1 / rate)
    noise = np.fft.irfft(np.where((hertz >= low) & (hertz < high), spectrum, 0), n)
    return noise / noise.std()


def make_eeg(traits, stages, rng):
    """Return EEG [n] in µV: bands of noise with the power of the stage, and a background."""
    n = len(stages) * FRAME_SECONDS * EEG_RATE
    volts = BAND_MICROVOLTS[stages] * np.array([0.6 + 0.7 * traits.depth, 1, 1, 1, 1])
    middles = (np.arange(len(stages)) + 0.5) * FRAME_SECONDS * EEG_RATE
    eeg = rng.normal(0, 1.0, n)
    for (low, high), amplitude in zip(BANDS, volts.T):
        envelope = np.interp(np.arange(n), middles, amplitude)
        eeg += envelope * band_noise(n, EEG_RATE, low, high, rng)
    return eeg


def make_breathing(traits, stages, rng):
    """Return effort [n] and airflow [n] at 10 Hz, and which samples lie in an apnoea, bool [n]."""
    n = len(stages) * FRAME_SECONDS * BREATHING_RATE
    rate = 0.25 * np.exp(0.08 * band_noise(n, BREATHING_RATE, 0.002, 0.05, rng))  # breaths a second
    phase = 2 * np.pi * np.cumsum(rate) / BREATHING_RATE
    depth = np.exp(0.15 * band_noise(n, BREATHING_RATE, 0.002, 0.1, rng))
    per_hour = 60.0 * (1 - traits.breath) ** 1.5  # apnoeas
    apnoea = np.zeros(n, dtype=bool)
    for start in rng.integers(0, n, rng.poisson(per_hour * n / (3600 * BREATHING_RATE))):
        if stages[start // (FRAME_SECONDS * BREATHING_RATE)] > 0:  # nobody awake has one
            apnoea[start : start + rng.integers(12, 30) * BREATHING_RATE] = True
    effort = depth * np.where(apnoea, 0.45, 1.0) * np.sin(phase)
    flow = depth * np.where(apnoea, 0.05, 1.0) * np.cos(phase)
    return effort, flow, apnoea


def make_ecg(traits, stages, effort, apnoea, rng):
    """Return ECG [n] in mV: beats whose distance follows trait, stage, breath and apnoea."""
    seconds = len(stages) * FRAME_SECONDS
    frame = FRAME_SECONDS * BREATHING_RATE
    base = 82.0 - 26.0 * traits.heart  # beats a minute
    rate = base + np.repeat(np.where(stages == 0, 6.0, np.where(stages == 3, -3.0, 0.0)), frame)
    swing = 1.0 + 6.0 * traits.heart  # with the breath, beats a minute
    rate = rate + swing * effort - 4.0 * apnoea
    rate += 2.0 * band_noise(len(rate), BREATHING_RATE, 0.003, 0.1, rng)
    beats = np.cumsum(np.clip(rate, 35, 150)) / (60 * BREATHING_RATE)
    times = np.interp(np.arange(0.5, beats[-1]), beats, np.arange(len(beats)) / BREATHING_RATE)
    ecg = rng.normal(0, 0.02, seconds * ECG_RATE)
    shape = np.arange(-int(0.3 * ECG_RATE), int(0.45 * ECG_RATE))  # samples around a beat
    places = np.round(times * ECG_RATE).astype(int)[:, None] + shape
    after = places / ECG_RATE - times[:, None]  # seconds after the beat, between samples too
    wave = sum(height * np.exp(-0.5 * ((after - t) / width) ** 2) for t, height, width in BUMPS)
    inside = (places >= 0) & (places < len(ecg))
    np.add.at(ecg, places[inside], wave[inside])
    return ecg


def make_night(traits, minutes, rng):
    """Simulate a night.

    Args:
        traits: of the sleeper.
        minutes: length, at least half a minute.
        rng: `numpy.random.Generator`.

    Returns:
        Stages of the frames, and `{channel: samples}` under the names that SHHS has: EEG (µV) and
        ECG (mV) at 125 Hz, THOR RES, ABDO RES and AIRFLOW (no unit) at 10 Hz.
    """
    stages = draw_stages(traits, max(1, int(minutes * 60 / FRAME_SECONDS)), rng)
    effort, flow, apnoea = make_breathing(traits, stages, rng)
    gain = rng.lognormal(0, 0.3, 3)
    noise = rng.normal(0, 0.05, (3, len(effort)))
    # The belly follows the chest by a third of a second.
    breathing = [effort, np.roll(effort, 3), flow] * gain[:, None] + noise
    channels = {"EEG": make_eeg(traits, stages, rng)}
    channels["ECG"] = make_ecg(traits, stages, effort, apnoea, rng)
    channels |= dict(zip(("THOR RES", "ABDO RES", "AIRFLOW"), breathing))
    return stages, channels
