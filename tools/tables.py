"""Write the result tables of the READMEs from the runs in results/, or check that they agree.

A table stands between two lines of a README:

    <!-- table: results/agedb-dir/utkface -->
    <!-- end of table -->

    python tools/tables.py            # check; exit status 1 if a table differs
    python tools/tables.py --write    # write them anew
"""

import argparse
import re
import sys

from load import ROOT, load

report = load("agedb-dir", "report")  # the same file in every folder
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def order_of(run):
    """Sort key of a run: fewer methods first, then LDS, FDS, its variants, seeds."""
    config = run["config"]
    methods = (config["lds"], config["fds"])
    return (config["reweight"] != "none", sum(methods), methods[1], run["method"], run["seed"])


def table_of(folder):
    """Return the table in Markdown of all runs below a folder of results/."""
    runs = [report.load_run(path.parent) for path in sorted(folder.glob("*/results.json"))]
    if not runs:
        return "No run yet.\n"
    markdown, _ = report.make_table(sorted(runs, key=order_of))
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    place = "/".join(folder.parts[-3:])
    return f"\n{markdown}\nCommit {commits}; commands and all metrics are in `{place}/`.\n\n"


def renew(text, root=ROOT):
    """Return a README's text with its tables made anew."""
    return TABLE.sub(lambda match: match[1] + table_of(root / match[2]) + match[4], text)


def main(argv=None):
    """Check or write the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables anew")
    args = parser.parse_args(argv)
    stale = []
    for path in sorted([ROOT / "README.md", *ROOT.glob("*-dir/README.md")]):
        text = path.read_text(encoding="utf-8")
        if renew(text) != text:
            stale.append(path.relative_to(ROOT))
            if args.write:
                path.write_text(renew(text), encoding="utf-8", newline="\n")
    for path in stale:
        print(f"{path}: tables {'written' if args.write else 'differ: tools/tables.py --write'}")
    return int(bool(stale) and not args.write)


if __name__ == "__main__":
    sys.exit(main())
