"""How far a result may be from the true one on any processor: from the number format and the length of its sums.

A number that is rounded to the nearest one changes by at most u = eps / 2 of its size. Which sums are rounded when, and
in which order they are added, differs from processor to processor, so the errors are taken as independent: together,
errors of at most c₁ … cₙ exceed 6 √(c₁² + … + cₙ²) once in some 30 million results (Hoeffding: 2 exp(-6²/2)).
Source: Higham and Mary 2019, "A new approach to probabilistic rounding error analysis".
"""

import torch
from torch import Tensor
from torch.testing import assert_close

_SURE = 6


def unit(dtype: torch.dtype) -> float:
    """u, the largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def chain_error(roundings: int, dtype: torch.dtype = torch.float32) -> float:
    """How far a number may be off after so many roundings one after the other, as a share of its size."""
    return _SURE * unit(dtype) * roundings**0.5


def frequency_error(draws: int) -> float:
    """How far the frequency of an event among so many independent draws may be from its probability."""
    return _SURE / 2 / draws**0.5  # a draw is 0 or 1, so at most 1/2 away from the middle


def product_error(x: Tensor, weight: Tensor, roundings: int, dtype: torch.dtype) -> Tensor:
    """How far a product x wᵀ in `dtype` may be from the one in float64: (..., F).

    Each of its D terms may have been rounded to `dtype` before (w where it is dequantized, x where it was in a wider
    type). Kernels add in float32, which is D roundings more, and round the sum to `dtype` at the end.

    Args:
        x: (..., D).
        weight: (F, D).
        roundings: of each term to `dtype`, before it is added.
        dtype: of the result.
    """
    x, weight = x.detach().double(), weight.detach().double()
    terms = (x.square() @ weight.square().T).sqrt()  # the root of the sum of the terms' squares
    sums = roundings**0.5 * unit(dtype) + x.shape[-1] ** 0.5 * unit(torch.float32)
    return _SURE * terms * sums + unit(dtype) * (x @ weight.T).abs()


def assert_product(y: Tensor, x: Tensor, weight: Tensor, roundings: int) -> None:
    """Check that y is x wᵀ within `product_error`."""
    x, weight = x.detach(), weight.detach()
    error = (y.detach().double() - x.double() @ weight.double().T).abs()
    allowed = product_error(x, weight, roundings, y.dtype)
    assert (error <= allowed).all(), f"up to {(error / allowed).max():.2g} times the rounding error that there can be"


def assert_attention(out: Tensor, expected: Tensor, keys: int) -> None:
    """Check what attention over so many keys gives, in float32: scores are sums of Dh numbers, results of one a key."""
    allowed = chain_error(out.shape[-1] + keys) * expected.abs().max().item()
    assert_close(out, expected, rtol=0, atol=allowed)


# Results of the tests' small models in float32: the path of a number leads through three layers of some 300 additions
# each (D + Dh + S + Hq·Dh in attention, D + F + K in the experts, D in each norm) and the head, and a logit's size is
# up to 6 where `initializer_range` is 0.2.
FORWARD = {"rtol": 0.0, "atol": 6 * chain_error(1000)}


def assert_forward(out: Tensor, expected: Tensor, roundings: int = 1000) -> None:
    """Check what such a model computes, of whatever size; where that is infinite it must be the same."""
    size = expected[expected.isfinite()].abs().max().item()
    assert_close(out, expected, rtol=0, atol=size * chain_error(roundings))
