"""Stream text while it is generated: decode id by id, and print."""

import codecs
from collections.abc import Sequence
from itertools import takewhile

import torch

from mixtral_edu.text.tokenizer import MixtralTokenizer


class IncrementalDecoder:
    """Decode ids as they come, and return text only once it is certain.

    A character of several byte pieces is held back until its last byte arrives, so no part ends in half a character.
    All parts joined, with the final `flush`, equal `tokenizer.decode` of all ids, for any ids.

    Args:
        tokenizer: the tokenizer that the ids belong to.
        skip_special_tokens: as in `tokenizer.decode`.
    """

    def __init__(self, tokenizer: MixtralTokenizer, skip_special_tokens: bool = True):
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self._pending: list[int] = []
        self._started = False  # whether any text was returned; after that, the space before a word stays
        self._pads = 0  # pads held back: whether they are padding depends on the next id
        self._last: int | None = None  # the last id that is not a pad

    def push(self, ids: int | Sequence[int] | torch.Tensor) -> str:
        """Take the next ids and return the text that is now certain: often one word, sometimes none."""
        for i in self.tokenizer.checked_ids(ids):
            if self.skip_special_tokens and i == self.tokenizer.pad_token_id:
                self._pads += 1
            else:
                self._pending += self._pads_that_show(next_id=i) + [i]
                self._pads, self._last = 0, i
        return self._give_out(len(self._pending) - self._open_bytes())

    def flush(self) -> str:
        """Return the remaining text, with U+FFFD for the bytes of an unfinished character, and start over."""
        self._pending += self._pads_that_show(next_id=None)
        text = self._give_out(len(self._pending))
        self._pending, self._started, self._pads, self._last = [], False, 0, None
        return text

    def _pads_that_show(self, next_id: int | None) -> list[int]:
        """Return the pads held back that are part of the text, as `tokenizer.without_padding` decides."""
        if not self._pads:
            return []
        before, after = ([] if i is None else [i] for i in (self._last, next_id))
        pads = [self.tokenizer.pad_token_id] * self._pads
        kept = self.tokenizer.without_padding([*before, *pads, *after])
        return kept[len(before) : len(kept) - len(after)]

    def _give_out(self, count: int) -> str:
        text = self.tokenizer.decode_part(self._pending[:count], self.skip_special_tokens, at_start=not self._started)
        self._started = self._started or text != ""
        if self._started:
            del self._pending[:count]
        return text

    def _open_bytes(self) -> int:
        """Return how many of the last ids are the beginning of a UTF-8 character."""
        values = map(self.tokenizer.byte_values.get, reversed(self._pending))
        run = bytes(takewhile(lambda value: value is not None, values))[::-1]
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        utf8.decode(run)
        unfinished, _ = utf8.getstate()
        return len(unfinished)


class TextStreamer:
    """Print text while it is generated, each character as soon as it is complete.

    Pass it as `generate(..., streamer=TextStreamer(tokenizer))`, for a batch of one. Override `on_finalized_text` to
    send the text elsewhere.

    Args:
        tokenizer: decodes the ids.
        skip_prompt: print only the new text, not the prompt.
        skip_special_tokens: as in `tokenizer.decode`.
    """

    def __init__(self, tokenizer: MixtralTokenizer, skip_prompt: bool = False, skip_special_tokens: bool = False):
        self.skip_prompt = skip_prompt
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens)
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's ids `(1, T)` first, then each new id `(1,)`.

        Raises:
            ValueError: `value` has more than one row.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"value has shape {tuple(value.shape)}: a TextStreamer must get a batch of one")
        is_prompt, self._prompt_is_next = self._prompt_is_next, False
        if not (is_prompt and self.skip_prompt):
            self.on_finalized_text(self._decoder.push(value.flatten()))

    def end(self) -> None:
        """Print the remaining text and a line break, and get ready for the next generation."""
        self._prompt_is_next = True
        self.on_finalized_text(self._decoder.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print `text`, and a line break after the last part."""
        print(text, end="\n" if stream_end else "", flush=True)
