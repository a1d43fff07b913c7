"""No step of a benchmark waits for a GPU, but for those that are listed here with a reason."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import accelerate
import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device

import tiny_depth_net
import tiny_run
from conftest import load
from played_gpu import DEVICE, PlayedGPU

N = 7  # samples, in batches of 4: a whole one and a shorter one
FDS = "--reweight sqrt_inv --lds --fds"
ONLINE = f"{FDS} --fds_stats online"
LOSSES = ("--loss gar", "--loss bmc", "--loss gai", "--loss bni --lds")
REGULARIZERS = ("--regularizer conr", "--regularizer dist")
UNIQUE, SRL = "--regularizer ordinal_entropy", "--regularizer srl"
SHARED = (FDS, "--experts 2 --lds --fds --fds_stats online", *REGULARIZERS, UNIQUE, SRL)
OWN_MAPS = f"--target depth {ONLINE}"
FLAGS = {  # the losses are the same files in all folders
    "agedb-dir": [*SHARED, *LOSSES, "pretrain"],
    "nyud2-dir": [FDS, ONLINE, "--loss gai", "--loss bni --lds", "--regularizer conr", OWN_MAPS],
    "sts-b-dir": [*SHARED, f"--resample smoter {FDS}", f"--encoder words {FDS}"],
    "shhs-dir": [f"--chunk 4 {FDS}", *SHARED[1:]],
    "uci-dir": [*SHARED, "pretrain"],
}
CASES = [(folder, arguments) for folder, own in FLAGS.items() for arguments in own]

# Where a step waits, by the folder's function and the operation; "train.py" is backward.
# Only the GPU knows which pixels have a depth, and of sparse maps the others would cost most.
PIXELS = {"datasets.py pixels_of: index", "train.py train_one_epoch: index_put"}
# Only the GPU knows which buckets have a centroid, and the shape of what follows is their number.
CENTROIDS = {
    "regularizers.py srl: _local_scalar_dense", "contrast.py accumulate: bincount",
    "contrast.py centroids: bincount", "contrast.py forward: index",
    "train.py train_one_epoch: index_put",
}  # fmt: skip
# Only the GPU knows how many different labels a batch has.
LABELS = {f"contrast.py ordinal_entropy_loss: {name}" for name in ("unique_dim", "bincount")}
KNOWN = {("nyud2-dir", own): PIXELS for own in ("--loss gai", "--loss bni --lds", OWN_MAPS)}
for name in ("agedb-dir", "sts-b-dir", "shhs-dir", "uci-dir"):
    KNOWN |= {(name, UNIQUE): LABELS, (name, SRL): CENTROIDS}


# ---- the watch itself --------------------------------------------------------------------

WAITING = {
    "item": lambda x: x[0, 0].item(),
    "truth": lambda x: bool(x.sum() > 0),
    "list": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "to NumPy": lambda x: x.numpy(force=True),
    "from the CPU": lambda x: torch.ones(2, 3).to(x.device),
    "in the background": lambda x: torch.ones(2, 3).to(x.device, non_blocking=True),
    "copied": lambda x: x.copy_(torch.ones(2, 3)),
    "numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "array": lambda x: torch.as_tensor(np.ones(3), device=x.device),
    "new": lambda x: x.new_tensor([1.0]),
    "index on the CPU": lambda x: x[torch.tensor([1, 0])],
    "list as index": lambda x: x[[1, 0]],
    "mask": lambda x: x[x > 0],
    "into mask": lambda x: x.index_put_((x > 0,), torch.zeros_like(x).flatten()),
    "selected": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().flatten().bincount(minlength=9),
    "repeated": lambda x: x.repeat_interleave(x[:, 0].long(), 0),
    "axes": lambda x: torch.linalg.eigh(x @ x.T),
    "inverse": lambda x: torch.linalg.inv(x @ x.T),
    "singular values": lambda x: torch.linalg.svd(x),
    "histogram": lambda x: x.histc(5),
    "drawn": lambda x: torch.normal(x, x),
}
FREE = {
    "made there": lambda x: torch.full((2, 3), 1.0, device=x.device) + 2.0,
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "filled": lambda x: x.masked_fill(x > 0, 1.0),
    "index": lambda x: x[x[:, 0].long() * 0],
    "counted": lambda x: x.index_add(0, x[:, 0].long() * 0, x),
    "sorted": lambda x: x.sort(dim=0)[0].cumsum(0),
    "drawn": lambda x: torch.normal(x, 1.0),
    "repeated": lambda x: x.repeat_interleave(x[:, 0].long(), 0, output_size=5),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_watch_sees_what_waits(name):
    """Its list of operations is CUDA's."""
    assert waits_of(WAITING[name])


