"""Inputs and gradients of BD-LRU for tests; needs torch alone."""

import torch
import torch.nn.functional as F

from recblr.ops.bd_lru import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("u", "gates", "lambda_", "h0", "z")


def make(lengths, channels, seed=0, shift=0.0, lambda_at=-3.0, merge=True, h0=True):
    """Float64 inputs by name. `shift` moves the recurrence gates, `lambda_at` centres Lambda."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    n = sum(lengths)
    gates = 2 * normal(n, 2 * channels)
    gates[:, :channels] += shift
    return {
        "u": normal(n, channels),
        "gates": gates,
        "lambda_": normal(channels) + lambda_at,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "h0": normal(len(lengths), channels) if h0 else None,
        "z": normal(n, channels) if merge else None,
    }


def evaluate(inputs, dtype, function=reference.bd_lru, heads=(1.0, 1.0), device="cpu", eps=0.0):
    """Outputs and gradients by name, of a random functional of y and the final state."""
    leaves = {
        k: inputs[k].to(device, dtype).detach().requires_grad_()
        for k in NAMES if inputs[k] is not None
    }  # fmt: skip
    u, gates, lambda_, h0, z = (leaves.get(k) for k in NAMES)
    cu_seqlens = inputs["cu_seqlens"].to(device)
    y, final = function(u, gates, F.softplus(lambda_), cu_seqlens, h0, z, eps)
    random = torch.Generator().manual_seed(7)
    loss = sum(
        weight * (out.cpu() * torch.randn(out.shape, generator=random, dtype=torch.float64)).sum()
        for weight, out in zip(heads, (y, final))
    )
    gradients = torch.autograd.grad(loss, leaves.values(), materialize_grads=True)
    results = {"y": y, "final": final} | {f"d{k}": d for k, d in zip(leaves, gradients)}
    return {k: v.detach().cpu() for k, v in results.items()}
