"""The peak of memory that an epoch's row has."""

import subprocess
import sys

import pytest

PEAKS = """
import torch
from recblr.training.callbacks import peak_memory_mb, reset_peak_memory
cpu = torch.device("cpu")
torch.ones(100_000_000)  # 400 MB
print(peak_memory_mb(cpu))
reset_peak_memory(cpu)
print(peak_memory_mb(cpu))
torch.ones(50_000_000)
print(peak_memory_mb(cpu))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_peak_memory_forgets_what_was_before_and_sees_what_came_after():
    """In a process of its own: what other tests have run may keep what is freed."""
    printed = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, check=True).stdout
    before, now, after = map(float, printed.split())
    assert now < before - 300
    assert after == pytest.approx(now + 200, abs=30)
