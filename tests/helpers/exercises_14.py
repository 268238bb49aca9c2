"""Answers to the exercises of lesson 14."""

import math

import torch
from torch import Tensor

from exercise_answers import right, wrong


@right("online_sum")
def by_logsumexp(blocks: list[Tensor]):
    scores = torch.cat(blocks)
    return scores.max().item(), (scores.logsumexp(0) - scores.max()).exp().item()


@right("online_sum")
def score_by_score(blocks: list[Tensor]):
    largest, total = None, 0.0
    for score in (s for block in blocks for s in block.tolist()):
        if largest is None or score > largest:
            total = 1.0 if largest is None else total * math.exp(largest - score) + 1.0
            largest = score
        else:
            total += math.exp(score - largest)
    return largest, total


@wrong("online_sum", "subtracted before exp")
def nothing_subtracted(blocks):
    scores = torch.cat(blocks)
    return scores.max().item(), scores.exp().sum().item()


@wrong("online_sum", "where all are negative")
def begun_at_zero(blocks):
    largest, total = 0.0, 0.0
    for block in blocks:
        new = max(largest, block.max().item())
        total = total * math.exp(largest - new) + (block - new).exp().sum().item()
        largest = new
    return largest, total


@wrong("online_sum", "Do later blocks add")
def only_the_block_with_the_largest(blocks):
    best = max(blocks, key=lambda block: block.max().item())
    return by_logsumexp([best])


@wrong("online_sum", "multiplied by exp(old largest - new largest)")
def no_correction(blocks):
    largest, total = -math.inf, 0.0
    for block in blocks:
        largest = max(largest, block.max().item())
        total += (block - largest).exp().sum().item()
    return largest, total


@wrong("online_sum", "finite for large scores")
def by_exponentials_as_they_are(blocks):
    scores = torch.cat(blocks)
    return scores.max().item(), (scores.exp().sum() / scores.max().exp()).item()


@right("merge_attention")
def by_logarithms(out1, largest1, total1, out2, largest2, total2):
    first = torch.sigmoid((largest1 + total1.log()) - (largest2 + total2.log()))
    return first[:, None] * out1 + (1 - first)[:, None] * out2


@right("merge_attention")
def row_by_row(out1, largest1, total1, out2, largest2, total2):
    rows = []
    for t in range(len(out1)):
        top = max(largest1[t].item(), largest2[t].item())
        a, b = total1[t] * math.exp(largest1[t] - top), total2[t] * math.exp(largest2[t] - top)
        rows.append((a * out1[t] + b * out2[t]) / (a + b))
    return torch.stack(rows)


@wrong("merge_attention", "count more")
def plain_mean(out1, largest1, total1, out2, largest2, total2):
    return (out1 + out2) / 2


@wrong("merge_attention", "brought to one largest score")
def by_the_sums_alone(out1, largest1, total1, out2, largest2, total2):
    share = (total1 / (total1 + total2))[:, None]
    return share * out1 + (1 - share) * out2


@wrong("merge_attention", "shares of its own")
def one_share_for_all(out1, largest1, total1, out2, largest2, total2):
    first = torch.sigmoid((largest1 + total1.log()) - (largest2 + total2.log()))[0]
    return first * out1 + (1 - first) * out2


@wrong("merge_attention", "finite for large scores")
def exponentials_of_the_largest(out1, largest1, total1, out2, largest2, total2):
    a, b = (total1 * largest1.exp())[:, None], (total2 * largest2.exp())[:, None]
    return (a * out1 + b * out2) / (a + b)


@right("visited_tiles")
def by_looking_at_all_pairs(num_tokens: int, block: int, window: int):
    pairs = ((i, j) for i in range(num_tokens) for j in range(max(0, i - window + 1), i + 1))
    return sorted({(i // block, j // block) for i, j in pairs})


@right("visited_tiles")
def by_a_mask(num_tokens: int, block: int, window: int):
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    seen = (distance >= 0) & (distance < window)
    tiles = seen.view(num_tokens // block, block, num_tokens // block, block).any(3).any(1)
    return [tuple(pair) for pair in tiles.nonzero().tolist()]


def tiles_from(num_tokens: int, block: int, oldest) -> list[tuple[int, int]]:
    return [(a, b) for a in range(num_tokens // block) for b in range(max(0, oldest(a)) // block, a + 1)]


@wrong("visited_tiles", "none above it")
def every_tile(num_tokens, block, window):
    blocks = range(num_tokens // block)
    return [(a, b) for a in blocks for b in blocks]


@wrong("visited_tiles", "older than the window")
def the_window_is_ignored(num_tokens, block, window):
    return tiles_from(num_tokens, block, lambda a: 0)


@wrong("visited_tiles", "looks back the furthest")
def the_last_query_of_a_block(num_tokens, block, window):
    return tiles_from(num_tokens, block, lambda a: a * block + block - 1 - window + 1)


@wrong("visited_tiles", "own position counted")
def one_key_too_many(num_tokens, block, window):
    return tiles_from(num_tokens, block, lambda a: a * block - window)


@wrong("visited_tiles", "own position counted")
def one_key_too_few(num_tokens, block, window):
    return tiles_from(num_tokens, block, lambda a: a * block - window + 2)
