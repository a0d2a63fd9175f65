"""The complex recurrence by recursive doubling in plain torch, on any device, in any float dtype.

After the round of step s (s = 1, 2, 4, ...) row t holds the terms of its last 2s rows:

    h_t <- h_t + lambda^s h_(t-s)      where row t - s is in the same sequence

so the longest sequence of T rows takes log2(T) rounds over all rows at once. The gradient is the
same recurrence backwards: g_t = dh_t + conj(lambda) g_(t+1), du = g, dlambda = sum_t g_t
conj(h_(t-1)). h0 enters through the first rows: lambda h0 is added to them before the rounds.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recblr.ops.lru.reference import as_complex, as_halves


def doubled(u: Tensor, decay: Tensor, position: Tensor, longest: int) -> Tensor:
    """u complex (N, S), decay complex (S,), position (N,): row in its sequence -> h (N, S)."""
    h, step = u.clone(), 1
    while step < longest:
        inside = (position[step:] >= step)[:, None]
        h[step:] += torch.where(inside, decay * h[:-step], 0)
        decay, step = decay * decay, 2 * step
    return h


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, decay, position, remaining, longest):
        h = doubled(u, decay, position, longest)
        ctx.save_for_backward(h, decay, position, remaining)
        ctx.longest = longest
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        h, decay, position, remaining = ctx.saved_tensors
        g = doubled(dh.flip(0), decay.conj(), remaining.flip(0), ctx.longest).flip(0)
        inside = (position[1:] > 0)[:, None]
        ddecay = torch.where(inside, g[1:] * h[:-1].conj(), 0).sum(0)
        return g, ddecay, None, None, None


def lru(u, lambda_, cu_seqlens, h0, cu_seqlens_host: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """u (N, 2S), lambda_ (2, S), h0 (B, 2S) -> h (N, 2S), final state (B, 2S).

    The longest sequence is read from `cu_seqlens_host`, a copy of cu_seqlens on the CPU; without
    one this waits for the device.
    """
    if len(u) == 0:
        return u, h0

    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    on_host = lengths if cu_seqlens_host is None else cu_seqlens_host.diff()
    sequence = torch.repeat_interleave(lengths, output_size=len(u))
    position = torch.arange(len(u), device=u.device) - starts[sequence]
    remaining = lengths[sequence] - 1 - position

    # An empty sequence has no first row: it adds zero to a row of another.
    filled = (lengths > 0)[:, None]
    decay, before = torch.complex(*lambda_), as_complex(h0)
    entering = torch.where(filled, decay * before, 0)
    first, last = starts.clamp(max=len(u) - 1), (cu_seqlens[1:] - 1).clamp(min=0)
    start = as_complex(u).index_add(0, first, entering)
    h = Doubling.apply(start, decay, position, remaining, int(on_host.max()))
    final_state = torch.where(filled, h.index_select(0, last), before)
    return as_halves(h), as_halves(final_state)
