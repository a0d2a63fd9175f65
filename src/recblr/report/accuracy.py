"""The paper's Tables 1 to 3 from results: ours beside the paper's values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from statistics import mean, stdev

from recblr.report.grid import NOT_RUN, Cell, Grid, Mark
from recblr.report.groups import (
    MODELS,
    by_setting,
    comparable,
    is_the_papers_log,
    refuse_mixed,
)
from recblr.report.results import COUNTS, FLOORS, Result
from recblr.report.tables import paper_row
from recblr.run_folder import METRICS

DATASETS = ("ml-1m", "gowalla", "steam", "amazon-beauty", "amazon-sports", "xlong")
PAPERS_ABLATIONS = ("default", "single_layer", "bd_lru_only", "no_conv1d", "no_pffn", "random_init")
OUR_ABLATIONS = ("no_gate_z", "no_input_gate", "constant_decay")
BEST = "Best bold, second underlined, among what was trained here."
PAPERS = "The paper's values are single runs of its own code."
# (dataset, overrides, recipe of RecBLR, metric, baseline, its recipe) for each star.
Stars = Set[tuple[str, ...]]


def table1(results: Sequence[Result], force: bool, stars: Stars) -> list[Grid]:
    """A grid per data set: floors, every model, the paper's value and the difference below each.

    stars: `has_star` of RecBLR over a baseline; one stands where it is over the best baseline.
    """
    grids = []
    whole = [r for r in results if r.variant == "default"]
    for dataset, overrides, plain in by_setting(whole):
        refuse_mixed(plain, force)
        grid = Grid(titled("Table 1", dataset, overrides), ["seeds", *METRICS])
        same_log = is_the_papers_log(results, dataset)
        groups = {
            (model, recipe): [r for r in plain if (r.model, r.recipe) == (model, recipe)]
            for model in (*FLOORS, *MODELS)
            for recipe in sorted({r.recipe for r in plain if r.model == model}) or ["paper"]
        }
        trained = {key: runs for key, runs in groups.items() if key[0] in MODELS and runs}
        marks = {metric: ranked(trained, metric) for metric in METRICS}
        for (model, recipe), runs in groups.items():
            if model in FLOORS and not runs:
                continue
            name = model if model in FLOORS or not runs else f"{model} ({recipe})"
            shown = [
                cell(runs, metric, marks[metric].get((model, recipe), "")) for metric in METRICS
            ]
            if model == "recblr" and runs:
                here = (dataset, overrides, recipe)
                shown = [
                    c._replace(text=f"{c.text}*") if _starred(stars, here, trained, metric) else c
                    for c, metric in zip(shown, METRICS)
                ]
            grid.add(name, [str(len(runs)) if model not in FLOORS else "", *shown])
            if same_log:
                add_papers(grid, paper_row("table1", dataset, model), runs)
        add_improvement(grid, trained)
        grid.notes = [
            *notes(plain),
            BEST,
            *([PAPERS] if same_log else []),
            *hours({f"{model} ({recipe})": runs for (model, recipe), runs in trained.items()}),
            "*: above the best baseline at p < .01 over users (randomisation) and over seeds "
            "(Welch), after Holm over the baselines, with 5 and 3 seeds or more.",
            *changed(whole, dataset, overrides),
        ]
        grids.append(grid)
    return grids


def _starred(stars: Stars, here: tuple[str, str, str], trained: dict, metric: str) -> bool:
    """Whether RecBLR at a data set, overrides and recipe has a star over the best baseline."""
    baselines = [key for key in trained if key[0] != "recblr"]
    if not baselines:
        return False
    best = max(baselines, key=lambda key: mean(run.metrics[metric] for run in trained[key]))
    return (*here, metric, *best) in stars


def table2(results: Sequence[Result], force: bool = False) -> list[Grid]:
    """Users, items and interactions of every log after its filter, beside the paper's."""
    logs: dict[str, list[Result]] = {}
    for result in results:
        if result.model == "popularity" and all(name in result.metrics for name in COUNTS):
            logs.setdefault(result.dataset, []).append(result)
    if not logs:
        return []
    columns = ["users", "items", "interactions", "avg. length", "max_length"]
    grid = Grid("Table 2: the logs", columns)
    for dataset in [*DATASETS, *sorted(set(logs) - set(DATASETS))]:
        here = logs.get(dataset, [])
        counts = sorted({tuple(int(r.metrics[name]) for name in COUNTS) for r in here})
        if len(counts) > 1 and not force:
            raise ValueError(f"{dataset}: runs on different logs: {counts}; name fewer runs")
        for users, items, interactions in counts:
            lengths = ", ".join(map(str, sorted(_max_lengths(results, dataset))))
            grid.add(dataset, [f"{users:,}", f"{items:,}", f"{interactions:,}",
                               f"{interactions / users:.1f}", lengths])  # fmt: skip
        if not counts:
            grid.add(dataset, [NOT_RUN, *[""] * 4])
        if paper := paper_row("table2", dataset, ""):
            grid.add("— paper", [*(f"{paper[name]:,.0f}" for name in ("users", "items",
                     "interactions")), f"{paper['avg_length']:.1f}",
                     f"{paper['max_seq_len']:.0f}"])  # fmt: skip
    return [grid]


