"""The house rules that a machine can hold: sizes, banners, docstrings, nothing at import."""

import ast
import re
from pathlib import Path

import pytest

from conftest import BENCHMARK_FOLDERS, ROOT, load

copies = load("tools", "copies")

# Lines of a file, by its name; `*` is any other. A larger limit has a reason.
LIMITS = {
    "train.py": 450,
    "fds.py": 400,  # the module, its checks and their docstrings
    "lds.py": 280,  # LDS, DenseWeight and weights in one call, in one file to copy
    "utils.py": 260,
    "figures.py": 260,
    "run_folder.py": 300,  # a run from its name to its last epoch, in every folder
    "report.py": 255,
    "*": 260,
}
FUNCTION_LINES, MAIN_LINES, PARAMETERS = 60, 40, 6
# Documented signatures with more parameters: the released code's, and those of the recipes.
WIDE = {"FDS.__init__", "label_density", "sample_weights", "bucket_weights", "conr_loss"}
NETWORKS = {"LSTMEncoder.__init__"}  # a size of the network each
BANNERS = [
    "2 imports", "3 benchmark constants", "4 arguments", "5 builders", "6 train_one_epoch",
    "7 update_fds_statistics", "8 evaluate", "9 train", "10 finish", "11 main",
]  # fmt: skip
PACKED = 185  # assignments of several values in one line, a shared file counted once
FMT_SKIPS = 30  # in all folders, a shared file counted once

FILES = [path for folder in BENCHMARK_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def in_folder(path):
    """A file's path within its benchmark folder."""
    return path.relative_to(ROOT).as_posix().split("/", 1)[1]


def unique_files():
    """Each file once, however many folders share it."""
    seen = {}
    for path in FILES:
        seen.setdefault(path.read_bytes(), path)
    return list(seen.values())


UNIQUE = unique_files()
IDS = [str(path.relative_to(ROOT)) for path in UNIQUE]


@pytest.fixture(params=UNIQUE, ids=IDS)
def file(request):
    return request.param


def functions(tree):
    """Yield (qualified name, node) of every function of a module."""

    def inside(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")

    return inside(tree.body, "")


def test_sizes(file):
    text = file.read_text(encoding="utf-8")
    limit = LIMITS.get(file.name, LIMITS["*"])
    assert len(text.splitlines()) <= limit
    for name, node in functions(ast.parse(text)):
        lines = node.end_lineno - node.lineno + 1
        assert lines <= (MAIN_LINES if name == "main" else FUNCTION_LINES), (name, lines)
        names = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        count = len([argument for argument in names if argument not in ("self", "cls")])
        assert count <= PARAMETERS or name in WIDE | NETWORKS, (name, count)


def test_public_names_have_docstrings(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for name, node in [*functions(tree), *((c.name, c) for c in classes)]:
        if not any(part.startswith("_") for part in name.split(".")):
            assert ast.get_docstring(node), name


def test_nothing_happens_at_import(file):
    """A module's own statements define and import; a call makes a constant at most."""
    allowed = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for node in ast.parse(file.read_text(encoding="utf-8")).body[1:]:
        guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        assert isinstance(node, allowed) or guard, ast.unparse(node)[:80]


def test_nothing_waits_or_stays_behind(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])input\(", text)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert not re.search(r"import \*", text)
    for node in ast.walk(ast.parse(text)):
        own = getattr(node, "body", [])
        lines = [child.lineno for child in own] if isinstance(own, list) else []
        assert len(lines) == len(set(lines)), f"two statements in line {lines}"


def test_lines_kept_from_the_formatter_are_few():
    skipped = sum(path.read_text(encoding="utf-8").count("# fmt: skip") for path in UNIQUE)
    assert skipped <= FMT_SKIPS


def test_few_lines_assign_two_things():
    """`a, b = x, y` is for a pair that belongs together, in a short line."""
    packed = 0
    for path in UNIQUE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pair = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
            packed += pair and isinstance(node.value, ast.Tuple)
    assert packed <= PACKED


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_banners_stand_in_order(folder):
    text = (ROOT / folder / "train.py").read_text(encoding="utf-8")
    assert re.findall(r"^# ---- (\d+ .*?) -+$", text, flags=re.M) == BANNERS
    header = ast.get_docstring(ast.parse(text))
    assert header.count("python train.py") == 3  # a run of seconds, the headline run, evaluation


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_a_folder_lists_its_files(folder):
    """Each README names every file, and nothing that does not exist."""
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 180
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == folder and path.parent.name != "demo":
            assert f"`{in_folder(path)}`" in readme, in_folder(path)


def test_no_benchmark_folder_imports_another_or_the_tools():
    names = {Path(name).stem for name in ("tools", "tests", "benchmarks", "teaser")}
    for path in UNIQUE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or node.names[0].name
                assert module.split(".")[0] not in names, path
