"""The figures of any benchmark's run: errors, predictions, learning curves, density, FDS."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SHOTS = {"overall": "all", "many": "many", "medium": "medium", "few": "few"}
# Metrics whose unit follows from the target's; the others are pure numbers under their own name.
METRICS = {
    "mae": ("MAE", "{}"), "gm": ("GM", "{}"), "bmae": ("bMAE", "{}"), "rmse": ("RMSE", "{}"),
    "mse": ("MSE", "{}²"),
}  # fmt: skip
# One colour, one meaning, never alone: plain or not smoothed, smoothed or LDS, FDS, LDS and FDS.
# After Okabe and Ito (2008), which the colour-blind can read, with a contrast of 4.5 and more.
VERMILLION, BLUE, GREEN, BROWN = "#BF4A00", "#0072B2", "#00795A", "#7A4B2A"
PALE, DARK = "#D9D9D9", "#606060"  # counts; all else
SHOT_STYLES = {
    "overall": {"color": "black", "marker": "o", "ls": "-"},
    "many": {"color": "#5E4FA2", "marker": "s", "ls": "--"},
    "medium": {"color": "#857518", "marker": "^", "ls": "-."},
    "few": {"color": "#C2185B", "marker": "D", "ls": ":"},
}
FDS_STYLES = {
    "running": {"color": VERMILLION, "marker": "o", "ls": "--", "label": "before smoothing"},
    "smoothed": {"color": BLUE, "marker": ".", "ls": "-", "label": "after smoothing"},
}
BEYOND = "\nthe end buckets hold all labels beyond them"


def label_to_bucket(labels, edges):
    """Return the bucket of each label, by the buckets' lower edges; the outer ones are open."""
    # In float32, as the buckets are defined: in float64 the label 0.3 lies below float32's edge.
    buckets = np.searchsorted(np.float32(edges), np.float32(labels), side="right") - 1
    return np.clip(buckets, 0, len(edges) - 1)


def error_by_label(labels, preds, edges):
    """Compute the mean absolute error of each label bucket that has a sample.

    Args:
        labels, preds: arrays [N], in the target's unit.
        edges: lower edges of the buckets [B], ascending, in the same unit.

    Returns:
        DataFrame indexed by bucket (0 to B − 1) with the columns mae and num_samples.
    """
    errors = pd.Series(np.abs(np.asarray(preds, dtype=float) - np.asarray(labels, dtype=float)))
    by_bucket = errors.groupby(label_to_bucket(labels, edges))
    return by_bucket.agg(mae="mean", num_samples="size").rename_axis("bucket")


def cosine_similarity(vectors, anchor):
    """Return the cosine similarity [B] of each row of `vectors` [B, D] to its row `anchor`.

    It is NaN for a row that is zero or holds NaN.
    """
    norms = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore"):
        return vectors @ vectors[anchor] / (norms * norms[anchor])


def new_figure(run, rows=1, cols=1, size=(7.5, 4.8), title=""):
    """Return a titled figure and its axes [rows, cols]; without pyplot, it leaves no state."""
    fig = Figure(size, dpi=150, layout="constrained")
    heading = f"{run['benchmark']}: {run['method']}, seed {run['seed']}"
    fig.suptitle(heading.replace("$", r"\$") + title, fontsize="medium")
    axes = fig.subplots(rows, cols, squeeze=False)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def with_unit(run, metric=None):
    """Return the name of the target, or of a metric of it, with its unit."""
    name, unit = run["target"]["name"], run["target"].get("unit")
    if metric:
        name, unit_of_metric = METRICS.get(metric, (metric.replace("_", " "), ""))
        unit = unit_of_metric.format(unit) if unit else None
    text = f"{name} ({unit})" if unit else name
    return text.replace("$", r"\$")  # in matplotlib it begins a formula


def centres_and_widths(edges):
    """Return centres and widths [B] of the buckets of these lower edges [B]."""
    widths = np.diff(edges)
    widths = np.append(widths, widths[-1] if len(widths) else 1)
    return np.asarray(edges) + widths / 2, widths


def draw_background(ax, edges, counts, name):
    """Draw the buckets' counts [B] as bars behind `ax`, with an axis of their own on the right."""
    twin, (centres, widths), held = ax.twinx(), centres_and_widths(edges), np.asarray(counts) > 0
    twin.bar(centres[held], counts[held], widths[held], color=PALE, label=name)
    twin.set_ylabel(name, color=DARK)
    twin.spines["top"].set_visible(False)
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)


