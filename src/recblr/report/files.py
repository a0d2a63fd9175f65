"""The committed files of finished runs: `results/{accuracy,curves}.csv`.

One row of `accuracy.csv` is one figure: a metric of a run, with its protocol beside it; the counts
of a log are figures of its popularity floor. One row of `curves.csv` is an epoch of a run.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from recblr.report.results import Result, changed_since, without_folders
from recblr.run_folder import METRICS

_NO_COLUMNS = ("metrics", "smoke", "path", "ranks", "curve")
COLUMNS = tuple(f.name for f in fields(Result) if f.name not in _NO_COLUMNS)
_BEFORE_METRIC = COLUMNS[: COLUMNS.index("split_hash")]
_AFTER_VALUE = COLUMNS[COLUMNS.index("split_hash") :]
CSV_COLUMNS = (*_BEFORE_METRIC, "metric", "value", *_AFTER_VALUE)
_RUN_OF_CURVE = ("dataset", "model", "variant", "recipe", "overrides", "seed")
_RUN_OF_CURVE += ("split_hash", "evaluated_on", "mask_history", "order")
CURVE_COLUMNS = (*_RUN_OF_CURVE, "epoch", "val/ndcg@10", "seconds")


def read_csv(file: Path) -> list[Result]:
    """The runs of an `accuracy.csv`: its rows, gathered by all columns but metric and value."""
    gathered: dict[tuple[str, ...], dict[str, float]] = {}
    rows = read_rows(file, CSV_COLUMNS)
    try:
        for row in rows:
            key = tuple(row[name] for name in COLUMNS)
            gathered.setdefault(key, {})[row["metric"]] = float(row["value"])
        results = [_typed(dict(zip(COLUMNS, key)), metrics) for key, metrics in gathered.items()]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None
    for result in results:
        if lacks := [name for name in METRICS if name not in result.metrics]:
            raise ValueError(f"{file}: {result.command}: no row of {', '.join(lacks)}")
    return results


def write_results(file: Path, results: Iterable[Result]) -> None:
    """Write an `accuracy.csv`."""
    rows = [
        {name: getattr(result, name) for name in COLUMNS}
        | {"command": without_folders(result.command), "metric": metric, "value": shown}
        for result in sorted(results, key=lambda r: (*r.setting, r.seed))
        for metric, value in result.metrics.items()
        for shown in [f"{value:.6g}" if isinstance(value, float) else value]
    ]
    write_csv(file, CSV_COLUMNS, rows)


def kept_ranks(folder: Path, result: Result) -> Path:
    """Where a folder of files keeps the ranks of a run's users."""
    variant = "" if result.variant == "default" else f"-{result.variant}"
    digest = hashlib.sha256(repr(result.identity).encode()).hexdigest()
    name = f"{result.model}{variant}_{result.recipe}_s{result.seed}_{digest[:12]}.parquet"
    return folder / result.dataset / name


def merged(known: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """What is known, with new runs added, or in the place of the same (but for their command).

    Of a setting whose recipe has changed since, the known runs go.
    """
    added = {result.identity: result for result in new}
    alike = {(result.setting, result.protocol): result for result in added.values()}
    kept = {
        result.identity: result
        for result in known
        if not (now := alike.get((result.setting, result.protocol)))
        or not changed_since(result, now)
    }
    return list((kept | added).values())


def write_curves(file: Path, results: Iterable[Result]) -> None:
    """Write a `curves.csv`."""
    rows = [
        dict(zip(_RUN_OF_CURVE, _run_of_curve(result)))
        | {"epoch": epoch, "val/ndcg@10": f"{value:.6g}", "seconds": seconds}
        for result in sorted(results, key=_run_of_curve)
        for epoch, (value, seconds) in enumerate(result.curve, start=1)
    ]
    write_csv(file, CURVE_COLUMNS, rows)


def with_curves(results: Iterable[Result], file: Path) -> list[Result]:
    """Results with what a `curves.csv` has of them."""
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in read_rows(file, CURVE_COLUMNS):
        key = tuple(row[name] for name in _RUN_OF_CURVE)
        curves.setdefault(key, []).append((float(row["val/ndcg@10"]), float(row["seconds"])))
    return [replace(r, curve=tuple(curves.get(_run_of_curve(r), ()))) for r in results]


def _run_of_curve(result: Result) -> tuple[str, ...]:
    return tuple(str(getattr(result, name)) for name in _RUN_OF_CURVE)


def read_rows(file: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file, as text; ValueError if it has not some columns, or a row is short."""
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise ValueError(f"no column {', '.join(sorted(missing))} in {file}; collect it anew")
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row.values() or None in row:
            raise ValueError(f"line {number} of {file} has not as many columns as its head")
    return rows


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file whole, or leave it as it was."""
    partial = file.with_name(f"{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(file)


def _typed(row: dict[str, Any], metrics: dict[str, float]) -> Result:
    for name in ("max_length", "seed", "epochs"):
        row[name] = int(row[name])
    row["seconds"], row["mask_history"] = float(row["seconds"]), row["mask_history"] == "True"
    return Result(**row, metrics=metrics)
