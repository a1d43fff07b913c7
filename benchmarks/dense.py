"""Depth maps against plain loops: statistics, pixel weights, training batches, evaluation.

    OMP_NUM_THREADS=1 python benchmarks/dense.py [--maps 8] [--json FILE]

The plain side is what a reader would write: over the pixels of a map, over the buckets of an
array, over the files of a batch. Both sides give the same numbers, which is checked first.
"""

import argparse
import resource
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage

from common import load, medians, peak_of, print_peak, show

D, H, W = 128, 114, 152  # the head's features
BATCH, CLIP = 32, (0.2, 5.0)

Sharing = load("nyud2-dir", "batches").Sharing
datasets = load("nyud2-dir", "datasets")
depth_cache = load("nyud2-dir", "depth_cache")
fds = load("nyud2-dir", "fds")
metrics = load("nyud2-dir", "metrics")
transforms = load("nyud2-dir", "transforms")


def make_depths(n, height=H, width=W):
    """Skewed depths [n, 1, height, width] in metres, smooth as those of rooms."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.gamma(4, 0.7, (n, 1, 8, 10))).clamp(0.7, 9.99)
    return torch.nn.functional.interpolate(coarse.float(), (height, width), mode="bilinear")


def make_module():
    """FDS as NYUD2-DIR uses it."""
    return fds.FDS(D, 100, 7, label_to_bucket=datasets.label_to_bucket, clip=CLIP, variant="paper")


# ---- statistics ----------------------------------------------------------------------------


def plain_statistics(batches):
    """Keep all pixels' features, then select each bucket's."""
    rows = torch.cat([features.permute(0, 2, 3, 1).reshape(-1, D) for features, _ in batches])
    depths = torch.cat([depths.flatten() for _, depths in batches])
    bucket = (depths * 10).long().clamp(7, 99)
    result = {}
    for b in range(7, 100):
        chosen = rows[bucket == b]
        if len(chosen):
            result[b] = chosen.mean(0), chosen.var(0, unbiased=len(chosen) > 1)
    return result


def released_buckets(depths):
    """Bucket of each pixel by a call for each element of the tensor: the released code's way."""

    def bucket_of(depth):
        return max(7, min(int(np.float32(depth.cpu()) * np.float32(10)), 99))

    return np.array([bucket_of(depth) for depth in depths.flatten()])


def released_statistics(batches):
    """As `plain_statistics`, with the buckets from a call for each pixel."""
    rows = torch.cat([features.permute(0, 2, 3, 1).reshape(-1, D) for features, _ in batches])
    bucket = released_buckets(torch.cat([depths.flatten() for _, depths in batches]))
    result = {}
    for b in np.unique(bucket):
        chosen = rows[torch.from_numpy(bucket == b)]
        result[b] = chosen.mean(0), chosen.var(0, unbiased=len(chosen) > 1)
    return result


def our_statistics(batches):
    """Accumulate batch after batch."""
    module = make_module()
    for features, depths in batches:
        module.accumulate(features, depths)
    module.update_running_stats(epoch=0)
    return module


