"""Who may look at whom: boolean masks as pure functions of positions; True means "may attend".

A position is the place of a token in its own row, counted from the row's first real token. Padding has no place:
its position is -1, and so is that of a cache slot that holds nothing yet.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NO_POSITION = -1


def causal_mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """No query sees the future: j <= i. Positions (..., T) and (..., S) give (..., T, S).

    >>> causal_mask(torch.arange(3), torch.arange(3)).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return key_positions[..., None, :] <= query_positions[..., :, None]


def window_mask(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    """A query sees nothing older than W positions, itself counted: i - j < W. Shapes as in `causal_mask`.

    >>> positions = torch.arange(4)
    >>> (causal_mask(positions, positions) & window_mask(positions, positions, window=2)).int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    return query_positions[..., :, None] - key_positions[..., None, :] < window


def padding_mask(key_positions: Tensor) -> Tensor:
    """Nobody sees padding or an empty slot: (..., S) gives (..., 1, S), to be combined with the other masks."""
    return (key_positions != NO_POSITION)[..., None, :]


def attention_mask(query_positions: Tensor, key_positions: Tensor, window: int | None = None) -> Tensor:
    """All rules together: causal, within the window if there is one, and no padding.

    Args:
        query_positions: (B, T), `NO_POSITION` for padding; such a query sees nothing.
        key_positions: (B, S), in any order, `NO_POSITION` for padding and empty slots.
        window: W, the number of positions that a query may see, its own included; None for all.

    Returns:
        (B, T, S), True where the query may attend to the key.
    """
    mask = causal_mask(query_positions, key_positions) & padding_mask(key_positions)
    if window is not None:
        mask = mask & window_mask(query_positions, key_positions, window)
    return mask


def row_positions(real: Tensor, next_position: Tensor) -> Tensor:
    """Number the columns of new tokens in each row, so that the row's first real token has position 0.

    Args:
        real: (B, T) booleans, False for padding.
        next_position: (B,), the position that follows what the row has seen; 0 for a row without a real token so far.

    Returns:
        (B, T) consecutive integers. Padding is numbered like its neighbours (so the columns before a row's first real
        token are negative), which keeps distance in the row equal to distance in the tensor.

    >>> row_positions(torch.tensor([[False, True, True], [True, True, True]]), torch.tensor([0, 5]))
    tensor([[-1,  0,  1],
            [ 5,  6,  7]])
    """
    leading_pads = (real.cumsum(1) == 0).sum(1)  # (B,)
    start = torch.where(next_position == 0, -leading_pads, next_position)  # (B,)
    return start[:, None] + torch.arange(real.shape[1], device=real.device)


@dataclass(frozen=True)
class Visibility:
    """All that attention has to know about positions, computed once and shared by all layers.

    Attributes:
        query_positions: (B, T), or (1, T) where all rows are alike.
        key_positions: (B, S) or (1, S), aligned with the key columns. More keys than queries come from a cache.
        window: W, or None.
        padded: some positions may be `NO_POSITION`.
        shared: what has been derived from the positions so far, by name.

    Unless there is a single query, columns are in time order and the last T keys are the queries' own tokens:
    query column t is key column S - T + t. A single query may meet its keys in any order: softmax is a sum.
    """

    query_positions: Tensor
    key_positions: Tensor
    window: int | None = None
    padded: bool = False
    shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def all_visible(self) -> bool:
        """Whether each query may see each key, so that no mask is needed: one query, and no key that is too old."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == 1 and not self.padded and (self.window is None or S <= self.window)

    @property
    def plain_causal(self) -> bool:
        """Whether a kernel's built-in causal mask is enough: no cache content, no padding, no window in reach."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == S and not self.padded and (self.window is None or T <= self.window)

    @property
    def mask(self) -> Tensor:
        """The whole mask: (B or 1, 1, T, S), broadcast over heads."""
        return self.once("mask", lambda: attention_mask(self.query_positions, self.key_positions, self.window)[:, None])

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` gave when this name was first asked for: all layers share it."""
        if name not in self.shared:
            self.shared[name] = compute()
        return self.shared[name]
