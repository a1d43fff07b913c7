"""SMOTER and SMOGN on sentence pairs; `resample.py` holds what does not depend on sentences.

Two pairs are near if the mean word vectors of their sentences are. Sentences cannot be averaged, so
the network encodes both pairs and mixes the encodings, first sentence with first and second with
second, before it makes the pair's features. SMOGN's noise shifts all word vectors of a sentence,
and so their mean, in which nearness is measured.
"""

from typing import NamedTuple

import numpy as np
import torch

from datasets import Loader
from resample import draw


class Blend(NamedTuple):
    """How m of a batch's n pairs are made. Behind the n there are the m neighbours' sentences."""

    rows: torch.Tensor  # which of the n, long [m]
    ways: torch.Tensor  # part of the way to the neighbour, float32 [m, 1]
    shift: torch.Tensor  # what is added to a sentence's word vectors, float32 [2·(n + m), d_word]


class SyntheticPairs(NamedTuple):
    """What the training pairs are made of, the real ones [N] and behind them the synthetic ones."""

    partners: np.ndarray  # number of the neighbour among them, -1 for a real one, long [N + M]
    ways: np.ndarray  # float32 [N + M, 1]
    shift: np.ndarray  # float32 [N + M, 2, d_word]


class BlendLoader(Loader):
    """Batches of a training set with synthetic pairs.

    Args:
        arguments: as `Loader` takes them; a synthetic pair's ids are its seed's.
        pairs: `SyntheticPairs`.
    """

    def __init__(self, *arguments, pairs):
        super().__init__(*arguments)
        self.pairs = pairs

    def held(self, rows):
        """Return these pairs and then the neighbours of the synthetic ones among them."""
        partners = self.pairs.partners[rows]
        return np.concatenate([rows, partners[partners >= 0]])

    def read(self, rows):
        """Return what `Loader.read` does, and the `Blend`."""
        made = np.flatnonzero(self.pairs.partners[rows] >= 0)
        shift = np.zeros((len(rows) + len(made), *self.pairs.shift.shape[1:]), np.float32)
        shift[: len(rows)] = self.pairs.shift[rows]
        shift = np.concatenate([shift[:, 0], shift[:, 1]])  # in the order of the sentences
        arrays = made, self.pairs.ways[rows[made]], shift
        return *super().read(rows), Blend(*map(torch.from_numpy, arrays))


def mix(encodings, blend):
    """Return the encodings [n, E] of a batch's pairs, given those of the neighbours behind them."""
    n = len(encodings) - len(blend.rows)
    own, partners = encodings[:n], encodings[n:]
    ways = blend.ways.to(encodings.dtype)
    return own.index_add(0, blend.rows, ways * (partners - own[blend.rows]))


def with_synthetic_pairs(ids, labels, shots, vectors, args):
    """Add the synthetic pairs of --resample to a training set.

    Args:
        ids: two lists of lists of ids, of the first and of the second sentences [N].
        labels, shots: similarity and shot of each pair [N].
        vectors: of the words, float32 [V, d_word].
        args: the flags.

    Returns:
        As `Loader` and `BlendLoader` take them: ids and labels of N + M pairs, `SyntheticPairs`.
    """
    means = [[vectors[sentence].mean(axis=0) for sentence in part] for part in ids]
    points = np.concatenate(means, axis=1)  # [N, 2·d_word]
    synthetic, stay = draw(labels, shots, points.__getitem__, args)
    N, M = len(stay), len(synthetic.labels)
    rows = np.concatenate([stay, synthetic.seeds])
    # A neighbour is rare, so it stays.
    partners = np.concatenate([np.full(N, -1), np.searchsorted(stay, synthetic.partners)])
    ways = np.concatenate([np.zeros((N, 1)), synthetic.ways]).astype(np.float32)
    nothing = np.zeros((M, points.shape[1]))
    noise = synthetic.make(np.arange(M), nothing, nothing, synthetic.deviations, args.seed)
    shift = np.concatenate([np.zeros((N, points.shape[1])), noise]).astype(np.float32)
    pairs = SyntheticPairs(partners, ways, shift.reshape(N + M, 2, -1))
    ids = [[part[row] for row in rows] for part in ids]
    return ids, np.concatenate([labels[stay], synthetic.labels]), pairs
