"""The complex recurrence for the CPU with numba: one pass over the rows each way.

Forward reads u and writes h. The backward descends; it needs h alone, and its gradient of u is
what flows into h_t:

    g_t = dh_t + conj(lambda) g_(t+1)      du = g      dlambda = sum_t g_t conj(h_(t-1))

from g = dh + dfinal at the last row to dh0 = conj(lambda) g after the first. The two halves of a
row are two loops over channels: one loop that writes both has too many arrays for the compiler to
prove apart, and stays scalar.

Work is split over groups of whole sequences with about equal rows. The groups, and so the order of
the sum in dlambda, do not depend on the number of threads: gradients are the same bit for bit on
any.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ops.threads import call, row_groups

MATH = {"fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


@njit(**MATH)
def add(x, y, out):
    for k in range(out.size):
        out[k] = x[k] + y[k]


@njit(**MATH)
def advance(start, real, imaginary, h, out):
    """out <- start + (real + i imaginary) h, on rows [real | imaginary]."""
    states = real.size
    for k in range(states):
        out[k] = start[k] + real[k] * h[k] - imaginary[k] * h[states + k]
    for k in range(states):
        out[states + k] = start[states + k] + imaginary[k] * h[k] + real[k] * h[states + k]


@njit(**MATH)
def add_conjugate_product(g, h, out):
    """out <- out + g conj(h), on rows [real | imaginary]."""
    states = out.size // 2
    for k in range(states):
        out[k] += g[k] * h[k] + g[states + k] * h[states + k]
    for k in range(states):
        out[states + k] += g[states + k] * h[k] - g[k] * h[states + k]


@njit(parallel=True, cache=True, **MATH)
def forward(u, real, imaginary, cu, groups, h0, h, final):
    for group in prange(groups.size - 1):
        for b in range(groups[group], groups[group + 1]):
            before = h0[b]
            for t in range(cu[b], cu[b + 1]):
                advance(u[t], real, imaginary, before, h[t])
                before = h[t]
            final[b] = before


@njit(parallel=True, cache=True, **MATH)
def backward(h, real, imaginary, cu, groups, h0, dh, dfinal, du, dlambda, dh0):
    """real, imaginary: of conj(lambda). dlambda (groups, 2S): one row per group, to be summed."""
    for group in prange(groups.size - 1):
        zero = np.zeros(h.shape[1], np.float32)
        for b in range(groups[group], groups[group + 1]):
            first, end = cu[b], cu[b + 1]
            for t in range(end - 1, first - 1, -1):
                if t == end - 1:
                    add(dh[t], dfinal[b], du[t])
                else:
                    advance(dh[t], real, imaginary, du[t + 1], du[t])
                before = h[t - 1] if t > first else h0[b]
                add_conjugate_product(du[t], before, dlambda[group])
            if first == end:
                dh0[b] = dfinal[b]
            else:
                advance(zero, real, imaginary, du[first], dh0[b])


class FusedLRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, lambda_, cu_seqlens, h0):
        u, lambda_, h0 = u.contiguous(), lambda_.contiguous(), h0.contiguous()
        cu = cu_seqlens.contiguous()
        groups = row_groups(cu)
        h, final = torch.empty_like(u), torch.empty_like(h0)
        call(forward, u, lambda_[0], lambda_[1], cu, groups, h0, h, final)
        ctx.save_for_backward(h, lambda_, cu, h0)
        ctx.groups = groups
        return h, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dh, dfinal):
        h, lambda_, cu, h0 = ctx.saved_tensors
        dh, dfinal = dh.contiguous(), dfinal.contiguous()
        du, dh0 = torch.empty_like(h), torch.empty_like(h0)
        dlambda = h.new_zeros(len(ctx.groups) - 1, h.shape[1])
        call(backward, h, lambda_[0], -lambda_[1], cu, ctx.groups, h0, dh, dfinal, du, dlambda, dh0)
        return du, dlambda.sum(0).view_as(lambda_), None, dh0


def lru(u, lambda_, cu_seqlens, h0) -> tuple[Tensor, Tensor]:
    """u (N, 2S), lambda_ (2, S), h0 (B, 2S) -> h (N, 2S), final state (B, 2S).

    All float32 on the CPU.
    """
    return FusedLRU.apply(u, lambda_, cu_seqlens, h0)
