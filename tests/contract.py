"""What test_contract.py needs to know of each benchmark folder: one record each.

A further benchmark costs one record: how its data are made, the flags of a run of seconds, the
names of its checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import h5py
import numpy as np
import pandas as pd
from PIL import Image

import tiny_depth_net
import tiny_run
from conftest import load


@dataclass(frozen=True)
class Contract:
    """One folder's part of the promises that all keep."""

    folder: str
    make_data: Callable  # writes data into a folder, and returns that
    flags: str  # of a run of seconds; {data} is the folder of the data
    length: str  # flags of a run of {n} lines in epochs.jsonl
    lds_fds: str  # flags of LDS and FDS
    last: str  # file names of the checkpoints
    best: str
    head: str  # beginning of the names that two-stage training trains again
    defaults: dict  # of the released command line
    learning: str = ""  # flags with which a few seconds beat a constant prediction
    alike: str = ""  # flags without which several processes draw other numbers than one
    files: tuple = ()  # what a run leaves besides what all leave
    inputs: Callable | None = None  # data, folder -> inputs of predict.py: those of the test set
    tiny: Callable | None = None  # returns a `build_model` without batch normalisation
    other: str = ""  # flags of another network
    official: Callable = field(default=None)  # checkpoint's content -> the released file's
    change: Callable | None = None  # data, run folder: other content of what is no table
    changed: str = ""  # its name in messages

    @property
    def train(self):
        """The folder's train.py."""
        return load(self.folder, "train")

    @property
    def checkpoints(self):
        """The folder's checkpoints.py."""
        return load(self.folder, "checkpoints")

    def argv(self, data, store, *more):
        """Flags of a run, as a list of words."""
        words = self.flags.format(data=data).split()
        return [*words, "--store_root", str(store), *map(str, more)]

    def lines(self, n):
        """Flags that end a run after n lines of epochs.jsonl."""
        return self.length.format(n=n).split()


# ---- data ----------------------------------------------------------------------------------

SPLIT_SIZES = (49, 11)  # 49 = 3 · 16 + 1: the last batch has one sample for two processes


