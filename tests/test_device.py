"""Devices: graphs that a compiled network reuses, processes on one GPU, no float64, bfloat16."""

import os
from types import SimpleNamespace
from unittest import mock

import accelerate
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import tiny_run
from conftest import load

FLAGS = "--device cpu --track none --reweight sqrt_inv --fds --fds_stats online --img_size 40"


class Noise:
    """Stands in for `image_cache.Images`: noise of 40 x 40 pixels."""

    def read(self, rows):
        return torch.randint(0, 256, (len(rows), 40, 40, 3), dtype=torch.uint8)

    def one_by_one(self, rows):
        return self.read(rows).split(1)


@pytest.fixture
def setting():
    """A tiny network with FDS of the age folder, its run, and 22 faces in batches of 8."""
    train = load("agedb-dir", "train")
    args = train.parse_args(f"{FLAGS} --batch_size 8 --print_freq 100".split())
    accelerator = load("agedb-dir", "utils").make_accelerator("cpu")
    model = tiny_run.make_builder(load("agedb-dir", "fds").FDS)(args)
    optimizer = train.build_optimizer(args, model)
    run = SimpleNamespace(args=args, accelerator=accelerator, within=None)
    sharing = load("agedb-dir", "batches").Sharing(8, 0, accelerator.device)
    datasets = load("agedb-dir", "datasets")
    labels = np.arange(22, dtype=np.float32) + 20
    loader = datasets.Loader(Noise(), np.arange(22), labels, np.ones(121), sharing)
    return run, model, optimizer, loader


def steps_of(run, model, net, optimizer, batches, epoch):
    """Take the steps of train_one_epoch on batches that have been read."""
    criterion = load("agedb-dir", "loss").weighted_l1_loss
    for batch in batches:
        preds, features = net(batch.images, batch.labels, min(epoch, run.args.start_smooth))
        loss = criterion(preds.float(), batch.labels, batch.weights)
        optimizer.zero_grad()
        run.accelerator.backward(loss * batch.share)
        optimizer.step()
        model.FDS.accumulate(features, batch.labels, epoch)


def test_a_compiled_network_reuses_its_graphs(setting):
    """Six epochs of three batches, the last one shorter: four graphs, none of varying shapes."""
    run, model, optimizer, loader = setting
    run.args.compile = True
    graphs = []

    def counting(graph, inputs):
        graphs.append([type(x) for x in inputs])
        return graph.forward

    torch._dynamo.reset()
    real = model.compile
    with mock.patch.object(model, "compile", lambda **options: real(backend=counting, **options)):
        net, optimizer = load("agedb-dir", "utils").prepare(run, model, optimizer)
    after_two = None
    for epoch in range(6):
        steps_of(run, model, net, optimizer, loader.train(epoch), epoch)
        model.FDS.update_last_epoch_stats(epoch)
        model.FDS.update_running_stats(epoch=epoch)
        after_two = len(graphs) if epoch == 1 else after_two
    assert len(graphs) == after_two == 4  # before FDS calibrates and after, of 8 faces and of 6
    assert not any(issubclass(kind, (int, torch.SymInt)) for kinds in graphs for kind in kinds)
    torch._dynamo.reset()


@pytest.mark.parametrize(("gpus", "processes", "backend"), [(2, 2, None), (1, 2, "gloo")])
def test_processes_that_share_a_gpu_meet_by_gloo(monkeypatch, gpus, processes, backend):
    """NCCL refuses two processes on one GPU, and accelerate gives each a GPU of its own."""
    given = {}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", "1")  # is put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: given.update(options))
    load("agedb-dir", "utils").make_accelerator("cuda", "fp32")
    backends = [getattr(handler, "backend", None) for handler in given["kwargs_handlers"]]
    assert backends[1:] == [backend] * (backend is not None)
    assert os.environ["LOCAL_RANK"] == ("0" if backend else "1")  # a barrier's GPU, too


def test_a_gpu_is_named_in_the_results(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    named = load("agedb-dir", "results").named
    assert named(torch.device("cuda", 1)) == "cuda:1 (GPU 1)"
    assert named(torch.device("cpu")) == "cpu"


class NoFloat64(TorchDispatchMode):
    """Stands in for Apple's GPU: no operation may make float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{function} makes float64")
        return made


def test_a_device_without_float64(monkeypatch):
    """FDS and the isotonic ranks of Dist Loss do without it, and find the same to rounding."""
    fds, distribution = load("agedb-dir", "fds"), load("agedb-dir", "distribution")
    features = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200)[:, None] % 30 + 20.0

    def work(module):
        for epoch in range(3):
            calibrated = module.smooth(features, labels, epoch)
            module.accumulate(features, labels, epoch)
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(epoch=epoch)
        return calibrated, module.running_var, distribution.soft_sort(features[:, :1], 0.1)

    expected = work(fds.FDS(6, 100))
    module = fds.FDS(6, 100)
    for function in (fds.widest, distribution.widest):
        monkeypatch.setitem(function.__globals__, "NARROW", ("mps", "cpu"))
    with NoFloat64():
        found = work(module)
        with pytest.raises(TypeError, match="makes float64"):
            features.double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 2), (3, 2, 4), (3, 1, 4), (1, 2, 4)])
def test_small_maps_of_bfloat16(kernel, stride, size):
    """In training as one product, against float64; else torch's own convolution."""
    torch.manual_seed(0)
    options = dict(stride=stride, padding=kernel // 2, bias=False)
    own = load("agedb-dir", "resnet").Conv2d(24, 16, kernel, **options)
    plain = torch.nn.Conv2d(24, 16, kernel, **options)
    own.load_state_dict(plain.state_dict())
    x = torch.randn(8, 24, size, size).bfloat16().float()
    torch.testing.assert_close(own(x), plain(x), rtol=0, atol=0)
    wide = torch.nn.Conv2d(24, 16, kernel, **options).double()
    wide.load_state_dict({k: v.bfloat16() for k, v in plain.state_dict().items()})
    sides = []
    for conv, given in ((own, x.clone()), (wide, x.double())):
        given.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=conv is own):
            y = conv(given)
        (y.double() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        sides.append((y, given.grad, conv.weight.grad))
    for ours, expected in zip(*sides):
        assert ours.shape == expected.shape
        assert (ours - expected).norm() < 0.01 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(own.eval()(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind",
    [
        {"bias": True},
        {"groups": 2},
        {"dilation": 2},
        {"padding_mode": "reflect"},
        {"kernel_size": (1, 3)},
        {"stride": (1, 2)},
        {"padding": (0, 1)},
    ],
)
def test_other_convolutions_of_bfloat16(kind):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, "bias": False} | kind
    own = load("agedb-dir", "resnet").Conv2d(4, 4, **options)
    plain = torch.nn.Conv2d(4, 4, **options)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(own(x), plain(x), rtol=0.02, atol=0.02)
