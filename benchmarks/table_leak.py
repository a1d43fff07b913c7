"""What FDS gives away in training, and what is missing at test: asked of runs of uci-dir.

    cd uci-dir && python ../benchmarks/table_leak.py checkpoint/RUN [checkpoint/RUN ...]

FDS calibrates a training feature by the bucket of its label, and does nothing at test. So the last
weights of a run predict the training rows from raw features, from features calibrated by their own
labels, and by labels dealt out at random. A linear probe is to tell a bucket's label from the shift
of its mean alone (smoothed less running mean); `chance` is its R² for shifts that mean nothing.
The test rows are predicted from raw features, from features calibrated by the bucket of that first
prediction, which needs no label, and by that of the true one, which nobody has.
"""

import argparse
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from common import load

train = load("uci-dir", "train")
utils = load("uci-dir", "utils")
LATE = 10**6  # an epoch in which FDS calibrates, whatever --start_smooth was


def probe(module, edges, counts):
    """Return R² of a linear probe from a bucket's shift to its label, and what chance would give.

    Args:
        module: `fds.FDS` of the run.
        edges, counts: lower edges and training rows of its buckets [B].
    """
    running = module.running_mean
    shift = (module.smooth_over_buckets(running) - running).double().numpy()
    held = counts > 0
    x, y, w = shift[held], np.asarray(edges)[held], np.sqrt(counts[held])[:, None]
    x = np.hstack([x / (x.std(axis=0) + 1e-12), np.ones((len(x), 1))])
    weights, _, rank, _ = np.linalg.lstsq(x * w, y * w[:, 0], rcond=1e-6)
    left = y - x @ weights
    total = y - np.average(y, weights=w[:, 0] ** 2)
    r2 = 1 - np.sum(w[:, 0] ** 2 * left**2) / np.sum(w[:, 0] ** 2 * total**2)
    return r2, (rank - 1) / (len(y) - 1)


@torch.no_grad()
def examine(run):
    """Return a run's figures, errors as MAE in the unit of the target."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    args = train.parse_args(shlex.split(results["command"])[2:])
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1)
    stub = SimpleNamespace(args=args, accelerator=alone, note_data=lambda table: None)
    data = train.build_data(stub)
    file = run / "ckpt.pth.tar"
    model = train.build_model(args)
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(file), file), file)
    model.train()  # the network has no other part that differs
    online = ", online" if args.fds and args.fds_stats == "online" else ""
    row = {"method": results["method"] + online, "seed": results["seed"]}
    for split in ("train", "test"):
        loader = data.loaders[split]
        labels = np.asarray(loader.labels, dtype=float)
        raw = torch.cat([model.hidden(batch.inputs) for batch in loader.evaluate()])

        def predict(features):
            return data.scale.invert(model.linear(features).flatten().double().numpy())

        plain = predict(raw)
        row[f"{split}: raw"] = np.abs(plain - labels).mean()
        if model.FDS is None:
            continue
        dealt = labels[np.random.default_rng(0).permutation(len(labels))]
        others = {"own label": labels, "dealt label" if split == "train" else "own prediction":
                  dealt if split == "train" else plain}  # fmt: skip
        for name, by in others.items():
            given = torch.as_tensor(by, dtype=torch.float32)[:, None]
            preds = predict(model.FDS.smooth(raw.clone(), given, LATE))
            row[f"{split}: {name}"] = np.abs(preds - labels).mean()
            if name == "dealt label":
                row["r(shift, dealt)"] = np.corrcoef(preds - plain, dealt)[0, 1]
    if model.FDS is not None:
        bins = data.rule.bins
        row["probe R²"], row["chance"] = probe(model.FDS, bins.edges, np.asarray(data.counts))
    return row


def main():
    """Print a table: the mean of each method's runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    rows = [examine(run) for run in parser.parse_args().runs]
    means = pd.DataFrame(rows).groupby("method", sort=False).mean().drop(columns="seed")
    means.insert(0, "runs", pd.DataFrame(rows).groupby("method").size())
    print(means.to_string(float_format="%.3f"))


if __name__ == "__main__":
    main()
