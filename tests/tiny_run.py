"""Run a folder's train.py with a network of two layers and no batch normalisation.

    python tests/tiny_run.py FOLDER [flags of train.py]

With batch normalisation a process sees the statistics of its own share of a batch, so runs of one
and of two processes differ by design; without it they must agree.
"""

import os
import sys

import torch
from torch import nn


class TinyNet(nn.Module):
    """Average colours -> 8 features -> age, with FDS as in the real network."""

    def __init__(self, module):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden, self.linear, self.FDS = nn.Linear(48, 8), nn.Linear(8, 1), module

    def forward(self, images, labels=None, epoch=None):
        features = torch.tanh(self.hidden(self.pool(images).flatten(1)))
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features


def make_builder(FDS):
    """Return a `build_model` whose network has the folder's FDS."""

    def build_model(args, fresh=False):
        options = {"ks": 5, "sigma": 2, "variant": args.fds_variant}
        module = FDS(8, args.bucket_num, args.bucket_start, **options) if args.fds else None
        return TinyNet(module)

    return build_model


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.path.insert(0, os.getcwd())
    import train
    from fds import FDS

    train.build_model = make_builder(FDS)
    train.main(sys.argv[2:])
