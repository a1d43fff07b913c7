"""Perceptron that predicts from a table's inputs, with FDS on its last hidden layer.

d–20–30–10–1 with ReLU, as in UCI-DIR (SRL, CVPR 2025).
"""

import itertools

from torch import nn

HIDDEN = (20, 30, 10)


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
