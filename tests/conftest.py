"""What every test shares: where the repository is, and how to load one folder's module alone."""

import signal
import sys
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

# A shell's background job ignores Ctrl-C, and so do its children; tests send it to trainings.
signal.signal(signal.SIGINT, signal.default_int_handler)
# tqdm shares its lock with forked processes: one killed while it holds it would lock out the rest.
tqdm.set_lock(threading.RLock())
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from load import load  # noqa: E402 - found through the line above

__all__ = ["BENCHMARK_FOLDERS", "ROOT", "SHARED", "load"]
SHARED = ROOT.parent / "shared"
BENCHMARK_FOLDERS = (
    "agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir", "shhs-dir", "uci-dir"
)  # fmt: skip


@pytest.fixture(scope="session")
def golden():
    """Folder of the official release's numbers; a test that needs it is skipped without it."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the golden data (shared/golden beside the repository) is not here")
    return folder


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data; a test that needs it is skipped without it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data (shared/data beside the repository) is not here")
    return folder
