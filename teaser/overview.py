"""The picture and the animation of the root README: skewed labels, LDS, FDS, error by label.

The labels are drawn from the tutorial's skewed density, the errors come from its run
(tutorial/error_by_label.csv, written by `make tutorial`), the features from fds_animation.py.
"""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

import fds_animation
from drawing import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ROOT,
    VERMILLION,
    ease,
    image_of,
    load,
    new_figure,
    tidy,
)

LINES = {  # of a method, and its words
    "VANILLA": (VERMILLION, "-", "plain training"),
    "SQINV+LDS": (BLUE, "--", "weights of LDS"),
    "SQINV+FDS": (GREEN, "-.", "FDS, weights not smoothed"),
    "best possible": (DARK, ":", "best for even labels"),
}
THEMES = {  # page, text, bars, and what the colours of a line become
    "light": ("white", "black", GREY, {}),
    "dark": (
        "#0D1117", "#E6EDF3", "#5A5F66",
        {VERMILLION: "#FF8A4C", BLUE: "#56B4E9", GREEN: "#2DC79A", DARK: "#B8B8B8"},
    ),
}  # fmt: skip
LABELS = np.arange(100) + 0.5
WEIGHT_TICKS = [0.5, 1, 2, 5, 10, 20]


def read_errors():
    """Return the DataFrame with the columns label and, by method, its mean absolute error."""
    return pd.read_csv(ROOT / "tutorial/error_by_label.csv")


def skewed_counts(samples=1000):
    """Return the counts [100] of the first of 1,000 labels, drawn as in the tutorial."""
    labels = fds_animation.skewed_labels(np.random.default_rng(0), 1000)
    return np.histogram(labels[:samples], 100, (0, 100))[0]


def smoothed_and_weights(counts):
    """Return the smoothed root of the counts [100] and the weights [100], NaN without samples."""
    lds = load("agedb-dir", "lds")
    density = lds.label_density(counts, "sqrt_inv", lds=True)
    return density[1], np.where(counts > 0, lds.bucket_weights(density, counts), np.nan)


def draw_lds(ax, counts, shown=100, weighted=1.0, theme="light"):
    """Draw the root of the counts, its smoothed form and the weights.

    Args:
        ax: an axes.
        counts: [100].
        shown: number of buckets that the smoothed curve is drawn for.
        weighted: share of the weights' way from 1 to their value.
        theme: key of THEMES.

    Returns:
        The axes of the weights, at the right.
    """
    _, text, bars, lines = THEMES[theme]
    smoothed, weights = smoothed_and_weights(counts)
    scale = np.sqrt(counts).max()
    ax.bar(LABELS, np.sqrt(counts) / scale, 1, color=bars, label="root of the count")
    curve = (smoothed / smoothed.max())[:shown]
    ax.plot(LABELS[:shown], curve, color=lines.get(BLUE, BLUE), lw=2.5, label="smoothed: LDS")
    ax.set(ylabel="share of the largest", ylim=(0, 1.35))
    right = ax.twinx()
    right.set(yscale="log", ylim=(0.3, 60), ylabel="weight of a sample")
    right.set_yticks(WEIGHT_TICKS, [f"{tick:g}" for tick in WEIGHT_TICKS])
    if weighted:
        right.plot(LABELS, weights**weighted, "x", ms=5, color=text, label="weight (right)")
    right.spines["top"].set_visible(False)
    return right


def draw_errors(ax, errors, size, theme="light"):
    """Draw each method's error by label; a method's words have its line's colour."""
    lines = THEMES[theme][3]
    for name, (colour, style, label) in LINES.items():
        colour = lines.get(colour, colour)
        ax.plot(errors["label"], errors[name], style, color=colour, lw=2, label=label)
    ax.set(ylabel="mean absolute error", ylim=(0, None))
    place = {"loc": "upper left", "bbox_to_anchor": (0, 1.03), "frameon": False}
    ax.legend(**place, fontsize=size, labelcolor="linecolor", handlelength=2.6)


