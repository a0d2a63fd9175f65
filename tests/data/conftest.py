from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from batches import store_of

from recblr.data.sequences import SequenceStore


@pytest.fixture
def write(tmp_path: Path):
    """write(content, name) -> path of a new file; text is written as UTF-8, newlines as given."""

    def _write(content: str | bytes, name: str = "log.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return _write


@pytest.fixture(scope="session")
def make_store():
    return store_of


@pytest.fixture(scope="session")
def numbered_store():
    """numbered_store(lengths) -> a store whose events are numbered 1..N over all users."""

    def _make(lengths: list[int]) -> SequenceStore:
        starts = np.append(0, np.cumsum(lengths))
        return store_of([list(range(a + 1, b + 1)) for a, b in itertools.pairwise(starts)])

    return _make
