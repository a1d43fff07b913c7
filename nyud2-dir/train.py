"""NYUD2-DIR: train, resume, evaluate and retrain a depth network with LDS and FDS per pixel.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of two minutes on generated rooms, on a CPU (RMSE 1.7 m, 3.4 of predicting the mean):
    python demo_data.py --out data
    python train.py --model mini --downscale 4 --batch_size 6 --lr 1e-3 --epochs 12 --lr_step 9
The headline run (paper: RMSE 1.338, few-shot 1.880; for GPUs):
    python train.py --reweight inverse --lds --lds_kernel gaussian --lds_ks 5 --lds_sigma 2 \
        --fds --fds_kernel gaussian --fds_ks 5 --fds_sigma 2
Evaluation of a checkpoint, ours or an official one (minutes):
    python train.py --evaluate --eval_model checkpoint_best.pth.tar
"""

# ---- 2 imports -----------------------------------------------------------------------------
import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from torch.nn.functional import interpolate
from tqdm import tqdm

import depth_figures
import loss as losses
import released
import report
import run_folder
import utils
from datasets import (
    BUCKETS,
    TRAIN_COUNTS,
    TRAIN_PAIRS,
    Loader,
    bucket_weights,
    count_pixels,
    label_density,
    label_to_bucket,
)
from depth_cache import Pairs
from depth_checkpoints import load_weights, make_state, restore
from depth_net import MODELS, DepthNet, feature_dim_of
from fds import FDS
from metrics import HIGHER_IS_BETTER, MAIN_METRICS, BucketSums, shot_of
from pair_lists import SUBSET, TEST, TRAIN, hold_out, read_mask, read_pairs, rows_of_subset

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "nyud2-dir"
LDS_KS, LDS_SIGMA = 5, 2  # defaults of the released code
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = 100, 7  # buckets of 0.1 m, from 0.7 m to 10 m
VARIANT = "paper"  # what the released code computes here, and so the published numbers
LAST, BEST, FINAL = "checkpoint.pth.tar", "checkpoint_best.pth.tar", "checkpoint_final.pth.tar"
LOG = "training_log.log"

TARGET = {"name": "depth", "unit": "m"}
FDS_CLIP = (0.2, 5.0)  # bounds of the variance ratio (released code)
LR_FACTOR = 0.1  # each --lr_step epochs
# Flags of ours that change a run: its folder's name holds those that are not at their default.
RUN_FLAGS = (
    "model downscale seed select counts lr_step bucket_num bucket_start fds_stats precision "
    "pretrained_encoder"
).split()
NETWORK_FLAGS = ("model", "downscale")  # taken from a checkpoint that is evaluated
EXPLODED = 1e6  # a loss above this ends the run (released code of the ages)

# ---- 4 arguments ---------------------------------------------------------------------------


