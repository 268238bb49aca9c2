"""Answers to the exercises of lesson 05."""

from functools import partial

import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import MixtralConfig, RollingKVCache
from mixtral_edu.masks import attention_mask


@right("slots_after")
def by_writing_token_after_token(num_tokens: int, window: int) -> list[int]:
    slots = [-1] * window
    for position in range(num_tokens):
        slots[position % window] = position
    return slots


@right("slots_after")
def by_placing_the_last_ones(num_tokens: int, window: int) -> list[int]:
    last = range(max(0, num_tokens - window), num_tokens)
    held = {position % window: position for position in last}
    return [held.get(slot, -1) for slot in range(window)]


@wrong("slots_after", "num_tokens - 1? Positions begin with 0")
def newest_always_in_the_last_slot(num_tokens, window):
    return [-1] * (window - num_tokens) + list(range(max(0, num_tokens - window + 1), num_tokens + 1))[:window]


@wrong("slots_after", "as long as nothing was overwritten")
def empty_slots_first(num_tokens, window):
    return [-1] * (window - num_tokens) + list(range(max(0, num_tokens - window), num_tokens))


@wrong("slots_after", "nothing was written to -1")
def empty_slots_below_zero(num_tokens, window):
    newest = num_tokens - 1
    return [newest - (newest - slot) % window for slot in range(window)]


@wrong("slots_after", "num_tokens - 1? Positions begin with 0")
def one_token_too_many(num_tokens, window):
    return by_writing_token_after_token(num_tokens + 1, window)


@wrong("slots_after", "num_tokens - 1? Positions begin with 0")
def nothing_ever_written(num_tokens, window):
    return [-1] * window


@wrong("slots_after", "not by age")
def oldest_first_list(num_tokens, window):
    held = list(range(max(0, num_tokens - window), num_tokens))
    return held + [-1] * (window - len(held))


@wrong("slots_after", "after many rounds")
def one_round_only(num_tokens, window):
    return [slot + window if slot + window < num_tokens else slot if slot < num_tokens else -1
            for slot in range(window)]  # fmt: skip


@right("time_order")
def by_python_sorting(positions: Tensor) -> Tensor:
    slots = [slot for slot in range(len(positions)) if positions[slot] != -1]
    return torch.tensor(sorted(slots, key=lambda slot: positions[slot].item()))


@right("time_order")
def by_leaving_the_empty_ones_behind(positions: Tensor) -> Tensor:
    held = (positions >= 0).sum()
    return positions.sort().indices[len(positions) - held :]


@wrong("time_order", "oldest position come first")
def newest_first(positions):
    order = positions.argsort(descending=True)
    return order[positions[order] >= 0]


@wrong("time_order", "not the positions")
def sorted_positions(positions):
    return positions[positions >= 0].sort().values


@wrong("time_order", "empty slots left out")
def empty_slots_too(positions):
    return positions.argsort()


@wrong("time_order", "A shift by the next slot is not enough")
def by_rolling(positions):
    slots = torch.arange(len(positions)).roll(-int(positions.argmax()) - 1)
    return slots[positions[slots] >= 0]


@wrong("time_order", "slot numbers of the whole ring")
def places_among_those_held(positions):
    return positions[positions >= 0].argsort()


