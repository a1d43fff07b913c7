"""How every program of a folder ends: a user's mistake is one line, any other error a traceback."""

import re
import sys
import traceback
from pathlib import Path

from outside import clean

HERE = Path(__file__).resolve().parent
DEBUG = "--debug"  # shows the traceback of a mistake too
USAGE = "%(prog)s [flags]   (--help lists them)"
MISTAKES = (ValueError, FloatingPointError)
# Of a size that no machine has, or not this one; PyTorch's types would need its import.
NO_MEMORY = re.compile("allocate|out of memory|Storage size calculation overflowed")


def run(main, *folders):
    """Run a program's `main` and end the process with its exit status, 1 after a mistake.

    Args:
        main: function without arguments.
        folders: paths of folders whose code names mistakes too, next to this file's.
    """
    debug = DEBUG in sys.argv
    sys.argv = [word for word in sys.argv if word != DEBUG]
    try:
        status = main()
    except Exception as error:
        too_large = is_too_large(error)
        if debug or not (too_large or is_mistake(error, (HERE, *folders))):
            raise
        # A name from a file may hold what steers a terminal.
        said = clean(" ".join(str(error).split()))
        if too_large:
            said = f"not enough memory ({said}): give a smaller --batch_size, or smaller sizes"
        sys.exit(f"{Path(sys.argv[0]).name}: {said} ({DEBUG} shows where)")
    sys.exit(status if isinstance(status, int) else 0)


def is_mistake(error, folders):
    """Whether an error is of a file, or one that these folders' code looked for and named.

    The latter comes from a `raise` of its files: the same type from within a library, or from a
    conversion that nobody thought of, is a fault of the program.
    """
    if isinstance(error, OSError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).resolve().is_relative_to(folder) for folder in folders)
    return isinstance(error, MISTAKES) and ours and (last.line or "").startswith("raise")


def is_too_large(error):
    """Whether an error says that there is not enough memory."""
    said = isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(said)
