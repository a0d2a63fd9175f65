"""Where the target of each user came: what a test of difference needs of a run.

Of a run folder that is `test_ranks.parquet`. `results/ranks` keeps it in a few KB, so that seeds
trained on other days, whose folders are gone, can still be compared user by user: the users are in
the order of their raw ids, which are left out, and ranks too low to count are one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recblr.evaluation.metrics import expected_metrics
from recblr.run_folder import METRICS

LAST = max(int(metric.split("@")[1]) for metric in METRICS)  # no metric sees a rank below


@dataclass(frozen=True)
class UserRanks:
    """higher, equal (U,) int64: items above, and others beside, each user's target.

    users: sha256 of the raw user ids, in whose order they are.
    """

    users: str
    higher: NDArray[np.int64]
    equal: NDArray[np.int64]

    def metric(self, name: str) -> NDArray[np.float64]:
        """(U,): `ndcg@10` or another of METRICS."""
        higher, equal = torch.from_numpy(self.higher), torch.from_numpy(self.equal)
        return expected_metrics(higher, equal, int(name.split("@")[1]))[name].numpy()


def read_ranks(file: Path) -> UserRanks:
    """Of a run folder, or what `keep_ranks` wrote."""
    table = pq.read_table(file)
    if "user_id" in table.column_names:
        table = table.sort_by("user_id")
        users = hashlib.sha256("\0".join(table["user_id"].to_pylist()).encode()).hexdigest()
    else:
        users = table.schema.metadata[b"users"].decode()
    higher, equal = (table[name].to_numpy().astype(np.int64) for name in ("higher", "equal"))
    return UserRanks(users, higher, equal)


def keep_ranks(ranks: UserRanks, file: Path) -> None:
    """Write what every metric can be computed from, exactly."""
    counts = ranks.higher < LAST
    columns = {
        "higher": np.where(counts, ranks.higher, LAST).astype(np.uint8),
        "equal": np.where(counts, ranks.equal, 0).astype(np.int32),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    table = pa.table(columns).replace_schema_metadata({"users": ranks.users})
    pq.write_table(table, partial, compression="zstd")
    partial.replace(file)
