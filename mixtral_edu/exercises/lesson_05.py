"""Exercises of lesson 05: what lies in the slots of a ring, in which order, and what a chunk may read and write."""

import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("What lies in the slots")
def slots_after(num_tokens: int, window: int) -> list[int]:
    """Say which position lies in each slot of a ring after `num_tokens` tokens.

    Tokens have the positions 0, 1, 2, …; position p was written into slot p mod W, over
    whatever lay there.

    Args:
        num_tokens: tokens so far, 0 or more.
        window: W, the number of slots.

    Returns:
        W numbers: the position in slot 0, in slot 1, …; -1 for a slot that is still empty.
    """
    newest = num_tokens - 1
    return [max(-1, newest - (newest - slot) % window) for slot in range(window)]


def slots_by_writing(num_tokens: int, window: int) -> list[int]:
    slots = [-1] * window
    for position in range(num_tokens):
        slots[position % window] = position
    return slots


@slots_after.check("Does position p lie in slot p, as long as nothing was overwritten?")
def nothing_overwritten(answer):
    return answer(5, 5), [0, 1, 2, 3, 4]


@slots_after.check("Are slots that nothing was written to -1?")
def empty_slots(answer):
    return [answer(2, 4), answer(0, 3)], [[0, 1, -1, -1], [-1, -1, -1]]


@slots_after.check("Is the newest position num_tokens - 1? Positions begin with 0.")
def newest_position(answer):
    return max(answer(5, 4)), 4


@slots_after.check("Is it the list by slot, not by age? Position 4 lies in slot 0 of a ring of 4.")
def by_slot(answer):
    return answer(6, 4), [4, 5, 2, 3]


@slots_after.check("Is it right after many rounds too, and for a ring of one slot?")
def many_rounds(answer):
    cases = [(23, 4), (24, 4), (25, 4), (1000, 7), (9, 1)]
    return [answer(*case) for case in cases], [slots_by_writing(*case) for case in cases]


@exercise("The slots in time order")
def time_order(positions: Tensor) -> Tensor:
    """Return the slots in the order of the positions that they hold, the oldest first.

    Args:
        positions: (W,) int64, the position in each slot, -1 for an empty slot. Padding inside
            a text leaves gaps, so positions need not follow each other without one missing.

    Returns:
        The numbers of the slots that are not empty, (held,) int64.
    """
    order = positions.argsort()  # empty slots come first
    return order[positions[order] >= 0]


def time_order_by_sorting(positions: list[int]) -> Tensor:
    pairs = sorted((position, slot) for slot, position in enumerate(positions) if position >= 0)
    return torch.tensor([slot for _, slot in pairs], dtype=torch.int64)


@time_order.check("Does the oldest position come first, and the newest last?")
def oldest_first(answer):
    return answer(torch.tensor([0, 1, 2, 3])), torch.tensor([0, 1, 2, 3])


@time_order.check("Are these the slots, and not the positions that lie in them?")
def slots_not_positions(answer):
    return answer(torch.tensor([8, 9, 6, 7])), torch.tensor([2, 3, 0, 1])


@time_order.check("Are empty slots left out?")
def without_empty_slots(answer):
    return answer(torch.tensor([0, 1, 2, -1, -1])), torch.tensor([0, 1, 2])


@time_order.check("Do the positions decide, also where some are missing? A shift by the next slot is not enough.")
def with_gaps(answer):
    positions = [10, 6, 7, 3, 9]  # 8 is missing
    return answer(torch.tensor(positions)), time_order_by_sorting(positions)


@time_order.check("Are these slot numbers of the whole ring, also after an empty slot?")
def after_an_empty_slot(answer):
    positions = [10, -1, 7, 3, 9]
    return answer(torch.tensor(positions)), time_order_by_sorting(positions)


