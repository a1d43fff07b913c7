"""Everything that only a GPU can say, in parts that resume, the most valuable first.

    python benchmarks/gpu.py [--minutes 25] [--data PACK_OR_FOLDER] [--parts kernels steps ...]
    python benchmarks/gpu.py --pack gpu_data.zip --data ../shared/data

Each job writes a file into results/gpu/<device>/ when it ends, and is left out if the file exists.
Run the command again until it says that nothing is left. A training that the time cuts off is asked
to save, and resumes. No network is needed. `--pack` makes one file of at most 60 MB: faces, depth
pairs, sentences and word vectors, for a machine that has nothing but this repository.
"""

import argparse
import csv
import importlib.metadata
import importlib.util
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "kernels", "steps", "loader", "sentences", "faces", "depths", "processes")
NEEDED = ("torch", "torchvision", "accelerate", "numpy", "pandas", "scipy", "PIL", "tqdm",
          "filelock", "matplotlib", "nltk")  # fmt: skip
TORCH = (2, 11)
PACK_LIMIT = 60_000_000  # bytes
SHARES = {"utkface": 0.38, "nyud2": 0.38}  # of the pack; sentences and vectors take what they need
SAVING = 60  # seconds in which a training that is stopped saves
METHODS = {
    "plain": [],
    "inverse": ["--reweight", "inverse"],
    "lds": ["--reweight", "inverse", "--lds"],
    "fds": ["--fds"],
    "lds_fds": ["--reweight", "inverse", "--lds", "--fds"],
}


def check_packages():
    """Raise SystemExit naming what is missing or too old."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
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
    data = Path(data)
    if data.is_dir():
        return data
    folder = place / "data"
    if not (folder / ".whole").is_file():
        with zipfile.ZipFile(data) as archive:
            archive.extractall(folder)
        (folder / ".whole").touch()
    return folder


# ---- jobs measured in this process ---------------------------------------------------------


def synchronizer(device):
    """Return what waits for the device."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def measure_kernels(device, small):
    """Return ms of FDS on features and on maps, and the share of the device's copy bandwidth."""
    import torch

    from common import load, medians

    fds, sync, rows = load("agedb-dir", "fds"), synchronizer(device), {}
    shapes = {"2048 features": (64, 32) if small else (4096, 2048)}
    shapes["maps of 128 channels"] = (2, 8, 6, 5) if small else (32, 128, 114, 152)
    for what, shape in shapes.items():
        module = fds.FDS(shape[1], 100, variant="paper").to(device)
        x = torch.randn(shape, device=device)
        if x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
        labels = torch.rand(shape[0], *shape[2:], device=device) * 100
        module.update_running_stats(x, labels, 0)
        module.update_last_epoch_stats(1)
        given, grad, target = x.clone().requires_grad_(), torch.ones_like(x), torch.empty_like(x)
        compiled = module.smooth if small else torch.compile(module.smooth, dynamic=False)

        def both(smooth, given=given, labels=labels, grad=grad):
            given.grad = None
            smooth(given, labels, 1).backward(grad)

        # Copies that the arithmetic cannot do without: of what is read and what is written.
        calls = {
            "copy": (lambda x=x, target=target: target.copy_(x), 1),
            "smooth": (lambda m=module, x=x, y=labels: m.smooth(x, y, 1), 1),
            "smooth, compiled": (lambda f=compiled, x=x, y=labels: f(x, y, 1), 1),
            "smooth, forward + backward": (lambda m=module: both(m.smooth), 2),
            "the same, compiled": (lambda f=compiled: both(f), 2),
            "statistics": (lambda m=module, x=x, y=labels: m.accumulate(x, y, 1), 0.5),
        }
        seconds = medians([call for call, _ in calls.values()], 3 if small else 20, sync)
        copy = seconds[0]
        for (name, (_, copies)), each in zip(calls.items(), seconds):
            share = copies * copy / each
            rows[f"{what}: {name}"] = {"ms": 1e3 * each, "share_of_copy": share}
        rows[f"{what}: copy"]["GB_per_s"] = 2 * x.numel() * 4 / copy / 1e9
    return rows


