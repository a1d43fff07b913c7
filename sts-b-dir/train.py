"""STS-B-DIR: train, resume, evaluate and retrain a regressor of similarity with LDS and FDS.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of half a minute on generated pairs, on a CPU (test MSE 0.32, Pearson 0.94):
    python demo_data.py --out glue_data/demo
    python train.py --data_dir glue_data/demo --word_embs_file glue_data/demo/vectors.txt \
        --d_word 32 --d_hid 64 --lr 2e-3 --val_interval 24 --max_vals 10
The headline run (paper: MSE 0.907, Pearson 76.0 %; time not measured):
    python train.py --reweight inverse --lds --lds_kernel gaussian --lds_ks 5 --lds_sigma 2 \
        --fds --fds_kernel gaussian --fds_ks 5 --fds_sigma 2
Evaluation of a checkpoint, ours or an official one (a minute):
    python train.py --evaluate --eval_model model_state_best.th
"""

# ---- 2 imports -----------------------------------------------------------------------------
import argparse
import functools
import logging
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

import checkpoints
import loss as losses
import released
import report
import run_folder
import text
import utils
from bilstm import LSTMEncoder, SimilarityRegressor, TextEncoder
from datasets import (
    BUCKETS,
    EDGES,
    FILES,
    MAX_SCORE,
    Loader,
    label_density,
    label_to_bucket,
    sample_weights,
)
from fds import FDS
from metrics import HIGHER_IS_BETTER, MAIN_METRICS, shot_metrics, shot_of_buckets

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "sts-b-dir"
LDS_KS, LDS_SIGMA = 5, 2  # defaults of the released code
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = BUCKETS, 0  # bins of 0.1 on [0, 5]
VARIANT = "official"  # what the published numbers come from

TARGET = {"name": "similarity", "unit": ""}  # 0 ... 5; the network predicts a fifth of it
FDS_CLIP = (0.5, 2.0)  # bounds of the variance ratio (released code, STS-B)
FOCAL_BETA = 20.0  # on targets in [0, 1] (released code, STS-B)
WEIGHT_DECAY = 1e-5  # released code, STS-B
# Flags of ours that change a run: its folder's name holds those that are not at their default.
RUN_FLAGS = (
    "encoder pooling d_hid d_word n_layers_enc n_layers_highway dropout train_words glove "
    "max_seq_len max_word_v_size tokenizer group_by_length bucket_num bucket_start fds_stats "
    "precision"
).split()
# Flags taken from a checkpoint that is evaluated, where it says them.
NETWORK_FLAGS = (
    "encoder pooling d_hid d_word n_layers_enc n_layers_highway max_seq_len tokenizer"
).split()
LOSS_CHECK = 10  # steps between two looks at the loss, each of which waits for the device
EXPLODED = 1e6  # a loss above this ends the run

# ---- 4 arguments ---------------------------------------------------------------------------


