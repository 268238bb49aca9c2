"""Which query may attend to which key: boolean masks as pure functions of positions, True for "may attend".

A position is a token's place in its row, counted from 0 at the row's first real token. Padding, which fills up short
rows, has position -1. So has an empty slot of the KV cache, which stores keys and values of earlier tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NO_POSITION = -1


def causal_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """A query at position i sees keys at j <= i, none of the future. Positions (..., T) and (..., S) give (..., T, S).

    >>> causal_mask(torch.arange(3), torch.arange(3)).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return key_positions[..., None, :] <= query_positions[..., :, None]


def window_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """A query at position i sees no key older than the last W, its own included: i - j < W. Shapes as in `causal_mask`.

    >>> positions = torch.arange(4)
    >>> (causal_mask(positions, positions) & window_mask(positions, positions, window=2)).int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    return query_positions[..., :, None] - key_positions[..., None, :] < window


def padding_mask(key_positions: Tensor) -> Tensor:
    """No query sees padding or an empty slot: (..., S) gives (..., 1, S), which broadcasts over the T queries."""
    return (key_positions != NO_POSITION)[..., None, :]


def attention_mask(query_positions: Tensor, key_positions: Tensor, window: int | None = None) -> Tensor:
    """Combine all rules: causal, within the window if there is one, and no padding.

    Args:
        query_positions: (B, T), `NO_POSITION` for padding; such a query sees nothing.
        key_positions: (B, S), in any order, `NO_POSITION` for padding and empty slots.
        window: W, how many positions a query may see, its own included; None for all up to its own.

    Returns:
        (B, T, S), True where the query may attend to the key.
    """
    mask = causal_mask(query_positions, key_positions) & padding_mask(key_positions)
    if window is not None:
        mask = mask & window_mask(query_positions, key_positions, window)
    return mask


def row_positions(real: Tensor, next_position: Tensor) -> Tensor:
    """Number the columns of new tokens in each row, from 0 at its first real token or onwards from its earlier ones.

    Args:
        real: (B, T) booleans, False for padding.
        next_position: (B,), the position after the row's earlier columns; 0 if it has had no real token yet.

    Returns:
        (B, T), consecutive in each row, so that distances between positions are distances between columns. Padding
        is numbered too: below 0 before a row's first real token.

    >>> row_positions(torch.tensor([[False, True, True], [True, True, True]]), torch.tensor([0, 5]))
    tensor([[-1,  0,  1],
            [ 5,  6,  7]])
    """
    leading_pads = (real.cumsum(1) == 0).sum(1)  # (B,)
    start = torch.where(next_position == 0, -leading_pads, next_position)  # (B,)
    return start[:, None] + torch.arange(real.shape[1], device=real.device)


@dataclass(frozen=True)
class Visibility:
    """What attention needs to know about positions, computed once per forward pass and shared by all layers.

    Attributes:
        query_positions: (B, T), or (1, T) where all rows are alike.
        key_positions: (B, S) or (1, S), one per key. Keys beyond the T new ones come from a cache.
        window: W, or None.
        padded: whether some positions may be `NO_POSITION`.
        shared: what has been derived from the positions so far, by name; see `once`.

    Unless there is a single query, columns are in time order and the last T keys are the queries' own tokens:
    query column t is key column S - T + t. A single query takes its keys in any order, as attention sums over them.
    """

    query_positions: Tensor
    key_positions: Tensor
    window: int | None = None
    padded: bool = False
    shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def all_visible(self) -> bool:
        """Whether no mask is needed: a single query, no padding, and no more keys than the window holds."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == 1 and not self.padded and (self.window is None or S <= self.window)

    @property
    def plain_causal(self) -> bool:
        """Whether a kernel's built-in causal mask is enough: no cached keys, no padding, at most W tokens."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == S and not self.padded and (self.window is None or T <= self.window)

    @property
    def mask(self) -> Tensor:
        """The mask of all rules, (B or 1, 1, T, S), which broadcasts over heads."""
        return self.once("mask", lambda: attention_mask(self.query_positions, self.key_positions, self.window)[:, None])

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute()`, which runs only the first time that `name` is asked for."""
        if name not in self.shared:
            self.shared[name] = compute()
        return self.shared[name]
