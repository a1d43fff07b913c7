"""What train.py says when it cannot go on, and the flags it takes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import load

train = load("agedb-dir", "train")
utils = load("agedb-dir", "utils")

DEFAULTS = dict(
    lds=False, lds_kernel="gaussian", lds_ks=9, lds_sigma=1, fds=False, fds_kernel="gaussian",
    fds_ks=9, fds_sigma=1, start_update=0, start_smooth=1, bucket_num=100, bucket_start=3,
    fds_mmt=0.9, reweight="none", retrain_fc=False, pretrained="", store_root="checkpoint",
    store_name="", lr=1e-3, batch_size=256, resume="", evaluate=False, eval_model="",
    dataset="agedb", data_dir="./data", model="resnet50", gpu=None, optimizer="adam", loss="l1",
    epoch=90, momentum=0.9, weight_decay=1e-4, schedule=[60, 80], print_freq=10, img_size=224,
    workers=32, seed=0, device="auto", precision=None, compile=False, fds_variant="official",
    fds_stats="extra_pass", overwrite=False, data_changed=False, track="tensorboard",
    resample="none", relevance="density", relevance_threshold=0.5, k_neighbors=5,
    perturbation=0.02, oversample=2.0, undersample=False, allow_outside=False, target=None,
    unit=None, low=None,
    high=None, bin_width=None, scale=None, many=None, few=None,
    regularizer="none", regularizer_weight=None, temperature=None, conr_omega=1.0, conr_push=0.01,
    conr_official=False, srl_momentum=0.9, dist_strength=0.1,
    noise_sigma=1.0, fix_noise_sigma=False, sigma_lr=0.01, gather=False, gar_alpha=0.2,
    dense_alpha=1.0, experts=0, expert_schedule="rise",
)  # fmt: skip


def test_flags_and_defaults():
    args = vars(train.parse_args([]))
    assert {name: args[name] for name in DEFAULTS} == DEFAULTS
    assert set(args) - set(DEFAULTS) == {"cache", "imagenet_weights", "save_every", "debug"}
    assert train.parse_args(["--random_seed", "5"]).seed == 5
    assert train.parse_args(["--epochs", "5"]).epoch == 5
    assert train.parse_args(["--cuda", "-1"]).gpu == -1
    roles = train.make_parser().roles
    assert set(roles.values()) == {"network", "training", "place"}
    assert set(roles) == set(args)
    assert train.parse_args(["--resume"]).resume == "auto"
    assert train.parse_args(["--resume", "file"]).resume == "file"


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lds", "--reweight sqrt_inv"), ("--lds --reweight sqrt_inv --lds_ks 4", "odd"),
     ("--fds --fds_sigma 0", "sigma"), ("--retrain_fc --reweight inverse", "--pretrained"),
     ("--resume --overwrite", "choose one"),
     ("--no_such_flag", "unrecognized"),
     ("--batch 3", "unrecognized"), ("--bucket_num 3", "must rise"),
     ("--epoch 0", "1 or more"), ("--seed -1", "0 or more"),
     ("--model vgg", "resnet50"), ("--eval_model a.pth.tar", "--evaluate")],
)  # fmt: skip
def test_conflicts_of_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(flags.split())
    assert message in capsys.readouterr().err


@pytest.fixture
def faces(tmp_path):
    """Six noise images, two of each split."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        rows.append((20 + i, f"{i}.png", ("train", "val", "test")[i % 3]))
    pd.DataFrame(rows, columns=["age", "path", "split"]).to_csv(tmp_path / "agedb.csv", index=False)
    return tmp_path


def run(faces, *more):
    """Train in this process."""
    fixed = "--model resnet18 --img_size 36 --device cpu --track none --epoch 1".split()
    folders = ["--data_dir", str(faces), "--store_root", str(faces / "runs")]
    return train.main([*fixed, *folders, *map(str, more)])


