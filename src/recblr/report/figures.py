"""Figures for a paper's column, as PNG and SVG: one function each, from results or run folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from textwrap import wrap

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from recblr.report.accuracy import by_dataset, protocols
from recblr.report.results import Result
from recblr.report.timed import LONG, UNITS, Timed, extrapolated, fastest

COLUMN = 3.35  # inches: a column of a two-column page
TITLE = 44  # characters of a line that fit above its axes
SHOWN = ("hr@10", "ndcg@10")
STYLE = {"hr@10": ("HR@10", "#0072B2", "o"), "ndcg@10": ("NDCG@10", "#D55E00", "s")}
LINES, MARKERS = ("-", "--", ":"), "os^Dv"
LEGEND_ROW = 0.12  # inches
HALF_A_LEGEND = 34  # letters of a label that stands beside another
DPI = 200


def figure5(results: Sequence[Result], force: bool = False) -> dict[str, Figure]:
    """Metrics against the expansion factor, a figure per data set (the paper's Figure 5)."""
    return _sweeps(results, "model.expansion", "expansion factor", force)


def figure6(results: Sequence[Result], force: bool = False) -> dict[str, Figure]:
    """Metrics against the dropout rate, a figure per data set (the paper's Figure 6)."""
    return _sweeps(results, "dropout", "dropout rate", force)


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


def curves(results: Sequence[Result], force: bool = False) -> dict[str, Figure]:
    """Validation NDCG@10 by epoch, a line per run: for each data set its models, and the ablations.

    The latter beside the whole RecBLR. The seeds of a setting have one color.
    """
    figures = {}
    for dataset, here in by_dataset(results):
        runs = _recipes(run for run in here if run.curve)
        protocols(runs, force)
        whole = [run for run in runs if run.variant == "default"]
        if whole:
            figures[f"curves_{dataset}"] = _curves(whole, dataset)
        if len(whole) < len(runs):
            ablated = {(r.recipe, r.overrides) for r in runs if r.variant != "default"}
            recblr = [run for run in runs if run.model == "recblr"]
            ours = [run for run in recblr if (run.recipe, run.overrides) in ablated]
            figures[f"curves_{dataset}_ablations"] = _curves(ours, dataset)
    return figures


def _curves(runs: Sequence[Result], title: str) -> Figure:
    figure = Figure((COLUMN, 0.8 * COLUMN), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    labels = list(dict.fromkeys(map(_label, runs)))
    colors = rcParams["axes.prop_cycle"].by_key()["color"]
    for run in runs:
        number = labels.index(_label(run))
        style = {"color": colors[number % len(colors)], "linewidth": 1}
        style["linestyle"] = LINES[number // len(colors) % len(LINES)]
        values = [value for value, _ in run.curve]
        axes.plot(range(1, len(values) + 1), values, label=labels[number], **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, title, "epoch", "validation NDCG@10", legend=False)
    _legend_below(figure)
    return figure


def accuracy_against_time(results: Sequence[Result], force: bool = False) -> dict[str, Figure]:
    """Test NDCG@10 against the seconds that training took, a figure per data set.

    A point per run.
    """
    figures = {}
    for dataset, here in by_dataset(results):
        runs = _recipes(run for run in here if run.epochs and run.variant == "default")
        protocols(runs, force)
        if not runs:
            continue
        figure = Figure((COLUMN, 0.8 * COLUMN), layout="constrained", dpi=DPI)
        axes = figure.subplots()
        for number, label in enumerate(sorted(set(map(_label, runs)))):
            ours = [run for run in runs if _label(run) == label]
            x = [run.seconds for run in ours]
            y = [run.metrics["ndcg@10"] for run in ours]
            axes.plot(x, y, MARKERS[number % len(MARKERS)], markersize=4, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        devices = sorted({run.device for run in runs})
        where = devices[0] if len(devices) == 1 else f"{len(devices)} machines"
        _finish(axes, f"{dataset}\n{where}", "seconds of training", "test NDCG@10", False)
        _legend_below(figure)
        figures[f"time_{dataset}"] = figure
    return figures


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write each as `<name>.png` and `<name>.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    rcParams["svg.hashsalt"] = "recblr"  # the same figure is the same file
    files = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    for file in files:
        figures[file.stem].savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})
    return files


def _sweeps(results: Iterable[Result], key: str, label: str, force: bool) -> dict[str, Figure]:
    """Means over seeds of RecBLR's runs that set `key`, a figure for each of their other settings.

    Those without others come alone, where there are any.
    """
    figures = {}
    for dataset, here in by_dataset(results):
        sweeps: dict[str, dict[float, list[Result]]] = {}
        for run in here:
            settings = dict(word.split("=", 1) for word in run.overrides.split())
            if run.model == "recblr" and run.variant == "default" and key in settings:
                value = float(settings.pop(key))
                others = " ".join(f"{k}={v}" for k, v in settings.items())
                sweeps.setdefault(others, {}).setdefault(value, []).append(run)
        for others in [""] if "" in sweeps else sorted(sweeps):
            points = sweeps[others]
            protocols([run for runs in points.values() for run in runs], force)
            number = "5" if key == "model.expansion" else "6"
            name = "_".join([f"figure{number}_{dataset}", *others.split()])
            figures[name] = _sweep(points, f"{dataset} {others}".strip(), label)
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
    _finish(axes, f"{title}, RecBLR ({span} epochs)", label, "test metric")
    return figure


def _recipes(runs: Iterable[Result]) -> list[Result]:
    """The runs of recipes as they are; where there is none, all of them."""
    runs = list(runs)
    return [run for run in runs if not run.overrides] or runs


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
