"""The rolling cache: keys and values of past tokens, in a ring of fixed size when attention has a window.

A query sees at most W positions, so W slots per layer are enough for a text of any length. Position p is stored in slot
p mod W: each new token overwrites the one that has just left the window.

>>> slots = [None] * 4
>>> for position in range(6):
...     slots[position % 4] = position
>>> slots
[4, 5, 2, 3]

Source: Mistral 7B, arXiv 2310.06825, section 2 (rolling buffer cache, pre-fill and chunking).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixtral_edu.config import Config
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions

FIRST_SLOTS = 64  # of a cache that has neither window nor max_length


class RollingCache:
    """The KV cache: keys and values of all layers for a batch of texts, each row with positions of its own.

    With a window of W there are W slots per layer, from the start to the end. Without one there are `max_length` slots
    at first, and twice as many each time they are full. Padding is never stored: position p counts a row's columns from
    its first real token on, so rows of one batch may write different slots. What is stored carries no gradient.

    A model's forward pass opens a `step` for its new tokens, calls `step.update` in each layer and `step.commit` at the
    end. Decoding in place needs `torch.no_grad()`. `dtype` is that of the model's activations: float32 if None.
    """

    def __init__(
        self, config: Config, batch_size: int, max_length: int | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        self.window = config.sliding_window
        self.max_length = None if self.window else max_length
        slots = self.window or max_length or FIRST_SLOTS
        dtype = dtype or torch.float32
        shape, L = (batch_size, config.num_key_value_heads, slots, config.head_dim), config.num_hidden_layers
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(L)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(L)]
        self.positions = torch.full((batch_size, slots), NO_POSITION, device=device)  # (B, slots)
        self.next_position = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,)
        self.seen = 0  # columns so far, padding counted
        self.padded = False  # whether any of them may have been padding
        self.half_written = False  # whether a step has written and not been committed
        self.static = False  # whether a single new token looks at all slots, empty ones masked: no shape ever changes

    @property
    def num_slots(self) -> int:
        """Slots per layer: W with a window, and then constant."""
        return self.positions.shape[1]

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.positions = torch.full_like(self.positions, NO_POSITION)
        self.next_position = torch.zeros_like(self.next_position)
        self.seen, self.padded, self.half_written = 0, False, False

    def step(self, num_tokens: int, real: Tensor | None = None) -> "CacheStep":
        """Give each of T new columns its position and slot, without storing yet; `real` (B, T) is False for padding."""
        self.make_room(num_tokens)
        return CacheStep(self, num_tokens, real)

    def make_room(self, num_tokens: int) -> None:
        """Let a cache without window grow, if `num_tokens` more columns do not fit."""
        missing = self.seen + num_tokens - self.num_slots
        if self.window is None and missing > 0:
            more = max(missing, self.num_slots)  # twice as many at least, so that growing is rare
            # Without a window position p is slot p, before and after: new slots go to the end.
            self.keys = [pad(k, (0, 0, 0, more)) for k in self.keys]
            self.values = [pad(v, (0, 0, 0, more)) for v in self.values]
            self.positions = pad(self.positions, (0, more), value=NO_POSITION)


class CacheStep:
    """One forward pass's use of a cache; `visibility` is what the new queries may see among the keys of `update`.

    A single new token is written into its slot first and then sees the slots just as they are. Several new tokens see
    the older keys in time order followed by their own, and are written last: writing first would evict keys that the
    first of them still see. So does a single one when gradients are wanted, as what is stored carries none.
    """

    def __init__(self, cache: RollingCache, num_tokens: int, real: Tensor | None):
        self.cache, self.num_tokens = cache, num_tokens
        self.padded = cache.padded or real is not None
        if real is None:
            columns = cache.next_position[:, None] + torch.arange(num_tokens, device=cache.positions.device)  # (B, T)
            query_positions = columns
        else:
            columns = row_positions(real, cache.next_position)
            query_positions = columns.masked_fill(~real, NO_POSITION)
        # Of a long chunk only the last tokens can matter later, at most one per slot.
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
        may_be_empty = self.padded or self._in_place and cache.static
        self.visibility = Visibility(query_positions[rows], key_positions[rows], cache.window, padded=may_be_empty)

    def update(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys (rotated) and values, and return all that the new queries may look at.

        Args and returns: k and v are (B, Hkv, T, Dh); what comes back is (B, Hkv, S, Dh).
        """
        keys, values = self.cache.keys[layer_idx], self.cache.values[layer_idx]
        self.cache.half_written = True
        seen = None if self._in_place else (self._with_older(keys, k), self._with_older(values, v))
        self._write(keys, k)
        self._write(values, v)
        return seen or (keys[:, :, : self._readable], values[:, :, : self._readable])

    def commit(self) -> None:
        """Close the step: the new tokens now belong to the cache's past."""
        self.cache.positions, self.cache.next_position = self._positions, self._next_position
        self.cache.seen += self.num_tokens
        self.cache.padded, self.cache.half_written = self.padded, False

    def _write(self, stored: Tensor, new: Tensor) -> None:
        """Write the last of new (B, H, T, Dh) into their slots of stored (B, H, slots, Dh), leaving padding out."""
        new = new.detach()[:, :, -self._slots.shape[1] :].to(stored.dtype)  # (B, H, kept, Dh)
        slots = self._slots[:, None, :, None].expand_as(new)
        if self._real is not None:
            new = torch.where(self._real[:, None, :, None], new, stored.gather(2, slots))
        stored.scatter_(2, slots, new)

    def _with_older(self, stored: Tensor, new: Tensor) -> Tensor:
        """Older entries in time order, then new: (B, Hkv, older + T, Dh)."""
        slots = self._older_slots[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
        return torch.cat((stored.gather(2, slots), new), dim=2) if slots.shape[2] else new
