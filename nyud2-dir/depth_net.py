"""Depth network: encoder, up-projection decoder, multi-scale fusion, refinement head with FDS.

The network of "Revisiting Single Image Depth Estimation" (WACV 2019), on which the paper's
appendix builds its NYUD2-DIR baseline. Parameters are named as in the released checkpoints: `E`
encoder, `D` decoder, `MFF` fusion, `R` refinement. Any image size; depth at half of it.
"""

import torch
import torchvision
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.resnet import BasicBlock, Bottleneck

# Block, blocks per layer, channels of the first layer and of the fusion's four branches. `mini` is
# ours, for tries on a CPU: a quarter of resnet18's channels and half of its blocks.
ENCODERS = {
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64, 16),
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64, 16),
    "mini": (BasicBlock, (1, 1, 1, 1), 16, 8),
}
MODELS = tuple(ENCODERS)


class Encoder(torchvision.models.ResNet):
    """torchvision's ResNet without its classifier, giving the features of its four layers."""

    def __init__(self, name, imagenet_weights=False):
        block, layers, width, _ = ENCODERS[name]
        super().__init__(block, layers)
        del self.fc
        if width != 64:
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            for number, blocks in enumerate(layers):
                layer = self._make_layer(block, width * 2**number, blocks, 1 + (number > 0))
                setattr(self, f"layer{number + 1}", layer)
        if imagenet_weights:
            try:
                state = getattr(torchvision.models, name)(weights="IMAGENET1K_V1").state_dict()
            except OSError as error:  # of which urllib's errors are a kind
                raise ValueError(
                    f"the ImageNet weights cannot be fetched ({error}): give "
                    "--no-pretrained_encoder to start from random ones"
                ) from error
            self.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})

    def forward(self, images):
        """Return the four layers' features, and the size of the first convolution's output."""
        x = self.relu(self.bn1(self.conv1(images)))
        size, features = x.shape[-2:], []
        x = self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features, size


class UpProjection(nn.Module):
    """Resize bilinearly, then add a branch of two convolutions and one of a single one."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv1_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1_2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x, size):
        """Return [N, outputs, *size] of x [N, inputs, h, w]."""
        x = interpolate(x, size=size, mode="bilinear", align_corners=False)
        branch = self.bn1_2(self.conv1_2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.bn2(self.conv2(x)))


class Decoder(nn.Module):
    """Halve the channels five times while growing to half of the image's size."""

    def __init__(self, inputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(inputs // 2)
        for number in range(1, 5):
            width = inputs // 2**number
            setattr(self, f"up{number}", UpProjection(width, width // 2))

    def forward(self, features, size):
        """Return [N, inputs / 32, *size] of the encoder's features."""
        x = torch.relu(self.bn(self.conv(features[3])))
        sizes = [features[2].shape[-2:], features[1].shape[-2:], features[0].shape[-2:], size]
        for up, target in zip((self.up1, self.up2, self.up3, self.up4), sizes):
            x = up(x, target)
        return x


class Fusion(nn.Module):
    """Bring the features of all four layers to one size and mix them."""

    def __init__(self, widths, outputs):
        super().__init__()
        for number, width in enumerate(widths, start=1):
            setattr(self, f"up{number}", UpProjection(width, outputs))
        self.conv = nn.Conv2d(4 * outputs, 4 * outputs, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(4 * outputs)

    def forward(self, features, size):
        """Return [N, 4·outputs, *size] of the encoder's features."""
        ups = (self.up1, self.up2, self.up3, self.up4)
        x = torch.cat([up(x, size) for up, x in zip(ups, features)], dim=1)
        return torch.relu(self.bn(self.conv(x)))


class Refinement(nn.Module):
    """Two convolutions, FDS on their output in training, and the regressor of each pixel."""

    def __init__(self, width, fds=None):
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 5, padding=2, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 1, 5, padding=2)
        self.FDS = fds

    def forward(self, x, depths=None, epoch=None):
        """Return the depth, and the raw features, of which FDS takes its statistics."""
        x = torch.relu(self.bn0(self.conv0(x)))
        features = calibrated = torch.relu(self.bn1(self.conv1(x)))
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, depths, epoch)
        return self.conv2(calibrated), features


class DepthNet(nn.Module):
    """Depth of each pixel from an image.

    Args:
        name: encoder: 'resnet50' (the paper's), 'resnet18' or 'mini'.
        fds: an `fds.FDS` of `feature_dim_of(name)` features, or None.
        imagenet_weights: start the encoder from torchvision's `IMAGENET1K_V1`.

    Raises:
        ValueError: for an unknown name, FDS of another width, or weights that cannot be fetched.
    """

    def __init__(self, name="resnet50", fds=None, imagenet_weights=False):
        super().__init__()
        if name not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
        if imagenet_weights and name == "mini":
            raise ValueError("mini has no ImageNet weights: use --no-pretrained_encoder")
        block, _, width, branch = ENCODERS[name]
        widths = [width * 2**number * block.expansion for number in range(4)]
        if fds is not None and fds.feature_dim != feature_dim_of(name):
            raise ValueError(f"{name} has {feature_dim_of(name)} features, FDS {fds.feature_dim}")
        self.E = Encoder(name, imagenet_weights)
        self.D = Decoder(widths[3])
        self.MFF = Fusion(widths, branch)
        self.R = Refinement(feature_dim_of(name), fds)

    @property
    def FDS(self):
        """The `fds.FDS` of the refinement head, or None."""
        return self.R.FDS

    def forward(self, images, depths=None, epoch=None):
        """Predict depths; in training with FDS, from calibrated features.

        Args:
            images: [N, 3, H, W], normalised.
            depths: [N, 1, ceil(H/2), ceil(W/2)] in metres, needed for FDS in training.
            epoch: number of the running epoch, needed for FDS in training.

        Returns:
            Predictions in metres, of the shape of `depths`, and the raw features [N, D, ·, ·], of
            which FDS takes its statistics.
        """
        features, size = self.E(images)
        x = torch.cat([self.D(features, size), self.MFF(features, size)], dim=1)
        return self.R(x, depths, epoch)


def feature_dim_of(name):
    """Return the number of features of a pixel before the regressor: 128 for resnet50."""
    block, _, width, branch = ENCODERS[name]
    return 4 * branch + width * 8 * block.expansion // 32
