"""One expert against its formula, written out."""

import pytest
import torch
from torch.testing import assert_close

from mixtral_edu.experts import Expert

pytestmark = pytest.mark.numerics


def test_convention_expert_w1_gates_w3_goes_up_w2_comes_down(make_config):
    expert = Expert(make_config())
    for parameter in expert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert expert.w1.weight.shape == expert.w3.weight.shape == (37, 44) and expert.w2.weight.shape == (44, 37)
    x = torch.randn(3, 44)
    gate, up = x @ expert.w1.weight.T, x @ expert.w3.weight.T
    assert_close(expert(x), (gate / (1 + torch.exp(-gate)) * up) @ expert.w2.weight.T, rtol=1e-4, atol=1e-5)
