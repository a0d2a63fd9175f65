"""RecBLR: sequential recommendation with Behavior-Dependent Linear Recurrent Units.

Source: Liu, Lin, Liu, Wang, Caverlee, "Behavior-Dependent Linear Recurrent Units for Efficient
Sequential Recommendation", CIKM 2024. Equations as numbered there.

    H  = LayerNorm(Dropout(items E))                                                 (eq. 1)
    per layer    s   = LayerNorm(H + Dropout(GatedRecurrent(H)))                     (sec. 3.1)
                 H   = LayerNorm(s + Dropout(W2 Dropout(SiLU(W1 s + b1)) + b2))      (eq. 4)
    GatedRecurrent  u = SiLU(Conv1d(H W_x)),  z = H W_z                              (Algorithm 1)
                    y = (BD-LRU(u) * SiLU(z)) W_o
    BD-LRU          r_t = sigmoid(W_r u_t + b_r),  i_t = sigmoid(W_i u_t + b_i)      (eq. 6, 7)
                    a_t = exp(-softplus(Lambda) r_t)                                 (eq. 8)
                    h_t = a_t h_(t-1) + sqrt(1 - a_t^2) i_t u_t                      (eq. 5, 8)
    score  = h_T E^T                                                                 (eq. 2)

Shapes: N packed items, B sequences, D = d_model, C = expansion * D, W = conv_width, V items.

| symbol            | attribute                              | shape              |
| E                 | embedding.weight                       | (V+1, D)           |
| LN of eq. 1       | norm                                   | (D,)               |
| W_x, W_z, W_o     | layers[l].recurrent.{in,gate,out}_proj | (C, D) x 2, (D, C) |
| Conv1d            | layers[l].recurrent.conv_{weight,bias} | (C, W), (C,); the last tap is now |
| [W_r; W_i], [b_r; b_i] | layers[l].recurrent.gates         | (2C, C), (2C,)     |
| Lambda            | layers[l].recurrent.lambda_            | (C,)               |
| LN, of s and of H | layers[l].{recurrent,pffn}_norm        | (D,)               |
| W1, b1, W2, b2    | layers[l].pffn.{inner,outer}           | (4D, D), (D, 4D)   |

Departures from the paper: none known in the equations; where it is silent, as released: depthwise
convolution of width 4 with bias, no bias in W_x, W_z and W_o, dense gate matrices, dropout after
the activation and after W2, N(0, 0.02) weights, LayerNorm epsilon 1e-12, the softmax covers the
padding row.
Departures from the released code: sequences are packed, so no padding step passes the convolution
and leaks into the state; sqrt(1 - a^2) without an epsilon, by expm1, with its exact gradient;
exp(-softplus(Lambda)) starts uniform on [0.9, 0.999] as the paper says, where the release spaces
Lambda evenly (`lambda_init="linspace"`); W_x and W_z are two matrices, not one.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.ops.bd_lru import Scan, bd_lru
from recblr.ops.causal_conv import causal_conv

LayerState = tuple[Tensor, Tensor]  # h (B, C) and the last W-1 convolution inputs (B, W-1, C)

DECAY_RANGE = (0.9, 0.999)  # of exp(-softplus(Lambda)) at the start, sec. 3.2
WEIGHT_STD = 0.02
NORM_EPS = 1e-12


class GatedRecurrent(nn.Module):
    """Convolution and BD-LRU on C channels, gated by SiLU(z) (Algorithm 1)."""

    def __init__(self, d_model: int, expansion: int, conv_width: int, lambda_init: str, scan: Scan):
        super().__init__()
        self.channels = channels = expansion * d_model
        self.conv_width, self.scan = conv_width, scan
        self.in_proj = nn.Linear(d_model, channels, bias=False)
        self.gate_proj = nn.Linear(d_model, channels, bias=False)
        bound = 1 / math.sqrt(conv_width)  # torch's own start for a depthwise Conv1d
        self.conv_weight = nn.Parameter(torch.empty(channels, conv_width).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.gates = nn.Linear(channels, 2 * channels)  # recurrence gate, then input gate
        self.lambda_ = nn.Parameter(initial_lambda(channels, lambda_init))
        self.out_proj = nn.Linear(channels, d_model, bias=False)

    def forward(self, x: Tensor, cu_seqlens: Tensor, rows: Tensor | None = None) -> Tensor:
        """x (N, D) -> (N, D), or the given rows of it (R, D)."""
        y, _ = self._recur(x, cu_seqlens, state=(None, None))
        return self.out_proj(y if rows is None else y[rows])

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One row for each of B sequences: x (B, D) -> (B, D)."""
        one_each = torch.arange(len(x) + 1, device=x.device)
        y, state = self._recur(x, one_each, state)
        return self.out_proj(y), state

    def _recur(
        self, x: Tensor, cu_seqlens: Tensor, state: LayerState | tuple[None, None]
    ) -> tuple[Tensor, LayerState]:
        h0, conv_state = state
        u, conv_state = causal_conv(
            self.in_proj(x),
            self.conv_weight,
            self.conv_bias,
            cu_seqlens,
            conv_state,
            backend=self.scan,
        )  # (N, C)
        y, h = bd_lru(
            u, self.gates(u), self.lambda_, cu_seqlens, h0, z=self.gate_proj(x), backend=self.scan
        )  # (N, C)
        return y, (h, conv_state)


