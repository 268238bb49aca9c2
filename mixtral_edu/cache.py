"""The rolling cache: keys and values of past tokens, in a ring of fixed size when attention has a window.

A query sees at most W positions, so W slots per layer are enough for a text of any length. Position p lies in slot
p mod W: each new token overwrites the one that has just left the window.

>>> slots = [None] * 4
>>> for position in range(6):
...     slots[position % 4] = position
>>> slots
[4, 5, 2, 3]
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixtral_edu.config import MixtralConfig
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions

_FIRST_SLOTS = 64  # of a cache without window and without max_length, which doubles when it is full


class CacheView(NamedTuple):
    """What a cache holds at one moment, for figures and tests.

    `positions` (B, slots): the position stored in each slot, -1 where the slot is empty. `write_slot` (B,): where each
    row's next token goes (past the last slot where a cache without window is about to grow). `keys`, `values`
    (B, Hkv, slots, Dh): a copy of one layer's content, in slot order.
    """

    positions: Tensor
    write_slot: Tensor
    keys: Tensor
    values: Tensor


class RollingKVCache:
    """Keys and values of all layers for a batch of texts, each row with positions of its own.

    With a window of W there are W slots per layer, from the start to the end. Without one there are `max_length` slots,
    or, if that is not given either, as many as needed, doubling each time they are full. Padding is never stored:
    position p counts a row's columns from its first real token on, so rows of one batch may write different slots.
    What is stored carries no gradient, and decoding in place needs `torch.no_grad()`, as `generate` has it; where
    gradients are on, each new token copies the keys that it sees.

    A model's forward pass opens a `step` for its new tokens, calls `step.update` in each layer and `step.commit` at the
    end.

    Args:
        config: gives the number of layers, key-value heads, head size and window.
        batch_size: B.
        max_length: most columns (padding counted) that a cache without window accepts.
        device: where the slots live; the CPU if None.
        dtype: their dtype, that of the model's activations; `config.dtype` or float32 if None.

    Raises:
        MemoryError: the device has no room for so many slots; on a CUDA device it is a `torch.OutOfMemoryError`.

    Source: Mistral 7B, arXiv 2310.06825, section 2 (rolling buffer cache, pre-fill and chunking).
    """

    def __init__(
        self,
        config: MixtralConfig,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: it must be at least 1")
        self.window = config.sliding_window
        self.max_length = None if self.window else max_length
        slots = self.window or max_length or _FIRST_SLOTS
        dtype = dtype or getattr(torch, config.dtype or "float32")
        shape = (batch_size, config.num_key_value_heads, slots, config.head_dim)
        layers = range(config.num_hidden_layers)
        device = torch.empty(0, dtype=dtype, device=device).device  # raises what is wrong with the device itself
        try:
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
            self.positions = torch.full((batch_size, slots), NO_POSITION, device=device)  # (B, slots)
            self.next_position = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,)
        except RuntimeError as error:  # too little memory, or more bytes than torch can count
            needed = 2 * len(layers) * prod(shape) * dtype.itemsize
            name = "sliding_window" if self.window else "max_length" if max_length else "slots"
            kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else MemoryError
            raise kind(
                f"{name}={slots} and batch_size={batch_size}: a cache of these sizes needs {needed / 1e9:.3g} GB, more "
                f"than {device} has free; make one of them smaller"
            ) from error
        self.seen = 0  # columns so far, padding counted
        self.padded = False  # whether any of them may have been padding
        self.half_written = False  # whether a step has written and not been committed
        self.static = False  # whether a single new token looks at all slots, empty ones masked: no shape ever changes

    @property
    def num_slots(self) -> int:
        """Slots per layer: W with a window, for good."""
        return self.positions.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all layers' keys and values, in bytes."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def get_seq_length(self) -> int:
        """Columns seen so far, padding counted, also those that have left the window."""
        return self.seen

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.positions = torch.full_like(self.positions, NO_POSITION)
        self.next_position = torch.zeros_like(self.next_position)
        self.seen, self.padded, self.half_written = 0, False, False

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

    def view(self, layer_idx: int = 0) -> CacheView:
        """Show which position lies in which slot, and what that layer has stored there."""
        write_slot = self.next_position % self.num_slots if self.window else self.next_position
        return CacheView(self.positions, write_slot, self.keys[layer_idx].clone(), self.values[layer_idx].clone())

    def step(self, num_tokens: int, real: Tensor | None = None) -> "CacheStep":
        """Give each of T new tokens its position and its slot; nothing is stored yet.

        Args:
            num_tokens: T, the new columns.
            real: (B, T) booleans, False for padding; None if there is none.

        Raises:
            RuntimeError: the last step failed on its way, so that layers hold different tokens.
            ValueError: the cache has a `max_length` and would exceed it.
        """
        if self.half_written:
            raise RuntimeError("past_key_values: a forward pass failed half-way and left layers with different tokens; "
                               "call its reset() and start again")  # fmt: skip
        self.make_room(num_tokens)
        return CacheStep(self, num_tokens, real)

    def make_room(self, num_tokens: int) -> None:
        """Let a cache without window grow, if it has to, for so many more columns.

        Raises:
            ValueError: it has a `max_length`, and would exceed it.
        """
        columns = self.seen + num_tokens
        if self.window is not None or columns <= self.num_slots:
            return
        if self.max_length is not None:
            raise ValueError(f"max_length={self.max_length}: the cache would need {columns} columns")
        more = self.num_slots
        while self.num_slots + more < columns:
            more = 2 * more + self.num_slots  # doubling, and doubling again
        # Without a window position p is slot p, before and after: new slots go to the end.
        self.keys = [pad(k, (0, 0, 0, more)) for k in self.keys]
        self.values = [pad(v, (0, 0, 0, more)) for v in self.values]
        self.positions = pad(self.positions, (0, more), value=NO_POSITION)


class CacheStep:
    """One forward pass's use of a cache.

    A single new token is written into its slot first and then sees the slots just as they lie. Several new tokens see
    the older keys in time order followed by their own, and are written last: writing first would evict keys that the
    first of them still see. So does a single one when gradients are wanted, as what is stored carries none.

    `visibility` is what the new queries may see among the keys that `update` returns.
    """

    def __init__(self, cache: RollingKVCache, num_tokens: int, real: Tensor | None):
        self.cache, self.num_tokens = cache, num_tokens
        self.padded = cache.padded or real is not None
        if real is None:
            columns = cache.next_position[:, None] + torch.arange(num_tokens, device=cache.positions.device)  # (B, T)
            query_positions = columns
        else:
            columns = row_positions(real, cache.next_position)
            query_positions = columns.masked_fill(~real, NO_POSITION)
        # Of a long chunk only the last tokens can matter later, at most one a slot.
        kept = min(num_tokens, cache.num_slots)
        self._slots = columns[:, -kept:] % cache.num_slots  # (B, kept)
        self._real = None if real is None else real[:, -kept:]
        self._next_position = columns[:, -1] + 1
        self._positions = cache.positions.clone()
        self._write(self._positions[:, None, :, None], query_positions[:, None, :, None])

        self._in_place = num_tokens == 1 and not torch.is_grad_enabled()
        if self._in_place:
            self._readable = cache.num_slots if cache.static else min(cache.seen + 1, cache.num_slots)
            key_positions = self._positions[:, : self._readable]
        else:
            older = min(cache.seen, cache.num_slots if cache.window is None else cache.window - 1)
            in_time_order = cache.positions.argsort(dim=1, stable=True)  # empty slots first
            self._older_slots = in_time_order[:, cache.num_slots - older :]  # (B, older)
            key_positions = torch.cat((cache.positions.gather(1, self._older_slots), query_positions), dim=1)
        rows = slice(None) if self.padded else slice(1)  # without padding all rows are alike
        may_be_empty = self._in_place and cache.static
        self.visibility = Visibility(
            query_positions[rows], key_positions[rows], cache.window, padded=self.padded or may_be_empty
        )

    def update(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys (rotated) and values, and return all that the new queries may look at.

        Args and returns: k and v are (B, Hkv, T, Dh); what comes back is (B, Hkv, S, Dh).
        """
        keys, values = self.cache.keys[layer_idx], self.cache.values[layer_idx]
        self.cache.half_written = True
        if self._in_place:
            self._write(keys, k)
            self._write(values, v)
            return keys[:, :, : self._readable], values[:, :, : self._readable]
        seen = self._with_older(keys, k), self._with_older(values, v)
        self._write(keys, k)
        self._write(values, v)
        return seen

    def commit(self) -> None:
        """Close the step: the new tokens now belong to the cache's past."""
        self.cache.positions, self.cache.next_position = self._positions, self._next_position
        self.cache.seen += self.num_tokens
        self.cache.padded, self.cache.half_written = self.padded, False

    def _write(self, stored: Tensor, new: Tensor) -> None:
        """Write the last of new (B, H, T, Dh) into their slots of stored (B, H, slots, Dh), leaving padding out."""
        kept = self._slots.shape[1]
        new = new.detach()[:, :, -kept:].to(stored.dtype)  # (B, H, kept, Dh)
        slots = self._slots[:, None, :, None].expand_as(new)
        if self._real is not None:
            new = torch.where(self._real[:, None, :, None], new, stored.gather(2, slots))
        stored.scatter_(2, slots, new)

    def _with_older(self, stored: Tensor, new: Tensor) -> Tensor:
        """Older entries in time order, then new: (B, Hkv, older + T, Dh)."""
        B, H, _, Dh = new.shape
        slots = self._older_slots[:, None, :, None].expand(B, H, -1, Dh)
        return torch.cat((stored.gather(2, slots), new), dim=2) if slots.shape[2] else new
