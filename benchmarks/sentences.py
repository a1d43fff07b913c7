"""A training step on sentence pairs, and what FDS adds to an epoch of them.

    OMP_NUM_THREADS=1 python benchmarks/sentences.py [--json FILE]

The size is that of the small run that the official code was timed at: 5,249 pairs in batches of
128, vectors of 50, an LSTM of two layers and 128 units each way; sentences as long as STS-B's. The
plain side is torch's LSTM on packed sequences, one call for each sentence of a pair; what our
recurrence alone saves is shown at three sizes, next to torch's LSTM in the same one call.
"""

import argparse
import functools
import time

import numpy as np
import torch
from accelerate import Accelerator

from common import load, medians, show

N, BATCH, VOCABULARY = 5249, 128, 17_011
D_WORD, D_HID = 50, 128
SIZES = ((32, 64), (D_WORD, D_HID), (300, 256))  # a word vector, units each way
OFFICIAL_STEP, OFFICIAL_EPOCH, OFFICIAL_FDS = 0.46, 19.0, 8.0  # seconds, one thread, see README

batches = load("sts-b-dir", "batches")
bilstm = load("sts-b-dir", "bilstm")
datasets = load("sts-b-dir", "datasets")
fds = load("sts-b-dir", "fds")
train = load("sts-b-dir", "train")


def make_loader():
    """Random words in sentences of 3 to 40 of them, 11.4 on average as in STS-B."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.round(rng.lognormal(2.27, 0.56, (2, N))), 3, 40).astype(int)
    ids = [[rng.integers(2, VOCABULARY, n).tolist() for n in part] for part in lengths]
    labels = rng.choice(np.arange(0, 5.01, 0.2), N)
    print(f"{N} pairs, {lengths.mean():.1f} words a sentence")
    sharing = batches.Sharing(BATCH, seed=0, device=torch.device("cpu"))
    return datasets.Loader(ids, labels, np.ones(N), sharing)


def make_model(with_fds, d_word=D_WORD, d_hid=D_HID):
    """The network of the run, with an FDS that has seen an epoch."""
    torch.manual_seed(0)
    module = None
    if with_fds:
        bucket = datasets.Buckets(datasets.EDGES[:-1])
        options = {"label_to_bucket": bucket, "clip": train.FDS_CLIP}
        module = fds.FDS(8 * d_hid, 50, **options, fill_empty=True)
    model = bilstm.SimilarityRegressor(bilstm.LSTMEncoder(VOCABULARY, d_word, d_hid), module)
    model.regularizer = train.regularizers.NoRegularizer()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.Adam(parameters, lr=5e-4, weight_decay=1e-5)


def plain_features(model, batch):
    """Features of pairs from two calls of torch's own LSTM, as a reader would write it."""
    encoder, vectors = model.pair_encoder, []
    ids, lengths = batch.ids, batch.packing.numbers
    half = len(lengths) // 2
    for part, own in ((ids[:half], lengths[:half]), (ids[half:], lengths[half:])):
        x = encoder.dropout(encoder.words(part[:, : max(own)]))
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, own, batch_first=True, enforce_sorted=False
        )
        x, _ = encoder._phrase_layer._module(packed)
        x, _ = torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True)
        ends = torch.arange(x.shape[1]) >= own.unsqueeze(1)
        x = encoder.dropout(x).masked_fill(ends.unsqueeze(2), float("-inf"))
        vectors.append(x.max(dim=1)[0])
    u, v = vectors
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def take_step(model, optimizer, batch, features_of):
    """Forward, backward, clipping and step, as in train.py."""
    loss = (model.linear(features_of(batch)) - batch.labels / 5).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()


def plain_smooth(module, features, labels):
    """Calibrate a batch bucket by bucket."""
    out, buckets = features.clone(), module.label_to_bucket(labels.flatten())
    for b in buckets.unique().tolist():
        m1, v1 = module.running_mean_last_epoch[b], module.running_var_last_epoch[b]
        m2, v2 = module.smoothed_mean_last_epoch[b], module.smoothed_var_last_epoch[b]
        factor = torch.sqrt(torch.clamp(v2 / v1, *module.clip))
        out[buckets == b] = (features[buckets == b] - m1) * factor + m2
    return out


