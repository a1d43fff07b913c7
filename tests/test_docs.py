"""The pages: tables from results/, links that lead somewhere, commands that parse, plain words."""

import ast
import io
import json
import re
import shlex
import shutil
import tokenize

import pytest

from conftest import BENCHMARK_FOLDERS, ROOT, load

FOLDER_PAGES = sorted(ROOT.glob("*-dir/README.md"))
FRONT_PAGES = [ROOT / name for name in ("README.md", "RECIPES.md", "MIGRATING.md")]
OTHER_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*FRONT_PAGES, *OTHER_PAGES, *FOLDER_PAGES]
PLAIN_PAGES = [*FRONT_PAGES, *FOLDER_PAGES, *sorted(ROOT.glob("benchmarks/*.md"))]
PROGRAMS = [path for folder in BENCHMARK_FOLDERS for path in (ROOT / folder).rglob("*.py")]
PROGRAMS += sorted(ROOT.glob("tools/*.py"))


def load_tables():
    return load("tools", "tables")


def test_tables_are_made_from_results():
    assert load_tables().main([]) == 0


@pytest.mark.parametrize("page", ["README.md", "agedb-dir/README.md"])
def test_a_changed_cell_is_noticed(page, tmp_path):
    tables = load_tables()
    shutil.copytree(ROOT / "results", tmp_path / "results")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.renew(text, tmp_path) == text
    file = tmp_path / "results/agedb-dir/utkface/runs.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["method"] == "VANILLA":
            line["test"]["overall"]["mae"] = 99.5
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert "99.50" in tables.renew(text, tmp_path)


def test_the_papers_figures_are_those_of_the_folders_readmes():
    """The front page's figures of the paper stand in each folder's README, in one row."""
    for folder, _, _, every, few, *_ in load_tables().BENCHMARKS:
        text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        cells = re.sub(r"\s+", " ", text)
        for first, last in zip(every.split(), few.split()):
            assert re.search(rf"{re.escape(first)} / [\d.]+ / [\d.]+ / {re.escape(last)}", cells)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_links_inside_the_repository(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:\]\(|src=\")(?!https?://)([^)\"]+)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
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


def test_readmes_are_short():
    for page, most in ((FRONT_PAGES[0], 200), *((page, 180) for page in FOLDER_PAGES)):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= most, page


# ---- language ------------------------------------------------------------------------------


def without_code(text):
    """Return a page's text without blocks of code, comments and pictures; code becomes a word."""
    text = re.sub(r"^```.*?^```", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|<img .*?>|!\[.*?\]\(.*?\)", "\n", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def sentences(text):
    """Return the sentences of a page, without headings and tables."""
    lines = [
        "" if line.startswith(("#", "|")) else re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", line)
        for line in without_code(text).splitlines()
    ]
    found = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        joined = " ".join(paragraph.replace("*", "").split())
        found += re.split(r"(?<=[.!?])\)? (?=[A-Z\"(])", joined)
    return [sentence for sentence in found if sentence]


def word_list():
    """Return the words that CONTRIBUTING.md says not to use."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text[text.index("| not this |") :].split("\n\n")[0].splitlines()[2:]
    return [word.strip() for row in rows for word in row.split("|")[1].split(",")]


def words_not_to_use(text):
    """Return those of the list that stand in a text."""
    text = " ".join(without_code(text).split())
    return [word for word in word_list() if re.search(rf"\b{word}\b", text, re.IGNORECASE)]


def texts_of(program):
    """Return the strings and docstrings of a Python text, and its comments as one string."""
    constants = [n.value for n in ast.walk(ast.parse(program)) if isinstance(n, ast.Constant)]
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    comments = [token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return [*(value for value in constants if isinstance(value, str)), " ".join(comments)]


def test_sentences_are_found_where_they_end():
    text = "# A heading\n\nOne (or two). Is it 0.1 m?\nYes: `a. B`\n\n- first\n- Second, [x](y).\n"
    expected = ["One (or two).", "Is it 0.1 m?", "Yes: CODE", "first", "Second, x."]
    assert sentences(text + "\n| a | b |\n\n```\nA. B.\n```\n") == expected


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_sentences_are_short(page):
    for sentence in sentences(page.read_text(encoding="utf-8")):
        words = [word for word in sentence.split() if re.search(r"[^\W\d_]", word)]
        assert len(words) <= 30, f"{len(words)} words: {sentence}"


def test_the_word_list_is_read_and_words_are_noticed():
    assert {"anew", "is there", "goes on with"} <= set(word_list())
    assert words_not_to_use("Anew it\ngoes on\nwith `beside`.") == ["goes on with", "anew"]


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_words_of_the_list_are_not_used(page):
    assert words_not_to_use(page.read_text(encoding="utf-8")) == []


def test_words_in_a_program_are_noticed():
    program = '"""Anew."""\nbeside = f"it is there{1}"  # goes on\n# with it\n'
    found = {word for text in texts_of(program) for word in words_not_to_use(text)}
    assert found == {"anew", "goes on with", "is there"}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_words_of_the_list_are_not_used_in_programs(path):
    for text in texts_of(path.read_text(encoding="utf-8")):
        assert words_not_to_use(text) == [], text


def test_the_citation_file_is_read_by_its_readers():
    import yaml  # comes with accelerate

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["preferred-citation"]["year"] == 2021
