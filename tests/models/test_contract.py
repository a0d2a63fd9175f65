"""What every trained model has to do, whatever is in it: one test for all of `conf/model`."""

import inspect
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import batch_of, random_sequences, scramble, store_of
from gradients import assert_close, assert_same, gradients
from hydra.utils import get_object
from omegaconf import OmegaConf
from tolerances import assert_close as assert_within
from tolerances import relative_error

from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.base import SequentialModel, block_scorer
from recblr.models.blocks import REPEAT_SCALE
from recblr.training.cloze import Cloze
from recblr.training.objectives import BCE, BPR, CrossEntropy, SampledSoftmax

CONF = Path(__file__).parents[2] / "conf/model"
V, USERS, LONGEST = 30, 8, 12
LENGTHS = [5, 1, 12, 3, 2, 12, 4, 8]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
SIZES = {
    "n_items": V, "n_users": USERS, "max_length": LONGEST, "d_model": 8, "n_layers": 2,
    "dropout": 0.0, "head_dropout": 0.0, "scan": "reference",
}  # fmt: skip


def classes() -> dict[str, type]:
    """Every model of conf/model that is trained."""
    targets = {path.stem: OmegaConf.load(path) for path in sorted(CONF.glob("*.yaml"))}
    nodes = {name: node.get("model", node) for name, node in targets.items()}
    found = {name: get_object(node._target_) for name, node in nodes.items()}
    return {name: cls for name, cls in found.items() if not hasattr(cls, "fit")}


CLASSES = classes()
CAUSAL = [name for name, cls in CLASSES.items() if cls.causal]
NOT_CAUSAL = [name for name, cls in CLASSES.items() if not cls.causal]
REPEATS = [n for n, cls in CLASSES.items() if "repeat_bias" in inspect.signature(cls).parameters]
DIRECT = [n for n, cls in CLASSES.items() if "direct_conv" in inspect.signature(cls).parameters]
WITH_CONV = [(n, {"direct_conv": 3}) for n in DIRECT]
WITH_CONV += [("recblr", {"direct_conv": 4, "recurrence": False})]
RECURRENT = [name for name, cls in CLASSES.items() if hasattr(cls, "step")]


def with_conv(names) -> list[tuple[str, dict]]:
    """Cases of models, and of those that can have a direct convolution with one."""
    return [*((name, {}) for name in names), *WITH_CONV]


def tiny(name: str, dtype=torch.float64, **changes):
    """The same weights on every call, all far from their start."""
    torch.manual_seed(zlib.crc32(name.encode()))
    sizes = {k: v for k, v in (SIZES | changes).items() if k in parameters_of(name)}
    return scramble(CLASSES[name](**sizes), 0.3).to(dtype)


def histories(lengths=LENGTHS, seed=0):
    return batch_of(random_sequences(lengths, V, seed))


def parameters_of(name: str) -> set[str]:
    return set(inspect.signature(CLASSES[name]).parameters)


def objective_of(model):
    return Cloze() if hasattr(model, "mask_id") else CrossEntropy()


def alone(batch, sequence: int, length: int | None = None):
    """One sequence of a batch, or its first `length` items, with its user."""
    start, stop = batch.cu_seqlens[sequence : sequence + 2].tolist()
    items = batch.items[start : stop if length is None else start + length]
    return replace(batch_of([items.tolist()]), user_ids=batch.user_ids[sequence : sequence + 1])


def test_all_nine_are_here_and_say_what_they_see():
    assert set(CAUSAL) == {"caser", "fpmc", "gru4rec", "lrurec", "narm", "recblr", "sasrec"}
    assert set(NOT_CAUSAL) == {"bert4rec", "fmlprec"}
    assert set(RECURRENT) == {"fpmc", "gru4rec", "lrurec", "recblr"}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"recblr"}))
