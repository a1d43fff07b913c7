"""Check that the files which benchmark folders share are byte-identical copies.

Each benchmark folder is complete in itself, so some files exist several times. GROUPS says which
of them must be equal, and in which folder they are edited: the first. Any other file name that
two folders hold must be in MAY_DIFFER, with a reason. The two age folders' `train.py` may differ
only in the docstring and in section 3.

    python tools/copies.py          # report; exit status 1 if a copy differs
    python tools/copies.py --fix    # copy from the first folder

Standard library only: it runs without the project's environment.
"""

import argparse
import ast
import itertools
import re
import sys
from pathlib import Path

FOLDERS = ("agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir", "shhs-dir", "uci-dir")
AGE_PAIR = ("agedb-dir", "imdb-wiki-dir")
REGULARIZED = ("agedb-dir", "imdb-wiki-dir", "sts-b-dir", "shhs-dir", "uci-dir")
GROUPS = (  # files, folders: the first is where to edit
    (("lds.py", "fds.py", "moments.py", "loss.py", "flags.py", "batches.py", "utils.py"), FOLDERS),
    (("files.py", "program.py", "new_inputs.py"), FOLDERS),
    (("predict.py",), AGE_PAIR),
    (("outside.py", "checkpoint_file.py", "restoring.py", "within.py"), FOLDERS),
    (("loss_flags.py", "criterion.py", "heads.py"), FOLDERS),
    (("run_folder.py", "results.py", "released.py", "report.py", "figures.py"), FOLDERS),
    (("run_files.py", "evaluation.py"), FOLDERS),
    (("buckets.py",), FOLDERS),
    (("target.py",), (*AGE_PAIR, "sts-b-dir", "nyud2-dir", "shhs-dir")),
    (("held_out.py",), (*AGE_PAIR, "sts-b-dir", "shhs-dir")),
    (("packing.py",), ("sts-b-dir", "shhs-dir")),
    (("regions.py", "zero_shot.py"), (*AGE_PAIR, "uci-dir")),
    (("checkpoints.py",), ("agedb-dir", "imdb-wiki-dir", "shhs-dir", "uci-dir")),
    (("resnet.py", "datasets.py", "metrics.py", "image_cache.py", "meta_file.py"), AGE_PAIR),
    (("synthetic_faces.py", "augmentation.py"), AGE_PAIR),
    (("demo/faces.py", "demo/picture.py"), AGE_PAIR),
    (("resample.py", "relevance.py"), ("agedb-dir", "imdb-wiki-dir", "sts-b-dir", "uci-dir")),
    (("regularizers.py", "regularizer_flags.py", "contrast.py", "distribution.py"), REGULARIZED),
    (("pretrain.py",), (*AGE_PAIR, "uci-dir")),
    (("fetch.py",), FOLDERS),
    (("archive.py",), ("agedb-dir", "imdb-wiki-dir", "nyud2-dir", "sts-b-dir")),
    (("array_cache.py", "image_file.py"), ("agedb-dir", "imdb-wiki-dir", "nyud2-dir")),
)
# Names that folders outside their group, if any, hold each with its own content. The model
# files depth_net.py, bilstm.py, sleep_net.py and mlp.py are not here: each belongs to one folder.
MAY_DIFFER = {
    "README.md": "data, commands and results of one benchmark",
    "requirements.txt": "what one folder needs",
    "download.py": "each data set has its own sources and licences",
    "prepare.py": "each data set has its own raw format and split routine",
    "demo_data.py": "generates the format on disk of one data set",
    "train.py": "one benchmark's loop; the age pair is compared section by section",
    "datasets.py": "one data set's samples and buckets; equal in the age pair",
    "predict.py": "one kind of inputs each; equal in the age pair",
    "checkpoints.py": "one file format each in nyud2-dir and sts-b-dir; equal in the others",
    "augmentation.py": "views of one kind of input; equal in the age pair",
    "metrics.py": "one benchmark's metrics; equal in the age pair",
}
SUFFIXES = (".py", ".md", ".txt")  # other files are data and output
BANNER = re.compile(r"^# -{2,} (\d) .* -{2,}$")


def existing(root, folders):
    """Return those of `folders` that hold Python files, as paths; the others do not exist."""
    return [root / name for name in folders if any((root / name).glob("*.py"))]


def numbered_lines(path):
    """Return the lines of a file as (number, text); a byte that is no text stays distinct."""
    text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    return list(enumerate(text.split("\n"), start=1))


def shown(path):
    """Return a path from the benchmark folder on: `agedb-dir/fds.py`, `agedb-dir/demo/faces.py`."""
    return "/".join(path.parts[-3 if path.parent.name == "demo" else -2 :])


