"""LRURec: sequential recommendation with linear recurrent units.

Source: Yue, Wang, He, Zeng, McAuley, Wang, "Linear Recurrent Units for Sequential Recommendation",
WSDM 2024. Equations as numbered there, in the form that the released code computes.

    X  = LayerNorm(Dropout(items E))                                                 (eq. 7)
    per layer  s = LayerNorm(X + Dropout(LRU(X)))                                    (eq. 9)
               X = LayerNorm(s + Dropout(W2 Dropout(GELU(W1 s + b1)) + b2))          (eq. 8, 9)
    LRU    lambda = exp(-exp(nu) + i exp(theta))                                     (eq. 5)
           h_t = lambda h_(t-1) + exp(gamma) (B x_t + beta),   y_t = Re(C h_t + c)   (eq. 5)
    score  = X_T E^T + b                                                             (eq. 10)

lambda, B, beta, C, c and h are complex; the rest is real.

Shapes: N packed items, B sequences, D = d_model, S = 2D complex states, V items. A complex
parameter is two real ones: index 0 of its first dimension is the real part, 1 the imaginary part.
A complex row is [real | imaginary], (N, 2S), so that B and C are one real product each.

| symbol           | attribute                        | shape                         |
| E                | embedding.weight                 | (V+1, D)                      |
| LN of eq. 7      | norm                             | (D,)                          |
| nu, theta, gamma | layers[l].recurrent.lambda_      | (3, S), one row each          |
| B, beta          | layers[l].recurrent.in_weight    | (2, S, D) for complex (S, D)  |
|                  | layers[l].recurrent.in_bias      | (2, S) for complex (S,)       |
| C, c             | layers[l].recurrent.out_weight   | (2, D, S) for complex (D, S)  |
|                  | layers[l].recurrent.out_bias     | (2, D) for complex (D,)       |
| LN, of s and of X | layers[l].{recurrent,pffn}_norm | (D,)                          |
| W1, b1, W2, b2   | layers[l].pffn.{inner,outer}     | (4D, D), (D, 4D)              |
| b                | output_bias                      | (V+1,)                        |

The released parameters, in the same order: embedding.token, embedding.layer_norm; of
model.lru_blocks[l]: lru_layer.params_log, lru_layer.in_proj, lru_layer.out_proj,
lru_layer.layer_norm, feed_forward.layer_norm, feed_forward.w_{1,2}; model.bias.

Departures from the paper, all as released: B and C have biases; gamma scales every input, where
eq. 5 starts from h_1 = B x_1; one GELU, where eq. 8 has a second after W2; dropout.
Departures from the released code: none in the function of a sequence or in its gradients, so
`usual` changes nothing. The release pads on the left, to a power of two, and masks what padding
would hand on: that is a recurrence from the first real item, and here there is no padding to mask.
gamma multiplies B and beta, not the rows; one dropout rate, where the release has two with one
default.
As there, nothing depends on the imaginary part of c: it is kept, with gradient zero, so that
parameters correspond. What the release trains on (a padding slot that predicts the first item,
sampled classes on XLong) is for the data and the objective, not for a model.
Ours: `repeat_bias` adds a `blocks.RepeatBias` to the score; `direct_conv=K` a `blocks.DirectConv`
of width K to what the recurrence reads out.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import (
    DirectConv,
    FeedForward,
    RepeatBias,
    check_dropout,
    check_sizes,
)
from recblr.ops.dropout import Dropout
from recblr.ops.lru import Scan, lru, resolve

# h (B, 2S) and, of a direct convolution, its last K-1 inputs (B, K-1, D)
LayerState = tuple[Tensor, ...]

RADIUS = (0.8, 0.99)  # of lambda at the start
TRUNCATED_STD = 0.02  # before the truncation at two of them
LRU_NORM_EPS = 1e-5


class LinearRecurrence(nn.Module):
    """The complex recurrence on S = 2D states, and its two products."""

    def __init__(self, d_model: int, scan: Scan):
        super().__init__()
        self.scan = scan
        states = 2 * d_model
        self.lambda_ = nn.Parameter(initial_lambda(states))
        self.in_weight = nn.Parameter(torch.empty(2, states, d_model))
        self.in_bias = nn.Parameter(torch.empty(2, states))
        self.out_weight = nn.Parameter(torch.empty(2, d_model, states))
        self.out_bias = nn.Parameter(torch.empty(2, d_model))

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        cu_seqlens_host: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (N, D) -> h (N, 2S) after each row, (B, 2S) after each sequence."""
        decay, u = self._decay_and_input(x)
        return lru(u, decay, cu_seqlens, None, self.scan, cu_seqlens_host)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """One row for each of B sequences: x (B, D), state (B, 2S) -> the next state."""
        (real, imaginary), u = self._decay_and_input(x)
        h_real, h_imaginary = state.chunk(2, -1)
        h = (real * h_real - imaginary * h_imaginary, real * h_imaginary + imaginary * h_real)
        return torch.cat(h, -1) + u

    def _decay_and_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D) -> lambda (2, S) and exp(gamma) (B x + beta) (N, 2S)."""
        rate, phase, scale = self.lambda_.exp()
        decay = torch.exp(-rate) * torch.stack((phase.cos(), phase.sin()))
        weight, bias = scale[:, None] * self.in_weight, scale * self.in_bias
        return decay, F.linear(x, weight.flatten(0, 1), bias.flatten())

    def read_out(self, h: Tensor) -> Tensor:
        """Re(C h + c): h (R, 2S) -> (R, D)."""
        real, imaginary = self.out_weight
        return F.linear(h, torch.cat((real, -imaginary), dim=1), self.out_bias[0])


class LRULayer(nn.Module):
    """Linear recurrence and feed-forward network, each with residual and post-norm."""

    def __init__(self, d_model: int, dropout: float, scan: Scan, direct_conv: int):
        super().__init__()
        self.recurrent = LinearRecurrence(d_model, scan)
        self.direct_conv = None
        if direct_conv:
            backend = "reference" if scan == "reference" else "auto"
            self.direct_conv = DirectConv(d_model, direct_conv, backend)
        self.recurrent_norm = nn.LayerNorm(d_model, eps=LRU_NORM_EPS)
        self.pffn = FeedForward(d_model, dropout, inner_dropout=dropout)  # eq. 8
        self.pffn_norm = nn.LayerNorm(d_model, eps=LRU_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, batch: SequenceBatch) -> Tensor:
        """x (N, D) -> (N, D)."""
        h, _ = self.recurrent(x, batch.cu_seqlens, batch.cu_seqlens_host)
        return self._merge(x, h, None if self.direct_conv is None else self.direct_conv(x, batch))

    def last_rows(self, x: Tensor, batch: SequenceBatch) -> Tensor:
        """x (N, D) -> the rows of `forward` at the end of each sequence (B, D)."""
        _, h = self.recurrent(x, batch.cu_seqlens, batch.cu_seqlens_host)
        beside = None if self.direct_conv is None else self.direct_conv(x, batch)[batch.last]
        return self._merge(x[batch.last], h, beside)

    def init_state(self, sequences: int) -> LayerState:
        """The state before the first row."""
        h = self.recurrent.in_bias.new_zeros(sequences, 2 * self.recurrent.in_bias.shape[1])
        return (h,) if self.direct_conv is None else (h, self.direct_conv.init_state(sequences))

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One row for each of B sequences: x (B, D) -> (B, D)."""
        h, *inputs = state
        h = self.recurrent.step(x, h)
        if self.direct_conv is None:
            return self._merge(x, h, None), (h,)
        beside, after = self.direct_conv.step(x, *inputs)
        return self._merge(x, h, beside), (h, after)

    def _merge(self, x: Tensor, h: Tensor, beside: Tensor | None) -> Tensor:
        """Rows x (R, D), their states h (R, 2S) and direct convolution (R, D) -> (R, D)."""
        y = self.recurrent.read_out(h)
        s = self.recurrent_norm(x + self.dropout(y if beside is None else y + beside))
        return self.pffn_norm(s + self.pffn(s))


