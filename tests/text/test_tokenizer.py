"""The tokenizer against SentencePiece itself and the decoder of transformers' fast tokenizers."""

import copy
import io
import json
import pickle
import re
from importlib.resources import files

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st

from mixtral_edu.data import probe_text
from mixtral_edu.text.tokenizer import MixtralTokenizer, Piece, TokenizerOutput, train_tokenizer
from tokenizer_samples import MODEL_FILES, OFFICIAL, ROCKET, TEXTS, id_lists, texts

DECODER = tokenizers.decoders.Sequence([
    tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(),
    tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(content=" ", left=1),
])  # fmt: skip


@pytest.fixture(scope="module")
def official() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained(OFFICIAL)


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(OFFICIAL))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> MixtralTokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("trained") / "tokenizer.model", vocab_size=330)


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
    assume(not ids or 0 not in (ids[0], ids[-1]))  # padding has tests of its own
    assert official.decode(ids, skip_special_tokens=True) == reference.decode(ids)


def test_kept_specials_show_by_name_with_the_space_behind_them(official):
    once = official.encode("Once", add_special_tokens=False)
    assert official.decode(official.encode("Once upon")) == "<s> Once upon"
    assert official.decode([1, *once, 2, *once]) == "<s> Once</s> Once"
    assert official.decode([*once, 2]) == "Once</s>"
    assert official.decode([0, 0, 1, *once]) == "<unk><unk><s> Once"


@pytest.mark.parametrize("version", MODEL_FILES)
def test_control_tokens_are_skipped_as_in_sentencepiece_and_kept_by_name(version):
    tokenizer = MixtralTokenizer(MODEL_FILES[version])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(MODEL_FILES[version]))

    @given(ids=id_lists(1000), last=st.permutations([2, 3, 4, 300]))
    def check(ids, last):
        ids = [5, *ids, *last]  # no pads at the ends
        assert tokenizer.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
        kept = tokenizer.decode(ids)
        assert all(theirs.id_to_piece(i) in kept for i in ids if theirs.is_control(i))

    check()


@pytest.mark.parametrize("pad", ["<unk>", "</s>"])
@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("stop", [2, 13])  # </s>, and a line break as another stop
def test_pads_at_both_ends_are_left_out_as_in_transformers(official, pad, add_special_tokens, stop):
    theirs = fast_tokenizer(official, pad)
    ours = MixtralTokenizer(OFFICIAL, pad_token_id=theirs.pad_token_id)
    prompts = ours(["Once upon a time", "Yes"], padding=True, add_special_tokens=add_special_tokens).input_ids
    batch = [[*prompts[0], 264, 264, 264], [*prompts[1], 264, stop, ours.pad_token_id]]  # the second stops early
    texts = ours.batch_decode(batch, skip_special_tokens=True)
    assert texts == theirs.batch_decode(batch, skip_special_tokens=True)
    assert texts == ["Once upon a time a a a", "Yes a\n" if stop == 13 else "Yes a"]
    assert ours.batch_decode([[ours.pad_token_id] * 3], skip_special_tokens=True) == [""]
    assert ours.decode(batch[1]).count(pad) == batch[1].count(ours.pad_token_id)  # kept, all show


def test_an_unknown_within_the_text_is_no_padding(official, reference):
    ids = [*official.encode("Once"), 0, 0, *official.encode("upon", False)]
    assert reference.decode(ids) == "Once ⁇  ⁇  upon"
    assert official.decode([0, 0, *ids, 2, 0, 0], skip_special_tokens=True) == "Once ⁇  ⁇  upon"


def test_pads_that_a_text_may_hold_are_padding_only_outside_of_bos_and_eos(official, tmp_path):
    model = io.BytesIO()  # without byte fallback: what is not in the vocabulary is <unk>
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=80, model_type="bpe", minloglevel=2
    )
    (tmp_path / "plain.model").write_bytes(model.getvalue())
    plain = MixtralTokenizer(tmp_path / "plain.model")
    ids = plain.encode("中 fox 中", add_special_tokens=False)
    assert ids[-1] == 0 and plain.decode(ids, True) == plain.processor.decode(ids)
    assert plain.decode([0, 0, 1, *ids, 2, 0], True) == plain.processor.decode(ids)
    comma = MixtralTokenizer(OFFICIAL, pad_token_id=official.encode("a,")[-1])
    assert comma.decode(comma.encode("a,", False), True) == "a,"
    assert comma.decode([comma.pad_token_id, *comma.encode("a,"), 2, comma.pad_token_id], True) == "a,"


