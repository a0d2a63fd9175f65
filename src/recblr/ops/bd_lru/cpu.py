"""BD-LRU fused for the CPU with numba: gates, decay, input scaling, scan and merge in one pass.

Forward reads u, both gates and z and writes y; no intermediate row reaches memory, except the
state before every block of BLOCK rows, kept for the backward. The backward recomputes one block
in ascending order, which streams from memory. All gradients are linear in g_t, what flows into
h_t, so that pass writes their factors into the output rows; then a descending walk, in cache,
multiplies them by g_t:

    g_t = dy_t silu(z_t) + w      w <- a_t g_t      dh0 = w after the first row
    du = g s i      d(input gate) = g v (1 - i)      dz = dy h silu'(z)      with v = s i u
    e = g ((r/s) a^2 i u - r a h_(t-1))      d(recurrence gate) = c (1 - r) e      dc = sum e

e stays bounded where s -> 0, as c r/s ~ s/2: no clipping of the gradient, no epsilon in s.

Work is split over groups of whole sequences with about equal rows, and over channels when there
are fewer sequences than threads (half a row at a time defeats the prefetcher: twice the time).
The groups, and so the order of the sum in dc, do not depend on the number of threads: gradients
are the same bit for bit on any.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ops.threads import call, row_groups

BLOCK = 16  # rows recomputed at a time: their scratch rows stay in the first-level cache
CHANNELS = 64  # per task when there are fewer sequences than threads
MATH = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}

f32 = np.float32
ONE, TWO = f32(1), f32(2)
TINY = f32(1e-18)  # s^2 = 2 c r below 1e-36: r/s then only reaches gradients under 1e-18
LOWEST, HIGHEST = f32(-87), f32(87)  # exp stays a normal float32
LOG2_E = f32(1.4426950408889634)
ROUND = f32(1.5 * 2**23 + 127)  # x + ROUND has round(x) + 127 in its lowest bits
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
# Minimax for (exp(x) - 1 - x) / x^2 on |x| < 0.347: exp(x) - 1 to a relative 1.9e-8.
P2, P3, P4 = f32(0.5000000062), f32(0.166665430), f32(0.0416662821)
P5, P6 = f32(0.00836658251), f32(0.00139464453)


@njit(inline="always", **MATH)
def exp_parts(x):
    """(scale, p) with exp(x) = scale * (1 + p), scale a power of two, |log(1 + p)| < 0.35."""
    rounded = f32(x * LOG2_E + ROUND)
    scale = np.int32(rounded.view(np.int32) << np.int32(23)).view(f32)
    n = rounded - ROUND
    x = (x - n * LN2_HIGH) - n * LN2_LOW
    square = x * x  # Estrin's scheme: short chains of operations
    p = x + square * ((P2 + x * P3) + square * ((P4 + x * P5) + square * P6))
    return scale, p


@njit(inline="always", **MATH)
def sigmoid_pair(x):
    """sigmoid(x), sigmoid(-x), both to full relative precision."""
    scale, p = exp_parts(min(max(-x, LOWEST), HIGHEST))
    e = scale + scale * p
    r = ONE / (ONE + e)
    return r, e * r


@njit(inline="always", **MATH)
def decay_and_square(log_a):
    """a = exp(log_a) and 1 - a^2, the latter through expm1; log_a <= 0."""
    scale, p = exp_parts(max(log_a, LOWEST))
    expm1 = scale * p + (scale - ONE)
    return scale + scale * p, -expm1 * (TWO + expm1)


# Two loops in a row's function, the second on what the first left in an output: one loop's chain
# of two exponentials is too long for a core to overlap elements.


@njit(**MATH)
def forward_row(u, gr, gi, c, eps, h, y):
    for k in range(h.size):
        r, _ = sigmoid_pair(gr[k])
        y[k] = -c[k] * r
    for k in range(h.size):
        i, _ = sigmoid_pair(gi[k])
        a, square = decay_and_square(y[k])
        h[k] = a * h[k] + np.sqrt(square + eps) * i * u[k]
        y[k] = h[k]


@njit(**MATH)
def merge_row(z, y):
    for k in range(y.size):
        gate, _ = sigmoid_pair(z[k])
        y[k] *= z[k] * gate


@njit(**MATH)
def factors_row(u, gr, gi, c, eps, h, a_out, e_out, du, dgr, dgi):
    """Advance h and leave what g_t is multiplied by in a_out, e_out, du, dgr and dgi."""
    for k in range(h.size):
        r, keep = sigmoid_pair(gr[k])
        a, square = decay_and_square(-c[k] * r)
        a_out[k] = a
        e_out[k] = r
        du[k] = np.sqrt(square + eps)
        dgr[k] = c[k] * keep
    for k in range(h.size):
        i, close = sigmoid_pair(gi[k])
        a, r, s = a_out[k], e_out[k], du[k]
        carried = a * h[k]
        v = s * i * u[k]
        h[k] = carried + v
        e = r / max(s, TINY) * a * a * i * u[k] - r * carried
        e_out[k] = e
        du[k] = s * i
        dgr[k] *= e
        dgi[k] = v * close


@njit(**MATH)
def unmerge_row(h, z, dy, dh, dz):
    for k in range(h.size):
        gate, close = sigmoid_pair(z[k])
        dh[k] = dy[k] * z[k] * gate
        dz[k] = dy[k] * h[k] * gate * (ONE + z[k] * close)


@njit(**MATH)
def backward_row(dh, a, e, w, du, dgr, dgi, dc):
    for k in range(w.size):
        g = dh[k] + w[k]
        w[k] = a[k] * g
        du[k] *= g
        dgr[k] *= g
        dgi[k] *= g
        dc[k] += e[k] * g


@njit(parallel=True, cache=True, **MATH)
def forward(u, gates, c, cu, groups, step, h0, z, merge, eps, keep, y, states, final):
    """Row cu[b] // BLOCK + b + k of `states` (if `keep`) = state before block k of sequence b."""
    chunks = (c.size + step - 1) // step
    for task in prange((groups.size - 1) * chunks):
        lo = (task % chunks) * step
        hi = min(lo + step, c.size)
        h = np.empty(hi - lo, np.float32)
        for b in range(groups[task // chunks], groups[task // chunks + 1]):
            h[:] = h0[b, lo:hi]
            for t in range(cu[b], cu[b + 1]):
                if keep and (t - cu[b]) % BLOCK == 0:
                    states[cu[b] // BLOCK + b + (t - cu[b]) // BLOCK, lo:hi] = h
                forward_row(
                    u[t, lo:hi], gates[t, 0, lo:hi], gates[t, 1, lo:hi], c[lo:hi], eps, h,
                    y[t, lo:hi],
                )  # fmt: skip
                if merge:
                    merge_row(z[t, lo:hi], y[t, lo:hi])
            final[b, lo:hi] = h


@njit(parallel=True, cache=True, **MATH)
def backward(
    u, gates, c, cu, groups, step, states, z, merge, eps, dy, dfinal, du, dgates, dc, dh0, dz
):
    """dc (groups, C): one row per group, for the caller to sum."""
    chunks = (c.size + step - 1) // step
    for task in prange((groups.size - 1) * chunks):
        group = task // chunks
        lo = (task % chunks) * step
        hi = min(lo + step, c.size)
        h, w = np.empty(hi - lo, np.float32), np.empty(hi - lo, np.float32)
        a = np.empty((BLOCK, hi - lo), np.float32)
        e, dh = np.empty_like(a), np.empty_like(a)
        for b in range(groups[group], groups[group + 1]):
            w[:] = dfinal[b, lo:hi]
            blocks = (cu[b + 1] - cu[b] + BLOCK - 1) // BLOCK
            for block in range(blocks - 1, -1, -1):
                start = cu[b] + block * BLOCK
                rows = min(BLOCK, cu[b + 1] - start)
                h[:] = states[cu[b] // BLOCK + b + block, lo:hi]
                for row in range(rows):
                    t = start + row
                    factors_row(
                        u[t, lo:hi], gates[t, 0, lo:hi], gates[t, 1, lo:hi], c[lo:hi], eps, h,
                        a[row], e[row], du[t, lo:hi], dgates[t, 0, lo:hi], dgates[t, 1, lo:hi],
                    )  # fmt: skip
                    if merge:
                        unmerge_row(h, z[t, lo:hi], dy[t, lo:hi], dh[row], dz[t, lo:hi])
                    else:
                        dh[row] = dy[t, lo:hi]
                for row in range(rows - 1, -1, -1):
                    t = start + row
                    backward_row(
                        dh[row], a[row], e[row], w,
                        du[t, lo:hi], dgates[t, 0, lo:hi], dgates[t, 1, lo:hi], dc[group, lo:hi],
                    )  # fmt: skip
            dh0[b, lo:hi] = w


class FusedBDLRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, gates, c, cu_seqlens, h0, z, eps, keep):
        n, channels = u.shape
        u, c, h0 = u.contiguous(), c.contiguous(), h0.contiguous()
        gates = gates.reshape(n, 2, channels).contiguous()
        merge = z is not None
        z = z.contiguous() if merge else u[:0]
        cu = cu_seqlens.contiguous()
        groups = row_groups(cu)
        step = channels if len(groups) > torch.get_num_threads() else CHANNELS
        states = u.new_empty((n // BLOCK + len(cu)) if keep else 0, channels)
        y, final = torch.empty_like(u), torch.empty_like(h0)
        call(
            forward, u, gates, c, cu, groups, step, h0, z, merge, np.float32(eps), keep,
            y, states, final,
        )  # fmt: skip
        ctx.save_for_backward(u, gates, c, cu, states, z)
        ctx.rest = groups, step, merge, np.float32(eps)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        u, gates, c, cu, states, z = ctx.saved_tensors
        groups, step, merge, eps = ctx.rest
        dy, dfinal = dy.contiguous(), dfinal.contiguous()
        du, dgates, dh0, dz = (torch.empty_like(t) for t in (u, gates, dfinal, z))
        dc = c.new_zeros(len(groups) - 1, len(c))
        call(
            backward, u, gates, c, cu, groups, step, states, z, merge, eps, dy,
            dfinal, du, dgates, dc, dh0, dz,
        )  # fmt: skip
        return du, dgates.flatten(1), dc.sum(0), None, dh0, dz if merge else None, None, None


def bd_lru(u, gates, c, cu_seqlens, h0, z, eps) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C).

    All float32 on the CPU.
    """
    keep = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (u, gates, c, h0, z)
    )
    return FusedBDLRU.apply(u, gates, c, cu_seqlens, h0, z, eps, keep)
