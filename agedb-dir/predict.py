"""Ages, or your own target, of new images by a trained model; no labels are needed.

    python predict.py --model checkpoint/RUN photos more/*.jpg --out predictions.csv

In Python: `predict.load("checkpoint/RUN").predict(["a.jpg", "photos"])`, a table.
"""

import new_inputs
import program

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


def parse_args(argv=None):
    """Parse the command line."""
    inputs = "images, folders of them, or patterns"
    return new_inputs.parse_args(new_inputs.make_parser(__doc__, inputs, 64), argv)


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import numpy as np
import pandas as pd
import torch

import train
from criterion import columns_of, in_unit
from datasets import normalize
from image_cache import load_image


class Predictor:
    """A trained model that takes new images.

    Args:
        name: run folder, file of a checkpoint, or OWNER/NAME on the Hugging Face Hub. The size of
            the images and your own target are the checkpoint's.
        device: 'auto', 'cpu', 'cuda' or 'mps'.

    Raises:
        FileNotFoundError, ValueError: without such a checkpoint.
    """

    def __init__(self, name, device="auto"):
        path, checkpoint, self.args = new_inputs.find_model(train, name)
        self.target = train.TARGET.of(self.args)
        self.device = new_inputs.device_of(device)
        model = train.build_model(self.args)
        train.utils.load_state(model, train.utils.weights_of(checkpoint, path), path)
        self.model = model.to(self.device).eval()

    def predict(self, inputs, batch_size=64, quiet=True):
        """Predict images.

        Args:
            inputs: paths of images, of folders of them, or patterns.
            batch_size, quiet: images of a batch; show no progress bar.

        Returns:
            DataFrame of path and prediction, in the target's unit, and of experts `std`. Images
            that cannot be read are not in it: its `attrs["faults"]` is a list of (path, error).
        """
        files = new_inputs.files_of(inputs, SUFFIXES)
        given = files, self.read, self.answer, batch_size, quiet
        rows, answers, faults = new_inputs.read_and_answer(*given)
        table = pd.DataFrame({"path": [str(files[row]) for row in rows], **columns_of(answers)})
        table.attrs[new_inputs.FAULTS] = faults
        return table

    def read(self, file):
        """Return an image as the network is trained on it, uint8 [img_size, img_size, 3]."""
        return load_image(file, self.args.img_size)

    @torch.inference_mode()
    def answer(self, images):
        """Return the answers to such images, float32 [n, 1] or [n, 2], in the target's unit."""
        images = torch.from_numpy(np.stack(images)).to(self.device)
        answers = self.model(normalize(images))[0].float().cpu().numpy()
        return in_unit(answers, self.target.unscaled)


load = Predictor


def main(argv=None):
    """Write the predictions; returns the exit status, 1 if an input could not be read."""
    args = parse_args(argv)
    model = load(args.model, args.device)
    return new_inputs.finish(model.predict(args.inputs, args.batch_size, quiet=False), args.out)


if __name__ == "__main__":
    program.run(main)
