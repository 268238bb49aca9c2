"""Rounding to 8 and 4 bits, against its bounds and number by number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixtral_edu.quantization.rounding import pack_pairs, quantize_groups, quantize_rows, unpack_pairs

pytestmark = pytest.mark.numerics

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_bits_are_at_most_half_a_step_away_and_the_largest_number_of_a_row_is_kept(dtype):
    weight = torch.randn(5, 300) * torch.tensor([1e-3, 1.0, 30.0, 1.0, 1.0])[:, None]
    q, scale = quantize_rows(weight, dtype)
    assert (q.shape, q.dtype, scale.shape, scale.dtype) == ((5, 300), torch.int8, (5,), dtype)
    steps = scale.double()[:, None]
    error = (q.double() * steps - weight.double()).abs()
    rounding = 127 * steps * torch.finfo(dtype).eps  # of the scale itself
    assert (error <= steps / 2 + rounding).all()
    assert (q.abs().amax(dim=1) >= 126).all(), "the range is used"


@pytest.mark.parametrize("group_size", [2, 6, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bits_are_at_most_half_a_step_away(dtype, group_size):
    weight = torch.randn(7, 300) + 2 * torch.randn(7, 1)
    q, scale, zero = quantize_groups(weight, group_size, dtype)
    assert q.shape == (7, 300) and q.dtype == torch.uint8 and q.max() <= 15
    assert scale.shape == zero.shape == (7, 300 // group_size) and scale.dtype == zero.dtype == dtype
    error = 0.0
    for row in range(7):  # the formula, number by number
        for column in range(300):
            step, middle = (t[row, column // group_size].item() for t in (scale, zero))
            found = (q[row, column].item() - 8) * step + middle
            allowed = step / 2 + 16 * torch.finfo(dtype).eps * (step + abs(middle))
            assert abs(found - weight[row, column].item()) <= allowed
            error = max(error, abs(found - weight[row, column].item()))
    assert error > 0
    if dtype == torch.float32:  # where the zero is not rounded, a group's ends are the range's
        assert (q.view(7, -1, group_size).amin(2) == 0).all() and (q.view(7, -1, group_size).amax(2) == 15).all()


@given(st.lists(st.lists(st.integers(0, 15), min_size=6, max_size=6), min_size=1, max_size=4))
def test_two_neighbours_share_a_byte_and_come_back(rows):
    q = torch.tensor(rows, dtype=torch.uint8)
    packed = pack_pairs(q)
    expected = np.array(rows, dtype=np.uint8)
    assert packed.numpy().tolist() == (16 * expected[:, ::2] + expected[:, 1::2]).tolist()
    assert torch.equal(unpack_pairs(packed), q)
