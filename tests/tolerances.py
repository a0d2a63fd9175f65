"""How far a result may be from the float64 reference: the one table for every numerical test.

The error is the largest absolute difference, divided by the largest reference value (its scale).
It may be MULTIPLE times what the plain reference itself loses when run in the tested precision,
plus FLOOR roundings, because on a small case the reference can be exact by luck.
"""

import torch

MULTIPLE = {"bd_lru": 6, "causal_conv": 6, "cross_entropy": 6, "lru": 6, "scan": 6}
FLOOR = 8  # in units of the precision's epsilon

# A gate below 1e-38 is no normal float32, and the input scale is its square root: values of about
# 1e-18 are rounding, whatever computes them. A scale under this one is not divided by.
SMALLEST_SCALE = 1e-11


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """max |got - exact| / max |exact|; infinite if `got` has another shape, NaN or infinity."""
    if got.shape != exact.shape or not got.isfinite().all():
        return float("inf")
    if exact.numel() == 0:
        return 0.0
    scale = max(exact.abs().max().item(), SMALLEST_SCALE)
    return ((got.double() - exact.double()).abs().max() / scale).item()


def allowed_error(op: str, plain: torch.Tensor, exact: torch.Tensor) -> float:
    """The bound on the relative error, given the reference run in the tested precision."""
    return MULTIPLE[op] * relative_error(plain, exact) + FLOOR * torch.finfo(plain.dtype).eps


def assert_close(op: str, got: dict, plain: dict, exact: dict, case: str = "") -> None:
    """Compare results by name: `got`, the reference in the same precision, and in float64."""
    assert got.keys() == exact.keys()
    for name in exact:
        assert got[name].shape == exact[name].shape, f"{op} {name}: {got[name].shape}; {case}"
        error, allowed = (
            relative_error(got[name], exact[name]),
            allowed_error(op, plain[name], exact[name]),
        )
        assert allowed < 0.1, f"{op} {name}: the reference itself fails in that precision; {case}"
        if not error <= allowed:
            where = (got[name].double() - exact[name].double()).abs().nan_to_num(torch.inf).argmax()
            raise AssertionError(
                f"{op} {name} {tuple(exact[name].shape)}: error {error:.2e} > {allowed:.2e}, "
                f"largest at flat index {where}; {case}"
            )
