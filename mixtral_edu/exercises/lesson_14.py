"""Exercises of lesson 14: a tile for a small memory, a loss in blocks, a bug in tiles, tiles with a past, workers."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mixtral_edu.exercises.framework import exercise


@exercise("The best tile for a small memory")
def best_tile(
    num_tokens: int,
    head_dim: int,
    fast_memory: int,
) -> tuple[int, int]:
    """Choose the tile that reads the fewest keys among those that fit in fast memory.

    One head, causal, in FlashAttention-2's order: each block of R queries reads whole blocks
    of C keys, up to the block that holds its last query's own key. In fast memory a tile takes
    2 bytes per number of its q, k and v, and 4 per number of its o and its scores.

    Args:
        num_tokens: T, a multiple of 512.
        head_dim: Dh.
        fast_memory: bytes; a tile may take all of them.

    Returns:
        R and C, powers of two from 16 to 512. Of tiles that read equally many keys, the one
        with the largest C.
    """
    sizes = (16, 32, 64, 128, 256, 512)
    best = (math.inf, 0, 0)
    for R in sizes:
        for C in sizes:
            takes = 2 * (R + 2 * C) * head_dim + 4 * (R * head_dim + R * C)
            keys = sum(math.ceil(end / C) * C for end in range(R, num_tokens + 1, R))
            if takes <= fast_memory:
                best = min(best, (keys, -C, R))
    return best[2], -best[1]


def bytes_of_a_tile(R: int, C: int, head_dim: int) -> int:
    q, k, v, o, scores = R * head_dim, C * head_dim, C * head_dim, R * head_dim, R * C
    return 2 * (q + k + v) + 4 * (o + scores)


@best_tile.check(
    "Does the tile fit? q, k and v take 2 bytes per number, o and the scores 4.",
    compared="the bytes of its tile beyond the limit",
)
def within_the_memory(answer):
    return max(0, bytes_of_a_tile(*answer(4096, 128, 192 * 1024), 128) - 192 * 1024), 0


@best_tile.check(
    "Are queries preferred to keys? A block of keys is read once per block of queries, so more queries save reads.",
    compared="R, the queries of its tile",
)
def most_queries(answer):
    return answer(2048, 64, 64 * 1024)[0], 128


@best_tile.check("Among tiles that read equally many keys, is it the one with the largest C that fits?")
def most_keys_among_equals(answer):
    return answer(4096, 128, 192 * 1024), (128, 64)


@best_tile.check("Does a tile fit that takes all of the fast memory?")
def to_the_last_byte(answer):
    return answer(4096, 128, 160 * 1024), (128, 64)


@exercise("A loss without its logits")
def streamed_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    block: int,
) -> Tensor:
    """Compute each token's loss with the logits of a few vocabulary entries at a time.

    The logits are `hidden @ weight.T`, and the loss is -log(softmax(logits)[target]). No
    tensor may hold the logits of more than `block` entries.

    Args:
        hidden: (T, D), the final hidden states.
        weight: (V, D), one row per entry of the vocabulary.
        target: (T,), the right token of each place, 0 to V - 1.
        block: entries per block; V need not be a multiple of it.

    Returns:
        (T,), the losses in nats.
    """
    largest = hidden.new_full((len(hidden),), -math.inf)
    total, chosen = torch.zeros_like(largest), torch.zeros_like(largest)
    for start in range(0, len(weight), block):
        logits = hidden @ weight[start : start + block].T  # (T, at most block)
        new = torch.maximum(largest, logits.amax(1))
        total = total * (largest - new).exp() + (logits - new[:, None]).exp().sum(1)
        largest = new
        inside = (target >= start) & (target < start + logits.shape[1])
        chosen[inside] = logits[inside, target[inside] - start]
    return largest + total.log() - chosen


class LongestSide(TorchFunctionMode):
    """Keeps the longest side of the tensors that functions of PyTorch make; those in the shape of an input are fine."""

    def __init__(self, *inputs: Tensor):
        super().__init__()
        self.shapes = {tuple(sorted(x.shape)) for x in inputs}
        self.longest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_floating_point() and tuple(sorted(made.shape)) not in self.shapes:
            self.longest = max(self.longest, *made.shape, 0)
        return made


def losses_and_side(answer, hidden: Tensor, weight: Tensor, target: Tensor, block: int):
    """Return the losses found and expected, each with the longest side of a tensor: at most T or `block`."""
    allowed = max(len(hidden), block)
    with LongestSide(hidden, weight, target) as sides:
        found = answer(hidden, weight, target, block)
    logits = hidden.double() @ weight.double().T
    exact = F.cross_entropy(logits, target, reduction="none").numpy()
    return [found, max(sides.longest, allowed)], [exact, allowed]


RISING = torch.arange(7.0)[:, None]  # with hidden states of ones: logits 0, 1, … 6


@streamed_loss.check(
    "Are the logits of only one block in memory at a time? (T = 5, D = 3, V = 17, blocks of 4)",
    compared="the longest side of a tensor that was made",
)
def one_block_at_a_time(answer):
    found, expected = losses_and_side(answer, torch.randn(5, 3), torch.randn(17, 3), torch.arange(5), 4)
    return found[1], expected[1]


@streamed_loss.check("Is it log(sum of exponentials) minus the target's logit? The logits are 5, 4, 3, 2, 1, 0.")
def falling_logits(answer):
    return losses_and_side(answer, torch.ones(2, 1), RISING[:6].flip(0), torch.tensor([3, 5]), 3)


@streamed_loss.check("When a block brings a larger logit, is the sum so far multiplied by exp(old - new largest)?")
def rising_logits(answer):
    return losses_and_side(answer, torch.ones(2, 1), RISING[:6], torch.tensor([4, 5]), 2)


@streamed_loss.check("Is the target's logit taken from the block that holds it, at place target - start?")
def targets_in_all_blocks(answer):
    return losses_and_side(answer, torch.ones(4, 1), RISING[:6], torch.tensor([0, 3, 5, 2]), 2)


@streamed_loss.check("Does the last block count too, if it is shorter than the others?")
def shorter_last_block(answer):
    return losses_and_side(answer, torch.randn(4, 1).exp(), RISING, torch.tensor([0, 3, 6, 2]), 3)


@streamed_loss.check("Does it stay finite for logits around 1000, and where all are around -1000?")
def large_logits(answer):
    hidden, weight = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [1.002], [0.998], [1.001]])
    return losses_and_side(answer, hidden, weight, torch.tensor([2, 1]), 2)


def attention_with_a_mistake(q, k, v, rows, columns):
    T, Dh = q.shape
    out, visited = torch.empty_like(q), 0
    for start in range(0, T, rows):
        i = torch.arange(start, min(start + rows, T))
        m = q.new_full((len(i), 1), -math.inf)
        total, o = torch.zeros_like(m), torch.zeros_like(q[i])
        for key_start in range(0, start + columns, columns):
            j = torch.arange(key_start, min(key_start + columns, T))
            s = (q[i] @ k[j].T * Dh**-0.5).masked_fill(j > i[:, None], -math.inf)
            new_m = torch.maximum(m, s.amax(1, keepdim=True))
            factor, p = (m - new_m).exp(), (s - new_m).exp()
            total = total * factor + p.sum(1, keepdim=True)
            o = o * factor + p @ v[j]
            m, visited = new_m, visited + 1
        out[i] = o / total
    return out, visited


@exercise("A bug in tiled attention", faulty=attention_with_a_mistake)
def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: int,
    columns: int,
) -> tuple[Tensor, int]:
    """Compute causal attention in tiles, and count the tiles that are visited.

    Args:
        q, k, v: (T, Dh), one head.
        rows: queries in a tile.
        columns: keys in a tile. T need not be a multiple of either.

    Returns:
        The output (T, Dh), and how many tiles were visited: all in which some query sees some
        key, and no other.
    """
    T, Dh = q.shape
    out, visited = torch.empty_like(q), 0
    for start in range(0, T, rows):
        i = torch.arange(start, min(start + rows, T))
        m = q.new_full((len(i), 1), -math.inf)
        total, o = torch.zeros_like(m), torch.zeros_like(q[i])
        for key_start in range(0, start + len(i), columns):  # to the last query's own key
            j = torch.arange(key_start, min(key_start + columns, T))
            s = (q[i] @ k[j].T * Dh**-0.5).masked_fill(j > i[:, None], -math.inf)
            new_m = torch.maximum(m, s.amax(1, keepdim=True))
            factor, p = (m - new_m).exp(), (s - new_m).exp()
            total = total * factor + p.sum(1, keepdim=True)
            o = o * factor + p @ v[j]
            m, visited = new_m, visited + 1
        out[i] = o / total
    return out, visited


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> np.ndarray:
    q, k, v = (x.double().numpy() for x in (q, k, v))
    out = np.zeros_like(q)
    for i in range(len(q)):
        scores = k[: i + 1] @ q[i] / q.shape[1] ** 0.5
        weights = np.exp(scores - scores.max())
        out[i] = weights / weights.sum() @ v[: i + 1]
    return out


def tiles_by_pairs(T: int, rows: int, columns: int) -> int:
    return len({(i // rows, j // columns) for i in range(T) for j in range(i + 1)})


def with_scores(growth: float, T: int, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, 4) whose scores run from 0 to `growth` along the keys."""
    k = torch.linspace(0, growth, T)[:, None].expand(T, 4) / 2
    return torch.full((T, 4), size), k.contiguous(), torch.randn(T, 4)


