"""UCI-DIR and any table: train, resume, evaluate, predict and compare with LDS and FDS.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 3. UCI-DIR is SRL's (CVPR
2025); its split was not published: this folder's is its own.

A run of seconds on a generated table, on a CPU (expect a test MAE near 18, few-shot near 28):
    python demo_data.py && python train.py --dataset demo --epoch 30
The headline run (Abalone; half a minute on one core):
    python train.py --dataset abalone --reweight sqrt_inv --lds --fds
Evaluation of a checkpoint (seconds):
    python train.py --dataset demo --epoch 30 --evaluate
With `--csv mine.csv --target price --compare` it goes from your table to the answer which method
helps; `predict.py` goes from there to predictions for new rows, as does `--predict new.csv`.
"""

# ---- 2 imports -----------------------------------------------------------------------------
import functools
import logging
import time
from typing import NamedTuple

import flags
import loss_flags
import program
import resample
from regularizer_flags import add_regularizer, check_regularizer

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "uci-dir"
DATASET = "abalone"  # <data_dir>/abalone.csv and .json
LDS_KS, LDS_SIGMA = 5, 2  # what the paper's results use
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = 1000, 0  # all of the prepared table's
VARIANT = "official"  # what the published numbers of the released benchmarks come from
TREES = "hist_gradient_boosting"
HIDDEN = (20, 30, 10)  # widths of UCI-DIR (SRL, CVPR 2025)
FDS_CLIP = (0.1, 10.0)  # bounds of the variance ratio (released code, ages)
# Slope of the focal loss: in the released code 0.2 on ages, of a range near 100, and 20 on [0, 1].
FOCAL_BETA_TIMES_RANGE = 20.0
HUBER_BETA = 1.0  # of scaled targets
RELEVANCE, OVERSAMPLE = "extremes", "balance"  # as published (Branco et al., 2017)
# The ages' weights, divided by AgeDB's standard deviation of 20 years: targets are standardised.
REGULARIZER = {"conr": [0.2], "ordinal_entropy": [0.05], "srl": [0.5, 5, 5e-4], "dist": [1.0]}
PRETRAINING = {}  # of pretrain.py: as for training
LR_FACTOR = 0.1  # at each epoch of --schedule, which is empty by default

# ---- 4 arguments ---------------------------------------------------------------------------


def make_parser():
    """Return the parser; what the folders share has the same meaning in each."""
    parser = flags.Parser(__doc__)
    add = parser.section("data", flags.TRAINING, appended=False)
    add("--dataset", default=DATASET, help="reads <data_dir>/<dataset>.csv and .json")
    add("--data_dir", default="./data", help="folder of the prepared tables")
    csv_help = "a table that prepare.py is to prepare first, with its defaults"
    add("--csv", default="", role=flags.PLACE, help=csv_help)
    add("--target", default="", role=flags.PLACE, help="column of its labels")
    flags.add_lds(parser, "buckets", LDS_KS, LDS_SIGMA)
    flags.add_fds(parser, BUCKET_NUM, BUCKET_START, FDS_KS, FDS_SIGMA, VARIANT)
    flags.add_two_stage(parser)
    resample.add_resample(parser, RELEVANCE, OVERSAMPLE)
    add_regularizer(parser, "hundredths of the labels' range", REGULARIZER, 0.3)
    add = parser.section("model", flags.NETWORK)
    add("--model", default="mlp", choices=("mlp", TREES), appended=False, help="kind of model")
    add("--hidden", type=int, nargs="+", default=[*HIDDEN], help="widths of the hidden layers")
    scale_help = "what the model predicts: the label, standardised, or its logarithm"
    add("--target_scale", default="standard", choices=("none", "standard", "log"), help=scale_help)
    # Those that are not appended stand in the name's first part already, or may grow on resume.
    add = parser.section("optimisation", flags.TRAINING, appended=False)
    loss_help = "training loss; mse picks the best epoch by validation MSE, else MAE"
    add("--loss", default="l1", choices=flags.LOSSES, help=loss_help)
    add("--lr", type=float, default=1e-3, help="of Adam at the start; trees have 0.1")
    add("--epoch", "--epochs", type=int, default=200, dest="epoch", help="epochs, or trees")
    add("--schedule", type=int, nargs="*", default=[], appended=True, help="epochs of 0.1 · lr")
    add("--batch_size", type=int, default=64, help="rows, over all processes together")
    loss_flags.add_losses(parser, "scaled targets")
    flags.add_output(parser)
    add = parser.section("predictions and comparison", flags.PLACE)
    add("--predict", default="", help="table of new rows: adds predictions of --eval_model")
    add("--compare", action="store_true", help="train several methods, and say which helps")
    add("--seeds", type=int, default=5, help="of each method in --compare")
    flags.add_run_time(parser)
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.evaluate |= bool(args.predict)
    chosen = args.reweight != "none" or args.lds or args.fds or args.model == TREES
    chosen |= {args.resample, args.regularizer} != {"none"} or args.loss not in ("l1", "mse")
    if args.compare and (args.evaluate or args.resume or args.experts or chosen):
        parser.error("--compare chooses the methods itself, and resumes: leave out their flags")
    flags.check(parser, args, positive=("epoch", "seeds"))
    resample.check_resample(parser, args)
    check_regularizer(parser, args)
    loss_flags.check_losses(parser, args)
    if min(args.hidden) < 1:
        parser.error(f"--hidden must be 1 or more each, got {args.hidden}")
    if bool(args.csv) != bool(args.target):
        parser.error("--csv FILE and --target COLUMN go together")
    on_features = args.fds or args.experts or args.pretrained or args.regularizer != "none"
    if args.model == TREES and (on_features or args.loss not in ("l1", "mse")):
        parser.error("trees have no features to smooth, no heads; their --loss is l1 or mse")
    return args