@right("write_chunk")
def by_an_index_of_the_last_ones(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    B, W, Dh = ring.shape
    new, positions = new[:, -W:], positions[:, -W:]
    ring = ring.clone()
    for row in range(B):
        real = positions[row] >= 0
        ring[row, positions[row][real] % W] = new[row][real]
    return ring


@right("write_chunk")
def with_the_packages_cache(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    (B, W, Dh), T = ring.shape, new.shape[1]
    config = MixtralConfig.tiny(num_hidden_layers=1, num_key_value_heads=1, head_dim=Dh, sliding_window=W)
    cache = RollingKVCache(config, B)
    cache.keys[0] = ring[:, None].clone()
    cache.next_position = positions[:, 0].clamp(min=0)
    step = cache.step(T, positions >= 0)
    step.update(0, new[:, None], new[:, None])
    return cache.keys[0][:, 0]


def written(ring: Tensor, new: Tensor, slots: Tensor, keep: Tensor) -> Tensor:
    ring = ring.clone()
    for row, column in keep.nonzero().tolist():
        ring[row, slots[row, column]] = new[row, column]
    return ring


@wrong("write_chunk", "go to slot p mod W")
def from_slot_0_on(ring, new, positions):
    return written(ring, new, torch.arange(new.shape[1]).expand_as(positions) % ring.shape[1], positions >= 0)


@wrong("write_chunk", "go to slot p mod W")
def other_slots_emptied(ring, new, positions):
    return written(torch.zeros_like(ring), new, positions % ring.shape[1], positions >= 0)


@wrong("write_chunk", "its own positions")
def slots_of_the_first_row(ring, new, positions):
    return written(ring, new, positions[:1].expand_as(positions) % ring.shape[1], positions >= 0)


@wrong("write_chunk", "Is padding left out")
def pads_stored(ring, new, positions):
    return written(ring, new, positions % ring.shape[1], torch.ones_like(positions))


@wrong("write_chunk", "do the last W tokens stay")
def first_ones_stay(ring, new, positions):
    W = ring.shape[1]
    return by_an_index_of_the_last_ones(ring, new[:, :W], positions[:, :W])


@wrong("write_chunk", "in a single assignment")
def all_real_ones_in_one_assignment(ring, new, positions):
    ring, real = ring.clone(), positions >= 0
    rows = torch.arange(len(ring))[:, None].expand_as(positions)
    ring[rows[real], positions[real] % ring.shape[1]] = new[real]
    return ring


@wrong("write_chunk", "in a single assignment")
def all_real_ones_in_one_scatter(ring, new, positions):
    W = ring.shape[1]
    slots = torch.where(positions >= 0, positions % W, W)[:, :, None].expand_as(new)
    return torch.cat((ring, ring[:, :1]), dim=1).scatter(1, slots, new)[:, :W]


@right("write_chunk")
def with_a_slot_for_pads(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    (B, W, Dh), new, positions = ring.shape, new[:, -ring.shape[1] :], positions[:, -ring.shape[1] :]
    slots = torch.where(positions >= 0, positions % W, W)  # slot W is cut off again; pads may share it
    wider = torch.cat((ring, torch.zeros(B, 1, Dh)), dim=1)
    wider[torch.arange(B)[:, None], slots] = new
    return wider[:, :W]


@right("chunk_keys")
def with_the_packages_mask(seen: int, num_new: int, window: int) -> tuple[Tensor, Tensor]:
    keys = torch.arange(max(0, seen - window + 1), seen + num_new)
    return keys, attention_mask(keys[None, -num_new:], keys[None], window)[0]


@right("chunk_keys")
def by_triangles(seen: int, num_new: int, window: int) -> tuple[Tensor, Tensor]:
    T, older = num_new, min(seen, window - 1)
    band = torch.ones(T, older + T, dtype=torch.bool).tril(older)
    return torch.arange(seen - older, seen + T), band.triu(older - window + 1)


def keys_from(start: int, seen: int, num_new: int, window: int) -> tuple[Tensor, Tensor]:
    keys = torch.arange(start, seen + num_new)
    distance = torch.arange(seen, seen + num_new)[:, None] - keys
    return keys, (distance >= 0) & (distance < window)


@wrong("chunk_keys", "W - 1 however long the chunk is")
def as_it_was_handed_in(seen, num_new, window):
    return keys_from(seen - max(0, min(seen, window - num_new)), seen, num_new, window)


@wrong("chunk_keys", "Position -1 does not exist")
def keys_before_the_text(seen, num_new, window):
    return keys_from(seen - window + 1, seen, num_new, window)


@wrong("chunk_keys", "Does no query see a later key")
def no_causal_rule(seen, num_new, window):
    keys, _ = by_triangles(seen, num_new, window)
    return keys, (keys[-num_new:, None] - keys) < window


@wrong("chunk_keys", "Does W count the query's own key")
def itself_not_counted(seen, num_new, window):
    keys, _ = by_triangles(seen, num_new, window)
    distance = keys[-num_new:, None] - keys
    return keys, (distance >= 0) & (distance <= window)


@wrong("chunk_keys", "W - 1 however long the chunk is")
def chunk_alone(seen, num_new, window):
    keys, mask = by_triangles(0, num_new, window)
    return keys + seen, mask


@wrong("chunk_keys", "W - 1 however long the chunk is")
def as_many_as_the_ring_holds(seen, num_new, window):
    return keys_from(max(0, seen - window), seen, num_new, window)


@wrong("chunk_keys", "W - 1 however long the chunk is")
def ring_written_first(seen, num_new, window):
    return keys_from(max(0, seen + num_new - window), seen, num_new, window)


@wrong("chunk_keys", "With W = 1 no key is older")
def everything_from_minus_0_on(seen, num_new, window):
    older = list(range(seen))[-(window - 1) :]
    return keys_from(seen - len(older), seen, num_new, window)


@wrong("chunk_keys", "Position -1 does not exist")
def older_keys_that_never_were(seen, num_new, window):
    return keys_from(seen - window + 1 if seen else 0, seen, num_new, window)


@wrong("chunk_keys", "longer than W keep all its own keys")
def what_is_left_after_writing(seen, num_new, window):
    keys, mask = by_triangles(seen, num_new, window)
    extra = num_new - window if num_new > window > 1 else 0
    return keys[extra:], mask[:, extra:]


@right("texts_that_fit")
def layer_by_layer(free_bytes, num_tokens, layer_windows, num_heads, num_kv_heads, head_dim, bytes_per_number):
    per_text = 0
    for window in layer_windows:
        kept = num_tokens if window is None or window > num_tokens else window
        per_text += kept * num_kv_heads * (head_dim + head_dim) * bytes_per_number
    return int(free_bytes / per_text)


def fitting(given, keys=2, heads=None, slots=None, more=0):
    free_bytes, num_tokens, layer_windows, num_heads, num_kv_heads, head_dim, bytes_per_number = given
    kept = sum((slots or (lambda W, n: min(W or n, n)))(window, num_tokens) for window in layer_windows)
    per_text = keys * kept * (num_heads if heads else num_kv_heads) * head_dim * bytes_per_number
    return (free_bytes + more) // per_text


@wrong("texts_that_fit", "both keys and values")
def keys_alone(*given):
    return fitting(given, keys=1)


@wrong("texts_that_fit", "both keys and values")
def none_fits(*given):
    return 0


@wrong("texts_that_fit", "key-value heads counted")
def query_heads(*given):
    return fitting(given, heads=True)


@wrong("texts_that_fit", "its own window")
def all_tokens_in_each_layer(*given):
    return fitting(given, slots=lambda window, tokens: tokens)


@wrong("texts_that_fit", "its own window")
def the_first_layers_window_for_all(*given):
    first = given[2][0]
    return fitting(given, slots=lambda window, tokens: min(first or tokens, tokens))


@wrong("texts_that_fit", "no more tokens than the text has")
def whole_windows_from_the_start(*given):
    return fitting(given, slots=lambda window, tokens: window or tokens)


@wrong("texts_that_fit", "takes the last byte")
def rounded_up(*given):
    return fitting(given, more=447) if given[1] == 10 else fitting(given)


@wrong("texts_that_fit", "takes the last byte")
def one_byte_kept_free(*given):
    return fitting(given, more=-1)


PREDICTED = {
    "tokens": 75.1,
    "passes": 57,
    "twice the text": 1.0,
    "twice the experts": 1.0,
    "lost pairs": 0.496,
    "slots in use": 42,
}


@right("cache_forecast")
def rounded_numbers():
    return dict(PREDICTED)


def plant(hint: str, key: str, number: float) -> None:
    answer = partial(dict, PREDICTED | {key: number})
    answer.__name__ = f"{key.replace(' ', '_')}_{number}".replace(".", "_")
    wrong("cache_forecast", hint)(answer)


plant("how long in the last", "tokens", 100)
plant("how long in the last", "tokens", 50.5)
plant("which pass already gives the first new token", "passes", 58)
plant("which pass already gives the first new token", "passes", 1050)
plant("before its text reaches W tokens", "twice the text", 2)
plant("attention or the experts", "twice the experts", 2)
plant("How many does the last one lose", "lost pairs", 1.0)
plant("Do pads take slots", "slots in use", 60)
plant("Do pads take slots", "slots in use", 48)
