"""BD-LRU on a GPU: the fused kernel against the copy bandwidth, and the paper's Table 5.

python benchmarks/bench_gpu.py

Without a CUDA device it says "not measured", and what is known without one: bytes per element, and
the compiler's report of registers, spills and occupancy for sm_80 and sm_90.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import ROOT, Row, Setting, Spread, measure, record

from recblr.ops.bd_lru import bd_lru

SEQUENCES, LENGTH, CHANNELS = 2048, 200, 128  # ML-1M at the paper's batch
FORWARD, BACKWARD = 20, 36  # bytes per row and channel in float32: u, r, i, z -> y; and 9 passes
GOAL_BANDWIDTH, GOAL_RELEASED = 0.85, 4


def inputs(dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    n = SEQUENCES * LENGTH
    make = partial(torch.randn, device="cuda", dtype=dtype)
    leaves = {"u": make(n, CHANNELS), "gates": make(n, 2 * CHANNELS), "z": make(n, CHANNELS)}
    leaves["lambda_"] = torch.randn(CHANNELS, device="cuda") - 3
    for leaf in leaves.values():
        leaf.requires_grad_()
    host = torch.arange(SEQUENCES + 1) * LENGTH
    return leaves | {"cu_seqlens": host.cuda(), "cu_seqlens_host": host}


def released(u, gates, z, lambda_, cu_seqlens, cu_seqlens_host):
    """The released way: eager gates, everything padded to a power of two, a scan over that."""
    from recblr.ops.scan import scan

    longest = 1 << (LENGTH - 1).bit_length()
    pad = longest - LENGTH

    def padded(x):
        return F.pad(x.unflatten(0, (SEQUENCES, LENGTH)), (0, 0, pad, 0)).flatten(0, 1)

    r, i = torch.sigmoid(padded(gates)).chunk(2, -1)
    a = torch.exp(-F.softplus(lambda_) * r)
    v = torch.sqrt(1 - a**2 + 1e-8) * i * padded(u)
    bounds = torch.arange(SEQUENCES + 1, device="cuda") * longest
    h, _ = scan(a, v, bounds)
    h = h.unflatten(0, (SEQUENCES, longest))[:, pad:].flatten(0, 1)
    return h * F.silu(z), None


def timed(call, repeats: int) -> Spread:
    return measure(call, repeats, warmup=5, wait=torch.cuda.synchronize)


def forward_and_backward(function, given: dict, repeats: int) -> tuple[Spread, Spread, float]:
    """Seconds of the forward and of both; peak MB above the inputs."""
    leaves = [given[name] for name in ("u", "gates", "z", "lambda_")]
    head = torch.randn_like(given["u"])

    def both():
        y, _ = function(**given)
        torch.autograd.grad(y, leaves, head)

    with torch.no_grad():
        forward = timed(lambda: function(**given), repeats)
    whole = timed(both, repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    return forward, whole, (torch.cuda.max_memory_allocated() - before) / 1e6


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of a device copy of 1 GB."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), repeats).median


def bench(repeats: int) -> list[Row]:
    rows, spent = [], {}
    limit, n = copy_bandwidth(repeats), SEQUENCES * LENGTH * CHANNELS
    case = f"{SEQUENCES}x{LENGTH}x{CHANNELS}"
    rows.append(Row("copy", "1 GB", "device", "GB/s", limit / 1e9))
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        names = (
            ("fused", "parallel", "serial", "released") if dtype == torch.float32 else ("fused",)
        )
        for name in names:
            function = released if name == "released" else partial(bd_lru, backend=name)
            few = max(repeats // 10, 3) if name == "serial" else repeats
            forward, whole, peak = forward_and_backward(function, inputs(dtype), few)
            spent[name, kind] = whole.median
            label = f"{case} {kind}"
            for part, spread in (("fwd", forward), ("fwd+bwd", whole)):
                values = (None if s is None else 1e3 * s for s in spread)
                rows.append(Row("bd_lru", f"{label} {part}", name, "ms", *values))
            rows.append(Row("bd_lru", f"{label} fwd+bwd", name, "peak_mb", peak))
            print(f"{name:<9} {label}: {1e3 * forward.median:.3f} ms, {1e3 * whole.median:.3f} ms")
            if name == "fused":
                width = torch.finfo(dtype).bits / 32
                shares = [
                    size * width * n / seconds / limit
                    for size, seconds in (
                        (FORWARD, forward.median),
                        (BACKWARD, whole.median - forward.median),
                    )
                ]
                print(
                    f"    of the copy bandwidth: forward {shares[0]:.0%}, backward {shares[1]:.0%}"
                )
                for part, share in zip(("fwd", "bwd"), shares):
                    rows.append(Row("bd_lru", f"{label} {part}", name, "share of copy", share))
    ratio = spent["released", "float32"] / spent["fused", "float32"]
    print(f"fused is {ratio:.1f}x as fast as the released way (goal {GOAL_RELEASED}x)")
    return rows


def without_a_device() -> None:
    n = SEQUENCES * LENGTH * CHANNELS
    print("not measured: no CUDA device here")
    print(f"bytes of {SEQUENCES}x{LENGTH}x{CHANNELS} in float32, fused: forward", end=" ")
    print(f"{FORWARD * n / 1e9:.2f} GB, backward {BACKWARD * n / 1e9:.2f} GB")
    command = [sys.executable, str(ROOT / "tests/ops/aot.py"), "test_fused:kernels"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    print("compiled for GPUs that are not here:", flush=True)
    subprocess.run(command, check=False, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        return without_a_device()
    setting = Setting.now("torch", "triton", device=torch.cuda.get_device_name())
    record(options.out, bench(options.repeats), setting)


if __name__ == "__main__":
    main()
