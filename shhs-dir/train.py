"""SHHS-DIR: train, resume, evaluate and retrain a regressor of health from a night's sleep.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4. Nothing of this benchmark
was released: what the paper leaves open is chosen here, and each choice is named.

A run of 2 to 5 minutes on one core, on simulated nights (test MAE 5.5 points, few-shot 5.8):
    python demo_data.py && python prepare.py --min_minutes 3
    python train.py --width 16 --d_signal 32 --d_hid 32 --epoch 12 --schedule 10
The headline run (paper: MAE 13.76, few-shot 15.07; not run here):
    python train.py --reweight inverse --lds --fds
Evaluation of a checkpoint; here the first run's (seconds):
    python train.py --evaluate --eval_model \
        checkpoint/shhs_adam_l1_0.001_32_width_16_d_signal_32_d_hid_32_schedule_10/ckpt.best.pth.tar
"""

# ---- 2 imports -----------------------------------------------------------------------------
import logging
import time
from typing import NamedTuple

import flags
import loss_flags
import program
from own_signals import add_signals, check_signals, other_units, signals_of
from regularizer_flags import add_regularizer, check_regularizer
from target import Target, add_target, check_target

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "shhs-dir"
LDS_KS, LDS_SIGMA = 5, 2  # what the paper's results use
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = 100, 0  # of width 1 on [0, 100]
VARIANT = "official"  # what the published numbers of the released benchmarks come from
# SF-36 general health, 0 (worst) to 100, unless --target and the like say otherwise.
TARGET = Target("health score", "points", 0, 100, 1)
GRID = range(101)  # points; your own target is predicted from 0 to 100
# The paper names Adam at 1e-3, 80 epochs and L1 (from notes, not verified). Left open, and so ours:
STEP = "points, or hundredths of your own range"  # what regularizers and noise count in
FDS_CLIP = (0.1, 10.0)  # bounds of the variance ratio, as for ages, the nearest in range
FOCAL_BETA = 0.2  # 1 / points, as for ages
HUBER_BETA = 1.0  # points, as for ages
# As for ages. ConR has one view here: the nights are not augmented.
REGULARIZER = {"conr": [4.0], "ordinal_entropy": [1.0], "srl": [10, 100, 0.01], "dist": [1.0]}
LR_FACTOR = 0.1  # at each epoch of --schedule, which is empty by default

# ---- 4 arguments ---------------------------------------------------------------------------


def make_parser():
    """Return the parser; what the folders share has the same meaning in each."""
    parser = flags.Parser(__doc__)
    add = parser.section("data", flags.TRAINING)
    add("--data_dir", default="./data", appended=False, help="folder of shhs.csv and of the nights")
    outside_help = "paths in shhs.csv may lead out of --data_dir"
    add("--allow_outside", action="store_true", role=flags.PLACE, help=outside_help)
    add_signals(parser.section("signals", flags.NETWORK))
    add_target(parser.section("target", flags.NETWORK), TARGET)
    flags.add_lds(parser, "buckets", LDS_KS, LDS_SIGMA)
    flags.add_fds(parser, BUCKET_NUM, BUCKET_START, FDS_KS, FDS_SIGMA, VARIANT)
    flags.add_two_stage(parser)
    add_regularizer(parser, STEP, REGULARIZER, 0.3)
    add = parser.section("model", flags.NETWORK)
    add("--width", type=int, default=64, help="channels of a CNN's first block, a multiple of 8")
    add("--d_signal", type=int, default=256, help="length of a signal's vector")
    add("--d_hid", type=int, default=256, help="features before the last layer")
    add("--rnn", default="gru", choices=("gru", "lstm"), help="recurrent layer over the night")
    chunk_help = "frames of 30 s that a CNN takes at a time"
    add("--chunk", type=int, default=4096, role=flags.PLACE, help=chunk_help)
    # Those that are not appended stand in the name's first part already, or may grow on resume.
    add = parser.section("optimisation", flags.TRAINING, appended=False)
    loss_help = "training loss; mse picks the best epoch by validation MSE, else MAE"
    add("--loss", default="l1", choices=flags.LOSSES, help=loss_help)
    add("--lr", type=float, default=1e-3, help="learning rate of Adam at the start")
    add("--epoch", "--epochs", type=int, default=80, dest="epoch", help="number of epochs")
    schedule_help = "epochs where lr falls to 0.1"
    add("--schedule", type=int, nargs="*", default=[], appended=True, help=schedule_help)
    add("--weight_decay", type=float, default=0.0, appended=True, help="of Adam")
    norm_help = "longer gradients are scaled down to it"
    add("--max_grad_norm", type=float, default=5.0, appended=True, help=norm_help)
    add("--batch_size", type=int, default=32, help="nights, over all processes together")
    loss_flags.add_losses(parser, STEP)
    flags.add_output(parser, store_name="shhs")
    flags.add_run_time(parser)
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    positive = ("epoch", "width", "d_signal", "d_hid", "chunk")
    check_target(parser, args, TARGET)
    check_signals(parser, args)
    flags.check(parser, args, positive, buckets=None if TARGET.of(args).own else BUCKET_NUM)
    check_regularizer(parser, args)
    loss_flags.check_losses(parser, args)
    if args.width % 8:
        parser.error(f"--width must be a multiple of 8, got {args.width}")
    if args.d_signal % 2:
        parser.error(f"--d_signal must be even, got {args.d_signal}")
    if not args.max_grad_norm > 0:
        parser.error(f"--max_grad_norm must be above 0, got {args.max_grad_norm}")
    if not args.weight_decay >= 0:
        parser.error(f"--weight_decay must be 0 or more, got {args.weight_decay}")
    return args


