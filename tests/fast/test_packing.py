"""What kernels for rows of unequal length are given, against the mask."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixtral_edu.api.visibility import packed_rows
from mixtral_edu.fast.flash import Packing, pack, packing_of
from mixtral_edu.masks import NO_POSITION, Visibility, row_positions

BATCHES = st.integers(1, 12).flatmap(
    lambda S: st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=3, max_size=3)
)
WINDOWS = st.none() | st.integers(1, 6)


@given(BATCHES, st.integers(1, 12), WINDOWS)
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
    else:
        assert shown_by(packing, visibility).equal(visibility.mask[:, 0])


@given(st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=3), WINDOWS)
@settings(max_examples=200)
def test_texts_that_are_packed_into_one_row_are_rows_for_kernels(ends, window):
    """Scores between two texts are never computed, and no gap is closed. With W = 1 each token is a text."""
    ends = torch.tensor(ends)
    B, T = len(ends), 12
    columns = torch.arange(T)
    begins = torch.zeros(B, T, dtype=torch.long)
    begins[:, 1:] = torch.where(ends, columns[1:], 0)
    visibility = packed_rows(columns - begins.cummax(1).values, window)
    if not ends.any():
        assert visibility is None
        return
    packing = packing_of(visibility, B)
    assert shown_by(packing, visibility).equal(visibility.mask[:, 0]) and not packing.closes_gaps
    assert len(packing.query_starts) - 1 == (B * T if window == 1 else B + ends.sum())


def shown_by(packing: Packing | None, visibility: Visibility) -> Tensor:
    """What a kernel lets each query see of each key (B, T, S), given such a packing; None: everything, dense."""
    (B, T), S = visibility.query_positions.shape, visibility.key_positions.shape[1]
    W = visibility.window or S
    shown = torch.zeros(B, T, S, dtype=torch.bool)
    if packing is None:
        rows = [((row, torch.arange(T)), (row, torch.arange(S))) for row in range(B)]
    else:
        starts = [tensor.tolist() for tensor in (packing.query_starts, packing.key_starts)]
        tokens = packing.queries, packing.keys
        assert len(starts[0]) == len(starts[1])
        for (_, columns), places, most in zip(tokens, starts, (packing.most_queries, packing.most_keys), strict=True):
            assert places[0] == 0 and places[-1] == len(columns)
            lengths = [after - before for before, after in zip(places, places[1:], strict=False)]
            assert min(lengths, default=1) > 0 and most == max(lengths, default=0)
        bounds = zip(*((zip(places, places[1:], strict=False)) for places in starts), strict=True)
        rows = [tuple((of[0][a], of[1][a:b]) for of, (a, b) in zip(tokens, pair, strict=True)) for pair in bounds]
    for (row, queries), (same_row, keys) in rows:
        assert row == same_row
        distance = torch.arange(len(queries))[:, None] + len(keys) - len(queries) - torch.arange(len(keys))
        in_reach = (distance >= 0) & (distance < W)
        shown[row, queries[:, None], keys] = in_reach if T > 1 else torch.ones_like(in_reach)
    return shown
