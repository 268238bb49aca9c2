"""Text while it is generated: certain as soon as it can be, and never half a character."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from history_model import HistoryModel
from mixtral_edu.api.generation import generate
from mixtral_edu.text.streaming import IncrementalDecoder, TextStreamer
from mixtral_edu.text.tokenizer import MixtralTokenizer, train_tokenizer
from tokenizer_samples import OFFICIAL, TEXTS, id_lists, texts


@pytest.fixture(scope="module")
def official() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> MixtralTokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("trained") / "tokenizer.model", vocab_size=330)


@given(
    ids=id_lists(32000),
    skip=st.booleans(),
    pad=st.sampled_from([0, 1, 2, 13, 264]),
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_parts_of_any_ids_join_to_their_text(official, ids, skip, pad, cuts):
    official = copy.copy(official)
    official.pad_token_id = pad
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


def test_padding_at_both_ends_is_left_out_of_a_stream_too(official):
    decoder = IncrementalDecoder(official)
    assert [decoder.push(i) for i in (0, 0, 1, 264)] == ["", "", "", "a"]
    decoder.flush()
    assert [decoder.push(i) for i in (0, 264, 0, 0)] == ["", "a", "", ""]
    assert decoder.push(264) == " ⁇  ⁇  a"  # no padding after all
    assert [decoder.push(i) for i in (2, 0)] + [decoder.flush()] == ["", "", ""]


def test_bytes_of_a_character_wait_for_the_last(official):
    decoder = IncrementalDecoder(official)
    byte_ids = [3 + byte for byte in "🙂".encode()]
    assert [decoder.push(i) for i in byte_ids] == ["", "", "", "🙂"]
    assert [decoder.push(byte_ids[:2]), decoder.push(264), decoder.flush()] == ["", "\ufffd\ufffd a", ""]
    assert [decoder.push(byte_ids[:3]), decoder.flush()] == ["", "\ufffd" * 3]


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_text_streamer_prints_what_decode_returns(trained, capsys, skip_prompt, skip_special_tokens):
    streamer = TextStreamer(trained, skip_prompt=skip_prompt, skip_special_tokens=skip_special_tokens)
    prompt = trained("the fox", return_tensors="pt").input_ids
    for _ in range(2):  # and it can be used again
        ids = generate(HistoryModel(), prompt, max_new_tokens=30, streamer=streamer)[0]
        shown = ids[prompt.shape[1] :] if skip_prompt else ids
        assert capsys.readouterr().out == trained.decode(shown, skip_special_tokens) + "\n"


def test_text_streamer_hands_out_whole_characters_as_soon_as_they_are_there(trained):
    class Collector(TextStreamer):
        parts = []

        def on_finalized_text(self, text, stream_end=False):
            self.parts.append((text, stream_end))

    streamer = Collector(trained)
    for i in [1, 3 + 0xF0, 3 + 0x9F, 3 + 0x99, 3 + 0x82, 3 + 0x41]:
        streamer.put(torch.tensor([i]))
    streamer.end()
    assert [text for text, _ in streamer.parts] == ["<s>", "", "", "", "🙂", "A", ""]
    assert [end for _, end in streamer.parts] == [False] * 6 + [True]
