"""What the measured processes share: the job, the clock. Needs only numpy and the peer's torch.

Each script beside this file runs in an environment that may not have `recblr`: its argument is the
job as JSON, its last line of output the result as JSON.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Job:
    """Train on a log without each user's last two events; measure until `steps` or `seconds`.

    store: the log as arrays, `items` (N,) with ids 1..V and `offsets` (U+1,). folder: empty, for
    what a peer writes. settings: of `train.py`, for what is ours; it reads neither the store nor
    the sizes.
    """

    store: str
    folder: str
    settings: Sequence[str]
    max_length: int
    dropout: float
    d_model: int
    n_layers: int
    batch_targets: int
    warmup: int
    steps: int | None
    seconds: float
    threads: int

    def events(self, part: Literal["training", "all"]) -> tuple[np.ndarray, np.ndarray]:
        """items (N,), offsets (U+1,): user u's events in order are items[offsets[u] : ...]."""
        with np.load(self.store) as store:
            items, offsets = store["items"], store["offsets"]
        if part == "all":
            return items, offsets
        lengths = np.diff(offsets)
        kept = np.where(lengths >= 3, lengths - 2, lengths)
        place = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
        return items[place < np.repeat(kept, lengths)], np.append(0, np.cumsum(kept))

    def columns(self, part: Literal["training", "all"]) -> dict[str, np.ndarray]:
        """user, item and a time that rises by 1 within each user, (N,) int64 each."""
        items, offsets = self.events(part)
        user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        time = np.arange(len(items)) - offsets[:-1][user]
        return {"user": user, "item": items.astype(np.int64), "time": time}

    def window_targets(self, first: int = 1) -> np.ndarray:
        """Targets of each user with 2 events or more, if one window of `max_length` is trained.

        first: index of the first event that is a target.
        """
        lengths = np.diff(self.events("training")[1])
        return np.minimum(lengths[lengths > 1] - first, self.max_length)


def rows_per_step(job: Job, targets: np.ndarray) -> int:
    """How many rows have the job's targets on average. targets (R,): of each row."""
    return max(round(job.batch_targets / targets.mean()), 1)


class Clock:
    """Runs from the last step of the warm-up to the last step; counts real targets."""

    def __init__(self, job: Job) -> None:
        self.job, self.done, self.targets = job, -job.warmup, 0
        self._start()

    def step(self, targets: int) -> bool:
        """To call after each step with its targets; True = enough."""
        self.done += 1
        if self.done <= 0:
            self._start()
            return False
        self.targets += int(targets)
        self.wall = time.perf_counter() - self.start[0]
        self.cpu = time.process_time() - self.start[1]  # user and system, all threads
        return self.wall >= self.job.seconds or self.done == self.job.steps

    def _start(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def callback(self, base: type, count: Callable[[Any], Any]) -> Any:
        """For a Lightning trainer. base: its Lightning's `Callback`. count: targets of a batch."""
        clock = self

        class Stop(base):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
                if clock.step(count(batch)):
                    trainer.should_stop = True

            def __deepcopy__(self, memo):  # one of the trainers is copied
                return self

        return Stop()

    def report(self, epoch_targets: int, step_rows: int, classes: int, *packages: str) -> None:
        """Print the result. step_rows: sequences of a step. classes: of the softmax."""
        result = {
            "steps": self.done,
            "targets": self.targets,
            "wall_s": self.wall,
            "cpu_s": self.cpu,
            "peak_mb": peak_mb(),
            "epoch_targets": int(epoch_targets),
            "step_rows": step_rows,
            "classes": int(classes),
            "versions": versions_of(packages),
        }
        print(f"\n{json.dumps(result)}", flush=True)


def timed(call: Callable[[], Any], *packages: str, **more: float) -> None:
    """Print what a call takes, and `more`, as the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    result = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    result |= {"peak_mb": peak_mb(), "versions": versions_of(packages)} | more
    print(f"\n{json.dumps(result)}", flush=True)


def versions_of(packages: Sequence[str]) -> str:
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in packages}
    return "; ".join(f"{name} {number}" for name, number in versions.items())


def peak_mb() -> float:
    """The largest resident memory of this process so far, imports and data included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("no VmHWM in /proc/self/status: peak memory is measured on Linux only")


def run(main: Callable[[Job], None]) -> None:
    import torch

    job = Job(**json.loads(sys.argv.pop(1)))
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    main(job)
