"""Answers to the exercises of lesson 04."""

import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu import masks


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


@right("first_out_of_reach")
def by_spreading(num_layers: int, window: int | None) -> int | None:
    if window is None:
        return None
    positions = torch.arange(num_layers * window + 2)
    mask = masks.attention_mask(positions[None], positions[None], window)[0].float()
    informed = (positions == 0).float()
    for _ in range(num_layers):
        informed = (mask @ informed > 0).float()
    return int(informed.argmin())


@right("first_out_of_reach")
def one_step_a_layer(num_layers: int, window: int | None) -> int | None:
    last = 0
    for _ in range(num_layers):
        if window is None:
            return None
        last += window - 1
    return last + 1


@wrong("first_out_of_reach", "Which is the first that does not?")
def last_in_reach(num_layers, window):
    return None if window is None else num_layers * (window - 1)


@wrong("first_out_of_reach", "Which is the first that does not?")
def window_without_the_query(num_layers, window):
    return None if window is None else num_layers * window + 1


@wrong("first_out_of_reach", "takes one of the W places")
def theoretical_span(num_layers, window):
    return None if window is None else num_layers * window


@wrong("first_out_of_reach", "takes one of the W places")
def the_first_layer_alone_counts_itself(num_layers, window):
    return None if window is None else num_layers * window - 1 + (num_layers == 1)


@wrong("first_out_of_reach", "A token that sees itself alone stays alone")
def a_window_of_one_taken_for_none(num_layers, window):
    return None if window in (None, 1) else num_layers * (window - 1) + 1


@wrong("first_out_of_reach", "None without a window")
def mistrals_window_by_default(num_layers, window):
    return num_layers * ((window or 4096) - 1) + 1


@wrong("first_out_of_reach", "Is the position an int?")
def divided_and_multiplied(num_layers, window):
    return None if window is None else num_layers * (2 * window - 2) / 2 + 1


@right("allowed_pairs")
def by_a_triangle_and_a_band(num_tokens: int, window: int | None) -> int:
    window = min(window or num_tokens, num_tokens)
    return window * (window + 1) // 2 + (num_tokens - window) * window


@right("allowed_pairs")
def by_a_sum(num_tokens: int, window: int | None) -> int:
    return sum(min(i + 1, window or num_tokens) for i in range(num_tokens))


@wrong("allowed_pairs", "half of a square, and a bit more")
def no_causal_rule(num_tokens, window):
    return num_tokens * (window or num_tokens)


@wrong("allowed_pairs", "half of a square, and a bit more")
def without_the_diagonal(num_tokens, window):
    return by_a_sum(num_tokens, window) - num_tokens


@wrong("allowed_pairs", "see fewer than W keys")
def every_query_sees_w(num_tokens, window):
    return num_tokens * (num_tokens + 1) // 2 if window is None or window > num_tokens else num_tokens * window


@wrong("allowed_pairs", "see fewer than W keys")
def one_more_for_each_query(num_tokens, window):
    return by_a_sum(num_tokens, window and window + 1)


@wrong("allowed_pairs", "longer than the text")
def always_a_full_window(num_tokens, window):
    window = window or num_tokens
    return num_tokens * window - window * (window - 1) // 2


@wrong("allowed_pairs", "an exact int?")
def divided_with_a_slash(num_tokens, window):
    window = min(window or num_tokens, num_tokens)
    return num_tokens * window - window * (window - 1) / 2
