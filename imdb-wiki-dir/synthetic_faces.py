"""SMOTER and SMOGN on faces; `resample.py` holds what does not depend on images.

Faces are near if their pixels are, at 16². A synthetic face is mixed from the two whenever a batch
wants it, so the image cache stays as it is and nothing is kept in memory.
"""

import numpy as np
import torch

from resample import draw

THUMBNAIL = 16  # side, pixels
PIECE = 256  # images read at a time for their thumbnails


def thumbnails(images, rows):
    """Return images at 16² pixels, by means over areas: float32 [n, 768], 0 ... 1.

    Args:
        images: `image_cache.Images`.
        rows: their row numbers [n].
    """
    made = []
    for start in range(0, len(rows), PIECE):
        pixels = images.read(rows[start : start + PIECE]).permute(0, 3, 1, 2).float() / 255
        small = torch.nn.functional.interpolate(pixels, (THUMBNAIL, THUMBNAIL), mode="area")
        made.append(small.permute(0, 2, 3, 1).flatten(1))
    return torch.cat(made).numpy()


class WithSynthetic:
    """Images of a meta file and, numbered behind them, synthetic ones.

    Args:
        images: `image_cache.Images`.
        rows: row number of each training image [N].
        synthetic: `resample.Synthetic` of them.
        seed: of the noise.
    """

    def __init__(self, images, rows, synthetic, seed):
        self.images = images
        self.synthetic = synthetic
        self.seed = seed
        self.seeds = rows[synthetic.seeds]
        self.partners = rows[synthetic.partners]
        H, W, C = images.shape
        pixels = 255 * synthetic.deviations.reshape(-1, THUMBNAIL, THUMBNAIL, C)
        # A pixel's noise is as large as that of the thumbnail's pixel in its place.
        places = (np.arange(side) * THUMBNAIL // side for side in (H, W))
        self.deviations = pixels[:, *np.ix_(*places)].astype(np.float32)

    def read(self, rows):
        """Return these rows: uint8 tensor [n, H, W, 3]; synthetic ones are rounded."""
        behind = rows >= len(self.images)
        numbers = rows[behind] - len(self.images)
        if not len(numbers):
            return self.images.read(rows)
        first = rows.copy()
        first[behind] = self.seeds[numbers]
        images = self.images.read(first)
        partners = self.images.read(self.partners[numbers]).numpy().astype(np.float32)
        seeds = images[behind].numpy().astype(np.float32)
        made = self.synthetic.make(numbers, seeds, partners, self.deviations, self.seed)
        images[torch.from_numpy(behind)] = torch.from_numpy(made.round().clip(0, 255)).byte()
        return images

    def one_by_one(self, rows):
        """Return these rows as uint8 tensors [1, H, W, 3]."""
        return self.read(rows).split(1)


def with_synthetic_faces(images, rows, labels, shots, args):
    """Add the synthetic faces of --resample to a training set.

    Args:
        images: `image_cache.Images`.
        rows, labels, shots: row number, age and shot of each training image [N].
        args: the flags.

    Returns:
        `WithSynthetic`, and the row numbers in it and the ages of the new training set.
    """
    synthetic, stay = draw(labels, shots, lambda chosen: thumbnails(images, rows[chosen]), args)
    behind = len(images) + np.arange(len(synthetic.labels))
    images = WithSynthetic(images, rows, synthetic, args.seed)
    ages = np.concatenate([labels[stay], synthetic.labels])
    return images, np.concatenate([rows[stay], behind]), ages