def run_name(args):
    """Return the run folder's name: its part as in the age folders, and the flags behind it."""
    name = "_".join(filter(None, (args.dataset, args.model, args.store_name)))
    name += flags.methods_in_name(args)
    return [f"{name}_adam_{args.loss}_{args.lr}_{args.batch_size}", *make_parser().changed(args)]


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import numpy as np
import pandas as pd
import torch

import checkpoints
import compare
import criterion
import datasets
import evaluation
import heads
import metrics as measured
import new_rows
import prepare
import regularizers
import released
import report
import results
import run_folder
import trees
import utils
from batches import Sharing, Steps
from bins import Bins, label_counts, label_to_bucket
from checkpoint_file import dictionary_of
from columns import width_of
from datasets import Loader, TargetScale, read_prepared
from fds import FDS
from metrics import HIGHER_IS_BETTER, MAIN_METRICS, ShotRule, shot_metrics, shots_of_buckets
from mlp import MLP
from synthetic_rows import with_synthetic_rows

# ---- 5 builders ----------------------------------------------------------------------------


class Data(NamedTuple):
    """A run's data."""

    table: pd.DataFrame  # rows of the prepared table
    labels: np.ndarray  # of its training rows [N], which decide the shots
    loaders: dict  # `Loader` of each split, for an evaluation of val and test, as far as they exist
    rule: ShotRule  # buckets and shots
    scale: TargetScale
    counts: np.ndarray | None = None  # training rows by bucket, with the synthetic ones, long [B]
    density: tuple = ()  # label density before and after LDS, [B] each
    weights: np.ndarray | None = None  # weight of a sample by its bucket, float32 [B]
    points: list | None = None  # of SERA's relevance, where `labels` say only their buckets


def build_data(run, evaluated=None):
    """Return the run's `Data`; for an evaluation, what `evaluated` needs: a path, its content."""
    args = run.args
    table, own = read_prepared(args.data_dir, args.dataset, () if evaluated else datasets.SPLITS)
    run.note_data(table)
    if not evaluated:
        args.preparation = own  # so that checkpoints hold it
    preparation, sharing = args.preparation, Sharing.of(args, run.accelerator)
    bins = Bins(*preparation["bins"])
    rule = ShotRule(bins, **preparation["shots"])
    scale = TargetScale(args.target_scale, preparation["target"])
    parts = datasets.split_rows(table, preparation, f"{args.dataset}.csv")
    labels = parts["train"][1]
    if evaluated:
        points, loaders = None, {}
        if not len(labels):
            noted = evaluation.training_of(*evaluated)
            labels, points = measured.training_of(noted, bins, evaluated[0])
        for split in evaluation.splits_in(table["split"]):
            inputs, y = parts[split]
            loaders[split] = Loader(inputs, y, scale.scale(y), np.ones(len(y)), sharing)
        return Data(table, labels, loaders, rule, scale, points=points)
    run.training = measured.training_facts(labels, bins)
    if args.resample != "none":
        shots = shots_of_buckets(labels, rule)[label_to_bucket(labels, bins)]
        parts["train"] = with_synthetic_rows(*parts["train"], shots, args)
    trained = parts["train"][1]
    counts = label_counts(trained, bins)
    density = criterion.density_of(args, counts, datasets.LDS_RULE)
    scaled = bins.scaled(trained), bins.scaled(bins.middles)
    weights = criterion.weights_of(args, *scaled, counts, datasets.LDS_RULE)
    weighted = criterion.weights_at(args, scaled[0], label_to_bucket(trained, bins), weights)
    loaders = {}
    for split, (inputs, y) in parts.items():
        own = weighted if split == "train" else np.ones(len(y))
        loaders[split] = Loader(inputs, y, scale.scale(y), own, sharing)
    targets = loaders["train"].targets.cpu().numpy().ravel()
    loaders["train"].prior = criterion.prior_of(args, targets, scale.scale(bins.middles), density)
    return Data(table, labels, loaders, rule, scale, counts, density, weights)


