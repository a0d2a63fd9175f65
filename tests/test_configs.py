"""Every composition is valid, and every setting reaches the object that it is for."""

import copy
import functools
import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from batches import batch_of
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from recblr.data.catalog import LogFile
from recblr.data.sequences import SequenceStore, leave_one_out, training_rows
from recblr.data.synthetic import SyntheticLog
from recblr.models.base import repeat_bias
from recblr.run_folder import variant_name
from recblr.training.callbacks import EpochRecord
from recblr.training.objectives import CrossEntropy
from recblr.training.validate import build, build_model, check_config, is_floor, known_keys

CONF = Path(__file__).parents[1] / "conf"
KNOWN = known_keys(CONF / "train.yaml")
RECIPE_KEYS = ("dropout", "max_length", "batch_size", "eval_batch_size", "recipe")


KNOWN_GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


TRAINED = [name for name in options("model") if name not in ("popularity", "markov")]


def node(group: str, name: str) -> dict:
    """What a YAML file gives an object, interpolations as they are."""
    file = OmegaConf.load(CONF / group / f"{name}.yaml")
    return OmegaConf.to_container(file.get(group, file), resolve=False)


def defaults(group: str, name: str) -> dict:
    """The arguments of its class that are not of the data."""
    parameters = inspect.signature(get_object(node(group, name)["_target_"])).parameters
    return {k: p.default for k, p in parameters.items() if k not in ("n_items", "n_users")}


def with_path(data: str) -> list[str]:
    return [f"data={data}", *([] if data.startswith("synthetic") else ["data.path=log.csv"])]


@pytest.fixture(autouse=True)
def hydra_config():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def composed(*overrides: str) -> DictConfig:
    cfg = compose("train", list(overrides))
    check_config(cfg, KNOWN, list(overrides))
    return cfg


def store(lengths=(9, 5, 7, 12), n_items: int = 12) -> SequenceStore:
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    items = (np.arange(offsets[-1]) % n_items + 1).astype(np.int32)
    ids = np.array([str(i) for i in range(n_items + 1)], dtype=object)
    users = ids[: len(lengths)]
    return SequenceStore(items, offsets, users, ids, "file", leave_one_out(offsets))


def datamodule(*overrides: str):
    """The data module of a config, over `store()`."""
    cfg = composed(*overrides)
    data = build(cfg.datamodule, log=build(cfg.data))
    data.store = store()
    data.rows = training_rows(data.store, data.max_length, data.target_mode)
    return data


def model(*overrides: str) -> torch.nn.Module:
    return build_model(composed(*overrides).model, n_items=7, n_users=3)


def optimizer(*overrides: str) -> torch.optim.Optimizer:
    cfg = composed(*overrides)
    return build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("name, data", list(itertools.product(options("model"), options("data"))))
def test_every_model_composes_with_every_data_set(name, data):
    cfg = composed(f"model={name}", *with_path(data))
    assert cfg.data.name == data
    assert is_floor(cfg) == (name in ("popularity", "markov"))
    build(cfg.data)
    build_model(cfg.model, n_items=7, n_users=3)


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={option}"
        for group in sorted(KNOWN_GROUPS - {"data", "model"})
        for option in options(group)
    ],
)
def test_every_other_option_composes(choice):
    composed(*(["model=bert4rec"] if choice == "objective=cloze" else []), choice)


def test_an_ablation_is_named_in_its_run_and_only_recblr_has_it():
    cfg = composed("ablation=no_conv1d")
    assert cfg.ablation == "no_conv1d" and not cfg.model.conv1d
    assert variant_name(OmegaConf.to_container(cfg)) == "recblr-no_conv1d"
    assert variant_name(OmegaConf.to_container(composed())) == "recblr"
    assert {composed(f"ablation={name}").ablation for name in options("ablation")} == set(
        options("ablation")
    )
    with pytest.raises(ValueError, match="conv1d: SASRec has no such argument"):
        composed("model=sasrec", "ablation=no_conv1d")


