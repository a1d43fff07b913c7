"""`pip install .` makes one package, `imbalanced_regression`, of the method's files in agedb-dir.

The benchmark folders are no package: they are copied and run. Nothing is kept twice, since the
package is written while it is built; imports among its files become relative there.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "imbalanced_regression"
SOURCE = Path(__file__).resolve().parent / "agedb-dir"
METHOD = "buckets contrast distribution fds lds loss moments regularizers".split()
INIT = '"""LDS, FDS and later methods: `from imbalanced_regression.fds import FDS`."""\n'


class BuildMethod(build_py):
    """Write the package's files into the build."""

    def run(self):
        """Copy each method file; `from lds import ...` becomes `from .lds import ...`."""
        folder = Path(self.build_lib) / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(INIT, encoding="utf-8")
        own = re.compile(rf"^(\s*from )({'|'.join(METHOD)})(?= import )", flags=re.MULTILINE)
        for name in METHOD:
            text = (SOURCE / f"{name}.py").read_text(encoding="utf-8")
            (folder / f"{name}.py").write_text(own.sub(r"\1.\2", text), encoding="utf-8")


setup(packages=[PACKAGE], package_dir={PACKAGE: "agedb-dir"}, cmdclass={"build_py": BuildMethod})
