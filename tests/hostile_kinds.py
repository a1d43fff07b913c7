"""The kinds of files that `fuzz.py` damages: how a whole one is made and read."""

import contextlib
import io
import json
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import torch
from PIL import Image

from conftest import load


@dataclass
class Kind:
    """One kind of file."""

    name: str
    where: str  # folders that read it
    what: str
    files: tuple  # that are damaged, one in each case
    make: Callable  # writes them, and others, into a folder
    read: Callable  # of the folder; returns what is compared
    guarded: bool = False  # checksums let no other content pass
    flips: float = 0.3  # share of the cases that flip one bit
    share: int = 4  # of all cases
    whole: str = ""  # fingerprint of the content before


def text(name, content):
    """Return a function that writes a text file."""
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


# ---- tables --------------------------------------------------------------------------------

AGES = "age,path,split\n" + "".join(
    f"{20 + i % 7},faces/{i}.jpg,{('train', 'val', 'test')[i % 3]}\n" for i in range(30)
)
SCORES = "id,score,path,split\n" + "".join(
    f"{i},{10 * i},nights/{i}.h5,{('train', 'val', 'test')[i % 3]}\n" for i in range(6)
)
PAIRS = "sentence1\tsentence2\tscore\n" + "".join(
    f"A man plays {i}.\tA woman sings {i}.\t{i / 4}\n" for i in range(9)
)
TABLE = "size,colour,price\n" + "".join(
    f"{i % 17 / 4},{('red', 'green')[i % 2]},{1.5 * i:.2f}\n" for i in range(60)
)


def make_ages(folder):
    """Write a table of ages."""
    text("own.csv", AGES)(folder)


def make_scores(folder):
    """Write a table of scores and the places of its nights."""
    text("shhs.csv", SCORES)(folder)
    (folder / "nights").mkdir()
    for i in range(6):
        (folder / "nights" / f"{i}.h5").touch()


def make_pairs(folder):
    """Write the three files of sentence pairs."""
    for name in load("sts-b-dir", "pair_file").FILES.values():
        text(name, PAIRS)(folder)


def make_prepared(folder):
    """Write a prepared table of uci-dir."""
    text("own.csv", TABLE)(folder)
    words = f"--csv {folder / 'own.csv'} --target price --data_dir {folder} --name made --seed 0"
    load("uci-dir", "prepare").main(words.split())


def read_prepared(folder):
    """Read a prepared table and encode its rows, as training does."""
    datasets = load("uci-dir", "datasets")
    table, preparation = datasets.read_prepared(folder, "made")
    return datasets.split_rows(table, preparation, folder / "made.csv")


def make_mask(folder):
    """Write a mask of one test image."""
    mask = np.zeros((1, 228, 304), dtype=np.uint8)
    mask[0, ::9] = 1
    np.save(folder / "test_balanced_mask.npy", mask)


# ---- checkpoints and run folders -----------------------------------------------------------


def model_of():
    """Return a small network with its optimizer after one step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    model.FDS = None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def checkpoint_of():
    """Return a checkpoint of it, with the names of all folders' formats."""
    model, optimizer = model_of()
    return {
        "epoch": 1, "best_loss": 2.5, "best_epoch": 1, "wall_seconds": 3.0, "error": 2.5, "step": 4,
        "history": [3.0, 2.5], "per_epoch": 2, "best_step": 4, "metric": {"mse": 1.0}, "data": "",
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "model": "Linear",
        "config": {"lr": 0.1, "seed": 0, "select": "val"}, "format": "nyud2-dir",
    }  # fmt: skip


def run_of(folder):
    """Return what `restore` needs of a run."""
    lengths = {"epoch": 9, "epochs": 9, "max_vals": 9}
    args = Namespace(**lengths, lr=0.1, data_changed=False, seed=0, select="val")
    accelerator = SimpleNamespace(scaler=None, num_processes=1, process_index=0, device="cpu")
    parser = SimpleNamespace(flags_of=lambda role: [])
    return SimpleNamespace(
        args=args, accelerator=accelerator, parser=parser, data="", is_main=False, folder=folder,
        held=None, inputs={}, training={}, within=None,
    )  # fmt: skip


def read_checkpoint(folder_name):
    """Return a function that resumes from a checkpoint as a folder does."""

    def read(folder):
        model, optimizer = model_of()
        module = load(folder_name, "checkpoints")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        progress = module.restore(run_of(folder), folder / module.LAST, model, optimizer)
        return model.state_dict(), optimizer.state_dict(), progress

    return read


