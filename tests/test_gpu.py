"""benchmarks/gpu.py on the CPU: its measurements, its jobs' flags, its resuming and its pack."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
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
    for split in ("train", "test"):
        for i in range(4):
            for end in ("jpg", "png"):
                shutil.copy(folder / "utkface" / "UTKFace" / "0.jpg",
                            folder / "nyud2" / f"nyu2_{split}" / f"{i}.{end}")  # fmt: skip
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


def test_every_training_has_flags_that_its_program_takes(data, tmp_path):
    args = gpu.argparse.Namespace(device="cpu", small=False)
    names = set()
    for part in ("sentences", "faces", "depths", "processes"):
        for file, command, folder in gpu.jobs_of(part, args, tmp_path, data):
            flags = [str(word) for word in command[command.index("train.py") + 1 :]]
            parsed = load(folder.name, "train").parse_args(flags)
            assert (parsed.data_dir or "").startswith(str(data)), file
            assert (folder / "train.py").is_file()
            names.add(file)
    assert len(names) == 15 + 5 + 4 + 1


def test_measurements_on_the_cpu_and_what_is_done_is_not_done_again(data, tmp_path, monkeypatch):
    arguments = ["--device", "cpu", "--small", "--data", str(data), "--out", str(tmp_path)]
    arguments += ["--parts", "kernels", "steps", "--minutes"]
    assert gpu.main([*arguments, "0.5"]) == 2  # no time for any
    assert gpu.main([*arguments, "9"]) == 0
    kernels, steps = (json.loads((tmp_path / "cpu" / f"{n}.json").read_text()) for n in
                      ("kernels", "steps"))  # fmt: skip
    assert len(kernels["rows"]) == 12
    assert all(row["ms"] > 0 for row in kernels["rows"].values())
    assert len(steps["rows"]) == 2
    assert all(row["online_ms"] > 0 for row in steps["rows"].values())
    for name in ("measure_kernels", "measure_steps"):
        monkeypatch.setattr(gpu, name, lambda *_: pytest.fail("measured again"))
    assert gpu.main([*arguments, "9"]) == 0


def test_commands_end_fail_and_run_out_of_time(tmp_path, monkeypatch):
    say = [sys.executable, "-c", "print('said')"]
    assert gpu.run_command(say, tmp_path, 60)["output"] == ["said"]
    assert gpu.run_command([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 60)["code"] == 3
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu.run_command(sleep, tmp_path, 0.3) is None
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match="missing packages: no_such_package"):
        gpu.check_packages()
    monkeypatch.setattr(gpu, "NEEDED", ())
    monkeypatch.setattr(gpu, "TORCH", (99, 0))
    with pytest.raises(SystemExit, match=r"too old: 99\.0 is needed"):
        gpu.check_packages()
