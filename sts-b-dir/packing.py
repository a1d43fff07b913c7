"""Sequences of different length in one batch, packed without waiting for a GPU.

PyTorch's `pack_padded_sequence` sends the order of the sequences to the GPU in each call, and
`pad_packed_sequence` fetches it from there: the CPU waits both times. Here that order is found when
a batch is read, and travels with it. Data scripts do without torch: it comes late.
"""

from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """Where the M elements of N padded sequences stand in a `PackedSequence`, longest T."""

    lengths: np.ndarray  # of the sequences, long [N]
    sizes: np.ndarray  # sequences that are alive at each step, long [T]; PyTorch reads them
    numbers: object  # tensor, the lengths once more, on the device
    places: object  # tensor, n · T + t of each packed element, long [M], on the device

    @classmethod
    def of(cls, lengths, device="cpu"):
        """Return the packing of sequences.

        Args:
            lengths: of N sequences: a list, an array or a tensor; a packing is returned as it is.
            device: where the sequences are.

        Raises:
            ValueError: for a sequence of no element.
        """
        import torch

        if isinstance(lengths, cls):
            return lengths
        lengths = torch.as_tensor(lengths, dtype=torch.long, device="cpu")
        if (lengths < 1).any():
            raise ValueError(f"each sequence needs an element, lengths are {lengths.tolist()}")
        # As PyTorch sorts them, so that the numbers are the same to the last bit.
        falling, order = lengths.sort(descending=True)
        alive = torch.arange(int(falling[0]))[:, None] < falling
        steps, ranks = alive.nonzero().T
        places = order[ranks] * len(alive) + steps
        sizes = alive.sum(dim=1).numpy()
        return cls(lengths.numpy(), sizes, *(x.to(device) for x in (lengths, places)))

    def sequence(self, data):
        """Return the `PackedSequence` of packed elements [M, D]."""
        import torch
        from torch.nn.utils.rnn import PackedSequence

        return PackedSequence(data, torch.from_numpy(self.sizes))

    def pack(self, padded):
        """Return the elements [M] of padded sequences [N, T or more], in packed order.

        Raises:
            ValueError: for padded sequences that are too short.
        """
        T = len(self.sizes)
        if padded.shape[1] < T:
            raise ValueError(f"{T} elements are said to be in sequences of {padded.shape[1]}")
        return padded[:, :T].flatten().index_select(0, self.places)

    def pad(self, data, value=0.0):
        """Return packed elements [M, D] as padded sequences [N, T, D], `value` behind their end."""
        shape = len(self.lengths), len(self.sizes)
        padded = data.new_full((shape[0] * shape[1], data.shape[1]), value)
        return padded.index_copy(0, self.places, data).unflatten(0, shape)
