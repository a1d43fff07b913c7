"""What a run on depth maps leaves to look at: a sample of pixels, errors by depth, pictures."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from datasets import BUCKETS, label_to_bucket
from figures import DARK, PALE, SHOT_STYLES, SHOTS
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
    """

    def __init__(self, seed, split):
        self.seed, self.split = seed, split
        self.rows = []

    def add(self, preds, batch):
        """Draw from a batch: predictions and `datasets.Batch`."""
        for k, row in enumerate(batch.rows):
            depth = batch.depths[k, 0].cpu()
            usable = depth > 0 if batch.mask is None else (depth > 0) & batch.mask[k, 0].cpu()
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
        bucket = label_to_bucket(shuffled["label"].to_numpy())
        table = shuffled.groupby(bucket).head(PER_BUCKET).sort_values(["row", "y", "x"])
        table.insert(0, "path", np.asarray(paths, dtype=object)[table["row"].astype(int)])
        table = table.drop(columns="row").astype({"y": int, "x": int})
        return table.assign(split=self.split)


def error_by_depth(sums, split):
    """Return a DataFrame of errors per bucket of a `metrics.BucketSums`, those with pixels."""
    table = pd.DataFrame(sums.by_bucket().numpy(), columns=["pixels", *SUMS[1:]])
    table.insert(0, "split", split)
    table.insert(1, "label", np.arange(BUCKETS) / 10)
    table.insert(2, "shot", sums.shots)
    table["rmse"] = table["mse"] ** 0.5
    return table[table["pixels"] > 0].astype({"pixels": int})


def draw_error_by_depth(table, counts, title):
    """Draw RMSE and MAE by depth over the training pixels: a figure.

    Args:
        table: rows of `error_by_depth` of one split.
        counts: training pixels per bucket [100].
        title: above the figure.
    """
    fig = Figure((7.5, 4.8), dpi=150, layout="constrained")
    fig.suptitle(title, fontsize="medium")
    ax = fig.subplots()
    twin = ax.twinx()
    centres = np.arange(BUCKETS) / 10 + 0.05
    twin.bar(centres, counts, 0.1, color=PALE, label="training pixels")
    twin.set(ylabel="training pixels", yscale="log")
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot(table["label"] + 0.05, table["mae"], color=DARK, lw=1, label="MAE")
    for shot in [shot for shot in SHOT_STYLES if (table["shot"] == shot).any()]:
        part = table[table["shot"] == shot]
        style = SHOT_STYLES[shot] | {"ls": "", "label": f"RMSE, {SHOTS[shot]}"}
        ax.plot(part["label"] + 0.05, part["rmse"], ms=4, **style)
    ax.set(xlabel="depth (m)", ylabel="error (m)", ylim=(0, None))
    handles = [*zip(*ax.get_legend_handles_labels()), *zip(*twin.get_legend_handles_labels())]
    fig.legend(*zip(*handles), loc="outside lower center", ncols=5, frameon=False)
    return fig


def draw_examples(batch, preds, title):
    """Draw image, true depth, prediction and error in a row per example: a figure.

    Args:
        batch: `datasets.Batch` of n pairs for evaluation.
        preds: [n, 1, H, W] in metres.
        title: above the figure.
    """
    n = len(batch.images)
    fig = Figure((10, 1.6 * n + 0.6), dpi=110, layout="constrained")
    fig.suptitle(title, fontsize="medium")
    axes = fig.subplots(n, 4, squeeze=False)
    arrays = [tensor.cpu().numpy() for tensor in (batch.images, batch.depths, preds)]
    high = max(float(arrays[1].max()), 1.0)  # one scale, so that the rows compare
    for row, image, depth, pred in zip(axes, *arrays):
        error = np.where(depth > 0, pred - depth, np.nan)
        row[0].imshow(np.clip(image.transpose(1, 2, 0) * STD + MEAN, 0, 1))
        for ax, values in zip(row[1:3], (depth, pred)):
            shown = ax.imshow(values[0], cmap="viridis", vmin=0, vmax=high)
        shown_error = row[3].imshow(error[0], cmap="RdBu", vmin=-high / 3, vmax=high / 3)
    fig.colorbar(shown, ax=axes[:, 1:3], label="m", shrink=0.6)
    fig.colorbar(shown_error, ax=axes[:, 3], label="m", shrink=0.6)
    for ax, name in zip(axes[0], ("image", "depth", "prediction", "prediction − depth")):
        ax.set_title(name, fontsize="small")
    for ax in axes.flat:
        ax.set_axis_off()
    return fig


def draw_run(folder, title, errors, counts, examples):
    """Write the test set's errors by depth, and some of its images, into a folder.

    Args:
        folder: of the figures.
        title: of both.
        errors, counts: as for `draw_error_by_depth`.
        examples: batch and its predictions, as for `draw_examples`.
    """
    save(draw_error_by_depth(errors, counts, title), folder / "error_by_depth.png")
    save(draw_examples(*examples, title), folder / "examples.png")


def save(fig, path):
    """Write a figure as PNG."""
    write_atomically(path, lambda file: fig.savefig(file, format="png"))
