"""Linear layer + cross-entropy without the logit matrix, against torch's F.cross_entropy.

And against its F.linear_cross_entropy, which makes chunks too, where torch has it (2.13).

python benchmarks/bench_cross_entropy.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_bd_lru import judged, scaled
from timing import ROOT, Row, Setting, in_fresh_process, measure, record

WIDTH = 64
CASES = {"ML-1M": (20480, 3416), "Beauty": (16384, 12101)}  # targets, items
KINDS = ["chunked", "F.cross_entropy"]
if hasattr(F, "linear_cross_entropy"):
    KINDS.append("torch.linear_cross_entropy")
FASTER, EXTRA_MB = 1.8, 60


def arguments(n: int, v: int):
    torch.manual_seed(0)
    x = torch.randn(n, WIDTH, requires_grad=True)
    weight = (0.1 * torch.randn(v, WIDTH)).requires_grad_()
    return x, weight, torch.randint(v, (n,))


def step(kind: str, x, weight, targets) -> None:
    from recblr.ops.cross_entropy import linear_cross_entropy
    from recblr.ops.cross_entropy.reference import linear_cross_entropy as plain

    if kind == "torch.linear_cross_entropy":
        options = torch.nn.LinearCrossEntropyOptions()  # without them it makes all logits at once
        loss = F.linear_cross_entropy(x, weight, targets, options=options)
    else:
        loss = (linear_cross_entropy if kind == "chunked" else plain)(x, weight, targets)
    torch.autograd.grad(loss, (x, weight))


def peak(kind: str, n: int, v: int) -> None:
    torch.set_num_threads(1)
    given = arguments(n, v)
    if kind != "nothing":
        step(kind, *given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    options = parser.parse_args()
    setting = Setting.now("torch")._replace(threads=1)
    torch.set_num_threads(1)
    rows = []
    for name, (n, v) in CASES.items():
        case, given = f"{name} {n}x{v}x{WIDTH} fwd+bwd", arguments(n, v)
        spent, extra = {}, {}
        base = in_fresh_process(peak, "nothing", n, v).peak_mb
        for kind in KINDS:
            spent[kind] = measure(partial(step, kind, *given), options.repeats, warmup=1)
            extra[kind] = in_fresh_process(peak, kind, n, v).peak_mb - base
            rows.append(Row("cross_entropy", case, kind, "ms", *scaled(spent[kind])))
            rows.append(Row("cross_entropy", case, kind, "extra_mb", extra[kind]))
        print(f"{case}:")
        for kind in KINDS:
            print(f"    {kind}: {1e3 * spent[kind].median:.0f} ms, {extra[kind]:.0f} MB extra")
        faster = spent["F.cross_entropy"].median / spent["chunked"].median
        print(f"    {judged(faster >= FASTER)} at least {FASTER}x;", end=" ")
        print(f"{judged(extra['chunked'] < EXTRA_MB)} under {EXTRA_MB} MB")
    record(options.out, rows, setting)


if __name__ == "__main__":
    main()
