"""IMDB-WIKI as a user meets it: fetched, unpacked, prepared and trained on, on generated faces."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import ROOT, load
from range_server import serve

FOLDER = ROOT / "imdb-wiki-dir"
LDS_FDS = "--reweight sqrt_inv --lds --fds --fds_ks 5 --fds_sigma 2".split()

demo_data = load("imdb-wiki-dir", "demo_data")
download = load("imdb-wiki-dir", "download")
fetch = load("imdb-wiki-dir", "fetch")
prepare = load("imdb-wiki-dir", "prepare")
unpack = load("imdb-wiki-dir", "unpack")


def make_demo(out, *flags):
    small = ["--num_images", "90", "--img_size", "24", "--workers", "1"]
    demo_data.main(["--out", str(out), *small, *flags])


@pytest.fixture(scope="module")
def rows():
    """What the generator drew, kept or not."""
    return demo_data.draw_rows(90, np.random.default_rng([0, 0]))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A data folder that went the whole way, over a line that breaks three times."""
    mirror, data = tmp_path_factory.mktemp("mirror"), tmp_path_factory.mktemp("work") / "data"
    make_demo(mirror, "--archives_only")
    with pytest.MonkeyPatch.context() as patch, serve() as server:
        patch.setattr(fetch, "WAIT", 0.0)
        patch.setenv("NO_PROXY", "*")
        server.pages = {f"/{s}_crop.tar": (mirror / f"{s}_crop.tar").read_bytes()
                        for s in ("imdb", "wiki")}  # fmt: skip
        server.breaks = {"/imdb_crop.tar": 2, "/wiki_crop.tar": 1}
        download.main(["--images", "--base_url", server.url, "--data_dir", str(data)])
        assert len(server.asked) == 5
    assert prepare.main(["--data_dir", str(data), "--cap", "3"]) == 0
    return data


