"""BD-LRU, the behavior-dependent linear recurrent unit (paper, eq. 5-8), on packed sequences."""

import importlib.util
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Scan = Literal["auto", "reference", "serial", "cpu"]
BACKENDS = get_args(Scan)[1:]


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend that runs for `backend` ("auto" included); ValueError where it cannot."""
    obstacle = None  # why "cpu" does not run here
    if importlib.util.find_spec("numba") is None:
        obstacle = "numba is not installed"
    elif torch.device(device).type != "cpu" or dtype != torch.float32:
        obstacle = f"it needs float32 on the CPU, got {dtype} on {device}"
    if backend == "auto":
        return "serial" if obstacle else "cpu"
    if backend not in BACKENDS:
        raise ValueError(f"scan={backend!r} is unknown; choose from {', '.join(BACKENDS)}, auto")
    if backend == "cpu" and obstacle:
        raise ValueError(f"scan=cpu cannot run: {obstacle}; reference, serial and auto do")
    return backend


def bd_lru(
    u: Tensor, gates: Tensor, lambda_: Tensor, cu_seqlens: Tensor, h0: Tensor | None = None,
    z: Tensor | None = None, eps: float = 0.0, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = a_t h_(t-1) + s_t i_t u_t within each sequence; y = h silu(z), or h without z.

    With c = softplus(lambda_): r, i = sigmoid(gates), a = exp(-c r), s = sqrt(1 - a^2 + eps).
    u, z, y (N, C); gates (N, 2C), pre-activations of r then i; lambda_ (C,); cu_seqlens (B+1,)
    int64; h0 (zeros if None) and final_state (B, C): h before the first and after the last row.
    Half precision computes, and returns final_state, in float32; y has the dtype of u.
    Differentiable once in u, gates, lambda_, h0 and z. ValueError for shapes, dtypes, backend.
    """
    (n, channels), sequences = u.shape, cu_seqlens.numel() - 1
    dtype = torch.float32 if u.dtype in (torch.float16, torch.bfloat16) else u.dtype
    expected = {"gates": (gates, (n, 2 * channels)), "lambda_": (lambda_, (channels,)),
                "h0": (h0, (sequences, channels)), "z": (z, (n, channels))}  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor is not None and torch.promote_types(tensor.dtype, dtype) != dtype:
            raise ValueError(f"{name} is {tensor.dtype}, too wide for u of {u.dtype}")
    if cu_seqlens.dtype != torch.int64:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype}, expected torch.int64")
    name = resolve_backend(backend, u.device, dtype)
    implementation = importlib.import_module(f"{__name__}.{name}").bd_lru
    h0 = u.new_zeros(sequences, channels) if h0 is None else h0
    wide, gates, lambda_, h0 = (t.to(dtype) for t in (u, gates, lambda_, h0))
    z = None if z is None else z.to(dtype)
    y, final_state = implementation(wide, gates, F.softplus(lambda_), cu_seqlens, h0, z, eps)
    return y.to(u.dtype), final_state
