"""The tokenizer against SentencePiece itself, transformers' decoder and mistral_common's chat format."""

import copy
import pickle
from pathlib import Path

import mistral_common
import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mixtral_edu.generation import IncrementalDecoder
from mixtral_edu.tokenizer import MixtralTokenizer, Piece, TokenizerOutput, train_tokenizer

OFFICIAL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TEXTS = [
    "Once upon a time there was a small fox, and the fox was 12 years old.\n    def walk(self):\n        return 345",
    "Había una vez un zorro pequeño. ¿Qué dijo?\n\n  Two spaces, then 6 + 7 = 13.",
] * 3
ROCKET = "\U0001f9d1\u200d\U0001f680"  # an astronaut: a person, a joiner, a rocket
AWKWARD = [
    "", " ", "  ", "\0", "a\0b", "<s>", "</s>", "<unk>", "<0x41>", " lead", "  two", "trail ", "a  b", "\n", "\r\n",
    "\t", ROCKET, "é", "e\u0301", "中文", "𝕏", "\ufeff", "\u200b", "\ufffd", "\U0010ffff", "[INST]", "▁", "12",
]  # fmt: skip
texts = st.text() | st.lists(st.sampled_from(AWKWARD) | st.text(max_size=5), max_size=8).map("".join)


def id_lists(vocab_size: int):
    """Ids of which many are specials, lone bytes, or the bytes of a character, cut anywhere."""
    characters = st.sampled_from("é中🙂").map(lambda c: [3 + byte for byte in c.encode()])
    runs = characters | characters.map(lambda run: run[:-1]) | st.lists(st.integers(0, vocab_size - 1), max_size=3)
    return st.lists(runs | st.lists(st.integers(0, 258), max_size=3), max_size=10).map(lambda parts: sum(parts, []))


@pytest.fixture(scope="module")
def official() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(OFFICIAL))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> MixtralTokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("trained") / "tokenizer.model", vocab_size=330)


# --- text and ids


@given(text=texts)
def test_ids_are_those_of_sentencepiece_behind_bos(official, reference, text):
    assert official.encode(text) == [1, *reference.encode(text)]
    assert official.encode(text, add_special_tokens=False) == reference.encode(text)


@given(text=texts)
def test_every_text_comes_back(official, trained, text):
    for tokenizer in (official, trained):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text.replace("▁", " ")
        assert tokenizer.unk_token_id not in tokenizer.encode(text)


@given(ids=id_lists(32000))
def test_skipped_specials_decode_as_in_sentencepiece(official, reference, ids):
    assume(ids.count(0) == 0 or ids[0] != 0)  # padding in front has a test of its own
    assert official.decode(ids, skip_special_tokens=True) == reference.decode(ids)


def test_kept_specials_show_by_name_with_the_space_behind_them(official):
    once = official.encode("Once", add_special_tokens=False)
    assert official.decode(official.encode("Once upon")) == "<s> Once upon"
    assert official.decode([1, *once, 2, *once]) == "<s> Once</s> Once"
    assert official.decode([*once, 2]) == "Once</s>"
    assert official.decode([0, 0, 1, *once]) == "<unk><unk><s> Once"


def test_padding_in_front_of_bos_is_left_out_of_skipped_specials(official):
    batch = official(["Once upon a time", "Yes"], return_tensors="pt", padding=True)
    assert official.batch_decode(batch.input_ids, skip_special_tokens=True) == ["Once upon a time", "Yes"]
    assert official.decode([0, *official.encode("Yes", False)], skip_special_tokens=True) == " ⁇  Yes"  # no padding


@given(parts=st.lists(texts | st.sampled_from([0, 1, 2]), max_size=6))
def test_kept_specials_decode_as_the_decoder_of_fast_tokenizers(official, parts):
    decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(content=" ", left=1),
    ])  # fmt: skip
    ids = []
    for part in parts:
        ids += [part] if isinstance(part, int) else official.encode(part, add_special_tokens=False)
    assert official.decode(ids) == decoder.decode([p.piece for p in official.pieces(ids)])


def test_specials_in_a_text_are_text(official, trained):
    for tokenizer in (official, trained):
        for name in ("<s>", "</s>", "<unk>", "[INST]</s>"):
            assert not {0, 1, 2} & set(tokenizer.encode(name, add_special_tokens=False))


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_refused(official, text):
    for encode in (official.encode, official, official.pieces):
        with pytest.raises(ValueError, match="lone surrogate"):
            encode(text)


def test_wrong_arguments_are_named(official):
    with pytest.raises(TypeError, match="text must be a str"):
        official.encode(["a"])
    with pytest.raises(ValueError, match="id 32000 is outside the vocabulary"):
        official.decode([1, 32000])
    with pytest.raises(ValueError, match="id -1 "):
        official.decode(-1)
    with pytest.raises(TypeError, match="batch_decode"):
        official.decode(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="flat sequence of ints"):
        official.decode([1.0])


