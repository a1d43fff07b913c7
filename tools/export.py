"""A trained network as one file for other programs: torch.export's and, with onnx, ONNX's.

    python tools/export.py agedb-dir agedb-dir/checkpoint/RUN ages.pt2
    python tools/export.py uci-dir uci-dir/checkpoint/RUN prices.onnx

The file takes a batch of any size as `predict.py` prepares it (normalised images, encoded rows) and
answers in the target's unit. It is loaded again and its answers compared before it counts. The
networks over sentences and nights are not exported: their inputs differ in length.
"""

import argparse
import warnings
from importlib.util import find_spec
from pathlib import Path

from load import ROOT, load

TOLERANCE = 1e-4  # of an answer, absolute and relative
ONNX = ("onnx", "onnxscript", "onnxruntime")
FOLDERS = ("agedb-dir", "imdb-wiki-dir", "nyud2-dir", "uci-dir")


def parse_args(argv=None):
    """Parse the command line; what cannot be used ends with a message."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", choices=FOLDERS, help="benchmark folder")
    parser.add_argument("model", help="run folder, file of a checkpoint, or OWNER/NAME on the Hub")
    parser.add_argument("out", type=Path, help="file to write, .pt2 or .onnx")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".pt2", ".onnx"):
        parser.error(f"the file must end in .pt2 or .onnx, got {args.out}")
    lacking = [name for name in ONNX if not find_spec(name)]
    if args.out.suffix == ".onnx" and lacking:
        parser.error(f"pip install {' '.join(lacking)}, or write a .pt2")
    return args


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import torch
from torch import nn
from torch.nn.functional import interpolate


class Answer(nn.Module):
    """A network whose answer is in the target's unit.

    Args:
        network: what `predict.load` holds as `model`; its first output counts.
        to_unit: function of that output and of the inputs.
    """

    def __init__(self, network, to_unit):
        super().__init__()
        self.network, self.to_unit = network, to_unit

    def forward(self, inputs):
        """Return the answers to a batch."""
        return self.to_unit(self.network(inputs)[0], inputs)


def network_of(folder, name):
    """Return a folder's trained network as `Answer`, and the shape of one of its inputs.

    Raises:
        ValueError: for boosted trees and experts.
    """
    model = load(folder, "predict").load(name, "cpu")
    args = model.args
    if args.experts or args.model == "hist_gradient_boosting":
        raise ValueError(f"{name} holds trees or experts: only one network can be exported")
    if folder == "nyud2-dir":
        maps = load(folder, "depth_maps")
        size = [side // args.downscale for side in maps.CROP]
        if model.target.own:
            size = args.map_size or maps.SIZE

        def in_unit(depths, images):
            maps = interpolate(depths, images.shape[2:], mode="bilinear", align_corners=True)
            return model.target.unscaled(maps)

        return Answer(model.model, in_unit), (3, *size)
    if folder != "uci-dir":
        unit = lambda preds, images: model.target.unscaled(preds)  # noqa: E731
        return Answer(model.model, unit), (3, args.img_size, args.img_size)
    scale = model.scale

    def of_table(preds, rows):
        values = preds * scale.std + scale.mean
        return values.exp() if scale.log else values

    width = load(folder, "columns").width_of(model.preparation["columns"])
    return Answer(model.model, of_table), (width,)


def export(network, shape, out):
    """Write a network to a file, and return it as a function that was loaded from there."""
    example = torch.rand(2, *shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    if out.suffix == ".onnx":
        import onnxruntime

        dynamic = {"dynamic_shapes": ({0: batch},), "dynamo": True, "verbose": False}
        torch.onnx.export(network, (example,), out, **dynamic)
        session = onnxruntime.InferenceSession(str(out))
        name = session.get_inputs()[0].name
        return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    with warnings.catch_warnings():  # of weights in groups, "when your weights are not on CPU"
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, out)
    return torch.export.load(out).module()


def check(network, exported, shape):
    """Return the largest difference of the answers; a ValueError if it is above TOLERANCE."""
    largest = 0.0
    for number in (1, 5):  # neither is the example's
        inputs = torch.rand(number, *shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
        expected, found = network(inputs), exported(inputs)
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(f"the file answers {found.flatten()[:3].tolist()} where the network "
                             f"answers {expected.flatten()[:3].tolist()}")  # fmt: skip
        largest = max(largest, (found - expected).abs().max().item())
    return largest


@torch.no_grad()
def main(argv=None):
    """Write the file and check it; returns the exit status."""
    args = parse_args(argv)
    network, shape = network_of(args.folder, args.model)
    network.eval()
    try:
        largest = check(network, export(network, shape, args.out), shape)
    except ValueError:
        args.out.unlink(missing_ok=True)
        raise
    print(f"{args.out}: inputs [n, {', '.join(map(str, shape))}], differs by {largest:.1e} at most")
    return 0


if __name__ == "__main__":
    load(FOLDERS[0], "program").run(main, *(ROOT / name for name in (*FOLDERS, "tools")))