def compare_steps(loader):
    """Return rows of (what, plain seconds, our seconds, goal)."""
    model, optimizer = make_model(False)
    first = list(loader.train(0, slice(8)))

    def plain():
        for batch in first:
            take_step(model, optimizer, batch, lambda b: plain_features(model, b))

    def ours():
        for batch in first:
            take_step(model, optimizer, batch, lambda b: model.pair_features(b.ids, b.packing))

    seconds = [s / len(first) for s in medians([plain, ours], 5)]
    print(
        f"a step takes {seconds[1]:.3f} s here; the official code took {OFFICIAL_STEP} s on a "
        f"machine of the same kind ({OFFICIAL_STEP / seconds[1]:.1f} times as long; torch's LSTM "
        f"as the yardstick: {OFFICIAL_STEP / seconds[0]:.1f})"
    )
    model, _ = make_model(True)
    model.FDS.update_running_stats(torch.randn(N, 8 * D_HID), loader.labels, 0)
    model.FDS.update_last_epoch_stats(1)
    features, labels = torch.randn(BATCH, 8 * D_HID), torch.from_numpy(loader.labels[:BATCH])
    loop = functools.partial(plain_smooth, model.FDS, features, labels)
    smooth = medians([loop, lambda: model.FDS.smooth(features, labels, 2)], 9)
    return [
        (f"a step on {BATCH} pairs", *seconds, ""),
        (f"FDS: calibrate {BATCH} x {8 * D_HID} features", *smooth, ""),
    ]


def run_torch(lstm, packed):
    """Run torch's own LSTM in place of `recurrence.run_packed`."""
    return lstm(packed)[0]


def take_steps(model, optimizer, some, run_packed):
    """Take a step on each of some batches, with one of the two recurrences."""
    bilstm.run_packed = run_packed
    for batch in some:
        take_step(model, optimizer, batch, lambda b: model.pair_features(b.ids, b.packing))


def compare_recurrence(loader):
    """Return rows of a step with torch's LSTM and with our recurrence, each in one call."""
    our_run, some, rows = bilstm.run_packed, list(loader.train(0, slice(4))), []
    for d_word, d_hid in SIZES:
        steps = functools.partial(take_steps, *make_model(False, d_word, d_hid), some)
        # Ours is timed last, so it is what the network runs afterwards.
        sides = [functools.partial(steps, run) for run in (run_torch, our_run)]
        seconds = [each / len(some) for each in medians(sides)]
        rows.append((f"a step, our recurrence alone, {d_hid} units", *seconds, ""))
    return rows


def share_of_fds(loader):
    """Print how much of an epoch FDS takes: its arithmetic, its extra pass, and gathered online.

    Smoothing, statistics and passes are timed inside the functions of train.py.
    """
    steps = len(loader)
    for stats in ("extra_pass", "online"):
        args = train.parse_args(["--fds_stats", stats])
        run = train.run_folder.Run(args, train.make_parser(), Accelerator(cpu=True), None, {})
        model, optimizer = make_model(True)
        functions = "smooth accumulate update_last_epoch_stats update_running_stats"
        spent = dict.fromkeys(functions.split(), 0.0)
        for name in spent:
            setattr(model.FDS, name, timed(getattr(model.FDS, name), spent, name))
        for epoch in (0, 1):
            spent |= dict.fromkeys(spent, 0.0)  # the second epoch counts
            span = range(epoch * steps, (epoch + 1) * steps)
            start = time.perf_counter()
            train.train_one_epoch(run, model, model, optimizer, loader, span)
            middle = time.perf_counter()
            train.update_fds_statistics(run, model, loader, epoch)
            end = time.perf_counter()
        arithmetic = sum(spent.values())
        bare = middle - start - spent["smooth"] - (stats == "online") * spent["accumulate"]
        shares = [100 * seconds / bare for seconds in (arithmetic, end - start - bare)]
        print(
            f"--fds_stats {stats}: {bare:.1f} s an epoch without FDS; FDS's arithmetic is "
            f"{shares[0]:.2f} % of it, all of FDS {shares[1]:.1f} %"
        )
    print(
        f"the official code: {OFFICIAL_EPOCH:.0f} s an epoch without FDS, all of FDS "
        f"{100 * OFFICIAL_FDS / OFFICIAL_EPOCH:.0f} %"
    )


def timed(function, spent, name):
    """Return `function` that adds its seconds to spent[name]."""

    def call(*args, **options):
        start = time.perf_counter()
        result = function(*args, **options)
        spent[name] += time.perf_counter() - start
        return result

    return call


def main():
    """Print the ratios and FDS's shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the rows there, a line of JSON each")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    loader = make_loader()
    show(compare_steps(loader) + compare_recurrence(loader), args.json)
    share_of_fds(loader)


if __name__ == "__main__":
    main()
