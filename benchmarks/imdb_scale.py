"""The large age set at its real size: preparation, start-up, memory, processes, and a GPU.

    OMP_NUM_THREADS=1 python benchmarks/imdb_scale.py [--parts startup memory ...] [--json FILE]

All data are generated: MATLAB files of 523,051 rows, a meta file of 213,553 faces whose images
are empty files, and a cache of that many images at 224² that is sparse, so that its 32 GB take no
disk. `benchmarks/SCALING.md` says what the figures mean.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from common import ROOT, exposed, load

FOLDER = "imdb-wiki-dir"
ROWS = {"imdb": 460_723, "wiki": 62_328}  # of the MATLAB files
COUNT, IMG_SIZE, BATCH, STEPS = 213_553, 224, 256, 200
GPU_BATCHES = 30  # of a measured pass on a GPU
CASES = {  # of which there
    "bf16": ["--precision", "bf16"],
    "tf32": ["--precision", "tf32"],
    "bf16_compiled": ["--precision", "bf16", "--compile"],
}
METHODS = "--reweight sqrt_inv --lds --fds --fds_ks 5 --fds_sigma 2".split()
PARTS = ("prepare", "startup", "build", "disk", "memory", "processes", "gpu")


class Stub(nn.Module):
    """A network that costs next to nothing, with FDS on as many features as ResNet-50 has."""

    def __init__(self, module):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden, self.linear, self.FDS = nn.Linear(3, 2048), nn.Linear(2048, 1), module

    def forward(self, images, labels=None, epoch=None):
        features = calibrated = self.hidden(self.pool(images[:, :, ::8, ::8]).flatten(1))
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features


# ---- generated data ------------------------------------------------------------------------


def make_faces(folder, count, img_size, holes=True):
    """Write a meta file, empty image files and, with `holes`, a finished cache without content."""
    rng = np.random.default_rng(0)
    ages = np.clip(np.round(rng.gamma(9, 4, count)), 0, 186).astype(int)
    names = [f"nm{i // 20:07}_rm{i:09}_1950-3-2_2001.jpg" for i in range(count)]
    paths = [f"imdb_crop/{i % 100:02}/{name}" for i, name in enumerate(names)]
    for i in range(100):
        (folder / f"imdb_crop/{i:02}").mkdir(parents=True)
    for path in paths:
        os.close(os.open(folder / path, os.O_CREAT))
    meta = pd.DataFrame({"age": ages, "path": paths})
    meta["split"] = load(FOLDER, "meta_file").balanced_split(ages, paths, 150)
    meta.to_csv(folder / "imdb_wiki.csv", index=False)
    if holes:
        Images = load(FOLDER, "image_cache").Images
        build, shape = Images._build, (count, img_size, img_size, 3)

        def build_holes(self, target):
            np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
            empty = load(FOLDER, "array_cache").check_sum(np.zeros(shape[1:], np.uint8))
            np.full(count, empty, np.uint32).tofile(target.with_suffix(".rows"))

        Images._build = build_holes
        try:
            Images(folder, paths, img_size, folder / "cache", "imdb_wiki", quiet=True)
        finally:
            Images._build = build


def write_matlab_files(folder, rows):
    """Write `imdb.mat` and `wiki.mat` of as many rows as `rows` says for each."""
    demo_data = load(FOLDER, "demo_data")
    drawn = demo_data.draw_rows(2000, np.random.default_rng(0))
    for source, count in rows.items():
        numbered = [
            drawn[i % len(drawn)] | {"number": i, "full_path": f"{i % 100:02}/nm{i:07}_rm{i}.jpg"}
            for i in range(count)
        ]
        (folder / f"{source}_crop").mkdir(parents=True)
        content = demo_data.matlab_file(numbered, source)
        (folder / f"{source}_crop" / f"{source}.mat").write_bytes(content)


# ---- parts on the CPU ----------------------------------------------------------------------


def own_process(*words, launcher=()):
    """Start this script for one of its inner parts."""
    command = [sys.executable, *launcher, __file__, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result_of(process):
    """Return what an inner part prints as its last line of JSON."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with status {process.returncode}")
    return json.loads(out.strip().splitlines()[-1])


