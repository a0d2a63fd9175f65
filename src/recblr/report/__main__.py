"""Reports from finished runs: `python -m recblr.report --help`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recblr.report import accuracy
from recblr.report.compare import compare_groups, group_at
from recblr.report.grid import Grid, as_csv, latex, markdown
from recblr.report.results import Result, append_csv, read_csv, read_results
from recblr.report.status import statuses

SUMMARY = Path("results/accuracy.csv")
TABLES: dict[str, tuple[Callable[[Sequence[Result], bool], list[Grid]], str]] = {
    "table1": (accuracy.table1, "every model on every data set"),
    "table3": (accuracy.table3, "RecBLR with one part left out"),
}
FIGURES = {
    "figure5": "metrics against the expansion factor",
    "figure6": "metrics against the dropout rate",
    "curves": "validation NDCG@10 by epoch",
    "accuracy_against_time": "test NDCG@10 against seconds of training",
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(141)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recblr.report",
        description="Status, tables, figures and tests of difference from run folders.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, name=name)
        return added

    status = command("status", _status, "which runs are finished, cut, failed or being written")
    status.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], metavar="RUNS")
    collect = command("collect", _collect, f"add finished runs to {SUMMARY}")
    collect.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    collect.add_argument("--to", type=Path, default=SUMMARY, help=f"({SUMMARY})")
    for name in (*TABLES, *FIGURES):
        text = TABLES[name][1] if name in TABLES else FIGURES[name]
        made = command(name, _table if name in TABLES else _figure, text)
        made.add_argument(
            "runs", nargs="*", type=Path, metavar="RUNS", help=f"folders; none: {SUMMARY}"
        )
        made.add_argument("--out", type=Path, help="folder of the files")
        made.add_argument("--force", action="store_true", help="mix splits and protocols")
    compare = command("compare", _compare, "two runs, or groups of seeds, user by user")
    compare.add_argument("a", type=Path, metavar="A", help="a run, or a folder of one setting")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--metric", default="ndcg@10", help="(ndcg@10)")
    compare.add_argument("--json", action="store_true", help="the figures as JSON")
    return parser


def _results(options: argparse.Namespace) -> list[Result]:
    if options.runs:
        return read_results(options.runs)
    if not SUMMARY.is_file():
        raise ValueError(f"{SUMMARY} is not here: name the folder of the runs, e.g. runs")
    return read_csv(SUMMARY)


def _table(options: argparse.Namespace) -> None:
    grids = TABLES[options.name][0](_results(options), options.force)
    if not grids:
        raise ValueError(f"{options.name}: no finished run with test metrics")
    for grid in grids:
        print(markdown(grid))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for suffix, write in (("md", markdown), ("tex", latex)):
            text = "\n".join(write(grid) for grid in grids)
            (options.out / f"{options.name}.{suffix}").write_text(text, encoding="utf-8")
        for grid in grids:
            about = re.sub(r"[^\w.=-]+", "_", grid.title.split(": ")[1])
            name = f"{options.name}_{about}.csv"
            (options.out / name).write_text(as_csv(grid), encoding="utf-8")
        print(f"written: {options.out}/{options.name}.{{md,tex}} and a CSV per data set")


def _figure(options: argparse.Namespace) -> None:
    from recblr.report import figures

    made = getattr(figures, options.name)(_results(options), options.force)
    if not made:
        raise ValueError(f"{options.name}: no finished run to draw")
    for file in figures.save(made, options.out or Path("results/figures")):
        print(f"written: {file}")


def _status(options: argparse.Namespace) -> None:
    table = Table("run", "seed", "state", "epochs", "ndcg@10", "", box=None)
    found = statuses(options.runs)
    for one in found:
        ndcg = "" if one.ndcg is None else f"{one.ndcg:.4f}"
        remark = one.error or ("older code" if one.older else "")
        table.add_row(one.name, str(one.seed), one.state, str(one.epochs), ndcg, remark)
    console = Console(width=max(Console().width, 110))
    console.print(table)
    counts = {state: sum(one.state == state for one in found) for state in
              ("finished", "running", "cut", "failed")}  # fmt: skip
    console.print(", ".join(f"{number} {state}" for state, number in counts.items()))


def _collect(options: argparse.Namespace) -> None:
    results = [result for result in read_results(options.runs) if not result.smoke]
    total = append_csv(options.to, results)
    print(f"{options.to}: {len(results)} runs read, {total} in the file")


def _compare(options: argparse.Namespace) -> None:
    a, b = group_at(options.a), group_at(options.b)
    result = compare_groups(a, b, options.metric)
    if options.json:
        known = {name: (None if value != value else value) for name, value in
                 result._asdict().items()}  # fmt: skip
        sides = {"a": a.name, "b": b.name, "metric": options.metric}
        return print(json.dumps(sides | known, indent=2))
    print(f"A: {a.name}\nB: {b.name}\n")
    print(f"{options.metric}: A {result.mean_a:.4f}, B {result.mean_b:.4f}")
    print(
        f"A - B: {result.difference:+.4f}, 95 % of bootstrap samples of users in "
        f"[{result.low:+.4f}, {result.high:+.4f}]"
    )
    print(f"p over users (randomisation): {result.p_users:.4g}")
    seeds = "not known: both need 2 seeds" if result.p_seeds != result.p_seeds else None
    print(f"p over seeds (Welch): {seeds or f'{result.p_seeds:.4g}'}")


if __name__ == "__main__":
    main()
