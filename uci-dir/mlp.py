"""The networks of tables: a small perceptron with FDS before its last layer, and boosted trees.

The perceptron is UCI-DIR's (SRL, CVPR 2025): d–20–30–10–1 with ReLU. Trees are fitted by
scikit-learn and then kept as tensors, so that a checkpoint holds plain values and runs no code.
"""

import itertools

import numpy as np
import torch
from torch import nn

HIDDEN = (20, 30, 10)
LEAVES = 31  # of a tree at most, scikit-learn's default
NODES = 2 * LEAVES - 1
MODELS = ("mlp", "hist_gradient_boosting")


class MLP(nn.Module):
    """Perceptron with ReLU and, optionally, FDS on its last hidden layer.

    Args:
        input_dim: D, number of inputs.
        hidden: widths of the hidden layers.
        fds: an `fds.FDS` of as many features as the last of them, or None.

    Raises:
        ValueError: for FDS of another width.
    """

    def __init__(self, input_dim, hidden=HIDDEN, fds=None):
        super().__init__()
        widths = [input_dim, *hidden]
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], 1)
        if fds is not None and fds.feature_dim != widths[-1]:
            raise ValueError(f"the last hidden layer has {widths[-1]} features, FDS another number")
        self.FDS = fds

    def forward(self, inputs, labels=None, epoch=None):
        """Predict scaled targets; in training with FDS, from calibrated features.

        Args:
            inputs: [N, D], standardised.
            labels: [N, 1] in the unit of the target, needed for FDS in training.
            epoch: number of the running epoch, needed for FDS in training.

        Returns:
            Predictions [N, 1], and the raw features of the last hidden layer.
        """
        features = self.hidden(inputs)
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features


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
