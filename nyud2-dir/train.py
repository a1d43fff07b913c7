"""NYUD2-DIR: train, resume, evaluate and retrain a depth network with LDS and FDS per pixel.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of 2 to 8 minutes on one core, on rendered rooms (test RMSE 1.8 m, predicting the mean 3.4):
    python demo_data.py
    python train.py --model mini --downscale 4 --batch_size 6 --lr 1e-3 --epochs 12 --lr_step 9
The headline run (paper: RMSE 1.338, few-shot 1.880; not run here):
    python train.py --reweight inverse --lds --fds
Evaluation of a checkpoint, ours or an official one; here the first run's (half a minute):
    python train.py --evaluate --eval_model \
        checkpoint/nyud2_lr_0.001_bs_6_model_mini_downscale_4_lr_step_9/checkpoint_best.pth.tar
"""

# ---- 2 imports -----------------------------------------------------------------------------
import argparse
import logging
import time

import flags
import loss_flags
import program
from depth_maps import DEPTH
from map_flags import add_conr, add_maps, check_conr, check_maps
from target import check_counts

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "nyud2-dir"
MODELS = ("resnet50", "resnet18", "mini")
LDS_KS, LDS_SIGMA = 5, 2  # defaults of the released code
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = 100, 7  # buckets of 0.1 m, from 0.7 m to 10 m
VARIANT = "paper"  # what the released code computes here, and so the published numbers
LOG = "training_log.log"
FDS_CLIP = (0.2, 5.0)  # bounds of the variance ratio (released code)
LR_FACTOR = 0.1  # each --lr_step epochs
LOSSES = ("mse", "gai", "bni")  # bmc would compare each pixel with all of a batch
COMPONENTS = 16  # of gai's mixture (released code, NYUD2)

# ---- 4 arguments ---------------------------------------------------------------------------


def make_parser():
    """Return the parser; every flag of the official script keeps its meaning and default."""
    parser = flags.Parser(__doc__)
    add = parser.section("data", flags.TRAINING)
    data_help = "folder of nyu2_train.csv, nyu2_test.csv and the mask"
    add("--data_dir", default="./data", appended=False, help=data_help)
    select_help = (
        "what chooses the best epoch: a tenth of the training scenes, or, as in the released "
        "code, the test set"
    )
    add("--select", default="heldout", choices=("heldout", "test"), help=select_help)
    counts_help = (
        "training pixels per bucket, for the weights: the official ones or those of the data "
        "[official with the 50,688 official pairs]"
    )
    add("--counts", default="auto", choices=("auto", "official", "data"), help=counts_help)
    cache_help = "folder of the decoded pairs, or none [<data_dir>/cache]"
    add("--cache", role=flags.PLACE, help=cache_help)
    workers_help = "threads that decode, at most one per core"
    add("--workers", type=int, default=32, role=flags.PLACE, help=workers_help)
    add("--allow_outside", action="store_true", role=flags.PLACE, help="paths may leave --data_dir")
    add_maps(parser.section("target", flags.NETWORK))
    flags.add_lds(parser, "buckets of 0.1 m", LDS_KS, LDS_SIGMA)
    flags.add_fds(parser, BUCKET_NUM, BUCKET_START, FDS_KS, FDS_SIGMA, VARIANT)
    flags.add_two_stage(parser, "head R", "with --retrain_fc all but R")
    add = parser.section("network", flags.NETWORK)
    add("--model", default="resnet50", choices=MODELS, help="encoder; mini is for tries on a CPU")
    downscale_help = "divides the size of the images, 304 x 228, and of the depths"
    add("--downscale", type=int, default=1, choices=(1, 2, 4), help=downscale_help)
    # Those that are not appended stand in the released name already, or may grow on resume.
    add = parser.section("optimisation", flags.TRAINING)
    add("--loss", default="mse", choices=LOSSES, help="training loss, per pixel")
    encoder = {"action": argparse.BooleanOptionalAction, "default": True}
    encoder_help = "start the encoder from torchvision's IMAGENET1K_V1 (mini has none)"
    add("--pretrained_encoder", **encoder, help=encoder_help)
    lr = {"type": float, "default": 1e-4, "appended": False}
    add("--lr", "--learning-rate", **lr, help="learning rate at the start")
    lr_step_help = "epochs after which lr falls to a tenth, each time"
    add("--lr_step", type=int, default=5, help=lr_step_help)
    epochs = {"type": int, "default": 10, "dest": "epochs", "appended": False}
    add("--epochs", "--epoch", **epochs, help="number of epochs")
    start_help = "number of the first epoch, for a restart"
    add("--start_epoch", type=int, default=0, appended=False, help=start_help)
    add("--weight_decay", "--wd", type=float, default=1e-4, help="of Adam")
    batch_help = "over all processes together"
    add("--batch_size", type=int, default=32, appended=False, help=batch_help)
    loss_flags.add_losses(parser, "m")
    add_conr(parser)
    flags.add_output(parser, store_name="nyud2")
    flags.add_run_time(parser)
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    flags.check(parser, args, positive=("epochs", "lr_step", "workers"), buckets=BUCKET_NUM)
    check_maps(parser, args)
    if not 0 <= args.start_epoch < args.epochs:
        parser.error(f"--start_epoch {args.start_epoch} must be from 0 to --epochs - 1")
    check_conr(parser, args)
    loss_flags.check_losses(parser, args)
    if args.experts or args.reweight == flags.DENSE:
        parser.error("--experts and --reweight dense are not for pixels")
    args.pretrained_encoder &= args.model != "mini"
    return args


