"""Sentence pairs with similarities: files, tokens, label buckets, LDS weights and batches."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import convolve1d

from utils import get_lds_kernel_window

MAX_SCORE = 5.0  # similarities lie in [0, 5]; the network predicts a fifth of them
BUCKETS = 50  # equal bins of the similarity, of width 0.1
# Edges and labels are compared in float32, as in the released code: the label 0.3 is float32's.
EDGES = np.linspace(0, MAX_SCORE, BUCKETS + 1).astype(np.float32)
FILES = {"train": "train_new.tsv", "val": "dev_new.tsv", "test": "test_new.tsv"}
COLUMNS = ("sentence1", "sentence2", "score")
PADDING, UNKNOWN = "@@PADDING@@", "@@UNKNOWN@@"  # ids 0 and 1 (released code)
POOL = 50  # batches that --group_by_length sorts together


# ---- labels and weights --------------------------------------------------------------------


def label_to_bucket(labels):
    """Return the bin 0 ... 49 of each similarity, as long, same shape and kind as given.

    Bin i holds EDGES[i] <= y < EDGES[i + 1] in float32, the last one 5.0 too.
    """
    if isinstance(labels, torch.Tensor):
        edges = torch.from_numpy(EDGES[1:-1]).to(labels.device)
        return torch.bucketize(labels.float(), edges, right=True)
    return np.searchsorted(EDGES[1:-1], np.asarray(labels, dtype=np.float32), side="right")


def label_density(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the value per bucket that re-weighting divides by, before and after LDS.

    Args:
        labels: similarities of the training set [N], in 0 ... 5.
        reweight: 'none' and 'inverse' take the count, 'sqrt_inv' its square root.
        lds, lds_kernel, lds_ks, lds_sigma: smoothing of the value over buckets.

    Returns:
        emp_label_dist [50] and eff_label_dist [50], the latter None without LDS.

    Raises:
        ValueError: for an unknown `reweight`, or LDS without re-weighting.
    """
    counts = np.bincount(label_to_bucket(labels).reshape(-1), minlength=BUCKETS)
    if reweight not in ("none", "sqrt_inv", "inverse"):
        raise ValueError(f"reweight must be none, sqrt_inv or inverse; got {reweight!r}")
    if lds and reweight == "none":
        raise ValueError("LDS smooths the weights: give --reweight sqrt_inv or inverse with --lds")
    emp_label_dist = np.sqrt(counts) if reweight == "sqrt_inv" else counts
    if not lds:
        return emp_label_dist, None
    # Integer counts stay integers here, so smoothed counts are truncated: the published numbers
    # hold that.
    window = get_lds_kernel_window(lds_kernel, lds_ks, lds_sigma)
    return emp_label_dist, convolve1d(emp_label_dist, weights=window, mode="constant")


def sample_weights(labels, reweight, lds=False, lds_kernel="gaussian", lds_ks=5, lds_sigma=2):
    """Return the weight of each training pair's loss, with mean 1.

    Args: as for `label_density`.

    Returns:
        float32 array [N].

    Source: section 3.1 of the paper; the scaling is the released code's.
    """
    labels = np.asarray(labels).reshape(-1)
    density = label_density(labels, reweight, lds, lds_kernel, lds_ks, lds_sigma)
    if reweight == "none":
        return np.ones(len(labels), dtype=np.float32)
    value = density[0] if density[1] is None else density[1]
    weights = 1.0 / value[label_to_bucket(labels)]
    return (weights * (len(weights) / weights.sum())).astype(np.float32)


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
    if missing := [column for column in COLUMNS if column not in header]:
        raise ValueError(f"{file} lacks the column {', '.join(missing)}: its header is {header}")
    places, rows, faults = [header.index(column) for column in COLUMNS], [], []
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


def build_vocabulary(pairs, tokens, max_words):
    """Return the words by id: padding, unknown, then words by descending count.

    Words of one count stand in the order in which they appear: the first sentences of all rows of
    the training set, its second ones, then validation and test set alike.

    Args:
        pairs: what `read_pairs` returns.
        tokens: words of the first and of the second sentences, two lists in the rows' order.
        max_words: how many words get an id of their own.
    """
    counts = Counter()
    for split in FILES:
        rows = np.flatnonzero(pairs["split"] == split)
        for sentences in tokens:
            counts.update(chain.from_iterable(sentences[row] for row in rows))
    return [PADDING, UNKNOWN, *(word for word, _ in counts.most_common(max_words))]


