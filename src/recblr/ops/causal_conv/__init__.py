"""Causal depthwise convolution and SiLU (paper, Algorithm 1) on packed sequences."""

import importlib

import torch
from torch import Tensor

from recblr.ops.backends import resolve_backend
from recblr.ops.packed import check_cu_seqlens, check_others, check_rows


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, cu_seqlens: Tensor, state: Tensor | None = None,
    silu: bool = True, backend: str = "auto", cu_seqlens_host: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """u_t = silu(bias + sum_k weight[:, k] x_(t-W+1+k)); `silu=False` leaves out the silu.

    x, u (N, C); weight (C, W), whose last tap multiplies the current row; bias (C,); cu_seqlens
    (B+1,) int64. state (B, W-1, C): the rows before each sequence, oldest first (zeros if None);
    final_state (B, W-1, C): the last W-1 inputs, reaching into `state` in a short sequence.
    cu_seqlens_host: the same on the CPU, checked in place of values on a GPU.
    Half precision x is computed, and final_state returned, in float32; u has the dtype of x.
    Differentiable once in x, weight, bias and state, from u and final_state. `backend` takes the
    names of `bd_lru`: "fused" and "parallel" run one Triton kernel (float64: the reference),
    "serial" runs the reference. ValueError for shapes, dtypes, devices and backends that do not
    fit.
    """
    dtype = check_rows("x", x)
    check_cu_seqlens(cu_seqlens, x, cu_seqlens_host)
    if weight.dim() != 2 or not weight.shape[1]:
        found = f"weight has shape {tuple(weight.shape)}"
        raise ValueError(f"{found}, expected ({x.shape[1]}, W) with W of 1 or more")
    sequences, (channels, width) = len(cu_seqlens) - 1, (x.shape[1], weight.shape[1])
    check_others(
        "x", x, dtype, weight=(weight, (channels, width)), bias=(bias, (channels,)),
        state=(state, (sequences, width - 1, channels)),
    )  # fmt: skip
    name = resolve_backend(backend, x.device, dtype)
    if name in ("fused", "parallel"):
        name = "triton" if dtype == torch.float32 else "reference"
    elif name == "serial":
        name = "reference"
    implementation = importlib.import_module(f"{__name__}.{name}").causal_conv
    if state is None:
        state = x.new_zeros(sequences, width - 1, channels)
    weight, bias, state = weight.to(dtype), bias.to(dtype), state.to(dtype)
    if name == "triton":  # reads half precision as it is
        return implementation(x, weight, bias, cu_seqlens, state, silu)
    u, final_state = implementation(x.to(dtype), weight, bias, cu_seqlens, state, silu)
    return u.to(x.dtype), final_state
