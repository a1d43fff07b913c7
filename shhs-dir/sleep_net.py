"""Network from a night's signals to a health score, with FDS on the features before its last layer.

For each signal a residual CNN turns a frame of 30 seconds into a vector. A recurrent layer runs
over the night's frames, and the mean over them is the signal's vector. The three are concatenated;
an MLP makes the features, a linear layer the score.

The CNN sees one frame at a time, so nothing reaches over a frame's edge. Padding has no effect, and
the cut of a night into chunks has none. For the same reason group norm is taken per frame: the
statistics of batch norm would hold the padding and the other nights. What happens over more than
30 seconds is the recurrent layer's part.

The paper (from notes) says residual blocks and SRU, 256 features a signal, an MLP of three layers;
it leaves widths and kernels open. Here a GRU or an LSTM replaces the SRU, which is no part of
PyTorch.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from night_signals import SIGNALS
from packing import Packing

CHUNK = 4096  # frames that a CNN takes at a time: four nights of 8 hours and a half
SCALE = 100.0  # the linear layer predicts the score's hundredth, so that it starts near the range
STEM_STRIDES = (
    (240, 4),
    (80, 2),
    (0, 1),
)  # of frames with so many columns; a night's: 300, 120, 30
GROUPS = 8  # of the group norm


class ResidualBlock(nn.Module):
    """Two convolutions over time and a shortcut, each followed by group norm.

    Args:
        channels, out_channels: widths, the latter a multiple of 8.
        stride: of the first convolution.
    """

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != out_channels:
            self.shortcut = nn.Conv1d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x):
        """Map [M, channels, T] to [M, out_channels, ceil(T / stride)]."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class SignalEncoder(nn.Module):
    """One signal of a night -> one vector.

    Args:
        signal: its layout, a `night_signals.Signal`.
        width: channels of the first block, a multiple of 8; the later ones have twice as many.
        d_signal: length of the vector, even.
        rnn: 'gru' or 'lstm', bidirectional.
        chunk: frames that the CNN takes at a time. With more than one chunk, training computes a
            chunk's inner values again in the backward pass, so memory does not grow with the night.
    """

    def __init__(self, signal, width=64, d_signal=256, rnn="gru", chunk=CHUNK):
        super().__init__()
        self.frame, self.chunk = signal.frame, chunk
        # Mean and spread of each input channel in the training set.
        self.register_buffer("input_mean", torch.zeros(signal.channels))
        self.register_buffer("input_std", torch.ones(signal.channels))
        stride = next(stride for columns, stride in STEM_STRIDES if signal.frame >= columns)
        self.stem = nn.Conv1d(signal.channels, width, 7, stride, padding=3)
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 2),
        )
        self.project = nn.Linear(2 * width, d_signal)
        layer = {"gru": nn.GRU, "lstm": nn.LSTM}[rnn]
        self.rnn = layer(d_signal, d_signal // 2, bidirectional=True, batch_first=True)

    def encode_frames(self, x):
        """Map frames [M, channels, columns] to vectors [M, d_signal], each on its own."""
        x = (x.float() - self.input_mean[:, None]) / self.input_std[:, None]
        return self.project(self.blocks(self.stem(x)).mean(dim=2))

    def forward(self, x, packing):
        """Map nights [N, channels, columns] to [N, d_signal]; a `Packing` says what is real."""
        pieces = x.unflatten(2, (-1, self.frame)).transpose(1, 2)  # [N, frames, channels, columns]
        real, order = packing.places.sort()  # night after night
        longest = len(packing.sizes)
        # Padding is left out here: no value of it is used.
        chunks = pieces[real // longest, real % longest].split(self.chunk)
        if len(chunks) > 1 and torch.is_grad_enabled():
            encoded = [checkpoint(self.encode_frames, c, use_reentrant=False) for c in chunks]
        else:
            encoded = [self.encode_frames(chunk) for chunk in chunks]
        # In float32: the sum over a night of a thousand frames is too long for half precision.
        with torch.autocast(x.device.type, enabled=False):
            encoded = torch.cat(encoded).float()
            packed = torch.empty_like(encoded).index_copy(0, order, encoded)
            states = self.rnn(packing.sequence(packed))[0].data
            return packing.pad(states).sum(dim=1) / packing.numbers[:, None]


class SleepNet(nn.Module):
    """Three signals of a night, or your own -> score, optionally with FDS.

    Args:
        fds: an `fds.FDS` of `d_hid` features, or None.
        width, d_signal: as for `SignalEncoder`.
        d_hid: features before the last layer, and width of the MLP.
        signals: their layout, as `own_signals.signals_of` returns it.
        encoder: `rnn` and `chunk` of `SignalEncoder`.

    Raises:
        ValueError: for sizes that cannot be used, an unknown `rnn`, or FDS of another width.
    """

    def __init__(self, fds=None, width=64, d_signal=256, d_hid=256, signals=SIGNALS, **encoder):
        super().__init__()
        rnn = encoder.get("rnn", "gru")
        chunk = encoder.get("chunk", CHUNK)
        if width < 1 or width % GROUPS or d_signal < 2 or d_signal % 2 or d_hid < 1 or chunk < 1:
            raise ValueError(
                f"width {width} must be a multiple of {GROUPS}, d_signal {d_signal} even, d_hid "
                f"{d_hid} and chunk {chunk} above 0"
            )
        if rnn not in ("gru", "lstm"):
            raise ValueError(f"rnn must be gru or lstm, got {rnn!r}")
        if fds is not None and fds.feature_dim != d_hid:
            raise ValueError(f"the network has {d_hid} features, FDS {fds.feature_dim}")
        self.encoders = nn.ModuleDict(
            {name: SignalEncoder(s, width, d_signal, rnn, chunk) for name, s in signals.items()}
        )
        self.mlp = nn.Sequential(
            nn.Linear(len(signals) * d_signal, d_hid), nn.ReLU(),
            nn.Linear(d_hid, d_hid), nn.ReLU(),
        )  # fmt: skip
        self.linear = nn.Linear(d_hid, 1)
        nn.init.constant_(self.linear.bias, 0.5)  # the middle of the range
        self.FDS = fds

    def set_input_scale(self, scale):
        """Set mean and spread from `{signal: (mean, std)}` of `datasets.Nights.scale`."""
        for name, (mean, std) in scale.items():
            self.encoders[name].input_mean.copy_(mean)
            self.encoders[name].input_std.copy_(std)

    def forward(self, signals, frames, labels=None, epoch=None):
        """Predict scores; in training with FDS, from calibrated features.

        Args:
            signals: `{signal: [N, channels, columns]}` as `night_signals` describes, of any
                floating type; what lies behind a night's frames is not read.
            frames: real frames of the N nights, >= 1, as a list, array, tensor or `Packing`.
            labels: [N, 1], 0 to 100, needed for FDS in training.
            epoch: number of the running epoch, needed for FDS in training.

        Returns:
            Predictions [N, 1] and the raw features [N, D], of which FDS takes its statistics.
        """
        packing = Packing.of(frames, self.mlp[0].weight.device)
        vectors = [encoder(signals[name], packing) for name, encoder in self.encoders.items()]
        features = self.mlp(torch.cat(vectors, dim=1))
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return SCALE * self.linear(calibrated), features
