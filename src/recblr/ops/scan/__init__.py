"""The plain linear recurrence h_t = a_t h_(t-1) + u_t (paper, eq. 10) on packed sequences."""

import importlib
import importlib.util

import torch
from torch import Tensor

from recblr.ops.backends import interpreted
from recblr.ops.packed import check_cu_seqlens

BACKENDS = ("reference", "triton")


def resolve_backend(backend: str, device: torch.device | str) -> str:
    """The backend that runs for `backend` ("auto" included); ValueError where it cannot."""
    on_gpu, obstacle = torch.device(device).type == "cuda", None  # why "triton" does not run here
    if importlib.util.find_spec("triton") is None:
        obstacle = "triton is not installed (pip install triton, Linux only)"
    elif interpreted() and on_gpu:
        obstacle = f"TRITON_INTERPRET=1 runs kernels on the CPU, the tensors are on {device}"
    elif not interpreted() and not on_gpu:
        obstacle = f"Triton needs a CUDA device, the tensors are on {device}"
    if backend == "auto":
        return "triton" if on_gpu and not obstacle else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose from {', '.join(BACKENDS)}, auto")
    if backend == "triton" and obstacle:
        raise ValueError(f"backend='triton' cannot run: {obstacle}; reference and auto do")
    return backend


def scan(
    a: Tensor, u: Tensor, cu_seqlens: Tensor, h0: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_(t-1) + u_t within each sequence, h_0 = h0 (zeros if None); (h, final_state).

    a, u, h (N, C), h in the dtype a and u promote to; cu_seqlens (B+1,) int64; h0, final_state
    (B, C). The state, and final_state, is float32, or float64 for float64 a or u. Differentiable
    once in a, u and h0, from both outputs. ValueError for shapes, dtypes, devices and backends.
    """
    if u.dim() != 2:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (N, C)")
    (n, channels), sequences = u.shape, cu_seqlens.numel() - 1
    dtype = torch.promote_types(a.dtype, u.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for name, tensor, shape in (("u", u, (n, channels)), ("a", a, (n, channels)),
                                ("h0", h0, (sequences, channels))):  # fmt: skip
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.is_floating_point() or torch.promote_types(tensor.dtype, wide) != wide:
            raise ValueError(f"{name} is {tensor.dtype}, expected a float not above {wide}")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}")
    check_cu_seqlens(cu_seqlens, u)
    implementation = importlib.import_module(f"{__name__}.{resolve_backend(backend, u.device)}")
    h0 = u.new_zeros(sequences, channels) if h0 is None else h0
    h, final_state = implementation.scan(a, u, cu_seqlens, h0.to(wide))
    return h.to(dtype), final_state
