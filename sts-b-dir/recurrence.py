"""The LSTM's recurrence with our own backward pass, for training on the CPU.

Its numbers are those of `torch.nn.LSTM`, up to rounding. With torch's own, a training step on 128
pairs takes longer: 1.6 times at 64 and at 128 units each way, 1.4 times at 256 and 1.5 times at the
paper's 1500. (Two layers, one thread, PyTorch 2.15.) Up to 256 units, this measures it again:

    OMP_NUM_THREADS=1 python benchmarks/sentences.py
"""

import itertools

import torch
from torch import nn


class PackedRecurrence(torch.autograd.Function):
    """One direction of one LSTM layer over packed sequences, for training on the CPU.

    PyTorch's own backward pass makes a zero tensor of the whole batch for every time step. Here
    each step's gradient is written into its place, and the weights' gradient is one product.
    """

    @staticmethod
    def forward(ctx, gates, weight, sizes, reverse):
        """Run the recurrence.

        Args:
            gates: the input's part of the gates i, f, g, o, biases included, [M, 4·H], in the
                order of a PackedSequence.
            weight: of the hidden state, [4·H, H].
            sizes: sequences that are alive at each time step, descending.
            reverse: from the sequences' ends to their starts.

        Returns:
            Hidden states [M, H].
        """
        H, gates = weight.shape[1], gates.clone()
        hidden = gates.new_empty(len(gates), H)
        cell = gates.new_empty(len(gates), H)
        starts = [0, *itertools.accumulate(sizes)]
        steps, before = [], (0, 0)  # start and number of the rows of the step before
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            start, n = starts[t], sizes[t]
            k = min(n, before[1])  # in reverse, the other sequences only begin here
            steps.append((start, n, before[0], k))
            now = slice(start, start + n)
            prior = slice(before[0], before[0] + k)
            rows, c = gates[now], cell[now]
            if k:
                rows[:k].addmm_(hidden[prior], weight.T)
            rows[:, : 2 * H].sigmoid_()
            rows[:, 2 * H : 3 * H].tanh_()
            rows[:, 3 * H :].sigmoid_()
            i, f, g, o = rows.chunk(4, dim=1)
            torch.mul(i, g, out=c)
            c[:k].addcmul_(f[:k], cell[prior])
            torch.mul(o, c.tanh(), out=hidden[now])
            before = (start, n)
        ctx.save_for_backward(gates, hidden, cell, weight)
        ctx.steps = steps
        return hidden

    @staticmethod
    def backward(ctx, grad_hidden):
        """Return the gradients of gates and weight."""
        gates, hidden, cell, weight = ctx.saved_tensors
        grad_hidden = grad_hidden.clone()
        grad_cell = torch.zeros_like(cell)
        grad_gates = torch.empty_like(gates)
        earlier = torch.zeros_like(hidden)
        for start, n, prior_start, k in reversed(ctx.steps):
            now = slice(start, start + n)
            prior = slice(prior_start, prior_start + k)
            i, f, g, o = gates[now].chunk(4, dim=1)
            di, df, dg, do = grad_gates[now].chunk(4, dim=1)
            tanh_c = cell[now].tanh()
            dh = grad_hidden[now]
            dc = grad_cell[now]
            torch.mul(dh, tanh_c, out=do).mul_(o * (1 - o))
            dc.addcmul_(dh * o, 1 - tanh_c.square())
            torch.mul(dc, g, out=di).mul_(i * (1 - i))
            torch.mul(dc, i, out=dg).mul_(1 - g.square())
            df.zero_()
            if k:
                torch.mul(dc[:k], cell[prior], out=df[:k]).mul_(f[:k] * (1 - f[:k]))
                torch.mul(dc[:k], f[:k], out=grad_cell[prior])
                grad_hidden[prior].addmm_(grad_gates[start : start + k], weight)
                earlier[start : start + k] = hidden[prior]
        return grad_gates, grad_gates.T @ earlier, None, None


def run_packed(lstm, packed):
    """Return what an LSTM makes of a PackedSequence.

    Args:
        lstm: a bidirectional `torch.nn.LSTM` with biases, without dropout between its layers.
        packed: `PackedSequence` of its inputs.

    Returns:
        `PackedSequence` of the last layer's hidden states, both directions. Outside of training in
        float32 on the CPU it comes from `lstm` itself.
    """
    data = packed.data
    if not (torch.is_grad_enabled() and data.device.type == "cpu" and data.dtype == torch.float32):
        return lstm(packed)[0]
    if torch.is_autocast_enabled("cpu"):
        return lstm(packed)[0]
    sizes = packed.batch_sizes.tolist()
    for layer in range(lstm.num_layers):
        directions = []
        for suffix in (f"_l{layer}", f"_l{layer}_reverse"):
            biases = getattr(lstm, f"bias_ih{suffix}") + getattr(lstm, f"bias_hh{suffix}")
            gates = nn.functional.linear(data, getattr(lstm, f"weight_ih{suffix}"), biases)
            options = getattr(lstm, f"weight_hh{suffix}"), sizes, suffix.endswith("reverse")
            directions.append(PackedRecurrence.apply(gates, *options))
        data = torch.cat(directions, dim=1)
    return packed._replace(data=data)
