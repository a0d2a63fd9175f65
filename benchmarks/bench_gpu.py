"""The Triton kernels on a GPU against the copy bandwidth, and the paper's Table 5.

python benchmarks/bench_gpu.py

Without a CUDA device it says "not measured", and what is known without one: bytes per element, and
the compiler's report of registers, spills and occupancy for sm_80 and sm_90.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from bench_bd_lru import judged, scaled
from timing import ROOT, Row, Setting, Spread, measure, record
from torch import Tensor

from recblr.data.batch import SequenceBatch
from recblr.models.recblr import RecBLR
from recblr.ops.bd_lru import bd_lru
from recblr.ops.causal_conv import causal_conv
from recblr.ops.packed import power_of_two
from recblr.ops.scan import scan
from recblr.training.objectives import CrossEntropy

DEVICE = "cuda"
SEQUENCES, LENGTH, CHANNELS, ITEMS = 2048, 200, 128, 3416  # ML-1M at the paper's batch
WIDTH = 4
COPIED = 2**28  # float32 values: 1 GB
CALLS = 10  # between two waits, so that the launches are hidden behind the work
# Passes over N x C that the forward and the backward cannot do without. The states that the
# forward of BD-LRU keeps (1/16 of a pass) are measured but not counted.
PASSES = {
    "bd_lru": (5, 9),  # u, r, i, z -> y; u, r, i, z, dy -> du, dr, di, dz
    "causal_conv": (2, 3),  # x -> u; x, du -> dx
    "scan": (3, 5),  # a, u -> h; a, h, dh -> da, du
}
COMPILED = ("test_fused", "test_conv_triton", "test_scan")  # under tests/ops
TABLE_5 = ("serial", "parallel_sp", "parallel_ep", "fused")
GOAL_BANDWIDTH, GOAL_RELEASED = 0.85, 4


class Call(NamedTuple):
    op: str
    backend: str
    forward: Callable[[], Tensor]
    leaves: list[Tensor]


def calls(dtype: torch.dtype) -> Iterator[Call]:
    """The Triton kernels; in float32 also what BD-LRU is compared with."""
    torch.manual_seed(0)
    n = SEQUENCES * LENGTH
    make = partial(torch.randn, device=DEVICE)
    u, z, gates = (make(n, size, dtype=dtype) for size in (CHANNELS, CHANNELS, 2 * CHANNELS))
    a = torch.rand(n, CHANNELS, device=DEVICE, dtype=dtype)
    lambda_, bias, weight = make(CHANNELS) - 3, make(CHANNELS), make(CHANNELS, WIDTH)
    for leaf in (u, z, gates, a, lambda_, bias, weight):
        leaf.requires_grad_()
    host = torch.arange(SEQUENCES + 1) * LENGTH
    cu_seqlens = host.to(DEVICE)

    def run(backend: str) -> Tensor:
        y, _ = bd_lru(u, gates, lambda_, cu_seqlens, z=z, backend=backend, cu_seqlens_host=host)
        return y

    leaves = [u, gates, lambda_, z]
    yield Call("bd_lru", "fused", partial(run, "fused"), leaves)
    if dtype == torch.float32:
        yield Call("bd_lru", "parallel", partial(run, "parallel"), leaves)
        yield Call("bd_lru", "serial", partial(run, "serial"), leaves)
        yield Call("bd_lru", "released", partial(released, u, gates, lambda_, z), leaves)
    conv = partial(causal_conv, u, weight, bias, cu_seqlens, backend="fused")
    yield Call("causal_conv", "fused", lambda: conv()[0], [u, weight, bias])
    yield Call("scan", "triton", lambda: scan(a, u, cu_seqlens, backend="triton")[0], [a, u])


def released(u: Tensor, gates: Tensor, lambda_: Tensor, z: Tensor) -> Tensor:
    """The released way: eager gates, everything padded to a power of two, a scan over that."""
    longest = power_of_two(LENGTH)
    pad = longest - LENGTH

    def padded(x: Tensor) -> Tensor:
        return F.pad(x.unflatten(0, (SEQUENCES, LENGTH)), (0, 0, pad, 0)).flatten(0, 1)

    r, i = torch.sigmoid(padded(gates)).chunk(2, -1)
    a = torch.exp(-F.softplus(lambda_) * r)
    v = torch.sqrt(1 - a**2 + 1e-8) * i * padded(u)
    bounds = torch.arange(SEQUENCES + 1, device=DEVICE) * longest
    h, _ = scan(a, v, bounds, backend="triton")
    h = h.unflatten(0, (SEQUENCES, longest))[:, pad:].flatten(0, 1)
    return h * F.silu(z)


def timed(call: Callable, repeats: int) -> Spread:
    def several() -> None:
        for _ in range(CALLS):
            call()

    return Spread(*scaled(measure(several, repeats, wait=torch.cuda.synchronize), 1 / CALLS))


def peak_mb(call: Callable) -> float:
    """Above what is there before the call."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of a device copy."""
    source = torch.empty(COPIED, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), repeats).median


