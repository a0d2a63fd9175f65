"""The complex recurrence as a plain loop over rows, in any float dtype: what others are held to."""

from itertools import pairwise

import torch
from torch import Tensor


def as_complex(x: Tensor) -> Tensor:
    """(N, 2S) = [real | imaginary] -> complex (N, S)."""
    return torch.complex(*x.chunk(2, dim=-1))


def as_halves(x: Tensor) -> Tensor:
    """Complex (N, S) -> (N, 2S) = [real | imaginary]."""
    return torch.cat((x.real, x.imag), dim=-1)


def lru(u, lambda_, cu_seqlens, h0) -> tuple[Tensor, Tensor]:
    """u (N, 2S), lambda_ (2, S), h0 (B, 2S) -> h (N, 2S), final state (B, 2S)."""
    decay, u_complex, h0_complex = torch.complex(*lambda_), as_complex(u), as_complex(h0)
    states, final_states = [], []
    for sequence, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        h = h0_complex[sequence]
        for t in range(start, stop):
            h = decay * h + u_complex[t]
            states.append(h)
        final_states.append(h)
    h = as_halves(torch.stack(states)) if states else u
    return h, as_halves(torch.stack(final_states)) if final_states else h0
