"""Settings that hold for every test."""

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "recblr", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=False
)
settings.load_profile("recblr")

# Tensors here are small: a second thread saves nothing, and on a busy machine its waiting costs
# 80 times the work (measured). Also the same sums on any machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)
