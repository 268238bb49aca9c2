"""The chat format against mistral_common's."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mixtral_edu.tokenizer import MixtralTokenizer
from tokenizer_samples import OFFICIAL, texts

SYSTEM, USER, ASSISTANT = ({"role": role, "content": content} for role, content in
                           (("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello!")))  # fmt: skip


@pytest.fixture(scope="module")
def official() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def mistral_v1() -> MistralTokenizer:
    return MistralTokenizer.v1()


@given(system=st.none() | texts, turns=st.lists(texts, min_size=1, max_size=5))
def test_chat_ids_are_those_of_mistral_common(official, mistral_v1, system, turns):
    turns = turns[: len(turns) - 1 + len(turns) % 2]  # mistral_common ends with the user
    assume(all(turns[1::2]))  # no empty answers
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    theirs = [(UserMessage, AssistantMessage)[i % 2](content=text) for i, text in enumerate(turns)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
        theirs.insert(0, SystemMessage(content=system))
    expected = mistral_v1.encode_chat_completion(ChatCompletionRequest(messages=theirs)).tokens
    assert official.apply_chat_template(messages) == expected


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
        ([USER, USER], r"messages\[1\] is a turn of 'user', but 'assistant' is due"),
        ([SYSTEM, USER, ASSISTANT, ASSISTANT], r"messages\[3\] is a turn of 'assistant', but 'user' is due"),
        ([ASSISTANT], r"messages\[0\] is a turn of 'assistant', but 'user' is due"),
        ([USER, SYSTEM], r"messages\[1\] is a turn of 'system'"),
        ([SYSTEM, SYSTEM, USER], r"messages\[1\] is a turn of 'system'"),
        ([USER, ASSISTANT | {"role": "bot"}], r"messages\[1\] is a turn of 'bot'"),
        ([USER, ASSISTANT | {"content": ""}], r"messages\[1\] is an empty answer"),
        ([{"role": "user"}], r"messages\[0\] is .* \"content\" is wanted"),
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
