"""Causal depthwise convolution and SiLU fused for the CPU with numba.

Forward reads x and writes u. The backward ascends once: it recomputes the pre-activation p of row
t, keeps dp = du silu'(p) of the last W rows in cache, and finishes row t-W+1 of dx:

    dx_(t-W+1) = sum_k weight_k dp_(t-k)      dweight_k += x_(t-W+1+k) dp_t      dbias += dp_t

where rows before the sequence's first are rows of `state`. Work is split over groups of whole
sequences with about equal rows; the split does not depend on the number of threads, so gradients
are the same bit for bit on any.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ops.threads import call, row_groups

MATH = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

# From here to the end of `sigmoid_pair` a copy of what bd_lru/cpu.py has: numba's cache on disk
# does not see a change in another file, so a kernel imports no function that numba compiles.
f32 = np.float32
ONE = f32(1)
LOWEST, HIGHEST = f32(-87), f32(87)  # exp stays a normal float32
LOG2_E = f32(1.4426950408889634)
ROUND = f32(1.5 * 2**23 + 127)  # x + ROUND has round(x) + 127 in its lowest bits
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
# Minimax for (exp(x) - 1 - x) / x^2 on |x| < 0.347: exp(x) - 1 to a relative 1.9e-8.
P2, P3, P4 = f32(0.5000000062), f32(0.166665430), f32(0.0416662821)
P5, P6 = f32(0.00836658251), f32(0.00139464453)


@njit(inline="always", **MATH)
def sigmoid_pair(x):
    """sigmoid(x), sigmoid(-x), through exp(-x) = 2^n exp(rest) with |rest| < 0.35."""
    x = min(max(-x, LOWEST), HIGHEST)
    rounded = f32(x * LOG2_E + ROUND)
    scale = np.int32(rounded.view(np.int32) << np.int32(23)).view(f32)
    n = rounded - ROUND
    x = (x - n * LN2_HIGH) - n * LN2_LOW
    square = x * x  # Estrin's scheme: short chains of operations
    p = x + square * ((P2 + x * P3) + square * ((P4 + x * P5) + square * P6))
    e = scale + scale * p
    r = ONE / (ONE + e)
    return r, e * r


@njit(**MATH)
def sum_of_four(out, start, w0, w1, w2, w3, x0, x1, x2, x3):
    """out <- start + sum_k w_k x_k, in one pass: the paper's width."""
    for k in range(out.size):
        out[k] = start[k] + w0[k] * x0[k] + w1[k] * x1[k] + w2[k] * x2[k] + w3[k] * x3[k]


@njit(**MATH)
def add_product(out, weight, x):
    for k in range(out.size):
        out[k] += weight[k] * x[k]


@njit(**MATH)
def add(out, x):
    for k in range(out.size):
        out[k] += x[k]


@njit(**MATH)
def silu_row(p):
    for k in range(p.size):
        gate, _ = sigmoid_pair(p[k])
        p[k] = p[k] * gate


@njit(**MATH)
def silu_gradient_row(p, du):
    """p <- du silu'(p)."""
    for k in range(p.size):
        gate, close = sigmoid_pair(p[k])
        p[k] = du[k] * gate * (ONE + p[k] * close)


@njit(**MATH)
def row_at(rows, before, first, t):
    """Row t of the sequence that starts at row `first` and whose past is `before` (W-1, C)."""
    return rows[t] if t >= first else before[t - first + len(before)]


@njit(**MATH)
def convolve_row(x, taps, bias, state, first, t, p):
    """p (C,) <- the convolution at row t of the sequence that starts at row `first`."""
    width = len(taps)
    if width == 4:
        sum_of_four(
            p, bias, taps[0], taps[1], taps[2], taps[3],
            row_at(x, state, first, t - 3), row_at(x, state, first, t - 2),
            row_at(x, state, first, t - 1), x[t],
        )  # fmt: skip
    else:
        p[:] = bias
        for k in range(width):
            add_product(p, taps[k], row_at(x, state, first, t - (width - 1) + k))


