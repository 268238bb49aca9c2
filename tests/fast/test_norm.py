"""The engine's norm computes the textbook's bits."""

import pytest
import torch

from mixtral_edu.fast.norm import FastNorm
from mixtral_edu.norm import RMSNorm
from tolerances import chain_error

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 1, 44), (2, 70, 37)])
def test_it_is_the_textbooks_norm(dtype, shape):
    plain, fast = RMSNorm(shape[-1], eps=0.1).to(dtype), FastNorm(shape[-1], eps=0.1).to(dtype)
    torch.nn.init.normal_(plain.weight)
    fast.load_state_dict(plain.state_dict())
    for given in (dtype, torch.float32):
        x = torch.randn(shape).to(given)
        gradients = []
        for norm in (plain, fast):
            y = norm(x.requires_grad_())
            gradients.append((y, *torch.autograd.grad(y.float().square().sum(), (x, norm.weight))))
        for expected, found in zip(*gradients, strict=True):
            allowed = chain_error(6, dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32)
            assert found.dtype == expected.dtype
            assert (found - expected).abs().max() <= allowed * expected.abs().max()
