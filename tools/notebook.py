"""Make tutorial/tutorial.ipynb from tutorial/tutorial.py and run it, or check that they agree.

A cell of the source begins at a line `# %%`, a cell of text at `# %% [markdown]`. README.md and
RECIPES.md take their tables of the tutorial's numbers, and README.md its badge, from here too.

    python tools/notebook.py               # check; exit status 1 if something differs
    python tools/notebook.py --execute     # run the notebook, write it, its numbers and tables
    python tools/notebook.py --text        # take over changed text; the code must be the old one
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from scipy.stats import t as student_t

ROOT = Path(__file__).resolve().parent.parent
SOURCE, NOTEBOOK = ROOT / "tutorial/tutorial.py", ROOT / "tutorial/tutorial.ipynb"
SHOTS = ("all", "many", "medium", "few")
PAGES = ("README.md", "RECIPES.md")
TABLES = ("results", "checks")  # tutorial/<name>.csv; a page's <!-- tutorial: <name> --> holds it
PART = "(<!-- {0} -->\n)(.*?)(<!-- end of {0} -->)"
WIDGET = "application/vnd.jupyter.widget-view+json"


def badge(source):
    """Return the line with Colab's badge, empty while the source knows no address."""
    address = re.search(r'^REPOSITORY = "(.*?)"', source, re.MULTILINE)[1]
    name = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(\.git)?/?", address)
    if not name:
        return ""
    colab = f"https://colab.research.google.com/github/{name[1]}/blob/main/tutorial/tutorial.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"


def cells_of(source):
    """Return the cells of a source as (is it text?, content)."""
    cells = []
    for part in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        marker, _, content = part.partition("\n")
        content, text = content.strip("\n"), "[markdown]" in marker
        if text:
            content = re.sub(r"^# ?", "", content, flags=re.MULTILINE)
        cells.append((text, content))
    return cells


def make_notebook(source):
    """Return the notebook of a source, without outputs; the badge stands under its title."""
    cells = []
    for number, (text, content) in enumerate(cells_of(source)):
        if number == 0 and badge(source):
            title, _, rest = content.partition("\n")
            content = f"{title}\n\n{badge(source)}\n{rest}"
        new = nbformat.v4.new_markdown_cell if text else nbformat.v4.new_code_cell
        cells.append(new(content, id=f"cell-{number:02d}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def execute(notebook, folder):
    """Run a notebook in a folder; its outputs come without what differs from run to run."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )  # fmt: skip
    client.execute()
    for cell in notebook.cells:
        # A slider lives while its kernel does: a page without one would show an error in its place.
        outputs = cell.get("outputs", [])
        cell.pop("execution_count", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in outputs if WIDGET not in out.get("data", {})]
            cell.execution_count = None
            for out in cell.outputs:
                if "execution_count" in out:
                    out["execution_count"] = None
    for name in ("language_info", "widgets"):
        notebook.metadata.pop(name, None)
    return notebook


def keep_outputs(notebook, written):
    """Give a notebook the outputs of an earlier one with the same code.

    Raises:
        ValueError: if the code differs.
    """
    new = [cell for cell in notebook.cells if cell.cell_type == "code"]
    old = [cell for cell in written.cells if cell.cell_type == "code"]
    if [cell.source for cell in new] != [cell.source for cell in old]:
        raise ValueError("the code has changed since the notebook was run: use --execute")
    for cell, earlier in zip(new, old):
        cell.outputs = earlier.outputs
    return notebook


def interval(values):
    """Return the cell `mean ± half-width of the 95 % interval` of differences over seeds."""
    values = np.asarray(values)[~np.isnan(values)]
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    star = " *" if abs(values.mean()) > half else ""
    return f"{values.mean():+.2f} ± {half:.2f}{star}".replace("-", "−")


def read_tables(folder):
    """Return {name: DataFrame} of the numbers that the tutorial has written."""
    return {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}


def table_of(results):
    """Return a table: per data set the first method's MAE, then the differences from it."""
    lines = [["data", "method", *SHOTS], ["---", "---"] + ["---:"] * len(SHOTS)]
    for data, part in results.groupby("data", sort=False):
        part = part[part["method"] != "best possible"].set_index(["method", "seed"])[list(SHOTS)]
        first, *others = part.index.get_level_values("method").unique()
        lines.append([data, first, *(f"{part.loc[first][shot].mean():.2f}" for shot in SHOTS)])
        for method in others:
            difference = part.loc[method] - part.loc[first]
            lines.append(["", method, *(interval(difference[shot]) for shot in SHOTS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def renew(page, source, tables):
    """Return a page's text with its tables and its badge rebuilt.

    Args:
        page: text of README.md or RECIPES.md.
        source: text of tutorial.py.
        tables: what `read_tables` returns.
    """
    line = badge(source)
    parts = {"badge": line + "\n" * bool(line)}
    for name, results in tables.items():
        title = "MAE of the first row of each block, and differences from it "
        title += f"(mean of {results['seed'].nunique()} seeds, 95 % interval):"
        parts[f"tutorial: {name}"] = f"\n{title}\n\n{table_of(results)}\n"
    for name, content in parts.items():
        pattern = re.compile(PART.format(name), re.DOTALL)
        page = pattern.sub(lambda match: match[1] + content + match[3], page)  # noqa: B023
    return page


def main(argv=None):
    """Check, or run and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", action="store_true", help="run the notebook and write it")
    parser.add_argument("--text", action="store_true", help="renew its text and keep its outputs")
    args = parser.parse_args(argv)
    source = SOURCE.read_text(encoding="utf-8")
    notebook = make_notebook(source)
    if args.execute:
        os.environ["TUTORIAL_RESULTS"] = str(SOURCE.parent)
        notebook = execute(notebook, SOURCE.parent)
    elif args.text:
        notebook = keep_outputs(notebook, nbformat.read(NOTEBOOK, as_version=4))
    if args.execute or args.text:
        nbformat.validate(notebook)
        NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    written = nbformat.read(NOTEBOOK, as_version=4)
    kept = [(cell.id, cell.cell_type, cell.source) for cell in written.cells]
    status = 0
    if kept != [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]:
        print("tutorial.ipynb differs from tutorial.py: make tutorial")
        status = 1
    for page in (ROOT / name for name in PAGES):
        text = page.read_text(encoding="utf-8")
        renewed = renew(text, source, read_tables(SOURCE.parent))
        if args.execute or args.text:
            page.write_text(renewed, encoding="utf-8", newline="\n")
        elif text != renewed:
            print(f"{page.name}: the tutorial's tables differ: make tutorial")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
