"""AgeDB-DIR: train, resume, evaluate and retrain an age regressor with LDS and FDS.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of a minute on generated faces, on a CPU:
    python demo_data.py --out demo_data
    python train.py --data_dir demo_data --model resnet18 --img_size 64 --epoch 2
The headline run (paper: MAE 7.55, few-shot 10.79; hours on one GPU):
    python train.py --reweight sqrt_inv --lds --lds_kernel gaussian --lds_ks 5 --lds_sigma 2 \
        --fds --fds_kernel gaussian --fds_ks 5 --fds_sigma 2
Evaluation of a checkpoint, ours or an official one (minutes):
    python train.py --evaluate --eval_model ckpt.best.pth.tar
"""

# ---- 2 imports -----------------------------------------------------------------------------
import argparse
import functools
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

import loss as losses
import released
import report
import run_folder
import utils
from datasets import (
    AGE_BUCKETS,
    SPLITS,
    Loader,
    label_density,
    label_to_bucket,
    read_meta,
    sample_weights,
)
from fds import FDS
from image_cache import Images
from metrics import MAIN_METRICS, shot_metrics, shot_of
from resnet import MODELS, AgeResNet, feature_dim_of

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "agedb-dir"
DATASET = "agedb"  # <data_dir>/agedb.csv
LDS_KS, LDS_SIGMA = 9, 1  # defaults of the released code; its results use 5 and 2
FDS_KS, FDS_SIGMA = 9, 1
BUCKET_NUM, BUCKET_START = 100, 3  # integer ages 3 ... 99 have statistics of their own
VARIANT = "official"  # what the published numbers come from
LAST, BEST = "ckpt.pth.tar", "ckpt.best.pth.tar"

TARGET = {"name": "age", "unit": "years"}
FDS_CLIP = (0.1, 10.0)  # bounds of the variance ratio (released code, ages)
FOCAL_BETA = 0.2  # 1 / years (released code, ages)
HUBER_BETA = 1.0  # years
LR_FACTOR = 0.1  # at each epoch of --schedule
# Flags of ours that change a run: its folder's name holds those that are not at their default.
RUN_FLAGS = (
    "seed img_size schedule momentum weight_decay bucket_num bucket_start fds_stats precision "
    "imagenet_weights"
).split()
NETWORK_FLAGS = ("model", "img_size")  # taken from a checkpoint that is evaluated
EXPLODED = 1e6  # a loss above this ends the run (released code)

# ---- 4 arguments ---------------------------------------------------------------------------


