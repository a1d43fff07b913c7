"""STS-B-DIR: train, resume, evaluate and retrain a regressor of similarity with LDS and FDS.

Source: "Delving into Deep Imbalanced Regression" (ICML 2021), section 4.

A run of about 2 minutes on one core, on generated pairs (test MSE 0.31, Pearson 0.94):
    python demo_data.py --out glue_data/demo
    python train.py --data_dir glue_data/demo --word_embs_file glue_data/demo/vectors.txt \
        --d_word 32 --d_hid 64 --lr 2e-3 --val_interval 24 --max_vals 10
The headline run (paper: MSE 0.907, Pearson 76.0 %; not run here):
    python train.py --reweight inverse --lds --fds
Evaluation of a checkpoint, ours or an official one; here the first run's (seconds):
    python train.py --data_dir glue_data/demo --evaluate --eval_model checkpoint/sts_mse_*_d_hid_64
"""

# ---- 2 imports -----------------------------------------------------------------------------
import functools
import logging
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import flags
import loss_flags
import program
import resample
from regularizer_flags import add_regularizer, check_regularizer
from target import Target, add_target, check_counts, check_target

# ---- 3 benchmark constants -----------------------------------------------------------------
BENCHMARK = "sts-b-dir"
LDS_KS, LDS_SIGMA = 5, 2  # defaults of the released code
FDS_KS, FDS_SIGMA = 5, 2
BUCKET_NUM, BUCKET_START = 50, 0  # --bucket_num n cuts [0, 5] into n bins, by default of 0.1
VARIANT = "official"  # what the published numbers come from
TARGET = Target("similarity", "", 0.0, 5.0, 0.1)  # a fifth of it is predicted; see pair_file.py
FDS_CLIP = (0.5, 2.0)  # bounds of the variance ratio (released code, STS-B)
FOCAL_BETA = 20.0  # on targets in [0, 1] (released code, STS-B)
WEIGHT_DECAY = 1e-5  # released code, STS-B
RELEVANCE, OVERSAMPLE = "density", 2.0  # few- and medium-shot bins; 200 % (Torgo et al., 2013)
# SRL's weights as published; the others' are the ages', in bins of 0.1 instead of years.
REGULARIZER = {"conr": [0.08], "ordinal_entropy": [0.02], "srl": [1e-4, 1e-2, 1e-4], "dist": [1.0]}

# ---- 4 arguments ---------------------------------------------------------------------------