def _max_lengths(results: Iterable[Result], dataset: str) -> set[int]:
    """Of the recipes of a log; of its floors, where no recipe was run."""
    here = [r for r in results if r.dataset == dataset and not r.overrides]
    trained = {r.max_length for r in here if r.model not in FLOORS}
    return trained or {r.max_length for r in here}


def table3(results: Sequence[Result], force: bool = False) -> list[Grid]:
    """A grid per data set and recipe: RecBLR whole and with one part left out.

    A data set or a recipe of which no part was left out has none, unless that is so of all. The
    paper's values stand beside its own recipe.
    """
    grids = []
    logs = by_setting(r for r in results if r.model == "recblr")
    ablated = {(log, r.recipe) for log, _, ours in logs for r in ours if r.variant != "default"}
    for dataset, overrides, ours in logs:
        for recipe in sorted({r.recipe for r in ours}):
            if ablated and (dataset, recipe) not in ablated:
                continue
            runs = [r for r in ours if r.recipe == recipe]
            refuse_mixed(runs, force)
            title = f"{titled('Table 3', dataset, overrides)} ({recipe})"
            beside = recipe == "paper" and is_the_papers_log(results, dataset)
            grids.append(_ablations(title, dataset, runs, beside))
    return grids


def _ablations(title: str, dataset: str, ours: Sequence[Result], papers: bool) -> Grid:
    groups = {
        variant: [r for r in ours if r.variant == variant]
        for variant in (*PAPERS_ABLATIONS, *OUR_ABLATIONS)
    }
    trained = {variant: runs for variant, runs in groups.items() if runs}
    marks = {metric: ranked(trained, metric) for metric in METRICS}
    grid = Grid(title, ["seeds", *METRICS])
    for variant, runs in groups.items():
        shown = [cell(runs, metric, marks[metric].get(variant, "")) for metric in METRICS]
        grid.add(variant, [str(len(runs)), *shown])
        if papers:
            add_papers(grid, paper_row("table3", dataset, "recblr", variant), runs)
    grid.notes = [*notes(ours), BEST, *([PAPERS] if papers else []), *hours(trained)]
    return grid


def titled(table: str, dataset: str, overrides: str) -> str:
    """`Table 1: ml-1m with dropout=0.3`."""
    return f"{table}: {dataset}" + (f" with {overrides}" if overrides else "")


def cell(runs: Sequence[Result], metric: str, mark: Mark = "") -> Cell:
    """Mean over seeds, with the standard deviation of 2 or more."""
    if not runs:
        return Cell(NOT_RUN)
    values = [run.metrics[metric] for run in runs]
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return Cell(f"{mean(values):.4f}{spread}", mark)


def ranked(groups: dict, metric: str) -> dict[object, Mark]:
    """The best and the second best group by their mean."""
    order = sorted(groups, key=lambda key: -mean(run.metrics[metric] for run in groups[key]))
    marks: tuple[Mark, Mark] = ("best", "second")
    return dict(zip(order, marks))


