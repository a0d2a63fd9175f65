"""RecBLR against each baseline, user by user and seed by seed: `results/significance.csv`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from recblr.evaluation.significance import has_star, holm
from recblr.report.accuracy import MODELS, by_setting, protocols
from recblr.report.compare import Group, compare_groups
from recblr.report.results import Result, read_rows, write_csv
from recblr.run_folder import METRICS

OURS = "recblr"


@dataclass(frozen=True)
class Difference:
    """One metric of RecBLR, at one recipe, minus that of a baseline.

    low, high: 95 % bootstrap interval over users. p_users (randomisation), p_seeds (Welch; NaN
    with one run): after Holm over the baselines. star: `evaluation.significance.has_star`.
    """

    dataset: str
    overrides: str
    metric: str
    recipe: str
    runs: int
    baseline: str
    baseline_recipe: str
    baseline_runs: int
    difference: float
    low: float
    high: float
    p_users: float
    p_seeds: float
    star: bool

    @property
    def sides(self) -> tuple[str, ...]:
        """What a table of one data set looks it up by."""
        return (self.metric, self.recipe, self.baseline, self.baseline_recipe)


COLUMNS = tuple(field.name for field in fields(Difference))


def differences(results: Sequence[Result], force: bool = False) -> list[Difference]:
    """Of every recipe of RecBLR to every baseline with run folders, by data set and setting."""
    found: list[Difference] = []
    whole = [r for r in results if r.variant == "default" and r.path is not None]
    for dataset, overrides, plain in by_setting(whole):
        protocols(plain, force)
        groups: dict[tuple[str, str], list[Result]] = {}
        for run in plain:
            if run.model in MODELS:
                groups.setdefault((run.model, run.recipe), []).append(run)
        for (model, recipe), ours in groups.items():
            others = {key: runs for key, runs in groups.items() if key[0] != OURS}
            if model == OURS and others:
                for metric in METRICS:
                    found += _against(dataset, overrides, recipe, ours, others, metric)
    return found


def _against(
    dataset: str,
    overrides: str,
    recipe: str,
    ours: list[Result],
    others: dict[tuple[str, str], list[Result]],
    metric: str,
) -> list[Difference]:
    here = Path(dataset)
    one = [
        (key, len(runs), compare_groups(Group(here, ours), Group(here, runs), metric))
        for key, runs in others.items()
    ]
    p_users = holm([c.p_users for _, _, c in one])
    p_seeds = holm([c.p_seeds for _, _, c in one])
    return [
        Difference(
            dataset, overrides, metric, recipe, len(ours), *key, runs, c.difference, c.low, c.high,
            of_users, of_seeds,
            c.difference > 0 and has_star(of_users, of_seeds, len(ours), runs),
        )
        for (key, runs, c), of_users, of_seeds in zip(one, p_users, p_seeds)
    ]  # fmt: skip


def read_differences(file: Path) -> list[Difference]:
    """The rows of a `significance.csv`."""
    types = {"runs": int, "baseline_runs": int, "star": "True".__eq__}
    types |= dict.fromkeys(("difference", "low", "high", "p_users", "p_seeds"), float)
    return [
        Difference(**{name: types.get(name, str)(row[name]) for name in COLUMNS})
        for row in read_rows(file)
    ]


def append_differences(file: Path, new: Iterable[Difference]) -> None:
    """Add rows to a `significance.csv`, in place of those of the same comparisons."""
    rows = {}
    for one in [*(read_differences(file) if file.exists() else []), *new]:
        rows[(one.dataset, one.overrides, *one.sides)] = one
    shown = ({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(one).items()}
             for _, one in sorted(rows.items()))  # fmt: skip
    write_csv(file, COLUMNS, shown)
