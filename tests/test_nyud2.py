"""nyud2-dir's parts: buckets, weights, transforms, cache, lists, batches, metrics, network."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load

array_cache = load("nyud2-dir", "array_cache")
batches = load("nyud2-dir", "batches")
datasets = load("nyud2-dir", "datasets")
depth_cache = load("nyud2-dir", "depth_cache")
depth_figures = load("nyud2-dir", "depth_figures")
depth_net = load("nyud2-dir", "depth_net")
fds = load("nyud2-dir", "fds")
lds = load("nyud2-dir", "lds")
metrics = load("nyud2-dir", "metrics")
pair_lists = load("nyud2-dir", "pair_lists")
transforms = load("nyud2-dir", "transforms")

# ---- buckets and weights -------------------------------------------------------------------


def test_buckets_are_cut_in_float32():
    depths = np.float32([0, 0.0999, 0.7, 2.9, 2.9999, 9.99, 10, 12])
    expected = [0, 0, 7, 29, 29, 99, 99, 99]
    assert datasets.label_to_bucket(depths).tolist() == expected
    assert datasets.label_to_bucket(torch.from_numpy(depths)[:, None]).tolist() == [
        [bucket] for bucket in expected
    ]
    # 0.3 in float64 is below float32's 0.3: both kinds go by float32.
    assert datasets.label_to_bucket(np.array([0.3])) == datasets.label_to_bucket(torch.tensor(0.3))


@pytest.mark.parametrize("reweight", ["sqrt_inv", "inverse"])
@pytest.mark.parametrize(
    "window", [None, ("gaussian", 5, 2), ("laplace", 401, 1), ("gaussian", 9, 0.3)]
)
def test_weights_where_buckets_are_empty(reweight, window):
    """Filled buckets by the formula; an empty one as its nearest filled one, the lower of two.

    The smoothed density of an empty bucket is no measure: it falls to e⁻⁸⁰ of a count far from
    all samples, and close to 0 next to them with a narrow window.
    """
    counts = np.zeros(100, dtype=int)
    counts[[7, 20, 21, 40, 97]] = 300, 1000, 500, 10, 1
    weights = datasets.bucket_weights(counts, reweight, *((True, *window) if window else ()))
    values = np.sqrt(counts) if reweight == "sqrt_inv" else counts
    smoothed = values.astype(float)
    if window:
        kernel = lds.get_lds_kernel_window(*window)
        half = len(kernel) // 2
        # "symmetric" repeats the edge, as SciPy's "reflect" does.
        padded = np.pad(smoothed[7:], half, mode="symmetric")
        smoothed[7:] = np.convolve(padded, kernel, mode="valid")
    filled = np.flatnonzero(counts)
    expected = {b: 1 / smoothed[b] for b in filled}
    scale = counts.sum() / sum(counts[b] * expected[b] for b in filled)
    for bucket, weight in enumerate(weights):
        nearest = min(filled, key=lambda b: (abs(b - bucket), b))
        assert weight == pytest.approx(scale * expected[nearest], rel=1e-5), bucket
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1, rel=1e-5)
    assert weights.max() / weights.min() < 1500  # that of the counts, smoothed ones too
    assert weights[97] > weights[40] > weights[21] > weights[20]


def test_weights_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="--reweight"):
        datasets.bucket_weights(datasets.TRAIN_COUNTS, "none", lds=True)
    with pytest.raises(ValueError, match="no bucket from 7 on"):
        datasets.bucket_weights(np.zeros(100), "inverse")
    assert (datasets.bucket_weights(datasets.TRAIN_COUNTS, "none") == 1).all()


def test_dead_feature_alone_is_left_out_of_dense_calibration():
    """One channel without variance in a bucket passes; the bucket's others are calibrated."""
    module = fds.FDS(
        3, 100, 7, label_to_bucket=datasets.label_to_bucket, clip=(0.2, 5), variant="paper"
    )
    rng = torch.Generator().manual_seed(0)
    depths = torch.rand(4, 1, 9, 9, generator=rng) * 0.5 + 2
    features = torch.rand(4, 3, 9, 9, generator=rng) * depths
    features[:, 1] = 0.25
    for epoch in (0, 1):
        module.update_last_epoch_stats(epoch)
        module.update_running_stats(features, depths, epoch)
    smoothed = module.smooth(features, depths, 1)
    assert torch.equal(smoothed[:, 1], features[:, 1])
    for channel in (0, 2):
        assert (smoothed[:, channel] != features[:, channel]).float().mean() > 0.9


