"""FMLP-Rec: learnable filters of the frequencies of a user's sequence.

Source: Zhou, Yu, Zhao, Wen, "Filter-enhanced MLP is All You Need for Sequential Recommendation",
WWW 2022, and its official implementation.

    H      = Dropout(LN(E[item_t] + P_t)),  t = 0..L-1, the newest item at L-1, before the oldest 0s
    per layer    X = F(H) over t,  F the real Fourier transform, orthonormal
                 s = LN(H + Dropout(F^-1(W * X)))
                 H = LN(s + Dropout(W2 GELU(W1 s + b1) + b2)),  exact GELU
    score  = H_(L-1) E^T

Shapes: N packed items, B sequences, D = d_model, L = max_length, V items.

| symbol            | attribute                          | shape                             |
| E                 | embedding.weight                   | (V+1, D); row 0: the empty slots  |
| P                 | positions.weight                   | (L, D)                            |
| LN of the input   | norm                               | (D,)                              |
| W                 | layers[l].filter                   | (L//2 + 1, D, 2): real, imaginary |
| LN, of s and of H | layers[l].{filter,pffn}_norm       | (D,)                              |
| W1, b1            | layers[l].pffn.inner.{weight,bias} | (4D, D), (4D,)                    |
| W2, b2            | layers[l].pffn.outer.{weight,bias} | (D, 4D), (D,)                     |

The filter is a circular convolution over L slots, per column, with the kernel F^-1(W) / sqrt(L).
So every slot sees every other one. Three things follow. The model is not causal: it can be trained
on prefixes only (`target_mode=prefix`). The empty slots on the left are part of its function: they
hold E[0] + P_t and reach every output, and a sequence cannot be cut to its length. The imaginary
parts of the first frequency and, for even L, of the last have no effect. `encode` gives the slots
of the real items, each of which has seen the later ones; `represent` the last slot, and the last
layer computes only that, as one weighted sum over the slots.

E[0] gets no gradient from the empty slots, as released; the full softmax, which has a row for it,
does train it.

Departures from the paper: where its official code is more precise or differs, this is the code:
exact GELU, 4D inner units, dropout after W2 alone, LayerNorm epsilon 1e-12, N(0, 0.02) weights.
Departures from the official implementation: its layers are copies of one, so all filters start
equal; here each is drawn alone, N(0, 0.02) per part. `usual=True` starts them equal. Its training,
apart from the model, also has a row with an empty history per user, cuts users to their last L
training items, and draws the negatives of BCE outside the user's items.
`repeat_bias`, ours, adds a `blocks.RepeatBias` to the score.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import (
    NORM_EPS,
    WEIGHT_STD,
    FeedForward,
    RepeatBias,
    check_dropout,
    check_lengths,
    check_sizes,
    init_weights,
)
from recblr.ops.dropout import Dropout


class FilterLayer(nn.Module):
    """Filter and feed-forward network, each with residual and post-norm."""

    def __init__(self, d_model: int, max_length: int, dropout: float):
        super().__init__()
        frequencies = max_length // 2 + 1
        self.filter = nn.Parameter(torch.empty(frequencies, d_model, 2).normal_(std=WEIGHT_STD))
        self.filter_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.pffn = FeedForward(d_model, dropout)
        self.pffn_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        return self._merge(x, torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho"))

    def last_slot(self, x: Tensor) -> Tensor:
        """x (B, L, D) -> the last slot of `forward` (B, D)."""
        kernel = torch.fft.irfft(torch.view_as_complex(self.filter), n=x.shape[1], dim=0)  # (L, D)
        return self._merge(x[:, -1], (x * kernel.flip(0)).sum(1))

    def _merge(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.filter_norm(x + self.dropout(y))
        return self.pffn_norm(s + self.pffn(s))


class FMLPRec(nn.Module):
    """FMLP-Rec over items 1..n_items, every sequence in max_length slots."""

    causal = False

    def __init__(
        self,
        n_items: int,
        max_length: int,
        d_model: int = 64,
        n_layers: int = 2,
        dropout: float = 0.5,
        usual: bool = False,
        repeat_bias: bool = False,
    ):
        super().__init__()
        check_sizes(max_length=max_length, d_model=d_model, n_layers=n_layers)
        check_dropout(dropout)
        self.max_length = max_length
        self.embedding = nn.Embedding(n_items + 1, d_model, padding_idx=0)
        self.positions = nn.Embedding(max_length, d_model)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            FilterLayer(d_model, max_length, dropout) for _ in range(n_layers)
        )
        self.repeat_bias = RepeatBias() if repeat_bias else None
        self.apply(init_weights)
        if usual:
            with torch.no_grad():
                for layer in self.layers[1:]:
                    layer.filter.copy_(self.layers[0].filter)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def encode(self, batch: SequenceBatch) -> Tensor:
        items = self._slots(batch)
        x = self._embed(items)
        for layer in self.layers:
            x = layer(x)
        return x[items > 0]

    def represent(self, batch: SequenceBatch) -> Tensor:
        x = self._embed(self._slots(batch))
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].last_slot(x)

    def _slots(self, batch: SequenceBatch) -> Tensor:
        """(B, L) int64, 0 on the left."""
        check_lengths(batch, self.max_length)
        items = batch.padded("left")
        return F.pad(items, (self.max_length - items.shape[1], 0))

    def _embed(self, items: Tensor) -> Tensor:
        return self.dropout(self.norm(self.embedding(items) + self.positions.weight))
