"""Maps of your own target: files of any kind and size, their pairs and batches.

Labels stay as they are, float32, and NaN where a pixel has none: a zero is a label.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, grid_sample

from datasets import TRAIN_COUNTS, TRAIN_PAIRS, Batch, Loader, count_pixels
from depth_cache import Pairs
from depth_maps import DEPTH, SIZE
from image_file import open_image
from outside import shown
from pair_lists import TEST, TRAIN, read_pairs
from transforms import Draws, apply_colour_map, colour_map, grid_of

ARRAYS = (".npy", ".npz")
MODES = ("L", "I;16", "I;16L", "I;16B", "I", "F")  # Pillow's, of one number a pixel
PIXELS = 10**8  # of a map, at most
LEAST_TEST = 100  # maps, and buckets below: with fewer, metrics by shot are mostly noise
LEAST_BUCKETS = 20
MORE_MAPS = "only more test maps help"
MORE_BUCKETS = "more test maps help, or a smaller --bin_width, which makes more buckets"
READERS = 32  # threads that decode, at most one per core


def read_map(file, no_label=None):
    """Read a map: 8- or 16-bit PNG, TIFF of whole numbers or floats, `.npy`, `.npz` of one array.

    Args:
        file: path.
        no_label: value of pixels without a label, or None.

    Returns:
        float32 [H, W], NaN where there is no label; infinite values are none either.

    Raises:
        ValueError: if it is no such map.
    """
    file = Path(file)
    if file.suffix.lower() in ARRAYS:
        values = read_array(file)
    else:
        with open_image(file) as image:
            if image.mode not in MODES:
                raise ValueError(f"the map's mode is {image.mode}: one number a pixel is needed")
            values = np.asarray(image)
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or not 0 < values.size <= PIXELS or values.dtype.kind not in "buif":
        raise ValueError(f"the map is {values.dtype} {list(values.shape)}: numbers [H, W] needed")
    found = np.array(values, dtype=np.float32)
    found[~np.isfinite(found)] = np.nan
    if no_label is not None:
        found[found == np.float32(no_label)] = np.nan
    return found


def read_array(file):
    """Return the array of a `.npy` file, mapped, or of a `.npz` file; a ValueError if damaged."""
    try:
        values = np.load(file, allow_pickle=False, mmap_mode="r")
        if isinstance(values, np.ndarray):
            return values
        with values as archive:
            if len(archive.files) != 1:
                raise ValueError(f"the map holds {len(archive.files)} arrays: one is needed")
            size = sum(member.file_size for member in archive.zip.infolist())
            if size > 16 * PIXELS:  # packed, it may lie in a small file
                raise ValueError(f"the map unpacks to {size:,} bytes")
            return archive[archive.files[0]]
    except Exception as error:  # NumPy and zipfile have a dozen kinds
        raise ValueError(shown(error)) from error


class Maps(Pairs):
    """Pairs of images and maps, as `depth_cache.Pairs`; `parted` gives maps as float32.

    Args:
        data_dir, table, cache, name, options: as for `depth_cache.Pairs`.
        args: the flags, for the target, `map_size` and `no_label`.
    """

    def __init__(self, data_dir, table, args, cache, name, **options):
        self.target = DEPTH.of(args)
        self.no_label = args.no_label
        self.size = tuple(args.map_size or SIZE)
        super().__init__(data_dir, table, 32, cache, name, **options)

    def describe(self):
        """Say what a row is, for the cache."""
        ends = self.target.low, self.target.high, self.no_label
        self.shape = *self.size, 7
        self.settings = f"maps 1 {self.size} {ends}"

    def load_row(self, image_file, map_file):
        """Return red, green, blue and the map's four bytes: uint8 [H, W, 7]."""
        turned = []
        with open_image(image_file, turned) as image:
            if turned:
                raise ValueError("EXIF data turn the image: save it as it is to be seen")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"the image's mode is {image.mode}: save it with 8 bits a channel")
            labels = read_map(map_file, self.no_label)
            (width, height), (h, w) = image.size, labels.shape
            if width * h != height * w:
                raise ValueError(f"the image is {width}×{height}, its map {w}×{h}: another shape")
            image = image.convert("RGB").resize(self.size[::-1], Image.Resampling.BILINEAR)
        known = np.isfinite(labels)
        wrong = known & self.target.outside(labels)
        if wrong.any():
            raise ValueError(
                f"the map holds {labels[wrong][0]:g}, allowed is {self.target.range}; --no_label "
                "V says which value stands for no label"
            )
        labels = np.asarray(
            Image.fromarray(labels).resize(self.size[::-1], Image.Resampling.NEAREST)
        )
        if not np.isfinite(labels).any():
            raise ValueError("the map has no label")
        labels = np.ascontiguousarray(labels, dtype="<f4")[..., None].view(np.uint8)
        return np.concatenate([np.asarray(image), labels], axis=2)

    def parted(self, both):
        """Return images uint8 [n, H, W, 3] and maps float32 [n, H, W], on their device."""
        return both[..., :3], both[..., 3:].contiguous().view(torch.float32)[..., 0]

    def count(self, rows):
        """Return the pixels per bucket of some rows, long [B]."""
        counts = np.zeros(len(self.target.buckets), dtype=np.int64)
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            labels = self.read(part)[1].numpy()
            found = self.target.buckets(labels[np.isfinite(labels)])
            counts += np.bincount(found, minlength=len(counts))
        return counts


