"""Exercises of lesson 05: the slots of a ring, their order, padded chunks, a bug in a chunk's keys, memory, numbers."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixtral_edu.exercises.framework import exercise


@exercise("What the slots hold")
def slots_after(num_tokens: int, window: int) -> list[int]:
    """Say which position each slot of a ring holds after `num_tokens` tokens.

    Tokens have the positions 0, 1, 2, …; position p was written into slot p mod W, over
    whatever was stored there.

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


@slots_after.check("Is the newest position num_tokens - 1? Positions begin with 0.", compared="its largest position")
def newest_position(answer):
    return max(answer(5, 4)), 4


@slots_after.check("Is position p in slot p, as long as nothing was overwritten?", compared="its slots 0 to 2")
def nothing_overwritten(answer):
    return list(answer(3, 5))[:3], [0, 1, 2]


@slots_after.check("Are slots that nothing was written to -1?")
def empty_slots(answer):
    return [answer(2, 4), answer(0, 3)], [[0, 1, -1, -1], [-1, -1, -1]]


@slots_after.check("Is it the list by slot, not by age? Position 4 is in slot 0 of a ring of 4.")
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


@time_order.check("Are these the slots, and not the positions that they hold?")
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


class LastOneFirst(TorchDispatchMode):
    """Reverses the order of writing within each indexed assignment: where a slot occurs twice, the other value stays.

    PyTorch promises no order there, so an answer that is right in both orders does not depend on it.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch loads its compiler at the first use, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, args = func.overloadpacket.__name__.rstrip("_"), list(args)
        if name in ("index_put", "_index_put_impl"):
            args[1], args[2] = self._reversed(args[0], args[1], args[2])
        elif name in ("scatter", "index_copy") and isinstance(args[3], Tensor):
            dim, index, source = args[1:4]
            source = source[tuple(map(slice, index.shape))] if name == "scatter" else source
            args[2], args[3] = index.flip(dim if name == "scatter" else 0), source.flip(dim)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _reversed(target: Tensor, indices: list[Tensor | None], values: Tensor) -> tuple[list[Tensor | None], Tensor]:
        places = [place for place, index in enumerate(indices) if index is not None]
        together = places == list(range(places[0], places[-1] + 1))
        if not together or any(indices[place].dtype != torch.long for place in places):
            return indices, values  # a mask writes nothing twice
        shape = torch.broadcast_shapes(*(indices[place].shape for place in places))
        values = values.expand(*target.shape[: places[0]], *shape, *target.shape[places[-1] + 1 :])
        values = values.flip([places[0] + dim for dim in range(len(shape))])
        flipped = list(indices)
        for place in places:
            flipped[place] = indices[place].expand(shape).flip(list(range(len(shape))))
        return flipped, values


@write_chunk.check(
    "Do two keys go to one slot in a single assignment? PyTorch does not promise which of them stays.",
    compared="the ring, when each assignment writes its last key first",
)
def no_slot_twice_in_one_assignment(answer):
    ring, new, positions = 10 + numbered(2, 3), numbered(2, 7), torch.arange(7).expand(2, -1) + torch.tensor([[2], [6]])
    with LastOneFirst():
        found = answer(ring, new, positions)
    return found, chunk_by_slots(ring, new, positions)


def chunk_keys_with_a_mistake(seen, num_new, window):
    older = max(0, min(seen, window - num_new))
    queries = torch.arange(seen, seen + num_new)
    keys = torch.arange(seen - older, seen + num_new)
    distance = queries[:, None] - keys  # (T, S)
    return keys, (distance >= 0) & (distance < window)


@exercise("A bug in a chunk's keys", faulty=chunk_keys_with_a_mistake)
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
    "Do as many older keys come first as the chunk's first query needs, W - 1 however long the chunk is?",
    compared="the keys",
)
def older_keys(answer):
    keys, _ = answer(6, 3, 4)
    return keys, chunk_by_loops(6, 3, 4)[0]


@chunk_keys.check("Does no query see a later key?", compared="the keys, and the pairs with a later key")
def no_later_key(answer):
    keys, mask = answer(7, 4, 5)
    later = mask & (torch.as_tensor(keys) > torch.arange(7, 11)[:, None])
    return [keys, int(later.sum())], [chunk_by_loops(7, 4, 5)[0], 0]


@chunk_keys.check("Does W count the query's own key? With W = 1 no key is older, and a query sees itself alone.")
def itself_counted(answer):
    cases = (4, 2, 2), (3, 4, 1)
    return [answer(*case) for case in cases], [chunk_by_loops(*case) for case in cases]


@chunk_keys.check("Are there fewer older keys when fewer tokens were seen? Position -1 does not exist.")
def few_seen(answer):
    cases = (2, 5, 6), (0, 3, 5)
    return [answer(*case) for case in cases], [chunk_by_loops(*case) for case in cases]


@chunk_keys.check("Does a chunk longer than W keep all its own keys, under the window's mask?")
def longer_than_the_window(answer):
    return answer(9, 7, 3), chunk_by_loops(9, 7, 3)


@exercise("Memory with two kinds of layers")
def texts_that_fit(
    free_bytes: int,
    num_tokens: int,
    layer_windows: list[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    bytes_per_number: int,
) -> int:
    """Say for how many texts at once the caches fit into memory.

    Some models give only part of their layers a window. A layer with a window W keeps the
    latest W tokens of a text, a layer without one keeps all. No layer keeps more tokens than
    the text has.

    Args:
        free_bytes: memory that is left for caches.
        num_tokens: tokens of each text.
        layer_windows: for each layer its window, or None.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        head_dim: numbers in one head's key.
        bytes_per_number: such as 2 for bfloat16.

    Returns:
        How many whole texts fit.
    """
    tokens = sum(min(window or num_tokens, num_tokens) for window in layer_windows)
    per_text = 2 * tokens * num_kv_heads * head_dim * bytes_per_number
    return free_bytes // per_text


def texts_one_by_one(free, tokens, windows, num_heads, num_kv_heads, head_dim, bytes_per_number):
    texts = 0
    while True:
        for window in windows:
            for age in range(tokens):  # 0 is the newest token
                if window is None or age < window:
                    free -= num_kv_heads * head_dim * bytes_per_number  # its key
                    free -= num_kv_heads * head_dim * bytes_per_number  # its value
        if free < 0:
            return texts
        texts += 1


@texts_that_fit.check("Do both keys and values count?")
def keys_and_values(answer):
    given = (1000, 5, [None], 2, 2, 4, 2)
    return answer(*given), texts_one_by_one(*given)


@texts_that_fit.check("Are the key-value heads counted, of which several query heads share one?")
def heads_that_are_stored(answer):
    given = (2000, 5, [None], 8, 2, 4, 2)
    return answer(*given), texts_one_by_one(*given)


@texts_that_fit.check("Does each layer count with its own window, and a layer without one with all tokens?")
def windows_by_layer(answer):
    given = (9000, 40, [8, None, 8, 16], 4, 2, 4, 2)
    return answer(*given), texts_one_by_one(*given)


@texts_that_fit.check("Does a layer with a window keep no more tokens than the text has?")
def shorter_than_the_window(answer):
    given = (5000, 6, [8, None, 64], 4, 2, 4, 2)
    return answer(*given), texts_one_by_one(*given)


@texts_that_fit.check("Are only whole texts counted, and does a text fit that takes the last byte?")
def to_the_last_byte(answer):
    cases = [(free, 10, [4, None], 4, 1, 8, 2) for free in (448, 895, 896, 1343)]
    return [answer(*given) for given in cases], [texts_one_by_one(*given) for given in cases]


@exercise("Predict before you run")
def cache_forecast() -> dict[str, float]:
    """Commit to six numbers before you run anything.

    Returns:
        "tokens": a prompt of 100 tokens and 100 new ones. Tokens that go through each layer
            without a cache, divided by those with one.
        "passes": forward passes with a cache, for a prompt of 1,000 tokens that is read in
            chunks of 128, and 50 new tokens.
        "twice the text": the factor by which the bytes of a ring with W = 4,096 grow when
            the text grows from 8,192 tokens to 16,384.
        "twice the experts": the factor by which the bytes of a cache grow when each layer has
            16 experts in place of 8, two of them for each token as before.
        "lost pairs": a full ring of W = 128 and a chunk of 128 tokens, written before its
            queries look. The share of the query-key pairs of their windows that is lost.
        "slots in use": three texts of 10, 20 and 30 tokens in one batch, padded on the left
            to 30 columns, with W = 16. Slots that hold a token, over all three rows.
    """
    return {
        "tokens": (100 * 100 + 100 * 99 / 2) / (100 + 99),
        "passes": 8 + 49,  # the last chunk gives the first new token
        "twice the text": 1,  # W slots, whatever the text
        "twice the experts": 1,  # keys and values come from attention
        "lost pairs": sum(range(128)) / 128**2,  # 127, 126, … 0 keys of 128 each
        "slots in use": 10 + 16 + 16,  # no pad is stored
    }


def verdict(found: object, exact: float) -> object:
    """Compare in words, so that a message does not give the number away."""
    if not isinstance(found, int | float):
        return found
    return "right" if abs(found - exact) <= 0.01 * exact else "too low" if found < exact else "too high"


@cache_forecast.check("How long is the text in the first step, how long in the last, and how many tokens need a pass?")
def tokens_saved(answer):
    steps = [100 + n for n in range(100)]
    return verdict(answer()["tokens"], sum(steps) / steps[-1]), "right"


@cache_forecast.check("How many chunks has the prompt, and which pass already gives the first new token?")
def passes_needed(answer):
    chunks = len(range(0, 1000, 128))
    return verdict(answer()["passes"], chunks + 50 - 1), "right"


@cache_forecast.check("How many slots does a ring have before its text reaches W tokens, and how many after?")
def bytes_of_a_ring(answer):
    return verdict(answer()["twice the text"], 4096 / 4096), "right"


@cache_forecast.check("Which part of a layer do keys and values come from: attention or the experts?")
def bytes_with_more_experts(answer):
    return verdict(answer()["twice the experts"], 1.0), "right"


@cache_forecast.check("Of its 128 keys the chunk's first query loses all but one. How many does the last one lose?")
def pairs_lost(answer):
    lost = sum(j < 256 - 128 for i in range(128, 256) for j in range(i - 127, i + 1))
    return verdict(answer()["lost pairs"], lost / 128**2), "right"


@cache_forecast.check("Do pads take slots? And how many tokens can one row's ring hold at most?")
def slots_in_use(answer):
    return verdict(answer()["slots in use"], sum(min(length, 16) for length in (10, 20, 30))), "right"