def test_decode_takes_ids_of_every_kind(official):
    ids = official.encode("Once upon")
    for given_ids in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy()):
        assert official.decode(given_ids) == "<s> Once upon"
    assert official.decode(ids[1]) == official.decode(torch.tensor(ids[1])) == "Once"
    assert official.batch_decode(torch.tensor([ids, ids])) == official.batch_decode([ids, ids]) == ["<s> Once upon"] * 2


def test_pieces_show_ids_and_bytes(official, reference):
    assert official.pieces("a\n") == [Piece(264, "▁a", False), Piece(13, "<0x0A>", True)]
    assert [p.piece for p in official.pieces(f"Once {ROCKET}")] == reference.encode_as_pieces(f"Once {ROCKET}")
    assert official.pieces("a", add_special_tokens=True)[0] == Piece(1, "<s>", False)
    assert official.pieces(torch.tensor([1, 264])) == official.pieces("a", add_special_tokens=True)


def test_names_and_sizes(official):
    assert (official.unk_token_id, official.bos_token_id, official.eos_token_id, official.pad_token_id) == (0, 1, 2, 0)
    assert official.vocab_size == len(official) == 32000
    assert official.byte_values == {3 + byte: byte for byte in range(256)}


# --- batches


def test_batches_are_padded_on_the_left(official):
    batch = official(["Once upon a time", "Yes"], return_tensors="pt", padding=True)
    long, short = official.encode("Once upon a time"), official.encode("Yes")
    assert batch.input_ids.tolist() == [long, [0] * (len(long) - len(short)) + short]
    assert batch.attention_mask.tolist() == [[1] * len(long), [0] * (len(long) - len(short)) + [1] * len(short)]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_a_pad_id_can_be_set(official):
    tokenizer = copy.deepcopy(official)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    batch = tokenizer(["a b c", "d"], padding="longest")
    assert batch.input_ids[1][:2] == [2, 2] and batch.attention_mask[1][:2] == [0, 0]
    assert official.pad_token_id == 0


def test_one_text_gives_a_flat_list_or_one_row(official):
    assert official("Yes") == {"input_ids": official.encode("Yes"), "attention_mask": [1, 1]}
    assert official("Yes", return_tensors="pt").input_ids.shape == (1, 2)
    assert official("Yes", add_special_tokens=False).input_ids == official.encode("Yes", add_special_tokens=False)
    assert official(["Yes", "Once upon a time"]).input_ids[0] == official.encode("Yes")  # lists may be ragged


def test_batches_that_cannot_be_are_refused(official):
    with pytest.raises(ValueError, match="padding=True"):
        official(["Yes", "Once upon a time"], return_tensors="pt")
    with pytest.raises(ValueError, match="texts is empty"):
        official([])
    with pytest.raises(ValueError, match="return_tensors='np'"):
        official("a", return_tensors="np")
    with pytest.raises(ValueError, match="padding='max_length'"):
        official("a", padding="max_length")


def test_the_output_moves_unpacks_and_copies(official):
    output = official(["Yes"], return_tensors="pt")
    moved = output.to("meta")
    assert isinstance(moved, TokenizerOutput) and moved.input_ids.is_meta and not output.input_ids.is_meta
    assert sorted(dict(**output)) == ["attention_mask", "input_ids"]
    assert official("Yes").to("meta") == official("Yes")
    assert copy.deepcopy(output).attention_mask.tolist() == [[1, 1]]
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = output.token_type_ids


# --- chats

SYSTEM, USER, ASSISTANT = ({"role": role, "content": content} for role, content in
                           (("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello!")))  # fmt: skip


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


# --- streaming


