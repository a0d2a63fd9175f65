"""What an epoch of a training run costs: seconds, seconds of inference, memory.

Table 4 and 5 and Figure 4 of the paper, from runs whose accuracy means nothing (trainer=timing).
They see a part of an epoch; their seconds are those of the whole at the speed of the part:
extrapolated, and said so wherever they stand. `trainer.limit_train_batches=1.0` times the whole. In
`results/speed.csv` these are the rows `what=run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from recblr.report.accuracy import by_setting, cell, protocols
from recblr.report.grid import NOT_RUN, Cell, Grid
from recblr.report.results import Result, read_rows, run_folders
from recblr.report.speed import Row, Setting
from recblr.report.tables import paper_row, run_metrics
from recblr.run_folder import RunFolder, variant_name

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
    """One run. scan: what ran, empty for a model without. steps: timed ones, None = whole epochs.

    values: by UNITS; an epoch of training, the ranking of all users' targets, and the largest
    resident set (allocated memory on a GPU) in MB of 1e6 bytes.
    """

    dataset: str
    n_items: int
    max_length: int
    model: str
    scan: str
    steps: int | None
    values: dict[str, float]
    setting: Setting

    @property
    def case(self) -> str:
        how = "whole epochs" if self.steps is None else f"{self.steps} steps"
        return f"{self.model}, {self.dataset}, {self.n_items} items, L{self.max_length}, {how}"

    @property
    def log(self) -> str:
        return f"{self.dataset} ({self.n_items:,} items)"


def timed(run: RunFolder) -> Timed | None:
    """The cost of a finished smoke run in its last epoch; None for others and for floors."""
    config, about, metrics = run.read_config(), run.read_json("environment.json"), run_metrics(run)
    epochs = run.read_epochs()
    if not config["smoke"] or not epochs:
        return None
    last, batches = epochs[-1], config["trainer"]["limit_train_batches"]
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
        steps=batches if isinstance(batches, int) else None,
        values=dict(zip(UNITS, values)),
        setting=Setting(
            threads=about["threads"],
            load=None,
            device=about["gpu"] or f"{about['cpu']}, {about['cores']} cores",
            versions="; ".join(f"{name} {number}" for name, number in versions.items()),
            commit=about["commit"],
            command=about["command"],
        ),
    )


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
    model, dataset, items, length, how = case.split(", ")
    steps = None if how == "whole epochs" else int(how.split()[0])
    n_items, max_length = int(items.split()[0]), int(length[1:])
    return Timed(dataset, n_items, max_length, model, scan, steps, values, setting)


def table4(results: Sequence[Result], runs: Sequence[Timed], force: bool = False) -> list[Grid]:
    """SASRec, LRURec and RecBLR on long histories, a grid per log: accuracy, and what it costs.

    Timed steps alone have no accuracy.
    """
    whole = [r for r in results if r.dataset.startswith("xlong") and r.variant == "default"]
    accuracy = {dataset: here for dataset, overrides, here in by_setting(whole) if not overrides}
    logs = sorted({one.dataset for one in runs if one.model in LONG} | set(accuracy))
    grids = []
    for dataset in logs:
        here = [one for one in runs if one.dataset == dataset and one.model in LONG]
        protocols(accuracy.get(dataset, []), force)
        title = f"Table 4: {here[0].log if here else dataset}"
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
    logs = sorted({(one.log, one.max_length) for one in ours})
    grid = Grid("Table 5: seconds per epoch", [f"{log}, L{length}" for log, length in logs])
    for scan, name in SCANS.items():
        cells = []
        for where in logs:
            here = [one for one in ours if (one.log, one.max_length) == where and one.scan == scan]
            missing = f"{NOT_RUN} (needs CUDA)" if scan in NEED_CUDA else NOT_RUN
            cells.append(_cost(here, UNITS[0]) if here else Cell(missing))
        grid.add(name, cells)
    grid.notes = _notes(ours)
    datasets = ("ml-1m", "gowalla", "xlong")
    papers = Grid("Table 5: the paper's, on an A100 of 40 GB", list(datasets))
    for scan in ("serial", "parallel_sp", "parallel_ep"):
        rows = (paper_row("table5", dataset, "recblr", scan) for dataset in datasets)
        papers.add(SCANS[scan], [f"{row['s/epoch']:.0f}" for row in rows])
    papers.notes = ["Another machine, another trainer: ours and these do not compare."]
    return [grid, papers]


def fastest(runs: Sequence[Timed]) -> list[Timed]:
    """Of runs that differ in their scan, the one whose epoch is shortest; none of none."""
    return sorted(runs, key=lambda one: one.values[UNITS[0]])[:1]


def _cost(runs: Sequence[Timed], unit: str) -> Cell:
    """The mean, of runs of whole epochs where there are any."""
    chosen = [one for one in runs if one.steps is None] or list(runs)
    return Cell(f"{mean(one.values[unit] for one in chosen):,.1f}" if chosen else NOT_RUN)


def _notes(runs: Sequence[Timed]) -> list[str]:
    devices = sorted({f"{one.setting.device}, {one.setting.threads} threads" for one in runs})
    return [f"On {' and '.join(devices)}.", extrapolated(runs)] if runs else []


def extrapolated(runs: Sequence[Timed]) -> str:
    """How much of an epoch was timed."""
    steps = sorted({one.steps for one in runs if one.steps is not None})
    if not steps:
        return "Whole epochs."
    return f"Extrapolated from {' or '.join(map(str, steps))} steps of an epoch."
