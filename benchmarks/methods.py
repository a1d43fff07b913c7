"""Extra cost of each method in a training step, as a ratio to plain training.

    OMP_NUM_THREADS=1 python benchmarks/methods.py [--json FILE]

A step is that of train.py or pretrain.py: forward, loss, backward, optimizer. The networks are
agedb-dir's resnet18 on 32 faces of 64², and uci-dir's perceptron on 64 rows, where the loss itself
is most of a step. Memory is what a step keeps for its backward pass, apart from the weights. Views
are given, not drawn. All ratios are of one run, and the methods take turns. Time is the
processor's, the least of five: other work on the machine counts little.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from common import load

METHODS = (
    "", "--reweight sqrt_inv --lds", "--fds", "--reweight dense", "--loss bmc", "--loss gai",
    "--loss bni", "--loss gar", "--experts 2", "--regularizer ordinal_entropy",
    "--regularizer srl", "--regularizer dist", "--regularizer conr", "pretrain.py",
)  # fmt: skip
COLUMNS = 8  # inputs of the table
N, TRAINED = {"agedb-dir": 32, "uci-dir": 64}, 2000
STEPS = {"agedb-dir": 1, "uci-dir": 20}  # timed together


class Repeated:
    """A loader that yields one batch again and again."""

    def __init__(self, batch, number, prior, targets):
        self.batch, self.number, self.prior, self.targets = batch, number, prior, targets
        self.skip = 0

    def __len__(self):
        return self.number

    def train(self, epoch, **options):
        """Yield the batch."""
        views = options.get("views", False)
        for _ in range(self.number):
            yield self.batch if views else self.batch._replace(**self.without_views())

    def without_views(self):
        """What a batch lacks where the method needs no views."""
        return {"views": None} if "views" in self.batch._fields else {}


class Pairs(Repeated):
    """One batch of two views, again and again, for pretrain.py."""

    def pairs(self, folder):
        """Yield the batch."""
        first = self.batch[0]
        views = torch.randn(2 * len(first), *first.shape[1:])
        made = load(folder, "augmentation").Pairs(views, self.batch.labels, 1.0, len(first))
        yield from [made] * self.number


def make_run(folder, flags):
    """Return a function that trains for some steps, the network, and what says how many."""
    pretrain = load(folder, "pretrain")
    train, rng = pretrain.train, np.random.default_rng(0)
    name = "--model resnet18" if folder == "agedb-dir" else ""
    program = pretrain if flags == "pretrain.py" else train
    words = flags.removeprefix("pretrain.py")
    args = program.parse_args([*words.split(), *name.split(), "--print_freq", "1000"])
    labels = np.clip(rng.gamma(9, 4.5, TRAINED).round(), 1, 100)
    counts = np.bincount(labels.astype(int), minlength=121)
    density = train.criterion.density_of(args, counts, {})
    prior = train.criterion.prior_of(args, labels, np.arange(121), density)
    n = N[folder]
    y = torch.from_numpy(labels[:n]).float().unsqueeze(1)
    weights = torch.ones(n, max(1, args.experts))
    if folder == "agedb-dir":
        model = train.build_model(args)
        batch = load(folder, "datasets").Batch(
            torch.randn(n, 3, 64, 64), y, weights, 1.0, n, torch.randn(2 * n, 3, 64, 64)
        )
        width, grid = 512, train.GRID
    else:
        columns = [{"kind": "number", "flag": False, "name": str(i)} for i in range(COLUMNS)]
        args.preparation = {"columns": columns, "bins": [0.5, 120.5, 120]}
        model = train.build_model(args)
        batch = load(folder, "datasets").Batch(torch.randn(n, COLUMNS), y, y, weights, 1.0, n)
        width, grid = args.hidden[-1], None
    accelerator = load(folder, "utils").make_accelerator("cpu")
    run = train.run_folder.Run(args, train.make_parser(), accelerator, None, {})
    given = () if grid is None else (grid,)
    model.regularizer = load(folder, "regularizers").make(run, width, labels, *given)
    net, optimizer = accelerator.prepare(model, train.build_optimizer(args, model))
    kind = Pairs if program is pretrain else Repeated
    loader = kind(batch, STEPS[folder], prior, torch.from_numpy(labels).unsqueeze(1))
    run.args.print_freq = 10**6
    if model.FDS is not None:
        for epoch in range(2):
            model.FDS.update_last_epoch_stats(epoch)
            with torch.no_grad():
                model.FDS.update_running_stats(torch.randn(TRAINED, width), labels, epoch)
    # Epoch 2: FDS and SRL are at work by then.
    if program is train:
        return lambda: train.train_one_epoch(run, net, model, optimizer, loader, 2), model, loader
    pretrain.pairs = lambda loader, epoch: loader.pairs(folder)
    return lambda: pretrain.pretrain_one_epoch(run, net, optimizer, loader, 2), model, loader


def shortest(steps, runs=5):
    """Fewest processor seconds of each; they take turns."""
    seconds = [float("inf")] * len(steps)
    for run in range(runs + 1):
        for number, step in enumerate(steps):
            start = time.process_time()
            step()
            if run:  # the first one is a warm-up
                seconds[number] = min(seconds[number], time.process_time() - start)
    return seconds


def kept_bytes(step, model):
    """Bytes that a step's graph keeps for the backward pass, each storage once, but no weights."""
    sizes = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(size for place, size in sizes.items() if place not in weights)


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the ratios")
    args = parser.parse_args(argv)
    rows = {}
    for folder in N:
        made = []
        for flags in METHODS:
            torch.manual_seed(0)
            made.append(make_run(folder, flags))
        names = [flags or "plain" for flags in METHODS]
        seconds = shortest([step for step, _, _ in made])
        for _, _, loader in made:
            loader.number = 1
        kept = [kept_bytes(step, model) for step, model, _ in made]
        print(f"{folder}: {1e3 * seconds[0] / STEPS[folder]:.2f} ms a step, plain")
        for name, took, held in zip(names, seconds, kept):
            ratios = {"time": took / seconds[0], "memory": held / kept[0]}
            rows.setdefault(name, {})[folder] = {k: round(v, 2) for k, v in ratios.items()}
            print(f"  {name:<32} time × {took / seconds[0]:.2f}, memory × {held / kept[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
