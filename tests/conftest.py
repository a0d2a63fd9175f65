"""Settings that hold for every test."""

import os

import pytest
import torch

try:
    from hypothesis import settings
except ImportError:  # on a GPU machine the kernel tests need torch, triton and pytest alone
    settings = None

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

if settings is not None:
    settings.register_profile(
        "recblr", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=False
    )
    settings.load_profile("recblr")


@pytest.fixture(autouse=True)
def alone():
    """What a test draws, and the threads it has, do not depend on the tests before it.

    One thread: tensors here are small, and on a busy machine threads that wait for each other cost
    30 times the work (measured).
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