def test_a_mended_mistake_needs_no_other_command(faces):
    (faces / "0.png").rename(faces / "away.png")
    with pytest.raises(FileNotFoundError, match="1 of 6 files are missing"):
        run(faces)
    (faces / "away.png").rename(faces / "0.png")
    assert run(faces)["overall"]["num_samples"] == 2


def test_overwriting_waits_until_the_data_are_read(faces):
    run(faces)
    (folder,) = (faces / "runs").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (faces / "0.png").rename(faces / "away.png")
    with pytest.raises(FileNotFoundError, match="1 of 6 files are missing"):
        run(faces, "--overwrite")
    (faces / "away.png").rename(faces / "0.png")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run(faces, "--overwrite", "--pretrained", faces / "none")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_going_on_from_another_folder(faces, caplog):
    """The best epoch's weights come along; with an official file they are not known."""
    run(faces)
    (folder,) = (faces / "runs").iterdir()
    last = torch.load(folder / "ckpt.pth.tar", weights_only=True)
    official = {key: last[key] for key in ("epoch", "model", "state_dict", "optimizer")}
    torch.save({**official, "best_loss": torch.tensor(0.0)}, faces / "official.pth.tar")
    for name, more in (("a", ()), ("b", ("--epoch", 2))):
        run(faces, "--store_name", name, "--resume", faces / "official.pth.tar", *more)
        assert list((faces / "runs").glob(f"*_{name}_*/results.json"))
    # A best loss that cannot be beaten: the best checkpoint beside the given one stays.
    last.pop("digest")
    torch.save({**last, "best_loss": 0.0}, folder / "ckpt.pth.tar")
    run(faces, "--store_name", "c", "--resume", folder / "ckpt.pth.tar", "--epoch", 2)
    (other,) = (faces / "runs").glob("*_c_*")
    assert (other / "ckpt.best.pth.tar").read_bytes() == (folder / "ckpt.best.pth.tar").read_bytes()
    with pytest.raises(ValueError, match="another --optimizer"):
        run(faces, "--store_name", "d", "--resume", folder / "ckpt.pth.tar", "--optimizer", "sgd")
    torch.save({"epoch": 1}, faces / "empty")
    with pytest.raises(ValueError, match="no weights"):
        run(faces, "--evaluate", "--eval_model", faces / "empty")
    caplog.set_level("WARNING")
    torch.save(last["state_dict"], faces / "bare")  # weights alone are enough to evaluate
    metrics = run(faces, "--evaluate", "--eval_model", faces / "bare", "--img_size", 40)
    assert metrics["overall"]["num_samples"] == 2
    with pytest.raises(ValueError, match="does not say its epoch"):
        run(faces, "--store_name", "e", "--resume", faces / "bare")


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions_that_need_a_gpu(faces, precision):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        run(faces, "--precision", precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said():
    with pytest.raises(ValueError, match="no CUDA device"):
        utils.make_accelerator("cuda")


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir"])
def test_processes_wait_while_one_builds_a_large_cache(folder, monkeypatch):
    """The libraries' own patience, of 10 to 30 minutes, holds for all else, as a rendezvous."""
    utils, begun, groups = load(folder, "utils"), {}, []

    def begin(*_, **fields):
        begun.update(fields)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "init_process_group", begin)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **fields: groups.append(fields))
    launched = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 9}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InterruptedError):
        utils.make_accelerator("cpu")
    assert "timeout" not in begun
    assert utils.patient_group(SimpleNamespace(num_processes=1)) is None
    utils.patient_group(SimpleNamespace(num_processes=2))
    assert groups == [{"backend": "gloo", "timeout": utils.PATIENCE}]
    assert utils.PATIENCE.total_seconds() >= 2 * 3600


@pytest.mark.parametrize("folder", ["agedb-dir", "imdb-wiki-dir", "nyud2-dir", "shhs-dir"])
@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_weight_decay_that_cannot_be(folder, value, capsys):
    with pytest.raises(SystemExit):
        load(folder, "train").parse_args(["--weight_decay", value])
    assert f"--weight_decay must be 0 or more, got {float(value)}" in capsys.readouterr().err
