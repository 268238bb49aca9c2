"""Texts and ids that are hard on a tokenizer, for the tests of several modules."""

from pathlib import Path

import mistral_common
import transformers
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import generate_merges

from mixtral_edu.text.tokenizer import MixtralTokenizer

OFFICIAL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"  # Mixtral's own
# All SentencePiece files that mistral_common ships, by version: v2 and later have [INST] as a control token.
MODEL_FILES = {path.suffix.removeprefix("."): path for path in sorted(OFFICIAL.parent.glob("*.model.v*"))}
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


def llama_tokenizer(ours: MixtralTokenizer) -> transformers.LlamaTokenizer:
    """A tokenizer of transformers with the same vocabulary; it pads with "<unk>"."""
    vocabulary = ours.get_vocab()
    merges = generate_merges(vocabulary, {piece: ours.processor.get_score(i) for piece, i in vocabulary.items()})
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, pad_token="<unk>")
