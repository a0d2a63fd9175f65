"""A table as cells, written as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

NOT_RUN = "not run"
Mark = Literal["", "best", "second"]


class Cell(NamedTuple):
    """text: as it is read. mark: bold for the best of a column, underlined for the second."""

    text: str
    mark: Mark = ""


@dataclass
class Grid:
    """title, column names, rows of (name, cells), and notes below."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, cells: Sequence[Cell | str]) -> None:
        assert len(cells) == len(self.columns), (name, cells, self.columns)
        self.rows.append((name, [c if isinstance(c, Cell) else Cell(c) for c in cells]))


def markdown(grid: Grid) -> str:
    marks = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
    lines = [f"### {grid.title}", "", "| | " + " | ".join(grid.columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(grid.columns))
    for name, cells in grid.rows:
        shown = (marks[cell.mark].format(cell.text.replace("*", r"\*")) for cell in cells)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *(f"{note}  " for note in grid.notes)]).rstrip() + "\n"


def latex(grid: Grid) -> str:
    """A `tabular` with booktabs rules, in a `table` with the title as caption."""
    marks = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(grid.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(grid.columns)}}}", r"\toprule"]
    lines.append(" & ".join(["", *map(_escaped, grid.columns)]) + r" \\")
    lines.append(r"\midrule")
    for name, cells in grid.rows:
        shown = (marks[cell.mark].format(_escaped(cell.text)) for cell in cells)
        lines.append(" & ".join([_escaped(name), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {_escaped(note)}" for note in grid.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def as_csv(grid: Grid) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *grid.columns])
    for name, cells in grid.rows:
        writer.writerow([name, *(cell.text for cell in cells)])
    return text.getvalue()


def _escaped(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"),
        ("±", r"$\pm$"), ("−", "$-$"), ("*", r"$^{*}$"),
    ):  # fmt: skip
        text = text.replace(plain, escaped)
    return text