def parse_args(argv=None):
    """Parse the command line; every flag of the official script keeps its meaning and default."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default=DATASET, help="reads <data_dir>/<dataset>.csv (age,path,split)")
    add("--data_dir", default="./data", help="folder of the csv and of the images")
    add("--img_size", type=int, default=224, help="side of the images, pixels")
    add("--cache", help="folder of the image cache, or none [<data_dir>/cache]")
    add("--workers", type=int, default=32, help="threads that decode, at most one per core")
    kernels, rates = utils.KERNELS, ("none", "sqrt_inv", "inverse")
    add = parser.add_argument_group("LDS").add_argument
    add("--lds", action="store_true", help="label distribution smoothing; needs --reweight")
    add("--lds_kernel", default="gaussian", choices=kernels, help="window over ages")
    add("--lds_ks", type=int, default=LDS_KS, help="length of the window, odd, years")
    add("--lds_sigma", type=float, default=LDS_SIGMA, help="width of the window, years")
    add = parser.add_argument_group("FDS").add_argument
    add("--fds", action="store_true", help="feature distribution smoothing")
    add("--fds_kernel", default="gaussian", choices=kernels, help="window over buckets")
    add("--fds_ks", type=int, default=FDS_KS, help="length of the window, odd, buckets")
    add("--fds_sigma", type=float, default=FDS_SIGMA, help="width of the window, buckets")
    add("--start_update", type=int, default=0, help="first epoch in the statistics")
    add("--start_smooth", type=int, default=1, help="first epoch with calibrated features")
    add("--bucket_num", type=int, default=BUCKET_NUM, help="end of the buckets")
    add("--bucket_start", type=int, default=BUCKET_START, help="first bucket")
    add("--fds_mmt", type=float, default=0.9, help="momentum of the statistics")
    add("--fds_variant", default=VARIANT, choices=("paper", "official"), help="see README")
    add("--fds_stats", default="extra_pass", choices=("extra_pass", "online"),
        help="statistics from one more pass over the data, or from the training pass")  # fmt: skip
    add = parser.add_argument_group("re-weighting").add_argument
    add("--reweight", default="none", choices=rates, help="weight of a sample: 1 / count^0, ½, 1")
    add = parser.add_argument_group("two-stage training (RRT)").add_argument
    add("--retrain_fc", action="store_true", help="train the last layer of --pretrained again")
    add("--pretrained", default="", help="checkpoint to start from, all but its last layer")
    add = parser.add_argument_group("optimisation").add_argument
    add("--model", default="resnet50", choices=MODELS, help="network")
    add("--imagenet_weights", action="store_true", help="start from torchvision's IMAGENET1K_V1")
    add("--optimizer", default="adam", choices=("adam", "sgd"), help="optimizer")
    add("--loss", default="l1", choices=("mse", "l1", "focal_l1", "focal_mse", "huber"),
        help="training loss; mse picks the best epoch by validation MSE, else MAE")  # fmt: skip
    add("--lr", type=float, default=1e-3, help="learning rate at the start")
    add("--epoch", type=int, default=90, help="number of epochs")
    add("--momentum", type=float, default=0.9, help="of sgd")
    add("--weight_decay", type=float, default=1e-4, help="of sgd")
    add("--schedule", type=int, nargs="*", default=[60, 80], help="epochs where lr falls to 0.1")
    add("--batch_size", type=int, default=256, help="over all processes together")
    add = parser.add_argument_group("output").add_argument
    add("--store_root", default="checkpoint", help="folder of the run folders")
    add("--store_name", default="", help="part of the run folder's name")
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

    if args.lds and args.reweight == "none":
        parser.error("--lds smooths the weights: add --reweight sqrt_inv or --reweight inverse")
    if args.retrain_fc and not args.pretrained:
        parser.error("--retrain_fc trains the last layer of a network: add --pretrained CKPT")
    if args.retrain_fc and args.reweight == "none":
        parser.error("--retrain_fc needs --reweight sqrt_inv or --reweight inverse")
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
    if args.fds and args.bucket_num - args.bucket_start < (args.fds_ks + 1) // 2:
        parser.error("--bucket_num - --bucket_start must be at least (--fds_ks + 1) / 2")
    for flag in ("epoch", "batch_size", "img_size", "print_freq", "workers"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more, got {getattr(args, flag)}")
    for method in ("lds", "fds"):
        try:
            utils.get_lds_kernel_window(
                *(getattr(args, f"{method}_{part}") for part in ("kernel", "ks", "sigma"))
            )
        except ValueError as error:
            parser.error(f"--{method}_kernel, --{method}_ks, --{method}_sigma: {error}")
    args.name = "_".join(filter(None, (args.dataset, args.model, args.store_name)))
    args.name += run_folder.name_of_methods(args)
    args.name += f"_{args.optimizer}_{args.loss}_{args.lr}_{args.batch_size}"
    args.name += run_folder.name_of_flags(args, parser, RUN_FLAGS, VARIANT)
    return args


# ---- 5 builders ----------------------------------------------------------------------------


def build_loaders(args, accelerator):
    """Return the meta file's rows and a loader for each split."""
    meta = read_meta(args.data_dir, args.dataset)
    cache = Path(args.cache or Path(args.data_dir) / "cache") if args.cache != "none" else None
    images = Images(
        args.data_dir, meta["path"], args.img_size, cache, args.dataset, workers=args.workers,
        quiet=not accelerator.is_local_main_process,
    )  # fmt: skip
    last = (meta["split"] == "train").sum() % args.batch_size
    if args.img_size <= 32 and 0 < (last or args.batch_size) < 2 * accelerator.num_processes:
        raise ValueError(
            f"--img_size {args.img_size} leaves one pixel to the last layers, so a process needs 2 "
            f"images, and the last batch has {last}: choose another --batch_size"
        )
    loaders = {}
    for split in SPLITS:
        rows = np.flatnonzero(meta["split"] == split)
        labels = meta["age"].to_numpy()[rows]
        weights = np.ones(len(rows), dtype=np.float32)
        if split == "train":
            weights = sample_weights(labels, args.reweight, **lds_options(args))
        loaders[split] = Loader(
            images, rows, labels, weights, args.batch_size, accelerator.device,
            accelerator.process_index, accelerator.num_processes, args.seed,
        )  # fmt: skip
    return meta, loaders


def lds_options(args):
    """Return the arguments of LDS for `datasets.sample_weights`."""
    return {name: getattr(args, name) for name in ("lds", "lds_kernel", "lds_ks", "lds_sigma")}


