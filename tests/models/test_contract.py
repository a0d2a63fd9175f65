"""What every trained model has to do, whatever is in it: one test for all of `conf/model`."""

import inspect
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import batch_of, random_sequences, scramble, store_of
from hydra.utils import get_object
from omegaconf import OmegaConf

from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.base import SequentialModel, block_scorer
from recblr.training.cloze import Cloze
from recblr.training.objectives import BPR, CrossEntropy, SampledSoftmax

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
RECURRENT = [name for name, cls in CLASSES.items() if hasattr(cls, "step")]


def tiny(name: str, dtype=torch.float64, **changes):
    """The same weights on every call, all far from their start."""
    torch.manual_seed(zlib.crc32(name.encode()))
    parameters = inspect.signature(CLASSES[name]).parameters
    sizes = {key: value for key, value in (SIZES | changes).items() if key in parameters}
    return scramble(CLASSES[name](**sizes), 0.3).to(dtype)


def histories(lengths=LENGTHS, seed=0):
    return batch_of(random_sequences(lengths, V, seed))


def alone(batch, sequence: int, length: int | None = None):
    """One sequence of a batch, or its first `length` items, with its user."""
    start, stop = batch.cu_seqlens[sequence : sequence + 2].tolist()
    items = batch.items[start : stop if length is None else start + length]
    return replace(batch_of([items.tolist()]), user_ids=batch.user_ids[sequence : sequence + 1])


def gradients(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in model.named_parameters()), grads))


def test_all_nine_are_here_and_say_what_they_see():
    assert set(CAUSAL) == {"caser", "fpmc", "gru4rec", "lrurec", "narm", "recblr", "sasrec"}
    assert set(NOT_CAUSAL) == {"bert4rec", "fmlprec"}
    assert set(RECURRENT) == {"fpmc", "gru4rec", "lrurec", "recblr"}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"recblr"}))
def test_every_baseline_has_the_usual_way_with_the_same_parameters(name):
    ours, usual = tiny(name), tiny(name, usual=True)
    assert usual.represent(histories()).isfinite().all()
    shapes = [{key: p.shape for key, p in model.named_parameters()} for model in (ours, usual)]
    if name != "caser":  # whose windows are longer there
        assert shapes[0] == shapes[1]
    assert shapes[0].keys() <= shapes[1].keys()


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_and_protocol(name):
    model, batch = tiny(name), histories()
    assert isinstance(model, SequentialModel)
    encoded, represented, matrix = model.encode(batch), model.represent(batch), model.item_matrix()
    assert matrix.shape[0] == V + 1
    assert encoded.shape == (sum(LENGTHS), matrix.shape[1])
    assert represented.shape == (len(LENGTHS), matrix.shape[1])
    assert encoded.dtype == represented.dtype == torch.float64
    if hasattr(model, "item_bias"):
        assert model.item_bias().shape == (V + 1,)
    assert block_scorer(model, batch)(1, V + 1).isfinite().all()


@pytest.mark.parametrize("name", CAUSAL)
def test_every_position_is_the_representation_of_its_prefix(name):
    model, batch = tiny(name), histories()
    encoded = model.encode(batch)
    for sequence, length in enumerate(LENGTHS):
        start = batch.cu_seqlens[sequence]
        for stop in range(1, length + 1):
            prefix = model.represent(alone(batch, sequence, stop))[0]
            torch.testing.assert_close(encoded[start + stop - 1], prefix, **CLOSE)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("objective", [CrossEntropy(), None], ids=["loss", "linear"])
def test_all_positions_and_prefix_rows_have_one_loss_and_one_gradient(name, objective):
    model = tiny(name)
    store = store_of(random_sequences([12, 3, 4, 7, 2, 1, 12], V), V)
    results = []
    for mode in ("all_positions", "prefix"):
        rows, prefix = training_rows(store, LONGEST, mode), mode == "prefix"
        (batch,) = PackedLoader(store, rows, 10**6, budget="targets", one_target=prefix)
        if objective is not None:
            loss = objective(model, batch)
        else:
            x = model.represent(batch) if prefix else model.encode(batch)[batch.targets > 0]
            loss = (x * torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)).sum()
        results.append((loss, gradients(loss, model)))
    (loss, grads), (expected, expected_grads) = results
    torch.testing.assert_close(loss, expected, **CLOSE)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[key], **CLOSE, msg=key)


