"""Two runs, or two groups of seeds, compared user by user from their ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recblr.evaluation.significance import Comparison, compare
from recblr.report.ranks import read_ranks
from recblr.report.results import Result, changed_since, result_of, run_folders
from recblr.run_folder import METRICS


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
        setting = " ".join(filter(None, [f"{one.model}{variant} ({one.recipe})", one.overrides]))
        return f"{setting} on {one.dataset}, seed {seeds}"

    def values(self, metric: str) -> tuple[str, NDArray[np.float64]]:
        """sha256 of the users' ids, and the metric of each run and user (S, U), by user id."""
        ranks = []
        for run in self.runs:
            if run.ranks is None:
                raise ValueError(
                    f"{run.path}: test_ranks.parquet is missing; train it with "
                    "overwrite=true test=true"
                )
            ranks.append(read_ranks(run.ranks))
        for run, found in zip(self.runs, ranks):
            if found.users != ranks[0].users:
                raise ValueError(f"{run.ranks} has other users than {self.runs[0].ranks}")
        return ranks[0].users, np.stack([found.metric(metric) for found in ranks])


def group_at(path: Path) -> Group:
    """The finished runs at or below a path; ValueError if they differ in more than their seed."""
    runs = [result_of(run) for run in run_folders([path]) if run.finished(test=True)]
    if not runs:
        raise ValueError(f"{path}: no finished run with test metrics")
    for run in runs[1:]:
        alike = (run.setting, run.protocol) == (runs[0].setting, runs[0].protocol)
        if not alike or changed_since(run, runs[0]):
            raise ValueError(
                f"{path}: {run.path} and {runs[0].path} differ in more than their seed; name one "
                "run, or a folder with the seeds of one setting"
            )
    seeds: dict[int, Result] = {}
    for run in runs:
        if (one := seeds.setdefault(run.seed, run)) is not run:
            raise ValueError(f"{path}: {one.path} and {run.path} have one seed; name one of them")
    return Group(path, sorted(runs, key=lambda run: run.seed))


def compare_groups(a: Group, b: Group, metric: str = "ndcg@10") -> Comparison:
    """A over B; ValueError where they were not evaluated alike."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric}: valid: {', '.join(METRICS)}")
    if a.runs[0].protocol != b.runs[0].protocol:
        raise ValueError(
            f"{a.path} and {b.path} were not evaluated alike (split, val or test, mask_history, "
            f"order): {a.runs[0].protocol} and {b.runs[0].protocol}"
        )
    users_a, values_a = a.values(metric)
    users_b, values_b = b.values(metric)
    if users_a != users_b:
        raise ValueError(f"{a.path} and {b.path} evaluated other users")
    return compare(values_a, values_b)
