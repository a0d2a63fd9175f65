"""What every benchmark shares: measure, run in a fresh process, record in `results/speed.csv`.

setting = Setting.now("torch")  # first: the load is the machine's without us
spread = measure(lambda: scan(x))
record("results/speed.csv", [Row("scan", "64x100x64 fwd", "cpu", "s", *spread)], setting)
"""

from __future__ import annotations

import importlib
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recblr.report.speed import ROOT, Row, Setting, record

__all__ = ["ROOT", "Cost", "Row", "Setting", "Spread", "in_fresh_process", "measure", "record"]


class Spread(NamedTuple):
    """Median, 20th and 80th percentile; None where there is one value."""

    median: float
    p20: float | None
    p80: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        median, p20, p80 = (float(q) for q in np.quantile(values, (0.5, 0.2, 0.8)))
        return cls(median, p20, p80) if len(values) > 1 else cls(median, None, None)


def measure(call: Callable, repeats: int = 20, warmup: int = 3, wait=lambda: None) -> Spread:
    """Wall seconds of a call. wait: waits for what a call leaves running (a GPU's queue)."""
    if repeats < 1:
        raise SystemExit(f"error: {repeats} repeats: at least 1")
    seconds = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return Spread.of(seconds[warmup:])


class Cost(NamedTuple):
    """Of a whole process, start and imports included; a MB is 10**6 bytes."""

    wall_s: float
    cpu_s: float  # user and system, its children too
    peak_mb: float
    result: Any


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Call a file's top-level function; its arguments and its result travel as JSON."""
    where = (function.__code__.co_filename, function.__name__)
    command = [sys.executable, __file__, *where, json.dumps(arguments)]
    start = time.perf_counter()
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    wall = time.perf_counter() - start
    return Cost(wall, *json.loads(printed.splitlines()[-1]))


def _call(file: str, name: str, arguments: str) -> None:
    sys.path.insert(0, str(Path(file).parent))
    result = getattr(importlib.import_module(Path(file).stem), name)(*json.loads(arguments))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = usage[0].ru_maxrss
    if sys.platform == "linux":  # where ru_maxrss starts at the peak of the process that forked
        peak = 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])
    print(f"\n{json.dumps([sum(u.ru_utime + u.ru_stime for u in usage), peak / 1e6, result])}")


if __name__ == "__main__":
    _call(*sys.argv[1:])
