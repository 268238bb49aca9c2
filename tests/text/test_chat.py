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
from transformers.tokenization_mistral_common import MistralCommonBackend

from mixtral_edu import MixtralForCausalLM
from mixtral_edu.text.tokenizer import MixtralTokenizer, TokenizerOutput
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
        ([USER, ASSISTANT | {"prefix": True}], r"messages\[1\] has 'prefix': .* continue_final_message=True"),
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


@pytest.fixture(scope="module")
def backends() -> dict[str, tuple[MixtralTokenizer, MistralCommonBackend]]:
    """By version: ours, and the tokenizer that transformers takes for Mixtral."""
    found = {
        version: (MixtralTokenizer(path), MistralCommonBackend(str(path))) for version, path in MODEL_FILES.items()
    }
    for _, theirs in found.values():
        theirs.pad_token = "<unk>"
    return found


@pytest.mark.parametrize("version", MODEL_FILES)
@given(
    chats=st.lists(st.lists(texts.filter(str.strip), min_size=1, max_size=4), min_size=1, max_size=3),
    options=st.fixed_dictionaries({
        "padding": st.sampled_from([False, True, "max_length"]),
        "truncation": st.booleans(),
        "return_dict": st.booleans(),
    }),
    max_length=st.integers(1, 40),
)  # fmt: skip
def test_open_answers_and_batches_are_those_of_transformers(backends, version, chats, options, max_length):
    ours, theirs = backends[version]
    if options["truncation"] or options["padding"] == "max_length":
        options = options | {"max_length": max_length}
    is_open = len(chats[0]) % 2 == 0
    chats = [alternating(turns[: len(turns) - (len(turns) % 2 == is_open)]) for turns in chats]
    end = {"continue_final_message" if is_open else "add_generation_prompt": True}
    chats = [chat for chat in chats if chat]
    for messages in (chats, chats[0]):
        encoded = ours.apply_chat_template(messages, **end, **options)
        expected = theirs.apply_chat_template(messages, **end, **options)
        assert encoded == (dict(expected) if options["return_dict"] else expected)
    written = ours.apply_chat_template(chats, tokenize=False, **end)
    assert written == [ours.apply_chat_template(chat, tokenize=False, **end) for chat in chats]
    assert [text.replace("▁", " ") for text in written] == ours.decode(ours.apply_chat_template(chats, **end))


