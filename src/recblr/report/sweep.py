"""What surrounds a sweep of train.py: all its runs, then their report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class Sweep(Callback):
    """Around a multirun of train.py, which runs all its jobs whatever becomes of one of them.

    report: the command of `python -m recblr.report` for its runs, when all have ended.
    """

    def __init__(self, report: str | None = None):
        self.report = report
        self.runs: list[str] = []
        self.failed: list[str] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or "Basic" not in config.hydra.launcher._target_:
            return
        if job_return.status == JobStatus.COMPLETED:
            self.runs.append(str(job_return.return_value))
        else:  # what the sweeper sees would stop the report
            self.failed.append(" ".join(config.hydra.overrides.task))
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Each run folder has its own config.yaml.
        Path(config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)
        if self.report and (self.runs or not self.failed):
            from recblr.report.__main__ import main

            main([self.report, *(self.runs or [config.paths.runs])])
        if self.failed:
            count = f"{len(self.failed)} of {len(self.failed) + len(self.runs)} runs failed"
            sys.exit("\n  ".join([f"error: {count}:", *self.failed]))
