"""RESULTS.md: every table and figure that the files in `results/` give, and their limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from recblr.report import accuracy, timed
from recblr.report.claims import claims
from recblr.report.evidence import SPEED, Evidence
from recblr.report.files import read_rows
from recblr.report.grid import Grid, markdown
from recblr.report.groups import by_setting
from recblr.report.settings import settings

# Of `speed.csv`: what, unit, title. A row per backend, a column per case.
SPEEDS = (
    ("peers", "targets/cpu_s", "Trained targets per CPU second, beside other libraries"),
    ("model", "targets/cpu_s", "Trained targets per CPU second, every model"),
    ("step", "share of mm", "A training step: its products' speed as a share of a 2048³ product"),
    ("inference", "events/s", "Events per second that live states take, many users at once"),
    ("recommend", "cpu_s", "CPU seconds of the top 10 of every user"),
)
METRICS = ("ndcg@10", "hr@10")
CAPTIONS = {
    "figure4": "Cost of an epoch against the longest history",
    "figure5": "Metrics against the expansion factor",
    "figure6": "Metrics against the dropout rate",
    "curves": "Validation NDCG@10 by epoch",
    "time": "Test NDCG@10 against seconds of training",
    "bd_lru_length": "Forward and backward of the BD-LRU against the length of sequences",
    "inference_length": "Scoring a user against the length of the history",
}
NOTES = "notes.md"  # what no table can say: what was tried, and what the evidence points to
HEAD = """# Results

Written by `python -m recblr.report page` from the files in [results/](results). In `accuracy.csv`
and `speed.csv` a figure is a row with machine, versions, commit and command beside it.
`python -m recblr.report collect RUNS` adds runs to them.

Protocol: leave-one-out, every item ranked, history included, HR, NDCG and MRR exact under ties; a
split's hash stands under its table. The paper's values are single runs of its own code on its own
copy of the logs. A cell that nobody ran says so.

A name in brackets is a recipe: `paper`, the paper's settings of the data set; `ours`, ours for one
that the paper has not; `usual`, the usual library's or the authors' settings of a baseline; `best`,
what scored best here on validation, with ideas of ours (README), `bias` with one of them alone.
"""
LIMITS = """## Limits

- Sequence files (Beauty, Sports, Toys, Yelp, ML-1M here) carry no times: the order of events of one
  day, or of one second, is that of the file. `ml-1m.txt.gz` breaks ties by item id (its runs are
  marked `order item_id`), which makes it easier; those rows are not comparable with the paper's and
  never stand beside them.
- A difference without a star may still exist: with few seeds none can be shown.
"""


def page(evidence: Evidence, figures: Path) -> str:
    """Markdown. figures: the folder whose pictures are shown."""
    assert evidence.folder is not None
    speed, notes = evidence.folder / SPEED, evidence.folder / NOTES
    rows = read_rows(speed) if speed.exists() else []
    gpu = any("NVIDIA" in row["device"] for row in rows)
    parts = [
        HEAD,
        f"## Claims\n\n{claims(evidence)}",
        *([notes.read_text(encoding="utf-8")] if notes.exists() else []),
        "## Accuracy\n",
        accuracy.spent(evidence.results),
        *map(markdown, accuracy.table1(evidence.results, False, evidence.stars)),
        *map(markdown, accuracy.table3(evidence.results)),
        *map(markdown, settings(evidence.results)),
        *map(markdown, accuracy.table2(evidence.results)),
        *map(markdown, _differences(evidence)),
        "## Cost\n",
        *map(markdown, timed.table4(evidence.results, evidence.runs)),
        *map(markdown, timed.table5(evidence.runs)),
        *map(markdown, _speeds(rows)),
        "## Figures\n",
        *(_picture(file) for file in sorted(figures.glob("*.png"))),
        LIMITS + ("" if gpu else "- Nothing was measured on a GPU.\n"),
    ]
    return "\n".join(parts)


def _picture(file: Path) -> str:
    kind, _, log = file.stem.partition("_")
    caption = CAPTIONS.get(kind) or CAPTIONS.get(file.stem, file.stem)
    text = f"{caption}: {log.replace('_', ', ')}" if kind in CAPTIONS else caption
    return f"![{text}]({file})\n\n{text}.\n"


def _differences(evidence: Evidence) -> list[Grid]:
    """NDCG@10 and HR@10 of RecBLR minus each baseline's, a grid per data set and metric."""
    grids = []
    shown = {(dataset, changed) for dataset, changed, _ in by_setting(evidence.results)}
    tables = shown & {(one.dataset, one.overrides) for one in evidence.differences}
    for dataset, overrides, metric in sorted((*table, m) for table in tables for m in METRICS):
        columns = ["seeds", "difference", "95 % interval", "p users", "p seeds", "star"]
        title = f"Differences of {metric.upper()}"
        grid = Grid(accuracy.titled(title, dataset, overrides), columns)
        for one in evidence.differences:
            if (one.dataset, one.overrides, one.metric) != (dataset, overrides, metric):
                continue
            p_seeds = "" if one.p_seeds != one.p_seeds else f"{one.p_seeds:.2g}"
            grid.add(
                f"recblr ({one.recipe}) − {one.baseline} ({one.baseline_recipe})",
                [
                    f"{one.runs}, {one.baseline_runs}",
                    f"{one.difference:+.4f}",
                    f"{one.low:+.4f} to {one.high:+.4f}",
                    f"{one.p_users:.2g}",
                    p_seeds,
                    "*" * one.star,
                ],
            )
        grid.notes = [
            "p after Holm over the baselines of one data set. *: recblr is above, and both p are "
            "below .01; a negative difference has none, however small its p."
        ]
        grids.append(grid)
    return grids


def _speeds(rows: Sequence[dict[str, str]]) -> Iterable[Grid]:
    """A grid per kind of figure and machine."""
    for what, unit, title in SPEEDS:
        here = [row for row in rows if (row["what"], row["unit"]) == (what, unit)]
        for device, threads in sorted({(row["device"], row["threads"]) for row in here}):
            on = [row for row in here if (row["device"], row["threads"]) == (device, threads)]
            cases = sorted({row["case"] for row in on})
            values = {(row["backend"], row["case"]): row["value"] for row in on}
            grid = Grid(f"{title}: {device}, {threads} threads", cases)
            for backend in sorted({row["backend"] for row in on}):
                grid.add(backend, [values.get((backend, case), "") for case in cases])
            commits = sorted({row["commit"] for row in on})
            grid.notes = [f"commit {', '.join(commits)}"]
            yield grid
