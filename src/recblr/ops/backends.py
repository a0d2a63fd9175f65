"""Which implementation of an op runs on a device, and why another cannot."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, get_args

import torch

HAS_NUMBA = importlib.util.find_spec("numba") is not None


class CannotRun(ValueError):
    """A backend that exists, but not on this machine, device or dtype."""


# What `scan=` takes. The two parallel_* run one backend; where the padding goes is the model's.
Scan = Literal["auto", "reference", "serial", "parallel_sp", "parallel_ep", "fused", "cpu"]
SCANS = get_args(Scan)[1:]
BACKENDS = ("reference", "serial", "parallel", "fused", "cpu")


def resolve_backend(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The one of BACKENDS that runs for a backend or a `scan=`; CannotRun where it cannot.

    Only "auto" chooses: `fused` on CUDA, `cpu` in float32 on the CPU, else `serial`.
    """
    if backend == "auto":
        return next(b for b in ("fused", "cpu", "serial") if not obstacle(b, device, dtype, True))
    name = "parallel" if backend in ("parallel_sp", "parallel_ep") else backend
    if name not in BACKENDS:
        raise ValueError(f"scan={backend!r} is unknown; choose from {', '.join(SCANS)}, auto")
    if why_not := obstacle(name, device, dtype):
        others = [scan for scan in SCANS if scan_runs(scan, device, dtype)]
        raise CannotRun(f"scan={backend} cannot run: {why_not}; {', '.join(others)}, auto do")
    return name


def scan_runs(scan: str, device: torch.device | str, dtype: torch.dtype) -> bool:
    return not obstacle(scan.split("_")[0], device, dtype)


def interpreted() -> bool:
    """Triton interprets kernels on CPU tensors: for tests, thousands of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_obstacle(device: torch.device | str, automatic: bool = False) -> str | None:
    """Why Triton does not run on a device, or None. automatic: its interpreter does not count."""
    kind = torch.device(device).type
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton, Linux only)"
    if kind == "cuda" and interpreted():
        return f"TRITON_INTERPRET=1 runs kernels on the CPU, the tensors are on {device}"
    if kind != "cuda" and (automatic or not interpreted()):
        return f"Triton needs a CUDA device, the tensors are on the {kind.upper()}"
    return None


def obstacle(
    backend: str, device: torch.device | str, dtype: torch.dtype, automatic: bool = False
) -> str | None:
    """Why a backend does not run, or None."""
    if backend in ("fused", "parallel"):
        if why_not := triton_obstacle(device, automatic):
            return why_not
        if backend == "fused" and dtype == torch.float64:
            return "it computes in float32, got torch.float64"
    if backend == "cpu":
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed (pip install numba)"
        if torch.device(device).type != "cpu" or dtype != torch.float32:
            return f"it needs float32 on the CPU, got {dtype} on {device}"
    return None
