"""What a person reads at the end of a run: one table, and the run folder's model card."""

from __future__ import annotations

import csv
import shlex
from importlib import resources
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from recblr.run_folder import METRICS, Config, RunFolder, model_name, variant_name

Row = dict[str, float]


def run_rows(run: RunFolder) -> dict[str, Row]:
    """The rows of a finished run's table, from its folder."""
    floors, metrics = run.read_json("floors.json"), run_metrics(run)
    return result_rows(run.read_config(), evaluated_on(run), floors, metrics)


def run_metrics(run: RunFolder) -> dict[str, Any]:
    """What the run ended with: test metrics, or validation metrics with test=false."""
    return run.read_json("test_metrics.json" if evaluated_on(run) == "test" else "val_metrics.json")


def evaluated_on(run: RunFolder) -> str:
    """`test`, or `val` for a run with test=false."""
    return "test" if (run.path / "test_metrics.json").exists() else "val"


def result_rows(config: Config, split: str, floors: dict[str, Row], metrics: Row) -> dict[str, Row]:
    """Name -> metrics: floors, the model, then what it is measured against.

    The paper's row only stands beside test figures of its own protocol, recipe and log: one with
    the users and interactions of its Table 2 (its items count the padding id here and there).
    """
    name = variant_name(config)
    rows = {floor: floors[floor] for floor in ("popularity", "markov") if floor != name}
    rows[name] = metrics
    if "ceiling" in floors:
        rows["ceiling (upper bound)"] = floors["ceiling"]
    leave_one_out = config["data"].get("split", "leave_one_out") == "leave_one_out"
    same_protocol = split == "test" and leave_one_out and not config["datamodule"]["mask_history"]
    paper = config["data"].get("card", {}).get("paper") or {}
    same_log = all(metrics.get(key) == paper.get(key) for key in ("users", "interactions"))
    if same_protocol and same_log and config["recipe"] == "paper" and not config["smoke"]:
        number, variant = (1, "") if name == model_name(config) else (3, config["ablation"])
        values = paper_row(f"table{number}", config["data"]["name"], model_name(config), variant)
        rows[f"{name}, paper's Table {number}"] = values
    return {name: row for name, row in rows.items() if row}


def paper_row(table: str, dataset: str, model: str, variant: str = "") -> Row:
    """What a table of the paper has for a data set, model and variant: an ablation, a scan."""
    text = (resources.files("recblr.report") / "paper.csv").read_text(encoding="utf-8")
    return {
        line["metric"]: float(line["value"])
        for line in csv.DictReader(text.splitlines())
        if (line["table"], line["dataset"], line["model"], line["variant"])
        == (table, dataset, model, variant)
    }


def protocol(config: Config, split: str, order: str) -> str:
    """One line: without it a metric means nothing."""
    data, loader = config["data"], config["datamodule"]
    masked = "not ranked" if loader["mask_history"] else "ranked too"
    how = data.get("split", "leave_one_out")
    if how == "temporal":
        how += " split at quantiles {} and {}".format(*data["cut"])
    return (
        f"{split} targets of {how}, all items ranked, history {masked}; "
        f"order {order}, repeats {data.get('repeats', 'keep')}, "
        f"{loader['target_mode']}, max_length {loader['max_length']}"
    )


def print_config(config: Config) -> None:
    """The resolved config without the data set's card, a line per call or value."""
    shown = config | {"data": {k: v for k, v in config["data"].items() if k != "card"}}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=1000)
    Console(soft_wrap=True, highlight=False).print(text)


def print_run(run: RunFolder) -> None:
    """The table of a finished run and where it is."""
    config = run.read_config()
    print_results(config, evaluated_on(run), run_metrics(run)["order"], run_rows(run))
    Console(soft_wrap=True).print(f"run folder: {run.path}")


def print_results(config: Config, split: str, order: str, rows: dict[str, Row]) -> None:
    """Metrics, one row per model, four decimals, under the protocol they belong to."""
    title = f"{config['data']['name']}, {split}" + (" (SMOKE RUN)" if config["smoke"] else "")
    table = Table(
        title=title,
        caption=protocol(config, split, order),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[m]:.4f}" if m in row else "" for m in METRICS))
    Console(width=max(Console().width, 100)).print(table)


def model_card(run: RunFolder) -> str:
    """README.md of a run folder."""
    config, split, rows = run.read_config(), evaluated_on(run), run_rows(run)
    environment: dict[str, Any] = run.read_json("environment.json")
    best = run.checkpoints / "best.ckpt"
    lines = [
        f"# {variant_name(config)} on {config['data']['name']}",
        "",
        "**A smoke run: its figures mean nothing.**\n" if config["smoke"] else "",
        f"Protocol: {protocol(config, split, run_metrics(run)['order'])}.",
        "",
        "| | " + " | ".join(METRICS) + " |",
        "| --- |" + " ---: |" * len(METRICS),
    ]
    for name, row in rows.items():
        cells = (f"{row[m]:.4f}" if m in row else "" for m in METRICS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Command: `{environment['command']}`  ",
        f"Commit: {environment['commit'] or 'unknown'}  ",
        f"Machine: {environment['gpu'] or environment['cpu']}, {environment['threads']} threads",
        "",
        f"Evaluate again: `python evaluate.py {shlex.quote(f'ckpt_path={best}')}`"
        if best.exists()
        else "Nothing was trained: there is no checkpoint.",
    ]
    return "\n".join(lines) + "\n"
