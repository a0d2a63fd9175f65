"""Reports from finished runs: `python -m recblr.report --help`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recblr.report import accuracy, timed
from recblr.report.compare import compare_groups, group_at
from recblr.report.evidence import RESULTS, Evidence
from recblr.report.grid import Grid, as_csv, latex, markdown
from recblr.report.page import page
from recblr.report.settings import settings
from recblr.report.status import statuses

TABLES: dict[str, tuple[Callable[[Evidence, bool], list[Grid]], str]] = {
    "table1": (
        lambda e, force: accuracy.table1(e.results, force, set() if force else e.stars),
        "every model on every data set",
    ),
    "table2": (lambda e, force: accuracy.table2(e.results, force), "users, items, interactions"),
    "table3": (lambda e, force: accuracy.table3(e.results, force), "RecBLR with one part left out"),
    "settings": (
        lambda e, force: settings(e.results),
        "recipes with a setting changed, and orders of a log",
    ),
    "table4": (lambda e, force: timed.table4(e.results, e.runs, force), "long histories"),
    "table5": (lambda e, force: timed.table5(e.runs), "seconds of an epoch by scan"),
}
MIXABLE = ("table1", "table2", "table3", "table4")  # what --force has a meaning for
FIGURES = {
    "figure4": "seconds and memory against the longest history",
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

    status = command("status", _status, "which runs are finished, cut, failed, pruned or running")
    status.add_argument("runs", nargs="*", type=Path, default=[Path("runs")], metavar="RUNS")
    collect = command("collect", _collect, f"add finished runs to the files in {RESULTS}")
    collect.add_argument("runs", nargs="+", type=Path, metavar="RUNS")
    collect.add_argument("--to", type=Path, default=RESULTS, help=f"({RESULTS})")
    written = command("page", _page, f"write RESULTS.md from the files in {RESULTS}")
    written.add_argument("results", nargs="?", type=Path, default=RESULTS, help=f"({RESULTS})")
    written.add_argument("--out", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    texts = {name: text for name, (_, text) in TABLES.items()} | FIGURES
    for name, text in (texts | {"figures": "all of them that have something to show"}).items():
        made = command(name, _table if name in TABLES else _figures, text)
        sources = f"run folders, or one that `collect` filled ({RESULTS})"
        made.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help=sources)
        beside = "" if name in TABLES else f" (figures/ in the first RUNS, or in {RESULTS})"
        made.add_argument("--out", type=Path, help=f"folder of the files{beside}")
        made.set_defaults(force=False)
        if name in MIXABLE:
            made.add_argument("--force", action="store_true", help="mix splits and protocols")
    compare = command("compare", _compare, "two runs, or groups of seeds, user by user")
    compare.add_argument("a", type=Path, metavar="A", help="a run, or a folder of one setting")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--metric", default="ndcg@10", help="(ndcg@10)")
    compare.add_argument("--json", action="store_true", help="the figures as JSON")
    wandb = command("wandb", _wandb, "make a workspace of comparison panels on W&B")
    wandb.add_argument("--project", required=True, metavar="P")
    wandb.add_argument("--entity", metavar="E", help="(yours)")
    wandb.add_argument("--data", metavar="D", help="only runs on this data set")
    wandb.add_argument("--dry-run", action="store_true", help="print it as JSON; needs no login")
    return parser


def _table(options: argparse.Namespace) -> None:
    grids = TABLES[options.name][0](Evidence.of(options.runs), options.force)
    if not grids:
        raise ValueError(f"{options.name}: no finished run to show{_way_out(options.name)}")
    for grid in grids:
        print(markdown(grid))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for suffix, write in (("md", markdown), ("tex", latex)):
            text = "\n".join(write(grid) for grid in grids)
            (options.out / f"{options.name}.{suffix}").write_text(text, encoding="utf-8")
        for grid in grids:
            about = re.sub(r"[^\w.=-]+", "_", grid.title.split(": ")[1]).strip("_")
            name = f"{options.name}_{about}.csv"
            (options.out / name).write_text(as_csv(grid), encoding="utf-8")
        print(f"written: {options.out}/{options.name}.{{md,tex}} and a CSV per data set")


def _way_out(name: str) -> str:
    """For what the paper has, which is what has a number: the experiment of the same name."""
    numbered = name[-1].isdigit()
    return f"; python train.py experiment={name} makes its runs" if numbered else ""


def _figures(options: argparse.Namespace) -> None:
    from recblr.report import figures

    evidence, made = Evidence.of(options.runs), {}
    for name in FIGURES if options.name == "figures" else [options.name]:
        if name == "figure4":
            made |= figures.figure4(evidence.runs)
        else:
            made |= getattr(figures, name)(evidence.results)
    if not made:
        raise ValueError(f"{options.name}: no finished run to draw{_way_out(options.name)}")
    beside = options.runs[0] if options.runs else RESULTS
    for file in figures.save(made, options.out or beside / "figures"):
        print(f"written: {file}")


def _status(options: argparse.Namespace) -> None:
    table = Table("run", "folder", "state", "epochs", "ndcg@10", "", box=None)
    found = statuses(options.runs)
    for one in found:
        ndcg = "" if one.ndcg is None else f"{one.ndcg:.4f}"
        remarks = ", ".join(filter(None, [one.kind, "older code" if one.older else ""]))
        remark = one.error or remarks
        table.add_row(one.name, one.path.name, one.state, str(one.epochs), ndcg, remark)
    console = Console(width=max(Console().width, 110))
    console.print(table)
    counts = {state: sum(one.state == state for one in found) for state in
              ("finished", "running", "cut", "failed", "pruned")}  # fmt: skip
    console.print(", ".join(f"{number} {state}" for state, number in counts.items()))


def _collect(options: argparse.Namespace) -> None:
    for file, count in Evidence.of(options.runs).write(options.to).items():
        print(f"{file}: {count}")
    found = statuses(options.runs)
    smoke = sum(one.state == "finished" and "smoke" in one.kind for one in found)
    if unfinished := sum(one.state != "finished" for one in found):
        print(f"left out: {unfinished} runs that are not finished")
    if smoke:
        print(f"accuracy left out: {smoke} smoke runs")


def _page(options: argparse.Namespace) -> None:
    evidence = Evidence.of([options.results])
    if evidence.folder is None:
        raise ValueError(f"{options.results}: no accuracy.csv; `collect RUNS --to` writes it")
    if not evidence.results and not evidence.runs:
        raise ValueError(f"page: no finished run in {options.results}")
    options.out.write_text(page(evidence, options.results / "figures"), encoding="utf-8")
    print(f"written: {options.out}")


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


def _wandb(options: argparse.Namespace) -> None:
    from recblr.report.wandb import publish

    publish(options.project, options.entity, options.data, options.dry_run)


if __name__ == "__main__":
    main()
