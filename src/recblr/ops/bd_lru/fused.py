"""BD-LRU fused for the GPU with Triton: gates, decay, input scaling, scan and merge in one pass.

Forward, for the packed rows t of a sequence and each channel (c = softplus(Lambda) > 0):

    r = sigmoid(gr)    i = sigmoid(gi)    a = exp(-c r)    s = sqrt(1 - a^2 + eps)    v = s i u
    h_t = a_t h_(t-1) + v_t, from h0      y = h silu(z), or h without z

Backward, from the last row to the first, w = what flows into h_t from later rows (at first the
gradient of the final state):

    g = dh + w, dh = dy silu(z)    w <- a g    dh0 = w after the first row    dz = dy h silu'(z)
    du = g s i      dgi = g v (1 - i)      e = g ((r/s) a^2 i u - r a h_(t-1))
    dgr = c (1 - r) e      dc = sum of e over rows

1/s has no bound as r -> 0, but r/s ~ sqrt(r / 2c) does: no clipping and no epsilon are needed.

Layout: u, z, y (N, C) and gates (N, 2C) in float32 or bfloat16, row by row; c (C,), h0 and the
final state (B, C), and all arithmetic, in float32. Offsets of rows are int64.
Grid: one program per segment (a sequence, or a piece of a long one) and BLOCK_C channels; it
walks blocks of BLOCK_T rows, scans inside a block and carries the last state to the next.
Kept for the backward: the inputs, and the state before each block (1/16 of a pass). The backward
recomputes the states of one block and scans the block in reverse.
Memory traffic per row and channel in float32, with merge: forward 20 bytes (reads u, gr, gi, z,
writes y), backward 36 (reads u, gr, gi, z, dy, writes du, dgr, dgi, dz): these are the limit.
Without merge 16 and 28. The states add 0.25 each way.

Long sequences: too few programs to fill the device. Rows are then cut into segments, which the
same kernels treat as sequences. What enters each segment comes from `summary_kernel` (product of
decays and end state from zero, per segment) and `carry_kernel` (a scan over the segments of each
sequence); 12 more bytes each way. The list of segments is built on the device from a bound on
their number, so nothing waits for the device.

Sources: the paper, eq. 5-8; De et al. 2024 (Griffin), whose RG-LRU has the same square root;
Blelloch 1990 for the scan.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# A program of 4 warps holds 16 x 32 elements, 4 a thread: 128-bit accesses of whole 128-byte
# lines, and the backward stays within 128 registers, so 4 programs fit a multiprocessor.
BLOCK_T = tl.constexpr(16)
BLOCK_C = tl.constexpr(32)
WARPS = 4
CARRY_T = tl.constexpr(32)  # segments per step of the scan over segments

PROGRAMS = 4  # per multiprocessor that fill it; with fewer, sequences are cut
SEGMENTS = 8  # programs per multiprocessor aimed at by the cut
SHORTEST = 128  # rows of a segment: its states then cost under 1 % of its traffic

# Powers of 2 and 1/sqrt are one instruction each on the GPU; exp and division are 4 or 5.
LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(127.5)  # its power of 2 is finite, and 1 / (1 + it) below 1e-38, or 0
CLOSED = tl.constexpr(-100.0)  # a gate at which r is that small, and the decay exactly 1: the
# recurrence gate of rows past the end of a segment
TINY = tl.constexpr(1.2e-38)  # the least normal float32: s >= 1e-19 keeps 1/s finite
# The backward divides a g by a. Decays under 2^-65 forget 19 digits: as good as 0, and a g still
# has full precision for any g above 1e-18.
FASTEST = tl.constexpr(-65.0)

# Of minimum and maximum, which else return the other argument: NaN would train on unseen.
KEEP_NAN = tl.constexpr(tl.PropagateNan.ALL)

# 1 - 4^x = x (K0 + x (K1 + ...)) on [-0.25, 0]: Chebyshev, relative error 3.3e-8.
NEAR_ONE = tl.constexpr(-0.25)
K0, K1 = tl.constexpr(-1.38629434), tl.constexpr(-0.960902698)
K2, K3 = tl.constexpr(-0.443925759), tl.constexpr(-0.152676401)
K4 = tl.constexpr(-0.036974079)


@triton.jit
def sigmoid_pair(x):
    """sigmoid(x), sigmoid(-x), both to full relative precision.

    Where the first is 0 the second may be too: what it multiplies has the first as a factor.
    """
    e = tl.exp2(tl.minimum(x * -LOG2_E, LARGEST, propagate_nan=KEEP_NAN))
    root = tl.rsqrt(1.0 + e)
    r = root * root
    return r, e * r


@triton.jit
def decay(log2_a, eps):
    """a, s = sqrt(1 - a^2 + eps), 1/s."""
    a = tl.exp2(log2_a)
    near = log2_a * (K0 + log2_a * (K1 + log2_a * (K2 + log2_a * (K3 + log2_a * K4))))
    square = tl.where(log2_a > NEAR_ONE, near, 1.0 - a * a) + eps
    square = tl.maximum(square, TINY, propagate_nan=KEEP_NAN)
    inverse = tl.rsqrt(square)
    return a, square * inverse, inverse


@triton.jit
def then(a1, x1, a2, x2):
    """x -> a1 x + x1, followed by x -> a2 x + x2."""
    return a1 * a2, x1 * a2 + x2


@triton.jit
def then_apart(a1, x1, v1, a2, x2, v2):
    """As `then`, with what the last row adds, v, kept apart from what reaches it, x."""
    return a1 * a2, (x1 + v1) * a2 + x2, v2


@triton.jit
def row_of(block, row):
    """One row of a block (rows, channels)."""
    rows = tl.arange(0, block.shape[0])[:, None]
    return tl.sum(tl.where(rows == row, block, 0.0), 0)


@triton.jit
def place(C):
    """This program's segment, its channels, and which of them exist."""
    chunks = tl.cdiv(C, BLOCK_C)  # channels innermost: neighbours work on the same rows
    segment = (tl.program_id(0) // chunks).to(tl.int64)
    channel = tl.program_id(0) % chunks * BLOCK_C + tl.arange(0, BLOCK_C)
    return segment, channel, channel < C


@triton.jit
def forward_kernel(
    u, gates, c, z, bounds, h0, y, final, states, eps, C, MERGE: tl.constexpr, KEEP: tl.constexpr
):
    """Row bounds[s] // BLOCK_T + s + k of `states` (if KEEP) = state before block k of segment s.

    These rows are distinct, and below N // BLOCK_T + S + 1.
    """
    segment, channel, real = place(C)
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    rate = -LOG2_E * tl.load(c + channel, real, 0.0)  # log2(a) / r
    h = tl.load(h0 + segment * C + channel, real, 0.0)
    states += (start // BLOCK_T + segment) * C + channel
    for block in range(0, tl.cdiv(stop - start, BLOCK_T)):
        if KEEP:
            tl.store(states + block * C, h, real)
        t = start + block * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        mask = (t < stop) & real[None, :]
        at, at_gate = t * C + channel[None, :], t * (2 * C) + channel[None, :]
        gr = tl.load(gates + at_gate, mask, CLOSED).to(tl.float32)
        gi = tl.load(gates + C + at_gate, mask, 0.0).to(tl.float32)
        x = tl.load(u + at, mask, 0.0).to(tl.float32)
        if MERGE:
            zt = tl.load(z + at, mask, 0.0).to(tl.float32)
        r, _ = sigmoid_pair(gr)
        i, _ = sigmoid_pair(gi)
        a, s, _ = decay(rate[None, :] * r, eps)
        product, inside = tl.associative_scan((a, s * i * x), 0, then)
        states_here = product * h[None, :] + inside  # pyright: ignore[reportArgumentType]
        h = row_of(states_here, BLOCK_T - 1)
        if MERGE:
            opened, _ = sigmoid_pair(zt)
            states_here *= zt * opened
        tl.store(y + at, states_here.to(y.dtype.element_ty), mask)
    tl.store(final + segment * C + channel, h, real)


@triton.jit
def backward_kernel(
    u, gates, c, z, bounds, states, dy, dfinal, du, dgates, dc, dz, dh0, eps, C,
    MERGE: tl.constexpr,
):  # fmt: skip
    """dc (S, C): one row per segment, for the caller to sum."""
    segment, channel, real = place(C)
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    rate = tl.load(c + channel, real, 0.0)
    w = tl.load(dfinal + segment * C + channel, real, 0.0)
    dc_here = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    states += (start // BLOCK_T + segment) * C + channel
    blocks = tl.cdiv(stop - start, BLOCK_T)
    for done in range(0, blocks):
        block = blocks - 1 - done
        t = start + block * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        mask = (t < stop) & real[None, :]
        at, at_gate = t * C + channel[None, :], t * (2 * C) + channel[None, :]
        gr = tl.load(gates + at_gate, mask, CLOSED).to(tl.float32)
        gi = tl.load(gates + C + at_gate, mask, 0.0).to(tl.float32)
        x = tl.load(u + at, mask, 0.0).to(tl.float32)
        dh = tl.load(dy + at, mask, 0.0).to(tl.float32)
        if MERGE:
            zt = tl.load(z + at, mask, 0.0).to(tl.float32)
        h_before = tl.load(states + block * C, real, 0.0)

        r, kept = sigmoid_pair(gr)
        i, closed = sigmoid_pair(gi)
        log2_a = tl.maximum(rate[None, :] * r * -LOG2_E, FASTEST, propagate_nan=KEEP_NAN)
        a, s, inverse = decay(log2_a, eps)
        v = s * i * x
        # a h_(t-1) without shifted rows; as h - v it would lose all digits where a is small.
        product, inside, _ = tl.associative_scan((a, tl.zeros_like(v), v), 0, then_apart)
        carried = product * h_before[None, :] + inside
        if MERGE:
            h = carried + v
            opened, shut = sigmoid_pair(zt)
            dz_here = dh * h * opened * (1.0 + zt * shut)
            tl.store(dz + at, dz_here.to(dz.dtype.element_ty), mask)
            dh *= zt * opened

        # All gradients are a factor times g; the factors first, so that little outlives the scan.
        e = r * (inverse * a * a * i * x - carried)
        dx, dgi, dgr = s * i, v * closed, rate[None, :] * kept * e

        # w_t = a_t g_t comes out of the scan; g_t from it needs no shifted rows.
        product, inside = tl.associative_scan((a, a * dh), 0, then, reverse=True)
        w_here = product * w[None, :] + inside  # pyright: ignore[reportArgumentType]
        w = row_of(w_here, 0)
        g = w_here * tl.exp2(-log2_a)
        dc_here += g * e
        tl.store(du + at, (g * dx).to(du.dtype.element_ty), mask)
        tl.store(dgates + at_gate, (g * dgr).to(dgates.dtype.element_ty), mask)
        tl.store(dgates + C + at_gate, (g * dgi).to(dgates.dtype.element_ty), mask)
    tl.store(dh0 + segment * C + channel, w, real)
    tl.store(dc + segment * C + channel, tl.sum(dc_here, 0), real)


@triton.jit
def summary_kernel(
    u, gates, c, z, bounds, begins, dy, decays, ends, eps, C,
    REVERSE: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """What a segment does to the state that enters it: out = decay * in + end, per channel.

    REVERSE: to the gradient that enters from later rows. A segment whose result no other segment
    of its sequence needs is left out, with decay 1 and end 0.
    """
    segment, channel, real = place(C)
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    unneeded = tl.load(begins + segment + (0 if REVERSE else 1)) != 0
    blocks = tl.where(unneeded, 0, tl.cdiv(stop - start, BLOCK_T))
    rate = -LOG2_E * tl.load(c + channel, real, 0.0)  # log2(a) / r
    total = tl.full([BLOCK_C], 1.0, tl.float32)
    end = tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, blocks):
        t = block * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
        t = stop - 1 - t if REVERSE else start + t  # rows in the order of the walk
        mask = (t >= start) & (t < stop) & real[None, :]
        at, at_gate = t * C + channel[None, :], t * (2 * C) + channel[None, :]
        r, _ = sigmoid_pair(tl.load(gates + at_gate, mask, CLOSED).to(tl.float32))
        log2_a = rate[None, :] * r
        if REVERSE:
            a = tl.exp2(tl.maximum(log2_a, FASTEST, propagate_nan=KEEP_NAN))
            x = tl.load(dy + at, mask, 0.0).to(tl.float32)
            if MERGE:
                zt = tl.load(z + at, mask, 0.0).to(tl.float32)
                opened, _ = sigmoid_pair(zt)
                x *= zt * opened
            x *= a
        else:
            i, _ = sigmoid_pair(tl.load(gates + C + at_gate, mask, 0.0).to(tl.float32))
            a, s, _ = decay(log2_a, eps)
            x = s * i * tl.load(u + at, mask, 0.0).to(tl.float32)
        product, inside = tl.associative_scan((a, x), 0, then)
        product, inside = row_of(product, BLOCK_T - 1), row_of(inside, BLOCK_T - 1)
        total, end = then(total, end, product, inside)
    tl.store(decays + segment * C + channel, total, real)
    tl.store(ends + segment * C + channel, end, real)


@triton.jit
def carry_kernel(decays, ends, first, outer, inner, C, REVERSE: tl.constexpr):
    """From what enters each sequence, `outer` (B, C), what enters each segment, `inner` (S, C)."""
    sequence, channel, real = place(C)
    low, high = tl.load(first + sequence), tl.load(first + sequence + 1) - 1
    origin = high if REVERSE else low
    step = -1 if REVERSE else 1
    carry = tl.load(outer + sequence * C + channel, real, 0.0)
    tl.store(inner + origin * C + channel, carry, real)
    for block in range(0, tl.cdiv(high - low, CARRY_T)):
        k = block * CARRY_T + tl.arange(0, CARRY_T)[:, None]
        mask = (k < high - low) & real[None, :]
        at = (origin + step * k) * C + channel[None, :]
        a, x = tl.load(decays + at, mask, 1.0), tl.load(ends + at, mask, 0.0)
        product, inside = tl.associative_scan((a, x), 0, then)
        carries = product * carry[None, :] + inside  # pyright: ignore[reportArgumentType]
        carry = row_of(carries, CARRY_T - 1)
        tl.store(inner + at + step * C, carries, mask)


def launch(kernel, count: int, *arguments, **constants) -> None:
    """Run `kernel` for `count` segments (or sequences); arguments end with the channel count."""
    programs = count * triton.cdiv(arguments[-1], BLOCK_C.value)
    with torch.cuda.device_of(arguments[0]):
        # Triton leaves a b + c in two roundings unless told; told, it is one instruction.
        kernel[(programs,)](*arguments, **constants, num_warps=WARPS, enable_fp_fusion=True)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows_to_cut(n: int, channels: int, sequences: int, device: torch.device) -> int:
    """Rows of a segment, a power of two; 0 where whole sequences fill the device."""
    processors = multiprocessors(device) if device.type == "cuda" else 0
    chunks = triton.cdiv(channels, BLOCK_C.value)
    if sequences * chunks >= PROGRAMS * processors:
        return 0
    wanted = n * chunks // (SEGMENTS * processors)
    rows = max(SHORTEST, 1 << max(wanted - 1, 0).bit_length())
    return rows if n > rows else 0


def cut(cu_seqlens: Tensor, n: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segments of at most `rows` rows: bounds (S+1,), begins (S+1,), first (B+1,).

    Segments first[b] to first[b+1] make up sequence b, at least one; begins marks those that begin
    a sequence. S is the most there can be, which needs no data: empty ones at the end fill it up.
    """
    pieces = ((cu_seqlens.diff() + (rows - 1)) // rows).clamp_min(1)
    first = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))
    segment = torch.arange(n // rows + len(first), device=cu_seqlens.device)
    sequence = torch.searchsorted(first, segment, right=True) - 1
    ahead = segment - first[sequence]
    bounds = (cu_seqlens[sequence] + ahead * rows).clamp_max(n)
    begins = (ahead == 0) | (sequence == len(pieces))
    return bounds, begins.to(torch.int8), first


def enter_segments(u, gates, c, z, bounds, segments, rows, carried, merge, eps, reverse):
    """What enters each segment (segments, C), from what enters each sequence, `carried` (B, C).

    Forward: states, `rows` unused. reverse: gradients, `rows` = dy.
    """
    begins, first = segments
    count, channels = len(bounds) - 1, u.shape[1]
    decays, ends, entering = (carried.new_empty(count, channels) for _ in range(3))
    launch(
        summary_kernel, count, u, gates, c, z, bounds, begins, rows, decays, ends, eps, channels,
        REVERSE=reverse, MERGE=merge,
    )  # fmt: skip
    launch(
        carry_kernel, len(first) - 1, decays, ends, first, carried, entering, channels,
        REVERSE=reverse,
    )  # fmt: skip
    return entering


class FusedBDLRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, gates, c, bounds, segments, h0, z, eps, keep):
        """segments: (begins, first) of `cut`, or None where each sequence is one segment."""
        (n, channels), count = u.shape, len(bounds) - 1
        u, gates, c, h0 = (x.contiguous() for x in (u, gates, c, h0))
        merge = z is not None
        z = z.contiguous() if merge else u
        y = torch.empty_like(u)
        final, entering = h0.new_empty(count, channels), h0
        states = h0.new_empty((n // BLOCK_T.value + count + 1) if keep else 0, channels)
        if segments is not None:
            entering = enter_segments(u, gates, c, z, bounds, segments, y, h0, merge, eps, False)
        launch(
            forward_kernel, count, u, gates, c, z, bounds, entering, y, final, states, eps,
            channels, MERGE=merge, KEEP=keep,
        )  # fmt: skip
        ctx.save_for_backward(u, gates, c, z, bounds, states, *(segments or ()))
        ctx.rest = merge, eps
        return y, final if segments is None else final[segments[1][1:] - 1]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        u, gates, c, z, bounds, states, *segments = ctx.saved_tensors
        merge, eps = ctx.rest
        count, channels = len(bounds) - 1, u.shape[1]
        dy, dfinal = dy.contiguous(), dfinal.contiguous()
        du, dgates = torch.empty_like(u), torch.empty_like(gates)
        dz = torch.empty_like(z) if merge else z
        dc, dh0 = states.new_empty(count, channels), states.new_empty(count, channels)
        if segments:
            dfinal = enter_segments(u, gates, c, z, bounds, segments, dy, dfinal, merge, eps, True)
        launch(
            backward_kernel, count, u, gates, c, z, bounds, states, dy, dfinal, du, dgates, dc,
            dz, dh0, eps, channels, MERGE=merge,
        )  # fmt: skip
        if segments:
            dh0 = dh0[segments[1][:-1]]
        return du, dgates, dc.sum(0), None, None, dh0, dz if merge else None, None, None


def bd_lru(
    u, gates, c, cu_seqlens, h0, z, eps, cu_seqlens_host=None, segment_rows=None
) -> tuple[Tensor, Tensor]:
    """u, z (N, C), gates (N, 2C), c (C,), h0 (B, C), z or None -> y (N, C), final state (B, C).

    u, gates and z float32 or bfloat16, y like u, the rest float32. `cu_seqlens_host`, the same
    numbers on the CPU, spares short sequences a useless cut and the device the making of the
    list. `segment_rows`: None cuts where too few sequences fill the device, 0 never does.
    """
    (n, channels), sequences = u.shape, len(cu_seqlens) - 1
    if n * channels == 0:  # the sums keep the empty output differentiable in all inputs
        y = u * gates.sum() * c.sum()
        return y if z is None else y * z, h0.clone()
    if segment_rows is None:
        segment_rows = rows_to_cut(n, channels, sequences, u.device)
    if cu_seqlens_host is not None and cu_seqlens_host.diff().max() <= segment_rows:
        segment_rows = 0
    bounds, segments = cu_seqlens.contiguous(), None
    if segment_rows:
        source = bounds if cu_seqlens_host is None else cu_seqlens_host
        lists = cut(source, n, segment_rows)
        bounds, *segments = (x.to(u.device, non_blocking=True) for x in lists)
    keep = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (u, gates, c, h0, z)
    )
    return FusedBDLRU.apply(u, gates, c, bounds, segments, h0, z, eps, keep)
