"""Wrong convolutions, to show that the tolerance would catch them."""

import torch

from recblr.ops.causal_conv import causal_conv


def start_not_reset(cu_seqlens, state, **k):
    u, final = causal_conv(cu_seqlens=cu_seqlens[[0, -1]], state=state[:1], **k)
    return u, final.expand_as(state)


def carry_dropped_at_a_block_edge(x, cu_seqlens, state, **k):
    """Row 16, inside the first sequence, begins anew with the rows before it as zeros."""
    edges = torch.cat((cu_seqlens[:1], cu_seqlens.new_tensor([16]), cu_seqlens[1:]))
    cut = torch.cat((state[:1], 0 * state[:1], state[1:]))
    u, final = causal_conv(x=x, cu_seqlens=edges, state=cut, **k)
    return u, final[1:]


def tap_shifted_by_one(weight, **k):
    return causal_conv(weight=weight.roll(1, 1), **k)


def state_gradient_lost(state, **k):
    return causal_conv(state=state.detach() + 0 * state, **k)
