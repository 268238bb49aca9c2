"""The functions over logits, against transformers' processors."""

import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.generation import logits_process

from mixtral_edu.api.options import GenerationOptions
from mixtral_edu.sampling import (
    apply_repetition_penalty,
    apply_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token,
)
from tolerances import frequency_error

pytestmark = pytest.mark.numerics

LOGITS = torch.randn(64, 53, generator=torch.Generator().manual_seed(0)) * 3
LOGITS[0] = 1.0  # ties everywhere
LOGITS[1, :20] = LOGITS[1].max()
IDS = torch.randint(0, 53, (64, 11), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("value", [1, 2, 7, 53, 60])
def test_top_k_equals_transformers(value):
    assert torch.equal(keep_top_k(LOGITS, value), logits_process.TopKLogitsWarper(value)(IDS, LOGITS))


@pytest.mark.parametrize("value", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_equals_transformers_and_keeps_at_least_one(value):
    kept = keep_top_p(LOGITS, value)
    assert torch.equal(kept, logits_process.TopPLogitsWarper(value)(IDS, LOGITS))
    assert kept.isfinite().any(dim=1).all()


def test_top_p_stops_as_soon_as_p_is_reached():
    assert keep_top_p(torch.zeros(1, 4), 0.5).isfinite().sum() == 2


@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 1.0])
def test_min_p_equals_transformers_and_keeps_at_least_one(value):
    kept = keep_min_p(LOGITS, value)
    different = kept != logits_process.MinPLogitsWarper(value)(IDS, LOGITS)
    assert not different[1:].any()
    assert kept.isfinite().any(dim=1).all()


@pytest.mark.parametrize("value", [0.5, 1.0, 1.3])
def test_repetition_penalty_and_temperature_equal_transformers(value):
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(value)(IDS, LOGITS.clone())
    assert torch.equal(apply_repetition_penalty(LOGITS, IDS, value), theirs)
    assert torch.equal(apply_temperature(LOGITS, value), logits_process.TemperatureLogitsWarper(value)(IDS, LOGITS))


def test_repetition_penalty_leaves_pads_out():
    ids, mask = torch.tensor([[3, 3, 5]]), torch.tensor([[0, 0, 1]])
    logits = torch.tensor([[1.0, -1.0, 2.0, 2.0, 2.0, 2.0]])
    assert apply_repetition_penalty(logits, ids, 2.0, mask).tolist() == [[1, -1, 2, 2, 2, 1]]
    assert apply_repetition_penalty(logits, ids, 2.0).tolist() == [[1, -1, 2, 1, 2, 1]]


def test_the_functions_leave_their_input_alone():
    before = LOGITS.clone()
    keep_top_k(LOGITS, 3), keep_top_p(LOGITS, 0.5), keep_min_p(LOGITS, 0.5), apply_temperature(LOGITS, 2.0)
    apply_repetition_penalty(LOGITS, IDS, 2.0)
    assert torch.equal(LOGITS, before)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.1, 0.2, 0.7, 0.0]).log().expand(20000, 4)
    drawn = next_token(logits, do_sample=True, generator=torch.Generator().manual_seed(0))
    shares, expected = drawn.bincount(minlength=4) / 20000, torch.tensor([0.1, 0.2, 0.7, 0.0])
    assert torch.allclose(shares, expected, rtol=0, atol=frequency_error(20000)) and shares[3] == 0
    assert next_token(logits, do_sample=False)[:3].tolist() == [2, 2, 2]


def test_options_apply_in_their_order():
    logits, seen, mask = LOGITS[2:], IDS[2:], torch.ones_like(IDS[2:])
    settings = dict(temperature=1.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.4)
    processors = logits_process.LogitsProcessorList([
        logits_process.RepetitionPenaltyLogitsProcessor(1.4), logits_process.TemperatureLogitsWarper(1.7),
        logits_process.TopKLogitsWarper(20), logits_process.TopPLogitsWarper(0.8),
        logits_process.MinPLogitsWarper(0.05),
    ])  # fmt: skip
    probabilities = processors(seen, logits.clone()).softmax(-1)
    options = GenerationOptions(max_new_tokens=1, do_sample=True, **settings)
    for seed in range(20):
        chosen = options.sampler.choose(logits, seen, mask, torch.Generator().manual_seed(seed))
        theirs = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        assert torch.equal(chosen, theirs)


FINITE = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-30, 30, width=32) | st.sampled_from((0.0, 1e-45))
EXTREME = st.sampled_from((1e-38, 1e-40, 5e-324, 1e38, 1e308, 10**400))
POSITIVE = st.floats(5e-324, 1.7e308) | st.floats(0.1, 3) | EXTREME
SHARES = st.floats(0, 1) | st.sampled_from((0.0, 5e-324, 1e-30, 1.0))
OPTIONS = st.fixed_dictionaries(
    {"do_sample": st.just(True)},
    optional={
        "temperature": POSITIVE,
        "top_k": st.integers(1, 8) | st.just(10**30),
        "top_p": SHARES.filter(bool),
        "min_p": SHARES,
        "repetition_penalty": POSITIVE,
    },
)


