"""What every run needs: seeds, devices, logs, files, checkpoints."""

import importlib.util
import logging
import os
import platform
import random
import shlex
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from checkpoint_file import digest_of, load_checkpoint, weights_of  # noqa: F401 - next to what writes them
from files import to_json, write_atomically  # noqa: F401 - callers look here too
from lds import KERNELS, get_lds_kernel_window  # noqa: F401 - their place in the released code
from outside import clean

# For how long processes wait for one that builds a cache of images. The libraries' own 10 to 30
# minutes, which hold for all else, are too short for hundreds of thousands.
PATIENCE = timedelta(hours=3)

# ---- seeds and devices ---------------------------------------------------------------------


def seed_everything(seed, epoch=0, rank=0):
    """Seed `random`, numpy and torch from (seed, epoch, rank), so that any epoch can be redone."""
    state = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 - libraries that draw from the global state
    torch.manual_seed(state)


def make_accelerator(device="auto", precision=None, gpu=None, track="none", run_folder=None):
    """Set up devices, precision, processes and trackers.

    Args:
        device: 'auto' (a CUDA GPU, else the CPU), 'cpu', 'cuda' or 'mps'.
        precision: 'fp32', 'tf32', 'bf16', 'fp16', or None for tf32 on CUDA and fp32 on the CPU.
        gpu: index of the one GPU to use, or None; −1 is the CPU.
        track: 'tensorboard', 'wandb' or 'none'; events go to `run_folder`.

    Returns:
        An `accelerate.Accelerator`.

    Raises:
        ValueError: for a device or tracker that does not exist, or a precision it cannot do.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if track != "none" and importlib.util.find_spec(track) is None:
        raise ValueError(f"--track {track} needs its package: pip install {track}, or --track none")
    if gpu is not None:
        device = "cpu" if gpu < 0 else "cuda"
        if gpu >= 0 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("a GPU is named: leave that flag out, torchrun gives each process one")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible: use --device cpu, or install a CUDA build")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is visible, Apple's GPU: use --device cpu")
    use_cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if use_cuda and gpu is not None:
        if gpu >= torch.cuda.device_count():
            raise ValueError(f"GPU {gpu} asked for, {torch.cuda.device_count()} visible")
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{gpu}"
    precision = precision or ("tf32" if use_cuda else "fp32")
    if precision in ("tf32", "fp16") and not use_cuda:
        raise ValueError(f"--precision {precision} needs a CUDA device: use fp32 or bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Read at the first tensor: Linux fills fresh memory faster in pages of 2 MiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    AcceleratorState._reset_state(reset_partial_state=True)  # a notebook may train several times
    # accelerate and --gather use what PyTorch is about to rename.
    warnings.filterwarnings("ignore", ".*(broadcast_buffers|all_gather).*", FutureWarning)
    accelerator = Accelerator(
        cpu=not (use_cuda or device == "mps"),
        mixed_precision=precision if precision in ("bf16", "fp16") else "no",
        log_with=None if track == "none" else track,
        project_dir=str(run_folder) if run_folder else None,
        kwargs_handlers=connect(use_cuda),
    )
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    return accelerator


def connect(use_cuda):
    """Choose NCCL or gloo between processes; return what accelerate needs to know of it."""
    from accelerate import DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Rank 0's running statistics are taken before an evaluation, as if broadcast at every step.
    options = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    shared = use_cuda and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()
    if shared:  # NCCL refuses two processes on one GPU; accelerate takes the rank for its index
        options.append(InitProcessGroupKwargs(backend="gloo"))
        rank = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        os.environ["LOCAL_RANK"] = str(rank)
    join_after_restart("nccl" if use_cuda and not shared else "gloo")
    return options


def join_after_restart(backend):
    """Meet the other processes of one node, if torchrun has restarted them.

    Its store still holds the addresses of those that died: a restart needs keys of its own.
    """
    names = ("TORCHELASTIC_RESTART_COUNT", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    restart, rank, size, local, port = (int(os.environ.get(name, 0)) for name in names)
    if restart and local == size and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], port, size, is_master=False)
        store = torch.distributed.PrefixStore(f"restart_{restart}", store)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def patient_group(accelerator):
    """Return a group of all processes that waits for `PATIENCE`; None with one process."""
    if accelerator.num_processes == 1:
        return None
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def prepare(run, model, optimizer, dynamic=False):
    """Return network and optimizer as training uses them: compiled, on the device, shared.

    Args:
        run: `run_folder.Run`.
        model, optimizer: as built, on the CPU.
        dynamic: None if the batches' shapes vary, for --compile.
    """
    if run.args.compile:
        # Training, FDS statistics and evaluation, full batches and the last one, before FDS
        # calibrates and after: a graph each, of fixed shapes, more than the 8 that are allowed.
        torch._dynamo.config.recompile_limit = 32
        model.compile(dynamic=dynamic)
    net, optimizer = run.accelerator.prepare(model, optimizer)
    if run.accelerator.device.type == "cuda":
        for group in optimizer.param_groups:
            if "fused" in group and not group.get("foreach"):
                group["fused"] = True  # one kernel for all parameters
    return net, optimizer


def broadcast_buffers(model):
    """Give every process rank 0's buffers; nothing with one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