@pytest.mark.parametrize("name", FREE)
def test_the_watch_lets_pass_what_does_not_wait(name):
    assert not waits_of(FREE[name])


def waits_of(work):
    """Return where work on a GPU that is played waits."""
    with PlayedGPU("tests") as gpu:
        x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).to(DEVICE)
        with gpu.watch():
            work(x)
    return gpu.waits


# ---- the folders, with data that stand in for files ----------------------------------------


def start(folder, arguments, device):
    """Return a folder's train.py, or pretrain.py, the run and its `Sharing`."""
    program = load(folder, "pretrain" if "pretrain" in arguments else "train")
    flags = f"--track none --batch_size 4 --print_freq 100 --device {device} {arguments}"
    args = program.parse_args(flags.replace("pretrain", "").split())
    accelerator = load(folder, "utils").make_accelerator(device)
    options = {"parser": program.make_parser(), "within": None}
    run = SimpleNamespace(args=args, accelerator=accelerator, **options)
    return load(folder, "train"), run, load(folder, "batches").Sharing.of(args, accelerator)


def weigh(train, args, labels, middles, buckets):
    """Return the weights of samples and the prior that the flags ask for."""
    counts = np.bincount(buckets, minlength=len(middles))
    density = train.criterion.density_of(args, counts, {})
    weights = train.criterion.weights_of(args, labels, middles, counts, {})
    weights = train.criterion.weights_at(args, labels, buckets, weights)
    return weights.astype(np.float32), train.criterion.prior_of(args, labels, middles, density)


class Faces:
    """Stands in for `image_cache.Images`."""

    def read(self, rows):
        return torch.randint(0, 256, (len(rows), 40, 40, 3), dtype=torch.uint8)


def faces(arguments, device):
    train, run, sharing = start("agedb-dir", f"--img_size 40 {arguments}", device)
    labels, target = np.arange(N, dtype=np.float32) + 20, train.TARGET
    ones = np.ones(len(target.buckets))
    loader = train.Loader(Faces(), np.arange(N), labels, ones, sharing, target)
    given = run.args, labels, target.middles, target.buckets(labels)
    loader.weights, loader.prior = weigh(train, *given)
    model = train.heads.extend(tiny_run.make_builder(train.FDS)(run.args), run.args)
    model.regularizer = train.regularizers.make(run, 8, labels, train.GRID)
    return train, run, model, loader, loader


class Pairs:
    """Stands in for `depth_cache.Pairs`, or for `maps.Maps` with a target of one's own."""

    bits, downscale = 8, 4

    def __init__(self, target):
        self.target = target

    def read_together(self, rows):
        pixels = torch.randint(0, 256, (len(rows), 60, 80, 4), dtype=torch.uint8)
        if not self.target.own:
            return pixels
        labels = torch.rand(len(rows), 60, 80, 1) * 9
        labels[:, :9] = torch.nan
        return torch.cat([pixels[..., :3], labels.view(torch.uint8)], dim=3)

    def parted(self, both):
        return both[..., :3], both[..., 3:].contiguous().view(torch.float32)[..., 0]


