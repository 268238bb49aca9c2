"""`fast.linear`: half precision on processors without instructions for it, and a bias that somebody gives a layer."""

import pytest
import torch
import torch.nn.functional as F

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.fast.linear import multiply
from tolerances import assert_product

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("piece", [2**19, 33 * 8, 1])
def test_half_precision_without_instructions_for_it_is_rounded_once(monkeypatch, piece):
    """In one piece, in pieces of 8 rows with a rest, and row by row."""
    from mixtral_edu.fast import linear

    monkeypatch.setattr(linear, "_EMULATED", {torch.bfloat16})
    monkeypatch.setattr(linear, "_PIECE", piece)
    x, w = torch.randn(9, 33).bfloat16(), torch.randn(21, 33).bfloat16()
    for rows in (1, 2, 3, 9):
        y = multiply(x[:rows], w)
        assert y.dtype == torch.bfloat16
        assert_product(y, x[:rows], w, roundings=0)
    assert torch.equal(multiply(x[:2], w), F.linear(x[:2], w))
    x, w = x.requires_grad_(), w.requires_grad_()
    direction = torch.randn(9, 21).bfloat16()
    found = torch.autograd.grad(multiply(x, w), (x, w), direction)
    assert_product(found[0], direction, w.T, roundings=0)
    assert_product(found[1], direction.T, x.T, roundings=0)


def test_a_bias_that_a_layer_is_given_counts(make_config):
    """As in `torch.nn.Linear`, of which it is one."""
    model, ids = MixtralForCausalLM(make_config()).eval(), torch.randint(101, (3, 11))
    with torch.no_grad():
        before = model(ids).logits
        model.lm_head.bias = torch.nn.Parameter(torch.arange(101.0))
        torch.testing.assert_close(model(ids).logits, before + model.lm_head.bias)
