"""`pip install .` gives the method's files as one package that needs nothing of the folders."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from imbalanced_regression import buckets, contrast, distribution, fds, lds, loss, moments
from imbalanced_regression import regularizers
assert fds.__file__.startswith(sys.argv[1])
assert fds.get_lds_kernel_window is lds.get_lds_kernel_window
torch.manual_seed(0)
features, labels = torch.rand(64, 4), torch.arange(64) % 8
module = fds.FDS(4, bucket_num=8)
module.accumulate(features, labels, 0)
module.update_last_epoch_stats(0)
module.update_running_stats(epoch=0)
print(module.running_mean.sum().item())
"""


@pytest.mark.slow
def test_the_wheel_is_imported_alone(tmp_path):
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("setuptools and pip, which build the wheel without a network, are not here")
    source = tmp_path / "source"
    (source / "agedb-dir").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for path in (ROOT / "agedb-dir").glob("*.py"):
        shutil.copy(path, source / "agedb-dir")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    target = tmp_path / "target"
    options = {"capture_output": True, "text": True, "timeout": 300}
    built = subprocess.run([*pip, "--no-index", "--target", str(target), str(source)], **options)
    assert built.returncode == 0, built.stderr
    names = {path.name for path in (target / "imbalanced_regression").glob("*.py")}
    assert names >= {"__init__.py", "fds.py", "lds.py", "loss.py", "regularizers.py"}
    assert not names & {"train.py", "utils.py", "flags.py"}
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", USE, str(target)]
    used = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert used.returncode == 0, used.stderr
    import torch

    torch.manual_seed(0)
    features, labels = torch.rand(64, 4), torch.arange(64) % 8
    means = [features[labels == bucket].mean(dim=0) for bucket in range(8)]
    assert float(used.stdout) == pytest.approx(float(torch.stack(means).sum()), rel=1e-5)
