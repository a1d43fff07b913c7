"""Images and depth maps as the network takes them, a whole batch at a time on its device.

The released code works file by file with Pillow and SciPy: flip, rotation, crop, lighting, colour
jitter, normalisation. Here all that is one sampling of a grid, and one affine map of the colours of
each image.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample

from depth_maps import TEST_UNIT, TRAIN_UNIT, crop_of

# All constants are the released code's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
MAX_ANGLE = 5.0  # degrees, counter-clockwise if positive
LIGHT_STD = 0.1
EIGENVALUES = (0.2175, 0.0188, 0.0045)  # of ImageNet's colours, with the rows of the eigenvectors
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203),
)  # fmt: skip
JITTER = 0.4  # of brightness, contrast and saturation
LUMA = (0.299, 0.587, 0.114)


class Draws(NamedTuple):
    """What is drawn for each of n images."""

    flip: torch.Tensor  # bool [n], mirrored left to right
    angle: torch.Tensor  # float64 [n], degrees
    light: torch.Tensor  # float64 [n, 3], share of each eigenvector
    order: torch.Tensor  # long [n, 3]: 0 brightness, 1 contrast, 2 saturation, in turn
    jitter: torch.Tensor  # float64 [n, 3], how far towards black, mean grey and grey

    def take(self, rows, device):
        """Return the draws of some rows, on a device."""
        return Draws(*(draw[rows].to(device) for draw in self))


def draw_augmentation(rng, n):
    """Draw the augmentation of n images from a `numpy.random.Generator`."""
    draws = (
        rng.random(n) < 0.5,
        rng.uniform(-MAX_ANGLE, MAX_ANGLE, n),
        rng.normal(0, LIGHT_STD, (n, 3)),
        rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1),
        rng.uniform(-JITTER, JITTER, (n, 3)),
    )
    return Draws(*map(torch.from_numpy, draws))


# ---- colours -------------------------------------------------------------------------------


@functools.cache
def constant(numbers, device):
    """Return numbers as a float64 tensor; sent to a GPU once, since each sending waits for it."""
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def colour_map(n, device, draws=None, mean_colour=None):
    """Return the affine map of each image's colours, [n, 3, 3] and [n, 3], float32.

    Lighting, the three jitters in any order and the normalisation are all affine in the pixel, so
    that their product is one matrix and one shift per image.

    Args:
        n: number of images.
        device: of the result.
        draws: `Draws` of n images, or None to normalise only.
        mean_colour: mean pixel of each image [n, 3] in [0, 1]; contrast moves towards its grey.
    """
    luma = constant(LUMA, device)
    # A pixel p becomes own·p + grey·(luma·p) + shift.
    own, grey = (torch.full((n, 1), x, dtype=torch.float64, device=device) for x in (1.0, 0.0))
    shift = torch.zeros(n, 3, dtype=torch.float64, device=device)
    if draws is not None:
        components = constant(EIGENVECTORS, device) * constant(EIGENVALUES, device)
        shift = draws.light @ components.T
        mean_grey = (mean_colour.double() @ luma)[:, None]
        for turn in draws.order.T:
            amount = draws.jitter.gather(1, turn[:, None])
            contrast, saturation = (torch.where(turn == k, 1.0, 0.0)[:, None] for k in (1, 2))
            grey_of_shift = (shift @ luma)[:, None]
            target = contrast * ((own + grey) * mean_grey + grey_of_shift)
            target = target + saturation * grey_of_shift
            shift = (1 - amount) * shift + amount * target
            grey = (1 - amount) * grey + amount * saturation * (own + grey)
            own = (1 - amount) * own
    mean = constant(MEAN, device)
    std = constant(STD, device)
    matrix = own[..., None] * torch.eye(3, dtype=torch.float64, device=device)
    matrix = (matrix + grey[..., None] * luma) / std[:, None]
    return matrix.float(), ((shift - mean) / std).float()


def apply_colour_map(pixels, matrix, shift, out):
    """Write matrix · pixel / 255 + shift of pixels [n, 3, H, W] into `out`, of their shape."""
    # Sums of products, not a matrix product: on a GPU that would be rounded to TF32.
    matrix = matrix[..., None, None] / 255.0
    out = out.copy_(shift[..., None, None].expand_as(out))
    for k in range(3):
        out.addcmul_(matrix[:, :, k], pixels[:, k : k + 1])
    return out


# ---- geometry ------------------------------------------------------------------------------


def rotate_and_crop(pixels, draws, crop):
    """Mirror and rotate pixels [n, C, H, W] about their centre and cut the crop out: bilinear.

    What lies outside of the picture is 0, in the depth too, as in the released code.
    """
    grid = grid_of(pixels, draws, crop)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def grid_of(pixels, draws, crop):
    """Return where each pixel of the crop is taken from, as `grid_sample` needs it."""
    H, W = pixels.shape[2:]
    top, left, height, width = crop
    dy = torch.arange(height, dtype=torch.float64, device=pixels.device) + top - (H - 1) / 2
    dx = torch.arange(width, dtype=torch.float64, device=pixels.device) + left - (W - 1) / 2
    angle = torch.deg2rad(draws.angle)[:, None]
    cos = angle.cos()
    sin = angle.sin()
    x_unit = torch.where(draws.flip, -1.0, 1.0)[:, None] * (2 / (W - 1))
    grid = pixels.new_empty(len(pixels), 2, height, width)
    # Of each coordinate one part depends on the column alone and one on the row alone.
    of_column = torch.stack([cos * dx * x_unit, sin * dx * (2 / (H - 1))], dim=1)
    of_row = torch.stack([-sin * dy * x_unit, cos * dy * (2 / (H - 1))], dim=1)
    torch.add(of_column[:, :, None], of_row[..., None], out=grid)
    return grid.permute(0, 2, 3, 1)


@functools.cache
def bicubic_matrix(size, target, device="cpu"):
    """Return Pillow's bicubic weights [size, target] of a reduction, in its 22-bit fixed point."""
    scale = size / target
    matrix = np.zeros((size, target))
    for i in range(target):
        centre, support = (i + 0.5) * scale, 2 * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), size)
        x = np.abs(np.arange(low, high) + 0.5 - centre) / scale
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        matrix[low:high, i] = np.round(weights / weights.sum() * 2**22) / 2**22
    return torch.from_numpy(matrix).to(device)