class MapLoader(Loader):
    """Batches of one split of `Maps`: `mask` says which pixels have a label, the others hold low.

    In training labels have half of the images' size: the mean of the known ones of four.
    """

    def _train_batches(self, order, draws=None):
        def read(rows):
            return self._together(rows), () if draws is None else tuple(draws.take(rows, "cpu"))

        for part, (both, own) in self.read_ahead(self.parts(self.cut(order)), read):
            own = Draws(*own) if own else None
            images, labels = self.pairs.parted(both)
            known = labels.isfinite()[:, None].float()
            labels = labels.nan_to_num(0.0)[:, None]
            pixels = images.permute(0, 3, 1, 2).float()
            mean = None
            if own is not None:
                grid = grid_of(pixels, own, (0, 0, *pixels.shape[2:]))
                pixels = grid_sample(pixels, grid, padding_mode="zeros", align_corners=True)
                # Nearest: between a label and none there is nothing.
                both = torch.cat([labels, known], dim=1)
                both = grid_sample(both, grid, "nearest", "zeros", align_corners=True)
                labels, known = both.split(1, dim=1)
                mean = pixels.mean(dim=(2, 3)) / 255
            share = avg_pool2d(known, 2, ceil_mode=True)
            labels = avg_pool2d(labels * known, 2, ceil_mode=True) / share
            yield self._batch(part, pixels, labels, (own, mean))

    def _test_batch(self, part, images, labels):
        return self._batch(part, images.permute(0, 3, 1, 2).float(), labels[:, None])

    def _batch(self, part, pixels, labels, drawn=(None, None)):
        """Return a `datasets.Batch` of pixels [n, 3, H, W] and labels, NaN where there are none."""
        maps = colour_map(len(pixels), pixels.device, *drawn)
        images = apply_colour_map(pixels, *maps, torch.empty_like(pixels))
        mask = labels.isfinite()
        target = self.pairs.target
        labels = torch.where(mask, labels, target.low)
        weights = None if self.weights is None else self.weights[target.buckets(labels)]
        return Batch(images, labels, weights, mask, *part)


def cache_name(name):
    """Return the beginning of the cache's name of a csv's own maps."""
    return f"{Path(name).stem}_maps"


def open_pairs(run, name, bits):
    """Return a csv's rows and the decoded pairs that they name: `Maps` of your own target."""
    args = run.args
    root = Path(args.data_dir)
    table = read_pairs(root, name)
    cache = Path(args.cache or root / "cache") if args.cache != "none" else None
    options = {name: getattr(args, name) for name in ("workers", "allow_outside")}
    options["quiet"] = not run.accelerator.is_main_process
    if DEPTH.of(args).own:
        return table, Maps(root, table, args, cache, cache_name(name), **options)
    return table, Pairs(root, table, bits, cache, Path(name).stem, args.downscale, **options)


def describe_maps(args):
    """Check all maps, as training will have them, and print how their pixels fill the buckets.

    Args:
        args: the flags of `prepare.py`.

    Raises:
        ValueError: as `Maps`, naming the files that cannot be used.
    """
    root = Path(args.data_dir)
    target = DEPTH.of(args)
    options = {"workers": READERS, "quiet": False, "allow_outside": args.allow_outside}
    for name in (TRAIN, TEST):
        maps = Maps(root, read_pairs(root, name), args, root / "cache", cache_name(name), **options)
        counts = maps.count(np.arange(len(maps)))
        filled = np.count_nonzero(counts)
        print(
            f"{name}: {len(maps):,} maps, {counts.sum():,} pixels with a label, which fill "
            f"{filled} of {len(counts)} buckets of {target.words}; "
            f"{counts.max() / counts.sum():.0%} lie in one"
        )
        if name == TEST and (len(maps) < LEAST_TEST or filled < LEAST_BUCKETS):
            print(
                f"warning: fewer than {LEAST_TEST} test maps or {LEAST_BUCKETS} filled buckets, so "
                f"metrics will be noisy: {MORE_BUCKETS if filled < LEAST_BUCKETS else MORE_MAPS}"
            )


def counts_of(args, pairs, rows, official):
    """Return training pixels per bucket, for the weights, and those that say the shots.

    Args:
        args: the flags.
        pairs, rows: `Maps` or `Pairs`, and the numbers of those to train on.
        official: whether they are the official pairs, whose shots are fixed: the latter are None.
    """
    if isinstance(pairs, Maps):
        counts = pairs.count(rows)
        return counts, counts.tolist()
    given = args.counts == "official" or (args.counts == "auto" and len(pairs) == TRAIN_PAIRS)
    if given and official:
        return TRAIN_COUNTS, None
    counts = count_pixels(pairs, rows)
    return TRAIN_COUNTS if given else counts, None if official else counts.tolist()


def loader_of(pairs, *options, **more):
    """Return the `Loader` of pairs."""
    return (MapLoader if isinstance(pairs, Maps) else Loader)(pairs, *options, **more)
