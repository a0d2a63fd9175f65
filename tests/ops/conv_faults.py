"""Wrong convolutions, to show that the tolerance would catch them."""

from recblr.ops.causal_conv import causal_conv


def start_not_reset(cu_seqlens, state, **k):
    u, final = causal_conv(cu_seqlens=cu_seqlens[[0, -1]], state=state[:1], **k)
    return u, final.expand_as(state)


def tap_shifted_by_one(weight, **k):
    return causal_conv(weight=weight.roll(1, 1), **k)


def state_gradient_lost(state, **k):
    return causal_conv(state=state.detach() + 0 * state, **k)
