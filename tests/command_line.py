"""The entry points as a user calls them, and small logs for them."""

import contextlib
import io
import logging
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]
ON_LOG = ("data=custom", "data.path=log.inter", "logger=csv")
SMOKE = (*ON_LOG, "trainer=smoke")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def invoke(entry: str, *arguments: str, cwd: Path) -> Outcome:
    """`python <entry>.py <arguments>` in this process, which has imported everything already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra replaces them
    GlobalHydra.instance().clear()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", [f"{entry}.py", *arguments])
        patch.chdir(cwd)
        try:
            runpy.run_path(str(ROOT / f"{entry}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=err)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Outcome(code, out.getvalue(), err.getvalue())


def spawn(entry: str, *arguments: str, cwd: Path, options: tuple = (), **env: str) -> Outcome:
    """`python <entry>.py <arguments>` in a process of its own, with one thread as in conftest."""
    inherited = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    env = inherited | {"OMP_NUM_THREADS": "1"} | env
    command = [sys.executable, *options, str(ROOT / f"{entry}.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def write_log(path: Path, users: int = 60, items: int = 25) -> Path:
    """An `.inter` file that loses nothing to the 5-core."""
    draw = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        for time in range(draw.randint(6, 14)):
            lines.append(f"u{user}\ti{draw.randrange(items)}\t{1000 * user + time}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run_folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.rglob("config.yaml"))


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
