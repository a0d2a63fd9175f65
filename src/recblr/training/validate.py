"""Checks before anything is read: a wrong key, group, value or backend fails in seconds.

The signature of each `_target_` is the schema: argument names, type hints and `Literal` choices.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from recblr.data.datamodule import Part
from recblr.models.base import repeat_bias
from recblr.models.saved import build, build_model, locate
from recblr.ops.backends import HAS_NUMBA
from recblr.run_folder import model_name, variant_name
from recblr.training.module import Precision
from recblr.training.objectives import leak

log = logging.getLogger(__name__)

LARGEST_SEED = 2**32 - 1  # numpy's
# Keys that no constructor takes, so no signature describes them.
TRAIN_KEYS = {"seed": int, "test": bool, "overwrite": bool, "smoke": bool, "resume": str | None}
TRAIN_KEYS |= {"paths.runs": str, "paths.data": str, "precision": Precision}
EVALUATE_KEYS = {"ckpt_path": str, "split": Part, "mask_history": bool | None}
EVALUATE_KEYS |= {"scan": str | None, "data.path": str | None}
RECOMMEND_KEYS = {"ckpt_path": str, "input": str, "output": str, "k": int, "exclude_seen": bool}
RECOMMEND_KEYS |= {"batch_size": int | None, "scan": str | None, "data.path": str | None}
RECOMMEND_KEYS |= dict.fromkeys(("allow", "deny"), str | None)
RECOMMEND_KEYS |= {f"columns.{key}": str | None for key in ("user", "item", "time")}

_READ_BY_ALL = {"seed", "test", "overwrite", "smoke", "resume", "recipe", "ablation"}
_READ_BY_FLOORS = {"eval_batch_size", "mask_history"}
# Where an argument that has a top-level key's name is an interpolation of it.
_SECTIONS = {"model", "objective", "optimizer", "datamodule"}
_NOT_BUILT_FOR_FLOORS = {"objective", "optimizer", "trainer", "callbacks", "datamodule"}


def is_floor(cfg: DictConfig) -> bool:
    """A floor is counted, not trained."""
    return hasattr(locate("model", cfg.model._target_), "fit")


def choose_accelerator(asked: str) -> str:
    """`cuda` or `cpu` for `auto`: metrics are float64, which other accelerators lack."""
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; no, where torch cannot tell."""
    names = ("avx512_bf16", "amx_tile")
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in names)


def warn_of_other_masks(accelerator: str) -> None:
    """Without numba a run on the CPU has other figures than the same run with it."""
    if accelerator == "cpu" and not HAS_NUMBA:
        log.warning("numba is not installed: dropout draws other masks than it does with numba")


def warn_of_slow_bf16(accelerator: str) -> None:
    """bfloat16 without instructions for it costs time in place of saving it."""
    if accelerator == "cpu" and not cpu_has_bf16():
        log.warning("precision=bf16-mixed: this CPU has no bfloat16 instructions: slower than 32")


