# %% [markdown]
# # Imbalanced regression in ten minutes: LDS and FDS on small data
#
# A target such as an age is rarely spread evenly. A network trained on it does well where samples
# crowd and badly where they are rare. Two methods act against that:
#
# - **LDS** (label distribution smoothing) weighs the samples by a *smoothed* density of the labels;
# - **FDS** (feature distribution smoothing) moves the features of neighbouring labels together
#   during training.
#
# This notebook shows both on a generated set whose truth is known and on scikit-learn's diabetes
# set, says where they do not help, and ends with your own CSV and a checklist. It runs on a CPU in
# under five minutes and needs no network. Every number was computed by the cell above it.

# %% [markdown]
# ## 1 Settings
#
# `fds.py`, `moments.py`, `lds.py` and `loss.py` are the same files in every benchmark folder; those
# of `agedb-dir` are used here. In Colab the repository is fetched first, from `REPOSITORY`.

# %%
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = ""  # public address of this repository, https://github.com/OWNER/NAME; for Colab
SEEDS = int(os.environ.get("TUTORIAL_SEEDS", "10"))  # trainings of each method
CSV = os.environ.get("TUTORIAL_CSV", "")  # a file of your own for section 8
TARGET = os.environ.get("TUTORIAL_TARGET", "")  # its column of labels; default: the last one
RESULTS = os.environ.get("TUTORIAL_RESULTS", "")  # folder for the numbers as csv, or none


