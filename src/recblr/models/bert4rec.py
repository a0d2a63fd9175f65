"""BERT4Rec: self-attention in both directions, trained to fill in masked items.

Source: Sun, Liu, Wu, Pei, Lin, Ou, Jiang, "BERT4Rec: Sequential Recommendation with Bidirectional
Encoder Representations from Transformer", CIKM 2019.

    H_t    = Dropout(LN(E[item_t] + P_t)),  t = 0 for the oldest item that is kept
    per layer    s = LN(H + Dropout(W_o A + b_o))
                 H = LN(s + Dropout(W2 GELU(W1 s + b1) + b2))
    A, per head on d = D / n_heads columns:
                 [Q; K; V] = W_qkv H + b_qkv
                 A_t = sum over all i of Dropout(softmax_i(Q_t . K_i / sqrt(d))) V_i
    q_t    = LN(GELU(W_h H_t + b_h))
    score  = q_t E^T + b,  at a position t that holds the mask token

Shapes: N packed items, B sequences, D = d_model, L = max_length, V items.

| symbol             | attribute                             | shape                             |
| E                  | embedding.weight                      | (V+2, D); row V+1 is the mask     |
| P                  | positions.weight                      | (L, D)                            |
| LN of the input    | norm                                  | (D,)                              |
| W_qkv, b_qkv       | layers[l].qkv_proj.{weight,bias}      | (3D, D), (3D,): query, key, value |
| W_o, b_o           | layers[l].out_proj.{weight,bias}      | (D, D), (D,)                      |
| LN, of s and of H  | layers[l].{attention,pffn}_norm       | (D,)                              |
| W1, b1             | layers[l].pffn.inner.{weight,bias}    | (4D, D), (4D,)                    |
| W2, b2             | layers[l].pffn.outer.{weight,bias}    | (D, 4D), (D,)                     |
| W_h, b_h           | head.{weight,bias}                    | (D, D), (D,)                      |
| LN of the head     | head_norm                             | (D,)                              |
| b                  | bias                                  | (V+1,)                            |

A head of the attention has d consecutive rows of each third of W_qkv. A released model has three
matrices, `query`, `key` and `value`: W_qkv is one on top of the other, in this order.

How items are masked in training is the objective's (`training/cloze.py`). To recommend, a mask
token follows the history, and the scores are those of its position; a history that has L items
already loses its oldest.

Departures from the paper, all of them usual: LayerNorm and dropout on the embeddings and LayerNorm
in the head, as BERT itself has; N(0, 0.02) weights, not truncated.
Departures from the usual implementation (RecBole): it drops the first column of every batch, also
where there is room for the mask. So each history loses its oldest item, a single item leaves the
mask alone, and every position is one less than in training. `usual=True` does the same. Padding is
left out, not masked with -10000: the weights that it got there are 0 to the last bit. RecBole has
two dropout rates with one default, and 256 inner units at every D, which is 4D at D = 64. It trains
on a row per prefix: `usual` is its training only with `target_mode=prefix`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import (
    NORM_EPS,
    AttentionLayer,
    Rectangles,
    check_dropout,
    check_lengths,
    check_sizes,
    init_weights,
)
from recblr.ops.dropout import Dropout


class BERT4Rec(nn.Module):
    """BERT4Rec over items 1..n_items, at most max_length in a sequence, the mask token included.

    mask_id: what stands for an item that is to be filled in.
    """

    causal = False

    def __init__(
        self,
        n_items: int,
        max_length: int,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        dropout: float = 0.2,
        usual: bool = False,
    ):
        super().__init__()
        check_sizes(max_length=max_length, d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        check_dropout(dropout)
        self.mask_id, self.max_length = n_items + 1, max_length
        self.n_heads, self.usual = n_heads, usual
        self.embedding = nn.Embedding(n_items + 2, d_model)
        self.positions = nn.Embedding(max_length, d_model)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            AttentionLayer(d_model, n_heads, dropout, causal=False) for _ in range(n_layers)
        )
        self.head = nn.Linear(d_model, d_model)
        self.head_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(n_items + 1))
        self.apply(init_weights)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight[:-1]

    def item_bias(self) -> Tensor:
        return self.bias

    def encode(self, batch: SequenceBatch) -> Tensor:
        """(N, D) of items 1..V and mask tokens; each row sees its whole sequence."""
        x, rectangles = self._embed(batch), Rectangles.of(batch, self.n_heads)
        for layer in self.layers:
            x = layer(x, batch, rectangles)
        return self._read_out(x)

    def represent(self, batch: SequenceBatch) -> Tensor:
        masks = torch.full_like(batch.user_ids, self.mask_id)
        batch = batch.with_one_more(masks, full=1 if self.usual else self.max_length)
        x, rectangles = self._embed(batch), Rectangles.of(batch, self.n_heads)
        for layer in self.layers[:-1]:
            x = layer(x, batch, rectangles)
        return self._read_out(self.layers[-1].last_rows(x, batch))

    def _embed(self, batch: SequenceBatch) -> Tensor:
        check_lengths(batch, self.max_length)
        x = self.embedding(batch.items) + self.positions(batch.place)
        return self.dropout(self.norm(x))

    def _read_out(self, x: Tensor) -> Tensor:
        return self.head_norm(F.gelu(self.head(x)))
