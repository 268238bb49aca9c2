"""RMSNorm against PyTorch's and transformers' own, and its precision."""

import pytest
import torch
from torch.testing import assert_close

from mixtral_edu.norm import RMSNorm

pytestmark = pytest.mark.numerics


def norm_with_random_weight(size: int, eps: float) -> RMSNorm:
    norm = RMSNorm(size, eps)
    torch.nn.init.normal_(norm.weight)
    return norm


def test_equals_pytorch_and_transformers_also_where_eps_matters():
    from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm

    x = torch.randn(2, 3, 11) * torch.tensor([1e-3, 1.0, 1e3])[:, None]
    for eps in (1e-5, 0.3):
        norm = norm_with_random_weight(11, eps)
        theirs = MixtralRMSNorm(11, eps)
        theirs.load_state_dict(norm.state_dict())
        assert_close(norm(x), torch.nn.functional.rms_norm(x, (11,), norm.weight, eps), rtol=1e-5, atol=1e-6)
        assert_close(norm(x), theirs(x), rtol=0, atol=0)


def test_value_by_hand():
    norm = RMSNorm(2, eps=0.5)
    # mean of squares of (3, 4) is 12.5; with eps 13.
    assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / 13**0.5)


def test_vectors_are_not_centred_and_have_length_one_on_average():
    x = torch.randn(5, 1000) + 3
    y = RMSNorm(1000, eps=1e-12)(x)
    assert_close(y.square().mean(-1), torch.ones(5))
    assert (y.mean(-1) > 0.5).all()


def test_convention_precision_statistics_are_in_float32():
    norm = norm_with_random_weight(64, 1e-5)
    # 300² and their sum do not fit into float16, and bfloat16 cannot hold 256 + 1.
    x16 = torch.full((1, 64), 300.0, dtype=torch.float16)
    assert_close(norm.half()(x16), norm.weight[None], rtol=2e-3, atol=0)

    x = (torch.randn(7, 64) * 5).bfloat16()
    exact = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    assert_close(norm.bfloat16()(x), norm.weight * exact.bfloat16(), rtol=0, atol=0)


def test_shape_and_dtype_are_kept():
    for dtype in (torch.float32, torch.bfloat16):
        y = RMSNorm(5).to(dtype)(torch.randn(2, 3, 5, dtype=dtype))
        assert y.shape == (2, 3, 5) and y.dtype == dtype


def test_gradients():
    norm = norm_with_random_weight(7, 1e-3).double()
    # Statistics are in float32, so finite differences are compared in its precision.
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, x, eps=1e-2, atol=1e-2)
