"""Gradients by name, and the one comparison of two ways to compute the same."""

import torch
from tolerances import relative_error

LEAST = 1e-6  # a gradient that is nowhere larger shows nothing


def gradients(loss, of):
    """Of a scalar, by name; None where the loss does not reach. of: a module, or leaves by name."""
    leaves = dict(of.named_parameters()) if isinstance(of, torch.nn.Module) else of
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)))


def assert_same(got, expected, of, tolerance=1e-10, without=()):
    """Two ways to compute a tensor have its values, and the gradients of a random sum of them.

    tolerance: of errors relative to the largest value. without: the leaves that it does not reach.
    """
    weights = torch.randn_like(expected) if expected.dim() else 1.0
    ours, theirs = (gradients((x * weights).sum(), of) for x in (got, expected))
    for found in (ours, theirs):
        assert {name for name, gradient in found.items() if gradient is None} == set(without)
    theirs = {name: gradient for name, gradient in theirs.items() if name not in without}
    for name, gradient in theirs.items():
        assert gradient.abs().max() > LEAST, f"{name} has no gradient to compare"
    assert_close({"value": got, **ours}, {"value": expected, **theirs}, tolerance)


def assert_close(got, expected, tolerance=1e-10):
    """By name, each relative to the largest value expected."""
    for name, value in expected.items():
        error = relative_error(got[name].detach(), value.detach())
        assert error <= tolerance, f"{name}: error {error:.1e} > {tolerance:.0e}"
