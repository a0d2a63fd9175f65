"""Learnable structure is learned; the synthetic log separates floor, model and ceiling."""

import pytest
from command_line import run_folders, spawn
from fitting import loaded, trained

from recblr.data.synthetic import SyntheticLog
from recblr.run_folder import RunFolder
from recblr.training.evaluate import evaluate, floor_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
]


def data_of(log, max_length=30):
    return loaded(log, max_length=max_length, batch_size=256, eval_batch_size=1024)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_default_log_leaves_room_between_floors_and_ceiling(split):
    data = data_of(SyntheticLog(), max_length=50)
    ndcg = {name: row["ndcg@10"] for name, row in floor_metrics(data, split).items()}
    assert 0 < ndcg["popularity"] < ndcg["markov"] < ndcg["ceiling"] < 1
    assert ndcg["popularity"] <= 0.25 * ndcg["ceiling"]
    assert ndcg["markov"] <= 0.60 * ndcg["ceiling"]


def test_recblr_learns_what_no_floor_can():
    # Most events follow the item two steps back, which a Markov chain does not see.
    log = SyntheticLog(n_users=500, n_items=30, mean_length=20, recent=0.1, earlier=0.8, taste=0)
    data = data_of(log)
    floors = {name: row["ndcg@10"] for name, row in floor_metrics(data, "test").items()}
    model = trained(data, epochs=8, lr=5e-3)
    ndcg = evaluate(model, data.evaluation_loader("test"), data.store.n_items)[0]["ndcg@10"]
    assert floors["popularity"] < floors["markov"] < 0.4 * floors["ceiling"]
    assert 0.8 * floors["ceiling"] < ndcg < 1.05 * floors["ceiling"]


def test_recblr_learns_a_fixed_succession_almost_perfectly():
    # Every event is one of two successors of the one before, the likelier with 0.6.
    log = SyntheticLog(n_users=500, n_items=30, mean_length=15, recent=1, earlier=0, taste=0)
    data = data_of(log)
    floors = {name: row["ndcg@10"] for name, row in floor_metrics(data, "test").items()}
    model = trained(data, epochs=3, lr=5e-3)
    ndcg = evaluate(model, data.evaluation_loader("test"), data.store.n_items)[0]["ndcg@10"]
    assert ndcg > 0.97 * floors["ceiling"]
    assert floors["markov"] > 0.97 * floors["ceiling"]
    assert ndcg > 2 * floors["popularity"]


@pytest.fixture(scope="module")
def default():
    """The default log as rows of 10 items, on which all learn in few epochs; and its floors."""
    data = data_of(SyntheticLog(), max_length=10)
    return data, {name: row["ndcg@10"] for name, row in floor_metrics(data, "test").items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    # least: share of the ceiling's test NDCG@10, of which popularity has 0.09 and Markov 0.41.
    "name, epochs, lr, least",
    [
        ("gru4rec", 3, 5e-3, 0.70),  # measured 0.78
        ("narm", 3, 1e-2, 0.70),  # 0.73
        ("sasrec", 2, 5e-3, 0.70),  # 0.77
        ("lrurec", 2, 5e-3, 0.70),  # 0.77
        # The others: four fifths of what was measured.
        ("fpmc", 2, 1e-2, 0.23),  # 0.29
        ("caser", 1, 5e-3, 0.26),  # 0.33
        ("bert4rec", 3, 2e-3, 0.19),  # 0.24
        ("fmlprec", 1, 5e-3, 0.33),  # 0.41
    ],
)
def test_every_baseline_learns_the_default_log(name, epochs, lr, least, default):
    data, floors = default
    model = trained(data, epochs, lr, model=name)
    ndcg = evaluate(model, data.evaluation_loader("test"), data.store.n_items)[0]["ndcg@10"]
    assert 2 * floors["popularity"] < least * floors["ceiling"] < ndcg < floors["ceiling"]


@pytest.mark.slow
def test_demo_reaches_three_quarters_of_the_ceiling(tmp_path):
    """`make demo`'s run: well above both floors, at least 75 % of the best possible ranking."""
    outcome = spawn("train", "logger=csv", "trainer.max_epochs=10", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    run = RunFolder(run_folders(tmp_path / "runs")[0])
    floors, reached = run.read_json("floors.json"), run.read_json("test_metrics.json")["ndcg@10"]
    best = floors["ceiling"]["ndcg@10"]
    assert floors["popularity"]["ndcg@10"] <= 0.25 * best
    assert floors["markov"]["ndcg@10"] <= 0.60 * best
    assert 0.75 * best <= reached <= best
