"""How an entry point ends: what a user can mend is one line and exit code 1, not a traceback."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # asked for by the user
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, so that the message is written here


@contextmanager
def one_line_errors(in_job: bool = False) -> Iterator[None]:
    """Turn errors of input, files and configuration into one line; others stay tracebacks.

    in_job: around one job, so that Hydra adds nothing; a multirun goes on with its other jobs.
    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    try:
        yield
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
    text = str(error).split("Config search path")[0]
    return " ".join(text.split())