def make_parser():
    """Return the parser; every flag of the official script keeps its meaning and default."""
    parser = flags.Parser(__doc__)
    add = parser.section("data", flags.TRAINING)
    add("--task", default="sts-b", choices=("sts-b",), role=flags.PLACE, help="the one task")
    add("--data_dir", default="glue_data/STS-B", appended=False, help="folder of the split's files")
    tokenizer = {"default": "sentence", "choices": ("sentence", "punkt"), "role": flags.NETWORK}
    add("--tokenizer", **tokenizer, help="a string is one sentence, or is split first: see README")
    add("--max_seq_len", type=int, default=40, role=flags.NETWORK, help="words kept of a sentence")
    add("--max_word_v_size", type=int, default=30_000, help="words with an id of their own")
    add("--glove", type=int, default=1, choices=(0, 1), help="start from --word_embs_file")
    add("--word_embs_file", default="glove/glove.840B.300d.txt", help="GloVe or word2vec, text")
    add("--train_words", type=int, default=0, choices=(0, 1), help="train the word vectors too")
    cache_help = "folder of the reduced word vectors, or none [<data_dir>/cache]"
    add("--cache", role=flags.PLACE, help=cache_help)
    add("--group_by_length", action="store_true", help="batches of pairs of similar length")
    add_target(parser.section("target", flags.NETWORK), TARGET)
    flags.add_lds(parser, "bins", LDS_KS, LDS_SIGMA)
    flags.add_fds(parser, BUCKET_NUM, BUCKET_START, FDS_KS, FDS_SIGMA, VARIANT)
    flags.add_two_stage(parser)
    resample.add_resample(parser, RELEVANCE, OVERSAMPLE)
    add_regularizer(parser, "fiftieths of the range", REGULARIZER, 0.1)
    add = parser.section("network", flags.NETWORK)
    add("--encoder", default="", help="Hugging Face encoder, name or path, in place of the LSTM")
    add("--pooling", choices=("mean", "max"), help="over tokens; only with --encoder [mean]")
    add("--d_word", type=int, default=300, help="length of a word vector")
    add("--d_hid", type=int, default=1500, help="hidden size of each direction")
    add("--n_layers_enc", type=int, default=2, help="layers of the LSTM")
    add("--n_layers_highway", type=int, default=0, help="layers between embedding and LSTM")
    # Those that are not appended stand in the released name already, or may grow on resume.
    add = parser.section("optimisation", flags.TRAINING, appended=False)
    add("--dropout", type=float, default=0.2, appended=True, help="of embeddings and encodings")
    add("--dropout_embs", type=float, default=0.2, role=flags.PLACE, help="ignored, as released")
    add("--optimizer", default="adam", choices=("adam", "sgd"), help="weight decay 1e-5")
    add("--loss", default="mse", choices=flags.LOSSES, help="on similarities / 5")
    add("--huber_beta", type=float, default=0.3, help="of --loss huber")
    add("--lr", type=float, default=1e-4, help="learning rate")
    add("--batch_size", type=int, default=128, help="pairs, over all processes together")
    add("--max_grad_norm", type=float, default=5.0, appended=True, help="largest gradient norm")
    add("--val_interval", type=int, default=400, help="steps between two validations")
    add("--max_vals", type=int, default=100, help="most validations")
    add("--patience", type=int, default=10, help="validations without a gain before the end")
    loss_flags.add_losses(parser, "parts of the range", noise=0.2)  # 1 on the labels' own scale
    flags.add_output(parser, "sts")
    add = parser.section("names", flags.PLACE)
    add("--suffix", default="", help="end of the run folder's name")
    add("--log_file", default="training.log", help="name of the log in the run folder")
    flags.add_run_time(parser, seed=111, seed_appended=False)  # the released code's
    return parser


def parse_args(argv=None):
    """Parse the command line; flags that contradict each other end with a message."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.seed < 0:
        if args.resume or args.evaluate or int(os.environ.get("WORLD_SIZE", 1)) > 1:
            parser.error("--random_seed below 0 draws a new one in each process: give the run's")
        args.seed = random.SystemRandom().randrange(10_000)
    sizes = "max_seq_len max_word_v_size d_word d_hid n_layers_enc val_interval max_vals".split()
    flags.check(parser, args, positive=sizes)
    check_target(parser, args, TARGET)
    if TARGET.of(args).own and args.bucket_num != BUCKET_NUM:
        parser.error("--bucket_num cuts [0, 5]: give --bin_width for the bins of your own target")
    resample.check_resample(parser, args)
    check_regularizer(parser, args)
    loss_flags.check_losses(parser, args)
    if not (0 <= args.dropout < 1 and args.huber_beta > 0 and args.max_grad_norm > 0):
        parser.error("--dropout must be in [0, 1), --huber_beta and --max_grad_norm above 0")
    if not 0 <= args.n_layers_highway <= 100 >= args.n_layers_enc:  # more would take hours to build
        parser.error("--n_layers_highway must be from 0 to 100, --n_layers_enc from 1 to 100")
    if Path(args.log_file).name != args.log_file:
        parser.error(f"--log_file is a name in the run's folder, got {args.log_file}")
    if args.pooling and not args.encoder:
        parser.error("--pooling goes with --encoder; the LSTM's encodings take the maximum")
    return args


def run_name(args):
    """Return the run folder's name: its released part, and our flags behind it."""
    name = args.store_name + flags.methods_in_name(args)
    name += f"_huber_beta_{args.huber_beta}" if args.loss == "huber" else f"_{args.loss}"
    name += f"_seed_{args.seed}_valint_{args.val_interval}_patience_{args.patience}"
    name += f"_{args.optimizer}_{args.lr}_{args.batch_size}"
    name += f"_{args.suffix}" if args.suffix else ""
    return [name, *make_parser().changed(args)]


