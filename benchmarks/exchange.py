"""What processes exchange: gradients in each step, FDS's moments once an epoch.

    OMP_NUM_THREADS=1 python benchmarks/exchange.py [--processes 1 2 4] [--parameters 2000000]

Each number of processes runs on this machine with gloo. All of them share its cores, so the times
say what an exchange costs here, and not how a cluster scales.
"""

import argparse
import os
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from common import load

B, D, RUNS = 97, 2048, 7  # buckets and features of FDS on faces; runs of which the median counts


def median_seconds(call):
    """Return the median seconds of a call that all processes make."""
    seconds = []
    for _ in range(RUNS):
        dist.barrier()
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[RUNS // 2]


def measure(rank, processes, parameters, store, results):
    """Run one process: all-reduce of the gradients, and the merging of FDS's moments."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    moments = load("agedb-dir", "moments").BucketMoments
    gradients, like = torch.ones(parameters), torch.zeros(B, D)
    own = moments.empty(like)
    own.add(torch.randn(1000, D), torch.randint(0, B, (1000,)))
    seconds = [median_seconds(lambda: dist.all_reduce(gradients)), median_seconds(own.reduce)]
    if rank == 0:
        results.put(seconds)
    dist.destroy_process_group()


def main(argv=None):
    """Measure with each number of processes and print a row each; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="how many")
    parser.add_argument("--parameters", type=int, default=2_000_000, help="numbers of a gradient")
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("spawn")
    print("| processes | gradients, ms | FDS, ms |\n|---:|---:|---:|")
    rows = []
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            results = context.SimpleQueue()
            given = (processes, args.parameters, os.path.join(folder, "store"), results)
            multiprocessing.spawn(measure, given, processes)
            gradients, moments = results.get()
        rows.append((processes, gradients, moments))
        print(f"| {processes} | {1e3 * gradients:.1f} | {1e3 * moments:.1f} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
