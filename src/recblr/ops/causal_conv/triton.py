"""Causal depthwise convolution and SiLU fused for the GPU with Triton.

X(t) is the input at position t of a sequence: a row of x where t >= 0, of `state` where
-W < t < 0. Row by row, and channel by channel:

    p(t) = bias + sum_k weight_k X(t-W+1+k)      u = silu(p), or p      final = X(length-W+1 ...)
    dp(t) = du(t) silu'(p(t)), 0 outside 0 <= t < length
    dX(t) = sum_j weight_(W-1-j) dp(t+j)  +  d final of position t      (dx, or dstate where t < 0)
    dweight_k = sum_t dp(t) X(t-W+1+k)           dbias = sum_t dp(t)

In, out: x, u (N, C) float32 or half; the rest float32, as is the arithmetic. Grid: (ROWS rows
of the packed x, CHANNELS channels), whatever sequences they belong to, so short ones leave no lane
idle; after these, programs for the B (W-1) rows of `final` or dstate. A row knows its sequence
from `sequences` (N,). Sums over rows are one partial row per program, added by torch: no atomics,
the same bits every time.

Kept for the backward: x. Recomputed there: p of a row and of the W-1 rows after it, which it
reaches; all from 2W-1 shifted loads of the tile. Bytes per element in float32: 8 forward (x, u);
12 backward (x, du, dx), and 4 (W+1) / ROWS of partial sums; the shifted loads hit the cache, but
for the W-1 rows each side of a tile. State rows: B (W-1) / N of that again. No GPU was timed yet.
"""
# Triton declares the functions of its language as the host sees them, not a kernel:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# One 128-bit load per lane covers the tile (64-bit in half precision). Compiled for sm_80 and sm_90
# at W = 4 the backward takes at most 115 registers: 4 programs or more fit a multiprocessor. None
# spills. With 32 rows on 8 warps 2 fit.
ROWS, CHANNELS, WARPS = 16, 32, 4


@triton.jit
def input_at(
    shift: tl.constexpr, x_row, state_row, position, length, valid, channels,
    width: tl.constexpr, of_state: tl.constexpr,
):  # fmt: skip
    """float32 inputs `shift` rows after a tile's own, 0 beyond either end of the sequence.

    x_row, state_row: pointers to where the row at `position` is in x, or would be in state.
    """
    at = position + shift
    inputs = tl.load(x_row + shift * channels, mask=valid & (at >= 0) & (at < length), other=0.0)
    inputs = inputs.to(tl.float32)
    if of_state or shift < 0:  # else all of the tile is in x
        early = valid & (at < 0) & (at > -width)
        inputs += tl.load(state_row + shift * channels, mask=early, other=0.0)
    return inputs