def test_groups_are_the_folders_of_conf():
    assert KNOWN_GROUPS <= KNOWN
    assert all(options(group) for group in KNOWN_GROUPS)


def test_every_data_set_has_a_complete_recipe_and_no_recipe_is_without_data():
    assert options("recipe") == options("data")
    for name in options("recipe"):
        recipe = yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text())
        assert sorted(recipe) == sorted(RECIPE_KEYS), name
        assert recipe["recipe"] in ("paper", "ours")


def test_a_model_brings_the_objective_and_the_rows_that_it_needs():
    others = {"bert4rec": "Cloze", "fmlprec": "BCE", "fpmc": "BPR"}
    for name in TRAINED:
        cfg = composed(f"model={name}")
        assert cfg.objective._target_.split(".")[-1] == others.get(name, "CrossEntropy")
        assert cfg.target_mode == ("prefix" if name == "fmlprec" else "all_positions")
    assert composed("model=fpmc", "objective=cross_entropy").objective._target_.endswith("Entropy")


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (["model=fmlprec", "target_mode=all_positions"], "FMLPRec sees later items"),
        (["model=bert4rec", "objective=cross_entropy"], "BERT4Rec sees later items"),
        (["model=sasrec", "objective=cloze"], "SASRec has no mask token"),
        (["model=sasrec", "objective=bce", "repeat_bias=true"], "BCE does not learn it"),
        (["model=caser", "repeat_bias=true"], "repeat_bias=true: Caser does not read repeat_bias"),
        (["ahead_weight=1.5"], "ahead_weight=1.5: must be in 0..1"),
        (["target_mode=prefix", "ahead_weight=0.2"], "none after it; target_mode=all_positions"),
        (
            ["model=fmlprec", "objective=cross_entropy", "ahead_weight=0.2"],
            "FMLPRec, which sees later items, has no other rows: leave it out",
        ),
        (
            ["objective=bce", "ahead_weight=0.2"],
            "does not read ahead_weight, nor does BCE; it would",
        ),
    ],
)
def test_an_objective_that_the_model_cannot_train_with_is_refused_before_the_data(
    overrides, reason
):
    with pytest.raises(ValueError, match=reason):
        composed(*overrides)


@pytest.mark.parametrize("data", options("data"))
def test_recipe_follows_the_data(data):
    recipe = yaml.safe_load((CONF / "recipe" / f"{data}.yaml").read_text())
    cfg = composed(*with_path(data))
    assert {key: cfg[key] for key in RECIPE_KEYS} == recipe


def test_recipe_can_be_taken_from_another_data_set_and_the_command_line_wins():
    cfg = composed(*with_path("custom"), "recipe=ml-1m", "dropout=0.4")
    assert cfg.data.name == "custom"
    assert (cfg.max_length, cfg.dropout) == (200, 0.4)


# Defaults of the usual library, or of the authors for what it lacks, as `model.`, beside dropout.
USUAL = {
    "fpmc": (None, {}),
    "caser": (0.4, {"usual": True, "window": None, "n_h": None, "n_v": 4}),
    "narm": (0.25, {"hidden": 128, "n_layers": 1, "head_dropout": 0.5}),
    "gru4rec": (0.3, {"hidden": 128, "n_layers": 1}),
    "sasrec": (0.5, {"n_layers": 2, "n_heads": 2}),
    "bert4rec": (0.2, {"n_layers": 2, "n_heads": 2}),
    "fmlprec": (0.5, {"n_layers": 2}),
    "lrurec": (0.2, {"n_layers": 2}),
}


def test_every_baseline_has_a_usual_recipe_and_recblr_keeps_the_datas():
    assert options("recipe/usual") == sorted(TRAINED) == sorted([*USUAL, "recblr"])
    assert composed("recipe=usual/${model}") == composed()