def parse_args(argv=None):
    """Parse the command line; every flag of the official script keeps its meaning and default."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", default="./data", help="folder of nyu2_train.csv, nyu2_test.csv and the mask")
    add("--downscale", type=int, default=1, choices=(1, 2, 4),
        help="divides the size of the images, 304 x 228, and of the depths")  # fmt: skip
    add("--select", default="heldout", choices=("heldout", "test"),
        help="what chooses the best epoch: a tenth of the training scenes, or, as in the released "
        "code, the test set")  # fmt: skip
    add("--counts", default="auto", choices=("auto", "official", "data"),
        help="training pixels per bucket, for the weights: the official ones or those of the data "
        "[official with the 50,688 official pairs]")  # fmt: skip
    add("--cache", help="folder of the decoded pairs, or none [<data_dir>/cache]")
    add("--workers", type=int, default=32, help="threads that decode, at most one per core")
    kernels, rates = utils.KERNELS, ("none", "sqrt_inv", "inverse")
    add = parser.add_argument_group("LDS").add_argument
    add("--lds", action="store_true", help="label distribution smoothing; needs --reweight")
    add("--lds_kernel", default="gaussian", choices=kernels, help="window over buckets")
    add("--lds_ks", type=int, default=LDS_KS, help="length of the window, odd, buckets of 0.1 m")
    add("--lds_sigma", type=float, default=LDS_SIGMA, help="width of the window, buckets")
    add = parser.add_argument_group("FDS").add_argument
    add("--fds", action="store_true", help="feature distribution smoothing, of every pixel")
    add("--fds_kernel", default="gaussian", choices=kernels, help="window over buckets")
    add("--fds_ks", type=int, default=FDS_KS, help="length of the window, odd, buckets")
    add("--fds_sigma", type=float, default=FDS_SIGMA, help="width of the window, buckets")
    add("--start_update", type=int, default=0, help="first epoch in the statistics")
    add("--start_smooth", type=int, default=1, help="first epoch with calibrated features")
    add("--bucket_num", type=int, default=BUCKET_NUM, help="end of the buckets")
    add("--bucket_start", type=int, default=BUCKET_START, help="first bucket")
    add("--fds_mmt", type=float, default=0.9, help="momentum of the statistics")
    add("--fds_variant", default=VARIANT, choices=("paper", "official"),
        help="paper is what the released code computes here; see README")  # fmt: skip
    add("--fds_stats", default="extra_pass", choices=("extra_pass", "online"),
        help="statistics from a pass over the FDS subset, or from the training pass")  # fmt: skip
    add = parser.add_argument_group("re-weighting").add_argument
    add("--reweight", default="none", choices=rates, help="weight of a pixel: 1 / count^0, ½, 1")
    add = parser.add_argument_group("two-stage training (RRT)").add_argument
    add("--retrain_fc", action="store_true", help="train the head R of --pretrained again")
    add("--pretrained", default="", help="checkpoint to start from; with --retrain_fc all but R")
    add = parser.add_argument_group("optimisation").add_argument
    add("--model", default="resnet50", choices=MODELS, help="encoder; mini is for tries on a CPU")
    add("--pretrained_encoder", action=argparse.BooleanOptionalAction, default=True,
        help="start the encoder from torchvision's IMAGENET1K_V1 (mini has none)")  # fmt: skip
    add("--lr", "--learning-rate", type=float, default=1e-4, help="learning rate at the start")
    add("--lr_step", type=int, default=5, help="epochs after which lr falls to a tenth, each time")
    add("--epochs", type=int, default=10, help="number of epochs")
    add("--start_epoch", type=int, default=0, help="number of the first epoch, for a restart")
    add("--weight_decay", "--wd", type=float, default=1e-4, help="of Adam")
    add("--batch_size", type=int, default=32, help="over all processes together")
    add = parser.add_argument_group("output").add_argument
    add("--store_root", default="checkpoint", help="folder of the run folders")
    add("--store_name", default="nyud2", help="beginning of the run folder's name")
    add("--print_freq", type=int, default=10, help="steps between two looks at the loss")
    add("--resume", nargs="?", const="auto", default="",
        help="go on with the run folder, or from the given checkpoint")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the run in the run folder")
    add("--evaluate", action="store_true", help="only evaluate --eval_model, --resume or the best")
    add("--eval_model", default="", help="checkpoint to evaluate")
    add("--track", default="tensorboard", choices=("tensorboard", "wandb", "none"), help="events")
    add = parser.add_argument_group("run time").add_argument
    add("--seed", "--random_seed", type=int, default=0, help="of everything that is drawn")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="device")
    add("--gpu", type=int, help="index of the one GPU to use")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="[tf32 on CUDA, else fp32]")
    add("--compile", action="store_true", help="torch.compile the network")
    args = parser.parse_args(argv)
    check_args(args, parser)
    args.loss = "mse"  # the only one here; the tables' names of methods ask for it
    args.name = f"{args.store_name}{run_folder.name_of_methods(args)}"
    args.name += f"_lr_{args.lr}_bs_{args.batch_size}"
    args.name += run_folder.name_of_flags(args, parser, RUN_FLAGS, VARIANT)
    args.pretrained_encoder &= args.model != "mini"
    return args


def check_args(args, parser):
    """End with a message where two flags contradict each other or a value cannot be used."""
    if args.lds and args.reweight == "none":
        parser.error("--lds smooths the weights: add --reweight sqrt_inv or --reweight inverse")
    if args.retrain_fc and not args.pretrained:
        parser.error("--retrain_fc trains the head of a network again: add --pretrained CKPT")
    if args.eval_model and not args.evaluate:
        parser.error("--eval_model is what --evaluate evaluates: add that, or use --pretrained")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: choose one")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    if args.gpu is not None and args.device == ("cpu" if args.gpu >= 0 else "cuda"):
        parser.error(f"--gpu {args.gpu} and --device {args.device} contradict each other")
    if not (0 <= args.fds_mmt <= 1 and args.lr > 0):
        parser.error(f"--fds_mmt {args.fds_mmt} must be in [0, 1] and --lr {args.lr} above 0")
    if not 0 <= args.bucket_start < args.bucket_num <= BUCKETS:
        parser.error(f"--bucket_start and --bucket_num must rise, from 0 to at most {BUCKETS}")
    if args.fds and args.bucket_num - args.bucket_start < (args.fds_ks + 1) // 2:
        parser.error("--bucket_num - --bucket_start must be at least (--fds_ks + 1) / 2")
    if not 0 <= args.start_epoch < args.epochs:
        parser.error(f"--start_epoch {args.start_epoch} must be from 0 to --epochs - 1")
    for flag in ("epochs", "lr_step", "batch_size", "print_freq", "workers"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more, got {getattr(args, flag)}")
    for method in ("lds", "fds"):
        try:
            utils.get_lds_kernel_window(
                *(getattr(args, f"{method}_{part}") for part in ("kernel", "ks", "sigma"))
            )
        except ValueError as error:
            parser.error(f"--{method}_kernel, --{method}_ks, --{method}_sigma: {error}")


# ---- 5 builders ----------------------------------------------------------------------------


def build_pairs(args, accelerator, name, bits):
    """Return a csv's rows and the decoded pairs that they name."""
    table, root = read_pairs(args.data_dir, name), Path(args.data_dir)
    cache = Path(args.cache or root / "cache") if args.cache != "none" else None
    pairs = Pairs(
        root, table, bits, cache, Path(name).stem, args.downscale, workers=args.workers,
        quiet=not accelerator.is_local_main_process,
    )  # fmt: skip
    return table, pairs