@tiled_attention.check("Do the later queries of a block see all of their keys? A tile has 4 queries and 2 keys.")
def fewer_keys_than_queries(answer):
    inputs = with_scores(-3.0, 8)
    return answer(*inputs, 4, 2)[0], causal_attention(*inputs)


@tiled_attention.check("Where scores grow along the text, are both total and o multiplied by the factor?")
def growing_scores(answer):
    inputs = with_scores(9.0, 12)
    return answer(*inputs, 6, 2)[0], causal_attention(*inputs)


@tiled_attention.check("Does the inner loop end with the text? T = 9 is no multiple of 4 queries.")
def a_shorter_last_block(answer):
    inputs = with_scores(3.0, 9)
    return answer(*inputs, 4, 3)[0], causal_attention(*inputs)


@tiled_attention.check("Is a tile left out if all its keys are in the future of all its queries?")
def only_tiles_that_are_seen(answer):
    inputs, sizes = with_scores(6.0, 16), ((8, 2), (2, 8), (4, 4))
    return [answer(*inputs, *size) for size in sizes], [
        (causal_attention(*inputs), tiles_by_pairs(16, *size)) for size in sizes
    ]


@tiled_attention.check("Is the largest score subtracted before exp? Scores go up to 2000 here.")
def large_scores(answer):
    inputs = with_scores(2000.0, 8)
    return answer(*inputs, 4, 2)[0], causal_attention(*inputs)


