"""Windows, files, checkpoints and the names of run folders."""

import io
import json
import os
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import load

fds = load("agedb-dir", "fds")
utils = load("agedb-dir", "utils")
run_folder = load("agedb-dir", "run_folder")
train = load("agedb-dir", "train")
results = load("agedb-dir", "results")


def test_windows_by_hand():
    np.testing.assert_allclose(
        utils.get_lds_kernel_window("triang", 5, 1), [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]
    )
    e = np.exp(-0.5)
    np.testing.assert_allclose(utils.get_lds_kernel_window("laplace", 5, 2), [e**2, e, 1, e, e**2])
    # Within the window the Gaussian's edge is reflected: these ends lie above exp(-x² / 2σ²).
    window = utils.get_lds_kernel_window("gaussian", 5, 2)
    np.testing.assert_allclose(window, [0.858285, 0.945828, 1, 0.945828, 0.858285], atol=1e-6)
    assert utils.get_lds_kernel_window("gaussian", 1, 2).tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("gaussian", 4, 2), "say 5"), (("gaussian", -3, 2), "odd.*say 1"),
     (("gauss", 5, 2), "triang"), (("laplace", 5, 0), "sigma"),
     (("gaussian", 5, float("nan")), "sigma")],
)  # fmt: skip
def test_window_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        utils.get_lds_kernel_window(*arguments)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "file"
    utils.write_atomically(path, b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        utils.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_never_runs_code(tmp_path):
    torch.save({"state_dict": Evil(tmp_path / "harm")}, tmp_path / "evil.pth.tar")
    with pytest.raises(ValueError, match="cannot be read"):
        utils.load_checkpoint(tmp_path / "evil.pth.tar")
    assert not (tmp_path / "harm").exists()
    pickle.dump(Evil(tmp_path / "harm"), (tmp_path / "plain").open("wb"))
    with pytest.raises(ValueError, match="cannot be read"):
        utils.load_checkpoint(tmp_path / "plain")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "mine.csv").write_text("age,path\n")
    with pytest.raises(
        ValueError, match=r"neither an archive nor a pickle.: use another checkpoint"
    ):
        utils.load_checkpoint(tmp_path / "mine.csv")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        utils.load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("old_names", [False, True])
def test_numpy_scalars_load(tmp_path, old_names):
    """The official NYUD2 files hold them, under the module names of NumPy 1."""
    state = {"error": np.float64(1.5), "metric": {"rmse": np.float32(2.5), "n": np.int64(3)}}
    buffer = io.BytesIO()
    torch.save(
        {**state, "state_dict": {"a": torch.ones(2)}}, buffer, _use_new_zipfile_serialization=False
    )
    content = buffer.getvalue()
    if old_names:  # the pickle protocol 2 of torch.save writes module names as lines
        assert b"numpy._core.multiarray\n" in content
        content = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    (tmp_path / "file").write_bytes(content)
    loaded = utils.load_checkpoint(tmp_path / "file")
    assert loaded["error"] == 1.5
    assert loaded["metric"] == {"rmse": 2.5, "n": 3}


@pytest.mark.parametrize("old_format", [False, True])
def test_the_harmful_checkpoint_would_do_harm(tmp_path, old_format):
    """What the test above refuses does run code where a file is not read as data alone."""
    path, harm = tmp_path / "evil.pth.tar", tmp_path / "harm"
    torch.save({"error": Evil(harm)}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match="tensors and plain values"):
        utils.load_checkpoint(path)
    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.exists()


