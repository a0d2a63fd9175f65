"""A model as a config names it and a checkpoint keeps it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import nn

CHECKPOINT_KEY = "recblr"

Node = Mapping[str, Any]  # of a config: `_target_` and its arguments


def build(node: Node, **kwargs: Any) -> Any:
    """Call a node's `_target_` with its arguments, as plain containers, and `kwargs`."""
    factory = instantiate(node, _partial_=True, _convert_="all")
    return factory if node.get("_partial_") else factory(**kwargs)


def build_model(node: Node, n_items: int, n_users: int) -> Any:
    """The model for a log of that size; `n_users` goes to those that have a user table."""
    sizes = {"n_items": n_items} | ({"n_users": n_users} if has_users(node) else {})
    return build(node, **sizes)


def has_users(node: Node) -> bool:
    """Whether the model of a node has a vector for every user of its log."""
    return "n_users" in inspect.signature(locate("model", node["_target_"])).parameters


def choose_scan(node: Node, accelerator: str) -> str | None:
    """The scan that runs for a model's `scan` on this machine, None for a model without one.

    ValueError where it cannot run.
    """
    if "scan" not in node:
        return None
    device = "cpu" if accelerator == "cpu" else "cuda"
    model: Any = locate("model", node["_target_"])
    return model.resolve_scan(node["scan"], device)


def locate(path: str, target: str) -> Callable[..., Any]:
    """What `target` names. path: of its node, for the ValueError where there is none."""
    try:
        return get_object(target)
    except (ImportError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}._target_={target}: {why}; is it on PYTHONPATH?") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours: `state_dict` and, under "recblr", what `train.py` says of the run.

    Raises FileNotFoundError or ValueError that names the file.
    """
    if path.is_dir():
        best = path / "checkpoints" / "best.ckpt"
        raise ValueError(f"ckpt_path={path}: is a folder; is it ckpt_path={best}?")
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a file that is not one
        raise ValueError(f"ckpt_path={path}: not a checkpoint, torch cannot read it") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ValueError(f"ckpt_path={path}: not a checkpoint of train.py")
    return checkpoint


def load_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the weights of a checkpoint into its model."""
    prefix = "model."
    weights = checkpoint["state_dict"]
    model.load_state_dict(
        {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    )
