"""One item for few users through RecBLR in one call on the CPU: numba, float32.

Through torch a step of one user is some seventy calls on vectors of 64 to 256 numbers, each of
which costs more than its arithmetic. This one works in place on the tables of all users' states. It
reads the weights once for each user: for many at once `RecBLR.step`, its reference, is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor, nn

MATH = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

f32 = np.float32
ONE, TWO = f32(1), f32(2)


class LayerWeights(NamedTuple):
    """A layer, its matrices transposed: input rows, output columns. D = d_model, C = channels."""

    in_gate: np.ndarray  # (D, 2C): what the convolution reads, then z
    taps: np.ndarray  # (W, C), the oldest first
    conv_bias: np.ndarray  # (C,)
    gates: np.ndarray  # (C, 2C): recurrence gate, then input gate
    gates_bias: np.ndarray  # (2C,)
    c: np.ndarray  # (C,): softplus(Lambda)
    out: np.ndarray  # (C, D)
    norm: np.ndarray  # (2, D): weight, bias
    inner: np.ndarray  # (D, 4D)
    inner_bias: np.ndarray  # (4D,)
    outer: np.ndarray  # (4D, D)
    outer_bias: np.ndarray  # (D,)
    pffn_norm: np.ndarray  # (2, D)


@njit(cache=True, **MATH)
def add_product(x, weight, y):
    """y <- y + x weight, four rows of the weight in one pass over y."""
    whole = x.size - x.size % 4
    for j in range(0, whole, 4):
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        w0, w1, w2, w3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        for k in range(y.size):
            y[k] += (x0 * w0[k] + x1 * w1[k]) + (x2 * w2[k] + x3 * w3[k])
    for j in range(whole, x.size):
        for k in range(y.size):
            y[k] += x[j] * weight[j, k]


@njit(cache=True, **MATH)
def sigmoid(x):
    return ONE / (ONE + np.exp(-x))


@njit(cache=True, **MATH)
def normalise(x, norm, eps):
    """x <- LayerNorm(x)."""
    mean = x.sum() / f32(x.size)
    square = f32(0)
    for k in range(x.size):
        x[k] -= mean
        square += x[k] * x[k]
    scale = ONE / np.sqrt(square / f32(x.size) + eps)
    for k in range(x.size):
        x[k] = x[k] * scale * norm[0, k] + norm[1, k]


@njit(cache=True, **MATH)
def recur(x, h, past, w, eps):
    """x (D,) += the gated recurrent layer's output; h (C,) and past (W-1, C) go on by a step."""
    channels, width = w.c.size, len(w.taps)
    u, uz, gates = w.conv_bias.copy(), np.zeros(2 * channels, f32), w.gates_bias.copy()
    add_product(x, w.in_gate, uz)
    for t in range(width - 1):
        for k in range(channels):
            u[k] += past[t, k] * w.taps[t, k]
            past[t, k] = past[t + 1, k] if t + 2 < width else uz[k]
    for k in range(channels):
        u[k] += uz[k] * w.taps[width - 1, k]
        u[k] *= sigmoid(u[k])
    add_product(u, w.gates, gates)
    for k in range(channels):
        log_a = -w.c[k] * sigmoid(gates[k])
        scale = np.sqrt(eps - np.expm1(TWO * log_a))
        h[k] = np.exp(log_a) * h[k] + scale * sigmoid(gates[channels + k]) * u[k]
        z = uz[channels + k]
        u[k] = h[k] * z * sigmoid(z)
    add_product(u, w.out, x)


@njit(cache=True, **MATH)
def feed_forward(x, w):
    """x (D,) += the feed-forward network's output."""
    inner = w.inner_bias.copy()
    add_product(x, w.inner, inner)
    for k in range(inner.size):
        inner[k] *= sigmoid(inner[k])
    for k in range(x.size):
        x[k] += w.outer_bias[k]
    add_product(inner, w.outer, x)


@njit(cache=True, **MATH)
def step(items, slots, embedding, norm, layers, h, past, out, eps, norm_eps):
    """One more item (B,) of the users in `slots` (B,), int64, all different.

    embedding (V+1, D), norm (2, D): what comes before the first layer. layers, h, past: tuples, one
    each per layer. The users' rows of h (S, C) and past (S, W-1, C) are moved on; those of out
    (S, D) become their representation. eps: under the square root of the input's scale; norm_eps:
    under that of every LayerNorm.
    """
    for b in range(len(slots)):
        slot = slots[b]
        x = out[slot]
        x[:] = embedding[items[b]]
        normalise(x, norm, norm_eps)
        for layer in range(len(layers)):
            recur(x, h[layer][slot], past[layer][slot], layers[layer], eps)
            normalise(x, layers[layer].norm, norm_eps)
            feed_forward(x, layers[layer])
            normalise(x, layers[layer].pffn_norm, norm_eps)


class InPlaceStep:
    """`RecBLR.step` on tables of states, with a copy of the weights of today.

    layers: `BehaviorLayer`s with all of their parts, float32 on the CPU.
    """

    def __init__(self, embedding: Tensor, norm: nn.LayerNorm, layers: Iterable[Any]):
        layers = list(layers)
        self.embedding, self.norm = embedding.detach().numpy(), norm_weights(norm)
        self.layers = tuple(map(layer_weights, layers))
        self.eps, self.norm_eps = f32(layers[0].recurrent.eps), f32(norm.eps)

    def __call__(
        self, items: np.ndarray, slots: np.ndarray, tables: list[Tensor], out: Tensor
    ) -> None:
        """items 1..V and slots (B,) int64, tables h (S, C) and past (S, W-1, C) of each layer.

        Slots are all different; their rows of the tables go on, and those of out (S, D) become the
        representation.
        """
        arrays = tuple(table.numpy() for table in tables)
        step(
            items, slots, self.embedding, self.norm, self.layers,
            arrays[::2], arrays[1::2], out.numpy(), self.eps, self.norm_eps,
        )  # fmt: skip


def norm_weights(norm: nn.LayerNorm) -> np.ndarray:
    """(2, D): weight, bias."""
    return torch.stack((norm.weight, norm.bias)).detach().numpy()


def layer_weights(layer: Any) -> LayerWeights:
    recurrent, pffn = layer.recurrent, layer.pffn
    weights = {
        "in_gate": torch.cat((recurrent.in_proj.weight, recurrent.gate_proj.weight)).t(),
        "taps": recurrent.conv_weight.t(),
        "conv_bias": recurrent.conv_bias,
        "gates": recurrent.gates.weight.t(),
        "gates_bias": recurrent.gates.bias,
        "c": F.softplus(recurrent.lambda_),
        "out": recurrent.out_proj.weight.t(),
        "inner": pffn.inner.weight.t(),
        "inner_bias": pffn.inner.bias,
        "outer": pffn.outer.weight.t(),
        "outer_bias": pffn.outer.bias,
    }
    arrays = {name: part.detach().contiguous().numpy() for name, part in weights.items()}
    norms = norm_weights(layer.recurrent_norm), norm_weights(layer.pffn_norm)
    return LayerWeights(norm=norms[0], pffn_norm=norms[1], **arrays)
