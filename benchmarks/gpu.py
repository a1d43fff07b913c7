"""Everything that only a GPU can say, in parts that resume, the most valuable first.

    python benchmarks/gpu.py [--minutes 25] [--data PACK_OR_FOLDER] [--parts kernels steps ...]
    python benchmarks/gpu.py --pack gpu_data.zip --data ../shared/data

Each job writes a file into results/gpu/<device>/ when it ends, and is left out if the file exists;
kernels and steps write after each measurement. What fails leaves its error in a .failed.json until
it succeeds, and the others follow. Run the command again until it says that nothing is left. A
training that the time cuts off is asked to save, and resumes. No network is needed. `--pack` makes
one file of at most 60 MB: faces, depth pairs, sentences and word vectors, for a machine that has
nothing but this repository. Only the parts that train need data.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import zipfile
from pathlib import Path

from common import ROOT, exposed, load

PARTS = ("tests", "kernels", "steps", "loader", "sentences", "faces", "depths", "processes")
NEEDED = ("torch", "torchvision", "accelerate", "numpy", "pandas", "scipy", "PIL", "tqdm",
          "filelock", "matplotlib", "nltk")  # fmt: skip
CUDA_TESTS = ("fds", "nyud2_train", "shhs_train", "sts_b_train", "train", "waits")
OF_TESTS = ("pytest", "hypothesis", "h5py", "pyedflib")  # what these need in addition
TRAINING = ("sentences", "faces", "depths", "processes")  # parts that need data
TORCH = (2, 11)
PACK_LIMIT = 60_000_000  # bytes
SHARES = {"utkface": 0.38, "nyud2": 0.38}  # of the pack; sentences and vectors take what they need
VOCABULARY = 10_000  # words of the sentences that a step is timed on
SAVING = 60  # seconds in which a training that is stopped saves
TESTING = 300  # at most, of the tests, which cannot resume
SMALL = {  # flags of a training with --small
    "sentences": ["--d_hid", "8", "--val_interval", "2", "--max_vals", "2"],
    "faces": ["--model", "resnet18", "--img_size", "32", "--epoch", "2"],
    "depths": ["--model", "mini", "--downscale", "4", "--epochs", "2"],
}
LINES = 120  # of a failed job's output that are kept
LAST = 8  # of another's
METHODS = {
    "plain": [],
    "inverse": ["--reweight", "inverse"],
    "lds": ["--reweight", "inverse", "--lds"],
    "fds": ["--fds"],
    "lds_fds": ["--reweight", "inverse", "--lds", "--fds"],
}


def check_packages(names=None):
    """Raise SystemExit naming what is missing or too old."""
    missing = [name for name in names or NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing packages: {', '.join(missing).replace('PIL', 'pillow')}")
    version = importlib.metadata.version("torch")
    if tuple(int(x) for x in re.findall(r"\d+", version)[:2]) < TORCH:
        raise SystemExit(f"PyTorch {version} is too old: {'.'.join(map(str, TORCH))} is needed")


# ---- data ----------------------------------------------------------------------------------


def chosen_rows(rows, columns, folder, budget, seed=0):
    """Return rows in a drawn order while their files fit a budget of bytes."""
    rows, kept = list(rows), []
    random.Random(seed).shuffle(rows)
    for row in rows:
        budget -= sum((folder / row[column]).stat().st_size + 200 for column in columns)
        if budget < 0:
            break
        kept.append(row)
    return kept


def pack(source, target, limit=PACK_LIMIT):
    """Write the part of the data that fits into one zip file of at most `limit` bytes."""
    source = Path(source)
    with zipfile.ZipFile(target, "w") as archive:
        for path in (
            *sorted((source / "sts_b_dir").glob("*.tsv")),
            source / "vectors" / "glove300_mixed.txt",
        ):
            archive.write(path, path.relative_to(source), zipfile.ZIP_DEFLATED)
        for name, files, columns in (
            ("utkface", ("utkface.csv",), ("path",)),
            ("nyud2", ("nyu2_train.csv", "nyu2_test.csv"), (0, 1)),
        ):
            for file in files:
                budget = SHARES[name] * limit / len(files)
                with open(source / name / file, newline="", encoding="utf-8") as lines:
                    head = None if columns == (0, 1) else next(csv.reader(lines))
                    rows = list(csv.reader(lines))
                places = (0, 1) if head is None else (head.index("path"),)
                # A depth pair's paths begin with the data folder, as in the official files.
                strip = (lambda path: path.removeprefix("data/")) if head is None else str
                found = [[strip(cell) for cell in row] for row in rows]
                kept = chosen_rows(found, places, source / name, budget)
                for row in kept:
                    for place in places:
                        archive.write(source / name / row[place], f"{name}/{row[place]}")
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                prefix = "data/" if head is None else ""
                writer.writerows([head] if head else [])
                writer.writerows(
                    [prefix + c if i in places else c for i, c in enumerate(row)] for row in kept
                )
                archive.writestr(f"{name}/{file}", text.getvalue())
    size = Path(target).stat().st_size
    if size > limit:
        raise SystemExit(f"{target} has {size:,} bytes, more than {limit:,}")
    print(f"{target}: {size / 1e6:.1f} MB")


def data_folder(data, place):
    """Return the folder of the data: `data` itself, or where a pack was unpacked in `place`."""
    data = Path(data).absolute()
    if data.is_dir():
        return data
    if not data.is_file():
        raise FileNotFoundError(f"no data at {data}: give --data a folder or a pack")
    folder = place / "data"
    if not (folder / ".whole").is_file():
        with zipfile.ZipFile(data) as archive:
            archive.extractall(folder)
        (folder / ".whole").touch()
    return folder


def depth_pairs(data, place):
    """Return the folder of the depth pairs: a copy, with the subset and mask of prepare.py."""
    folder = place / "data" / "depths"
    made = "nyu2_train_FDS_subset.csv", "test_balanced_mask.npy"
    if not all((folder / name).is_file() for name in made):
        shutil.copytree(data / "nyud2", folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        folder.chmod(0o755)  # the original may be closed to writers
        command = [sys.executable, "prepare.py", "--data_dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT / "nyud2-dir", capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"prepare.py failed: {done.stderr[-2000:]}")
    return folder


# ---- jobs measured in this process ---------------------------------------------------------


def synchronizer(device):
    """Return what waits for the device."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def kernels(device, small):
    """Return {name: function of the rows so far -> row} of FDS on features and on maps."""
    shapes = {"2048 features": (64, 32) if small else (4096, 2048)}
    shapes["maps of 128 channels"] = (2, 8, 6, 5) if small else (32, 128, 114, 152)
    made = {}
    for what, shape in shapes.items():
        for dtype in ("float32", "bfloat16"):
            for compiled in (False, True):
                name = f"{what}, {dtype}{', compiled' * compiled}"
                options = device, shape, dtype, compiled and not small
                made[name] = lambda _, options=options: kernel_row(*options)
    return made


