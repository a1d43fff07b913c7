"""Regressor of the similarity of two sentences, with FDS on the features of the pair.

Embeddings, a bidirectional LSTM and a maximum over time give one vector for each sentence, u and
v; a linear layer reads [u; v; |u − v|; u ∗ v]. The parameter names are those of the released
checkpoints, which came from AllenNLP. Any Hugging Face text encoder can stand in for the LSTM.
"""

import torch
from torch import nn

from packing import Packing
from recurrence import run_packed
from synthetic_pairs import mix


class Highway(nn.Module):
    """Layers that mix their input with a ReLU of it, by a gate that starts nearly open.

    Args:
        dim: features in and out.
        layers: number of layers, 0 for the identity.

    Source: Srivastava et al., "Highway Networks" (2015).
    """

    def __init__(self, dim, layers):
        super().__init__()
        self._layers = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(layers))
        for layer in self._layers:
            nn.init.ones_(layer.bias[dim:])  # so that the input passes at first

    def forward(self, x):
        """Map [..., dim] to [..., dim]."""
        for layer in self._layers:
            changed, gate = layer(x).chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
            x = gate * x + (1 - gate) * torch.relu(changed)
        return x


class Holder(nn.Module):
    """A module inside another for its name's sake: released checkpoints say `x._module.y`."""

    def __init__(self, module, name="_module"):
        super().__init__()
        self.add_module(name, module)


class LSTMEncoder(nn.Module):
    """Embeddings -> highway -> dropout -> LSTM -> dropout -> maximum over time, per sentence.

    Args:
        vocab_size: rows of the embedding, the two of padding and unknown words included.
        d_word: length of a word vector.
        d_hid: hidden size of each direction.
        layers: of the LSTM.
        highway_layers: between embeddings and LSTM.
        dropout: of embeddings and encodings.
        train_words: train the embeddings too.
    """

    def __init__(
        self, vocab_size, d_word=300, d_hid=1500, layers=2, highway_layers=0, dropout=0.2,
        train_words=False,
    ):  # fmt: skip
        super().__init__()
        words = nn.Embedding(vocab_size, d_word)
        words.weight.requires_grad_(train_words)
        self._text_field_embedder = Holder(words, "token_embedder_words")
        self._highway_layer = Holder(Highway(d_word, highway_layers))
        lstm = nn.LSTM(d_word, d_hid, layers, batch_first=True, bidirectional=True)
        self._phrase_layer = Holder(lstm)
        self.dropout = nn.Dropout(dropout)
        self.sentence_dim = 2 * d_hid

    @property
    def words(self):
        """The embedding, [vocab_size, d_word]."""
        return self._text_field_embedder.token_embedder_words

    @torch.compiler.disable  # it cannot compile packed sequences; the layers around them it can
    def forward(self, ids, lengths, shift=None):
        """Encode sentences.

        Args:
            ids: long [N, T], 0 behind a sentence's end.
            lengths: N numbers of tokens, each at least 1, as a list, array, tensor or `Packing`.
            shift: what is added to the vectors of each sentence's words [N, d_word], or None.

        Returns:
            Tensor [N, 2·d_hid].
        """
        # Packed, a batch holds only its words: nothing is computed behind a sentence's end.
        packing = Packing.of(lengths, ids.device)
        vectors = self.words(packing.pack(ids))
        if shift is not None:
            vectors = vectors + shift[packing.places // len(packing.sizes)]
        embedded = self.dropout(self._highway_layer._module(vectors))
        encoded = run_packed(self._phrase_layer._module, packing.sequence(embedded))
        return packing.pad(self.dropout(encoded.data), float("-inf")).amax(dim=1)


class TextEncoder(nn.Module):
    """A Hugging Face encoder in place of the LSTM: hidden states -> dropout -> mean or maximum.

    Args:
        encoder: a model of `transformers.AutoModel` that returns `last_hidden_state`.
        dropout: of the hidden states, in addition to the encoder's own.
        pooling: 'mean' or 'max' over the tokens.
    """

    def __init__(self, encoder, dropout=0.2, pooling="mean"):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.dropout = nn.Dropout(dropout)
        self.sentence_dim = encoder.config.hidden_size

    def forward(self, ids, lengths, shift=None):
        """Encode sentences; arguments and result as for `LSTMEncoder.forward`."""
        lengths = Packing.of(lengths, ids.device).numbers
        held = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        words = {"input_ids": ids}
        if shift is not None:
            vectors = self.encoder.get_input_embeddings()(ids)
            words = {"inputs_embeds": vectors + shift.unsqueeze(1)}
        x = self.encoder(**words, attention_mask=held.long()).last_hidden_state
        x, held = self.dropout(x), held.unsqueeze(2)
        if self.pooling == "max":
            return x.masked_fill(~held, float("-inf")).amax(dim=1)
        return (x * held).sum(dim=1) / held.sum(dim=1)


class SimilarityRegressor(nn.Module):
    """Similarity of two sentences, with FDS before the last layer.

    Args:
        encoder: module (ids, lengths) -> [N, sentence_dim].
        fds: an `fds.FDS` of 4·sentence_dim features, or None.

    Raises:
        ValueError: for FDS of another width.
    """

    def __init__(self, encoder, fds=None):
        super().__init__()
        feature_dim = 4 * encoder.sentence_dim
        if fds is not None and fds.feature_dim != feature_dim:
            raise ValueError(f"a pair has {feature_dim} features, FDS {fds.feature_dim}")
        self.pair_encoder, self.FDS = encoder, fds
        self.add_module("sts-b_pred_layer", nn.Linear(feature_dim, 1))

    @property
    def linear(self):
        """The last layer; the released checkpoints' name for it is no Python name."""
        return getattr(self, "sts-b_pred_layer")

    def pair_features(self, ids, lengths, blend=None):
        """Return [u; v; |u − v|; u ∗ v], [N, 4·sentence_dim], of the pairs.

        Args:
            ids: long [2·N, T], all first sentences and then all second ones.
            lengths: 2·N numbers of tokens, as `LSTMEncoder.forward` takes them.
            blend: `synthetic_pairs.Blend`, if some of the pairs are synthetic. Then N counts their
                neighbours too, and there are features of the others alone.
        """
        shift = () if blend is None else (blend.shift,)
        # All sentences go through in one call.
        u, v = self.pair_encoder(ids, lengths, *shift).chunk(2)
        if blend is not None:
            u, v = mix(u, blend), mix(v, blend)
        return torch.cat([u, v, (u - v).abs(), u * v], dim=1)

    def forward(self, ids, lengths, labels=None, epoch=None, blend=None):
        """Predict similarities / 5; in training with FDS, from calibrated features.

        Args:
            ids, lengths, blend: as for `pair_features`.
            labels: [N, 1] in 0 ... 5, needed for FDS in training.
            epoch: number of the running epoch, needed for FDS in training.

        Returns:
            Predictions [N, 1] on [0, 1], and the raw features [N, D], of which FDS takes its
            statistics.
        """
        features = self.pair_features(ids, lengths, blend)
        calibrated = features
        if self.training and self.FDS is not None:
            calibrated = self.FDS.smooth(features, labels, epoch)
        return self.linear(calibrated), features
