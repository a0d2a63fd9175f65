"""All that tables and figures are made of: from run folders, or from the files in `results/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from recblr.report.accuracy import Stars
from recblr.report.differences import (
    Difference,
    after_holm,
    append_differences,
    differences,
    read_differences,
)
from recblr.report.files import (
    kept_ranks,
    merged,
    read_csv,
    with_curves,
    write_curves,
    write_results,
)
from recblr.report.ranks import keep_ranks, read_ranks
from recblr.report.results import FLOORS, Result, read_results
from recblr.report.speed import record
from recblr.report.timed import Timed, as_rows, read_timed, read_timed_csv

RESULTS, RANKS = Path("results"), "ranks"
ACCURACY, CURVES, SIGNIFICANCE, SPEED = (
    f"{name}.csv" for name in ("accuracy", "curves", "significance", "speed")
)


@dataclass
class Evidence:
    """results: of finished runs. runs: the cost of those that were timed.

    folder: of the files that it was read from; None for run folders.
    """

    results: list[Result]
    runs: list[Timed]
    folder: Path | None = None

    @classmethod
    def of(cls, runs: Sequence[Path]) -> Evidence:
        """What run folders hold, or the files of one that `write` filled: `results/`, if none.

        Raises FileNotFoundError for a folder that is not there, ValueError without both.
        """
        folder = runs[0] if runs else RESULTS
        if len(runs) > 1 or (runs and not (folder / ACCURACY).is_file()):
            return cls(read_results(runs), read_timed(runs))
        if not (folder / ACCURACY).is_file():
            raise ValueError(f"{folder / ACCURACY} is not here: name a folder of runs, e.g. runs")
        results = read_csv(folder / ACCURACY)
        if (folder / CURVES).exists():
            results = with_curves(results, folder / CURVES)
        timed = read_timed_csv(folder / SPEED) if (folder / SPEED).exists() else []
        return cls(results, timed, folder)

    @cached_property
    def raw_differences(self) -> list[Difference]:
        """Of RecBLR to every baseline, each p alone.

        Of a file those that are of all runs that `accuracy.csv` has: others are not up to date.
        """
        if self.folder is None:
            return differences(self.results)
        file = self.folder / SIGNIFICANCE
        found = read_differences(file) if file.exists() else []
        return [one for one in found if one.is_of(self.results)]

    @property
    def differences(self) -> list[Difference]:
        """With p after Holm over the baselines."""
        return after_holm(self.raw_differences)

    @property
    def stars(self) -> Stars:
        return {one.sides for one in self.differences if one.star}

    def write(self, folder: Path) -> dict[Path, str]:
        """Add what run folders hold to the files of a folder; says how much went where.

        A smoke run has a cost and no accuracy.
        """
        real = [result for result in self.results if not result.smoke]
        before = Evidence.of([folder]) if (folder / ACCURACY).exists() else Evidence([], [], folder)
        known = [replace(r, ranks=_if_there(kept_ranks(folder / RANKS, r))) for r in before.results]
        every = merged(known, real)
        files = {kept_ranks(folder / RANKS, r) for r in every}
        gone = [r for r in known if kept_ranks(folder / RANKS, r) not in files]
        tables = {_table(r) for r in real if r.model not in FLOORS}
        new = {(r.dataset, r.overrides, r.model, r.recipe) for r in real}
        still = [one for one in before.raw_differences if new.isdisjoint(one.settings)]
        found = differences([r for r in every if _table(r) in tables], still)
        ranks = {kept_ranks(folder / RANKS, r): read_ranks(r.ranks) for r in real if r.ranks}
        for file, one in ranks.items():  # from here on files are touched
            keep_ranks(one, file)
        for result in gone:
            kept_ranks(folder / RANKS, result).unlink(missing_ok=True)
        write_results(folder / ACCURACY, every)
        write_curves(folder / CURVES, every)
        append_differences(folder / SIGNIFICANCE, found)
        for run in self.runs:
            record(folder / SPEED, as_rows(run), run.setting)
        return {
            folder / ACCURACY: f"{len(real)} runs and floors added, {len(every)} in the file"
            + (f", {len(gone)} gone whose recipe has changed since" if gone else ""),
            folder / RANKS: f"where the target of each user came in {len(ranks)} runs",
            folder / CURVES: f"{sum(len(r.curve) for r in real)} epochs",
            folder / SIGNIFICANCE: f"{len(found)} differences",
            folder / SPEED: f"{len(self.runs)} timed runs",
        }


def _table(result: Result) -> tuple:
    """What runs have to share for their differences to mean something."""
    return (result.dataset, result.overrides, result.protocol)


def _if_there(file: Path) -> Path | None:
    return file if file.exists() else None