def finite_predictions(run, split):
    """Return a split's labels and predictions [N] without those not finite, and a title."""
    rows = run["predictions"][run["predictions"]["split"] == split]
    kept = rows[np.isfinite(rows["prediction"])]
    if kept.empty:
        raise ValueError(f"{run['folder']}/predictions.csv has no finite prediction of {split}")
    title = f"\n{split} set, {len(kept)} {run['sample']}s"
    if len(kept) < len(rows):
        title += f" ({len(rows) - len(kept)} without a finite prediction left out)"
    return kept["label"].to_numpy(), kept["prediction"].to_numpy(), title


def draw_error_by_label(run, split):
    """MAE by label over the training density; by shot if label_density.csv has a column shot."""
    density, (labels, preds, title) = run["label_density"], finite_predictions(run, split)
    errors = error_by_label(labels, preds, density["label"])
    centres, _ = centres_and_widths(density["label"])
    fig, [[ax]] = new_figure(run, title=title)
    draw_background(ax, density["label"], density["count"], f"training {run['sample']}s")
    ax.plot(centres[errors.index], errors["mae"], color=DARK, lw=0.7)
    shots = density.get("shot", pd.Series("overall", density.index))[errors.index]
    for shot, style in SHOT_STYLES.items():
        part = errors[shots == shot]
        if len(part):
            name = SHOTS[shot] if "shot" in density else "MAE of a bucket"
            ax.plot(centres[part.index], part["mae"], ms=4, label=name, **style | {"ls": ""})
    name = "MAE of all samples" if run["sample"] == "sample" else "MAE, not balanced"
    ax.axhline(np.abs(preds - labels).mean(), color="black", ls="--", label=name)
    ax.set(xlabel=with_unit(run), ylabel=with_unit(run, "mae"), ylim=(0, None))
    return fig


def draw_predictions(run, split):
    """Predictions against labels, with the running median and the band of 10 to 90 %."""
    labels, preds, title = finite_predictions(run, split)
    ends = np.array([labels.min(), labels.max()])
    band = np.full((100, 4), np.nan)
    for row, centre in zip(band, np.linspace(*ends, len(band))):
        inside = np.abs(labels - centre) <= np.ptp(ends) / 30
        if inside.sum() >= 5:  # fewer samples have no 10 % and 90 % of their own
            row[:] = labels[inside].mean(), *np.quantile(preds[inside], (0.1, 0.5, 0.9))
    fig, [[ax]] = new_figure(run, size=(6, 6.5), title=title)
    alpha = np.clip(20 / np.sqrt(len(labels)), 0.08, 0.6)
    ax.scatter(labels, preds, 9, color=DARK, alpha=alpha, lw=0, label=run["sample"])
    ax.fill_between(*band[:, [0, 1, 3]].T, color=PALE, zorder=0, label="10–90 %")
    ax.plot(band[:, 0], band[:, 2], color="black", lw=2, label="running median")
    ax.plot(ends, ends, color="black", ls="--", lw=1, label="prediction = label")
    name = with_unit(run)
    ax.set(xlabel=name, ylabel=f"predicted {name}", aspect="equal")
    return fig


def draw_learning_curves(run):
    """Training loss and, on the validation set, the main metrics by shot, over the epochs."""
    epochs = pd.json_normalize(run["epochs"]).set_index("epoch")
    epochs = epochs.apply(pd.to_numeric, errors="coerce")
    metrics = [metric for metric in run["main_metrics"] if f"val.overall.{metric}" in epochs]
    fig, [axes] = new_figure(run, 1, 1 + len(metrics), (4 + 3.5 * len(metrics), 4))
    axes[0].plot(epochs["train_loss"], ".-", color=DARK, label="training loss")
    axes[0].set_ylabel("training loss")
    for ax, metric in zip(axes[1:], metrics):
        for shot, style in SHOT_STYLES.items():
            if (curve := f"val.{shot}.{metric}") in epochs:
                ax.plot(epochs[curve], lw=1, ms=3, label=SHOTS[shot], **style)
        ax.set_ylabel(f"validation {with_unit(run, metric)}")
    for ax in axes:
        if run.get("best_epoch") is not None:
            ax.axvline(run["best_epoch"], color=DARK, ls=":", label="best epoch")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def draw_label_density(run):
    """Label density before and after LDS, each of sum 1, and the weights that follow."""
    density, name = run["label_density"], with_unit(run)
    centres, widths = centres_and_widths(density["label"])
    title = f"\n{density['count'].sum():,.0f} training {run['sample']}s"
    fig, [[above], [below]] = new_figure(run, 2, 1, (7.5, 6.5), title)
    before, after, weight = (density[x] for x in ("emp_label_dist", "eff_label_dist", "weight"))
    held = (before > 0) | (after > 0)
    root = ": root of the count" if run["config"].get("reweight") == "sqrt_inv" else ": count"
    share = before[held] / before.sum()
    above.bar(centres[held], share, widths[held], color=PALE, label="before LDS" + root)
    above.plot(centres[held], after[held] / after.sum(), color=BLUE, label="after LDS")
    below.plot(centres, weight, ".-", color=DARK, label=f"weight of a {run['sample']}")
    above.set(ylabel="share of the density", xlabel=name)
    scale = "log" if weight.max() > 20 * weight.min() else "linear"
    below.set(ylabel="weight", xlabel=name, xlim=above.get_xlim(), yscale=scale)
    below.yaxis.set_major_formatter("{x:g}")
    return fig


