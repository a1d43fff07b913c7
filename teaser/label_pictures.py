"""Draw the label distribution of each benchmark whose counts by label are known.

The counts are those of label_counts.csv, of which label_counts.py says where they come from.
"""

import numpy as np
from matplotlib.patches import Patch

from drawing import GREY, SHOTS, new_figure, tidy

BENCHMARKS = {  # title, label, what is counted (in thousands or millions), and a step of the ticks
    "agedb_dir": ("AgeDB-DIR", "age, bins of a year", "faces", 1, 10),
    "stsb_dir": ("STS-B-DIR", "similarity of two sentences, bins of 0.1", "pairs", 1, 0.5),
    "nyud2_dir": ("NYUD2-DIR", "depth in metres, bins of 0.1 m", "million pixels", 1e6, 1),
}
NOTES = {  # how even the held-out labels are, or what needs a word
    "agedb_dir": "at most 30 of an age",
    "stsb_dir": "even in steps of 0.25",
    "nyud2_dir": "The teeth: a bin of 0.1 m holds two or three\n"
    "of the 8-bit depths, which are 0.039 m apart.",
}


def draw_labels(benchmark, table):
    """Return the figure of the training counts, the shots and, where known, the even test set.

    Args:
        benchmark: key of BENCHMARKS.
        table: its rows of label_counts.csv, as DataFrame.
    """
    title, label, unit, scale, step = BENCHMARKS[benchmark]
    low, high = table["label_low"].to_numpy(), table["label_high"].to_numpy()
    if benchmark == "agedb_dir":
        low, high = low - 0.5, high - 0.5  # the bar of age 30 stands at 30
    held_out = table["test"].notna().all()  # how many test pixels a bin has is not known
    figure = new_figure(900, 480 if held_out else 400)
    rows, heights = (3, (10, 0.9, 3.4)) if held_out else (2, (10, 0.9))
    train, strip, *others = figure.subplots(
        rows, 1, sharex=True, height_ratios=heights,
        gridspec_kw=dict(left=0.085, right=0.985, top=0.84, bottom=0.13, hspace=0.13),
    )  # fmt: skip
    counts, width = table["train"].to_numpy(float) / scale, high - low
    handles = []
    for shot, (colour, hatch) in SHOTS.items():
        chosen = (table["shot"] == shot).to_numpy()
        style = dict(color=colour, edgecolor="white", linewidth=0, align="edge")
        train.bar(low[chosen], counts[chosen], width[chosen], **style)
        # The strip shows the shot of bins whose bar is too low to be seen.
        strip.bar(low[chosen], 1, width[chosen], hatch=hatch, **style)
        share = counts[chosen].sum() / counts.sum()
        text = f"{shot}-shot: {chosen.sum()} bins, {100 * share:.1f} %"
        handles.append(Patch(facecolor=colour, edgecolor="white", hatch=hatch, label=text))
    figure.text(0.02, 0.975, f"{title}: {counts.sum():,.0f} {unit} for training", va="top", size=14)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.012, 0.93), ncols=3, frameon=False,
        fontsize=12, handleheight=1, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    strip.set(yticks=[], ylim=(0, 1))
    strip.set_ylabel("shot", rotation=0, ha="right", va="center", fontsize=12)
    strip.spines[:].set_visible(False)
    for test in others:
        draw_held_out(test, table, [*low, high[-1]], f"{unit} each, {NOTES[benchmark]}")
        test.set_ylabel(unit, fontsize=12)
        strip.tick_params(bottom=False)
    if not held_out:
        train.text(0.5, 0.75, NOTES[benchmark], transform=train.transAxes, size=12)
    train.set_ylabel(unit, fontsize=12)
    last = figure.axes[-1]
    last.set_xlabel(label, fontsize=12)
    last.set(xticks=np.arange(0, high[-1] + step / 2, step), xlim=(low[0], high[-1]))
    train.tick_params(bottom=False)
    tidy(train, *others)
    return figure


def draw_held_out(ax, table, edges, text):
    """Draw the counts of the test and of the validation set; `edges` [B + 1] are of the bins."""
    test, val = (table[split].to_numpy(float) for split in ("test", "val"))
    ax.bar(edges[:-1], test, np.diff(edges), align="edge", color=GREY)
    ax.stairs(val, edges, color="black", linewidth=1)
    ax.set_ylim(0, 1.75 * max(test.max(), val.max()))
    text = f"test (grey) and validation (line): {test.sum():,.0f} {text}"
    ax.text(0.5, 0.97, text, transform=ax.transAxes, ha="center", va="top", size=12)
