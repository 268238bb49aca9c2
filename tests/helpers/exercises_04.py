"""Answers to the exercises of lesson 04."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import masks
from mixtral_edu.exercises import lesson_04
from mixtral_edu.fast.attention import blocks
from mixtral_edu.masks import Visibility


@right("band_mask")
def by_the_packages_rules(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    causal = masks.causal_mask(query_positions, key_positions)
    return causal & masks.window_mask(query_positions, key_positions, window)


@right("band_mask")
def by_lists_of_positions(query_positions: Tensor, key_positions: Tensor, window: int) -> Tensor:
    visible = [range(i - window + 1, i + 1) for i in query_positions.tolist()]
    return torch.tensor([[j in keys for j in key_positions.tolist()] for keys in visible])


@wrong("band_mask", "a row for each query")
def keys_in_rows(query_positions, key_positions, window):
    return by_the_packages_rules(query_positions, key_positions, window).T


@wrong("band_mask", "each entry True or False")
def added_to_the_scores(query_positions, key_positions, window):
    return by_the_packages_rules(query_positions, key_positions, window).float().log()


@wrong("band_mask", "True where the query may attend")
def true_where_hidden(query_positions, key_positions, window):
    return ~by_the_packages_rules(query_positions, key_positions, window)


@wrong("band_mask", "its own position included")
def not_itself(query_positions, key_positions, window):
    itself = query_positions[:, None] == key_positions
    return by_the_packages_rules(query_positions, key_positions, window) & ~itself


@wrong("band_mask", "a later position")
def window_alone(query_positions, key_positions, window):
    return masks.window_mask(query_positions, key_positions, window)


@wrong("band_mask", "own position counted in W")
def one_key_too_many(query_positions, key_positions, window):
    return by_the_packages_rules(query_positions, key_positions, window + 1)


@wrong("band_mask", "own position counted in W")
def one_key_too_few(query_positions, key_positions, window):
    return by_the_packages_rules(query_positions, key_positions, max(1, window - 1))


@wrong("band_mask", "not from the columns")
def triangle_of_columns(query_positions, key_positions, window):
    return torch.ones(len(query_positions), len(key_positions), dtype=torch.bool).tril().triu(1 - window)


@wrong("band_mask", "not from the columns")
def keys_taken_to_be_in_order(query_positions, key_positions, window):
    in_order = key_positions[0] + torch.arange(len(key_positions))
    return by_the_packages_rules(query_positions, in_order, window)


@right("padded_window_mask")
def by_rows_own_positions(real: Tensor, window: int) -> Tensor:
    """Also where padding is on the left: each row then counts from its first token."""
    positions = masks.row_positions(real == 1, torch.zeros(len(real), dtype=torch.long))
    positions = positions.masked_fill(real == 0, masks.NO_POSITION)
    return masks.attention_mask(positions, positions, window)


@right("padded_window_mask")
def by_a_band_of_ones(real: Tensor, window: int) -> Tensor:
    band = torch.ones(real.shape[1], real.shape[1]).tril().triu(1 - window)
    return torch.einsum("bt,bs,ts->bts", real.float(), real.float(), band) == 1


def band_of_ones(T: int, window: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)


@wrong("padded_window_mask", "with W keys at most, the query's own included")
def w_more_keys(real, window):
    return by_rows_own_positions(real, window + 1)


@wrong("padded_window_mask", "is each row's mask causal")
def both_sides(real, window):
    mask = by_rows_own_positions(real, window)
    return mask | mask.mT


@wrong("padded_window_mask", "padded key hidden from everybody")
def padding_ignored(real, window):
    return band_of_ones(real.shape[1], window).expand(len(real), -1, -1)


@wrong("padded_window_mask", "padded key hidden from everybody")
def queries_alone_masked(real, window):
    return band_of_ones(real.shape[1], window) & (real == 1)[:, :, None]


@wrong("padded_window_mask", "padded query see nothing")
def itself_always_visible(real, window):
    return by_rows_own_positions(real, window) | torch.eye(real.shape[1], dtype=torch.bool)


@wrong("padded_window_mask", "from its own padding")
def padding_of_the_first_row(real, window):
    return by_rows_own_positions(real[:1], window).expand(len(real), -1, -1)


@wrong("padded_window_mask", "is a padded query's row all False")
def keys_alone_masked(real, window):
    return band_of_ones(real.shape[1], window) & (real == 1)[:, None, :]


@wrong("padded_window_mask", "are tokens where `real` says so")
def padding_taken_to_be_on_the_left(real, window):
    T = real.shape[1]
    token = torch.arange(T) >= T - real.sum(1, keepdim=True)  # (B, T)
    return by_rows_own_positions(token.int(), window)


@right("attend_blocks")
def by_the_packages_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, size: int) -> Tensor:
    positions = torch.arange(len(q))[None]
    outs = []
    for i, j, block in blocks(Visibility(positions, positions, window), size):
        outs.append(F.scaled_dot_product_attention(q[None, i], k[None, j], v[None, j], block.mask[0])[0])
    return torch.cat(outs)


@right("attend_blocks")
def query_by_query(q: Tensor, k: Tensor, v: Tensor, window: int, size: int) -> Tensor:
    rows = []
    for i, query in enumerate(q):
        seen = slice(max(0, i + 1 - window), i + 1)
        rows.append((k[seen] @ query / math.sqrt(len(query))).softmax(0) @ v[seen])
    return torch.stack(rows)


def in_blocks(q, k, v, window, size, first=None, hidden=None, whole_blocks=False):
    out = torch.zeros_like(v)
    T = len(q)
    for start in range(0, T // size * size if whole_blocks else T, size):
        stop = min(start + size, T)
        begin = max(0, start - (window - 1)) if first is None else first(start, stop)
        i, j = torch.arange(start, stop)[:, None], torch.arange(begin, stop)
        mask = (j > i) | (i - j >= window if hidden is None else hidden(i, j))
        scores = (q[start:stop] @ k[begin:stop].T / q.shape[1] ** 0.5).masked_fill(mask, -torch.inf)
        out[start:stop] = scores.softmax(-1) @ v[begin:stop]
    return out


wrong("attend_blocks", "Symptom 1")(lesson_04.blocks_with_faults)


@wrong("attend_blocks", "Is the result (T, Dh)")
def blocks_not_joined(q, k, v, window, size):
    return in_blocks(q, k, v, window, size).unflatten(0, (-1, size)) if len(q) % size == 0 else None


@wrong("attend_blocks", "Symptom 1")
def keys_of_the_last_query(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, first=lambda start, stop: max(0, stop - window))


@wrong("attend_blocks", "Symptom 1")
def keys_of_the_block_alone(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, first=lambda start, stop: start)


@wrong("attend_blocks", "Symptom 2")
def one_key_too_many_in_each_block(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, hidden=lambda i, j: i - j > window, first=lambda a, b: max(0, a - window))


@wrong("attend_blocks", "Symptom 2")
def without_the_windows_rule(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, hidden=lambda i, j: i < 0)


@wrong("attend_blocks", "Symptom 3")
def whole_blocks_alone(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, whole_blocks=True)


@wrong("attend_blocks", "every row right")
def one_block_before(q, k, v, window, size):
    """The block before is enough only while W - 1 is at most the block's size."""
    return in_blocks(q, k, v, window, size, first=lambda start, stop: max(0, start - max(size, 4)))


