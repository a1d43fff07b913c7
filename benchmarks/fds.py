"""FDS against plain loops over labels: smoothing a batch, statistics of a training set.

    OMP_NUM_THREADS=2 python benchmarks/fds.py [--device cuda] [--json FILE]

The plain side is what a reader would write: for each label, select its samples and compute. Both
sides give the same numbers, which is checked first.
"""

import argparse
import warnings

import numpy as np
import torch

from common import load, medians, peak_of, print_peak, show

N, D, BATCH = 12_208, 2048, 256  # AgeDB-DIR's training set, ResNet-50's features
BUCKET_NUM, BUCKET_START = 100, 3
CLIP = (0.1, 10.0)

fds = load("agedb-dir", "fds")


def make_data(device):
    """Features and skewed ages of a training set, and an FDS that has seen two epochs."""
    rng = np.random.default_rng(0)
    ages = np.clip(np.round(rng.gamma(9, 4.5, N)), 1, 101)
    labels = torch.from_numpy(ages).float().to(device)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, D, generator=generator).to(device) + labels[:, None] / 50
    module = fds.FDS(D, BUCKET_NUM, BUCKET_START, ks=5, sigma=2, variant="paper").to(device)
    for epoch in range(2):
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(features * (1 + epoch), labels, epoch)
    module.update_last_epoch_stats(2)
    return features, labels, module


def plain_buckets(labels):
    """Bucket rows of labels."""
    return labels.floor().long().clamp(BUCKET_START, BUCKET_NUM - 1) - BUCKET_START


def plain_smooth(module, features, labels):
    """Calibrate a batch label by label."""
    out, buckets = features.clone(), plain_buckets(labels)
    for b in buckets.unique().tolist():
        m1, v1 = module.running_mean_last_epoch[b], module.running_var_last_epoch[b]
        m2, v2 = module.smoothed_mean_last_epoch[b], module.smoothed_var_last_epoch[b]
        if v1.sum() < 1e-10:
            continue
        valid = (v1 > 0) & (v2 >= 0)
        factor = torch.sqrt(torch.clamp(v2 / v1, *CLIP))
        old = features[buckets == b]
        out[buckets == b] = torch.where(valid, (old - m1) * factor + m2, old)
    return out


def plain_statistics(features, labels):
    """Mean and unbiased variance label by label."""
    buckets = plain_buckets(labels)
    result = {}
    for b in buckets.unique().tolist():
        rows = features[buckets == b]
        result[b] = rows.mean(0), rows.var(0, unbiased=len(rows) > 1)
    return result


def whole(features, labels):
    """Our statistics of whole arrays, into a module that has seen nothing."""
    module = fds.FDS(D, BUCKET_NUM, BUCKET_START, variant="paper").to(features.device)
    module.update_running_stats(features, labels, 0)
    return module


def streamed(features, labels):
    """Our statistics, batch after batch."""
    module = fds.FDS(D, BUCKET_NUM, BUCKET_START, variant="paper").to(features.device)
    for start in range(0, N, BATCH):
        module.accumulate(features[start : start + BATCH], labels[start : start + BATCH])
    module.update_running_stats(epoch=0)
    return module


def check(features, labels, module):
    """Both sides must give the same numbers before their time means anything."""
    batch, ages = features[:BATCH], labels[:BATCH]
    torch.testing.assert_close(
        module.smooth(batch, ages, 2), plain_smooth(module, batch, ages), rtol=1e-4, atol=1e-4
    )
    expected = plain_statistics(features, labels)
    for ours in (whole(features, labels), streamed(features, labels)):
        for b, (mean, var) in expected.items():
            torch.testing.assert_close(ours.running_mean[b], mean, rtol=1e-4, atol=1e-5)
            if torch.isfinite(var).all():
                torch.testing.assert_close(ours.running_var[b], var, rtol=1e-4, atol=1e-5)


def gathered(features, labels):
    """Statistics of features that were gathered batch by batch."""
    parts = [features[i : i + BATCH].clone() for i in range(0, N, BATCH)]
    return plain_statistics(torch.cat(parts), labels)


def print_memory_of(what):
    """Run one side in this process and print how far its peak lies above where it began."""

    def prepare():
        features, labels, _ = make_data("cpu")
        plain_statistics(features[:BATCH], labels[:BATCH])  # libraries' own buffers come first
        streamed(features[:BATCH], labels[:BATCH])
        return features, labels

    if what == "buckets":
        many_buckets(1000)  # what libraries import and keep
        return print_peak(lambda: (), many_buckets)
    sides = {"plain": plain_statistics, "gathered": gathered, "whole": whole, "streamed": streamed}
    print_peak(prepare, sides[what])


# ---- growth with the buckets ---------------------------------------------------------------


