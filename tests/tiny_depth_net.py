"""A depth network of three layers without batch normalisation, for test_contract.py.

With batch normalisation a process sees the statistics of its own share of a batch, so runs of one
and of two processes differ by design; without it they must agree.
"""

import torch
from torch import nn


class TinyHead(nn.Module):
    """A pixel's features -> its depth, with FDS as in the real head."""

    def __init__(self, module):
        super().__init__()
        self.conv2, self.FDS = nn.Conv2d(8, 1, 1), module

    def forward(self, features, depths, epoch):
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, depths, epoch)
        return self.conv2(calibrated), features


class TinyNet(nn.Module):
    """Colours around a pixel -> 8 features -> depth."""

    def __init__(self, module):
        super().__init__()
        self.E = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.R = TinyHead(module)

    @property
    def FDS(self):
        return self.R.FDS

    def forward(self, images, depths=None, epoch=None):
        return self.R(torch.tanh(self.E(images)), depths, epoch)


def make_builder(FDS, label_to_bucket):
    """Return a `build_model` whose network has the folder's FDS."""

    def build_model(args, fresh=False):
        options = {"label_to_bucket": label_to_bucket, "clip": (0.2, 5)}
        module = FDS(8, 100, 7, variant=args.fds_variant, **options) if args.fds else None
        return TinyNet(module)

    return build_model
