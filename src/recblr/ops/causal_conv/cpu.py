"""Causal depthwise convolution and SiLU fused for the CPU with numba.

Forward reads x and writes u. The backward ascends once: it recomputes the pre-activation p of a
row, forms dp = du silu'(p), and scatters it over the row's W inputs,

    dx_(t-W+1+k) += weight_k dp      dweight_k += x_(t-W+1+k) dp      dbias += dp

where inputs before the sequence's first row are rows of `state`. Only the last W rows are
touched again, in cache. Work is split over groups of whole sequences with about equal rows; the
split does not depend on the number of threads, so gradients are the same bit for bit on any.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ops.threads import call, row_groups

MATH = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

f32 = np.float32
ONE = f32(1)
LOWEST, HIGHEST = f32(-87), f32(87)  # exp stays a normal float32
LOG2_E, ROUND = f32(1.4426950408889634), f32(127.5)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
# Minimax for (exp(x) - 1 - x) / x^2 on |x| < 0.347: exp(x) - 1 to a relative 1.3e-8.
P2, P3, P4 = f32(0.5000000062), f32(0.166665430), f32(0.0416662821)
P5, P6 = f32(0.00836658251), f32(0.00139464453)


@njit(inline="always", **MATH)
def sigmoid_pair(x):
    """sigmoid(x), sigmoid(-x), through exp(-x) = 2^n exp(rest) with |rest| < 0.35."""
    x = min(max(-x, LOWEST), HIGHEST)
    exponent = np.int32(x * LOG2_E + ROUND)  # biased by 127, positive: truncation rounds
    n = f32(exponent) - f32(127)
    x = (x - n * LN2_HIGH) - n * LN2_LOW
    p = x + x * x * (P2 + x * (P3 + x * (P4 + x * (P5 + x * P6))))
    scale = np.int32(exponent << np.int32(23)).view(f32)
    e = scale + scale * p
    r = ONE / (ONE + e)
    return r, e * r


@njit(**MATH)
def add_tap(p, weight, x):
    for k in range(p.size):
        p[k] += weight[k] * x[k]


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
def scatter_tap(dp, weight, x, dx, dweight):
    for k in range(dp.size):
        dx[k] += weight[k] * dp[k]
        dweight[k] += x[k] * dp[k]


@njit(**MATH)
def convolve_row(x, taps, bias, state, first, t, p):
    """p (C,) <- the convolution at row t of the sequence that starts at row `first`."""
    width = len(taps)
    p[:] = bias
    for k in range(width):
        source = t - (width - 1) + k
        if source >= first:
            add_tap(p, taps[k], x[source])
        else:
            add_tap(p, taps[k], state[t - first + k])


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
                source = cu[b + 1] - final.shape[1] + k
                final[b, k] = x[source] if source >= cu[b] else state[b, cu[b + 1] - cu[b] + k]


@njit(parallel=True, cache=True, **MATH)
def backward(x, taps, bias, cu, groups, state, silu, du, dfinal, dx, dtaps, dbias, dstate):
    """dtaps (groups, W, C) and dbias (groups, C): one row per group, for the caller to sum."""
    width = len(taps)
    for group in prange(groups.size - 1):
        dp = np.empty(bias.size, np.float32)
        for b in range(groups[group], groups[group + 1]):
            dstate[b] = 0
            for t in range(cu[b], cu[b + 1]):
                dx[t] = 0
                if silu:
                    convolve_row(x, taps, bias, state[b], cu[b], t, dp)
                    silu_gradient_row(dp, du[t])
                else:
                    dp[:] = du[t]
                for k in range(bias.size):
                    dbias[group, k] += dp[k]
                for k in range(width):
                    source = t - (width - 1) + k
                    if source >= cu[b]:
                        scatter_tap(dp, taps[k], x[source], dx[source], dtaps[group, k])
                    else:
                        early = t - cu[b] + k
                        scatter_tap(dp, taps[k], state[b, early], dstate[b, early], dtaps[group, k])
            for k in range(width - 1):
                source = cu[b + 1] - (width - 1) + k
                if source >= cu[b]:
                    dx[source] += dfinal[b, k]
                else:
                    dstate[b, cu[b + 1] - cu[b] + k] += dfinal[b, k]


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
