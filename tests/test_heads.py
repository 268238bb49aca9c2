"""The heads for fine-tuning against transformers': logits, losses, gradients and checkpoints; and where ours differ."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.testing import assert_close
from transformers.loss.loss_utils import ForQuestionAnsweringLoss

from mixtral_edu import (
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
    RollingKVCache,
)
from tolerances import FORWARD, chain_error

pytestmark = pytest.mark.numerics

HEADS = (MixtralForSequenceClassification, MixtralForTokenClassification, MixtralForQuestionAnswering)
B, T, PAD = 3, 13, 3
TEXT_LENGTHS = (9, 4, 13)
PADDINGS = ("none", "left", "right")


def batch(padding: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of three texts; the pad id stands at padding and nowhere else."""
    ids, mask = torch.randint(PAD + 1, 101, (B, T)), torch.ones(B, T, dtype=torch.long)
    for row, length in enumerate(TEXT_LENGTHS):
        pads = {"none": slice(0), "left": slice(T - length), "right": slice(length, T)}[padding]
        ids[row, pads], mask[row, pads] = PAD, 0
    return ids, mask


def random_model(make_config, cls, **changes):
    """A model in evaluation mode whose layers really change their input, with biases that are not zero."""
    changes = {"pad_token_id": PAD, "num_labels": 4, "initializer_range": 0.2} | changes
    model = cls(make_config(**changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def assert_equal_gradients(ours, theirs, to_transformers) -> None:
    gradients = {}
    for name, p in ours.named_parameters():
        assert p.grad is not None or ".experts." in name, name
        gradients[name] = torch.zeros_like(p) if p.grad is None else p.grad  # an expert may have had no token
    found = to_transformers(gradients)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        size = max(1.0, gradient.abs().max().item())
        allowed = chain_error(2000) * size  # back as many additions as forth
        assert_close(found[name], gradient, rtol=0, atol=allowed, msg=lambda text, name=name: f"{name}: {text}")


SEQUENCE_LABELS = {
    "single label, inferred": (4, None, torch.tensor([0, 3, 1])),
    "single label, int32 and one not counted": (4, "single_label_classification", torch.tensor([2, -100, 1])),
    "several labels, inferred": (4, None, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0.5]])),
    "several labels": (4, "multi_label_classification", torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0.5]])),
    "one of several labels": (1, "multi_label_classification", torch.tensor([[1.0], [0], [0]])),
    "regression, inferred": (1, None, torch.tensor([0.3, -1.0, 2.0])),
    "regression of whole numbers": (1, None, torch.tensor([1, 2, 5])),
    "regression, a column": (1, "regression", torch.tensor([[0.3], [-1.0], [2.0]])),
    "regression of several numbers": (4, "regression", torch.arange(12.0).view(3, 4) / 6),
}


