"""One loader of a folder's modules, for tests, tools, teaser and benchmarks.

The benchmark folders hold modules of the same names, such as `fds` and `demo.faces`. Here each is
loaded under its own name, so that a process can use those of several folders.
"""

import contextlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def names_in(folder):
    """Return the names under which a folder's modules import each other, packages included."""
    paths = [*folder.glob("*.py"), *folder.glob("*/*.py")]
    parts = [path.relative_to(folder).with_suffix("").parts for path in paths]
    return {".".join(names) for names in parts} | {names[0] for names in parts}


def unique_name(folder, plain):
    """Return the name under which a folder's module is kept."""
    return f"{folder.replace('-', '_')}__{plain.replace('.', '__')}"


def load(folder, name):
    """Load a folder's module with that folder's other modules, and those of no other folder.

    Args:
        folder: name of a folder of the repository, such as 'agedb-dir'.
        name: of the module as the folder's own files import it: 'fds', or 'demo.faces'.

    Returns:
        The module; a second call returns the same one. Nothing of the folder stays in
        `sys.modules` under its plain name.
    """

    def unique(plain):
        return unique_name(folder, plain)

    if unique(name) in sys.modules:
        return sys.modules[unique(name)]
    path = ROOT / folder
    siblings = names_in(path)
    held = {s: sys.modules.pop(s) for s in siblings if s in sys.modules}
    for sibling in siblings:  # what this folder loaded before is used again, not loaded twice
        if unique(sibling) in sys.modules:
            sys.modules[sibling] = sys.modules[unique(sibling)]
    sys.path.insert(0, str(path))
    file = path.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(unique(name), file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique(name)] = sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique(name)], sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path))
        for sibling in siblings & sys.modules.keys():
            sys.modules.setdefault(unique(sibling), sys.modules.pop(sibling))
        sys.modules.update(held)
    return module


@contextlib.contextmanager
def exposed(folder):
    """Give a folder's loaded modules their plain names for a while: torch.compile imports them."""
    modules = {s: sys.modules.get(unique_name(folder, s)) for s in names_in(ROOT / folder)}
    modules = {plain: module for plain, module in modules.items() if module}
    held = {plain: sys.modules.get(plain) for plain in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for plain, module in held.items():
            if module is None:
                sys.modules.pop(plain, None)
            else:
                sys.modules[plain] = module
