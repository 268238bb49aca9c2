"""Which token sees which where a call says more than the causal rule: by a mask of its own, or packed texts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_edu.cache import RollingCache
from mixtral_edu.masks import Visibility

# A score that is lowered by this much gets the weight 0, as exp(-104) is 0 in float32. Masks in use hold -10,000 (which
# bfloat16 rounds to -9,984), -1e9, the least number of a dtype, or -inf.
_HIDES = -9_000


@dataclass(frozen=True)
class GivenMask(Visibility):
    """A mask of the caller's own, `given` (B or 1, Hq or 1, T, S), True where a query may attend.

    It says everything, so there is no window; positions serve the rotary embedding only.
    """

    given: Tensor | None = None

    all_visible = plain_causal = False  # its values are not looked at

    @property
    def mask(self) -> Tensor:
        """The given one."""
        return self.given


def visibility_of(
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: RollingCache | None,
    num_tokens: int,
    window: int | None,
    device: torch.device,
) -> Visibility | None:
    """Return which key each of T new tokens sees if the arguments say so; None for the causal rule.

    Args:
        attention_mask: of four dimensions, its own rule; of two, what is padding.
        position_ids: (B or 1, T), which restart where another text begins.
        cache: what is read and extended, if anything.
        num_tokens: T.
        window: W, or None.
        device: of the tokens.

    Raises:
        ValueError: what is asked for cannot be done; the message says why.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return given_mask(attention_mask.to(device), cache, num_tokens)
    if position_ids is None or num_tokens == 1:
        return None
    if attention_mask is None and cache is None:
        return packed_rows(position_ids, window)
    _refuse_restarts(position_ids, attention_mask, cache)
    return None


def given_mask(attention_mask: Tensor, cache: RollingCache | None, num_tokens: int) -> GivenMask:
    """Return the rule that a mask (B or 1, Hq or 1, T, S) states: booleans, or 0 and -inf to be added to scores.

    Values of a floating-point mask are looked at, which waits for a GPU.

    Raises:
        ValueError: the mask holds other numbers, or its columns are not the keys that a cache holds.
    """
    past = 0 if cache is None else cache.seen
    if past and (cache.padded or cache.window is not None and past >= cache.window):
        why = "may have left out padding" if cache.padded else f"has a window of {cache.window}, which is full"
        raise ValueError(
            f"attention_mask has four dimensions and past_key_values (cache) {why}: its keys are not the "
            f"{past + num_tokens} columns of the mask; give a mask of two dimensions, or the whole text without a cache"
        )
    positions = torch.arange(past + num_tokens, device=attention_mask.device)[None]  # (1, S)
    return GivenMask(positions[:, past:], positions, given=_shown(attention_mask))


def _shown(mask: Tensor) -> Tensor:
    """Return where a mask, boolean or to be added to scores, lets a query attend."""
    if mask.dtype == torch.bool:
        return mask
    if not _may_look(mask):
        raise ValueError(
            f"attention_mask of four dimensions is {mask.dtype}, whose values cannot be looked at while compiling or "
            "recording; it must be boolean, True where a query may attend"
        )
    shown, fine = mask == 0, (mask == 0) | (mask <= _HIDES)
    if not fine.all():
        raise ValueError(
            f"attention_mask of four dimensions holds {mask[~fine][0].item()}; it must hold 0 where a query may attend "
            "and -inf, or the least number of its dtype, where not, or be boolean: no other number is added to scores"
        )
    return shown


def packed_rows(position_ids: Tensor, window: int | None) -> Visibility | None:
    """Return the rule for texts that stand end to end in a row, each seeing itself only; None if there is one per row.

    A text ends where the next position is not the previous one plus 1, as in transformers. Whether one does is looked
    at, which waits for a GPU.

    Here texts are set so far apart that no window reaches from one to the next: of 0 1 2 0 1 and a window of 3, the
    mask's positions are 0 1 2 6 7. Without a window, the length of the row is one.
    """
    T = position_ids.shape[1]
    ends = position_ids[:, 1:] != position_ids[:, :-1] + 1  # (B or 1, T - 1)
    if _may_look(ends) and not ends.any():
        return None
    reach = T if window is None else window
    text_idx = F.pad(ends.cumsum(1), (1, 0))  # (B or 1, T)
    positions = torch.arange(T, device=ends.device) + reach * text_idx
    return Visibility(positions, positions, reach, padded=True)  # as with padding, columns do not tell distances


def _refuse_restarts(position_ids: Tensor, padding: Tensor | None, cache: RollingCache | None) -> None:
    """Raise a ValueError where positions of real tokens fall: what should keep the texts apart would not.

    Positions that rise by other steps, or stand still, mark no texts here.
    """
    if not _may_look(position_ids):
        return
    falls = position_ids[:, 1:] < position_ids[:, :-1]  # (B or 1, T - 1)
    if padding is not None:
        real = padding[:, -position_ids.shape[1] :].to(falls.device) != 0  # (B, T)
        falls = falls & real[:, 1:] & real[:, :-1]
    if falls.any():
        row, column = falls.nonzero()[0].tolist()
        before, after = position_ids.expand(len(falls), -1)[row, column : column + 2].tolist()
        given = " and ".join(["attention_mask"] * (padding is not None) + ["a cache"] * (cache is not None))
        raise ValueError(
            f"position_ids fall from {before} to {after} in row {row}, as where another text begins, and with {given} "
            "texts in a row are not kept apart: leave attention_mask out and give use_cache=False, or give the "
            "attention_mask (B, 1, T, T) that you mean"
        )


def _may_look(tensor: Tensor) -> bool:
    """Whether there are values to look at, even if that waits for a GPU: not while compiling or recording a graph."""
    recording = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (tensor.is_meta or recording or torch.compiler.is_compiling())