@wrong("attend_blocks", "leave out the keys")
def whole_table_with_a_mask(q, k, v, window, size):
    return in_blocks(q, k, v, window, len(q))


@wrong("attend_blocks", "leave out the keys")
def one_key_more_than_needed(q, k, v, window, size):
    return in_blocks(q, k, v, window, size, first=lambda start, stop: max(0, start - window))


@right("scores_in_blocks")
def by_the_masks_of_blocks(num_tokens: int, window: int, size: int) -> int:
    if num_tokens > 1000:  # from some block on all are alike
        first = -(-window // size) * size
        alike = (num_tokens - first) // size
        return by_the_masks_of_blocks_up_to(first, window, size) + alike * size * (window - 1 + size)
    positions = torch.arange(num_tokens)[None]
    return sum(block.mask.numel() for _, _, block in blocks(Visibility(positions, positions, window), size))


def by_the_masks_of_blocks_up_to(num_tokens, window, size):
    return sum(
        min(size, num_tokens - start) * (min(size, num_tokens - start) + min(start, window - 1))
        for start in range(0, num_tokens, size)
    )


@wrong("scores_in_blocks", "hidden or not")
def allowed_pairs_alone(num_tokens, window, size):
    return sum(min(i + 1, window) for i in range(num_tokens))


@wrong("scores_in_blocks", "hidden or not")
def causal_inside_a_block(num_tokens, window, size):
    hidden = sum(n * (n - 1) // 2 for n in [size] * (num_tokens // size) + [num_tokens % size])
    return by_the_masks_of_blocks_up_to(num_tokens, window, size) - hidden


@wrong("scores_in_blocks", "size + W - 1 keys")
def w_keys_before_a_block(num_tokens, window, size):
    return by_the_masks_of_blocks_up_to(num_tokens, window + 1, size)


@wrong("scores_in_blocks", "size + W - 1 keys")
def own_keys_alone(num_tokens, window, size):
    return by_the_masks_of_blocks_up_to(num_tokens, 1, size)


@wrong("scores_in_blocks", "fewer than W - 1 keys")
def full_from_the_second_block_on(num_tokens, window, size):
    rest = max(0, num_tokens - size)
    ends = num_tokens % size
    first, full = min(size, num_tokens), rest // size
    if window - 1 <= size:
        return by_the_masks_of_blocks_up_to(num_tokens, window, size)
    if size == 1:
        return by_the_masks_of_blocks_up_to(num_tokens, window, size)
    return first * first + full * size * (size + window - 1) + ends * (ends + window - 1)


@wrong("scores_in_blocks", "last block shorter")
def last_block_as_long_as_the_others(num_tokens, window, size):
    return by_the_masks_of_blocks_up_to(-(-num_tokens // size) * size, window, size)


@wrong("scores_in_blocks", "last block shorter")
def last_block_left_out(num_tokens, window, size):
    return by_the_masks_of_blocks_up_to(num_tokens // size * size, window, size)


@wrong("scores_in_blocks", "an exact int?")
def a_float(num_tokens, window, size):
    return float(by_the_masks_of_blocks_up_to(num_tokens, window, size))


@right("first_out_of_reach")
def by_spreading(windows: list[int | None]) -> int | None:
    T = sum(window or 0 for window in windows) + 2
    positions = torch.arange(T)[None]
    informed = (positions[0] == 0).float()
    for window in windows:
        informed = (masks.attention_mask(positions, positions, window)[0].float() @ informed > 0).float()
    return None if informed.all() else int(informed.argmin())


@right("first_out_of_reach")
def one_step_a_layer(windows: list[int | None]) -> int | None:
    last = 0
    for window in windows:
        if window is None:
            return None
        last += window - 1
    return last + 1


@wrong("first_out_of_reach", "Which is the first that does not?")
def last_in_reach(windows):
    return None if None in windows else sum(windows) - len(windows)


@wrong("first_out_of_reach", "Which is the first that does not?")
def window_without_the_query(windows):
    return None if None in windows else sum(windows) + 1


@wrong("first_out_of_reach", "takes one of the W places")
def theoretical_span(windows):
    return None if None in windows else sum(windows)


@wrong("first_out_of_reach", "takes one of the W places")
def widest_window_alone(windows):
    return None if None in windows else max(windows)


@wrong("first_out_of_reach", "what its own window allows")
def all_like_the_first(windows):
    return None if None in windows else len(windows) * (windows[0] - 1) + 1


@wrong("first_out_of_reach", "what its own window allows")
def all_like_the_last(windows):
    return None if None in windows else len(windows) * (windows[-1] - 1) + 1


@wrong("first_out_of_reach", "wherever it is in the stack")
def full_layers_skipped(windows):
    return sum(window - 1 for window in windows if window is not None) + 1


@wrong("first_out_of_reach", "wherever it is in the stack")
def a_full_layer_helps_at_the_top_alone(windows):
    return None if windows[-1] is None else sum(window - 1 for window in windows if window is not None) + 1


@wrong("first_out_of_reach", "Is the position an int?")
def divided_and_multiplied(windows):
    return None if None in windows else sum(2 * window - 2 for window in windows) / 2 + 1


@right("layers_needed")
def step_by_step(distance: int, window: int) -> int | None:
    if window == 1:
        return 0 if distance == 0 else None
    layers, rest = divmod(distance, window - 1)
    return layers + (rest > 0)


@wrong("layers_needed", "one layer suffice")
def one_layer_more(distance, window):
    layers = step_by_step(distance, window)
    return layers + 1 if layers else layers


@wrong("layers_needed", "one layer suffice")
def positions_and_not_layers(distance, window):
    return distance


@wrong("layers_needed", "part of a step")
def rounded_down(distance, window):
    return max(1, distance // (window - 1)) if window > 1 and distance else 0 if distance == 0 else None


@wrong("layers_needed", "and not W")
def mistrals_product(distance, window):
    return 0 if distance == 0 else None if window == 1 else -(-distance // window)


@wrong("layers_needed", "and not W")
def tokens_for_a_distance(distance, window):
    return 0 if distance == 0 else None if window == 1 else -(-(distance + 1) // window)


@wrong("layers_needed", "what does a window of 1 reach")
def at_least_one_layer(distance, window):
    return step_by_step(max(1, distance), window)


@wrong("layers_needed", "what does a window of 1 reach")
def a_window_of_one_taken_for_two(distance, window):
    return step_by_step(distance, max(2, window))


@wrong("layers_needed", "Is it exact")
def in_floats(distance, window):
    return 0 if distance == 0 else None if window == 1 else math.ceil(distance / (window - 1))