def test_usual_has_the_same_parameters_and_departs_only_where_it_says_so(name):
    sizes = {"window": 5, "n_h": 16}  # Caser's own, which usual would change
    ours, usual = tiny(name, **sizes), tiny(name, usual=True, **sizes)
    usual.load_state_dict(ours.state_dict())
    pairs = [
        [getattr(model, what)(histories()) for model in (ours, usual)]
        for what in ("encode", "represent")
    ]
    departs = {"bert4rec": [False, True], "caser": [True, True]}.get(name, [False, False])
    assert [not torch.equal(*pair) for pair in pairs] == departs


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_and_protocol(name):
    model, batch = tiny(name), histories()
    assert isinstance(model, SequentialModel)
    encoded, represented, matrix = model.encode(batch), model.represent(batch), model.item_matrix()
    assert matrix.shape[0] == V + 1
    assert encoded.shape == (sum(LENGTHS), matrix.shape[1])
    assert represented.shape == (len(LENGTHS), matrix.shape[1])
    assert encoded.dtype == represented.dtype == torch.float64
    if name not in ("bert4rec", "fpmc"):  # which have other rows, or two tables
        assert matrix is model.embedding.weight
    bias = {"bert4rec": "bias", "lrurec": "output_bias"}.get(name)
    assert hasattr(model, "item_bias") == (bias is not None)
    if bias:
        assert model.item_bias() is getattr(model, bias) and model.item_bias().shape == (V + 1,)
    assert block_scorer(model, batch)(1, V + 1).isfinite().all()


@pytest.mark.parametrize("name, changes", with_conv(CAUSAL))
def test_every_position_is_the_representation_of_its_prefix(name, changes):
    model, batch = tiny(name, **changes), histories()
    encoded = model.encode(batch)
    for sequence, length in enumerate(LENGTHS):
        start = batch.cu_seqlens[sequence]
        for stop in range(1, length + 1):
            prefix = model.represent(alone(batch, sequence, stop))[0]
            torch.testing.assert_close(encoded[start + stop - 1], prefix, **CLOSE)


@pytest.mark.parametrize(
    "name, changes",
    [
        *((n, {}) for n in CAUSAL),
        *((n, {"repeat_bias": True}) for n in REPEATS if n in CAUSAL),
        *WITH_CONV,
    ],
)
@pytest.mark.parametrize("objective", [CrossEntropy(), None], ids=["loss", "linear"])
def test_all_positions_and_prefix_rows_have_one_loss_and_one_gradient(name, changes, objective):
    model = tiny(name, **changes)
    store = store_of(random_sequences([12, 3, 4, 7, 2, 1, 12], V), V)
    losses = []
    for mode in ("all_positions", "prefix"):
        rows, prefix = training_rows(store, LONGEST, mode), mode == "prefix"
        (batch,) = PackedLoader(store, rows, 10**6, budget="targets", one_target=prefix)
        if objective is not None:
            loss = objective(model, batch)
        else:
            x = model.represent(batch) if prefix else model.encode(batch)[batch.targets > 0]
            loss = (x * torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)).sum()
        losses.append(loss)
    of_items = {"lrurec": ["output_bias"], "fpmc": ["item_user.weight", "item_last.weight"]}
    without = [
        *of_items.get(name, ()),
        *(["repeat_bias.weight"] if "repeat_bias" in changes else ()),
    ]
    assert_same(*losses, model, without=without if objective is None else ())


@pytest.mark.parametrize("name", REPEATS)
def test_a_repeat_bias_moves_the_scores_of_the_items_met_and_no_others(name):
    plain, shifted = tiny(name), tiny(name, repeat_bias=True)
    shifted.repeat_bias.weight.data.fill_(-0.3)
    weights = shifted.state_dict()
    bias = REPEAT_SCALE * weights.pop("repeat_bias.weight")
    plain.load_state_dict(weights)
    batch = batch_of([[3, 7, 3, 1], [9]])
    expected = block_scorer(plain, batch)(2, V + 1)
    expected[0, [1, 5]] += bias  # items 3 and 7; 1 is in another block
    expected[1, 7] += bias
    torch.testing.assert_close(block_scorer(shifted, batch)(2, V + 1), expected, **CLOSE)


