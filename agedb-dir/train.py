"""AgeDB-DIR: train, resume, evaluate and retrain an age regressor with LDS and FDS.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of about 4 minutes on one core, on drawn faces (test MAE 10.3, few-shot 18.0):
    python demo_data.py
    python train.py --model resnet18 --img_size 64 --batch_size 64 --epoch 3 --schedule 2
The headline run (paper: MAE 7.55, few-shot 10.79; not run here):
    python train.py --reweight sqrt_inv --lds --lds_kernel gaussian --lds_ks 5 --lds_sigma 2 \
        --fds --fds_kernel gaussian --fds_ks 5 --fds_sigma 2
Evaluation of a checkpoint, ours or an official one; here the first run's (half a minute):
    python train.py --evaluate --eval_model \
        checkpoint/agedb_resnet18_adam_l1_0.001_64_img_size_64_schedule_2/ckpt.best.pth.tar
"""

# ---- 2 imports -----------------------------------------------------------------------------
import logging
import time
from pathlib import Path
from typing import NamedTuple

import flags
import loss_flags
import program
import resample
from regularizer_flags import add_regularizer, check_regularizer
from target import Target, add_target, check_target

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "agedb-dir"
MODELS = ("resnet18", "resnet34", "resnet50")
DATASET = "agedb"  # <data_dir>/agedb.csv
LDS_KS, LDS_SIGMA = 9, 1  # defaults of the released code; its results use 5 and 2
FDS_KS, FDS_SIGMA = 9, 1
BUCKET_NUM, BUCKET_START = 100, 3  # integer ages 3 ... 99 have statistics of their own
VARIANT = "official"  # what the published numbers come from
# Years 0 to 120 by whole years, unless --target and the like say otherwise: `datasets.AGE`.
TARGET = Target("age", "years", 0, 121, 1, limit=200)
STEP = "years, or hundredths of your own range"  # what regularizers and noise count in
FDS_CLIP = (0.1, 10.0)  # bounds of the variance ratio (released code, ages)
FOCAL_BETA = 0.2  # 1 / years (released code, ages)
HUBER_BETA = 1.0  # years
# What is rare: few- and medium-shot ages. Torgo et al. (2013) add 200 %.
RELEVANCE, OVERSAMPLE = "density", 2.0
# Weights as published, SRL's from the defaults of its evaluation.
REGULARIZER = {"conr": [4.0], "ordinal_entropy": [1.0], "srl": [10, 100, 0.01], "dist": [1.0]}
PRETRAINING = {"optimizer": "sgd", "lr": 0.5, "epoch": 400}  # of pretrain.py, as published
LR_FACTOR = 0.1  # at each epoch of --schedule
GRID = range(121)  # years; your own target is predicted from 0 to 100
NO_FDS = -1  # an epoch that comes before any calibration
# UVOTE: how the experts' losses grow, and the bounds of their log-scales (released code).
EXPERT_SCHEDULE = "rise"
SCALE_CLIP = (-5.0, 5.0)

# ---- 4 arguments ---------------------------------------------------------------------------


def make_parser():
    """Return the parser; every flag of the official script keeps its meaning and default."""
    parser = flags.Parser(__doc__)
    add = parser.section("data", flags.TRAINING)
    add("--dataset", default=DATASET, appended=False, help="reads <data_dir>/<dataset>.csv")
    add("--data_dir", default="./data", appended=False, help="folder of the csv and of the images")
    add("--img_size", type=int, default=224, role=flags.NETWORK, help="side of the images, pixels")
    cache_help = "folder of the image cache, or none [<data_dir>/cache]"
    add("--cache", role=flags.PLACE, help=cache_help)
    workers_help = "threads that decode, at most one per core"
    add("--workers", type=int, default=32, role=flags.PLACE, help=workers_help)
    outside_help = "paths in the csv may lead out of --data_dir"
    add("--allow_outside", action="store_true", role=flags.PLACE, help=outside_help)
    add_target(parser.section("target", flags.NETWORK), TARGET)
    flags.add_lds(parser, "buckets", LDS_KS, LDS_SIGMA)
    flags.add_fds(parser, BUCKET_NUM, BUCKET_START, FDS_KS, FDS_SIGMA, VARIANT)
    flags.add_two_stage(parser)
    resample.add_resample(parser, RELEVANCE, OVERSAMPLE)
    add_regularizer(parser, STEP, REGULARIZER, 0.3)
    # Those that are not appended stand in the released name already, or may grow on resume.
    add = parser.section("optimisation", flags.TRAINING, appended=False)
    add("--model", default="resnet50", choices=MODELS, role=flags.NETWORK, help="network")
    imagenet_help = "start from torchvision's IMAGENET1K_V1"
    add("--imagenet_weights", action="store_true", appended=True, help=imagenet_help)
    add("--optimizer", default="adam", choices=("adam", "sgd"), help="optimizer")
    loss_help = "training loss; mse picks the best epoch by validation MSE, else MAE"
    add("--loss", default="l1", choices=flags.LOSSES, help=loss_help)
    add("--lr", type=float, default=1e-3, help="learning rate at the start")
    add("--epoch", "--epochs", type=int, default=90, dest="epoch", help="number of epochs")
    add("--momentum", type=float, default=0.9, appended=True, help="of sgd")
    add("--weight_decay", type=float, default=1e-4, appended=True, help="of sgd")
    schedule_help = "epochs where lr falls to 0.1"
    add("--schedule", type=int, nargs="*", default=[60, 80], appended=True, help=schedule_help)
    add("--batch_size", type=int, default=256, help="over all processes together")
    loss_flags.add_losses(parser, STEP, schedule=EXPERT_SCHEDULE)
    flags.add_output(parser)
    flags.add_run_time(parser)
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    flags.check(parser, args, positive=("epoch", "img_size", "workers"))
    check_target(parser, args, TARGET)
    resample.check_resample(parser, args)
    check_regularizer(parser, args)
    loss_flags.check_losses(parser, args)
    return args


