"""Train a byte-fallback BPE vocabulary with SentencePiece and Mixtral's own rules for cutting text.

Mixtral's file (`tokenizer.model.v1` in the package `mistral_common`) records the settings of its training. Its rules
for cutting are those in `SETTINGS` and SentencePiece's defaults. The difference is which text was counted and how much
was kept: there, `character_coverage` is 0.99995, `max_sentence_length` is 4192, and a sample of at most 200 million
lines was read. One more difference is not a setting. In that file, pieces of nothing but spaces have the score -1e9, so
they are merged last. Here they keep the rank at which they were learned.
"""

import io
from collections.abc import Iterable

import sentencepiece

SETTINGS = dict(
    model_type="bpe",
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=True,
    allow_whitespace_only_pieces=True,
    character_coverage=0.9995,
    max_sentence_length=1_000_000,  # bytes; a longer line would be skipped silently
    num_threads=1,  # the model file records this number, so it must not depend on the machine
    minloglevel=2,
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train on the lines of `texts` and return the content of a SentencePiece model file.

    Ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`; ids 3 to 258 are the 256 bytes. Each digit is a token, a run of spaces
    may be one token, and a line break is always its byte piece. The same texts in the same order give the same file.

    Raises:
        ValueError: the texts are too small for `vocab_size` pieces, or hold too many different characters.
    """
    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, vocab_size=vocab_size, **SETTINGS
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "there is no text"
        raise ValueError(f"vocab_size={vocab_size} does not fit these texts: {reason}") from error
    return model.getvalue()
