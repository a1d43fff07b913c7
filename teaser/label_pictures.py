"""Draw the label distribution of each benchmark, or its sizes where no counts are known.

The counts are those of label_counts.csv, of which label_counts.py says where they come from.
"""

import numpy as np
from matplotlib.patches import Patch

from drawing import BLUE, DARK, GREY, ORANGE, VERMILLION, new_figure, tidy
from label_counts import SPLITS

# Colour and hatching of a shot, so that neither alone tells them apart.
SHOTS = {"many": (BLUE, ""), "medium": (ORANGE, "////"), "few": (VERMILLION, "xxxx")}
BENCHMARKS = {  # title, label, what is counted (in thousands or millions), and a step of the ticks
    "agedb_dir": ("AgeDB-DIR", "age, bins of a year", "faces", 1, 10),
    "stsb_dir": ("STS-B-DIR", "similarity of two sentences, bins of 0.1", "pairs", 1, 0.5),
    "nyud2_dir": ("NYUD2-DIR", "depth in metres, bins of 0.1 m", "million pixels", 1e6, 1),
    "imdb_wiki_dir": ("IMDB-WIKI-DIR", "age in years", "faces", 1, None),
    "shhs_dir": ("SHHS-DIR", "score of general health", "nights", 1, None),
}
UNKNOWN = {
    "imdb_wiki_dir": (
        "Ages 0 to 186 in bins of one year. How many faces there are of each age is not known\n"
        "here, so no distribution is drawn. Validation and test are drawn to be even over the\n"
        "ages (at most 150 of one); training keeps the imbalance of what is left."
    ),
    "shhs_dir": (
        "Scores 0 to 100 in bins of one point. The data are given on request only and their\n"
        "counts by score are not public, so no distribution is drawn. Sizes from notes on the\n"
        "paper, not verified. Validation and test are meant to be even over the scores."
    ),
}
NOTES = {  # how even the held-out labels are
    "agedb_dir": "at most 30 of an age",
    "stsb_dir": "even in steps of 0.25",
    "nyud2_dir": "654 test images, masked to equally many pixels of each bin (number not known)",
}


def draw_labels(benchmark, table):
    """Return the figure of one benchmark.

    Args:
        benchmark: key of BENCHMARKS.
        table: its rows of label_counts.csv, as DataFrame.
    """
    return draw_sizes(benchmark, table) if len(table) == 1 else draw_counts(benchmark, table)


def draw_counts(benchmark, table):
    """Return the figure of the training counts, the shots and the even test set."""
    title, label, unit, scale, step = BENCHMARKS[benchmark]
    low, high = table["label_low"].to_numpy(), table["label_high"].to_numpy()
    if benchmark == "agedb_dir":
        low, high = low - 0.5, high - 0.5  # the bar of age 30 stands at 30
    figure = new_figure(900, 480)
    train, strip, test = figure.subplots(
        3, 1, sharex=True, height_ratios=(10, 0.9, 3.4),
        gridspec_kw=dict(left=0.085, right=0.985, top=0.84, bottom=0.11, hspace=0.13),
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
    if table["test"].isna().all():
        test.text(0.5, 0.45, NOTES[benchmark], transform=test.transAxes, ha="center", size=12)
        test.set(yticks=[])
        test.spines["left"].set_visible(False)
    else:
        values, others = (table[split].to_numpy(float) for split in ("test", "val"))
        test.bar(low, values, width, align="edge", color=GREY)
        test.stairs(others, [*low, high[-1]], color="black", linewidth=1)
        test.set_ylim(0, 1.75 * max(values.max(), others.max()))
        text = f"test (grey) and validation (line): {values.sum():,.0f} {unit} each, "
        test.text(0.5, 0.97, text + NOTES[benchmark], transform=test.transAxes, ha="center",
                  va="top", size=12)  # fmt: skip
        test.set_ylabel(unit, fontsize=12)
    train.set_ylabel(unit, fontsize=12)
    test.set_xlabel(label, fontsize=12)
    test.set(xticks=np.arange(0, high[-1] + step / 2, step))
    test.set_xlim(low[0], high[-1])
    for ax in (train, strip):
        ax.tick_params(bottom=False)
    tidy(train, test)
    return figure


def draw_sizes(benchmark, table):
    """Return the figure of the sizes alone, which says that the counts are not known."""
    title, _, unit, _, _ = BENCHMARKS[benchmark]
    sizes = table.loc[0, list(SPLITS)].to_numpy(float)
    figure = new_figure(900, 340)
    ax = figure.add_axes((0.115, 0.42, 0.86, 0.44))
    bars = ax.barh(["training", "validation", "test"], sizes, color=[BLUE, GREY, GREY])
    ax.bar_label(bars, [f"{size:,.0f} {unit}" for size in sizes], padding=6, fontsize=12)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.18 * sizes.max()), xticks=[])
    ax.tick_params(left=False, labelsize=12)
    ax.set_title(f"{title}: sizes (the counts by label are not known here)", loc="left", size=14)
    tidy(ax)
    ax.spines["bottom"].set_visible(False)
    figure.text(0.115, 0.32, UNKNOWN[benchmark], va="top", fontsize=12, color=DARK, linespacing=1.4)
    return figure