@given(ids=id_lists(32000), skip=st.booleans(), cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_parts_of_any_ids_join_to_their_text(official, ids, skip, cuts):
    decoder = IncrementalDecoder(official, skip_special_tokens=skip)
    parts, rest = [], ids
    for cut in cuts:
        parts.append(decoder.push(rest[:cut]))
        rest = rest[cut:]
    parts.append(decoder.push(rest))
    assert "".join(parts) + decoder.flush() == official.decode(ids, skip_special_tokens=skip)


@given(text=texts)
def test_no_part_ends_in_half_a_character_and_none_waits_longer_than_that(official, trained, text):
    for tokenizer in (official, trained):
        decoder, shown = IncrementalDecoder(tokenizer), ""
        ids = tokenizer.encode(text)
        for count, i in enumerate(ids, start=1):
            shown += decoder.push([i])
            certain = tokenizer.decode(ids[:count], skip_special_tokens=True).rstrip("\ufffd")
            assert shown.rstrip("\ufffd") == certain  # what is held back is no more than an unfinished character
            assert text.replace("▁", " ").startswith(shown)
        assert decoder.flush() == ""


def test_the_space_between_parts_stays(official):
    decoder = IncrementalDecoder(official)
    assert [decoder.push(i) for i in official.encode("Once upon a")] == ["", "Once", " upon", " a"]
    assert decoder.flush() == ""
    assert decoder.push(official.encode("Once")) == "Once"  # flushed: a new text begins


def test_bytes_of_a_character_wait_for_the_last(official):
    decoder = IncrementalDecoder(official)
    byte_ids = [3 + byte for byte in "🙂".encode()]
    assert [decoder.push(i) for i in byte_ids] == ["", "", "", "🙂"]
    assert [decoder.push(byte_ids[:2]), decoder.push(264), decoder.flush()] == ["", "\ufffd\ufffd a", ""]
    assert [decoder.push(byte_ids[:3]), decoder.flush()] == ["", "\ufffd" * 3]


# --- files


def test_any_file_name_and_folder_is_found(official, tmp_path, monkeypatch):
    content = OFFICIAL.read_bytes()
    for name in ("tokenizer.model", "tokenizer.model.v1", "other.model", "tokenizer.model.v9"):
        folder = tmp_path / f"of-{name}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        for place in (folder, str(folder), folder / name):
            assert len(MixtralTokenizer.from_pretrained(place)) == 32000
    (tmp_path / "anything.bin").write_bytes(content)
    assert MixtralTokenizer(str(tmp_path / "anything.bin")).encode("a") == official.encode("a")


def test_tokenizer_model_comes_first(official, trained, tmp_path):
    (tmp_path / "a.model").write_bytes(OFFICIAL.read_bytes())
    trained.save_pretrained(tmp_path)
    assert len(MixtralTokenizer.from_pretrained(tmp_path)) == len(trained)


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for tokenizer\.model, tokenizer\.model\.v1"):
        MixtralTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MixtralTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="hf download mistralai/Mixtral-8x7B-v0.1"):
        MixtralTokenizer.from_pretrained("mistralai/Mixtral-8x7B-v0.1")
    for content in (b"", b"not a model", OFFICIAL.read_bytes()[:1000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer.model is not a SentencePiece model"):
            MixtralTokenizer.from_pretrained(tmp_path)


def test_saving_copies_the_file(official, tmp_path):
    (tmp_path / "tokenizer.model").write_text("old")
    assert official.save_pretrained(tmp_path / "new") == tmp_path / "new" / "tokenizer.model"
    official.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (tmp_path / "new" / "tokenizer.model").read_bytes()
    assert (tmp_path / "tokenizer.model").read_bytes() == OFFICIAL.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tokenizer.model"]


def test_it_pickles_and_copies(official):
    official_again = pickle.loads(pickle.dumps(official))
    for tokenizer in (official_again, copy.deepcopy(official)):
        ids = tokenizer.encode(f"Once upon {ROCKET}")
        assert ids == official.encode(f"Once upon {ROCKET}") and tokenizer.decode(ids) == official.decode(ids)


# --- training


def test_a_trained_tokenizer_has_mixtrals_layout(trained):
    assert len(trained) == 330
    assert [p.piece for p in trained.pieces(range(4))] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert trained.byte_values == {3 + byte: byte for byte in range(256)}
    assert [p.piece for p in trained.pieces("345")] == ["▁", "3", "4", "5"]
    assert trained.pieces("a\nb")[1] == Piece(13, "<0x0A>", True)
    assert any(set(p.piece) == {"▁"} and len(p.piece) > 1 for p in trained.pieces(range(330)))  # runs of spaces


def test_training_repeats_byte_for_byte(trained, tmp_path):
    train_tokenizer(iter(TEXTS), tmp_path / "new" / "again.model", vocab_size=330)
    assert (tmp_path / "new" / "again.model").read_bytes() == trained.processor.serialized_model_proto()


def test_long_lines_are_learned_from(tmp_path):
    line = "zebra quagga okapi " * 500  # longer than what SentencePiece takes by default
    tokenizer = train_tokenizer([line], tmp_path / "long.model", vocab_size=290)
    assert [p.piece for p in tokenizer.pieces("quagga okapi")] == ["▁quagga", "▁okapi"]


def test_too_little_text_is_refused_and_writes_nothing(tmp_path):
    for texts_given in (["abc"], []):
        with pytest.raises(ValueError, match="vocab_size=600 does not suit these texts"):
            train_tokenizer(texts_given, tmp_path / "none.model", vocab_size=600)
    assert not list(tmp_path.iterdir())
