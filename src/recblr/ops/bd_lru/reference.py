"""BD-LRU as a plain loop over rows, in any float dtype: the definition the others are held to."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHUT = -1e4  # a gate pre-activation whose sigmoid is exactly 0: decay 1, nothing added


class DecayAndScale(torch.autograd.Function):
    """(recurrence gate pre-activation (..., C), c (C,)) -> decay a, input scale s (..., C).

    a = exp(-c r), s = sqrt(1 - a^2 + eps), r = sigmoid(gate). The slope ds/dlog(a) = -a^2/s has
    no bound as a -> 1, but log(a) = -c r and s ~ sqrt(2 c r): written with r/s, the slope to the
    gate vanishes there. So the gradient is exact and finite with no clipping.
    """

    @staticmethod
    def forward(ctx, gate, c, eps):
        r = torch.sigmoid(gate)
        log_a = -c * r
        a = torch.exp(log_a)
        s = torch.sqrt(-torch.expm1(2 * log_a) + eps)
        ctx.save_for_backward(gate, c, r, a, s)
        return a, s

    @staticmethod
    @once_differentiable
    def backward(ctx, da, ds):
        gate, c, r, a, s = ctx.saved_tensors
        r_over_s = torch.where(s > 0, r / s, 0)
        dc = r_over_s * a * a * ds - r * a * da  # of each element
        dgate = c * torch.sigmoid(-gate) * dc
        return dgate, dc.reshape(-1, dc.shape[-1]).sum(0), None


def decays_and_inputs(u, gates, c, eps) -> tuple[Tensor, Tensor]:
    """Decay a and scaled input v (N, C) of h_t = a_t h_(t-1) + v_t."""
    recurrence_gate, input_gate = gates.chunk(2, dim=-1)
    a, s = DecayAndScale.apply(recurrence_gate, c, eps)
    return a, s * torch.sigmoid(input_gate) * u


def bd_lru(u, gates, c, cu_seqlens, h0, z, eps) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C)."""
    a, v = decays_and_inputs(u, gates, c, eps)
    states, final_states = [], []
    for sequence, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        h = h0[sequence]
        for t in range(start, stop):
            h = a[t] * h + v[t]
            states.append(h)
        final_states.append(h)
    h = torch.stack(states) if states else v
    return h if z is None else h * F.silu(z), torch.stack(final_states) if final_states else h0