def test_the_meta_file_is_what_was_drawn(chain, rows):
    meta = pd.read_csv(chain / "imdb_wiki.csv")
    expected = [
        (row["age"], f"{source}_crop/{row['full_path']}")
        for source in ("imdb", "wiki") for row in rows
        if row["source"] == source and row["kind"] == "face"
    ]  # fmt: skip
    assert list(zip(meta["age"], meta["path"])) == expected
    assert len(expected) == 90
    assert {row["kind"] for row in rows} == {"face", *demo_data.FAULTS}
    assert set(meta["split"]) == {"train", "val", "test"}
    assert max(Counter(meta.loc[meta["split"] == "val", "age"]).values()) == 3
    for path in meta["path"]:
        with Image.open(chain / path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
    images = {p.relative_to(chain).as_posix() for p in chain.rglob("*.jpg")}
    assert images == {f"{row['source']}_crop/{row['full_path']}" for row in rows}


def test_the_demo_itself_goes_the_same_way(chain, tmp_path):
    """Unpacked and prepared by the script itself: the same bytes, whatever the processes."""
    make_demo(tmp_path / "demo", "--workers", "2")
    for path in chain.rglob("*_crop/*/*.jpg"):
        assert (tmp_path / "demo" / path.relative_to(chain)).read_bytes() == path.read_bytes()
    for source in ("imdb", "wiki"):
        name = f"{source}_crop/{source}.mat"
        assert (tmp_path / "demo" / name).read_bytes() == (chain / name).read_bytes()
    ours, theirs = (pd.read_csv(d / "imdb_wiki.csv") for d in (tmp_path / "demo", chain))
    assert ours[["age", "path"]].equals(theirs[["age", "path"]])


def test_a_folder_that_is_no_demo_stays(chain, tmp_path):
    (tmp_path / "imdb_crop").mkdir()  # empty, and of unknown origin
    for flags in ([], ["--overwrite"]):
        with pytest.raises(ValueError, match="holds imdb_crop"):
            make_demo(tmp_path, *flags)
    assert set(os.listdir(tmp_path)) <= {"imdb_crop", ".download.lock"}
    make_demo(tmp_path / "demo")
    with pytest.raises(ValueError, match="--overwrite"):
        make_demo(tmp_path / "demo")
    make_demo(tmp_path / "demo", "--overwrite", "--seed", "1")
    meta = pd.read_csv(tmp_path / "demo" / "imdb_wiki.csv")
    assert not meta["path"].equals(pd.read_csv(chain / "imdb_wiki.csv")["path"])


def make_real(mirror):
    """Archives as of another origin: the demo's of another seed, without its mark."""
    make_demo(mirror, "--archives_only", "--seed", "7")
    for path in mirror.glob("*.tar"):
        with tarfile.open(path) as archive:
            members = [(m, m.isreg() and archive.extractfile(m).read()) for m in archive]
        with tarfile.open(path, "w") as archive:
            for member, content in members:
                if not member.name.endswith(unpack.MARK):
                    archive.addfile(member, io.BytesIO(content or b""))


def test_real_data_in_the_place_of_a_demo_stay(tmp_path, monkeypatch, capsys):
    """Whatever part of a demo has been replaced since: --overwrite replaces the demo's alone."""
    data, mirror = tmp_path / "data", tmp_path / "mirror"
    monkeypatch.setenv("NO_PROXY", "*")
    make_demo(data)
    make_real(mirror)
    with serve() as server:
        server.pages = {f"/{p.name}": p.read_bytes() for p in mirror.glob("*.tar")}
        fetching = ["--images", "--data_dir", str(data), "--base_url", server.url]
        capsys.readouterr()
        download.main(fetching)
        assert capsys.readouterr().out.count("it is the demo, NOT IMDB-WIKI: --overwrite") == 2
        assert server.asked == []
        download.main([*fetching, "--overwrite"])
    assert "it is the demo" not in capsys.readouterr().out

    def assert_stays(*names):
        before = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match=f"holds {', '.join(names)}: --overwrite"):
            make_demo(data, "--overwrite")
        assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == before

    csv, archives = "imdb_wiki.csv", ["imdb_crop.tar", "wiki_crop.tar"]
    assert_stays("imdb_crop", archives[0], "wiki_crop", archives[1], csv)
    for name in archives:
        (data / name).unlink()
    assert_stays("imdb_crop", "wiki_crop", csv)
    shutil.rmtree(data / "imdb_crop")
    assert_stays("wiki_crop", csv)
    shutil.rmtree(data / "wiki_crop")
    assert_stays(csv)
    (data / csv).unlink()
    make_demo(data)
    shutil.copy(mirror / archives[1], data)  # a real archive beside the demo's folders
    assert_stays(archives[1])
    (data / archives[1]).unlink()
    pd.DataFrame({"age": [3], "path": ["imdb_crop/00/a.jpg"]}).to_csv(data / csv)
    assert_stays(csv)
    (data / csv).write_bytes(b"no table")
    assert_stays(csv)
    (data / csv).unlink()
    (data / "wiki_crop").rename(tmp_path / "wiki_crop")
    (data / "wiki_crop").symlink_to(tmp_path / "wiki_crop")
    assert_stays("wiki_crop")