# ---- transforms ----------------------------------------------------------------------------


@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_halving_is_pillows_to_the_bit(downscale):
    height, width = (side // downscale for side in load("nyud2-dir", "depth_maps").CROP)
    depth = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    # Edges whose results lie beyond 8 bits before they are clamped.
    depth[1] = np.where(np.indices(depth[1].shape).sum(0) % 4 < 2, 0, 255)
    ours = transforms.halve_depth(torch.from_numpy(depth))
    for one, other in zip(depth, ours):
        small = Image.fromarray(one).resize((-(-width // 2), -(-height // 2)))
        assert np.array_equal(np.asarray(small), other.numpy())


def plain_colours(image, draws):
    """Lighting, jitter and normalisation of one image [3, H, W] in [0, 1], step by step."""
    luma = torch.tensor(transforms.LUMA, dtype=torch.float64)[:, None, None]
    vectors = torch.tensor(transforms.EIGENVECTORS, dtype=torch.float64)
    values = torch.tensor(transforms.EIGENVALUES, dtype=torch.float64)
    image = image + (vectors * draws.light[0] * values).sum(1)[:, None, None]
    for kind in draws.order[0].tolist():
        grey = (image * luma).sum(0, keepdim=True).expand_as(image)
        target = [torch.zeros_like(image), torch.full_like(image, grey.mean().item()), grey][kind]
        image = image.lerp(target, draws.jitter[0, kind])
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None]
                 for x in (transforms.MEAN, transforms.STD))  # fmt: skip
    return (image - mean) / std


def test_colours_in_one_map_equal_the_steps():
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (6, 60, 80, 3), dtype=np.uint8))
    depths = torch.from_numpy(rng.integers(1, 256, (6, 60, 80), dtype=np.uint8))
    draws = transforms.draw_augmentation(rng, 6)
    draws = draws._replace(angle=torch.zeros(6, dtype=torch.float64), flip=torch.zeros(6) > 0)
    assert len({tuple(order) for order in draws.order.tolist()}) > 2
    both = torch.cat([images, depths[..., None]], dim=3)
    together, _ = transforms.transform_train(both, draws, downscale=4)
    top, left, height, width = transforms.crop_of(images, 4)
    for i in range(6):
        pixels = images[i, top : top + height, left : left + width].permute(2, 0, 1).double() / 255
        plain = plain_colours(pixels, draws.take(slice(i, i + 1), "cpu"))
        torch.testing.assert_close(together[i], plain.float(), rtol=1e-4, atol=2e-5)


def test_rotation_is_counter_clockwise_and_flip_comes_first():
    both = torch.zeros(2, 240, 320, 4, dtype=torch.uint8)
    both[:, 115:125, 250:260] = 255  # to the right of the centre
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    draws = transforms.Draws(
        torch.tensor([False, True]), torch.tensor([5.0, 5.0], dtype=torch.float64), zeros,
        torch.arange(3).repeat(2, 1), zeros,
    )  # fmt: skip
    _, out = transforms.transform_train(both, draws)
    y, x = (torch.nonzero(out[0, 0] > 5).float().mean(0)).tolist()
    assert x > 76
    assert y < 57 - 3  # up
    y, x = (torch.nonzero(out[1, 0] > 5).float().mean(0)).tolist()
    assert x < 76
    assert y > 57 + 3  # mirrored to the left, and from there down
    assert (out[:, 0, 0, 0] == 0).all()  # corners outside of the picture have depth 0


