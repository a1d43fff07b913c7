"""A prepared table: its rows, label buckets, LDS weights, target scale and batches.

`prepare.py` writes `<data_dir>/<name>.csv` (inputs, target, `split`) and `<name>.json`, which says
what becomes of the columns, the buckets and the shots. Everything stays in memory.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from batches import Batches, Part
from bins import label_counts, label_to_bucket
from columns import NUMBER, encode
from lds import bucket_weights, label_density
from outside import read_json, reading
from table_file import MISSING

SPLITS = ("train", "val", "test")
TARGET_SCALES = ("none", "standard", "log")
LDS_RULE = {}  # as in the general recipe: counts as they are, smoothed ones not truncated
PIECE = 8192  # rows at a time where nothing is trained
MOST_BUCKETS = 100_000  # that a file may ask for
KEPT = ("median", "mean", "std", "flag")  # of a column of numbers
LARGEST_LOG = 80.0  # exp of more leaves float32

# ---- labels and weights --------------------------------------------------------------------


def sample_weights(labels, bins, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training sample's loss, float32 [N] with mean 1.

    Args:
        labels: of the training set [N].
        bins: as for `label_to_bucket`.
        reweight, lds, lds_kernel, lds_ks, lds_sigma: as for `lds.label_density`.

    Raises:
        ValueError: as `label_counts` and `lds.label_density`.
    """
    counts = label_counts(labels, bins)
    density = label_density(counts, reweight, lds, lds_kernel, lds_ks, lds_sigma, **LDS_RULE)
    return bucket_weights(density, counts, reweight)[label_to_bucket(np.ravel(labels), bins)]


def target_statistics(labels):
    """Return mean and deviation of training labels and, if all are above 0, of their logarithms."""
    statistics = {"mean": float(labels.mean()), "std": float(labels.std()) or 1.0}
    logs = np.log(labels) if labels.min() > 0 else None
    statistics["log_mean"] = None if logs is None else float(logs.mean())
    statistics["log_std"] = None if logs is None else float(logs.std()) or 1.0
    return statistics


class TargetScale:
    """What the network predicts of a label, and back.

    Args:
        kind: 'none', 'standard' (mean 0 and deviation 1 over the training labels) or 'log' (the
            same of the logarithms).
        target: as `target_statistics` returns it.

    Raises:
        ValueError: for the logarithm of labels that are not above 0.
    """

    def __init__(self, kind, target):
        self.log = kind == "log"
        if self.log and target["log_mean"] is None:
            raise ValueError(
                "--target_scale log needs labels above 0: use standard, or add a constant to them"
            )
        mean, std = {"none": (0.0, 1.0), "standard": (target["mean"], target["std"])}.get(
            kind, (target["log_mean"], target["log_std"])
        )
        self.mean, self.std = mean, std

    def scale(self, labels):
        """Scale labels, array of any shape."""
        values = np.log(labels) if self.log else np.asarray(labels, dtype=np.float64)
        return (values - self.mean) / self.std

    def invert(self, values):
        """Return scaled values, array of any shape, to labels, float64."""
        values = np.asarray(values, dtype=np.float64) * self.std + self.mean
        return np.exp(np.minimum(values, LARGEST_LOG)) if self.log else values


# ---- prepared table ------------------------------------------------------------------------


def check_preparation(preparation):
    """Refuse a preparation from a file that prepare.py cannot have written; any error says why."""
    low, high, number, *scale = preparation["bins"]
    right = isinstance(number, int) and 0 < number <= MOST_BUCKETS
    right &= scale in ([], ["symlog"]) or (scale == ["log"] and low > 0)
    if not (right and -np.inf < low < high < np.inf):
        raise ValueError(f"its bins are {[low, high, number, *scale]}")
    needed = {"shots": ("many", "few"), "target": ("mean", "std")}
    values = [preparation[part][name] for part, names in needed.items() for name in names]
    for column in preparation["columns"]:
        is_one = column["kind"] == NUMBER
        values += [column[name] for name in (KEPT if is_one else ("other",))]
        names = [column["name"], *(() if is_one else column["values"])]
        if not all(isinstance(name, str) for name in [preparation["target"]["name"], *names]):
            raise ValueError("a name in it is no text")
    if not np.isfinite(np.array(values, dtype=np.float64)).all():
        raise ValueError("a number in it is not finite")