def networks(small):
    """Yield name, folder, flags, and a function (device) -> a batch's arguments and labels."""
    import torch

    def faces(device):
        n, side = (2, 32) if small else (256, 224)
        x = torch.randn(n, 3, side, side, device=device).to(memory_format=torch.channels_last)
        return (x, torch.rand(n, 1, device=device) * 100)

    def depths(device):
        n, h, w = (1, 57, 76) if small else (32, 228, 304)
        x = torch.randn(n, 3, h, w, device=device).to(memory_format=torch.channels_last)
        return (x, torch.rand(n, 1, -(-h // 2), -(-w // 2), device=device) * 9 + 0.7)

    model = "resnet18" if small else "resnet50"
    yield "ResNet-50 at 224², batch 256", "agedb-dir", ["--model", model], faces
    flags = ["--model", "mini", "--downscale", "4"] if small else ["--no-pretrained_encoder"]
    yield "depth net, batch 32", "nyud2-dir", flags, depths


def step_seconds(train, args, batch, device):
    """Return the median seconds of a training step on one batch that lies on the device."""
    import torch

    from common import medians

    utils = train.utils
    accelerator = utils.make_accelerator(device, args.precision)
    model = train.build_model(args)
    run = argparse.Namespace(args=args, accelerator=accelerator)
    net, optimizer = utils.prepare(run, model, train.build_optimizer(args, model))
    images, labels = batch(device)
    net.train()

    def step():
        with accelerator.autocast():
            preds, features = net(images, labels, 1)
        loss = (preds.float() - labels).abs().mean()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if args.fds and args.fds_stats == "online":
            model.FDS.accumulate(features, labels, 1)

    few = 1 if device == "cpu" else 10
    seconds = medians([step], few, synchronizer(device), warm=False)[0]
    if device == "cuda":
        torch.cuda.empty_cache()
    return seconds


def measure_steps(device, small):
    """Return ms of a step of each network in each precision: bare, with FDS, and FDS online."""
    from common import load

    rows = {}
    for name, folder, flags, batch in networks(small):
        train = load(folder, "train")
        cases = {"fp32": ["--precision", "fp32"]} if device == "cpu" else {
            "tf32": ["--precision", "tf32"],
            "bf16": ["--precision", "bf16"],
            "bf16, compiled": ["--precision", "bf16", "--compile"],
        }  # fmt: skip
        for case, more in cases.items():
            row = rows[f"{name}, {case}"] = {}
            for what, fds in (
                ("bare", []), ("fds", ["--fds"]), ("online", ["--fds", "--fds_stats", "online"]),
            ):  # fmt: skip
                args = train.parse_args([*flags, *more, *fds, "--device", device])
                row[f"{what}_ms"] = 1e3 * step_seconds(train, args, batch, device)
            row["fds_adds"] = row["fds_ms"] / row["bare_ms"] - 1
    return rows


# ---- jobs in processes of their own --------------------------------------------------------


def training(folder, name, flags, place):
    """Return the job of one training: its name, its command and its folder."""
    runs = place / "runs" / name
    command = [sys.executable, "train.py", *map(str, flags), "--store_root", str(runs)]
    return f"{name}.json", [*command, "--track", "none", "--resume"], ROOT / folder


def jobs_of(part, args, place, data):
    """Return the jobs of a part: (file, command or function, folder)."""
    device, small = args.device, args.small
    python = sys.executable
    if part == "tests":
        command = [python, "-m", "pytest", "-q", "-m", "cuda", "tests"]
        return [("tests.json", command, ROOT)]
    if part == "kernels":
        return [("kernels.json", lambda: measure_kernels(device, small), None)]
    if part == "steps":
        return [("steps.json", lambda: measure_steps(device, small), None)]
    if part == "loader":
        script = [python, str(ROOT / "benchmarks" / "imdb_scale.py"), "--parts", "gpu"]
        return [("loader.json", script, ROOT)]
    if part == "processes":
        command = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]
        flags = [*faces_flags(data, device, place), "--model", "resnet18", "--epoch", "1", "--fds"]
        store = ["--store_root", str(place / "runs" / "processes"), "--track", "none"]
        return [("processes.json", [*command, *flags, *store, "--resume"], ROOT / "agedb-dir")]
    if part == "sentences":
        words = Path(data) / "vectors" / "glove300_mixed.txt"
        common = ["--data_dir", Path(data) / "sts_b_dir", "--word_embs_file", words]
        common += ["--cache", place / "cache", "--device", device]
        return [
            training(
                "sts-b-dir", f"sentences_{seed}_{name}", [*common, "--seed", seed, *flags], place
            )
            for seed in range(3)
            for name, flags in METHODS.items()
        ]
    if part == "faces":
        common = [*faces_flags(data, device, place), "--epoch", "30", "--schedule", "20", "26"]
        return [
            training("agedb-dir", f"faces_{name}", [*common, *flags], place)
            for name, flags in METHODS.items()
        ]
    common = ["--data_dir", Path(data) / "nyud2", "--no-pretrained_encoder", "--device", device]
    common += ["--cache", place / "cache", "--batch_size", "16", "--epochs", "20", "--lr_step", "8"]
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
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # train.py saves where it is
            try:
                process.wait(SAVING)
            except subprocess.TimeoutExpired:
                process.kill()
            return None
        log.seek(0)
        tail = log.read()[-4000:]
    return {"code": code, "seconds": time.monotonic() - started, "output": tail.splitlines()[-40:]}


def metrics_in(place, file):
    """Return the test metrics of the one training in a job's folder, if there is one."""
    found = sorted((place / "runs" / Path(file).stem).glob("*/results.json"))
    return json.loads(found[-1].read_text())["metrics"]["test"] if found else None


def device_name(device):
    """Return the device's name as a folder."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return re.sub(r"\W+", "_", name).strip("_").lower()


def run_jobs(args, place, data, deadline):
    """Run the jobs that have no file yet until the time is up; return how many are left."""
    import torch

    left = 0
    for part in args.parts:
        for file, what, folder in jobs_of(part, args, place, data):
            target = place / file
            remaining = deadline - time.monotonic()
            if target.is_file():
                continue
            if remaining <= SAVING:
                left += 1
                continue
            print(f"{file}: {remaining / 60:.1f} minutes are left", flush=True)
            if callable(what):
                result = {"rows": what()}
            else:
                result = run_command([str(word) for word in what], folder, remaining - SAVING)
            if result is None:
                left += 1
                continue
            result |= {"device": device_name(args.device), "torch": torch.__version__}
            result |= {"metrics": metrics_in(place, file)}
            if result.get("code"):
                target = target.with_suffix(".failed.json")  # is tried again
                left += 1
                print("\n".join(result["output"]))
            target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
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
    place = (Path(args.out) / device_name(args.device)).absolute()
    place.mkdir(parents=True, exist_ok=True)
    data = data_folder(args.data, place).absolute()
    left = run_jobs(args, place, data, deadline)
    print(f"{left} jobs are left: run the command again" if left else "nothing is left", place)
    return left


if __name__ == "__main__":
    main()
