"""A process that trains keeps the memory of large tensors."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from recblr.training.cli import one_line_errors
def fault_count():
    for _ in range(5):
        torch.empty(1 << 24).fill_(1)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with one_line_errors():
    print(-fault_count() + fault_count())
"""


def faults() -> int:
    run = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc unmaps what is freed")
def test_a_large_tensor_gets_the_pages_of_the_last(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    kept = faults()
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")  # the user's own setting: ours is left out
    assert 10 * kept < faults()
