"""How every program of a folder ends: a user's mistake is one line, any other error a traceback."""

import sys
import traceback
from pathlib import Path

from outside import clean

HERE = Path(__file__).resolve().parent
DEBUG = "--debug"  # shows the traceback of a mistake too
MISTAKES = (ValueError, FloatingPointError)


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
        if debug or not is_mistake(error, (HERE, *folders)):
            raise
        # A name from a file may hold what steers a terminal.
        said = clean(" ".join(str(error).split()))
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
