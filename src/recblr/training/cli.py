"""How an entry point ends: what a user can mend is one line and exit code 1, not a traceback."""

from __future__ import annotations

import ctypes
import difflib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# OpenMP threads that spin while they wait keep others from the cores: on a busy 2-core machine a
# training step then costs up to 10 times its CPU time (measured). A bounded spin costs nothing on
# a quiet one; sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs 10 %. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

CONF = Path(__file__).parents[3] / "conf"
GLIBC = {-4: 0, -1: 2**31 - 1, -2: 2**28}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD

log = logging.getLogger("recblr")

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that the message is written here


def keep_memory() -> None:
    """Let glibc keep what tensors free; by default it unmaps all above 32 MB, a fault a page anew.

    An epoch of RecBLR on Beauty then takes 13.0 s, not 15.7 s, and the run the same peak memory (2
    Xeon cores, medians of 4). Does nothing without glibc, or if the user has set its variables.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        for option, value in GLIBC.items():
            mallopt(option, value)


class Sweep(Callback):
    """Around a multirun of train.py, which runs all its jobs whatever becomes of one of them.

    A scan that this machine lacks is said at the end; it is no failure.

    report: the command of `python -m recblr.report` for its runs, when all have ended.
    """

    def __init__(self, report: str | None = None):
        self.report = report
        self.runs: list[str] = []
        self.failed: list[str] = []
        self.cannot_run: list[str] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or "Basic" not in config.hydra.launcher._target_:
            return
        if job_return.status == JobStatus.COMPLETED:
            self.runs.append(str(job_return.return_value))
        else:  # what the sweeper sees would stop the report
            from recblr.ops.backends import CannotRun

            here = not isinstance(job_return._return_value, CannotRun)
            jobs = self.failed if here else self.cannot_run
            asked = " ".join(config.hydra.overrides.task)
            jobs.append(f"{asked}: {_reason(job_return._return_value)}")
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Each run folder has its own config.yaml.
        Path(config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)
        # Another launcher's jobs end in processes of their own.
        ours = "Basic" in config.hydra.launcher._target_
        runs, problems = dict.fromkeys(self.runs) if ours else [config.paths.runs], []
        if self.report and runs:
            command = [sys.executable, "-m", "recblr.report", self.report, *runs]
            if self.report.startswith("figure"):
                command += ["--out", str(Path(config.paths.runs, "figures"))]
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout, end="")
            problems += [done.stderr.strip()] * bool(done.returncode)
        total = len(self.runs) + len(self.failed) + len(self.cannot_run)
        if self.cannot_run:
            first = f"{len(self.cannot_run)} of {total} runs need a scan that does not run here:"
            log.warning("\n  ".join([first, *self.cannot_run]))
        if self.failed:
            first = f"error: {len(self.failed)} of {total} runs failed:"
            problems.append("\n  ".join([first, *self.failed]))
        if problems:
            sys.exit("\n".join(problems))


@contextmanager
def one_line_errors(in_job: bool = False) -> Iterator[None]:
    """Turn errors of input, files and configuration into one line; others stay tracebacks.

    in_job: around one job, so that Hydra adds nothing; a multirun goes on with its other jobs.
    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    keep_memory()
    try:
        yield
    except SystemExit as stop:
        if type(stop).__name__ == "SIGTERMException":  # Lightning's, with exit code 0
            sys.exit("error: terminated")
        raise
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(141)
    except Exception as error:
        if TRACEBACKS or not _is_users(error):
            raise
        if in_job and HydraConfig.get().mode == RunMode.MULTIRUN:
            log.error("this job failed: %s", _message(error))
            raise
        sys.exit(f"error: {_message(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _is_users(error: Exception) -> bool:
    """Lightning's and W&B's own kinds are told by name: importing them takes seconds."""
    kinds = (ValueError, OSError, HydraException, OmegaConfBaseException)
    named = ("MisconfigurationException", "UsageError", "CommError", "AuthenticationError")
    return isinstance(error, kinds) or type(error).__name__ in named


def _reason(error: Exception) -> str:
    return _message(error) if _is_users(error) else f"{type(error).__name__}: {error}"


def _multirun() -> bool:
    return bool({"-m", "--multirun"} & set(sys.argv))


def _message(error: Exception) -> str:
    """One line. For a misspelt key or group Hydra does not say what is valid, so we do."""
    cause = error.__cause__
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if key and "not in struct" in str(cause) and OmegaConf.is_dict(parent):
        valid = sorted(str(name) for name in parent if name not in ("_target_", "hydra"))
        closest = difflib.get_close_matches(key.split(".")[-1], valid, n=1)
        hint = f"did you mean {closest[0]}? " if closest else ""
        sweep = f"; in a sweep over models: ++{key}=..." if _multirun() else ""
        return f"{key}: no such key; {hint}valid: {', '.join(valid)}{sweep}"
    text = " ".join(str(error).split("Config search path")[0].split())
    if plug_in := re.search(r"hydra/launcher/(submitit_\w+)'", text):
        return f"hydra/launcher: {plug_in[1]} is not installed: pip install -e .[slurm]"
    if unknown := re.search(r"Could not find '(.+)' Available options in '(.+?)': (.*)", text):
        path, group, valid = unknown.groups()
        name, folder = path.removeprefix(f"{group}/"), CONF / group
        nested = sorted(str(file.relative_to(folder))[:-5] for file in folder.glob("*/**/*.yaml"))
        names = [*valid.split(), *nested]
        closest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {closest[0]}? " if closest else ""
        if group == "recipe" and name.startswith("tuned/"):
            hint = "experiment=tune of its model and data set makes it; "
        return f"{group}={name}: no such {group}; {hint}valid: {', '.join(names)}"
    if "hydra.cc" in text:  # Hydra's grammar
        return f"{text.split(' See https')[0]}; quote such a value twice: 'key=\"value\"'"
    return text
