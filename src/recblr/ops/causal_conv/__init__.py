"""Causal depthwise convolution and SiLU (paper, Algorithm 1) on packed sequences."""

import importlib

import torch
from torch import Tensor

from recblr.ops.bd_lru import resolve_backend


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, cu_seqlens: Tensor, state: Tensor | None = None,
    silu: bool = True, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """u_t = silu(bias + sum_k weight[:, k] x_(t-W+1+k)); `silu=False` leaves out the silu.

    x, u (N, C); weight (C, W), whose last tap multiplies the current row; bias (C,); cu_seqlens
    (B+1,) int64. state (B, W-1, C): the rows before each sequence, oldest first (zeros if None);
    final_state (B, W-1, C): the last W-1 inputs, reaching into `state` in a short sequence. All
    of one float dtype. Differentiable once in x, weight, bias and state, from u and final_state.
    `backend` takes the names of `bd_lru`; "serial" runs the reference, as nothing is serial here.
    ValueError for shapes, dtypes and backends that do not fit.
    """
    (_, channels), sequences, width = x.shape, cu_seqlens.numel() - 1, weight.shape[-1]
    expected = {"weight": (weight, (channels, width)), "bias": (bias, (channels,))}
    expected["state"] = (state, (sequences, width - 1, channels))
    for name, (tensor, shape) in expected.items():
        if tensor is not None and (tensor.shape != shape or width < 1):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {x.dtype} as x")
    if cu_seqlens.dtype != torch.int64:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype}, expected torch.int64")
    name = "cpu" if resolve_backend(backend, x.device, x.dtype) == "cpu" else "reference"
    implementation = importlib.import_module(f"{__name__}.{name}").causal_conv
    if state is None:
        state = x.new_zeros(sequences, width - 1, channels)
    return implementation(x, weight, bias, cu_seqlens, state, silu)
