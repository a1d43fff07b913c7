"""RELIABILITY.md: what was tried to break the code, with counts, from `reliability/*.json`.

    python benchmarks/reliability.py    # writes the page again from those files

`make fuzz` writes `reliability/files.json`. Each file is a section: a title, an order, a text, the
columns and rows of a table.
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "RELIABILITY.md"
INTRODUCTION = """# What was tried to break it

Written by `python benchmarks/reliability.py` from `benchmarks/reliability/*.json`, which the
commands below write.
"""


def write_section(name, order, title, text, table, **facts):
    """Write one section of the page, and the page.

    Args:
        name: of its file.
        order: number that says where it stands.
        title, text: of the section.
        table: list of rows, the first of them the header.
        facts: further entries of the file.
    """
    section = {"order": order, "title": title, "text": text, "table": table, **facts}
    path = HERE / "reliability" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def page():
    """Return the page."""
    paths = sorted((HERE / "reliability").glob("*.json"))
    sections = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    parts = [INTRODUCTION]
    for section in sorted(sections, key=lambda section: section["order"]):
        lines = [list(map(str, row)) for row in section["table"]]
        rule = ["---"] + ["---:" if cell.replace(",", "").isdigit() else "---"
                          for cell in (lines[-1][1:] if lines else [])]  # fmt: skip
        rows = [f"| {' | '.join(line)} |\n" for line in [*lines[:1], rule, *lines[1:]] if lines]
        parts.append(f"## {section['title']}\n\n{section['text'].strip()}\n\n{''.join(rows)}")
    return "\n".join(parts).rstrip() + "\n"


FILES_TEXT = """
`make fuzz`, or `python tests/fuzz.py --only KIND` for later kinds, damages files of {kinds}
kinds at random, {cases:,} in {minutes:.0f} minutes, with seed {seed}: flipped bits, cuts, holes,
doubled and foreign bytes, fields that no table should have. Each must be read as it was or be
refused in one line that names it. *Other content* is a change that a reader cannot know of, such
as another age in a table. Where checksums guard the content, it would be a failure: checkpoints by
their archive's CRCs, nights by fletcher32 and CRC-32, cached rows by CRC-32. *Failed* counts raw
errors of other libraries, wrong content, crashes and hangs. Of labelled files and of figures, *as
it was* says only that they could be made.

`tests/test_hostile.py` has a short form of this and {hostile} files made by hand: payloads, bombs,
pipes, links, paths that lead out.

Not covered: restarts over several machines, NCCL, power loss, Windows. A published folder's
weights and files of text have no checksum of their own. HDF5 and image libraries read in this
process, so a fault of theirs would end it.
"""


def write_files(kinds, counts, seed, minutes):
    """Write the section on damaged files.

    Args:
        kinds: {name: `hostile_kinds.Kind`}.
        counts: {name: Counter of outcomes}; a kind that it lacks keeps its row.
        seed, minutes: of the run.
    """
    import test_hostile

    good = ("as it was", "another content", "refused")
    table = [["file", "read by", "cases", "as it was", "other content", "refused", "failed"]]
    path = HERE / "reliability" / "files.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"table": []}
    rows = {tuple(row[:2]): row for row in before["table"]}
    if len(counts) < len(kinds):
        minutes += before["minutes"]
    for name, kind in kinds.items():
        if name not in counts:
            table.append(rows[kind.what, kind.where])
            continue
        held = counts[name]
        failed = held.total() - sum(held[outcome] for outcome in good)
        numbers = [held.total(), *(held[outcome] for outcome in good), failed]
        table.append([kind.what, kind.where, *(f"{number:,}" for number in numbers)])
    cases = sum(int(row[2].replace(",", "")) for row in table[1:])
    hostile = test_hostile.number_of_files()
    text = FILES_TEXT.format(
        kinds=len(kinds), cases=cases, minutes=minutes, seed=seed, hostile=hostile
    )
    write_section("files", 1, "Damaged and hostile files", text, table, minutes=minutes)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
