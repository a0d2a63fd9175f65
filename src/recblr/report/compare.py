"""Two runs, or two groups of seeds, compared user by user from their `test_ranks.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from recblr.evaluation.metrics import expected_metrics
from recblr.evaluation.significance import Comparison, compare
from recblr.report.results import Result, result_of, run_folders
from recblr.run_folder import METRICS, RunFolder


@dataclass(frozen=True)
class Group:
    """Finished runs of one setting, a seed each."""

    path: Path
    runs: list[Result]

    @property
    def name(self) -> str:
        one = self.runs[0]
        variant = "" if one.variant == "default" else f"-{one.variant}"
        seeds = ", ".join(str(run.seed) for run in self.runs)
        return f"{one.model}{variant} on {one.dataset} (seed {seeds})"

    def values(self, metric: str) -> tuple[NDArray, NDArray[np.float64]]:
        """Raw user ids (U,), sorted, and the metric of each run and user (S, U)."""
        tables = [ranks(run) for run in self.runs]
        users = tables[0]["user_id"].to_numpy()
        for run, table in zip(self.runs, tables):
            if not np.array_equal(users, table["user_id"].to_numpy()):
                raise ValueError(f"{run.path} evaluated other users than {self.runs[0].path}")
        return users, np.stack([per_user(table, metric) for table in tables])


def group_at(path: Path) -> Group:
    """The finished runs at or below a path, which must differ in their seed alone."""
    runs = [result_of(run) for run in run_folders([path]) if run.finished(test=True)]
    if not runs:
        raise ValueError(f"{path}: no finished run with test metrics")
    for run in runs[1:]:
        if (run.setting, run.protocol) != (runs[0].setting, runs[0].protocol):
            raise ValueError(
                f"{path}: {run.path} and {runs[0].path} differ in more than their seed; name one "
                "run, or a folder with the seeds of one setting"
            )
    return Group(path, sorted(runs, key=lambda run: run.seed))


def compare_groups(a: Group, b: Group, metric: str = "ndcg@10") -> Comparison:
    """A over B; ValueError where they were not evaluated alike."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric}: valid: {', '.join(METRICS)}")
    if a.runs[0].protocol != b.runs[0].protocol:
        raise ValueError(
            f"{a.path} and {b.path} were not evaluated alike (split, val or test, mask_history): "
            f"{a.runs[0].protocol} and {b.runs[0].protocol}"
        )
    users_a, values_a = a.values(metric)
    users_b, values_b = b.values(metric)
    if not np.array_equal(users_a, users_b):
        raise ValueError(f"{a.path} and {b.path} evaluated other users")
    return compare(values_a, values_b)


def ranks(run: Result) -> pd.DataFrame:
    """`test_ranks.parquet`, by user."""
    assert run.path is not None
    return pd.read_parquet(RunFolder(run.path).path / "test_ranks.parquet").sort_values(
        "user_id", ignore_index=True
    )


def per_user(table: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """A metric of each user (U,), from the counts of its rank."""
    higher, equal = (torch.tensor(table[name].to_numpy(np.int64)) for name in ("higher", "equal"))
    return expected_metrics(higher, equal, int(metric.split("@")[1]))[metric].numpy()
