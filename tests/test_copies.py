"""tools/copies.py bites: each kind of wrong copy is reported, and --fix mends what it may."""

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, load

copies = load("tools", "copies")

TRAIN = '''"""Ages of {name}."""

# ---- 2 imports ---------------
import math

# ---- 3 benchmark constants ---
DATASET = "{name}"
{more}
# ---- 4 arguments -------------
ARGS = 1

# ---- 6 train_one_epoch -------
LOSS = math.pi
'''


@pytest.fixture
def tree(tmp_path):
    """A tree with three of the five folders, all as the table wants it."""
    for folder, more in (("agedb-dir", ""), ("imdb-wiki-dir", "CAP = 150\nCLIP = 2\n")):
        (tmp_path / folder).mkdir()
        text = TRAIN.format(name=folder, more=more)
        (tmp_path / folder / "train.py").write_text(text, encoding="utf-8")
    (tmp_path / "sts-b-dir").mkdir()
    (tmp_path / "sts-b-dir" / "train.py").write_text("print('its own')\n", encoding="utf-8")
    (tmp_path / "sts-b-dir" / "datasets.py").write_text("its_own = 1\n", encoding="utf-8")
    for names, folders in copies.GROUPS:
        for folder in folders:
            if (tmp_path / folder).is_dir():
                for name in names:
                    text = f"# {name} − shared\nfirst = 1\nsecond = 2\n"
                    path = tmp_path / folder / name
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(text.encode())
    return tmp_path


def check(root, *flags):
    return copies.main(["--root", str(root), *flags])


def change(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_the_real_tree_passes_without_the_project_environment():
    # -I -S: no environment variables, no site-packages.
    command = [sys.executable, "-I", "-S", ROOT / "tools" / "copies.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_right_tree_passes(tree, capsys):
    assert check(tree) == 0
    assert "agedb-dir, imdb-wiki-dir, sts-b-dir" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["imdb-wiki-dir", "sts-b-dir"])
def test_one_byte_is_reported_and_fixed(tree, capsys, folder):
    path = tree / folder / "fds.py"
    change(path, b"second = 2", b"second = 3")
    assert check(tree) == 1
    out = capsys.readouterr().out
    assert "agedb-dir/fds.py:3: 'second = 2'" in out
    assert f"{folder}/fds.py:3: 'second = 3'" in out
    assert check(tree, "--fix") == 0
    assert path.read_bytes() == (tree / "agedb-dir" / "fds.py").read_bytes()
    assert b"second = 2" in path.read_bytes()
    assert check(tree) == 0


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"\nsecond = 2\n", b"\r\nsecond = 2\n", ":2: 'first = 1\\r'"),  # a line end
        (b"second = 2\n", b"second = 2", ":end of file"),
        (b"\xe2\x88\x92", b"\xff", ":1: '# fds.py \\udcff shared'"),  # no text at all
    ],
)
def test_bytes_that_do_not_show_are_reported(tree, capsys, old, new, line):
    change(tree / "imdb-wiki-dir" / "fds.py", old, new)
    assert check(tree) == 1
    assert f"imdb-wiki-dir/fds.py{line}" in capsys.readouterr().out


def test_a_missing_copy_and_a_link_are_reported_and_fixed(tree, capsys):
    (tree / "sts-b-dir" / "loss.py").unlink()
    (tree / "imdb-wiki-dir" / "utils.py").unlink()
    (tree / "imdb-wiki-dir" / "utils.py").symlink_to(tree / "agedb-dir" / "utils.py")
    assert check(tree) == 1
    out = capsys.readouterr().out
    assert "sts-b-dir/loss.py is missing" in out
    assert "imdb-wiki-dir/utils.py is a link" in out
    assert check(tree, "--fix") == 0
    assert not (tree / "imdb-wiki-dir" / "utils.py").is_symlink()
    assert (tree / "agedb-dir" / "utils.py").is_file()
    assert check(tree) == 0


def test_files_below_demo_are_checked_too(tree, capsys):
    copy, source = (tree / folder / "demo" / "faces.py" for folder in reversed(copies.AGE_PAIR))
    change(copy, b"second = 2", b"second = 3")
    assert check(tree) == 1
    assert "imdb-wiki-dir/demo/faces.py:3: 'second = 3'" in capsys.readouterr().out
    assert check(tree, "--fix") == 0
    assert b"second = 2" in copy.read_bytes()
    shutil.rmtree(copy.parent)
    assert check(tree) == 1
    assert "imdb-wiki-dir/demo/faces.py is missing" in capsys.readouterr().out
    copy.parent.symlink_to(source.parent)
    assert check(tree) == 1
    assert "imdb-wiki-dir/demo is a link" in capsys.readouterr().out
    assert check(tree, "--fix") == 0
    assert not copy.parent.is_symlink()
    assert copy.read_bytes() == source.read_bytes()
    assert check(tree) == 0


