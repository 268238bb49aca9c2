"""Texts packed into one row, told apart by position ids that restart: as in transformers, and as each text alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import mixtral_edu
from mixtral_edu.api.visibility import packed_rows
from mixtral_edu.fast import engine
from mixtral_edu.moe import load_balancing_loss
from tolerances import FORWARD, chain_error

pytestmark = pytest.mark.numerics

PAD = 3
CLASSES = (
    "MixtralModel",
    "MixtralForCausalLM",
    "MixtralForSequenceClassification",
    "MixtralForTokenClassification",
    "MixtralForQuestionAnswering",
)
ROWS = [[3, 1, 4, 1, 2], [11], [5, 6]]  # lengths of the texts in each


def random_model(make_config, name: str = "MixtralForCausalLM", with_engine: bool = True, **changes):
    """A model in evaluation mode whose layers really change their input."""
    options = {"pad_token_id": PAD, "num_labels": 4, "initializer_range": 0.2} | changes
    model = getattr(mixtral_edu, name)(make_config(**options)).eval()
    return model if with_engine else engine.remove(model)


def positions_of(rows: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in rows])


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.randint(PAD + 1, 101, (len(rows), sum(rows[0])))
    return {"input_ids": ids, "position_ids": positions_of(rows), "use_cache": False}


def texts_in(rows: list[list[int]]) -> list[tuple[int, slice]]:
    """The row and the columns of each text."""
    found = []
    for row, lengths in enumerate(rows):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        found += [(row, slice(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    return found


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
def test_results_and_gradients_are_those_of_transformers(
    make_config, transformers_twin, to_transformers, name, backend, with_engine, window
):
    ours = random_model(make_config, name, with_engine, attn_implementation=backend, sliding_window=window)
    theirs = transformers_twin(ours)
    call = batch(ROWS)
    out, expected = ours(**call), theirs(**call)
    assert_close(out[0], expected[0], **FORWARD)
    for one in out, expected:
        sum(x.square().mean() for x in one.to_tuple()).backward()
    found = to_transformers({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in ours.named_parameters()})
    for n, p in theirs.named_parameters():
        allowed = chain_error(2000) * max(1.0, p.grad.abs().max().item())
        assert_close(found[n], p.grad, rtol=0, atol=allowed, msg=lambda text, n=n: f"{n}: {text}")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("window", [None, 5, 40])
def test_each_text_is_as_it_is_alone(make_config, transformers_twin, backend, with_engine, window):
    """Long ones too, whose windowed attention the engine cuts into blocks."""
    ours = random_model(make_config, with_engine=with_engine, attn_implementation=backend, sliding_window=window)
    rows = [[100, 1, 49], [30, 70, 50], [150]]
    call = batch(rows)
    out = ours(**call, output_router_logits=True)
    routed = []
    for row, columns in texts_in(rows):
        alone = ours(call["input_ids"][row : row + 1, columns], output_router_logits=True)
        assert_close(out.logits[row, columns], alone.logits[0], **FORWARD)
        routed.append(alone.router_logits)
    together = tuple(torch.cat(layer) for layer in zip(*routed, strict=True))
    assert_close(out.aux_loss, load_balancing_loss(together, 5, 2), rtol=0, atol=chain_error(1000))
    theirs = transformers_twin(ours)(**call, output_router_logits=True)
    assert_close(out.logits, theirs.logits, **FORWARD)
    assert_close(out.aux_loss, theirs.aux_loss, rtol=0, atol=chain_error(1000))
    mixed = ours(call["input_ids"], use_cache=False).logits
    assert_close(mixed[:, :30], out.logits[:, :30], **FORWARD)
    assert (mixed - out.logits)[:2, 100:].abs().max() > 0.1


def test_one_row_of_positions_serves_all_rows(make_config, transformers_twin):
    ours = random_model(make_config, attn_implementation="eager")
    call = batch(ROWS)
    for one_row in call["position_ids"][:1], call["position_ids"][2:]:
        call["position_ids"] = one_row
        out = ours(**call, output_attentions=True)
        expected = transformers_twin(ours)(**call, output_attentions=True)
        assert_close(out.logits, expected.logits, **FORWARD)
        assert_close(out.attentions, expected.attentions, rtol=0, atol=chain_error(1000))
        text_idx = (one_row == 0).cumsum(1)[0]
        same = text_idx[:, None] == text_idx
        assert out.attentions[0][..., same].any() and not out.attentions[0][..., ~same].any()


STEPS = st.lists(st.sampled_from([1, 1, 1, 0, 2, -3]), min_size=6, max_size=6)


@given(st.lists(STEPS, min_size=1, max_size=3), st.none() | st.integers(1, 8))
def test_a_query_sees_what_is_in_its_text_before_it_and_in_its_window(rows, window):
    """Any positions: whatever does not rise by 1 begins another text, as in transformers."""
    steps = torch.tensor([[7, *row] for row in rows])
    visibility = packed_rows(steps.cumsum(1), window)
    if (steps[:, 1:] == 1).all():
        assert visibility is None
        return
    assert not visibility.plain_causal and not visibility.all_visible
    for row, mask in zip(rows, visibility.mask[:, 0].tolist(), strict=True):
        for i, j in torch.cartesian_prod(torch.arange(7), torch.arange(7)).tolist():
            same_text = all(step == 1 for step in row[min(i, j) : max(i, j)])
            assert mask[i][j] == (same_text and 0 <= i - j < (window or 7)), (i, j)


@pytest.mark.parametrize("positions", ["gaps", "one place", "falling", "from 90"])
def test_other_positions_separate_as_in_transformers(make_config, transformers_twin, positions):
    ours = random_model(make_config, sliding_window=None)
    call = batch(ROWS) | {"position_ids": {
        "gaps": torch.arange(11)[None] * 2,
        "one place": torch.zeros(3, 11, dtype=torch.long),
        "falling": torch.arange(11).flip(0)[None],
        "from 90": torch.arange(11)[None] + 90,
    }[positions]}  # fmt: skip
    logits = ours(**call).logits
    assert_close(logits, transformers_twin(ours)(**call).logits, **FORWARD)
    whole = positions == "from 90"
    assert ((logits - ours(call["input_ids"]).logits).abs().max() < 1e-3) == whole


def test_rows_of_one_text_keep_the_shortcuts_that_need_no_mask():
    columns = torch.arange(9)[None]
    assert (
        packed_rows(columns, None) is packed_rows(columns + 5, 3) is packed_rows(columns.int().expand(4, 9), 3) is None
    )


RISING = {"gaps": torch.arange(0, 22, 2)[None], "one place": torch.zeros(3, 11, dtype=torch.long)}


@pytest.mark.parametrize("positions", RISING)
@pytest.mark.parametrize("given", [{"use_cache": True}, {"attention_mask": torch.ones(3, 11, dtype=torch.long)}])
def test_with_a_mask_or_a_cache_positions_only_rotate_as_in_transformers(
    make_config, transformers_twin, positions, given
):
    ours = random_model(make_config)
    call = batch(ROWS) | {"position_ids": RISING[positions]} | given
    logits = ours(**call).logits
    assert_close(logits, transformers_twin(ours)(**call).logits, **FORWARD)
    apart = ours(call["input_ids"], position_ids=call["position_ids"], use_cache=False).logits
    assert (apart - logits).abs().max() > 0.1


WITH = {
    "the config's cache": ({}, "a cache"),
    "a cache of its own": ({"use_cache": True}, "a cache"),
    "a mask": ({"attention_mask": torch.ones(3, 11), "use_cache": False}, "attention_mask"),
    "both": ({"attention_mask": torch.ones(3, 11)}, "attention_mask and a cache"),
}


@pytest.mark.parametrize("what", WITH)
def test_texts_that_would_see_each_other_are_refused_where_transformers_mixes_them(
    make_config, transformers_twin, what
):
    given, named = WITH[what]
    ours = random_model(make_config)
    call = {name: tensor for name, tensor in batch(ROWS).items() if name != "use_cache"}
    message = f"position_ids fall from 2 to 0 in row 0.*with {named} texts.*attention_mask out.*use_cache=False"
    with pytest.raises(ValueError, match=message):
        ours(**call, **given)
    theirs = transformers_twin(ours)
    assert (theirs(**call, **given).logits - theirs(**call, use_cache=False).logits).abs().max() > 0.1


def test_a_given_cache_is_as_it_was_after_a_refusal(make_config):
    ours = random_model(make_config)
    cache = ours(torch.arange(9).view(3, 3)).cache
    before = cache.view()
    with pytest.raises(ValueError, match="position_ids fall from 3 to 0 in row 2"):
        ours(torch.arange(6).view(3, 2), position_ids=torch.tensor([[3, 4], [3, 4], [3, 0]]), cache=cache)
    assert all(a.equal(b) for a, b in zip(before, cache.view(), strict=True)) and not cache.half_written


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_padding_may_fall(make_config, transformers_twin, side):
    """Other libraries number padding as 1, and continue from there with 0 or end there."""
    ours = random_model(make_config)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[0, slice(4) if side == "left" else slice(7, 11)] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    assert (positions.diff() < 0).any()
    call = batch(ROWS) | {"attention_mask": mask, "position_ids": positions}
    for use_cache in False, True:
        call["use_cache"] = use_cache
        found, expected = ours(**call).logits, transformers_twin(ours)(**call).logits
        assert_close(found[mask.bool()], expected[mask.bool()], **FORWARD)


def test_a_loss_predicts_across_texts_unless_labels_say_otherwise(make_config, transformers_twin):
    """As in transformers: give -100 to the first token of each text."""
    ours = random_model(make_config)
    call = batch(ROWS)
    first = call["position_ids"] == 0
    for labels in call["input_ids"], call["input_ids"].masked_fill(first, -100):
        loss = ours(**call, labels=labels).loss
        assert_close(loss, transformers_twin(ours)(**call, labels=labels).loss, **FORWARD)
    total, counted = 0, 0
    for row, columns in texts_in(ROWS):
        text = call["input_ids"][row : row + 1, columns]
        length = text.shape[1]
        total, counted = total + ours(text, labels=text).loss * (length - 1), counted + length - 1
    assert_close(loss, total / counted, **FORWARD)


def test_positions_without_values_make_a_mask_as_they_could_be_packed():
    """As on PyTorch's meta device, where memory and operations are counted."""
    positions = torch.arange(5, device="meta")[None]
    assert packed_rows(positions, 3).mask.shape == (1, 1, 5, 5)