def test_numpy_scalars_of_every_kind_load_from_new_files(tmp_path):
    kinds = "float16 float32 float64 int8 int32 int64 uint8 bool".split()
    state = {kind: np.dtype(kind).type(1) for kind in kinds}
    torch.save(state, tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "new") as new, zipfile.ZipFile(tmp_path / "old", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):  # as NumPy 1 wrote it
                assert content.count(b"cnumpy._core.multiarray\n") == 1
                content = content.replace(b"cnumpy._core.multi", b"cnumpy.core.multi")
            old.writestr(name, content)
    for file in ("new", "old"):
        loaded = utils.load_checkpoint(tmp_path / file)
        assert loaded == state
        assert [str(value.dtype) for value in loaded.values()] == kinds


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    utils.save_checkpoint(tmp_path / "ckpt", {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        utils.save_checkpoint(tmp_path / "ckpt", {"epoch": 2, "state": lambda: None})
    assert utils.load_checkpoint(tmp_path / "ckpt") == {"epoch": 1}
    assert os.listdir(tmp_path) == ["ckpt"]


def test_fds_statistics_may_be_missing_or_too_many():
    def net(with_fds):
        model = torch.nn.Module()
        model.linear = torch.nn.Linear(3, 1)
        model.FDS = fds.FDS(3, bucket_num=10) if with_fds else None
        return model

    full = net(True)
    full.FDS.running_mean.fill_(5)
    state = full.state_dict()
    plain, other = net(False), net(True)
    assert utils.load_state(plain, state, "file") == []
    assert torch.equal(plain.linear.weight, full.linear.weight)
    left = utils.load_state(other, plain.state_dict(), "file")
    assert left == [name for name in state if name.startswith("FDS.")]
    assert other.FDS.running_mean.eq(0).all()
    utils.load_state(other, {f"module.{name}": value for name, value in state.items()}, "file")
    assert other.FDS.running_mean.eq(5).all()
    other.FDS = fds.FDS(3, bucket_num=12)
    with pytest.raises(ValueError, match=r"FDS\.running_mean is \[10, 3\].*--bucket_num"):
        utils.load_state(other, state, "file")


def test_load_state_names_what_differs():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    state = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    assert utils.load_state(model, {**state, "module.FDS.epoch": torch.ones(1)}, "file") == []
    assert torch.equal(model[1].bias, state["module.1.bias"])
    before = model[1].weight.clone()
    left = utils.load_state(model, {k: v + 1 for k, v in state.items()}, "file", skip=("1.",))
    assert left == ["1.weight", "1.bias"]
    assert torch.equal(model[1].weight, before)
    wrong = {**state, "extra": torch.ones(1)}
    del wrong["module.1.bias"]
    with pytest.raises(ValueError, match=r"2 names differ: missing 1\.bias; unknown extra"):
        utils.load_state(model, wrong, "file")
    with pytest.raises(ValueError, match=r"1\.weight is \[1, 4\] in the file, \[1, 3\] in the"):
        utils.load_state(model, {**state, "module.1.weight": torch.ones(1, 4)}, "file")


def test_json_has_no_nan():
    line = utils.to_json({"a": np.float32("nan"), "b": [np.int64(2), float("inf")], 3: np.ones(2)})
    assert json.loads(line) == {"a": None, "b": [2, None], "3": [1.0, 1.0]}


def test_seeds_repeat_and_differ():
    def draw(*key):
        utils.seed_everything(*key)
        return torch.rand(1).item(), np.random.rand()  # noqa: NPY002 - what is to be seeded

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(1, 2, 4), draw(1, 3, 3), draw(2, 2, 3)}) == 4


def fake_run(folder, **given):
    """A run of one process in a folder, with the flags that are given."""
    parser = train.make_parser()
    args = parser.parse_args(["--track", "none"])
    vars(args).update(given)
    accelerator = SimpleNamespace(scaler=None, is_main_process=True)
    return run_folder.Run(args, parser, accelerator, folder, {})


NAMES = {
    "": "agedb_resnet50_adam_l1_0.001_256",
    "--reweight sqrt_inv": "agedb_resnet50_sqrt_inv_adam_l1_0.001_256",
    "--reweight sqrt_inv --lds": "agedb_resnet50_lds_gau_9_1_adam_l1_0.001_256_sqrt_inv",
    "--reweight inverse --lds --lds_kernel triang --lds_ks 5 --store_name x --loss huber":
        "agedb_resnet50_x_lds_tri_5_adam_huber_0.001_256_inverse",
    "--fds --fds_ks 5 --fds_sigma 2 --optimizer sgd --lr 0.1":
        "agedb_resnet50_fds_gau_5_2.0_0_1_0.9_sgd_l1_0.1_256",
    "--retrain_fc --pretrained f --reweight inverse --seed 3":
        "agedb_resnet50_inverse_retrain_fc_adam_l1_0.001_256_pretrained_f_seed_3",
    "--fds --fds_variant paper --img_size 64 --schedule 4 5 --fds_stats online":
        "agedb_resnet50_fds_gau_9_1_0_1_0.9_adam_l1_0.001_256_paper_img_size_64"
        "_fds_stats_online_schedule_4-5",
}  # fmt: skip


@pytest.mark.parametrize("flags", NAMES)
def test_names_of_run_folders(flags):
    assert "".join(train.run_name(train.parse_args(flags.split()))) == NAMES[flags]


