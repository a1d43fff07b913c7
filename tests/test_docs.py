"""The READMEs: tables come from results/, links lead somewhere, commands parse."""

import re
import shlex
import shutil

import pytest

from conftest import BENCHMARK_FOLDERS, ROOT, load

READMES = [ROOT / "README.md", *sorted(ROOT.glob("*-dir/README.md"))]


def load_tables():
    return load("tools", "tables")


def test_tables_are_made_from_results():
    assert load_tables().main([]) == 0


def test_a_changed_cell_is_noticed(tmp_path):
    tables = load_tables()
    shutil.copytree(ROOT / "results", tmp_path / "results")
    text = (ROOT / "agedb-dir/README.md").read_text(encoding="utf-8")
    assert tables.renew(text, tmp_path) == text
    (file,) = list((tmp_path / "results/agedb-dir/utkface").glob("*/results.json"))[:1]
    content = file.read_text(encoding="utf-8")
    mae = re.search(r'"test".*?"mae": ([\d.]+)', content, re.DOTALL)
    start, end = mae.span(1)
    file.write_text(content[:start] + "99.5" + content[end:], encoding="utf-8")
    assert tables.renew(text, tmp_path) != text


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_links_inside_the_repository(readme):
    text = readme.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (readme.parent / path) if path else readme
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, target


@pytest.mark.parametrize("folder", [f for f in BENCHMARK_FOLDERS if (ROOT / f).is_dir()])
def test_commands_of_a_readme_parse(folder):
    """Each `python train.py` line of a folder's README is accepted by its parser."""
    train = load(folder, "train")
    commands = []
    for line in (ROOT / folder / "README.md").read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith(("python train.py", "torchrun")):
            words = shlex.split(re.sub(r"\[.*?\]", "", line))
            commands.append(words[words.index("train.py") + 1 :])
    assert len(commands) > 5
    for command in commands:
        train.parse_args(command)


def test_folder_readmes_are_short():
    for readme in READMES[1:]:
        assert len(readme.read_text(encoding="utf-8").splitlines()) <= 180, readme