class FeedForward(nn.Module):
    """Position-wise feed-forward network D -> 4D -> D (eq. 4)."""

    def __init__(self, d_model: int, dropout: float):
        super().__init__()
        self.inner = nn.Linear(d_model, 4 * d_model)
        self.outer = nn.Linear(4 * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(nn.functional.silu(self.inner(x)))  # (N, 4D)
        return self.dropout(self.outer(hidden))


class BehaviorLayer(nn.Module):
    """Gated recurrent layer and feed-forward network, each with residual and post-norm."""

    def __init__(self, d_model: int, dropout: float, **recurrent):
        super().__init__()
        self.recurrent = GatedRecurrent(d_model, **recurrent)
        self.recurrent_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.pffn = FeedForward(d_model, dropout)
        self.pffn_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cu_seqlens: Tensor, rows: Tensor | None = None) -> Tensor:
        """x (N, D) -> (N, D), or the given rows of it (R, D)."""
        y = self.recurrent(x, cu_seqlens, rows)
        return self._merge(x if rows is None else x[rows], y)

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        y, state = self.recurrent.step(x, state)
        return self._merge(x, y), state

    def _merge(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.recurrent_norm(x + self.dropout(y))
        return self.pffn_norm(s + self.pffn(s))


class RecBLR(nn.Module):
    """RecBLR over items 1..n_items; works in any float dtype with `scan="reference"`."""

    causal = True

    def __init__(
        self,
        n_items: int,
        d_model: int = 64,
        n_layers: int = 2,
        expansion: int = 2,
        conv_width: int = 4,
        dropout: float = 0.2,
        lambda_init: Literal["uniform", "linspace", "random"] = "uniform",
        scan: Scan = "auto",
    ):
        super().__init__()
        for name, size in (
            ("d_model", d_model),
            ("n_layers", n_layers),
            ("expansion", expansion),
            ("conv_width", conv_width),
        ):
            if size < 1:
                raise ValueError(f"model.{name}={size}: must be 1 or more")
        if scan not in get_args(Scan):
            raise ValueError(f"scan={scan!r}: choose from {', '.join(get_args(Scan))}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be in [0, 1)")
        self.embedding = nn.Embedding(n_items + 1, d_model)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        recurrent = dict(
            expansion=expansion, conv_width=conv_width, lambda_init=lambda_init, scan=scan
        )
        self.layers = nn.ModuleList(
            BehaviorLayer(d_model, dropout, **recurrent) for _ in range(n_layers)
        )
        self.apply(_init_weights)

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def encode(self, batch: SequenceBatch) -> Tensor:
        x = self._embed(batch.items)
        for layer in self.layers:
            x = layer(x, batch.cu_seqlens)
        return x

    def represent(self, batch: SequenceBatch) -> Tensor:
        x = self._embed(batch.items)
        for layer in self.layers[:-1]:
            x = layer(x, batch.cu_seqlens)
        return self.layers[-1](x, batch.cu_seqlens, rows=batch.last)

    def init_state(self, batch_size: int) -> list[LayerState]:
        """The state of `batch_size` users without a history: zeros, per layer."""
        state = []
        for layer in self.layers:
            like, channels = layer.recurrent.lambda_, layer.recurrent.channels
            h = like.new_zeros(batch_size, channels)
            state.append((h, like.new_zeros(batch_size, layer.recurrent.conv_width - 1, channels)))
        return state

    def step(self, items: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Feed one item (B,) to each of B users: representation (B, D) and the next state."""
        x, next_state = self._embed(items), []
        for layer, layer_state in zip(self.layers, state):
            x, layer_state = layer.step(x, layer_state)
            next_state.append(layer_state)
        return x, next_state

    def _embed(self, items: Tensor) -> Tensor:
        return self.norm(self.dropout(self.embedding(items)))


def initial_lambda(channels: int, how: str) -> Tensor:
    """Lambda (C,): decay exp(-softplus(Lambda)) = sigmoid(-Lambda), so Lambda = -logit(decay)."""
    low, high = (math.log((1 - decay) / decay) for decay in DECAY_RANGE)
    if how == "uniform":
        decay = torch.empty(channels).uniform_(*DECAY_RANGE)
        return -torch.logit(decay)
    if how == "linspace":
        return torch.linspace(low, high, channels)
    if how == "random":
        return torch.randn(channels)
    raise ValueError(f"model.lambda_init={how!r}: choose uniform, linspace or random")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=WEIGHT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
