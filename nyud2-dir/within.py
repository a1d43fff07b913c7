"""A checkpoint within an epoch: when a signal ends the run, or every --save_every minutes.

SIGTERM, SIGINT and SIGHUP end a run after the running step; a second one ends it at once. The file
has what an epoch's checkpoint has, and of each process its random state, its sums of FDS, its
running statistics, and how far each pass since that checkpoint has come. A resumed run repeats its
epoch: a pass that was over yields no batch, the interrupted one yields those left.
"""

import logging
import os
import random
import shlex
import signal
import threading
import time

import numpy as np
import torch

import run_folder
from batches import gather
from moments import BucketMoments
from restoring import WITHIN
from results import check_weights
from utils import save_checkpoint

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
ECHO = 1.0  # seconds; launchers pass a signal on that the terminal has sent already
SAVE, STOP = 1, 2  # what a process wants after a step; the most that any wants is done
SAME = ("seed", "batch_size", "fds_stats")  # flags that decide what the steps of an epoch are


class Within:
    """Context of a run's training: looks for signals and the time after each step.

    Args:
        run: `run_folder.Run`, which gets it as `run.within`. What `run.held` has of an interrupted
            epoch is given back to this process.
        model: the network.
        state_of: function without arguments, returns what an epoch's checkpoint holds.

    Raises:
        ValueError: if the epoch was begun with another seed, batch size or number of processes.
    """

    def __init__(self, run, model, state_of):
        self.run = run
        self.model = model
        self.state_of = state_of
        self.signal, self.noted_at = None, 0.0
        self.handlers = {}  # those that were there before
        self.passes = {}  # since the last epoch's checkpoint: what `Steps.state` gives, by name
        self.current = None  # the `Steps` of the running pass
        self.interrupted = self.random = None  # name of a pass, and the random state to set there
        self.saved_at = self.counted_to = time.perf_counter()
        if run.held:
            self._take(run.held)
        elif run.is_main:
            (run.folder / WITHIN).unlink(missing_ok=True)

    def __enter__(self):
        self.run.within = self
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in SIGNALS):
                # What is ignored stays so: nohup ignores SIGHUP.
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        self.run.within = None
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        """Handle a signal: the first one is noted, the second acts as if this were not here."""
        if self.signal is None:
            # The time first: a launcher's echo may come between these two lines.
            self.noted_at = time.monotonic()
            self.signal = signal.Signals(number).name
            if self.run.is_main:  # logging must not be used within a handler
                text = f"\n{self.signal}: ends after this step; a second signal ends at once\n"
                os.write(2, text.encode())
        elif time.monotonic() - self.noted_at > ECHO:
            signal.signal(number, self.handlers[number])
            signal.raise_signal(number)

    # ---- called by Steps, and when an epoch's checkpoint is written ----

    def begin(self, steps):
        """Take note of a pass; the interrupted one gets its random state back."""
        if self.current is not None:
            self.passes[self.current.name] = self.current.state()
        self.current = steps
        if steps.name == self.interrupted:
            set_random_state(self.random, self.run.accelerator.device)
            self.interrupted = None

    def after_step(self):
        """Save, or save and end the run, if any process wants it."""
        wanted = self._wanted()
        if wanted:
            self._save()
        if wanted == STOP:
            self._stop("within an epoch")

    def began(self, step):
        """Whether a pass that starts at this step (more than 0) was begun since the checkpoint."""
        return any(state["first"] == step for state in self.passes.values())

    def epoch_is_saved(self):
        """Forget the passes, whose result is in a checkpoint; end the run after a signal."""
        self.passes = {}
        self.current = None
        self.saved_at = self.counted_to = time.perf_counter()
        if self._wanted() == STOP:
            self._stop("between two epochs")

    def _wanted(self):
        """What any process wants, the same in all: nothing (0), `SAVE` or `STOP`."""
        minutes = (time.perf_counter() - self.saved_at) / 60
        due = 0 < self.run.args.save_every <= minutes
        return self.run.most(STOP if self.signal else SAVE * due)

    # ---- the checkpoint ----

    def _save(self):
        """Write the checkpoint, if it is sound."""
        run = self.run
        steps = self.current
        steps.check()
        check_weights(self.model, f"at {steps.title.lower()}, step {steps.step - 1}")
        self.passes[steps.name] = steps.state()
        several = self.run.group is not None
        module = self.model.FDS
        own = {
            "random": random_state(run.accelerator.device),
            "passes": self.passes,
            "moments": moments_of(module),
            "buffers": {n: b.cpu() for n, b in self.model.named_buffers()} if several else {},
        }
        processes = gather(run.accelerator, [own])
        if run.is_main:
            state = self.state_of()
            state["wall_seconds"] += time.perf_counter() - self.counted_to
            state["within"] = {"interrupted": steps.name, "processes": processes}
            save_checkpoint(run.folder / WITHIN, state)
        self.saved_at = time.perf_counter()

    def _take(self, held):
        """Give this process back what it had in the interrupted epoch."""
        run = self.run
        processes = held["processes"]
        now = {flag: getattr(run.args, flag) for flag in SAME}
        now["processes"] = run.accelerator.num_processes
        before = {**held["config"], "processes": len(processes)}
        wrong = [
            f"{flag} {before[flag]}, not {now[flag]}" for flag in now if before[flag] != now[flag]
        ]
        if wrong:
            raise ValueError(
                f"the interrupted epoch was begun with {', '.join(wrong)}: give the same, or give "
                "--resume the last epoch's checkpoint"
            )
        own = processes[run.accelerator.process_index]
        self.passes = own["passes"]
        self.random = own["random"]
        self.interrupted = held["interrupted"]
        give_moments(self.model.FDS, own["moments"], run.accelerator.device)
        for name, buffer in self.model.named_buffers():
            if name in own["buffers"]:
                buffer.copy_(own["buffers"][name])

    def _stop(self, where):
        """End the run with status 0, and say how to resume it."""
        run = self.run
        run.accelerator.wait_for_everyone()
        logging.info("Stopped %s. To resume: %s", where, to_resume(run.facts["command"]))
        run_folder.close(run)
        raise SystemExit(0)


def to_resume(command):
    """Return the command that resumes a run which another one started: with a bare --resume."""
    words = shlex.split(command)
    kept = []
    for before, word in zip(["", *words], words):
        path = before == "--resume" and not word.startswith("--")
        if not path and word != "--overwrite" and word.split("=")[0] != "--resume":
            kept.append(word)
    return shlex.join([*kept, "--resume"])


def moments_of(module):
    """Return FDS's sums of the running epoch on the CPU, or None."""
    if module is None or module.moments is None:
        return None
    return tuple(part.cpu() for part in module.moments.parts)


def give_moments(module, moments, device):
    """Give FDS the sums that `moments_of` returned."""
    if moments is not None:
        module.moments = BucketMoments(*(part.to(device) for part in moments))


def random_state(device):
    """Return the state of all that is drawn from: `random`, numpy, torch on the CPU and a GPU."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries that draw from it
    state = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest)}
    state["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state, device):
    """Set what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - libraries that draw from it
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
