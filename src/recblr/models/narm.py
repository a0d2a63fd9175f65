"""NARM: neural attentive session-based recommendation.

Source: Li, Ren, Chen, Ren, Lian, Ma, "Neural Attentive Session-based Recommendation", CIKM 2017.

    h_t      = GRU(Dropout(E[item_t]), h_(t-1)),  h_0 = 0       equations in `gru4rec`
    alpha_tj = v . sigmoid(A1 h_j + A2 h_t)  for j <= t         no softmax
    q_t      = B Dropout_head([sum_j alpha_tj h_j; h_t]),  score = q_t E^T

Shapes: N packed items, B sequences, T longest sequence, D = d_model, H = hidden, V items.

| symbol          | attribute            | shape                                    |
| E               | embedding.weight     | (V+1, D)                                 |
| [W_r; W_z; W_n] | gru.weight_ih_l<l>   | (3H, D); (3H, H) in layers l = 1, 2, ..  |
| [U_r; U_z; U_n] | gru.weight_hh_l<l>   | (3H, H)                                  |
| A1, A2          | a1.weight, a2.weight | (H, H)                                   |
| v               | v.weight             | (1, H)                                   |
| B               | out_proj.weight      | (D, 2H); columns of the local part first |

Departures from the paper: A1 and A2 change their names, and the two halves of B their places, as
in the usual implementation; no biases in the unit, and torch's form of it (see `gru4rec`).
Departures from the usual implementation (RecBole): none in the function, so `usual` changes
nothing: it masks its padding. As there, Xavier normal embeddings (padding row included) and
matrices, and torch's own start of the unit. A1 h and A2 h are each held within +-80, far
beyond what training reaches: `PairWeights` takes their exponentials.

All positions at once need a weight for each pair of positions, T^2 H sigmoids a sequence:
`PairWeights` never keeps more than T H of them. There is no `step`: every new item changes the sum
over the whole history, so the state would be that history.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import Rectangles, check_dropout, check_sizes
from recblr.models.gru4rec import by_time, run_gru
from recblr.ops.dropout import Dropout

LARGEST = 80.0  # of |A h|: e^80 and e^-80 are float32 numbers, so no product of two is inf * 0


class NARM(nn.Module):
    """NARM over items 1..n_items.

    dropout: of the embeddings. head_dropout: of the input of B.
    """

    causal = True

    def __init__(
        self,
        n_items: int,
        d_model: int = 64,
        hidden: int = 128,
        n_layers: int = 1,
        dropout: float = 0.25,
        head_dropout: float = 0.5,
        usual: bool = False,
    ):
        super().__init__()
        check_sizes(d_model=d_model, hidden=hidden, n_layers=n_layers)
        check_dropout(dropout)
        check_dropout(head_dropout, "model.head_dropout")
        self.embedding = nn.Embedding(n_items + 1, d_model)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(d_model, hidden, n_layers, bias=False)
        self.a1 = nn.Linear(hidden, hidden, bias=False)
        self.a2 = nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)
        self.head_dropout = Dropout(head_dropout)
        self.out_proj = nn.Linear(2 * hidden, d_model, bias=False)
        for module in (self.embedding, self.a1, self.a2, self.v, self.out_proj):
            nn.init.xavier_normal_(module.weight)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def encode(self, batch: SequenceBatch) -> Tensor:
        h = self._states(batch)
        with torch.autocast(h.device.type, enabled=False):  # a sum over a whole history
            local = self._local(h, batch)
        return self._head(local, h)

    def represent(self, batch: SequenceBatch) -> Tensor:
        h = self._states(batch)
        last = h.index_select(0, batch.last)  # (B, H)
        sequence = batch.sequence
        with torch.autocast(h.device.type, enabled=False):
            q = bounded(self.a1(h)) + bounded(self.a2(last)).index_select(0, sequence)
            local = torch.zeros_like(last).index_add(0, sequence, self.v(torch.sigmoid(q)) * h)
        return self._head(local, last)

    def _states(self, batch: SequenceBatch) -> Tensor:
        """h (N, H)."""
        items, rows_per_time, place = by_time(batch)
        x = self.dropout(self.embedding(items))
        return run_gru(self.gru, x, rows_per_time).index_select(0, place)

    def _local(self, h: Tensor, batch: SequenceBatch) -> Tensor:
        """h (N, H) -> sum over j <= t of alpha_tj h_j (N, H)."""
        shapes, _, place = Rectangles.of(batch, n_heads=1)
        sizes, place = [b * t for b, t in shapes], place[:, 0]
        blank, sums = h.new_zeros(sum(sizes), h.shape[1]), []
        parts = (bounded(self.a1(h)), bounded(self.a2(h)), h)
        parts = (blank.index_copy(0, place, x).split(sizes) for x in parts)
        for shape, *rows in zip(shapes, *parts):
            q1, q2, values = (x.view(*shape, -1) for x in rows)  # (b, T, H)
            alpha = PairWeights.apply(q1, q2, self.v.weight[0])
            sums.append((alpha @ values).flatten(0, 1))
        return torch.cat(sums).index_select(0, place)

    def _head(self, local: Tensor, h: Tensor) -> Tensor:
        return self.out_proj(self.head_dropout(torch.cat((local, h), 1)))


def bounded(q: Tensor) -> Tensor:
    return q.clamp(-LARGEST, LARGEST)


class PairWeights(torch.autograd.Function):
    """alpha (b, T, T): v . sigmoid(q1_j + q2_t) in row t, column j <= t, else 0.

    q1, q2 (b, T, H) within +-LARGEST, v (H,). The sigmoids of one row t exist at a time, and are
    computed again in the backward.
    """

    @staticmethod
    def forward(ctx, q1: Tensor, q2: Tensor, v: Tensor) -> Tensor:
        e1, e2 = torch.exp(-q1), torch.exp(-q2)
        ctx.save_for_backward(e1, e2, v)
        alpha = q1.new_zeros(*q1.shape[:2], q1.shape[1])
        for t, s in _sigmoids(e1, e2):
            alpha[:, t, : t + 1] = s @ v
        return alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, d_alpha: Tensor):
        e1, e2, v = ctx.saved_tensors
        d_q1, d_q2, d_v = torch.zeros_like(e1), torch.empty_like(e2), torch.zeros_like(v)
        for t, s in _sigmoids(e1, e2):
            d = d_alpha[:, t, : t + 1]  # (b, j)
            d_v += d.flatten() @ s.flatten(0, 1)
            slope = s.addcmul_(s, s, value=-1)  # s (1 - s)
            d_q2[:, t] = (d[:, None] @ slope)[:, 0]
            d_q1[:, : t + 1].addcmul_(d[..., None], slope)
        return d_q1 * v, d_q2 * v, d_v


def _sigmoids(e1: Tensor, e2: Tensor) -> Iterator[tuple[int, Tensor]]:
    """t and 1 / (1 + e1_j e2_t) (b, j, H) for j <= t, in the same memory for every t.

    With e = exp(-q) that is sigmoid(q1_j + q2_t), for T H exponentials instead of T^2 H.
    """
    sequences, length, width = e1.shape
    one, memory = e1.new_ones(()), torch.empty_like(e1).flatten()
    for t in range(length):
        s = memory[: sequences * (t + 1) * width].view(sequences, t + 1, width)
        yield t, torch.addcmul(one, e1[:, : t + 1], e2[:, t, None], out=s).reciprocal_()
