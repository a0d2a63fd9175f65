"""What moves the numbers: recipes of which a setting was changed, and orders of one log."""

from __future__ import annotations

from collections.abc import Sequence

from recblr.report.accuracy import cell, machines, notes, span
from recblr.report.grid import Grid
from recblr.report.groups import MODELS, by_dataset, floors_of, refuse_changed
from recblr.report.results import FLOORS, Result

ORDERS = ("file", "exact", "recbole_float32", "item_id", "shuffled")


def settings(results: Sequence[Result]) -> list[Grid]:
    """Grids per data set: one for each protocol, and one of the orders of its events."""
    grids = []
    for dataset, here in by_dataset(results):
        whole = [r for r in here if r.model in (*FLOORS, *MODELS) and r.variant == "default"]
        refuse_changed(whole)
        grids += _changed(dataset, whole)
        grids += _orders(dataset, [r for r in whole if not r.overrides or _only_order(r)])
    return grids


def _changed(dataset: str, whole: Sequence[Result]) -> list[Grid]:
    """A grid per protocol: recipes as they are and with a setting changed."""
    trained = [r for r in whole if r.model in MODELS and not _only_order(r)]
    changed = {(r.model, r.recipe) for r in trained if r.overrides}
    shown = [r for r in trained if (r.model, r.recipe) in changed]
    grids = []
    for protocol in sorted({r.protocol for r in shown}):
        ours = [r for r in shown if r.protocol == protocol]
        masked = ", history not ranked" if ours[0].mask_history else ""
        title = f"Settings: {dataset}, split {ours[0].split_hash[:6]}{masked}"
        grid = Grid(title, ["seeds", "hr@10", "ndcg@10", "epochs", "minutes"])
        for floor in sorted(floors_of(whole, [protocol]), key=lambda r: r.model):
            figures = [cell([floor], metric) for metric in ("hr@10", "ndcg@10")]
            grid.add(floor.model, ["", *figures, "", ""])
        groups: dict[tuple, list[Result]] = {}
        for run in ours:
            key = (MODELS.index(run.model), run.recipe, run.overrides)
            groups.setdefault(key, []).append(run)
        for (_, recipe, overrides), runs in sorted(groups.items()):
            name = f"{runs[0].model} ({recipe}) {overrides}".strip()
            figures = [cell(runs, metric) for metric in ("hr@10", "ndcg@10")]
            cost = [span([r.epochs for r in runs], 0), span([r.seconds / 60 for r in runs], 0)]
            grid.add(name, [str(len(runs)), *figures, *cost])
        grid.notes = [*notes(ours), f"Trained on {machines(ours)}."]
        grids.append(grid)
    return grids


def _orders(dataset: str, plain: Sequence[Result]) -> list[Grid]:
    """NDCG@10 with a user's events in several orders, each of which is another task.

    A model that was trained in no order but the data set's own has no row. An order that comes with
    two splits, so of two logs, has two columns.
    """
    grids = []
    for split in sorted({r.data_split for r in plain}):
        here = [r for r in plain if r.data_split == split and not r.mask_history]
        orders = sorted({r.order for r in here}, key=ORDERS.index)
        if len(orders) < 2 and not any(r.overrides for r in here):
            continue
        tasks = {(order, r.split_hash): "" for order in orders for r in here if r.order == order}
        for order, split_hash in tasks:
            several = sum(order == other for other, _ in tasks) > 1
            tasks[order, split_hash] = f"{order} {split_hash[:6]}" if several else order
        grid = Grid(f"Orders: {dataset}, {split}", list(tasks.values()))
        groups: dict[tuple, list[Result]] = {}
        for run in here:
            key = ((*FLOORS, *MODELS).index(run.model), run.recipe)
            groups.setdefault(key, []).append(run)
        for (_, recipe), runs in sorted(groups.items()):
            if runs[0].model not in FLOORS and not any(r.overrides for r in runs):
                continue
            name = runs[0].model + (f" ({recipe})" if recipe else "")
            grid.add(name, [cell(_seeds(runs, *task), "ndcg@10") for task in tasks])
        grid.notes = [
            "NDCG@10, mean ± standard deviation over seeds; all items ranked, history ranked too."
        ]
        grids.append(grid)
    return grids


def _seeds(runs: Sequence[Result], order: str, split_hash: str) -> list[Result]:
    """Those of one task, a run that was also asked for with the log's own order once."""
    alike = (run for run in runs if (run.order, run.split_hash) == (order, split_hash))
    return list({run.seed: run for run in alike}.values())


def _only_order(result: Result) -> bool:
    """Whether the order of events is the one setting that was changed."""
    return result.overrides.startswith("data.order=") and " " not in result.overrides