def build_model(args, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one fetches ImageNet weights."""
    module = None
    if args.fds:
        module = FDS(
            feature_dim_of(args.model), args.bucket_num, args.bucket_start, args.start_update,
            args.start_smooth, args.fds_kernel, args.fds_ks, args.fds_sigma, args.fds_mmt,
            clip=FDS_CLIP, variant=args.fds_variant,
        )  # fmt: skip
    model = AgeResNet(args.model, module, args.imagenet_weights and fresh)
    return model.to(memory_format=torch.channels_last)  # the faster layout, on the CPU too


def build_optimizer(args, model):
    """Return the optimizer of all parameters, or of the last layer alone in RRT."""
    if args.retrain_fc:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("linear."))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if args.optimizer == "adam":  # the official script gives Adam no weight decay
        return torch.optim.Adam(parameters, lr=args.lr)
    return torch.optim.SGD(
        parameters, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay
    )


def build_loss(args):
    """Return the loss function (inputs, targets, weights) -> scalar."""
    function = getattr(losses, f"weighted_{args.loss}_loss")
    if args.loss.startswith("focal"):
        return functools.partial(function, beta=FOCAL_BETA)
    return functools.partial(function, beta=HUBER_BETA) if args.loss == "huber" else function


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(args, accelerator, net, model, optimizer, loader, epoch):
    """Train on the whole training set once.

    Returns:
        The epoch's row: epoch, lr, train_loss (mean over steps), and the seconds of the pass and,
        within them, of waiting for batches.

    Raises:
        FloatingPointError: naming epoch, step and value, if the loss is not finite or explodes.
    """
    criterion = build_loss(args)
    net.train()
    for group in optimizer.param_groups:
        group["lr"] = args.lr * LR_FACTOR ** sum(epoch >= milestone for milestone in args.schedule)
    total, unchecked, data_seconds = 0.0, [], 0.0
    start = waiting = time.perf_counter()
    progress = tqdm(
        loader.train(epoch), f"Epoch {epoch}", len(loader), leave=False,
        disable=not accelerator.is_local_main_process,
    )  # fmt: skip
    for step, batch in enumerate(progress):
        data_seconds += time.perf_counter() - waiting
        with accelerator.autocast():
            preds, features = net(batch.images, batch.labels, epoch)
            loss = criterion(preds.float(), batch.labels, batch.weights)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
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
def update_fds_statistics(args, accelerator, model, loader, epoch):
    """Gather the features' statistics by age and hand them to FDS (section 3.2 of the paper).

    As in the released code the pass runs in train mode: images are augmented, and batch norm
    goes on updating.

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if args.fds_stats == "extra_pass":
        model.train()
        progress = tqdm(
            loader.train(epoch, statistics=True), f"Epoch {epoch}, FDS statistics", len(loader),
            leave=False, disable=not accelerator.is_local_main_process,
        )  # fmt: skip
        for batch in progress:
            with accelerator.autocast():
                _, features = model(batch.images, batch.labels, epoch)
            if batch.share:
                model.FDS.accumulate(features, batch.labels, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(accelerator, model, loader, train_labels):
    """Predict a split and compute its metrics by shot.

    Returns:
        Metrics as of `metrics.shot_metrics`, and the predictions [N] in the split's order; the
        same in every process.
    """
    utils.broadcast_buffers(model)
    model.eval()
    preds = []
    for batch in loader.evaluate():
        with accelerator.autocast():
            preds.append(model(batch.images)[0].float().flatten().cpu())
    preds = torch.cat(preds).tolist() if preds else []
    if accelerator.num_processes > 1:
        preds = gather_object(preds)  # parts of consecutive rows, in the order of the ranks
    preds = np.asarray(preds, dtype=np.float32)
    return shot_metrics(preds, loader.labels.flatten().numpy(), train_labels), preds


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
    meta, loaders = build_loaders(args, accelerator)
    train_labels = loaders["train"].labels.flatten().numpy()
    model = build_model(args, fresh=checkpoint is None and not args.pretrained)
    if args.pretrained:
        state, path = released.find_weights(args.pretrained)
        utils.load_state(model, state, path, skip=("linear.",))
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(accelerator, folder, args.overwrite)
    utils.setup_logging(folder, main_process=is_main)
    logging.info("Run folder %s, device %s", folder, accelerator.device)
    optimizer = build_optimizer(args, model)
    if args.compile:
        model.compile()
    net, optimizer = accelerator.prepare(model, optimizer)
    progress = {"epoch": 0, "best_loss": float("inf"), "best_epoch": None, "wall_seconds": 0.0}
    if checkpoint:
        progress |= run_folder.restore(
            checkpoint, accelerator, model, optimizer, args, folder / BEST
        )
    run_folder.start_tracking(accelerator, args, progress["epoch"])
    if is_main:
        run_folder.keep_epochs(folder, progress["epoch"])

    started = time.perf_counter() - progress["wall_seconds"]
    for epoch in range(progress["epoch"], args.epoch):
        utils.seed_everything(args.seed, epoch, accelerator.process_index)
        row = train_one_epoch(args, accelerator, net, model, optimizer, loaders["train"], epoch)
        if args.fds and epoch >= args.start_update:
            row["seconds"] |= update_fds_statistics(
                args, accelerator, model, loaders["train"], epoch
            )
        clock = time.perf_counter()
        row["val"], _ = evaluate(accelerator, model, loaders["val"], train_labels)
        row["seconds"]["evaluate"] = time.perf_counter() - clock
        val_loss = row["val"]["overall"]["mse" if args.loss == "mse" else "mae"]
        files = [LAST]
        if val_loss < progress["best_loss"]:
            progress |= {"best_loss": val_loss, "best_epoch": epoch}
            files = [BEST, LAST]
        progress |= {"epoch": epoch + 1, "wall_seconds": time.perf_counter() - started}
        state = {**progress, "model": args.model, "state_dict": model.state_dict()}
        state |= {"optimizer": optimizer.state_dict(), "config": vars(args)}
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        run_folder.finish_epoch(accelerator, folder, row, state, files)
        logging.info(
            "Epoch %d: train loss %.4f, validation %s", epoch, row["train_loss"],
            ", ".join(f"{name} {row['val']['overall'][name]:.3f}" for name in MAIN_METRICS),
        )  # fmt: skip
    return finish(args, accelerator, folder, meta, loaders, model, progress, facts)


def finish(args, accelerator, folder, meta, loaders, model, progress, facts):
    """Evaluate the best epoch and write results, predictions and figures."""
    accelerator.wait_for_everyone()
    best = utils.weights_of(utils.load_checkpoint(folder / BEST), folder / BEST)
    utils.load_state(model, best, folder / BEST)
    train_labels = loaders["train"].labels.flatten().numpy()
    metrics, tables = {}, []
    for split in ("val", "test"):
        metrics[split], preds = evaluate(accelerator, model, loaders[split], train_labels)
        rows = meta.iloc[loaders[split].rows]
        tables.append(rows.rename(columns={"age": "label"}).assign(prediction=preds))
    if accelerator.is_main_process:
        text = pd.concat(tables)[["path", "label", "prediction", "split"]]
        text = text.to_csv(index=False, lineterminator="\n")
        utils.write_atomically(folder / "predictions.csv", text.encode())
        write_densities(args, folder, train_labels, loaders["train"].weights.flatten().numpy())
        if args.fds:
            buckets = range(args.bucket_start, args.bucket_num)
            run_folder.write_fds_statistics(folder, model.FDS, buckets)
        run_folder.write_results(
            accelerator, folder, args, metrics, benchmark=BENCHMARK, target=TARGET,
            method=run_folder.method_name(args, VARIANT), main_metrics=MAIN_METRICS,
            higher_is_better=[], best_epoch=progress["best_epoch"],
            wall_seconds=progress["wall_seconds"], **facts,
        )  # fmt: skip
        report.draw_run(folder)
        table = run_folder.metrics_table(metrics["test"])
        logging.info("Test set, best epoch %s:\n%s", progress["best_epoch"], table)
    accelerator.end_training()
    return metrics["test"]


def write_densities(args, folder, train_labels, weights):
    """Write the label density, before and after LDS, and the weight of each age."""
    emp_label_dist, eff_label_dist = label_density(train_labels, args.reweight, **lds_options(args))
    buckets = label_to_bucket(train_labels)
    weight_of_bucket = np.full(len(emp_label_dist), np.nan)
    weight_of_bucket[buckets] = weights
    ages = np.arange(AGE_BUCKETS)
    run_folder.write_label_density(
        folder, ages, shot_of(ages, train_labels), np.bincount(buckets, minlength=AGE_BUCKETS),
        emp_label_dist, eff_label_dist, weight_of_bucket,
    )  # fmt: skip


def run_evaluation(args, accelerator, folder):
    """Evaluate a checkpoint on validation and test set and print both by shot."""
    name = args.eval_model or (args.resume if args.resume != "auto" else "") or folder / BEST
    path = released.find(name)
    checkpoint = released.load(path)
    released.take_flags(args, checkpoint, path, NETWORK_FLAGS)
    model = build_model(args)
    utils.load_state(model, utils.weights_of(checkpoint, path), path)
    before = (checkpoint.get("config") or {}).get("dataset", args.dataset)
    if before != args.dataset:
        logging.warning("%s was trained on %s, this is %s", path, before, args.dataset)
    model.to(accelerator.device)
    _, loaders = build_loaders(args, accelerator)
    train_labels = loaders["train"].labels.flatten().numpy()
    metrics = {}
    for split in ("val", "test"):
        metrics[split], _ = evaluate(accelerator, model, loaders[split], train_labels)
        logging.info("%s, %s set:\n%s", path, split, run_folder.metrics_table(metrics[split]))
    released.log_expected(path, metrics["test"])
    return metrics["test"]


if __name__ == "__main__":
    main()