def build_loader(args, accelerator, pairs, rows, **options):
    """Return a loader of some rows."""
    return Loader(
        pairs, rows, args.batch_size, accelerator.device, accelerator.process_index,
        accelerator.num_processes, args.seed, **options,
    )  # fmt: skip


def build_test_loader(args, accelerator):
    """Return a loader of the test set, and the paths of its images."""
    table, pairs = build_pairs(args, accelerator, TEST, bits=16)
    mask = read_mask(args.data_dir, len(table), args.downscale)
    rows = np.arange(len(table))
    return build_loader(args, accelerator, pairs, rows, mask=mask), table["image"].to_numpy()


def build_data(args, accelerator):
    """Return the loaders by name, the paths of val and test, and the pixels per bucket [100]."""
    table, pairs = build_pairs(args, accelerator, TRAIN, bits=8)
    paths = table["image"].to_numpy()
    held_out = np.zeros(len(paths), dtype=bool)
    if args.select == "heldout":
        held_out = hold_out(paths, args.seed)
    train = np.flatnonzero(~held_out)
    counts = TRAIN_COUNTS
    if args.counts == "data" or (args.counts == "auto" and len(paths) != TRAIN_PAIRS):
        counts = count_pixels(pairs, train)
    weights = None
    if args.reweight != "none":
        weights = bucket_weights(counts, args.reweight, **lds_options(args))
    loaders = {"train": build_loader(args, accelerator, pairs, train, weights=weights)}
    if args.fds and args.fds_stats == "extra_pass":
        subset = rows_of_subset(args.data_dir, SUBSET, paths, held_out)
        loaders["subset"] = build_loader(args, accelerator, pairs, subset)
    loaders["test"], test_paths = build_test_loader(args, accelerator)
    if args.select == "heldout":
        loaders["val"] = build_loader(args, accelerator, pairs, np.flatnonzero(held_out))
    return loaders, {"val": paths[held_out], "test": test_paths}, counts