def fast_tokenizer(official: MixtralTokenizer, pad: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of transformers with the same vocabulary, for decoding."""
    vocabulary = {piece.piece: piece.id for piece in official.pieces(range(official.vocab_size))}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    model.decoder = DECODER
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


@given(parts=st.lists(texts | st.sampled_from([0, 1, 2]), max_size=6))
def test_kept_specials_decode_as_the_decoder_of_fast_tokenizers(official, parts):
    ids = []
    for part in parts:
        ids += [part] if isinstance(part, int) else official.encode(part, add_special_tokens=False)
    assert official.decode(ids) == DECODER.decode([p.piece for p in official.pieces(ids)])


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
    with pytest.raises(TypeError, match=r"ids holds \[1\]: .* one flat sequence"):
        official.decode(torch.ones(2, 3, 1, dtype=torch.long))
    with pytest.raises(TypeError, match="ids holds True"):
        official.decode([True])
    with pytest.raises(TypeError, match="flat sequence of ints"):
        official.decode([1.0])
    for encode in (official.encode, official.tokenize, official.pieces):  # pairs of texts
        with pytest.raises(TypeError, match="add_special_tokens='b': it must be True or False; pairs"):
            encode("a", "b")
    for options in ({}, {"return_tensors": "pt"}):
        with pytest.raises(TypeError, match="text_pair='b': pairs"):
            official("a", "b", **options)


@pytest.mark.parametrize("value", [None, 5, 1.5, b"ab", {"input_ids": [1]}])
def test_what_is_neither_text_nor_ids_is_named(official, value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"texts is a {kind}: it must be a str or a sequence of str"):
        official(value)
    with pytest.raises(TypeError, match="rows must be a list of lists of ids; .* the input_ids"):
        official.pad(value)
    if isinstance(value, (int, bytes)):  # bytes are ints
        return
    for decode in (official.decode, official.batch_decode, official.convert_ids_to_tokens, official.pieces):
        with pytest.raises(TypeError, match=f"ids is a {kind}: it must be an int, or ints in a list"):
            decode(value)


def test_decode_takes_ids_of_every_kind(official):
    ids = official.encode("Once upon")
    for given_ids in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids).numpy()):
        assert official.decode(given_ids) == "<s> Once upon"
    assert official.decode(ids[1]) == official.decode(torch.tensor(ids[1])) == "Once"
    assert official.batch_decode(torch.tensor([ids, ids])) == official.batch_decode([ids, ids]) == ["<s> Once upon"] * 2
    assert official.batch_decode(torch.tensor(row) for row in (ids, ids)) == ["<s> Once upon"] * 2


def test_pieces_show_ids_and_bytes(official, reference):
    assert official.pieces("a\n") == [Piece(264, "▁a", False), Piece(13, "<0x0A>", True)]
    assert [p.piece for p in official.pieces(f"Once {ROCKET}")] == reference.encode_as_pieces(f"Once {ROCKET}")
    assert official.pieces("a", add_special_tokens=True)[0] == Piece(1, "<s>", False)
    assert official.pieces(torch.tensor([1, 264])) == official.pieces("a", add_special_tokens=True)


def test_names_and_sizes(official):
    assert (official.unk_token_id, official.bos_token_id, official.eos_token_id, official.pad_token_id) == (0, 1, 2, 0)
    assert official.vocab_size == len(official) == 32000
    assert official.byte_values == {3 + byte: byte for byte in range(256)}


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


def test_settings_that_would_have_no_effect_are_refused_by_name(official):
    for name, value in {
        "add_bos_token": False, "add_eos_token": True, "chat_template": "{{ messages }}", "unk_token": "</s>",
        "unk_token_id": 3, "vocab_size": 5, "byte_values": {}, "clean_up_tokenization_spaces": True,
        "all_special_ids": [1], "all_special_tokens": ["<s>"], "pad_tokn": "</s>", "use_fast": True,
    }.items():  # fmt: skip
        with pytest.raises(AttributeError, match=f"^{name}=.* would have no effect: "):
            setattr(copy.copy(official), name, value)
        for load, place in ((MixtralTokenizer, OFFICIAL), (MixtralTokenizer.from_pretrained, "tiny")):
            with pytest.raises(TypeError, match=f"^{name}=.* would have no effect: "):
                load(place, **{name: value})
    for name, value in {
        "padding_side": "middle", "truncation_side": None, "model_max_length": 0, "pad_token": "[PAD]",
        "bos_token": None, "eos_token": 2,
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: it must be "):
            setattr(copy.copy(official), name, value)
    for value in (None, -1, 32000, "2", True, 2.0, np.int64(32000), np.float64(2), np.True_):
        with pytest.raises(ValueError, match=rf"^pad_token_id={re.escape(repr(value))}: .* 0 to 31999"):
            copy.copy(official).pad_token_id = value


def test_settings_that_have_an_effect_are_taken():
    tokenizer = MixtralTokenizer.from_pretrained("tiny", pad_token_id=2, padding_side="left")
    assert tokenizer.padding_side == "left" and tokenizer(["a b", "a"], padding=True).input_ids[1][0] == 2
    tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.bos_token_id = "left", 0, 3
    assert tokenizer.encode("a")[0] == 3
    tokenizer.pad_token_id = np.int64(2)  # as numpy's functions return it
    ids = tokenizer(["a b", "a"], padding=True).input_ids
    assert ids[1][0] == 2 and {type(i) for row in ids for i in row} == {type(tokenizer.pad_token_id)} == {int}

    class Mine(MixtralTokenizer):
        def __init__(self, path):
            super().__init__(path)
            self.language = "Italian"

    assert Mine(OFFICIAL).language == "Italian"  # an attribute of one's own


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
    with pytest.raises(ValueError, match="rows is empty"):
        official.pad([])
    for rows in ([1, 2], ["ab"], [{"input_ids": [1]}]):
        with pytest.raises(TypeError, match="rows must be a list of lists of ids"):
            official.pad(rows)
    with pytest.raises(ValueError, match="return_tensors='np'"):
        official("a", return_tensors="np")
    with pytest.raises(ValueError, match="padding='max_length' has no length: pass max_length"):
        official("a", padding="max_length")
    with pytest.raises(ValueError, match="pass truncation=True too"):
        official(["a", "a b c"], padding="max_length", max_length=2, return_tensors="pt")
    for name, value in {"padding": "left", "truncation": "only_second", "max_length": 0}.items():
        with pytest.raises(ValueError, match=f"^{name}={value!r}: it must be "):
            official("a", **{"truncation": True, name: value})
    for options in ({}, {"padding": True}, {"truncation": False, "padding": "do_not_pad"}):
        with pytest.raises(ValueError, match="max_length=2 would have no effect: pass truncation=True"):
            official("a b c", max_length=2, **options)
    with pytest.raises(ValueError, match="max_length=2 would have no effect"):
        official.encode("a b c", max_length=2)
    for call in (official, official.encode, lambda text, **options: official.apply_chat_template([], **options)):
        with pytest.raises(TypeError, match="'pad_to_multiple_of'"):
            call("a", pad_to_multiple_of=8)


def test_the_output_moves_unpacks_and_copies(official):
    output = official(["Yes"], return_tensors="pt")
    moved = output.to("meta")
    assert isinstance(moved, TokenizerOutput) and moved.input_ids.is_meta and not output.input_ids.is_meta
    assert sorted(dict(**output)) == ["attention_mask", "input_ids"]
    assert official("Yes").to("meta") == official("Yes")
    assert copy.deepcopy(output).attention_mask.tolist() == [[1, 1]]
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = output.token_type_ids


def test_any_file_name_and_folder_is_found(official, tmp_path):
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
    for content in (b"", b"not a model", OFFICIAL.read_bytes()[:1000], b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        hint = ".*git lfs pull" if b"lfs" in content else ""
        with pytest.raises(ValueError, match="tokenizer.model is not a SentencePiece model" + hint):
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


def test_rows_of_ids_are_padded_as_texts_are(trained):
    texts = ["a", "a longer text"]
    padded = trained.pad([trained.encode(text) for text in texts])
    expected = trained(texts, return_tensors="pt", padding=True)
    assert padded.input_ids.equal(expected.input_ids) and padded.attention_mask.equal(expected.attention_mask)
    assert padded.input_ids[0, 0] == trained.pad_token_id and padded.attention_mask[0, 0] == 0


def test_spaces_are_not_cleaned_up(trained):
    ids = trained.encode("one , two")
    assert trained.batch_decode([ids], True, clean_up_tokenization_spaces=False) == ["one , two"]
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces=True"):
        trained.decode(ids, clean_up_tokenization_spaces=True)


def test_the_stored_counts_of_mixtrals_own_tokenizer_are_measured_again(official):
    results = json.loads(files("mixtral_edu.data").joinpath("results/bytes_per_token.json").read_text("utf-8"))
    pieces = [p.piece for p in official.pieces(range(259, 32000))]
    merged = sum(len(piece) > 1 for piece in pieces)
    assert (results["merged_pieces"], results["characters"]) == (merged, len(pieces) - merged)
    assert not any(set(piece) & set("0123456789") for piece in pieces if len(piece) > 1)  # digits stay alone
    for domain, stored in results["bytes_per_token"].items():
        text = probe_text(domain)[:10_000]
        measured = len(text.encode()) / len(official.encode(text, add_special_tokens=False))
        assert measured == pytest.approx(stored, abs=0.01)
    counts = {word: len(official.encode(word, add_special_tokens=False)) for word in results["tokens"]}
    assert counts == results["tokens"]