@exercise("Tiles when keys lie in a cache")
def tile_kinds(
    num_queries: int,
    num_keys: int,
    rows: int,
    columns: int,
    window: int | None,
) -> tuple[int, int, int]:
    """Count the tiles that are skipped, masked, and whole, for queries with a past.

    The T queries are the last T of S tokens: query t stands at position S - T + t, and key j
    at position j. A query at position i sees the keys with 0 <= i - j < window. A tile without
    a visible pair is skipped. It is whole if all its pairs are visible, else masked.

    Args:
        num_queries: T.
        num_keys: S, at least T.
        rows, columns: queries and keys in a tile; the last tiles may hold fewer.
        window: W, or None for no limit.

    Returns:
        The numbers of skipped, masked and whole tiles.
    """
    counts, past = [0, 0, 0], num_keys - num_queries
    W = num_keys if window is None else window
    for start in range(0, num_queries, rows):
        first, last = past + start, past + min(start + rows, num_queries) - 1  # positions
        for oldest in range(0, num_keys, columns):
            newest = min(oldest + columns, num_keys) - 1
            some = last - oldest >= 0 and first - newest < W
            every = first - newest >= 0 and last - oldest < W
            counts[2 if every else 1 if some else 0] += 1
    return tuple(counts)


def kinds_by_pairs(T: int, S: int, rows: int, columns: int, window: int | None) -> tuple[int, int, int]:
    tiles: dict[tuple[int, int], list[bool]] = {}
    for t in range(T):
        for j in range(S):
            distance = S - T + t - j
            visible = 0 <= distance and (window is None or distance < window)
            tiles.setdefault((t // rows, j // columns), []).append(visible)
    found = [2 if all(pairs) else 1 if any(pairs) else 0 for pairs in tiles.values()]
    return found.count(0), found.count(1), found.count(2)


@tile_kinds.check("Without a past and a window: is the future skipped, and each tile on the diagonal masked?")
def causal_only(answer):
    return answer(12, 12, 4, 4, None), kinds_by_pairs(12, 12, 4, 4, None)


@tile_kinds.check("Do the queries stand at the end of the keys, query t at position S - T + t?")
def with_a_past(answer):
    return answer(8, 20, 4, 4, None), kinds_by_pairs(8, 20, 4, 4, None)


@tile_kinds.check("Is a tile skipped that is too old for all of its queries, and masked if only some still see it?")
def behind_the_window(answer):
    return answer(8, 28, 4, 4, 10), kinds_by_pairs(8, 28, 4, 4, 10)


@tile_kinds.check("Is the query's own position counted in W? Each tile is a single pair here.")
def own_position(answer):
    return answer(5, 6, 1, 1, 3), kinds_by_pairs(5, 6, 1, 1, 3)


@tile_kinds.check("Do the last tiles hold only what is left of the queries and keys?")
def what_is_left(answer):
    return answer(10, 21, 4, 6, 16), kinds_by_pairs(10, 21, 4, 6, 16)


@exercise("Workers that share the keys")
def merge_workers(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Merge what N workers found, each with the same queries and its own share of the keys.

    Each worker's output is complete for its keys: divided by its own sum. Its lse is the
    logarithm of the sum of exp(score) over its keys. A worker that saw no key of a query has
    the output 0 and the lse -inf there.

    Args:
        outs: (N, T, Dh).
        lses: (N, T).

    Returns:
        The output (T, Dh) and the lse (T,) of attention to all keys together. A query whose
        keys nobody saw has the output 0 and the lse -inf.
    """
    lse = lses.logsumexp(0)  # (T,)
    shares = (lses - lse.masked_fill(lse == -math.inf, 0)).exp()  # (N, T), of sum 1 or all 0
    return (shares[..., None] * outs).sum(0), lse


def workers_and_whole(
    scores: Tensor, values: Tensor, cuts: list[int]
) -> tuple[tuple[Tensor, Tensor], tuple[np.ndarray, np.ndarray]]:
    """Return what workers find who share the keys at `cuts`, and the attention to all of them."""

    def attend(s: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base = np.where(np.isfinite(s.max(1)), s.max(1), 0)
        weights = np.exp(s - base[:, None])
        total = weights.sum(1)
        with np.errstate(divide="ignore"):
            return weights @ v / np.where(total > 0, total, 1)[:, None], base + np.log(total)

    s, v = scores.double().numpy(), values.double().numpy()
    parts = [attend(s[:, a:b], v[a:b]) for a, b in zip([0, *cuts], [*cuts, len(v)], strict=True)]
    outs, lses = (torch.from_numpy(np.stack(each)).float() for each in zip(*parts, strict=True))
    return (outs, lses), attend(s, v)


@merge_workers.check("Does a worker with more keys count more? All scores are equal, and one has 3 of the 4 keys.")
def by_number_of_keys(answer):
    parts, whole = workers_and_whole(torch.zeros(1, 4), torch.tensor([[0.0], [0.0], [0.0], [8.0]]), [3])
    return answer(*parts)[0], whole[0]


@merge_workers.check("Is a worker's share exp(lse)? One key each here, with the scores 0 and 3.")
def by_exponentials(answer):
    parts, whole = workers_and_whole(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0], [2.0]]), [1])
    return answer(*parts)[0], whole[0]


@merge_workers.check("Does each query have shares of its own?")
def own_shares(answer):
    parts, whole = workers_and_whole(torch.randn(5, 9) * 3, torch.randn(9, 4), [3, 5])
    return answer(*parts)[0], whole[0]


@merge_workers.check("Is the merged lse the logarithm of the summed exponentials, so that results can be merged again?")
def merged_lse(answer):
    parts, whole = workers_and_whole(torch.randn(5, 9) * 3, torch.randn(9, 4), [2, 6])
    return answer(*parts)[1], whole[1]


@merge_workers.check("Does it stay finite for large scores?")
def large_lse(answer):
    parts, whole = workers_and_whole(torch.tensor([[500.0, 499.0], [-500.0, -501.0]]), torch.randn(2, 3), [1])
    return answer(*parts), whole


@merge_workers.check("Is the result free of NaN where no worker saw a key?")
def nobody_saw_a_key(answer):
    scores = torch.tensor([[1.0, 2.0, 0.5], [-math.inf, -math.inf, 0.0], [-math.inf, -math.inf, -math.inf]])
    parts, whole = workers_and_whole(scores, torch.randn(3, 2), [1, 2])
    return answer(*parts), whole


@exercise("Predict before you run")
def forecast() -> dict[str, float]:
    """Commit to six numbers before you run anything.

    The setting: causal attention with a window of 4,096 keys on a text of 32,768 tokens. The
    eager form writes all scores and weights to memory and hides pairs with a mask. The tiled
    form is FlashAttention-2 with 64 queries and 64 keys in a tile.

    Returns:
        "eager, kept": the factor by which the memory kept for the backward pass grows in the
            eager form, when the text becomes twice as long.
        "tiles, kept": the same in the tiled form.
        "tiles, read": the factor by which the keys and values that the tiled form reads in the
            forward pass grow, when the text becomes twice as long.
        "more queries": the factor by which they change when a tile holds 128 queries instead.
        "one query": decoding one token with 32,768 keys in the cache, no window and heads of
            128 numbers: the bytes that the eager form moves, divided by those of the tiled
            form. Both read keys and values once; eager adds four passes over its scores.
        "products": the matrix products in the forward and backward pass of the tiled form,
            divided by those of the eager form.
    """
    return {
        "eager, kept": 4,  # T² weights, whether the mask hides them or not
        "tiles, kept": 2,  # q, k, v, output and lse: all T long
        "tiles, read": 2,  # T / R blocks of queries, and each reads about W keys
        "more queries": 0.5,  # half as many blocks, each with W + R keys at most
        "one query": 1 + 4 / (2 * 128),  # per key: 4 scores move, and 2 Dh numbers of k and v
        "products": 7 / 6,  # the scores again
    }


def verdict(found: object, exact: float) -> object:
    """Compare in words, so that a message does not give the number away."""
    if not isinstance(found, int | float):
        return found
    return "right" if abs(found - exact) <= 0.04 * exact else "too low" if found < exact else "too high"


def keys_read(T: int, R: int, C: int, window: int) -> int:
    """Count the keys that are loaded, tile by tile."""
    loaded = 0
    for start in range(0, T, R):
        oldest = max(0, start - window + 1)
        loaded += C * len(range(oldest // C, (start + R - 1) // C + 1))
    return loaded


@forecast.check("What does the eager form keep of a pair that the mask hides: nothing, or a weight of 0?")
def eager_keeps_all_pairs(answer):
    return verdict(answer()["eager, kept"], 4), "right"


@forecast.check("Which of the five tensors that the tiled form keeps has more than one side of length T?")
def tiles_keep_rows(answer):
    return verdict(answer()["tiles, kept"], 2), "right"


@forecast.check("How many keys does one block of queries read with a window, and how many blocks are there?")
def blocks_times_window(answer):
    grown = keys_read(65536, 64, 64, 4096) / keys_read(32768, 64, 64, 4096)
    return verdict(answer()["tiles, read"], grown), "right"


@forecast.check("With twice the queries in a tile, how many blocks read the window's keys?")
def half_as_many_blocks(answer):
    changed = keys_read(32768, 128, 64, 4096) / keys_read(32768, 64, 64, 4096)
    return verdict(answer()["more queries"], changed), "right"


@forecast.check("How large are the scores of one query, beside the keys and values that either form has to read?")
def one_row_of_scores(answer):
    keys_and_values, scores = 2 * 32768 * 128, 4 * 32768
    return verdict(answer()["one query"], (keys_and_values + scores) / keys_and_values), "right"


@forecast.check("Forward: scores, output. Backward: dV, dP, dQ, dK. Which product does recomputation add?")
def one_more_product(answer):
    return verdict(answer()["products"], 7 / 6), "right"
