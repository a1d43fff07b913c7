"""Batches of faces: the image cache against a per-file PIL data set.

    OMP_NUM_THREADS=2 python benchmarks/loader.py [--json FILE]

300-pixel JPEGs, batches of 256 at 224², one process. The plain side is torchvision's usual
pipeline in a DataLoader without workers. At the end, the share of a training epoch's time that is
not forward, backward or step (resnet18 at 64²).
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import load, medians, show

COUNT, BATCH, SIZE = 512, 256, 224

datasets = load("agedb-dir", "datasets")
image_cache = load("agedb-dir", "image_cache")
batches = load("agedb-dir", "batches")


def write_jpegs(folder):
    """Write smooth pictures with some noise, which compress about as faces do."""
    rng = np.random.default_rng(0)
    names = []
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture) + rng.normal(0, 4, (300, 300, 3))
        names.append(f"{i}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return names


class PerFile(Dataset):
    """Open, decode, resize and transform one file at a time."""

    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def exhaust(batches):
    """Take every batch."""
    for _ in batches:
        pass


def compare_batches(folder):
    """Return rows of (what, plain seconds, our seconds, goal) for all batches of the files."""
    names = write_jpegs(folder)
    files = [folder / name for name in names]
    resize = transforms.Resize((SIZE, SIZE))
    to_float = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    crop = [transforms.RandomCrop(SIZE, padding=16), transforms.RandomHorizontalFlip()]

    def plain(*steps):
        pipeline = transforms.Compose([resize, *steps])
        return lambda: exhaust(DataLoader(PerFile(files, pipeline), batch_size=BATCH))

    start = time.perf_counter()
    images = image_cache.Images(folder, names, SIZE, folder / "cache", quiet=True)
    print(f"building the cache: {COUNT / (time.perf_counter() - start):.0f} images/s")
    order = np.random.default_rng(0).permutation(COUNT)
    zeros = np.zeros(COUNT)
    sharing = batches.Sharing(BATCH, 0, "cpu")
    loader = datasets.Loader(images, np.arange(COUNT), zeros, np.ones(121), sharing)

    def cached_uint8():
        for first in range(0, COUNT, BATCH):
            images.read(order[first : first + BATCH])

    pairs = [
        ("uint8", plain(transforms.PILToTensor()), cached_uint8, ">= 20"),
        ("normalised floats, evaluation", plain(*to_float), lambda: exhaust(loader.evaluate()),
         ">= 20"),
        ("normalised floats, training augmentation", plain(*crop, *to_float),
         lambda: exhaust(loader.train(0)), ">= 18"),
    ]  # fmt: skip
    rows = []
    for what, plain_side, ours, goal in pairs:
        seconds = medians([plain_side, ours], 5)
        rows.append(
            (f"{BATCH} images at {SIZE}², {what}", *(s * BATCH / COUNT for s in seconds), goal)
        )
    # What a loop sees that comes back to the loader after seconds of other work: the buffer of the
    # batches may have left the cache, and on a machine that reclaims idle memory the memory too.
    _, plain_side, ours, _ = pairs[1]
    seconds = [s * BATCH / COUNT for s in medians([plain_side, ours], 5, warm=False)]
    rows.append(("the same, evaluation, right after seconds of other work", *seconds, ""))
    return rows


def compare_steps():
    """Time a step in bfloat16 with torch's convolutions, and with ours over small maps."""
    resnet = load("agedb-dir", "resnet")
    plain = resnet.AgeResNet("resnet18").to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    for module in plain.modules():
        if isinstance(module, resnet.Conv2d):
            module.__class__ = torch.nn.Conv2d
    images = torch.randn(BATCH, 3, 64, 64).to(memory_format=torch.channels_last)

    def step(network):
        with torch.autocast("cpu", torch.bfloat16):
            error = network(images)[0].float().abs().mean()
        error.backward()

    seconds = medians([lambda: step(plain), lambda: step(ours)], 3)
    return [(f"forward and backward, resnet18, {BATCH} faces at 64², bf16", *seconds, "")]


def share_outside_the_network(folder):
    """Train resnet18 at 64² for an epoch and return the share of time outside of its three parts.

    Forward, backward and step are timed inside the loop of train.py itself.
    """
    train = load("agedb-dir", "train")
    names = [f"{i}.jpg" for i in range(COUNT)]
    arguments = "--model resnet18 --img_size 64 --reweight sqrt_inv --lds --fds --device cpu"
    args = train.parse_args(arguments.split())
    accelerator = load("agedb-dir", "utils").make_accelerator("cpu")
    images = image_cache.Images(folder, names, 64, folder / "cache", quiet=True)
    labels = np.random.default_rng(0).integers(1, 101, COUNT)
    sharing = batches.Sharing(BATCH, 0, "cpu")
    loader = datasets.Loader(images, np.arange(COUNT), labels, np.ones(121), sharing)
    model = train.build_model(args)
    model.regularizer = train.regularizers.NoRegularizer()
    net, optimizer = accelerator.prepare(model, train.build_optimizer(args, model))
    run = train.run_folder.Run(args, train.make_parser(), accelerator, None, {})
    inside = [0.0]

    def timed(function):
        def call(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            inside[0] += time.perf_counter() - start
            return result

        return call

    net.forward = timed(net.forward)
    accelerator.backward = timed(accelerator.backward)
    optimizer.step = timed(optimizer.step)
    shares = []
    for epoch in range(3):
        inside[0] = 0.0
        start = time.perf_counter()
        train.train_one_epoch(run, net, model, optimizer, loader, epoch)
        shares.append(1 - inside[0] / (time.perf_counter() - start))
    return sorted(shares)[1]


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file for the rows, a JSON object a line")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare_batches(Path(folder)) + compare_steps()
        print(
            f"A batch of {BATCH}, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        show(rows, args.json)
        share = share_outside_the_network(Path(folder))
        print(f"share of an epoch outside forward, backward and step: {share:.1%}  goal <= 10 %")


if __name__ == "__main__":
    main()