def run_name(args):
    """Return the run folder's name: its part as in the age folders, and the flags behind it."""
    name = args.store_name + flags.methods_in_name(args)
    name += f"_adam_{args.loss}_{args.lr}_{args.batch_size}"
    return [name, *make_parser().changed(args)]


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import numpy as np
import pandas as pd
import torch

import checkpoints
import criterion
import evaluation
import heads
import regularizers
import released
import report
import results
import run_folder
import utils
from batches import Sharing, Steps, gather
from datasets import LDS_RULE, SPLITS, Loader, Nights, label_counts, read_meta
from fds import FDS
from metrics import MAIN_METRICS, shot_metrics, shots_of_buckets
from sleep_net import SleepNet
from target import check_counts

# ---- 5 builders ----------------------------------------------------------------------------


class Data(NamedTuple):
    """A run's data."""

    target: Target
    meta: pd.DataFrame  # rows of the meta file
    labels: np.ndarray  # scores of its training nights [N], which decide the shots
    loaders: dict  # `Loader` of each split, for an evaluation of val and test, as far as they exist
    counts: np.ndarray  # training nights of each bucket, long [B]
    density: tuple  # label density before and after LDS, [B] each
    weights: np.ndarray  # weight of a sample by its bucket, float32 [B]


def build_data(run, evaluated=None):
    """Return the run's `Data`; for an evaluation, what `evaluated` needs: a path, its content."""
    args, accelerator = run.args, run.accelerator
    target = TARGET.of(args)
    meta = read_meta(args.data_dir, target, () if evaluated else SPLITS)
    nights = Nights(args.data_dir, meta["path"], args.allow_outside, signals_of(args))
    run.note_data(meta, nights.inputs())
    units = str(evaluation.noted_in(*evaluated).get("units", "")) if evaluated else ""
    for _, name, unit, other in other_units(nights.signals, nights.units, units):
        raise ValueError(f"{name} is in {unit} here, and was in {other} in training: convert it")
    scores = meta["score"].to_numpy()
    trained = scores[meta["split"] == "train"]
    if evaluated and not len(trained):
        noted = evaluation.training_of(*evaluated)["counts"]
        trained = np.repeat(np.float32(target.middles), noted)
    counts = label_counts(trained, target)
    run.training = {"counts": counts.tolist()} | ({"units": nights.units} if nights.units else {})
    lds_rule = {} if target.own else LDS_RULE
    density = criterion.density_of(args, counts, lds_rule)
    values = target.scaled(trained), target.scaled(target.middles)
    weights = criterion.weights_of(args, *values, counts, lds_rule)
    loaders = {}
    for split in evaluation.splits_in(meta["split"]) if evaluated else SPLITS:
        rows = np.flatnonzero(meta["split"] == split)
        own = weights if split == "train" else np.ones(len(counts))
        sharing = Sharing.of(args, accelerator)
        loaders[split] = Loader(nights, rows, scores[rows], own, sharing, target)
    if not evaluated:
        check_counts(target, counts, args, weights, trained)
        buckets = target.buckets(trained)
        loaders["train"].weights = criterion.weights_at(args, values[0], buckets, weights)
        loaders["train"].prior = criterion.prior_of(args, *values, density)
    return Data(target, meta, trained, loaders, counts, density, weights)


