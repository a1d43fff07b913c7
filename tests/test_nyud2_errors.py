"""What nyud2-dir's train.py says when it cannot go on, and the flags it takes."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import load

batches = load("nyud2-dir", "batches")
train = load("nyud2-dir", "train")
utils = load("nyud2-dir", "utils")

DEFAULTS = dict(
    lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2, fds=False, fds_kernel="gaussian",
    fds_ks=5, fds_sigma=2, start_update=0, start_smooth=1, bucket_num=100, bucket_start=7,
    fds_mmt=0.9, reweight="none", retrain_fc=False, pretrained="", store_root="checkpoint",
    store_name="nyud2", lr=1e-4, batch_size=32, resume="", evaluate=False, eval_model="",
    epochs=10, start_epoch=0, weight_decay=1e-4, data_dir="./data", seed=0, device="auto",
    allow_outside=False, debug=False, save_every=0.0,
    precision=None, compile=False, fds_variant="paper", fds_stats="extra_pass",
    overwrite=False, data_changed=False, track="tensorboard", gpu=None, workers=32, print_freq=10,
)  # fmt: skip
OURS = dict(
    downscale=1, select="heldout", counts="auto", cache=None, model="resnet50",
    pretrained_encoder=True, lr_step=5, loss="mse",
    noise_sigma=1.0, fix_noise_sigma=False, sigma_lr=0.01, gather=False, gar_alpha=0.2,
    dense_alpha=1.0, experts=0, expert_schedule="fade",
    target=None, unit=None, low=None, high=None, bin_width=None, scale=None, many=None, few=None,
    no_label=None, map_size=None, regularizer="none", regularizer_weight=0.2, temperature=0.2,
    conr_omega=0.2, conr_push=0.2, conr_official=False,
)  # fmt: skip


def test_flags_and_defaults():
    assert vars(train.parse_args([])) == DEFAULTS | OURS
    args = train.parse_args("--learning-rate 1e-3 --wd 0 --random_seed 5 --resume".split())
    assert (args.lr, args.weight_decay, args.seed, args.resume) == (1e-3, 0, 5, "auto")
    args = train.parse_args("--epoch 3 --cuda 1".split())
    assert (args.epochs, args.gpu) == (3, 1)
    assert not train.parse_args(["--model", "mini"]).pretrained_encoder


def test_names_of_run_folders():
    """The official name where no flag of ours is used, and one of its own where one is."""

    def name(argv):
        return "".join(train.run_name(train.parse_args(argv.split())))

    assert name("") == "nyud2_lr_0.0001_bs_32"
    assert name("--reweight inverse") == "nyud2_inverse_lr_0.0001_bs_32"
    flags = "--reweight inverse --lds --fds"
    assert name(flags) == "nyud2_lds_gau_5_2_fds_gau_5_2_0_1_0.9_lr_0.0001_bs_32_inverse"
    # `mini` has no weights to start from, so this is no choice.
    for argv in ("--model mini", "--model mini --no-pretrained_encoder"):
        assert name(argv) == "nyud2_lr_0.0001_bs_32_model_mini"
    assert name("--no-pretrained_encoder").endswith("_pretrained_encoder_False")
    assert name("--wd 0").endswith("_weight_decay_0.0")
    more = (
        "--seed 1", "--select test", "--downscale 2", "--counts data", "--model resnet18",
        "--no-pretrained_encoder", "--fds_variant official", "--lr_step 3", "--fds_stats online",
        "--precision bf16", "--bucket_start 5", "--bucket_num 90", "--weight_decay 0",
    )  # fmt: skip
    assert len({name(f"{flags} {flag}") for flag in ("", *more)}) == len(more) + 1
    # What may differ between the parts of one run changes nothing.
    for same in ("--epochs 20", "--start_epoch 1", "--workers 2", "--cache none", "--overwrite"):
        assert name(same) == name("")


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lds", "--reweight sqrt_inv"), ("--lds --reweight sqrt_inv --lds_ks 4", "odd"),
     ("--fds --fds_sigma 0", "sigma"), ("--retrain_fc", "--pretrained"),
     ("--resume --overwrite", "choose one"), ("--no_such_flag", "unrecognized"),
     ("--epochs 0", "1 or more"), ("--seed -1", "0 or more"), ("--model vgg", "resnet50"),
     ("--bucket_num 101", "at most 100"), ("--downscale 3", "choose from"),
     ("--start_epoch 10", "--epochs - 1"), ("--lr_step 0", "1 or more"),
     ("--fds --bucket_num 9", "fds_ks")],
)  # fmt: skip
def test_conflicts_of_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags.split())
    assert message in capsys.readouterr().err


@pytest.fixture
def rooms(tmp_path):
    """Four noise pairs of two scenes and two test pairs."""
    rng = np.random.default_rng(0)
    lists = {"nyu2_train": "", "nyu2_test": ""}
    for i in range(6):
        split = "nyu2_train" if i < 4 else "nyu2_test"
        stem = f"{split}/room_{i // 2:04d}_out/{i}"
        (tmp_path / stem).parent.mkdir(parents=True, exist_ok=True)
        colours = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / f"{stem}.jpg")
        depth = rng.integers(20, 250, (240, 320))
        depth = depth.astype(np.uint8) if i < 4 else (depth * 39).astype(np.uint16)
        Image.fromarray(depth).save(tmp_path / f"{stem}.png")
        lists[split] += f"data/{stem}.jpg,data/{stem}.png\n"
    for split, rows in lists.items():
        (tmp_path / f"{split}.csv").write_text(rows)
    np.save(tmp_path / "test_balanced_mask.npy", np.ones((2, 228, 304), np.uint8))
    return tmp_path


def run(rooms, *more):
    """Train in this process."""
    fixed = "--model mini --downscale 4 --device cpu --track none --epochs 1".split()
    folders = ["--data_dir", str(rooms), "--store_root", str(rooms / "runs")]
    return train.main([*fixed, *folders, *map(str, more)])


def test_bad_data_are_named_before_training(rooms):
    depth = rooms / "nyu2_train/room_0001_out/2.png"
    good = depth.read_bytes()
    for picture, message in [
        (np.ones((120, 160), np.uint8), "the image is 320×240 and its depth map 160×120"),
        (np.ones((240, 320), np.uint16), "8 bits of grey are needed"),
        (np.zeros((240, 320), np.uint8), "0 everywhere"),
    ]:
        Image.fromarray(picture).save(depth)
        with pytest.raises(ValueError, match=rf"1 of 4 pairs.*{message}"):
            run(rooms)
    depth.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 files are missing.*2\.png"):
        run(rooms)
    depth.write_bytes(good)
    np.save(rooms / "test_balanced_mask.npy", np.ones((2, 114, 152), np.uint8))
    with pytest.raises(ValueError, match=r"must be uint8 \[2, 228, 304\]"):
        run(rooms)
    assert not (rooms / "runs").exists()


def test_fds_needs_its_subset(rooms):
    with pytest.raises(FileNotFoundError, match=r"nyu2_train_FDS_subset\.csv"):
        run(rooms, "--fds")
    assert run(rooms, "--fds", "--fds_stats", "online")["overall"]["num_samples"]


def test_depths_outside_of_the_range_go_to_the_end_buckets(rooms):
    depth = np.full((240, 320), 250, np.uint8)
    depth[:100], depth[100:150] = 3, 255  # 0.12 m, 10 m
    for i in range(4):
        Image.fromarray(depth).save(rooms / f"nyu2_train/room_{i // 2:04d}_out/{i}.png")
    more = "--fds --fds_stats online --reweight inverse --counts data".split()
    assert np.isfinite(run(rooms, *more)["overall"]["rmse"])
    (folder,) = (rooms / "runs").iterdir()
    held = np.load(folder / "fds_statistics.npz")["num_samples_tracked"]
    assert held[0] > 0
    assert held[-1] > 0
    assert held.sum() < 2 * 29 * 38  # pixels that rotation leaves without depth are not tracked


def test_the_logged_loss_is_a_mean_over_samples(rooms, monkeypatch):
    """A short last batch counts for its images, not as a whole one."""

    def number_of_images(preds, depths, weights):
        return preds.sum() * 0 + len(preds)

    monkeypatch.setattr(train.losses, "weighted_mse_loss", number_of_images)
    run(rooms, "--select", "test", "--batch_size", 3)
    (folder,) = (rooms / "runs").iterdir()
    row = json.loads((folder / "epochs.jsonl").read_text())
    assert row["train_loss"] == pytest.approx((3 * 3 + 1 * 1) / 4)  # over the steps it is 2


def test_offline_without_imagenet_weights(rooms, monkeypatch):
    def unreachable(weights):
        raise OSError("no route to host")

    net = train.DepthNet.__init__.__globals__["torchvision"].models
    monkeypatch.setattr(net, "resnet18", unreachable)
    with pytest.raises(ValueError, match="--no-pretrained_encoder"):
        run(rooms, "--model", "resnet18")
    assert not (rooms / "runs").exists()
