"""What moves the numbers: recipes of which a setting was changed, and orders of one log."""

from __future__ import annotations

from collections.abc import Sequence

from recblr.report.accuracy import MODELS, by_dataset, cell, floors_of, machines, notes, span
from recblr.report.grid import Grid
from recblr.report.results import FLOORS, Result

ORDERS = ("file", "exact", "recbole_float32", "item_id", "shuffled")


def settings(results: Sequence[Result]) -> list[Grid]:
    """Grids per data set: one for each protocol, and one of the orders of its events."""
    grids = []
    for dataset, here in by_dataset(results):
        whole = [r for r in here if r.model in (*FLOORS, *MODELS) and r.variant == "default"]
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

    A model that was trained in no order but the data set's own has no row.
    """
    grids = []
    for split, max_length in sorted({(r.data_split, r.max_length) for r in plain}):
        here = [
            r
            for r in plain
            if (r.data_split, r.max_length, r.mask_history) == (split, max_length, False)
        ]
        orders = sorted({r.order for r in here}, key=ORDERS.index)
        if len(orders) < 2 and not any(r.overrides for r in here):
            continue
        grid = Grid(f"Orders: {dataset}, {split}, max_length {max_length}", orders)
        groups: dict[tuple, list[Result]] = {}
        for run in here:
            key = ((*FLOORS, *MODELS).index(run.model), run.recipe)
            groups.setdefault(key, []).append(run)
        for (_, recipe), runs in sorted(groups.items()):
            if runs[0].model not in FLOORS and not any(r.overrides for r in runs):
                continue
            name = runs[0].model + (f" ({recipe})" if recipe else "")
            by_order = [[r for r in runs if r.order == order] for order in orders]
            grid.add(name, [cell(some, "ndcg@10") for some in by_order])
        grid.notes = [
            "NDCG@10, mean ± standard deviation over seeds; all items ranked, history ranked too."
        ]
        grids.append(grid)
    return grids


def _only_order(result: Result) -> bool:
    """Whether the order of events is the one setting that was changed."""
    return result.overrides.startswith("data.order=") and " " not in result.overrides