def run_name(args):
    """Return the run folder's name: its released part, and our flags behind it."""
    name = "_".join(filter(None, (args.dataset, args.model, args.store_name)))
    name += flags.methods_in_name(args)
    name += f"_{args.optimizer}_{args.loss}_{args.lr}_{args.batch_size}"
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
import metrics as measured
import regularizers
import released
import report
import results
import run_folder
import utils
from batches import Sharing, Steps, gather
from datasets import LDS_RULE, SPLITS, Loader, label_counts, read_meta
from fds import FDS
from image_cache import Images
from metrics import MAIN_METRICS, shot_metrics, shot_of, shots_of_buckets
from resnet import AgeResNet, feature_dim_of
from synthetic_faces import with_synthetic_faces
from target import check_counts

# ---- 5 builders ----------------------------------------------------------------------------


class Data(NamedTuple):
    """A run's data."""

    target: Target
    meta: pd.DataFrame  # rows of the meta file
    labels: np.ndarray  # those of its training images [N], which decide the shots
    loaders: dict  # `Loader` of each split, for an evaluation of val and test, as far as they exist
    counts: np.ndarray | None = None  # training images by bucket, with synthetic ones, long [B]
    density: tuple = ()  # label density before and after LDS, [B] each
    weights: np.ndarray | None = None  # weight of a sample by its bucket, float32 [B]


def build_data(run, evaluated=None):
    """Return the run's `Data`; for an evaluation, what `evaluated` needs: a path, its content."""
    args, accelerator = run.args, run.accelerator
    target = TARGET.of(args)
    meta = read_meta(args.data_dir, args.dataset, target, () if evaluated else SPLITS)
    cache = Path(args.cache or Path(args.data_dir) / "cache") if args.cache != "none" else None
    quiet = not accelerator.is_main_process
    options = {"workers": args.workers, "quiet": quiet, "allow_outside": args.allow_outside}
    images = Images(args.data_dir, meta["path"], args.img_size, cache, args.dataset, **options)
    run.note_data(meta, images.inputs("images"))
    all_labels = meta[target.name].to_numpy()
    parts = {}
    for split in SPLITS:
        rows = np.flatnonzero(meta["split"] == split)
        parts[split] = images, rows, all_labels[rows]
    labels = parts["train"][2]
    sharing = Sharing.of(args, accelerator)
    if evaluated:
        if not len(labels):
            counts = evaluation.training_of(*evaluated)["counts"]
            labels = measured.labels_of(counts, target)
        ones = np.ones(len(target.buckets))
        splits = evaluation.splits_in(meta["split"])
        loaders = {split: Loader(*parts[split], ones, sharing, target) for split in splits}
        return Data(target, meta, labels, loaders)
    run.training = {"counts": measured.count_groups(labels, target)}
    if args.resample != "none":
        shots = shot_of(labels, labels, target)
        parts["train"] = with_synthetic_faces(*parts["train"], shots, args)
    check_last_batch(args, len(parts["train"][1]), accelerator.num_processes)
    trained = parts["train"][2]
    counts = label_counts(trained, target)
    lds_rule = {} if target.own else LDS_RULE
    density = criterion.density_of(args, counts, lds_rule)
    values = target.scaled(trained), target.scaled(target.middles)
    weights = criterion.weights_of(args, *values, counts, lds_rule)
    check_counts(target, counts, args, weights, labels)
    ones = np.ones(len(counts))
    loaders = {split: Loader(*part, ones, sharing, target) for split, part in parts.items()}
    buckets = target.buckets(trained)
    loaders["train"].weights = criterion.weights_at(args, values[0], buckets, weights)
    loaders["train"].prior = criterion.prior_of(args, *values, density)
    return Data(target, meta, labels, loaders, counts, density, weights)


def check_last_batch(args, N, processes):
    """Raise ValueError if batch norm would see one pixel of one image in the last layers."""
    last = N % args.batch_size
    if args.img_size <= 32 and 0 < (last or args.batch_size) < 2 * processes:
        raise ValueError(
            f"--img_size {args.img_size} leaves one pixel to the last layers, so a process needs 2 "
            f"images, and the last batch has {last}: choose another --batch_size"
        )


