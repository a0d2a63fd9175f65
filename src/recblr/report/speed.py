"""`results/speed.csv`: a row per figure, with what it holds for beside it."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recblr.run_folder import commit, cores, cpu_name, version

ROOT = Path(__file__).resolve().parents[3]


class Row(NamedTuple):
    what: str
    case: str
    backend: str
    unit: str
    value: float
    p20: float | None = None
    p80: float | None = None


class Setting(NamedTuple):
    """What figures hold for; `_replace(threads=1)` for other threads."""

    threads: int | None
    load: float | None  # of the machine, at the start; not known of a training
    device: str
    versions: str
    commit: str | None
    command: str

    @classmethod
    def now(cls, *packages: str, device: str | None = None) -> Setting:
        """packages: those that matter to the figures. device: the GPU's name; None = the CPU.

        The command names files without the folders of one machine.
        """
        words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
        found = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        return cls(
            threads=int(os.environ.get("OMP_NUM_THREADS") or 0) or cores(),
            load=os.getloadavg()[0],
            device=device or f"{cpu_name()}, {cores()} cores",
            versions="; ".join(f"{name} {number}" for name, number in found.items() if number),
            commit=commit(),
            command=shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *words]),
        )


COLUMNS = (*Row._fields, *Setting._fields)
KEY = [COLUMNS.index(name) for name in ("what", "case", "backend", "unit", "threads", "device")]


def record(path: Path | str, rows: Iterable[Row], setting: Setting) -> None:
    """Add rows to the file, each in place of the one with the same KEY, all sorted by it."""
    path, lines = Path(path), []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = map(tuple, csv.reader(file))
        if header != COLUMNS:
            raise ValueError(f"{path}: its columns are {header}, expected {COLUMNS}")
    lines += [tuple(map(_text, (*row, *setting))) for row in rows]
    table = {tuple(line[column] for column in KEY): line for line in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")  # a killed benchmark leaves no half-written file
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *(table[key] for key in sorted(table))])
    partial.replace(path)


def _text(value: object) -> str:
    """Numbers with 4 significant digits, never as 1e+04; None is empty."""
    if isinstance(value, (int, float)):
        return np.format_float_positional(float(f"{value:.4g}"), trim="-")
    return "" if value is None else str(value)
