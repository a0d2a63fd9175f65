import pytest
import torch
from tolerances import assert_close, relative_error


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_a_reference_that_fails_in_a_precision_allows_nothing(lost):
    exact, plain = {"y": torch.ones(2).double()}, {"y": torch.tensor([1, lost])}
    for got in (plain, {"y": torch.ones(2)}):
        with pytest.raises(AssertionError, match="bd_lru y: the reference itself fails"):
            assert_close("bd_lru", got, plain, exact)


@pytest.mark.parametrize("wrong", [[1, torch.nan], [1, torch.inf], [1, 1, 1], [1, 1.00001]])
def test_wrong_values_are_refused(wrong):
    exact, plain = {"y": torch.ones(2).double()}, {"y": torch.ones(2)}
    assert_close("bd_lru", plain, plain, exact)
    with pytest.raises(AssertionError):
        assert_close("bd_lru", {"y": torch.tensor(wrong)}, plain, exact)
    assert relative_error(plain["y"], exact["y"]) == 0
