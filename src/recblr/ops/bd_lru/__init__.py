"""BD-LRU, the behavior-dependent linear recurrent unit (paper, eq. 5-8), on packed sequences."""

import importlib

import torch.nn.functional as F
from torch import Tensor

from recblr.ops.backends import resolve_backend
from recblr.ops.packed import check_cu_seqlens, check_others, check_rows


def bd_lru(
    u: Tensor, gates: Tensor, lambda_: Tensor, cu_seqlens: Tensor, h0: Tensor | None = None,
    z: Tensor | None = None, eps: float = 0.0, backend: str = "auto",
    cu_seqlens_host: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = a_t h_(t-1) + s_t i_t u_t within each sequence; y = h silu(z), or h without z.

    With c = softplus(lambda_): r, i = sigmoid(gates), a = exp(-c r), s = sqrt(1 - a^2 + eps).
    u, z, y (N, C); gates (N, 2C), pre-activations of r then i; lambda_ (C,); cu_seqlens (B+1,)
    int64; h0 (zeros if None) and final_state (B, C): h before the first and after the last row.
    Half precision computes, and returns final_state, in float32; y has the dtype of u.
    cu_seqlens_host: the same on the CPU, checked in place of values on a GPU; without it `parallel`
    waits for the device.
    Differentiable once in u, gates, lambda_, h0 and z. ValueError for shapes, dtypes, devices and
    backends that do not fit.
    """
    dtype = check_rows("u", u)
    check_cu_seqlens(cu_seqlens, u, cu_seqlens_host)
    (n, channels), sequences = u.shape, len(cu_seqlens) - 1
    check_others(
        "u", u, dtype, gates=(gates, (n, 2 * channels)), lambda_=(lambda_, (channels,)),
        h0=(h0, (sequences, channels)), z=(z, (n, channels)),
    )  # fmt: skip
    name = resolve_backend(backend, u.device, dtype)
    implementation = importlib.import_module(f"{__name__}.{name}").bd_lru
    h0 = u.new_zeros(sequences, channels) if h0 is None else h0
    c, h0 = F.softplus(lambda_.to(dtype)), h0.to(dtype)
    host = {"cu_seqlens_host": cu_seqlens_host} if name in ("fused", "parallel") else {}
    if name == "fused":  # reads half precision as it is
        return implementation(u, gates, c, cu_seqlens, h0, z, eps, **host)
    z = None if z is None else z.to(dtype)
    y, final_state = implementation(u.to(dtype), gates.to(dtype), c, cu_seqlens, h0, z, eps, **host)
    return y.to(u.dtype), final_state
