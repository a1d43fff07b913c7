"""Boosted trees, what a practitioner would take for a table: the same weights, split and metrics.

scikit-learn fits them; they are then kept as tensors, so that a checkpoint holds plain values and
runs no code.
"""

import time

import numpy as np
import torch
from torch import nn

import checkpoints
import results
from metrics import MAIN_METRICS, shot_metrics
from utils import save_checkpoint

NAME = "hist_gradient_boosting"
LOSSES = {"l1": "absolute_error", "mse": "squared_error"}
LEAVES = 31  # of a tree at most; this and the next are scikit-learn's defaults
LR = 0.1
NODES = 2 * LEAVES - 1


class Trees(nn.Module):
    """Boosted regression trees as tensors: T trees of at most 61 nodes.

    Args:
        rounds: T.
    """

    def __init__(self, rounds):
        super().__init__()
        shape = (rounds, NODES)
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.long))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("leaf", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("baseline", torch.zeros(1, dtype=torch.float64))
        self.FDS = None

    def take(self, fitted, rounds):
        """Take over the first `rounds` trees of a fitted HistGradientBoostingRegressor."""
        self.baseline.fill_(float(np.ravel(fitted._baseline_prediction)[0]))
        self.value.zero_()  # trees past the best round add nothing
        for tree, (predictor,) in enumerate(fitted._predictors[:rounds]):
            nodes = predictor.nodes
            columns = {"feature": "feature_idx", "left": "left", "right": "right"}
            columns |= {"threshold": "num_threshold", "value": "value", "leaf": "is_leaf"}
            for name, field in columns.items():
                buffer = getattr(self, name)
                column = torch.from_numpy(nodes[field].astype(np.float64)).to(buffer.dtype)
                buffer[tree, : len(nodes)] = column
            self.value[tree] *= self.leaf[tree]

    def forward(self, inputs, labels=None, epoch=None):
        """Predict scaled targets [N, 1] of inputs [N, D]; the second value is None."""
        inputs, tree = inputs.double(), torch.arange(len(self.value), device=inputs.device)
        node = torch.zeros((len(inputs), len(tree)), dtype=torch.long, device=inputs.device)
        for _ in range(LEAVES):
            at = (tree, node)
            if self.leaf[at].all():
                break
            below = inputs.gather(1, self.feature[at]) <= self.threshold[at]
            child = torch.where(below, self.left[at], self.right[at])
            node = torch.where(self.leaf[at], node, child)
        return self.baseline + self.value[tree, node].sum(1, keepdim=True), None


def fit(run, model, data):
    """Fit boosted trees, keep as many as do best on the validation set, and write them.

    Args:
        run: `run_folder.Run`.
        model: the `Trees` to fill.
        data: of train.py.

    Returns:
        The progress, as train.py keeps it.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # only here: seconds to import

    args, started = run.args, time.perf_counter()
    inputs, _, targets, weights = (x.cpu().numpy() for x in data.loaders["train"].tensors)
    targets, weights = targets.ravel(), weights.ravel()
    fitted = HistGradientBoostingRegressor(
        loss=LOSSES[args.loss], learning_rate=LR, max_iter=args.epoch, max_leaf_nodes=LEAVES,
        early_stopping=False, random_state=args.seed,
    )  # fmt: skip
    fitted.fit(inputs, targets, sample_weight=weights)
    results.start_epochs(run, 0, 0)
    progress = {"epoch": args.epoch, "best_loss": float("inf"), "best_epoch": None}
    metric = "mse" if args.loss == "mse" else "mae"
    loader = data.loaders["val"]
    stages = fitted.staged_predict(loader.tensors[0].cpu().numpy())
    for epoch, (preds, on_train) in enumerate(zip(stages, fitted.staged_predict(inputs))):
        error = np.abs(on_train - targets) ** (2 if args.loss == "mse" else 1)
        row = {"epoch": epoch, "lr": LR, "train_loss": float(np.mean(error * weights))}
        row["val"] = shot_metrics(data.scale.invert(preds), loader.labels, data.labels, data.rule)
        if row["val"]["overall"][metric] < progress["best_loss"]:
            progress |= {"best_loss": row["val"]["overall"][metric], "best_epoch": epoch}
        results.write_epoch(run, model, row, MAIN_METRICS, data.labels)
    model.take(fitted, progress["best_epoch"] + 1)
    progress["wall_seconds"] = time.perf_counter() - started
    if run.is_main:
        state = {**progress, "state_dict": model.state_dict(), "config": vars(args)}
        state["training"] = run.training
        save_checkpoint(run.folder / checkpoints.BEST, state)
    return progress
