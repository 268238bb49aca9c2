"""Rows of ids as one batch: cut to a length, padded to a length, as lists or tensors."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch

from mixtral_edu.text.pieces import UNLIMITED, whole_number


class TokenizerOutput(dict):
    """The result of calling a tokenizer: `input_ids` and `attention_mask`, by key or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {sorted(self)}") from None

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with its tensors on `device`; lists stay as they are."""
        return type(self)({k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.items()})


def row_lengths(
    padding: bool | str, truncation: bool | str, max_length: int | None, model_max_length: int
) -> tuple[int | None, int | None]:
    """Return the length that rows are cut to and the one that they are padded to.

    None stands for neither. A padded length of 0 stands for that of the longest row. Warns of a cut without a length.

    >>> row_lengths("longest", True, 8, UNLIMITED), row_lengths("max_length", False, 8, UNLIMITED)
    ((8, 0), (None, 8))

    Args:
        padding: False or "do_not_pad", True or "longest", or "max_length".
        truncation: False or "do_not_truncate", True or "longest_first", which differ only for pairs of texts.
        max_length: at least 1; None stands for `model_max_length`.
        model_max_length: the limit that the tokenizer was given, or `UNLIMITED`.

    Raises:
        ValueError: an option has none of these values, `max_length` would have no effect, or there is no length to pad
            to.
    """
    if padding not in (False, "do_not_pad", True, "longest", "max_length"):
        raise ValueError(f'padding={padding!r}: it must be False, True, "longest" or "max_length"')
    if truncation not in (False, "do_not_truncate", True, "longest_first"):
        raise ValueError(f'truncation={truncation!r}: it must be False, True or "longest_first"')
    cuts, fills = truncation in (True, "longest_first"), padding == "max_length"
    if max_length is None:
        max_length = model_max_length
    elif not cuts and not fills:
        raise ValueError(
            f"max_length={max_length} would have no effect: pass truncation=True to cut texts to it, or "
            'padding="max_length" to pad them to it'
        )
    max_length = whole_number("max_length", max_length, "a number of tokens", 1)
    if fills and max_length >= UNLIMITED:
        raise ValueError("padding='max_length' has no length: pass max_length, or set model_max_length")
    if cuts and max_length >= UNLIMITED:
        warnings.warn(f"truncation={truncation!r} cuts nothing: pass max_length, or set model_max_length", stacklevel=3)
    padded_length = max_length if fills else 0 if padding in (True, "longest") else None
    return max_length if cuts and max_length < UNLIMITED else None, padded_length


def cut_row(row: list[int], length: int | None, side: str, kept: int) -> list[int]:
    """Return a row without the ids beyond `length`, taken from its `side`. Its first `kept` ids always stay.

    >>> cut_row([1, 264, 287, 277], 3, "right", kept=1), cut_row([1, 264, 287, 277], 3, "left", kept=1)
    ([1, 264, 287], [1, 287, 277])
    """
    excess = 0 if length is None else max(len(row) - length, 0)
    if side == "left":
        return row[:kept] + row[kept + excess :]
    return row[: len(row) - excess]


def as_batch(
    rows: Sequence[Sequence[int]], padded_length: int | None, pad_id: int, side: str, return_tensors: str | None
) -> TokenizerOutput:
    """Return rows of ids and their attention mask, with pads on `side` where `padded_length` is not None.

    A length of 0 is that of the longest row. With `return_tensors="pt"` both are `(B, T)` int64 tensors.

    Raises:
        ValueError: `return_tensors` is neither "pt" nor None, or rows of different lengths cannot form one tensor.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f'return_tensors={return_tensors!r}: it must be "pt" or None')
    ids, mask, longest = [], [], max(map(len, rows))
    for row in rows:
        T = len(row) if padded_length is None else padded_length or longest
        pads = T - len(row)  # below 0 where a row is longer; a list times that is empty
        ids.append([pad_id] * pads + list(row) if side == "left" else list(row) + [pad_id] * pads)
        mask.append([0] * pads + [1] * len(row) if side == "left" else [1] * len(row) + [0] * pads)
    if return_tensors is None:
        return TokenizerOutput(input_ids=ids, attention_mask=mask)
    lengths = [len(row) for row in ids]
    if len(set(lengths)) > 1:
        remedy = "padding=True" if padded_length is None else "truncation=True too, to cut the longer ones"
        raise ValueError(f"texts have {lengths} tokens and cannot form one tensor: pass {remedy}")
    return TokenizerOutput(
        input_ids=torch.tensor(ids, dtype=torch.long, device="cpu"),
        attention_mask=torch.tensor(mask, dtype=torch.long, device="cpu"),
    )
