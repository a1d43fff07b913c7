"""Images as the network takes them: normalised, cropped and mirrored as one batch.

All of it runs on the device of the images.
"""

from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms import v2

CROP_PADDING = 16  # pixels of zeros around a training image (released code)


def normalize(images, out=None):
    """Map uint8 images [n, H, W, 3] to (x / 255 − 0.5) / 0.5 as the network takes them.

    Args:
        images: the images.
        out: float32 tensor of their shape to write into, or None.

    Returns:
        float32 [n, 3, H, W] in channels-last memory.
    """
    out = torch.empty(images.shape, device=images.device) if out is None else out
    # In one pass −1 + x / 127.5, which rounds as dividing by 255 and then by 0.5 does.
    low = out.new_full(out.shape[2:], -1.0)
    torch.addcdiv(low, out.copy_(images), out.new_full((), 127.5), out=out)
    return out.permute(0, 3, 1, 2)


def augment(pieces, top, left, flip):
    """Crop each image from its zero-padded self, then mirror some of them.

    Args:
        pieces: list of the images: on the CPU each [1, H, W, C], elsewhere one [n, H, W, C].
        top, left: offsets of each crop, long [n] in 0 ... 2·CROP_PADDING.
        flip: bool [n], which images to mirror left to right.

    Returns:
        Iterable of tensors of the pieces' shapes.
    """
    # The same pixels: on the CPU a slice is a plain copy of memory and an index is not, on a
    # GPU one index is one kernel.
    if pieces[0].device.type == "cpu":
        return crop_by_slices(pieces, top, left, flip)
    return [crop_by_index(*pieces, top, left, flip)]


def crop_by_index(images, top, left, flip):
    """`augment` of one piece, in four operations on all its images."""
    n, H, W, C = images.shape
    padded = torch.nn.functional.pad(images, [0, 0] + [CROP_PADDING] * 4)
    image, row = padded.stride(0), padded.stride(1)
    # A view of every possible crop, [n, top, left, H, W·C]; indexing copies the chosen ones.
    offsets = 2 * CROP_PADDING + 1
    crops = padded.as_strided((n, offsets, offsets, H, W * C), (image, row, C, row, 1))
    crops = crops[torch.arange(n, device=images.device), top, left].view(n, H, W, C)
    return torch.where(flip[:, None, None, None], crops.flip(2), crops)


def crop_by_slices(pieces, top, left, flip):
    """`augment` by copying what each crop keeps of its image, when it is asked for."""
    H, W = pieces[0].shape[1:3]
    # Of an image smaller than the padding nothing may be left: an offset ends at its size.
    down = (top - CROP_PADDING).clamp(-H, H)
    right = (left - CROP_PADDING).clamp(-W, W)
    draws = zip(down.tolist(), right.tolist(), flip.tolist())
    for image, (down, right, mirror) in zip(pieces, draws):
        # The crop lies `down` rows below the image's top; a negative number is above it.
        up, down, before, right = max(-down, 0), max(down, 0), max(-right, 0), max(right, 0)
        crop = torch.zeros_like(image)
        crop[:, up : H - down, before : W - right] = image[:, down : H - up, right : W - before]
        yield crop.flip(2) if mirror else crop


# ---- pretraining ---------------------------------------------------------------------------


class Pairs(NamedTuple):
    """What one step of pretraining needs."""

    views: torch.Tensor  # float32 [2·n, 3, H, W], one view after the other
    labels: torch.Tensor  # float32 [n, 1]
    share: float  # as in `batches.Part`
    size: int


def pairs(loader, epoch):
    """Yield an epoch's shuffled batches with two views of each image, as `Pairs`."""
    order = np.random.default_rng([loader.sharing.seed, epoch, 2]).permutation(loader.N)

    def read(rows):
        return loader.read(rows), torch.from_numpy(loader.labels[rows]).unsqueeze(1)

    for part, (images, labels) in loader.read_ahead(loader.parts(loader.cut(order)), read):
        views = normalize(torch.cat([vary(images), vary(images)]))
        yield Pairs(views, labels, part.share, part.size)


def vary(images):
    """Crop, mirror and recolour each image at random, strongly, as a view for pretraining.

    Args:
        images: uint8 [n, H, W, 3].

    Returns:
        Tensor of their shape and type. It draws from PyTorch's global state.

    Source: Rank-N-Contrast (NeurIPS 2023), whose released code has these numbers.
    """
    recolour = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    pipeline = v2.Compose([
        v2.RandomResizedCrop(images.shape[1:3], (0.2, 1.0)), v2.RandomHorizontalFlip(), recolour,
        v2.RandomGrayscale(0.2),
    ])  # fmt: skip
    views = [pipeline(image) for image in images.permute(0, 3, 1, 2)]
    return torch.stack(views).permute(0, 2, 3, 1)
