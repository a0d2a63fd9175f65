"""Causal convolution + SiLU on the CPU against nn.Conv1d on a padded batch.

python benchmarks/bench_causal_conv.py
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_bd_lru import CHANNELS, SHAPES, judged, scaled
from timing import ROOT, Row, Setting, measure, record

from recblr.ops.causal_conv import causal_conv

WIDTH, BAR = 4, 6


def packed(x, weight, bias, cu_seqlens, head):
    u, _ = causal_conv(x, weight, bias, cu_seqlens, backend="cpu")
    torch.autograd.grad(u, (x, weight, bias), head)


def padded(x, weight, bias, sequences, head):
    """As nn.Conv1d is used: (B, T, C) -> (B, C, T) and back, zeros on the left."""
    rows = x.unflatten(0, (sequences, -1)).transpose(1, 2)
    u = F.silu(F.conv1d(F.pad(rows, (WIDTH - 1, 0)), weight[:, None], bias, groups=CHANNELS))
    torch.autograd.grad(u.transpose(1, 2).flatten(0, 1), (x, weight, bias), head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "results/speed.csv")
    options = parser.parse_args()
    setting = Setting.now("torch", "numba")._replace(threads=1)
    torch.set_num_threads(1)
    rows = []
    for name, (sequences, length) in SHAPES.items():
        torch.manual_seed(0)
        x = torch.randn(sequences * length, CHANNELS, requires_grad=True)
        weight = torch.randn(CHANNELS, WIDTH, requires_grad=True)
        bias = torch.randn(CHANNELS, requires_grad=True)
        cu_seqlens, head = torch.arange(sequences + 1) * length, torch.randn(len(x), CHANNELS)
        case = f"{name}x{CHANNELS} fwd+bwd"
        ours = measure(partial(packed, x, weight, bias, cu_seqlens, head), options.repeats)
        theirs = measure(partial(padded, x, weight, bias, sequences, head), options.repeats)
        rows.append(Row("causal_conv", case, "cpu", "ms", *scaled(ours)))
        rows.append(Row("causal_conv", case, "nn.Conv1d", "ms", *scaled(theirs)))
        faster = theirs.median / ours.median
        print(f"{case}: {1e3 * ours.median:.2f} ms, nn.Conv1d {faster:.1f}x that  ", end="")
        print(f"{judged(faster >= BAR)} at least {BAR}x")
    record(options.out, rows, setting)


if __name__ == "__main__":
    main()