if __name__ == "__main__":
    parse_args()  # --help and a mistake need not wait for the imports below, which take seconds

import numpy as np
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
import text
import utils
from batches import Sharing, Steps, gather
from bilstm import LSTMEncoder, SimilarityRegressor, TextEncoder
from buckets import Buckets
from datasets import LDS_RULE, Loader, edges_of, label_counts, label_to_bucket
from fds import FDS
from metrics import HIGHER_IS_BETTER, MAIN_METRICS, shot_metrics, shot_of, shots_of_buckets
from pair_file import from_unit, to_unit
from schedule import out_of_patience, spans_to_validation
from synthetic_pairs import BlendLoader, with_synthetic_pairs

# ---- 5 builders ----------------------------------------------------------------------------


class Data(NamedTuple):
    """A run's data."""

    corpus: text.Corpus  # all pairs as ids, and the words
    loaders: dict  # `Loader` of each split, for an evaluation of val and test, as far as they exist
    rule: measured.ShotRule  # bins and shots
    counts: np.ndarray | None = None  # training pairs by bin, with the synthetic ones, long [B]
    density: tuple = ()  # label density before and after LDS, [B] each
    weights: np.ndarray | None = None  # weight of a pair by its bin, float32 [B]


def build_data(run, checkpoint=None, evaluated=None):
    """Return the run's `Data`, words by a checkpoint's `vocab.txt`; `evaluated` is its content."""
    args = run.args
    corpus = text.read_corpus(args, checkpoint, text.FILES if evaluated is None else ())
    run.note_data(corpus.pairs, text.inputs_of(args, corpus))
    rule, edges = measured.rule_of(args, corpus.pairs, TARGET.of(args), (checkpoint, evaluated))
    parts = text.split_rows(corpus)
    options = Sharing.of(args, run.accelerator), args.group_by_length, corpus.padding
    if evaluated is not None:
        splits = evaluation.splits_in(corpus.pairs["split"])
        own = {split: (*parts[split], np.ones(len(parts[split][1]))) for split in splits}
        return Data(corpus, {split: Loader(*own[split], *options) for split in splits}, rule)
    run.training = {"counts": [] if rule.counts is None else rule.counts.tolist()}
    make_loader = dict.fromkeys(parts, Loader)
    if args.resample != "none":
        shots, vectors = shot_of(parts["train"][1], rule), text.vectors_of(args, corpus)
        run.note_inputs({"word vectors": vectors})
        *parts["train"], pairs = with_synthetic_pairs(*parts["train"], shots, vectors, args)
        make_loader["train"] = functools.partial(BlendLoader, pairs=pairs)
    trained = parts["train"][1]
    counts = label_counts(trained, edges)
    lds_rule = {} if rule.target.own else LDS_RULE
    density = criterion.density_of(args, counts, lds_rule)
    middles = (edges[1:] + edges[:-1]) / 2
    scaled = [rule.target.scaled(values) for values in (trained, middles)]
    weights = criterion.weights_of(args, *scaled, counts, lds_rule)
    check_counts(rule.target, counts, args, weights, trained)
    weighted = criterion.weights_at(args, scaled[0], label_to_bucket(trained, edges), weights)
    own = {split: np.ones(len(y)) for split, (_, y) in parts.items()} | {"train": weighted}
    loaders = {split: make_loader[split](*parts[split], own[split], *options) for split in parts}
    values = [to_unit(x, rule.target) for x in (trained, middles)]
    loaders["train"].prior = criterion.prior_of(args, *values, density)
    return Data(corpus, loaders, rule, counts, density, weights)