def test_archives_of_a_demo_are_told_from_real_ones(tmp_path, capsys):
    """In the place of the real ones they are unpacked, and nothing passes for IMDB-WIKI."""
    make_demo(tmp_path, "--archives_only")
    make_demo(tmp_path, "--archives_only", "--overwrite")
    capsys.readouterr()
    (tmp_path / "imdb_crop.tar.sha256").write_text("ab  imdb_crop.tar\n")  # of the real one
    download.main(["--images", "--data_dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("it is the demo, NOT IMDB-WIKI: delete") == 2
    assert (tmp_path / "imdb_crop.tar.sha256").read_text().startswith("ab ")
    for content in (b"", bytes(10240), b"no archive" * 99):
        (tmp_path / "wiki_crop.tar").write_bytes(content)
        assert not unpack.is_demo(tmp_path / "wiki_crop.tar")


def test_three_thousand_faces_hold_every_shot():
    for seed in range(3):
        drawn = demo_data.draw_rows(3000, np.random.default_rng([seed, 0]))
        ages = np.array([row["age"] for row in drawn if row["kind"] == "face"])
        assert (ages > 100).any()  # wrong dates, as in the real set
        counts = np.bincount(ages, minlength=187)
        train = counts - 2 * np.minimum(counts // 3, 150)
        assert (train > 100).sum() >= 2
        assert ((train >= 20) & (train <= 100)).sum() >= 2
        assert ((train > 0) & (train < 20)).sum() >= 50


# ---- training ------------------------------------------------------------------------------


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def flags(data, store, *more):
    """Flags of a run of seconds."""
    fixed = "--model resnet18 --img_size 40 --batch_size 16 --device cpu --track none".split()
    return [*fixed, "--data_dir", str(data), "--store_root", str(store), *map(str, more)]


def finish(process, seconds=240):
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-4000:]
    return out


def start(*command, cwd=FOLDER):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_the_chain_ends_in_a_trained_network(chain, tmp_path):
    """The folder alone, copied out of the repository; evaluation repeats what training found."""
    alone = tmp_path / "alone"
    skipped = shutil.ignore_patterns("data", "checkpoint", "__pycache__")
    shutil.copytree(FOLDER, alone, ignore=skipped)
    run = flags(chain, tmp_path / "store", *LDS_FDS, "--epoch", 2)
    finish(start("train.py", *run, cwd=alone))
    (folder,) = (tmp_path / "store").iterdir()
    assert folder.name.startswith("imdb_wiki_resnet18_lds_gau_5_1_fds_gau_5_2.0_0_1_0.9_adam_l1_")
    results = json.loads((folder / "results.json").read_text())
    assert results["benchmark"] == "imdb-wiki-dir"
    assert results["method"] == "SQINV+LDS+FDS"
    predictions = pd.read_csv(folder / "predictions.csv")
    meta = pd.read_csv(chain / "imdb_wiki.csv")
    for split in ("val", "test"):
        part = predictions[predictions["split"] == split]
        assert part["path"].tolist() == meta.loc[meta["split"] == split, "path"].tolist()
    out = finish(start("train.py", *run, "--evaluate", cwd=alone))
    mae = [line.split()[2] for line in out.splitlines() if line.startswith("overall")]
    expected = [results["metrics"][split]["overall"]["mae"] for split in ("val", "test")]
    assert [float(value) for value in mae] == pytest.approx(expected, abs=6e-4)


@pytest.mark.slow
def test_two_nodes_with_a_cache_each_equal_one_process(chain, tmp_path):
    """The README's launch on several nodes, as two launchers on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tiny = (ROOT / "tests/tiny_run.py", FOLDER)
    run = ("--epoch", 1, *LDS_FDS)
    nodes = []
    for node in (0, 1):
        launch = f"-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --node_rank={node}"
        launch += f" --rdzv_id=7 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{port}"
        cache = ("--cache", tmp_path / f"cache{node}")
        nodes.append(start(*launch.split(), *tiny, *flags(chain, tmp_path / "two", *run, *cache)))
    try:
        for node in nodes:
            finish(node)
    finally:
        for node in nodes:
            node.kill()
    finish(start(*tiny, *flags(chain, tmp_path / "one", *run, "--cache", tmp_path / "cache0")))
    tables = []
    for store in ("one", "two"):
        (folder,) = (tmp_path / store).iterdir()
        tables.append(pd.read_csv(folder / "predictions.csv"))
        results = json.loads((folder / "results.json").read_text())
        assert results["processes"] == 1 + (store == "two")
    assert tables[0]["path"].equals(tables[1]["path"])
    np.testing.assert_allclose(tables[1]["prediction"], tables[0]["prediction"], rtol=1e-4)
    for node in (0, 1):
        assert len(list((tmp_path / f"cache{node}").glob("imdb_wiki_40_*.npy"))) == 1
