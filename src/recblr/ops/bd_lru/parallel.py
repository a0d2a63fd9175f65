"""BD-LRU by the paper's parallel scan (section 3.3): embedding padding to a power of two.

The rows of each sequence are left-padded to the next power of two of the batch's longest, just
before the BD-LRU; gates, decay and input scaling, in eager torch, run on the padding too, and what
they give is scanned by the Triton kernel of `ops.scan`, cut, and merged. The paper's padding is
zeros: it adds nothing to the state but lets it decay, which is harmless from a state of zero. Here
an h0 may come first, so the gates of the padding are shut: u = 0, r = i = 0, decay 1. The kernel
itself takes any length: the padding is the method's, kept so that it can be measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recblr.ops.bd_lru.reference import SHUT, decays_and_inputs
from recblr.ops.packed import power_of_two
from recblr.ops.scan import scan


def bd_lru(
    u, gates, c, cu_seqlens, h0, z, eps, cu_seqlens_host: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C).

    On tensors that Triton runs on. The longest sequence is read from `cu_seqlens_host`, a copy of
    cu_seqlens on the CPU; without one this waits for the device.
    """
    lengths = cu_seqlens.diff()
    on_host = lengths if cu_seqlens_host is None else cu_seqlens_host.diff()
    length = power_of_two(max(on_host.tolist(), default=0))
    padded_cu = length * torch.arange(len(lengths) + 1, device=u.device)
    shift = padded_cu[1:] - cu_seqlens[1:]  # of a sequence's rows, so that they end with its pad
    rows = torch.arange(len(u), device=u.device)
    rows = rows + torch.repeat_interleave(shift, lengths, output_size=len(u))

    u, gates = (
        x.new_full((len(lengths) * length, x.shape[1]), pad).index_copy(0, rows, x)
        for x, pad in ((u, 0), (gates, SHUT))
    )
    a, v = decays_and_inputs(u, gates, c, eps)
    h, final_state = scan(a, v, padded_cu, h0, backend="triton")
    h = h.index_select(0, rows)  # its backward adds rows; that of h[rows] would sort them first
    return h if z is None else h * F.silu(z), final_state
