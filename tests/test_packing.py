"""packing.py against PyTorch's own functions for sequences of different length."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from conftest import load

Packing = load("sts-b-dir", "packing").Packing


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [2, 5, 1, 5, 2, 4, 5, 1, 3, 2] * 8])
def test_elements_lie_where_pytorch_puts_them(lengths):
    packing = Packing.of(lengths)
    padded = torch.arange(len(lengths) * 6).view(-1, 6)  # the last columns belong to none
    packed = pack_padded_sequence(padded, torch.tensor(lengths), True, enforce_sorted=False)
    ours = packing.sequence(packing.pack(padded).float()[:, None])
    assert torch.equal(ours.data[:, 0], packed.data.float())
    assert torch.equal(ours.batch_sizes, packed.batch_sizes)
    expected, numbers = pad_packed_sequence(packed._replace(data=ours.data), True, -1.0)
    assert torch.equal(packing.pad(ours.data, -1.0), expected)
    assert packing.numbers.tolist() == packing.lengths.tolist() == numbers.tolist() == lengths
    assert Packing.of(packing) is packing


def test_lengths_that_cannot_be():
    with pytest.raises(ValueError, match=r"needs an element, lengths are \[2, 0\]"):
        Packing.of([2, 0])
    with pytest.raises(ValueError, match="4 elements are said to be in sequences of 3"):
        Packing.of([1, 4]).pack(torch.zeros(2, 3))