def build_model(args):
    """Return the network, with FDS if asked for."""
    module = None
    if args.fds:
        options = flags.fds_options(args) | {"label_to_bucket": TARGET.of(args).buckets}
        options |= TARGET.of(args).fds_options(args, BUCKET_NUM, BUCKET_START)
        module = FDS(args.d_hid, **options, clip=FDS_CLIP)
    encoder = {"rnn": args.rnn, "chunk": args.chunk}
    model = SleepNet(module, args.width, args.d_signal, args.d_hid, signals_of(args), **encoder)
    return heads.extend(model, args)


def build_optimizer(args, model):
    """Return Adam over all parameters, or only over the last layer in RRT."""
    groups = heads.parameter_groups(args, model)
    return torch.optim.Adam(groups, lr=args.lr, weight_decay=args.weight_decay)


def build_loss(args):
    """Return the loss function (inputs, targets, weights) -> scalar, None if it is another."""
    return criterion.weighted_loss(args, FOCAL_BETA, HUBER_BETA)


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(run, net, model, optimizer, loader, epoch):
    """Train on the whole training set once.

    Args:
        run: `run_folder.Run`.
        net: what is called in training: `model`, wrapped where several processes share the work.
        model, optimizer, loader, epoch: the network itself, and what goes with it.

    Returns:
        The epoch's row: epoch, lr, train_loss (mean over samples), and the seconds of the pass
        and, within them, of waiting for batches.

    Raises:
        FloatingPointError: naming epoch, step and value, if the loss is not finite or explodes.
    """
    args, accelerator = run.args, run.accelerator
    done = epoch / args.epoch
    loss_of = criterion.Criterion(run, model, build_loss(args), loader.prior, done)
    target = TARGET.of(args)
    lr = args.lr * LR_FACTOR ** sum(epoch >= milestone for milestone in args.schedule)
    heads.set_lr(optimizer, lr)
    net.train()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    steps = Steps(run, loader, loader.train(epoch), f"Epoch {epoch}")
    for batch in steps:
        targets = target.scaled(batch.labels)
        with accelerator.autocast():
            preds, features = net(
                batch.signals, batch.packing, batch.labels, min(epoch, args.start_smooth)
            )
            loss = loss_of(preds.float(), targets, batch)
            loss = loss + model.regularizer(features, targets, preds, batch.weights, batch.share)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        accelerator.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
        steps.add(loss, batch.share, batch.size)
    train_loss = steps.mean_loss()
    return {"epoch": epoch, "lr": lr, "train_loss": train_loss, "seconds": steps.seconds}


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(run, model, loader, epoch):
    """Gather the features' statistics by score and hand them to FDS (section 3.2 of the paper).

    As in the released code's other benchmarks the pass runs in train mode. That changes nothing
    here: this network has neither dropout nor batch norm.

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if run.args.fds_stats == "extra_pass":
        model.train()
        batches = loader.train(epoch, statistics=True)
        title = f"Epoch {epoch}, FDS statistics"
        for batch in Steps(run, loader, batches, title):
            with run.accelerator.autocast():
                _, features = model(
                    batch.signals, batch.packing, batch.labels, min(epoch, run.args.start_smooth)
                )
            if batch.share:
                model.FDS.accumulate(features, batch.labels, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(run, model, data, split):
    """Predict a split and compute its metrics by shot.

    Returns:
        Metrics of `metrics.shot_metrics`, and the predictions [N, 1], of experts with their
        deviations [N, 2], in the split's order; the same in every process.
    """
    utils.broadcast_buffers(model)
    model.eval()
    loader = data.loaders[split]
    answers = []
    for batch in loader.evaluate():
        with run.accelerator.autocast():
            answers.extend(model(batch.signals, batch.packing)[0].float().tolist())
    answers = np.asarray(gather(run.accelerator, answers), dtype=np.float32)
    if data.target.own:
        answers = criterion.in_unit(answers, data.target.unscaled)
    return shot_metrics(answers[:, 0], loader.labels, data.labels, data.target), answers


def evaluate_splits(run, model, data):
    """Evaluate val and test, as far as they exist: metrics by split, and all predictions."""
    metrics, answers = evaluation.on_splits(evaluate, run, model, data)
    tables = []
    for split, found in answers.items():
        rows = data.meta.iloc[data.loaders[split].rows].rename(columns={"score": "label"})
        columns = criterion.columns_of(found)
        tables.append(rows.assign(**columns))
    return metrics, pd.concat(tables)[["path", "label", *columns, "split"]]


# ---- 9 train -------------------------------------------------------------------------------


def train(run, net, model, optimizer, data, progress):
    """Train from the epoch in `progress` to the last, and keep the best; updates `progress`."""
    args = run.args
    loader = data.loaders["train"]
    started = time.perf_counter() - progress["wall_seconds"]
    for epoch in range(progress["epoch"], args.epoch):
        utils.seed_everything(args.seed, epoch, run.accelerator.process_index)
        row = train_one_epoch(run, net, model, optimizer, loader, epoch)
        if args.fds and epoch >= args.start_update:
            row["seconds"] |= update_fds_statistics(run, model, loader, epoch)
        model.regularizer.end_epoch()
        clock = time.perf_counter()
        row["val"], _ = evaluate(run, model, data, "val")
        row["seconds"]["evaluate"] = time.perf_counter() - clock
        val_loss = row["val"]["overall"]["mse" if args.loss == "mse" else "mae"]
        is_best = val_loss < progress["best_loss"]
        if is_best:
            progress |= {"best_loss": val_loss, "best_epoch": epoch}
        progress |= {"epoch": epoch + 1, "wall_seconds": time.perf_counter() - started}
        results.write_epoch(run, model, row, MAIN_METRICS, data.labels)
        checkpoints.save(run, model, optimizer, progress, is_best)


# ---- 10 finish -----------------------------------------------------------------------------


def finish(run, model, data, progress):
    """Evaluate the best epoch and write results, predictions and figures."""
    run.accelerator.wait_for_everyone()
    args, folder = run.args, run.folder
    best = folder / checkpoints.BEST
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(best), best), best)
    metrics, predictions = evaluate_splits(run, model, data)
    if run.is_main:
        results.write_predictions(folder, predictions)
        shots = shots_of_buckets(data.labels, data.target)
        edges = data.target.edges
        results.write_label_density(folder, edges, shots, data.counts, data.density, data.weights)
        if args.fds:
            buckets = range(model.FDS.bucket_start, model.FDS.bucket_num)
            buckets = edges[buckets] if data.target.own else buckets
            results.write_fds_statistics(folder, model.FDS, buckets)
        results.write_results(
            run,
            metrics,
            benchmark=BENCHMARK,
            target=data.target.record,
            main_metrics=MAIN_METRICS,
            higher_is_better=[],
            best_epoch=progress["best_epoch"],
            wall_seconds=progress["wall_seconds"],
        )
        report.draw_run(folder)
        table = results.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    run_folder.close(run)
    return metrics["test"]


def run_evaluation(run):
    """Evaluate a checkpoint on what exists of validation and test set."""
    path, checkpoint = evaluation.load(run, checkpoints.BEST)
    model = build_model(run.args)
    utils.load_state(model, utils.weights_of(checkpoint, path), path)
    model.to(run.accelerator.device)
    data = build_data(run, (path, checkpoint))
    return evaluation.finish(run, path, *evaluate_splits(run, model, data))


# ---- 11 main -------------------------------------------------------------------------------


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    run = run_folder.start(args, make_parser(), run_name(args))
    if args.evaluate:
        return run_evaluation(run)
    checkpoint = run_folder.find_checkpoint(run, checkpoints.LAST)
    data = build_data(run)
    model = build_model(args)
    train_set = data.loaders["train"]
    model.set_input_scale(train_set.nights.scale(train_set.rows))  # a checkpoint's replaces it
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        utils.load_state(model, state, path, skip=("linear.", heads.NOISE))
        released.note_stage_one(args, path, loss_flags.balances(args))
    labels = data.target.scaled(train_set.labels)
    model.regularizer = regularizers.make(run, args.d_hid, labels, GRID)
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(run)
    optimizer = build_optimizer(args, model)
    net, optimizer = utils.prepare(run, model, optimizer, dynamic=None)
    progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    results.start_epochs(run, progress["epoch"], progress["epoch"])
    with checkpoints.saving(run, model, optimizer, progress):
        train(run, net, model, optimizer, data, progress)
        return finish(run, model, data, progress)


if __name__ == "__main__":
    program.run(main)
