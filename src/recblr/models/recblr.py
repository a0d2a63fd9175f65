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
Lambda evenly (`lambda_init="linspace"`); W_x and W_z are two matrices, not one. `released=True`
computes the release's function: 1e-8 under the root, and as h0 the state that its P padding steps
leave, P = the next power of two above max_length minus max_length: with u = SiLU(conv bias) there
and its a and v, h0 = v (1 - a^P) / (1 - a).

Ablations remove one thing each. The paper's Table 3: `n_layers=1`; `bd_lru_only`, BD-LRU(H) on D
channels in the place of GatedRecurrent; `conv1d=False`, u = SiLU(H W_x); `pffn=False`, H = s;
`lambda_init="random"`, N(0, 1), as the paper is silent. Ours: `gate_z=False`, y = BD-LRU(u) W_o;
`input_gate=False`, i_t = 1; `constant_decay`, r_t = 1, so that no behavior moves the decay.

`scan="parallel_sp"` and `"parallel_ep"` are the two rows of the paper's Table 5: sequences padded
on the left to a power of two before the embedding, or only the states just before the BD-LRU.
Padded steps are zeroed before and after the convolution, so that both compute the same function.

Ours, in no paper: `repeat_bias` adds a `blocks.RepeatBias` to the score; `direct_conv=K` a
`blocks.DirectConv` of width K to GatedRecurrent(H), s = LN(H + Dropout(GatedRecurrent(H) +
DirectConv(H))), and with `recurrence=False` that convolution stands alone.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.data.batch import SequenceBatch
from recblr.models.blocks import (
    NORM_EPS,
    DirectConv,
    FeedForward,
    RepeatBias,
    check_dropout,
    check_sizes,
    init_weights,
)
from recblr.ops.backends import HAS_NUMBA, Scan, resolve_backend
from recblr.ops.bd_lru import bd_lru
from recblr.ops.bd_lru.reference import SHUT
from recblr.ops.causal_conv import causal_conv
from recblr.ops.dropout import Dropout
from recblr.ops.packed import power_of_two

if TYPE_CHECKING:
    from recblr.ops.behavior_step import InPlaceStep

RecurrentState = tuple[Tensor, Tensor]  # h (B, C), the last W-1 convolution inputs (B, W-1, C)
# Of the parts that a layer has: first that of the recurrence, last the K-1 inputs of the direct
# convolution (B, K-1, D).
LayerState = tuple[Tensor, ...]

DECAY_RANGE = (0.9, 0.999)  # of exp(-softplus(Lambda)) at the start, sec. 3.2
RELEASED_EPS = 1e-8  # under the square root of the released code
OPEN = 1e4  # a gate's input whose sigmoid is exactly 1


class Layout(NamedTuple):
    """How the rows that a layer computes lie.

    cu_seqlens (B+1,): of the rows; cu_seqlens_host: the same on the CPU, if known. rows (R,): those
    whose output is wanted; None = all. real (N,) bool: False for padding steps; None = there are
    none.
    """

    cu_seqlens: Tensor
    cu_seqlens_host: Tensor | None
    rows: Tensor | None = None
    real: Tensor | None = None

    def zero_padding(self, x: Tensor) -> Tensor:
        return x if self.real is None else x * self.real[:, None]


