"""A GPU that the CPU plays, to see without one which operations of a step would wait for it.

A tensor of this device holds one of the CPU, and says that it lies on the device `meta`, which
PyTorch knows everywhere and which has no memory of its own. So programs take the way that they take
on a GPU: they look whether a tensor lies on the CPU. What is called goes to the tensors held, and
`PlayedGPU` notes what would make the CPU wait on CUDA: a value or a number of rows that it needs to
know, and a copy that is not from pinned memory and in the background.
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from conftest import ROOT

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
# The shape of the result, or the Python number, depends on values that lie on the GPU.
WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "_unique", "_unique2", "bincount", "multinomial", "equal",
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "histc",
)  # fmt: skip
# These wait with an index of bool, or on the CPU.
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class Played(torch.Tensor):
    """A tensor of the GPU that is played; `held` is the CPU's."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        options = {"dtype": held.dtype, "device": DEVICE, **layout}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return played(function, args, kwargs or {})


def played(function, args, kwargs):
    """Call an operation on the tensors held; its results lie where a GPU's would."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in given if isinstance(x, Played)]
    name = function.overloadpacket.__name__
    mixed = there and any(x.ndim for x in given if not isinstance(x, Played))
    if mixed and name not in ("copy_", *INDEXING):
        raise RuntimeError(f"{name} takes tensors of the GPU and of the CPU")
    stays = bool(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": CPU}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Played) else x, (args, kwargs))
    same = {id(x.held): x for x in there}

    def placed(x):
        if not isinstance(x, torch.Tensor):
            return x
        return same.get(id(x), Played(x) if stays else x)

    return tree_map(placed, function(*args, **kwargs))


class Makers(TorchFunctionMode):
    """Tensors of Python's and NumPy's numbers are made on the CPU and sent, as on a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device} | kwargs
            function, args = torch.tensor, args[1:]
        if function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        if function in (torch.Tensor.tolist, torch.Tensor.numpy) and isinstance(args[0], Played):
            return function(args[0].detach().cpu())
        return function(*args, **kwargs)


class PlayedGPU(TorchDispatchMode):
    """Plays a GPU as long as it is entered; `waits` says what a step of a folder waited for.

    Args:
        folder: whose code is watched: a wait is put down to the innermost of its lines.
    """

    def __init__(self, folder):
        super().__init__()
        self.folder = str(ROOT / folder)
        self.watching = False
        self.waits = set()
        self.around = contextlib.ExitStack()

    def __enter__(self):
        self.around.enter_context(Makers())
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.around.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.watching and would_wait(function, args, kwargs or {}):
            self.waits.add(f"{self.place()}: {function.overloadpacket.__name__}")
        return played(function, args, kwargs or {})

    def place(self):
        """Return the function of the folder that is at work."""
        frame = sys._getframe(2)
        while not frame.f_code.co_filename.startswith(self.folder):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"

    @contextlib.contextmanager
    def watch(self, on=True):
        """Note what waits, or stop to."""
        before, self.watching = self.watching, on
        yield
        self.watching = before


def would_wait(function, args, kwargs):
    """Whether an operation makes the CPU wait for a GPU, on which some of its tensors lie."""
    name = function.overloadpacket.__name__
    there = any(isinstance(x, Played) for x in tree_leaves((args, kwargs)))
    if name in ("_to_copy", "copy_"):
        pair = [there, torch.device(kwargs.get("device") or args[0].device) == DEVICE]
        if name == "copy_":
            pair = [isinstance(x, Played) for x in args[:2]]
        background = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        return pair[0] != pair[1] and not (background and args[0].is_pinned())
    if name == "repeat_interleave":
        return there and kwargs.get("output_size") is None
    if name == "normal":  # it looks whether each deviation is above 0
        return any(isinstance(x, Played) for x in args[1:])
    if name in INDEXING:
        places = [x for x in args[1] if x is not None] if there else ()
        return any(x.dtype == torch.bool or not isinstance(x, Played) for x in places)
    return there and name in WAITING
