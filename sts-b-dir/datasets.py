"""Sentence pairs with similarities: tokens, label buckets, LDS weights and batches."""

from typing import NamedTuple

import numpy as np

from batches import Batches
from buckets import Buckets
from lds import bucket_weights, label_density
from packing import Packing
from pair_file import MAX_SCORE

BUCKETS = 50  # equal bins of the similarity, of width 0.1, unless --bucket_num says otherwise
# With `inverse` the released code truncates smoothed counts: the published numbers hold that.
# Those of your own target stay as they are.
LDS_RULE = {"truncate": True}
POOL = 50  # batches that --group_by_length sorts together


# ---- labels and weights --------------------------------------------------------------------


def bucket_edges(bucket_num):
    """Return the edges of that many equal bins on [0, 5], float32 [bucket_num + 1].

    Edges and labels are compared in float32, as in the released code: the label 0.3 is float32's.
    """
    return np.linspace(0, MAX_SCORE, bucket_num + 1).astype(np.float32)


EDGES = bucket_edges(BUCKETS)


def edges_of(args, target):
    """Return the edges [B + 1] of a run's bins: by --bucket_num, or of your own target."""
    if not target.own:
        return bucket_edges(args.bucket_num)
    return np.append(target.edges, target.high).astype(np.float32)


def label_to_bucket(labels, edges=EDGES):
    """Return the bin of each similarity, as long, same shape and kind as given.

    Args:
        labels: similarities, 0 ... 5, of any shape.
        edges: of the bins [B + 1], from `bucket_edges`. Bin i holds edges[i] <= y < edges[i + 1]
            in float32, the last one holds 5.0 too.
    """
    return Buckets(edges[:-1])(labels)


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


# ---- tokens ----------------------------------------------------------------------------------


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
    packing: object  # `packing.Packing` of the 2·n sentences
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
        """Return ids, packing, labels and weights of some of the pairs, as in `Batch`."""
        import torch  # here: prepare.py reads files without it

        held = self.held(rows)
        ids = self.ids[held, :, : self.lengths[held].max()]
        ids = torch.from_numpy(ids.swapaxes(0, 1).reshape(2 * len(held), -1))
        labels, weights = (
            torch.from_numpy(values[rows]).unsqueeze(1) for values in (self.labels, self.weights)
        )
        return ids, Packing.of(self.lengths[held].T.flatten()), labels, weights

    def _batches(self, parts):
        """Read parts ahead and yield each as `Batch`."""
        for part, (ids, packing, labels, weights, *blend) in self.read_ahead(parts, self.read):
            yield Batch(ids, packing, labels, weights, part.share, *blend)