@triton.jit
def find(
    block, sequences, cu, rows_of_kind, width: tl.constexpr, rows: tl.constexpr,
    of_state: tl.constexpr,
):  # fmt: skip
    """Row, whether it exists, its sequence, that sequence's first row and length: (rows, 1)."""
    row = (block * rows + tl.arange(0, rows))[:, None]
    exists = row < rows_of_kind
    if of_state:
        sequence = tl.where(exists, row // (width - 1), 0)
    else:
        sequence = tl.load(sequences + row, mask=exists, other=0)
    first = tl.load(cu + sequence, mask=exists, other=0)
    length = tl.load(cu + sequence + 1, mask=exists, other=0) - first
    return row, exists, sequence, first, length.to(tl.int32)


@triton.jit(do_not_specialize=["n", "state_rows"])
def forward(
    x, taps, bias, cu, sequences, state, u, final, n, state_rows, channels,
    width: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """taps (W, C); sequences (N,), the sequence of each row; state and final (B, W-1, C)."""
    block = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(n, rows)
    channel = (tl.program_id(1) * columns + tl.arange(0, columns))[None, :]
    here = channel < channels
    if block < row_blocks:
        row, exists, sequence, first, length = find(block, sequences, cu, n, width, rows, False)
        position = (row - first).to(tl.int32)
        x_row = x + row * channels + channel
        state_row = state + ((sequence + 1) * (width - 1) + position) * channels + channel
        p = tl.load(bias + channel, mask=here, other=0.0)
        p = tl.broadcast_to(p, (rows, columns))
        for k in tl.static_range(width):
            tap = tl.load(taps + k * channels + channel, mask=here, other=0.0)
            p += tap * input_at(
                k - width + 1, x_row, state_row, position, length, exists & here, channels,
                width, False,
            )  # fmt: skip
        if silu:
            p = p * tl.sigmoid(p)
        tl.store(u + row * channels + channel, p, mask=exists & here)
    elif width > 1:
        row, exists, sequence, first, length = find(
            block - row_blocks, sequences, cu, state_rows, width, rows, True
        )
        position = length + (row - (sequence + 1) * (width - 1)).to(tl.int32)
        x_row = x + (first + position) * channels + channel
        state_row = state + ((sequence + 1) * (width - 1) + position) * channels + channel
        last = input_at(0, x_row, state_row, position, length, exists & here, channels, width, True)
        tl.store(final + row * channels + channel, last, mask=exists & here)


@triton.jit
def input_gradient(
    x, taps, bias, state, du, dfinal, partial, row, exists, sequence, first, length, channel,
    channels, width: tl.constexpr, silu: tl.constexpr, slots: tl.constexpr, rows: tl.constexpr,
    columns: tl.constexpr, of_state: tl.constexpr,
):  # fmt: skip
    """dX (rows, columns) of rows of x, or of state; of x, sums over them go to `partial`."""
    here = channel < channels
    valid = exists & here
    start = (sequence + 1) * (width - 1)  # the row of position 0, would it be in state
    position = (row - (start if of_state else first)).to(tl.int32)
    x_row = x + (first + position) * channels + channel
    state_row = state + (start + position) * channels + channel
    du_row = du + (first + position) * channels + channel
    # final_i is X at position length - (W-1) + i.
    final_row = dfinal + (start + position - length) * channels + channel
    in_final = valid & (position > length - width) & (position < length)
    dinput = tl.load(final_row, mask=in_final, other=0.0)
    slot = tl.arange(0, slots)[:, None]
    sums = tl.zeros((slots, columns), tl.float32)
    for j in tl.static_range(width):  # the row at position + j reads this one with tap W-1-j
        at = position + j
        dp = tl.load(
            du_row + j * channels, mask=valid & (at >= 0) & (at < length), other=0.0
        ).to(tl.float32)  # fmt: skip
        if silu:
            p = tl.load(bias + channel, mask=here, other=0.0)
            for k in tl.static_range(width):  # loads of equal shift j + k are one once compiled
                tap = tl.load(taps + k * channels + channel, mask=here, other=0.0)
                p += tap * input_at(
                    j + k - width + 1, x_row, state_row, position, length, valid, channels,
                    width, of_state,
                )  # fmt: skip
            gate = tl.sigmoid(p)
            dp *= gate * (1 + p * (1 - gate))
        tap = tl.load(taps + (width - 1 - j) * channels + channel, mask=here, other=0.0)
        dinput += tap * dp
        if j == 0 and not of_state:
            sums = tl.where(slot == width, tl.sum(dp, 0)[None, :], sums)
            for k in tl.static_range(width):
                inputs = input_at(
                    k - width + 1, x_row, state_row, position, length, valid, channels,
                    width, of_state,
                )  # fmt: skip
                sums = tl.where(slot == k, tl.sum(dp * inputs, 0)[None, :], sums)
    if not of_state:
        tl.store(partial + slot * channels + channel, sums, mask=(slot <= width) & here)
    return dinput


@triton.jit(do_not_specialize=["n", "state_rows"])
def backward(
    x, taps, bias, cu, sequences, state, du, dfinal, dx, dstate, partial, n, state_rows, channels,
    width: tl.constexpr, silu: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    slots: tl.constexpr,
):  # fmt: skip
    """partial (row blocks, W+1, C): sums over rows of dweight, then of dbias; slots > W."""
    block = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(n, rows)
    channel = (tl.program_id(1) * columns + tl.arange(0, columns))[None, :]
    partial += block * (width + 1) * channels
    if block < row_blocks:
        row, exists, sequence, first, length = find(block, sequences, cu, n, width, rows, False)
        dinput = input_gradient(
            x, taps, bias, state, du, dfinal, partial, row, exists, sequence, first, length,
            channel, channels, width, silu, slots, rows, columns, False,
        )  # fmt: skip
        tl.store(dx + row * channels + channel, dinput, mask=exists & (channel < channels))
    elif width > 1:
        row, exists, sequence, first, length = find(
            block - row_blocks, sequences, cu, state_rows, width, rows, True
        )
        dinput = input_gradient(
            x, taps, bias, state, du, dfinal, partial, row, exists, sequence, first, length,
            channel, channels, width, silu, slots, rows, columns, True,
        )  # fmt: skip
        tl.store(dstate + row * channels + channel, dinput, mask=exists & (channel < channels))


def launch(kernel, x, taps, state_rows, silu, *tensors, **constants) -> None:
    (n, channels), width = x.shape, taps.shape[0]
    blocks = triton.cdiv(n, ROWS) + triton.cdiv(state_rows, ROWS)
    with torch.cuda.device_of(x):
        kernel[(blocks, triton.cdiv(channels, CHANNELS))](
            x, taps, *tensors, n, state_rows, channels,
            width=width, silu=silu, rows=ROWS, columns=CHANNELS,
            num_warps=WARPS, enable_fp_fusion=True, **constants,
        )  # fmt: skip


class FusedCausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, cu_seqlens, state, silu):
        x, taps = x.contiguous(), weight.t().contiguous()
        bias, cu, state = bias.contiguous(), cu_seqlens.contiguous(), state.contiguous()
        sequences = torch.repeat_interleave(cu.diff(), output_size=len(x))
        u, final = torch.empty_like(x), torch.empty_like(state)
        state_rows = state.shape[0] * state.shape[1]
        launch(forward, x, taps, state_rows, silu, bias, cu, sequences, state, u, final)
        ctx.save_for_backward(x, taps, bias, cu, sequences, state)
        ctx.silu = silu
        return u, final

    @staticmethod
    @once_differentiable
    def backward(ctx, du, dfinal):
        x, taps, bias, cu, sequences, state = ctx.saved_tensors
        width, channels = taps.shape
        dx, dstate = torch.empty_like(x), torch.empty_like(state)
        partial = taps.new_empty(triton.cdiv(len(x), ROWS), width + 1, channels)
        launch(
            backward, x, taps, state.shape[0] * state.shape[1], ctx.silu, bias, cu, sequences,
            state, du.contiguous(), dfinal.contiguous(), dx, dstate, partial,
            slots=triton.next_power_of_2(width + 1),
        )  # fmt: skip
        sums = partial.sum(0)
        return dx, sums[:width].t(), sums[width], None, dstate, None


def causal_conv(x, weight, bias, cu_seqlens, state, silu) -> tuple[Tensor, Tensor]:
    """x (N, C), weight (C, W), bias (C,), state (B, W-1, C) -> u (N, C), final state.

    x and u float32 or half precision, the rest float32.
    """
    return FusedCausalConv.apply(x, weight, bias, cu_seqlens, state, silu)