def build_model(args, corpus, fresh=False):
    """Return the network, with FDS if asked for; only a fresh one reads pretrained weights."""
    if args.encoder:
        network = text.load_encoder(args.encoder, fresh)
        encoder = TextEncoder(network, args.dropout, args.pooling or "mean")
    else:
        sizes = len(corpus.words), args.d_word, args.d_hid, args.n_layers_enc
        options = args.n_layers_highway, args.dropout, bool(args.train_words)
        encoder = LSTMEncoder(*sizes, *options)
        if fresh:
            encoder.words.weight.data.copy_(torch.from_numpy(text.word_vectors(args, corpus)))
    module = None
    if args.fds:
        bucket = Buckets(edges_of(args, TARGET.of(args))[:-1])
        options = {**flags.fds_options(args), "label_to_bucket": bucket, "clip": FDS_CLIP}
        options |= TARGET.of(args).fds_options(args, BUCKET_NUM, BUCKET_START)
        module = FDS(4 * encoder.sentence_dim, **options, fill_empty=True)
    return heads.extend(SimilarityRegressor(encoder, module), args)


def build_optimizer(args, model):
    """Return the optimizer of all that is trained, in RRT only of the last layer."""
    groups = heads.parameter_groups(args, model)
    kind = torch.optim.Adam if args.optimizer == "adam" else torch.optim.SGD
    return kind(groups, lr=args.lr, weight_decay=WEIGHT_DECAY)


def build_loss(args):
    """Return the loss function (inputs, targets, weights) -> scalar, None if it is another."""
    return criterion.weighted_loss(args, FOCAL_BETA, args.huber_beta)


# ---- 6 train_one_epoch ---------------------------------------------------------------------


def train_one_epoch(run, net, model, optimizer, loader, span):
    """Train on an epoch's batches, or on those of them up to the next validation.

    Args:
        run: `run_folder.Run`.
        net: what is called in training: `model`, wrapped where several processes share the work.
        model, optimizer, loader: the network itself, and what goes with it.
        span: range of the steps to take, all of one epoch; they are counted over the run.

    Returns:
        The row: epoch (epochs so far, with fraction), step, lr, train_loss (mean over steps, of
        similarities / 5), and the seconds of the pass and, within them, of waiting for batches.

    Raises:
        FloatingPointError: naming epoch, step and value, if the loss is not finite or explodes.
    """
    args, accelerator = run.args, run.accelerator
    part = loader.prior, span.start / (args.max_vals * args.val_interval)
    loss_of = criterion.Criterion(run, model, build_loss(args), *part)
    target = TARGET.of(args)
    epoch, first = divmod(span.start, len(loader))
    stage = min(epoch, args.start_smooth)  # all that the network needs of the epoch
    net.train()
    batches = loader.train(epoch, slice(first, first + len(span)))
    steps = Steps(run, loader, batches, f"Epoch {epoch}", len(span), span.start)
    for batch in steps:
        # What a step draws depends only on its number, so a resumed run draws the same.
        utils.seed_everything(args.seed, steps.step, accelerator.process_index)
        with accelerator.autocast():
            preds, features = net(batch.ids, batch.packing, batch.labels, stage, batch.blend)
            targets = to_unit(batch.labels, target)
            loss = loss_of(preds.float(), targets, batch)
            loss = loss + model.regularizer(features, targets, preds, batch.weights, batch.share)
        optimizer.zero_grad()
        # DDP averages over processes; the share makes that the mean over the whole batch.
        accelerator.backward(loss * batch.share)
        accelerator.clip_grad_norm_(net.parameters(), args.max_grad_norm)
        optimizer.step()
        if model.FDS is not None and args.fds_stats == "online" and batch.share:
            model.FDS.accumulate(features, batch.labels, epoch)
        steps.add(loss, batch.share)
    row = {"epoch": span.stop / len(loader), "step": span.stop, "lr": args.lr}
    return row | {"train_loss": steps.mean_loss(), "seconds": steps.seconds}