def save_checkpoint(folder_name):
    """Return a function that writes a checkpoint as a folder does."""

    def make(folder):
        module = load(folder_name, "checkpoints")
        load(folder_name, "utils").save_checkpoint(folder / module.LAST, checkpoint_of())

    return make


def make_fields(folder):
    """Write a checkpoint as JSON, whose damage `read_fields` puts into a whole archive."""
    state = checkpoint_of()
    del state["state_dict"], state["optimizer"]
    text("fields.json", json.dumps(state))(folder)


def read_fields(folder):
    """Resume from a checkpoint that is whole, but holds other things than it should."""
    module = load("agedb-dir", "checkpoints")
    try:
        fields = json.loads((folder / "fields.json").read_bytes())
    except (ValueError, RecursionError):  # the damage is in the JSON: a hole in the checkpoint
        fields = {"epoch": None}
    fields = fields if isinstance(fields, dict) else {"state_dict": fields}
    whole = checkpoint_of()
    state = {name: whole[name] for name in ("state_dict", "optimizer")} | fields
    torch.save(state, folder / module.LAST)
    return read_checkpoint("agedb-dir")(folder)


def make_published(folder):
    """Write a published folder."""
    from safetensors.torch import save_file

    save_file({"weight": torch.arange(8.0).reshape(2, 4)}, folder / "model.safetensors")
    text("config.json", json.dumps({"model": "resnet18", "img_size": 64}))(folder)


def read_published(folder):
    """Read a published folder and take its flags."""
    released = load("agedb-dir", "released")
    checkpoint = released.load(folder / "model.safetensors")
    released.weights_of(checkpoint, folder / "model.safetensors")
    args = Namespace(model="resnet50", img_size=224)
    released.take_flags(args, checkpoint, folder / "model.safetensors", ["model", "img_size"])
    return checkpoint, vars(args)


RUN = ("results.json", "epochs.jsonl", "predictions.csv", "label_density.csv", "fds_statistics.npz")


def make_run(folder):
    """Write a finished run's folder."""
    rng = np.random.default_rng(0)
    shots = {"num_samples": 3, "mae": 1.5, "mse": 4.0}
    metrics = {shot: shots for shot in ("overall", "many", "medium", "few")}
    results = {
        "benchmark": "agedb-dir", "method": "SQINV+LDS", "seed": 0, "best_epoch": 0,
        "target": {"name": "age", "unit": "years"}, "main_metrics": ["mae"], "higher_is_better": [],
        "metrics": {"val": metrics, "test": metrics}, "wall_seconds": 60.0, "config": {"lr": 0.1},
    }  # fmt: skip
    text("results.json", json.dumps(results))(folder)
    epoch = {"epoch": 0, "train_loss": 1.0, "lr": 0.1, "val": metrics, "seconds": {"train": 1}}
    text("epochs.jsonl", "".join(json.dumps(epoch | {"epoch": i}) + "\n" for i in range(3)))(folder)
    frame = pd.DataFrame({"path": list("abcdef"), "label": range(6), "prediction": range(6)})
    frame["split"] = ["val", "test"] * 3
    frame.to_csv(folder / "predictions.csv", index=False)
    density = pd.DataFrame({"bucket": range(6), "label": range(6), "shot": ["many"] * 6})
    for name in ("count", "emp_label_dist", "eff_label_dist", "weight"):
        density[name] = range(1, 7)
    density.to_csv(folder / "label_density.csv", index=False)
    arrays = {name: rng.random((6, 4)) for name in load("agedb-dir", "run_files").STATISTICS}
    arrays |= {"label": np.arange(6), "num_samples_tracked": np.arange(6)}
    np.savez(folder / "fds_statistics.npz", **arrays)


def read_run(folder):
    """Make the table of a run."""
    report = load("agedb-dir", "report")
    return report.make_table([report.load_run(folder)])


def draw_run(folder):
    """Draw the figures of a run."""
    load("agedb-dir", "report").draw_run(folder, folder / "figures")
    return ""


def make_finished(folder):
    """Write a finished run's folder with its best epoch."""
    make_run(folder)
    results = json.loads((folder / "results.json").read_bytes())
    results |= {"command": "python train.py --lr 0.1 --data_dir /a/b", "commit": "abc", "data": ""}
    results |= {"device": "cpu", "versions": {"torch": "2.9"}, "place_flags": ["data_dir"]}
    text("results.json", json.dumps(results))(folder)
    torch.save(checkpoint_of(), folder / "ckpt.best.pth.tar")