def depths(arguments, device):
    train, run, sharing = start("nyud2-dir", arguments, device)
    target, maps = train.DEPTH.of(run.args), load("nyud2-dir", "depth_maps")
    middles = maps.middles_of(target)
    counts = np.arange(len(middles)) + 1
    weights = train.criterion.weights_of(run.args, None, middles, counts, {})
    kind = ("maps", "MapLoader") if target.own else ("datasets", "Loader")
    make = getattr(load("nyud2-dir", kind[0]), kind[1])
    loader = make(Pairs(target), np.arange(N), sharing, weights)
    density = train.criterion.density_of(run.args, counts, {})
    loader.prior = train.criterion.prior_of(run.args, None, middles, density)
    model = tiny_depth_net.make_builder(train.FDS, maps.buckets_of(target))(run.args)
    if run.args.loss != "mse":
        model.register_parameter("noise_sigma", torch.nn.Parameter(torch.tensor(1.0)))
    return train, run, model, loader, loader


class Words(torch.nn.Module):
    """Stands in for an encoder of transformers."""

    config = SimpleNamespace(hidden_size=6)

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(30, 6)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.words(input_ids))


def sentences(arguments, device):
    flags = "" if "encoder" in arguments else "--n_layers_enc 1 --d_hid 4 --d_word 6"
    train, run, sharing = start("sts-b-dir", f"{flags} {arguments}", device)
    data, pairs = load("sts-b-dir", "datasets"), load("sts-b-dir", "synthetic_pairs")
    rng, labels = np.random.default_rng(0), np.linspace(0, 5, N, dtype=np.float32)
    ids = [[rng.integers(2, 30, n).tolist() for n in rng.integers(1, 7, N)] for _ in range(2)]
    middles = (data.EDGES[1:] + data.EDGES[:-1]) / 2
    weights, prior = weigh(train, run.args, labels, middles, data.label_to_bucket(labels))
    if run.args.resample == "none":
        loader = data.Loader(ids, labels, weights, sharing)
    else:
        shift, ways = rng.normal(size=(N, 2, 6)), np.full((N, 1), 0.5)
        drawn = np.where(np.arange(N) % 3, -1, 1), *map(np.float32, (ways, shift))
        synthetic = pairs.SyntheticPairs(*drawn)
        loader = pairs.BlendLoader(ids, labels, weights, sharing, pairs=synthetic)
    loader.prior = prior
    with mock.patch.object(train.text, "load_encoder", return_value=Words()):
        model = train.build_model(run.args, SimpleNamespace(words=range(30)))
    width = 4 * model.pair_encoder.sentence_dim
    model.regularizer = train.regularizers.make(run, width, labels / 5, 50)
    return train, run, model, loader, loader


class Nights:
    """Stands in for `datasets.Nights`."""

    def __init__(self, signals):
        self.signals, self.frames = signals, np.arange(N) % 3 + 1

    def read(self, rows):
        shapes = {
            name: (len(rows), signal.channels, self.frames[rows].max() * signal.frame)
            for name, signal in self.signals.items()
        }
        return {name: torch.randn(shape).half() for name, shape in shapes.items()}


def nights(arguments, device):
    flags = f"--width 8 --d_signal 4 --d_hid 4 {arguments}"
    train, run, sharing = start("shhs-dir", flags, device)
    labels, target = np.linspace(20, 90, N, dtype=np.float32), train.TARGET
    data = Nights(load("shhs-dir", "night_signals").SIGNALS)
    ones = np.ones(len(target.buckets))
    loader = train.Loader(data, np.arange(N), labels, ones, sharing, target)
    given = run.args, labels, target.middles, target.buckets(labels)
    loader.weights, loader.prior = weigh(train, *given)
    model = train.build_model(run.args)
    model.regularizer = train.regularizers.make(run, run.args.d_hid, labels)
    return train, run, model, loader, loader


def tables(arguments, device):
    train, run, sharing = start("uci-dir", arguments, device)
    bins = load("uci-dir", "bins").Bins(0, 10, 20)
    columns = [{"kind": "number", "flag": 0}] * 4
    run.args.preparation = {"bins": bins, "columns": columns}
    labels = np.linspace(0, 9, N)
    buckets = load("uci-dir", "bins").label_to_bucket(labels, bins)
    weights, prior = weigh(train, run.args, labels, bins.middles, buckets)
    inputs = np.random.default_rng(0).normal(size=(N, 4))
    loader = train.Loader(inputs, labels, labels, weights, sharing)
    loader.prior = prior
    model = train.build_model(run.args)
    model.regularizer = train.regularizers.make(run, run.args.hidden[-1], labels)
    return train, run, model, loader, loader


