"""Checkpoint files, read as data only: none can run code, and a damaged one is found."""

import hashlib
import os
import warnings

import numpy as np
import torch

from outside import check_archive, reading, shown

NO_CHECKPOINT = (
    "use another checkpoint of tensors and plain values, such as the best epoch's, or start again "
    "with --overwrite"
)
MOST_SHARED = 10  # times the file's size that its parts may take when none is shared


def check_tensors(value, size):
    """Refuse tensors, however deep in a value, that are not plain numbers in memory.

    Args:
        value: what a file held.
        size: bytes of the file; no tensor of it may be larger.

    Raises:
        ValueError: for a tensor that is meta, sparse, quantised or complex, or too large, and for
            parts that are shared so often that following them all would take for ever.
    """
    left, cost = [value], 0
    while left:
        item = left.pop()
        cost += 1
        if cost > MOST_SHARED * size:
            raise ValueError("its parts refer to each other without end")
        if isinstance(item, torch.Tensor):
            plain = item.layout == torch.strided and item.device.type == "cpu"
            if not plain or item.is_quantized or item.is_complex():
                raise ValueError("a tensor is meta, sparse, quantised or complex")
            if item.numel() * item.element_size() > size:
                raise ValueError(f"a tensor of {list(item.shape)} is larger than the file")
            cost += item.numel() * item.element_size()
        elif isinstance(item, (dict, list, tuple, set)):
            left.extend(item)
            left.extend(item.values() if isinstance(item, dict) else ())


def digest_of(value):
    """Return the SHA-256 of a value of dictionaries, lists, tensors and plain values.

    An entry `digest` of the outermost dictionary is left out.
    """
    digest = hashlib.sha256()

    def add(item):
        if isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {list(item.shape)}".encode())
            flat = item.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy() if len(flat) else b"")
        elif isinstance(item, dict):
            digest.update(f"{len(item)} entries".encode())
            for key, part in item.items():
                digest.update(repr(key).encode())
                add(part)
        elif isinstance(item, (list, tuple)):
            digest.update(f"{len(item)} parts".encode())
            for part in item:
                add(part)
        else:
            digest.update(repr(item).encode())

    add({key: part for key, part in value.items() if key != "digest"})
    return digest.hexdigest()


def load_checkpoint(path):
    """Read a checkpoint as data only: a file can never run code, and a damaged one is found.

    Args:
        path: file of this project or of the official release.

    Returns:
        What was saved, on the CPU.

    Raises:
        FileNotFoundError, ValueError: if it is missing, or not only tensors and plain values.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no checkpoint at {shown(str(path))}: give the path of an existing one"
        )
    # The official NYUD2 files hold their metrics as numpy scalars.
    scalar = getattr(np, "_core", None) or np.core
    allowed = [(scalar.multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype]
    allowed += [scalar.multiarray.scalar, *{type(np.dtype(c)) for c in "fdeilbBhHIL?"}]
    with reading(path, NO_CHECKPOINT), warnings.catch_warnings(action="ignore"):
        check_archive(path)
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_tensors(content, os.path.getsize(path))
        ours = isinstance(content, dict) and "digest" in content
        if ours and content["digest"] != digest_of(content):
            raise ValueError("its digest is another one's")
    return content


def weights_of(checkpoint, path):
    """Return the names -> tensors of a checkpoint, which may hold nothing else.

    Raises:
        ValueError: if there are none.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    known = isinstance(state, dict) and state and all(isinstance(name, str) for name in state)
    if not known or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no weights: a checkpoint has them under 'state_dict'")
    return state


def is_stage_one(config):
    """Whether a run's flags are those of pretrain.py, whose network is not trained to predict."""
    return bool(config.get("pretraining")) and not config.get("pretrained")


def dictionary_of(checkpoint, name, path):
    """Return a dictionary without tensors that a checkpoint holds, or an empty one.

    Raises:
        ValueError: if it holds something else.
    """
    value = checkpoint.get(name) or {}
    parts = value.items() if isinstance(value, dict) else ()
    plain = all(isinstance(key, str) and not isinstance(item, torch.Tensor) for key, item in parts)
    if not isinstance(value, dict) or not plain:
        raise ValueError(f"{path} is damaged (its {name} is {shown(value)}): {NO_CHECKPOINT}")
    return value


def number_of(checkpoint, name, path):
    """Return a number of 0 or more that a checkpoint holds; a ValueError if it is none."""
    with reading(path, NO_CHECKPOINT):
        value = checkpoint[name]
        if not float(value) >= 0:
            raise ValueError(f"its {name} is {shown(value)}")
    return value if type(value) is int else float(value)