@pytest.mark.parametrize("name", SEQUENCE_LABELS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("masked", [True, False])
def test_sequence_classification_equals_transformers(
    make_config, transformers_twin, to_transformers, name, padding, masked
):
    num_labels, problem_type, labels = SEQUENCE_LABELS[name]
    ours = random_model(
        make_config, MixtralForSequenceClassification, num_labels=num_labels, problem_type=problem_type
    )
    theirs = transformers_twin(ours)
    ids, mask = batch(padding)
    call = {"input_ids": ids, "attention_mask": mask if masked else None, "labels": labels}
    as_there = labels.float() if num_labels == 1 else labels  # with torch 2.11 whole numbers have no gradient there
    out, expected = ours(**call), theirs(**call | {"labels": as_there})
    assert out.logits.shape == (B, num_labels) and expected.logits.std() > 0.3
    assert_close(out.logits, expected.logits, **FORWARD)
    assert_close(out.loss, expected.loss, **FORWARD)
    assert ours.config.problem_type == problem_type, "what was inferred is forgotten again"
    out.loss.backward()
    expected.loss.backward()
    assert_equal_gradients(ours, theirs, to_transformers)


@pytest.mark.parametrize("padding", PADDINGS)
def test_token_classification_equals_transformers(make_config, transformers_twin, to_transformers, padding):
    ours = random_model(make_config, MixtralForTokenClassification)
    theirs = transformers_twin(ours)
    ids, mask = batch(padding)
    labels = torch.randint(4, (B, T)).masked_fill(mask == 0, -100)
    labels[2, 5] = -100
    out, expected = (model(ids, attention_mask=mask, labels=labels) for model in (ours, theirs))
    assert out.logits.shape == (B, T, 4) and expected.logits.std() > 0.3
    assert_close(out.logits[mask.bool()], expected.logits[mask.bool()], **FORWARD)
    assert_close(out.loss, expected.loss, **FORWARD)
    assert out.loss == ours(ids, attention_mask=mask, labels=labels.int()).loss
    out.loss.backward()
    expected.loss.backward()
    assert_equal_gradients(ours, theirs, to_transformers)


@pytest.mark.parametrize("rate", [None, 0.6])
def test_dropout_before_the_token_head_equals_transformers(make_config, transformers_twin, rate):
    extra = {} if rate is None else {"classifier_dropout": rate}
    ours = random_model(make_config, MixtralForTokenClassification, extra=extra).train()
    theirs = transformers_twin(ours)
    ids, _ = batch("none")
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        logits.append(model(ids).logits)
    assert_close(*logits, **FORWARD)
    assert (logits[0] - ours.eval()(ids).logits).abs().max() > 0.1, "in training only"


def test_a_checkpoints_rate_of_dropout_is_known_and_kept(make_config, tmp_path):
    random_model(make_config, MixtralForTokenClassification, extra={"classifier_dropout": 0.6}).save_pretrained(
        tmp_path / "saved")
    assert MixtralForTokenClassification.from_pretrained(tmp_path / "saved").dropout.p == 0.6
    theirs = transformers.MixtralForTokenClassification.from_pretrained(tmp_path / "saved")
    assert theirs.dropout.p == 0.6


POSITIONS = {
    "inside": ([0, 5, 12], [4, 5, 12]),
    "beyond the text": ([0, 13, 99], [4, 13, 12]),
    "negative": ([-1, 5, 2], [-100, 5, 7]),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_question_answering_equals_transformers(make_config, transformers_twin, to_transformers, name):
    ours = random_model(make_config, MixtralForQuestionAnswering)
    theirs = transformers_twin(ours)
    ids, mask = batch("none")
    start, end = map(torch.tensor, POSITIONS[name])
    call = {"attention_mask": mask, "start_positions": start, "end_positions": end}
    out, expected = ours(ids, **call), theirs(ids, **call)
    for logits, logits_there in ((out.start_logits, expected.start_logits), (out.end_logits, expected.end_logits)):
        assert logits.shape == (B, T) and logits.is_contiguous() and logits_there.std() > 0.3
        assert_close(logits, logits_there, **FORWARD)
    assert_close(out.loss, expected.loss, **FORWARD)
    out.loss.backward()
    expected.loss.backward()
    assert_equal_gradients(ours, theirs, to_transformers)


@pytest.mark.parametrize("padding", PADDINGS[1:])
def test_question_answering_of_padded_texts(make_config, transformers_twin, padding):
    """At padding the two models differ, and the loss counts the logits there: it is equal for the same logits."""
    ours = random_model(make_config, MixtralForQuestionAnswering)
    ids, mask = batch(padding)
    start, end = torch.tensor([5, 10, 2]), torch.tensor([6, 10, 20])
    call = {"attention_mask": mask, "start_positions": start, "end_positions": end}
    out, expected = ours(ids, **call), transformers_twin(ours)(ids, **call)
    real = mask.bool()
    assert_close(out.start_logits[real], expected.start_logits[real], **FORWARD)
    assert_close(out.end_logits[real], expected.end_logits[real], **FORWARD)
    assert_close(out.loss, ForQuestionAnsweringLoss(out.start_logits, out.end_logits, start, end))


NOTHING_COUNTS = {
    MixtralForCausalLM: {"labels": torch.full((B, T), -100)},
    MixtralForSequenceClassification: {"labels": torch.full((B,), -100)},
    MixtralForTokenClassification: {"labels": torch.full((B, T), -100)},
    MixtralForQuestionAnswering: {"start_positions": torch.full((B,), T), "end_positions": torch.full((B,), 99)},
}


@pytest.mark.parametrize("cls", NOTHING_COUNTS)
@pytest.mark.parametrize("dtype", [torch.long, torch.int32])
def test_a_loss_of_no_label_is_zero_where_that_of_transformers_is_nan(make_config, transformers_twin, cls, dtype):
    """One such batch must not spoil the average of many; its gradient is 0 in both."""
    ours = random_model(make_config, cls)
    theirs = transformers_twin(ours)
    ids, mask = batch("right")
    labels = NOTHING_COUNTS[cls]
    loss = ours(ids, mask, **{name: tensor.to(dtype) for name, tensor in labels.items()}).loss
    expected = theirs(ids, attention_mask=mask, **labels).loss
    assert loss == 0 and loss.dtype == torch.float32 and expected.isnan()
    loss.backward()
    expected.backward()
    for model in (ours, theirs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients and not any(gradient.any() for gradient in gradients)


def test_an_answer_of_which_only_one_end_counts_costs_half_of_that_end(make_config):
    ours = random_model(make_config, MixtralForQuestionAnswering)
    ids, _ = batch("none")
    start, beyond = torch.tensor([0, 5, 12]), torch.full((B,), T)
    out = ours(ids, start_positions=start, end_positions=beyond)
    assert_close(out.loss, F.cross_entropy(out.start_logits, start) / 2)


def logits_of(out) -> Tensor:
    """The head's logits with the two of a question's answer in one tensor."""
    return out.logits if getattr(out, "logits", None) is not None else torch.stack((out.start_logits, out.end_logits))


@pytest.mark.parametrize("cls", HEADS)
def test_every_argument_does_what_it_does_in_transformers(make_config, transformers_twin, cls):
    ours = random_model(make_config, cls, attn_implementation="eager")
    theirs = transformers_twin(ours)
    ids, mask = batch("none")
    call = {
        "inputs_embeds": ours.model.embed_tokens(ids).detach(),
        "attention_mask": mask,
        "position_ids": torch.randint(0, 90, (B, T)).sort(dim=1).values,
        "output_hidden_states": True,
        "output_attentions": True,
    }
    out, expected = ours(**call, use_cache=False), theirs(**call, use_cache=False)
    assert_close(logits_of(out), logits_of(expected), **FORWARD)
    assert_close(out.hidden_states, expected.hidden_states, **FORWARD)
    assert_close(out.attentions, expected.attentions, **FORWARD)
    assert out.past_key_values is None and out.router_logits is None and out.loss is None
    with pytest.raises(TypeError, match="logits_to_keep"):
        ours(ids, logits_to_keep=1)


@pytest.mark.parametrize("cls", HEADS)
def test_router_logits_are_returned_and_balancing_is_no_part_of_the_loss(make_config, transformers_twin, cls):
    ours = random_model(make_config, cls, router_aux_loss_coef=10.0)
    ids, mask = batch("left")
    one_a_text, one_a_token = torch.tensor([3, 0, 1]), torch.randint(4, (B, T))
    labels = {
        MixtralForSequenceClassification: {"labels": one_a_text},
        MixtralForTokenClassification: {"labels": one_a_token.masked_fill(mask == 0, -100)},
        MixtralForQuestionAnswering: {"start_positions": one_a_text, "end_positions": one_a_text + 1},
    }[cls]
    call = {"input_ids": ids, "attention_mask": mask, **labels}
    out = ours(**call, output_router_logits=True)
    causal = MixtralForCausalLM(ours.config).eval()
    causal.model.load_state_dict(ours.model.state_dict())
    assert_close(out.router_logits, causal(ids, mask, output_router_logits=True).router_logits)
    assert out.loss == ours(**call).loss and getattr(out, "aux_loss", None) is None
    if cls is not MixtralForQuestionAnswering:
        assert_close(out.loss, transformers_twin(ours)(**call, output_router_logits=True).loss, **FORWARD)
    ours.config.output_router_logits = True
    assert ours(**call).router_logits is not None, "None means the config's value"


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("whole_mask", [True, False])
def test_a_text_in_two_parts_is_the_text_in_one(make_config, cls, whole_mask):
    ours = random_model(make_config, cls)
    ids, mask = batch("left")
    parts = []
    cache = None
    for columns in (slice(0, 10), slice(10, T)):
        part_mask = mask[:, : columns.stop] if whole_mask else mask[:, columns]
        out = ours(ids[:, columns], part_mask, past_key_values=cache)
        cache = out.past_key_values
        parts.append(logits_of(out))
    whole = logits_of(ours(ids, mask))
    real = mask.bool()
    if cls is MixtralForSequenceClassification:
        assert_close(parts[-1], whole, **FORWARD)
    elif cls is MixtralForTokenClassification:
        assert_close(torch.cat(parts, 1)[real], whole[real], **FORWARD)
    else:
        assert_close(torch.cat(parts, 2)[:, real], whole[:, real], **FORWARD)


@pytest.mark.parametrize("cls", [MixtralModel, MixtralForCausalLM, *HEADS])
def test_a_cache_goes_in_and_comes_out_by_either_name(make_config, cls):
    ours = random_model(make_config, cls)
    ids, _ = batch("none")
    caches = {}
    for name in ("cache", "past_key_values"):
        out = ours(ids[:, :10], use_cache=True)
        assert out.cache is out.past_key_values is not None
        caches[name] = out.cache
        again = ours(ids[:, 10:], **{name: out.cache})
        assert again.cache is again.past_key_values is out.cache and out.cache.get_seq_length() == T
        again.cache = None
        assert again.past_key_values is None
    assert_close(caches["cache"].keys, caches["past_key_values"].keys, rtol=0, atol=0)
    with pytest.raises(ValueError, match="cache and past_key_values"):
        ours(ids, **caches)
    assert all(cache.get_seq_length() == T for cache in caches.values()), "and neither was touched"
    assert ours(ids[:, :1], cache=None, past_key_values=caches["cache"]).cache is caches["cache"]


def scores_at(model, columns: list[int], ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the head of a model, ours or transformers', says at the given column of each row."""
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    return model.score(hidden[torch.arange(len(columns)), columns])


def test_convention_sequence_classification_pools_the_last_position_whose_mask_is_one(make_config):
    ours = random_model(make_config, MixtralForSequenceClassification)
    ids, mask = batch("none")
    mask[0, [2, 3, 12]] = 0  # holes, and one pad at the end
    mask[1, [0, 1, 6]] = 0
    mask[2, 1:] = 0
    for dtype in (torch.long, torch.bool, torch.float32):
        assert_close(ours(ids, mask.to(dtype)).logits, scores_at(ours, [11, 12, 0], ids, mask), **FORWARD)
    ids[0, 11] = ids[1, 12] = PAD
    assert_close(ours(ids, mask).logits, scores_at(ours, [11, 12, 0], ids, mask), **FORWARD)
    ours.config.pad_token_id = None
    assert_close(ours(ids, mask).logits, scores_at(ours, [11, 12, 0], ids, mask), **FORWARD)
    embeds = ours.model.embed_tokens(ids)
    by_embeds = ours(inputs_embeds=embeds, attention_mask=mask).logits
    assert_close(by_embeds, scores_at(ours, [11, 12, 0], ids, mask), **FORWARD)


def test_convention_without_a_mask_it_pools_the_last_id_that_is_no_pad(make_config, transformers_twin):
    ours = random_model(make_config, MixtralForSequenceClassification)
    theirs = transformers_twin(ours)
    ids, _ = batch("none")
    ids[0, 4:] = ids[1, :6] = ids[1, 9] = PAD  # right; left and a hole
    ids[2] = PAD  # nothing else: there, as here, the first column
    assert_close(ours(ids).logits, scores_at(ours, [3, 12, 0], ids), **FORWARD)
    assert_close(ours(ids).logits, theirs(ids).logits, **FORWARD)
    with_ones = ours(ids, torch.ones_like(ids)).logits
    assert_close(with_ones, scores_at(ours, [12, 12, 12], ids), **FORWARD)


def test_a_text_that_ends_in_the_pad_id_is_read_to_its_end_where_a_mask_says_so(make_config, transformers_twin):
    """As when eos pads: transformers goes by ids alone, and reads the label off the token before."""
    ours = random_model(make_config, MixtralForSequenceClassification, eos_token_id=PAD)
    theirs = transformers_twin(ours)
    ids, mask = batch("right")
    ids[torch.arange(B), torch.tensor(TEXT_LENGTHS) - 1] = PAD
    ends, before = [8, 3, 12], [7, 2, 11]
    assert_close(ours(ids, mask).logits, scores_at(theirs, ends, ids, mask), **FORWARD)
    assert_close(theirs(ids, attention_mask=mask).logits, scores_at(theirs, before, ids, mask), **FORWARD)
    assert_close(ours(ids).logits, scores_at(ours, before, ids), **FORWARD)


def test_embeddings_are_pooled_by_their_mask(make_config, transformers_twin):
    """transformers takes their last column, even where it is padding."""
    ours = random_model(make_config, MixtralForSequenceClassification)
    theirs = transformers_twin(ours)
    for padding, agrees in (("none", True), ("left", True), ("right", False)):
        ids, mask = batch(padding)
        call = {"inputs_embeds": ours.model.embed_tokens(ids), "attention_mask": mask}
        assert_close(ours(**call).logits, ours(ids, mask).logits, **FORWARD)
        differences = (ours(**call).logits - theirs(**call).logits).abs().amax(1)
        assert (differences < FORWARD["atol"]).tolist() == [agrees, agrees, True]


def test_a_single_text_without_mask_or_pad_id_ends_at_its_end(make_config, transformers_twin):
    ours = random_model(make_config, MixtralForSequenceClassification, pad_token_id=None)
    ids = torch.randint(0, 101, (1, T))
    expected = transformers_twin(ours)(ids).logits
    assert_close(ours(ids).logits, expected, **FORWARD)
    assert_close(ours(inputs_embeds=ours.model.embed_tokens(ids)).logits, expected, **FORWARD)


def test_several_texts_of_which_nothing_tells_the_ends_are_refused(make_config, transformers_twin):
    ours = random_model(make_config, MixtralForSequenceClassification, pad_token_id=None)
    ids, mask = batch("none")
    cache = RollingKVCache(ours.config, B)
    with pytest.raises(ValueError, match="attention_mask is None and config.pad_token_id is None.*3 rows.*give"):
        ours(ids, past_key_values=cache)
    for their_mask in (None, mask):
        with pytest.raises(ValueError, match="no padding token"):
            transformers_twin(ours)(ids, attention_mask=their_mask)
    ours.config.pad_token_id = PAD
    with pytest.raises(ValueError, match="attention_mask is None and inputs_embeds have no ids.*3 rows.*give"):
        ours(inputs_embeds=ours.model.embed_tokens(ids), past_key_values=cache)
    assert cache.get_seq_length() == 0
    ours(ids, mask, past_key_values=cache)


def test_a_row_of_padding_alone_disturbs_nobody(make_config):
    ours = random_model(make_config, MixtralForSequenceClassification)
    ids, mask = batch("left")
    mask[1] = 0
    out = ours(ids, mask, labels=torch.tensor([2, -100, 0]))
    assert out.logits.isfinite().all() and out.loss.isfinite()
    assert_close(out.logits[[0, 2]], ours(ids[[0, 2]], mask[[0, 2]]).logits, **FORWARD)


IDS = torch.arange(10).view(2, 5)
ONE_A_TEXT, SEVERAL = {"num_labels": 4}, {"num_labels": 4, "problem_type": "multi_label_classification"}
REGRESSION = {"num_labels": 1}
REFUSED_SEQUENCE_LABELS = {
    "a list": (ONE_A_TEXT, [0, 1], "labels is a list"),
    "another number of rows": (ONE_A_TEXT, torch.tensor([0]), r"labels has shape \(1,\); it must be \(2,\)"),
    "several whole numbers a row": (ONE_A_TEXT, torch.zeros(2, 4).long(), r"labels .*\(2, 4\).*\(2,\), .*floating"),
    "a class too many": (ONE_A_TEXT, torch.tensor([0, 4]), "labels reach from 0 to 4.*-100 or .*num_labels - 1 = 3"),
    "minus one": (ONE_A_TEXT, torch.tensor([0, -1]), "labels reach from -1 to 0.*-100 or .*num_labels - 1 = 3"),
    "small integers": (ONE_A_TEXT, torch.tensor([0, 1]).short(), "labels has dtype torch.int16.*torch.int64"),
    "one float a row": (ONE_A_TEXT, torch.tensor([0.0, 1.0]), r"labels .*\(2,\).*\(2, 4\) for .*'multi_label"),
    "whole numbers for several": (SEVERAL, torch.zeros(2, 4).long(), "labels has dtype torch.int64.*a floating-point"),
    "above one": (SEVERAL, torch.full((2, 4), 1.5), "labels hold 1.5; they must be numbers from 0 to 1"),
    "no number": (SEVERAL, torch.full((2, 4), torch.nan), "labels hold nan; they must be numbers from 0 to 1"),
    "an infinite number": (REGRESSION, torch.tensor([1.0, -torch.inf]), "labels hold -inf.*finite numbers"),
    "yes and no": (REGRESSION, torch.tensor([True, False]), "labels has dtype torch.bool; it must be a floating-point"),
    "two numbers": (REGRESSION, torch.zeros(2, 2), r"labels .*\(2, 2\).*\(2,\) or \(2, 1\) for .*'regression'"),
    "one number for four": (
        {"num_labels": 4, "problem_type": "regression"}, torch.zeros(2), r"labels .*\(2,\).*\(2, 4\) for .*'regress",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_SEQUENCE_LABELS)
def test_labels_of_texts_that_do_not_fit_are_refused_before_the_cache_is_touched(make_config, name):
    changes, labels, message = REFUSED_SEQUENCE_LABELS[name]
    ours = random_model(make_config, MixtralForSequenceClassification, **changes)
    cache = RollingKVCache(ours.config, 2)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ours(IDS, labels=labels, past_key_values=cache)
    assert cache.get_seq_length() == 0


def test_labels_of_tokens_that_do_not_fit_are_refused(make_config):
    ours = random_model(make_config, MixtralForTokenClassification)
    for labels, error, message in (
        (IDS.tolist(), TypeError, "labels is a list"),
        (IDS[:, 0] % 4, ValueError, r"labels has shape \(2,\); it must be \(2, 5\)"),
        (IDS % 4 + 1, ValueError, "labels reach from 1 to 4; they must be -100 or .*num_labels - 1 = 3"),
        (IDS % 4.0, TypeError, "labels has dtype torch.float32; it must be torch.int64"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            ours(IDS, labels=labels)
        with pytest.raises(error, match=f"^{message}"):
            ours(inputs_embeds=ours.model.embed_tokens(IDS), labels=labels)


def test_positions_of_answers_that_do_not_fit_are_refused(make_config):
    ours = random_model(make_config, MixtralForQuestionAnswering)
    good = torch.tensor([1, 2])
    for start, end, error, message in (
        (good, None, ValueError, "end_positions is None.*needs"),
        (None, good, ValueError, "start_positions is None.*needs"),
        ([1, 2], good, TypeError, "start_positions is a list"),
        (good, IDS, ValueError, r"end_positions has shape \(2, 5\); it must be \(2,\)"),
        (good, good.float(), TypeError, "end_positions has dtype torch.float32"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            ours(IDS, start_positions=start, end_positions=end)


@pytest.mark.parametrize("cls", HEADS)
def test_bad_input_is_named_with_labels_too(make_config, cls):
    ours = random_model(make_config, cls)
    question = cls is MixtralForQuestionAnswering
    labels = {"start_positions": IDS, "end_positions": IDS} if question else {"labels": IDS}
    with pytest.raises(ValueError, match="input_ids and inputs_embeds: exactly one"):
        ours(**labels)
    with pytest.raises(ValueError, match=r"^input_ids has shape \(5,\)"):
        ours(IDS[0], **labels)


def test_one_label_is_no_choice(make_config):
    for changes in ({"num_labels": 1}, {"id2label": {0: "yes"}}):
        with pytest.raises(ValueError, match="problem_type='single_label_classification'.*num_labels"):
            make_config(problem_type="single_label_classification", **changes)
    with pytest.raises(ValueError, match="num_labels > 1"):
        transformers.MixtralConfig(problem_type="single_label_classification", num_labels=1)


@pytest.mark.parametrize("cls", HEADS)
def test_new_heads_start_as_in_transformers(make_config, cls):
    changes = {"hidden_size": 440, "num_labels": 20, "initializer_range": 0.05}
    model = cls(make_config(**changes))
    theirs = getattr(transformers, cls.__name__)(transformers.MixtralConfig(**model.config.to_dict()))
    keys = ("score.", "qa_outputs.")
    ours, expected = ({n: p for n, p in m.named_parameters() if n.startswith(keys)} for m in (model, theirs))
    assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in expected.items()}
    for name, parameter in (*ours.items(), *expected.items()):
        assert parameter.std().item() == pytest.approx(0.05, rel=0.1) if "weight" in name else not parameter.any()


@pytest.mark.parametrize("cls", HEADS)
def test_checkpoints_go_both_ways(make_config, tmp_path, cls):
    names = {0: "none", 1: "person", 2: "place", 3: "time"}
    ours = random_model(make_config, cls, id2label=names, problem_type="single_label_classification")
    ours.save_pretrained(tmp_path / "ours")
    ids, mask = batch("none")
    expected = logits_of(ours(ids, mask))

    again = cls.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits_of(again(ids, mask)), expected)
    assert again.config.label2id == {"none": 0, "person": 1, "place": 2, "time": 3}
    theirs, info = getattr(transformers, cls.__name__).from_pretrained(
        tmp_path / "ours", output_loading_info=True, experts_implementation="eager")
    assert not any(info.values()), info
    assert theirs.config.id2label == names and theirs.config.problem_type == "single_label_classification"
    assert_close(logits_of(theirs(ids, attention_mask=mask)), expected, **FORWARD)

    theirs.save_pretrained(tmp_path / "theirs")
    back = cls.from_pretrained(tmp_path / "theirs")
    assert torch.equal(logits_of(back(ids, mask)), expected)
    assert back.config.id2label == names and back.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("cls", HEADS)
def test_a_head_grows_on_a_causal_or_base_checkpoint_and_falls_off_again(make_config, tmp_path, cls):
    causal = random_model(make_config, MixtralForCausalLM)
    causal.save_pretrained(tmp_path / "causal")
    causal.model.save_pretrained(tmp_path / "base")
    for name in ("causal", "base"):
        with pytest.warns(UserWarning, match=r"has no (score|qa_outputs)\.weight.*train before use") as caught:
            model = cls.from_pretrained(tmp_path / name)
        assert len(caught) == 1
        for parameter, expected in zip(model.model.parameters(), causal.model.parameters(), strict=True):
            assert torch.equal(parameter, expected)
        model.save_pretrained(tmp_path / f"{name} with a head")
        base = MixtralModel.from_pretrained(tmp_path / f"{name} with a head")
        ids, mask = batch("left")
        assert torch.equal(base(ids, mask).last_hidden_state, causal.model(ids, mask).last_hidden_state)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_bundled_model_gets_a_head_and_learns(dtype):
    with pytest.warns(UserWarning, match=r"has no score\.weight: .*train before use") as caught:
        model = MixtralForSequenceClassification.from_pretrained("tiny", num_labels=3, dtype=dtype)
    assert len(caught) == 1
    assert list(model.config.id2label) == [0, 1, 2]
    ids, labels = torch.randint(5, 1000, (6, 12)), torch.tensor([0, 1, 2] * 2)
    mask = torch.ones_like(ids)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        out = model(ids, mask, labels=labels)
        out.loss.backward()
        assert model.score.weight.grad.any() and model.model.embed_tokens.weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("cls", HEADS)
def test_a_linear_head_learns_what_it_can_separate(make_config, cls):
    """The class of a text is that of its last token, the class of a token its own, the answer the only token 7."""
    model = random_model(make_config, cls, num_labels=2)
    ids = torch.randint(10, 12, (32, 6))
    labels = {"labels": ids[:, -1] - 10}
    if cls is MixtralForTokenClassification:
        labels = {"labels": ids - 10}
    if cls is MixtralForQuestionAnswering:
        answer = torch.randint(6, (32,))
        ids[torch.arange(32), answer] = 7
        labels = {"start_positions": answer, "end_positions": answer}
    head = model.qa_outputs if cls is MixtralForQuestionAnswering else model.score
    model.model.requires_grad_(False)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    before = [p.clone() for p in model.model.parameters()]
    for _ in range(150):
        loss = model(ids, **labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert all(map(torch.equal, before, model.model.parameters()))


@pytest.mark.parametrize("cls", HEADS)
def test_heads_loaded_in_bfloat16_work_and_their_loss_is_float32(make_config, tmp_path, cls):
    random_model(make_config, cls).save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = cls.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    ids, mask = batch("right")
    texts, tokens = torch.tensor([3, 0, 1]), torch.randint(4, (B, T))
    labels = {
        MixtralForSequenceClassification: {"labels": texts},
        MixtralForTokenClassification: {"labels": tokens},
        MixtralForQuestionAnswering: {"start_positions": texts, "end_positions": texts},
    }[cls]
    out = model(ids, mask, **labels)
    logits = logits_of(out)
    assert logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    if cls is MixtralForQuestionAnswering:
        expected = (F.cross_entropy(logits[0].float(), texts) + F.cross_entropy(logits[1].float(), texts)) / 2
    else:
        expected = F.cross_entropy(logits.flatten(0, -2).float(), labels["labels"].flatten())
    assert_close(out.loss, expected)
    out.loss.backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.bfloat16 for p in model.parameters() if p.grad is not None)
    if cls is MixtralForSequenceClassification:
        for problem_type in ("regression", "multi_label_classification"):
            model.config.problem_type = problem_type
            assert model(ids, mask, labels=torch.rand(B, 4)).loss.dtype == torch.float32


@pytest.mark.parametrize("wrong", [2, -0.1, "0.1", True])
def test_a_dropout_that_is_none_names_its_field(make_config, wrong):
    with pytest.raises(ValueError, match=f"classifier_dropout={wrong!r}: it must be a number from 0 to below 1"):
        MixtralForTokenClassification(make_config(extra={"classifier_dropout": wrong}))
