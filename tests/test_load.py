"""tools/load.py: each folder's own modules, also below demo/, and no trace under plain names."""

import sys

import pytest

from conftest import load

loader = load("tools", "load")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders with modules of the same names; their modules are forgotten afterwards."""
    for folder in ("one-dir", "two-dir"):
        (tmp_path / folder / "demo").mkdir(parents=True)
        (tmp_path / folder / "thing.py").write_text(f"NAME = '{folder}'\n")
        (tmp_path / folder / "demo" / "part.py").write_text("from thing import NAME\n")
        for module in ("script", "other"):
            text = "import thing\nfrom demo.part import NAME\n"
            (tmp_path / folder / f"{module}.py").write_text(text)
        (tmp_path / folder / "broken.py").write_text("import thing\nraise OSError('no')\n")
    monkeypatch.setattr(loader, "ROOT", tmp_path)
    before = dict(sys.modules)
    yield ("one-dir", "two-dir")
    for name in sys.modules.keys() - before:
        del sys.modules[name]


@pytest.mark.parametrize("first", ["script", "demo.part"])
def test_each_folder_has_its_own_modules(folders, first):
    for folder in folders:
        assert loader.load(folder, first).NAME == folder
        assert loader.load(folder, "script").NAME == folder
        assert loader.load(folder, "demo.part").NAME == folder
        assert not {"thing", "script", "demo", "demo.part"} & sys.modules.keys()


def test_a_module_is_loaded_once(folders):
    script = loader.load("one-dir", "script")
    assert loader.load("one-dir", "script") is script
    assert loader.load("one-dir", "thing") is script.thing
    assert loader.load("one-dir", "other").thing is script.thing


def test_what_others_hold_under_a_plain_name_stays(folders, monkeypatch):
    foreign = object()
    for name in ("thing", "demo"):
        monkeypatch.setitem(sys.modules, name, foreign)
    path = list(sys.path)
    assert loader.load("one-dir", "script").NAME == "one-dir"
    assert sys.modules["thing"] is sys.modules["demo"] is foreign
    assert sys.path == path


def test_a_module_that_fails_is_not_kept(folders):
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            loader.load("one-dir", "broken")
    assert "broken" not in sys.modules
    with pytest.raises(FileNotFoundError, match="absent"):
        loader.load("one-dir", "absent")
