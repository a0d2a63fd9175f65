"""Figures for a paper's column, as PNG and SVG: one function each, from results or run folders."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Literal

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from recblr.report.groups import MODELS, by_dataset
from recblr.report.results import FLOORS, Result
from recblr.report.timed import LONG, UNITS, Timed, extrapolated, fastest

COLUMN = 3.35  # inches: a column of a two-column page
TITLE = 44  # characters of a line that fit above its axes
SHOWN = ("hr@10", "ndcg@10")
STYLE = {"hr@10": ("HR@10", "#0072B2", "o"), "ndcg@10": ("NDCG@10", "#D55E00", "s")}
LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv"
FILLS: tuple[Literal["full", "none", "left", "bottom"], ...] = ("full", "none", "left", "bottom")
LEGEND_ROW = 0.12  # inches
HALF_A_LEGEND = 34  # letters of a label that stands beside another
DPI = 200
POINTS = re.compile(r"\b[1-9]\d*\.\d{3,}")  # in an SVG; their last digits differ between processors


def figure5(results: Sequence[Result]) -> dict[str, Figure]:
    """Metrics against the expansion factor, a figure per data set (the paper's Figure 5)."""
    return _sweeps(results, "model.expansion", "expansion factor")


def figure6(results: Sequence[Result]) -> dict[str, Figure]:
    """Metrics against the dropout rate, a figure per data set (the paper's Figure 6)."""
    return _sweeps(results, "dropout", "dropout rate")


def figure4(runs: Sequence[Timed]) -> dict[str, Figure]:
    """Cost of an epoch against the longest history, a figure per log and machine (Figure 4)."""
    figures = {}
    places = sorted({(run.dataset, run.log, run.machine) for run in runs})
    for number, (dataset, log, machine) in enumerate(places, 1):
        here = [one for one in runs if (one.log, one.machine) == (log, machine)]
        figure = Figure((COLUMN, 1.9 * COLUMN), layout="constrained", dpi=DPI)
        panels = figure.subplots(3, 1, sharex=True)
        memory = "resident" if "cores" in machine else "allocated"
        labels = ("training, s/epoch", "inference, s", f"peak {memory} memory, MB")
        for axes, unit, label in zip(panels, UNITS, labels):
            for model in dict.fromkeys((*LONG, *sorted({one.model for one in here}))):
                ours = [one for one in here if one.model == model]
                lengths = sorted({one.max_length for one in ours})
                best = [fastest([o for o in ours if o.max_length == n])[0] for n in lengths]
                if ours:
                    values = [one.values[unit] for one in best]
                    axes.plot(lengths, values, "o-", markersize=3, linewidth=1.2, label=model)
            axes.set_ylim(bottom=0)
            _finish(axes, "", "", label, legend=False)
        panels[0].set_title(f"{log}\n{machine}\n{extrapolated(here)}", fontsize=7)
        panels[0].legend(fontsize=6, frameon=False)
        panels[-1].set_xlabel("max_length", fontsize=8)
        alone = [place[0] for place in places].count(dataset) == 1
        figures[f"figure4_{dataset}" + ("" if alone else f"_{number}")] = figure
    return figures


def curves(results: Sequence[Result]) -> dict[str, Figure]:
    """Validation NDCG@10 by epoch, a line per run: for each data set its models, and the ablations.

    The latter beside the whole RecBLR. A model has one color, a recipe one dash.
    """
    figures = {}
    for log, runs in _recipes(run for run in results if run.curve):
        whole = [run for run in runs if run.variant == "default"]
        if whole:
            figures[f"curves_{log}"] = _curves(whole, log)
        ablated = {(r.recipe, r.overrides) for r in runs if r.variant != "default"}
        recblr = [run for run in runs if run.model == "recblr"]
        for recipe, overrides in sorted(ablated):
            ours = [run for run in recblr if (run.recipe, run.overrides) == (recipe, overrides)]
            name = "_".join([f"curves_{log}_ablations", recipe, *overrides.split()])
            figures[name] = _curves(ours, f"{log}, ablations at recipe {recipe}")
    return figures


def _curves(runs: Sequence[Result], title: str) -> Figure:
    figure = Figure((COLUMN, 0.8 * COLUMN), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    for run in sorted(runs, key=_place):
        values = [value for value, _ in run.curve]
        best = max(values)
        color, dash = _color(run, runs), LINES[_dash(run, runs) % len(LINES)]
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, dash, color=color, label=_label(run), linewidth=0.8)
        axes.plot(values.index(best) + 1, best, "o", color=color, markersize=2.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, f"{title} (dots: the best epoch)", "epoch", "validation NDCG@10", legend=False)
    _legend_below(figure)
    return figure


def accuracy_against_time(results: Sequence[Result]) -> dict[str, Figure]:
    """Test NDCG@10 against the seconds that training took, a figure per data set.

    A point per run: its color is the model, its shape the machine, its filling the recipe.
    """
    figures = {}
    trained = (run for run in results if run.epochs and run.variant == "default")
    for log, runs in _recipes(trained):
        figure = Figure((COLUMN, 0.8 * COLUMN), layout="constrained", dpi=DPI)
        axes = figure.subplots()
        devices = sorted({run.device for run in runs})
        for run in sorted(runs, key=_place):
            shape = MARKERS[devices.index(run.device) % len(MARKERS)]
            points = axes.plot(run.seconds, run.metrics["ndcg@10"], shape, label=_label(run))[0]
            points.set(color=_color(run, runs), markersize=4)
            points.set_fillstyle(FILLS[_dash(run, runs) % len(FILLS)])
        if len(devices) > 1:
            for device, shape in zip(devices, MARKERS):
                axes.plot([], [], shape, color="black", markersize=4, label=device)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        where = devices[0] if len(devices) == 1 else "by machine (shape)"
        _finish(axes, f"{log}\n{where}", "seconds of training", "test NDCG@10", False)
        _legend_below(figure)
        figures[f"time_{log}"] = figure
    return figures


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each as `<name>.png` and `<name>.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    rcParams["svg.hashsalt"] = "recblr"  # the same figure is the same file
    files = []
    for name, figure in figures.items():
        png, svg = (folder / f"{name}.{kind}" for kind in ("png", "svg"))
        figure.savefig(png)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        text = POINTS.sub(lambda number: f"{float(number[0]):.2f}", drawn.getvalue())
        svg.write_text(text, encoding="utf-8")
        files += [png, svg]
    return files


def _sweeps(results: Iterable[Result], key: str, label: str) -> dict[str, Figure]:
    """Means over seeds of RecBLR's runs that set `key`, a figure per recipe and other settings.

    Those without others come alone, where there are any. A single value is no figure.
    """
    figures = {}
    for log, here in _by_protocol(results):
        sweeps: dict[tuple[str, str], dict[float, list[Result]]] = {}
        for run in here:
            if (run.model, run.variant) != ("recblr", "default"):
                continue
            settings = dict(word.split("=", 1) for word in shlex.split(run.overrides))
            if key in settings:
                value = float(settings.pop(key))
                others = " ".join(f"{k}={v}" for k, v in settings.items())
                sweeps.setdefault((run.recipe, others), {}).setdefault(value, []).append(run)
        drawn = {at: points for at, points in sweeps.items() if len(points) > 1}
        plain = {at: points for at, points in drawn.items() if not at[1]} or drawn
        for (recipe, others), points in sorted(plain.items()):
            number = "5" if key == "model.expansion" else "6"
            name = "_".join([f"figure{number}_{log}_{recipe}", *others.split()])
            title = " ".join(filter(None, [f"{log}, RecBLR ({recipe})", others]))
            figures[name] = _sweep(points, title, label)
    return figures


def _sweep(points: dict[float, list[Result]], title: str, label: str) -> Figure:
    """A line per metric over the values that were set."""
    figure = Figure((COLUMN, 0.7 * COLUMN), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    x = sorted(points)
    for metric in SHOWN:
        name, color, marker = STYLE[metric]
        y = [mean(run.metrics[metric] for run in points[value]) for value in x]
        axes.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1.2, label=name)
    axes.set_xticks(x)
    axes.set_ylim(bottom=0)
    epochs = sorted({run.epochs for runs in points.values() for run in runs})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    _finish(axes, f"{title}, {span} epochs", label, "test metric")
    return figure


def _recipes(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """By log and protocol: the runs of recipes as they are; of a log that has none, all runs."""
    found = [
        (log, runs, [run for run in runs if not run.overrides])
        for log, runs in _by_protocol(results)
    ]
    with_recipes = {runs[0].dataset for _, runs, plain in found if plain}
    return [
        (log, plain or runs)
        for log, runs, plain in found
        if plain or runs[0].dataset not in with_recipes
    ]


def _by_protocol(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Test results of each log, the most of one protocol first; others have it in their name."""
    found = []
    for dataset, runs in by_dataset(results):
        alike: dict[tuple, list[Result]] = {}
        for run in runs:
            if run.model not in FLOORS:
                alike.setdefault(run.protocol, []).append(run)
        usual: Result | None = None
        for ours in sorted(alike.values(), key=len, reverse=True):
            one, parts = ours[0], [dataset]
            if usual:
                parts += [one.split_hash[:6], "" if one.order == usual.order else one.order]
                parts += ["masked" if one.mask_history else ""]
            found.append(("_".join(filter(None, parts)), ours))
            usual = usual or one
    return found


def _place(run: Result) -> tuple:
    """An order of lines and of a legend: the paper's order of models, then recipes and seeds."""
    model = MODELS.index(run.model) if run.model in MODELS else len(MODELS)
    return (model, run.model, run.variant != "default", run.variant, *run.setting, run.seed)


def _color(run: Result, among: Iterable[Result]) -> str:
    """That of the model, the same in every figure; where one stands alone, of its variant."""
    colors = rcParams["axes.prop_cycle"].by_key()["color"]
    variants = sorted({one.variant for one in among}, key=lambda name: (name != "default", name))
    if len(variants) > 1:
        return colors[variants.index(run.variant) % len(colors)]
    names = [*MODELS, *sorted({one.model for one in among} - set(MODELS))]
    return colors[names.index(run.model) % len(colors)]


def _dash(run: Result, among: Iterable[Result]) -> int:
    """Which of the recipes and overrides in a figure a run is of."""
    kinds = sorted({(one.recipe, one.overrides) for one in among})
    return kinds.index((run.recipe, run.overrides))


def _legend_below(figure: Figure) -> None:
    """Under the axes, in two columns if labels are short, each once; the figure grows by rows."""
    lines = dict(zip(*figure.axes[0].get_legend_handles_labels()[::-1]))
    width, height = figure.get_size_inches()
    columns = 2 if max(map(len, lines)) <= HALF_A_LEGEND else 1
    labels = ["\n".join(wrap(label, 2 * HALF_A_LEGEND)) for label in lines]
    rows = sum(1 + label.count("\n") for label in labels) // columns
    figure.set_size_inches(width, height + LEGEND_ROW * (1 + rows))
    below = {"loc": "outside lower center", "ncols": columns, "fontsize": 6, "frameon": False}
    figure.legend(lines.values(), labels, **below)


def _label(run: Result) -> str:
    """What its seeds share."""
    variant = "" if run.variant == "default" else f"-{run.variant}"
    return " ".join(filter(None, [f"{run.model}{variant}", f"({run.recipe})", run.overrides]))


def _finish(axes, title: str, x: str, y: str, legend: bool = True) -> None:
    lines = [part for line in title.splitlines() for part in wrap(line, TITLE)]
    axes.set_title("\n".join(lines), fontsize=8)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(True, linewidth=0.3)
    if legend:
        axes.legend(fontsize=6, frameon=False)