# ---- logs and facts -------------------------------------------------------------------------


class CleanFormatter(logging.Formatter):
    """Lines in which names from files cannot steer a terminal."""

    def format(self, record):
        """Return a record's line."""
        return clean(super().format(record))


def setup_logging(folder=None, filename="training.log", main_process=True):
    """Log to the terminal and, in the main process, to a file of the run folder."""
    handlers = [logging.StreamHandler(sys.stdout)] if main_process else [logging.NullHandler()]
    if folder and main_process:
        handlers.append(logging.FileHandler(Path(folder) / filename, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(CleanFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)


def run_facts():
    """Return what a result depends on apart from its flags: commit, command, versions."""
    here = Path(__file__).resolve().parent

    def git(*words):
        try:
            command = ["git", "-C", str(here), *words]
            return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
        except (OSError, subprocess.CalledProcessError):
            return None  # a folder copied out of its repository has no commit

    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    launcher = f"torchrun --nproc_per_node={local}" if local > 1 else "python"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return {
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "uncommitted_changes": bool(changed) if changed is not None else None,
        "command": f"{launcher} {shlex.join(sys.argv)}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


# ---- checkpoints ---------------------------------------------------------------------------


def save_checkpoint(path, state):
    """Write a checkpoint so that a crash leaves either the old file or the new one, whole.

    Args:
        path: of the file.
        state: what it is to hold: names -> tensors, or a run's state, which gets a `digest`.

    Raises:
        ValueError: if the disk has no room; the old file stays.
    """
    if "state_dict" in state:
        state = {**state, "digest": digest_of(state)}
    left, sizes = [state], {}
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, (dict, list, tuple)):
            left.extend(item.values() if isinstance(item, dict) else item)
    write_atomically(path, lambda file: torch.save(state, file), sum(sizes.values()))


def load_state(model, state_dict, path, skip=()):
    """Load weights into a model, with or without `module.`, and what a method adds.

    Args:
        model: the module to fill.
        state_dict: names -> tensors.
        path: where they come from, for messages.
        skip: prefixes of names that are left as they are in the model.

    Returns:
        List of the model's names that were left as they are.

    Raises:
        ValueError: naming what differs, if the weights are another model's.
    """
    own, optional = model.state_dict(), ("FDS.", "regularizer.", "noise_sigma", *skip)
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    chosen = {n: given[n] for n in own if n in given and not n.startswith(tuple(skip))}
    wrong = [f"missing {n}" for n in own if n not in given and not n.startswith(optional)]
    wrong += [f"unknown {n}" for n in given if n not in own and not n.startswith(optional)]
    wrong += [
        f"{name} is {list(value.shape)} in the file, {list(own[name].shape)} in the model"
        for name, value in chosen.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} holds another model's weights, {len(wrong)} names differ: "
            f"{'; '.join(wrong[:10])}. Check the flags that make the network, and those of FDS: "
            "--bucket_num, --bucket_start"
        )
    model.load_state_dict(chosen, strict=False)
    return [name for name in own if name not in chosen]
