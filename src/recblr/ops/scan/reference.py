"""The scan as a plain loop over rows, in any float dtype: what the others are held to."""

from itertools import pairwise

import torch
from torch import Tensor


def scan(a: Tensor, u: Tensor, cu_seqlens: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """a, u (N, C), cu_seqlens (B+1,), h0 (B, C) -> h (N, C), final state (B, C).

    Computed in the dtype of h0 when that is the widest.
    """
    states, final_states = [], []
    for sequence, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        h = h0[sequence]
        for t in range(start, stop):
            h = a[t] * h + u[t]
            states.append(h)
        final_states.append(h)
    h = torch.stack(states) if states else a * u
    return h, torch.stack(final_states) if final_states else h0