def parse_args(argv=None):
    """Parse the command line; every flag of the official script keeps its meaning and default."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument_group("data").add_argument
    add("--task", default="sts-b", choices=("sts-b",), help="the one task")
    add("--data_dir", default="glue_data/STS-B", help="folder of train_new, dev_new, test_new .tsv")
    add("--tokenizer", default="sentence", choices=("sentence", "punkt"),
        help="a string is one sentence, or is split into sentences first (see README)")  # fmt: skip
    add("--max_seq_len", type=int, default=40, help="words of a sentence that are kept")
    add("--max_word_v_size", type=int, default=30_000, help="words with an id of their own")
    add("--glove", type=int, default=1, choices=(0, 1), help="start from --word_embs_file")
    add("--word_embs_file", default="glove/glove.840B.300d.txt", help="GloVe or word2vec, text")
    add("--cache", help="folder of the reduced word vectors, or none [<data_dir>/cache]")
    add("--group_by_length", action="store_true", help="batches of pairs of like length")
    kernels, rates = utils.KERNELS, ("none", "sqrt_inv", "inverse")
    add = parser.add_argument_group("LDS").add_argument
    add("--lds", action="store_true", help="label distribution smoothing; needs --reweight")
    add("--lds_kernel", default="gaussian", choices=kernels, help="window over bins")
    add("--lds_ks", type=int, default=LDS_KS, help="length of the window, odd, bins of 0.1")
    add("--lds_sigma", type=float, default=LDS_SIGMA, help="width of the window, bins of 0.1")
    add = parser.add_argument_group("FDS").add_argument
    add("--fds", action="store_true", help="feature distribution smoothing")
    add("--fds_kernel", default="gaussian", choices=kernels, help="window over bins")
    add("--fds_ks", type=int, default=FDS_KS, help="length of the window, odd, bins of 0.1")
    add("--fds_sigma", type=float, default=FDS_SIGMA, help="width of the window, bins of 0.1")
    add("--start_update", type=int, default=0, help="first epoch in the statistics")
    add("--start_smooth", type=int, default=1, help="first epoch with calibrated features")
    add("--bucket_num", type=int, default=BUCKET_NUM, help="end of the bins with statistics")
    add("--bucket_start", type=int, default=BUCKET_START, help="first bin with statistics")
    add("--fds_mmt", type=float, default=0.9, help="momentum of the statistics")
    add("--fds_variant", default=VARIANT, choices=("paper", "official"), help="see README")
    add("--fds_stats", default="extra_pass", choices=("extra_pass", "online"),
        help="statistics from one more pass over the data, or from the training pass")  # fmt: skip
    add = parser.add_argument_group("re-weighting").add_argument
    add("--reweight", default="none", choices=rates, help="weight of a pair: 1 / count^0, ½, 1")
    add = parser.add_argument_group("two-stage training (RRT)").add_argument
    add("--retrain_fc", action="store_true", help="train the last layer of --pretrained again")
    add("--pretrained", default="", help="checkpoint whose pair encoder is loaded")
    add = parser.add_argument_group("model").add_argument
    add("--encoder", default="", help="Hugging Face encoder, name or path, in place of the LSTM")
    add("--pooling", choices=("mean", "max"), help="over tokens; with --encoder alone [mean]")
    add("--d_word", type=int, default=300, help="length of a word vector")
    add("--train_words", type=int, default=0, choices=(0, 1), help="train the word vectors too")
    add("--d_hid", type=int, default=1500, help="hidden size of each direction")
    add("--n_layers_enc", type=int, default=2, help="layers of the LSTM")
    add("--n_layers_highway", type=int, default=0, help="layers between embedding and LSTM")
    add("--dropout", type=float, default=0.2, help="of embeddings and encodings")
    add("--dropout_embs", type=float, default=0.2, help="ignored, as in the released code")
    add = parser.add_argument_group("optimisation").add_argument
    add("--optimizer", default="adam", choices=("adam", "sgd"), help="weight decay 1e-5")
    add("--loss", default="mse", choices=("mse", "l1", "focal_l1", "focal_mse", "huber"),
        help="on similarities / 5")  # fmt: skip
    add("--huber_beta", type=float, default=0.3, help="of --loss huber")
    add("--lr", type=float, default=1e-4, help="learning rate")
    add("--batch_size", type=int, default=128, help="pairs, over all processes together")
    add("--max_grad_norm", type=float, default=5.0, help="longer gradients are scaled down to it")
    add("--val_interval", type=int, default=400, help="steps between two validations")
    add("--max_vals", type=int, default=100, help="most validations")
    add("--patience", type=int, default=10, help="validations without a gain before the end")
    add = parser.add_argument_group("output").add_argument
    add("--store_root", default="checkpoint", help="folder of the run folders")
    add("--store_name", default="sts", help="start of the run folder's name")
    add("--suffix", default="", help="end of the run folder's name")
    add("--log_file", default="training.log", help="name of the log in the run folder")
    add("--resume", nargs="?", const="auto", default="",
        help="go on with the run folder, or from the given checkpoint")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the run in the run folder")
    add("--evaluate", action="store_true", help="only evaluate --eval_model, --resume or the best")
    add("--eval_model", default="", help="checkpoint to evaluate")
    add("--track", default="tensorboard", choices=("tensorboard", "wandb", "none"), help="events")
    add = parser.add_argument_group("run time").add_argument
    add("--random_seed", "--seed", type=int, default=111, dest="seed", help="below 0: drawn")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="device")
    add("--cuda", type=int, help="index of the one GPU to use, -1 for the CPU")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="[tf32 on CUDA, else fp32]")
    add("--compile", action="store_true", help="torch.compile the network")
    args = parser.parse_args(argv)
    check_args(args, parser)
    args.name = run_name(args, parser)
    return args


def check_args(args, parser):
    """End with an error that names the flags if they contradict each other."""
    if args.lds and args.reweight == "none":
        parser.error("--lds smooths the weights: add --reweight sqrt_inv or --reweight inverse")
    if args.retrain_fc and not args.pretrained:
        parser.error("--retrain_fc trains the last layer of a network: add --pretrained CKPT")
    if args.eval_model and not args.evaluate:
        parser.error("--eval_model is what --evaluate evaluates: add that, or use --pretrained")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: choose one")
    if args.seed < 0:
        if args.resume or args.evaluate:
            parser.error("--random_seed below 0 draws a new one: give the one of the run")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            parser.error("--random_seed below 0 would draw one in each process: give one")
        args.seed = random.SystemRandom().randrange(10_000)
    if args.cuda is not None and args.device == ("cpu" if args.cuda >= 0 else "cuda"):
        parser.error(f"--cuda {args.cuda} and --device {args.device} contradict each other")
    if not (0 <= args.fds_mmt <= 1 and args.lr > 0 and 0 <= args.dropout < 1):
        parser.error("--fds_mmt must be in [0, 1], --dropout in [0, 1) and --lr above 0")
    if not (args.huber_beta > 0 and args.max_grad_norm > 0 and args.n_layers_highway >= 0):
        parser.error("--huber_beta and --max_grad_norm must be above 0, --n_layers_highway 0 or up")
    if not 0 <= args.bucket_start < args.bucket_num <= BUCKETS:
        parser.error(f"--bucket_start and --bucket_num must rise, from 0 to at most {BUCKETS}")
    if args.patience < 0 or args.n_layers_enc < 1:
        parser.error("--patience must be 0 or more, --n_layers_enc 1 or more")
    if Path(args.log_file).name != args.log_file:
        parser.error(f"--log_file is a name in the run's folder, got {args.log_file}")
    if args.fds and args.bucket_num - args.bucket_start < (args.fds_ks + 1) // 2:
        parser.error("--bucket_num - --bucket_start must be at least (--fds_ks + 1) / 2")
    if args.pooling and not args.encoder:
        parser.error("--pooling goes with --encoder; the LSTM's encodings take the maximum")
    for flag in "batch_size val_interval max_vals max_seq_len max_word_v_size d_word d_hid".split():
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more, got {getattr(args, flag)}")
    for method in ("lds", "fds"):
        try:
            utils.get_lds_kernel_window(
                *(getattr(args, f"{method}_{part}") for part in ("kernel", "ks", "sigma"))
            )
        except ValueError as error:
            parser.error(f"--{method}_kernel, --{method}_ks, --{method}_sigma: {error}")


def run_name(args, parser):
    """Return the run folder's name, as the official script makes it, and our flags behind it."""
    name = args.store_name + run_folder.name_of_methods(args)
    name += f"_huber_beta_{args.huber_beta}" if args.loss == "huber" else f"_{args.loss}"
    name += f"_seed_{args.seed}_valint_{args.val_interval}_patience_{args.patience}"
    name += f"_{args.optimizer}_{args.lr}_{args.batch_size}"
    name += f"_{args.suffix}" if args.suffix else ""
    return name + run_folder.name_of_flags(args, parser, RUN_FLAGS, VARIANT)


