"""Image and depth pairs by row number, from a memory-mapped array decoded and checked once."""

import numpy as np
from PIL import Image

from array_cache import ArrayCache
from depth_maps import SIZE, crop_of
from image_file import open_image

CACHE_VERSION = 2  # part of the array's name: raise it when its content changes
MODES = {8: ("L",), 16: ("I;16", "I;16L", "I;16B", "I")}  # Pillow's, by bits of a depth map


def load_pair(image_file, depth_file, bits, downscale=1):
    """Decode an image and its depth map and scale both to 320 × 240 / downscale.

    Args:
        image_file, depth_file: paths.
        bits: 8 for training depths (255 is 10 m), 16 for test depths (millimetres).
        downscale: 1, 2 or 4.

    Returns:
        uint8 array [240, 320, 3 + bits / 8]: red, green, blue, then the depth's bytes, low first.

    Raises:
        ValueError: if the two do not go together or a depth map has no depth.
    """
    turned = []
    with open_image(image_file, turned) as image, open_image(depth_file, turned) as depth:
        if turned:
            raise ValueError("EXIF data turn one of the two: save it as it is to be seen")
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"the image's mode is {image.mode}: save it with 8 bits a channel")
        if depth.mode not in MODES[bits]:
            raise ValueError(
                f"the depth map's mode is {depth.mode}: {bits} bits of grey are needed; maps of "
                "another kind need --target and the flags with it"
            )
        if image.size != depth.size:
            (w, h), (depth_w, depth_h) = image.size, depth.size
            raise ValueError(f"the image is {w}×{h} and its depth map {depth_w}×{depth_h}")
        width, height = image.size
        if 3 * width != 4 * height or height < SIZE[0]:
            raise ValueError(
                f"{width}×{height} pixels: 4:3 and at least 320×240 are needed; maps of another "
                "size need --target and --map_size"
            )
        target = SIZE[1] // downscale, SIZE[0] // downscale
        image = image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
        values = np.asarray(depth).astype(np.int64)
        if not 0 <= values.min() <= values.max() < 2**bits:
            raise ValueError(f"the depth map holds values outside of {bits} bits")
        # In two steps, so that at every downscale the pixels are among those of the mask.
        depth = depth.resize(SIZE[::-1], Image.Resampling.NEAREST)
        depth = np.asarray(depth.resize(target, Image.Resampling.NEAREST)).astype(f"<u{bits // 8}")
        top, left, height, width = crop_of(depth[None], downscale)
        if not depth[top : top + height, left : left + width].any():
            raise ValueError(f"the depth map is 0 everywhere within the crop of {width}×{height}")
    depth = np.ascontiguousarray(depth)[..., None].view(np.uint8)
    return np.concatenate([np.asarray(image), depth], axis=2)


class Pairs(ArrayCache):
    """The pairs of a csv, read by row number.

    Args:
        data_dir: the data folder.
        table: DataFrame of paths within it, with the columns image and depth.
        bits: of the depth maps, 8 or 16.
        cache: folder of the memory-mapped array, or None to decode the files at each reading.
        name: beginning of the array's file name.
        downscale: 1, 2 or 4.
        options: `workers`, `quiet` and `allow_outside` of `ArrayCache`.

    Raises:
        FileNotFoundError, ValueError: as `ArrayCache`.
    """

    what = "pairs"

    def __init__(self, data_dir, table, bits, cache, name, downscale=1, **options):
        self.bits = bits
        self.downscale = downscale
        self.describe()
        columns = [table["image"], table["depth"]]
        super().__init__(data_dir, columns, cache, f"{name}_{downscale}", **options)

    def describe(self):
        """Say what a row is, for the cache."""
        self.shape = *(side // self.downscale for side in SIZE), 3 + self.bits // 8
        self.settings = f"{CACHE_VERSION} {self.downscale} {self.bits}"

    def load_row(self, image_file, depth_file):
        """Return a pair as `load_pair` does."""
        return load_pair(image_file, depth_file, self.bits, self.downscale)

    def read(self, rows):
        """Return images uint8 [n, H, W, 3] and depths [n, H, W], uint8 or int32, of these rows."""
        return self.parted(self.read_together(rows))

    def read_together(self, rows):
        """Return the bytes of these rows' images and depths in one array, which `parted` parts."""
        return super().read(rows)

    def parted(self, both):
        """Return images and depths as `read` does, on the device of their bytes."""
        if self.bits == 8:
            return both[..., :3], both[..., 3]
        return both[..., :3], both[..., 3].int() + 256 * both[..., 4].int()