def alternating(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def test_an_open_answer_lacks_only_its_end(official):
    for chat in ([USER, ASSISTANT], [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]):
        closed = official.apply_chat_template(chat)
        assert closed[-1] == 2 and official.apply_chat_template(chat, continue_final_message=True) == closed[:-1]
        text = official.apply_chat_template(chat, tokenize=False)
        assert text == official.apply_chat_template(chat, tokenize=False, continue_final_message=True) + "</s>"
    tricky = [USER, ASSISTANT | {"content": "the end is </s>"}]
    text = official.apply_chat_template(tricky, tokenize=False, continue_final_message=True)
    assert text == "<s> [INST] Hi there [/INST] the end is </s>"


def test_a_generation_prompt_adds_nothing(official):
    for chat in ([USER], [SYSTEM, USER, ASSISTANT, USER]):
        assert official.apply_chat_template(chat, add_generation_prompt=True) == official.apply_chat_template(chat)


def test_a_chat_is_returned_as_a_call_returns_a_text(official):
    chats = [[USER], [USER, ASSISTANT, USER]]
    ids = [official.apply_chat_template(chat) for chat in chats]
    output = official.apply_chat_template(chats, return_dict=True, padding=True, return_tensors="pt")
    assert isinstance(output, TokenizerOutput) and output.to("meta").input_ids.is_meta
    assert {name: rows.tolist() for name, rows in output.items()} == {
        name: rows.tolist() for name, rows in official.pad(ids).items()
    }
    one = official.apply_chat_template(chats[0], return_dict=True)
    assert one == {"input_ids": ids[0], "attention_mask": [1] * len(ids[0])}
    assert official.apply_chat_template([chats[0]]) == official.apply_chat_template((chats[0],)) == [ids[0]]
    with pytest.raises(ValueError, match="pass padding=True"):
        official.apply_chat_template(chats, return_tensors="pt")


@pytest.mark.parametrize("version", MODEL_FILES)
@given(
    turns=st.lists(texts.filter(lambda text: text and not text.endswith(" ")), min_size=3, max_size=7),
    system=st.none() | texts,
)
def test_each_turn_begins_with_all_ids_before_it(tokenizers, version, turns, system):
    tokenizer, *_ = tokenizers[version]
    chat = alternating(turns[: len(turns) - (len(turns) % 2 == 0)])
    if system and version not in ("v2", "v3"):  # which move it to the last question
        chat.insert(0, {"role": "system", "content": system})
    before, reply = tokenizer.apply_chat_template(chat[:-2]), tokenizer.encode(chat[-2]["content"], False)
    ids = tokenizer.apply_chat_template(chat)
    assert ids[: len(before) + len(reply) + 1] == [*before, *reply, tokenizer.eos_token_id]


def test_a_system_message_moves_on_in_v3(tokenizers):
    for version, is_kept in {"v1": True, "v2": False, "v3": False, "v7": True}.items():
        tokenizer, *_ = tokenizers[version]
        before = tokenizer.apply_chat_template([SYSTEM, USER])
        assert (tokenizer.apply_chat_template([SYSTEM, USER, ASSISTANT, USER])[: len(before)] == before) == is_kept


def test_the_cache_of_a_turn_serves_the_next():
    """What the model wrote, turned to text and encoded again, continues the ids that its cache has seen."""
    model, tokenizer = (kind.from_pretrained("tiny-instruct") for kind in (MixtralForCausalLM, MixtralTokenizer))
    model = model.float()
    chat = [USER | {"content": "What is 7 + 8?"}]
    first = tokenizer.apply_chat_template(chat, return_tensors="pt")
    seen = model.generate(first, max_new_tokens=40)
    assert seen[0, -1] == tokenizer.eos_token_id
    reply = tokenizer.decode(seen[0, first.shape[1] :], skip_special_tokens=True)
    ids = tokenizer.apply_chat_template(
        [*chat, ASSISTANT | {"content": reply}, USER | {"content": "And 3 + 4?"}], return_tensors="pt"
    )
    assert reply and ids[:, : seen.shape[1]].equal(seen) and ids.shape[1] > seen.shape[1]
    with torch.no_grad():
        cache = model(seen, use_cache=True).past_key_values
        continued = model(ids[:, seen.shape[1] :], past_key_values=cache).logits
        anew = model(ids).logits[:, seen.shape[1] :]
    assert continued.sub(anew).abs().max() < 1e-3 * anew.abs().max()


@pytest.mark.parametrize(
    ("messages", "options", "named"),
    [
        ([USER, ASSISTANT], {"add_generation_prompt": True}, "must be the user's.* continue_final_message=True"),
        ([USER], {"continue_final_message": True}, "must be an answer"),
        ([USER], {"continue_final_message": True, "add_generation_prompt": True}, "pass only one of them"),
        ([USER, ASSISTANT | {"content": ""}], {"continue_final_message": True}, "an empty answer"),
        ([[USER], [USER, ASSISTANT]], {"add_generation_prompt": True}, "^chat 1: .*must be the user's"),
        ([[USER], [ASSISTANT]], {}, r"^chat 1: messages\[0\] is a turn of 'assistant'"),
        ([[USER], []], {}, "^chat 1: .*no user turn"),
        ([[USER], USER], {}, r"^chat 1: messages\[0\] is 'role'"),
        (USER, {}, r"messages\[0\] is 'role'"),
        ([USER], {"max_length": 3}, "max_length=3 would have no effect"),
    ],
)
def test_ends_that_an_option_does_not_fit_are_refused(official, messages, options, named):
    for tokenize in (True, False) if "max_length" not in options else (True,):
        with pytest.raises(ValueError, match=named):
            official.apply_chat_template(messages, tokenize=tokenize, **options)


def test_options_of_other_formats_are_refused_by_name(official):
    for name in ("tools", "documents", "chat_template", "enable_thinking"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            official.apply_chat_template([USER], **{name: None})
    with pytest.raises(TypeError, match=r"chat 1: messages\[0\] has a content of type list"):
        official.apply_chat_template([[USER], [USER | {"content": ["Hi"]}]])
    for messages in (None, 5, "Hi", iter([USER])):
        with pytest.raises(TypeError, match=f"messages is a {type(messages).__name__}: it must be a list of dicts"):
            official.apply_chat_template(messages)
