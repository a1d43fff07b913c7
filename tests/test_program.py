"""A user's mistake ends a program in one line, any other error in a traceback."""

import re
import shutil
import subprocess
import sys

import pytest

from conftest import BENCHMARK_FOLDERS, ROOT

MAIN = """
import program

def main():
    {}

if __name__ == "__main__":
    program.run(main)
"""


def ending(folder, body, *words):
    """Exit status and the lines that a program wrote to stderr."""
    for name in ("program.py", "outside.py"):
        shutil.copy(ROOT / "agedb-dir" / name, folder)
    (folder / "try.py").write_text(MAIN.format(body))
    command = [sys.executable, str(folder / "try.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.splitlines()


def test_mistakes_are_one_line(tmp_path):
    status, lines = ending(tmp_path, 'raise ValueError("no such age: 300")')
    assert (status, lines) == (1, ["try.py: no such age: 300 (--debug shows where)"])
    status, lines = ending(tmp_path, 'raise ValueError("no such\\n  age: 300")')
    assert (status, lines) == (1, ["try.py: no such age: 300 (--debug shows where)"])
    status, lines = ending(tmp_path, 'open("missing/file")')
    assert status == 1
    assert len(lines) == 1
    assert "No such file or directory: 'missing/file'" in lines[0]
    _, lines = ending(tmp_path, 'raise ValueError("no such age: 300")', "--debug")
    assert lines[0].startswith("Traceback")


@pytest.mark.parametrize(
    "body", ['int("x")', 'import json; json.loads("{")', "{}[1]", "assert False"]
)
def test_unexpected_errors_keep_their_traceback(tmp_path, body):
    """Also a ValueError that no line of ours raises."""
    status, lines = ending(tmp_path, body)
    assert status == 1
    assert lines[0].startswith("Traceback")


@pytest.mark.parametrize(
    "body", ["bytearray(1 << 60)", "import torch; torch.empty(1 << 50)", "raise MemoryError"]
)
def test_a_size_without_memory_is_one_line(tmp_path, body):
    status, (line,) = ending(tmp_path, body)
    assert status == 1
    assert line.startswith("try.py: not enough memory (")


@pytest.mark.parametrize(("value", "status"), [("2", 2), ("None", 0), ("{'mae': 1.0}", 0)])
def test_exit_status(tmp_path, value, status):
    assert ending(tmp_path, f"return {value}") == (status, [])


@pytest.mark.parametrize("folder", BENCHMARK_FOLDERS)
def test_every_program_ends_alike(folder):
    for path in (ROOT / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        guards = re.findall(r'^if __name__ == "__main__":\n    (\w.*)$', text, flags=re.M)
        assert "def main(" not in text or guards[-1] == "program.run(main)", path


def test_a_run_without_data_says_so(tmp_path):
    command = [sys.executable, "train.py", "--data_dir", str(tmp_path / "none"), "--track", "none"]
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT / "uci-dir"}
    done = subprocess.run([*command, "--store_root", str(tmp_path)], **options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("train.py: ")
    assert "`python demo_data.py` generates a table" in line


def test_publishing_ends_alike(tmp_path):
    command = [sys.executable, "tools/publish.py", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("publish.py: no ")