@pytest.mark.parametrize("name, changes", with_conv(CLASSES))
def test_what_else_is_in_the_batch_changes_no_score(name, changes):
    model, batch = tiny(name, **changes), histories()
    together = block_scorer(model, batch)(1, V + 1)
    for sequence in range(len(batch)):
        single = block_scorer(model, alone(batch, sequence))(1, V + 1)[0]
        torch.testing.assert_close(together[sequence], single, **CLOSE)


def changed_item(batch, sequence: int, place: int):
    items = batch.items.clone()
    row = batch.cu_seqlens[sequence] + place
    items[row] = items[row] % V + 1
    return replace(batch, items=items), int(row)


@pytest.mark.parametrize("name, changes", with_conv(CLASSES))
def test_an_item_reaches_what_follows_and_only_a_model_that_says_so_lets_it_reach_back(
    name, changes
):
    model, batch = tiny(name, **changes), histories()
    changed, row = changed_item(batch, sequence=2, place=6)
    moved = (model.encode(batch) != model.encode(changed)).any(1)
    inside = torch.arange(len(moved))
    inside = (inside >= batch.cu_seqlens[2]) & (inside < batch.cu_seqlens[3])
    assert moved[row]
    assert not moved[~inside].any()
    assert bool(moved[inside][:6].any()) is not model.causal


@pytest.mark.parametrize(
    "name, changes",
    [
        *((name, {}) for name in RECURRENT),
        *(("recblr", {"conv_width": width}) for width in (1, 2)),
        *(("recblr", {"scan": scan}) for scan in ("serial", "cpu")),
        *(("lrurec", {"scan": scan}) for scan in ("doubling", "cpu")),
        *((name, changes) for name, changes in WITH_CONV if name in RECURRENT),
        ("recblr", {"direct_conv": 1}),
    ],
)
def test_step_by_step_is_the_whole_sequence_and_a_state_can_be_kept(name, changes):
    single = changes.get("scan") == "cpu"
    model = tiny(name, torch.float32 if single else torch.float64, **changes)
    batch = batch_of(random_sequences([9] * 3, V))
    arguments = {"user_ids": batch.user_ids} if name == "fpmc" else {}
    state = model.init_state(3, **arguments)
    expected = model.encode(batch).view(3, 9, -1)
    for t, items in enumerate(batch.items.view(3, 9).T):
        model.step(items % V + 1, state)  # a branch, which leaves the state as it is
        x, state = model.step(items, state)
        torch.testing.assert_close(x, expected[:, t], **({} if single else CLOSE))


@pytest.mark.parametrize("one_target", [False, True])
@pytest.mark.parametrize(
    "name, op, scan",
    [
        ("recblr", "bd_lru", "serial"), ("recblr", "bd_lru", "cpu"),
        ("lrurec", "lru", "doubling"), ("lrurec", "lru", "cpu"),
    ],
)  # fmt: skip
def test_every_scan_gives_the_loss_and_gradients_of_the_float64_reference(
    name, op, scan, one_target
):
    lengths = [70, 1, 2, 3, 65, 20]
    targets = [item for row in random_sequences(lengths, V, 1) for item in row]
    targets = targets[: len(lengths)] if one_target else targets
    batch = batch_of(random_sequences(lengths, V), targets)

    def results(scan, dtype):
        model = tiny(name, dtype, scan=scan, d_model=16)
        loss = CrossEntropy()(model, batch)
        return {"loss": loss.detach(), **gradients(loss, model)}

    exact, plain = (results("reference", dtype) for dtype in (torch.float64, torch.float32))
    assert_within(op, results(scan, torch.float32), plain, exact, f"{name} {scan}")
    if scan != "cpu":
        assert_close(results(scan, torch.float64), exact)


@pytest.mark.parametrize("name, changes", with_conv(CLASSES))
def test_every_parameter_is_trained(name, changes):
    model, batch = tiny(name, **changes), histories()
    one_each = replace(batch, targets=torch.arange(1, len(LENGTHS) + 1))
    for key, grad in gradients(objective_of(model)(model, one_each), model).items():
        assert grad is not None and grad.isfinite().all() and grad.any(), key


