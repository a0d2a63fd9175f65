"""Which results belong together: into one table, beside the paper, or not at all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from recblr.report.results import FLOORS, Result, changed_since
from recblr.report.tables import paper_row

MODELS = (  # in the paper's order
    "fpmc", "caser", "narm", "gru4rec", "sasrec", "bert4rec", "fmlprec", "lrurec", "recblr",
)  # fmt: skip
CEILING = "ceiling"


def by_dataset(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Test results by data set, in order of name."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.evaluated_on == "test":
            found.setdefault(result.dataset, []).append(result)
    return sorted(found.items())


def by_setting(results: Iterable[Result]) -> list[tuple[str, str, list[Result]]]:
    """By data set: the runs of its recipes as they are; where there is none, by their overrides.

    A part is (data set, overrides, runs); the floors of their protocols stand before the runs.
    """
    groups = []
    for dataset, here in by_dataset(results):
        trained = [r for r in here if r.model not in (*FLOORS, CEILING)]
        overridden = sorted({r.overrides for r in trained})
        for overrides in [""] if "" in overridden else overridden:
            runs = [r for r in trained if r.overrides == overrides]
            of = {r.protocol for r in runs}
            groups.append((dataset, overrides, floors_of(here, of) + runs))
    return groups


def floors_of(results: Iterable[Result], protocols: Container[tuple]) -> list[Result]:
    """The floors that were measured under some protocols."""
    return [r for r in results if r.model in FLOORS and r.protocol in protocols]


def refuse_mixed(results: Sequence[Result], force: bool) -> None:
    """ValueError, unless forced, for results that do not belong into one table.

    Those are of different splits or protocols, or of one recipe that has changed in between.
    """
    if force:
        return
    first: dict[tuple, Result] = {}
    for result in results:
        first.setdefault(result.protocol, result)
    if len(first) > 1:
        listed = "; ".join(
            f"{r.model} {r.path or r.command}: split {r.split_hash[:12]}, order {r.order}, "
            f"mask_history={str(r.mask_history).lower()}"
            for r in first.values()
        )
        raise ValueError(
            f"{results[0].dataset}: results of different splits or protocols do not belong into "
            f"one table ({listed}); name fewer runs"
        )
    refuse_changed(results)


def refuse_changed(results: Iterable[Result]) -> None:
    """ValueError for runs of one recipe that has changed in between."""
    seeds: dict[tuple, Result] = {}
    for result in results:
        one = seeds.setdefault(result.setting, result)
        if changes := changed_since(one, result):
            raise ValueError(
                f"{one.path or one.command} and {result.path or result.command}: both are "
                f"{result.model} ({result.recipe}), with {', '.join(changes)}: the recipe has "
                "changed in between; name the runs of one of the two"
            )


def is_the_papers_log(results: Iterable[Result], dataset: str) -> bool:
    """Whether nothing says that a log has other users or events than in the paper's Table 2."""
    paper, names = paper_row("table2", dataset, ""), ("n_users", "interactions")
    logs = [
        [r.metrics[name] for name in names]
        for r in results
        if r.dataset == dataset and r.model == "popularity" and names[0] in r.metrics
    ]
    return all(log == [paper.get("users"), paper.get("interactions")] for log in logs)


def comparable(runs: Iterable[Result]) -> bool:
    """Whether runs, on the paper's log, have its protocol and the log's own order."""
    return all(
        run.data_split == "leave_one_out"
        and not run.mask_history
        and run.order in ("file", "exact")
        for run in runs
    )