# ---- 7 update_fds_statistics ---------------------------------------------------------------


@torch.no_grad()
def update_fds_statistics(run, model, loader, epoch):
    """Gather the features' statistics by bin and hand them to FDS (section 3.2 of the paper).

    As in the released code the pass runs in train mode, with dropout. `epoch` counts from 0.

    Returns:
        Dictionary of the seconds it took.
    """
    start = time.perf_counter()
    if run.args.fds_stats == "extra_pass":
        model.train()
        stage, title = min(epoch, run.args.start_smooth), f"Epoch {epoch}, FDS statistics"
        for batch in Steps(run, loader, loader.train(epoch), title):
            with run.accelerator.autocast():
                _, features = model(batch.ids, batch.packing, batch.labels, stage, batch.blend)
            if batch.share:
                model.FDS.accumulate(features, batch.labels, epoch)
    model.FDS.update_last_epoch_stats(epoch)
    model.FDS.update_running_stats(epoch=epoch)
    return {"statistics": time.perf_counter() - start}


# ---- 8 evaluate ----------------------------------------------------------------------------


@torch.no_grad()
def evaluate(run, model, data, split):
    """Return a split's `shot_metrics` and its answers, [N, 1] or of experts [N, 2], in order."""
    utils.broadcast_buffers(model)
    model.eval()
    answers, loader = [], data.loaders[split]
    for batch in loader.evaluate():
        with run.accelerator.autocast():
            answers.extend(model(batch.ids, batch.packing)[0].float().tolist())
    answers, target = np.float64(gather(run.accelerator, answers)), data.rule.target
    answers = criterion.in_unit(answers, lambda values: from_unit(values, target))
    return shot_metrics(answers[:, 0], loader.labels, rule=data.rule), answers


# ---- 9 train -------------------------------------------------------------------------------


def train(run, net, model, optimizer, data, progress):
    """Train and validate in turn until --max_vals or --patience ends it; updates `progress`."""
    args, loader = run.args, data.loaders["train"]
    history = progress["history"]
    started = time.perf_counter() - progress["wall_seconds"]
    while len(history) < args.max_vals and not out_of_patience(history, args.patience):
        loss, seconds = 0.0, Counter()
        for span in spans_to_validation(progress["step"], len(loader), args.val_interval):
            row = train_one_epoch(run, net, model, optimizer, loader, span)
            loss += row["train_loss"] * len(span)
            seconds.update(row["seconds"])
            epoch = span.start // len(loader)
            if span.stop % len(loader) or run.within.began(span.stop):
                continue  # within an epoch, or one that ended before an interruption
            if args.fds and epoch >= args.start_update:
                seconds.update(update_fds_statistics(run, model, loader, epoch))
            model.regularizer.end_epoch()
        row |= {"train_loss": loss / (row["step"] - progress["step"]), "seconds": seconds}
        clock = time.perf_counter()
        row["val"], _ = evaluate(run, model, data, "val")
        seconds["evaluate"] = time.perf_counter() - clock
        history.append(row["val"]["overall"]["mse"])
        is_best = history[-1] < progress["best_loss"]
        if is_best:
            progress |= {"best_loss": history[-1], "best_step": row["step"]}
        progress |= {"step": row["step"], "wall_seconds": time.perf_counter() - started}
        results.write_epoch(run, model, row, MAIN_METRICS, loader.labels)
        checkpoints.save(run, model, optimizer, progress, is_best)


# ---- 10 finish -----------------------------------------------------------------------------