def publish_run(folder):
    """Publish a run and return the files that were written."""
    out = folder / "published"
    with contextlib.redirect_stdout(io.StringIO()):
        load("tools", "publish").main([str(folder), "--out", str(out), "--overwrite"])
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


# ---- images, nights, caches, archives ------------------------------------------------------


def make_images(folder):
    """Write an image of each of three formats."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "gif"):
        image.save(folder / f"a.{suffix}")


def read_images(folder):
    """Read them as an age folder does."""
    paths = ["a.jpg", "a.png", "a.gif"]
    images = load("agedb-dir", "image_cache").Images(folder, paths, 16, None, workers=1, quiet=True)
    return images.read(range(3))


def make_depths(folder):
    """Write an image and its depth map."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "a.jpg")
    Image.fromarray(image[..., 0]).save(folder / "a.png")


def read_depths(folder):
    """Read the pair as nyud2-dir does."""
    table = pd.DataFrame({"image": ["a.jpg"], "depth": ["a.png"]})
    pairs = load("nyud2-dir", "depth_cache").Pairs(
        folder, table, 8, None, "t", workers=1, quiet=True
    )
    return pairs.read([0])


def make_cache(folder):
    """Write an image cache, under names that do not change."""
    make_images(folder)
    read_cache(folder)
    for path in [*(folder / "cache").glob("*.npy"), *(folder / "cache").glob("*.rows")]:
        (folder / f"made{path.suffix}").write_bytes(path.read_bytes())


def read_cache(folder):
    """Read the cache, with the damaged files in place if there are such."""
    cache = folder / "cache"
    for made in folder.glob("made.*"):
        next(cache.glob(f"*{made.suffix}")).write_bytes(made.read_bytes())
    paths = ["a.jpg", "a.png", "a.gif"]
    module = load("agedb-dir", "image_cache")
    images = module.Images(folder, paths, 16, cache, workers=1, quiet=True)
    return images.read(range(3)).clone()


def make_night(folder):
    """Write a night of three frames."""
    rng = np.random.default_rng(0)
    night = {"stages": np.zeros(3, dtype=np.int8), "lacking": ""}
    for name, signal in load("shhs-dir", "night_signals").SIGNALS.items():
        night[name] = rng.random((signal.channels, 3 * signal.frame)).astype(np.float16)
    load("shhs-dir", "night_file").write_night(folder / "a.h5", night, "none")


def read_night(folder):
    """Read a night and the scale of its inputs, as training does."""
    nights = load("shhs-dir", "datasets").Nights(folder, ["a.h5"])
    return nights.read([0]), nights.scale([0]), nights.frames, nights.moments


RECORDINGS = ("a.csv", "a.npy")
OWN_SIGNAL = Namespace(channels="x,y", rate=4.0, window=8.0)


def make_recordings(folder):
    """Write a recording of two channels as CSV and as an array."""
    samples = np.random.default_rng(0).normal(size=(100, 2)).round(3)
    pd.DataFrame(samples, columns=["x", "y"]).to_csv(folder / "a.csv", index=False)
    np.save(folder / "a.npy", samples)


def read_recordings(folder):
    """Read both as prepare.py does."""
    module = load("shhs-dir", "recordings")
    signals = load("shhs-dir", "own_signals").signals_of(OWN_SIGNAL)
    return [module.read_recording(folder / name, signals, 0.0) for name in RECORDINGS]


MAPS = ("a.npy", "b.npz", "c.tif", "d.png")


def make_maps(folder):
    """Write an image, and maps of it in four formats."""
    make_images(folder)
    values = np.random.default_rng(0).integers(0, 99, (40, 30))
    np.save(folder / "a.npy", values.astype(np.float32))
    np.savez_compressed(folder / "b.npz", values.astype(np.float32))
    Image.fromarray(values.astype(np.float32)).save(folder / "c.tif")
    Image.fromarray(values.astype(np.uint16)).save(folder / "d.png")


def read_maps(folder):
    """Read them as training does."""
    words = "--target rain --low 0 --high 100 --map_size 32 32 --no_label -1"
    args = load("nyud2-dir", "train").parse_args(words.split())
    table = pd.DataFrame({"image": ["a.png"] * len(MAPS), "depth": MAPS})
    maps = load("nyud2-dir", "maps").Maps(folder, table, args, None, "t", workers=1, quiet=True)
    return maps.read(range(len(MAPS)))


