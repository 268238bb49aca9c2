"""What a trained tokenizer is like."""

import pytest

from mixtral_edu.text.tokenizer import MixtralTokenizer, Piece, train_tokenizer
from tokenizer_samples import OFFICIAL, TEXTS


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> MixtralTokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("trained") / "tokenizer.model", vocab_size=330)


def test_a_trained_tokenizer_has_mixtrals_layout(trained):
    assert len(trained) == 330
    assert [p.piece for p in trained.pieces(range(4))] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert trained.byte_values == {3 + byte: byte for byte in range(256)}
    assert [p.piece for p in trained.pieces("345")] == ["▁", "3", "4", "5"]
    assert trained.pieces("a\nb")[1] == Piece(13, "<0x0A>", True)
    assert any(set(p.piece) == {"▁"} and len(p.piece) > 1 for p in trained.pieces(range(330)))  # runs of spaces


def test_pieces_of_spaces_are_joined_last_in_mixtrals_own_file_and_by_rank_here(trained):
    scores = {}
    for name, tokenizer in (("own", MixtralTokenizer(OFFICIAL)), ("here", trained)):
        spaces = [p for p in tokenizer.pieces(range(len(tokenizer))) if set(p.piece) == {"▁"} and len(p.piece) > 1]
        scores[name] = [tokenizer.processor.get_score(p.id) for p in spaces]
    assert set(scores["own"]) == {-1e9} and min(scores["here"]) > -330
    assert [p.piece for p in MixtralTokenizer(OFFICIAL).pieces(" upon")] == ["▁", "▁upon"]


def test_training_repeats_byte_for_byte(trained, tmp_path):
    train_tokenizer(iter(TEXTS), tmp_path / "new" / "again.model", vocab_size=330)
    assert (tmp_path / "new" / "again.model").read_bytes() == trained.processor.serialized_model_proto()


def test_long_lines_are_learned_from(tmp_path):
    line = "zebra quagga okapi " * 500  # longer than what SentencePiece takes by default
    tokenizer = train_tokenizer([line], tmp_path / "long.model", vocab_size=290)
    assert [p.piece for p in tokenizer.pieces("quagga okapi")] == ["▁quagga", "▁okapi"]


def test_too_little_text_is_refused_and_writes_nothing(tmp_path):
    for texts_given in (["abc"], []):
        with pytest.raises(ValueError, match="vocab_size=600 .*these texts"):
            train_tokenizer(texts_given, tmp_path / "none.model", vocab_size=600)
    assert not list(tmp_path.iterdir())
