"""When a row ends: at a stop id, or where its text holds a stop string."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixtral_edu.text.streaming import IncrementalDecoder
from mixtral_edu.text.tokenizer import MixtralTokenizer


class Stops:
    """Tells which rows end with their new ids.

    Args:
        stop_ids: end a row.
        strings: end a row once they stand in its text, and end in a new id: they may begin in the prompt.
        tokenizer: decodes the ids; needed for strings only. Ids beyond its vocabulary, which a larger model may have,
            add no text.
        ids, mask: (B, T) prompts, and 0 for padding; None without padding.
    """

    def __init__(
        self,
        stop_ids: Sequence[int],
        strings: Sequence[str],
        tokenizer: MixtralTokenizer | None,
        ids: Tensor,
        mask: Tensor | None,
    ):
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.long, device=ids.device)
        self.strings, self._longest = strings, max(map(len, strings), default=0)
        self._known = tokenizer.vocab_size if strings else 0
        self._rows = [IncrementalDecoder(tokenizer, skip_special_tokens=False) for _ in ids] if strings else []
        read = ids < self._known if mask is None else (ids < self._known) & (mask != 0)  # (B, T)
        self._tails = [
            self._tail(decoder.push(row[kept])) for decoder, row, kept in zip(self._rows, ids, read, strict=False)
        ]

    def __call__(self, token: Tensor) -> Tensor:
        """Return, for the new ids (B,), whether each ends its row."""
        ends = torch.isin(token, self.stop_ids)  # (B,)
        if self.strings:
            ends = ends | torch.tensor([self._completes(*row) for row in enumerate(token.tolist())], device=ends.device)
        return ends

    def _completes(self, row: int, token: int) -> bool:
        """Whether a stop string ends in the text of this id."""
        before = self._tails[row]
        text = before + self._rows[row].push([token] * (token < self._known))
        self._tails[row] = self._tail(text)
        return any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in self.strings)

    def _tail(self, text: str) -> str:
        """What a stop string may begin with."""
        return text[max(0, len(text) - self._longest + 1) :]