SETTINGS = dict(zip(FLAGS, (faces, depths, sentences, nights, tables)))

# ---- steps ---------------------------------------------------------------------------------


def epochs(folder, arguments, device, watch):
    """Train for two epochs and watch the second one: what is made once is made in the first."""
    train, run, model, loader, subset = SETTINGS[folder](arguments, device)
    net, optimizer = train.utils.prepare(run, model, train.build_optimizer(run.args, model))
    for group in optimizer.param_groups:
        group["fused"] = device == "cuda"  # of a GPU that is played PyTorch knows nothing
    for epoch in range(2):
        with contextlib.ExitStack() as stack:
            for name in ("train", "evaluate", "statistics") if epoch else ():
                if hasattr(loader, name):
                    batches = watched(getattr(loader, name), watch)
                    stack.enter_context(mock.patch.object(loader, name, batches))
            if "pretrain" in arguments:
                pretrain = load(folder, "pretrain")
                pretrain.pretrain_one_epoch(run, net, optimizer, loader, epoch)
                continue
            span = range(2 * epoch, 2 * epoch + 2) if folder == "sts-b-dir" else epoch
            train.train_one_epoch(run, net, model, optimizer, loader, span)
            if run.args.fds:
                train.update_fds_statistics(run, model, subset, epoch)
            if hasattr(model, "regularizer"):
                model.regularizer.end_epoch()


def watched(batches, watch):
    """Return a loader's method with which all is watched from the first batch to the last."""

    def steps(*given, **options):
        own = batches(*given, **options)
        first = next(own)  # what an epoch needs is made with it
        with watch():
            yield first
            yield from own

    return steps


@contextlib.contextmanager
def playing(folder):
    """Play a GPU on which a folder's tensors lie; yields the `PlayedGPU`."""
    gpu = PlayedGPU(folder)

    def read_ahead(self, parts, read):
        for part in parts:
            with gpu.watch(False):  # a thread sends it from pinned memory, in the background
                data = send_to_device(read(part.rows), DEVICE)
            yield part, data

    with (
        mock.patch.object(load(folder, "batches").Batches, "read_ahead", read_ahead),
        mock.patch.object(accelerate.Accelerator, "device", DEVICE),
        mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
        gpu,
    ):
        yield gpu


@pytest.mark.parametrize(("folder", "arguments"), CASES)
def test_no_step_waits(folder, arguments):
    """Nothing but what is known to, and that does."""
    with playing(folder) as gpu:
        epochs(folder, arguments, "cpu", gpu.watch)
    assert gpu.waits == KNOWN.get((folder, arguments), set())


@pytest.mark.parametrize("folder", SETTINGS)
def test_compiled_fds_is_one_graph(folder):
    """The way from a label to its bucket breaks none, or each step would send the edges again."""
    module = SETTINGS[folder](FDS, "cpu")[2].FDS
    pixels = (6, 5) if folder == "nyud2-dir" else ()
    features, labels = torch.randn(60, module.feature_dim, *pixels), 5 * torch.rand(60, 1, *pixels)
    module.update_running_stats(features, labels, 0)
    module.update_last_epoch_stats(1)
    torch._dynamo.reset()
    compiled = torch.compile(module.smooth, backend="eager", fullgraph=True, dynamic=False)
    smoothed = compiled(features, labels, 1)
    torch._dynamo.reset()
    assert not torch.equal(smoothed, features)
    torch.testing.assert_close(smoothed, module.smooth(features, labels, 1))


@contextlib.contextmanager
def forbidden():
    """Let an operation that waits for the GPU fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("folder", "arguments"), CASES)
def test_no_step_waits_for_a_real_gpu(folder, arguments):
    if (folder, arguments) not in KNOWN:
        epochs(folder, arguments, "cuda", forbidden)
        return
    with pytest.raises(RuntimeError, match="synchroniz"):
        epochs(folder, arguments, "cuda", forbidden)
