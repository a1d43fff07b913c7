"""What FDS gives away in training, and what is missing at test: asked of trainings of uci-dir.

    cd uci-dir && python ../benchmarks/table_leak.py

FDS calibrates a training feature by the bucket of its label, and does nothing at test. So the last
weights of a run predict the training rows from raw features, from features calibrated by their own
labels, and by labels dealt out at random. A linear probe is to tell a bucket's label from the shift
of its mean alone (smoothed less running mean); `chance` is its R² for shifts that mean nothing.
The test rows are predicted from raw features, from features calibrated by the bucket of that first
prediction, which needs no label, and by that of the true one, which nobody has.
A run's figures are kept as a line of results/uci-dir/leak/, and it is not done twice. First:
`python download.py`, and the files that results/tables/branco.toml names.
"""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from common import ROOT, keep, load, prepare, trained

evidence = load("tools", "evidence")
train = load("uci-dir", "train")
utils = load("uci-dir", "utils")
KEPT = ROOT / "results/uci-dir/leak"
SEEDS = range(3)
LATE = 10**6  # an epoch in which FDS calibrates, whatever --start_smooth was
BRANCO = "--data_dir ./data/branco/seed_{seed} --epoch 100"  # as in results/tables/branco.toml
WEIGHTED = {
    "SQINV": f"{BRANCO} --reweight sqrt_inv",
    "SQINV+FDS": f"{BRANCO} --reweight sqrt_inv --fds",
}
PAPER = "--fds --fds_variant paper"
CASES = {
    "concrete": {
        "VANILLA": "",
        "FDS": "--fds",
        "FDS, paper's variant": PAPER,
        "FDS, paper's variant, statistics of the training pass": f"{PAPER} --fds_stats online",
    },
    "abalone": {"VANILLA": "", "FDS": "--fds"},
    "maxTorque": WEIGHTED,
    "Accel": WEIGHTED,
    "availPwr": WEIGHTED,
}
COLUMNS = {
    "train: raw, own, dealt": ("train: raw", "train: own label", "train: dealt label"),
    "r": ("r(shift, dealt)",),
    "probe, chance": ("probe R²", "chance"),
    "test: raw": ("test: raw",),
    "test: by own prediction": ("test: own prediction",),
}


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
def examine(run, flags):
    """Return the figures of a run folder, errors as MAE in the unit of the target."""
    args = train.parse_args(flags.split())
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1)
    stub = SimpleNamespace(args=args, accelerator=alone, note_data=lambda table: None)
    data = train.build_data(stub)
    file = run / "ckpt.pth.tar"
    model = train.build_model(args)
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(file), file), file)
    model.train()  # the network has no other part that differs
    row = {}
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


def table():
    """Return the Markdown table of the kept runs: the mean of each method's."""
    rows = [f"| table, method (runs) | {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---:|---:|"]
    for name, methods in CASES.items():
        runs = [*evidence.runs_of_set(KEPT, name)]
        for method in methods:
            own = pd.DataFrame([run["figures"] for run in runs if run["method"] == method])
            shown = own.mean().map(lambda x: f"{x:.2f}".replace("-", "−"))
            cells = [", ".join(shown.reindex(names).dropna()) for names in COLUMNS.values()]
            title = name.capitalize() if name.islower() else name
            rows.append(f"| {title}, {method} ({len(own)}) | {' | '.join(cells)} |")
    return "\n".join(rows)


def main():
    """Run what is missing, and print the table."""
    for name, methods in CASES.items():
        done = {(run["method"], run["seed"]) for run in evidence.runs_of_set(KEPT, name)}
        missing = [key for key in product(methods, SEEDS) if key not in done]
        for method, seed in missing:
            prepare(train, "branco.toml" if methods is WEIGHTED else "uci_dir.toml", name, seed)
            flags = f"--dataset {name} --seed {seed} {methods[method].format(seed=seed)}"
            with trained(train, flags) as (run, result):
                figures = examine(run, flags)
                keep(KEPT, name, method, flags, result, figures=figures)
    print(table())


if __name__ == "__main__":
    main()