@pytest.mark.parametrize("name, changes", with_conv(CLASSES))
def test_float32_and_bfloat16_are_close_to_float64(name, changes):
    exact, model, batch = (
        tiny(name, **changes),
        tiny(name, torch.float32, scan="auto", **changes),
        histories(),
    )
    expected = exact.represent(batch)
    roundings = {"bert4rec": 2, "lrurec": 2.5}.get(name, 1)  # measured: 1.1, 1.3, at most 0.6
    for dtype, allowed in ((torch.float32, 20), (torch.bfloat16, roundings)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            error = relative_error(model.represent(batch), expected) / torch.finfo(dtype).eps
        assert error < allowed


@pytest.mark.parametrize("name, changes", with_conv(CLASSES))
def test_a_training_step_in_bfloat16_has_finite_gradients(name, changes):
    """With dropout, without which attention takes another way, and at all positions if it can."""
    model = tiny(name, torch.float32, scan="auto", **changes, dropout=0.3, head_dropout=0.3)
    targets = torch.arange(sum(LENGTHS) if model.causal else len(LENGTHS)) % V + 1
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective_of(model)(model, replace(histories(), targets=targets))
    for key, grad in gradients(loss, model).items():
        assert grad.isfinite().all() and grad.any(), key


@pytest.mark.parametrize(
    "name, key",
    [
        (name, k)
        for name in CLASSES
        for k in ("dropout", "head_dropout")
        if k in parameters_of(name)
    ],
)
def test_each_dropout_is_for_training_only(name, key):
    model, batch = tiny(name, **{key: 0.5}), histories()
    for what in ("encode", "represent"):
        model.train()
        output = getattr(model, what)
        assert not torch.equal(output(batch), output(batch))
        model.eval()
        assert torch.equal(output(batch), getattr(tiny(name), what)(batch))


@pytest.mark.parametrize("name", CLASSES)
def test_weights_survive_a_round_trip_and_the_checks_need_no_memory(name):
    model, batch = tiny(name), histories()
    other = scramble(tiny(name), 1.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.represent(batch), model.represent(batch))
    with torch.device("meta"):
        assert next(CLASSES[name](**needed(name)).parameters()).is_meta


def needed(name: str, **sizes) -> dict:
    """The arguments that have no default."""
    parameters = inspect.signature(CLASSES[name]).parameters.values()
    return {p.name: (SIZES | sizes)[p.name] for p in parameters if p.default is p.empty}


@pytest.mark.parametrize("name", ["fpmc", "caser"])
def test_each_user_has_a_row_and_an_unknown_one_has_row_zero(name):
    model, batch = tiny(name), replace(batch_of([[4, 5]] * 3), user_ids=torch.tensor([0, 1, -1]))
    table = (model.user_item if name == "fpmc" else model.user_embedding).weight
    represented = model.represent(batch)
    assert len(represented.unique(dim=0)) == 3
    with torch.no_grad():
        table[0] = table[2]  # user 1's
    known = replace(batch, user_ids=torch.tensor([0, 1, 1]))  # rows of one place have equal bits
    assert torch.equal(model.represent(batch), model.represent(known))
    assert torch.equal(model.represent(batch)[:2], represented[:2])
    encoded = model.encode(batch)
    assert torch.equal(encoded, model.encode(known))
    assert not torch.equal(*encoded.view(3, 2, -1)[:2])


@pytest.mark.parametrize(
    "objective",
    [CrossEntropy(), BPR(), BCE(), SampledSoftmax(5), Cloze()],
    ids=lambda o: type(o).__name__,
)
def test_a_regulariser_is_part_of_every_loss(objective):
    model = tiny("bert4rec" if isinstance(objective, Cloze) else "caser")
    batch, losses = replace(histories(), targets=torch.arange(1, len(LENGTHS) + 1)), []
    for extra in (0.0, 2.5):
        model.regulariser = lambda extra=extra: extra
        torch.manual_seed(3)
        losses.append(objective(model, batch).item())
    assert losses[1] - losses[0] == pytest.approx(2.5)


@pytest.mark.parametrize("name", ["bert4rec", "fmlprec", "sasrec"])
def test_a_sequence_longer_than_max_length_is_refused(name):
    batch = batch_of([[1], [2] * (LONGEST + 1)])
    with pytest.raises(ValueError, match=rf"{LONGEST + 1} items, the model max_length={LONGEST}"):
        tiny(name).encode(batch)


@pytest.mark.parametrize("name", ["bert4rec", "fmlprec", "recblr", "sasrec"])
def test_weights_start_as_normal_numbers_and_biases_as_zeros(name):
    model = CLASSES[name](**needed(name, n_items=2000, max_length=200))
    assert model.embedding.weight[0].any()  # the padding row is a row like others
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        if "conv_" in key or key.endswith("lambda_"):
            continue  # test_recblr.py
        if key.endswith("bias"):
            assert not parameter.any(), key
        elif key.endswith("norm.weight"):
            assert (parameter == 1).all(), key
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), key
            other = parameters.get(key.replace("layers.0.", "layers.1."))
            assert other is parameter or not torch.equal(parameter, other), key