def many_buckets(B=100_000, features=64):
    """Two epochs of a few batches with very many buckets."""
    module = fds.FDS(features, B, variant="paper")
    generator = torch.Generator().manual_seed(0)
    for epoch in range(2):
        for _ in range(4):
            x = torch.randn(BATCH, features, generator=generator)
            module.accumulate(x, torch.rand(BATCH, generator=generator) * B, epoch)
        module.update_last_epoch_stats(epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few of the buckets are filled
            module.update_running_stats(epoch=epoch)
    return module


def matrix_smoothing(statistics, window):
    """Smooth by a matrix of all buckets against all, mirrored at the ends."""
    B, half = len(statistics), len(window) // 2
    matrix = torch.zeros(B, B, dtype=torch.float64)
    for k, weight in enumerate(window):
        place = (torch.arange(B) + k - half).abs()
        place = (B - 1) - ((B - 1) - place).abs()
        matrix[torch.arange(B), place] += weight
    return (matrix @ statistics.double()).to(statistics.dtype)


def merge_all(batches, count, mean, squares):
    """Add statistics by batch, each merged into all buckets, to tables."""
    for x, bucket in batches:
        n = torch.bincount(bucket, minlength=len(count)).double()
        own = torch.zeros(mean.shape).index_add_(0, bucket, x) / n.clamp(min=1)[:, None].float()
        dev = (x - own[bucket]).square()
        share = (n / (count + n).clamp(min=1))[:, None]
        delta = own - mean
        mean += delta * share
        squares += torch.zeros(mean.shape).index_add_(0, bucket, dev)
        squares += delta.square() * share * count[:, None]
        count += n


def compare_growth():
    """Return rows of (what, plain seconds, our seconds, goal) that grow with the buckets."""
    module, rows = fds.FDS(64, 5000, variant="paper"), []
    statistics = torch.rand(5000, 64)
    window = module.kernel_window.tolist()
    torch.testing.assert_close(
        module.smooth_over_buckets(statistics), matrix_smoothing(statistics, window)
    )
    seconds = medians(
        [lambda: matrix_smoothing(statistics, window),
         lambda: module.smooth_over_buckets(statistics)], 3
    )  # fmt: skip
    rows.append(("smooth 5000 x 64 over buckets, against a matrix", *seconds, ">= 7"))
    for B, D in ((50, 12_000), (1000, 12_000)):
        batches = [(torch.randn(128, D), torch.randint(0, B, (128,))) for _ in range(4)]

        module = fds.FDS(D, B, variant="paper")
        tables = [
            torch.zeros_like(part) for part in fds.BucketMoments.empty(module.running_mean).parts
        ]

        def ours(module=module, batches=batches):
            for x, bucket in batches:
                module.accumulate(x, bucket)

        def plain(tables=tables, batches=batches):
            merge_all(batches, *tables)

        ours()
        plain()
        for got, expected in zip(module.moments.parts, tables):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        seconds = medians([plain, ours], 3)
        goal = ">= 1" if B == 50 else ">= 5"
        rows.append(
            (f"4 batches of 128 x {D} into {B} buckets, against all buckets", *seconds, goal)
        )
    return rows


def dense_share(module_device):
    """Time dense smoothing, forward and backward, next to a copy of the same bytes."""
    shape = (32, 128, 114, 152)  # NYUD2: batch, channels, height, width
    module = fds.FDS(128, 100, 7, label_to_bucket=lambda depth_m: (depth_m * 10).long())
    module = module.to(module_device)
    features = torch.randn(shape, device=module_device, requires_grad=True)
    depth_m = torch.rand(shape[0], 1, *shape[2:], device=module_device) * 10
    grad = torch.ones(shape, device=module_device)
    target = torch.empty_like(grad)

    def both():
        features.grad = None
        module.smooth(features, depth_m, 1).backward(grad)

    seconds, copy = medians([both, lambda: target.copy_(grad)], 5, torch.cuda.synchronize)
    # Forward reads and writes the features once, backward the gradient: two copies' traffic.
    print(
        f"dense smooth, forward + backward: {1e3 * seconds:.2f} ms, two copies: {2e3 * copy:.2f} ms"
    )


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="device")
    parser.add_argument("--json", help="file for the rows, a JSON object a line")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        return print_memory_of(args.memory_of)
    features, labels, module = make_data(args.device)
    check(features, labels, module)
    sync = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    batch, ages = features[:BATCH], labels[:BATCH]
    loop, ours = medians(
        [lambda: plain_smooth(module, batch, ages), lambda: module.smooth(batch, ages, 2)], 9, sync
    )
    rows = [(f"smooth {BATCH} x {D}", loop, ours, ">= 10")]
    sides = (plain_statistics, whole, streamed)
    loop, at_once, by_batch = medians(
        [lambda side=side: side(features, labels) for side in sides], 3, sync
    )
    rows.append((f"statistics of {N} x {D}, whole arrays", loop, at_once, ">= 1"))
    rows.append((f"statistics of {N} x {D}, batches of {BATCH}", loop, by_batch, ">= 1"))
    print(f"FDS, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.device == "cuda":
        show(rows, args.json)
        return dense_share("cuda")
    show(rows + compare_growth(), args.json)
    for side, what in (
        ("plain", "loop over labels, features in memory"),
        ("gathered", "loop over labels, features gathered batch by batch"),
        ("whole", "ours, whole arrays"),
        ("streamed", "ours, batches"),
    ):
        print(f"extra memory at the peak, {what:<52}{peak_of(__file__, side):>8.1f} MiB")
    tables = 100_000 * 64 * 4 / 2**20
    peak = peak_of(__file__, "buckets") / tables
    print(f"FDS of 100,000 buckets x 64: {peak:.1f} tables of float32 at the peak (goal: 12)")


if __name__ == "__main__":
    main()
