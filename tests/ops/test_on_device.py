"""What has no GPU test file of its own, on the device that is here: CUDA, else the CPU.

Needs torch, triton and pytest alone: `make test-gpu` runs it. On the CPU Triton interprets.
"""

import pytest
import torch
from batches import batch_of, random_sequences, scramble
from bd_lru_cases import DEVICE, evaluate, make
from tolerances import allowed_error, assert_close, relative_error

from recblr.models.recblr import RecBLR
from recblr.ops.backends import SCANS, scan_runs
from recblr.ops.bd_lru import reference, serial
from recblr.ops.cross_entropy import linear_cross_entropy
from recblr.ops.cross_entropy.reference import linear_cross_entropy as plain_cross_entropy
from recblr.training.objectives import CrossEntropy

LENGTHS = [5, 1, 0, 17]
ITEMS = 30


@pytest.mark.parametrize("backend", [reference, serial])
def test_bd_lru_in_plain_torch_gives_the_values_of_the_float64_reference(backend):
    inputs = make(LENGTHS, 5)
    exact, plain = (evaluate(inputs, dtype) for dtype in (torch.float64, torch.float32))
    got = evaluate(inputs, torch.float32, backend.bd_lru, device=DEVICE)
    assert_close("bd_lru", got, plain, exact)


def test_cross_entropy_in_chunks_gives_the_values_of_the_float64_reference():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(70, 8, generator=random, dtype=torch.float64)
    weight = torch.randn(ITEMS, 8, generator=random, dtype=torch.float64)
    targets = torch.randint(ITEMS, (70,), generator=random)

    def results(function, dtype, device="cpu", **options):
        leaves = [leaf.to(device, dtype).requires_grad_() for leaf in (x.clone(), weight.clone())]
        loss = function(*leaves, targets.to(device), **options)
        dx, dweight = torch.autograd.grad(loss, leaves)
        return {"loss": loss.detach().cpu(), "dx": dx.cpu(), "dweight": dweight.cpu()}

    exact, plain = (results(plain_cross_entropy, d) for d in (torch.float64, torch.float32))
    got = results(linear_cross_entropy, torch.float32, DEVICE, chunk_rows=32)
    assert_close("cross_entropy", got, plain, exact)


@pytest.mark.parametrize("scan", [s for s in SCANS if scan_runs(s, DEVICE, torch.float32)])
def test_model_gives_the_loss_and_gradients_of_the_float64_reference(scan):
    lengths = [length for length in LENGTHS if length]
    targets = [item for row in random_sequences(lengths, ITEMS, seed=1) for item in row]
    batch = batch_of(random_sequences(lengths, ITEMS), targets)

    def results(scan, dtype, device="cpu"):
        torch.manual_seed(1)
        model = scramble(RecBLR(ITEMS, d_model=8, dropout=0.0, scan=scan)).to(device, dtype)
        loss = CrossEntropy()(model, batch.to(device))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        names = (name for name, _ in model.named_parameters())
        return {"loss": loss.detach().cpu()} | {n: g.cpu() for n, g in zip(names, gradients)}

    exact, plain = (results("reference", d) for d in (torch.float64, torch.float32))
    got = results(scan, torch.float32, DEVICE)
    for name in exact:
        allowed = allowed_error("bd_lru", plain[name], exact[name])
        assert relative_error(got[name], exact[name]) <= allowed < 1e-3, name
