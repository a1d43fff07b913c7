"""Sentence pairs with similarities: files, tokens, label buckets, LDS weights and batches."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from batches import Batches
from lds import bucket_weights, label_density

MAX_SCORE = 5.0  # similarities lie in [0, 5]; the network predicts a fifth of them
BUCKETS = 50  # equal bins of the similarity, of width 0.1, unless --bucket_num says otherwise
# With `inverse` the released code truncates smoothed counts: the published numbers hold that.
LDS_RULE = {"truncate": True}
FILES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}
PAIR_COLUMNS = ("sentence1", "sentence2", "score")
POOL = 50  # batches that --group_by_length sorts together


# ---- labels and weights --------------------------------------------------------------------


def bucket_edges(bucket_num):
    """Return the edges of that many equal bins on [0, 5], float32 [bucket_num + 1].

    Edges and labels are compared in float32, as in the released code: the label 0.3 is float32's.
    """
    return np.linspace(0, MAX_SCORE, bucket_num + 1).astype(np.float32)


EDGES = bucket_edges(BUCKETS)


@functools.cache
def edges_on(edges, device):
    """Return edges as a float32 tensor; sent to a GPU once, since each sending waits for it."""
    import torch

    return torch.tensor(edges, dtype=torch.float32, device=device)


def label_to_bucket(labels, edges=EDGES):
    """Return the bin of each similarity, as long, same shape and kind as given.

    Args:
        labels: similarities, 0 ... 5, of any shape.
        edges: of the bins [B + 1], from `bucket_edges`. Bin i holds edges[i] <= y < edges[i + 1]
            in float32, the last one holds 5.0 too.
    """
    if hasattr(labels, "clamp"):  # a tensor
        import torch

        inner = edges_on(tuple(edges[1:-1].tolist()), labels.device)
        return torch.bucketize(labels.float(), inner, right=True)
    return np.searchsorted(edges[1:-1], np.asarray(labels, dtype=np.float32), side="right")


def label_counts(labels, edges=EDGES):
    """Return how many similarities [N] each bin holds, long [B]; arguments as above."""
    buckets = label_to_bucket(np.asarray(labels).reshape(-1), edges)
    return np.bincount(buckets, minlength=len(edges) - 1)


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training pair's loss by the 50 bins, float32 [N] with mean 1.

    Args:
        labels: similarities of the training set [N], 0 ... 5.
        reweight, lds, lds_kernel, lds_ks, lds_sigma: as for `lds.label_density`.

    Raises:
        ValueError: as `lds.label_density`.
    """
    counts = label_counts(labels)
    density = label_density(counts, reweight, lds, lds_kernel, lds_ks, lds_sigma, **LDS_RULE)
    weights = bucket_weights(density, counts, reweight)
    return weights[label_to_bucket(np.asarray(labels).reshape(-1))]


# ---- files and tokens ----------------------------------------------------------------------


def read_pairs(data_dir):
    """Read and check the three files of the split.

    Args:
        data_dir: folder of `train_new.tsv`, `dev_new.tsv` and `test_new.tsv`: tab-separated, with
            a header that names at least sentence1, sentence2 and score.

    Returns:
        DataFrame with columns sentence1, sentence2, label (float32, 0 ... 5), split ('train',
        'val', 'test').

    Raises:
        FileNotFoundError: without one of them.
        ValueError: naming file and lines that cannot be used.
    """
    parts = []
    for split, name in FILES.items():
        file = Path(data_dir) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: `python download.py` fetches the official split, `python "
                "prepare.py` makes one, `python demo_data.py` generates data; --data_dir chooses "
                "another folder"
            )
        parts.append(read_tsv(file).assign(split=split))
    return pd.concat(parts, ignore_index=True)