def build_model(args, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one fetches ImageNet weights."""
    module = None
    if args.fds:
        options = flags.fds_options(args)
        options |= TARGET.of(args).fds_options(args, BUCKET_NUM, BUCKET_START)
        module = FDS(feature_dim_of(args.model), **options, clip=FDS_CLIP)
    model = AgeResNet(args.model, module, args.imagenet_weights and fresh)
    heads.extend(model, args, SCALE_CLIP)
    return model.to(memory_format=torch.channels_last)  # the faster layout, on the CPU too


def build_optimizer(args, model):
    """Return the optimizer of all parameters, or only of the last layer in RRT."""
    groups = heads.parameter_groups(args, model)
    if args.optimizer == "adam":  # the official script gives Adam no weight decay
        return torch.optim.Adam(groups, lr=args.lr)
    return torch.optim.SGD(
        groups, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )


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
    batches = loader.train(epoch, views=args.regularizer == "conr")
    steps = Steps(run, loader, batches, f"Epoch {epoch}")
    for batch in steps:
        targets = target.scaled(batch.labels)
        with accelerator.autocast():
            preds, features = net(batch.images, batch.labels, min(epoch, args.start_smooth))
            loss = loss_of(preds.float(), targets, batch)
            seen = preds, features
            if batch.views is not None:
                seen = net(batch.views, batch.labels.repeat(2, 1), NO_FDS)
            loss = loss + model.regularizer(seen[1], targets, seen[0], batch.weights, batch.share)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
        steps.add(loss, batch.share, batch.size)
    train_loss = steps.mean_loss()
    return {"epoch": epoch, "lr": lr, "train_loss": train_loss, "seconds": steps.seconds}


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(run, model, loader, epoch):
    """Gather the features' statistics by age and hand them to FDS (section 3.2 of the paper).

    As in the released code the pass runs in train mode: images are augmented, and batch norm
    keeps updating.

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
                _, features = model(batch.images, batch.labels, min(epoch, run.args.start_smooth))
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
    answers = []
    loader = data.loaders[split]
    for batch in loader.evaluate():
        with run.accelerator.autocast():
            answers.extend(model(batch.images)[0].float().tolist())
    answers = np.asarray(gather(run.accelerator, answers), dtype=np.float32)
    answers = criterion.in_unit(answers, data.target.unscaled)
    return shot_metrics(answers[:, 0], loader.labels, data.labels, data.target), answers


def evaluate_splits(run, model, data):
    """Evaluate val and test, as far as they exist: metrics by split, and all predictions."""
    metrics, answers = evaluation.on_splits(evaluate, run, model, data)
    tables = []
    for split, found in answers.items():
        rows = data.meta.iloc[data.loaders[split].rows]
        columns = criterion.columns_of(found)
        tables.append(rows.assign(label=rows[data.target.name], **columns))
    return metrics, pd.concat(tables)[["path", "label", *columns, "split"]]


# ---- 9 train -------------------------------------------------------------------------------


def train(run, net, model, optimizer, data, progress):
    """Train from the epoch in `progress` to the last, and keep the best; updates `progress`."""
    args, loader = run.args, data.loaders["train"]
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
    args, folder, best = run.args, run.folder, run.folder / checkpoints.BEST
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
        facts = {"benchmark": BENCHMARK, "target": data.target.record, "main_metrics": MAIN_METRICS}
        facts |= {name: progress[name] for name in ("best_epoch", "wall_seconds")}
        results.write_results(run, metrics, higher_is_better=[], **facts)
        report.draw_run(folder)
        table = results.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    run_folder.close(run)
    return metrics["test"]


def run_evaluation(run):
    """Evaluate a checkpoint on what exists of validation and test set."""
    args = run.args
    path, checkpoint = evaluation.load(run, checkpoints.BEST)
    model = build_model(args)
    utils.load_state(model, utils.weights_of(checkpoint, path), path)
    before = (checkpoint.get("config") or {}).get("dataset", args.dataset)
    if before != args.dataset:
        logging.warning("%s was trained on %s, this is %s", path, before, args.dataset)
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
    model = build_model(args, fresh=checkpoint is None and not args.pretrained)
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        utils.load_state(model, state, path, skip=("linear.", heads.NOISE))
        released.note_stage_one(args, path, loss_flags.balances(args))
    labels = data.target.scaled(data.loaders["train"].labels)
    model.regularizer = regularizers.make(run, feature_dim_of(args.model), labels, GRID)
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(run)
    optimizer = build_optimizer(args, model)
    net, optimizer = utils.prepare(run, model, optimizer)
    progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    results.start_epochs(run, progress["epoch"], progress["epoch"])
    with checkpoints.saving(run, model, optimizer, progress):
        train(run, net, model, optimizer, data, progress)
        return finish(run, model, data, progress)


if __name__ == "__main__":
    program.run(main)
