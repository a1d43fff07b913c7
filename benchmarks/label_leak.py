"""What FDS gives away in training, and what is missing at test: asked of runs of sts-b-dir.

    cd sts-b-dir && python ../benchmarks/label_leak.py checkpoint/RUN [checkpoint/RUN ...]

FDS calibrates a training feature by the bucket of its label; at test it does nothing. If what it
adds differs from bucket to bucket, the last layer can read the label off it; if it adds the same
everywhere, that is missing at test all the same. So the last weights of a run predict the training
set from raw features (as at test), from features calibrated by their own labels (as in training)
and from features calibrated by labels dealt out at random, without dropout and with it. In the
third, a network that reads sentences follows the true label, one that reads the calibration the
label dealt to it.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from common import load

train = load("sts-b-dir", "train")
utils = load("sts-b-dir", "utils")


@torch.no_grad()
def examine(run):
    """Return a table of a run's figures, all on the training set and the scale 0 ... 5."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    args = SimpleNamespace(**results["config"])
    file = run / "model_state.th"
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1)
    data = train.build_data(SimpleNamespace(args=args, accelerator=alone), file)
    model = train.build_model(args, data.corpus)
    utils.load_state(model, utils.load_checkpoint(file), file)
    loader = data.loaders["train"]
    own = loader.labels
    dealt = own[np.random.default_rng(0).permutation(len(own))]
    rows = []
    for dropout in (False, True):
        utils.seed_everything(0)
        model.train(dropout)
        parts = [model.pair_features(batch.ids, batch.packing) for batch in loader.evaluate()]
        raw = torch.cat(parts)
        features = {"raw": raw}
        if model.FDS is not None:
            late = 10**6  # an epoch in which FDS calibrates, whatever --start_smooth was
            features["own label"] = model.FDS.smooth(raw, own, late)
            features["dealt label"] = model.FDS.smooth(raw, dealt, late)
        for name, x in features.items():
            preds = (5 * model.linear(x)).flatten().numpy().astype(float)
            error = preds - own
            row = {"dropout": "on" if dropout else "off", "calibrated by": name}
            row |= {"MSE": np.mean(error**2), "offset": error.mean()}
            row["r(true)"] = np.corrcoef(preds, own)[0, 1]
            row["r(dealt)"] = np.corrcoef(preds, dealt)[0, 1]
            rows.append(row)
    return f"{results['method']}, seed {results['seed']}\n" + pd.DataFrame(rows).to_string(
        index=False, float_format="%.3f"
    )


def main():
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    for run in parser.parse_args().runs:
        print(examine(run))


if __name__ == "__main__":
    main()
