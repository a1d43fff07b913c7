"""An epoch's batches: cut into the processes' parts, read ahead, and stepped through.

A folder's `Loader` derives from `Batches`. Its training and its FDS statistics go through `Steps`,
which shows a progress bar and looks after the loss. Data scripts do without torch: it comes late.
"""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

EXPLODED = 1e6  # a loss above this ends the run (released code of the ages)
KEPT = ("first", "number", "done", "total", "samples", "waited")  # what `Steps` saves of a pass
AHEAD = 2  # batches that are read while another is trained on


class Sharing(NamedTuple):
    """How a split's samples are dealt out."""

    batch_size: int  # over all processes together
    seed: int  # with the epoch, the source of the order and of the augmentation
    device: object  # torch.device, where batches go
    rank: int = 0  # number of this process
    processes: int = 1

    @classmethod
    def of(cls, args, accelerator):
        """Take it from a run's flags and processes."""
        place = accelerator.device, accelerator.process_index, accelerator.num_processes
        return cls(args.batch_size, args.seed, *place)


class Part(NamedTuple):
    """This process's samples of one batch."""

    rows: np.ndarray  # long [n], numbers within the split
    share: float  # n · processes / size: the mean over processes of loss · share is the batch's
    size: int  # samples of the whole batch


class Batches:
    """Base of the loaders of one split.

    Args:
        N: number of samples.
        sharing: `Sharing`. What is drawn is drawn for the whole split at once, so it does not
            depend on the number of processes.
    """

    def __init__(self, N, sharing):
        import torch

        self.N, self.sharing = N, sharing
        self.prior = None  # of the training labels, where the loss needs it
        self.device = torch.device(sharing.device)
        self.skip = 0  # batches of the next pass that an earlier run has done

    def __len__(self):
        return -(-self.N // self.sharing.batch_size)

    def cut(self, order):
        """Cut an order of the samples [N] into batches, the last one maybe shorter."""
        size = self.sharing.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def parts(self, batches):
        """Return this process's `Part` of each batch after the first `skip`."""
        parts = []
        for rows in batches[self.skip :]:
            own = np.array_split(rows, self.sharing.processes)[self.sharing.rank]
            share = len(own) * self.sharing.processes / len(rows)
            # A process without a sample takes one that counts for nothing.
            parts.append(Part(own if len(own) else rows[:1], share, len(rows)))
        return parts

    def parts_in_order(self):
        """Return the split in order, cut for evaluation: consecutive rows for each process."""
        own = np.array_split(np.arange(self.N), self.sharing.processes)[self.sharing.rank]
        step = -(-self.sharing.batch_size // self.sharing.processes)  # together a batch
        rows = [own[start : start + step] for start in range(0, len(own), step)]
        return [Part(part, 1.0, len(part)) for part in rows]

    def read_ahead(self, parts, read):
        """Yield each part and what `read(rows)` returns, on the device.

        A thread reads two batches ahead. To a GPU it sends them in a stream of their own, so that
        they travel while the network works, and neither waits for the other.
        """
        import torch
        from accelerate.utils import recursively_apply, send_to_device

        on_gpu = self.device.type == "cuda"
        stream = torch.cuda.Stream(self.device) if on_gpu else None

        def sent(rows):
            data = read(rows)
            if not on_gpu:
                return send_to_device(data, self.device), None
            with torch.cuda.stream(stream):
                data = recursively_apply(torch.Tensor.pin_memory, data)
                return send_to_device(data, self.device, non_blocking=True), stream.record_event()

        def arrived(part, sending):
            data, event = sending.result()
            if on_gpu:
                now = torch.cuda.current_stream(self.device)
                now.wait_event(event)
                recursively_apply(lambda tensor: tensor.record_stream(now) or tensor, data)
            return part, data

        waiting = deque()
        with ThreadPoolExecutor(1) as pool:
            for part in parts:
                waiting.append((part, pool.submit(sent, part.rows)))
                if len(waiting) > AHEAD:
                    yield arrived(*waiting.popleft())
            for pair in waiting:
                yield arrived(*pair)


def gather(accelerator, values):
    """Return the lists of all processes as one, in the order of their ranks."""
    from accelerate.utils import gather_object

    return gather_object(values) if accelerator.num_processes > 1 else values


class Steps:
    """The steps of one pass: a progress bar, the time spent waiting for batches, and the loss.

    Args:
        run: `run_folder.Run`; its --print_freq is the number of steps between two looks at the
            loss, each of which waits for the device.
        loader: `Batches`.
        batches: what its methods yield, each batch with `share` and `size` as in `Part`.
        title: what the bar says.
        number: of the batches, or None for an epoch's.
        first: number of the first step.

    Raises:
        ValueError: if the pass was begun earlier, with another number of batches.
    """

    def __init__(self, run, loader, batches, title, number=None, first=0):
        self.accelerator = run.accelerator
        self.within = run.within
        self.loader = loader
        self.title = title
        self.look_every = run.args.print_freq
        self.name = f"{title}, from step {first}"
        self.first = first
        self.number = len(loader) if number is None else number
        self.done = 0
        self.pending = []
        self.total = self.samples = self.waited = self.before = 0.0
        if self.within is not None and self.name in self.within.passes:
            self._take(self.within.passes[self.name])
        self.next = first + self.done - len(self.pending)  # the first step not looked at
        quiet = not self.accelerator.is_main_process
        options = {"initial": self.done, "leave": False, "disable": quiet}
        self.bar = tqdm(batches, title, self.number, **options)
        self.started = time.perf_counter()

    def __iter__(self):
        self.loader.skip = self.done
        if self.within is not None:
            self.within.begin(self)
        clock = time.perf_counter()
        for batch in self.bar:
            self.waited += time.perf_counter() - clock
            yield batch
            self.done += 1
            if self.within is not None:
                self.within.after_step()
            clock = time.perf_counter()
        self.loader.skip = 0

    @property
    def step(self):
        """Number of the running step, or of the next one between two."""
        return self.first + self.done

    @property
    def seconds(self):
        """Seconds since the first step, and those of them that were spent waiting for batches."""
        train = self.before + time.perf_counter() - self.started
        return {"train": train, "data": self.waited}

    def state(self):
        """Return how far the pass has come in this process, as plain values and tensors."""
        state = {name: getattr(self, name) for name in KEPT}
        pending = [(loss.cpu(), size) for loss, size in self.pending]
        return state | {"pending": pending, "before": self.seconds["train"]}

    def _take(self, state):
        """Take over what `state` gave."""
        if state["number"] != self.number:
            raise ValueError(
                f"{self.title} was begun with {state['number']} batches, now there are "
                f"{self.number}: restore the data, or give --resume the last epoch's checkpoint"
            )
        for name in (*KEPT, "before"):
            setattr(self, name, state[name])
        device = self.accelerator.device
        self.pending = [(loss.to(device), size) for loss, size in state["pending"]]

    def add(self, loss, share, size=1):
        """Note a step's loss.

        Args:
            loss: scalar tensor, this process's mean.
            share: of its samples in the batch, as in `Part`.
            size: weight of the step in `mean_loss`: its samples, or 1.

        Raises:
            FloatingPointError: naming the step, if a loss is not finite or explodes.
        """
        self.pending.append((loss.detach() * share, size))
        if len(self.pending) == self.look_every:
            self._look()

    def mean_loss(self):
        """Return the mean over all samples (or steps) of all processes."""
        import torch

        self._look()
        where = self.accelerator.device if self.accelerator.num_processes > 1 else "cpu"
        total = torch.tensor(self.total, dtype=torch.float64, device=where)
        return self.accelerator.reduce(total, "mean").item() / max(self.samples, 1)

    def check(self):
        """Return the losses noted since the last look.

        Raises:
            FloatingPointError: as `add`.
        """
        import torch

        values = torch.stack([loss for loss, _ in self.pending]).tolist() if self.pending else []
        for step, value in enumerate(values, start=self.next):
            if not abs(value) <= EXPLODED:
                raise FloatingPointError(
                    f"the loss is {value} at {self.title.lower()}, step {step}: the last good "
                    "checkpoint stays; try a smaller --lr, --precision fp32, or --resume BEST_CKPT"
                )
        return values

    def _look(self):
        """Add up the losses noted since the last look, if they are sound."""
        values = self.check()
        if values:
            sizes = [size for _, size in self.pending]
            self.total += sum(value * size for value, size in zip(values, sizes))
            self.samples += sum(sizes)
            self.next += len(values)
            self.pending.clear()
            self.bar.set_postfix(loss=f"{values[-1]:.4f}", refresh=False)