def test_draws_have_the_official_ranges():
    draws = transforms.draw_augmentation(np.random.default_rng(0), 4000)
    assert draws.angle.abs().max() <= 5
    assert draws.jitter.abs().max() <= 0.4
    assert draws.light.std().item() == pytest.approx(0.1, rel=0.05)
    assert draws.flip.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert len({tuple(order) for order in draws.order.tolist()}) == 6


# ---- pairs on disk -------------------------------------------------------------------------


def write_pair(folder, name="1", size=(320, 240), depth_size=None, depth=None, bits=8):
    """Write an image and a depth map; return the row of the list."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if bits == 8 else np.uint16
    if depth is None:
        depth = rng.integers(1, 200, (depth_size or size)[::-1]).astype(kind)
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(
        folder / f"{name}.jpg"
    )
    Image.fromarray(depth).save(folder / f"{name}.png")
    return f"{name}.jpg", f"{name}.png"


def open_pairs(folder, rows, bits=8, **options):
    table = pd.DataFrame(rows, columns=["image", "depth"])
    cache = options.pop("cache", folder / "cache")
    return depth_cache.Pairs(folder, table, bits, cache, "pairs", quiet=True, **options)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("downscale", [1, 2, 4])
def test_cache_holds_what_the_files_do(tmp_path, bits, downscale):
    big = np.random.default_rng(0).integers(1, 256 if bits == 8 else 10_000, (480, 640))
    rows = [write_pair(tmp_path, str(i), bits=bits) for i in range(3)]
    rows.append(write_pair(tmp_path, "big", (640, 480), bits=bits,
                           depth=big.astype(f"u{bits // 8}")))  # fmt: skip
    pairs = open_pairs(tmp_path, rows, bits, downscale=downscale)
    images, depths = pairs.read([3, 0])
    size = 320 // downscale, 240 // downscale
    assert images.shape == (2, size[1], size[0], 3)
    with Image.open(tmp_path / "big.jpg") as image, Image.open(tmp_path / "big.png") as depth:
        expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        assert np.array_equal(images[0].numpy(), expected)
        depth = depth.resize((320, 240), Image.Resampling.NEAREST)
        expected = np.asarray(depth.resize(size, Image.Resampling.NEAREST))
        assert np.array_equal(depths[0].numpy().astype(int), expected.astype(int))
    uncached = open_pairs(tmp_path, rows, bits, downscale=downscale, cache=None)
    for ours, theirs in zip(pairs.read([1, 2]), uncached.read([1, 2])):
        assert torch.equal(ours, theirs)


def test_a_changed_file_is_decoded_again(tmp_path):
    rows = [write_pair(tmp_path)]
    before = open_pairs(tmp_path, rows).read([0])[1]
    write_pair(tmp_path, depth=np.full((240, 320), 77, dtype=np.uint8))
    after = open_pairs(tmp_path, rows).read([0])[1]
    assert not torch.equal(before, after)
    assert (after == 77).all()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_the_folder_may_be_spelled_in_another_way(tmp_path, monkeypatch):
    rows = [write_pair(tmp_path / "data")]
    open_pairs(tmp_path / "data", rows)
    monkeypatch.setattr(depth_cache, "load_pair", None)  # nothing would be decoded
    monkeypatch.chdir(tmp_path)
    open_pairs(Path("data"), rows)
    open_pairs(tmp_path / "data/../data", rows)


def test_an_interrupted_build_resumes(tmp_path):
    rows = [write_pair(tmp_path, str(i)) for i in range(3)]
    whole = open_pairs(tmp_path, rows).read([0, 1, 2])[1]
    (file,) = (tmp_path / "cache").glob("*.npy")
    array = np.load(file)
    array[2] = 0
    file.unlink()
    array[0] = 7  # a row that is done is not decoded again
    array[1] = 0  # one that its note promises, but that a crash of the machine has lost, is
    sums = [array_cache.check_sum(array[0]), array_cache.check_sum(array[0]), 0]
    file.with_suffix(".rows").write_bytes(np.array(sums, dtype=np.uint32).tobytes())
    with open(file.with_suffix(".partial"), "wb") as partial:
        np.save(partial, array)
    depths = open_pairs(tmp_path, rows).read([0, 1, 2])[1]
    assert (depths[0] == 7).all()
    assert torch.equal(depths[1:], whole[1:])
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npy", ".lock", ".rows"}


def test_an_array_without_its_checksums_is_made_again(tmp_path):
    rows = [write_pair(tmp_path, str(i)) for i in range(2)]
    whole = open_pairs(tmp_path, rows).read([0, 1])[1]
    (file,) = (tmp_path / "cache").glob("*.npy")
    array = np.load(file)
    array[1] = 0
    np.save(file, array)
    file.with_suffix(".rows").unlink()
    assert torch.equal(open_pairs(tmp_path, rows).read([0, 1])[1], whole)


def test_what_tells_pairs_from_others(tmp_path):
    """Files of one size differ by their pixels; neither place nor time of a file counts."""
    rows = [write_pair(tmp_path / "a", str(i)) for i in range(2)]
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    Image.new("RGB", (320, 240), "red").save(tmp_path / "a/0.bmp")
    Image.new("RGB", (320, 240), "blue").save(tmp_path / "b/0.bmp")

    def inputs(folder, image, cache="cache"):
        pairs = [(image, rows[0][1]), rows[1]]
        found = open_pairs(tmp_path / folder, pairs, cache=cache and tmp_path / folder / cache)
        return {name: array.tolist() for name, array in found.inputs("pairs").items()}

    one, other = inputs("a", rows[0][0]), inputs("b", rows[0][0])
    assert one == other
    files, pixels = one
    assert [*inputs("a", rows[0][0], None)] == [files]
    one, other = inputs("a", "0.bmp"), inputs("b", "0.bmp")
    assert one[files] == other[files]
    assert [a == b for a, b in zip(one[pixels], other[pixels])] == [False, True]


@pytest.mark.parametrize("size", [0, 50, 100_000])
def test_a_build_cut_short_starts_again(tmp_path, size):
    rows = [write_pair(tmp_path, str(i)) for i in range(3)]
    whole = open_pairs(tmp_path, rows).read([0, 1, 2])[1]
    (file,) = (tmp_path / "cache").glob("*.npy")
    partial, array = file.with_suffix(".partial"), np.load(file)
    sums = [array_cache.check_sum(row) for row in array]
    file.with_suffix(".rows").write_bytes(np.array(sums, dtype=np.uint32).tobytes())
    partial.write_bytes(file.read_bytes()[:size])
    file.unlink()
    assert torch.equal(open_pairs(tmp_path, rows).read([0, 1, 2])[1], whole)
    (file,) = (tmp_path / "cache").glob("*.npy")
    file.write_bytes(file.read_bytes()[: size + 200])
    with pytest.raises(ValueError, match=r"npy cannot be read .*delete it"):
        open_pairs(tmp_path, rows)


def test_a_full_disk_is_said_before_the_build(tmp_path, monkeypatch):
    rows = [write_pair(tmp_path, str(i)) for i in range(3)]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"1,000 are free.*--cache"):
        open_pairs(tmp_path, rows)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_size": (160, 120)}, "the image is 320×240 and its depth map 160×120"),
        ({"bits": 16}, "mode is I;16: 8 bits"),
        ({"depth": np.zeros((240, 320), dtype=np.uint8)}, "0 everywhere"),
        ({"size": (320, 200)}, "4:3"),
        ({"size": (160, 120)}, "at least 320×240"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_unusable_pairs_are_named(tmp_path, options, message, cached):
    rows = [write_pair(tmp_path, "good"), write_pair(tmp_path, "bad", **options)]
    with pytest.raises(ValueError, match=r"1 of 2 pairs cannot be used.*bad\.jpg") as error:
        open_pairs(tmp_path, rows, cache=tmp_path / "cache" if cached else None)
    assert message in str(error.value)


def test_test_depths_have_16_bits(tmp_path):
    with pytest.raises(ValueError, match="mode is L: 16 bits"):
        open_pairs(tmp_path, [write_pair(tmp_path)], bits=16)


def test_missing_and_damaged_files_are_named(tmp_path):
    rows = [write_pair(tmp_path), ("2.jpg", "2.png")]
    with pytest.raises(FileNotFoundError, match=r"2 of 4 files are missing.*2\.jpg"):
        open_pairs(tmp_path, rows)
    (tmp_path / "2.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:500])
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of 2 pairs.*2\.jpg"):
        open_pairs(tmp_path, rows)


def test_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"demo_data\.py"):
        pair_lists.read_pairs(tmp_path, "nyu2_train.csv")
    file = tmp_path / "nyu2_train.csv"
    file.write_text("data/a/1.jpg,data/a/1.png\nb/2.jpg, b/2.png\n")
    table = pair_lists.read_pairs(tmp_path, "nyu2_train.csv")
    assert table.to_numpy().tolist() == [["a/1.jpg", "a/1.png"], ["b/2.jpg", "b/2.png"]]
    for content in ("", "a.jpg\n", "a.jpg,\n", "a,b,c\n"):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"nyu2_train\.csv"):
            pair_lists.read_pairs(tmp_path, "nyu2_train.csv")
    (tmp_path / "subset.csv").write_text("data/c/1.jpg,data/c/1.png\n")
    with pytest.raises(ValueError, match=r"c/1\.jpg.*--subset"):
        pair_lists.rows_of_subset(tmp_path, "subset.csv", ["a/1.jpg"])
    with pytest.raises(ValueError, match="all images of subset"):
        pair_lists.rows_of_subset(tmp_path, "subset.csv", ["c/1.jpg"], np.array([True]))


def test_whole_scenes_are_held_out():
    paths = [f"nyu2_train/kitchen_{s:04d}{p}_out/{i}.jpg"
             for s in range(20) for p in "ab" for i in range(3)]  # fmt: skip
    held_out = pair_lists.hold_out(paths, seed=3)
    assert held_out.reshape(20, 6).all(1).sum() == 2 == held_out.sum() / 6
    assert np.array_equal(held_out, pair_lists.hold_out(paths, seed=3))
    assert any(not np.array_equal(held_out, pair_lists.hold_out(paths, seed=s)) for s in range(5))
    # In one folder blocks of consecutive files: of 25, or of few files a tenth.
    for number, block in ((500, 25), (100, 10), (8, 1)):
        flat = [f"nyu2_train/{i:05d}.jpg" for i in range(number)]
        held_out = pair_lists.hold_out(flat, 0)
        whole = held_out[: number // block * block].reshape(-1, block).all(1)
        assert whole.sum() * block == held_out.sum() == max(1, number // 10)
    with pytest.raises(ValueError, match="--select test"):
        pair_lists.hold_out(["a/1.jpg"], 0)


def test_a_header_is_named(tmp_path):
    (tmp_path / "nyu2_train.csv").write_text("image,depth\ndata/a/1.jpg,data/a/1.png\n")
    with pytest.raises(ValueError, match=r"has a header, image, depth: remove"):
        pair_lists.read_pairs(tmp_path, "nyu2_train.csv")


def test_mask_must_fit(tmp_path):
    file = tmp_path / "test_balanced_mask.npy"
    with pytest.raises(FileNotFoundError, match="mask"):
        pair_lists.read_mask(tmp_path, 2)
    for wrong in (np.ones((2, 114, 152), np.uint8), np.ones((3, 228, 304), np.uint8),
                  np.ones((2, 228, 304), np.float32)):  # fmt: skip
        np.save(file, wrong)
        with pytest.raises(ValueError, match=r"must be uint8 \[2, 228, 304\]"):
            pair_lists.read_mask(tmp_path, 2)
    np.save(file, np.zeros((2, 228, 304), np.uint8))
    with pytest.raises(ValueError, match="no pixel"):
        pair_lists.read_mask(tmp_path, 2)
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        pair_lists.read_mask(tmp_path, 2)
    with open(file, "wb") as opened:
        np.savez(opened, mask=np.ones((2, 228, 304), np.uint8))
    with pytest.raises(ValueError, match="archive of arrays"):
        pair_lists.read_mask(tmp_path, 2)
    np.save(file, np.ones((2, 228, 304), np.uint8))
    assert pair_lists.read_mask(tmp_path, 2, downscale=4).shape == (2, 57, 76)


# ---- batches -------------------------------------------------------------------------------


def make_loader(folder, n=7, processes=1, rank=0, **options):
    rows = [write_pair(folder, str(i)) for i in range(n)]
    pairs = open_pairs(folder, rows, downscale=4)
    sharing = batches.Sharing(3, 5, "cpu", rank, processes)
    return datasets.Loader(pairs, range(n), sharing, **options)


def test_batches_do_not_depend_on_the_processes(tmp_path):
    weights = np.arange(100, dtype=np.float32)

    def batches_of(processes, rank):
        loader = make_loader(tmp_path, processes=processes, rank=rank, weights=weights)
        return [(b.images.clone(), b.depths, b.weights, b.share) for b in loader.train(2)]

    whole, parts = batches_of(1, 0), [batches_of(2, rank) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 3
    for one, first, second in zip(whole, *parts):
        seen = [part for part in (first, second) if part[3]]
        for k in range(3):
            together = torch.cat([part[k] for part in seen])
            torch.testing.assert_close(together, one[k])
        assert sum(part[3] for part in (first, second)) == pytest.approx(2)
    images, depths, weights, _ = whole[0]
    assert images.shape == (3, 3, 57, 76)
    assert depths.shape == weights.shape == (3, 1, 29, 38)
    assert torch.equal(weights, datasets.label_to_bucket(depths).float())


def test_epochs_differ_and_repeat(tmp_path):
    loader = make_loader(tmp_path)
    first, again, other = ([b.depths for b in loader.train(e)] for e in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not all(torch.equal(a, b) for a, b in zip(first, other))
    # The statistics' pass is in order and not augmented.
    rows = np.concatenate([b.rows for b in loader.statistics()])
    assert rows.tolist() == list(range(7))
    assert all((b.depths > 0).all() for b in loader.statistics())


def test_pixels_are_counted_as_the_official_counts(tmp_path):
    loader = make_loader(tmp_path, n=2)
    counts = datasets.count_pixels(loader.pairs, [0, 1])
    depths = torch.cat([b.depths for b in loader.evaluate()]).flatten()
    expected = torch.bincount(datasets.label_to_bucket(depths).clamp(min=7), minlength=100)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == 2 * 57 * 76


# ---- metrics -------------------------------------------------------------------------------


def plain_metrics(preds, labels):
    """The metrics of pixels in numpy."""
    error = np.abs(preds - labels)
    ratio = np.maximum(preds / labels, labels / preds)
    buckets = datasets.label_to_bucket(labels)
    return {
        "mse": (error**2).mean(), "rmse": (error**2).mean() ** 0.5, "mae": error.mean(),
        "abs_rel": (error / labels).mean(),
        "log10": np.abs(np.log10(preds) - np.log10(labels)).mean(),
        "delta1": (ratio < 1.25).mean(), "delta2": (ratio < 1.25**2).mean(),
        "delta3": (ratio < 1.25**3).mean(),
        "bmae": np.mean([error[buckets == b].mean() for b in np.unique(buckets)]),
        "num_samples": len(labels),
    }  # fmt: skip


def test_streamed_metrics_equal_those_of_all_pixels():
    rng = np.random.default_rng(0)
    labels = rng.gamma(3, 1, (10, 1, 20, 30)).clip(0.7, 9.99).astype(np.float32)
    preds = (labels * rng.lognormal(0, 0.3, labels.shape)).astype(np.float32)
    mask = rng.random(labels.shape) < 0.4
    sums = metrics.BucketSums()
    for pred, label, chosen in zip(*(torch.from_numpy(x).split(3) for x in (preds, labels, mask))):
        sums.add(pred, label, chosen)
    result, shots = sums.metrics(), metrics.shots_of_buckets()
    preds, labels = preds[mask], labels[mask]
    names = shots[datasets.label_to_bucket(labels)]
    for shot in metrics.SHOTS:
        part = np.ones(len(labels), bool) if shot == "overall" else names == shot
        for name, value in plain_metrics(preds[part], labels[part]).items():
            assert result[shot][name] == pytest.approx(value, rel=1e-5), (shot, name)
    table = depth_figures.error_by_depth(sums, "test")
    assert table["pixels"].sum() == mask.sum()


def test_balanced_metrics_are_a_balanced_masks_average():
    labels = torch.cat([torch.full((1000,), 2.05), torch.full((10,), 5.05)])
    preds = labels + torch.cat([torch.full((1000,), 0.1), torch.full((10,), 2.0)])
    sums = metrics.BucketSums()
    sums.add(preds, labels)
    assert sums.metrics(balanced=True)["overall"]["mae"] == pytest.approx(1.05, rel=1e-4)
    assert sums.metrics()["overall"]["mae"] == pytest.approx(120 / 1010, rel=1e-4)


def test_odd_pixels_do_no_harm():
    labels = torch.tensor([0.0, 2.0, 3.0])
    result = metrics.shot_metrics(torch.tensor([1.0, -1.0, 0.0]), labels)
    assert result["overall"]["num_samples"] == 2  # a pixel without depth is left out
    assert all(np.isfinite(value) for value in result["overall"].values())
    assert result["overall"]["mae"] == pytest.approx(3)
    assert np.isnan(result["few"]["rmse"])
    assert result["few"]["num_samples"] == 0
    with pytest.raises(ValueError, match="one shape"):
        metrics.shot_metrics(torch.zeros(2), torch.zeros(3))


# ---- network -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mini"])
@pytest.mark.parametrize("downscale", [2, 4])
def test_small_encoders(name, downscale):
    torch.manual_seed(0)
    module = fds.FDS(depth_net.feature_dim_of(name), 100, 7,
                     label_to_bucket=datasets.label_to_bucket, variant="paper")  # fmt: skip
    model = depth_net.DepthNet(name, module)
    height, width = (side // downscale for side in load("nyud2-dir", "depth_maps").CROP)
    depths = torch.rand(2, 1, -(-height // 2), -(-width // 2)) * 9 + 0.7
    preds, features = model(torch.randn(2, 3, height, width), depths, 0)
    assert preds.shape == depths.shape
    assert features.shape[1] == module.feature_dim
    assert model.FDS is module


def test_encoder_names_and_weights():
    with pytest.raises(ValueError, match="resnet50"):
        depth_net.DepthNet("vgg")
    with pytest.raises(ValueError, match="no-pretrained_encoder"):
        depth_net.DepthNet("mini", imagenet_weights=True)
    with pytest.raises(ValueError, match="36 features"):
        depth_net.DepthNet("mini", fds.FDS(8, 100, 7))


def test_weights_that_cannot_be_fetched_name_the_flag(monkeypatch):
    def unreachable(weights):
        raise OSError("no route to host")

    monkeypatch.setattr(depth_net.torchvision.models, "resnet18", unreachable)
    with pytest.raises(ValueError, match="no-pretrained_encoder"):
        depth_net.DepthNet("resnet18", imagenet_weights=True)


def test_imagenet_weights_fill_the_encoder(monkeypatch):
    template = depth_net.torchvision.models.resnet18
    torch.manual_seed(0)
    source = template()
    monkeypatch.setattr(depth_net.torchvision.models, "resnet18", lambda weights: source)
    encoder = depth_net.DepthNet("resnet18", imagenet_weights=True).E
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