class LRURec(nn.Module):
    """LRURec over items 1..n_items; works in any float dtype but with `scan="cpu"`."""

    causal = True

    def __init__(
        self,
        n_items: int,
        d_model: int = 64,
        n_layers: int = 2,
        dropout: float = 0.2,
        scan: Scan = "auto",
        usual: bool = False,
        repeat_bias: bool = False,
        direct_conv: int = 0,
    ):
        super().__init__()
        check_sizes(d_model=d_model, n_layers=n_layers)
        check_dropout(dropout)
        if scan not in get_args(Scan):
            raise ValueError(f"scan={scan!r}: choose from {', '.join(get_args(Scan))}")
        self.embedding = nn.Embedding(n_items + 1, d_model)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(d_model, eps=LRU_NORM_EPS)
        self.layers = nn.ModuleList(
            LRULayer(d_model, dropout, scan, direct_conv) for _ in range(n_layers)
        )
        self.output_bias = nn.Parameter(torch.empty(n_items + 1))
        for name, parameter in self.named_parameters():
            if not name.endswith(("norm.weight", "norm.bias", "lambda_")):
                nn.init.trunc_normal_(
                    parameter, 0, TRUNCATED_STD, -2 * TRUNCATED_STD, 2 * TRUNCATED_STD
                )
        self.repeat_bias = RepeatBias() if repeat_bias else None  # after the loop: it starts at 0

    @staticmethod
    def resolve_scan(scan: str, device: str) -> str:
        return resolve(scan, device, torch.float32)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def item_bias(self) -> Tensor:
        return self.output_bias

    def encode(self, batch: SequenceBatch) -> Tensor:
        x = self._embed(batch.items)
        for layer in self.layers:
            x = layer(x, batch)
        return x

    def represent(self, batch: SequenceBatch) -> Tensor:
        x = self._embed(batch.items)
        for layer in self.layers[:-1]:
            x = layer(x, batch)
        return self.layers[-1].last_rows(x, batch)

    def init_state(self, batch_size: int) -> list[LayerState]:
        """The state of `batch_size` users without a history, per layer."""
        return [layer.init_state(batch_size) for layer in self.layers]

    def step(self, items: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Feed one item (B,) to each of B users: representation (B, D) and the next state."""
        x, next_state = self._embed(items), []
        for layer, layer_state in zip(self.layers, state):
            x, layer_state = layer.step(x, layer_state)
            next_state.append(layer_state)
        return x, next_state

    def _embed(self, items: Tensor) -> Tensor:
        return self.norm(self.dropout(self.embedding(items)))


def initial_lambda(states: int) -> Tensor:
    """(3, S): the logs of -log|lambda|, of lambda's phase and of gamma.

    |lambda|^2 is uniform on RADIUS^2 and the phase on (0, 2 pi]: lambda is uniform on a ring.
    gamma = sqrt(1 - |lambda|^2).
    """
    inner, outer = (radius**2 for radius in RADIUS)
    square = inner + (outer - inner) * torch.rand(states)
    phase = 2 * math.pi * (1 - torch.rand(states))
    return torch.stack((torch.log(-torch.log(square) / 2), phase.log(), torch.log1p(-square) / 2))