def finish(run, model, data, progress):
    """Evaluate the best weights and write results, predictions and figures."""
    run.accelerator.wait_for_everyone()
    args, folder, rule = run.args, run.folder, data.rule
    best = folder / checkpoints.BEST
    utils.load_state(model, utils.weights_of(utils.load_checkpoint(best), best), best)
    metrics, answers = evaluation.on_splits(evaluate, run, model, data)
    if run.is_main:
        results.write_predictions(folder, text.table_of(data.corpus.pairs, answers))
        edges = edges_of(args, rule.target)
        per_bin = shots_of_buckets(edges, rule), data.counts, data.density, data.weights
        results.write_label_density(folder, edges[:-1], *per_bin)
        if args.fds:
            results.write_fds_statistics(folder, model.FDS, edges[model.FDS.bucket_start : -1])
        facts = {"benchmark": BENCHMARK, "target": rule.target.record, "main_metrics": MAIN_METRICS}
        facts |= {name: progress[name] for name in ("best_step", "wall_seconds")}
        facts["best_epoch"] = progress["best_step"] / len(data.loaders["train"])
        results.write_results(run, metrics, higher_is_better=HIGHER_IS_BETTER, **facts)
        report.draw_run(folder)
        table = results.metrics_table(metrics["test"])
        logging.info("Test set, best after step %s:\n%s", progress["best_step"], table)
    run_folder.close(run)
    return metrics["test"]


def run_evaluation(run):
    """Evaluate a checkpoint on what exists of validation and test set."""
    path, checkpoint = evaluation.load(run, checkpoints.BEST)
    state = utils.weights_of(checkpoint, path)
    data = build_data(run, path, checkpoint)
    text.check_rows(state, data.corpus.words, path)
    model = build_model(run.args, data.corpus)
    utils.load_state(model, state, path)
    model.to(run.accelerator.device)
    metrics, answers = evaluation.on_splits(evaluate, run, model, data)
    return evaluation.finish(run, path, metrics, text.table_of(data.corpus.pairs, answers))


# ---- 11 main -------------------------------------------------------------------------------


def main(argv=None):
    """Run what the command line asks for; returns the metrics of the test set."""
    args = parse_args(argv)
    run = run_folder.start(args, make_parser(), run_name(args))
    if args.evaluate:
        return run_evaluation(run)
    checkpoint = run_folder.find_checkpoint(run, checkpoints.LAST)
    pretrained = released.find(args.pretrained) if args.pretrained else None
    data = build_data(run, checkpoint or pretrained)
    per_epoch = len(data.loaders["train"])
    checkpoints.check_epochs(checkpoint, per_epoch)
    model = build_model(args, data.corpus, fresh=checkpoint is None and pretrained is None)
    if pretrained:
        state = utils.weights_of(released.load(pretrained), pretrained)
        text.check_rows(state, data.corpus.words, pretrained)
        utils.load_state(model, state, pretrained, skip=("sts-b_pred_layer.", "FDS.", heads.NOISE))
    targets = to_unit(data.loaders["train"].labels, data.rule.target)
    sizes = 4 * model.pair_encoder.sentence_dim, targets
    model.regularizer = regularizers.make(run, *sizes, BUCKET_NUM)
    # All that was given has been read: only now is an earlier run replaced.
    run_folder.open_run_folder(run, args.log_file)
    optimizer = build_optimizer(args, model)
    net, optimizer = utils.prepare(run, model, optimizer, dynamic=None)
    progress = {"step": 0, "per_epoch": per_epoch, "history": [], "wall_seconds": 0.0}
    progress |= {"best_loss": float("inf"), "best_step": None}
    if checkpoint:
        progress |= checkpoints.restore(run, checkpoint, model, optimizer)
    text.write_vocabulary(run, data.corpus.words)
    # A line's epoch is the number of epochs so far, with their fraction.
    results.start_epochs(run, progress["step"], (progress["step"] + 0.5) / per_epoch)
    with checkpoints.saving(run, model, optimizer, progress):
        train(run, net, model, optimizer, data, progress)
        return finish(run, model, data, progress)


if __name__ == "__main__":
    program.run(main)
