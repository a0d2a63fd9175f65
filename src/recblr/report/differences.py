"""RecBLR against each baseline, user by user and seed by seed: `results/significance.csv`.

The file has each p alone; Holm's adjustment is over the baselines that a reader has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from recblr.evaluation.significance import has_star, holm
from recblr.report.compare import Group, compare_groups
from recblr.report.files import read_rows, write_csv
from recblr.report.groups import MODELS, by_setting, refuse_mixed
from recblr.report.results import Result
from recblr.run_folder import METRICS

OURS = "recblr"


@dataclass(frozen=True)
class Difference:
    """One metric of RecBLR, at one recipe, minus that of a baseline.

    low, high: 95 % bootstrap interval over users. p_users: randomisation. p_seeds: Welch; NaN with
    one run.
    """

    dataset: str
    overrides: str
    recipe: str
    metric: str
    baseline: str
    baseline_recipe: str
    split_hash: str
    runs: int
    baseline_runs: int
    difference: float
    low: float
    high: float
    p_users: float
    p_seeds: float

    @property
    def sides(self) -> tuple[str, ...]:
        """What is compared, by which metric, on which data set."""
        return (
            *(self.dataset, self.overrides, self.recipe),
            *(self.metric, self.baseline, self.baseline_recipe),
        )

    @property
    def settings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Data set, overrides, model and recipe of either side."""
        here = (self.dataset, self.overrides)
        return (*here, OURS, self.recipe), (*here, self.baseline, self.baseline_recipe)

    @property
    def star(self) -> bool:
        """Whether RecBLR is better, if both p are after Holm."""
        enough = has_star(self.p_users, self.p_seeds, self.runs, self.baseline_runs)
        return self.difference > 0 and enough

    def is_of(self, results: Sequence[Result]) -> bool:
        """Whether it is of all test runs of its two sides that are among the results."""
        here = (self.dataset, self.overrides, self.split_hash, "default", "test")
        count = Counter(
            (r.model, r.recipe)
            for r in results
            if (r.dataset, r.overrides, r.split_hash, r.variant, r.evaluated_on) == here
        )
        ours, others = count[OURS, self.recipe], count[self.baseline, self.baseline_recipe]
        return (ours, others) == (self.runs, self.baseline_runs)


COLUMNS = tuple(field.name for field in fields(Difference))


def differences(results: Sequence[Result], known: Iterable[Difference] = ()) -> list[Difference]:
    """Of every recipe of RecBLR to every baseline with ranks, by data set and setting.

    known: those that still hold; only others are computed, a second each. Smoke runs are left out:
    each seed evaluates other users.
    """
    found: list[Difference] = []
    still = {(one.sides, one.split_hash): one for one in known}
    whole = [r for r in results if r.variant == "default" and r.ranks is not None and not r.smoke]
    for dataset, overrides, plain in by_setting(whole):
        refuse_mixed(plain, force=False)
        groups: dict[tuple[str, str], list[Result]] = {}
        for run in plain:
            groups.setdefault((run.model, run.recipe), []).append(run)
        for (model, recipe), ours in groups.items():
            if model != OURS:
                continue
            for key, runs in groups.items():
                if key[0] in MODELS and key[0] != OURS:
                    for metric in METRICS:
                        sides = (dataset, overrides, recipe, metric, *key)
                        one = still.get((sides, ours[0].split_hash))
                        found.append(one or _difference(sides, ours, runs))
    return found


def _difference(sides: tuple[str, ...], ours: list[Result], others: list[Result]) -> Difference:
    dataset, overrides, recipe, metric, baseline, baseline_recipe = sides
    one = compare_groups(Group(Path(dataset), ours), Group(Path(dataset), others), metric)
    return Difference(
        dataset,
        overrides,
        recipe,
        metric,
        baseline,
        baseline_recipe,
        ours[0].split_hash,
        len(ours),
        len(others),
        one.difference,
        one.low,
        one.high,
        one.p_users,
        one.p_seeds,
    )


def after_holm(found: Iterable[Difference]) -> list[Difference]:
    """With both p adjusted over the baselines of one data set, setting, recipe and metric."""
    families: dict[tuple[str, ...], list[Difference]] = {}
    for one in found:
        families.setdefault(one.sides[:4], []).append(one)
    return [
        replace(one, p_users=p_users, p_seeds=p_seeds)
        for family in families.values()
        for one, p_users, p_seeds in zip(
            family, holm([o.p_users for o in family]), holm([o.p_seeds for o in family])
        )
    ]


def read_differences(file: Path) -> list[Difference]:
    """The rows of a `significance.csv`."""
    types: dict[str, Any] = {"runs": int, "baseline_runs": int}
    types |= dict.fromkeys(("difference", "low", "high", "p_users", "p_seeds"), float)
    return [
        Difference(**{name: types.get(name, str)(row[name]) for name in COLUMNS})
        for row in read_rows(file)
    ]


def append_differences(file: Path, new: Iterable[Difference]) -> None:
    """Add rows to a `significance.csv`, in place of those of the same comparisons."""
    rows = {one.sides: one for one in (read_differences(file) if file.exists() else [])}
    rows |= {one.sides: one for one in new}
    shown = (
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(rows[sides]).items()}
        for sides in sorted(rows)
    )
    write_csv(file, COLUMNS, shown)
