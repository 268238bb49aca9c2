"""`RollingKVCache`: the textbook's rolling cache, with checks of what it is asked for."""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from mixtral_edu.cache import FIRST_SLOTS, CacheStep, RollingCache
from mixtral_edu.config import Config


class CacheView(NamedTuple):
    """What a cache holds at one moment, for figures and tests.

    `positions` (B, slots): the position in each slot, -1 where it is empty. `write_slot` (B,): where each row's next
    token goes. `keys`, `values` (B, Hkv, slots, Dh): a copy of one layer's content, in slot order.
    """

    positions: Tensor
    write_slot: Tensor
    keys: Tensor
    values: Tensor


class SavedSlots(NamedTuple):
    """What slots (B, n) held before they were written: positions (B, n), and (B, Hkv, n, Dh) of each layer."""

    slots: Tensor
    positions: Tensor
    contents: list[Tensor]


class RollingKVCache(RollingCache):
    """Keys and values of all layers for a batch of texts, each row with positions of its own.

    With a window of W there are W slots per layer, from the start to the end. Without one there are `max_length` slots,
    or, if that is not given either, as many as needed, doubling each time they are full. Padding is never stored:
    position p counts a row's columns from its first real token on, so rows of one batch may write different slots.
    What is stored carries no gradient, and decoding in place needs `torch.no_grad()`, as `generate` has it; where
    gradients are on, each new token copies the keys that it sees.

    Args:
        config: gives the number of layers, key-value heads, head size and window.
        batch_size: B.
        max_length: most columns (padding counted) that a cache without window accepts.
        device: where the slots live; the CPU if None.
        dtype: their dtype, that of the model's activations; `config.dtype` or float32 if None.

    Raises:
        MemoryError: too little memory for this many slots; on a CUDA device it is a `torch.OutOfMemoryError`.

    Source: Mistral 7B, arXiv 2310.06825, section 2 (rolling buffer cache, pre-fill and chunking).
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: it must be at least 1")
        dtype = dtype or getattr(torch, config.dtype or "float32")
        device = torch.empty(0, dtype=dtype, device=device).device  # raises what is wrong with the device itself
        try:
            super().__init__(config, batch_size, max_length, device, dtype)
        except RuntimeError as error:  # too little memory, or more bytes than torch can count
            slots = self.window or max_length or FIRST_SLOTS
            name = "sliding_window" if self.window else "max_length" if max_length else "slots"
            sizes = (batch_size, config.num_key_value_heads, slots, config.head_dim, config.num_hidden_layers)
            kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else MemoryError
            needed = f"{2 * prod(sizes) * dtype.itemsize / 1e9:.3g} GB, more than {device} has free"
            raise kind(
                f"{name}={slots} and batch_size={batch_size}: a cache of these sizes needs {needed}; make one of them "
                "smaller"
            ) from error

    @property
    def num_bytes(self) -> int:
        """Memory of all layers' keys and values, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def get_seq_length(self) -> int:
        """Columns seen so far, padding counted, also those that have left the window."""
        return self.seen

    def step(self, num_tokens: int, real: Tensor | None = None) -> CacheStep:
        """Give each of T new columns its position and slot, as `RollingCache.step` does.

        Raises:
            RuntimeError: the last step failed on its way, so that layers hold different tokens.
            ValueError: the cache has a `max_length` and would exceed it.
        """
        if self.half_written:
            raise RuntimeError("past_key_values: a forward pass failed half-way and left layers with different tokens; "
                               "call its reset() and start again")  # fmt: skip
        return super().step(num_tokens, real)

    def make_room(self, num_tokens: int) -> None:
        """Let a cache without window grow, if `num_tokens` more columns do not fit.

        Raises:
            ValueError: it has a `max_length`, and would exceed it.
        """
        columns = self.seen + num_tokens
        if self.max_length is not None and columns > self.max_length:
            raise ValueError(f"max_length={self.max_length}: the cache would need {columns} columns")
        super().make_room(num_tokens)

    def view(self, layer_idx: int = 0) -> CacheView:
        """Show which position is in which slot, and what that layer has stored there."""
        write_slot = self.next_position % self.num_slots if self.window else self.next_position
        return CacheView(self.positions, write_slot, self.keys[layer_idx].clone(), self.values[layer_idx].clone())

    def reorder_cache(self, rows: Tensor) -> None:
        """Let row i hold what row `rows[i]` held; a row may be taken several times, or not at all."""
        self.keys, self.values = [k[rows] for k in self.keys], [v[rows] for v in self.values]
        self.positions, self.next_position = self.positions[rows], self.next_position[rows]

    def save_slots(self, num_tokens: int) -> SavedSlots:
        """Return what the slots of the next T columns hold, at most one column per slot, for `take_back`."""
        self.make_room(num_tokens)
        next_columns = torch.arange(num_tokens, device=self.positions.device)
        slots = (self.next_position[:, None] + next_columns) % self.num_slots  # (B, T)
        contents = [stored.gather(2, self._in_each_head(slots, stored)) for stored in (*self.keys, *self.values)]
        return SavedSlots(slots, self.positions.gather(1, slots), contents)

    def take_back(self, saved: SavedSlots, num_tokens: int) -> None:
        """Forget the last n of the columns whose slots were saved; none of them may have been padding."""
        slots = saved.slots[:, -num_tokens:]  # (B, n)
        self.positions = self.positions.scatter(1, slots, saved.positions[:, -num_tokens:])
        for stored, content in zip((*self.keys, *self.values), saved.contents, strict=True):
            stored.scatter_(2, self._in_each_head(slots, stored), content[:, :, -num_tokens:])
        self.next_position = self.next_position - num_tokens
        self.seen -= num_tokens

    @staticmethod
    def _in_each_head(slots: Tensor, stored: Tensor) -> Tensor:
        """Slots (B, n) as an index (B, Hkv, n, Dh) of stored keys or values."""
        return slots[:, None, :, None].expand(-1, stored.shape[1], -1, stored.shape[3])

    def copy_(self, other: "RollingKVCache") -> None:
        """Take over what another cache holds, into the memory that is here.

        Raises:
            ValueError: it has other sizes.
        """
        mine, theirs = ([*c.keys, *c.values, c.positions, c.next_position] for c in (self, other))
        if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs] or self.window != other.window:
            raise ValueError(
                f"other has {len(other.keys)} layers of keys {tuple(other.keys[0].shape)} and window={other.window}; "
                f"it must have {len(self.keys)} of {tuple(self.keys[0].shape)} and window={self.window}"
            )
        for tensor, content in zip(mine, theirs, strict=True):
            tensor.copy_(content)
        self.seen, self.padded, self.half_written = other.seen, other.padded, other.half_written