def run_name(args):
    """Return the run folder's name: its released part, and our flags behind it."""
    parser = make_parser()
    parser.set_defaults(pretrained_encoder=args.model != "mini")  # not a choice there
    name = args.store_name + flags.methods_in_name(args)
    return [f"{name}_lr_{args.lr}_bs_{args.batch_size}", *parser.changed(args)]


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

import checkpoints
import conr
import criterion
import depth_figures
import evaluation
import heads
import loss as losses
import released
import report
import results
import run_folder
import utils
from batches import Sharing, Steps, gather
from datasets import LDS_RULE, Data, pixels_of
from depth_maps import buckets_of, edges_of, known, middles_of
from depth_net import DepthNet, feature_dim_of
from fds import FDS
from maps import counts_of, loader_of, open_pairs
from metrics import HIGHER_IS_BETTER, MAIN_METRICS, OWN_METRICS, BucketSums, shots_of_buckets
from pair_lists import OFFICIAL_PAIRS, SUBSET, TEST, TRAIN, hold_out, read_mask, rows_of_subset

# ---- 5 builders ----------------------------------------------------------------------------


def build_test_data(run):
    """Return only the test set, which is all that an evaluation needs, as `Data`."""
    table, pairs = open_pairs(run, TEST, bits=16)
    mask = None  # of your own maps all pixels count, and buckets alike
    if not DEPTH.of(run.args).own:
        mask = read_mask(run.args.data_dir, len(table), run.args.downscale)
    sharing = Sharing.of(run.args, run.accelerator)
    loader = loader_of(pairs, np.arange(len(table)), sharing, mask=mask)
    return Data({"test": loader}, {"test": table["image"].to_numpy()})


def build_data(run):
    """Return the run's `Data`; val is missing where the test set chooses the epoch."""
    args, sharing = run.args, Sharing.of(run.args, run.accelerator)
    table, pairs = open_pairs(run, TRAIN, bits=8)
    test = build_test_data(run)
    images = table["image"].to_numpy()
    held_out = np.zeros(len(images), dtype=bool)
    if args.select == "heldout":
        held_out = hold_out(images, args.seed)
    # Which scenes are held out follows from the flags.
    run.note_data(table, pairs.inputs("pairs") | test.loaders["test"].pairs.inputs("test pairs"))
    train = np.flatnonzero(~held_out)
    official = (len(images), test.loaders["test"].N) in OFFICIAL_PAIRS
    target = DEPTH.of(args)
    counts, pixels = counts_of(args, pairs, train, official)
    run.training = {"pixels": pixels}
    start = target.fds_options(args, BUCKET_NUM, BUCKET_START).get("bucket_start")
    start = args.bucket_start if start is None else start
    rule = LDS_RULE | {"start": start}
    density = criterion.density_of(args, counts, rule)
    middles = middles_of(target)
    weights = criterion.weights_of(args, None, middles, counts, rule)
    if target.own:
        check_counts(target, counts, args, weights)
        middles = target.scaled(torch.from_numpy(middles)).numpy()
    loaders = {"train": loader_of(pairs, train, sharing, weights)}
    loaders["train"].prior = criterion.prior_of(args, None, middles, density, COMPONENTS)
    paths = {}
    if args.fds and args.fds_stats == "extra_pass":
        subset = rows_of_subset(args.data_dir, SUBSET, images, held_out)
        loaders["subset"] = loader_of(pairs, subset, sharing)
    if args.select == "heldout":
        loaders["val"] = loader_of(pairs, np.flatnonzero(held_out), sharing)
        paths["val"] = images[held_out]
    return Data(loaders | test.loaders, paths | test.paths, counts, density, weights, pixels)


