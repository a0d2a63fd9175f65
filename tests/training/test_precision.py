"""precision=bf16-mixed: bfloat16 products; recurrence, softmax and evaluation in float32."""

import pytest
import torch
from batches import batch_of, random_sequences, scramble
from gradients import gradients

from recblr.models import recblr
from recblr.models.recblr import RecBLR
from recblr.training.module import SequentialRecommender
from recblr.training.objectives import CrossEntropy

V = 40
SEQUENCES = random_sequences([9, 3, 14, 30, 1], V)


def module_of(precision, dropout=0.0):
    torch.manual_seed(1)
    model = scramble(RecBLR(V, d_model=16, dropout=dropout), std=0.2)
    return SequentialRecommender(model, V, CrossEntropy(), precision=precision)


def batch():
    targets = [item for row in random_sequences(map(len, SEQUENCES), V, seed=3) for item in row]
    return batch_of(SEQUENCES, targets)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_gradients_are_near_those_of_float32(dropout):
    results = []
    for precision in ("32-true", "bf16-mixed"):
        module = module_of(precision, dropout)
        torch.manual_seed(7)  # the same masks
        loss = module.training_step(batch())
        results.append((loss.detach(), gradients(loss, module)))
    (exact, exact_gradients), (half, half_gradients) = results
    assert half.dtype == torch.float32 and half != exact
    assert float(abs(half - exact) / exact) < 5e-3
    for name, theirs in exact_gradients.items():
        ours = half_gradients[name]
        assert ours.dtype == torch.float32 and theirs.any(), name
        assert float((ours - theirs).norm()) <= 0.05 * float(theirs.norm()) + 1e-6, name


def test_products_are_bfloat16_and_the_recurrence_is_float32(monkeypatch):
    seen = {}
    original = recblr.bd_lru

    def watched(u, gates, *arguments, **keywords):
        y, final = original(u, gates, *arguments, **keywords)
        seen.update(u=u.dtype, gates=gates.dtype, y=y.dtype, state=final.dtype)
        return y, final

    monkeypatch.setattr(recblr, "bd_lru", watched)
    module_of("bf16-mixed").training_step(batch())
    half = torch.bfloat16
    assert seen == {"u": half, "gates": half, "y": half, "state": torch.float32}
    module_of("32-true").training_step(batch())
    assert set(seen.values()) == {torch.float32}


def test_evaluation_is_the_same_in_float32():
    ranks = []
    for precision in ("32-true", "bf16-mixed"):
        module = module_of(precision).eval()
        one_target = batch_of(SEQUENCES, [1, 2, 3, 4, 5])
        with torch.no_grad():
            ranks.append(module._count(one_target))
    for half, exact in zip(*ranks, strict=True):
        assert torch.equal(half, exact)