@pytest.mark.parametrize(
    "name, changes, ml_1m, beauty",
    [
        ("bert4rec", {}, 339_353, 894_278),
        ("caser", {}, 11_026_020, 2_909_532),
        ("caser", {"window": 10}, 663_420, 2_263_932),
        ("caser", {"usual": False}, 650_600, 2_251_112),
        ("caser", {"usual": False, "window": 10, "n_h": 8}, 663_420, 2_263_932),
        ("fmlprec", {}, 324_160, 851_200),
        ("fpmc", {}, 1_042_688, 3_754_880),
        ("gru4rec", {}, 300_672, 856_512),
        ("gru4rec", {"hidden": 64}, 247_424, 803_264),
        ("lrurec", {}, 355_993, 920_518),
        ("narm", {}, 341_696, 897_536),
        ("narm", {"hidden": 64}, 259_712, 815_552),
        ("recblr", {}, 402_240, 958_080),
        ("sasrec", {}, 331_584, 877_824),
    ],
)
def test_parameters_are_as_many_as_in_the_usual_or_released_implementation(
    name, changes, ml_1m, beauty
):
    usual = {"usual": True} if "usual" in parameters_of(name) else {}
    for count, n_items, n_users, longest in (
        (ml_1m, 3416, 6040, 200), (beauty, 12101, 22363, 50),
    ):  # fmt: skip
        sizes = needed(name, n_items=n_items, n_users=n_users, max_length=longest)
        with torch.device("meta"):
            model = CLASSES[name](**(sizes | usual | changes))
        assert sum(p.numel() for p in model.parameters()) == count


WRONG = [
    ("d_model", 0), ("n_layers", 0), ("n_heads", 0), ("n_heads", 5), ("hidden", 0), ("window", 0),
    ("n_h", 0), ("n_v", 0), ("expansion", 0), ("conv_width", 0), ("dropout", 1.0),
    ("dropout", -0.1), ("head_dropout", -0.1), ("scan", "fast"), ("lambda_init", "normal"),
    ("direct_conv", -1),
]  # fmt: skip
TOP_LEVEL = (
    "dropout",
    "max_length",
    "scan",
    "direct_conv",
)  # keys of the config that are not under `model.`


@pytest.mark.parametrize(
    "name, argument, value",
    [
        *((name, *wrong) for name in CLASSES for wrong in WRONG if wrong[0] in parameters_of(name)),
        *((name, "max_length", 0) for name in ("bert4rec", "fmlprec", "sasrec")),
    ],
)
def test_a_wrong_argument_is_named_by_its_key(name, argument, value):
    key = argument if argument in TOP_LEVEL else f"model.{argument}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{key}={value!r}')}: "):
        CLASSES[name](**(needed(name) | {argument: value}))
