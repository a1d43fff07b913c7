"""Does FDS give the label away in training? Asked of finished runs of sts-b-dir.

    cd sts-b-dir && python ../benchmarks/label_leak.py checkpoint/RUN [checkpoint/RUN ...]

FDS calibrates a training feature by the bucket of its label; at test it does nothing. If what it
adds differs from bucket to bucket, the last layer can read the label off it. So the last weights
of a run predict the training set three times, without dropout: from raw features (as at test),
from features calibrated by their own labels (as in training), and from features calibrated by
labels dealt out at random. In the third, a network that reads sentences follows the true label and
one that reads the calibration follows the label dealt to it.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from common import load

train = load("sts-b-dir", "train")
text = load("sts-b-dir", "text")
utils = load("sts-b-dir", "utils")


@torch.no_grad()
def examine(run):
    """Return a dictionary of a run's figures, all on the training set and the scale 0 ... 5."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    args = SimpleNamespace(**results["config"])
    file = run / "model_state.th"
    corpus = text.read_corpus(args, file)
    model = train.build_model(args, corpus)
    utils.load_state(model, utils.load_checkpoint(file), file)
    alone = SimpleNamespace(device="cpu", process_index=0, num_processes=1)
    loader, model = train.build_loaders(args, alone, corpus)["train"], model.eval()
    dealt = loader.labels[
        torch.from_numpy(np.random.default_rng(0).permutation(len(loader.labels)))
    ]
    preds, start, epoch = {"raw": [], "own": [], "dealt": []}, 0, 10**6
    for batch in loader.evaluate():
        features = model.pair_features(batch.ids, batch.lengths)
        others = dealt[start : start + len(features)]
        start += len(features)
        for name, labels in (("raw", None), ("own", batch.labels), ("dealt", others)):
            x = features if labels is None else model.FDS.smooth(features, labels, epoch)
            preds[name].append(5 * model.linear(x).flatten())
    preds = {name: torch.cat(parts).numpy() for name, parts in preds.items()}
    own, dealt = loader.labels.flatten().numpy(), dealt.flatten().numpy()
    shift = model.FDS.smoothed_mean_last_epoch - model.FDS.running_mean_last_epoch
    return {
        "method": results["method"],
        "seed": results["seed"],
        "MSE raw": np.mean((preds["raw"] - own) ** 2),
        "MSE calibrated by own label": np.mean((preds["own"] - own) ** 2),
        "r(dealt label)": np.corrcoef(preds["dealt"], dealt)[0, 1],
        "r(true label)": np.corrcoef(preds["dealt"], own)[0, 1],
        # How far the shift alone moves the prediction, from bucket to bucket.
        "std of the shift's part": 5 * float((shift @ model.linear.weight.T).std()),
    }


def main():
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with FDS")
    for run in parser.parse_args().runs:
        print(", ".join(f"{k} {v:.3f}" if isinstance(v, (float, np.floating)) else f"{v}"
                        for k, v in examine(run).items()))  # fmt: skip


if __name__ == "__main__":
    main()
