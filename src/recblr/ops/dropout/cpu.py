"""Dropout for the CPU with numba: the mask is a hash of (seed, index), computed where it is used.

Element j of block b is kept where mix(j, keys(seed, b)) >= p 2^32, a comparison of 32-bit
integers: p is rounded to a multiple of 2^-32. `mix` is the lowbias32 permutation of 32-bit
integers (https://nullprogram.com/blog/2018/07/31/), two multiplications between three
xor-shifts, with one key before the first and another before the second; it vectorises. The keys
of a block come from splitmix64, so the 64 bits of the seed reach every block and blocks of two
seeds share no sequence.

The backward hashes again: nothing is kept but p and the seed, and the bytes are those of a copy.
Blocks, not threads, decide the mask: it is the same on any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from recblr.ops.threads import call

BLOCK = 1 << 14  # elements per task: 64 KB of float32; the keys cost nothing

u32, u64 = np.uint32, np.uint64
GOLDEN = u64(0x9E3779B97F4A7C15)
SPLIT_1, SPLIT_2 = u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB)
MIX_1, MIX_2 = u32(0x7FEB352D), u32(0x846CA68B)
S15, S16 = u32(15), u32(16)
S27, S30, S31, S32 = u64(27), u64(30), u64(31), u64(32)
JUST_UNDER_HALF, ONE = u32(0x7FFF), u32(1)  # of a bfloat16's last place, and its bit
ZERO = np.float32(0)


@njit(inline="always")
def keys(seed, block):
    """Two 32-bit keys, the halves of splitmix64's output number `block`."""
    z = seed + (u64(block) + u64(1)) * GOLDEN
    z = (z ^ (z >> S30)) * SPLIT_1
    z = (z ^ (z >> S27)) * SPLIT_2
    z = z ^ (z >> S31)
    return u32(z), u32(z >> S32)


@njit(inline="always")
def mix(j, first, second):
    h = u32(j) ^ first
    h = u32((h ^ (h >> S16)) * MIX_1)
    h = u32((h ^ (h >> S15) ^ second) * MIX_2)
    return u32(h ^ (h >> S16))


@njit
def drop_float32(x, first, second, threshold, scale, out):
    for j in range(x.size):
        out[j] = x[j] * scale if mix(j, first, second) >= threshold else ZERO


@njit
def drop_bfloat16(x, first, second, threshold, scale, out):
    """x and out are bfloat16 seen as int16: the upper half of a float32; rounds to even."""
    for j in range(x.size):
        bits = np.float32(u32(u32(x[j]) << S16).view(np.float32) * scale).view(u32)
        rounded = u32(bits + JUST_UNDER_HALF + ((bits >> S16) & ONE)) >> S16
        out[j] = np.int16(rounded) if mix(j, first, second) >= threshold else np.int16(0)


@njit(parallel=True, cache=True)
def forward_float32(x, seed, threshold, scale, out):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        here = slice(block * BLOCK, min((block + 1) * BLOCK, x.size))
        first, second = keys(seed, block)
        drop_float32(x[here], first, second, threshold, scale, out[here])


@njit(parallel=True, cache=True)
def forward_bfloat16(x, seed, threshold, scale, out):
    for block in prange((x.size + BLOCK - 1) // BLOCK):
        here = slice(block * BLOCK, min((block + 1) * BLOCK, x.size))
        first, second = keys(seed, block)
        drop_bfloat16(x[here], first, second, threshold, scale, out[here])


class HashDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.rest = p, seed
        x = x.contiguous()
        out = torch.empty_like(x)
        threshold = u32(min(round(p * 2**32), 2**32 - 1))
        half = x.dtype == torch.bfloat16
        flat = [t.view(-1).view(torch.int16) if half else t.view(-1) for t in (x, out)]
        kernel = forward_bfloat16 if half else forward_float32
        call(kernel, flat[0], u64(seed), threshold, np.float32(1 / (1 - p)), flat[1])
        return out

    @staticmethod
    def backward(ctx, dy):
        return HashDropout.apply(dy, *ctx.rest), None, None


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """x float32 or bfloat16 on the CPU, 0 <= p < 1, 0 <= seed < 2^64."""
    return HashDropout.apply(x, p, seed)
