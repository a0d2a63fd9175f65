"""Settings for the tests of numerical operations."""

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "ops", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=False
)
settings.load_profile("ops")


@pytest.fixture(scope="module", autouse=True)
def poisoned_empty():
    """Uninitialised memory holds NaN, so that reading it shows."""

    def poison(function):
        def filled(*args, **kwargs):
            made = function(*args, **kwargs)
            if isinstance(made, np.ndarray):
                made.fill(np.nan if made.dtype.kind == "f" else 77)
                return made
            return made.fill_(torch.nan if made.is_floating_point() else 77)

        return filled

    with pytest.MonkeyPatch.context() as patch:
        for owner in (torch, np):
            for name in ("empty", "empty_like"):
                patch.setattr(owner, name, poison(getattr(owner, name)))
        patch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
        yield
