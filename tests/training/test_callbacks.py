"""The peak of memory that an epoch's row has."""

import sys

import pytest
import torch

from recblr.training.callbacks import peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_peak_memory_forgets_what_was_before_and_sees_what_came_after():
    torch.ones(100_000_000)  # 400 MB
    before = peak_memory_mb(CPU)
    reset_peak_memory(CPU)
    now = peak_memory_mb(CPU)
    assert now < before - 300
    torch.ones(50_000_000)
    assert peak_memory_mb(CPU) == pytest.approx(now + 200, abs=30)
