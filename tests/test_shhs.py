"""shhs-dir's network and weights: padding, chunks, buckets, metrics, what a wrong file says."""

import math

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import load

sleep_net = load("shhs-dir", "sleep_net")
datasets = load("shhs-dir", "datasets")
metrics = load("shhs-dir", "metrics")
fds = load("shhs-dir", "fds")
lds = load("shhs-dir", "lds")
Sharing = load("shhs-dir", "batches").Sharing
SIGNALS = load("shhs-dir", "night_signals").SIGNALS

FRAMES = (3, 7, 1, 5)


def make_net(module=None, **options):
    """A tiny network with input scales that are not the trivial ones."""
    torch.manual_seed(0)
    net = sleep_net.SleepNet(module, **{"width": 8, "d_signal": 8, "d_hid": 8, **options})
    scale = {n: (torch.randn(s.channels), torch.rand(s.channels) + 0.5) for n, s in SIGNALS.items()}
    net.set_input_scale(scale)
    return net


def make_nights(frames=FRAMES, seed=0):
    """Random nights of these lengths, each a dictionary of arrays [channels, columns]."""
    rng = np.random.default_rng(seed)
    return [
        {n: rng.normal(0, 1, (s.channels, k * s.frame)).astype(np.float16)
         for n, s in SIGNALS.items()}
        for k in frames
    ]  # fmt: skip