def measure_prepare(folder, rows=None, runs=3):
    """Time prepare.py, its imports included, on MATLAB files of the real number of rows."""
    rows = rows or ROWS
    write_matlab_files(folder, rows)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        command = [sys.executable, "prepare.py", "--data_dir", str(folder), "--overwrite"]
        subprocess.run(command, cwd=ROOT / FOLDER, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return {"rows": sum(rows.values()), "seconds": statistics.median(seconds), "goal": "< 20 s"}


def start_up(folder, img_size):
    """Time in this process what stands before the first batch, after the imports."""
    datasets, metrics = load(FOLDER, "datasets"), load(FOLDER, "metrics")
    seconds, clock = {}, time.perf_counter()

    def lap(name):
        nonlocal clock
        seconds[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    meta = datasets.read_meta(folder, "imdb_wiki")
    lap("csv")
    labels = meta["age"].to_numpy()[(meta["split"] == "train").to_numpy()]
    datasets.sample_weights(labels, "sqrt_inv", lds=True)
    lap("weights")
    metrics.shots_of_buckets(labels)
    lap("shots")
    cache, Images = Path(folder) / "cache", load(FOLDER, "image_cache").Images
    Images(folder, meta["path"], img_size, cache, "imdb_wiki", quiet=True)
    lap("cache opened")
    return seconds | {"csv, weights, shots": sum(seconds[k] for k in ("csv", "weights", "shots"))}


def measure_startup(folder, img_size, runs=5):
    """Return the median seconds of each step before the first batch, in processes of their own."""
    times = [result_of(own_process("--inner", "startup", folder, img_size)) for _ in range(runs)]
    return {k: statistics.median(t[k] for t in times) for k in times[0]} | {"goal": "< 3 s"}


def measure_build(folder, count=600, img_size=224):
    """Return images/s, and CPU time, of a cache from 300-pixel JPEGs by one thread and by all."""
    rng, names = np.random.default_rng(0), [f"{i}.jpg" for i in range(count)]
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((300, 300), Image.Resampling.BICUBIC))
        pixels = (pixels + rng.normal(0, 4, (300, 300, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=90)
    Images, found = load(FOLDER, "image_cache").Images, {}
    for run in range(3):
        for threads in sorted({1, os.cpu_count() or 1}):
            cache = folder / f"cache{run}_{threads}"
            clocks = (time.perf_counter, time.process_time)
            starts = [clock() for clock in clocks]
            Images(folder, names, img_size, cache, workers=threads, quiet=True)
            wall, work = (clock() - start for clock, start in zip(clocks, starts))
            found.setdefault(f"images/s, {threads} threads", []).append(count / wall)
            found.setdefault(f"CPU ms an image, {threads} threads", []).append(1e3 * work / count)
    return {what: statistics.median(values) for what, values in found.items()}


def measure_disk(folder, count=20_000, img_size=224, batch_size=256, batches=8):
    """Return images/s of random batches that lie on the disk alone, and of those in memory.

    The plain side indexes the mapped array, as one does without a thought.
    """
    image_cache, rng = load(FOLDER, "image_cache"), np.random.default_rng(0)
    images = object.__new__(image_cache.Images)
    array = np.lib.format.open_memmap(
        folder / "a.npy", mode="w+", dtype=np.uint8, shape=(count, img_size, img_size, 3)
    )
    for i in range(0, count, 500):
        array[i : i + 500] = rng.integers(0, 256, array[i : i + 500].shape, dtype=np.uint8)
    array.flush()
    del array

    def rate(read, cold):
        with open(folder / "a.npy", "rb") as file:
            if cold:  # takes the file out of memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        images.array = np.load(folder / "a.npy", mmap_mode="r")
        rows = rng.permutation(count)[: batches * batch_size].reshape(batches, -1)
        if not cold:
            [read(part) for part in rows]
        seconds = []
        for part in rows:
            start = time.perf_counter()
            read(part)
            seconds.append(time.perf_counter() - start)
        return batch_size / statistics.median(seconds)

    sides = {"indexed": lambda rows: images.array.take(rows, axis=0), "ours": images.read}
    rates = {}
    for _, cold, (name, read) in itertools.product(range(3), (True, False), sides.items()):
        where = "on the disk" if cold else "in memory"
        rates.setdefault(f"images/s {where}, {name}", []).append(rate(read, cold))
    return {what: statistics.median(values) for what, values in rates.items()}


def short_training(folder, img_size, batch_size, steps, network):
    """Run train.py's main in this process for one epoch of `steps` steps.

    Returns:
        Dictionary of images/s in the training pass and in the pass for FDS's statistics, of the
        share of the training pass spent waiting for batches, and of the processor's time for an
        image in it, all processes together: that also tells something on a busy machine.
    """
    train = load(FOLDER, "train")

    class Short(train.Loader):
        def __len__(self):
            return min(steps, super().__len__())

        def train(self, *arguments, **options):
            return itertools.islice(super().train(*arguments, **options), len(self))

    work, one_epoch = [], train.train_one_epoch

    def timed(*arguments):
        start = time.process_time()
        row = one_epoch(*arguments)
        work.append(time.process_time() - start)
        return row

    train.train_one_epoch, train.Loader, plain = timed, Short, train.build_model
    if network == "stub":
        train.build_model = lambda args, fresh=False: Stub(plain(args).FDS)
    store = Path(folder) / f"runs{os.environ.get('WORLD_SIZE', 1)}{network}"
    flags = ["--data_dir", str(folder), "--store_root", str(store), "--track", "none", "--epoch", 1]
    flags += ["--img_size", img_size, "--batch_size", batch_size, "--device", "cpu", "--overwrite"]
    flags += ["--model", "resnet50" if network == "stub" else network, *METHODS]
    train.main([str(flag) for flag in flags])
    row = json.loads(next(store.glob("*/epochs.jsonl")).read_text().splitlines()[-1])
    seconds, images = row["seconds"], steps * batch_size
    return {
        "training images/s": images / seconds["train"],
        "statistics images/s": images / seconds["statistics"],
        "share waiting for data": seconds["data"] / seconds["train"],
        "CPU ms an image": 1e3 * work[0] * int(os.environ.get("WORLD_SIZE", 1)) / images,
    }


def anonymous_mib(pid):
    """Return the RssAnon of a process and all below it, MiB (Linux)."""
    total = 0
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += anonymous_mib(word)
    status = Path(f"/proc/{pid}/status").read_text()
    return total + int(status.split("RssAnon:")[1].split()[0]) / 1024 if "RssAnon" in status else 0


def run_training(folder, processes, img_size, batch_size, steps, network):
    """Run `short_training` in processes of its own; also return their RssAnon at the peak, MiB."""
    launch = f"-m torch.distributed.run --standalone --nproc_per_node={processes}".split()
    words = ("--inner", "train", folder, img_size, batch_size, steps, network)
    process, peak = own_process(*words, launcher=launch if processes > 1 else ()), 0.0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
            peak = max(peak, anonymous_mib(process.pid))
        time.sleep(0.1)
    return result_of(process) | {"RssAnon of all, MiB": peak}


def measure_memory(folder, img_size, batch_size, steps):
    """Return memory and speed of a stub network's run, by one process and by two."""
    return {
        processes: run_training(folder, processes, img_size, batch_size, steps, "stub")
        for processes in (1, 2)
    }


def measure_processes(folder, runs=3, img_size=64, batch_size=64, steps=8):
    """Return images/s of a real network by one process and by two, of equal global batch."""
    found = {1: [], 2: []}
    for _, processes in itertools.product(range(runs), found):
        result = run_training(folder, processes, img_size, batch_size, steps, "resnet18")
        found[processes].append(result)
    return {
        f"{what}, {n} processes": statistics.median(result[what] for result in results)
        for what in ("training images/s", "CPU ms an image")
        for n, results in found.items()
    }


# ---- GPU -----------------------------------------------------------------------------------


class Resident:
    """A loader's stand-in whose batches lie on the device already: one batch, again and again."""

    def __init__(self, loader):
        self.batch, self.length = next(iter(loader.train(0))), len(loader)
        self.prior = loader.prior

    def __len__(self):
        return self.length

    def train(self, *_, **__):
        return itertools.repeat(self.batch, self.length)


def make_run(train, loader_of, flags):
    """Return functions that train on a loader, and gather FDS's statistics, and the loader."""
    args = train.parse_args([str(flag) for flag in flags])
    accelerator = train.utils.make_accelerator(args.device, args.precision)
    run = train.run_folder.Run(args, train.make_parser(), accelerator, None, {})
    model = train.build_model(args)
    model.regularizer = train.regularizers.NoRegularizer()
    net, optimizer = train.utils.prepare(run, model, train.build_optimizer(args, model))

    def step_seconds(batches):
        row = train.train_one_epoch(run, net, model, optimizer, batches, 1)
        return row["seconds"]["train"] / len(batches)

    def statistics_seconds(batches):
        seconds = train.update_fds_statistics(run, model, batches, 1)
        return seconds["statistics"] / len(batches)

    return step_seconds, statistics_seconds, loader_of(args, accelerator)


def alternate(functions, runs=3):
    """Call functions in turn, once unmeasured; return the median of what each returns."""
    values = [[function() for function in functions] for _ in range(runs + 1)][1:]
    return [statistics.median(column) for column in zip(*values)]


def measure_gpu(train, images, batch_size, cases, common):
    """Compare training from the cache with training on resident data, and what FDS costs.

    Args:
        train: the folder's train.py, loaded.
        images: `image_cache.Images` of some whole batches.
        batch_size: of a step.
        cases: {name: flags of train.py}.
        common: flags of all cases.

    Returns:
        A dictionary per case: images/s and shares, each next to its goal.
    """
    count = len(images) // batch_size * batch_size
    labels = np.clip(np.random.default_rng(0).gamma(9, 4, count), 0, 100)

    def loader_of(args, accelerator):
        sharing = train.Sharing.of(args, accelerator)
        return train.Loader(images, np.arange(count), labels, np.ones(121), sharing)

    rows = {}
    for name, flags in cases.items():
        flags, seconds = [*common, *flags, "--batch_size", batch_size], {}
        # One network after the other, so that each has the device's memory to itself.
        for kind, more in (("plain", []), ("fds", METHODS),
                           ("online", [*METHODS, "--fds_stats", "online"])):  # fmt: skip
            step, gather, loader = make_run(train, loader_of, [*flags, *more])
            resident = Resident(loader)
            calls = [lambda f=step, x=loader: f(x), lambda f=step, x=resident: f(x)]
            calls += [lambda f=gather, x=loader: f(x)] * (kind == "fds")
            with exposed(FOLDER):
                seconds[kind] = alternate(calls)
        rows[name] = {
            "images/s from the cache": batch_size / seconds["plain"][0],
            "images/s, data on the device": batch_size / seconds["plain"][1],
            "share (goal >= 0.9)": seconds["plain"][1] / seconds["plain"][0],
            "share with FDS (goal >= 0.9)": seconds["fds"][1] / seconds["fds"][0],
            "FDS adds to a step (goal <= 0.03)": seconds["fds"][1] / seconds["plain"][1] - 1,
            "extra pass, of an epoch (goal <= 0.25)": seconds["fds"][2]
            / (seconds["fds"][0] + seconds["fds"][2]),
            "online adds to a step (goal <= 0.03)": seconds["online"][1] / seconds["fds"][1] - 1,
        }
    return rows


def run_gpu(folder, cases):
    """Measure on the first CUDA device; say so and return None without one."""
    if not torch.cuda.is_available():
        return print("gpu: skipped, no CUDA device is visible to PyTorch")
    count = GPU_BATCHES * BATCH
    make_faces(folder, count, IMG_SIZE)
    train, paths = load(FOLDER, "train"), pd.read_csv(folder / "imdb_wiki.csv")["path"]
    images = load(FOLDER, "image_cache").Images(
        folder, paths, IMG_SIZE, folder / "cache", "imdb_wiki", quiet=True
    )
    print(f"gpu: {torch.cuda.get_device_name()}, ResNet-50 at {IMG_SIZE}², batch {BATCH}")
    return measure_gpu(
        train, images, BATCH, {case: CASES[case] for case in cases}, ["--device", "cuda"]
    )


# ---- main ----------------------------------------------------------------------------------


def run_inner(part, folder, *numbers):
    """Run an inner part in this process and print its result as the last line."""
    sizes = [int(number) for number in numbers[:3]]
    if part == "startup":
        result = start_up(folder, *sizes)
    else:
        result = short_training(folder, *sizes, *numbers[3:])
    print(json.dumps(result))


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="what to measure")
    parser.add_argument(
        "--cases", nargs="*", default=CASES, choices=CASES, help="of the GPU's part"
    )
    parser.add_argument("--json", help="file for the figures, a JSON object a line")
    parser.add_argument("--inner", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.inner:
        return run_inner(*args.inner)
    functions = {
        "prepare": measure_prepare,
        "startup": lambda folder: measure_startup(folder, IMG_SIZE),
        "build": measure_build,
        "disk": measure_disk,
        "memory": lambda folder: measure_memory(folder, IMG_SIZE, BATCH, STEPS),
        "processes": measure_processes,
        "gpu": lambda folder: run_gpu(folder, args.cases),
    }
    sizes = {"startup": (COUNT, IMG_SIZE), "memory": (COUNT, IMG_SIZE), "processes": (2000, 64)}
    results = {}
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            if part in sizes:
                make_faces(Path(folder), *sizes[part])
            results[part] = functions[part](Path(folder))
        if results[part] is not None:
            print(f"{part}: {json.dumps(results[part], indent=1)}", flush=True)
    if args.json:
        lines = [json.dumps({part: result}) for part, result in results.items()]
        Path(args.json).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
