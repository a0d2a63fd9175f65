"""The linear recurrent unit: a complex recurrence of constant decay, on packed sequences."""

import importlib
from typing import Literal, get_args

import torch
from torch import Tensor

from recblr.ops.backends import CannotRun, obstacle
from recblr.ops.packed import check_cu_seqlens, check_others, check_rows

Scan = Literal["auto", "reference", "doubling", "cpu"]


def resolve(scan: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The implementation that runs for a `scan`; CannotRun where it cannot.

    "auto" is `cpu` in float32 on the CPU where numba is installed, else `doubling`.
    """
    if scan not in get_args(Scan):
        raise ValueError(
            f"scan={scan!r}: a complex recurrence has {', '.join(get_args(Scan)[1:])}, auto"
        )
    why_not = obstacle("cpu", device, dtype)
    if scan == "cpu" and why_not:
        raise CannotRun(f"scan=cpu cannot run: {why_not}; reference, doubling, auto do")
    return scan if scan != "auto" else "doubling" if why_not else "cpu"


def lru(
    u: Tensor, lambda_: Tensor, cu_seqlens: Tensor, h0: Tensor | None = None,
    backend: Scan = "auto", cu_seqlens_host: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = lambda h_(t-1) + u_t within each sequence, with one complex lambda per channel.

    Complex rows are two real halves, [real | imaginary]: one real product makes u, and one takes h.
    u, h (N, 2S); lambda_ (2, S), real part, then imaginary; cu_seqlens (B+1,) int64; h0 (zeros if
    None) and final_state (B, 2S): h before the first and after the last row.
    Half precision computes, and returns final_state, in float32; h has the dtype of u.
    cu_seqlens_host: the same on the CPU, checked in place of values on a GPU; without it `doubling`
    waits for the device.
    Differentiable once in u, lambda_ and h0, from both outputs. backend: see `resolve`. ValueError
    for shapes, dtypes, devices and backends that do not fit.
    """
    if u.dim() != 2 or u.shape[1] % 2:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (N, 2S)")
    dtype = check_rows("u", u)
    check_cu_seqlens(cu_seqlens, u, cu_seqlens_host)
    width, sequences = u.shape[1], len(cu_seqlens) - 1
    check_others("u", u, dtype, lambda_=(lambda_, (2, width // 2)), h0=(h0, (sequences, width)))
    name = resolve(backend, u.device, dtype)
    implementation = importlib.import_module(f"{__name__}.{name}").lru
    h0 = u.new_zeros(sequences, width) if h0 is None else h0
    host = {"cu_seqlens_host": cu_seqlens_host} if name == "doubling" else {}
    h, final_state = implementation(
        u.to(dtype), lambda_.to(dtype), cu_seqlens, h0.to(dtype), **host
    )
    return h.to(u.dtype), final_state
