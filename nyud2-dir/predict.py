"""Depth maps of new images by a trained model; no depths are needed.

    python predict.py --model checkpoint/RUN photos more/*.jpg --out predictions.csv

`predictions/` then holds a 16-bit PNG for each image, in millimetres, and a coloured preview. In
Python: `predict.load("checkpoint/RUN").predict(["a.jpg"])`, a table with the depths.
"""

import new_inputs
import program

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


def parse_args(argv=None):
    """Parse the command line."""
    inputs = "images, folders of them, or patterns"
    return new_inputs.parse_args(new_inputs.make_parser(__doc__, inputs, 16), argv)


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import functools
import io

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

import train
from depth_maps import DEPTH, SIZE, crop_of
from files import write_atomically
from image_file import open_image
from map_flags import NARROW
from transforms import apply_colour_map, colour_map, transform_test

COLUMNS = ["nearest_m", "mean_m", "farthest_m", "depth_map"]
MILLIMETRES = 1000  # in a metre; the official test depths are whole ones
FARTHEST = 10.0  # metres, the end of the preview's colours


class Predictor:
    """A trained model that takes new images.

    Args:
        name: run folder, file of a checkpoint, or OWNER/NAME on the Hugging Face Hub. --downscale
            is the checkpoint's.
        device: 'auto', 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError, ValueError: without such a checkpoint; for 'mps'.
    """

    def __init__(self, name, device="auto"):
        if device == "mps":
            raise ValueError(NARROW)
        path, checkpoint, self.args = new_inputs.find_model(train, name)
        self.device = new_inputs.device_of(device)
        model = train.build_model(self.args)
        train.checkpoints.load_weights(model, train.utils.weights_of(checkpoint, path), path)
        self.model = model.to(self.device).eval()
        self.target = DEPTH.of(self.args)

    def predict(self, inputs, folder=None, batch_size=16, quiet=True):
        """Predict images.

        Args:
            inputs: paths of images, of folders of them, or patterns.
            folder: where maps and previews are written, or None to keep the maps in the table.
            batch_size, quiet: images of a batch; show no progress bar.

        Returns:
            DataFrame of path, nearest, mean and farthest depth_m, and depth_map: the file, or the
            map, float32 [H, W] in metres. It is 0 outside the part that the network sees. Images
            that cannot be read are not in it: its `attrs["faults"]` has (path, error) of each. Of
            your own target it is lowest, mean, highest and map in its unit, of the whole image.
        """
        files = new_inputs.files_of(inputs, SUFFIXES)
        names = names_of(files)

        def answer(read):
            depths = self.answer([image for _, image, _ in read])
            placed = [place(depth, box) for depth, (_, _, box) in zip(depths, read)]
            tell = describe
            if self.target.own:
                tell = functools.partial(describe_own, target=self.target)
            return [tell(depth, names[row], folder) for depth, (row, _, _) in zip(placed, read)]

        def read(row):
            return row, *self.read(files[row])

        numbers = list(range(len(files)))
        given = numbers, read, answer, batch_size, quiet
        rows, answers, faults = new_inputs.read_and_answer(*given)
        columns = ["lowest", "mean", "highest", "map"] if self.target.own else COLUMNS
        table = pd.DataFrame(answers, columns=columns)
        table.insert(0, "path", [str(files[row]) for row in rows])
        table.attrs[new_inputs.FAULTS] = [(files[row], error) for row, error in faults]
        return table

    def read(self, file):
        """Return an image's largest 4:3 part at the middle as the network is trained on it.

        Returns:
            uint8 [240, 320, 3] / downscale, and (left, top, width, height, W, H): where that part
            lies in the whole image.
        """
        if file.suffix.lower() in (".npy", ".npz"):
            raise ValueError(f"it is an array: images are taken, {' '.join(SUFFIXES)}")
        with open_image(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}: save it with 8 bits a channel")
            whole = image.size
            if self.target.own:  # scaled as a whole, as in training
                size = tuple(self.args.map_size or SIZE)[::-1]
                image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
                return np.asarray(image), (0, 0, *whole, *whole)
            width, height = fitting(whole)
            size = SIZE[1] // self.args.downscale, SIZE[0] // self.args.downscale
            image = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BILINEAR)
        corner = [(side - part) // 2 for side, part in zip(whole, (width, height))]
        return np.asarray(image), (*corner, width, height, *whole)

    @torch.inference_mode()
    def answer(self, images):
        """Return depths in metres of such images, float32 [n, h, w], 0 outside the central crop."""
        images = torch.from_numpy(np.stack(images)).to(self.device)
        if self.target.own:
            pixels = images.permute(0, 3, 1, 2).float()
            maps = colour_map(len(pixels), pixels.device)
            pixels = apply_colour_map(pixels, *maps, torch.empty_like(pixels))
            preds = self.model(pixels)[0].float()
            size = pixels.shape[2:]
            preds = interpolate(preds, size=size, mode="bilinear", align_corners=True)[:, 0]
            return self.target.unscaled(preds).cpu().numpy()
        blank = torch.zeros(images.shape[:3], device=self.device)
        pixels, crop = transform_test(images, blank, downscale=self.args.downscale)
        preds = self.model(pixels)[0].float()
        preds = interpolate(preds, size=crop.shape[2:], mode="bilinear", align_corners=True)[:, 0]
        top, left, height, width = crop_of(images, self.args.downscale)
        blank[:, top : top + height, left : left + width] = preds.clamp(min=0)
        return blank.cpu().numpy()


load = Predictor


def fitting(size):
    """Return width and height of the largest 4:3 part of an image of this (width, height)."""
    width, height = size
    return min(width, max(1, height * 4 // 3)), min(height, max(1, width * 3 // 4))


def place(depth, box):
    """Return a depth map at the place and the size of its image, float32 [H, W]."""
    left, top, width, height, W, H = box
    # Nearest, not a mean: depth and the zero outside the crop have no depth between them.
    scaled = Image.fromarray(depth).resize((width, height), Image.Resampling.NEAREST)
    whole = np.zeros((H, W), dtype=np.float32)
    whole[top : top + height, left : left + width] = np.asarray(scaled)
    return whole


def names_of(files):
    """Return a name for each file's map: its own without the ending, numbered where it repeats."""
    seen = {}
    names = []
    for file in files:
        seen[file.stem] = seen.get(file.stem, 0) + 1
        names.append(file.stem + (f"_{seen[file.stem]}" if seen[file.stem] > 1 else ""))
    return names


def describe_own(values, name, folder, target):
    """As `describe`, of your own target: the map as `.npy`, colours from low to high."""
    row = [float(values.min()), float(values.mean()), float(values.max())]
    if folder is None:
        return [*row, values]
    share = target.scaled(np.clip(values, target.low, target.high)) / target.span
    pixels = io.BytesIO()
    np.save(pixels, values)
    write_atomically(folder / f"{name}.npy", pixels.getvalue())
    write_preview(share, folder / f"{name}.preview.png")
    return [*row, str(folder / f"{name}.npy")]


def write_preview(share, path):
    """Write a map from 0 to 1 in colours."""
    content = io.BytesIO()
    colours = colormaps["viridis"](np.clip(share, 0, 1), bytes=True)[..., :3]
    Image.fromarray(colours).save(content, "PNG")
    write_atomically(path, content.getvalue())


def describe(depth, name, folder):
    """Return a map's row in the table, and write map and preview if there is a folder."""
    known = depth[depth > 0] if depth.any() else depth
    row = [float(known.min()), float(known.mean()), float(known.max())]
    if folder is None:
        return [*row, depth]
    millimetres = np.clip(np.rint(depth * MILLIMETRES), 0, 2**16 - 1).astype(np.uint16)
    content = io.BytesIO()
    Image.fromarray(millimetres).save(content, "PNG")
    write_atomically(folder / f"{name}.png", content.getvalue())
    write_preview(depth / FARTHEST, folder / f"{name}.preview.png")
    return [*row, str(folder / f"{name}.png")]


def main(argv=None):
    """Write maps, previews and their table; returns 1 if an image could not be read, else 0."""
    args = parse_args(argv)
    model = load(args.model, args.device)
    folder = args.out.with_suffix("")
    table = model.predict(args.inputs, folder, args.batch_size, quiet=False)
    return new_inputs.finish(table, args.out)


if __name__ == "__main__":
    program.run(main)
