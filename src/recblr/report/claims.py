"""What the tables say of RecBLR, in sentences that are made from them."""

from __future__ import annotations

from statistics import mean

from recblr.report.accuracy import cell
from recblr.report.evidence import Evidence
from recblr.report.groups import MODELS, by_setting, comparable, is_the_papers_log
from recblr.report.results import FLOORS, Result
from recblr.report.tables import paper_row

METRIC = "ndcg@10"
HEAD = """
An item is a recipe of RecBLR on a data set: its NDCG@10 on the test part, beside the paper's, what
was counted without training, and the baselines at every recipe; `bias` and `best` have ideas that
are not the paper's (README, "Tables, figures, differences"). A `*` is a difference that the tests
of Table 1 find.
"""


def claims(evidence: Evidence) -> str:
    """A Markdown list with an item per data set and recipe."""
    items = []
    for dataset, overrides, runs in by_setting(evidence.results):
        if overrides:
            continue
        whole = [run for run in runs if run.variant == "default"]
        ours = [run for run in whole if run.model == "recblr"]
        for recipe in sorted({run.recipe for run in ours}):
            chosen = [run for run in ours if run.recipe == recipe]
            parts = [
                *_beside_the_paper(evidence, dataset, chosen),
                *_beside_floors(whole, chosen),
                *_beside_baselines(evidence, whole, chosen),
            ]
            seeds = "1 seed" if len(chosen) == 1 else f"{len(chosen)} seeds"
            value = f"recblr ({recipe}), {seeds}: {cell(chosen, METRIC).text}"
            items.append(f"- **{dataset}**, {'; '.join([value, *parts])}.")
    return "\n".join([HEAD.lstrip(), *(items or ["- no run of RecBLR yet"])]) + "\n"


def _mean(runs: list[Result]) -> float:
    return mean(run.metrics[METRIC] for run in runs)


def _percent(ours: float, other: float) -> str:
    return f"{100 * (ours / other - 1):+.1f} %"


def _beside_the_paper(evidence: Evidence, dataset: str, ours: list[Result]) -> list[str]:
    paper = paper_row("table1", dataset, "recblr").get(METRIC)
    if paper is None or not is_the_papers_log(evidence.results, dataset):
        return []
    if not comparable(ours):
        return ["not comparable with the paper's: another order of ties, split or mask"]
    return [f"{_percent(_mean(ours), paper)} against the paper's {paper:.4f}"]


def _beside_floors(whole: list[Result], ours: list[Result]) -> list[str]:
    floors = {r.model: r for r in whole if r.model in FLOORS and r.protocol == ours[0].protocol}
    return [
        f"{_percent(_mean(ours), value)} against {name}'s {value:.4f}"
        for name, floor in sorted(floors.items())
        if (value := floor.metrics[METRIC]) > 0
    ]


def _beside_baselines(evidence: Evidence, whole: list[Result], ours: list[Result]) -> list[str]:
    here = (ours[0].dataset, ours[0].overrides, ours[0].recipe, METRIC)
    found = [one for one in evidence.differences if one.sides[:4] == here]
    shown = []
    for one in sorted(found, key=lambda one: one.difference):
        star = r"\*" if one.star else ""
        shown.append(f"{one.baseline} ({one.baseline_recipe}) {one.difference:+.4f}{star}")
    tested = {(one.baseline, one.baseline_recipe) for one in found}
    run = {(r.model, r.recipe) for r in whole if r.model in MODELS and r.model != "recblr"}
    parts = [f"minus the baselines: {', '.join(shown)}"] if shown else []
    if missing := sorted(run - tested):
        names = ", ".join(f"{model} ({recipe})" for model, recipe in missing)
        parts.append(f"not compared user by user until all their runs are collected: {names}")
    return parts