def build_model(args, state=None):
    """Return the network for the inputs of `args.preparation`, or trees, as many as in `state`."""
    if args.model == TREES:
        return trees.Trees(args.epoch if state is None else len(state["value"]))
    module = None
    if args.fds:
        bins = Bins(*args.preparation["bins"])
        bucket = functools.partial(label_to_bucket, bins=bins)
        options = flags.fds_options(args) | {"bucket_num": min(args.bucket_num, bins.number)}
        module = FDS(args.hidden[-1], **options, clip=FDS_CLIP, label_to_bucket=bucket)
    model = MLP(width_of(args.preparation["columns"]), args.hidden, module)
    return heads.extend(model, args)


def build_optimizer(args, model):
    """Return Adam for all parameters, or for the last layer alone in RRT."""
    groups = heads.parameter_groups(args, model)
    # One kernel for all parameters: the layers are so small that a kernel each costs more.
    return torch.optim.Adam(groups, lr=args.lr, fused=True)


def build_loss(args, targets):
    """Return the loss function (inputs, targets, weights) -> scalar, None if it is another.

    Args:
        args: the flags.
        targets: scaled ones of the training set, tensor [N, 1], whose range the focal loss needs.
    """
    beta = FOCAL_BETA_TIMES_RANGE / (float(targets.max() - targets.min()) or 1.0)
    return criterion.weighted_loss(args, beta, HUBER_BETA)


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(run, net, model, optimizer, loader, epoch):
    """Train on the whole training set once.

    Args:
        run: `run_folder.Run`.
        net: what is called in training: `model`, wrapped where several processes share the work.
        model, optimizer, loader, epoch: the network itself, and what goes with it.

    Returns:
        The epoch's row: epoch, lr, train_loss (mean over samples, of scaled targets), and the
        seconds of the pass and, within them, of waiting for batches.

    Raises:
        FloatingPointError: naming epoch, step and value, if the loss is not finite or explodes.
    """
    args, accelerator = run.args, run.accelerator
    plain = build_loss(args, loader.targets)
    loss_of = criterion.Criterion(run, model, plain, loader.prior, epoch / args.epoch)
    lr = args.lr * LR_FACTOR ** sum(epoch >= milestone for milestone in args.schedule)
    heads.set_lr(optimizer, lr)
    net.train()
    steps = Steps(run, loader, loader.train(epoch), f"Epoch {epoch}")
    for batch in steps:
        with accelerator.autocast():
            preds, features = net(batch.inputs, batch.labels, min(epoch, args.start_smooth))
            loss = loss_of(preds.float(), batch.targets, batch)
            more = model.regularizer(features, batch.targets, preds, batch.weights, batch.share)
            loss = loss + more
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
        steps.add(loss, batch.share, batch.size)
    return {"epoch": epoch, "lr": lr, "train_loss": steps.mean_loss(), "seconds": steps.seconds}


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(run, model, loader, epoch):
    """Gather the features' statistics by bucket and hand them to FDS (section 3.2 of the paper).

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if run.args.fds_stats == "extra_pass":
        model.train()
        for batch in loader.evaluate():
            with run.accelerator.autocast():
                _, features = model(batch.inputs, batch.labels, min(epoch, run.args.start_smooth))
            model.FDS.accumulate(features, batch.labels, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


def evaluate(run, model, data, split):
    """Predict a split and compute its metrics by shot.

    Returns:
        Metrics of `metrics.shot_metrics`, and what `predict_rows` returns, in the split's order;
        the same in every process.
    """
    utils.broadcast_buffers(model)
    loader = data.loaders[split]
    answers = new_rows.predict_rows(run, model, loader, data.scale)
    return shot_metrics(answers[:, 0], loader.labels, data.labels, data.rule, data.points), answers


def evaluate_splits(run, model, data):
    """Evaluate val and test, as far as they exist: metrics by split, and all predictions."""
    metrics, answers = evaluation.on_splits(evaluate, run, model, data)
    target = run.args.preparation["target"]["name"]
    tables = []
    for split, found in answers.items():
        rows = np.flatnonzero(data.table["split"] == split)
        columns = {"row": rows, "label": data.table[target].iloc[rows]}
        columns |= criterion.columns_of(found)
        tables.append(pd.DataFrame(columns).assign(split=split))
    return metrics, pd.concat(tables)


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
FACTS = {"benchmark": BENCHMARK, "main_metrics": MAIN_METRICS, "higher_is_better": HIGHER_IS_BETTER}


def finish(run, model, data, progress):
    """Evaluate the best epoch and write results, predictions and figures."""
    run.accelerator.wait_for_everyone()
    args, folder, best = run.args, run.folder, run.folder / checkpoints.BEST
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(best), best), best)
    metrics, predictions = evaluate_splits(run, model, data)
    if run.is_main:
        results.write_predictions(folder, predictions)
        edges = data.rule.bins.edges
        shots = shots_of_buckets(data.labels, data.rule)
        results.write_label_density(folder, edges, shots, data.counts, data.density, data.weights)
        if args.fds:
            buckets = slice(model.FDS.bucket_start, model.FDS.bucket_num)
            results.write_fds_statistics(folder, model.FDS, edges[buckets])
        record = {name: args.preparation["target"][name] for name in ("name", "unit")}
        facts = {"target": record | data.rule.bins.record} | FACTS
        facts |= {name: progress[name] for name in ("best_epoch", "wall_seconds")}
        results.write_results(run, metrics, **facts)
        if not args.compare:  # which draws one figure of all
            report.draw_run(folder)
        table = results.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    run_folder.close(run)
    return metrics["test"]


def load_model(run, load=released.load_for_evaluation):
    """Return the checkpoint's path, its content, and its model, ready to predict."""
    path, checkpoint = load(run, checkpoints.BEST)
    run.args.preparation = new_rows.preparation_of(checkpoint, path)
    state = utils.weights_of(checkpoint, path)
    model = build_model(run.args, state)
    utils.load_state(model, state, path)
    return path, checkpoint, model.to(run.accelerator.device)


