"""lds.gif: the window of LDS slides over the training ages of AgeDB-DIR, then come the weights.

What is shown is `--reweight sqrt_inv --lds --lds_ks 5 --lds_sigma 2`: the root of each age's count
is smoothed, and a sample's weight is one over that, scaled to a mean of 1.
"""

from types import SimpleNamespace

import numpy as np

from drawing import BLUE, GREY, ROOT, VERMILLION, ease, image_of, load, new_figure, tidy
from label_counts import read_counts

KS, SIGMA = 5, 2
EXAMPLES = (8, 9, 10, 35, 98, 99)  # rare neighbours, and the most frequent age


def age_data():
    """Return what is drawn, by age.

    Returns:
        Namespace of ages and counts [101], window [5], roots [101], smoothed [101] (with the
        window's sum as 1, so that it compares with the roots; no weight depends on that), and the
        weights [101] plain (without LDS) and lds, NaN for the age without a face.
    """
    table = read_counts(ROOT / "teaser/label_counts.csv", "agedb_dir")
    ages, counts = table["label_low"].to_numpy(int), table["train"].to_numpy(int)
    lds = load("agedb-dir", "lds")
    window = lds.get_lds_kernel_window("gaussian", KS, SIGMA)
    roots, smoothed = lds.label_density(counts, "sqrt_inv", lds=True, lds_ks=KS, lds_sigma=SIGMA)
    plain, weights = (
        np.where(counts > 0, lds.bucket_weights((roots, density), counts), np.nan)
        for density in (None, smoothed)
    )
    return SimpleNamespace(
        ages=ages, counts=counts, window=window, roots=roots, smoothed=smoothed / window.sum(),
        plain=plain, lds=weights,
    )  # fmt: skip


def draw_density(ax, data, position):
    """Draw the density, and its smoothed form up to a position (number of an age)."""
    ax.bar(data.ages, data.roots, 1, color=GREY, label="root of the number of faces")
    part = slice(0, position + 1)
    ax.plot(data.ages[part], data.smoothed[part], color=BLUE, lw=2.5, label="smoothed: LDS")
    if position < len(data.ages) - 1:
        low, high = data.ages[position] - KS / 2, data.ages[position] + KS / 2
        ax.axvspan(low, high, color=BLUE, alpha=0.25, lw=0)
        ax.plot(data.ages[position], data.smoothed[position], "o", ms=7, color=BLUE)
    ax.set(xlim=(0, 102), ylim=(0, 20), yticks=[0, 5, 10, 15, 20])
    ax.set_ylabel("root of the count", fontsize=12)
    tidy(ax)


def draw_window(ax, data, position):
    """Draw the ages within the window, the window's values, and what they come to."""
    around = np.arange(KS) - KS // 2
    roots = np.pad(data.roots, KS // 2)[position : position + KS]
    top = 24
    ax.bar(around, roots, 0.85, color=GREY)
    for offset, value in zip(around, data.window):
        ax.text(offset, 0.93 * top, f"{value:.2f}", ha="center", fontsize=11)
    ax.axhline(data.smoothed[position], color=BLUE, lw=2.5)
    ages = data.ages[position] + around
    names = [str(age) if age >= 0 else "" for age in ages]
    ax.set(
        xticks=around, xticklabels=names, yticks=[0, 5, 10, 15, 20], xlim=(-2.6, 2.6), ylim=(0, top)
    )
    ax.set_title("five ages, their factors\nand weighted mean", fontsize=12)
    tidy(ax)


def draw_weights(ax, data, share):
    """Draw the weights without and with LDS, a share of their way from 1."""
    ax.plot(data.ages, data.plain**share, "x", ms=6, color=VERMILLION, label="without LDS")
    ax.plot(data.ages, data.lds**share, ".", ms=8, color=BLUE, label="with LDS")
    ax.legend(loc="upper center", frameon=False, fontsize=12, ncols=2)
    ax.set(yscale="log", ylim=(0.5, 30))
    ax.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.set_ylabel("weight", fontsize=12)
    tidy(ax)


def draw_examples(figure, data):
    """Write the weights of a few ages next to the panels."""
    lines = [("", "", "weight", "weight"), ("age", "faces", "plain", "with LDS")]
    for age in EXAMPLES:
        row = int(np.flatnonzero(data.ages == age)[0])
        weights = (f"{data.plain[row]:.1f}", f"{data.lds[row]:.1f}")
        lines.append((str(age), str(data.counts[row]), *weights))
    for number, line in enumerate(lines):
        for x, text in zip((0.735, 0.805, 0.885, 0.99), line):
            figure.text(x, 0.78 - 0.055 * number, text, ha="right", fontsize=12)
    text = "LDS gives neighbours\nsimilar weights, however\nfew samples each has."
    figure.text(0.70, 0.31, text, va="top", fontsize=12, color=BLUE, linespacing=1.4)


def draw_frame(data, title, position, share=None):
    """Return one frame as an image: the window at a position, or the weights on their way."""
    figure = new_figure(800, 470)
    figure.text(0.02, 0.97, title, va="top", fontsize=14)
    bottom = 0.115 if share is None else 0.535
    density = figure.add_axes((0.08, bottom, 0.59, 0.81 - bottom))
    draw_density(density, data, position)
    figure.legend(*density.get_legend_handles_labels(), loc="upper left", ncols=2,
                  bbox_to_anchor=(0.07, 0.92), frameon=False, fontsize=12)  # fmt: skip
    last = density
    if share is None:
        draw_window(figure.add_axes((0.73, 0.115, 0.255, 0.615)), data, position)
    else:
        last = figure.add_axes((0.08, 0.115, 0.59, 0.36), sharex=density)
        draw_weights(last, data, share)
        if share == 1:
            draw_examples(figure, data)
    last.set_xlabel("age (12,208 training faces of AgeDB-DIR)", fontsize=12)
    return image_of(figure)


def frames(slides=41, rises=9):
    """Return the animation as a list of (image, milliseconds).

    Args:
        slides, rises: frames of its two parts: smoothing, and the weights taking their values.
    """
    data, result = age_data(), []
    title = "1  A window slides over the training labels and averages neighbours"
    for position in np.linspace(0, len(data.ages) - 1, slides).astype(int):
        result.append((draw_frame(data, title, position), 140))
    title = "2  One over the smoothed density is the weight of a sample"
    for share in ease(np.linspace(0, 1, rises)):
        result.append((draw_frame(data, title, len(data.ages) - 1, share), 110))
    result[-1] = (result[-1][0], 6000)
    return result