class GatedRecurrent(nn.Module):
    """Convolution and BD-LRU on C channels, gated by SiLU(z) (Algorithm 1).

    leaked_steps: the padding steps of the released code that precede each sequence; None = clean.
    The last five are the ablations; a part that is left out is None.
    """

    def __init__(
        self,
        d_model: int,
        expansion: int,
        conv_width: int,
        lambda_init: str,
        leaked_steps: int | None,
        scan: Scan,
        bd_lru_only: bool,
        conv1d: bool,
        gate_z: bool,
        input_gate: bool,
        constant_decay: bool,
    ):
        super().__init__()
        conv1d, gate_z = conv1d and not bd_lru_only, gate_z and not bd_lru_only
        self.channels = channels = d_model if bd_lru_only else expansion * d_model
        self.conv_width, self.scan = conv_width if conv1d else 1, scan
        self.leaked_steps, self.eps = leaked_steps, 0.0 if leaked_steps is None else RELEASED_EPS
        self.input_gate, self.constant_decay = input_gate, constant_decay
        self.in_proj = None if bd_lru_only else nn.Linear(d_model, channels, bias=False)
        self.gate_proj = nn.Linear(d_model, channels, bias=False) if gate_z else None
        self.conv_weight = self.conv_bias = None
        if conv1d:
            bound = 1 / math.sqrt(conv_width)  # torch's own start for a depthwise Conv1d
            weight = torch.empty(channels, conv_width).uniform_(-bound, bound)
            self.conv_weight = nn.Parameter(weight)
            self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        learned = int(not constant_decay) + int(input_gate)
        self.gates = nn.Linear(channels, learned * channels)  # recurrence gate, then input gate
        self.lambda_ = nn.Parameter(initial_lambda(channels, lambda_init))
        self.out_proj = None if bd_lru_only else nn.Linear(channels, d_model, bias=False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x (N, D) -> (N, D), or the rows of it that `layout` asks for (R, D)."""
        state = self.init_state(layout.cu_seqlens.numel() - 1)
        y, _ = self._recur(x, layout, state)
        y = y if layout.rows is None else y[layout.rows]
        return y if self.out_proj is None else self.out_proj(y)

    def step(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """One row for each of B sequences: x (B, D) -> (B, D)."""
        h, conv_state = state
        u = x if self.in_proj is None else self.in_proj(x)
        if self.conv_weight is not None:
            *taps, last = self.conv_weight.t().contiguous()
            p = torch.addcmul(self.conv_bias, u, last)
            for row, tap in zip(conv_state.unbind(1), taps):
                p = torch.addcmul(p, row, tap)
            # (B, W-1, C), for W = 1 without a row
            conv_state = torch.cat((conv_state[:, 1:], u[:, None]), 1)[:, : self.conv_width - 1]
            u = F.silu(p)
        elif self.in_proj is not None:
            u = F.silu(u)
        log_a, v = self._decay_and_input(u)
        h = torch.addcmul(v, torch.exp(log_a), h)
        y = h if self.gate_proj is None else h * F.silu(self.gate_proj(x))
        return y if self.out_proj is None else self.out_proj(y), (h, conv_state)

    def init_state(self, sequences: int) -> RecurrentState:
        """h (B, C) and the convolution's inputs (B, W-1, C) before the first row."""
        conv_state = self.lambda_.new_zeros(sequences, self.conv_width - 1, self.channels)
        if not self.leaked_steps or self.conv_bias is None:  # only the bias enters padding steps
            return self.lambda_.new_zeros(sequences, self.channels), conv_state
        log_a, v = self._decay_and_input(F.silu(self.conv_bias))
        h0 = v * torch.expm1(self.leaked_steps * log_a) / torch.expm1(log_a)
        return h0.expand(sequences, -1), conv_state

    def _recur(
        self, x: Tensor, layout: Layout, state: RecurrentState
    ) -> tuple[Tensor, RecurrentState]:
        """x (N, D) -> y (N, C) and the state after it."""
        h0, conv_state = state
        u = layout.zero_padding(x if self.in_proj is None else self.in_proj(x))
        if self.conv_weight is not None:
            u, conv_state = causal_conv(
                u,
                self.conv_weight,
                self.conv_bias,
                layout.cu_seqlens,
                conv_state,
                backend=self.scan,
                cu_seqlens_host=layout.cu_seqlens_host,
            )
            u = layout.zero_padding(u)
        elif self.in_proj is not None:
            u = F.silu(u)
        gates = self._gates(u)
        if layout.real is not None:  # decay 1, input scale 0: h0 passes the padding as it is
            gates = gates.masked_fill(~layout.real[:, None], SHUT)
        y, h = bd_lru(
            u,
            gates,
            self.lambda_,
            layout.cu_seqlens,
            h0,
            z=None if self.gate_proj is None else self.gate_proj(x),
            eps=self.eps,
            backend=self.scan,
            cu_seqlens_host=layout.cu_seqlens_host,
        )
        return y, (h, conv_state)

    def _decay_and_input(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u (.., C) -> log a and v (.., C) of h_t = a h_(t-1) + v (eq. 5-8)."""
        r, i = torch.sigmoid(self._gates(u)).chunk(2, -1)
        log_a = -F.softplus(self.lambda_) * r
        return log_a, torch.sqrt(self.eps - torch.expm1(2 * log_a)) * i * u

    def _gates(self, u: Tensor) -> Tensor:
        """u (.., C) -> (.., 2C), before the sigmoid."""
        gates = self.gates(u)
        if self.constant_decay:
            gates = F.pad(gates, (self.channels, 0), value=OPEN)
        return gates if self.input_gate else F.pad(gates, (0, self.channels), value=OPEN)


class BehaviorLayer(nn.Module):
    """Gated recurrent layer and feed-forward network, each with residual and post-norm."""

    def __init__(
        self,
        d_model: int,
        dropout: float,
        pffn: bool,
        direct_conv: int,
        recurrence: bool,
        **recurrent,
    ):
        super().__init__()
        self.recurrent = GatedRecurrent(d_model, **recurrent) if recurrence else None
        self.direct_conv = None
        if direct_conv:
            self.direct_conv = DirectConv(d_model, direct_conv, recurrent["scan"])
        self.recurrent_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.pffn = self.pffn_norm = None
        if pffn:
            self.pffn = FeedForward(d_model, dropout, F.silu, inner_dropout=dropout)  # eq. 4
            self.pffn_norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x (N, D) -> (N, D), or the rows of it that `layout` asks for (R, D)."""
        rows = slice(None) if layout.rows is None else layout.rows
        y: Tensor | float = 0.0
        if self.recurrent is not None:
            y = self.recurrent(x, layout)
        if self.direct_conv is not None:
            y = y + self.direct_conv(layout.zero_padding(x), layout)[rows]
        return self._merge(x[rows], y)

    def init_state(self, sequences: int) -> LayerState:
        """The state before the first row."""
        state = () if self.recurrent is None else self.recurrent.init_state(sequences)
        if self.direct_conv is None:
            return state
        return *state, self.direct_conv.init_state(sequences)

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One row for each of B sequences: x (B, D) -> (B, D)."""
        y, after = 0.0, ()
        if self.recurrent is not None:
            h, inputs, *_ = state
            y, after = self.recurrent.step(x, (h, inputs))
        if self.direct_conv is not None:
            beside, inputs = self.direct_conv.step(x, state[-1])
            y, after = y + beside, (*after, inputs)
        return self._merge(x, y), after

    def _merge(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.recurrent_norm(x + self.dropout(y))
        return s if self.pffn is None else self.pffn_norm(s + self.pffn(s))


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
        released: bool = False,
        max_length: int | None = None,
        scan: Scan = "auto",
        bd_lru_only: bool = False,
        conv1d: bool = True,
        pffn: bool = True,
        gate_z: bool = True,
        input_gate: bool = True,
        constant_decay: bool = False,
        repeat_bias: bool = False,
        direct_conv: int = 0,
        recurrence: bool = True,
    ):
        super().__init__()
        check_sizes(d_model=d_model, n_layers=n_layers, expansion=expansion, conv_width=conv_width)
        if scan not in get_args(Scan):
            raise ValueError(f"scan={scan!r}: choose from {', '.join(get_args(Scan))}")
        check_dropout(dropout)
        if not (recurrence or direct_conv):
            raise ValueError("model.recurrence=false: nothing mixes items; add direct_conv=16")
        leaked_steps = None
        if released:
            if max_length is None:
                raise ValueError("model.released=true needs max_length, which it pads to")
            leaked_steps = power_of_two(max_length) - max_length
        self.scan = scan
        parts = (conv1d, gate_z, input_gate, pffn, recurrence)
        self.has_all_parts = all(parts) and not (bd_lru_only or constant_decay)
        self.embedding = nn.Embedding(n_items + 1, d_model)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        recurrent = dict(
            expansion=expansion,
            conv_width=conv_width,
            lambda_init=lambda_init,
            leaked_steps=leaked_steps,
            scan=scan,
            bd_lru_only=bd_lru_only,
            conv1d=conv1d,
            gate_z=gate_z,
            input_gate=input_gate,
            constant_decay=constant_decay,
        )
        if not recurrence:
            _check_nothing_is_chosen(recurrent | {"released": released})
        self.layers = nn.ModuleList(
            BehaviorLayer(d_model, dropout, pffn, direct_conv, recurrence, **recurrent)
            for _ in range(n_layers)
        )
        self.repeat_bias = RepeatBias() if repeat_bias else None
        self.apply(init_weights)

    @staticmethod
    def resolve_scan(scan: str, device: str) -> str:
        """The scan that runs for `scan` on a device; ValueError where it cannot."""
        backend = resolve_backend(scan, device, torch.float32)
        return backend if scan == "auto" else scan

    def item_matrix(self) -> Tensor:
        return self.embedding.weight

    def encode(self, batch: SequenceBatch) -> Tensor:
        items, layout = self._lay_out(batch)
        x = self._embed(items)
        for layer in self.layers:
            x = layer(x, layout)
        return x if layout.real is None else x[layout.real]

    def represent(self, batch: SequenceBatch) -> Tensor:
        items, layout = self._lay_out(batch)
        x = self._embed(items)
        for layer in self.layers[:-1]:
            x = layer(x, layout)
        rows = batch.last if layout.real is None else layout.cu_seqlens[1:] - 1
        return self.layers[-1](x, layout._replace(rows=rows))

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

    def step_in_place(self) -> InPlaceStep | None:
        """`step` of few users in one call, without dropout, with the weights as they are now.

        None where it does not run: not float32 on the CPU, `scan="reference"` or a part left out.
        """
        weight = self.embedding.weight
        runs = HAS_NUMBA and weight.device.type == "cpu" and weight.dtype == torch.float32
        if not (runs and self.has_all_parts) or self.scan == "reference":
            return None
        from recblr.ops.behavior_step import InPlaceStep

        return InPlaceStep(weight, self.norm, self.layers)

    def _lay_out(self, batch: SequenceBatch) -> tuple[Tensor, Layout]:
        """Items (N,) and their layout: packed, or padded on the left for `parallel_sp`."""
        if self.scan != "parallel_sp":
            return batch.items, Layout(batch.cu_seqlens, batch.cu_seqlens_host)
        padded = batch.padded("left")  # (B, T)
        longest = padded.shape[1]
        padded = F.pad(padded, (power_of_two(longest) - longest, 0))
        host = torch.arange(len(padded) + 1) * padded.shape[1]
        items = padded.flatten()
        return items, Layout(host.to(items.device), host, real=items > 0)

    def _embed(self, items: Tensor) -> Tensor:
        return self.norm(self.dropout(self.embedding(items)))


def _check_nothing_is_chosen(settings: dict[str, Any]) -> None:
    """ValueError for a setting, not the default, of a recurrence that is left out."""
    parameters = inspect.signature(RecBLR).parameters
    for name, value in settings.items():
        if name in parameters and name != "scan" and value != parameters[name].default:
            shown = str(value).lower()
            raise ValueError(
                f"model.recurrence=false: model.{name}={shown} is a setting of the recurrence "
                "(ablation= sets some); leave out one of the two"
            )


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
