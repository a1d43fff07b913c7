"""ResNet that predicts an age, with FDS on its pooled features (sections 3.2 and 4 of the paper).

torchvision's ResNet with one linear output, under the parameter names of the released
checkpoints; any image size.
"""

import itertools

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

SMALL = 16  # pixels of a map
MODELS = ("resnet18", "resnet34", "resnet50")


class Conv2d(nn.Conv2d):
    """A convolution that is one product of matrices where bfloat16 meets small maps on a CPU.

    In training, that is. Over maps of 2 x 2, oneDNN's convolution takes ten times as long; the
    numbers differ by rounding.
    """

    def forward(self, x):
        """Convolve [N, C, H, W]."""
        small = x.shape[-2] * x.shape[-1] <= SMALL and x.device.type == "cpu"
        kind = [self.bias is None, self.groups, self.dilation, self.padding_mode]
        plain = kind == [True, 1, (1, 1), "zeros"]  # as all of a ResNet's are
        if not (small and plain and self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        (high, wide), (down, right), (above, left) = [self.kernel_size, self.stride, self.padding]
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, above, above))
        rows = [slice(i, i + x.shape[1] - high + 1, down) for i in range(high)]
        columns = [slice(i, i + x.shape[2] - wide + 1, right) for i in range(wide)]
        near = torch.cat([x[:, i, j] for i, j in itertools.product(rows, columns)], 3)
        return F.linear(near, self.weight.permute(0, 2, 3, 1).flatten(1)).permute(0, 3, 1, 2)


class AgeResNet(torchvision.models.ResNet):
    """ResNet with a linear regressor and, optionally, FDS before it.

    Args:
        name: 'resnet18', 'resnet34' or 'resnet50'.
        fds: an `fds.FDS` of as many features as the network has, or None.
        imagenet_weights: start from torchvision's `IMAGENET1K_V1` instead of from random.

    Convolutions start from a normal with standard deviation sqrt(2 / (k²·out_channels)), batch
    norm from 1 and 0, the regressor from PyTorch's own initialisation.

    Raises:
        ValueError: for an unknown name, FDS of another width, or weights that cannot be fetched.
    """

    def __init__(self, name="resnet50", fds=None, imagenet_weights=False):
        if name not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
        template = getattr(torchvision.models, name)
        block = torchvision.models.resnet.Bottleneck if name == "resnet50" else None
        block = block or torchvision.models.resnet.BasicBlock
        super().__init__(block, [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3])
        feature_dim = self.fc.in_features
        del self.fc
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = Conv2d
        self.linear = nn.Linear(feature_dim, 1)
        if imagenet_weights:
            try:
                state = template(weights="IMAGENET1K_V1").state_dict()
            except OSError as error:  # of which urllib's errors are a kind
                raise ValueError(
                    f"the ImageNet weights cannot be fetched ({error}): leave out "
                    "--imagenet_weights to start from random ones"
                ) from error
            self.load_state_dict(
                {k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False
            )
        if fds is not None and fds.feature_dim != feature_dim:
            raise ValueError(f"{name} has {feature_dim} features, FDS {fds.feature_dim}")
        self.FDS = fds

    def forward(self, images, labels=None, epoch=None):
        """Predict ages; in training with FDS, from calibrated features.

        Args:
            images: [N, 3, H, W], normalised.
            labels: [N, 1] in years, needed for FDS in training.
            epoch: number of the running epoch, needed for FDS in training.

        Returns:
            Predictions [N, 1] in years, and the raw features [N, D], of which FDS takes its
            statistics.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features = torch.flatten(self.avgpool(x), 1)
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features


def feature_dim_of(name):
    """Return the number of features before the regressor: 2048 for resnet50, else 512."""
    return 2048 if name == "resnet50" else 512
