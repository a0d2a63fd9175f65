"""What every op on packed sequences refuses in the same words."""

import pytest
import torch

from recblr.ops.bd_lru import bd_lru
from recblr.ops.causal_conv import causal_conv
from recblr.ops.lru import lru
from recblr.ops.packed import check_cu_seqlens
from recblr.ops.scan import scan

SHAPES = {  # of the arguments before cu_seqlens, for 3 rows of 2 channels
    bd_lru: ((3, 2), (3, 4), (2,)),
    causal_conv: ((3, 2), (2, 4), (2,)),
    lru: ((3, 2), (2, 1)),
    scan: ((3, 2), (3, 2)),
}
CU_SEQLENS = torch.tensor([0, 2, 3])


@pytest.fixture(params=SHAPES, ids=lambda op: op.__name__)
def op(request):
    """Call an op on tensors of a device."""

    def call(device, cu_seqlens, host=None):
        given = (torch.zeros(shape, device=device) for shape in SHAPES[request.param])
        return request.param(*given, cu_seqlens=cu_seqlens, cu_seqlens_host=host)

    return call


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (CU_SEQLENS.int(), r"is torch.int32 of shape \(3,\), expected torch.int64 of shape \(B"),
        (CU_SEQLENS.double(), "is torch.float64 of shape"),
        (CU_SEQLENS[None], r"is torch.int64 of shape \(1, 3\), expected"),
        (CU_SEQLENS[:0], r"is torch.int64 of shape \(0,\), expected"),
        (torch.tensor(3), r"is torch.int64 of shape \(\), expected"),
    ],
)
def test_dtype_and_shape_are_checked_of_both(op, wrong, said):
    with pytest.raises(ValueError, match=f"^cu_seqlens {said}"):
        op("cpu", wrong)
    with pytest.raises(ValueError, match=f"^cu_seqlens {said}"):
        op("cpu", wrong, CU_SEQLENS)
    with pytest.raises(ValueError, match=f"^cu_seqlens_host {said}"):
        op("cpu", CU_SEQLENS, wrong)


def test_each_is_on_its_device_and_both_are_the_same(op):
    meta = CU_SEQLENS.to("meta")
    with pytest.raises(ValueError, match=r"^cu_seqlens is on meta, the rows are on cpu"):
        op("cpu", meta)
    with pytest.raises(ValueError, match=r"^cu_seqlens is on cpu, the rows are on meta"):
        op("meta", CU_SEQLENS)
    with pytest.raises(
        ValueError, match=r"^cu_seqlens_host is on meta with 3 values, .* CPU and 3"
    ):
        op("meta", meta, meta)
    with pytest.raises(ValueError, match=r"^cu_seqlens_host is on cpu with 2 values, .* CPU and 3"):
        op("cpu", CU_SEQLENS, CU_SEQLENS[:2])
    with pytest.raises(ValueError, match=r"^cu_seqlens_host is 1 at index 1, cu_seqlens 2: they"):
        op("cpu", CU_SEQLENS, torch.tensor([0, 1, 3]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 2, 4], r"spans 0\.\.4, expected 0\.\.3, the rows given"),
        ([1, 2, 3], r"spans 1\.\.3, expected 0\.\.3"),
        ([0, 4, 3], "falls from 4 to 3 at index 2: lengths cannot be negative"),
    ],
)
def test_values_are_checked_where_they_lie_on_the_cpu(op, values, said):
    wrong = torch.tensor(values)
    with pytest.raises(ValueError, match=f"^cu_seqlens {said}"):
        op("cpu", wrong)
    with pytest.raises(ValueError, match=f"^cu_seqlens_host {said}"):
        op("meta", wrong.to("meta"), wrong)


def test_values_on_a_device_are_not_waited_for():
    check_cu_seqlens(CU_SEQLENS.to("meta"), torch.zeros(3, 2, device="meta"))


def test_a_right_host_copy_is_taken(op):
    rows, final = op("cpu", CU_SEQLENS, CU_SEQLENS.clone())
    assert len(rows) == 3 and len(final) == 2
