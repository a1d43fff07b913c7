"""The command line is answered before the libraries that take seconds are imported."""

import subprocess
import sys

import pytest

from conftest import BENCHMARK_FOLDERS, ROOT, load

HEAVY = {
    "torch",
    "torchvision",
    "accelerate",
    "pandas",
    "matplotlib",
    "scipy.signal",
    "scipy.stats",
}
# What each train.py repeats of its other files, so that the flags need none of them.
REPEATED = [
    ("agedb-dir", "MODELS", "resnet", "MODELS"),
    ("agedb-dir", "TARGET", "datasets", "AGE"),
    ("imdb-wiki-dir", "MODELS", "resnet", "MODELS"),
    ("imdb-wiki-dir", "TARGET", "datasets", "AGE"),
    ("nyud2-dir", "MODELS", "depth_net", "MODELS"),
    ("nyud2-dir", "BUCKET_NUM", "depth_maps", "BUCKETS"),
    ("sts-b-dir", "BUCKET_NUM", "datasets", "BUCKETS"),
    ("shhs-dir", "BUCKET_NUM", "datasets", "BUCKETS"),
    ("shhs-dir", "TARGET", "datasets", "SCORE"),
    ("uci-dir", "HIDDEN", "mlp", "HIDDEN"),
    ("uci-dir", "TREES", "trees", "NAME"),
]
PROGRAM = """
import runpy, sys
for words in sys.argv[1:]:
    name, *flags = words.split()
    sys.argv = [name + ".py", *flags]
    try:
        runpy.run_path(name + ".py", run_name="__main__")
    except SystemExit as end:
        print("\\nended", end.code, *sys.modules)
"""
CALLS = {
    "predict --help": "0",
    "predict": "2",
    "train --help": "0",
    "train --lodss l1": "2",
    "train --lds": "2",
}
CALLS |= {"report --help": "0", "report": "2", "predict --debug --help": "0"}
CALLS |= {
    "prepare --help": "0",
    "prepare --typo": "2",
    "download --help": "0",
    "demo_data --help": "0",
}


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_answers_come_before_imports(folder):
    """Help, a typo and a conflict of flags need no torch; nor do the data scripts."""
    own = {"image_cache --help": "0"} if (ROOT / folder / "image_cache.py").exists() else {}
    calls = own | CALLS
    command = [sys.executable, "-c", PROGRAM, *calls]
    options = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, cwd=ROOT / folder, **options)
    endings = [part.split() for part in done.stdout.split("\nended ")[1:]]
    for (call, status), (code, *modules) in zip(calls.items(), endings, strict=True):
        light = call.startswith(("train", "predict", "report", "image"))
        heavy = HEAVY if light else HEAVY - {"pandas"}
        assert code == status, call
        assert not heavy & set(modules), call
    assert done.stderr.count("(--help lists them)") == [*calls.values()].count("2")


def test_an_export_is_refused_before_imports():
    command = [sys.executable, "-c", PROGRAM, "export agedb-dir run net.pth"]
    options = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, cwd=ROOT / "tools", **options)
    code, *modules = done.stdout.split("\nended ")[1].split()
    assert code == "2"
    assert not HEAVY & set(modules)


@pytest.mark.parametrize(("folder", "name", "module", "own"), REPEATED)
def test_what_is_repeated_is_equal(folder, name, module, own):
    assert getattr(load(folder, "train"), name) == getattr(load(folder, module), own)


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_the_flag_offers_every_variant_of_fds(folder):
    assert {*load(folder, "flags").VARIANTS} == {*load(folder, "fds").VARIANTS}