@njit(parallel=True, cache=True, **MATH)
def forward(x, taps, bias, cu, groups, state, silu, u, final):
    """taps (W, C), state and final (B, W-1, C)."""
    for group in prange(groups.size - 1):
        for b in range(groups[group], groups[group + 1]):
            for t in range(cu[b], cu[b + 1]):
                convolve_row(x, taps, bias, state[b], cu[b], t, u[t])
                if silu:
                    silu_row(u[t])
            for k in range(final.shape[1]):
                final[b, k] = row_at(x, state[b], cu[b], cu[b + 1] - final.shape[1] + k)


@njit(parallel=True, cache=True, **MATH)
def backward(x, taps, bias, cu, groups, state, silu, du, dfinal, dx, dtaps, dbias, dstate):
    """dtaps (groups, W, C) and dbias (groups, C): one row per group, for the caller to sum."""
    width = len(taps)
    past = width - 1
    for group in prange(groups.size - 1):
        recent = np.empty((width, bias.size), np.float32)  # dp of row t at t % W
        zero = np.zeros(bias.size, np.float32)
        for b in range(groups[group], groups[group + 1]):
            first, end = cu[b], cu[b + 1]
            recent[:] = 0
            for t in range(first, end + past):
                dp = recent[t % width]
                if t >= end:
                    dp[:] = 0
                elif silu:
                    convolve_row(x, taps, bias, state[b], first, t, dp)
                    silu_gradient_row(dp, du[t])
                else:
                    dp[:] = du[t]
                if t < end:
                    add(dbias[group], dp)
                    for k in range(width):
                        source = row_at(x, state[b], first, t - past + k)
                        add_product(dtaps[group, k], dp, source)
                out = row_at(dx, dstate[b], first, t - past)
                if width == 4:
                    sum_of_four(
                        out, zero, taps[0], taps[1], taps[2], taps[3],
                        dp, recent[(t - 1) % 4], recent[(t - 2) % 4], recent[(t - 3) % 4],
                    )  # fmt: skip
                else:
                    out[:] = 0
                    for k in range(width):
                        add_product(out, taps[k], recent[(t - k) % width])
                if t >= end:
                    add(out, dfinal[b, t - end])


class FusedCausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, cu_seqlens, state, silu):
        x, taps = x.contiguous(), weight.t().contiguous()
        bias, cu, state = bias.contiguous(), cu_seqlens.contiguous(), state.contiguous()
        groups = row_groups(cu)
        u, final = torch.empty_like(x), torch.empty_like(state)
        call(forward, x, taps, bias, cu, groups, state, silu, u, final)
        ctx.save_for_backward(x, taps, bias, cu, state)
        ctx.rest = groups, silu
        return u, final

    @staticmethod
    @once_differentiable
    def backward(ctx, du, dfinal):
        x, taps, bias, cu, state = ctx.saved_tensors
        groups, silu = ctx.rest
        du, dfinal = du.contiguous(), dfinal.contiguous()
        dx, dstate = torch.empty_like(x), torch.empty_like(state)
        dtaps, dbias = (t.new_zeros(len(groups) - 1, *t.shape) for t in (taps, bias))
        call(
            backward, x, taps, bias, cu, groups, state, silu, du, dfinal,
            dx, dtaps, dbias, dstate,
        )  # fmt: skip
        return dx, dtaps.sum(0).t(), dbias.sum(0), None, dstate, None


def causal_conv(x, weight, bias, cu_seqlens, state, silu) -> tuple[Tensor, Tensor]:
    """x (N, C), weight (C, W), bias (C,), state (B, W-1, C) -> u (N, C), final state.

    All float32 on the CPU.
    """
    return FusedCausalConv.apply(x, weight, bias, cu_seqlens, state, silu)
