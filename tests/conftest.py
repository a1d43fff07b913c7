"""What every test shares: where the repository is, and how to load one folder's module alone."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BENCHMARK_FOLDERS = ("agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir", "shhs-dir")


def load(folder, name):
    """Load `<folder>/<name>.py` under a name of its own, with that folder's siblings and no other.

    Two folders hold modules of the same names, so nothing of a folder stays in `sys.modules`
    under its plain name once the file is loaded.
    """
    unique = f"{folder.replace('-', '_')}__{name}"
    if unique in sys.modules:
        return sys.modules[unique]
    siblings = {path.stem for path in (ROOT / folder).glob("*.py")}
    held = {s: sys.modules.pop(s) for s in siblings if s in sys.modules}
    for sibling in siblings:  # what this folder loaded before is used again, not loaded twice
        loaded = sys.modules.get(f"{folder.replace('-', '_')}__{sibling}")
        if loaded is not None:
            sys.modules[sibling] = loaded
    sys.path.insert(0, str(ROOT / folder))
    try:
        spec = importlib.util.spec_from_file_location(unique, ROOT / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = sys.modules[name] = module
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(unique, None)
        raise
    finally:
        sys.path.remove(str(ROOT / folder))
        for sibling in siblings:
            loaded = sys.modules.pop(sibling, None)
            if loaded is not None:
                sys.modules.setdefault(f"{folder.replace('-', '_')}__{sibling}", loaded)
        sys.modules.update(held)
    return module


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