def test_what_the_first_folder_lacks_cannot_be_fixed(tree, capsys):
    (tree / "agedb-dir" / "loss.py").unlink()
    assert check(tree, "--fix") == 1
    assert "agedb-dir/loss.py is missing" in capsys.readouterr().out
    assert (tree / "sts-b-dir" / "loss.py").is_file()


def test_the_age_files_are_equal_in_the_age_pair_alone(tree, capsys):
    change(tree / "imdb-wiki-dir" / "datasets.py", b"first = 1", b"first = 0")
    assert check(tree) == 1
    out = capsys.readouterr().out
    assert "imdb-wiki-dir/datasets.py:2: 'first = 0'" in out
    assert "sts-b-dir" not in out


@pytest.mark.parametrize(
    "name", ["helpers.py", "notes.md", "demo/rooms.py", "resnet.py", "demo/faces.py"]
)
def test_an_undeclared_duplicate_is_an_error(tree, capsys, name):
    (tree / "sts-b-dir" / "demo").mkdir()
    (tree / "sts-b-dir" / name).write_text("a = 1\n", encoding="utf-8")
    if name not in ("resnet.py", "demo/faces.py"):  # declared, but for the age folders
        assert check(tree) == 0
        (tree / "agedb-dir" / name).write_text("a = 1\n", encoding="utf-8")
    assert check(tree) == 1
    out = capsys.readouterr().out
    assert f"{name} is in agedb-dir" in out
    assert "sts-b-dir but declared nowhere" in out
    assert check(tree, "--fix") == 1


def test_the_age_pair_may_differ_in_section_3_and_the_docstring_alone(tree, capsys):
    train = tree / "imdb-wiki-dir" / "train.py"
    change(train, b"CAP = 150", b"CAP = 151")
    change(train, b'"""Ages of', b'"""Other\n\nages of')
    assert check(tree) == 0
    capsys.readouterr()
    change(train, b"LOSS = math.pi", b"LOSS = math.e")
    before = train.read_bytes()
    assert check(tree, "--fix") == 1
    out = capsys.readouterr().out
    # Line numbers are those of the files, whatever the skipped parts' lengths are.
    number = before.split(b"\n").index(b"LOSS = math.e") + 1
    assert f"imdb-wiki-dir/train.py:{number}: 'LOSS = math.e'" in out
    assert "agedb-dir/train.py:13: 'LOSS = math.pi'" in out
    assert train.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"import math\n", b"import math, os\n"),
        (b"# ---- 4 arguments -------------", b"# ---- 4 flags -----------------"),
        (b"# ---- 4 arguments -------------", b"# arguments"),
        (b"# ---- 3 benchmark constants ---", b"# ---- 3 benchmark constants"),
        (b"LOSS", b"# ---- 4 again ----\nLOSS"),
        (b"ARGS = 1", b"ARGS = ("),
    ],
)
def test_the_age_pair_rule_bites_outside_section_3(tree, capsys, old, new):
    change(tree / "imdb-wiki-dir" / "train.py", old, new)
    assert check(tree) == 1
    assert "imdb-wiki-dir/train.py" in capsys.readouterr().out


def test_section_4_must_follow_section_3(tree, capsys):
    # Else everything down to the end of the file could count as section 3.
    for folder in copies.AGE_PAIR:
        train = tree / folder / "train.py"
        change(train, b"# ---- 4 arguments", b"# ---- 0 arguments")
        change(train, b"# ---- 3 benchmark", b"# ---- 4 benchmark")
        change(train, b"# ---- 0 arguments", b"# ---- 3 arguments")
    assert check(tree) == 1
    out = capsys.readouterr().out
    assert "section 4 after it; found banners 3 and 4 at the lines [9, 6]" in out


def test_a_missing_train_is_an_error(tree, capsys):
    (tree / "agedb-dir" / "train.py").unlink()
    assert check(tree) == 1
    assert "agedb-dir/train.py is missing" in capsys.readouterr().out


def test_folders_to_come_are_passed_over(tree, tmp_path_factory):
    (tree / "nyud2-dir" / "data").mkdir(parents=True)  # a folder with data alone
    shutil.rmtree(tree / "imdb-wiki-dir")
    assert check(tree) == 0
    with pytest.raises(SystemExit) as error:
        check(tmp_path_factory.mktemp("empty"))
    assert error.value.code == 2
