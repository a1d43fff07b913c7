"""FDS against closed forms and independent computations."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from conftest import load
from plain import PlainFDS
from played_gpu import DEVICE, PlayedGPU

fds = load("agedb-dir", "fds")

BUFFERS = {
    "epoch": [1], "running_mean": [10, 3], "running_var": [10, 3],
    "running_mean_last_epoch": [10, 3], "running_var_last_epoch": [10, 3],
    "smoothed_mean_last_epoch": [10, 3], "smoothed_var_last_epoch": [10, 3],
    "num_samples_tracked": [10],
}  # fmt: skip


def make(**options):
    """An FDS of 3 features over the buckets 2 ... 11."""
    return fds.FDS(3, **{"bucket_num": 12, "bucket_start": 2, "ks": 3, "sigma": 1, **options})


def set_statistics(module, m1, v1, m2, v2):
    """Load statistics of the last epoch, as a checkpoint would."""
    names = ("running_mean", "running_var", "smoothed_mean", "smoothed_var")
    state = module.state_dict()
    for name, value in zip(names, (m1, v1, m2, v2)):
        state[f"{name}_last_epoch"] = torch.as_tensor(value, dtype=torch.float32)
    module.load_state_dict(state)


def random_statistics(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(10, 3)), rng.uniform(0.5, 2, (10, 3)), rng.normal(size=(10, 3)),
            rng.uniform(0.5, 2, (10, 3))]  # fmt: skip


def by_hand(x, bucket, statistics, clip):
    """The formula of DESIGN's section on FDS, one number at a time."""
    m1, v1, m2, v2 = statistics
    out = np.array(x, dtype=np.float64)
    for i, b in enumerate(bucket):
        if v1[b].sum() < 1e-10:
            continue
        for d in range(out.shape[1]):
            if v1[b, d] > 0 and v2[b, d] >= 0:
                factor = np.sqrt(np.clip(v2[b, d] / v1[b, d], *clip))
                out[i, d] = (out[i, d] - m1[b, d]) * factor + m2[b, d]
    return out


def test_buffers_are_those_of_released_checkpoints():
    shapes = {name: list(value.shape) for name, value in make().state_dict().items()}
    assert shapes == BUFFERS
    fresh = make(start_update=2)
    assert fresh.epoch.item() == 2
    assert fresh.running_mean.eq(0).all()
    assert fresh.running_var.eq(1).all()