def kernel_row(device, shape, dtype, compiled):
    """Return ms and peak MiB of FDS, and the share of the device's copy bandwidth."""
    import torch

    from common import medians

    sync, few = synchronizer(device), 20 if device == "cuda" else 3
    module = load("agedb-dir", "fds").FDS(shape[1], 100, variant="paper").to(device)
    x = torch.randn(shape, device=device).to(getattr(torch, dtype))
    if x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    labels = torch.rand(shape[0], *shape[2:], device=device) * 100
    module.update_running_stats(x, labels, 0)
    module.update_last_epoch_stats(1)
    given, grad, target = x.clone().requires_grad_(), torch.ones_like(x), torch.empty_like(x)
    smooth = torch.compile(module.smooth, dynamic=False) if compiled else module.smooth

    def both():
        given.grad = None
        smooth(given, labels, 1).backward(grad)

    # Copies that the arithmetic cannot do without: of what is read and what is written.
    calls = {
        "copy": (lambda: target.copy_(x), 1),
        "smooth": (lambda: smooth(x, labels, 1), 1),
        "smooth, forward + backward": (both, 2),
        "statistics": (lambda: module.accumulate(x, labels, 1), 0.5),
    }
    with exposed("agedb-dir"):
        seconds = dict(zip(calls, medians([call for call, _ in calls.values()], few, sync)))
    bytes_moved = 2 * x.numel() * x.element_size()
    row = {"GB_per_s": bytes_moved / seconds["copy"] / 1e9}
    for name, (call, copies) in calls.items():
        share = copies * seconds["copy"] / seconds[name]
        row[name] = {"ms": 1e3 * seconds[name], "share_of_copy": share}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            row[name]["peak_MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return row


def networks(small):
    """Yield name, folder, flags, more arguments of build_model, and device -> inputs, labels."""
    import torch

    def faces(device):
        n, side = (2, 32) if small else (256, 224)
        x = torch.randn(n, 3, side, side, device=device).to(memory_format=torch.channels_last)
        return (x,), torch.rand(n, 1, device=device) * 100

    def depths(device):
        n, h, w = (1, 57, 76) if small else (32, 228, 304)
        x = torch.randn(n, 3, h, w, device=device).to(memory_format=torch.channels_last)
        return (x,), torch.rand(n, 1, -(-h // 2), -(-w // 2), device=device) * 9 + 0.7

    def sentences(device):
        n, longest = (2, 5) if small else (128, 30)
        ids = torch.randint(2, VOCABULARY, (2 * n, longest), device=device)
        lengths = torch.randint(3, longest + 1, (2 * n,))
        lengths[0] = longest
        packing = load("sts-b-dir", "packing").Packing.of(lengths, device)  # as a batch is read
        return (ids, packing), torch.rand(n, 1, device=device) * 5

    model = "resnet18" if small else "resnet50"
    yield "ResNet-50 at 224², batch 256", "agedb-dir", ["--model", model], (), faces
    flags = ["--d_hid", "8"] if small else ["--d_hid", "1500"]
    corpus = types.SimpleNamespace(words=range(VOCABULARY))
    yield "BiLSTM of 1500, batch 128", "sts-b-dir", flags, (corpus,), sentences
    flags = ["--model", "mini", "--downscale", "4"] if small else ["--no-pretrained_encoder"]
    yield "depth net, batch 32", "nyud2-dir", flags, (), depths


def steps(device, small):
    """Return {name: function of the rows so far -> row} of a training step of each network.

    Each in each precision: bare, with LDS's weights, with FDS, and with FDS's online statistics.
    """
    cases = {"fp32": ["--precision", "fp32"]} if device == "cpu" else {
        "bf16": ["--precision", "bf16"],
        "tf32": ["--precision", "tf32"],
        "bf16, compiled": ["--precision", "bf16", "--compile"],
    }  # fmt: skip
    kinds = {
        "bare": [],
        "lds": ["--reweight", "inverse", "--lds"],
        "fds": ["--fds"],
        "online": ["--fds", "--fds_stats", "online"],
    }
    made = {}
    for case, precision in cases.items():
        for network in networks(small):
            for kind, more in kinds.items():
                flags = [*precision, *more, "--device", device]

                def row(rows, bare=f"{network[0]}, {case}, bare", network=network, flags=flags):
                    ms = 1e3 * step_seconds(network, flags, device)
                    return {"ms": ms, "of_bare": ms / rows[bare]["ms"] if bare in rows else None}

                made[f"{network[0]}, {case}, {kind}"] = row
    return made


def step_seconds(network, flags, device):
    """Return the median seconds of a training step on one batch that lies on the device."""
    import torch

    from common import medians

    _, folder, own, extra, batch = network
    train = load(folder, "train")
    args = train.parse_args([*own, *flags])
    accelerator = train.utils.make_accelerator(device, args.precision)
    model = train.build_model(args, *extra)
    run = argparse.Namespace(args=args, accelerator=accelerator)
    dynamic = None if folder == "sts-b-dir" else False  # as its train.py
    optimizer = train.build_optimizer(args, model)
    net, optimizer = train.utils.prepare(run, model, optimizer, dynamic)
    inputs, labels = batch(device)
    weights = torch.rand_like(labels) if args.lds else None
    net.train()

    def step():
        with accelerator.autocast():
            preds, features = net(*inputs, labels, 1)
        losses = (preds.float() - labels).abs()
        loss = losses.mean() if weights is None else (losses * weights).mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if args.fds and args.fds_stats == "online":
            model.FDS.accumulate(features, labels, 1)

    few = 1 if device == "cpu" else 10
    with exposed(folder):
        return medians([step], few, synchronizer(device), warm=False)[0]


def run_rows(target, measurements, deadline, facts):
    """Take the measurements whose rows the file lacks, and write it after each.

    Returns:
        How many are left; the errors of those that failed are next to the file.
    """
    rows = json.loads(target.read_text())["rows"] if target.is_file() else {}
    errors = {}
    for name, measure in measurements.items():
        remaining = deadline - time.monotonic()
        if name in rows or remaining <= SAVING:
            continue
        print(f"{target.stem}, {name}: {remaining / 60:.1f} minutes are left", flush=True)
        try:
            rows[name] = measure(rows)
            write(target, {"rows": rows} | facts)
        except Exception:
            errors[name] = traceback.format_exc()
            print(errors[name])
        if not facts["device"].startswith("cpu"):
            empty_cache()
    left = measurements.keys() - rows.keys()
    if errors or not left:
        note_failure(target, errors and {"errors": errors} | facts)
    return len(left)


def empty_cache():
    """Give the GPU's memory back that nothing holds; a lost device is told by the next job."""
    import gc

    import torch

    gc.collect()
    with contextlib.suppress(RuntimeError):
        torch.compiler.reset()  # compiled networks of earlier measurements
        torch.cuda.empty_cache()


# ---- jobs in processes of their own --------------------------------------------------------


def training(folder, name, flags, place):
    """Return the job of one training: its name, its command and its folder."""
    runs = place / "runs" / name
    command = [sys.executable, "train.py", *map(str, flags), "--store_root", str(runs)]
    return f"{name}.json", [*command, "--track", "none", "--resume"], ROOT / folder


def jobs_of(part, args, place, data):
    """Return the jobs of a part: (file, command, folder), or (file, measurements, None)."""
    device, small = args.device, args.small
    python = sys.executable
    if part == "tests":
        check_packages(OF_TESTS)
        files = [f"tests/test_{name}.py" for name in CUDA_TESTS]
        several = ["-n", "4"] if importlib.util.find_spec("xdist") else []
        command = [python, "-m", "pytest", "-q", "-rs", "-m", "cuda", *several, *files]
        return [("tests.json", command, ROOT)]
    if part == "kernels":
        return [("kernels.json", kernels(device, small), None)]
    if part == "steps":
        return [("steps.json", steps(device, small), None)]
    if part == "loader":
        script = [python, str(ROOT / "benchmarks" / "imdb_scale.py"), "--parts", "gpu"]
        return [
            (f"loader_{c}.json", [*script, "--cases", c, "--json", place / f"figures_{c}"], ROOT)
            for c in ("bf16", "bf16_compiled", "tf32")
        ]
    if part == "processes":
        command = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]
        flags = [*faces_flags(data, device, place), "--model", "resnet18", "--epoch", "1", "--fds"]
        flags += SMALL["faces"] * small
        store = ["--store_root", str(place / "runs" / "processes"), "--track", "none"]
        return [("processes.json", [*command, *flags, *store, "--resume"], ROOT / "agedb-dir")]
    if part == "sentences":
        words = Path(data) / "vectors" / "glove300_mixed.txt"
        common = ["--data_dir", Path(data) / "sts_b_dir", "--word_embs_file", words]
        common += ["--cache", place / "cache", "--device", device, *SMALL[part] * small]
        return [
            training(
                "sts-b-dir", f"sentences_{seed}_{name}", [*common, "--seed", seed, *flags], place
            )
            for seed in range(3)
            for name, flags in METHODS.items()
        ]
    if part == "faces":
        common = [*faces_flags(data, device, place), "--epoch", "30", "--schedule", "20", "26"]
        common += SMALL[part] * small
        return [
            training("agedb-dir", f"faces_{name}", [*common, *flags], place)
            for name, flags in METHODS.items()
        ]
    pairs = depth_pairs(Path(data), place)
    common = ["--data_dir", pairs, "--no-pretrained_encoder", "--device", device]
    common += ["--cache", place / "cache", "--batch_size", "16", "--epochs", "20", "--lr_step", "8"]
    common += SMALL[part] * small
    return [
        training("nyud2-dir", f"depths_{name}", [*common, *flags], place)
        for name, flags in METHODS.items()
        if name != "inverse"
    ]


def faces_flags(data, device, place):
    """Return the flags of a training on the faces at 128²."""
    folder = Path(data) / "utkface"
    flags = ["--data_dir", folder, "--dataset", "utkface", "--img_size", "128", "--device", device]
    return [str(flag) for flag in [*flags, "--cache", place / "cache"]]


def run_command(command, folder, seconds):
    """Run a command for at most so many seconds; return its end, or None if the time was up."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        # A signal to this program comes as Ctrl-C does, so that the command ends with it.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)
            signal.signal(signal.SIGTERM, before)
        log.seek(0)
        tail = log.read()[-64_000:].replace(f"{ROOT}{os.sep}", "")
    lines = [line for line in tail.splitlines() if line.strip() and "%|" not in line]  # no bars
    kept = lines[-LINES if code else -LAST :]
    return {"code": code, "seconds": time.monotonic() - started, "output": kept}


def end(process):
    """End a command that still runs, and those that it has started, after time to save."""
    if process.poll() is not None:
        return
    process.terminate()  # train.py saves where it is
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAVING)
    finally:  # of another Ctrl-C, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def metrics_in(place, file):
    """Return the test metrics of the one training in a job's folder, or a loader's figures."""
    figures = place / file.replace("loader", "figures").removesuffix(".json")
    if figures.is_file():
        found = json.loads(figures.read_text())["gpu"]
        figures.unlink()
        return found
    found = sorted((place / "runs" / Path(file).stem).glob("*/results.json"))
    return json.loads(found[-1].read_text())["metrics"]["test"] if found else None


def device_name(device, small):
    """Return the device's name as a folder; figures of small sizes have one of their own."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"\W+", "_", name).strip("_").lower() + "_small" * small


def write(target, result):
    """Write a result so that a crash leaves the old file or the new one, whole."""
    text = json.dumps(result, indent=1) + "\n"
    load("agedb-dir", "files").write_atomically(target, text.encode())


def note_failure(target, result):
    """Write next to a result why it is missing, or remove what an earlier call wrote."""
    failed = target.with_suffix(".failed.json")
    write(failed, result) if result else failed.unlink(missing_ok=True)


def run_part(part, args, place, deadline):
    """Run the jobs of a part that have no file yet until the time is up; return how many left."""
    import torch

    facts = {"device": device_name(args.device, args.small), "torch": torch.__version__}
    facts["commit"] = load("agedb-dir", "utils").run_facts()["commit"]
    data = data_folder(args.data, place) if part in TRAINING else None
    left = 0
    for file, what, folder in jobs_of(part, args, place, data):
        target, remaining = place / file, deadline - time.monotonic()
        if folder is None:
            left += run_rows(target, what, deadline, facts)
            continue
        if target.is_file():
            continue
        left += 1
        if remaining <= SAVING:
            continue
        print(f"{file}: {remaining / 60:.1f} minutes are left", flush=True)
        seconds = min(remaining - SAVING, TESTING if part == "tests" else remaining)
        result = run_command([str(word) for word in what], folder, seconds)
        if result is None:
            print(f"{file}: not done in {seconds / 60:.1f} minutes; the next call tries again")
            continue
        result |= facts | {"metrics": metrics_in(place, file)}
        if result["code"]:
            print("\n".join(result["output"]))
            note_failure(target, result)  # is tried again
            continue
        write(target, result)
        note_failure(target, None)
        left -= 1
    return left


def main(argv=None):
    """Run what is left, or make the pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25, help="time of this call")
    parser.add_argument("--data", default=ROOT.parent / "shared" / "data", help="folder or pack")
    parser.add_argument("--pack", help="write the data of --data to this file, and end")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="what to do")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="device")
    parser.add_argument("--out", default=ROOT / "results" / "gpu", help="folder of the results")
    parser.add_argument("--small", action="store_true", help="sizes for a try on the CPU")
    args = parser.parse_args(argv)
    if args.pack:
        return pack(args.data, args.pack)
    deadline = time.monotonic() + 60 * args.minutes
    check_packages()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible to PyTorch; --device cpu --small is a try")
    place = (Path(args.out) / device_name(args.device, args.small)).absolute()
    place.mkdir(parents=True, exist_ok=True)
    left = 0
    for part in args.parts:
        try:
            left += run_part(part, args, place, deadline)
            if part in TRAINING:
                note_failure(place / f"{part}.json", None)  # its data are there now
        except (Exception, SystemExit) as error:  # the other parts follow
            print(f"{part}: {error}")
            note_failure(place / f"{part}.json", {"error": traceback.format_exc()})
            left += 1
    print(f"{left} jobs are left: run the command again" if left else "nothing is left", place)
    return left


if __name__ == "__main__":
    sys.exit(bool(main()))
