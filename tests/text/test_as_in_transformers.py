"""The names and options of transformers' tokenizers, against two of them that read the same vocabulary.

`LlamaTokenizer` is what transformers makes of a SentencePiece file; its converter's function computes the merges here.
`MistralCommonBackend` is what it takes for Mixtral where mistral_common is installed. It runs SentencePiece itself, so
its ids are equal for every text.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.tokenization_mistral_common import MistralCommonBackend

from mixtral_edu.text.tokenizer import MixtralTokenizer, TokenizerOutput
from tokenizer_samples import AWKWARD, OFFICIAL, llama_tokenizer, texts

SPECIALS = ("<s>", "</s>", "<unk>")
SIDES = st.sampled_from(["left", "right"])
SAMPLES = [
    *AWKWARD,
    "Once upon a time",
    "Había una vez",
    "日本語のテキスト",
    "👩‍👩‍👧 family",
    "x = 345\n\treturn",
    "a ," * 9,
]


@pytest.fixture(scope="module")
def ours() -> MixtralTokenizer:
    return MixtralTokenizer(OFFICIAL)


@pytest.fixture(scope="module")
def new_llama(ours) -> Callable[[], transformers.LlamaTokenizer]:
    """A function, because copies of a LlamaTokenizer share what is set."""
    return lambda: llama_tokenizer(ours)


@pytest.fixture(scope="module")
def llama(new_llama) -> transformers.LlamaTokenizer:
    return new_llama()


def new_mistral(path: Path = OFFICIAL) -> MistralCommonBackend:
    tokenizer = MistralCommonBackend(str(path))
    tokenizer.pad_token = "<unk>"
    return tokenizer


@pytest.fixture(scope="module")
def mistral() -> MistralCommonBackend:
    return new_mistral()


@pytest.fixture(scope="module")
def with_sides(new_llama) -> tuple:
    """Ours and both of theirs, apart from the others, for sides to be set."""
    return MixtralTokenizer(OFFICIAL), new_llama(), new_mistral()


def same_in_llama(text: str) -> bool:
    """Whether LlamaTokenizer finds no special token in a text, and no space at its start, before which it adds none."""
    return not text.startswith((" ", "▁")) and not any(name in text for name in SPECIALS)


@given(
    batch=st.lists(texts, min_size=1, max_size=4),
    add_special_tokens=st.booleans(),
    padding=st.sampled_from([False, "do_not_pad", True, "longest", "max_length"]),
    truncation=st.sampled_from([False, "do_not_truncate", True, "longest_first"]),
    max_length=st.integers(1, 12),
    padding_side=SIDES,
    truncation_side=SIDES,
    return_attention_mask=st.booleans(),
)
def test_calls_cut_and_pad_alike(
    with_sides, batch, padding, truncation, max_length, padding_side, truncation_side, **options
):
    options |= {"padding": padding, "truncation": truncation}
    if truncation in (True, "longest_first") or padding == "max_length":
        options["max_length"] = max_length
    ours, llama, mistral = with_sides
    for tokenizer in with_sides:
        tokenizer.padding_side, tokenizer.truncation_side = padding_side, truncation_side
    assert ours(batch, **options) == dict(mistral(batch, **options))
    assert ours(batch[0], **options) == dict(mistral(batch[0], **options))
    if all(map(same_in_llama, batch)):
        assert ours(batch, **options) == dict(llama(batch, **options))


@pytest.mark.parametrize("text", SAMPLES)
def test_texts_become_the_same_pieces(ours, llama, mistral, text):
    assert ours.encode(text) == mistral.encode(text)
    assert ours.tokenize(text) == mistral.tokenize(text)
    cut = {"truncation": True, "max_length": 3}
    assert ours.encode(text, **cut) == mistral.encode(text, **cut) == ours.encode(text)[:3]
    tensor = ours.encode(text, return_tensors="pt", add_special_tokens=False)
    assert tensor.dtype == torch.int64 and tensor.tolist() == [mistral.encode(text, add_special_tokens=False)]
    if same_in_llama(text):
        assert ours.tokenize(text, add_special_tokens=True) == llama.tokenize(text, add_special_tokens=True)
        assert ours(text, return_tensors="pt").input_ids.equal(llama(text, return_tensors="pt")["input_ids"])


def test_the_models_limit_stands_for_a_length_that_is_not_given(ours, new_llama):
    ours, theirs = copy.copy(ours), new_llama()
    assert ours.model_max_length == theirs.model_max_length > 10**29
    long = "word " * 3000
    with pytest.warns(UserWarning, match="truncation=True cuts nothing: pass max_length") as one:
        assert ours([long, "a"], truncation=True) == ours([long, "a"])
    assert len(one) == 1 and one[0].filename == __file__
    assert dict(theirs(long, truncation=True)) == ours(long)  # theirs says so in its log
    for tokenizer in (ours, theirs):
        tokenizer.model_max_length = 5
    assert len(ours(long, truncation=True).input_ids) == 5
    for options in ({"truncation": True}, {"padding": "max_length"}, {"truncation": True, "padding": "max_length"}):
        assert ours([long, "a"], **options) == dict(theirs([long, "a"], **options))
    assert len(ours(long).input_ids) > 3000  # only where truncation is asked for


def test_a_padded_batch_is_the_models_input(ours):
    batch = ours(["a b c", "d"], padding="max_length", truncation=True, max_length=3, return_tensors="pt")
    assert batch.input_ids.tolist() == [[1, 264, 287], [0, 1, 281]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    right = copy.copy(ours)
    right.padding_side = "right"
    assert right.pad([[1, 264, 287], [1]]).input_ids.tolist() == [[1, 264, 287], [1, 0, 0]]


def test_pieces_and_ids_have_the_same_names(ours, llama, mistral):
    ids = list(range(32000))
    names = ours.convert_ids_to_tokens(ids)
    assert names == llama.convert_ids_to_tokens(ids) == mistral.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_ids(names) == ids
    assert ours.get_vocab() == llama.get_vocab() == dict(zip(names, ids, strict=True))
    assert ours.convert_ids_to_tokens(264) == llama.convert_ids_to_tokens(264) == "▁a"
    assert ours.convert_tokens_to_ids("▁a") == llama.convert_tokens_to_ids("▁a") == 264
    unknown = ["zzzq", "", " a", "▁Once upon"]
    assert ours.convert_tokens_to_ids(unknown) == llama.convert_tokens_to_ids(unknown) == [0] * 4
    assert ours.convert_tokens_to_ids(()) == ours.convert_ids_to_tokens([]) == []
    mixed = [1, 0, 264, 2, 264, 0]
    assert ours.convert_ids_to_tokens(mixed, skip_special_tokens=True) == ["▁a", "▁a"]
    assert llama.convert_ids_to_tokens(mixed, skip_special_tokens=True) == ["▁a", "▁a"]
    for given_ids in (torch.tensor(mixed), np.array(mixed), tuple(mixed), [torch.tensor(i) for i in mixed]):
        assert ours.convert_ids_to_tokens(given_ids) == llama.convert_ids_to_tokens(mixed)
    assert ours.convert_ids_to_tokens(np.int64(264)) == ours.convert_ids_to_tokens(torch.tensor(264)) == "▁a"
    with pytest.raises(ValueError, match="id 32000 is outside the vocabulary"):
        ours.convert_ids_to_tokens(32000)
    for tokens in (None, 3, ["<s>", 3]):
        with pytest.raises(TypeError, match="tokens="):
            ours.convert_tokens_to_ids(tokens)


def test_special_tokens_have_the_same_names(ours, llama):
    for kind in ("bos", "eos", "unk", "pad"):
        for name in (f"{kind}_token", f"{kind}_token_id"):
            assert getattr(ours, name) == getattr(llama, name)
    assert ours.all_special_ids == llama.all_special_ids == [1, 2, 0]
    assert ours.all_special_tokens == llama.all_special_tokens == ["<s>", "</s>", "<unk>"]
    assert ours.padding_side == llama.padding_side == "left" and ours.truncation_side == llama.truncation_side
    assert ours.clean_up_tokenization_spaces is llama.clean_up_tokenization_spaces is False


@pytest.mark.parametrize("pad", ["</s>", ","])
def test_a_pad_token_can_be_set_by_name(ours, new_llama, pad):
    ours, theirs = copy.copy(ours), new_llama()
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = pad
    assert ours.pad_token_id == theirs.pad_token_id and ours.pad_token == theirs.pad_token == pad
    assert ours.all_special_tokens == theirs.all_special_tokens
    batch = ["a b c", "d"]
    assert ours(batch, padding=True) == dict(theirs(batch, padding=True))
    assert MixtralTokenizer(OFFICIAL, pad_token=pad)(batch, padding=True) == ours(batch, padding=True)


def test_a_token_and_its_id_are_set_together(ours):
    ours = copy.copy(ours)
    ours.pad_token = ours.eos_token
    assert ours.pad_token_id == ours.eos_token_id == 2
    ours.pad_token_id = 0
    assert ours.pad_token == "<unk>"
    ours.bos_token = ours.eos_token = "<0x00>"
    assert ours.encode("a") == [3, 264] and ours.eos_token_id == 3 and ours.all_special_ids == [3, 0, 1, 2]
    ours.add_eos_token, ours.clean_up_tokenization_spaces, ours.unk_token = False, False, "<unk>"  # as they are


@given(parts=st.lists(texts | st.integers(259, 31999) | st.sampled_from([0, 1, 2]), max_size=6), skip=st.booleans())
def test_ids_become_the_same_text(ours, llama, parts, skip):
    parts = [part for part in parts if not skip or part != 0]  # <unk> shows here as in SentencePiece
    ids = sum(([part] if isinstance(part, int) else ours.encode(part) for part in parts), [])
    assert ours.decode(ids, skip_special_tokens=skip) == llama.decode(ids, skip_special_tokens=skip)


def test_ids_of_every_kind_become_text(ours, llama):
    ids = ours.encode("Once upon")
    for one in (ids, np.array(ids), torch.tensor(ids), [np.int64(i) for i in ids], list(torch.tensor(ids))):
        assert ours.decode(one) == llama.decode(one) == "<s> Once upon"
        assert ours.batch_decode(one) == llama.batch_decode(one) == ["<s> Once upon"]
    for one in (264, np.int64(264), torch.tensor(264)):
        assert ours.decode(one) == llama.decode(one) == "a"
    several = ([ids, [1]], [torch.tensor(ids), torch.tensor([1])], [np.array(ids), np.array([1])])
    for batch in (*several, torch.tensor([ids, ids]), np.array([ids, ids]), [], [[]]):
        assert ours.decode(batch) == llama.decode(batch)
        assert ours.batch_decode(batch, skip_special_tokens=True) == llama.batch_decode(batch, skip_special_tokens=True)
        assert ours.batch_decode(batch, clean_up_tokenization_spaces=None) == llama.batch_decode(batch)


def test_an_encoding_holds_what_theirs_holds(ours, mistral):
    encoded, theirs = (t(["a b", "c d"], return_tensors="pt") for t in (ours, mistral))
    assert isinstance(encoded, TokenizerOutput) and list(encoded) == list(theirs.keys())
    assert all(encoded[name].equal(theirs[name]) and encoded[name].dtype == theirs[name].dtype for name in encoded)
