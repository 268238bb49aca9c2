"""What kernels for rows of unequal length are given, against the mask."""

from itertools import accumulate

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtral_edu.fast.flash import pack
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions

BATCHES = st.integers(1, 12).flatmap(
    lambda S: st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=3, max_size=3)
)


@given(BATCHES, st.integers(1, 12), st.none() | st.integers(1, 6))
@settings(max_examples=300)
def test_packed_tokens_see_what_the_mask_shows_or_packing_says_that_it_closes_gaps(batch, T, window):
    """In each row of packed tokens the last query is the last key, and distance is counted from there."""
    real = torch.tensor(batch)
    B, S = real.shape
    T = min(T, S)
    keys = row_positions(real, torch.zeros(B, dtype=torch.long)).masked_fill(~real, NO_POSITION)
    visibility = Visibility(keys[:, S - T :], keys, window, padded=True)
    packing = pack(visibility)
    if packing is not None and packing.closes_gaps:
        has_gap = keys.amax(1) + 1 != real.sum(1)
        assert window is not None and T > 1 and has_gap.any()
        return

    shown = torch.zeros_like(visibility.mask[:, 0])
    for row in range(B):
        queries, query_lengths = columns_in(packing and packing.queries, row, T)
        keys_seen, key_lengths = columns_in(packing and packing.keys, row, S)
        distance = torch.arange(len(queries))[:, None] + len(keys_seen) - len(queries) - torch.arange(len(keys_seen))
        in_reach = (distance >= 0) & (distance < (window or S))
        shown[row][queries[:, None], keys_seen] = in_reach if T > 1 else torch.ones_like(in_reach)
    assert shown.equal(visibility.mask[:, 0])
    if packing is not None:
        assert packing.query_starts.tolist() == [0, *accumulate(query_lengths)]
        assert packing.key_starts.tolist() == [0, *accumulate(key_lengths)]
        assert (packing.most_queries, packing.most_keys) == (max(query_lengths, default=0), max(key_lengths, default=0))


def columns_in(where: tuple[torch.Tensor, torch.Tensor] | None, row: int, width: int) -> tuple[torch.Tensor, list[int]]:
    """The columns of a row that are packed, all if nothing is; and how many each row has that has any."""
    if where is None:
        return torch.arange(width), []
    rows, columns = where
    return columns[rows == row], rows.unique(return_counts=True)[1].tolist()
