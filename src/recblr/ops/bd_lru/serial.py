"""BD-LRU one time step at a time, over all sequences still running; any device, any float dtype.

Sequences are sorted by length (longest first) and rows reordered once to time-major, so that the
rows of one step are contiguous and belong to the first n_t sequences, n_t never growing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recblr.ops.bd_lru.reference import decays_and_inputs


def bd_lru(u, gates, c, cu_seqlens, h0, z, eps) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C)."""
    a, v = decays_and_inputs(u, gates, c, eps)
    if len(v) == 0:
        return v if z is None else v * z, h0

    lengths = cu_seqlens.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    place = torch.argsort(order)  # of each sequence in `order`
    sequence = torch.repeat_interleave(lengths, output_size=len(v))
    step = torch.arange(len(v), device=v.device) - cu_seqlens[sequence]
    time_major = torch.argsort(step * len(lengths) + place[sequence])
    running = torch.bincount(step).tolist()  # sequences at each step; the only device sync

    h = h0[order]
    states, final_states = [], []
    for a_t, v_t in zip(a[time_major].split(running), v[time_major].split(running)):
        final_states.append(h[len(v_t) :])
        h = a_t * h[: len(v_t)] + v_t
        states.append(h)
    final_states.append(h)
    final_state = torch.cat(final_states[::-1])[place]
    h = torch.cat(states)[torch.argsort(time_major)]
    return h if z is None else h * F.silu(z), final_state