def resumed(cfg: DictConfig) -> DictConfig:
    """The settings of the run folder `cfg.resume`, with the paths and loggers of this command."""
    path = Path(cfg.resume)
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"resume={path}: not a run folder: it has no config.yaml")
    run = OmegaConf.load(path / "config.yaml")
    assert isinstance(run, DictConfig)
    run.resume = cfg.resume
    if "folder" in run.data:
        run.data.folder = "${paths.data}"
    for override in HydraConfig.get().overrides.task:
        key = _key(override)
        if key.split(".")[0] in ("paths", "logger"):
            OmegaConf.update(run, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
        elif key != "resume":
            raise ValueError(
                f"{key}: resume={path} goes on with its own settings; only paths and logger can be "
                "given with it"
            )
    return run


def check_run(cfg: DictConfig, config_file: Path) -> tuple[DictConfig, list[str]]:
    """`check_config` for the Hydra job that is running, composed from `config_file`.

    Returns its config and overrides. In a multirun those lack the overrides that the model does not
    read: the run has the name and command that it has without them. A warning says which.
    """
    job, known = HydraConfig.get(), known_keys(config_file)
    overrides, recipe = list(job.overrides.task), job.runtime.choices["recipe"]
    if job.mode == RunMode.MULTIRUN and (dead := _unread(cfg, overrides)):
        for why in dead.values():
            log.warning("%s; this run is without it", why)
        overrides = [override for override in overrides if override not in dead]
        cfg = compose(config_file.stem, [*job.overrides.hydra, *overrides])
    if recipe and "/" not in recipe and recipe != job.runtime.choices["data"]:
        cfg.recipe = recipe  # of another data set: neither `paper` nor `ours` here
    _check_recipe_is_of_the_model(cfg, recipe)
    check_config(cfg, known, overrides)
    return cfg, overrides


def check_config(cfg: DictConfig, known: set[str], overrides: list[str]) -> None:
    """Raise ValueError, naming the key, its value and what is valid; build nothing real.

    known: valid top-level keys. overrides: the command line's; one that the model does not read
    is an error.
    """
    check_keys(cfg, known, TRAIN_KEYS)
    for key, what in (("runs", "of all runs"), ("data", "of downloads and prepared logs")):
        if not cfg.paths[key]:
            raise ValueError(f"paths.{key} is empty: it names the folder {what}")
    if not 0 <= cfg.seed <= LARGEST_SEED:
        raise ValueError(f"seed={cfg.seed}: must be in 0..{LARGEST_SEED}")
    for path, node in _calls(cfg):
        _check_call(path, node)
    if unread := list(_unread(cfg, overrides).values()):
        raise ValueError(f"{unread[0]}; it would change nothing, leave it out")
    _check_no_second_name(cfg, overrides)
    with torch.device("meta"):  # the constructor's own checks, without memory or data
        model = build_model(cfg.model, n_items=1, n_users=1)
    if (width := cfg.get("direct_conv", 0)) > cfg.max_length:
        raise ValueError(
            f"direct_conv={width}: wider than max_length={cfg.max_length} items, which is all "
            "that a row has"
        )
    if not is_floor(cfg):
        _check_training(cfg, model)


def check_keys(cfg: DictConfig, known: set[str], hints: dict[str, Any]) -> None:
    """Raise ValueError for a top-level key that is not known, or a value that its hint refuses."""
    for key in cfg:
        if key not in known:
            raise ValueError(f"{key}: no such key; valid: {', '.join(sorted(known))}")
    for key, hint in hints.items():
        if OmegaConf.is_missing(cfg, key):
            raise ValueError(f"{key} is not set; --help shows how")
        _check_value(key, OmegaConf.select(cfg, key), hint)


def known_keys(config_file: Path) -> set[str]:
    """Top-level keys of an entry point's config file, its groups included."""
    config = OmegaConf.to_container(OmegaConf.load(config_file), resolve=False)
    assert isinstance(config, dict)
    groups = {group for item in config["defaults"] if isinstance(item, dict) for group in item}
    return {key for key in config if key not in ("defaults", "hydra")} | {
        group for group in groups if not group.startswith("override ")
    }


def _check_recipe_is_of_the_model(cfg: DictConfig, recipe: str | None) -> None:
    """`usual/<model>` and `{tuned,bias,best}/<data>/<model>` are for one model, on one data set."""
    kind, _, chosen_for = (recipe or "").partition("/")
    model, data = model_name(cfg), cfg.data.name
    searched = f"{data}/{variant_name(cfg)}"
    chosen = f"{data}/{model}"
    own = {"usual": model, "tuned": searched, "bias": chosen, "best": chosen}.get(kind)
    if own is not None and chosen_for != own:
        raise ValueError(
            f"recipe={recipe}: its values are those of {chosen_for}, this run is {own}; set "
            "model=, data= and ablation= to match, or leave recipe= out"
        )


def _check_training(cfg: DictConfig, model: torch.nn.Module) -> None:
    """What objective, optimizer and trainer refuse; they are cheap to build."""
    objective = build(cfg.objective)
    fills_in = getattr(objective, "fills_in", False)
    if fills_in and not hasattr(model, "mask_id"):
        raise ValueError(
            f"objective={_name(objective)}: {_name(model)} has no mask token to fill in; "
            "model=bert4rec has"
        )
    if repeat_bias(model) is not None and not getattr(objective, "learns_repeat_bias", False):
        raise ValueError(
            f"repeat_bias=true: objective={_name(objective)} does not learn it; "
            "objective=cross_entropy does"
        )
    ahead = getattr(objective, "ahead_weight", 0)
    if ahead and cfg.target_mode == "prefix":
        way_out = "target_mode=all_positions has them"
        if not model.causal:
            way_out = f"{_name(model)}, which sees later items, has no other rows: leave it out"
        raise ValueError(
            f"ahead_weight={ahead}: with target_mode=prefix a row has one target and "
            f"none after it; {way_out}"
        )
    if getattr(objective, "usual", False) and cfg.target_mode != "prefix":
        log.warning(
            "objective.usual=true masks as RecBole does, which trains on a row per prefix: that "
            "is with target_mode=prefix"
        )
    if cfg.target_mode == "all_positions" and not (model.causal or fills_in):
        raise ValueError(leak(model))
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise ValueError(f"trainer.max_epochs={cfg.trainer.max_epochs}: must be 1 or more")
    for key in ("limit_train_batches", "limit_val_batches"):
        if cfg.trainer.get(key) == 0:
            raise ValueError(f"trainer.{key}=0: nothing would be trained or validated")
    for key, only in (("devices", 1), ("check_val_every_n_epoch", 1), ("precision", "32-true")):
        if cfg.trainer.get(key, only) != only:
            raise ValueError(f"trainer.{key}={cfg.trainer[key]}: only {only} works")
    try:
        build(cfg.optimizer)(model.parameters())
    except ValueError as error:
        raise ValueError(f"lr={cfg.lr}, weight_decay={cfg.weight_decay}: {error}") from None
    try:
        accelerator = choose_accelerator(cfg.trainer.accelerator)
        build(cfg.trainer, accelerator=accelerator, logger=False, enable_checkpointing=False)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from None


def _name(instance: object) -> str:
    return type(instance).__name__


def _calls(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_`, and where it is."""
    for key in node:
        if OmegaConf.is_missing(node, key) or not OmegaConf.is_dict(node[key]):
            continue
        child_path = f"{path}.{key}" if path else str(key)
        if "_target_" in node[key]:
            yield child_path, node[key]
        yield from _calls(node[key], child_path)


def _check_call(path: str, node: DictConfig) -> None:
    target = locate(path, node["_target_"])
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    for key in map(str, raw):
        if key.startswith("_"):
            continue
        name = _reference(raw[key]) or f"{path}.{key}"  # `dropout`, not `model.dropout`
        if key not in parameters:
            raise ValueError(
                f"{name}: {target.__name__} has no such argument; valid: {', '.join(parameters)}"
            )
        if OmegaConf.is_missing(node, key):
            raise ValueError(f"{name} is not set")
        value = node[key]
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        _check_value(name, value, hints.get(key, Any))


def _reference(raw: Any) -> str | None:
    """`dropout` for the unresolved value `${dropout}`."""
    return raw[2:-1] if isinstance(raw, str) and raw.startswith("${") and raw[-1] == "}" else None


def _check_value(name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        raise ValueError(f"{name}={value!r}: must be {_describe(hint)}")


def _options(hint: Any) -> list[Any]:
    """The parts of a union, without what no YAML file can hold (a Tensor, a Path)."""
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    plain = (*_WORDS, dict, list, Any)
    return [o for o in get_args(hint) if o in plain or get_origin(o) in (Literal, dict, list)]


def _fits(value: Any, hint: Any) -> bool:
    options = _options(hint)
    if len(options) != 1:
        return any(_fits(value, option) for option in options)
    (hint,), origin = options, get_origin(options[0])
    if origin is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    plain = origin or hint
    return isinstance(value, plain) if plain in (str, bool, types.NoneType, dict, list) else True


_WORDS = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


def _describe(hint: Any) -> str:
    options = _options(hint)
    if len(options) != 1:
        return " or ".join(map(_describe, options))
    if get_origin(options[0]) is Literal:
        return "one of " + ", ".join(map(str, get_args(options[0])))
    return _WORDS.get(options[0], str(options[0]))


def _unread(cfg: DictConfig, overrides: list[str]) -> dict[str, str]:
    """Override -> a sentence, for each whose top-level key the model does not read."""
    read, found = read_keys(cfg), {}
    readers = [cfg.model] if is_floor(cfg) else [cfg.model, cfg.objective]
    names = [reader._target_.split(".")[-1] for reader in readers]
    for override in overrides:
        key = _key(override)
        if key in cfg and not OmegaConf.is_dict(cfg[key]) and key not in read:
            nor = f", nor does {names[1]}" if len(names) > 1 else ""
            found[override] = f"{override}: {names[0]} does not read {key}{nor}"
    return found


def _check_no_second_name(cfg: DictConfig, overrides: list[str]) -> None:
    """`model.dropout` is `dropout`: given as the former, the same run would have another name."""
    for override in overrides:
        section, _, name = _key(override).rpartition(".")
        if section in _SECTIONS and name in cfg and name in cfg[section]:
            raise ValueError(f"{override}: the key is {name}, for every model; give {name}=")


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def read_keys(cfg: DictConfig) -> set[str]:
    """Top-level keys that change something in what the config builds."""
    read = set(_READ_BY_ALL)
    skipped = set()
    if not is_floor(cfg):
        read.add("precision")
    else:
        read |= _READ_BY_FLOORS
        skipped = _NOT_BUILT_FOR_FLOORS
    for section in map(str, cfg):
        if OmegaConf.is_dict(cfg[section]) and section not in skipped:
            read |= _references(OmegaConf.to_container(cfg[section], resolve=False))
    return read


def _references(node: Any) -> set[str]:
    """Top-level keys that a node interpolates."""
    if isinstance(node, dict):
        return set().union(*map(_references, node.values()))
    return {name} if (name := _reference(node)) else set()
