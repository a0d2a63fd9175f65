"""How numba kernels run: their threads, and groups of whole sequences to share among them."""

import threading

import numba
import numpy as np
import torch
from numba.core import config

GROUPS = 16  # not the number of threads: sums over groups are the same bit for bit on any

# numba's fallback threading layer aborts the process if two threads enter it at once.
LOCK = threading.Lock()


def call(kernel, *arguments) -> None:
    """Run a parallel kernel on as many threads as torch uses; tensors go in as arrays."""
    arrays = [a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in arguments]
    with LOCK:
        most: int = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, most))
        kernel(*arrays)
        if torch.get_num_threads() != threads:  # numba's start resets OpenMP's, which torch shares
            torch.set_num_threads(threads)


def row_groups(cu_seqlens: torch.Tensor) -> np.ndarray:
    """Bounds (G+1,) of at most GROUPS runs of whole sequences with about equal rows.

    The last group ends with the last sequence, so trailing empty sequences belong to it.
    """
    cu = cu_seqlens.numpy()
    sequences = cu.size - 1
    count = max(min(GROUPS, sequences), 1)
    inner = np.searchsorted(cu, np.linspace(0, cu[-1], count + 1)[1:-1])
    return np.concatenate(([0], np.minimum(inner, sequences), [sequences]))
