"""FDS without a label to give away: a row's bucket is the network's own prediction, also at test.

    cd uci-dir && python ../benchmarks/own_bucket.py

FDS calibrates a feature by the bucket of its label, which is missing at test. Here the last layer
predicts from the raw feature first; the bucket of that prediction calibrates the feature, in
training as at test, and the last layer predicts again. Statistics are still taken by the labels.
Else it is SQINV+FDS of results/tables/uci_dir.toml, whose runs it is compared with, seed by seed.
A run is kept as a line of results/uci-dir/own_bucket/, and is not done twice. First:
`python download.py`.
"""

import numpy as np
import torch
from scipy import stats

from common import ROOT, keep, load, prepare, trained

evidence, sweep = load("tools", "evidence"), load("tools", "sweep")
train = load("uci-dir", "train")
KEPT = ROOT / "results/uci-dir"
SETS = {"real_estate": "Real Estate", "concrete": "Concrete", "airfoil": "Airfoil",
        "abalone": "Abalone"}  # fmt: skip
SEEDS = range(10)
METHOD = "SQINV+FDS by own prediction"
FLAGS = "--reweight sqrt_inv --fds"


class OwnBuckets(train.MLP):
    """The perceptron, calibrating by its first prediction."""

    scale = None  # of the set's target

    def forward(self, inputs, labels=None, epoch=None):
        features = self.hidden(inputs)
        if not self.training:  # as in the last epoch: nothing before the first calibration
            epoch = int(self.FDS.epoch)
        first = self.scale.invert(self.linear(features).detach().flatten().double().numpy())
        first = torch.as_tensor(first, dtype=torch.float32)[:, None]
        return self.linear(self.FDS.smooth(features, first, epoch)), features


def train_own(name, seed):
    """Train on a set with a seed, and keep the line of the run."""
    build_data, plain = train.build_data, train.MLP

    def building(run):
        data = build_data(run)
        OwnBuckets.scale = data.scale
        return data

    flags = f"--dataset {name} --seed {seed} {FLAGS}"
    prepare(train, "uci_dir.toml", name, seed)
    train.MLP, train.build_data = OwnBuckets, building
    try:
        with trained(train, flags) as (_, result):
            test = sweep.rounded(result["metrics"]["test"])
            keep(KEPT / "own_bucket", name, METHOD, flags, result, test=test)
    finally:
        train.MLP, train.build_data = plain, build_data


def errors_of(folder, name, method):
    """Return {seed: test MAE over all and over few-shot rows} of the kept runs of a method."""
    found = {}
    for run in evidence.runs_of_set(folder, name):
        if run["method"] == method:
            test = run.get("test") or run["metrics"]["test"]
            found[run["seed"]] = test["overall"]["mae"], test["few"]["mae"]
    return found


def table():
    """Return the Markdown table of the kept runs."""
    rows = ["| table | labels | SQINV | SQINV+FDS | by own prediction | − SQINV | − SQINV+FDS |"]
    rows.append("|---|---|---:|---:|---:|---:|---:|")
    for name, title in SETS.items():
        plain, fds = (errors_of(KEPT, name, method) for method in ("SQINV", "SQINV+FDS"))
        own = errors_of(KEPT / "own_bucket", name, METHOD)
        if not own:
            continue
        plain, fds, own = (
            np.array([runs[seed] for seed in sorted(own)]) for runs in (plain, fds, own)
        )
        for column, shot in enumerate(("all", "few")):
            cells = [f"{runs[:, column].mean():.2f}" for runs in (plain, fds, own)]
            for other in (plain, fds):
                difference = (own - other)[:, column]
                low, high = stats.t.interval(
                    0.95, len(own) - 1, difference.mean(), stats.sem(difference)
                )
                cells.append(f"{difference.mean():+.2f} ({low:.2f} to {high:.2f})")
            rows.append(f"| {title} | {shot} | {' | '.join(cells)} |".replace("-", "−"))
    return "\n".join(rows)


def main():
    """Run what is missing, and print the table."""
    for name in SETS:
        done = errors_of(KEPT / "own_bucket", name, METHOD)
        for seed in SEEDS:
            if seed not in done:
                train_own(name, seed)
    print(table())


if __name__ == "__main__":
    main()
