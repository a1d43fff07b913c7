"""tools/export.py: the file answers as the network does, and a file that does not is removed."""

import subprocess
import sys

import pytest
import torch

from conftest import ROOT, load

export = load("tools", "export")


def save(folder, path, *words):
    """An untrained network's checkpoint, of `train.py`'s flags."""
    train = load(folder, "train")
    args = train.parse_args([*words])
    model = train.build_model(args)
    for name, buffer in model.named_buffers():  # batch norm that is not the identity
        if name.endswith("running_mean"):
            buffer.normal_()
    torch.save({"state_dict": model.state_dict(), "config": vars(args)}, path)
    return path


@pytest.mark.parametrize(
    ("folder", "flags"),
    [
        ("agedb-dir", "--model resnet18 --img_size 40"),
        ("nyud2-dir", "--model mini --downscale 4 --no-pretrained_encoder"),
        ("nyud2-dir", "--model mini --low 5 --high 700 --scale log --map_size 64 96"),
    ],
)
def test_a_file_answers_as_its_network(folder, flags, tmp_path, capsys):
    torch.manual_seed(0)
    path = save(folder, tmp_path / "ckpt.pth.tar", *flags.split())
    out = tmp_path / "net.pt2"
    assert export.main([folder, str(path), str(out)]) == 0
    assert "differs by" in capsys.readouterr().out
    predict = load(folder, "predict").load(path, "cpu")
    images = torch.randint(0, 256, (3, 60, 80, 3), dtype=torch.uint8)
    if folder == "agedb-dir":
        images = images[:, :40, :40].contiguous()
        inputs = load(folder, "datasets").normalize(images)
        expected = torch.tensor(predict.answer(list(images.numpy()))).flatten()
        found = torch.export.load(out).module()(inputs).flatten()
    elif "--map_size" in flags:
        images = images.repeat(1, 2, 2, 1)[:, :64, :96].contiguous()
        inputs = images.permute(0, 3, 1, 2).float()
        colours = load(folder, "transforms").colour_map(3, "cpu")
        inputs = load(folder, "transforms").apply_colour_map(inputs, *colours, inputs.clone())
        expected = torch.from_numpy(predict.answer(list(images.numpy())))
        found = torch.export.load(out).module()(inputs)[:, 0]
    else:
        blank = torch.zeros(images.shape[:3])
        inputs, _ = load(folder, "transforms").transform_test(images, blank, downscale=4)
        expected = torch.from_numpy(predict.answer(list(images.numpy())))[:, 1:58, 2:78]
        found = torch.export.load(out).module()(inputs)[:, 0].clamp(min=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_are_answered_in_the_tables_unit(tmp_path):
    torch.manual_seed(0)
    load("uci-dir", "demo_data").main(["--out", str(tmp_path), "--rows", "129"])
    train = load("uci-dir", "train")
    args = train.parse_args(["--target_scale", "log"])
    args.preparation = load("uci-dir", "datasets").read_prepared(tmp_path, "demo")[1]
    state = train.build_model(args).state_dict()
    torch.save({"state_dict": state, "config": vars(args)}, tmp_path / "ckpt.pth.tar")
    out = tmp_path / "net.pt2"
    assert export.main(["uci-dir", str(tmp_path / "ckpt.pth.tar"), str(out)]) == 0
    rows = torch.rand(4, 9)
    expected = load("uci-dir", "predict").load(tmp_path / "ckpt.pth.tar", "cpu").answer(rows)
    assert expected.min() > 20  # prices, not their logarithms
    found = torch.export.load(out).module()(rows)
    expected = torch.from_numpy(expected).to(found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_file_that_answers_otherwise_is_an_error():
    network = export.Answer(lambda inputs: (inputs.sum(1),), lambda preds, _: preds)
    assert export.check(network, lambda inputs: inputs.sum(1), (3,)) == 0.0
    with pytest.raises(ValueError, match="where the network answers"):
        export.check(network, lambda inputs: inputs.sum(1) + 1e-3, (3,))


def test_a_mistake_is_one_line_and_success_says_nothing_else(tmp_path):
    """As a program; the network need not be a trained one."""
    path = save("agedb-dir", tmp_path / "ckpt.tar", "--model", "resnet18", "--img_size", "40")
    for name, told in ((path, ""), (tmp_path / "none", "export.py: no checkpoint at")):
        command = [sys.executable, "tools/export.py", "agedb-dir", name, tmp_path / "net.pt2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.stderr.startswith(told)
        assert done.stderr.count("\n") == bool(told)


def test_only_known_endings(capsys):
    with pytest.raises(SystemExit):
        export.main(["agedb-dir", "run", "net.pth"])
    assert "must end in .pt2 or .onnx, got net.pth" in capsys.readouterr().err
