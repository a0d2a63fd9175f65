"""SASRec: causal self-attention over the items of a user.

Source: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, in the BERT style of
the usual implementation (RecBole).

    H_t    = Dropout(LN(E[item_t] + P_t)),  t = 0 for the oldest item that is kept
    per layer    s = LN(H + Dropout(W_o A + b_o))
                 H = LN(s + Dropout(W2 GELU(W1 s + b1) + b2))
    A, per head on d = D / n_heads columns:
                 [Q; K; V] = W_qkv H + b_qkv
                 A_t = sum over i <= t of Dropout(softmax_i(Q_t . K_i / sqrt(d))) V_i
    score  = H_T E^T

Shapes: N packed items, B sequences, D = d_model, L = max_length, V items.

| symbol            | attribute                          | shape                             |
| E                 | embedding.weight                   | (V+1, D)                          |
| P                 | positions.weight                   | (L, D)                            |
| LN of the input   | norm                               | (D,)                              |
| W_qkv, b_qkv      | layers[l].qkv_proj.{weight,bias}   | (3D, D), (3D,): query, key, value |
| W_o, b_o          | layers[l].out_proj.{weight,bias}   | (D, D), (D,)                      |
| LN, of s and of H | layers[l].{attention,pffn}_norm    | (D,)                              |
| W1, b1            | layers[l].pffn.inner.{weight,bias} | (4D, D), (4D,)                    |
| W2, b2            | layers[l].pffn.outer.{weight,bias} | (D, 4D), (D,)                     |

A head has d consecutive rows of each third of W_qkv. A released model has three matrices, `query`,
`key` and `value`: W_qkv is one on top of the other, in this order.

Departures from the paper, all of them usual: LayerNorm after each residual sum, on queries, keys
and values alike (the paper: before, on queries alone), and none at the end; exact GELU and 4D inner
units (ReLU and D); biases everywhere; no factor sqrt(D) on the embeddings, but LayerNorm on their
sum with the positions; positions from the oldest item (from the newest); N(0, 0.02) weights. Full
softmax over V+1 rows is the usual loss; `objective=bce` is the paper's, but for its negatives,
which it draws outside the user's items.
Departures from the usual implementation: none in the function, so `usual` changes nothing. Padding
is left out, not masked with -10000: the weights that it got there are 0 to the last bit. RecBole
has two dropout rates with one default, and 256 inner units at every D, which is 4D at D = 64.
Ours: `repeat_bias` adds a `blocks.RepeatBias` to the score; `direct_conv=K` a `blocks.DirectConv`
of width K to W_o A + b_o.
"""

from __future__ import annotations

from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import (
    NORM_EPS,
    AttentionLayer,
    Rectangles,
    RepeatBias,
    check_dropout,
    check_lengths,
    check_sizes,
    init_weights,
)
from recblr.ops.dropout import Dropout


class SASRec(nn.Module):
    """SASRec over items 1..n_items, at most max_length in a sequence."""

    causal = True

    def __init__(
        self,
        n_items: int,
        max_length: int,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        dropout: float = 0.5,
        usual: bool = False,
        repeat_bias: bool = False,
        direct_conv: int = 0,
    ):
        super().__init__()
        check_sizes(max_length=max_length, d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        check_dropout(dropout)
        self.max_length, self.n_heads = max_length, n_heads
        self.embedding = nn.Embedding(n_items + 1, d_model)
        self.positions = nn.Embedding(max_length, d_model)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            AttentionLayer(d_model, n_heads, dropout, causal=True, direct_conv=direct_conv)
            for _ in range(n_layers)
        )
        self.repeat_bias = RepeatBias() if repeat_bias else None
        self.apply(init_weights)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def encode(self, batch: SequenceBatch) -> Tensor:
        x, rectangles = self._embed(batch), Rectangles.of(batch, self.n_heads)
        for layer in self.layers:
            x = layer(x, batch, rectangles)
        return x

    def represent(self, batch: SequenceBatch) -> Tensor:
        x, rectangles = self._embed(batch), Rectangles.of(batch, self.n_heads)
        for layer in self.layers[:-1]:
            x = layer(x, batch, rectangles)
        return self.layers[-1].last_rows(x, batch)

    def _embed(self, batch: SequenceBatch) -> Tensor:
        check_lengths(batch, self.max_length)
        x = self.embedding(batch.items) + self.positions(batch.place)
        return self.dropout(self.norm(x))