def bench_kernels(repeats: int) -> list[Row]:
    limit = copy_bandwidth(repeats)
    rows, spent = [Row("copy", "1 GB", "device", "GB/s", limit / 1e9)], {}
    for dtype in (torch.float32, torch.bfloat16):
        case = f"{SEQUENCES}x{LENGTH}x{CHANNELS} {str(dtype).removeprefix('torch.')}"
        for op, backend, forward, leaves in calls(dtype):

            def both(forward=forward, leaves=leaves):
                y = forward()
                torch.autograd.grad(y, leaves, y.detach())

            few = max(repeats // 10, 3) if backend == "serial" else repeats
            fwd, whole = timed(forward, few), timed(both, few)  # with what the backward needs
            spent[op, backend, dtype] = whole.median
            rows.append(Row(op, f"{case} fwd", backend, "ms", *scaled(fwd)))
            rows.append(Row(op, f"{case} fwd+bwd", backend, "ms", *scaled(whole)))
            rows.append(Row(op, f"{case} fwd+bwd", backend, "peak_mb", peak_mb(both)))
            print(f"{op} {backend} {case}: {1e3 * fwd.median:.3f} ms, {1e3 * whole.median:.3f} ms")
            if backend not in ("fused", "triton"):
                continue
            times = fwd.median, whole.median - fwd.median
            for part, passes, seconds in zip(("fwd", "bwd"), PASSES[op], times):
                share = passes * leaves[0].nbytes / seconds / limit
                rows.append(Row(op, f"{case} {part}", backend, "share of copy", share))
                print(f"    {part} at {share:.0%} of the copy bandwidth", end="  ")
                print(f"{judged(share >= GOAL_BANDWIDTH)} at least {GOAL_BANDWIDTH:.0%}")
    old, new = (spent["bd_lru", b, torch.float32] for b in ("released", "fused"))
    print(f"bd_lru fused is {old / new:.1f}x as fast as the released way", end="  ")
    print(f"{judged(old / new >= GOAL_RELEASED)} at least {GOAL_RELEASED}x")
    return rows


def bench_table_5(repeats: int) -> list[Row]:
    """RecBLR by scan: forward and backward with a target a sequence, and inference alone."""
    torch.manual_seed(0)
    host = torch.arange(SEQUENCES + 1) * LENGTH
    items = torch.randint(1, ITEMS + 1, (SEQUENCES * LENGTH,))
    targets, users = torch.randint(1, ITEMS + 1, (SEQUENCES,)), torch.arange(SEQUENCES)
    batch = SequenceBatch(items, host, targets, users, host).to(DEVICE)
    rows, case = [], f"{SEQUENCES}x{LENGTH} RecBLR 32-true"
    for name in TABLE_5:
        torch.manual_seed(0)
        model = RecBLR(ITEMS, scan=name).to(DEVICE)

        def train(model=model):
            torch.autograd.grad(CrossEntropy()(model, batch), list(model.parameters()))

        @torch.no_grad()
        def infer(model=model):
            model.represent(batch)

        few = max(repeats // 10, 3) if name == "serial" else repeats
        for part, call, mode in (("fwd+bwd", train, True), ("inference", infer, False)):
            model.train(mode)
            spread, peak = timed(call, few), peak_mb(call)
            rows.append(Row("table 5", f"{case} {part}", name, "ms", *scaled(spread)))
            rows.append(Row("table 5", f"{case} {part}", name, "peak_mb", peak))
            print(f"table 5 {name} {part}: {1e3 * spread.median:.3f} ms, {peak:.0f} MB")
    return rows


def without_a_device() -> None:
    megabytes = 4 * SEQUENCES * LENGTH * CHANNELS / 1e6
    print("not measured: no CUDA device here")
    print(f"bytes of {SEQUENCES}x{LENGTH}x{CHANNELS} in float32, forward and backward:")
    for op, (forward, backward) in PASSES.items():
        print(f"    {op:<12} {forward * megabytes:.0f} MB, {backward * megabytes:.0f} MB")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    for module in COMPILED:
        print(f"compiled for GPUs that are not here, {module.removeprefix('test_')}:", flush=True)
        command = [sys.executable, str(ROOT / "tests/ops/aot.py"), f"{module}:kernels"]
        subprocess.run(command, check=False, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        return without_a_device()
    setting = Setting.now("torch", "triton", device=torch.cuda.get_device_name())
    record(options.out, bench_kernels(options.repeats) + bench_table_5(options.repeats), setting)


if __name__ == "__main__":
    main()