# ---- 5 builders ----------------------------------------------------------------------------


def build_loaders(args, accelerator, corpus):
    """Return a loader for each split."""
    loaders = {}
    for split in FILES:
        rows = np.flatnonzero(corpus.pairs["split"] == split)
        labels = corpus.pairs["label"].to_numpy()[rows]
        weights = np.ones(len(rows), dtype=np.float32)
        if split == "train":
            weights = sample_weights(labels, args.reweight, **lds_options(args))
        loaders[split] = Loader(
            [[sentences[row] for row in rows] for sentences in corpus.ids], labels, weights,
            args.batch_size, accelerator.device, accelerator.process_index,
            accelerator.num_processes, args.seed, args.group_by_length, corpus.padding,
        )  # fmt: skip
    return loaders


def lds_options(args):
    """Return the arguments of LDS for `datasets.sample_weights`."""
    return {name: getattr(args, name) for name in ("lds", "lds_kernel", "lds_ks", "lds_sigma")}


def build_model(args, corpus, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one reads pretrained weights."""
    if args.encoder:
        network = text.load_encoder(args.encoder, fresh)
        encoder = TextEncoder(network, args.dropout, args.pooling or "mean")
    else:
        encoder = LSTMEncoder(
            len(corpus.words), args.d_word, args.d_hid, args.n_layers_enc, args.n_layers_highway,
            args.dropout, bool(args.train_words),
        )  # fmt: skip
        if fresh:
            vectors = text.word_vectors(args, corpus)
            encoder.words.weight.data.copy_(torch.from_numpy(vectors))
    module = None
    if args.fds:
        module = FDS(
            4 * encoder.sentence_dim, args.bucket_num, args.bucket_start, args.start_update,
            args.start_smooth, args.fds_kernel, args.fds_ks, args.fds_sigma, args.fds_mmt,
            label_to_bucket=label_to_bucket, clip=FDS_CLIP, fill_empty=True,
            variant=args.fds_variant,
        )  # fmt: skip
    return SimilarityRegressor(encoder, module)


def build_optimizer(args, model):
    """Return the optimizer of all that is trained, in RRT of the last layer alone."""
    if args.retrain_fc:
        model.requires_grad_(False)
        model.linear.requires_grad_(True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = torch.optim.Adam if args.optimizer == "adam" else torch.optim.SGD
    return kind(parameters, lr=args.lr, weight_decay=WEIGHT_DECAY)


def build_loss(args):
    """Return the loss function (inputs, targets, weights) -> scalar."""
    function = getattr(losses, f"weighted_{args.loss}_loss")
    if args.loss.startswith("focal"):
        return functools.partial(function, beta=FOCAL_BETA)
    return functools.partial(function, beta=args.huber_beta) if args.loss == "huber" else function


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(args, accelerator, net, model, optimizer, loader, first, last):
    """Train on an epoch's batches, or on those up to the next validation.

    Args:
        first, last: numbers of the first step and of the one after the last, counted over the run.

    Returns:
        Sum of the steps' losses, of similarities / 5.

    Raises:
        FloatingPointError: naming step and value, if the loss is not finite or explodes.
    """
    criterion, epoch = build_loss(args), first // len(loader)
    net.train()
    total, unchecked = 0.0, []
    progress = tqdm(
        loader.train(epoch, first % len(loader), last - epoch * len(loader)),
        f"Epoch {epoch}", last - first, leave=False, disable=not accelerator.is_local_main_process,
    )  # fmt: skip
    for step, batch in enumerate(progress, start=first):
        # What a step draws depends on its number alone, so a resumed run draws the same.
        utils.seed_everything(args.seed, step, accelerator.process_index)
        with accelerator.autocast():
            preds, features = net(batch.ids, batch.lengths, batch.labels, epoch)
            loss = criterion(preds.float(), batch.labels / MAX_SCORE, batch.weights)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        accelerator.clip_grad_norm_(net.parameters(), args.max_grad_norm)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
        unchecked.append(loss.detach() * batch.share)
        if len(unchecked) == LOSS_CHECK or step == last - 1:
            values = torch.stack(unchecked).tolist()
            for number, value in enumerate(values, start=step - len(values) + 1):
                if not abs(value) <= EXPLODED:
                    raise FloatingPointError(
                        f"the loss is {value} at step {number} of epoch {epoch}: the last "
                        "good checkpoint stays; try a smaller --lr, or --precision fp32"
                    )
            total += sum(values)
            unchecked.clear()
            progress.set_postfix(loss=f"{values[-1]:.4f}", refresh=False)
    return accelerator.reduce(
        torch.tensor(total, dtype=torch.float64, device=accelerator.device), "mean"
    ).item()


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(args, accelerator, model, loader, epoch):
    """Gather the features' statistics by bin and hand them to FDS (section 3.2 of the paper).

    As in the released code the pass runs in train mode, with dropout. `epoch` is the number of
    epochs that were finished when this one began: 0 after the first.
    """
    if args.fds_stats == "extra_pass":
        model.train()
        progress = tqdm(
            loader.train(epoch), f"Epoch {epoch}, FDS statistics", len(loader), leave=False,
            disable=not accelerator.is_local_main_process,
        )  # fmt: skip
        for batch in progress:
            with accelerator.autocast():
                _, features = model(batch.ids, batch.lengths, batch.labels, epoch)
            if batch.share:
                model.FDS.accumulate(features, batch.labels, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(accelerator, model, loader):
    """Predict a split and compute its metrics by shot.

    Returns:
        Metrics as of `metrics.shot_metrics`, and the predictions [N], 0 ... 5, in the split's
        order; the same in every process.
    """
    model.eval()
    preds = []
    for batch in loader.evaluate():
        with accelerator.autocast():
            preds.append(model(batch.ids, batch.lengths)[0].float().flatten().cpu())
    preds = torch.cat(preds).tolist() if preds else []
    if accelerator.num_processes > 1:
        preds = gather_object(preds)  # parts of consecutive rows, in the order of the ranks
    preds = np.asarray(preds, dtype=np.float64) * MAX_SCORE
    return shot_metrics(preds, loader.labels.flatten().numpy()), preds


def out_of_patience(history, patience):
    """Whether training stops: the latest validation loss is no lower than any of the last ones.

    Source: the released code, which compares with the last patience + 1 losses, the latest among
    them, once there are patience + 2; how old the best one is does not count.
    """
    return len(history) >= patience + 2 and history[-1] >= max(history[-(patience + 1) :])


# ---- 9 main --------------------------------------------------------------------------------


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    folder = run_folder.find_run_folder(args.store_root, args.name)
    accelerator = utils.make_accelerator(
        args.device, args.precision, args.cuda, "none" if args.evaluate else args.track, folder
    )
    is_main, facts = accelerator.is_main_process, utils.run_facts()
    utils.seed_everything(args.seed)
    if args.evaluate:
        utils.setup_logging(main_process=is_main)
        return run_evaluation(args, accelerator, folder)
    checkpoint = run_folder.find_checkpoint(
        folder, args.resume, args.overwrite, checkpoints.TRAINING
    )
    utils.setup_logging(main_process=is_main)
    start = released.find(args.pretrained) if args.pretrained else None
    corpus = text.read_corpus(args, checkpoint or start)
    loaders = build_loaders(args, accelerator, corpus)
    model = build_model(args, corpus, fresh=checkpoint is None and not args.pretrained)
    if args.pretrained:
        state = utils.weights_of(released.load(start), start)
        text.check_rows(state, corpus.words, start)
        utils.load_state(model, state, start, skip=("sts-b_pred_layer.", "FDS."))
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(accelerator, folder, args.overwrite)
    utils.setup_logging(folder, args.log_file, main_process=is_main)
    logging.info("Run folder %s, device %s", folder, accelerator.device)
    optimizer = build_optimizer(args, model)
    if args.compile:
        model.compile()
    net, optimizer = accelerator.prepare(model, optimizer)
    progress = {"step": 0, "history": [], "best_loss": float("inf"), "best_step": None}
    progress["wall_seconds"] = 0.0
    if checkpoint:
        progress |= checkpoints.restore(
            checkpoint, accelerator, model, optimizer, args, folder / checkpoints.BEST,
            len(loaders["train"]),
        )  # fmt: skip
    if is_main and corpus.words:
        words = "".join(f"{word}\n" for word in corpus.words)
        utils.write_atomically(folder / text.VOCABULARY, words.encode())
    run_folder.start_tracking(accelerator, args, progress["step"])
    if is_main:
        # A row's "epoch" is the number of epochs so far, with their fraction.
        run_folder.keep_epochs(folder, (progress["step"] + 0.5) / len(loaders["train"]))
    train(args, accelerator, folder, net, model, optimizer, loaders, progress)
    return finish(args, accelerator, folder, corpus.pairs, loaders, model, progress, facts)


def train(args, accelerator, folder, net, model, optimizer, loaders, progress):
    """Train and validate in turn until --max_vals or --patience ends it; `progress` is updated."""
    started, loader = time.perf_counter() - progress["wall_seconds"], loaders["train"]
    per_epoch, interval, history = len(loader), args.val_interval, progress["history"]
    total, seconds = 0.0, dict.fromkeys(("train", "statistics", "evaluate"), 0.0)
    while len(history) < args.max_vals and not out_of_patience(history, args.patience):
        first = progress["step"]
        epoch = first // per_epoch
        last = min((epoch + 1) * per_epoch, (first // interval + 1) * interval)
        clock = time.perf_counter()
        total += train_one_epoch(args, accelerator, net, model, optimizer, loader, first, last)
        seconds["train"] += time.perf_counter() - clock
        progress["step"] = last
        if args.fds and last % per_epoch == 0 and epoch >= args.start_update:
            clock = time.perf_counter()
            update_fds_statistics(args, accelerator, model, loader, epoch)
            seconds["statistics"] += time.perf_counter() - clock
        if last % interval:
            continue
        clock = time.perf_counter()
        metrics, _ = evaluate(accelerator, model, loaders["val"])
        seconds["evaluate"] = time.perf_counter() - clock
        row = {"epoch": last / per_epoch, "step": last, "lr": args.lr, "seconds": seconds}
        row |= {"train_loss": total / interval, "val": metrics}
        history.append(metrics["overall"]["mse"])
        is_best = history[-1] < progress["best_loss"]
        if is_best:
            progress |= {"best_loss": history[-1], "best_step": last}
        progress["wall_seconds"] = time.perf_counter() - started
        run_folder.write_epoch(accelerator, folder, row)
        state = {**progress, "optimizer": optimizer.state_dict(), "config": vars(args)}
        state["per_epoch"] = per_epoch
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        if args.fds and model.FDS.moments is not None:
            state["moments"] = gather_object([tuple(m.cpu() for m in model.FDS.moments.parts)])
        if accelerator.is_main_process:
            checkpoints.save(folder, model.state_dict(), state, is_best)
        logging.info(
            "Step %d, epoch %.1f: train loss %.4f, validation %s", last, row["epoch"],
            row["train_loss"],
            ", ".join(f"{name} {metrics['overall'][name]:.3f}" for name in MAIN_METRICS),
        )  # fmt: skip
        total, seconds = 0.0, dict.fromkeys(seconds, 0.0)


def finish(args, accelerator, folder, pairs, loaders, model, progress, facts):
    """Evaluate the best weights and write results, predictions and figures."""
    accelerator.wait_for_everyone()
    best = folder / checkpoints.BEST
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(best), best), best)
    metrics, predictions = {}, {}
    for split in ("val", "test"):
        metrics[split], predictions[split] = evaluate(accelerator, model, loaders[split])
    if accelerator.is_main_process:
        text.write_predictions(folder, pairs, predictions)
        train_labels = loaders["train"].labels.flatten().numpy()
        write_densities(args, folder, train_labels, loaders["train"].weights.flatten().numpy())
        if args.fds:
            labels = EDGES[args.bucket_start : args.bucket_num]
            run_folder.write_fds_statistics(folder, model.FDS, labels)
        run_folder.write_results(
            accelerator, folder, args, metrics, benchmark=BENCHMARK, target=TARGET,
            method=run_folder.method_name(args, VARIANT), main_metrics=MAIN_METRICS,
            higher_is_better=HIGHER_IS_BETTER, best_step=progress["best_step"],
            best_epoch=progress["best_step"] / len(loaders["train"]),
            wall_seconds=progress["wall_seconds"], **facts,
        )  # fmt: skip
        report.draw_run(folder)
        table = run_folder.metrics_table(metrics["test"])
        logging.info("Test set, best after step %s:\n%s", progress["best_step"], table)
    accelerator.end_training()
    return metrics["test"]


def write_densities(args, folder, train_labels, weights):
    """Write the label density, before and after LDS, and the weight of each bin."""
    emp_label_dist, eff_label_dist = label_density(train_labels, args.reweight, **lds_options(args))
    buckets = label_to_bucket(train_labels)
    weight_of_bucket = np.full(BUCKETS, np.nan)
    weight_of_bucket[buckets] = weights
    run_folder.write_label_density(
        folder, EDGES[:-1], shot_of_buckets(), np.bincount(buckets, minlength=BUCKETS),
        emp_label_dist, eff_label_dist, weight_of_bucket,
    )  # fmt: skip


def run_evaluation(args, accelerator, folder):
    """Evaluate a checkpoint on validation and test set and print both by shot."""
    path = args.eval_model or (args.resume if args.resume != "auto" else "")
    path = released.find(path or folder / checkpoints.BEST)
    checkpoint = released.load(path)
    released.take_flags(args, checkpoint, path, NETWORK_FLAGS)
    state = utils.weights_of(checkpoint, path)
    corpus = text.read_corpus(args, path)
    text.check_rows(state, corpus.words, path)
    model = build_model(args, corpus)
    utils.load_state(model, state, path)
    model.to(accelerator.device)
    loaders, metrics = build_loaders(args, accelerator, corpus), {}
    for split in ("val", "test"):
        metrics[split], _ = evaluate(accelerator, model, loaders[split])
        logging.info("%s, %s set:\n%s", path, split, run_folder.metrics_table(metrics[split]))
    released.log_expected(path, metrics["test"])
    return metrics["test"]


if __name__ == "__main__":
    main()
