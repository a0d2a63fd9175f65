import pytest
import torch
from batches import batch_of, random_sequences, scramble

from recblr.models.fpmc import FPMC

V, U = 30, 7
LENGTHS = [5, 1, 2, 9]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def tiny():
    torch.manual_seed(1)
    return scramble(FPMC(V, U, d_model=8)).double()


def test_scores_are_the_two_products_of_the_paper():
    model, sequences = tiny(), random_sequences(LENGTHS, V)
    batch = batch_of(sequences)
    scores = model.encode(batch) @ model.item_matrix().T
    tables = (model.user_item, model.item_user, model.last_item, model.item_last)
    ui, iu, li, il = (table.weight for table in tables)
    rows = iter(scores)
    for user, sequence in enumerate(sequences):
        for item in sequence:
            expected = iu @ ui[user + 1] + il @ li[item]
            torch.testing.assert_close(next(rows), expected, **CLOSE)


def test_each_table_learns_from_its_own_rows():
    model = tiny()
    (model.represent(batch_of([[4, 9], [7]])) @ model.item_matrix()[5]).sum().backward()
    read = {"user_item": [1, 2], "item_user": [5], "last_item": [7, 9], "item_last": [5]}
    for name, rows in read.items():
        grad = getattr(model, name).weight.grad
        assert grad.abs().sum(1).nonzero().flatten().tolist() == rows, name


def test_a_stream_keeps_its_users():
    model, batch = tiny(), batch_of([[3, 8], [5, 1], [2, 2]])
    expected = model.encode(batch).view(3, 2, -1)
    state = model.init_state(3, batch.user_ids)
    for t, items in enumerate(batch.items.view(3, 2).T):
        got, state = model.step(items, state)
        assert torch.equal(got, expected[:, t])
    unknown, _ = model.step(torch.tensor([3]), model.init_state(1))
    assert torch.equal(unknown[0, :8], model.user_item.weight[0])
    assert torch.equal(unknown[0, 8:], expected[0, 0, 8:])


def test_tables_start_xavier_normal_and_the_unknown_user_as_zeros():
    model = FPMC(3000, 1000)
    for name, table in model.named_parameters():
        rows = len(table)
        assert table[1:].std().item() == pytest.approx((2 / (rows + 64)) ** 0.5, rel=0.02), name
        assert bool(table[0].any()) == (name != "user_item.weight"), name