def make_faces(folder, name):
    """Small images whose brightness follows the age, skewed as real ages are."""
    rng, (n_train, n_eval), rows = np.random.default_rng(7), SPLIT_SIZES, []
    for i in range(n_train + 2 * n_eval):
        age = int(rng.choice([20, 21, 22, 23, 30, 45, 60], p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05]))
        split = "train" if i < n_train else "val" if i < n_train + n_eval else "test"
        pixels = np.clip(rng.normal(3 * age, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        rows.append((age, f"{i}.jpg", split))
    table = pd.DataFrame(rows, columns=["age", "path", "split"])
    table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def make_rooms(folder):
    """21 training pairs of seven scenes and five test pairs."""
    words = "--scenes 7 --frames 3 --test 5 --workers 1".split()
    load("nyud2-dir", "demo_data").main(["--out", str(folder / "data"), *words])
    return folder / "data"


WORDS = "red blue green small large old new cat dog bird house tree runs sits sleeps".split()


def make_pairs(folder):
    """Pairs of sentences of few words, whose similarity follows how many words they share."""
    rng = np.random.default_rng(7)
    for name, n in (("train", 33), ("dev", 12), ("test", 12)):
        lines = ["sentence1\tsentence2\tscore"]
        for _ in range(n):
            first = rng.choice(WORDS, int(rng.integers(3, 8)), replace=False)
            shared = int(rng.integers(0, len(first) + 1))
            others = [word for word in WORDS if word not in first]
            second = [*first[:shared], *rng.choice(others, len(first) - shared)]
            score = 5 * shared / len(first)
            lines.append(f"{' '.join(first)}\t{' '.join(second)}\t{score:.3f}")
        (folder / f"{name}_new.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vectors = rng.standard_normal((len(WORDS), 8)).round(4)
    text = "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(WORDS, vectors))
    (folder / "vectors.txt").write_text(text, encoding="utf-8")
    return folder


def make_nights(folder):
    """Nights of one to three frames whose loudness follows the score, which is skewed."""
    signals = load("shhs-dir", "night_signals").SIGNALS
    (folder / "nights").mkdir()
    rng, rows = np.random.default_rng(7), []
    for k in range(25):
        score = int(rng.choice([80, 77, 75, 60, 30], p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        frames = int(rng.integers(1, 4))
        with h5py.File(folder / f"nights/{k}.h5", "w") as file:
            file.attrs.update(source="", lacking="", frames=frames)
            for name, signal in signals.items():
                shape = (signal.channels, frames * signal.frame)
                file[name] = rng.normal(score / 50, 0.3, shape).astype(np.float16)
                values = file[name][()].astype(np.float64)
                file[name].attrs.update(mean=values.mean(1), mean_square=(values**2).mean(1))
        split = "train" if k < 17 else "val" if k < 21 else "test"
        rows.append((1000 + k, score, f"nights/{k}.h5", split))
    table = pd.DataFrame(rows, columns=["id", "score", "path", "split"])
    table.to_csv(folder / "shhs.csv", index=False)
    return folder


def make_table(folder):
    """A generated table of 129 rows, with its preparation."""
    words = ["--out", str(folder / "data"), "--rows", "129"]
    load("uci-dir", "demo_data").main(words)
    return folder / "data"


def keep_test(folder):
    """Delete the training and validation rows of any benchmark's data."""
    for path in (*folder.glob("nyu2_train*.csv"), *folder.glob("*_new.tsv")):
        if path.name != "test_new.tsv":
            path.unlink()
    for path in folder.glob("*.csv"):
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        if "split" in table:
            table[table["split"] == "test"].to_csv(path, index=False)


def swap(first, second):
    """Let two files change places."""
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents):
        path.write_bytes(content)


def swap_rooms(data, run):
    """Two training images change places."""
    swap(*sorted((data / "nyu2_train").rglob("*.jpg"))[:2])


def change_night(data, run):
    """A night of the same length is louder."""
    with h5py.File(data / "nights/0.h5", "r+") as night:
        signal = night["ecg"]
        signal[...] = 2 * signal[()]
        signal.attrs["mean"] = 2 * signal.attrs["mean"]
        signal.attrs["mean_square"] = 4 * signal.attrs["mean_square"]


def swap_words(data, run):
    """Two words of a run's vocabulary change their ids."""
    lines = (run / "vocab.txt").read_text(encoding="utf-8").splitlines()
    lines[2], lines[3] = lines[3], lines[2]
    (run / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- new inputs ----------------------------------------------------------------------------


def files_of_test(data, name):
    """The files of a meta file's test split."""
    table = pd.read_csv(data / name)
    return [str(data / path) for path in table["path"][table["split"] == "test"]]


def rooms_of_test(data, folder):
    """The test set's images."""
    names = (data / "nyu2_test.csv").read_text(encoding="utf-8").split()
    return [str(data / line.split(",")[0].removeprefix("data/")) for line in names]


def rows_of_test(data, folder):
    """The test rows without their labels, as a table of its own."""
    table = pd.read_csv(data / "demo.csv", keep_default_na=False, dtype=str)
    target = load("uci-dir", "datasets").read_prepared(data, "demo")[1]["target"]["name"]
    rows = table[table["split"] == "test"].drop(columns=[target, "split"])
    rows.to_csv(folder / "rows.csv", index=False)
    return [str(folder / "rows.csv")]


# ---- released files ------------------------------------------------------------------------


def with_module(state):
    """Names as DataParallel writes them."""
    return {f"module.{name}": value for name, value in state.items()}


def age_file(checkpoint):
    """The age folders' format."""
    kept = {key: checkpoint[key] for key in ("epoch", "model", "best_loss", "optimizer")}
    return {**kept, "state_dict": with_module(checkpoint["state_dict"])}


def depth_file(checkpoint):
    """NYUD2's: numpy scalars, no optimizer."""
    metric = {name: np.float64(value) for name, value in checkpoint["metric"].items()}
    state = with_module(checkpoint["state_dict"])
    return {"state_dict": state, "epoch": 3, "error": np.float64(1.5), "metric": metric}


def bare_file(checkpoint):
    """STS-B's: the weights alone."""
    return dict(checkpoint)


# ---- records -------------------------------------------------------------------------------

SHARED = dict(
    lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2, fds=False, fds_kernel="gaussian",
    fds_ks=5, fds_sigma=2, start_update=0, start_smooth=1, bucket_num=100, bucket_start=0,
    fds_mmt=0.9, reweight="none", retrain_fc=False, pretrained="", store_root="checkpoint",
    resume="", evaluate=False, eval_model="", device="auto", precision=None, compile=False,
    fds_variant="official", fds_stats="extra_pass", overwrite=False, track="tensorboard", gpu=None,
    seed=0, print_freq=10, data_dir="./data",
)  # fmt: skip
AGES = dict(
    store_name="", lr=1e-3, batch_size=256, model="resnet50", optimizer="adam", loss="l1", epoch=90,
    momentum=0.9, weight_decay=1e-4, schedule=[60, 80], img_size=224, workers=32,
)  # fmt: skip
NO_CUDA = "--device cpu --track none"


def ages(folder, name, **defaults):
    """The record of an age folder."""
    return Contract(
        folder=folder,
        make_data=lambda path: make_faces(path, name),
        flags=f"--data_dir {{data}} --model resnet18 --img_size 40 --batch_size 16 {NO_CUDA}",
        length="--epoch {n}",
        lds_fds="--reweight sqrt_inv --lds --fds",
        last="ckpt.pth.tar",
        best="ckpt.best.pth.tar",
        head="linear.",
        learning="--epoch 18 --schedule 14 --batch_size 8 --lr 2e-3",
        inputs=lambda data, _: files_of_test(data, f"{name}.csv"),
        tiny=lambda: tiny_run.make_builder(load(folder, "fds").FDS),
        other="--model resnet34",
        official=age_file,
        change=lambda data, _: swap(data / "0.jpg", data / "1.jpg"),
        changed="files of images and pixels of images",
        defaults={**SHARED, **AGES, "dataset": name, **defaults},
    )


CONTRACTS = [
    ages("agedb-dir", "agedb", lds_ks=9, lds_sigma=1, fds_ks=9, fds_sigma=1, bucket_start=3),
    ages("imdb-wiki-dir", "imdb_wiki", lds_sigma=1, fds_sigma=1),
    Contract(
        folder="nyud2-dir",
        make_data=make_rooms,
        flags="--data_dir {data} --model mini --downscale 4 --batch_size 17 --lr 1e-3 " + NO_CUDA,
        length="--epochs {n}",
        lds_fds="--reweight inverse --lds --fds",
        last="checkpoint.pth.tar",
        best="checkpoint_best.pth.tar",
        head="R.",
        files=("checkpoint_final.pth.tar", "error_by_depth.csv"),
        inputs=rooms_of_test,
        tiny=lambda: tiny_depth_net.make_builder(
            load("nyud2-dir", "fds").FDS, load("nyud2-dir", "datasets").label_to_bucket
        ),
        other="--model resnet50 --no-pretrained_encoder",
        official=depth_file,
        change=swap_rooms,
        changed="pixels of pairs",
        defaults={
            **SHARED,
            **dict(bucket_start=7, store_name="nyud2", lr=1e-4, batch_size=32, epochs=10),
            **dict(start_epoch=0, weight_decay=1e-4, fds_variant="paper", workers=32),
        },
    ),
    Contract(
        folder="sts-b-dir",
        make_data=make_pairs,
        flags="--data_dir {data} --word_embs_file {data}/vectors.txt --cache none --d_word 8 "
        f"--d_hid 6 --batch_size 8 --val_interval 3 --lr 0.01 {NO_CUDA}",
        length="--max_vals {n}",
        lds_fds="--reweight inverse --lds --fds",
        last="model_state.th",
        best="model_state_best.th",
        head="sts-b_pred_layer.",
        inputs=lambda data, _: [str(data / "test_new.tsv")],
        alike="--dropout 0",  # each process draws its own
        files=("training_state.th", "vocab.txt"),
        other="--d_hid 7",
        official=bare_file,
        change=swap_words,
        changed="token ids",
        defaults={
            **SHARED,
            **dict(bucket_num=50, store_name="sts", lr=1e-4, batch_size=128, seed=111, suffix=""),
            **dict(data_dir="glue_data/STS-B", log_file="training.log", task="sts-b"),
            **dict(word_embs_file="glove/glove.840B.300d.txt", max_seq_len=40, glove=1, d_word=300),
            **dict(max_word_v_size=30_000, dropout_embs=0.2, dropout=0.2, train_words=0),
            **dict(d_hid=1500, n_layers_enc=2, n_layers_highway=0, optimizer="adam", loss="mse"),
            **dict(huber_beta=0.3, max_grad_norm=5.0, val_interval=400, max_vals=100, patience=10),
        },
    ),
    Contract(
        folder="shhs-dir",
        make_data=make_nights,
        flags=f"--data_dir {{data}} --width 8 --d_signal 8 --d_hid 8 --batch_size 4 {NO_CUDA}",
        length="--epoch {n}",
        lds_fds="--reweight inverse --lds --fds",
        last="ckpt.pth.tar",
        best="ckpt.best.pth.tar",
        head="linear.",
        inputs=lambda data, _: files_of_test(data, "shhs.csv"),
        other="--d_hid 16",
        official=age_file,
        change=change_night,
        changed="signals of nights",
        defaults={
            **SHARED,
            **dict(store_name="shhs", lr=1e-3, batch_size=32, loss="l1", epoch=80, schedule=[]),
            **dict(width=64, d_signal=256, d_hid=256, rnn="gru", chunk=4096, weight_decay=0.0),
            **dict(max_grad_norm=5.0),
        },
    ),
    Contract(
        folder="uci-dir",
        make_data=make_table,
        flags=f"--data_dir {{data}} --dataset demo --hidden 8 8 --batch_size 16 {NO_CUDA}",
        length="--epoch {n}",
        lds_fds="--reweight sqrt_inv --lds --fds",
        last="ckpt.pth.tar",
        best="ckpt.best.pth.tar",
        head="linear.",
        inputs=rows_of_test,
        learning="--epoch 60 --lr 0.01",
        other="--hidden 9",
        defaults={
            **SHARED,
            **dict(bucket_num=1000, store_name="", lr=1e-3, batch_size=64, loss="l1", epoch=200),
            **dict(schedule=[], model="mlp", hidden=[20, 30, 10], target_scale="standard"),
        },
    ),
]


def weights_in(path):
    """The names -> tensors of a checkpoint of any folder."""
    checkpoint = load("agedb-dir", "utils").load_checkpoint(path)
    return checkpoint.get("state_dict", checkpoint)