def test_dead_features_alone_pass_unchanged():
    m1, v1, m2, v2 = random_statistics()
    v1[0, 1] = 0  # one dead feature: the others of its bucket are still calibrated
    v2[1, 2] = -0.1  # a smoothed variance below zero
    v1[2] = 3e-11  # a bucket whose variances sum to less than 1e-10 passes wholly
    v1[3] = 1000 * v1[3]  # beyond the clip
    module = make(clip=(0.2, 5))
    set_statistics(module, m1, v1, m2, v2)
    labels = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.5, 0.0, 99.0])
    buckets = [0, 1, 2, 3, 4, 0, 9]  # labels outside go to the end buckets
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = by_hand(x.numpy(), buckets, (m1, v1, m2, v2), (0.2, 5))
    np.testing.assert_allclose(module.smooth(x, labels, 1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module.smooth(x, labels, 1)[0, 1], x[0, 1])
    np.testing.assert_array_equal(module.smooth(x, labels, 1)[2], x[2])
    # The same samples as pixels of one dense map [1, 3, 7, 1].
    dense = x.t().reshape(1, 3, 7, 1)
    got = module.smooth(dense, labels.reshape(1, 1, 7, 1), 1)
    torch.testing.assert_close(got, module.smooth(x, labels, 1).t().reshape(1, 3, 7, 1))


def test_smooth_is_out_of_place_and_differentiable():
    statistics = random_statistics()
    module = make()
    set_statistics(module, *statistics)
    labels = torch.tensor([[3.0], [7.0], [3.0]])
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    torch.autograd.gradcheck(lambda t: module.smooth(t, labels, 1), (x,))
    assert torch.equal(x.detach(), before)
    module.smooth(x, labels, 1).sum().backward()
    factor = np.sqrt(np.clip(statistics[3] / statistics[1], 0.1, 10))[[1, 5, 1]]
    np.testing.assert_allclose(x.grad, factor, rtol=1e-6)


def test_before_start_smooth_the_features_themselves_come_back():
    module = make(start_smooth=3)
    set_statistics(module, *random_statistics())
    x = torch.randn(2, 3)
    assert module.smooth(x, torch.tensor([3.0, 4.0]), 2) is x
    assert not torch.equal(module.smooth(x, torch.tensor([3.0, 4.0]), 3), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_of_features(dtype):
    module = make()
    set_statistics(module, *random_statistics())
    x, labels = torch.randn(5, 3), torch.tensor([2.0, 3, 4, 5, 6])
    got = module.smooth(x.to(dtype), labels, 1)
    assert got.dtype == dtype
    tolerance = 3e-2 if dtype != torch.float64 else 1e-6
    torch.testing.assert_close(
        got.float(), module.smooth(x, labels, 1), rtol=tolerance, atol=tolerance
    )
    module.update_running_stats(x.to(dtype), labels, 0)
    assert module.running_mean.dtype == torch.float32


def test_autocast_leaves_statistics_in_float32():
    x, labels = torch.randn(40, 3) + 100, torch.arange(40) % 10 + 2.0
    plain, cast = make(), make()
    for module, enabled in ((plain, False), (cast, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for epoch in range(2):
                module.update_last_epoch_stats(epoch)
                module.update_running_stats(x, labels, epoch)
            module.smoothed = module.smooth(x, labels, 2)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, cast.state_dict()[name]), name
    assert torch.equal(plain.smoothed, cast.smoothed)


def test_compiled_smooth_over_epochs():
    module = make()
    set_statistics(module, *random_statistics())
    compiled = torch.compile(module.smooth, backend="aot_eager")
    x, labels = torch.randn(6, 3), torch.arange(6) + 2.0
    for epoch in range(4):
        torch.testing.assert_close(compiled(x, labels, epoch), module.smooth(x, labels, epoch))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), offset=st.sampled_from([0.0, 1e4]), pieces=st.integers(1, 7))
def test_streamed_statistics_equal_numpy(seed, offset, pieces):
    """A common offset of 1e4 would take every digit from a mean of squares."""
    rng = np.random.default_rng(seed)
    N = int(rng.integers(pieces, 60))
    x = (rng.normal(size=(N, 3)) + offset).astype(np.float32)
    labels = rng.integers(0, 14, N).astype(np.float32)
    module = make()
    cuts = np.sort(rng.integers(0, N + 1, pieces - 1))
    for rows in np.split(np.arange(N), cuts):
        module.accumulate(torch.from_numpy(x[rows]), torch.from_numpy(labels[rows]), 0)
    module.update_running_stats(epoch=0)
    bucket = np.clip(labels.astype(int), 2, 11) - 2
    for b in range(10):
        own = x[bucket == b].astype(np.float64)
        assert module.num_samples_tracked[b] == len(own)
        if len(own):
            var = own.var(axis=0, ddof=1 if len(own) > 1 else 0)
            np.testing.assert_allclose(
                module.running_mean[b], own.mean(axis=0), rtol=1e-6, atol=1e-6
            )
            # float32 holds an offset of 1e4 to 1e-3, so a deviation near 1 to 1e-3.
            np.testing.assert_allclose(
                module.running_var[b], var, rtol=1e-5 if not offset else 5e-3, atol=1e-6
            )
        else:
            assert module.running_mean[b].eq(0).all()


def test_whole_arrays_are_taken_in_pieces(monkeypatch):
    x, labels = torch.randn(100, 3), torch.arange(100) % 9 + 2.0
    at_once, pieces = make(), make()
    at_once.update_running_stats(x, labels, 0)
    monkeypatch.setattr(fds, "CHUNK_ROWS", 7)
    monkeypatch.setattr(load("agedb-dir", "moments"), "PIECE_NUMEL", 6)
    pieces.update_running_stats(x, labels, 0)
    torch.testing.assert_close(at_once.running_var, pieces.running_var)


def test_many_rows_far_from_zero_keep_their_variance():
    """150,000 rows added up in float32 would leave a variance a hundred times too large."""
    x = torch.randn(150_000, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    module = make()
    module.update_running_stats(x, torch.full((len(x),), 5.0), 0)
    expected = x.double().var(dim=0).float()
    torch.testing.assert_close(module.running_var[3], expected, rtol=5e-3, atol=0)


def test_memory_of_the_accumulator_does_not_grow():
    module = make()
    for _ in range(5):
        module.accumulate(torch.randn(50, 3), torch.rand(50) * 12, 0)
        assert [m.numel() for m in module.moments.parts] == [10, 30, 30]


def test_momentum_none_weights_all_samples_alike():
    module = make(momentum=None)
    x = [torch.full((n, 3), float(value)) for n, value in ((2, 1.0), (6, 5.0))]
    for epoch, features in enumerate(x):
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(features, torch.full((len(features),), 4.0), epoch)
    assert module.running_mean[2].tolist() == pytest.approx([4.0] * 3)  # (2·1 + 6·5) / 8


def test_fill_empty_from_low_to_high():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 3)), rng.choice([4, 5, 9], 40)
    module = make(fill_empty=True)
    module.update_running_stats(torch.tensor(x, dtype=torch.float32), torch.tensor(labels), 0)
    for buffer, empty in (("running_mean", 0.0), ("running_var", 1.0)):
        expected = np.full((10, 3), empty)
        for b in (2, 3, 7):
            own = x[labels == b + 2]
            expected[b] = own.mean(0) if buffer == "running_mean" else own.var(0, ddof=1)
        for b in range(10):
            if b in (2, 3, 7):
                continue
            if b == 0:
                expected[b] = expected[1]
            elif b == 9:
                expected[b] = expected[8]
            else:
                expected[b] = (expected[b - 1] + expected[b + 1]) / 2
        np.testing.assert_allclose(getattr(module, buffer), expected, rtol=1e-5, atol=1e-6)


