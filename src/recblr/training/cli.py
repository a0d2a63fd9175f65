"""How an entry point ends: what a user can mend is one line and exit code 1, not a traceback."""

from __future__ import annotations

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
        sys.exit(f"error: {_unknown_key(error) or ' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _unknown_key(error: Exception) -> str | None:
    """Hydra's word on a misspelt key, with the keys that exist beside it."""
    cause = error.__cause__
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if not key or "not in struct" not in str(cause) or not OmegaConf.is_dict(parent):
        return None
    valid = ", ".join(sorted(str(name) for name in parent))
    return f"{key}: no such key; valid: {valid}"
