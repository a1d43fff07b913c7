"""fds.gif: the statistics of features, smoothed over buckets, and features moved to them.

A small network is trained with FDS on the tutorial's generated set; every number shown is read
from the module's buffers or is what its `smooth` returns. `variant="paper"`, so that the smoothed
statistics shown are those of the running ones shown.
"""

import functools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from drawing import BLUE, DARK, GREY, VERMILLION, ease, image_of, load, new_figure, tidy

BUCKETS, SAMPLES, DIMENSIONS, FEATURES, NOISE, EPOCHS = 50, 3000, 8, 8, 0.5, 40
SEED = 39  # of the set: the first in which no bucket is empty or has a single sample
KS = 5  # of the window, with sigma 2: the paper's


def skewed_labels(rng, count):
    """Draw labels as the tutorial does: most near 10, 5 % from anywhere in [0, 100]."""
    labels = 100 * rng.beta(1.5, 6, count)
    anywhere = rng.random(count) < 0.05
    labels[anywhere] = rng.uniform(0, 100, anywhere.sum())
    return labels


def generated():
    """Return the tutorial's kind of inputs [N, 8] and labels [N, 1], as float32 tensors."""
    curve = np.random.default_rng(123)
    frequency, phase = curve.uniform(0.2, 1.0, DIMENSIONS), curve.uniform(0, 1, DIMENSIONS)
    rng = np.random.default_rng(SEED)
    labels = skewed_labels(rng, SAMPLES)[:, None]
    inputs = np.sin(2 * np.pi * (frequency * labels / 100 + phase))
    inputs += NOISE * rng.standard_normal(inputs.shape)
    return torch.from_numpy(inputs).float(), torch.from_numpy(labels).float()


@functools.cache
def train(epochs=EPOCHS):
    """Train the network and keep what the animation shows.

    Args:
        epochs: number of passes over the set.

    Returns:
        Namespace of fds (the module), labels [N, 1], bucket [N], epoch (the number that `smooth`
        is to be called with) and history: a list of (features [N, D] of the whole set, the buffers
        `running_mean_last_epoch` and `running_var_last_epoch` [B, D]) after each epoch but the
        first, in which there are no statistics yet.
    """
    module = load("agedb-dir", "fds")
    inputs, labels = generated()
    targets, history = labels / 50 - 1, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        extractor = nn.Sequential(
            nn.Linear(DIMENSIONS, 64), nn.ReLU(), nn.Linear(64, FEATURES), nn.Tanh()
        )
        regressor = nn.Linear(FEATURES, 1)
        fds = module.FDS(
            FEATURES, BUCKETS, kernel="gaussian", ks=KS, sigma=2, variant="paper",
            label_to_bucket=module.UniformBuckets(0, 100, BUCKETS),
        )  # fmt: skip
        optimizer = torch.optim.Adam([*extractor.parameters(), *regressor.parameters()], lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            for rows in torch.randperm(SAMPLES).split(250):
                features = fds.smooth(extractor(inputs[rows]), labels[rows], epoch)
                loss = (regressor(features) - targets[rows]).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                features = extractor(inputs)
            fds.update_last_epoch_stats(epoch)
            fds.update_running_stats(features, labels, epoch)
            if epoch:
                buffers = (fds.running_mean_last_epoch, fds.running_var_last_epoch)
                history.append((features, *(buffer.clone() for buffer in buffers)))
    bucket = fds.label_to_bucket(labels).flatten()
    return SimpleNamespace(fds=fds, labels=labels, bucket=bucket, epoch=epochs, history=history)


@functools.cache
def scene(epochs=EPOCHS):
    """Choose what to show of a training, and calibrate a rare bucket's features.

    Returns:
        Namespace of run (what `train` returned), rare (number of a bucket of 5 to 9 samples),
        chosen [N] (which samples are in it), first and second (numbers of two features), own and
        moved: the rare bucket's features [n, D] before and after `FDS.smooth`.
    """
    run = train(epochs)
    fds, features = run.fds, run.history[-1][0]
    # The feature whose mean depends most on the label, and the one that adds most to it.
    covariance = torch.cov(fds.running_mean_last_epoch.T)
    first = int(covariance.diag().argmax())
    second = int((covariance.diag() - covariance[first] ** 2 / covariance[first, first]).argmax())
    counts = torch.bincount(run.bucket, minlength=BUCKETS)
    # Of the rare buckets the one whose mean is moved farthest.
    way = fds.smoothed_mean_last_epoch - fds.running_mean_last_epoch
    way = way[:, [first, second]].norm(dim=1).where((counts >= 5) & (counts <= 9), torch.tensor(-1))
    rare = int(way.argmax())
    chosen = run.bucket == rare
    own = features[chosen]
    moved = fds.smooth(own, run.labels[chosen], run.epoch)
    return SimpleNamespace(
        run=run, counts=counts.numpy(), rare=rare, chosen=chosen, first=first, second=second,
        own=own, moved=moved,
    )  # fmt: skip


def draw_statistics(axes, shown, history, position):
    """Draw the counts, and mean and standard deviation of a feature over the buckets.

    Args:
        axes: three of them.
        shown: what `scene` returned.
        history: number of the epoch in the run's history.
        position: bucket up to which the smoothed statistics are drawn; None for no window.
    """
    fds, centre = shown.run.fds, 2 * np.arange(BUCKETS) + 1
    _, mean, variance = shown.run.history[history]
    axes[0].bar(centre, shown.counts, 1.8, color=GREY, bottom=0.5)
    axes[0].set(yscale="log", ylim=(0.5, 400), yticks=[1, 10, 100], yticklabels=[1, 10, 100])
    axes[0].set_ylabel("samples", fontsize=12)
    smoothed = (fds.smoothed_mean_last_epoch, fds.smoothed_var_last_epoch.sqrt())
    for ax, own, smooth in zip(axes[1:], (mean, variance.sqrt()), smoothed):
        ax.plot(centre, own[:, shown.first], ".", ms=6, color=VERMILLION, label="running")
        if position is not None:
            part = slice(0, position + 1)
            ax.plot(centre[part], smooth[part, shown.first], color=BLUE, lw=2, label="smoothed")
            if position < BUCKETS - 1:
                ax.axvspan(centre[position] - KS, centre[position] + KS, color=BLUE, alpha=0.15)
        ax.axvline(centre[shown.rare], color=DARK, lw=1, ls=":", zorder=0)
    axes[1].set(ylim=(-1.15, 1.15))
    axes[2].set(ylim=(0, 0.75), xlim=(0, 100))
    axes[1].set_ylabel("feature mean", fontsize=12)
    axes[2].set_ylabel("std. dev.", fontsize=12)
    axes[2].set_xlabel("label (50 buckets)", fontsize=12)
    axes[1].legend(loc="lower right", frameon=False, fontsize=11, ncols=2, handletextpad=0.4)
    axes[0].axvline(centre[shown.rare], color=DARK, lw=1, ls=":")
    axes[0].text(centre[shown.rare] + 2, 200, "a rare bucket", va="top", fontsize=11)
    tidy(*axes)


def draw_features(ax, shown, history, share):
    """Draw two features of all samples, and those of the rare bucket moved a share of their way."""
    run, pair = shown.run, [shown.first, shown.second]
    features = run.history[history][0][:, pair]
    near = ((run.bucket - shown.rare).abs() <= KS // 2) & ~shown.chosen
    ax.plot(*features.T, ".", ms=2, color=GREY, zorder=0, label="all samples")
    ax.plot(*features[near].T, "s", ms=5, mfc="none", color=DARK, label="neighbouring buckets")
    own = features[shown.chosen] if share is None else shown.own[:, pair]
    if share is not None:
        moved = shown.moved[:, pair]
        for start, end in zip(own, moved):
            ax.plot(*torch.stack([start, end]).T, color=BLUE, lw=0.8, zorder=1)
        ax.plot(*own.T, "o", ms=7, mfc="none", color=VERMILLION)
        own = own + (moved - own) * share
    done = share is not None and share == 1
    ax.plot(
        *own.T, "o", ms=7, color=BLUE if done else VERMILLION, mec="white",
        label="rare bucket, calibrated" if done else "rare bucket",
    )  # fmt: skip
    around = torch.cat([*(past for past, _, _ in run.history), shown.moved])[:, pair]
    low, high = around.amin(0) - 0.1, around.amax(0) + 0.1
    # Features have no unit: only where they lie to each other counts.
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    ax.set_xlabel("the same feature", fontsize=12)
    ax.set_ylabel("another feature", fontsize=12)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, -0.52), frameon=False, fontsize=11)
    tidy(ax)