@given(
    logits=st.lists(st.lists(FINITE | st.just(-math.inf), min_size=7, max_size=7), min_size=1, max_size=3),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)),
    settings=OPTIONS,
    seen=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    seed=st.integers(-(2**63), 2**64 - 1),
)
@hypothesis.settings(max_examples=200)
def test_finite_logits_and_valid_options_give_a_distribution_whatever_their_size(logits, dtype, settings, seen, seed):
    logits = torch.tensor(logits, dtype=torch.float64)
    top = torch.finfo(dtype).max
    logits = torch.where(logits.isinf(), logits, logits.clamp(-top, top)).to(dtype)
    logits[:, 3] = logits[:, 3].nan_to_num()  # not a whole row of -inf
    seen = torch.tensor([seen] * len(logits))
    options = GenerationOptions(max_new_tokens=1, seed=seed, **settings)
    shaped = options.sampler.shape(logits, seen, torch.ones_like(seen))
    probabilities = shaped.double().softmax(-1)
    assert not probabilities.isnan().any()
    kept = shaped > -math.inf
    assert kept.any(dim=1).all()
    assert not (kept & logits.isinf()).any(), "what the model rules out stays ruled out"
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(5):
        chosen = options.sampler.choose(logits, seen, torch.ones_like(seen), generator)
        assert kept.gather(1, chosen[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1, -1, 1e-3, 1e4])
def test_a_temperature_goes_to_its_limits(dtype, scale):
    logits = torch.tensor([[3.0, 1, 3, -2, -math.inf], [-5, -1, -2, -2, -4]]) * abs(scale)
    logits = logits.to(dtype) if scale > 0 else (logits - logits.amax() - 1).to(dtype)  # with no positive score
    for least in (1e-37, 1e-40, 5e-324, 0.0):
        probabilities = apply_temperature(logits, least).softmax(-1)
        assert probabilities.tolist() == [[0.5, 0, 0.5, 0, 0], [0, 1, 0, 0, 0]]
    for most in (1e38, 1e300, 10**400):
        probabilities = apply_temperature(logits, most).softmax(-1)
        assert_close(probabilities, torch.tensor([[0.25] * 4 + [0], [0.2] * 5]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_repetition_penalty_goes_to_its_limits(dtype):
    logits = torch.tensor([[3.0, 1, -2, 0], [-5, -1, -2, -2]], dtype=dtype)
    some, all_ids = torch.tensor([[0, 1], [0, 1]]), torch.arange(4).repeat(2, 1)
    for most in (1e38, 1e300, 10**400):
        first, second = apply_repetition_penalty(logits, some, most)
        assert_close(first, torch.tensor([0, 0, -2, 0]).to(dtype), rtol=0, atol=1e-36)
        assert second.softmax(-1).tolist() == [0, 0, 0.5, 0.5]
        assert apply_repetition_penalty(logits, all_ids, most).softmax(-1)[1].tolist() == [0, 1, 0, 0]
    for least in (1e-38, 1e-40, 5e-324):
        probabilities = apply_repetition_penalty(logits, all_ids, least).softmax(-1)
        assert probabilities[0].tolist() == [1, 0, 0, 0]
        assert_close(probabilities[1], torch.full((4,), 0.25).to(dtype), rtol=0, atol=0)


def test_a_row_that_overflows_leaves_the_other_rows_alone():
    logits = torch.cat((LOGITS[:3], torch.tensor([[1e30] + [0.0] * 52])))
    shaped = apply_temperature(logits, 1e-9)
    assert torch.equal(shaped[:3], LOGITS[:3] / 1e-9) and shaped[3].softmax(-1)[0] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_filters_of_half_precision_logits_are_those_of_the_same_numbers_in_float32(dtype):
    """Sums of many small probabilities would be lost in half precision: of 5,000 equal ones top-p 0.5 keeps 2,500."""
    logits = torch.cat((torch.zeros(1, 5000), torch.randn(1, 5000))).to(dtype)
    for keep, value in ((keep_top_p, 0.5), (keep_top_p, 0.9), (keep_min_p, 0.1)):
        assert torch.equal(keep(logits, value), keep(logits.float(), value).to(dtype))
    assert keep_top_p(logits, 0.5)[0].isfinite().sum() == pytest.approx(2500, abs=2)


@pytest.mark.parametrize("row", [[1.0, math.nan], [1.0, math.inf], [-math.inf, -math.inf]])
def test_nothing_is_drawn_from_what_is_no_distribution(row):
    logits = torch.tensor([[0.0, 0.0], row])
    with pytest.raises(ValueError, match="logits"):
        next_token(logits, do_sample=True)


@pytest.mark.parametrize("row", [[math.inf, 1.0, 2.0], [-math.inf] * 3, [math.nan, 1.0, 2.0]])
@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 1e-40}, {"repetition_penalty": 1.3},
                                     {"repetition_penalty": 1e-40, "temperature": 0.5, "top_k": 2, "top_p": 0.9,
                                      "min_p": 0.1}])  # fmt: skip
def test_logits_that_are_broken_stay_broken_on_their_way(row, options):
    logits, ids = torch.tensor([[0.0, 1.0, 2.0], row]), torch.tensor([[0, 1], [0, 1]])
    sampler = GenerationOptions(max_new_tokens=1, do_sample=True, **options).sampler
    shaped = sampler.shape(logits, ids, torch.ones_like(ids))
    next_token(shaped[:1], do_sample=True)
    with pytest.raises(ValueError, match="logits"):
        next_token(shaped, do_sample=True)


@pytest.mark.parametrize("number", [Fraction(1, 2), np.float32(0.5), np.float64(0.5)])
def test_numbers_of_any_kind_are_taken(number):
    ones = torch.ones_like(IDS)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        shaped, expected = (
            GenerationOptions(max_new_tokens=1, do_sample=True, **{name: value}).sampler.shape(LOGITS, IDS, ones)
            for value in (number, 0.5)
        )
        assert torch.equal(shaped, expected)
    seeds = [GenerationOptions(max_new_tokens=np.int64(1), do_sample=True, seed=seed).seed for seed in (np.int64(3), 3)]
    first, second = (torch.Generator().manual_seed(seed).initial_seed() for seed in seeds)
    assert first == second
