"""Rank-N-Contrast: train the features alone, by two views of each sample, before train.py.

`augmentation.py` draws the two views. Labels say which samples are to be nearer to one another
than others; the last layer is not trained. `train.py` then trains that layer on the features:

    python pretrain.py --dataset NAME
    python train.py --dataset NAME --pretrained CKPT --retrain_fc --reweight none

with train.py's flags for data, network, output and run time, and CKPT as the last line says.
Of several processes each contrasts its own part of a batch.
Source: Zha et al., NeurIPS 2023, arXiv 2210.01189.
"""

import itertools
import logging
import math
import time

import checkpoints
import flags
import program
import run_folder
import train
import utils
from augmentation import pairs
from batches import Steps
from regularizers import rnc_loss

NAME = "rnc"
TEMPERATURE = 2.0  # released code
LAST_LR = 0.1**3  # part of --lr at the end of the cosine (released code)
# Sections of train.py's flags that say something here, and flags of them that do not.
USED = ("data", "target", "model", "optimisation", "output", "run time")
NOT_HERE = "csv many few target_scale loss schedule evaluate eval_model".split()


def make_parser():
    """Return train.py's parser with the defaults of pretraining."""
    parser = train.make_parser()
    parser.description = __doc__.split("\n\n")[0]
    parser.set_defaults(**train.PRETRAINING)
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that say nothing here end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    others = [group for name, group in parser.groups.items() if name not in USED]
    for flag in itertools.chain(NOT_HERE, *others):
        if flag != "temperature" and hasattr(args, flag) and not parser.is_default(args, flag):
            parser.error(f"pretraining has no use for --{flag}: give it to train.py")
    flags.check(parser, args, positive=("epoch",))
    if args.batch_size == 1:
        parser.error("pretraining compares the samples of a batch: --batch_size must be 2 or more")
    if "boosting" in args.model:
        parser.error("trees have no features to pretrain: leave out --model")
    if args.temperature is not None and not args.temperature > 0:
        parser.error(f"--temperature must be above 0, got {args.temperature}")
    return args


def run_name(args):
    """Return the run folder's name, as a list of its first part and the flags behind it."""
    name = "_".join(filter(None, (args.dataset, args.model, args.store_name, NAME)))
    return [f"{name}_{args.lr}_{args.batch_size}", *make_parser().changed(args)]


def cosine_lr(args, epoch):
    """Return an epoch's learning rate, falling from the first on."""
    last = LAST_LR * args.lr
    return last + (args.lr - last) * (1 + math.cos(math.pi * (epoch + 1) / args.epoch)) / 2


def pretrain_one_epoch(run, net, optimizer, loader, epoch):
    """Contrast the views of the whole training set once; returns the mean loss."""
    args, accelerator = run.args, run.accelerator
    for group in optimizer.param_groups:
        group["lr"] = cosine_lr(args, epoch)
    net.train()
    steps = Steps(run, loader, pairs(loader, epoch), f"Epoch {epoch}")
    for batch in steps:
        with accelerator.autocast():
            preds, features = net(batch.views)
            loss = rnc_loss(features, batch.labels.repeat(2, 1), args.temperature or TEMPERATURE)
            loss = loss + 0 * preds.sum()  # several processes wait for every parameter's gradient
        optimizer.zero_grad()
        accelerator.backward(loss * batch.share)
        optimizer.step()
        steps.add(loss, batch.share, batch.size)
    return steps.mean_loss()


def main(argv=None):
    """Pretrain a network; returns the path of its checkpoint."""
    args = parse_args(argv)
    args.pretraining = NAME  # by which train.py knows the checkpoint
    run = run_folder.start(args, make_parser(), run_name(args))
    checkpoint = run_folder.find_checkpoint(run, checkpoints.LAST)
    data = train.build_data(run)
    images = getattr(args, "imagenet_weights", False)  # faces have that flag
    model = train.build_model(args, *[checkpoint is None] * images)
    run_folder.open_run_folder(run)
    net, optimizer = utils.prepare(run, model, train.build_optimizer(args, model))
    progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    started = time.perf_counter() - progress["wall_seconds"]
    with checkpoints.saving(run, model, optimizer, progress):
        for epoch in range(progress["epoch"], args.epoch):
            utils.seed_everything(args.seed, epoch, run.accelerator.process_index)
            loss = pretrain_one_epoch(run, net, optimizer, data.loaders["train"], epoch)
            progress |= {"epoch": epoch + 1, "wall_seconds": time.perf_counter() - started}
            logging.info("Epoch %d: loss %.4f", epoch, loss)
            checkpoints.save(run, model, optimizer, progress, is_best=True)  # none is held out
    path = run.folder / checkpoints.LAST
    logging.info("Next: train.py --pretrained %s --retrain_fc --reweight none", path)
    run_folder.close(run)
    return path


if __name__ == "__main__":
    program.run(main)