def draw_fds_statistics(run):
    """Mean and variance by label before and after smoothing: all features, the widest three."""
    fds = run["fds_statistics"]
    tracked, (centres, _) = fds["num_samples_tracked"] > 0, centres_and_widths(fds["label"])
    widest = np.argsort(-np.ptp(fds["running_mean"][tracked], axis=0))[:3]
    panels = {"average of all features": slice(None)}
    panels |= {f"feature {feature}": [feature] for feature in widest}
    fig, axes = new_figure(run, 2, len(panels), (1 + 3 * len(panels), 6), BEYOND)
    for row, (kind, name) in zip(axes, {"mean": "mean", "var": "variance"}.items()):
        row[0].set_ylabel(f"{name} in the bucket")
        for ax, (title, features) in zip(row, panels.items()):
            for stage, style in FDS_STYLES.items():
                values = fds[f"{stage}_{kind}"][:, features].mean(axis=1)
                # A bucket without samples has no statistic of its own: a gap in the line.
                ax.plot(centres, np.where(tracked, values, np.nan), lw=1, ms=3, **style)
            ax.set(title=title, xlabel=with_unit(run))
    return fig


def draw_fds_similarity(run, anchor):
    """Cosine similarity of the buckets' statistics to the anchor's, before and after smoothing."""
    fds = run["fds_statistics"]
    edges, tracked = fds["label"], fds["num_samples_tracked"]
    bucket = tracked.argmax() if anchor is None else label_to_bucket(anchor, edges)
    if tracked[bucket] == 0:
        held = ", ".join(f"{label:g}" for label in edges[tracked > 0])
        raise ValueError(f"--anchor {anchor:g} has no sample in {run['folder']}; try {held}")
    centres, _ = centres_and_widths(edges)
    fig, axes = new_figure(run, 2, 1, (7.5, 7), BEYOND)
    for ax, (kind, name) in zip(axes[:, 0], {"mean": "means", "var": "variances"}.items()):
        draw_background(ax, edges, tracked, "samples tracked")
        for stage, style in FDS_STYLES.items():
            values = np.where(tracked[:, None] > 0, fds[f"{stage}_{kind}"], np.nan)
            ax.plot(centres, cosine_similarity(values, bucket), lw=1, ms=3, **style)
        ax.axvline(centres[bucket], color="black", ls=":", label=f"anchor {edges[bucket]:g}")
        ax.set(xlabel=with_unit(run), ylabel=f"cosine similarity\nof {name} to the anchor's")
    return fig


def make_figures(run, split, anchor):
    """Return {name: figure} of a run, arguments as for `draw_run`."""
    density = run["label_density"]
    fds = run["fds_statistics"]
    figures = {}
    if run["predictions"] is not None:
        figures["predictions"] = draw_predictions(run, split)
        if density is not None:
            figures["error_by_label"] = draw_error_by_label(run, split)
    if run["epochs"]:
        figures["learning_curves"] = draw_learning_curves(run)
    if density is not None and density["eff_label_dist"].notna().any():
        figures["label_density"] = draw_label_density(run)
    if fds is not None and fds["num_samples_tracked"].any():
        figures["fds_statistics"] = draw_fds_statistics(run)
        figures["fds_similarity"] = draw_fds_similarity(run, anchor)
    scale = run["target"].get("scale", "linear")  # your own target's
    ends = [run["target"].get(end) for end in ("low", "high")]  # margins leave a log scale
    for name, fig in figures.items():
        both = {"yscale": scale} if name == "predictions" else {"xlim": ends}
        for ax in fig.axes if scale != "linear" and name != "learning_curves" else ():
            ax.set(xscale=scale, **both)
        legends = [zip(*ax.get_legend_handles_labels()) for ax in fig.axes]
        handles = {label: handle for legend in legends for handle, label in legend}
        options = {"loc": "outside lower center", "ncols": int(fig.get_figwidth() / 1.5)}
        fig.legend(handles.values(), handles.keys(), frameon=False, **options)
    return figures