def make_labeled(folder):
    """Write a labelled file of NYU Depth v2 with two pairs."""
    with h5py.File(folder / "labeled.mat", "w") as file:
        rng = np.random.default_rng(0)
        file["images"] = rng.integers(0, 255, (2, 3, 32, 24), dtype=np.uint8)
        file["depths"] = rng.random((2, 32, 24)).astype(np.float32)
        file["name"] = np.frombuffer(b"kitchen_0001", dtype=np.uint8).astype(np.uint16)[:, None]
        reference = file["name"].ref
        file["scenes"] = np.array([[reference, reference]], dtype=h5py.ref_dtype)


def read_labeled(folder):
    """Unpack it."""
    prepare = load("nyud2-dir", "prepare")
    prepare.unpack_labeled(folder / "labeled.mat", folder / "out", np.array([True, False]))
    return ""


def make_matlab(folder):
    """Write an imdb.mat of five faces."""
    from scipy.io import savemat

    (folder / "imdb_crop").mkdir()
    fields = {
        "dob": np.full(5, 720_000.0), "photo_taken": np.full(5, 2000.0),
        "full_path": np.array([f"{i}/a.jpg" for i in range(5)], dtype=object),
        "face_score": np.full(5, 3.0), "second_face_score": np.full(5, np.nan),
    }  # fmt: skip
    savemat(folder / "imdb_crop" / "imdb.mat", {"imdb": fields}, do_compression=True)


def make_archive(folder):
    """Write a zip, a tar and a packed tar archive."""
    contents = {f"top/{i}.txt": bytes([i]) * 700 for i in range(4)}
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            for member, content in contents.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def read_archives(folder):
    """Unpack all three."""
    module = load("agedb-dir", "archive")
    held = {}
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        out = folder / f"out_{name}"
        chosen = module.unpack(folder / name, out, lambda sizes: {n: n for n in sizes}, True)
        held[name] = {place: (out / place).read_bytes() for place in chosen}
    return held


VECTORS = "".join(f"word{i} 0.5 {i}.25 -1.5\n" for i in range(9))


def read_vectors(cache):
    """Return a function that reads word vectors, from their cache or not."""

    def read(folder):
        module = load("sts-b-dir", "embeddings")
        words = [f"word{i}" for i in range(9)]
        file = folder / ("kept/glove.txt" if cache else "glove.txt")
        return module.read_word_vectors(file, words, 3, folder if cache else None, quiet=True)

    return read


def make_vectors(folder):
    """Write word vectors and the cache of them."""
    (folder / "kept").mkdir()
    for name in ("glove.txt", "kept/glove.txt"):
        text(name, VECTORS)(folder)
    read_vectors(True)(folder)
    cache = next(folder.glob("*.npz"))
    (folder / "cache.npz").write_bytes(cache.read_bytes())


def read_cached_vectors(folder):
    """Read the vectors with the damaged cache in place."""
    cache = next(path for path in folder.glob("glove*.npz"))
    cache.write_bytes((folder / "cache.npz").read_bytes())
    return read_vectors(True)(folder)


def make_edf(folder):
    """Write a recording of two minutes."""
    import pyedflib

    rates = {"EEG": 125, "ECG": 125, "THOR RES": 10, "ABDO RES": 10, "AIRFLOW": 10}
    with pyedflib.EdfWriter(str(folder / "a.edf"), len(rates)) as writer:
        writer.setSignalHeaders([
            {"label": label, "dimension": "uV", "sample_frequency": rate, "physical_max": 500.0,
             "physical_min": -500.0, "digital_max": 32767, "digital_min": -32768,
             "transducer": "", "prefilter": ""}
            for label, rate in rates.items()
        ])  # fmt: skip
        rng = np.random.default_rng(0)
        writer.writeSamples([rng.normal(0, 50, 120 * rate) for rate in rates.values()])


def age_tables(folder):
    """Read a table of ages as train.py and prepare.py do."""
    meta = load("imdb-wiki-dir", "meta_file").read_ages(folder / "own.csv", ("age", "path"))
    return load("agedb-dir", "datasets").read_meta(folder, "own"), meta