def test_smoothing_over_buckets_pads_as_torch_reflect():
    module = make(ks=7, kernel="laplace", sigma=2)
    x = torch.randn(10, 3, dtype=torch.float64)
    window = np.exp(-np.abs(np.arange(-3, 4)) / 2)
    window = torch.tensor(window / window.sum())
    padded = torch.nn.functional.pad(x.t().unsqueeze(1), (3, 3), mode="reflect")
    expected = torch.nn.functional.conv1d(padded, window.reshape(1, 1, -1)).squeeze(1).t()
    torch.testing.assert_close(module.smooth_over_buckets(x), expected)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_reloaded_module_goes_on_alike(variant):
    generator = torch.Generator().manual_seed(1)

    def epoch_of(module, epoch, x, labels):
        out = module.smooth(x, labels, epoch)
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(x, labels, epoch)
        return out

    unbroken, labels = make(variant=variant), torch.arange(60) % 10 + 2.0
    data = [torch.randn(60, 3, generator=generator) for _ in range(5)]
    expected = [epoch_of(unbroken, e, x, labels) for e, x in enumerate(data)]
    for stop in range(1, 5):
        module = make(variant=variant)
        for e in range(stop):
            epoch_of(module, e, data[e], labels)
        resumed = make(variant=variant)
        resumed.load_state_dict(module.state_dict())
        for e in range(stop, 5):
            assert torch.equal(epoch_of(resumed, e, data[e], labels), expected[e])


def test_variants_differ_only_in_the_alias():
    """'official': last-epoch statistics follow the running ones from the first update on."""
    official = make(variant="official", calibrated_statistics=False)
    paper = make(variant="paper")
    labels = torch.arange(60) % 10 + 2.0
    for epoch in range(3):
        x = torch.randn(60, 3, generator=torch.Generator().manual_seed(epoch))
        for module in (official, paper):
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(x, labels, epoch)
        assert torch.equal(official.running_mean, paper.running_mean)
        follows = torch.equal(official.running_mean_last_epoch, official.running_mean)
        assert follows == (epoch > 0)
        assert not torch.equal(paper.running_mean_last_epoch, paper.running_mean)
        assert torch.equal(official.smoothed_mean_last_epoch, paper.smoothed_mean_last_epoch)


def test_update_out_of_turn_is_ignored():
    module = make()
    module.update_running_stats(torch.randn(20, 3), torch.rand(20) * 12, 0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.update_last_epoch_stats(5)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    late = make(start_update=3)
    late.update_running_stats(torch.randn(20, 3), torch.rand(20) * 12, 2)
    assert late.num_samples_tracked.sum() == 0


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="ks must be odd"):
        make(ks=4)
    with pytest.raises(ValueError, match="too few"):
        fds.FDS(3, bucket_num=4, bucket_start=2, ks=5)
    fds.FDS(3, bucket_num=5, bucket_start=2, ks=5)  # (5 + 1) / 2 buckets are just enough
    with pytest.raises(ValueError, match="variant"):
        make(variant="papr")
    module = make()
    with pytest.raises(ValueError, match="accumulate"):
        module.update_running_stats(epoch=0)
    with pytest.raises(ValueError, match="one label for each"):
        module.accumulate(torch.randn(4, 3), torch.rand(5))
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        module.accumulate(torch.randn(4, 2), torch.rand(4))
    bad = torch.randn(6, 3)
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        module.update_running_stats(bad, torch.rand(6) * 12, 0)
    fresh = make().state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name


def test_uniform_buckets():
    to_bucket = fds.uniform_buckets(-1.0, 1.0, 4)
    labels = torch.tensor([[-9.0, -1.0, -0.51], [-0.5, 0.99, 5.0]])
    assert to_bucket(labels).tolist() == [[0, 0, 0], [1, 3, 3]]
    with pytest.raises(ValueError, match="low < high"):
        fds.uniform_buckets(1, 1, 4)
    module = fds.FDS(3, bucket_num=4, ks=3, label_to_bucket=to_bucket)
    module.update_running_stats(torch.ones(3, 3), torch.tensor([-0.9, -0.8, 0.9]), 0)
    assert module.num_samples_tracked.tolist() == [2, 0, 0, 1]


def test_gradients_of_dense_features():
    """Each pixel's gradient is its bucket's factor, and 1 where a feature passes unchanged."""
    m1, v1, m2, v2 = random_statistics(3)
    v1[4, 2] = 0
    module = make()
    set_statistics(module, m1, v1, m2, v2)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([6.0, 2.0, 3.0, 6.9, 11.0, 6.0, 2.0, 5.0]).reshape(2, 1, 2, 2)
    torch.autograd.gradcheck(lambda t: module.smooth(t, labels, 1), (x,))
    module.smooth(x, labels, 1).sum().backward()
    v1[4, 2] = v2[4, 2] = 1  # factor 1
    factor = np.sqrt(np.clip(v2 / v1, 0.1, 10))[labels.squeeze(1).long() - 2]
    np.testing.assert_allclose(x.grad, np.moveaxis(factor, -1, 1), rtol=1e-6)


