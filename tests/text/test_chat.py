"""The chat format against mistral_common's, for every SentencePiece file that it ships."""

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mixtral_edu.text.tokenizer import MixtralTokenizer
from tokenizer_samples import MODEL_FILES, OFFICIAL, texts

SYSTEM, USER, ASSISTANT = ({"role": role, "content": content} for role, content in
                           (("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello!")))  # fmt: skip


@pytest.fixture(scope="module")
def official() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, tuple[MixtralTokenizer, MistralTokenizer, MistralTokenizer]]:
    """By version: ours, theirs for chats that end with the user, and theirs for chats that end with an answer."""
    modes = ValidationMode.test, ValidationMode.finetuning
    return {version: (MixtralTokenizer(path), *(MistralTokenizer.from_file(str(path), mode) for mode in modes))
            for version, path in MODEL_FILES.items()}  # fmt: skip


@pytest.mark.parametrize("version", MODEL_FILES)
@given(system=st.none() | texts, turns=st.lists(texts, min_size=1, max_size=7), for_training=st.booleans())
def test_chat_ids_are_those_of_mistral_common(tokenizers, version, system, turns, for_training):
    ours, at_the_users_end, at_an_answers_end = tokenizers[version]
    for_training = for_training and len(turns) > 1
    turns = turns[: len(turns) - (len(turns) % 2 == for_training)]  # the user's is the last, or an answer
    assume(all(turns[1::2]))  # no empty answers
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    theirs = [(UserMessage, AssistantMessage)[i % 2](content=text) for i, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
        theirs.insert(0, SystemMessage(content=system))
    oracle = at_an_answers_end if for_training else at_the_users_end
    ids = ours.apply_chat_template(messages)
    assert ids == oracle.encode_chat_completion(ChatCompletionRequest(messages=theirs)).tokens
    text = ours.apply_chat_template(messages, tokenize=False)
    assert text.replace("▁", " ") == ours.decode(ids)
    if not any(piece.is_byte for piece in ours.pieces(ids)):
        kept = oracle.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP)  # pieces, with ▁
        assert text.replace("▁", " ") == kept.replace("▁", " ")


def test_markers_and_spaces_of_each_version(tokenizers):
    chat = [SYSTEM, USER, ASSISTANT | {"content": "Hello! "}, USER]
    texts = {version: ours.apply_chat_template(chat, tokenize=False) for version, (ours, *_) in tokenizers.items()}
    asked = "[INST] Hi there[/INST]"
    with_system = "[INST] Be brief.\n\nHi there[/INST]"
    assert texts["v1"] == "<s> [INST] Be brief.\n\nHi there [/INST] Hello! </s> [INST] Hi there [/INST]"
    assert texts["v2"] == texts["v3"] == f"<s>{asked} Hello!</s>{with_system}"
    assert texts["v7"] == texts["v7m1"] == f"<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT]{asked} Hello!</s>{asked}"
    v3 = tokenizers["v3"][0]
    assert v3.decode(v3.apply_chat_template([USER, ASSISTANT]), skip_special_tokens=True) == "Hi there Hello!"
    assert v3.encode("[INST]") != [1, 3]  # in a text the marker is text


def test_half_a_pair_of_markers_is_refused(official):
    odd = copy.copy(official)
    odd._control_ids = official._control_ids | {"[INST]": 3}
    with pytest.raises(ValueError, match=r"\[INST\] and \[/INST\]"):
        odd.apply_chat_template([USER])


def test_chats_as_tensor_and_as_text(official):
    messages = [SYSTEM, USER, ASSISTANT, USER]
    ids = official.apply_chat_template(messages)
    assert torch.equal(official.apply_chat_template(messages, return_tensors="pt"), torch.tensor([ids]))
    text = official.apply_chat_template(messages, tokenize=False)
    assert text == "<s> [INST] Be brief.\n\nHi there [/INST] Hello!</s> [INST] Hi there [/INST]" == official.decode(ids)


def test_the_answer_mask_marks_answers_and_their_end(official):
    ids, answer_mask = official.encode_chat([SYSTEM, USER, ASSISTANT, USER, ASSISTANT])
    assert ids == official.apply_chat_template([SYSTEM, USER, ASSISTANT, USER, ASSISTANT])
    answer = official.encode("Hello!", add_special_tokens=False) + [2]
    assert [i for i, marked in zip(ids, answer_mask, strict=True) if marked] == answer + answer
    assert answer_mask[-len(answer) :] == [True] * len(answer) and not answer_mask[0]


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([USER, USER], r"messages\[1\] is a turn of 'user'.* 'assistant'"),
        ([SYSTEM, USER, ASSISTANT, ASSISTANT], r"messages\[3\] is a turn of 'assistant'.* 'user'"),
        ([ASSISTANT], r"messages\[0\] is a turn of 'assistant'.* 'user'"),
        ([USER, SYSTEM], r"messages\[1\] is a turn of 'system'"),
        ([SYSTEM, SYSTEM, USER], r"messages\[1\] is a turn of 'system'"),
        ([USER, ASSISTANT | {"role": "bot"}], r"messages\[1\] is a turn of 'bot'"),
        ([USER, ASSISTANT | {"content": ""}], r"messages\[1\] is an empty answer"),
        ([{"role": "user"}], r"messages\[0\] is .* \"content\""),
        ([USER, ASSISTANT | {"content": None, "tool_calls": [{"id": "1"}]}], r"messages\[1\] has 'tool_calls'"),
        ([USER, {"role": "tool", "content": "5"}], r"messages\[1\] is a turn of 'tool'"),
        ([USER, ASSISTANT | {"prefix": True}], r"messages\[1\] has 'prefix'"),
        ([], "no user turn"),
        ([SYSTEM], "no user turn"),
    ],
)
def test_chats_that_do_not_alternate_are_refused(official, messages, named):
    with pytest.raises(ValueError, match=named):
        official.apply_chat_template(messages)


def test_other_chat_arguments_are_refused(official):
    with pytest.raises(TypeError, match=r"messages\[0\] has a content of type list"):
        official.apply_chat_template([USER | {"content": ["Hi"]}])
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        official.apply_chat_template([USER], return_tensors="tf")