def compare_statistics(maps):
    """Time both sides' statistics of so many maps; the goal is for 600, and linear in them."""
    depths = make_depths(maps).split(8)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(len(d), D, H, W, generator=generator) + d, d) for d in depths]
    # In the layout that the network gives: the channels of a pixel lie next to each other.
    batches = [(x.contiguous(memory_format=torch.channels_last), d) for x, d in batches]
    ours = our_statistics(batches)
    for side in (plain_statistics, released_statistics):
        for b, (mean, var) in side(batches).items():
            torch.testing.assert_close(ours.running_mean[b - 7], mean, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(ours.running_var[b - 7], var, rtol=1e-2, atol=1e-3)
    sides = (plain_statistics, released_statistics, our_statistics)
    plain, released, our = medians([lambda side=side: side(batches) for side in sides], 3)
    what = f"statistics of {maps} maps, {D} features a pixel"
    return [
        (f"{what}, against buckets at once", plain, our, ""),
        (f"{what}, against a call for each pixel", released, our, ">= 40"),
    ]


# ---- smoothing -----------------------------------------------------------------------------


def smoothing_data(maps=8):
    """Features and depths of maps in the network's layout, and an FDS that has seen an epoch."""
    depths, module = make_depths(maps), make_module()
    features = torch.randn(maps, D, H, W).contiguous(memory_format=torch.channels_last)
    module.accumulate(features, depths)
    module.update_running_stats(epoch=0)
    module.update_last_epoch_stats(1)
    return module, features, depths


def statistics_of(module, b):
    """Mean, variance, smoothed mean and factor of a bucket."""
    m1, v1 = module.running_mean_last_epoch[b], module.running_var_last_epoch[b]
    m2, v2 = module.smoothed_mean_last_epoch[b], module.smoothed_var_last_epoch[b]
    return m1, m2, torch.sqrt(torch.clamp(v2 / v1, *CLIP))


def released_smooth(module, features, depths, per_pixel=True):
    """Calibrate bucket by bucket, in a copy of the rows."""
    rows = features.permute(0, 2, 3, 1).reshape(-1, D).clone()
    if per_pixel:
        bucket = torch.from_numpy(released_buckets(depths))
    else:
        bucket = (depths.flatten() * 10).long().clamp(7, 99)
    for b in bucket.unique().tolist():
        if module.running_var_last_epoch[b - 7].sum() < 1e-10:
            continue
        m1, m2, factor = statistics_of(module, b - 7)
        chosen = bucket == b
        rows[chosen] = (rows[chosen] - m1) * factor + m2
    return rows.reshape(len(features), H, W, D).permute(0, 3, 1, 2)


def one_expression(module, features, depths):
    """Calibrate from tables of a scale and a shift for each pixel, which backward keeps."""
    bucket = (depths[:, 0] * 10).long().clamp(7, 99) - 7
    scale, shift = torch.nn.functional.embedding(bucket, module._calibration).chunk(2, dim=-1)
    return torch.addcmul(shift.permute(0, 3, 1, 2), features, scale.permute(0, 3, 1, 2))


def backward_of(smooth, module, features, depths):
    """Forward and backward of a way to smooth."""
    given = features.detach().requires_grad_()
    smooth(module, given, depths).backward(features)
    return given.grad


def our_smooth(module, features, depths):
    """Ours."""
    return module.smooth(features, depths, 1)


def compare_smoothing():
    """Return rows of smoothing a batch of maps."""
    given = smoothing_data()
    ours = our_smooth(*given)
    torch.testing.assert_close(ours, released_smooth(*given), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours, one_expression(*given))
    pixels, loop, our = medians(
        [lambda: released_smooth(*given), lambda: released_smooth(*given, False),
         lambda: our_smooth(*given)], 3
    )  # fmt: skip
    kept, pieces = medians(
        [lambda: backward_of(one_expression, *given), lambda: backward_of(our_smooth, *given)], 3
    )
    return [
        ("smooth 8 maps, against a call for each pixel", pixels, our, ""),
        ("smooth 8 maps, against a loop over the buckets", loop, our, ">= 2"),
        ("the same, forward + backward, against tables of every pixel", kept, pieces, ">= 2"),
    ]


def print_memory_of(what):
    """Print by how much smoothing raises this process's peak, forward and backward."""
    sides = {"tables": one_expression, "pieces": our_smooth}
    given = smoothing_data()
    backward_of(sides[what], given[0], given[1][:1], given[2][:1])  # libraries' own buffers
    print_peak(lambda: given, lambda *given: backward_of(sides[what], *given))


def extra_memory():
    """Return the MiB that accumulating adds to the peak of memory, and those of a batch."""
    features, depths = torch.randn(8, D, H, W), make_depths(8)
    module = make_module()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        module.accumulate(features, depths)
    module.update_running_stats(epoch=0)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024, features.numel() * 4 / 2**20


# ---- weights and metrics -------------------------------------------------------------------


def compare_weights():
    """Time the weights of a batch's pixels."""
    table = datasets.bucket_weights(datasets.TRAIN_COUNTS, "inverse", lds=True)
    depths, ours = make_depths(BATCH), torch.from_numpy(table)

    def plain():
        flat = [table[min(int(depth * np.float32(10)), 99)] for depth in depths.numpy().flat]
        return torch.from_numpy(np.array(flat, dtype=np.float32).reshape(depths.shape))

    def look_up():
        return ours[datasets.label_to_bucket(depths)]

    assert torch.equal(plain(), look_up())
    return f"weights of the pixels of {BATCH} maps", *medians([plain, look_up], 3), ">= 20"


def compare_metrics(pixels=870_000):
    """Time the metrics of so many pixels."""
    labels = make_depths(60).flatten()[:pixels]
    preds = labels * torch.exp(0.2 * torch.randn(len(labels)))
    shots = metrics.shots_of_buckets()

    def plain():
        sums = {shot: np.zeros(4) for shot in metrics.SHOTS}
        for pred, label in zip(preds.tolist(), labels.tolist()):
            values = np.array([1, (pred - label) ** 2, abs(pred - label) / label,
                               max(pred / label, label / pred) < 1.25])  # fmt: skip
            sums["overall"] += values
            sums[shots[min(int(label * 10), 99)]] += values
        return sums

    def ours():
        return metrics.shot_metrics(preds, labels)

    expected = plain()["overall"]
    assert abs(ours()["overall"]["mse"] - expected[1] / expected[0]) < 1e-4
    return f"metrics by shot of {len(labels):,} pixels", *medians([plain, ours], 3), ">= 10"


# ---- training batches ----------------------------------------------------------------------


def plain_pair(files, rng):
    """Augment a pair from its files, picture by picture."""
    image, depth = Image.open(files[0]), Image.open(files[1])
    image = image.resize((320, 240), Image.Resampling.BILINEAR)
    depth = depth.resize((320, 240), Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        image, depth = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, depth))
    angle = rng.uniform(-5, 5)
    image, depth = (
        Image.fromarray(ndimage.rotate(np.asarray(x), angle, reshape=False, order=2))
        for x in (image, depth)
    )
    image = image.crop((8, 6, 312, 234))
    depth = depth.crop((8, 6, 312, 234)).resize((152, 114))
    image = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    light = np.array(transforms.EIGENVECTORS) * rng.normal(0, 0.1, 3) * transforms.EIGENVALUES
    image = image + light.sum(1)[:, None, None]
    for kind in rng.permutation(3):
        grey = np.tensordot(transforms.LUMA, image, 1)[None]
        target = [np.zeros_like(grey), np.full_like(grey, grey.mean()), grey][kind]
        image = image + rng.uniform(-0.4, 0.4) * (target - image)
    image = (image - np.reshape(transforms.MEAN, (3, 1, 1))) / np.reshape(transforms.STD, (3, 1, 1))
    return image.astype(np.float32), np.asarray(depth, dtype=np.float32)[None] / 25.5


