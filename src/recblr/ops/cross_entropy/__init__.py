"""Mean cross-entropy of a linear layer over all items, without the (N, V) matrix of logits."""

import torch
from torch import Tensor

from recblr.ops.cross_entropy.chunked import ChunkedLinearCrossEntropy, rows_at_once


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    chunk_rows: int | None = None,
    shifted: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """mean_n [log sum_v exp(x_n . weight_v + bias_v) - (x_n . weight + bias)_(targets_n)].

    x (N, D), weight (V, D), bias (V,) or None, of one float dtype but float16; targets (N,) int64
    in 0..V-1, every row counts. shifted: rows in 0..N-1 and columns (C,) int64, by row, each pair
    once, and what is added to their logits (). Returns a scalar, 0 for N = 0. Never more than
    `chunk_rows` rows of logits exist (None: what the cache holds, or 2^26 logits on a GPU): the
    gradients are made with them, in the forward. Differentiable once. Under autocast the products
    run in its dtype. ValueError for shapes, dtypes, devices and rows of `shifted`; targets and
    columns outside 0..V-1 raise IndexError or RuntimeError from torch.

    `F.linear_cross_entropy` of torch 2.13 and later makes chunks too, but is not used: forward and
    backward of 4096 x 12,101 x 64 take it 459 ms, this 314 (medians, one thread, float32, Xeon).
    `benchmarks/bench_cross_entropy.py` compares them, in memory too.
    """
    if x.dim() != 2 or weight.dim() != 2 or not len(weight):
        shapes = f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes}, expected (N, D) and (V, D) with V of 1 or more")
    (n, width), items = x.shape, len(weight)
    row, column, by = shifted or (None, None, None)
    expected = {"weight": (items, width), "targets": (n,), "bias": (items,)}
    given = {"weight": weight, "targets": targets, "bias": bias}
    if row is not None:
        expected |= {"shifted[0]": (len(row),), "shifted[1]": (len(row),), "shifted[2]": ()}
        given |= {"shifted[0]": row, "shifted[1]": column, "shifted[2]": by}
    for name, shape in expected.items():
        tensor = given[name]
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    for name in ("targets", "shifted[0]", "shifted[1]"):
        if name in given and given[name].dtype != torch.int64:
            raise ValueError(f"{name} is {given[name].dtype}, expected torch.int64")
    if row is not None and len(row):
        if (row.diff() < 0).any():
            raise ValueError("shifted[0] falls: rows must come in order")
        if row[0] < 0 or row[-1] >= n:
            raise ValueError(f"shifted[0] has rows {row[0]}..{row[-1]}, expected 0..{n - 1}")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        by = None if by is None else by.to(dtype)
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16):  # 1/(N V) is 0 in float16
        raise ValueError(f"x is {x.dtype}, expected torch.float64, float32 or bfloat16")
    for name, tensor in (("weight", weight), ("bias", bias), ("shifted[2]", by)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {x.dtype} as x")
    if n == 0:
        zeros = (0 * tensor.sum() for tensor in (weight, bias, by) if tensor is not None)
        return sum(zeros, x.sum())
    if chunk_rows is None:
        chunk_rows = rows_at_once(items, x.device)
    differentiate = torch.is_grad_enabled()
    return ChunkedLinearCrossEntropy.apply(
        x, weight, targets, bias, by, row, column, chunk_rows, differentiate
    )
