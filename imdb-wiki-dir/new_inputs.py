"""New inputs for a trained model: what the folders' `predict.py` share.

Nothing here is imported that takes seconds, so that the command line is answered at once.
"""

import argparse
import glob
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from files import write_atomically
from flags import NETWORK, Help
from outside import clean

READERS = 8  # threads that read inputs
SHOWN = 20  # inputs that could not be read, of which a line each is printed
EXPORTS = (".pt2", ".onnx")  # of tools/export.py
FAULTS = "faults"  # where a table's `attrs` hold (input, reason) of what is missing in it


# ---- command line --------------------------------------------------------------------------


def make_parser(doc, inputs, batch_size):
    """Return the parser; `inputs` says what they are, `batch_size` how many are one batch."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s INPUT ... --model RUN [flags]   (--help lists them)",
        description=doc.split("\n\n")[0],
        formatter_class=Help,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    model_help = "run folder, file of a checkpoint, or OWNER/NAME on the Hugging Face Hub"
    add("--model", required=True, help=model_help)
    add("--out", type=Path, default=Path("predictions.csv"), help="table of the predictions")
    add("--overwrite", action="store_true", help="replace --out")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="device")
    add("--batch_size", type=int, default=batch_size, help="inputs that are predicted together")
    add("--debug", action="store_true", help="show where a mistake was noticed")
    return parser


def parse_args(parser, argv=None):
    """Parse the command line; what cannot be used ends with a message."""
    args = parser.parse_args(argv)
    if args.out.suffix != ".csv":
        parser.error(f"--out must name a file that ends in .csv, got {args.out}")
    if args.out.exists() and not args.overwrite:
        parser.error(f"--out {args.out} exists: --overwrite replaces it")
    if args.batch_size < 1:
        parser.error(f"--batch_size must be 1 or more, got {args.batch_size}")
    return args


def files_of(inputs, suffixes):
    """Return the files that inputs name, each once.

    Args:
        inputs: paths of files, of folders (those with a suffix in them and below), or patterns;
            or one of them.
        suffixes: lower-case endings of names, with their dot.

    Raises:
        FileNotFoundError: for a folder or a pattern without files; a missing file is kept, to be
            reported with those that cannot be read.
    """
    files = []
    for name in map(str, [inputs] if isinstance(inputs, (str, Path)) else inputs):
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
        elif not path.exists() and glob.has_magic(name):
            found = sorted(map(Path, glob.glob(name, recursive=True)))
        if not found:
            raise FileNotFoundError(f"{name} gives no file: taken are {' '.join(suffixes)}")
        files += found
    return list(dict.fromkeys(files))


def finish(table, out):
    """Write a table of predictions, name what could not be read, and return the exit status."""
    faults = table.attrs.get(FAULTS, [])
    for name, reason in faults[:SHOWN]:
        said = " ".join(str(reason).split())
        print(clean(said if said.startswith(str(name)) else f"{name}: {said}"), file=sys.stderr)
    if len(faults) > SHOWN:
        print(f"and {len(faults) - SHOWN} more", file=sys.stderr)
    write_atomically(out, table.to_csv(index=False, lineterminator="\n").encode())
    print(f"{len(table)} predictions in {out}, {len(faults)} inputs could not be read")
    return int(bool(faults))


# ---- model ---------------------------------------------------------------------------------


def find_model(train, name, given=()):
    """Return a checkpoint's path, its content, and flags as they made its network.

    Args:
        train: the folder's `train.py`, as a module.
        name: run folder, file, or name on the Hub, as for `released.find`.
        given: flags of train.py that the checkpoint may not choose itself.

    Raises:
        FileNotFoundError, ValueError: as `released.find` and `load`, and for an export.
    """
    if Path(name).suffix in EXPORTS:
        raise ValueError(
            f"--model {name} is an export for other programs: give the run or checkpoint it is of"
        )
    path = train.released.find(name)
    checkpoint = train.released.load_with_flags(path)
    args = train.parse_args([*given])
    train.released.take_flags(args, checkpoint, path, train.make_parser().flags_of(NETWORK))
    return path, checkpoint, args


def device_of(name):
    """Return the torch device of a name; 'auto' is a GPU where CUDA sees one, else the CPU.

    Raises:
        ValueError: if there is no such device.
    """
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if found["cuda"] else "cpu"
    if not found.get(name, True):
        raise ValueError(f"--device {name}: PyTorch finds none here, choose auto or cpu")
    return torch.device(name)


def read_and_answer(items, read, answer, batch_size, quiet=True):
    """Read inputs in threads and answer them a batch at a time.

    Args:
        items: list of the inputs.
        read: function of one, whose errors are noted.
        answer: function of a list of what `read` returns; it returns as many answers.
        batch_size: most inputs of a batch.
        quiet: show no progress bar.

    Returns:
        Numbers of the items that were read, their answers, and (item, error) of the others.
    """
    rows = []
    answers = []
    faults = []
    bar = tqdm(total=len(items), disable=quiet, leave=False)
    with ThreadPoolExecutor(READERS) as pool, bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of images that it reads all the same
        for start in range(0, len(items), batch_size):
            part = range(start, min(start + batch_size, len(items)))
            readings = [(row, pool.submit(read, items[row])) for row in part]
            batch = {}
            for row, reading in readings:
                try:
                    batch[row] = reading.result()
                except Exception as error:  # a damaged file may raise anything
                    faults.append((items[row], error))
            if batch:
                answers.extend(answer(list(batch.values())))
                rows.extend(batch)
            bar.update(len(part))
    return rows, answers, faults
