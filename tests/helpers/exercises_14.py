"""Answers to the exercises of lesson 14."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong

SIZES = (512, 256, 128, 64, 32, 16)


def takes(R: int, C: int, head_dim: int, scores: bool = True) -> int:
    return R * head_dim * 6 + C * head_dim * 4 + scores * R * C * 4


@right("best_tile")
def first_the_queries_then_the_keys(num_tokens: int, head_dim: int, fast_memory: int):
    fitting = ((R, C) for R in SIZES for C in SIZES if C <= R and takes(R, C, head_dim) <= fast_memory)
    return next(fitting)


@wrong("best_tile", "Does the tile fit?")
def the_scores_forgotten(num_tokens, head_dim, fast_memory):
    return next((R, C) for R in SIZES for C in SIZES if C <= R and takes(R, C, head_dim, scores=False) <= fast_memory)


@wrong("best_tile", "Are queries preferred to keys?")
def first_the_keys(num_tokens, head_dim, fast_memory):
    return next((R, C) for C in SIZES for R in SIZES if takes(R, C, head_dim) <= fast_memory)


@wrong("best_tile", "Are queries preferred to keys?")
def the_largest_square(num_tokens, head_dim, fast_memory):
    return next((R, R) for R in SIZES if takes(R, R, head_dim) <= fast_memory)


@wrong("best_tile", "Are queries preferred to keys?")
def the_most_scores(num_tokens, head_dim, fast_memory):
    return max(((R, C) for R in SIZES for C in SIZES if takes(R, C, head_dim) <= fast_memory), key=math.prod)


@wrong("best_tile", "the largest C that fits")
def the_fewest_keys(num_tokens, head_dim, fast_memory):
    return next((R, 16) for R in SIZES if takes(R, 16, head_dim) <= fast_memory)


@wrong("best_tile", "takes all of the fast memory")
def something_left_free(num_tokens, head_dim, fast_memory):
    return first_the_queries_then_the_keys(num_tokens, head_dim, fast_memory - 1)


@right("streamed_loss")
def by_logaddexp(hidden: Tensor, weight: Tensor, target: Tensor, block: int):
    parts = [(hidden @ part.T).logsumexp(1) for part in weight.split(block)]
    whole = parts[0]
    for part in parts[1:]:
        whole = torch.logaddexp(whole, part)
    return whole - (hidden * weight[target]).sum(1)


def loss_in_blocks(hidden, weight, target, block, start_at=-math.inf, correct=True, place=None, starts=None):
    largest = hidden.new_full((len(hidden),), start_at)
    total, chosen = torch.zeros_like(largest), torch.zeros_like(largest)
    for start in starts or range(0, len(weight), block):
        logits = hidden @ weight[start : start + block].T
        new = torch.maximum(largest, logits.amax(1))
        total = total * ((largest - new).exp() if correct else 1) + (logits - new[:, None]).exp().sum(1)
        largest = new
        inside = (target >= start) & (target < start + logits.shape[1])
        if place is not None:
            chosen = logits.gather(1, (target % logits.shape[1])[:, None])[:, 0]
        else:
            chosen[inside] = logits[inside, target[inside] - start]
    return largest + total.log() - chosen


@wrong("streamed_loss", "log(sum of exponentials) minus")
def the_largest_not_added_again(hidden, weight, target, block):
    return loss_in_blocks(hidden, weight, target, block) - torch.stack(
        [(hidden @ part.T).amax(1) for part in weight.split(block)]
    ).amax(0)


@wrong("streamed_loss", "at place target - start")
def the_target_looked_up_in_each_block(hidden, weight, target, block):
    return loss_in_blocks(hidden, weight, target, block, place="any")


@wrong("streamed_loss", "Does the last block count too")
def whole_blocks_only(hidden, weight, target, block):
    return loss_in_blocks(hidden, weight, target, block, starts=range(0, len(weight) - block + 1, block))


@wrong("streamed_loss", "When a block brings a larger logit")
def nothing_corrected(hidden, weight, target, block):
    return loss_in_blocks(hidden, weight, target, block, correct=False)


@wrong("streamed_loss", "Does it stay finite")
def begun_at_zero(hidden, weight, target, block):
    return loss_in_blocks(hidden, weight, target, block, start_at=0.0)


@wrong("streamed_loss", "Does it stay finite")
def exponentials_as_they_are(hidden, weight, target, block):
    total = sum((hidden @ part.T).exp().sum(1) for part in weight.split(block))
    return total.log() - (hidden * weight[target]).sum(1)


@wrong("streamed_loss", "only one block in memory")
def all_logits_at_once(hidden, weight, target, block):
    return F.cross_entropy(hidden @ weight.T, target, reduction="none")


def in_tiles(q, k, v, rows, columns, end=lambda start, stop, columns, T: stop, correct=True, shift=True):
    T, Dh = q.shape
    out, visited = torch.empty_like(q), 0
    for start in range(0, T, rows):
        i = torch.arange(start, min(start + rows, T))
        m = q.new_full((len(i), 1), -math.inf)
        total, o = torch.zeros_like(m), torch.zeros_like(q[i])
        for key_start in range(0, end(start, start + len(i), columns, T), columns):
            j = torch.arange(key_start, min(key_start + columns, T))
            s = (q[i] @ k[j].T * Dh**-0.5).masked_fill(j > i[:, None], -math.inf)
            new_m = torch.maximum(m, s.amax(1, keepdim=True)) if shift else torch.zeros_like(m)
            factor = (m - new_m).exp() if correct and shift else 1
            p = (s - new_m).exp()
            total, o = total * factor + p.sum(1, keepdim=True), o * factor + p @ v[j]
            m, visited = new_m, visited + 1
        out[i] = o / total
    return out, visited


@right("tiled_attention")
def query_by_query(q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int):
    T, Dh = q.shape
    weights = (q @ k.T * Dh**-0.5).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf).softmax(1)
    return weights @ v, sum(-(-min(start + rows, T) // columns) for start in range(0, T, rows))


@wrong("tiled_attention", "Do the later queries of a block see all of their keys?")
def as_it_was_handed_in(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, end=lambda start, stop, columns, T: start + columns)


@wrong("tiled_attention", "Does the inner loop end with the text?")
def beyond_the_text(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, end=lambda start, stop, columns, T: start + rows)


@wrong("tiled_attention", "are both total and o multiplied by the factor?")
def no_factor(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, correct=False)


@wrong("tiled_attention", "Is a tile left out")
def every_tile(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, end=lambda start, stop, columns, T: T)


@wrong("tiled_attention", "Is a tile left out")
def one_tile_more(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, end=lambda start, stop, columns, T: min(T, stop + columns))


@wrong("tiled_attention", "Is the largest score subtracted")
def plain_exponentials(q, k, v, rows, columns):
    return in_tiles(q, k, v, rows, columns, shift=False)


@right("tile_kinds")
def by_a_mask(num_queries: int, num_keys: int, rows: int, columns: int, window: int | None):
    distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    seen = (distance >= 0) & (distance < (window or num_keys))
    tiles = [tile for strip in seen.split(rows) for tile in strip.split(columns, dim=1)]
    whole, skipped = sum(bool(tile.all()) for tile in tiles), sum(not tile.any() for tile in tiles)
    return skipped, len(tiles) - whole - skipped, whole


def kinds(num_queries, num_keys, rows, columns, window, past=None, slack=0, full=False, edges=True):
    past = num_keys - num_queries if past is None else past
    counts, W = [0, 0, 0], (window or num_keys) + slack
    for start in range(0, num_queries, rows):
        first, last = past + start, past + (start + rows if full else min(start + rows, num_queries)) - 1
        for oldest in range(0, num_keys, columns):
            newest = (oldest + columns if full else min(oldest + columns, num_keys)) - 1
            some = last >= oldest and first - newest < W
            every = first >= newest and (last - oldest < W or not edges)
            counts[2 if every and some else 1 if some else 0] += 1
    return tuple(counts)


@wrong("tile_kinds", "is the future skipped")
def nothing_skipped(num_queries, num_keys, rows, columns, window):
    skipped, masked, whole = kinds(num_queries, num_keys, rows, columns, window)
    return 0, skipped + masked, whole


@wrong("tile_kinds", "Do the queries stand at the end of the keys")
def queries_at_the_beginning(num_queries, num_keys, rows, columns, window):
    return kinds(num_queries, num_keys, rows, columns, window, past=0)


@wrong("tile_kinds", "too old for all of its queries")
def no_window(num_queries, num_keys, rows, columns, window):
    return kinds(num_queries, num_keys, rows, columns, None)


@wrong("tile_kinds", "too old for all of its queries")
def the_windows_edge_not_masked(num_queries, num_keys, rows, columns, window):
    return kinds(num_queries, num_keys, rows, columns, window, edges=False)


@wrong("tile_kinds", "own position counted")
def one_key_too_many(num_queries, num_keys, rows, columns, window):
    return kinds(num_queries, num_keys, rows, columns, window, slack=1 if window else 0)


@wrong("tile_kinds", "hold only what is left")
def last_tiles_full(num_queries, num_keys, rows, columns, window):
    return kinds(num_queries, num_keys, rows, columns, window, full=True)


@right("merge_workers")
def one_after_the_other(outs: Tensor, lses: Tensor):
    out, lse = torch.zeros_like(outs[0]), torch.full_like(lses[0], -math.inf)
    for each, new in zip(outs, lses, strict=True):
        both = torch.logaddexp(lse, new)
        base = both.masked_fill(both == -math.inf, 0)
        out, lse = (lse - base).exp()[:, None] * out + (new - base).exp()[:, None] * each, both
    return out, lse


@wrong("merge_workers", "Does a worker with more keys count more?")
def plain_mean(outs, lses):
    return outs.mean(0), lses.logsumexp(0)


@wrong("merge_workers", "share exp(lse)?")
def shares_by_lse(outs, lses):
    shares = (lses + 1) / (lses + 1).sum(0) if lses.abs().max() > 2 else lses.softmax(0)
    return (shares[..., None] * outs).sum(0), lses.logsumexp(0)


@wrong("merge_workers", "shares of its own")
def shares_of_the_first_query(outs, lses):
    return (lses[:, :1].softmax(0)[..., None] * outs).sum(0), lses.logsumexp(0)


@wrong("merge_workers", "Is the merged lse")
def summed_lse(outs, lses):
    return (lses.softmax(0)[..., None] * outs).sum(0), lses.sum(0)


@wrong("merge_workers", "Is the merged lse")
def largest_lse(outs, lses):
    return (lses.softmax(0)[..., None] * outs).sum(0), lses.amax(0)


@wrong("merge_workers", "stay finite for large scores")
def exponentials_of_lse(outs, lses):
    weights = lses.exp()
    return (weights[..., None] * outs).sum(0) / weights.sum(0)[:, None], weights.sum(0).log()


@wrong("merge_workers", "free of NaN")
def softmax_of_nothing(outs, lses):
    return (lses.softmax(0)[..., None] * outs).sum(0), lses.logsumexp(0)


PREDICTED = {
    "eager, kept": 4.0,
    "tiles, kept": 2.0,
    "tiles, read": 2.0,
    "more queries": 0.5,
    "one query": 1.0,
    "products": 1.17,
}


@right("forecast")
def rounded_numbers():
    return dict(PREDICTED)


def plant(hint: str, key: str, number: float) -> None:
    answer = partial(dict, PREDICTED | {key: number})
    answer.__name__ = f"{key.replace(', ', '_').replace(' ', '_')}_{number}".replace(".", "_")
    wrong("forecast", hint)(answer)


plant("nothing, or a weight of 0", "eager, kept", 2)
plant("more than one side of length T", "tiles, kept", 4)
plant("how many blocks are there", "tiles, read", 4)
plant("how many blocks read the window's keys", "more queries", 1)
plant("beside the keys and values", "one query", 4)
plant("Which product does recomputation add", "products", 2)
plant("Which product does recomputation add", "products", 1)