def halve_rows(depth):
    """Halve int32 [n, L, M] along L, rounded to 8 bits: int32 [n, ceil(L / 2), M]."""
    n, L, M = depth.shape
    T = -(-L // 2)
    matrix = bicubic_matrix(L, T, depth.device)
    sums = depth.new_empty(n, T, M)
    ends = [(slice(0, T), slice(0, L))]
    if L % 2 == 0 and L >= 16:
        # But for two results at each end, all have the same eight weights, which are symmetric.
        ends = [(slice(0, 2), slice(0, 8)), (slice(T - 2, T), slice(L - 8, L))]
        taps = [depth[:, k : L - 8 + k : 2] for k in range(1, 9)]
        weights = (bicubic_matrix(L, T)[1:5, 2] * 2**22).int().tolist()
        inner = torch.add(taps[0], taps[7], out=sums[:, 2:-2]).mul_(weights[0])
        for k in (1, 2, 3):
            inner.add_(taps[k] + taps[7 - k], alpha=weights[k])
    for results, near in ends:
        product = matrix[near, results].T @ depth[:, near].double()
        sums[:, results] = (product * 2**22).int()
    return sums.add_(2**21).bitwise_right_shift_(22).clamp_(0, 255)


def halve_depth(depth):
    """Halve 8-bit depth maps [n, H, W], given as whole numbers, as Pillow does: [n, ·, ·] float64.

    Pillow goes along the rows, then along the columns, and rounds to 8 bits each time. In its
    fixed point all sums are exact, so the result is Pillow's to the bit.
    """
    layout = {"memory_format": torch.contiguous_format}
    depth = halve_rows(depth.mT.to(torch.int32, **layout))
    return halve_rows(depth.mT.contiguous()).double()


# ---- batches -------------------------------------------------------------------------------


def transform_train(both, draws=None, downscale=1, out=None):
    """Prepare a batch for training.

    Args:
        both: uint8 [n, H, W, 4], red, green, blue and the depth, of which 255 is 10 m; scaled to a
            height of 240 / downscale pixels.
        draws: `Draws` of n images on the same device, or None for no augmentation.
        downscale: the crop is 228 / downscale high.
        out: float32 [n, 3, h, w] to write the images into, or None.

    Returns:
        Images [n, 3, h, w] float32, normalised, and depths [n, 1, ceil(h/2), ceil(w/2)] float32 in
        metres.
    """
    top, left, height, width = crop = crop_of(both, downscale)
    if out is None:
        out = both.new_empty((len(both), 3, height, width), dtype=torch.float32)
    if draws is None:
        both = both[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
        depths, mean_colour = both[:, 3], None
    else:
        both = rotate_and_crop(both.float().permute(0, 3, 1, 2), draws, crop)
        depths = torch.floor(both[:, 3] + 0.5)
        mean_colour = both[:, :3].mean(dim=(2, 3)) / 255
    colours = colour_map(len(both), both.device, draws, mean_colour)
    apply_colour_map(both[:, :3], *colours, out)
    return out, (halve_depth(depths) * TRAIN_UNIT).float()[:, None]


def transform_test(images, depths, unit=TEST_UNIT, downscale=1, out=None):
    """Prepare a batch for evaluation: as `transform_train`, the depth at the image's size.

    Args:
        depths: whole numbers [n, H, W].
        unit: metres of a step: TEST_UNIT or, for held-out training images, TRAIN_UNIT.
    """
    top, left, height, width = crop_of(images, downscale)
    part = slice(top, top + height), slice(left, left + width)
    out = (
        images.new_empty((len(images), 3, height, width), dtype=torch.float32)
        if out is None
        else out
    )
    pixels = images[:, *part].permute(0, 3, 1, 2).float()
    apply_colour_map(pixels, *colour_map(len(images), images.device), out)
    return out, (depths[:, *part].double() * unit).float()[:, None]
