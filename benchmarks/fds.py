"""FDS against plain loops over labels: smoothing a batch, statistics of a training set.

    OMP_NUM_THREADS=2 python benchmarks/fds.py [--device cuda] [--json FILE]

The plain side is what a reader would write: for each label, select its samples and compute. Both
sides give the same numbers, which is checked first.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from common import load, medians, show

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


def peak_memory(what):
    """Return the MiB by which a side raises the peak of a process of its own (Linux)."""
    command = [sys.executable, __file__, "--memory_of", what]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_memory_of(what):
    """Run one side in this process and print how far its peak lies above where it began."""
    features, labels, _ = make_data("cpu")
    plain_statistics(features[:BATCH], labels[:BATCH])  # libraries' own buffers come first
    streamed(features, labels)

    def status(key):
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{key}:")[1].split()[0]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = status("VmRSS")
    if what == "gathered":
        parts = [features[i : i + BATCH].clone() for i in range(0, N, BATCH)]
        plain_statistics(torch.cat(parts), labels)
    else:
        {"plain": plain_statistics, "whole": whole, "streamed": streamed}[what](features, labels)
    print(status("VmHWM") - before)


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
        [lambda side=side: side(features, labels) for side in sides], 5, sync
    )
    rows.append((f"statistics of {N} x {D}, whole arrays", loop, at_once, ">= 1"))
    rows.append((f"statistics of {N} x {D}, batches of {BATCH}", loop, by_batch, ">= 1"))
    print(f"FDS, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    show(rows, args.json)
    if args.device == "cuda":
        return dense_share("cuda")
    for side, what in (
        ("plain", "loop over labels, features in memory"),
        ("gathered", "loop over labels, features gathered batch by batch"),
        ("whole", "ours, whole arrays"),
        ("streamed", "ours, batches"),
    ):
        print(f"extra memory at the peak, {what:<52}{peak_memory(side):>8.1f} MiB")


if __name__ == "__main__":
    main()