def read_prepared(data_dir, dataset, needed=SPLITS):
    """Read and check `<data_dir>/<dataset>.csv` and `.json`, as `prepare.py` writes them.

    Args:
        data_dir, dataset: folder and name of both.
        needed: splits that must have rows.

    Returns:
        DataFrame with the inputs, the target (float64) and `split`; and the preparation, a
        dictionary.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if they cannot be used.
    """
    file, note = (Path(data_dir) / f"{dataset}.{suffix}" for suffix in ("csv", "json"))
    again = "`python prepare.py --csv FILE --target COLUMN` writes both"
    for path in (file, note):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: {again}, `python demo_data.py` generates a table; --dataset "
                "NAME and --data_dir choose another"
            )
    preparation = read_json(note, again)
    with reading(note, again):
        check_preparation(preparation)
    with reading(file, again):
        target = preparation["target"]["name"]
        marks = [*MISSING, *preparation["missing"]]
        own = {c["name"]: str for c in preparation["columns"] if "values" in c}  # as they stand
        frame = pd.read_csv(
            file, dtype=own, keep_default_na=False, na_values=marks, low_memory=False
        )
        labels = pd.to_numeric(frame[target]).to_numpy(dtype=np.float64)
        wrong = ~(np.isfinite(labels) & frame["split"].isin(SPLITS).to_numpy())
    if wrong.any():
        lines = (np.flatnonzero(wrong)[:10] + 2).tolist()
        raise ValueError(f"{file} has rows without a label or a split (lines {lines}): {again}")
    empty = [split for split in needed if not (frame["split"] == split).any()]
    if empty:
        raise ValueError(f"{file} has no row of split {', '.join(empty)}: {again}")
    return frame.assign(**{target: labels}), preparation


def split_rows(table, preparation, place):
    """Return {split: (inputs float32 [N, D], labels float64 [N])} of a prepared table.

    Args:
        table, preparation: as `read_prepared` returns them.
        place: the table's file, for the message of a ValueError if a column is missing.
    """
    target = preparation["target"]["name"]
    if target not in table:
        raise ValueError(f"{place} has no column {target!r}")
    with reading(place, "prepare the table again"):
        inputs, _ = encode(table, preparation["columns"], place)
    labels = table[target].to_numpy()
    splits = table["split"].to_numpy()
    return {split: (inputs[splits == split], labels[splits == split]) for split in SPLITS}


def check_same_table(path, config, preparation):
    """Refuse to resume from a checkpoint whose table was prepared otherwise; a ValueError."""
    if config.get("preparation", preparation) != preparation:
        raise ValueError(
            f"{path} was trained on another preparation of the table: --overwrite starts again, "
            "--store_name NAME keeps both"
        )


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs."""

    inputs: object  # tensor, float32 [n, D]
    labels: object  # tensor, float32 [n, 1], in the unit of the target
    targets: object  # tensor, float32 [n, 1], scaled: what the network predicts
    weights: object  # tensor, float32 [n, 1]
    share: float  # as in `batches.Part`
    size: int


class Loader(Batches):
    """Batches of one split, which lies on the device as a whole.

    Args:
        inputs: float32 [N, D].
        labels, targets, weights: arrays [N]: in the target's unit, scaled, and of the loss.
        sharing: `batches.Sharing`.
    """

    def __init__(self, inputs, labels, targets, weights, sharing):
        import torch  # here: prepare.py reads tables without it

        super().__init__(len(labels), sharing)
        self.labels = np.asarray(labels, dtype=np.float64)
        columns = [np.reshape(values, (-1, 1)) for values in (labels, targets, weights)]
        arrays = [np.asarray(values, dtype=np.float32) for values in (inputs, *columns)]
        self.tensors = [torch.from_numpy(array).to(self.device) for array in arrays]

    @property
    def targets(self):
        """Scaled labels of the split, tensor [N, 1]."""
        return self.tensors[2]

    def train(self, epoch):
        """Yield shuffled batches."""
        order = np.random.default_rng([self.sharing.seed, epoch]).permutation(self.N)
        yield from self._batches(self.parts(self.cut(order)))

    def evaluate(self):
        """Yield this process's rows in order, in large pieces."""
        own = np.array_split(np.arange(self.N), self.sharing.processes)[self.sharing.rank]
        pieces = [own[start : start + PIECE] for start in range(0, len(own), PIECE)]
        yield from self._batches([Part(rows, 1.0, len(rows)) for rows in pieces])

    def _batches(self, parts):
        """Look the rows of each part up; a GPU gets all their numbers at once, and none waits."""
        import torch

        numbers = np.concatenate([np.empty(0, dtype=int), *(part.rows for part in parts)])
        sent = torch.from_numpy(numbers).to(self.device)
        for part, rows in zip(parts, sent.split([len(part.rows) for part in parts])):
            tensors = (x.index_select(0, rows) for x in self.tensors)
            yield Batch(*tensors, part.share, part.size)