@pytest.mark.parametrize("name", CLASSES)
def test_what_else_is_in_the_batch_changes_no_score(name):
    model, batch = tiny(name), histories()
    together = block_scorer(model, batch)(1, V + 1)
    for sequence in range(len(batch)):
        single = block_scorer(model, alone(batch, sequence))(1, V + 1)[0]
        torch.testing.assert_close(together[sequence], single, **CLOSE)


def changed_item(batch, sequence: int, place: int):
    items = batch.items.clone()
    row = batch.cu_seqlens[sequence] + place
    items[row] = items[row] % V + 1
    return replace(batch, items=items), int(row)


@pytest.mark.parametrize("name", CLASSES)
def test_an_item_reaches_what_follows_and_only_a_model_that_says_so_lets_it_reach_back(name):
    model, batch = tiny(name), histories()
    changed, row = changed_item(batch, sequence=2, place=6)
    moved = (model.encode(batch) != model.encode(changed)).any(1)
    inside = torch.arange(len(moved))
    inside = (inside >= batch.cu_seqlens[2]) & (inside < batch.cu_seqlens[3])
    assert moved[row]
    assert not moved[~inside].any()
    assert bool(moved[inside][:6].any()) is not model.causal


@pytest.mark.parametrize("name", RECURRENT)
def test_step_by_step_is_the_whole_sequence(name):
    model, batch = tiny(name), batch_of(random_sequences([9] * 3, V))
    arguments = {"user_ids": batch.user_ids} if name == "fpmc" else {}
    state = model.init_state(3, **arguments)
    expected = model.encode(batch).view(3, 9, -1)
    for t in range(9):
        x, state = model.step(batch.items.view(3, 9)[:, t], state)
        torch.testing.assert_close(x, expected[:, t], **CLOSE)


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_is_trained(name):
    model, batch = tiny(name), histories()
    one_each = replace(batch, targets=torch.arange(1, len(LENGTHS) + 1))
    objective = Cloze(last_ratio=0.5) if hasattr(model, "mask_id") else CrossEntropy()
    for key, grad in gradients(objective(model, one_each), model).items():
        assert grad is not None and grad.isfinite().all() and grad.any(), key


@pytest.mark.parametrize("name", CLASSES)
def test_float32_and_bfloat16_are_close_to_float64(name):
    exact, model, batch = tiny(name), tiny(name, torch.float32, scan="auto"), histories()
    expected = exact.represent(batch)
    scale = expected.abs().max()
    error = (model.represent(batch).double() - expected).abs().max() / scale
    assert error < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        half = model.represent(batch)
        objective = Cloze() if hasattr(model, "mask_id") else CrossEntropy()
        loss = objective(model, replace(batch, targets=torch.arange(1, len(LENGTHS) + 1)))
    assert (half.double() - expected).abs().max() / scale < 0.2
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "fpmc"])
def test_dropout_is_for_training_only(name):
    model, batch = tiny(name, dropout=0.5), histories()
    assert not torch.equal(model.represent(batch), model.represent(batch))
    model.eval()
    assert torch.equal(model.represent(batch), model.represent(batch))


@pytest.mark.parametrize("name", CLASSES)
def test_weights_survive_a_round_trip_and_the_checks_need_no_memory(name):
    model, batch = tiny(name), histories()
    other = scramble(tiny(name), 1.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.represent(batch), model.represent(batch))
    with torch.device("meta"):
        assert next(CLASSES[name](**_needed(name)).parameters()).is_meta


def _needed(name: str) -> dict:
    parameters = inspect.signature(CLASSES[name]).parameters.values()
    return {p.name: SIZES[p.name] for p in parameters if p.default is p.empty}


@pytest.mark.parametrize("name", ["fpmc", "caser"])
def test_an_unknown_user_is_row_zero(name):
    model, batch = tiny(name), histories()
    unknown = replace(batch, user_ids=torch.full((len(batch),), -1))
    assert model.represent(unknown).isfinite().all()
    assert not torch.equal(model.represent(unknown), model.represent(batch))


@pytest.mark.parametrize("objective", [CrossEntropy(), BPR(), SampledSoftmax(5)])
def test_a_regulariser_is_part_of_every_loss(objective):
    model, batch = tiny("caser"), replace(histories(), targets=torch.arange(1, len(LENGTHS) + 1))
    torch.manual_seed(3)
    with_it = objective(model, batch)
    extra = model.regulariser()
    model.regulariser = lambda: 0.0
    torch.manual_seed(3)
    assert extra > 0
    torch.testing.assert_close(objective(model, batch), with_it - extra, **CLOSE)
