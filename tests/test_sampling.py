"""The functions over logits, against transformers' processors."""

import pytest
import torch
from transformers.generation import logits_process

from mixtral_edu.sampling import (
    GenerationOptions,
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
        chosen = options.choose(logits, seen, mask, torch.Generator().manual_seed(seed))
        theirs = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        assert torch.equal(chosen, theirs)