def run_evaluation(run):
    """Evaluate a checkpoint on what exists of validation and test set."""
    path, checkpoint, model = load_model(run, evaluation.load)
    data = build_data(run, (path, checkpoint))
    return evaluation.finish(run, path, *evaluate_splits(run, model, data))


# ---- 11 main -------------------------------------------------------------------------------


def train_and_finish(args):
    """Train as the flags say; returns the metrics of the test set."""
    run = run_folder.start(args, make_parser(), run_name(args))
    checkpoint = run_folder.find_checkpoint(run, checkpoints.LAST)
    data = build_data(run)
    if checkpoint:
        config = dictionary_of(utils.load_checkpoint(checkpoint), "config", checkpoint)
        datasets.check_same_table(checkpoint, config, args.preparation)
    model = build_model(args)
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        utils.load_state(model, state, path, skip=("linear.", heads.NOISE))
        released.note_stage_one(args, path, loss_flags.balances(args))
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(run)
    if args.model == TREES:
        return finish(run, model, data, trees.fit(run, model, data))
    model.regularizer = regularizers.make(run, args.hidden[-1], data.loaders["train"].targets)
    optimizer = build_optimizer(args, model)
    net, optimizer = utils.prepare(run, model, optimizer)
    progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    results.start_epochs(run, progress["epoch"], progress["epoch"])
    with checkpoints.saving(run, model, optimizer, progress):
        train(run, net, model, optimizer, data, progress)
        return finish(run, model, data, progress)


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    if args.csv:
        args.dataset = prepare.prepare_once(args.csv, args.target, args.data_dir)
    if args.compare:
        return compare.compare(args, run_name, train_and_finish)
    if not args.evaluate:
        return train_and_finish(args)
    run = run_folder.start(args, make_parser(), run_name(args))
    return new_rows.run_prediction(run, load_model(run)) if args.predict else run_evaluation(run)


if __name__ == "__main__":
    program.run(main)
