"""The rolling KV cache: keys and values of past tokens, kept so that each new token need only compute its own.

With a window, a query sees at most W positions, so W slots per layer are enough for a text of any length. Position p is
stored in slot p mod W: each new token overwrites the one that has just left the window. With W = 4:

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

FIRST_SLOTS = 64  # how many a cache starts with if it has neither a window nor a max_length


class RollingCache:
    """Keys and values of all layers for a batch of texts; each row counts its own positions.

    With a window there are always W slots per layer. Without one there are `max_length` slots at first, and at least
    twice as many each time they run out. Positions count from a row's first real token, so rows of one batch may write
    to different slots. Padding is never stored. Stored keys and values carry no gradient.

    A model's forward pass opens a `step` for its new tokens, calls `step.update` in each layer and `step.commit` at the
    end. `dtype` should be the model's own; None means float32.
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
        self.positions = torch.full((batch_size, slots), NO_POSITION, device=device)  # (B, slots): what each slot holds
        self.next_position = torch.zeros(batch_size, dtype=torch.long, device=device)  # (B,), each row's next
        self.seen = 0  # columns so far, padding included
        self.padded = False  # whether some of these columns may have been padding
        self.half_written = False  # whether a step has written but is not committed yet
        self.static = False  # whether a single new token reads all slots, empty ones masked, so that no shape changes

    @property
    def num_slots(self) -> int:
        """Slots per layer; with a window always W."""
        return self.positions.shape[1]

    def reset(self) -> None:
        """Forget all tokens, but keep the memory for the next text."""
        self.positions = torch.full_like(self.positions, NO_POSITION)
        self.next_position = torch.zeros_like(self.next_position)
        self.seen, self.padded, self.half_written = 0, False, False

    def step(self, num_tokens: int, real: Tensor | None = None) -> "CacheStep":
        """Give each of T new columns a position and a slot, storing nothing yet; `real` (B, T) is False for padding."""
        self.make_room(num_tokens)
        return CacheStep(self, num_tokens, real)

    def make_room(self, num_tokens: int) -> None:
        """Grow a cache without a window if `num_tokens` more columns do not fit."""
        missing = self.seen + num_tokens - self.num_slots
        if self.window is None and missing > 0:
            more = max(missing, self.num_slots)  # at least double the slots, so that copying them stays rare
            # Without a window position p is in slot p, however many there are: new slots go to the end.
            self.keys = [pad(k, (0, 0, 0, more)) for k in self.keys]
            self.values = [pad(v, (0, 0, 0, more)) for v in self.values]
            self.positions = pad(self.positions, (0, more), value=NO_POSITION)


class CacheStep:
    """One forward pass through a cache. `visibility` says which of the keys that `update` returns a query may see.

    Decode has one new token per row, which is written into its slot first and then reads the slots in place. Prefill
    has several, such as a prompt: they see the older keys in time order, then their own, and are written last. Written
    first, they would evict keys that the first of them still see. With gradients enabled, a single token takes this
    second way too, because stored keys carry none.
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
        # Only the last tokens of a long prompt can matter later: one per slot at most.
        kept = min(num_tokens, cache.num_slots)
        self._slots = columns[:, -kept:] % cache.num_slots  # (B, kept)
        self._real = None if real is None else real[:, -kept:]
        self._next_position = columns[:, -1] + 1
        self._positions = cache.positions.clone()  # (B, slots), with the new tokens after the next line
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
        """Store a layer's new keys (rotated) and values, (B, Hkv, T, Dh); return all to attend to, (B, Hkv, S, Dh)."""
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
        """Write the last of `new` (B, H, T, Dh), except padding, into their slots of `stored` (B, H, slots, Dh)."""
        new = new.detach()[:, :, -self._slots.shape[1] :].to(stored.dtype)  # (B, H, kept, Dh)
        slots = self._slots[:, None, :, None].expand_as(new)
        if self._real is not None:
            new = torch.where(self._real[:, None, :, None], new, stored.gather(2, slots))
        stored.scatter_(2, slots, new)

    def _with_older(self, stored: Tensor, new: Tensor) -> Tensor:
        """Return the older entries in time order, followed by `new`: (B, Hkv, older + T, Dh)."""
        slots = self._older_slots[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
        return torch.cat((stored.gather(2, slots), new), dim=2) if slots.shape[2] else new
