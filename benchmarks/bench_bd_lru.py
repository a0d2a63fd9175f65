"""BD-LRU on the CPU against a loop over time and the memory limit; cost against length.

python benchmarks/bench_bd_lru.py [--figure results/figures/bd_lru_length.png]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from timing import ROOT, Row, Setting, Spread, measure, record

from recblr.ops.bd_lru import bd_lru

CHANNELS = 128
SHAPES = {"128x160": (128, 160), "2048x8": (2048, 8)}  # sequences x rows: ML-1M's and Beauty's
PASSES = 12  # over N x C float32: forward u, r, i -> y; backward u, r, i, dy -> du, dr, di, h
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
BARS = {"speed-up": 8, "over memory limit": 5, "1M over 10k": 1.3}


def inputs(sequences: int, length: int, grad: bool = True) -> dict:
    torch.manual_seed(0)
    n = sequences * length
    leaves = {
        "u": torch.randn(n, CHANNELS),
        "gates": torch.randn(n, 2 * CHANNELS),
        "lambda_": torch.randn(CHANNELS) - 3,
    }
    for leaf in leaves.values():
        leaf.requires_grad_(grad)
    return leaves | {"cu_seqlens": torch.arange(sequences + 1) * length}


def step(arguments: dict, head: torch.Tensor, backend: str) -> None:
    y, _ = bd_lru(**arguments, backend=backend)
    leaves = [arguments[name] for name in ("u", "gates", "lambda_")]
    torch.autograd.grad(y, leaves, head)


def memory_limit(n: int, repeats: int) -> Spread:
    """Seconds to copy as many bytes as PASSES passes read and write."""
    source = [torch.randn(n, CHANNELS) for _ in range(PASSES // 2)]
    target = [torch.empty_like(s) for s in source]
    return measure(lambda: [t.copy_(s) for t, s in zip(target, source)], repeats)


def bench_shapes(repeats: int) -> list[Row]:
    rows = []
    for name, (sequences, length) in SHAPES.items():
        case = f"{name}x{CHANNELS} fwd+bwd"
        arguments = inputs(sequences, length)
        head = torch.randn(sequences * length, CHANNELS)
        limit = memory_limit(sequences * length, repeats)
        rows.append(Row("bd_lru", case, "memcpy", "ms", *scaled(limit)))
        spent = {}
        for backend in ("cpu", "serial"):
            spent[backend] = measure(partial(step, arguments, head, backend), repeats)
            rows.append(Row("bd_lru", case, backend, "ms", *scaled(spent[backend])))
        faster = spent["serial"].median / spent["cpu"].median
        over = spent["cpu"].median / limit.median
        print(f"{case}: cpu {1e3 * spent['cpu'].median:.2f} ms, loop over t {faster:.1f}x that,")
        print(f"    memory limit {1e3 * limit.median:.2f} ms: the kernels take {over:.1f}x it")
        print(f"    {judged(faster >= BARS['speed-up'])} at least {BARS['speed-up']}x;", end=" ")
        most = BARS["over memory limit"]
        print(f"{judged(over <= most)} at most {most}x the memory limit")
    return rows


def bench_lengths(repeats: int) -> tuple[list[Row], dict]:
    """Nanoseconds per row, in one sequence and in sequences of 8 rows, and of the memory limit."""
    rows, curves, most = [], {}, BARS["1M over 10k"]
    for kind in ("one sequence", "sequences of 8"):
        curve = curves[kind] = []
        for n in LENGTHS:
            shape = (1, n) if kind == "one sequence" else (n // 8, 8)
            arguments, head = inputs(*shape), torch.randn(n, CHANNELS)
            spent = measure(partial(step, arguments, head, "cpu"), max(repeats * 10_000 // n, 3))
            per_row = Spread(*scaled(spent, 1e9 / n))
            rows.append(Row("bd_lru", f"{n} rows, {kind}", "cpu", "ns/row", *per_row))
            curve.append(per_row.median)
            print(f"{n:>9,} rows in {kind}: {per_row.median:.0f} ns per row")
        ratio = curve[-1] / curve[1]
        print(f"    1 M over 10 k: {ratio:.2f}x  {judged(ratio <= most)} at most {most}x")
    curve = curves["memory limit"] = []
    for n in LENGTHS:
        per_row = Spread(*scaled(memory_limit(n, 3), 1e9 / n))
        rows.append(Row("bd_lru", f"{n} rows", "memcpy", "ns/row", *per_row))
        curve.append(per_row.median)
    return rows, curves


def draw(curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, values in curves.items():
        style = {"linestyle": "--", "color": "gray"} if name == "memory limit" else {"marker": "o"}
        axes.plot(LENGTHS, values, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="ns per row, forward + backward")
    axes.set_title(f"BD-LRU, C = {CHANNELS}, {torch.get_num_threads()} thread(s)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"drawn: {path}")


def scaled(spread: Spread, factor: float = 1e3) -> tuple:
    return tuple(None if value is None else factor * value for value in spread)


def judged(holds: bool) -> str:
    return "PASS" if holds else "FAIL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "results/figures/bd_lru_length.png")
    options = parser.parse_args()
    setting = Setting.now("torch", "numba")._replace(threads=1)
    torch.set_num_threads(1)
    rows = bench_shapes(options.repeats)
    more, curves = bench_lengths(options.repeats)
    record(options.out, rows + more, setting)
    draw(curves, options.figure)


if __name__ == "__main__":
    main()
