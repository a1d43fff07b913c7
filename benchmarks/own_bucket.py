"""FDS without a label to give away: a row's bucket is the network's own prediction, also at test.

    cd uci-dir && python ../benchmarks/own_bucket.py [--sets concrete ...] [--seeds 10]

FDS calibrates a feature by the bucket of its label, which is missing at test. Here the last layer
predicts from the raw feature first; the bucket of that prediction calibrates the feature, in
training as at test, and the last layer predicts again. Statistics are still taken by the labels.
Else it is SQINV+FDS of results/tables/uci_dir.toml, whose runs it is compared with, seed by seed.
First: python download.py and tools/sweep.py results/tables/uci_dir.toml, which prepares the sets.
"""

import argparse
import contextlib
import io
import tempfile

import numpy as np
import torch
from scipy import stats

from common import ROOT, load

evidence = load("tools", "evidence")
train = load("uci-dir", "train")
SETS = ("real_estate", "concrete", "airfoil", "abalone")
FLAGS = "--reweight sqrt_inv --fds --track none".split()


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


def errors_of(name, seed):
    """Train on a set with a seed; return the test MAE over all and over few-shot rows."""
    build_data = train.build_data

    def building(run):
        data = build_data(run)
        OwnBuckets.scale = data.scale
        return data

    train.MLP, train.build_data = OwnBuckets, building
    unseen = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as store,
        contextlib.redirect_stdout(unseen),
        contextlib.redirect_stderr(unseen),
    ):
        flags = ["--dataset", name, "--seed", str(seed), "--store_root", store, *FLAGS]
        metrics = train.main(flags)
    train.build_data = build_data
    return metrics["overall"]["mae"], metrics["few"]["mae"]


def kept(name, method, seeds):
    """Return the same of the kept runs of a method, [seeds, 2]."""
    found = {}
    for run in evidence.runs_of_set(ROOT / "results/uci-dir", name):
        if run["method"] == method:
            test = run["metrics"]["test"]
            found[run["seed"]] = test["overall"]["mae"], test["few"]["mae"]
    return np.array([found[seed] for seed in range(seeds)])


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS, help="sets of data")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    args = parser.parse_args()
    print("| set | labels | SQINV | SQINV+FDS | by own prediction | − SQINV | − SQINV+FDS |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.sets:
        own = np.array([errors_of(name, seed) for seed in range(args.seeds)])
        plain, fds = (kept(name, method, args.seeds) for method in ("SQINV", "SQINV+FDS"))
        for column, shot in enumerate(("all", "few")):
            cells = [f"{x[:, column].mean():.2f}" for x in (plain, fds, own)]
            for other in (plain, fds):
                difference = own[:, column] - other[:, column]
                low, high = stats.t.interval(
                    0.95, len(own) - 1, difference.mean(), stats.sem(difference)
                )
                cells.append(f"{difference.mean():+.2f} ({low:+.2f} to {high:+.2f})")
            print(f"| {name} | {shot} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