def find_repository():
    """Return the repository's folder: this one or one above it, else a fresh copy."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path.cwd() / "repository"):
        if (folder / "agedb-dir" / "fds.py").is_file():
            return folder
    if not REPOSITORY:
        raise FileNotFoundError(
            "agedb-dir/fds.py is neither here nor above: start this notebook within the "
            "repository, or set REPOSITORY to its public address"
        )
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "repository"], check=True)
    return Path("repository").resolve()


sys.path.insert(0, str(find_repository() / "agedb-dir"))
started = time.process_time()

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_diabetes
from torch import nn

from fds import FDS, UniformBuckets
from lds import bucket_weights, label_density
from loss import weighted_l1_loss
from utils import seed_everything

pd.set_option("display.width", 200, "display.max_columns", None)
torch.set_num_threads(1)  # the same sums, and so the same digits, on any number of cores
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
GREY = "#BBBBBB"
STYLES = {  # colour, line and marker of a method: one meaning each in all pictures
    "VANILLA": ("#BF4A00", "-", "o"),
    "SQINV": ("#606060", "--", "s"),
    "SQINV+LDS": ("#0072B2", "-.", "^"),
    "SQINV+FDS": ("#00795A", (0, (3, 1, 1, 1)), "v"),
    "SQINV+LDS+FDS": ("#7A4B2A", (0, (5, 1)), "D"),
    "best possible": ("black", ":", "x"),
}


# %%
def read_own(file, target):
    """Return the table, column and labels of a file; a ValueError says what is wrong with them."""
    frame = pd.read_csv(file)
    column = target or frame.columns[-1]
    if column not in frame or "sample_weight" in frame:
        raise ValueError(f"need a column {column} and none called sample_weight: {list(frame)}")
    labels = pd.to_numeric(frame[column], errors="coerce")
    if not np.isfinite(labels).all():
        bad = list(frame.index[~np.isfinite(labels)][:5] + 2)
        raise ValueError(f"{column} is no number in lines {bad}: correct or remove them")
    if labels.nunique() < 2:
        raise ValueError(f"{column} has a single value: nothing to regress")
    return frame, column, labels


if CSV:  # a file that section 8 cannot use is refused here, before anything is trained
    read_own(CSV, TARGET)

# %% [markdown]
# ## 2 See the imbalance
#
# **Generated set.** A label y in [0, 100] is drawn from a skewed density; the input is a smooth
# curve of y in eight dimensions plus noise. Training keeps the skew, the test set is even. As the
# curve and the noise are known, so is the best that any model could do on the even test set: the
# median of y given x when all labels are equally likely (`best possible` below).
#
# **Diabetes set.** 442 patients, ten measurements, disease progression after a year (25 to 346).
# From each of 13 ranges of the label a third, at most 6, is held out as a near-even test set.

# %%
DIMENSIONS, NOISE = 8, 0.5
_curve = np.random.default_rng(123)
FREQUENCY, PHASE = _curve.uniform(0.2, 1.0, DIMENSIONS), _curve.uniform(0, 1, DIMENSIONS)


def curve(y):
    """Return the noise-free inputs [N, 8] of labels [N]."""
    return np.sin(2 * np.pi * (FREQUENCY * y[:, None] / 100 + PHASE))


def skewed_labels(rng, count):
    """Draw labels: 95 % from a beta density with its peak at 9, 5 % from anywhere in [0, 100]."""
    y = 100 * rng.beta(1.5, 6, count)
    anywhere = rng.random(count) < 0.05
    y[anywhere] = rng.uniform(0, 100, anywhere.sum())
    return y


def generated(seed, even_test=True, noise=NOISE):
    """Return train inputs, train labels, test inputs, test labels."""
    rng = np.random.default_rng(seed)
    y = skewed_labels(rng, 1000)
    y_test = np.linspace(0, 100, 2000) if even_test else skewed_labels(rng, 2000)
    x, x_test = (curve(v) + noise * rng.standard_normal((len(v), DIMENSIONS)) for v in (y, y_test))
    return x, y, x_test, y_test


def best_possible(x):
    """Return the median of y given x where every y in [0, 100] is equally likely."""
    grid = np.linspace(0, 100, 401)
    log_likelihood = -((x[:, None] - curve(grid)) ** 2).sum(-1) / (2 * NOISE**2)
    posterior = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True)).cumsum(1)
    return grid[(posterior >= posterior[:, -1:] / 2).argmax(1)]


def diabetes(seed):
    """Return train inputs, train labels, test inputs, test labels, split again by each seed."""
    x, y = load_diabetes(return_X_y=True)
    rng, part, test = np.random.default_rng(seed), (y - 25) // 25, []
    for number in np.unique(part):
        rows = rng.permutation(np.flatnonzero(part == number))
        test.extend(rows[: min(len(rows) // 3, 6)])
    train = np.setdiff1d(np.arange(len(y)), test)
    return x[train], y[train], x[test], y[test]


# Range of the label, number of buckets, and the counts per 1/20 of the range that part the shots.
DATA = {
    "generated": dict(draw=generated, low=0, high=100, bins=100, few=10, many=60),
    "diabetes": dict(draw=diabetes, low=25, high=350, bins=65, few=10, many=30),
}

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for ax, (name, data) in zip(axes, DATA.items()):
    _, y, _, y_test = data["draw"](0)
    edges = np.linspace(data["low"], data["high"], 21)
    ax.hist(y, edges, color=GREY, label=f"train ({len(y)})")
    ax.hist(y_test, edges, histtype="step", color="black", label=f"test ({len(y_test)})")
    ax.set(title=name, xlabel="label", ylabel="samples")
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3 LDS: from a count to a weight
#
# Neighbouring labels look alike: a patient of 201 says something about one of 202. So a bucket's
# raw count is not what a network has to learn from. LDS convolves the counts with a symmetric
# window. The weight of a sample is one over that value (`inverse`), or over the smoothed square
# root of the count (`sqrt_inv`, milder). The weights are scaled to mean 1. The bucket of a
# training sample holds at least that sample, so nothing is divided by zero.


# %%
LDS_SETTINGS = dict(lds=True, lds_kernel="gaussian", lds_ks=5, lds_sigma=2)


def sample_weights(bucket, bins, reweight="sqrt_inv", lds=None):
    """Return the weight [N] of each sample from its bucket number [N]; the mean weight is 1."""
    counts = np.bincount(bucket, minlength=bins)
    density = label_density(counts, reweight, **(lds or {}))
    return bucket_weights(density, counts)[bucket]


_, labels, _, _ = generated(0)
bucket = UniformBuckets(0, 100, 100)(labels).numpy()
for name, settings in {"without LDS": None, "with LDS": LDS_SETTINGS}.items():
    weights = sample_weights(bucket, 100, lds=settings)
    print(f"{name:11}  weights from {weights.min():.2f} to {weights.max():.2f}")


# %% [markdown]
# With LDS the largest weight grows. A rare label with neighbours weighs less than before, one among
# empty buckets more. Below, the bars are the counts of 1,000 samples, and the dotted line is
# the density that they were drawn from.

# %%
counts = np.bincount(bucket, minlength=100)
crowd = skewed_labels(np.random.default_rng(7), 1_000_000)
truth = np.histogram(crowd, 100, (0, 100))[0] * counts.sum() / len(crowd)


def draw_density(ax, kernel, ks, sigma):
    """Draw the counts, the density that made them, and what LDS makes of the counts."""
    settings = dict(lds=True, lds_kernel=kernel, lds_ks=ks, lds_sigma=sigma)
    effective = label_density(counts, "inverse", **settings)[1]
    ax.bar(np.arange(100) + 0.5, counts, 1, color=GREY, label="counts")
    ax.plot(np.arange(100) + 0.5, truth, "k:", label="true density")
    smoothed = effective * counts.sum() / effective.sum()
    ax.plot(np.arange(100) + 0.5, smoothed, color=STYLES["SQINV+LDS"][0], label="after LDS")
    error = np.abs(smoothed - truth).sum() / counts.sum()
    name = kernel if kernel == "triang" else f"{kernel}, sigma {sigma:g}"
    ax.set(title=f"{name}, ks {ks}: off by {error:.0%}", xlabel="label", ylabel="samples")


fig, axes = plt.subplots(2, 3, figsize=(11, 5.5), layout="constrained", sharex=True, sharey=True)
choices = [("gaussian", 1, 1), ("gaussian", 5, 2), ("gaussian", 9, 1)]
choices += [("gaussian", 15, 5), ("triang", 9, 1), ("laplace", 9, 2)]
for ax, choice in zip(axes.flat, choices):
    draw_density(ax, *choice)
axes[0, 0].legend(frameon=False)
plt.show()

# %% [markdown]
# "Off by" is the sum of the distances to the true density, as a share of the samples. The first
# panel, a window of one bucket, shows the raw counts. With Jupyter and `ipywidgets` the next cell
# draws the same with sliders.


# %%
def show_density(kernel="gaussian", ks=5, sigma=2.0):
    """Draw one choice: what the sliders call."""
    _, ax = plt.subplots(figsize=(7, 3))
    draw_density(ax, kernel, ks, sigma)
    ax.legend(frameon=False)
    plt.show()


try:
    import ipywidgets
except ImportError:
    ipywidgets = None
if ipywidgets and "ipykernel" in sys.modules:
    from IPython.display import display

    slider = ipywidgets.interactive(
        show_density,
        kernel=["gaussian", "triang", "laplace"],
        ks=ipywidgets.IntSlider(5, min=1, max=31, step=2, description="ks"),
        sigma=ipywidgets.FloatSlider(2, min=0.5, max=10, step=0.5, description="sigma"),
    )
    display(slider)
else:
    print("No Jupyter or no ipywidgets here: the figure above shows six choices.")

# %% [markdown]
# ## 4 FDS: a few calls around a training loop
#
# FDS keeps the mean and variance of the last layer's features per bucket, and smooths them over
# the buckets. `smooth` moves each training feature from its bucket's statistics to the smoothed
# ones. After each epoch the raw features of the training set are handed to `accumulate`. Then
# `update_last_epoch_stats` and `update_running_stats` renew the statistics. At inference nothing
# happens.
#
# FDS has two variants. `official` computes what the released code computes, and is used here.
# `paper` follows the paper's text; section 7 compares the two. The network returns raw features in
# both: FDS itself decides which statistics it takes from them.
#
# The loop below is all there is. Vanilla, re-weighting (SQINV: one over the root of the count),
# LDS, FDS and both differ in its arguments alone.


# %%
class Network(nn.Module):
    """Two hidden layers, FDS (or none) on the 32 features before the regressor."""

    def __init__(self, inputs, fds=None):
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
        )
        self.regressor = nn.Linear(32, 1)
        self.FDS = fds

    def forward(self, x, labels=None, epoch=0):
        features = self.features(x)
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.regressor(calibrated), features


FDS_SETTINGS = dict(variant="official", start_update=0, start_smooth=1)
FDS_SETTINGS |= dict(kernel="gaussian", ks=5, sigma=2)


def train(data, sets, seed, reweight=None, lds=None, fds=None):
    """Train one network and return its predictions of the test set."""
    x, y, x_test, _ = sets
    epochs, lr = 60, 5e-3
    seed_everything(seed)
    label_to_bucket = UniformBuckets(data["low"], data["high"], data["bins"])
    weights = np.ones(len(y), dtype=np.float32)
    if reweight:
        bucket = label_to_bucket(y).numpy()
        weights = sample_weights(bucket, data["bins"], reweight, lds)
    module = None
    if fds:
        module = FDS(32, data["bins"], label_to_bucket=label_to_bucket, **fds)
    mean, std = x.mean(0), x.std(0)
    inputs, test_inputs = (torch.tensor((v - mean) / std, dtype=torch.float32) for v in (x, x_test))
    labels = torch.tensor(y, dtype=torch.float32)[:, None]
    targets = (labels - labels.mean()) / labels.std()
    weights = torch.from_numpy(weights)
    network = Network(x.shape[1], module)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.8 * epochs)])
    for epoch in range(epochs):
        network.train()
        for rows in torch.randperm(len(y)).split(250):
            preds, _ = network(inputs[rows], labels[rows], epoch)
            loss = weighted_l1_loss(preds, targets[rows], weights[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if module is not None:
            with torch.no_grad():
                _, features = network(inputs, labels, epoch)
            module.accumulate(features, labels, epoch)  # or batch by batch
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(epoch=epoch)
    network.eval()
    with torch.no_grad():
        preds = network(test_inputs)[0] * labels.std() + labels.mean()
    return preds.flatten().numpy()


METHODS = {
    "VANILLA": {},
    "SQINV": dict(reweight="sqrt_inv"),
    "SQINV+LDS": dict(reweight="sqrt_inv", lds=LDS_SETTINGS),
    "SQINV+FDS": dict(reweight="sqrt_inv", fds=FDS_SETTINGS),
    "SQINV+LDS+FDS": dict(reweight="sqrt_inv", lds=LDS_SETTINGS, fds=FDS_SETTINGS),
}

# %% [markdown]
# ## 5 Train: five methods, ten seeds
#
# One seed draws the set (or its split), the first weights and the order of the batches. The errors
# are reported by *shot*. The label's range is cut into 20 parts, and a test sample is many-,
# medium- or few-shot by the number of training samples in its part. The thresholds suit the size
# of a set (the benchmarks' 100 and 20 are for 12,000 samples).


# %%
def shots(data, y, y_test):
    """Return {shot: which test samples belong to it}."""
    edges = np.linspace(data["low"], data["high"], 21)[1:-1]
    part, part_test = np.digitize(y, edges), np.digitize(y_test, edges)
    count = np.bincount(part, minlength=20)[part_test]
    many, few = count > data["many"], count < data["few"]
    return {"all": count >= 0, "many": many, "medium": ~many & ~few, "few": few}


def errors_of(data, sets, seed, methods):
    """Return {method: absolute errors [N] on the test set}."""
    return {m: np.abs(train(data, sets, seed, **methods[m]) - sets[3]) for m in methods}


def rows_of(name, shot, seed, errors):
    """Return a row of mean absolute errors by shot for each method."""
    rows = []
    for method, error in errors.items():
        # A split of a small set may leave a shot empty: NaN, left out of the mean over seeds.
        means = {s: error[chosen].mean() if chosen.any() else np.nan for s, chosen in shot.items()}
        rows.append({"data": name, "seed": seed, "method": method, **means})
    return rows


rows, by_label = [], {}
for seed in range(SEEDS):
    for name, data in DATA.items():
        sets = data["draw"](seed)
        errors = errors_of(data, sets, seed, METHODS)
        if name == "generated":
            errors["best possible"] = np.abs(best_possible(sets[2]) - sets[3])
            for method, error in errors.items():
                by_label.setdefault(method, []).append(error.reshape(50, -1).mean(1))
        rows += rows_of(name, shots(data, sets[1], sets[3]), seed, errors)
results = pd.DataFrame(rows)
print(f"{len(results)} rows after {time.process_time() - started:.0f} s of one core")

# %% [markdown]
# ## 6 Read the result by shot
#
# MAE as mean ± the half-width of a 95 % interval (Student's t over the seeds). Judge by the second
# table: the *difference* from vanilla, seed by seed. A minus is an improvement, and a star marks an
# interval that leaves out zero.


# %%
def interval(values):
    """Return mean and half-width of the 95 % interval of a column, without its NaN."""
    values = np.asarray(values)[~np.isnan(values)]
    if len(values) < 2:
        return np.mean(values), np.nan
    quantile = student_t.ppf(0.975, len(values) - 1)
    return values.mean(), quantile * values.std(ddof=1) / np.sqrt(len(values))


def tables(results, name):
    """Return MAE by method and shot, and the paired difference from the first method, as text."""
    chosen = results[results["data"] == name].set_index(["method", "seed"])
    chosen, mae, difference = chosen[["all", "many", "medium", "few"]], {}, {}
    methods = chosen.index.get_level_values("method").unique()
    for method in methods:
        own, other = chosen.loc[method], chosen.loc[methods[0]]
        mae[method] = ["{:.2f} ± {:.2f}".format(*interval(own[s])) for s in own]
        cells = [interval(own[s] - other[s]) for s in own]
        difference[method] = [
            f"{mean:+.2f} ± {half:.2f}{' *' if abs(mean) > half else '  '}" for mean, half in cells
        ]
    difference.pop(methods[0])
    return [pd.DataFrame(cells, index=chosen.columns).T for cells in (mae, difference)]


for name in DATA:
    mae, difference = tables(results, name)
    print(f"{name}, MAE, {SEEDS} seeds\n{mae}\n\n{name}, MAE minus vanilla's\n{difference}\n\n")

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for ax, name in zip(axes, DATA):
    for offset, method in enumerate(list(METHODS)[1:]):
        chosen = results[results["data"] == name].set_index(["method", "seed"])
        gain = chosen.loc[method, ["all", "many", "medium", "few"]]
        gain = gain - chosen.loc["VANILLA", ["all", "many", "medium", "few"]]
        mean, half = zip(*(interval(gain[shot]) for shot in gain))
        place = np.arange(4) + 0.15 * (offset - 1.5)
        colour, _, marker = STYLES[method]
        ax.errorbar(place, mean, half, fmt=marker, capsize=3, color=colour, label=method)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(4), ["all", "many", "medium", "few"])
    ax.set(title=name, ylabel="MAE minus vanilla's (below 0: better)")
axes[0].legend(frameon=False)
plt.show()

# %%
fig, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
centres = np.arange(50) * 2 + 1
for method, (colour, line, _) in STYLES.items():
    ax.plot(centres, np.mean(by_label[method], 0), ls=line, color=colour, label=method)
ax.set(xlabel="label", ylabel=f"MAE, mean of {SEEDS} seeds", title="generated: error by label")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# How to read it. *All* alone hides the point: look at *few* and *many* together. Re-weighting moves
# effort from the many to the few. LDS spreads that over neighbours. FDS borrows statistics of the
# features from them. At the crowded labels vanilla lies *below* the best possible line. It bets on
# them: that is right on a crowded test set, and wrong on an even one.
#
# ## 7 When it does not help
#
# Four checks that anyone can make, each with its own methods:
#
# - a test set as skewed as the training set, where every re-weighting pays for rare labels that
#   hardly count;
# - little noise: the input gives the label away, and there is nothing to borrow;
# - the window of LDS: does its shape matter?
# - the settings of FDS: the paper's variant, and `fill_empty`, which gives an empty bucket the
#   average of its neighbours.

# %%
three = {method: METHODS[method] for method in ("VANILLA", "SQINV+LDS", "SQINV+FDS")}
windows = {"SQINV+LDS": METHODS["SQINV+LDS"]}
choices = [("gaussian", 9, 1), ("gaussian", 15, 5), ("triang", 5, 1), ("laplace", 5, 2)]
for kernel, ks, sigma in choices:
    settings = dict(lds=True, lds_kernel=kernel, lds_ks=ks, lds_sigma=sigma)
    name = f"{kernel} {ks}" if kernel == "triang" else f"{kernel} {ks}, {sigma}"
    windows[f"SQINV+LDS, {name}"] = dict(reweight="sqrt_inv", lds=settings)
variants = {"SQINV+FDS": METHODS["SQINV+FDS"]}
for name, settings in {"paper": dict(variant="paper"), "fill_empty": dict(fill_empty=True)}.items():
    variants[f"SQINV+FDS, {name}"] = dict(reweight="sqrt_inv", fds=FDS_SETTINGS | settings)
CHECKS = {  # its methods, the first of which the others are compared with; what the data change
    "skewed test set": (three, dict(even_test=False)),
    "little noise": (three, dict(noise=0.05)),
    "window of LDS": (windows, {}),
    "settings of FDS": (variants, {}),
}
rows, data = [], DATA["generated"]
for seed in range(SEEDS):
    for name, (methods, options) in CHECKS.items():
        sets = generated(seed, **options)
        errors = errors_of(data, sets, seed, methods)
        rows += rows_of(name, shots(data, sets[1], sets[3]), seed, errors)
checks = pd.DataFrame(rows)
for name, (methods, _) in CHECKS.items():
    mae, difference = tables(checks, name)
    print(f"{name}, MAE\n{mae}\n\n{name}, MAE minus that of {next(iter(methods))}")
    print(f"{difference}\n\n")

# %% [markdown]
# And the diabetes set above is a fifth check: its inputs explain the label only in part. The few
# gain there, but with FDS the *all* column does not improve for sure. Whether that is worth it is a
# question about the use of the model, not about the method.

# %%
if RESULTS:
    folder = Path(RESULTS)
    results.round(4).to_csv(folder / "results.csv", index=False, lineterminator="\n")
    checks.round(4).to_csv(folder / "checks.csv", index=False, lineterminator="\n")
    lines = {method: np.mean(errors, 0) for method, errors in by_label.items()}
    lines = pd.DataFrame({"label": centres, **lines}).round(4)
    lines.to_csv(folder / "error_by_label.csv", index=False, lineterminator="\n")

# %% [markdown]
# ## 8 Your own CSV
#
# Set `CSV` (and `TARGET`, its column of labels) in section 1, or `TUTORIAL_CSV` and
# `TUTORIAL_TARGET` in the environment. Without one, a small file is made here. The weights go into
# a column `sample_weight` of a copy, for any library that takes a weight per sample.

# %%
if not CSV:
    CSV = str(Path(tempfile.mkdtemp()) / "example.csv")
    x, y, _, _ = generated(0)
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(DIMENSIONS)])
    frame.assign(price=1000 * y).to_csv(CSV, index=False)

frame, column, labels = read_own(CSV, TARGET)
bins = 50
label_to_bucket = UniformBuckets(labels.min(), labels.max(), bins)
own_bucket = label_to_bucket(torch.tensor(labels.to_numpy())).numpy()
own_counts = np.bincount(own_bucket, minlength=bins)
frame["sample_weight"] = own_weights = sample_weights(own_bucket, bins, lds=LDS_SETTINGS)
out = Path(CSV).with_name(Path(CSV).stem + "_weights.csv")
frame.to_csv(out, index=False)
print(f"{len(frame)} rows, {column} from {labels.min():g} to {labels.max():g}, {bins} buckets:")
print(f"  largest {own_counts.max()}, empty {(own_counts == 0).sum()} buckets")
print(f"  half the rows lie in {(np.sort(own_counts)[::-1].cumsum() < len(frame) / 2).sum() + 1}")
print(f"  weights from {own_weights.min():.2f} to {own_weights.max():.2f} in {out.name}")

# %% [markdown]
# ## 9 Checklist for your own data
#
# 1. **Is it imbalanced where it matters?** Draw the histogram. If the test set of your use is as
#    skewed as the training set and rare labels cost no more than others, stay with vanilla.
# 2. **Hold out an even test set**, and report by shot, with the thresholds fixed beforehand.
# 3. **Buckets**: as fine as labels that mean the same (1 year, 0.1 m), with samples in most of
#    them. Empty ones are no problem; labels outside the range go to the end buckets.
# 4. **Start with re-weighting alone** (`sqrt_inv`), then LDS, then FDS. Each has to earn its place.
# 5. **Window**: gaussian, 5 buckets, sigma 2; wider where the counts are ragged.
# 6. **Weights** around 1 on average, and no single one above 50 or so: else clip the counts, or
#    take `sqrt_inv` in place of `inverse`.
# 7. **FDS** on the features right before the regressor, with unscaled labels for the buckets;
#    statistics from the whole training set after each epoch; later `start_smooth` if the first
#    epochs jump about.
# 8. **Several seeds, differences with intervals.** Of one seed believe nothing.

# %%
print(f"{SEEDS} seeds, {time.process_time() - started:.0f} s of one core in all")
