"""Files that are written whole, and lines of JSON: no torch, so that data scripts start fast."""

import json
import os
from pathlib import Path

import numpy as np


def write_atomically(path, content):
    """Write a file so that a crash leaves either the old one or the new one, whole.

    Args:
        path: of the file; its folder is made if missing.
        content: bytes, or a function that writes to the open binary file it is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value):
    """Return a line of JSON in which numpy numbers are plain and NaN is null."""

    def plain(x):
        if isinstance(x, dict):
            return {str(key): plain(item) for key, item in x.items()}
        if isinstance(x, (list, tuple, np.ndarray)):
            return [plain(item) for item in x]
        if isinstance(x, (float, np.floating)):
            return float(x) if np.isfinite(x) else None
        return x.item() if isinstance(x, np.generic) else x

    return json.dumps(plain(value), allow_nan=False)
