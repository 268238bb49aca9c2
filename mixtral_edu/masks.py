"""Who may look at whom: boolean masks as pure functions of positions; True means "may attend".

A position is the place of a token in its own row, counted from the row's first real token. Padding has no place:
its position is -1, and so is that of a cache slot that holds nothing yet.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

NO_POSITION = -1


class lazy:  # noqa: N801, a decorator
    """Compute an attribute when it is first asked for: `functools.cached_property` without the lock of Python 3.11.

    `torch.compile` cannot look into a lock.
    """

    def __init__(self, compute: Callable[[Any], Any]):
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


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
class Packing:
    """The tokens of a padded batch that take part, end to end, as kernels for rows of unequal length take them.

    Rows without a real query are left out, and so are keys that no query of their row may see.

    Attributes:
        queries, keys: where the tokens stand in the batch: rows and columns, two tensors (Nq,) and two (Nk,).
        query_starts, key_starts: (rows + 1,) int32, where each row's tokens start among them, and the end.
        most_queries, most_keys: the most in one row.
        closes_gaps: somewhere padding was left out between tokens so far apart that a window tells them apart: packed,
            they are nearer to each other than in their row.
    """

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int
    closes_gaps: bool


@dataclass(frozen=True)
class Visibility:
    """Everything an attention backend has to know about positions, computed once and shared by all layers.

    Attributes:
        query_positions: (B, T), or (1, T) where all rows are alike.
        key_positions: (B, S) or (1, S), aligned with the key columns. More keys than queries come from a cache.
        window: W, or None.
        padded: some positions may be `NO_POSITION`.

    Unless there is a single query, columns are in time order and the last T keys are the queries' own tokens:
    query column t is key column S - T + t. A single query may meet its keys in any order, as softmax does not mind.
    """

    query_positions: Tensor
    key_positions: Tensor
    window: int | None = None
    padded: bool = False

    @property
    def all_visible(self) -> bool:
        """Whether each query may see each key, so that no mask is needed: one query, and no key that is too old."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == 1 and not self.padded and (self.window is None or S <= self.window)

    @property
    def plain_causal(self) -> bool:
        """Whether a kernel's own causal rule says it all: no cache content, no padding, no window in reach."""
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        return T == S and not self.padded and (self.window is None or T <= self.window)

    @lazy
    def mask(self) -> Tensor:
        """The whole mask: (B or 1, 1, T, S), broadcast over heads."""
        return attention_mask(self.query_positions, self.key_positions, self.window)[:, None]

    @lazy
    def packing(self) -> Packing | None:
        """What takes part, end to end; None if that is each query and key. Waits for the device, once for all layers.

        >>> keys = torch.tensor([[-1, -1, 0, 1], [0, 1, 2, 3], [0, 1, 2, -1]])
        >>> packing = Visibility(keys[:, 2:], keys, window=2, padded=True).packing
        >>> packing.query_starts.tolist(), packing.key_starts.tolist()
        ([0, 2, 4, 5], [0, 2, 5, 7])
        """
        queries, keys = self.query_positions, self.key_positions  # (B, T), (B, S)
        real = queries != NO_POSITION
        last = queries.amax(1, keepdim=True)  # (B, 1), NO_POSITION in a row without a query
        first = torch.where(real, queries, last).amin(1, keepdim=True)  # (B, 1)
        seen = (keys != NO_POSITION) & (keys <= last)
        gapless = torch.ones_like(real[:, 0])  # (B,)
        if self.window is not None:
            seen = seen & (keys > first - self.window)
            span = (last - torch.where(seen, keys, last)).amax(1) + 1  # (B,), from the oldest key to the last query
            gapless = (span == seen.sum(1)) | (span <= self.window)
        num_queries, num_keys, gapless = torch.stack((real.sum(1), seen.sum(1), gapless)).tolist()

        (B, T), S = real.shape, seen.shape[1]
        closes_gaps = not all(gapless)
        if num_queries == [T] * B and num_keys == [S] * B and not closes_gaps:
            return None
        num_queries = [count for count in num_queries if count]
        num_keys = [count for count in num_keys if count]
        return Packing(
            queries=real.nonzero(as_tuple=True),
            keys=seen.nonzero(as_tuple=True),
            query_starts=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32, device=real.device),
            key_starts=torch.tensor([0, *accumulate(num_keys)], dtype=torch.int32, device=real.device),
            most_queries=max(num_queries, default=0),
            most_keys=max(num_keys, default=0),
            closes_gaps=closes_gaps,
        )

    def blocks(self, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Cut the queries into blocks, each with the few keys that its window reaches.

        Yields:
            The block's query columns, its key columns (at most W - 1 + size of them), and the mask between the two,
            (B or 1, 1, t, s). All blocks together cost O(T·W) where the whole mask costs O(T·S).
        """
        T, S = self.query_positions.shape[1], self.key_positions.shape[1]
        for start in range(0, T, size):
            queries = slice(start, min(start + size, T))
            keys = slice(max(0, S - T + queries.start - (self.window - 1)), S - T + queries.stop)
            mask = attention_mask(self.query_positions[:, queries], self.key_positions[:, keys], self.window)
            yield queries, keys, mask[:, None]