def words_to_ids(tokens, words):
    """Return each sentence's ids as a list; a word that `words` lacks is unknown."""
    number, unknown = {word: i for i, word in enumerate(words)}, words.index(UNKNOWN)
    return [[number.get(word, unknown) for word in sentence] for sentence in tokens]


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What one step needs; `share` scales this process's mean loss to its part of the batch."""

    ids: torch.Tensor  # long [2·n, T], the first sentences and then the second ones
    lengths: list  # 2·n numbers of tokens; no tensor, since packing needs them off the GPU
    labels: torch.Tensor  # float32 [n, 1], 0 ... 5
    weights: torch.Tensor  # float32 [n, 1]
    share: float


class Loader:
    """Batches of one split, cut into equal parts for the processes.

    Args:
        ids: two lists of lists of ids, of the first and of the second sentences [N].
        labels, weights: float32 arrays over the split [N].
        batch_size: pairs, over all processes together.
        device: where batches go.
        rank, processes: this process's number, and how many there are.
        seed: with the epoch, the source of the order.
        group_by_length: put pairs of like length into a batch, in training.
        padding: id behind a sentence's end.
    """

    def __init__(
        self, ids, labels, weights, batch_size, device, rank=0, processes=1, seed=0,
        group_by_length=False, padding=0,
    ):  # fmt: skip
        self.lengths = np.array([[len(sentence) for sentence in part] for part in ids]).T  # [N, 2]
        self.ids = np.full((len(labels), 2, self.lengths.max()), padding, dtype=np.int64)
        for column, part in enumerate(ids):
            for row, sentence in enumerate(part):
                self.ids[row, column, : len(sentence)] = sentence
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.float32)).unsqueeze(1)
        self.weights = torch.from_numpy(np.asarray(weights, dtype=np.float32)).unsqueeze(1)
        self.batch_size, self.device, self.seed = batch_size, torch.device(device), seed
        self.rank, self.processes = rank, processes
        self.group_by_length = group_by_length

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def order(self, epoch):
        """Return the epoch's batches of all processes together: a list of arrays of rows."""
        rng = np.random.default_rng([self.seed, epoch])
        order, size = rng.permutation(len(self.labels)), self.batch_size
        if not self.group_by_length:
            return [order[i : i + size] for i in range(0, len(order), size)]
        longest, batches = self.lengths.max(axis=1), []
        for i in range(0, len(order), POOL * size):
            pool = order[i : i + POOL * size]
            pool = pool[np.argsort(longest[pool], kind="stable")]
            batches += [pool[j : j + size] for j in range(0, len(pool), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def train(self, epoch, start=0, stop=None):
        """Yield the epoch's shuffled batches number `start` up to `stop`."""
        for whole in self.order(epoch)[start:stop]:
            part = np.array_split(whole, self.processes)[self.rank]
            share = len(part) * self.processes / len(whole)
            # A process left without a pair takes one along that counts for nothing.
            yield self._batch(part if len(part) else whole[:1], share)

    def evaluate(self):
        """Yield this process's part of the split in order, as `Batch`."""
        part = np.array_split(np.arange(len(self.labels)), self.processes)[self.rank]
        for i in range(0, len(part), self.batch_size):
            yield self._batch(part[i : i + self.batch_size], 1.0)

    def _batch(self, rows, share):
        """Put the rows' sentences below each other, as wide as the longest of them."""
        lengths = self.lengths[rows].T.reshape(-1)
        ids = self.ids[rows].transpose(1, 0, 2).reshape(len(lengths), -1)[:, : lengths.max()]
        ids, labels, weights = (
            x.to(self.device, non_blocking=True)
            for x in (torch.from_numpy(ids.copy()), self.labels[rows], self.weights[rows])
        )
        return Batch(ids, lengths.tolist(), labels, weights, share)