def test_a_folder_is_found_however_its_numbers_are_spelled(tmp_path):
    (tmp_path / "agedb_lds_gau_5_2_adam").mkdir()
    found = run_folder.find_run_folder(tmp_path, ["agedb_lds_gau_5_2.0_adam"])
    assert found.name == "agedb_lds_gau_5_2_adam"
    other = run_folder.find_run_folder(tmp_path, ["agedb_lds_gau_5_3.0_adam"])
    assert other.name == "agedb_lds_gau_5_3.0_adam"
    assert run_folder.find_run_folder(tmp_path / "none", ["a"]).name == "a"


def test_a_folder_is_found_whatever_the_order_of_its_flags(tmp_path):
    """Earlier versions named the seed before the size of the images."""
    (tmp_path / "agedb_adam_seed_1_img_size_64_bucket_num_90").mkdir()
    parts = ["_img_size_64", "_bucket_num_90", "_seed_1"]
    found = run_folder.find_run_folder(tmp_path, ["agedb_adam", *parts])
    assert found.name == "agedb_adam_seed_1_img_size_64_bucket_num_90"
    for others in (["_img_size_64", "_bucket_num_90", "_seed_2"], parts[:2], [*parts, "_online"]):
        name = "".join(["agedb_adam", *others])
        assert run_folder.find_run_folder(tmp_path, ["agedb_adam", *others]).name == name


def test_epochs_are_cut_back_to_the_checkpoint(tmp_path):
    rows = "".join(json.dumps({"epoch": e}) + "\n" for e in (0, 1, 2))
    (tmp_path / "epochs.jsonl").write_text(rows + '{"epoch": 3, "tra')
    results.start_epochs(fake_run(tmp_path), 2, 2)
    lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    rows = rows.replace('{"epoch": 1}', '{"epoch": 1')
    (tmp_path / "epochs.jsonl").write_text(rows)
    with pytest.raises(ValueError, match="no line stands between the epochs 0 and 2"):
        results.start_epochs(fake_run(tmp_path), 3, 3)
    assert (tmp_path / "epochs.jsonl").read_text() == rows


@pytest.mark.parametrize(
    ("flags", "name"),
    [({}, "VANILLA"), ({"reweight": "sqrt_inv", "lds": True}, "SQINV+LDS"),
     ({"reweight": "inverse", "fds": True}, "INV+FDS"), ({"loss": "focal_l1"}, "FOCAL-R"),
     ({"fds": True, "fds_variant": "paper"}, "VANILLA+FDS (paper)"),
     ({"retrain_fc": True, "reweight": "inverse", "lds": True}, "RRT INV+LDS")],
)  # fmt: skip
def test_method_names(flags, name):
    parser = train.make_parser()
    args = parser.parse_args([])
    vars(args).update(flags)
    assert results.method_name(args, parser) == name


@pytest.mark.parametrize("sigma", [float("inf"), float("nan"), 1e-320, 0])
@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
def test_a_width_that_gives_no_window_is_refused(kernel, sigma):
    with pytest.raises(ValueError, match="sigma"):
        utils.get_lds_kernel_window(kernel, 5, sigma)


def test_a_run_is_not_mixed_with_another(tmp_path):
    """--resume with a path from elsewhere does not write into a folder that holds a run."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ckpt.pth.tar").write_bytes(b"x")
    own, last = tmp_path / "own", "ckpt.pth.tar"
    with pytest.raises(ValueError, match="--store_name"):
        run_folder.find_checkpoint(fake_run(own, resume=str(tmp_path / "other" / last)), last)
    for folder in (own, tmp_path / "fresh"):
        run = fake_run(folder, resume=str(own / last))
        assert run_folder.find_checkpoint(run, last) == own / last


def test_fds_starts_where_a_run_without_it_is_gone_on_from(tmp_path, caplog):
    class Model(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.linear, self.FDS = torch.nn.Linear(3, 1), module

    path = tmp_path / "ckpt.pth.tar"
    torch.save({"epoch": 5, "best_loss": 1.0, "state_dict": Model(None).state_dict()}, path)
    model = Model(fds.FDS(3, 12, 2))
    load("agedb-dir", "checkpoints").restore(fake_run(tmp_path / "run"), path, model, None)
    assert "no statistics of FDS" in caplog.text
    x, labels = torch.randn(20, 3), torch.arange(20) % 10 + 2.0
    for epoch in (5, 6, 7):
        changed = not torch.equal(model.FDS.smooth(x, labels, epoch), x)
        assert changed == (epoch == 7)  # one update to gather, one to take over, as from epoch 0
        model.FDS.update_last_epoch_stats(epoch)
        model.FDS.update_running_stats(x + epoch, labels, epoch)