def lds_options(args):
    """Return the arguments of LDS for `datasets.bucket_weights`."""
    names = ("lds", "lds_kernel", "lds_ks", "lds_sigma", "bucket_start")
    return {name: getattr(args, name) for name in names}


def build_model(args, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one fetches ImageNet weights."""
    module = None
    if args.fds:
        module = FDS(
            feature_dim_of(args.model), args.bucket_num, args.bucket_start, args.start_update,
            args.start_smooth, args.fds_kernel, args.fds_ks, args.fds_sigma, args.fds_mmt,
            label_to_bucket=label_to_bucket, clip=FDS_CLIP, variant=args.fds_variant,
        )  # fmt: skip
    model = DepthNet(args.model, module, args.pretrained_encoder and fresh)
    return model.to(memory_format=torch.channels_last)  # the faster layout, on the CPU too


def build_optimizer(args, model):
    """Return Adam of all parameters, or of the refinement head alone in RRT."""
    if args.retrain_fc:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("R."))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=args.lr, weight_decay=args.weight_decay)


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(args, accelerator, net, model, optimizer, loader, epoch):
    """Train on the whole training set once.

    Returns:
        The epoch's row: epoch, lr, train_loss (mean over steps), and the seconds of the pass and,
        within them, of waiting for batches.

    Raises:
        FloatingPointError: naming epoch, step and value, if the loss is not finite or explodes.
    """
    net.train()
    for group in optimizer.param_groups:
        group["lr"] = args.lr * LR_FACTOR ** (epoch // args.lr_step)
    total, unchecked, data_seconds = 0.0, [], 0.0
    start = waiting = time.perf_counter()
    progress = tqdm(
        loader.train(epoch), f"Epoch {epoch}", len(loader), leave=False,
        disable=not accelerator.is_local_main_process,
    )  # fmt: skip
    for step, batch in enumerate(progress):
        data_seconds += time.perf_counter() - waiting
        with accelerator.autocast():
            preds, features = net(batch.images, batch.depths, epoch)
        # The corners that rotation leaves empty have depth 0 and count, as in the released code.
        loss = losses.weighted_mse_loss(preds.float(), batch.depths, batch.weights)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            # Those corners have no depth of their own, and would be the first bucket's.
            seen = batch.depths[:, 0] > 0
            rows = features.permute(0, 2, 3, 1)[seen]
            model.FDS.accumulate(rows, batch.depths[:, 0][seen], epoch)
        unchecked.append(loss.detach() * batch.share)
        # Looking at the loss waits for the device, so it is done every few steps.
        if len(unchecked) == args.print_freq or step == len(loader) - 1:
            values = torch.stack(unchecked).tolist()
            for number, value in enumerate(values, start=step - len(values) + 1):
                if not abs(value) <= EXPLODED:
                    raise FloatingPointError(
                        f"the loss is {value} at epoch {epoch}, step {number}: the last good "
                        "checkpoint stays; try a smaller --lr, or --precision fp32"
                    )
            total += sum(values)
            unchecked.clear()
            progress.set_postfix(loss=f"{values[-1]:.3f}", refresh=False)
        waiting = time.perf_counter()
    total = accelerator.reduce(
        torch.tensor(total, dtype=torch.float64, device=accelerator.device), "mean"
    ).item()
    return {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": total / len(loader),
        "seconds": {"train": time.perf_counter() - start, "data": data_seconds},
    }


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(args, accelerator, model, loaders, epoch):
    """Gather the pixels' feature statistics by depth and hand them to FDS (section 3.2).

    As in the released code the pass goes over a fixed subset, not augmented, in train mode: batch
    norm goes on updating.

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if args.fds_stats == "extra_pass":
        model.train()
        progress = tqdm(
            loaders["subset"].statistics(), f"Epoch {epoch}, FDS statistics",
            len(loaders["subset"]), leave=False, disable=not accelerator.is_local_main_process,
        )  # fmt: skip
        for batch in progress:
            with accelerator.autocast():
                _, features = model(batch.images, batch.depths, epoch)
            if batch.share:
                model.FDS.accumulate(features, batch.depths, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(accelerator, model, loader, sample=None):
    """Predict a split and sum its errors per bucket; nothing is kept of a pixel.

    Args:
        sample: `depth_figures.PixelSample` to fill with this process's pixels, or None.

    Returns:
        Metrics by shot as of `BucketSums.metrics`, and the sums; the same in every process. With a
        mask its pixels count, without one all do and buckets weigh alike.
    """
    utils.broadcast_buffers(model)
    model.eval()
    sums = BucketSums(accelerator.device)
    for batch in loader.evaluate():
        preds = predict(accelerator, model, batch)
        sums.add(preds, batch.depths, batch.mask)
        if sample is not None:
            sample.add(preds, batch)
    sums.sums = accelerator.reduce(sums.sums, "sum")
    return sums.metrics(balanced=loader.mask is None), sums


@torch.no_grad()
def predict(accelerator, model, batch):
    """Return a batch's depths in metres at the size of its true ones."""
    with accelerator.autocast():
        preds = model(batch.images)[0]
    return interpolate(
        preds.float(), size=batch.depths.shape[2:], mode="bilinear", align_corners=True
    )


# ---- 9 main --------------------------------------------------------------------------------


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    folder = run_folder.find_run_folder(args.store_root, args.name)
    accelerator = utils.make_accelerator(
        args.device, args.precision, args.gpu, "none" if args.evaluate else args.track, folder
    )
    is_main, facts = accelerator.is_main_process, utils.run_facts()
    utils.seed_everything(args.seed)
    if args.evaluate:
        utils.setup_logging(main_process=is_main)
        return run_evaluation(args, accelerator, folder)
    checkpoint = run_folder.find_checkpoint(folder, args.resume, args.overwrite, LAST)
    model = build_model(args, fresh=checkpoint is None and not args.pretrained)
    loaders, paths, counts = build_data(args, accelerator)
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        load_weights(model, state, path, skip=("R.",) if args.retrain_fc else ())
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(accelerator, folder, args.overwrite)
    utils.setup_logging(folder, LOG, main_process=is_main)
    logging.info("Run folder %s, device %s", folder, accelerator.device)
    logging.info("Images: %s", {name: len(loader.rows) for name, loader in loaders.items()})
    optimizer = build_optimizer(args, model)
    if args.compile:
        model.compile()
    net, optimizer = accelerator.prepare(model, optimizer)
    progress = {"epoch": 0, "error": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= restore(checkpoint, accelerator, model, optimizer, args, folder / BEST)
    progress["epoch"] = args.start_epoch or progress["epoch"]
    run_folder.start_tracking(accelerator, args, progress["epoch"])
    if is_main:
        run_folder.keep_epochs(folder, progress["epoch"])

    started = time.perf_counter() - progress["wall_seconds"]
    for epoch in range(progress["epoch"], args.epochs):
        utils.seed_everything(args.seed, epoch, accelerator.process_index)
        row = train_one_epoch(args, accelerator, net, model, optimizer, loaders["train"], epoch)
        if args.fds and epoch >= args.start_update:
            row["seconds"] |= update_fds_statistics(args, accelerator, model, loaders, epoch)
        clock = time.perf_counter()
        row["val"], _ = evaluate(accelerator, model, loaders.get("val", loaders["test"]))
        row["seconds"]["evaluate"] = time.perf_counter() - clock
        error, files = row["val"]["overall"]["rmse"], [LAST]
        if error < progress["error"]:
            progress |= {"error": error, "best_epoch": epoch}
            files = [BEST, LAST]
        progress |= {"epoch": epoch + 1, "wall_seconds": time.perf_counter() - started}
        if epoch == args.epochs - 1:
            files.insert(0, FINAL)
        state = make_state(model, optimizer, accelerator, progress, row, args)
        run_folder.finish_epoch(accelerator, folder, row, state, files)
        logging.info(
            "Epoch %d: train loss %.4f, %s %s", epoch, row["train_loss"], args.select,
            ", ".join(f"{name} {row['val']['overall'][name]:.3f}" for name in MAIN_METRICS),
        )  # fmt: skip
    return finish(args, accelerator, folder, loaders, paths, counts, model, progress, facts)


def finish(args, accelerator, folder, loaders, paths, counts, model, progress, facts):
    """Evaluate the best epoch and write results, a sample of pixels and figures."""
    accelerator.wait_for_everyone()
    best = utils.weights_of(utils.load_checkpoint(folder / BEST), folder / BEST)
    load_weights(model, best, folder / BEST)
    metrics, pixels, errors = {}, [], []
    for split in [name for name in ("val", "test") if name in loaders]:
        sample = depth_figures.PixelSample(args.seed, split)
        metrics[split], sums = evaluate(accelerator, model, loaders[split], sample)
        parts = sample.rows
        if accelerator.num_processes > 1:
            parts = gather_object(parts)  # parts of consecutive rows, in the order of the ranks
        pixels.append(sample.table(parts, paths[split]))
        errors.append(depth_figures.error_by_depth(sums, split))
    if accelerator.is_main_process:
        for name, tables in (("predictions", pixels), ("error_by_depth", errors)):
            text = pd.concat(tables).to_csv(index=False, lineterminator="\n")
            utils.write_atomically(folder / f"{name}.csv", text.encode())
        weights = bucket_weights(counts, args.reweight, **lds_options(args))
        run_folder.write_label_density(
            folder, np.arange(BUCKETS) / 10, shot_of(), counts,
            *label_density(counts, args.reweight, **lds_options(args)), weights,
        )  # fmt: skip
        if args.fds:
            buckets = np.arange(args.bucket_start, args.bucket_num) / 10
            run_folder.write_fds_statistics(folder, model.FDS, buckets)
        method = run_folder.method_name(args, VARIANT)
        run_folder.write_results(
            accelerator, folder, args, metrics, benchmark=BENCHMARK, target=TARGET, method=method,
            main_metrics=MAIN_METRICS, higher_is_better=HIGHER_IS_BETTER,
            best_epoch=progress["best_epoch"], wall_seconds=progress["wall_seconds"], **facts,
        )  # fmt: skip
        report.draw_run(folder)
        title = f"{BENCHMARK}: {method}, seed {args.seed}\ntest set"
        fig = depth_figures.draw_error_by_depth(errors[-1], counts, title)
        depth_figures.save(fig, folder / "figures/error_by_depth.png")
        batch = loaders["test"].pick(depth_figures.EXAMPLES)
        fig = depth_figures.draw_examples(batch, predict(accelerator, model, batch), title)
        depth_figures.save(fig, folder / "figures/examples.png")
        table = run_folder.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    accelerator.end_training()
    return metrics["test"]


def run_evaluation(args, accelerator, folder):
    """Evaluate a checkpoint on the test set and print it by shot."""
    name = args.eval_model or (args.resume if args.resume != "auto" else "") or folder / BEST
    path = released.find(name)
    checkpoint = released.load(path)
    released.take_flags(args, checkpoint, path, NETWORK_FLAGS)
    model = build_model(args)
    load_weights(model, utils.weights_of(checkpoint, path), path)
    model.to(accelerator.device)
    loader, _ = build_test_loader(args, accelerator)
    metrics, _ = evaluate(accelerator, model, loader)
    logging.info("%s, test set:\n%s", path, run_folder.metrics_table(metrics))
    released.log_expected(path, metrics)
    return metrics


if __name__ == "__main__":
    main()
