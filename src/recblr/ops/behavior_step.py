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
    direct: np.ndarray  # (K, D): taps of the direct convolution, the oldest first; K = 0 without
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
def convolve(x, earlier, taps):
    """Depthwise convolution (C,) of x (C,) by taps (W, C), 0 for W = 0.

    earlier (W-1, C): the inputs before x, which it moves on by x.
    """
    width = len(taps)
    y = x * taps[width - 1] if width else np.zeros_like(x)
    for t in range(width - 1):
        for k in range(x.size):
            y[k] += earlier[t, k] * taps[t, k]
            earlier[t, k] = earlier[t + 1, k] if t + 2 < width else x[k]
    return y


@njit(cache=True, **MATH)
def recur(x, h, past, w, eps):
    """x (D,) += the gated recurrent layer's output; h (C,) and past (W-1, C) go on by a step."""
    channels = w.c.size
    uz, gates = np.zeros(2 * channels, f32), w.gates_bias.copy()
    add_product(x, w.in_gate, uz)
    u = convolve(uz[:channels], past, w.taps)
    for k in range(channels):
        u[k] += w.conv_bias[k]
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
def step(items, slots, embedding, norm, layers, h, past, earlier, out, eps, norm_eps):
    """One more item (B,) of the users in `slots` (B,), int64, all different.

    embedding (V+1, D), norm (2, D): what comes before the first layer. layers, h, past, earlier:
    tuples, one each per layer. The users' rows of h (S, C), past (S, W-1, C) and, where layers
    have a direct convolution, earlier (S, K-1, D) are moved on; those of out (S, D) become their
    representation. eps: under the square root of the input's scale; norm_eps: under that of every
    LayerNorm.
    """
    for b in range(len(slots)):
        slot = slots[b]
        x = out[slot]
        x[:] = embedding[items[b]]
        normalise(x, norm, norm_eps)
        for layer in range(len(layers)):
            w = layers[layer]
            beside = convolve(x, earlier[layer][slot], w.direct)
            recur(x, h[layer][slot], past[layer][slot], w, eps)
            for k in range(x.size):
                x[k] += beside[k]
            normalise(x, w.norm, norm_eps)
            feed_forward(x, w)
            normalise(x, w.pffn_norm, norm_eps)


class InPlaceStep:
    """`RecBLR.step` on tables of states, with a copy of the weights of today.

    layers: `BehaviorLayer`s with all of the paper's parts, float32 on the CPU.
    """

    def __init__(self, embedding: Tensor, norm: nn.LayerNorm, layers: Iterable[Any]):
        layers = list(layers)
        self.embedding, self.norm = embedding.detach().numpy(), norm_weights(norm)
        self.layers = tuple(map(layer_weights, layers))
        self.eps, self.norm_eps = f32(layers[0].recurrent.eps), f32(norm.eps)

    def __call__(
        self, items: np.ndarray, slots: np.ndarray, tables: list[Tensor], out: Tensor
    ) -> None:
        """items 1..V and slots (B,) int64, all different.

        tables: of each layer h (S, C), past (S, W-1, C) and, with a direct convolution, earlier
        (S, K-1, D). The slots' rows of the tables go on, and those of out (S, D) become the
        representation.
        """
        parts = len(tables) // len(self.layers)
        arrays = tuple(table.numpy() for table in tables)
        none = (np.empty((len(out), 0, out.shape[1]), f32),) * len(self.layers)
        step(
            items, slots, self.embedding, self.norm, self.layers,
            arrays[::parts], arrays[1::parts], arrays[2::parts] if parts > 2 else none,
            out.numpy(), self.eps, self.norm_eps,
        )  # fmt: skip


def norm_weights(norm: nn.LayerNorm) -> np.ndarray:
    """(2, D): weight, bias."""
    return torch.stack((norm.weight, norm.bias)).detach().numpy()


def layer_weights(layer: Any) -> LayerWeights:
    recurrent, pffn, direct = layer.recurrent, layer.pffn, layer.direct_conv
    no_taps = recurrent.out_proj.weight.new_empty(0, len(recurrent.out_proj.weight))
    weights = {
        "in_gate": torch.cat((recurrent.in_proj.weight, recurrent.gate_proj.weight)).t(),
        "taps": recurrent.conv_weight.t(),
        "conv_bias": recurrent.conv_bias,
        "gates": recurrent.gates.weight.t(),
        "gates_bias": recurrent.gates.bias,
        "c": F.softplus(recurrent.lambda_),
        "out": recurrent.out_proj.weight.t(),
        "direct": no_taps if direct is None else direct.weight.t(),
        "inner": pffn.inner.weight.t(),
        "inner_bias": pffn.inner.bias,
        "outer": pffn.outer.weight.t(),
        "outer_bias": pffn.outer.bias,
    }
    arrays = {name: part.detach().contiguous().numpy() for name, part in weights.items()}
    norms = norm_weights(layer.recurrent_norm), norm_weights(layer.pffn_norm)
    return LayerWeights(norm=norms[0], pffn_norm=norms[1], **arrays)