AGE, ALL = "agedb-dir, imdb-wiki-dir", "all"
MADE = [
    Kind("age_table", AGE, "tables of faces", ("own.csv",), make_ages, age_tables, share=8),
    Kind("depth_list", "nyud2-dir", "lists of pairs", ("a.csv",),
         text("a.csv", "data/a.jpg,data/a.png\n" * 20),
         lambda f: load("nyud2-dir", "pair_lists").read_pairs(f, "a.csv")),
    Kind("mask", "nyud2-dir", "masks", ("test_balanced_mask.npy",), make_mask,
         lambda f: load("nyud2-dir", "pair_lists").read_mask(f, 1)),
    Kind("score_table", "shhs-dir", "tables of nights", ("shhs.csv",), make_scores,
         lambda f: load("shhs-dir", "datasets").read_meta(f)),
    Kind("covariates", "shhs-dir", "tables of scores", ("a.csv",),
         text("a.csv", "nsrrid,gh_s2\n" + "1,50\n" * 20),
         lambda f: load("shhs-dir", "score_table").read_scores(f / "a.csv", "nsrrid", None)),
    Kind("pairs", "sts-b-dir", "sentence pairs", ("train_new.tsv",), make_pairs,
         lambda f: load("sts-b-dir", "pair_file").read_pairs(f)),
    Kind("vectors", "sts-b-dir", "word vectors", ("glove.txt",), text("glove.txt", VECTORS),
         read_vectors(False)),
    Kind("vector_cache", "sts-b-dir", "caches of word vectors", ("cache.npz",), make_vectors,
         read_cached_vectors, guarded=True),
    Kind("vocabulary", "sts-b-dir", "vocabularies", ("vocab.txt",),
         text("vocab.txt", "@@PADDING@@\n@@UNKNOWN@@\na\nb\nc\n"),
         lambda f: load("sts-b-dir", "text").read_vocabulary(f / "vocab.txt")),
    Kind("raw_table", "uci-dir", "any tables", ("a.csv",), text("a.csv", TABLE),
         lambda f: load("uci-dir", "table_file").read_table(f / "a.csv"), share=6),
    Kind("prepared", "uci-dir", "prepared tables", ("made.csv", "made.json"), make_prepared,
         read_prepared, share=6),
    *(Kind(f"checkpoint_{name}", name, "checkpoints", (last,), save_checkpoint(name),
           read_checkpoint(name), guarded=True, flips=0.5, share=6)
      for name, last in (("agedb-dir", "ckpt.pth.tar"), ("imdb-wiki-dir", "ckpt.pth.tar"),
                         ("shhs-dir", "ckpt.pth.tar"), ("uci-dir", "ckpt.pth.tar"),
                         ("nyud2-dir", "checkpoint.pth.tar"), ("sts-b-dir", "training_state.th"))),
    Kind("checkpoint_fields", ALL, "whole checkpoints of other content", ("fields.json",),
         make_fields, read_fields, share=6),
    Kind("published", ALL, "published folders", ("model.safetensors", "config.json"),
         make_published, read_published, share=6),
    Kind("run_table", ALL, "run folders, for tables", RUN, make_run, read_run, share=8),
    Kind("run_figures", ALL, "run folders, for figures", RUN, make_run, draw_run, share=1),
    Kind("publish", "tools/publish.py", "run folders, to be published",
         ("results.json", "ckpt.best.pth.tar"), make_finished, publish_run),
    Kind("images", AGE, "images", ("a.jpg", "a.png", "a.gif"), make_images, read_images, share=8),
    Kind("image_cache", "agedb-dir, imdb-wiki-dir, nyud2-dir", "image caches",
         ("made.npy", "made.rows"), make_cache, read_cache, guarded=True, flips=0.6, share=6),
    Kind("depths", "nyud2-dir", "image and depth pairs", ("a.jpg", "a.png"), make_depths,
         read_depths),
    Kind("labeled", "nyud2-dir", "labelled .mat files", ("labeled.mat",), make_labeled,
         read_labeled),
    Kind("night", "shhs-dir", "nights", ("a.h5",), make_night, read_night, guarded=True, share=6),
    Kind("edf", "shhs-dir", "recordings", ("a.edf",), make_edf,
         lambda f: load("shhs-dir", "edf_night").read_night(f / "a.edf", 1.0), share=1),
    Kind("own_recordings", "shhs-dir", "recordings of your own", RECORDINGS, make_recordings,
         read_recordings),
    Kind("own_maps", "nyud2-dir", "maps of your own", MAPS, make_maps, read_maps),
    Kind("matlab", "imdb-wiki-dir", "MATLAB files", ("imdb_crop/imdb.mat",), make_matlab,
         lambda f: load("imdb-wiki-dir", "matlab_meta").read_faces(f, "imdb"), share=1),
    Kind("archives", "agedb-dir, imdb-wiki-dir, nyud2-dir, sts-b-dir", "archives",
         ("a.zip", "a.tar", "a.tar.gz"), make_archive, read_archives, share=6),
]  # fmt: skip
KINDS = {kind.name: kind for kind in MADE}
