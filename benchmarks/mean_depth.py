"""What always predicting the mean training depth gives on a depth set, by shot.

    python benchmarks/mean_depth.py nyud2-dir/data/demo [--downscale 4]

The mean is that of the crops of all training pairs, held-out ones too; the test pixels are those of
the mask, as in nyud2-dir's evaluation.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from common import load

Sharing = load("nyud2-dir", "batches").Sharing
datasets = load("nyud2-dir", "datasets")
depth_cache = load("nyud2-dir", "depth_cache")
metrics = load("nyud2-dir", "metrics")
pair_lists = load("nyud2-dir", "pair_lists")


def batches(folder, name, bits, downscale, mask=None):
    """Yield the batches of a list's pairs."""
    table = pair_lists.read_pairs(folder, name)
    pairs = depth_cache.Pairs(folder, table, bits, None, name, downscale, quiet=True)
    sharing = Sharing(batch_size=32, seed=0, device="cpu")
    yield from datasets.Loader(pairs, np.arange(len(table)), sharing, mask=mask).evaluate()


def main():
    """Print the mean and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a data folder of nyud2-dir")
    parser.add_argument("--downscale", type=int, default=4, choices=(1, 2, 4))
    args = parser.parse_args()
    total, number = 0.0, 0
    for batch in batches(args.folder, pair_lists.TRAIN, 8, args.downscale):
        seen = batch.depths[batch.depths > 0]
        total, number = total + seen.double().sum().item(), number + len(seen)
    mean, sums = total / number, metrics.BucketSums("cpu")
    images = len(pair_lists.read_pairs(args.folder, pair_lists.TEST))
    mask = pair_lists.read_mask(args.folder, images, args.downscale)
    for batch in batches(args.folder, pair_lists.TEST, 16, args.downscale, mask):
        sums.add(torch.full_like(batch.depths, mean), batch.depths, batch.mask)
    print(f"mean training depth {mean:.3f} m")
    for shot, row in sums.metrics().items():
        print(f"{shot:>8}  RMSE {row['rmse']:.3f} m, {row['num_samples']:,} pixels")


if __name__ == "__main__":
    main()