def read_tsv(file):
    """Read one file of pairs; any row that cannot be used is an error with its line."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from error
    header = lines[0].rstrip("\r").split("\t")
    if missing := [column for column in PAIR_COLUMNS if column not in header]:
        raise ValueError(f"{file} lacks the column {', '.join(missing)}: its header is {header}")
    places = [header.index(column) for column in PAIR_COLUMNS]
    rows, faults = [], []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if fields == [""] and number == len(lines):
            break  # the end of the last line
        if len(fields) != len(header):
            faults.append(f"line {number} has {len(fields)} columns, the header {len(header)}")
            continue
        first, second, score = (fields[place].strip() for place in places)
        try:
            label = float(score)
        except ValueError:
            label = float("nan")
        if not 0 <= label <= MAX_SCORE:
            faults.append(f"line {number} has the score {score!r}, no number from 0 to 5")
        elif not (first and second):
            faults.append(f"line {number} has an empty sentence")
        rows.append((first, second, np.float32(label)))
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ValueError(f"{file}: {'; '.join(faults[:10])}{more}: correct or remove these rows")
    if not rows:
        raise ValueError(f"{file} holds no pair below its header")
    return pd.DataFrame(rows, columns=["sentence1", "sentence2", "label"])


def tokenize(sentences, tokenizer="sentence"):
    """Split sentences into words and punctuation with NLTK, case kept.

    Args:
        sentences: list of strings.
        tokenizer: 'sentence' takes a string as one sentence and needs no data; 'punkt' splits it
            into sentences first, as the released checkpoints' vocabularies were made.

    Returns:
        List of lists of words.

    Raises:
        FileNotFoundError: where 'punkt' finds no data of NLTK.
    """
    from nltk.tokenize import word_tokenize

    whole = {"sentence": True, "punkt": False}[tokenizer]
    try:
        return [word_tokenize(sentence, preserve_line=whole) for sentence in sentences]
    except LookupError as error:
        raise FileNotFoundError(
            "--tokenizer punkt needs NLTK's data: `python -m nltk.downloader punkt_tab`; the "
            "default, --tokenizer sentence, needs none"
        ) from error


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs."""

    ids: object  # tensor, long [2·n, T], the first sentences and then the second ones
    lengths: list  # 2·n numbers of tokens; no tensor, since packing needs them off the GPU
    labels: object  # tensor, float32 [n, 1], 0 ... 5
    weights: object  # tensor, float32 [n, 1]
    share: float  # as in `batches.Part`
    blend: tuple | None = None  # `synthetic_pairs.Blend`, where there are synthetic pairs


class Loader(Batches):
    """Batches of one split.

    Args:
        ids: two lists of lists of ids, of the first and of the second sentences [N].
        labels: similarities of the split [N], 0 ... 5.
        weights: weight of each pair's loss [N].
        sharing: `batches.Sharing`.
        group_by_length: put pairs of similar length into a batch, in training.
        padding: id behind a sentence's end.
    """

    def __init__(self, ids, labels, weights, sharing, group_by_length=False, padding=0):
        super().__init__(len(labels), sharing)
        self.lengths = np.array([[len(sentence) for sentence in part] for part in ids]).T  # [N, 2]
        self.ids = np.full((self.N, 2, self.lengths.max()), padding, dtype=np.int64)
        for column, part in enumerate(ids):
            for row, sentence in enumerate(part):
                self.ids[row, column, : len(sentence)] = sentence
        self.labels = np.asarray(labels, dtype=np.float32)
        self.weights = np.asarray(weights, dtype=np.float32)
        self.group_by_length = group_by_length

    def order(self, epoch):
        """Return the epoch's batches of all processes together: a list of arrays of rows."""
        rng = np.random.default_rng([self.sharing.seed, epoch])
        order = rng.permutation(self.N)
        if not self.group_by_length:
            return self.cut(order)
        longest, batches = self.lengths.max(axis=1), []
        step = POOL * self.sharing.batch_size
        for start in range(0, self.N, step):
            pool = order[start : start + step]
            batches += self.cut(pool[np.argsort(longest[pool], kind="stable")])
        return [batches[number] for number in rng.permutation(len(batches))]

    def train(self, epoch, numbers=slice(None)):
        """Yield the epoch's shuffled batches, or those of a slice of their numbers."""
        yield from self._batches(self.parts(self.order(epoch)[numbers]))

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        yield from self._batches(self.parts_in_order())

    def held(self, rows):
        """Return the numbers of the pairs whose sentences a batch of these pairs holds."""
        return rows

    def read(self, rows):
        """Return ids, labels and weights of some of the pairs, as in `Batch`."""
        import torch  # here: prepare.py reads files without it

        held = self.held(rows)
        ids = self.ids[held, :, : self.lengths[held].max()]
        ids = torch.from_numpy(ids.swapaxes(0, 1).reshape(2 * len(held), -1))
        labels, weights = (
            torch.from_numpy(values[rows]).unsqueeze(1) for values in (self.labels, self.weights)
        )
        return ids, labels, weights

    def _batches(self, parts):
        """Read parts ahead and yield each as `Batch`."""
        for part, (ids, labels, weights, *blend) in self.read_ahead(parts, self.read):
            lengths = self.lengths[self.held(part.rows)].T.flatten().tolist()
            yield Batch(ids, lengths, labels, weights, part.share, *blend)
