"""No model may see the future, and where nothing can be learned none may beat chance."""

import math

import pytest
import torch
from batches import batch_of, random_sequences, scramble, store_of
from command_line import ROOT
from fitting import loaded, trained
from hypothesis import given
from hypothesis import strategies as st

from recblr.data.synthetic import SyntheticLog
from recblr.evaluation.metrics import expected_metrics
from recblr.models.markov import Markov
from recblr.models.popularity import Popularity
from recblr.models.recblr import RecBLR
from recblr.training.evaluate import evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
]
V = 30
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
FLOORS = {"popularity": Popularity, "markov": Markov}


class Log:
    name = "log"

    def __init__(self, sequences):
        self.sequences = sequences

    def load(self, seed=0):
        return store_of(self.sequences, V)


def data_of(log, **changes):
    return loaded(log, **{"max_length": 8, "batch_size": 20, "eval_batch_size": 4} | changes)


@pytest.mark.parametrize("scan", ["reference", "serial", "cpu"])
@given(data=st.data())
def test_a_later_item_leaves_earlier_states_unchanged_to_the_bit(scan, data):
    lengths = data.draw(st.lists(st.sampled_from((1, 2, 3, 5, 17)), min_size=1, max_size=4))
    sequences = random_sequences(lengths, V, seed=sum(lengths))
    changed = data.draw(st.integers(0, sum(lengths) - 1), label="changed position")
    dtype = torch.float32 if scan == "cpu" else torch.float64
    torch.manual_seed(1)
    model = scramble(RecBLR(V, d_model=8, dropout=0.0, scan=scan)).to(dtype)

    before = batch_of(sequences)
    after = batch_of(sequences)
    after.items[changed] = after.items[changed] % V + 1
    x, y = model.encode(before), model.encode(after)
    assert not torch.equal(x[changed], y[changed])
    end = next(int(stop) for stop in before.cu_seqlens[1:] if stop > changed)
    assert torch.equal(x[:changed], y[:changed])  # earlier, and the sequences before
    assert torch.equal(x[end:], y[end:])  # the sequences after


@pytest.mark.parametrize("target_mode", ["all_positions", "prefix"])
def test_validation_and_test_items_are_in_no_training_batch(target_mode):
    lengths = [9, 3, 14, 2, 5, 30, 1, 4]
    sequences = random_sequences(lengths, V)
    held_out = [[*s[:-2], s[-2] % V + 1, s[-1] % V + 1] if len(s) >= 3 else s for s in sequences]
    earlier = [[*s[:-3], s[-3] % V + 1, *s[-2:]] if len(s) >= 4 else s for s in sequences]

    def batches(sequences):
        data = data_of(Log(sequences), target_mode=target_mode)
        return [(batch.items.tolist(), batch.targets.tolist()) for batch in data.train_dataloader()]

    assert batches(sequences) == batches(held_out)
    assert batches(sequences) != batches(earlier)


def test_the_test_item_is_no_input_of_any_evaluation():
    sequences = random_sequences([9, 3, 14, 5], V)
    changed = [[*s[:-1], s[-1] % V + 1] for s in sequences]
    before, after = data_of(Log(sequences)), data_of(Log(changed))
    for x, y in zip(before.evaluation_loader("test"), after.evaluation_loader("test")):
        assert torch.equal(x.items, y.items) and not (x.targets == y.targets).any()
    for x, y in zip(before.evaluation_loader("val"), after.evaluation_loader("val")):
        assert torch.equal(x.items, y.items) and torch.equal(x.targets, y.targets)


@pytest.fixture(scope="module")
def noise():
    log = SyntheticLog(
        n_users=6000, n_items=200, mean_length=12, recent=0, earlier=0, taste=0, zipf=0, seed=1
    )
    return data_of(log, max_length=20, batch_size=2048, eval_batch_size=2048)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_beats_chance_on_noise(name, noise):
    n_items = noise.store.n_items
    if name in FLOORS:
        model = FLOORS[name](n_items)
        model.fit(**noise.training_part())
    else:
        model = trained(noise, epochs=2, lr=3e-3, dropout=0.1, model=name)
    metrics, ranks = evaluate(model, noise.evaluation_loader("test"), n_items)
    assert metrics["users"] >= 5_000
    chance = {
        "hr@10": 10 / n_items,
        "ndcg@10": sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / n_items,
    }
    per_user = expected_metrics(ranks["higher"], ranks["equal"], 10)
    for metric, expected in chance.items():
        values = per_user[metric]
        assert metrics[metric] == pytest.approx(values.mean().item())
        standard_error = values.std().item() / math.sqrt(len(values))
        assert 0 < standard_error < 0.1 * expected
        assert abs(metrics[metric] - expected) < 3 * standard_error, metric