@pytest.mark.parametrize("name, data", list(itertools.product(USUAL, ("synthetic", "ml-1m"))))
@pytest.mark.parametrize("recipe", ["usual/{}", "usual/${{model}}"])
def test_a_usual_recipe_sets_what_is_the_models_and_leaves_what_is_the_datas(name, data, recipe):
    data_set = composed(f"model={name}", *with_path(data))
    cfg = composed(f"model={name}", *with_path(data), f"recipe={recipe.format(name)}")
    dropout, settings = USUAL[name]
    assert cfg.dropout == (data_set.dropout if dropout is None else dropout)
    for key, value in settings.items():
        assert cfg.model[key] == value, key
    assert (cfg.model.d_model, cfg.lr, cfg.weight_decay) == (64, 1e-3, 0.0)
    assert cfg.recipe == "usual"
    for key in ("max_length", "batch_size", "eval_batch_size"):
        assert cfg[key] == data_set[key]
    model = build_model(cfg.model, n_items=7, n_users=3)
    if name == "caser":  # what `usual` stands for
        assert (model.window, model.horizontal[0].out_features) == (cfg.max_length, 8)


@pytest.mark.parametrize(
    "file",
    sorted((CONF / "recipe").glob("b*/*/*.yaml")),
    ids=lambda file: "/".join(file.parts[-3:]),
)
def test_a_recipe_of_ours_is_of_its_data_set_and_model_and_says_why(file):
    kind, data, name = file.parts[-3], file.parent.name, file.stem
    cfg = composed(f"model={name}", *with_path(data), f"recipe={kind}/{data}/{name}")
    assert cfg.recipe == kind and kind in ("bias", "best")
    usual = composed(f"model={name}", *with_path(data), f"recipe=usual/{name}")
    assert {key for key in cfg if cfg[key] != usual[key]} > {"recipe"}
    assert re.search(r"seed 2024: validation NDCG@10 0\.\d{4} \(best epoch \d+\)", file.read_text())


def test_a_recipe_sets_rate_and_decay_and_the_command_line_wins(tmp_path):
    file = tmp_path / "recipe" / "tuned" / "custom" / "gru4rec.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nlr: 0.02\nweight_decay: 0.5\nrecipe: tuned\n")
    given = ["recipe=tuned/custom/gru4rec", f"hydra.searchpath=[file://{tmp_path}]", "lr=0.04"]
    cfg = composed("model=gru4rec", *with_path("custom"), *given)
    assert (cfg.lr, cfg.weight_decay, cfg.max_length, cfg.recipe) == (0.04, 0.5, 50, "tuned")


def test_global_group_files_set_only_keys_that_train_yaml_has():
    found = 0
    for path in CONF.rglob("*/*.yaml"):
        text = path.read_text()
        if re.search(r"^# @package _global_", text, re.M):
            found += 1
            assert set(yaml.safe_load(text)) - {"defaults", "hydra"} <= KNOWN, path
    assert found >= len(options("recipe"))


def test_unknown_key_in_a_global_file_is_refused():
    cfg = compose("train", [])
    OmegaConf.set_struct(cfg, False)
    cfg.dropuot = 0.3
    with pytest.raises(ValueError, match=r"dropuot: no such key; valid: .*dropout"):
        check_config(cfg, KNOWN, [])


def test_every_target_argument_is_bound_to_its_signature():
    for key, value, message in (
        ("optimizer.foo", 1, r"optimizer\.foo: Adam has no such argument; valid: .*weight_decay"),
        ("trainer.max_epoch", 3, r"trainer\.max_epoch: Trainer has no such argument"),
        ("callbacks.early_stopping.patince", 3, r"callbacks\.early_stopping\.patince: "),
        ("model.dropout", "a", r"model\.dropout='a': must be a number"),
        ("objective._target_", "recblr.training.objectives.Nope", r"objective\._target_=.*Nope"),
    ):
        cfg = compose("train", [])
        OmegaConf.update(cfg, key, value, force_add=True)
        with pytest.raises(ValueError, match=message):
            check_config(cfg, KNOWN, [])