@exercise("Write a chunk into the ring")
def write_chunk(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """Store the keys of a chunk in a ring: position p of a row in that row's slot p mod W.

    Padding is not stored. Where several tokens of a chunk belong in one slot, the newest one
    stays. `ring` itself is left as it is.

    Args:
        ring: (B, W, Dh), the keys in each row's slots.
        new: (B, T, Dh), the chunk's keys; T may be larger than W.
        positions: (B, T) int64, the position of each token in its row; -1 for padding, which
            stands on the left only. From there on positions grow by one.

    Returns:
        (B, W, Dh), the ring after writing.
    """
    ring, window = ring.clone(), ring.shape[1]
    for row, column in (positions >= 0).nonzero().tolist():  # later columns overwrite earlier
        ring[row, positions[row, column] % window] = new[row, column]
    return ring


def chunk_by_slots(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """The same, asked the other way round: which token of the chunk, if any, belongs in this slot?"""
    B, W, _ = ring.shape
    rows = []
    for row in range(B):
        for slot in range(W):
            columns = [t for t, p in enumerate(positions[row].tolist()) if p >= 0 and p % W == slot]
            rows.append(new[row, columns[-1]] if columns else ring[row, slot])
    return torch.stack(rows).view(ring.shape)


def numbered(B: int, T: int) -> Tensor:
    """Keys of two numbers that tell row and column: row 1, column 3 has the key (1.3, -1.3)."""
    number = torch.arange(B)[:, None] + torch.arange(T) / 10
    return torch.stack((number, -number), dim=-1)


@write_chunk.check("Does position p go to slot p mod W, and do other slots keep what they hold?")
def right_slots(answer):
    ring, new, positions = 10 + numbered(1, 5), numbered(1, 2), torch.tensor([[9, 10]])
    return answer(ring, new, positions), chunk_by_slots(ring, new, positions)


@write_chunk.check("Does each row use its own positions?")
def own_positions(answer):
    ring, new, positions = 10 + numbered(2, 4), numbered(2, 2), torch.tensor([[5, 6], [2, 3]])
    return answer(ring, new, positions), chunk_by_slots(ring, new, positions)


@write_chunk.check("Is padding left out? -1 % W is W - 1: a slot that pads have no business in.")
def padding_left_out(answer):
    ring, new, positions = 10 + numbered(2, 4), numbered(2, 3), torch.tensor([[-1, -1, 0], [0, 1, 2]])
    return answer(ring, new, positions), chunk_by_slots(ring, new, positions)


@write_chunk.check("Of a chunk longer than the ring, do the last W tokens stay?")
def longer_than_the_ring(answer):
    ring, new = 10 + numbered(2, 3), numbered(2, 8)
    positions = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11], [-1, -1, -1, 0, 1, 2, 3, 4]])
    return answer(ring, new, positions), chunk_by_slots(ring, new, positions)


@exercise("What a chunk may see")
def chunk_keys(seen: int, num_new: int, window: int) -> tuple[Tensor, Tensor]:
    """List the keys that a chunk of new tokens is given, and say which query may see which.

    The chunk gets the up to W - 1 older keys that some query of it may need, in time order,
    followed by its own. A query at position i sees the keys j <= i with i - j < W.

    Args:
        seen: tokens before the chunk, which has the positions seen, seen + 1, …
        num_new: T, the tokens of the chunk.
        window: W.

    Returns:
        The positions of the keys, (S,) int64 with S = older + T, and the mask (T, S),
        booleans, True where the query may attend.
    """
    older = min(seen, window - 1)
    queries = torch.arange(seen, seen + num_new)
    keys = torch.arange(seen - older, seen + num_new)
    distance = queries[:, None] - keys  # (T, S)
    return keys, (distance >= 0) & (distance < window)


def chunk_by_loops(seen: int, num_new: int, window: int) -> tuple[Tensor, Tensor]:
    keys = [p for p in range(seen + num_new) if p > seen - window]
    mask = [[i - window < j <= i for j in keys] for i in range(seen, seen + num_new)]
    return torch.tensor(keys), torch.tensor(mask)


@chunk_keys.check(
    "With seen = 0, are the keys the chunk's own, none before position 0, and does no query see a later one?"
)
def own_keys(answer):
    return answer(0, 3, 5), (torch.arange(3), torch.ones(3, 3, dtype=torch.bool).tril())


@chunk_keys.check("Do W - 1 older keys come first? The chunk's first query needs all of them.", compared="the keys")
def older_keys(answer):
    keys, _ = answer(6, 3, 4)
    return keys, chunk_by_loops(6, 3, 4)[0]


@chunk_keys.check("Does W count the query's own key? With W = 1 no key is older, and a query sees itself alone.")
def itself_counted(answer):
    return answer(3, 4, 1), (torch.arange(3, 7), torch.eye(4, dtype=torch.bool))


@chunk_keys.check("Are there fewer older keys when fewer tokens were seen? Position -1 does not exist.")
def few_seen(answer):
    return answer(2, 4, 6), chunk_by_loops(2, 4, 6)


@chunk_keys.check("Does a chunk longer than W keep all its own keys, under the window's mask?")
def longer_than_the_window(answer):
    return answer(9, 7, 3), chunk_by_loops(9, 7, 3)