def draw(errors, theme="light", narrow=False):
    """Return the figure of three panels.

    Args:
        errors: what `read_errors` returns.
        theme: key of THEMES.
        narrow: one panel below the other, for a narrow page.
    """
    page, text, bars, _ = THEMES[theme]
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings = {"axes.facecolor": page, "font.size": 13 if narrow else 10}
    with rc_context(settings | dict.fromkeys(colours, text)):
        counts = skewed_counts()
        size = (6.4, 10.5) if narrow else (11, 3.3)
        fig = Figure(size, dpi=100 if narrow else 110, layout="constrained", facecolor=page)
        data, lds, error = fig.subplots(3, 1) if narrow else fig.subplots(1, 3)
        data.bar(LABELS, counts, 1, color=bars)
        data.set(title="1  Labels crowd on a few values", ylabel="training samples")
        arrow = {"arrowstyle": "->", "color": text}
        data.annotate("many samples", (18, 36), (32, 38), arrowprops=arrow)
        data.annotate("few or none", (75, 3), (62, counts.max() * 0.3), arrowprops=arrow)
        right = draw_lds(lds, counts, theme=theme)
        lds.set(title="2  LDS smooths them into weights")
        handles = [*lds.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        lds.legend(handles=handles, frameon=False, loc="upper left", fontsize="small", ncols=2,
                   columnspacing=1)  # fmt: skip
        draw_errors(error, errors, "small", theme)
        error.set(title="3  Rare labels are predicted better")
        for ax in (data, lds, error):
            ax.set(xlabel="label", xlim=(0, 100))
        tidy(data, lds, error)
    return fig


# ---- the animation -------------------------------------------------------------------------


def canvas(title, text):
    """Return a figure with its title and a line of text, and one axes."""
    figure = new_figure(800, 430)
    figure.text(0.02, 0.97, title, va="top", fontsize=16)
    figure.text(0.02, 0.885, text, va="top", fontsize=12)
    ax = figure.add_axes((0.08, 0.13, 0.85, 0.66))
    ax.set(xlim=(0, 100))
    ax.set_xlabel("label", fontsize=12)
    tidy(ax)
    return figure, ax


def data_frame(samples):
    """Return the frame with the counts of the first samples."""
    text = f"{samples:,} training samples, generated: a few labels have most of them"
    figure, ax = canvas("1  Labels crowd on a few values", text)
    ax.bar(LABELS, skewed_counts(samples), 1, color=GREY)
    ax.set(ylim=(0, 1.05 * skewed_counts().max()))
    ax.set_ylabel("samples", fontsize=12)
    return image_of(figure)


def lds_frame(shown, weighted):
    """Return the frame of LDS; the arguments are those of `draw_lds`."""
    text = "The root of the counts is smoothed over neighbouring labels"
    text += "; one over that is the weight" if weighted else ""
    figure, ax = canvas("2  LDS smooths the labels' density", text)
    right = draw_lds(ax, skewed_counts(), shown, weighted)
    for axes in (ax, right):
        axes.yaxis.label.set_size(12)
    handles = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.legend(handles=handles, frameon=False, loc="upper left", fontsize=12, ncols=3)
    return image_of(figure)


def fds_frame(shown, share):
    """Return the frame of FDS with the rare bucket's features moved a share of their way."""
    text = "Features of a rare label get the statistics smoothed over neighbouring labels"
    figure, ax = canvas("3  FDS calibrates the features in training", text)
    ax.set_position((0.05, 0.13, 0.56, 0.66))
    fds_animation.draw_features(ax, shown, -1, share)
    ax.set_xlabel("a feature of a small network", fontsize=12)
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 0.9), frameon=False, fontsize=12)
    return image_of(figure)


def error_frame(errors, count):
    """Return the frame with each method's error on the first labels."""
    text = "Small networks on even test labels, mean of 10 seeds (the tutorial's run)"
    figure, ax = canvas("4  Rare labels are predicted better", text)
    draw_errors(ax, errors.iloc[:count], 13)
    ax.set(ylim=(0, 1.05 * errors[list(LINES)].to_numpy().max()))
    ax.yaxis.label.set_size(12)
    return image_of(figure)


def frames(steps=10):
    """Return the animation as a list of (image, milliseconds).

    Args:
        steps: number of frames of each of its five movements.
    """
    errors, shown = read_errors(), fds_animation.scene()
    way = np.linspace(0, 1, steps)
    scenes = (  # images, milliseconds of each, and of the last one
        ([data_frame(int(samples)) for samples in np.geomspace(20, 1000, steps)], 120, 1500),
        ([lds_frame(int(shown), 0) for shown in np.linspace(1, 100, steps)], 120, 600),
        ([lds_frame(100, share) for share in ease(way)[1:]], 100, 2200),
        ([fds_frame(shown, share) for share in ease(way)], 110, 2500),
        ([error_frame(errors, int(count)) for count in np.linspace(2, 50, steps)], 120, 6000),
    )
    result = []
    for images, time, last in scenes:
        result += [(image, time) for image in images[:-1]] + [(images[-1], last)]
    return result
