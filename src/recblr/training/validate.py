"""Checks before anything is read: a wrong key, group, value or backend fails in seconds.

The signature of each `_target_` is the schema: argument names, type hints and `Literal` choices.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from recblr.data.datamodule import Split
from recblr.ops.bd_lru import resolve_backend

log = logging.getLogger(__name__)

_ALWAYS_READ = {"seed", "test", "overwrite", "smoke"}
_FLOOR_READS = {"eval_batch_size", "mask_history"}
_NOT_BUILT_FOR_FLOORS = ("objective", "optimizer", "trainer", "callbacks", "datamodule")


def check_run(cfg: DictConfig, config_file: Path) -> None:
    """`check_config` for the Hydra job that is running, composed from `config_file`."""
    job = HydraConfig.get()
    check_config(cfg, known_keys(config_file), job.overrides.task, job.mode == RunMode.MULTIRUN)


def check_config(cfg: DictConfig, known: set[str], overrides: list[str], multirun: bool) -> None:
    """Raise ValueError, naming the key, its value and what is valid; build nothing real.

    known: valid top-level keys. overrides: the command line's; one that the model does not read
    is an error, in a multirun a warning.
    """
    _refuse_unknown(cfg, known)
    for path, node in _calls(cfg):
        _check_call(cfg, path, node)
    _check_overrides_are_read(cfg, overrides, multirun)
    with torch.device("meta"):  # the constructor's own checks, without memory or data
        build(cfg.model, n_items=1)


def check_evaluation(cfg: DictConfig, config_file: Path) -> None:
    """Raise ValueError for a key or value that evaluate.py does not know."""
    _refuse_unknown(cfg, known_keys(config_file))
    if OmegaConf.is_missing(cfg, "ckpt_path"):
        raise ValueError("ckpt_path is not set: ckpt_path=RUN/checkpoints/best.ckpt")
    for key, hint in (("split", Split), ("mask_history", bool | None)):
        if not _fits(cfg[key], hint):
            raise ValueError(f"{key}={cfg[key]!r}: must be {_describe(hint)}")


def choose_scan(cfg: DictConfig) -> str:
    """The backend that `scan` means on this machine; ValueError where it cannot run."""
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    return resolve_backend(cfg.scan, "cuda" if on_gpu else "cpu", torch.float32)


def is_floor(cfg: DictConfig) -> bool:
    """A floor is counted, not trained."""
    return hasattr(get_object(cfg.model._target_), "fit")


def build(node: DictConfig, **kwargs: Any) -> Any:
    """Call a node's `_target_` with its arguments, as plain containers, and `kwargs`."""
    factory = instantiate(node, _partial_=True, _convert_="all")
    return factory if node.get("_partial_") else factory(**kwargs)


def _refuse_unknown(cfg: DictConfig, known: set[str]) -> None:
    for key in cfg:
        if key not in known:
            raise ValueError(f"{key}: no such key; valid: {', '.join(sorted(known))}")


def _calls(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    for key in node:
        if OmegaConf.is_missing(node, key) or not OmegaConf.is_dict(node[key]):
            continue
        child_path = f"{path}.{key}" if path else str(key)
        if "_target_" in node[key]:
            yield child_path, node[key]
        yield from _calls(node[key], child_path)


def _check_call(cfg: DictConfig, path: str, node: DictConfig) -> None:
    target = _locate(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    for key in raw:
        if str(key).startswith("_"):
            continue
        name = _name(f"{path}.{key}", raw[key])
        if key not in parameters:
            valid = ", ".join(p for p in parameters if p != "self")
            raise ValueError(f"{name}: {target.__name__} has no such argument; valid: {valid}")
        if OmegaConf.is_missing(node, key):
            raise ValueError(f"{name} is not set")
        value = node[key]
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        hint = hints.get(str(key), Any)
        if not _fits(value, hint):
            raise ValueError(f"{name}={value!r}: must be {_describe(hint)}")


def _locate(path: str, target: str) -> Callable[..., Any]:
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path}._target_={target}: {error}") from None


def _name(path: str, raw: Any) -> str:
    """The key that a user sets: `dropout` where the node says `dropout: ${dropout}`."""
    is_reference = isinstance(raw, str) and raw.startswith("${") and raw.endswith("}")
    return raw[2:-1] if is_reference else path


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, types.NoneType):
        return isinstance(value, hint)
    if origin in (dict, list):
        return isinstance(value, origin)
    return True


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    words = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    return words.get(hint, "null" if hint is types.NoneType else str(hint))


def _check_overrides_are_read(cfg: DictConfig, overrides: list[str], multirun: bool) -> None:
    read = set(_ALWAYS_READ)
    if is_floor(cfg):
        read |= _FLOOR_READS
    for section in cfg:
        if OmegaConf.is_dict(cfg[section]) and not (
            is_floor(cfg) and section in _NOT_BUILT_FOR_FLOORS
        ):
            read |= _references(OmegaConf.to_container(cfg[section], resolve=False))
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key in cfg and not OmegaConf.is_dict(cfg[key]) and key not in read and key != "recipe":
            model = cfg.model._target_.rsplit(".", 1)[-1]
            message = f"{key}: {model} does not read it; it would change nothing"
            if not multirun:
                raise ValueError(message)
            log.warning(message)


def _references(node: Any) -> set[str]:
    """Top-level keys that a node interpolates."""
    if isinstance(node, dict):
        return set().union(*map(_references, node.values()))
    return {_name("", node)} if isinstance(node, str) and _name("", node) else set()


def known_keys(config_file: Path) -> set[str]:
    """Top-level keys of an entry point's config file, its groups included."""
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    groups = {str(group) for item in config.defaults if OmegaConf.is_dict(item) for group in item}
    return {k for k in map(str, config) if k not in ("defaults", "hydra")} | {
        group for group in groups if not group.startswith("override ")
    }
