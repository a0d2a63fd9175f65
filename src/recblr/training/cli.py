"""How an entry point ends: what a user can mend is one line and exit code 1, not a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Torch and numba each have a pool of OpenMP threads. Waiting threads that spin keep the other
# pool from its cores: on a busy 2-core machine a training step then costs 30 times the CPU time
# (measured). They have to sleep, and that is fixed when the pools are loaded, after this module.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that the message is written here


class NoSweepFile(Callback):
    """Removes Hydra's `multirun.yaml`: each run folder has its own config.yaml."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        Path(config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)


@contextmanager
def one_line_errors(in_job: bool = False) -> Iterator[None]:
    """Turn errors of input, files and configuration into one line; others stay tracebacks.

    in_job: around one job, so that Hydra adds nothing; a multirun goes on with its other jobs.
    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(141)
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if TRACEBACKS or (in_job and HydraConfig.get().mode == RunMode.MULTIRUN):
            raise
        sys.exit(f"error: {_message(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _message(error: Exception) -> str:
    """One line. For a misspelt key or group Hydra does not say what is valid, so we do."""
    cause = error.__cause__
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if key and "not in struct" in str(cause) and OmegaConf.is_dict(parent):
        valid = sorted(str(name) for name in parent if name not in ("_target_", "hydra"))
        closest = difflib.get_close_matches(key.split(".")[-1], valid, n=1)
        hint = f"did you mean {closest[0]}? " if closest else ""
        return f"{key}: no such key; {hint}valid: {', '.join(valid)}"
    text = " ".join(str(error).split("Config search path")[0].split())
    if unknown := re.search(r"Could not find '(.+)/(.+?)' Available options in .*?: (.*)", text):
        group, name, valid = unknown.groups()
        return f"{group}={name}: no such {group}; valid: {valid.strip().replace(' ', ', ')}"
    if "hydra.cc" in text:  # Hydra's grammar
        return f"{text.split(' See https')[0]}; quote such a value twice: 'key=\"value\"'"
    return text
