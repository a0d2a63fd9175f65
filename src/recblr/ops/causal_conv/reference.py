"""Causal depthwise convolution as shifted adds, in any float dtype and on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv(x, weight, bias, cu_seqlens, state, silu) -> tuple[Tensor, Tensor]:
    """x (N, C), weight (C, W), bias (C,), state (B, W-1, C) -> u (N, C), final state."""
    width = weight.shape[1]
    sequences = state.shape[0]
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    sequence = torch.repeat_interleave(lengths, output_size=len(x))
    rows = torch.arange(len(x), device=x.device)
    position = rows - starts[sequence]
    # Row t of all that came before and in the sequences: `state` (B * (W-1) rows), then x.
    source = torch.cat((state.flatten(0, 1), x))

    def row_of(sequence, position):
        """Index into `source` of a position >= -(W-1), which is negative inside `state`."""
        before = sequence * (width - 1) + position + width - 1
        inside = sequences * (width - 1) + starts[sequence] + position
        return torch.where(position < 0, before, inside)

    u = bias.expand_as(x)
    for tap in range(width):
        u = u + weight[:, tap] * source[row_of(sequence, position - (width - 1 - tap))]

    every = torch.arange(sequences, device=x.device)[:, None]
    last = lengths[:, None] + torch.arange(1 - width, 0, device=x.device)  # (B, W-1)
    return F.silu(u) if silu else u, source[row_of(every, last)]
