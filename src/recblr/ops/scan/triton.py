"""The scan h_t = a_t h_(t-1) + u_t in Triton, on packed rows of any lengths.

Layout  a, u, h (N, C), h0 and final state (B, C), contiguous; cu_seqlens (B+1,) int64. A padded
        batch (B, T, C) is the case cu_seqlens = 0, T, 2T, ...
Grid    one program per (sequence, CHANNELS channels). It walks its own rows in blocks of ROWS:
        the pairs (a, u) of a block are scanned in parallel with the product of the paper (eq. 12),
        and the last state is carried to the next block. Rows past the end count as the step
        (1, 0), which changes nothing, so no length needs padding.
Backward, w_t = gradient that reaches h_t, is the same scan from the other end with shifted decays:

    w_t = dh_t + a_(t+1) w_(t+1)    (at the end a = 1, w = gradient of the final state)
    da_t = w_t h_(t-1)      du_t = w_t      dh0 = a_1 w_1

Kept for it: a, h and h0; nothing is recomputed. The state has the dtype of h0, whatever a and u
have in memory: float32, or float64 in tests. Bytes per row and channel in float32: forward 12
(a, u -> h), backward 20 (dh, a, h -> da, du; rows shifted by one are read twice, the second time
from the cache).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 32  # a thread scans two rows of four channels: 128-bit loads and stores in bfloat16 too
CHANNELS = 32
WARPS = 4


@triton.jit
def compose(a1, u1, a2, u2):
    return a2 * a1, a2 * u1 + u2


@triton.jit
def forward(a, u, cu_seqlens, h0, h, final, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    chunks = tl.cdiv(C, CHANNELS)
    sequence = (tl.program_id(0) // chunks).to(tl.int64)
    channel = (tl.program_id(0) % chunks) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    start, stop = tl.load(cu_seqlens + sequence), tl.load(cu_seqlens + sequence + 1)
    state_type = h0.dtype.element_ty

    state = tl.load(h0 + sequence * C + channel, mask=channel < C, other=0.0)
    for block in range(start, stop, ROWS):
        t = block + row  # int64
        at = t[:, None] * C + channel[None, :]
        inside = (t < stop)[:, None] & (channel < C)[None, :]
        a_t = tl.load(a + at, mask=inside, other=1.0).to(state_type)
        u_t = tl.load(u + at, mask=inside, other=0.0).to(state_type)
        decay, from_zero = tl.associative_scan((a_t, u_t), 0, compose)
        h_t = decay * tl.expand_dims(state, 0) + from_zero
        tl.store(h + at, h_t, mask=inside)
        state = tl.sum(tl.where((row == ROWS - 1)[:, None], h_t, 0.0), 0)
    tl.store(final + sequence * C + channel, state, mask=channel < C)


@triton.jit
def backward(
    a, h, cu_seqlens, h0, dh, dfinal, da, du, dh0, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    chunks = tl.cdiv(C, CHANNELS)
    sequence = (tl.program_id(0) // chunks).to(tl.int64)
    channel = (tl.program_id(0) % chunks) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)
    start, stop = tl.load(cu_seqlens + sequence), tl.load(cu_seqlens + sequence + 1)
    state_type = h0.dtype.element_ty
    blocks = tl.cdiv(stop - start, ROWS)

    first = tl.load(h0 + sequence * C + channel, mask=channel < C, other=0.0)
    w = tl.load(dfinal + sequence * C + channel, mask=channel < C, other=0.0)
    for done in range(blocks):
        t = start + (blocks - 1 - done) * ROWS + row  # int64
        at = t[:, None] * C + channel[None, :]
        inside = (t < stop)[:, None] & (channel < C)[None, :]
        has_next = (t + 1 < stop)[:, None] & (channel < C)[None, :]
        a_next = tl.load(a + at + C, mask=has_next, other=1.0).to(state_type)
        dh_t = tl.load(dh + at, mask=inside, other=0.0).to(state_type)
        decay, from_zero = tl.associative_scan((a_next, dh_t), 0, compose, reverse=True)
        w_t = decay * tl.expand_dims(w, 0) + from_zero
        has_previous = inside & (t > start)[:, None]
        h_before = tl.load(h + at - C, mask=has_previous, other=0.0).to(state_type)
        h_before = tl.where((t == start)[:, None], first[None, :], h_before)
        tl.store(da + at, w_t * h_before, mask=inside)
        tl.store(du + at, w_t, mask=inside)
        w = tl.sum(tl.where((row == 0)[:, None], w_t, 0.0), 0)
    if blocks > 0:
        w *= tl.load(a + start * C + channel, mask=channel < C, other=0.0).to(state_type)
    tl.store(dh0 + sequence * C + channel, w, mask=channel < C)


def launch(kernel, *tensors: Tensor, sequences: int, channels: int) -> None:
    width = min(CHANNELS, triton.next_power_of_2(channels)) if channels else 1
    programs = sequences * triton.cdiv(channels, width)
    if programs:
        with torch.cuda.device_of(tensors[0]):
            kernel[(programs,)](
                *tensors, channels, ROWS=ROWS, CHANNELS=width,
                num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip


class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, u, cu_seqlens, h0):
        a, u, cu_seqlens, h0 = (x.contiguous() for x in (a, u, cu_seqlens, h0))
        h = torch.empty_like(u, dtype=torch.promote_types(a.dtype, u.dtype))
        final = torch.empty_like(h0)
        size = {"sequences": h0.shape[0], "channels": h0.shape[1]}
        launch(forward, a, u, cu_seqlens, h0, h, final, **size)
        ctx.save_for_backward(a, h, cu_seqlens, h0)
        ctx.size, ctx.dtype = size, u.dtype
        return h, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dh, dfinal):
        a, h, cu_seqlens, h0 = ctx.saved_tensors
        da, du = torch.empty_like(a), torch.empty_like(h, dtype=ctx.dtype)
        dh0 = torch.empty_like(h0)
        dh, dfinal = dh.contiguous(), dfinal.contiguous()
        launch(backward, a, h, cu_seqlens, h0, dh, dfinal, da, du, dh0, **ctx.size)
        return da, du, None, dh0


def scan(a: Tensor, u: Tensor, cu_seqlens: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """a, u (N, C), cu_seqlens (B+1,), h0 (B, C) -> h (N, C), final state (B, C)."""
    return Scan.apply(a, u, cu_seqlens, h0)