def compare_batches(folder, n=32):
    """Time n augmented training pairs from files of 640×480 pixels, in one process."""
    rng = np.random.default_rng(0)
    names = []
    for i in range(n):
        picture = ndimage.zoom(rng.uniform(0, 255, (30, 40, 3)), (16, 16, 1), order=1)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
        depth = make_depths(1, 480, 640)[0, 0].numpy() * 25.5
        Image.fromarray(depth.astype(np.uint8)).save(folder / f"{i}.png")
        names.append((f"{i}.jpg", f"{i}.png"))
    table = pd.DataFrame(names, columns=["image", "depth"])
    pairs = depth_cache.Pairs(folder, table, 8, folder / "cache", "pairs", quiet=True)
    loader = datasets.Loader(pairs, range(n), Sharing(BATCH, seed=0, device="cpu"))

    def plain():
        pictures = [plain_pair([folder / name for name in row], rng) for row in names]
        return [torch.from_numpy(np.stack(part)) for part in zip(*pictures)]

    def ours():
        return [(batch.images.mean(), batch.depths) for batch in loader.train(0)]

    assert [part.shape[1:] for part in plain()] == [(3, 228, 304), (1, 114, 152)]
    return f"{n} augmented training pairs, files of 640×480", *medians([plain, ours], 3), ">= 12"


def main():
    """Print the table and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=8, help="depth maps in the statistics")
    parser.add_argument("--json", help="also write the table there")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return print_memory_of(args.memory_of)
    extra, batch = extra_memory()
    rows = [*compare_statistics(args.maps), *compare_smoothing()]
    rows += [compare_weights(), compare_metrics()]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(compare_batches(Path(folder)))
    show(rows, args.json)
    for side, what in (("tables", "tables of every pixel"), ("pieces", "ours, in pieces")):
        peak = peak_of(__file__, side)
        print(f"smooth 8 maps of 8.5 MiB, forward + backward, {what}: {peak:.0f} MiB at the peak")
    print(f"Statistics: {extra:.0f} MiB of extra memory (goal: 64 and a batch of {batch:.0f}).")


if __name__ == "__main__":
    main()