def build_model(args, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one fetches ImageNet weights."""
    module = None
    if args.fds:
        target = DEPTH.of(args)
        options = flags.fds_options(args) | {"label_to_bucket": buckets_of(target)}
        options |= target.fds_options(args, BUCKET_NUM, BUCKET_START)
        module = FDS(feature_dim_of(args.model), **options, clip=FDS_CLIP)
    model = heads.extend(DepthNet(args.model, module, args.pretrained_encoder and fresh), args)
    return model.to(memory_format=torch.channels_last)  # the faster layout, on the CPU too


def build_optimizer(args, model):
    """Return Adam of all parameters, or only of the refinement head in RRT."""
    groups = heads.parameter_groups(args, model, "R")
    return torch.optim.Adam(groups, lr=args.lr, weight_decay=args.weight_decay)


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
    loss_of = criterion.Criterion(run, model, losses.weighted_mse_loss, loader.prior)
    target = DEPTH.of(args)
    lr = args.lr * LR_FACTOR ** (epoch // args.lr_step)
    heads.set_lr(optimizer, lr)
    net.train()
    steps = Steps(run, loader, loader.train(epoch), f"Epoch {epoch}")
    for batch in steps:
        with accelerator.autocast():
            preds, features = net(batch.images, batch.depths, min(epoch, args.start_smooth))
        preds = preds.float()
        counted, part = pixels_of(batch, preds, args.loss)
        depths = target.scaled(part.depths)
        loss = loss_of(counted, depths, part) if depths.numel() else counted.sum()
        if args.regularizer == "conr":
            loss = loss + conr.added_loss(args, target, batch, preds, features)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            # Those corners have no depth of their own, and would be the first bucket's.
            model.FDS.accumulate(
                features, batch.depths, epoch, keep=known(batch.depths, batch.mask, target)
            )
        steps.add(loss, batch.share, batch.size)
    train_loss = steps.mean_loss()
    return {"epoch": epoch, "lr": lr, "train_loss": train_loss, "seconds": steps.seconds}


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(run, model, loader, epoch):
    """Gather the pixels' feature statistics by depth and hand them to FDS (section 3.2).

    As in the released code the pass goes over a fixed subset, not augmented, in train mode: batch
    norm keeps updating.

    Args:
        run, model, epoch: of the run.
        loader: of the subset; not needed with `--fds_stats online`.

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if run.args.fds_stats == "extra_pass":
        model.train()
        title = f"Epoch {epoch}, FDS statistics"
        for batch in Steps(run, loader, loader.statistics(), title):
            with run.accelerator.autocast():
                _, features = model(batch.images, batch.depths, min(epoch, run.args.start_smooth))
            if batch.share:
                model.FDS.accumulate(features, batch.depths, epoch, keep=batch.mask)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(run, model, data, split, sample=None):
    """Predict a split and sum its errors per bucket; no pixel is kept.

    Args:
        run, model, data, split: of the run; 'val' or 'test'.
        sample: `depth_figures.PixelSample` to fill with this process's pixels, or None.

    Returns:
        Metrics by shot as `BucketSums.metrics` gives them, and the sums; the same in every
        process. With a mask its pixels count, without one all do and buckets weigh alike.
    """
    utils.broadcast_buffers(model)
    model.eval()
    loader, target = data.loaders[split], DEPTH.of(run.args)
    sums = BucketSums(run.accelerator.device, shots_of_buckets(data.pixels, target), target)
    for batch in loader.evaluate():
        preds = predict(run, model, batch)
        sums.add(preds, batch.depths, batch.mask)
        if sample is not None:
            sample.add(preds, batch)
    sums.sums = run.accelerator.reduce(sums.sums, "sum")
    return sums.metrics(balanced=loader.mask is None), sums


def evaluate_splits(run, model, data):
    """Evaluate val and test, as far as they are held: metrics, a sample of pixels, errors."""
    metrics, pixels, errors = {}, [], []
    for split, paths in data.paths.items():
        sample = depth_figures.PixelSample(run.args.seed, split, DEPTH.of(run.args))
        metrics[split], sums = evaluate(run, model, data, split, sample)
        pixels.append(sample.table(gather(run.accelerator, sample.rows), paths))
        errors.append(depth_figures.error_by_depth(sums, split))
    return metrics, pd.concat(pixels), errors


@torch.no_grad()
def predict(run, model, batch):
    """Return a batch's depths in their unit at the size of its true ones."""
    with run.accelerator.autocast():
        preds = model(batch.images)[0].float()
    preds = interpolate(preds, size=batch.depths.shape[2:], mode="bilinear", align_corners=True)
    return DEPTH.of(run.args).unscaled(preds)


# ---- 9 train -------------------------------------------------------------------------------


def train(run, net, model, optimizer, data, progress):
    """Train from the epoch in `progress` to the last, and keep the best; updates `progress`."""
    args, loaders = run.args, data.loaders
    chooses = "val" if "val" in loaders else "test"
    started = time.perf_counter() - progress["wall_seconds"]
    for epoch in range(progress["epoch"], args.epochs):
        utils.seed_everything(args.seed, epoch, run.accelerator.process_index)
        row = train_one_epoch(run, net, model, optimizer, loaders["train"], epoch)
        if args.fds and epoch >= args.start_update:
            row["seconds"] |= update_fds_statistics(run, model, loaders.get("subset"), epoch)
        clock = time.perf_counter()
        row["val"], _ = evaluate(run, model, data, chooses)
        row["seconds"]["evaluate"] = time.perf_counter() - clock
        metric = row["val"]["overall"]
        is_best = metric["rmse"] < progress["error"]
        if is_best:
            progress |= {"error": metric["rmse"], "best_epoch": epoch}
        wall_seconds = time.perf_counter() - started
        progress |= {"epoch": epoch + 1, "metric": metric, "wall_seconds": wall_seconds}
        results.write_epoch(run, model, row, OWN_METRICS if DEPTH.of(args).own else MAIN_METRICS)
        checkpoints.save(run, model, optimizer, progress, is_best)


# ---- 10 finish -----------------------------------------------------------------------------


def finish(run, model, data, progress):
    """Evaluate the best epoch and write results, a sample of pixels and figures."""
    run.accelerator.wait_for_everyone()
    args, folder, best = run.args, run.folder, run.folder / checkpoints.BEST
    target = DEPTH.of(args)
    checkpoints.load_weights(model, utils.weights_of(utils.load_checkpoint(best), best), best)
    metrics, pixels, errors = evaluate_splits(run, model, data)
    if run.is_main:
        results.write_predictions(folder, pixels)
        text = pd.concat(errors).to_csv(index=False, lineterminator="\n")
        utils.write_atomically(folder / f"{depth_figures.errors_name(target)}.csv", text.encode())
        depths, shots = edges_of(target), shots_of_buckets(data.pixels, target)
        results.write_label_density(folder, depths, shots, data.counts, data.density, data.weights)
        if args.fds:
            buckets = depths[model.FDS.bucket_start :][: len(model.FDS.running_mean)]
            results.write_fds_statistics(folder, model.FDS, buckets)
        facts = {"benchmark": BENCHMARK, "target": target.record, "sample": "pixel"}
        facts["main_metrics"] = OWN_METRICS if target.own else MAIN_METRICS
        facts |= {name: progress[name] for name in ("best_epoch", "wall_seconds")}
        results.write_results(run, metrics, higher_is_better=HIGHER_IS_BETTER, **facts)
        report.draw_run(folder)
        batch = data.loaders["test"].pick(depth_figures.EXAMPLES)
        title = f"{BENCHMARK}: {results.method_name(args, run.parser)}, seed {args.seed}\ntest set"
        examples = batch, predict(run, model, batch)
        depth_figures.draw_run(folder / "figures", title, errors[-1], data.counts, examples, target)
        table = results.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    run_folder.close(run)
    return metrics["test"]


def run_evaluation(run):
    """Evaluate a checkpoint on the test set, which is all that it needs."""
    path, checkpoint = evaluation.load(run, checkpoints.BEST)
    model = build_model(run.args)
    checkpoints.load_weights(model, utils.weights_of(checkpoint, path), path)
    model.to(run.accelerator.device)
    noted = evaluation.noted_in(path, checkpoint)
    buckets = len(edges_of(DEPTH.of(run.args)))
    data = build_test_data(run)._replace(pixels=checkpoints.pixels_of(noted, path, buckets))
    metrics, pixels, _ = evaluate_splits(run, model, data)
    return evaluation.finish(run, path, metrics, pixels)


# ---- 11 main -------------------------------------------------------------------------------


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    run = run_folder.start(args, make_parser(), run_name(args))
    if args.evaluate:
        return run_evaluation(run)
    checkpoint = run_folder.find_checkpoint(run, checkpoints.LAST)
    # Before the data, which take minutes to decode: ImageNet's weights may not be fetched.
    model = build_model(args, fresh=checkpoint is None and not args.pretrained)
    data = build_data(run)
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        checkpoints.load_weights(model, state, path, skip=(heads.NOISE, *["R."] * args.retrain_fc))
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(run, LOG)
    logging.info("Images: %s", {name: loader.N for name, loader in data.loaders.items()})
    optimizer = build_optimizer(args, model)
    net, optimizer = utils.prepare(run, model, optimizer)
    progress = {"epoch": 0, "error": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    progress["epoch"] = args.start_epoch or progress["epoch"]
    results.start_epochs(run, progress["epoch"], progress["epoch"])
    with checkpoints.saving(run, model, optimizer, progress):
        train(run, net, model, optimizer, data, progress)
        return finish(run, model, data, progress)


if __name__ == "__main__":
    program.run(main)
