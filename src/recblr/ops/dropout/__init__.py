"""Dropout that keeps no mask on the CPU: the backward computes it again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recblr.ops.backends import HAS_NUMBA


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """x / (1 - p) with probability 1 - p, else 0, element by element; x itself if not training.

    float32 and bfloat16 on the CPU: a hash of a seed and of the element's index (`cpu.py`). The
    seed is one draw from torch's default generator, so `torch.manual_seed` and `fork_rng` fix the
    mask, on any number of threads. Elsewhere, and without numba, `F.dropout`, which draws other
    masks. ValueError unless 0 <= p < 1.
    """
    check(p)
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or not HAS_NUMBA:
        return F.dropout(x, p)
    from recblr.ops.dropout import cpu

    return cpu.dropout(x, p, seed=int(torch.randint(2**63 - 1, ())))


def check(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"dropout p={p}: must be in [0, 1)")


class Dropout(nn.Dropout):
    """`nn.Dropout` through `dropout`."""

    def __init__(self, p: float = 0.5):
        check(p)
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)