def test_calibration_gives_the_smoothed_mean_and_variance():
    """Features with exactly a bucket's own statistics leave with the smoothed ones."""
    rng = np.random.default_rng(5)
    module, labels = make(variant="paper"), torch.arange(10).repeat_interleave(50) + 2
    x = torch.tensor(rng.normal(size=(500, 3)) * rng.uniform(1, 2, (10, 1, 3)).repeat(50, 0)[:, 0])
    module.double().update_running_stats(x, labels, 0)
    module.update_last_epoch_stats(1)
    smoothed = module.smooth(x, labels, 1).reshape(10, 50, 3)
    torch.testing.assert_close(smoothed.mean(1), module.smoothed_mean_last_epoch)
    torch.testing.assert_close(smoothed.var(1), module.smoothed_var_last_epoch)
    assert not torch.allclose(x.reshape(10, 50, 3).var(1), smoothed.var(1), rtol=0.05)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), offset=st.sampled_from([0.0, 1e4, 1e7]))
def test_streamed_statistics_keep_their_digits(seed, offset):
    """In float64 a mean of squares would leave no digit of the variance at an offset of 1e7."""
    rng = np.random.default_rng(seed)
    N = int(rng.integers(2, 300))
    x, labels = rng.normal(size=(N, 3)) + offset, rng.integers(2, 12, N)
    module = make().double()
    for rows in np.split(np.arange(N), np.sort(rng.integers(0, N + 1, 4))):
        module.accumulate(torch.from_numpy(x[rows]), torch.from_numpy(labels[rows]), 0)
    module.update_running_stats(epoch=0)
    for b in np.unique(labels):
        own = x[labels == b]
        var = own.var(axis=0, ddof=min(1, len(own) - 1))
        np.testing.assert_allclose(
            module.running_mean[b - 2], own.mean(axis=0), rtol=1e-13, atol=1e-14
        )
        # float64 holds an offset of 1e7 to 2e-9.
        np.testing.assert_allclose(module.running_var[b - 2], var, rtol=1e-8, atol=1e-12)


def test_shapes_and_types_of_labels_are_alike():
    x, labels = torch.randn(30, 3), torch.arange(30) % 12
    expected = make()
    expected.update_running_stats(x, labels.float(), 0)
    for other in (labels, labels.float().unsqueeze(1), labels + 0.99):
        module = make()
        module.accumulate(x, other, 0)
        module.update_running_stats(epoch=0)
        assert torch.equal(module.running_var, expected.running_var)
    dense = x.reshape(5, 6, 1, 3).permute(0, 3, 1, 2)
    for shape in ((5, 1, 6, 1), (5, 6, 1)):
        module = make()
        module.update_running_stats(dense, labels.reshape(shape), 0)
        torch.testing.assert_close(module.running_var, expected.running_var)


def test_each_epoch_is_gathered_anew():
    streamed, whole = make(), make()
    for epoch in range(3):
        x, labels = torch.randn(40, 3) + epoch, torch.randint(2, 12, (40,))
        for rows in torch.arange(40).split(7):
            streamed.accumulate(x[rows], labels[rows], epoch)
        for module, arrays in ((streamed, ()), (whole, (x, labels))):
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(*arrays, epoch=epoch)
        for name, value in streamed.state_dict().items():
            torch.testing.assert_close(value, whole.state_dict()[name], msg=name)


def test_momentum_from_the_first_update_on():
    """The epoch `start_update` is taken over whole, later ones move the mean by 1 − momentum."""
    module = make(start_update=1, momentum=0.75, calibrated_statistics=False)
    expected = 0.0
    for epoch, value in enumerate([9.0, 4.0, 8.0, 2.0]):
        module.update_last_epoch_stats(epoch)
        if epoch == 3:  # the last epoch's statistics are those before its own update
            assert module.running_mean_last_epoch[2, 0].item() == pytest.approx(expected)
        x = torch.tensor([[value - 1], [value + 1]]).expand(2, 3)
        module.update_running_stats(x, torch.full((2,), 4.0), epoch)
        if epoch:  # epoch 0 lies before start_update
            expected = value if epoch == 1 else 0.75 * expected + 0.25 * value
        assert module.running_mean[2, 0].item() == pytest.approx(expected)
        # Each epoch's variance is 2; a bucket without samples stays as it was made.
        assert module.running_var[2, 0].item() == pytest.approx(2.0 if epoch else 1.0)
        assert module.running_var[3, 0].item() == 1
        assert module.num_samples_tracked.sum() == 2 * epoch
        assert module.epoch.item() == max(epoch, 1)


