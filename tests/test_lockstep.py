"""A whole training against a plain, slow transcription of its rules, weight by weight.

The rules are those of the released code: LDS weights, FDS in both variants, Adam, the schedule, and
two-stage training from a checkpoint with FDS. The transcription shares the images of each batch
with train.py and nothing else; its network has no batch normalisation, its numbers are float64.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import load
from plain import PlainFDS

train = load("agedb-dir", "train")
run_folder = load("agedb-dir", "run_folder")
fds = load("agedb-dir", "fds")

FLAGS = (
    "--img_size 40 --batch_size 16 --epoch 5 --schedule 3 --lr 0.01 --track none --device cpu "
    "--cache none --reweight sqrt_inv --lds --lds_kernel triang --lds_ks 3 --fds_kernel laplace "
    "--fds_ks 5 --fds_sigma 2 --bucket_num 40 --bucket_start 20"
).split()
WINDOW = np.exp(-np.abs(np.arange(-2, 3)) / 2)
FIRST, LAST = 20, 39  # ages with buckets of their own; the others go to these two


class TinyNet(nn.Module):
    """Average colours -> 6 features -> age, in float64."""

    def __init__(self, module):
        super().__init__()
        self.hidden, self.linear, self.FDS = nn.Linear(48, 6), nn.Linear(6, 1), module
        self.double()

    def forward(self, images, labels=None, epoch=None):
        features = colours(images) @ self.hidden.weight.T + self.hidden.bias
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features


def colours(images):
    """Average colours of 16 tiles, float64 [n, 48]."""
    return nn.functional.adaptive_avg_pool2d(images.double(), 4).flatten(1)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Noise whose brightness follows the age; ages from 15 to 44, the middle ones often."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    rows = []
    for i in range(150):
        age = int(np.clip(rng.normal(30, 7), 15, 44))
        pixels = rng.integers(0, 100, (40, 40, 3)) + 3 * age
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append((age, f"{i}.png", "train" if i < 130 else ("val", "test")[i % 2]))
    table = pd.DataFrame(rows, columns=["age", "path", "split"])
    table.to_csv(folder / "agedb.csv", index=False)
    return folder


def run(faces, store, *more):
    """Train with the tiny network; return the flags and the last epoch's weights."""

    def build_model(args, fresh=False):
        torch.manual_seed(1)
        options = train.flags.fds_options(args)
        return TinyNet(fds.FDS(6, **options, clip=train.FDS_CLIP) if args.fds else None)

    argv = [*FLAGS, "--data_dir", str(faces), "--store_root", str(store), *map(str, more)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_model", build_model)
        train.main(argv)
    args = train.parse_args(argv)
    folder = store / "".join(train.run_name(args))
    checkpoint = torch.load(folder / "ckpt.pth.tar", weights_only=True)
    return args, checkpoint, folder, build_model(args).state_dict()


def plain_weights(ages):
    """1 / the smoothed root of the count at each age, with mean 1."""
    roots = np.array([np.sqrt((ages == age).sum()) for age in range(121)])
    smoothed = [
        roots[a] + 0.5 * (roots[a - 1] if a else 0) + 0.5 * (roots[a + 1] if a < 120 else 0)
        for a in range(121)
    ]
    weights = np.array([1 / smoothed[age] for age in ages])
    return dict(zip(ages, weights / weights.mean()))


class PlainAdam:
    """Adam as published, one array at a time."""

    def __init__(self, arrays):
        self.arrays, self.t = arrays, 0
        self.m = [np.zeros_like(a) for a in arrays]
        self.v = [np.zeros_like(a) for a in arrays]

    def step(self, gradients, lr):
        self.t += 1
        for a, g, m, v in zip(self.arrays, gradients, self.m, self.v):
            m[:] = 0.9 * m + 0.1 * g
            v[:] = 0.999 * v + 0.001 * g * g
            a -= lr * (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)


def plain_training(faces, args, start, statistics, only_last=False):
    """The rules, written out: returns the weights of both layers, and the mean losses."""
    run = run_folder.start(args, train.make_parser(), ["unused"])
    loader = train.build_data(run).loaders["train"]
    ages = pd.read_csv(faces / "agedb.csv").query("split == 'train'")["age"].to_numpy()
    weight_of = plain_weights(ages)
    W, b, w, c = (start[name].numpy().copy() for name in NAMES)
    adam = PlainAdam([w, c] if only_last else [W, b, w, c])
    losses = []
    for epoch in range(args.epoch):
        lr, total = args.lr * (0.1 if epoch >= 3 else 1), 0.0
        for batch in loader.train(epoch):
            x, y = colours(batch.images).numpy(), batch.labels.numpy()[:, 0]
            bucket = np.clip(y.astype(int), FIRST, LAST) - FIRST
            features, scale = x @ W.T + b, 1.0
            calibrated = features
            if args.fds:
                calibrated = statistics.smooth(features, bucket, epoch)
                # Smoothing is one scale and one shift of each number.
                shift = statistics.smooth(np.zeros_like(features), bucket, epoch)
                scale = statistics.smooth(np.ones_like(features), bucket, epoch) - shift
            error = (calibrated @ w.T + c)[:, 0] - y
            weights = np.array([weight_of[int(age)] for age in y])
            total += (weights * np.abs(error)).sum()
            slope = (weights * np.sign(error) / len(y))[:, None]
            gradients = [slope.T @ calibrated, slope.sum(axis=0)]
            back = (slope @ w) * scale
            adam.step(gradients if only_last else [back.T @ x, back.sum(axis=0), *gradients], lr)
        losses.append(total / len(ages))
        if args.fds and epoch >= args.start_update:
            taken = [
                (colours(batch.images).numpy() @ W.T + b, batch.labels.numpy()[:, 0])
                for batch in loader.train(epoch, statistics=True)
            ]
            labels = np.concatenate([y for _, y in taken]).astype(int)
            bucket = np.clip(labels, FIRST, LAST) - FIRST
            statistics.end_epoch(np.concatenate([x for x, _ in taken]), bucket, epoch)
    return (W, b, w, c), losses


NAMES = ("hidden.weight", "hidden.bias", "linear.weight", "linear.bias")
STATISTICS = {
    "running_mean": "mean", "running_var": "var", "running_mean_last_epoch": "m1",
    "running_var_last_epoch": "v1", "smoothed_mean_last_epoch": "m2",
    "smoothed_var_last_epoch": "v2",
}  # fmt: skip


def make_statistics(variant, start=(0, 1)):
    official = variant == "official"
    return PlainFDS(20, 6, WINDOW, live=official, calibrated=official, start=start)


def compare(checkpoint, arrays, statistics, losses, folder):
    """Loss and predictions pass through float32 in train.py, so 1e-5 is what can be asked."""
    state = checkpoint["state_dict"]
    for name, array in zip(NAMES, arrays):
        np.testing.assert_allclose(state[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    if statistics is not None:
        for name, own in STATISTICS.items():
            value = state[f"FDS.{name}"]
            np.testing.assert_allclose(
                value, getattr(statistics, own), rtol=1e-5, atol=1e-5, err_msg=name
            )
    logged = pd.read_json(folder / "epochs.jsonl", lines=True)["train_loss"]
    np.testing.assert_allclose(logged, losses, rtol=1e-5)


def test_lds_alone(faces, tmp_path):
    args, checkpoint, folder, start = run(faces, tmp_path)
    arrays, losses = plain_training(faces, args, start, None)
    assert len(losses) == 5
    compare(checkpoint, arrays, None, losses, folder)


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("start", [(0, 1), (2, 3)])
def test_lds_and_fds(faces, tmp_path, variant, start):
    more = [
        "--fds",
        "--fds_variant",
        variant,
        "--start_update",
        start[0],
        "--start_smooth",
        start[1],
    ]
    args, checkpoint, folder, weights = run(faces, tmp_path, *more)
    statistics = make_statistics(variant, start)
    arrays, losses = plain_training(faces, args, weights, statistics)
    assert not np.allclose(statistics.m1, statistics.m2)
    compare(checkpoint, arrays, statistics, losses, folder)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_two_stage_training_from_a_checkpoint_with_fds(faces, tmp_path, variant):
    """Its statistics come along with their epoch number: they rest until the epoch reaches it."""
    fds_flags = ["--fds", "--fds_variant", variant]
    first = run(faces, tmp_path / "first", *fds_flags, "--epoch", 3)[1:3]
    more = ["--retrain_fc", "--pretrained", first[1] / "ckpt.pth.tar"]
    args, checkpoint, folder, weights = run(faces, tmp_path / "second", *fds_flags, *more)
    held = first[0]["state_dict"]
    assert held["FDS.epoch"] == 2
    start = {**weights, **{name: held[name] for name in NAMES[:2]}}
    statistics = make_statistics(variant)
    for name, own in STATISTICS.items():
        setattr(statistics, own, held[f"FDS.{name}"].numpy().copy())
    statistics.epoch, statistics.tracked = 2, held["FDS.num_samples_tracked"].numpy().copy()
    arrays, losses = plain_training(faces, args, start, statistics, only_last=True)
    np.testing.assert_array_equal(arrays[0], held["hidden.weight"])
    compare(checkpoint, arrays, statistics, losses, folder)
