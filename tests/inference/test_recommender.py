import logging
import math

import numpy as np
import pytest
import torch
from batches import batch_of
from made_up_model import CLASSES, LONGEST, USERS, V, about, checkpoint, made_up

from recblr.inference import Recommender
from recblr.inference.recommender import POPULARITY
from recblr.models.base import block_scorer
from recblr.models.popularity import Popularity

POPULAR = sorted(range(1, V + 1), key=lambda item: (-(item % 7), item))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
HISTORIES = [
    ("u1", ["i3", "i9", "i3"]),
    ("u2", ["i5", "what", "i60", "i0"]),
    ("u3", []),
    ("u4", ["unknown"]),
    ("u5", [f"i{1 + item % 30}" for item in range(LONGEST + 15)]),
]


def raw(items):
    return [f"i{item}" for item in items]


def expected(rec, items, k, hidden=()):
    """Ids and scores of one user, from all scores of the model for the last LONGEST items."""
    scores = block_scorer(rec.model, batch_of([items[-LONGEST:]]))(1, V + 1)[0].tolist()
    ranked = sorted((-score, item) for item, score in enumerate(scores, 1) if item not in hidden)
    return raw(item for _, item in ranked[:k]), [-score for score, _ in ranked[:k]]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_every_user_gets_k_items_of_the_model_or_what_is_popular(exclude_seen):
    rec = made_up()
    top = rec.recommend(HISTORIES, 7, exclude_seen=exclude_seen, batch_size=2)
    assert top.user_ids.tolist() == ["u1", "u2", "u3", "u4", "u5"]
    assert top.sources.tolist() == ["model", "model", "popularity", "popularity", "model"]
    assert top.skipped == 3 and top.filled == 0
    known = {"u1": [3, 9, 3], "u2": [5, 60], "u5": [1 + i % 30 for i in range(LONGEST + 15)]}
    for user, items, scores in zip(top.user_ids, top.item_ids, top.scores):
        if user in known:  # the whole history is left out, the model sees its last items
            hidden = known[user] if exclude_seen else ()
            ids, values = expected(rec, known[user], 7, hidden)
            assert items.tolist() == ids
            np.testing.assert_allclose(scores, values, rtol=1e-5, atol=1e-6)
        else:
            assert items.tolist() == raw(POPULAR[:7])
            assert scores.tolist() == [item % 7 for item in POPULAR[:7]]


def test_rows_of_a_frame_are_by_user_and_rank():
    frame = made_up().recommend(HISTORIES, 3).frame()
    assert list(frame) == ["user_id", "rank", "item_id", "score", "source"]
    assert frame.user_id.tolist() == [f"u{user}" for user in range(1, 6) for _ in range(3)]
    assert frame["rank"].tolist() == [1, 2, 3] * 5
    models = frame[frame.source == "model"]
    assert (models.groupby("user_id").score.diff().dropna() <= 0).all()


def test_no_history_at_all_is_an_empty_result():
    top = made_up().recommend([], 4)
    assert top.item_ids.shape == (0, 4) and len(top.frame()) == 0


def test_batches_do_not_change_a_result_and_read_no_further_than_they_need():
    rec, read = made_up(), []

    def histories():
        for user in range(9):
            read.append(user)
            yield user, raw([user + 1, 2 * user + 1])

    whole = rec.recommend(histories(), 5, batch_size=100)
    read.clear()
    parts = rec.batches(histories(), 5, batch_size=3)
    first = next(parts)
    assert read == [0, 1, 2]
    assert first.item_ids.tolist() == whole.item_ids[:3].tolist()
    assert np.concatenate([first.item_ids, *(p.item_ids for p in parts)]).tolist() == (
        whole.item_ids.tolist()
    )


def test_allow_and_deny_limit_the_model_and_what_is_popular(caplog):
    rec = made_up()
    allow, deny = [*raw([4, 8, 15, 16, 23, 42]), "no such"], raw([16])
    with caplog.at_level(logging.WARNING):
        top = rec.recommend(HISTORIES[:3], 5, allow=allow, deny=deny)
    assert "1 of 8 ids of allow and deny are unknown" in caplog.text
    for items in top.item_ids:
        assert set(items) == set(raw([4, 8, 15, 23, 42]))
    ids, _ = expected(rec, [3, 9, 3], 5, set(range(1, V + 1)) - {4, 8, 15, 23, 42})
    assert top.item_ids[0].tolist() == ids
    assert top.item_ids[2].tolist() == raw([4, 23, 8, 15, 42])  # 4, 2, 1, 1 and 0 events
    assert set(rec.recommend(HISTORIES[:1], 2, deny=raw(range(3, V + 1))).item_ids[0]) == {
        "i1", "i2",
    }  # fmt: skip


@pytest.mark.parametrize("k", [0, 6])
def test_more_items_than_may_be_recommended_are_refused_before_anything_is_read(k):
    rec = made_up()
    with pytest.raises(ValueError, match=f"^k={k}: must be in 1..5, the candidates$"):
        next(rec.batches(iter(()), k, allow=raw(range(1, 6))))


def test_who_has_met_nearly_all_gets_the_rest_and_then_the_best_again():
    rec = made_up()
    seen = [item for item in range(1, V + 1) if item not in (7, 11)]
    top = rec.recommend([("u", raw(seen)), ("v", raw([1]))], 5, deny=raw([30]))
    assert top.filled == 1
    assert top.sources.tolist() == ["model", "model"]
    best, _ = expected(rec, seen, V, set(seen))
    again, _ = expected(rec, seen, V, {7, 11, 30})
    assert top.item_ids[0].tolist() == best + again[:3]
    assert len(set(top.item_ids[1])) == 5


