import itertools
import logging
import math

import lightning as L
import numpy as np
import pytest
import torch
from batches import random_sequences, scramble, store_of
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from recblr.data.datamodule import SequenceDataModule
from recblr.data.loader import PackedLoader
from recblr.data.sequences import training_rows
from recblr.models.popularity import Popularity
from recblr.models.recblr import RecBLR
from recblr.models.saved import load_weights, read_checkpoint
from recblr.training.callbacks import EpochRecord
from recblr.training.evaluate import evaluate
from recblr.training.module import SequentialRecommender
from recblr.training.objectives import BPR, CrossEntropy

V = 40
LENGTHS = [9, 3, 14, 2, 5, 30, 1, 4, 7, 3, 11, 6]  # two users too short to be evaluated
EVALUATED = [user for user, length in enumerate(LENGTHS) if length >= 3]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
]


class Log:
    name = "log"

    def load(self, seed=0):
        return store_of(random_sequences(LENGTHS, V), V)


class Seen(L.Callback):
    """Keeps every training batch and its loss, by epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs[-1].append((batch, float(outputs["loss"])))

    def users(self, epoch):
        return [user for batch, _ in self.epochs[epoch] for user in batch.user_ids.tolist()]


class Rows(Logger):
    name, version = "rows", ""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def data_module(**changes):
    arguments = {"max_length": 8, "batch_size": 12, "eval_batch_size": 4, "seed": 5} | changes
    data = SequenceDataModule(Log(), **arguments)
    data.load()
    return data


def tiny(dropout=0.0):
    torch.manual_seed(1)
    return scramble(RecBLR(V, d_model=8, dropout=dropout, scan="reference")).double()


def module_of(model, objective=None, lr=0.01, **arguments):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=lr)

    return SequentialRecommender(model, V, objective or CrossEntropy(), sgd, **arguments)


def fit(data, callbacks, module=None, epochs=2, lr=0.01, identity=None, logger=False, **trainer):
    module = module or module_of(tiny(), lr=lr, identity=identity)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=callbacks, logger=logger,
        reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, **{"enable_checkpointing": False} | trainer,
    )  # fmt: skip
    trainer.fit(module, data)
    return module


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("mask_history", [False, True])
def test_the_evaluation_batch_size_changes_no_metric(split, mask_history):
    popularity = Popularity(V)  # has ties
    popularity.fit(**data_module().training_part())
    for model in (tiny(), popularity):
        results = []
        for size in (1, 3, 100):
            data = data_module(eval_batch_size=size, mask_history=mask_history)
            metrics, ranks = evaluate(model, data.evaluation_loader(split), V)
            assert metrics["users"] == len(EVALUATED)
            results.append((metrics, ranks))
        for metrics, ranks in results[1:]:
            assert metrics == pytest.approx(results[0][0], rel=1e-12)
            for name, values in ranks.items():
                assert torch.equal(values, results[0][1][name]), name


@pytest.mark.parametrize("mask_history", [False, True])
def test_test_metrics_are_those_of_a_ranking_by_hand(mask_history):
    model, data = tiny().eval(), data_module(mask_history=mask_history)
    metrics, ranks = evaluate(model, data.evaluation_loader("test"), V)

    places = []
    sequences = random_sequences(LENGTHS, V)
    for user in EVALUATED:
        *history, target = sequences[user]
        state = model.init_state(1)
        for item in history[-8:]:  # max_length
            representation, state = model.step(torch.tensor([item]), state)
        scores = (model.embedding.weight @ representation[0]).tolist()
        hidden = set(history) if mask_history else set()
        candidates = [item for item in range(1, V + 1) if item not in hidden]
        ranking = sorted(candidates, key=lambda item: -scores[item])
        places.append(ranking.index(target) + 1)

    assert ranks["user"].tolist() == EVALUATED
    assert ranks["item"].tolist() == [sequences[user][-1] for user in EVALUATED]
    assert (ranks["higher"] + 1).tolist() == places
    assert not ranks["equal"].any()
    for k in (10, 20):
        hits = [place for place in places if place <= k]
        assert 0 < len(hits) < len(places)
        expected = {
            f"hr@{k}": len(hits) / len(places),
            f"ndcg@{k}": sum(1 / math.log2(place + 1) for place in hits) / len(places),
            f"mrr@{k}": sum(1 / place for place in hits) / len(places),
        }
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-12), name


def test_masking_the_history_changes_ranks():
    plain, masked = (
        evaluate(tiny(), data_module(mask_history=mask).evaluation_loader("test"), V)[1]["higher"]
        for mask in (False, True)
    )
    assert (masked <= plain).all()  # no target is a repeat here
    assert (masked < plain).any()


def test_evaluation_leaves_dropout_out():
    loader = data_module().evaluation_loader("test")
    expected = evaluate(tiny(), loader, V)[0]
    assert evaluate(tiny(dropout=0.5).train(), loader, V)[0] == expected


def test_a_checkpoint_loads_as_plain_values_and_says_what_it_belongs_to(tmp_path):
    data = data_module()
    identity = {
        "config": {"seed": 5, "model": {"d_model": 8}},
        "split_hash": data.split_hash,
        "item_ids": data.store.item_ids.tolist(),
    }
    checkpoint = ModelCheckpoint(
        tmp_path, "best", monitor="val/ndcg@10", mode="max", save_last=True,
        enable_version_counter=False,
    )  # fmt: skip
    module = fit(data, [checkpoint], identity=identity, enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    for name in ("best", "last"):
        plain = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert plain["recblr"] == identity | {"done": True}

    other = tiny()
    assert not torch.equal(other.embedding.weight, module.model.embedding.weight)
    load_weights(other, read_checkpoint(tmp_path / "last.ckpt"))
    for name, value in module.model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    missing, text, foreign = (tmp_path / name for name in ("missing", "text", "foreign"))
    text.write_text("not a checkpoint")
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(FileNotFoundError, match="missing: no such file"):
        read_checkpoint(missing)
    with pytest.raises(ValueError, match="text: not a checkpoint"):
        read_checkpoint(text)
    with pytest.raises(ValueError, match=r"foreign: not a checkpoint of train\.py"):
        read_checkpoint(foreign)


def test_every_epoch_has_its_own_order_of_the_same_rows():
    seen = Seen()
    fit(data_module(), [seen], epochs=3)
    orders = [seen.users(epoch) for epoch in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert len(seen.epochs[0]) > 2


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    first, second, other = Seen(), Seen(), Seen()
    fit(data_module(), [first])
    fit(data_module(), [second])
    fit(data_module(seed=6), [other])
    for epoch in range(2):
        assert first.users(epoch) != other.users(epoch)
        for (a, loss_a), (b, loss_b) in zip(first.epochs[epoch], second.epochs[epoch], strict=True):
            assert loss_a == loss_b
            assert torch.equal(a.items, b.items) and torch.equal(a.targets, b.targets)
            assert torch.equal(a.cu_seqlens, b.cu_seqlens)


def test_seed_and_epoch_fix_masks_and_negatives_whatever_was_drawn_before():
    store = Log().load()
    rows = training_rows(store, 8, "all_positions")
    batches = PackedLoader(store, rows, 12, budget="targets", one_target=False)

    def losses(seed, drawn):
        seen, module = Seen(), module_of(tiny(dropout=0.3), BPR(), lr=0.0, seed=seed)
        torch.rand(drawn)
        fit(batches, [seen], module)  # the same weights and batches in every epoch
        return [[loss for _, loss in epoch] for epoch in seen.epochs]

    first, again, other = losses(5, drawn=0), losses(5, drawn=17), losses(6, drawn=0)
    assert first == again
    for one, another in itertools.combinations([*first, *other], 2):
        assert all(a != b for a, b in zip(one, another, strict=True))


@pytest.mark.parametrize("target_mode", ["all_positions", "prefix"])
def test_the_epochs_loss_is_the_mean_over_its_targets(target_mode):
    seen, rows, data = Seen(), Rows(), data_module(target_mode=target_mode)
    fit(data, [seen, EpochRecord()], epochs=2, lr=0.0, logger=rows)
    counts = [int((batch.targets > 0).sum()) for batch, _ in seen.epochs[0]]
    assert len(set(counts)) > 1  # else the mean over batches would be the same
    assert sum(counts) == sum(length - 3 for length in LENGTHS if length >= 3) + 1

    # With a learning rate of 0 each epoch has the loss of the whole at the start.
    data.batch_size = 10**6
    (whole,) = data.train_dataloader()
    expected = CrossEntropy()(tiny(), whole).item()
    recorded = [row for row in rows.rows if "train/loss" in row]
    assert [row["epoch"] for row in recorded] == [1, 2]
    for row in recorded:
        assert row["train/loss"] == pytest.approx(expected, rel=1e-9)


def test_the_epochs_row_has_the_validation_metrics_of_its_weights():
    rows, data = Rows(), data_module()
    module = fit(data, [EpochRecord()], logger=rows)
    expected = evaluate(module.model, data.evaluation_loader("val"), V)[0]
    assert {name: rows.rows[-1][f"val/{name}"] for name in expected if name != "users"} == (
        pytest.approx({k: v for k, v in expected.items() if k != "users"}, rel=1e-12)
    )
    assert rows.rows[0]["val/ndcg@10"] != rows.rows[-1]["val/ndcg@10"]


def test_a_loss_that_is_not_finite_ends_the_run():
    model = tiny()
    with torch.no_grad():
        model.layers[0].recurrent.conv_bias[0] = math.inf
    with pytest.raises(ValueError, match=r"NaN|diverged"):
        fit(data_module(), [EpochRecord()], module_of(model))


def test_a_smaller_evaluation_keeps_users_of_the_whole():
    few = data_module(eval_users=4).evaluation_loader("test")
    users = [user for batch in few for user in batch.user_ids.tolist()]
    assert len(users) == 4 and set(users) <= set(EVALUATED)
    assert users == sorted(users)
    again = data_module(eval_users=4).evaluation_loader("test")
    assert np.array_equal(again.rows.user, few.rows.user)
