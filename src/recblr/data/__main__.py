"""Data sets from the command line: `python -m recblr.data --help`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from recblr.data import catalog
from recblr.data.catalog import LogFile
from recblr.data.download import file_name
from recblr.data.preprocess import Order, Repeats, SplitName
from recblr.data.readers import AnyFormat, Interactions
from recblr.data.sequences import SequenceStore
from recblr.data.statistics import count, counts_of, histogram, repeated, tied

BAR = 40  # characters of the longest bar of the histogram


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.run(options)
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(141)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recblr.data",
        description="List, fetch, describe and prepare logs of interactions.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the data sets by name")
    listing.set_defaults(run=_list)
    listing.add_argument("--data", default="data", help="folder of downloads and caches (data)")
    for name, run, text in (
        ("fetch", _fetch, "download a data set"),
        ("describe", _describe, "what a log holds, before and after filtering"),
        ("prepare", _prepare, "fill the cache that train.py reads"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--data", default="data", help="folder of downloads and caches (data)")
        if name == "fetch":
            command.add_argument("log", metavar="NAME")
            continue
        command.add_argument("log", metavar="PATH_OR_NAME", help="a file, a folder, or a data set")
        recipe = command.add_argument_group("recipe; default: the data set's, or custom's")
        recipe.add_argument("--path", help="the log of a data set that is given by NAME")
        recipe.add_argument("--format", choices=get_args(AnyFormat))
        recipe.add_argument("--columns", type=_columns, help="user=uid,item=1,time=ts")
        recipe.add_argument("--separator", help="one character")
        recipe.add_argument("--no-quotes", action="store_false", dest="quotes", default=None)
        recipe.add_argument("--repeats", choices=get_args(Repeats))
        recipe.add_argument("--order", choices=get_args(Order))
        recipe.add_argument("--min", type=int, dest="min_interactions", help="k of the k-core")
        recipe.add_argument("--split", choices=get_args(SplitName))
        recipe.add_argument("--cut", type=_cut, help="0.8,0.9: quantiles of a temporal split")
        recipe.add_argument("--users", type=int, help="keep that many, drawn at random")
        recipe.add_argument("--member", help="which file of a zip archive")
        recipe.add_argument("--max-bad-rows", type=int, help="unreadable rows to leave out")
        if name == "describe":
            command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _columns(text: str) -> dict[str, str | int]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    columns = {key: int(name) if name.isdigit() else name for key, _, name in pairs}
    fits = set(columns) <= {"user", "item", "time"} and "" not in columns.values()
    if not fits or len(columns) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected user=..,item=..,time=..")
    return columns


def _cut(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _log(options: argparse.Namespace) -> LogFile:
    """The catalog's entry, or a log of one's own, with the recipe's flags."""
    keys = ("path", "format", "separator", "repeats", "order", "min_interactions", "split", "cut")
    keys += ("users", "member", "max_bad_rows", "quotes")
    changes = {key: value for key in keys if (value := getattr(options, key)) is not None}
    changes["folder"] = options.data
    named = options.log in catalog.names()
    if not named:
        if options.path:
            raise ValueError(f"--path={options.path}: '{options.log}' is no data set's name")
        if not Path(options.log).expanduser().exists():
            valid = ", ".join(catalog.names())
            raise ValueError(f"'{options.log}': no such file, and no data set; valid: {valid}")
        changes["path"] = options.log
    log = catalog.entry(options.log if named else "custom", **changes)
    if options.columns:
        log = replace(log, columns={**log.columns, **options.columns})
    return log


def _list(options: argparse.Namespace) -> None:
    print(f"{'synthetic':<19} {'printed by each run':<30} {'generated':<16}".rstrip())
    for name in catalog.names():
        log = catalog.entry(name)
        counts = log.card.after or {}
        after = " / ".join(f"{counts[key]:,}" for key in counts) or "unknown"
        where = "needs data.path"
        if log.urls:
            here = Path(options.data, file_name(log.urls)).exists()
            where = "on disk" if here else "to download"
        if name == "custom":
            after = "your own log"
        print(f"{name:<19} {after:<30} {where:<16} {log.card.licence or ''}".rstrip())


def _fetch(options: argparse.Namespace) -> None:
    print(catalog.entry(options.log, folder=options.data).find())


def _prepare(options: argparse.Namespace) -> None:
    store = _log(options).load()
    print(f"split {store.split_hash}")


def _describe(options: argparse.Namespace) -> None:
    log = _log(options)
    path = log.find()
    raw = log.read(path)
    store, statistics = log.prepare(raw, path)
    lengths = np.bincount(raw.users)
    facts = {
        "name": log.name,
        "path": str(path),
        "format": raw.format,
        "raw": count(raw)._asdict(),
        "rounds": [left._asdict() for left in statistics.rounds],
        "prepared": counts_of(store)._asdict(),
        "unreadable": raw.unreadable,
        "repeated": repeated(raw),
        "tied": tied(raw),
        "repeats_dropped": statistics.repeats_dropped,
        "times": statistics.notes,
        "length": {"average": float(lengths.mean()), "longest": int(lengths.max())},
        "lengths": histogram(lengths),
        "order": store.order,
        "test_items_moved": _moved(log, raw, path, store),
        "split": store.split.name,
        "split_hash": store.split_hash,
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{path}")
    beside = {"expected": log.card.after, "paper, Table 2": log.card.paper}
    print("\n".join(statistics.lines(store, beside)))
    ties = "no times" if facts["tied"] is None else f"{facts['tied']:.2%} share user and time"
    print(f"raw rows: {facts['repeated']:.1%} repeat a (user, item) before them, {ties}")
    print(f"raw rows per user: average {lengths.mean():.1f}, longest {lengths.max():,}")
    largest = max(facts["lengths"].values())
    for name, users in facts["lengths"].items():
        print(f"{name:>12} {users:>9,} {'#' * -(-BAR * users // largest)}")
    for order, share in facts["test_items_moved"].items():
        print(f"data.order={order} would change {share:.1%} of the test items")
    print(f"split {store.split_hash}")


def _moved(log: LogFile, raw: Interactions, path: Path, store: SequenceStore) -> dict[str, float]:
    """Order -> share of test items that it would change, for the orders that the log allows."""
    if raw.times is None or store.split.name == "temporal":
        return {}
    targets = store.split.test[store.split.test >= 0]
    shares = {}
    for order in ("exact", "recbole_float32", "item_id"):
        if order != store.order:
            other, _ = replace(log, order=order).prepare(raw, path)
            shares[order] = float((other.items[targets] != store.items[targets]).mean())
    return shares


if __name__ == "__main__":
    main()
