"""Uninitialised memory holds NaN in these tests, so that reading it shows."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def poisoned_empty():
    def poison(function):
        def filled(*args, **kwargs):
            made = function(*args, **kwargs)
            return made.fill_(torch.nan if made.is_floating_point() else 77)

        return filled

    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            patch.setattr(torch, name, poison(getattr(torch, name)))
        patch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
        yield
