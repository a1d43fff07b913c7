"""Draw the picture of the root README: skewed labels, what LDS makes of them, the error by label.

The labels are drawn from the tutorial's skewed density, the errors come from its run
(tutorial/error_by_label.csv, written by `make tutorial`).

    python teaser/make.py                     # teaser/overview.png
"""

import argparse
import importlib.util
import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import convolve1d

ROOT = Path(__file__).resolve().parent.parent
# Okabe and Ito's palette (2008), told apart with the common colour blindnesses, and a grey.
BLUE, GREEN, VERMILLION, GREY = "#0072B2", "#009E73", "#D55E00", "#BBBBBB"
LINES = {
    "VANILLA": (VERMILLION, "-", "plain training"), "SQINV+LDS": (BLUE, "-", "weights with LDS"),
    "SQINV+FDS": (GREEN, "-", "weights and FDS"), "best possible": ("black", ":", "best possible"),
}  # fmt: skip


def load_utils():
    """Load a folder's utils.py under a name of its own."""
    spec = importlib.util.spec_from_file_location("teaser_utils", ROOT / "agedb-dir/utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def skewed_counts():
    """Return the counts [100] of 1,000 labels in [0, 100], drawn as in the tutorial."""
    rng = np.random.default_rng(0)
    labels = 100 * rng.beta(1.5, 6, 1000)
    anywhere = rng.random(1000) < 0.05
    labels[anywhere] = rng.uniform(0, 100, anywhere.sum())
    return np.histogram(labels, 100, (0, 100))[0]


def draw(errors):
    """Return the figure of three panels.

    Args:
        errors: DataFrame with the columns label and, for each method, its mean absolute error.
    """
    counts = skewed_counts()
    labels = np.arange(100) + 0.5
    window = load_utils().get_lds_kernel_window("gaussian", 5, 2)
    smoothed = convolve1d(np.sqrt(counts), window, mode="constant")
    weights = 1 / np.where(counts > 0, smoothed, np.nan)
    weights *= counts.sum() / np.nansum(counts * weights)

    # White is opaque on purpose: on a dark page the picture stays as legible as on a light one.
    fig = Figure((11, 3.3), dpi=110, layout="constrained", facecolor="white")
    data, lds, error = fig.subplots(1, 3)
    data.bar(labels, counts, 1, color=GREY)
    data.set(title="1  Labels crowd on a few values", ylabel="training samples")
    data.annotate("many samples", (18, 36), (32, 38), arrowprops={"arrowstyle": "->"})
    data.annotate("few or none", (75, 3), (62, counts.max() * 0.3), arrowprops={"arrowstyle": "->"})
    scale = np.sqrt(counts).max()
    lds.bar(labels, np.sqrt(counts) / scale, 1, color=GREY, label="root of the count")
    lds.plot(labels, smoothed / smoothed.max(), color=BLUE, lw=2, label="smoothed: LDS")
    lds.set(title="2  LDS smooths them into weights", ylabel="share of the largest", ylim=(0, 1.35))
    right = lds.twinx()
    right.plot(labels, weights, ".", ms=4, color=VERMILLION, label="weight (right)")
    right.set(yscale="log", ylim=(0.3, 60))
    right.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    right.tick_params(colors=VERMILLION, which="both")
    handles = [*lds.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    lds.legend(handles=handles, frameon=False, loc="upper left", fontsize="small", ncols=2)
    for name, (colour, style, label) in LINES.items():
        error.plot(errors["label"], errors[name], style, color=colour, label=label)
    error.set(
        title="3  Rare labels are predicted better", ylabel="mean absolute error", ylim=(0, None)
    )
    error.legend(frameon=False, loc="upper left")
    for ax in (data, lds, error):
        ax.set(xlabel="label", xlim=(0, 100))
        ax.spines[["top", "right"]].set_visible(False)
    right.spines["top"].set_visible(False)
    return fig


def main(argv=None):
    """Draw the picture and write it with few colours, so that it is small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ROOT / "teaser/overview.png"
    parser.add_argument("--out", type=Path, default=default, help="file to write")
    args = parser.parse_args(argv)
    content = io.BytesIO()
    draw(pd.read_csv(ROOT / "tutorial/error_by_label.csv")).savefig(content, format="png")
    picture = Image.open(content).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