def add_papers(grid: Grid, paper: dict[str, float], runs: Sequence[Result]) -> None:
    """The paper's row, and ours over it in percent, where the two can be compared."""
    if not paper or not comparable(runs):
        return
    grid.add("— paper", ["", *(f"{paper[m]:.4f}" if m in paper else "" for m in METRICS)])
    if runs:
        shown = []
        for metric in METRICS:
            ours = mean(run.metrics[metric] for run in runs)
            known = metric in paper
            shown.append(f"{100 * (ours / paper[metric] - 1):+.1f} %" if known else "")
        grid.add("— difference", ["", *shown])


def add_improvement(grid: Grid, trained: dict[tuple[str, str], list[Result]]) -> None:
    """RecBLR, at its best recipe, over the best baseline: the paper's Improv."""
    means = {
        metric: {key: mean(r.metrics[metric] for r in runs) for key, runs in trained.items()}
        for metric in METRICS
    }
    ours = [key for key in trained if key[0] == "recblr"]
    others = [key for key in trained if key[0] != "recblr"]
    if ours and others:
        gains = []
        for metric in METRICS:
            best, baseline = (max(means[metric][k] for k in keys) for keys in (ours, others))
            gains.append(f"{100 * (best / baseline - 1):+.1f} %")
        grid.add("Improv. (best recipe of recblr over that of the baselines)", ["", *gains])


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader has to know of the figures."""
    one = results[0] if results else None
    if one is None:
        return []
    masked = "not ranked" if one.mask_history else "ranked too"
    lengths = ", ".join(map(str, sorted({r.max_length for r in results if r.model not in FLOORS})))
    tasks = {r.protocol for r in results}
    mixed = [f"MIXED: {len(tasks)} splits or protocols; what follows is of the first."]
    smoke = ["SMOKE RUNS: these figures mean nothing."] if one.smoke else []
    return [
        *smoke,
        *(mixed if len(tasks) > 1 else []),
        f"Mean ± standard deviation over seeds; {one.data_split}, all items ranked, history "
        f"{masked}, order {one.order}, max_length {lengths or one.max_length}; "
        f"split {one.split_hash[:12]}.",
    ]


def hours(groups: Mapping[str, Sequence[Result]]) -> list[str]:
    """What a run of each row took, as a guide to what the cells that nobody ran would cost."""
    spent = {
        name: span([run.seconds / 3600 for run in runs], 2)
        for name, runs in groups.items()
        if any(run.seconds for run in runs)
    }
    where = machines([run for runs in groups.values() for run in runs])
    each = ", ".join(f"{name} {text}" for name, text in spent.items())
    return [f"Hours of training a run: {each}; on {where}."] if spent else []


def spent(results: Iterable[Result]) -> str:
    """Hours of training on each machine; a run that two commands ask for once."""
    runs = {(*r.setting[:4], r.protocol, r.seed, r.seconds): r for r in results if r.epochs}
    totals: dict[str, float] = {}
    for run in runs.values():
        totals[run.device] = totals.get(run.device, 0) + run.seconds / 3600
    each = (f"{total:.1f} hours on {device}" for device, total in sorted(totals.items()))
    return f"All runs that have a figure below were trained in {'; '.join(each)}.\n"


def changed(results: Iterable[Result], dataset: str, overrides: str) -> list[str]:
    """How many runs of a data set another table has."""
    count = sum(
        (r.dataset, r.evaluated_on) == (dataset, "test")
        and r.model in MODELS
        and r.overrides != overrides
        for r in results
    )
    return [f"{count} runs with changed settings: `report settings`."] if count else []


def span(values: Sequence[float], digits: int) -> str:
    """`3`, or `3 to 5`: machines differ, so that no mean is made of them."""
    shown = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(shown)


def machines(runs: Iterable[Result]) -> str:
    """Where some runs were trained."""
    return "; ".join(sorted({run.device for run in runs if run.epochs}))