@settings(max_examples=20, deadline=None)
@given(seen=st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=3, max_size=3))
def test_filling_over_epochs(seen):
    """Whichever buckets an epoch holds: running values move first, then the empty are filled."""
    rng = np.random.default_rng(0)
    module = make(fill_empty=True, calibrated_statistics=False).double()
    running = np.zeros((10, 3))
    for epoch, present in enumerate(seen):
        bucket = np.array(sorted(present)).repeat(3)
        x = rng.normal(size=(len(bucket), 3))
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(torch.from_numpy(x), torch.from_numpy(bucket + 2), epoch)
        for b in sorted(present):
            current = x[bucket == b].mean(axis=0)
            running[b] = current if epoch == 0 else 0.1 * current + 0.9 * running[b]
        for b in sorted(set(range(10)) - present):
            neighbours = [n for n in (b - 1, b + 1) if 0 <= n < 10]
            running[b] = np.mean([running[n] for n in neighbours], axis=0)
        np.testing.assert_allclose(module.running_mean, running, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("streamed", [False, True])
def test_features_that_are_not_finite_change_nothing(value, streamed):
    module, twin = make(), make()
    x, labels = torch.randn(40, 3), torch.arange(40) % 10 + 2
    bad = x.clone()
    bad[7, 1] = value
    for epoch in range(3):
        for each in (module, twin):
            each.update_last_epoch_stats(epoch)
        if streamed:
            module.accumulate(bad[:20], labels[:20], epoch)
            module.accumulate(bad[20:], labels[20:], epoch)
        with pytest.raises(ValueError, match=f"features of epoch {epoch} are not finite"):
            module.update_running_stats(*(() if streamed else (bad, labels)), epoch=epoch)
        for each in (module, twin):  # what was refused leaves no trace in the next update
            each.accumulate(x + epoch, labels, epoch)
            each.update_running_stats(epoch=epoch)
        for name, buffer in module.state_dict().items():
            assert torch.equal(buffer, twin.state_dict()[name]), name


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_labels_that_are_not_finite_are_refused(wrong):
    """Not taken for the first or last bucket, as their conversion to a whole number would."""
    module, x = make(), torch.randn(3, 3)
    labels = torch.tensor([3.0, wrong, 4.0])
    before = {name: buffer.clone() for name, buffer in module.state_dict().items()}
    with pytest.raises(ValueError, match="NaN or infinity"):
        module.smooth(x, labels, 5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        module.update_running_stats(x, labels, 0)
    for name, buffer in module.state_dict().items():
        assert torch.equal(buffer, before[name]), name


def test_compiled_smooth_sees_every_update():
    module = make(kernel="triang")
    compiled = torch.compile(module.smooth, backend="eager")
    for epoch in range(4):
        x, labels = torch.randn(20, 3) + epoch, torch.arange(20) % 10 + 2.0
        got = compiled(x, labels, epoch)
        torch.testing.assert_close(got, module.smooth(x, labels, epoch))
        # The statistics of epoch 0 are taken over after epoch 1: until then scale 1, shift 0.
        assert torch.equal(got, x) == (epoch < 2)
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(x, labels, epoch)


class Sizes(TorchDispatchMode):
    """Notes the bytes of each storage that an operation makes."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        storages = [
            tensor.untyped_storage()
            for tensor in tree_flatten((args, kwargs, made))[0]
            if isinstance(tensor, torch.Tensor)
        ]
        if storages and storages[-1]._cdata not in {storage._cdata for storage in storages[:-1]}:
            self.bytes.append(storages[-1].nbytes())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_bound_the_memory_on_a_gpu_too(dtype):
    """On the device `meta`, which takes the ways of a GPU and computes nothing."""
    module = fds.FDS(128, 100, 7, variant="paper").to("meta")
    x = torch.empty(32, 128, 57, 76, device="meta", dtype=dtype, requires_grad=True)
    x.data = x.to(memory_format=torch.channels_last)
    labels = torch.empty(32, 1, 57, 76, device="meta")
    module._stale = False
    with Sizes() as forward:
        smoothed = module.smooth(x, labels, 1)
    with Sizes() as backward:
        smoothed.sum().backward()
    with Sizes() as statistics:
        module.accumulate(x, labels, 1)
    for sizes, whole in ((forward, 1), (backward, 2), (statistics, 0)):
        large = [size for size in sizes.bytes if size > 2**25]
        assert len(large) == whole, large


@pytest.mark.parametrize("shape", [(2, 3, 4, 0), (2, 3, 0, 4), (0, 3, 4, 4)])
def test_maps_without_a_pixel(shape):
    module = make()
    x = torch.randn(shape, requires_grad=True)
    smoothed = module.smooth(x, torch.zeros(shape[0], 1, *shape[2:]), 1)
    smoothed.sum().backward()
    assert smoothed.shape == x.grad.shape == shape


def test_a_gpu_takes_no_sample_as_the_cpu_does():
    """And batches of several as the CPU takes them."""
    batches = [(torch.randn(n, 3), 13 * torch.rand(n)) for n in (0, 40, 0, 1)]
    with PlayedGPU("agedb-dir"):
        cpu, gpu = make(), make().to(DEVICE)
        for x, labels in batches:
            cpu.accumulate(x, labels, 0)
            gpu.accumulate(x.to(DEVICE), labels.to(DEVICE), 0)
        for ours, theirs in zip(gpu.moments.parts, cpu.moments.parts):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    cpu, cuda = make(), make().cuda()
    for epoch in range(3):
        x, labels = torch.randn(500, 3), torch.rand(500) * 13
        for module, device in ((cpu, "cpu"), (cuda, "cuda")):
            module.out = module.smooth(x.to(device), labels.to(device), epoch)
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(x.to(device), labels.to(device), epoch)
        torch.testing.assert_close(cuda.out.cpu(), cpu.out, rtol=1e-5, atol=1e-6)


def test_labels_beyond_every_bucket_go_to_the_end_buckets():
    far = torch.tensor([-1e30, 1e30])
    assert fds.uniform_buckets(0, 1, 10)(far).tolist() == [0, 9]
    module = fds.FDS(3, 12, 2)
    assert module.label_to_bucket(far).tolist() == [0, 9]
    for kind in (torch.uint8, torch.int32, torch.int64, torch.float16):
        assert module.label_to_bucket(torch.tensor([3, 90], dtype=kind)).tolist() == [1, 9]


@pytest.mark.parametrize("shape", [(2, 1, 4, 3), (2, 4, 3), (2, 12), (2, 3, 4, 1), (24,)])
def test_dense_labels_in_another_layout_are_refused(shape):
    """They hold as many numbers, but would go with other pixels."""
    module = fds.FDS(8, 12, 2)
    with pytest.raises(ValueError, match="one label for each"):
        module.smooth(torch.randn(2, 8, 3, 4), torch.full(shape, 3.0), 1)


def test_arrays_of_numpy_are_taken():
    module, twin = fds.FDS(3, 12, 2), fds.FDS(3, 12, 2)
    x, labels = torch.randn(20, 3), torch.arange(20) % 10 + 2.0
    for epoch in range(3):
        got = module.smooth(x.numpy(), labels.numpy(), epoch)
        torch.testing.assert_close(torch.as_tensor(got), twin.smooth(x, labels, epoch))
        for each, features in ((module, x.numpy()), (twin, x)):
            each.update_last_epoch_stats(epoch)
            each.update_running_stats(features, labels, epoch)


PARTS = [(live, calibrated) for live in (False, True) for calibrated in (False, True)]


@pytest.mark.parametrize(("live", "calibrated"), PARTS)
@pytest.mark.parametrize("order", ["whole", "streamed before", "streamed after"])
@pytest.mark.parametrize("start", [(0, 1), (1, 2), (0, 3)])
def test_raw_features_give_the_rule_of_each_variant(live, calibrated, order, start):
    """Against a plain loop in float64, with the statistics taken in each order that is offered."""
    window = np.exp(-np.abs(np.arange(-2, 3)) / 2)
    plain = PlainFDS(10, 3, window, live=live, calibrated=calibrated, start=start)
    module = make(
        kernel="laplace", ks=5, sigma=2, start_update=start[0], start_smooth=start[1],
        live_statistics=live, calibrated_statistics=calibrated,
    ).double()  # fmt: skip
    rng = np.random.default_rng(7)
    for epoch in range(6):
        labels = rng.integers(2, 12, 80)
        x = rng.normal(size=(80, 3)) * (1 + labels[:, None] / 4) + labels[:, None]
        raw, ages = torch.from_numpy(x), torch.from_numpy(labels)
        expected = plain.smooth(x, labels - 2, epoch)
        np.testing.assert_allclose(module.smooth(raw, ages, epoch), expected, rtol=1e-10)
        if order == "streamed before":
            for rows in torch.arange(80).split(33):
                module.accumulate(raw[rows], ages[rows], epoch)
        module.update_last_epoch_stats(epoch)
        if order == "streamed after":
            for rows in torch.arange(80).split(33):
                module.accumulate(raw[rows], ages[rows], epoch)
        arrays = (raw, ages) if order == "whole" else ()
        module.update_running_stats(*arrays, epoch=epoch)
        plain.end_epoch(x, labels - 2, epoch)
        for name, value in (
            ("running_mean", plain.mean), ("running_var", plain.var),
            ("running_mean_last_epoch", plain.m1), ("running_var_last_epoch", plain.v1),
            ("smoothed_mean_last_epoch", plain.m2), ("smoothed_var_last_epoch", plain.v2),
        ):  # fmt: skip
            np.testing.assert_allclose(
                getattr(module, name), value, rtol=1e-10, atol=1e-12, err_msg=f"{epoch} {name}"
            )
    assert not np.allclose(plain.m1, plain.m2)


def test_the_variants_name_their_parts():
    for variant, parts in {
        "official": (True, True),
        "paper": (False, False),
        "live": (True, False),
        "calibrated": (False, True),
    }.items():
        module = make(variant=variant)
        assert (module.live_statistics, module.calibrated_statistics) == parts
    assert {*fds.VARIANTS} == {"official", "paper", "live", "calibrated"}
    mixed = make(variant="official", live_statistics=False)
    assert (mixed.live_statistics, mixed.calibrated_statistics) == (False, True)
    with pytest.raises(ValueError, match="need the epoch"):
        mixed.accumulate(torch.randn(4, 3), torch.full((4,), 3.0))
    make(variant="paper").accumulate(torch.randn(4, 3), torch.full((4,), 3.0))


def test_loaded_statistics_are_followed_only_after_the_next_take_over():
    """A checkpoint of a late epoch: until then its last epoch's statistics stay as they are."""
    first = make(calibrated_statistics=False)
    labels = torch.arange(60) % 10 + 2.0
    for epoch in range(4):
        first.update_last_epoch_stats(epoch)
        first.update_running_stats(torch.randn(60, 3) + epoch, labels, epoch)
    again = make(calibrated_statistics=False)
    again.load_state_dict(first.state_dict())
    held = again.running_mean_last_epoch.clone()
    for epoch in range(5):  # a second training, counted from 0 again
        again.update_last_epoch_stats(epoch)
        again.update_running_stats(torch.randn(60, 3), labels, epoch)
        follows = torch.equal(again.running_mean_last_epoch, again.running_mean)
        if epoch < 4:
            assert torch.equal(again.running_mean_last_epoch, held), epoch
            assert follows == (epoch < 3)  # at 3 the running ones move, and are not followed
        else:
            assert follows


def test_few_filled_buckets_are_said():
    """The official constructor calls of STS-B and NYUD2 take the floor of a label as its bucket."""
    module = fds.FDS(3, bucket_num=50)
    with pytest.warns(UserWarning, match="5 of 50 buckets.*label_to_bucket"):
        module.update_running_stats(torch.randn(40, 3), torch.rand(40) * 4.99, 0)
    module.update_last_epoch_stats(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        module.update_running_stats(torch.randn(40, 3), torch.rand(40) * 4.99, 1)
        make().update_running_stats(torch.randn(9, 3), torch.tensor([2.0, 4, 8] * 3), 0)


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_a_network_of_few_digits_keeps_the_statistics(change):
    """`model.half()` and back: the statistics stay in float32, and equal those without it."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), make())
    plain, labels = make(), torch.arange(60) % 10 + 2.0
    change(network)
    assert network[0].weight.dtype != torch.float32
    for epoch in range(3):
        x = torch.randn(60, 3).to(network[0].weight.dtype)
        for module in (network[1], plain):
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(x, labels, epoch)
        if epoch == 1:
            network.float()
    for name, value in plain.state_dict().items():
        assert torch.equal(network[1].state_dict()[name], value), name
        assert value.dtype == torch.float32


def test_the_module_can_be_pickled_and_reset():
    module = fds.FDS(3, 4, ks=3, label_to_bucket=fds.UniformBuckets(-1.0, 1.0, 4))
    fresh = {name: value.clone() for name, value in module.state_dict().items()}
    x, labels = torch.randn(20, 3), torch.rand(20) * 2 - 1
    for epoch in range(3):
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(x, labels, epoch)
    twin = pickle.loads(pickle.dumps(module))
    assert torch.equal(twin.smooth(x, labels, 3), module.smooth(x, labels, 3))
    assert twin.kernel_window.sum().item() == pytest.approx(1)
    assert "kernel_window" not in twin.state_dict()
    module.reset()
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    assert torch.equal(module.smooth(x, labels, 3), x)


def test_many_buckets_of_which_few_hold_samples():
    """100,000 buckets: moments and smoothing of a few present ones, each as numpy has them."""
    module = fds.FDS(4, bucket_num=100_000, ks=5, variant="paper")
    rng, labels = np.random.default_rng(0), np.array([0, 1, 7, 40_000, 99_999] * 6)
    x = rng.normal(size=(30, 4)) + 5
    for part in range(3):  # a bucket's samples come in several batches
        rows = np.arange(30) % 3 == part
        module.accumulate(torch.from_numpy(x[rows]), torch.from_numpy(labels[rows]), 0)
    with pytest.warns(UserWarning, match="5 of 100000 buckets"):
        module.update_running_stats(epoch=0)
    module.update_last_epoch_stats(1)
    mean, var = np.zeros((100_000, 4)), np.ones((100_000, 4))
    for b in set(labels.tolist()):
        mean[b], var[b] = x[labels == b].mean(axis=0), x[labels == b].var(axis=0, ddof=1)
    np.testing.assert_allclose(module.running_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(module.running_var, var, rtol=1e-6)
    window = module.kernel_window.numpy()
    smoothed = sum(w * np.pad(var, ((2, 2), (0, 0)), "reflect")[k : k + 100_000]
                   for k, w in enumerate(window))  # fmt: skip
    np.testing.assert_allclose(module.smoothed_var_last_epoch, smoothed, rtol=1e-6)


def seeded_maps(dtype, layout, seed=0):
    """Dense features [3, 8, 13, 11] and depths of them, and an FDS over 40 buckets."""
    generator = torch.Generator().manual_seed(seed)
    module = fds.FDS(8, 40, ks=3, variant="paper")
    for epoch in range(2):
        module.update_last_epoch_stats(epoch)
        x = torch.randn(400, 8, generator=generator) * (1 + epoch)
        module.update_running_stats(x, torch.arange(400) % 40, epoch)
    x = torch.randn(3, 8, 13, 11, generator=generator).to(dtype).to(memory_format=layout)
    return module, x, torch.rand(3, 1, 13, 11, generator=generator) * 40


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dense_maps_in_pieces_equal_one_expression(dtype, layout, monkeypatch):
    """To the bit, and so does the gradient; nothing of the features' size is kept for it."""
    monkeypatch.setattr(load("agedb-dir", "moments"), "PIECE_NUMEL", 200)
    module, x, depth = seeded_maps(dtype, layout)
    table = module._calibration.to(torch.promote_types(dtype, torch.float32))
    scale, shift = table[depth.long()[:, 0]].movedim(-1, 1).chunk(2, dim=1)
    expected = torch.addcmul(shift, x.to(table.dtype), scale).to(dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        got = module.smooth(x.requires_grad_(), depth, 2)
    assert torch.equal(got, expected)
    assert not torch.equal(got, x)
    assert got.is_contiguous(memory_format=layout)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    got.backward(grad)
    assert torch.equal(x.grad, (grad.to(table.dtype) * scale).to(dtype))
    assert sorted(t.numel() for t in kept) == [40 * 8, 3 * 13 * 11]


def test_samples_left_out_of_the_statistics():
    """As if they were not there: 2-D, dense, and where a bucket loses all of its samples."""
    module, x, depth = seeded_maps(torch.float32, torch.contiguous_format, seed=1)
    keep = (depth < 30) & (x[:, :1] > -1)
    for mask in (keep, keep[:, 0]):
        module.reset()
        module.accumulate(x, depth, 0, mask)
        module.update_running_stats(epoch=0)
        rows, buckets = x.movedim(1, -1)[keep[:, 0]].double(), depth[keep].long()
        assert module.num_samples_tracked.tolist() == torch.bincount(buckets, minlength=40).tolist()
        for b in buckets.unique():
            expected = rows[buckets == b].mean(0).float()
            torch.testing.assert_close(module.running_mean[b], expected, rtol=1e-5, atol=1e-6)
        assert module.running_mean[30:].eq(0).all()


@pytest.mark.parametrize("change", ["float", "double", "half", "bfloat16"])
def test_a_change_of_the_digits_keeps_fds_usable(change):
    module, labels = make(), torch.arange(60) % 10 + 2.0
    getattr(module, change)()
    for epoch in range(3):
        module.smooth(torch.randn(60, 3), labels, epoch)
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(torch.randn(60, 3), labels, epoch)
    assert module.running_mean.dtype == (torch.float64 if change == "double" else torch.float32)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_dense_statistics_are_exact(offset, monkeypatch):
    """Narrow buckets, a dead channel, an outlier that comes first: to 1e-5 of float64's."""
    monkeypatch.setattr(load("agedb-dir", "moments"), "PIECE_NUMEL", 300)
    module, x, depth = seeded_maps(torch.float32, torch.channels_last, seed=2)
    x = x * (1 + depth / 100) + offset
    x[:, 3] = 0
    x[0, 4, 0, 0] += 1e3
    module.reset()
    for maps, depths in zip(x.split(2), depth.split(2)):
        module.accumulate(maps, depths, 0)
    module.update_running_stats(epoch=0)
    rows, bucket = x.movedim(1, -1).flatten(0, 2).double(), depth.flatten().long()
    for b in bucket.unique().tolist():
        var, mean = torch.var_mean(rows[bucket == b], 0, correction=int((bucket == b).sum() > 1))
        torch.testing.assert_close(module.running_mean[b].double(), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(module.running_var[b].double(), var, rtol=1e-5, atol=1e-9)
        assert module.running_var[b, 3] == 0


def test_sums_of_a_running_epoch_move_with_the_network():
    """Amid an epoch, and without losing digits."""
    module = fds.FDS(3, bucket_num=10)
    module.accumulate(torch.rand(5, 3), torch.arange(5), 0)
    assert [part.dtype for part in module.half().moments.parts] == [torch.float64] * 3
    assert [part.device.type for part in module.to("meta").moments.parts] == ["meta"] * 3


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's MPS refuses: tensors in float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, func
        return result


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_a_device_without_float64(monkeypatch, variant):
    """The same statistics and features, in float32 alone."""

    def new():
        return fds.FDS(6, bucket_num=20, bucket_start=2, variant=variant)

    def calibrated(module):
        torch.manual_seed(0)
        for epoch in range(3):
            for _ in range(2):
                labels = torch.randint(0, 24, (64,))
                features = torch.rand(64, 6) + labels[:, None]
                smoothed = module.smooth(features, labels, epoch)
                module.accumulate(features, labels, epoch)
            module.update_last_epoch_stats(epoch)
            module.update_running_stats(epoch=epoch)
        return smoothed, module.running_mean.clone(), module.running_var.clone()

    expected = calibrated(new())
    module = new()
    monkeypatch.setattr(load("agedb-dir", "moments"), "NARROW", ("cpu",))
    with NoFloat64():
        found = calibrated(module)
    for wide, narrow in zip(expected, found):
        torch.testing.assert_close(narrow, wide.float(), rtol=1e-4, atol=1e-4)