def test_names_of_the_interface_exist():
    assert {"synthetic", "custom", "ml-1m", "ml-100k", "amazon-beauty"} <= set(options("data"))
    assert {"recblr", "popularity", "markov"} <= set(options("model"))
    assert {"wandb", "csv"} == set(options("logger"))
    assert {"default", "smoke"} <= set(options("trainer"))


def test_defaults_are_the_papers():
    cfg = composed(*with_path("amazon-beauty"))
    assert (cfg.lr, cfg.weight_decay, cfg.batch_size, cfg.dropout) == (1e-3, 0.0, 2048, 0.5)
    assert (cfg.model.d_model, cfg.model.n_layers) == (64, 2)
    assert (cfg.trainer.max_epochs, cfg.callbacks.early_stopping.patience) == (300, 10)
    assert cfg.callbacks.early_stopping.monitor == "val/ndcg@10"
    assert isinstance(build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Adam)
    assert isinstance(build(cfg.objective), CrossEntropy)
    assert isinstance(build(cfg.callbacks.record), EpochRecord)


def test_smoke_changes_only_what_it_says():
    smoke, plain = (
        OmegaConf.to_container(composed(f"trainer={name}"), resolve=True)
        for name in ("smoke", "default")
    )
    plain["smoke"] = True
    plain["trainer"] |= {"max_epochs": 1, "limit_train_batches": 20}
    plain["datamodule"]["eval_users"] = 500
    assert smoke == plain


def built(cfg: DictConfig, group: str) -> tuple:
    """What can be seen of the object: settings of an objective; scans and outputs of a model."""
    if group == "objective":
        return (vars(build(cfg.objective)),)
    torch.manual_seed(0)
    made = build_model(cfg.model, n_items=7, n_users=3)
    scans = {module.scan for module in made.modules() if hasattr(module, "scan")}
    batch = batch_of([[1, 2, 3, 4, 5, 6, 7, 1], [2], [3, 1, 4]])
    return scans, (made.represent(batch).tolist(), repeat_bias(made))


@pytest.mark.parametrize(
    "group, name, key",
    [
        (group, name, key)
        for group, names in (("model", TRAINED), ("objective", options("objective")))
        for name in names
        for key in defaults(group, name)
    ],
)
def test_every_argument_has_its_default_in_the_yaml_and_reaches_the_object(group, name, key):
    more = {"cloze": ["model=bert4rec"]}.get(name, [])
    if key == "max_length":  # what it is read for
        more = {"caser": ["model.usual=true"], "recblr": ["model.released=true"]}.get(name, [])
    if key == "recurrence":  # what is left without it
        more = ["direct_conv=2"]
    cfg = copy.deepcopy(composed(*more, f"{group}={name}"))
    given, path = node(group, name)[key], f"{group}.{key}"
    if (name, key) == ("cloze", "usual"):
        assert given == "${oc.select:model.usual,false}"
        path = "model.usual"
    elif key in KNOWN:
        assert given == f"${{{key}}}"
        path = key
    else:
        assert repr(given) == repr(defaults(group, name)[key])

    before, value = built(cfg, group), OmegaConf.select(cfg, path)
    others = {
        "auto": "reference",
        "uniform": "linspace",
        "None": 3,
        "0": 2,
        "False": True,
        "True": False,
    }
    other = value / 2 or 0.5 if isinstance(value, float) else others.get(str(value))
    OmegaConf.update(cfg, path, 2 * value if other is None else other)
    same = [a == b for a, b in zip(before, built(cfg, group), strict=True)]
    if key == "scan":
        assert same[0] is False and len(before[0]) == 1
    else:
        nothing = key == "usual" and name not in ("bert4rec", "caser", "cloze", "fmlprec")
        assert same[-1] is nothing


