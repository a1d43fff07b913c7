"""A night at a glance: sleep stages, spectrograms of EEG and ECG, breathing; or your own signals.

    python night_figures.py data/nights/900001.h5              # writes 900001.png here
    python night_figures.py data/nights/*.h5 --out pictures

Sleep stages are drawn where the recording had them as annotations (the simulated nights do). The
network never sees them; it sees the rest. The ratio of slow to fast waves is drawn for each night:
it falls and rises with the depth of sleep. Of your own signals each channel is drawn.
"""

import argparse
import re
from pathlib import Path

import h5py
import numpy as np
from matplotlib.figure import Figure

import program
from edf_night import STAGES
from figures import BLUE, DARK, VERMILLION
from files import write_atomically
from night_signals import FRAME_SECONDS, SIGNALS, frequencies
from outside import h5_array, reading

LEVELS = {"W": 4, "R": 3, "N1": 2, "N2": 1, "N3": 0}  # height in the hypnogram
SLOW, FAST = (0.5, 4.0), (16.0, 32.0)  # Hz; delta and beta
WIDEST = 2000  # columns that are drawn: more than a screen has
MOST_CHANNELS = 24  # of your own signals that one picture holds


def depth_of_sleep(eeg):
    """Return the ratio of slow to fast waves of each frame [frames], dB.

    Args:
        eeg: float [64, columns], dB re 1 µV²/Hz.
    """
    hertz, signal = frequencies("eeg"), SIGNALS["eeg"]
    power = 10 ** (eeg.reshape(signal.channels, -1, signal.frame) / 10)
    bands = [power[(hertz >= low) & (hertz <= high)].sum(axis=(0, 2)) for low, high in (SLOW, FAST)]
    return 10 * np.log10(bands[0] / bands[1])


def narrowed(image):
    """Return the means of so many neighbouring columns that WIDEST are left, and their share."""
    columns = image.shape[1]
    starts = np.arange(0, columns, -(-columns // WIDEST))
    number = np.diff(starts, append=columns)
    return np.add.reduceat(image, starts, axis=1) / number, len(starts) * number[0] / columns


def draw_own(path, samples, layout):
    """Draw your own signals: a panel for each channel, over the seconds.

    Args:
        path: of the HDF5 file.
        samples: float32 [C, T].
        layout: its flags, as `own_signals.words_of` returns them.
    """
    names, rate = re.match(r"--channels (.*) --rate (\S+)", layout).groups()
    names = names.split(",")[:MOST_CHANNELS]
    seconds = samples.shape[1] / float(rate)
    fig = Figure((11, 1.5 + 1.3 * len(names)), dpi=120, layout="constrained")
    fig.suptitle(f"{Path(path).stem}, {seconds:.4g} seconds at {rate} Hz", fontsize="medium")
    axes = np.ravel(fig.subplots(len(names), 1, sharex=True))
    step = -(-samples.shape[1] // WIDEST)
    starts = np.arange(0, samples.shape[1], step)
    for ax, name, row in zip(axes, names, samples):
        # Both ends of so many neighbours: a short spike stays.
        ends = [ends.reduceat(row, starts) for ends in (np.minimum, np.maximum)]
        ax.plot(np.repeat(starts / float(rate), 2), np.stack(ends, axis=1).ravel(), BLUE, lw=0.8)
        ax.set_ylabel(name.strip())
    axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    return fig


def draw_night(path):
    """Draw a night: a figure of four panels over hours, or minutes where it is shorter than one.

    Args:
        path: of an HDF5 file that prepare.py wrote; `draw_own` draws your own signals.
    """
    with reading(path, "give a night that prepare.py wrote"), h5py.File(path) as file:
        if "layout" in file.attrs:
            return draw_own(path, h5_array(file, "own")[()], file.attrs["layout"])
        night = {name: h5_array(file, name)[()].astype(np.float32) for name in SIGNALS}
        stages = h5_array(file, "stages")[()]
        lacking = file.attrs["lacking"]
        frames = len(stages)
        for name, signal in SIGNALS.items():
            if night[name].shape != (signal.channels, frames * signal.frame):
                raise ValueError(f"{name} has the shape {night[name].shape}")
    seconds = frames * FRAME_SECONDS
    unit, length = ("hours", seconds / 3600) if seconds >= 3600 else ("minutes", seconds / 60)
    fig = Figure((11, 8.5), dpi=120, layout="constrained")
    title = f"Night {Path(path).stem}, {length:.4g} {unit}" + (f" ({lacking})" if lacking else "")
    fig.suptitle(title, fontsize="medium")
    top, *axes = fig.subplots(4, 1, sharex=True, height_ratios=(1.2, 1.6, 1, 1))
    edges = np.linspace(0, length, frames + 1)
    top.stairs(depth_of_sleep(night["eeg"]), edges, color=BLUE, baseline=None)
    top.set_ylabel("slow / fast waves (dB)", color=BLUE)
    top.margins(y=0.08)
    if (stages >= 0).any():
        twin = top.twinx()
        heights = np.array([LEVELS[name] for name in STAGES] + [np.nan])
        twin.stairs(heights[stages], edges, color="black", lw=1.5, baseline=None)
        twin.set_yticks(list(LEVELS.values()), list(LEVELS))
        twin.set_ylim(-0.4, 4.4)  # off the frame, which would hide its outer lines
        twin.set_ylabel("sleep stage (annotated)")
    for ax, name in zip(axes, ("eeg", "ecg")):
        (image, share), hertz = narrowed(night[name]), frequencies(name)
        half = (hertz[1] - hertz[0]) / 2
        shown = ax.imshow(
            image, aspect="auto", origin="lower", cmap="magma", interpolation="nearest",
            extent=(0, length * share, hertz[0] - half, hertz[-1] + half),
            vmin=np.quantile(image, 0.02), vmax=np.quantile(image, 0.99),
        )  # fmt: skip
        fig.colorbar(shown, ax=ax, label="dB re 1 µV²/Hz")
        ax.set_ylabel(f"{name.upper()} (Hz)")
    signal = SIGNALS["breathing"]
    for row, name, color in zip(night["breathing"], signal.channel_names, (DARK, BLUE, VERMILLION)):
        # Of ten seconds each: an apnoea is longer.
        swing = row.reshape(-1, signal.columns * 10).std(axis=1)
        axes[2].stairs(swing, np.linspace(0, length, len(swing) + 1), color=color, label=name,
                       baseline=None)  # fmt: skip
    axes[2].legend(  # above the panel: breath fills all of it
        ncols=3, fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), frameon=False
    )
    axes[2].set(ylabel="swing of the breath", xlabel=unit, xlim=(0, length), ylim=(0, None))
    return fig


def main(argv=None):
    """Draw the nights that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("nights", nargs="+", type=Path, metavar="NIGHT.h5", help="of prepare.py")
    parser.add_argument("--out", type=Path, default=".", help="folder for the pictures")
    args = parser.parse_args(argv)
    for path in args.nights:
        fig, target = draw_night(path), args.out / f"{path.stem}.png"
        write_atomically(target, lambda file, fig=fig: fig.savefig(file, format="png"))
        print(target)


if __name__ == "__main__":
    program.run(main)