def draw_frame(shown, title, history=-1, position=None, share=None):
    """Return one frame as an image; the arguments are those of the two functions above."""
    figure = new_figure(800, 470)
    axes = figure.subplots(
        3, 1, sharex=True, height_ratios=(1, 2, 2),
        gridspec_kw=dict(left=0.085, right=0.555, top=0.87, bottom=0.115, hspace=0.16),
    )  # fmt: skip
    draw_statistics(axes, shown, history, position)
    draw_features(figure.add_axes((0.615, 0.335, 0.37, 0.535)), shown, history, share)
    figure.text(0.02, 0.97, title, va="top", fontsize=14)
    return image_of(figure)


def frames(epochs=13, slides=25, moves=14):
    """Return the animation as a list of (image, milliseconds).

    Args:
        epochs, slides, moves: frames of its three parts: training, smoothing, calibrating.
    """
    shown = scene()
    count = shown.counts[shown.rare]
    low = 2 * shown.rare
    result = []
    title = "1  Training: FDS tracks each bucket's statistics"
    for number in np.linspace(0, len(shown.run.history) - 1, epochs).astype(int):
        result.append((draw_frame(shown, title, number), 120))
    result[-1] = (result[-1][0], 1200)
    title = "2  A window over the buckets smooths mean and variance"
    for position in np.linspace(0, BUCKETS - 1, slides).astype(int):
        result.append((draw_frame(shown, title, position=position), 110))
    result[-1] = (result[-1][0], 1200)
    title = f"3  The {count} samples with labels {low} to {low + 2} move to the smoothed statistics"
    for share in ease(np.linspace(0, 1, moves)):
        image = draw_frame(shown, title, position=BUCKETS - 1, share=share)
        result.append((image, 1000 if share == 0 else 90))
    result[-1] = (result[-1][0], 5000)
    return result
