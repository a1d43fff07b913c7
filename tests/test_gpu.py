"""benchmarks/gpu.py on the CPU: its measurements, its jobs' flags, its resuming and its pack."""

import ast
import importlib
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, load

sys.path.insert(0, str(ROOT / "benchmarks"))
gpu = load("benchmarks", "gpu")


@pytest.fixture
def data(tmp_path):
    """A few files of each data set, in the layout of the real ones."""
    folder = tmp_path / "data"
    for name in ("sts_b_dir", "vectors", "utkface/UTKFace", "nyud2/nyu2_train", "nyud2/nyu2_test"):
        (folder / name).mkdir(parents=True)
    for name in ("train_new", "dev_new", "test_new"):
        (folder / "sts_b_dir" / f"{name}.tsv").write_text("a\tb\t1.0\n")
    (folder / "vectors" / "glove300_mixed.txt").write_text("a 0.5 0.25\n")
    rng, rows = np.random.default_rng(0), ["age,path,split"]
    for i in range(6):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "utkface" / "UTKFace" / f"{i}.jpg")
        rows.append(f"{20 + i},UTKFace/{i}.jpg,train")
    (folder / "utkface" / "utkface.csv").write_text("\n".join(rows) + "\n")
    for split, dtype, most in (("train", np.uint8, 256), ("test", np.uint16, 9000)):
        for i in range(4):
            stem = folder / "nyud2" / f"nyu2_{split}" / str(i)
            colours = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
            Image.fromarray(colours).save(f"{stem}.jpg", quality=1)
            depth = np.repeat(np.linspace(most // 10, most - 1, 240).astype(dtype)[:, None], 320, 1)
            Image.fromarray(depth).save(f"{stem}.png")
        pairs = [f"data/nyu2_{split}/{i}.jpg,data/nyu2_{split}/{i}.png" for i in range(4)]
        (folder / "nyud2" / f"nyu2_{split}.csv").write_text("\n".join(pairs) + "\n")
    return folder


def test_the_pack_holds_what_its_lists_name(data, tmp_path):
    gpu.main(["--pack", str(tmp_path / "pack.zip"), "--data", str(data)])
    folder = gpu.data_folder(tmp_path / "pack.zip", tmp_path / "there")
    rows = sorted((folder / "utkface" / "utkface.csv").read_text().splitlines())
    assert rows == sorted((data / "utkface" / "utkface.csv").read_text().splitlines())
    for row in rows[:-1]:
        path = "utkface/" + row.split(",")[1]
        assert (folder / path).read_bytes() == (data / path).read_bytes()
    pairs = (folder / "nyud2" / "nyu2_test.csv").read_text().splitlines()
    assert len(pairs) == 4
    assert all((folder / "nyud2" / p.removeprefix("data/")).is_file() for p in pairs[0].split(","))
    small = 12_000  # bytes: then only some of the files go in
    gpu.pack(data, tmp_path / "small.zip", small)
    assert (tmp_path / "small.zip").stat().st_size <= small
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        names = archive.namelist()
        listed = archive.read("utkface/utkface.csv").decode().split()[1:]
    assert 0 < len(listed) < 6
    assert len([name for name in names if "UTKFace" in name]) == len(listed)
    with pytest.raises(SystemExit, match="more than 300"):
        gpu.pack(data, tmp_path / "none.zip", 300)


@pytest.mark.parametrize("small", [False, True])
def test_every_training_has_flags_that_its_program_takes(data, tmp_path, small):
    args = gpu.argparse.Namespace(device="cpu", small=small)
    names = set()
    for part in ("sentences", "faces", "depths", "processes"):
        for file, command, folder in gpu.jobs_of(part, args, tmp_path, data):
            flags = [str(word) for word in command[command.index("train.py") + 1 :]]
            parsed = load(folder.name, "train").parse_args(flags)
            sizes = {"sentences": "d_hid", "depths": "epochs"}
            full = {"sentences": 1500, "depths": 20}
            tiny = {"sentences": 8, "depths": 2}
            size = getattr(parsed, sizes.get(part, "img_size"))
            assert size == (tiny.get(part, 32) if small else full.get(part, 128))
            assert (parsed.data_dir or "").startswith(str(data)), file
            assert (folder / "train.py").is_file()
            names.add(file)
    assert len(names) == 15 + 5 + 4 + 1


@pytest.mark.parametrize("packed", [False, True])
def test_depths_get_the_subset_and_the_mask(data, tmp_path, packed):
    """Neither the folder, which is not written to, nor the pack has them."""
    if packed:
        gpu.pack(data, tmp_path / "pack.zip")
    before = sorted(data.rglob("*"))
    args = gpu.argparse.Namespace(device="cpu", small=False)
    place = tmp_path / "there"
    given = gpu.data_folder(tmp_path / "pack.zip" if packed else data, place)
    _, command, folder = gpu.jobs_of("depths", args, place, given)[-1]
    train = load(folder.name, "train")
    flags = [str(word) for word in command[command.index("train.py") + 1 :]]
    run = train.run_folder.start(train.parse_args(flags), train.make_parser(), ["unused"])
    made = train.build_data(run)
    assert made.loaders["test"].mask.any()
    assert len(made.loaders["test"].pairs) == 4
    assert sorted(data.rglob("*")) == before


def test_measurements_on_the_cpu_and_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    """They need no data; one that fails leaves its error, and the others follow."""
    arguments = ["--device", "cpu", "--small", "--data", str(tmp_path / "none")]
    arguments += ["--out", str(tmp_path), "--parts", "sentences", "kernels", "steps", "--minutes"]
    assert gpu.main([*arguments, "0.5"]) == 1 + 8 + 12  # no time for any
    step_seconds = gpu.step_seconds

    def fails_for_online(network, flags, device):
        if "online" in flags:
            raise RuntimeError("out of memory")
        return step_seconds(network, flags, device)

    monkeypatch.setattr(gpu, "step_seconds", fails_for_online)
    assert gpu.main([*arguments, "9"]) == 1 + 3
    place = tmp_path / "cpu_small"
    kernels, steps, failed, data = (
        json.loads((place / f"{name}.json").read_text())
        for name in ("kernels", "steps", "steps.failed", "sentences.failed")
    )
    assert "give --data" in data["error"]
    assert len(kernels["rows"]) == 8
    assert all(row["smooth"]["ms"] > 0 for row in kernels["rows"].values())
    assert len(steps["rows"]) == 9
    for name, row in steps["rows"].items():
        bare = steps["rows"][name.rpartition(", ")[0] + ", bare"]
        assert row["of_bare"] == (None if row is bare else row["ms"] / bare["ms"])
    assert {name.rpartition(", ")[2] for name in failed["errors"]} == {"online"}
    assert len(failed["errors"]) == 3
    assert all("out of memory" in error for error in failed["errors"].values())
    monkeypatch.setattr(gpu, "kernel_row", lambda *_: pytest.fail("measured again"))
    asked = []
    monkeypatch.setattr(gpu, "step_seconds", lambda *words: asked.append(words[1]) or 1.0)
    assert gpu.main([*arguments, "0.5"]) == 1 + 3  # what is not tried again keeps its error
    assert (place / "steps.failed.json").exists()
    assert gpu.main([*arguments, "9"]) == 1
    assert len(asked) == 3
    assert all("online" in flags for flags in asked)
    assert not (place / "steps.failed.json").exists()


def test_a_command_that_fails_is_tried_again(tmp_path, monkeypatch):
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--parts", "tests"]
    codes = [3, 0]
    monkeypatch.setattr(
        gpu, "run_command", lambda *_: {"code": codes.pop(0), "seconds": 1.0, "output": ["said"]}
    )
    assert gpu.main(arguments) == 1
    assert json.loads((tmp_path / "cpu" / "tests.failed.json").read_text())["code"] == 3
    assert gpu.main(arguments) == 0
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["tests.json"]
    monkeypatch.setattr(gpu, "OF_TESTS", ("no_such_package",))
    (tmp_path / "cpu" / "tests.json").unlink()
    assert gpu.main(arguments) == 1
    assert "no_such_package" in (tmp_path / "cpu" / "tests.failed.json").read_text()


def test_a_loaders_figures_are_kept(tmp_path, monkeypatch):
    def run(command, *_):
        case, file = (command[command.index(flag) + 1] for flag in ("--cases", "--json"))
        Path(file).write_text(json.dumps({"gpu": {case: {"images/s": 4000.0}}}))
        return {"code": 0, "seconds": 1.0, "output": []}

    monkeypatch.setattr(gpu, "run_command", run)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--parts", "loader"]) == 0
    files = sorted((tmp_path / "cpu").iterdir())
    cases = {path.stem.removeprefix("loader_"): json.loads(path.read_text()) for path in files}
    assert {*cases} == {*load("benchmarks", "imdb_scale").CASES}
    assert all(facts["metrics"] == {c: {"images/s": 4000.0}} for c, facts in cases.items())


def test_the_cuda_tests_are_in_the_named_files_and_need_the_named_packages():
    texts = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    marked = {name for name, text in texts.items() if "\n@pytest.mark.cuda\n" in text}
    assert marked == {f"test_{name}" for name in gpu.CUDA_TESTS}
    own = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"load"}
    for name in marked:
        for node in ast.parse(texts[name]).body:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [part.name for part in node.names] if isinstance(node, ast.Import) else []
            outside = {module.split(".")[0] for module in modules} - own - sys.stdlib_module_names
            assert outside <= {*gpu.NEEDED, *gpu.OF_TESTS}, name


def is_running(pid):
    """Whether a process lives; a dead one whose parent has not asked for it yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_commands_end_fail_and_run_out_of_time(tmp_path, monkeypatch):
    say = [sys.executable, "-c", "print('said')"]
    assert gpu.run_command(say, tmp_path, 60)["output"] == ["said"]
    bars = [sys.executable, "-c", f"print(' 5%|#  |\\r90%|## |\\r\\n{ROOT / 'a.py'}:3')"]
    assert gpu.run_command(bars, tmp_path, 60)["output"] == ["a.py:3"]
    assert gpu.run_command([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 60)["code"] == 3
    monkeypatch.setattr(gpu, "SAVING", 0.3)
    child = "import os, signal, time; signal.signal(15, lambda *_: None); time.sleep(60)"
    parent = "import signal, subprocess, sys; signal.signal(15, lambda *_: None); p = "
    parent += f"subprocess.Popen([sys.executable, '-c', {child!r}]); "
    parent += "open('pid', 'w').write(str(p.pid)); p.wait(); p.wait()"
    assert gpu.run_command([sys.executable, "-c", parent], tmp_path, 3) is None
    deadline = time.monotonic() + 10
    while is_running(int((tmp_path / "pid").read_text())):  # what it started is ended, too
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match="missing packages: no_such_package"):
        gpu.check_packages()
    monkeypatch.setattr(gpu, "NEEDED", ("torch",))
    monkeypatch.setattr(gpu, "TORCH", (99, 0))
    with pytest.raises(SystemExit, match=r"too old: 99\.0 is needed"):
        gpu.check_packages()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_who_runs_it(tmp_path, sent):
    """It would hold the GPU and its run folder, unseen."""
    child = "import os, time; print(os.getpid(), file=open('pid', 'w')); time.sleep(60)"
    program = f"import signal, sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import gpu; "
    program += "signal.signal(2, signal.default_int_handler); "  # a background shell ignores it
    program += f"gpu.run_command([sys.executable, '-c', {child!r}], '.', 60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(30)
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_compiled_networks_find_their_modules(monkeypatch):
    """At the first step PyTorch 2.11 imports the modules that hold a network's functions."""
    names, before = [], {*sys.modules}

    def compile(self, **options):
        forward = self.forward

        def first(*inputs):
            names.append(importlib.import_module(type(self).__module__).__name__)
            importlib.import_module(type(self.FDS).smooth.__module__)
            return forward(*inputs)

        self.forward = first

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    flags = ["--fds", "--compile", "--precision", "fp32", "--device", "cpu"]
    for network in gpu.networks(True):
        assert gpu.step_seconds(network, flags, "cpu") > 0
    assert len({*names}) == 3
    assert not {"resnet", "fds", "bilstm", "depth_net", "datasets"} & ({*sys.modules} - before)


def test_a_timed_batch_lies_on_the_device():
    """A step that sends a part of it would wait for the GPU, as none of a training does."""
    for network in gpu.networks(True):
        leaves = torch.utils._pytree.tree_leaves(network[-1]("meta"))
        assert {x.device.type for x in leaves if isinstance(x, torch.Tensor)} == {"meta"}


def test_tables_of_what_was_measured(tmp_path):
    """Ratios stand under their own kind, whatever is missing, came late or failed."""
    rows = {"net, bf16, fds": 12.0, "net, bf16, bare": 10.0, "other, fp32, lds": 3.0}
    folder = tmp_path / "results" / "gpu" / "some"
    folder.mkdir(parents=True)
    facts = {"device": "some", "torch": "2.11", "commit": "0123456789ab"}
    steps = {"rows": {name: {"ms": ms, "of_bare": None} for name, ms in rows.items()}} | facts
    (folder / "steps.json").write_text(json.dumps(steps))
    small = folder.with_name("cpu_small")
    small.mkdir()
    (small / "steps.json").write_text(json.dumps(steps))
    made = load("tools", "tables").gpu_tables(tmp_path)
    assert "| net, bf16 | 10.0 | – | × 1.200 | – |" in made.splitlines()
    assert "| other, fp32 | – | – | – | – |" in made.splitlines()
    assert made.count("Steps: some, PyTorch 2.11, commit 0123456:") == 1
    assert "calibrate" not in made
    for case, share in (("bf16", 0.974), ("tf32", 0.981)):
        metrics = {case: {"images/s from the cache": 3913.4, "share (goal >= 0.9)": share}}
        (folder / f"loader_{case}.json").write_text(json.dumps({"metrics": metrics} | facts))
    (folder / "loader_bf16_compiled.failed.json").write_text("{}")
    made = load("tools", "tables").gpu_tables(tmp_path).splitlines()
    assert made.count("Training from the cache: some, PyTorch 2.11, commit 0123456:") == 2
    assert made.count("| images/s from the cache | 3,913 |") == 2
    assert {"| what | tf32 |", "| share (goal >= 0.9) | 97.4% |"} <= {*made}