def test_dropout_reaches_every_dropout_of_the_model():
    rates = [m.p for m in model("dropout=0.35").modules() if isinstance(m, torch.nn.Dropout)]
    assert len(rates) > 2 and set(rates) == {0.35}


def test_learning_rate_and_weight_decay_reach_the_optimizer():
    group = optimizer("lr=0.02", "weight_decay=0.3").param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)


def test_max_length_cuts_the_rows_of_training_and_evaluation():
    data = datamodule("max_length=4")
    longest = max(
        int(batch.lengths.max())
        for loader in (data.train_dataloader(), data.evaluation_loader("test"))
        for batch in loader
    )
    assert longest == 4 < int(next(iter(datamodule().evaluation_loader("test"))).lengths.max())


def test_batch_size_counts_targets_and_eval_batch_size_users():
    data = datamodule("batch_size=1", "eval_batch_size=3", "target_mode=prefix")
    assert {int(batch.n_targets) for batch in data.train_dataloader()} == {1}
    assert [len(batch) for batch in data.evaluation_loader("val")] == [3, 1]


def test_target_mode_reaches_the_loader():
    prefix, full = datamodule("target_mode=prefix"), datamodule("target_mode=all_positions")
    assert all(batch.one_target_per_sequence for batch in prefix.train_dataloader())
    assert not any(batch.one_target_per_sequence for batch in full.train_dataloader())
    assert len(prefix.rows) > len(full.rows) == 4


def test_mask_history_reaches_the_batches():
    for override, masked in (("mask_history=true", True), ("mask_history=false", False)):
        batches = list(datamodule(override).evaluation_loader("test"))
        assert all((batch.seen is not None) == masked for batch in batches)


def test_seed_reaches_the_order_of_an_epoch():
    def order(*overrides):
        data = datamodule("batch_size=1", *overrides)
        return [int(user) for batch in data.train_dataloader() for user in batch.user_ids]

    assert order("seed=3") == order("seed=3")
    assert len({tuple(order(f"seed={seed}")) for seed in range(6)}) > 1


def test_data_settings_reach_the_log():
    log = build(
        composed(
            "data=custom", "data.path=a.tsv", "data.format=table", "data.columns.user=uid",
            "data.columns.item=2", "data.order=item_id", "data.repeats=last",
            "data.min_interactions=3",
        ).data
    )  # fmt: skip
    assert log == LogFile(
        "custom", "a.tsv", format="table",
        columns={"user": "uid", "item": 2, "time": "timestamp"},
        order="item_id", repeats="last", min_interactions=3,
    )  # fmt: skip
    assert isinstance(build(composed().data), SyntheticLog)


def test_a_run_from_before_direct_conv_can_be_resumed():
    cfg = OmegaConf.create(OmegaConf.to_container(composed(), resolve=True))
    del cfg["direct_conv"], cfg["model"]["direct_conv"]
    check_config(cfg, KNOWN, [])


def test_patience_and_epochs_reach_lightning():
    cfg = composed("callbacks.early_stopping.patience=3", "trainer.max_epochs=5")
    assert build(cfg.callbacks.early_stopping).patience == 3
    trainer = build(cfg.trainer, callbacks=[], logger=False)
    assert (trainer.max_epochs, trainer.reload_dataloaders_every_n_epochs) == (5, 1)


def test_every_setting_that_a_floor_does_not_read_is_refused_by_name():
    for override in ("dropout=0.3", "lr=0.1", "scan=cpu", "batch_size=9", "target_mode=prefix"):
        key = override.split("=")[0]
        with pytest.raises(ValueError, match=f"^{key}=.*: Markov does not read {key}"):
            composed("model=markov", override)
    composed("model=markov", "seed=3", "test=false", "mask_history=true", "eval_batch_size=9")
