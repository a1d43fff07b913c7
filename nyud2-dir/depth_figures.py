"""What a run on depth maps leaves to look at: a sample of pixels, errors by depth, pictures."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from depth_maps import DEPTH, buckets_of, edges_of, known
from figures import DARK, PALE, SHOT_STYLES, SHOTS, centres_and_widths
from files import write_atomically
from metrics import SUMS
from transforms import MEAN, STD

PER_IMAGE = PER_BUCKET = 200  # pixels of a sample at most
EXAMPLES = 6  # test images in figures/examples.png


class PixelSample:
    """A seeded sample of a split's pixels with their predictions, for `predictions.csv`.

    It takes up to 200 pixels of each image and, of those, up to 200 of each bucket, so that rare
    depths are in it. What is drawn depends only on the seed and the image's number.

    Args:
        seed: of the draws.
        split: 'val' or 'test'.
        target: `target.Target`.
    """

    def __init__(self, seed, split, target=DEPTH):
        self.seed, self.split, self.target = seed, split, target
        self.rows = []

    def add(self, preds, batch):
        """Draw from a batch: predictions and `datasets.Batch`."""
        for k, row in enumerate(batch.rows):
            depth = batch.depths[k, 0].cpu()
            mask = None if batch.mask is None else batch.mask[k, 0].cpu()
            usable = known(depth, mask, self.target)
            places = np.flatnonzero(usable.numpy())
            rng = np.random.default_rng([self.seed, self.split == "test", row])
            places = rng.permutation(places)[:PER_IMAGE]
            y, x = np.divmod(places, depth.shape[1])
            pred = preds[k, 0].cpu()
            table = [np.full(len(places), row), y, x, depth[y, x].numpy(), pred[y, x].numpy()]
            self.rows.append(np.stack([column.astype(np.float64) for column in table], axis=1))

    def table(self, rows, paths):
        """Return the sample as a DataFrame.

        Args:
            rows: list of the `rows` of all processes, in the order of their ranks.
            paths: path of each image of the split [N].
        """
        names = ["row", "y", "x", "label", "prediction"]
        table = pd.DataFrame(np.concatenate([np.empty((0, 5)), *rows]), columns=names)
        shuffled = table.sample(frac=1, random_state=self.seed)
        bucket = buckets_of(self.target)(shuffled["label"].to_numpy())
        table = shuffled.groupby(bucket).head(PER_BUCKET).sort_values(["row", "y", "x"])
        table.insert(0, "path", np.asarray(paths, dtype=object)[table["row"].astype(int)])
        table = table.drop(columns="row").astype({"y": int, "x": int})
        return table.assign(split=self.split)


def errors_name(target):
    """Return the name of the files of errors per bucket, without suffix."""
    return "error_by_depth" if target.name == DEPTH.name else "error_by_label"


def error_by_depth(sums, split):
    """Return a DataFrame of errors per bucket of a `metrics.BucketSums`, those with pixels."""
    table = pd.DataFrame(sums.by_bucket().numpy(), columns=["pixels", *SUMS[1:]])
    table.insert(0, "split", split)
    table.insert(1, "label", edges_of(sums.target))
    table.insert(2, "shot", sums.shots)
    table["rmse"] = table["mse"] ** 0.5
    table = table.drop(columns=list(sums.left_out))
    return table[table["pixels"] > 0].astype({"pixels": int})


def draw_error_by_depth(table, counts, title, target=DEPTH):
    """Draw RMSE and MAE by depth over the training pixels: a figure.

    Args:
        table: rows of `error_by_depth` of one split.
        counts: training pixels per bucket [B].
        title: above the figure.
        target: `target.Target`.
    """
    fig = Figure((7.5, 4.8), dpi=150, layout="constrained")
    fig.suptitle(title, fontsize="medium")
    ax = fig.subplots()
    twin = ax.twinx()
    edges = edges_of(target)
    centres, widths = centres_and_widths(edges)
    twin.bar(centres, counts, widths, color=PALE, label="training pixels")
    twin.set(ylabel="training pixels", yscale="log")
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)
    centre = pd.Series(centres)  # by bucket, as the rows of the table are
    ax.plot(centre[table.index], table["mae"], color=DARK, lw=1, label="MAE")
    for shot in [shot for shot in SHOT_STYLES if (table["shot"] == shot).any()]:
        part = table[table["shot"] == shot]
        style = SHOT_STYLES[shot] | {"ls": "", "label": f"RMSE, {SHOTS[shot]}"}
        ax.plot(centre[part.index], part["rmse"], ms=4, **style)
    unit = f" ({target.unit})" if target.unit else ""
    ax.set(xlabel=target.words, ylabel=f"error{unit}", ylim=(0, None), xscale=target.scale)
    if target.scale != "linear":
        ax.set_xlim(target.low, target.high)  # margins leave a log scale
    handles = [*zip(*ax.get_legend_handles_labels()), *zip(*twin.get_legend_handles_labels())]
    fig.legend(*zip(*handles), loc="outside lower center", ncols=5, frameon=False)
    return fig


def draw_examples(batch, preds, title, target=DEPTH):
    """Draw image, true depth, prediction and error in a row per example: a figure.

    Args:
        batch: `datasets.Batch` of n pairs for evaluation.
        preds: [n, 1, H, W] in the target's unit.
        title: above the figure.
        target: `target.Target`.
    """
    n = len(batch.images)
    fig = Figure((10, 1.6 * n + 0.6), dpi=110, layout="constrained")
    fig.suptitle(title, fontsize="medium")
    axes = fig.subplots(n, 4, squeeze=False)
    arrays = [tensor.cpu().numpy() for tensor in (batch.images, batch.depths, preds)]
    # One scale, so that the rows compare.
    low = float(arrays[1].min())
    low = low if target.scale == "log" else min(0.0, low)
    high = max(float(arrays[1].max()), low + 1e-6 if target.own else 1.0)
    norm = norm_of(target.scale, low, high)
    span = (high - low) / 3
    mask = known(batch.depths, batch.mask if target.own else None, target).cpu().numpy()
    errors = np.where(mask, arrays[2] - arrays[1], np.nan)
    for row, image, depth, pred, error, seen in zip(axes, *arrays, errors, mask):
        depth = np.where(seen, depth, np.nan) if target.own else depth
        row[0].imshow(np.clip(image.transpose(1, 2, 0) * STD + MEAN, 0, 1))
        for ax, values in zip(row[1:3], (depth, pred)):
            # A logarithm has no colour for what lies below.
            shown = ax.imshow(np.maximum(values[0], low), cmap="viridis", norm=norm)
        shown_error = row[3].imshow(error[0], cmap="RdBu", vmin=-span, vmax=span)
    options = {"label": target.unit, "shrink": 0.6}
    fig.colorbar(shown, ax=axes[:, 1:3], extend=arrows(arrays[2], low, high), **options)
    fig.colorbar(shown_error, ax=axes[:, 3], extend=arrows(errors, -span, span), **options)
    names = "image", target.name, "prediction", f"prediction − {target.name}"
    for ax, name in zip(axes[0], names):
        ax.set_title(name, fontsize="small")
    for ax in axes.flat:
        ax.set_axis_off()
    return fig


def norm_of(scale, low, high):
    """Return matplotlib's norm of colours that follow a target's scale."""
    if scale == "log":
        return LogNorm(low, high)
    return SymLogNorm(1, vmin=low, vmax=high) if scale == "symlog" else Normalize(low, high)


def arrows(values, low, high):
    """Return which ends of a colour bar get an arrow, as values lie beyond them."""
    below = np.nanmin(values) < low
    above = np.nanmax(values) > high
    return ("both" if above else "min") if below else ("max" if above else "neither")


def draw_run(folder, title, errors, counts, examples, target=DEPTH):
    """Write the test set's errors by depth, and some of its images, into a folder.

    Args:
        folder: of the figures.
        title: of both.
        errors, counts: as for `draw_error_by_depth`.
        examples: batch and its predictions, as for `draw_examples`.
        target: `target.Target`.
    """
    counted = f"{title}, {errors['pixels'].sum():,} pixels"
    figure = draw_error_by_depth(errors, counts, counted, target)
    save(figure, folder / f"{errors_name(target)}.png")
    save(draw_examples(*examples, title, target), folder / "examples.png")


def save(fig, path):
    """Write a figure as PNG."""
    write_atomically(path, lambda file: fig.savefig(file, format="png"))
