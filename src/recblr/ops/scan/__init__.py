"""The plain linear recurrence h_t = a_t h_(t-1) + u_t (paper, eq. 10) on packed sequences."""

import importlib

import torch
from torch import Tensor

from recblr.ops.backends import CannotRun, triton_obstacle
from recblr.ops.packed import check_cu_seqlens, check_others, check_rows

BACKENDS = ("reference", "triton")


def choose_backend(backend: str, device: torch.device | str) -> str:
    """The one of BACKENDS that runs for `backend` ("auto" included); CannotRun where it cannot."""
    if backend == "auto":
        return "reference" if triton_obstacle(device, automatic=True) else "triton"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose from {', '.join(BACKENDS)}, auto")
    if backend == "triton" and (obstacle := triton_obstacle(device)):
        raise CannotRun(f"backend='triton' cannot run: {obstacle}; reference and auto do")
    return backend


def scan(
    a: Tensor, u: Tensor, cu_seqlens: Tensor, h0: Tensor | None = None, backend: str = "auto",
    cu_seqlens_host: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = a_t h_(t-1) + u_t within each sequence, h_0 = h0 (zeros if None); (h, final_state).

    a, u, h (N, C), h in the dtype a and u promote to; cu_seqlens (B+1,) int64; h0, final_state
    (B, C). The state, and final_state, is float32, or float64 for float64 a or u. Differentiable
    once in a, u and h0, from both outputs.
    cu_seqlens_host: the same on the CPU, checked in place of values on a GPU.
    ValueError for shapes, dtypes, devices and backends that do not fit.
    """
    wide = torch.promote_types(a.dtype, check_rows("u", u))
    check_cu_seqlens(cu_seqlens, u, cu_seqlens_host)
    (n, channels), sequences = u.shape, len(cu_seqlens) - 1
    check_others("u", u, wide, a=(a, (n, channels)), h0=(h0, (sequences, channels)))
    backend = choose_backend(backend, u.device)
    implementation = importlib.import_module(f"{__name__}.{backend}")
    h0 = u.new_zeros(sequences, channels) if h0 is None else h0
    h, final_state = implementation.scan(a, u, cu_seqlens, h0.to(wide))
    return h.to(torch.promote_types(a.dtype, u.dtype)), final_state
