"""The shared scoring function."""

import pytest
import torch
from batches import batch_of

from recblr.models.base import block_scorer
from recblr.ops.rank import count_ranks


class Collapsed(torch.nn.Module):
    """Every item has the same row: a constant scorer."""

    causal = True

    def __init__(self, n_items, users):
        super().__init__()
        self.users = torch.randn(users, 64)
        self.rows = torch.randn(64).expand(n_items + 1, 64).contiguous()

    def represent(self, batch):
        return self.users

    def item_matrix(self):
        return self.rows


@pytest.mark.parametrize("users", [1, 2, 3, 300])
@pytest.mark.parametrize("n_items", [999, 3416, 12101])
def test_items_with_equal_rows_tie_exactly(n_items, users):
    batch = batch_of([[1]] * users)
    targets = torch.randint(1, n_items + 1, (users,))
    scorer = block_scorer(Collapsed(n_items, users), batch)
    higher, equal = count_ranks(scorer, targets, n_items)
    assert (higher == 0).all() and (equal == n_items - 1).all()


def test_a_block_of_scores_has_the_bias_of_its_items():
    model, batch = Collapsed(20, users=3), batch_of([[1]] * 3)
    plain, bias = block_scorer(model, batch)(4, 9), torch.randn(21)
    model.item_bias = lambda: bias
    torch.testing.assert_close(block_scorer(model, batch)(4, 9), plain + bias[4:9])
