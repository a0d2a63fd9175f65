"""What an epoch of a training run costs: seconds, seconds of inference, memory.

Table 4 and 5 and Figure 4 of the paper, from runs whose accuracy means nothing (trainer=timing).
They see a part of an epoch and of the users; their seconds are those of the whole at the speed of
the part: extrapolated, and said so wherever they stand, unless the run has
`trainer.limit_train_batches=1.0 datamodule.eval_users=null`. In `results/speed.csv`: `what=run`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from recblr.report.accuracy import cell
from recblr.report.files import read_rows
from recblr.report.grid import NOT_RUN, Cell, Grid
from recblr.report.groups import by_setting, refuse_mixed
from recblr.report.results import Result, overrides_of, run_folders, without_folders
from recblr.report.speed import Row, Setting
from recblr.report.tables import paper_row, run_metrics
from recblr.run_folder import RunFolder, variant_name

WHOLE = "whole epochs"
_OWN_FIELDS = ("scan=", "max_length=", "trainer", "datamodule.eval_users=")
UNITS = ("s/epoch", "s of inference", "peak_mb")
LONG = ("sasrec", "lrurec", "recblr")  # the models of Table 4 and Figure 4
SCANS = {  # rows of Table 5: scan= -> the paper's name
    "serial": "serial scan",
    "parallel_sp": "parallel scan, SP",
    "parallel_ep": "parallel scan, EP",
    "fused": "fused (ours)",
    "cpu": "cpu (ours)",
}
NEED_CUDA = ("parallel_sp", "parallel_ep", "fused")
IN_TABLE_4 = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")


@dataclass(frozen=True)
class Timed:
    """One run. scan: what ran, empty for a model without. overrides: other settings, if any, and
    the recipe, if it is not the data set's.

    part: what was timed, as "20 steps and 64 users", or WHOLE.
    values: by UNITS; an epoch of training, the ranking of all users' targets, and the largest
    resident set (allocated memory on a GPU) in MB of 1e6 bytes.
    """

    dataset: str
    n_items: int
    max_length: int
    model: str
    scan: str
    part: str
    overrides: str
    values: dict[str, float]
    setting: Setting

    @property
    def case(self) -> str:
        about = (self.model, self.dataset, f"{self.n_items} items", f"L{self.max_length}")
        return ", ".join((*about, self.part, *filter(None, [self.overrides])))

    @property
    def log(self) -> str:
        """The log, and the settings that its other runs may not have."""
        others = f" with {self.overrides}" if self.overrides else ""
        return f"{self.dataset} ({self.n_items:,} items){others}"

    @property
    def machine(self) -> str:
        return f"{self.setting.device}, {self.setting.threads} threads"


def timed(run: RunFolder) -> Timed | None:
    """The cost of a finished smoke run in its last epoch of several; None for other runs."""
    config, about, metrics = run.read_config(), run.read_json("environment.json"), run_metrics(run)
    epochs = run.read_epochs()
    if not config["smoke"] or len(epochs) < 2:  # the first epoch is slower
        return None
    last, settings = epochs[-1], shlex.split(overrides_of(about["command"]))
    settings += [f"recipe={config['recipe']}"] * (config["recipe"] not in ("paper", "ours"))
    values = (
        metrics["n_targets"] / last["train/targets_per_s"],
        last["val/seconds"] * metrics["n_evaluated"] / metrics["users"],
        last["memory/peak_mb"],
    )
    versions = {"python": about["python"], "torch": about["versions"]["torch"]}
    return Timed(
        dataset=config["data"]["name"],
        n_items=metrics["n_items"],
        max_length=config["datamodule"]["max_length"],
        model=variant_name(config),
        scan=about["scan"] or "",
        part=_part(config["trainer"]["limit_train_batches"], metrics),
        overrides=" ".join(word for word in settings if not word.startswith(_OWN_FIELDS)),
        values=dict(zip(UNITS, values)),
        setting=Setting(
            threads=about["threads"],
            load=None,
            device=about["gpu"] or f"{about['cpu']}, {about['cores']} cores",
            versions="; ".join(f"{name} {number}" for name, number in versions.items()),
            commit=about["commit"],
            command=without_folders(about["command"]),
        ),
    )


def _part(batches: int | float, metrics: dict[str, Any]) -> str:
    steps = f"{batches} steps" if isinstance(batches, int) else f"{batches:.0%} of an epoch"
    users = f"{metrics['users']:.0f} users"
    parts = [steps] * (batches != 1.0 or isinstance(batches, int))
    return " and ".join([*parts, *[users] * (metrics["users"] < metrics["n_evaluated"])]) or WHOLE


def read_timed(paths: Iterable[Path]) -> list[Timed]:
    """The cost of every run below some folders that was made to be timed."""
    found = (timed(run) for run in run_folders(paths) if run.finished())
    return [one for one in found if one is not None]


def as_rows(one: Timed) -> list[Row]:
    """Its rows of `speed.csv`."""
    return [Row("run", one.case, one.scan, unit, value) for unit, value in one.values.items()]


def read_timed_csv(file: Path) -> list[Timed]:
    """The runs among the rows of a `speed.csv`."""
    runs: dict[tuple[str, ...], dict[str, float]] = {}
    about = ("case", "backend", *Setting._fields)
    for row in read_rows(file):
        if row["what"] == "run":
            values = runs.setdefault(tuple(row[name] for name in about), {})
            values[row["unit"]] = float(row["value"])
    return [_of_row(case, scan, values, Setting(int(threads), None, *rest))
            for (case, scan, threads, _, *rest), values in runs.items()]  # fmt: skip


def _of_row(case: str, scan: str, values: dict[str, float], setting: Setting) -> Timed:
    model, dataset, items, length, part, *others = case.split(", ", 5)
    n_items, max_length = int(items.split()[0]), int(length[1:])
    overrides = "".join(others)
    return Timed(dataset, n_items, max_length, model, scan, part, overrides, values, setting)


def table4(results: Sequence[Result], runs: Sequence[Timed], force: bool = False) -> list[Grid]:
    """SASRec, LRURec and RecBLR on long histories, a grid per log: accuracy, and what it costs.

    Timed steps alone have no accuracy.
    """
    whole = [r for r in results if r.dataset.startswith("xlong") and r.variant == "default"]
    accuracy = {dataset: here for dataset, overrides, here in by_setting(whole) if not overrides}
    ours = [one for one in runs if one.model in LONG]
    places = {(one.dataset, one.log, one.machine) for one in ours}
    known = {dataset for dataset, _, _ in places}
    places |= {(dataset, dataset, "") for dataset in accuracy.keys() - known}
    grids = []
    for dataset, log, machine in sorted(places):
        here = [one for one in ours if (one.log, one.machine) == (log, machine)]
        refuse_mixed(accuracy.get(dataset, []), force)
        title = f"Table 4: {log}"
        grid = Grid(title, [*IN_TABLE_4, "max_length", *UNITS])
        for model in LONG:
            trained = [r for r in accuracy.get(dataset, []) if r.model == model]
            costs = [one for one in here if one.model == model]
            for length in sorted({one.max_length for one in costs}) or [None]:
                spent = [one for one in costs if one.max_length == length]
                grid.add(
                    model,
                    [
                        *(cell(trained, metric) for metric in IN_TABLE_4),
                        str(length or ""),
                        *(_cost(fastest(spent), unit) for unit in UNITS),
                    ],
                )
        grid.notes = _notes(here)
        grids.append(grid)
    papers = Grid("Table 4: the paper's, on xlong", list(IN_TABLE_4))
    for model in LONG:
        row = paper_row("table4", "xlong", model)
        papers.add(model, [f"{row[metric]:.4f}" for metric in IN_TABLE_4])
    return [*grids, papers] if grids else []


def table5(runs: Sequence[Timed]) -> list[Grid]:
    """Seconds of an epoch of RecBLR by scan, a column per log; the paper's in a grid of its own."""
    ours = [one for one in runs if one.model == "recblr"]
    if not ours:
        return []
    grids = []
    for machine in sorted({one.machine for one in ours}):
        on = [one for one in ours if one.machine == machine]
        logs = sorted({(one.log, one.max_length) for one in on})
        columns = [f"{log}, L{length}" for log, length in logs]
        grid = Grid(f"Table 5: seconds per epoch, {machine}", columns)
        for scan, name in SCANS.items():
            cells = []
            for log in logs:
                here = [o for o in on if (o.log, o.max_length, o.scan) == (*log, scan)]
                missing = f"{NOT_RUN} (needs CUDA)" if scan in NEED_CUDA else NOT_RUN
                cells.append(_cost(here, UNITS[0]) if here else Cell(missing))
            grid.add(name, cells)
        grid.notes = _notes(on)
        grids.append(grid)
    datasets = ("ml-1m", "gowalla", "xlong")
    papers = Grid("Table 5: the paper's, on an A100 of 40 GB", list(datasets))
    for scan in ("serial", "parallel_sp", "parallel_ep"):
        rows = (paper_row("table5", dataset, "recblr", scan) for dataset in datasets)
        papers.add(SCANS[scan], [f"{row['s/epoch']:.0f}" for row in rows])
    papers.notes = ["Another machine, another trainer: ours and these do not compare."]
    return [*grids, papers]


def fastest(runs: Sequence[Timed]) -> list[Timed]:
    """Of runs that differ in their scan, the one whose epoch is shortest; none of none."""
    return sorted(runs, key=lambda one: one.values[UNITS[0]])[:1]


def _cost(runs: Sequence[Timed], unit: str) -> Cell:
    """The mean, of runs of whole epochs where there are any."""
    chosen = [one for one in runs if one.part == WHOLE] or list(runs)
    return Cell(f"{mean(one.values[unit] for one in chosen):,.1f}" if chosen else NOT_RUN)


def _notes(runs: Sequence[Timed]) -> list[str]:
    machines = sorted({one.machine for one in runs})
    return [f"On {' and '.join(machines)}.", extrapolated(runs)] if runs else []


def extrapolated(runs: Sequence[Timed]) -> str:
    """How much of an epoch was timed."""
    parts = sorted({one.part for one in runs} - {WHOLE})
    return f"Extrapolated from {', '.join(parts)}." if parts else "Whole epochs, all users."