def to_batch(nights, length=None, filler=0.0):
    """Pad nights to `length` frames, or the longest, with `filler`."""
    frames = [night["eeg"].shape[1] // SIGNALS["eeg"].frame for night in nights]
    signals = {}
    for name, signal in SIGNALS.items():
        shape = (len(nights), signal.channels, (length or max(frames)) * signal.frame)
        signals[name] = torch.full(shape, filler, dtype=torch.float16)
        for row, night in zip(signals[name], nights):
            row[:, : night[name].shape[1]] = torch.from_numpy(night[name])
    return signals, torch.tensor(frames)


# ---- network --------------------------------------------------------------------------------


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_padding_and_company_do_not_change_a_prediction(rnn, mode):
    net, nights = getattr(make_net(rnn=rnn), mode)(), make_nights()
    with torch.no_grad():
        alone = torch.cat([net(*to_batch([night]))[0] for night in nights])
        for length, filler in ((None, 0.0), (9, 0.0), (12, 1e4), (12, float("nan"))):
            together, _ = net(*to_batch(nights, length, filler))
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert alone.unique().numel() == len(nights)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 1000])
def test_chunks_do_not_change_a_prediction(chunk):
    """Neither predictions nor gradients, though several chunks are computed twice in training."""
    signals, frames = to_batch(make_nights())
    results = []
    for size in (4096, chunk):
        net = make_net(chunk=size)
        preds, _ = net(signals, frames)
        preds.square().sum().backward()
        results.append((preds, [parameter.grad for parameter in net.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-4)
    for ours, whole in zip(results[1][1], results[0][1]):
        torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


def test_nothing_reaches_over_a_frames_edge():
    """A frame's vector does not depend on its neighbours, the night's does on their order."""
    net = make_net().eval()
    (night,) = make_nights((4,))
    for name, encoder in net.encoders.items():
        frame = SIGNALS[name].frame
        pieces = torch.from_numpy(night[name]).unflatten(1, (-1, frame)).transpose(0, 1)
        whole = encoder.encode_frames(pieces)
        torch.testing.assert_close(encoder.encode_frames(pieces[2:3]), whole[2:3])
    swapped = {name: np.roll(array, SIGNALS[name].frame, axis=1) for name, array in night.items()}
    before, after = (net(*to_batch([n]))[0].item() for n in (night, swapped))
    assert abs(before - after) > 1e-4  # the order of the frames matters


def test_every_signal_counts_and_every_parameter_learns():
    net = make_net()
    signals, frames = to_batch(make_nights())
    for name in SIGNALS:
        other = {**signals, name: -signals[name]}
        assert not torch.allclose(net(other, frames)[0], net(signals, frames)[0])
    net(signals, frames)[0].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_a_whole_night_fits():
    """Eight hours: the chunks bound what the CNN holds, and the prediction is finite."""
    net, (night,) = make_net(chunk=128), make_nights((960,))
    with torch.no_grad():
        assert torch.isfinite(net(*to_batch([night]))[0]).all()


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_fds_calibrates_in_training_alone(variant):
    module = fds.FDS(8, variant=variant)
    net, (signals, frames) = make_net(module), to_batch(make_nights())
    labels = torch.tensor([[10.0], [55.0], [55.0], [100.0]])
    plain, features = net(signals, frames, labels, 0)
    torch.testing.assert_close(plain, make_net()(signals, frames)[0])
    module.running_mean += 1.0
    module.update_last_epoch_stats(1)
    module.smoothed_mean_last_epoch += 2.0
    module._refresh_calibration()
    trained, raw = net(signals, frames, labels, 1)
    assert torch.equal(raw, features)  # what is tracked is FDS's to decide
    # All statistics differ by 2 alone, so each feature moves by 2 before the last layer.
    moved = sleep_net.SCALE * 2.0 * net.linear.weight.sum()
    torch.testing.assert_close(trained, plain + moved)
    assert moved.abs() > 1
    torch.testing.assert_close(net.eval()(signals, frames)[0], plain)


@pytest.mark.parametrize(
    "options", [{"width": 12}, {"d_signal": 7}, {"d_hid": 0}, {"chunk": 0}, {"rnn": "sru"}]
)
def test_sizes_that_cannot_be(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_net(**options)
    with pytest.raises(ValueError, match="8 features, FDS 9"):
        make_net(fds.FDS(9))


# ---- buckets, weights, metrics --------------------------------------------------------------


def test_buckets():
    scores = [0, 0.9, 1, 57.5, 99, 99.9, 100]
    expected = [0, 0, 1, 57, 99, 99, 99]
    assert datasets.label_to_bucket(np.array(scores)).tolist() == expected
    ours = datasets.label_to_bucket(torch.tensor(scores).reshape(-1, 1))
    assert ours.dtype == torch.long
    assert ours.flatten().tolist() == expected
    assert fds.FDS(2, label_to_bucket=datasets.label_to_bucket).label_to_bucket(
        torch.tensor(scores)
    ).tolist() == expected  # fmt: skip


def test_weights_are_those_of_the_definition():
    labels = np.repeat([50, 52, 60, 100], [90, 9, 4, 1])
    root = datasets.sample_weights(labels, "sqrt_inv")
    np.testing.assert_allclose(root * np.sqrt(np.repeat([90, 9, 4, 1], [90, 9, 4, 1])), root[-1])
    assert root.mean() == pytest.approx(1)
    assert root.dtype == np.float32
    inverse = datasets.sample_weights(labels, "inverse")
    np.testing.assert_allclose(inverse[[0, 90, 99, 103]] / inverse[103], [1 / 90, 1 / 9, 1 / 4, 1],
                               rtol=1e-6)  # fmt: skip
    assert (datasets.sample_weights(labels, "none") == 1).all()
    # By hand: the window of ks 5, sigma 2 with the reflecting edge, truncated to whole counts.
    window = lds.get_lds_kernel_window("gaussian", 5, 2)
    counts = datasets.label_counts(labels)
    assert (counts[[50, 52, 60, 99]] == [90, 9, 4, 1]).all()
    _, smoothed = lds.label_density(counts, "inverse", True, **datasets.LDS_RULE)
    assert smoothed[50] == int(90 + window[0] * 9)
    assert smoothed[52] == int(9 + window[0] * 90)
    assert smoothed[51] == int(window[1] * 99)
    assert smoothed[99] == 1
    weights = datasets.sample_weights(labels, "inverse", True, "gaussian", 5, 2)
    assert weights[103] / weights[0] == pytest.approx(smoothed[50])
    for kernel, ks in (("triang", 101), ("laplace", 9), ("gaussian", 5)):
        for rate in ("sqrt_inv", "inverse"):
            weights = datasets.sample_weights(np.arange(101.0), rate, True, kernel, ks, 2)
            assert np.isfinite(weights).all()
            assert (weights > 0).all()
    with pytest.raises(ValueError, match="--reweight"):
        datasets.sample_weights(labels, "none", True)
    with pytest.raises(ValueError, match="none, sqrt_inv, inverse; got 'root'"):
        datasets.sample_weights(labels, "root")
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="finite and 0 or more"):
            datasets.sample_weights([50.0, wrong], "inverse")


def test_metrics_by_shot():
    train = np.repeat([70, 50, 20, 100], [101, 20, 19, 100])
    ours = metrics.shot_metrics([72, 54, 58, 20, 90], [70, 50, 50, 20, 100], train)
    assert {shot: m["num_samples"] for shot, m in ours.items()} == {
        "overall": 5, "many": 1, "medium": 3, "few": 1,
    }  # fmt: skip
    assert ours["medium"]["mae"] == pytest.approx((4 + 8 + 10) / 3)
    assert ours["medium"]["bmae"] == pytest.approx((6 + 10) / 2)
    assert ours["medium"]["mse"] == pytest.approx((16 + 64 + 100) / 3)
    assert ours["medium"]["gm"] == pytest.approx((4 * 8 * 10) ** (1 / 3))
    assert ours["few"]["gm"] == pytest.approx(1e-10)  # an error of zero
    # 99 and 100 are one bucket; a shot without nights is NaN.
    assert metrics.shot_metrics([1], [99], train)["medium"]["num_samples"] == 1
    assert math.isnan(metrics.shot_metrics([1], [99], train)["few"]["mae"])
    assert set(metrics.shot_metrics([1], [2])) == {"overall"}
    with pytest.raises(ValueError, match="2 predictions for 1"):
        metrics.shot_metrics([1, 2], [3])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.shot_metrics([1], [float("nan")], train)
    shots = metrics.shots_of_buckets(train)
    assert (shots[[70, 50, 99]] == ["many", "medium", "medium"]).all()
    assert (np.delete(shots, [70, 50, 99]) == "few").all()


# ---- files and batches ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four nights on disk, as prepare.py writes them, and their meta file."""
    (tmp_path / "nights").mkdir()
    rows = []
    for k, night in enumerate(make_nights()):
        with h5py.File(tmp_path / f"nights/{k}.h5", "w") as file:
            file.attrs.update(source="", lacking="", frames=FRAMES[k])
            for name in SIGNALS:
                values = night[name].astype(np.float64)
                file[name] = night[name]
                file[name].attrs.update(mean=values.mean(1), mean_square=(values**2).mean(1))
        rows.append((k, 20 * k, f"nights/{k}.h5", ("train", "train", "val", "test")[k]))
    table = pd.DataFrame(rows, columns=["id", "score", "path", "split"])
    table.to_csv(tmp_path / "shhs.csv", index=False)
    return tmp_path


def test_a_batch_is_padded_with_zeros(folder):
    meta = datasets.read_meta(folder)
    nights = datasets.Nights(folder, meta["path"])
    assert tuple(nights.frames) == FRAMES
    batch, (expected, _) = nights.read([2, 1]), to_batch([make_nights()[k] for k in (2, 1)])
    for name in SIGNALS:
        assert torch.equal(batch[name], expected[name])
    scale, whole = nights.scale(np.array([0, 1])), make_nights()
    for name, (mean, std) in scale.items():
        joined = np.concatenate([whole[k][name] for k in (0, 1)], axis=1).astype(np.float64)
        np.testing.assert_allclose(mean, joined.mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(std, joined.std(axis=1), rtol=1e-4)


def test_loader_draws_each_night_once_whatever_the_processes(folder):
    nights = datasets.Nights(folder, datasets.read_meta(folder)["path"])
    labels = np.array([0, 20, 40, 60], dtype=np.float32)
    weights = np.arange(1, datasets.BUCKETS + 1)  # of a score: the score + 1

    def drawn(rank, processes, epoch, statistics=False):
        sharing = Sharing(3, seed=7, device="cpu", rank=rank, processes=processes)
        loader = datasets.Loader(nights, range(4), labels, weights, sharing)
        return list(loader.train(epoch, statistics)), loader

    def order_of(batches):
        return torch.cat([batch.labels for batch in batches]).flatten().tolist()

    one, loader = drawn(0, 1, 5)
    assert len(one) == len(loader) == 2
    order = order_of(one)
    assert sorted(order) == [0, 20, 40, 60]
    for batch in one:
        assert (batch.weights == batch.labels + 1).all()
        assert batch.packing.lengths.tolist() == [FRAMES[int(k) // 20] for k in batch.labels]
    assert [batch.size for batch in one] == [3, 1]
    assert order_of(drawn(0, 1, 5)[0]) == order
    training, statistics = (
        [order_of(drawn(0, 1, epoch, own)[0]) for epoch in range(5)] for own in (False, True)
    )
    assert training != statistics
    assert any(each != training[0] for each in training)
    shared = [drawn(rank, 2, 5)[0] for rank in (0, 1)]
    for whole, parts in zip(one, zip(*shared)):
        counted = [batch.labels for batch in parts if batch.share]
        assert torch.equal(torch.cat(counted), whole.labels)
        assert sum(batch.share for batch in parts) == pytest.approx(2)
        assert {batch.size for batch in parts} == {len(whole.labels)}
    assert order_of(loader.evaluate()) == labels.tolist()
    # Two processes evaluate consecutive halves, in batches that together hold no more than one.
    halves = [list(drawn(rank, 2, 5)[1].evaluate()) for rank in (0, 1)]
    assert [len(batch.labels) for half in halves for batch in half] == [2, 2]
    assert order_of(batch for half in halves for batch in half) == labels.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(",20,", ",120,", r"no number from 0 to 100 .*\(lines 3\)"), (",20,", ",NaN,", "lines 3"),
     (",20,", ",,", "lines 3"), ("val", "dev", "split other than"), ("id,score", "id,gh", "score"),
     ("nights/1", "nights/0", "occurs twice"), ("nights/1", "nights/9", "not in.*prepare.py"),
     (",val", ",train", "no row of split val")],
)  # fmt: skip
def test_a_wrong_meta_file_is_named(folder, old, new, message):
    file = folder / "shhs.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.read_meta(folder)


def test_a_missing_meta_file_and_a_damaged_night_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"prepare\.py"):
        datasets.read_meta(folder / "elsewhere")
    night = folder / "nights" / "2.h5"
    night.write_bytes(night.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"2\.h5 cannot be read"):
        datasets.Nights(folder, datasets.read_meta(folder)["path"])