def first_difference(path, other, lines, other_lines):
    """Return the first (number, text) in which two files differ, as a message; None if equal."""
    pairs = itertools.zip_longest(lines, other_lines, fillvalue=("end of file", None))
    for (number, text), (other_number, other_text) in pairs:
        if text != other_text:
            line, other_line = ("" if t is None else f": {t!r}" for t in (text, other_text))
            return (
                f"{shown(other)} differs from {shown(path)}\n"
                f"    {shown(path)}:{number}{line}\n"
                f"    {shown(other)}:{other_number}{other_line}"
            )
    return None


def check_groups(root, fix=False):
    """Return a message for each copy that is missing, a link, or unlike the first folder's.

    Args:
        root: path of the folder that holds the benchmark folders.
        fix: write the first folder's file over such a copy, and print that instead.
    """
    problems = []
    for names, folders in GROUPS:
        folders = existing(root, folders)
        for name, folder in itertools.product(names, folders):
            source, copy = folders[0] / name, folder / name
            # A link, be it of `demo` itself, would not survive copying one folder.
            links = [p for p in (copy.parent, copy) if p != folder and p.is_symlink()]
            problem = None
            if links:
                problem = f"{shown(links[0])} is a link, not a copy"
            elif not copy.is_file():
                problem = f"{folder.name}/{name} is missing"
            elif source.is_file():
                problem = first_difference(
                    source, copy, numbered_lines(source), numbered_lines(copy)
                )
            if problem and fix and copy != source and source.is_file():
                (links[0] if links else copy).unlink(missing_ok=True)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(source.read_bytes())
                print(f"fixed: {problem}")
            elif problem:
                problems.append(problem)
    return problems


def check_undeclared(root):
    """Return a message for each file that two folders hold and that no table declares."""
    holders = {}
    for folder in existing(root, FOLDERS):
        for path in (*folder.iterdir(), *folder.glob("demo/*")):
            if path.suffix in SUFFIXES:
                name = path.relative_to(folder).as_posix()
                holders.setdefault(name, []).append(folder.name)
    problems = []
    for name, folders in sorted(holders.items()):
        declared = {folder for names, group in GROUPS if name in names for folder in group}
        if len(folders) > 1 and name not in MAY_DIFFER and not declared.issuperset(folders):
            problems.append(
                f"{name} is in {', '.join(folders)} but declared nowhere for all of them: add it "
                "to GROUPS or MAY_DIFFER in tools/copies.py, or rename one"
            )
    return problems


def lines_to_compare(path):
    """Return the numbered lines of a `train.py` without its docstring and without section 3.

    Raises:
        ValueError: the file is no Python, or has no banner 3 with a banner 4 after it.
    """
    lines, skipped, banners = numbered_lines(path), set(), {}
    try:
        body = ast.parse(path.read_bytes()).body
    except SyntaxError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is no Python: {error}") from error
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        skipped.update(range(body[0].lineno, body[0].end_lineno + 1))
    for number, text in lines:
        if match := BANNER.match(text):
            banners.setdefault(match[1], []).append(number)
    starts = banners.get("3", []) + banners.get("4", [])
    if len(starts) != 2 or "3" not in banners or starts[0] > starts[1]:
        raise ValueError(
            f"{path.parent.name}/{path.name} needs one banner '# ---- 3 ... ----' and one for "
            f"section 4 after it; found banners 3 and 4 at the lines {starts}"
        )
    skipped.update(range(starts[0], starts[1]))
    return [(number, text) for number, text in lines if number not in skipped]


def check_age_pair(root):
    """Return a message if the age folders' `train.py` differ where they must not."""
    paths = [folder / "train.py" for folder in existing(root, AGE_PAIR)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        return [f"{path.parent.name}/train.py is missing" for path in missing]
    try:
        compared = [lines_to_compare(path) for path in paths]
    except ValueError as error:
        return [str(error)]
    problem = first_difference(*paths, *compared) if len(paths) == 2 else None
    return [f"{problem}\n    only the docstring and section 3 may differ"] if problem else []


def main(argv=None):
    """Print what is wrong with the copies and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--fix", action="store_true", help="copy from each group's first folder")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help="folder that holds the benchmark folders",
    )
    args = parser.parse_args(argv)
    names = ", ".join(folder.name for folder in existing(args.root, FOLDERS))
    if not names:
        parser.error(f"--root {args.root} holds none of the folders {', '.join(FOLDERS)}")
    problems = check_groups(args.root, args.fix) + check_undeclared(args.root)
    problems += check_age_pair(args.root)
    print("\n".join(problems) or f"copies as declared in: {names}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