@pytest.mark.parametrize("name", CLASSES)
def test_item_and_user_vectors_multiply_to_the_scores(name):
    rec = made_up(name)
    ids, items = rec.item_vectors()
    users, vectors = rec.user_vectors(HISTORIES)
    assert ids.tolist() == raw(range(1, V + 1))
    assert users.tolist() == [user for user, _ in HISTORIES]
    assert (vectors[2:4] == 0).all()
    top = rec.recommend(HISTORIES, V, exclude_seen=False)
    for row in (0, 1, 4):
        scores = dict(zip(ids, vectors[row] @ items.T))
        got = [scores[item] for item in top.item_ids[row]]
        np.testing.assert_allclose(got, top.scores[row], rtol=1e-4, atol=1e-5)


def test_similar_items_are_by_cosine_without_the_item_itself():
    rec = made_up("lrurec")
    matrix = rec.model.item_matrix()[1:].detach().double()
    cosine = torch.cosine_similarity(matrix, matrix[[8]])
    order = [i + 1 for i in cosine.argsort(descending=True).tolist() if i != 8]
    found = rec.similar_items("i9", 4)
    assert [item for item, _ in found] == raw(order[:4])
    assert [score for _, score in found] == pytest.approx(
        [float(cosine[item - 1]) for item in order[:4]], abs=1e-6
    )
    with pytest.raises(ValueError, match="item nine: the model does not know it"):
        rec.similar_items("nine")
    with pytest.raises(ValueError, match=r"k=60: must be in 1\.\.59"):
        rec.similar_items("i9", V)


def test_a_model_with_a_vector_per_user_uses_those_of_its_log():
    rec = made_up("fpmc")
    ann, stranger = rec.recommend([("ann", ["i3"]), ("eve", ["i3"])], V, exclude_seen=False).scores
    assert not np.allclose(ann, stranger)
    assert rec.user_index([*USERS, "eve"]).tolist() == [0, 1, -1]


def test_numbers_are_ids_too():
    rec = made_up()
    rec = Recommender(rec.model, rec.about | {"item_ids": ["", *map(str, range(1, V + 1))]})
    assert rec.recommend([(7, [3, 9, np.int64(3)])], 3).skipped == 0


def test_a_model_without_a_step_has_no_states():
    with pytest.raises(ValueError, match=r"sasrec has no step\(\): recommend\(\) computes"):
        made_up("sasrec").start()


def test_auto_is_a_scan_for_any_model_and_another_only_for_those_that_have_one(tmp_path):
    path = checkpoint(made_up("sasrec"), tmp_path)
    assert Recommender.load(path, scan="auto", device="cpu").name == "sasrec"
    with pytest.raises(ValueError, match="scan=reference: sasrec has no scan"):
        Recommender.load(path, scan="reference", device="cpu")


def test_a_checkpoint_without_counts_is_refused(tmp_path):
    rec = made_up()
    del rec.about["item_counts"]
    path = checkpoint(rec, tmp_path)
    with pytest.raises(ValueError, match=f"^ckpt_path={path}: has no item_counts; train"):
        Recommender.load(path, device="cpu")


def test_what_is_popular_is_what_the_floor_ranks_first():
    floor = Popularity(V)
    floor.counts = torch.tensor(about()["item_counts"]).float()
    scores = floor.score_block(batch_of([[1]]), 1, V + 1)[0]
    top = made_up().recommend([("new", [])], V)
    assert top.sources.tolist() == [POPULARITY]
    assert [scores[int(item[1:]) - 1] for item in top.item_ids[0]] == top.scores[0].tolist()
    assert math.isfinite(top.scores.sum())


@pytest.mark.parametrize("history", [["i1", "i2", "i3"], "ann", ("ann", "i1"), ("ann",)])
def test_what_is_no_history_is_refused_and_not_split_into_letters(history):
    rec = made_up()
    with pytest.raises(ValueError, match=r"must be \(user, \[item, item, \.\.\]\)"):
        rec.recommend([history], k=1)


def test_between_two_batches_the_caller_may_train():
    rec = made_up()
    for _ in rec.batches([("ann", ["i1"]), ("bob", ["i2"])], 3, batch_size=1):
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"allow": "i5"}, "allow='i5': give a list of ids"),
        ({"deny": "i5"}, "deny='i5': give a list of ids"),
        ({"k": 2.5}, r"k=2\.5: must be a whole number"),
        ({"k": True}, "k=True: must be a whole number"),
    ],
)
def test_what_is_not_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made_up().recommend([("ann", ["i1"])], **options)


@pytest.mark.parametrize("items", [None, 242, iter(["i1"]), "i1"])
def test_a_history_is_a_list_of_items(items):
    with pytest.raises(ValueError, match=r"must be \(user, \[item, item, \.\.\]\)"):
        made_up().recommend([("ann", items)])


@pytest.mark.parametrize("device", ["tpu", pytest.param("cuda", marks=NO_GPU)])
def test_a_device_that_is_not_here_is_refused(device, tmp_path):
    with pytest.raises(ValueError, match=f"device={device}: must be cpu, or cuda where"):
        Recommender.load(checkpoint(made_up(), tmp_path), device=device)
