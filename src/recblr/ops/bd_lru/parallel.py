"""BD-LRU by the paper's parallel scan (section 3.3): embedding padding to a power of two.

Gates, decay and input scaling are eager; the rows of each sequence are then left-padded to the
next power of two of the batch's longest, scanned by the Triton kernel of `ops.scan`, cut, and
merged. The paper pads with zeros before the gates, so its pad steps add nothing to the state;
here, one step later (pads cost no gates), they are (a, v) = (1, 0), which also leaves an h0 before
them as it is, to the bit. The kernel itself takes any length: the padding is the method's, kept so
that it can be measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recblr.ops.bd_lru.reference import decays_and_inputs
from recblr.ops.packed import power_of_two
from recblr.ops.scan import scan


def bd_lru(
    u, gates, c, cu_seqlens, h0, z, eps, cu_seqlens_host: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C).

    On tensors that Triton runs on. The longest sequence is read from `cu_seqlens_host`, a copy of
    cu_seqlens on the CPU; without one this waits for the device.
    """
    a, v = decays_and_inputs(u, gates, c, eps)
    if len(v) == 0:
        return v if z is None else v * z, h0

    lengths = cu_seqlens.diff()
    on_host = lengths if cu_seqlens_host is None else cu_seqlens_host.diff()
    length = power_of_two(int(on_host.max()))
    padded_cu = length * torch.arange(len(lengths) + 1, device=v.device)
    shift = padded_cu[1:] - cu_seqlens[1:]  # of a sequence's rows, so that they end with its pad
    rows = torch.arange(len(v), device=v.device)
    rows = rows + torch.repeat_interleave(shift, lengths, output_size=len(v))

    size = len(lengths) * length, v.shape[1]
    a, v = (x.new_full(size, pad).index_copy(0, rows, x) for x, pad in ((a, 1), (v, 0)))
    h, final_state = scan(a, v, padded_cu, h0, backend="triton")
    h = h.index_select(0, rows)  # its backward adds rows; that of h[rows] would sort them first
    return h if z is None else h * F.silu(z), final_state
