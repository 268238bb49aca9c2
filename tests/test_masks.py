"""Masks as a brute-force loop over positions says them."""


from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mixtral_edu.masks import (
    NO_POSITION,
    Visibility,
    attention_mask,
    causal_mask,
    padding_mask,
    row_positions,
    window_mask,
)

pytestmark = pytest.mark.numerics


def allowed(i: int, j: int, window: int | None) -> bool:
    return NO_POSITION not in (i, j) and 0 <= i - j and (window is None or i - j < window)


@given(
    st.lists(st.integers(-1, 12), min_size=1, max_size=7),
    st.lists(st.integers(-1, 12), min_size=1, max_size=9),
    st.none() | st.integers(1, 5),
)
def test_attention_mask_is_the_rule_for_each_pair_in_any_order(queries, keys, window):
    mask = attention_mask(torch.tensor([queries]), torch.tensor([keys]), window)
    assert mask.tolist() == [[[allowed(i, j, window) for j in keys] for i in queries]]


def test_convention_window_counts_w_keys_with_the_query_itself():
    positions = torch.arange(20)
    for window in (1, 2, 7):
        mask = attention_mask(positions[None], positions[None], window)[0]
        assert mask.sum(1).tolist() == [min(i + 1, window) for i in range(20)]
        assert mask.diagonal().all()


def test_convention_masks_are_boolean_and_true_means_may_attend():
    positions = torch.tensor([[0, 1, 2]])
    masks = (
        causal_mask(positions, positions),
        window_mask(positions, positions, 2),
        padding_mask(positions),
        attention_mask(positions, positions, 2),
    )
    assert all(mask.dtype == torch.bool for mask in masks)
    assert masks[0][0, 2, 0] and not masks[0][0, 0, 2]


def test_convention_masks_come_from_absolute_positions():
    """The order of the keys in memory, as in a ring, and a common shift change nothing."""
    queries, keys = torch.tensor([[10, 11]]), torch.tensor([[8, 9, 10, 11, 6, 7]])
    mask = attention_mask(queries, keys, 3)
    assert_close(mask, attention_mask(queries + 100, keys + 100, 3))
    assert mask.tolist() == [[[True, True, True, False, False, False], [False, True, True, True, False, False]]]


def test_convention_documented_shapes():
    B, T, S, W = 2, 3, 5, 7
    queries, keys = torch.zeros(B, T), torch.zeros(B, S)
    assert causal_mask(queries, keys).shape == (B, T, S)
    assert window_mask(queries, keys, W).shape == (B, T, S)
    assert padding_mask(keys).shape == (B, 1, S)
    assert attention_mask(queries, keys, W).shape == (B, T, S)
    assert row_positions(torch.ones(B, T, dtype=torch.bool), torch.zeros(B, dtype=torch.long)).shape == (B, T)
    visibility = Visibility(queries, keys, W)
    assert visibility.mask.shape == (B, 1, T, S)


def test_convention_padding_does_not_count_as_a_position():
    """A row's own position 0 is its first real token; what comes after it is counted on, holes too."""
    real = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    positions = row_positions(real, torch.zeros(4, dtype=torch.long))
    assert positions.tolist() == [[0, 1, 2, 3], [-2, -1, 0, 1], [-1, 0, 1, 2], [-4, -3, -2, -1]]
    later = row_positions(real, torch.tensor([9, 9, 9, 9]))
    assert later.tolist() == [[9, 10, 11, 12]] * 4


def visibility_of(S: int, T: int, window: int | None) -> Visibility:
    """The last T of S positions look back at all S."""
    positions = torch.arange(S)[None]
    return Visibility(positions[:, S - T :], positions, window)


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 2), (1, 9), (2, 2), (4, 4), (4, 9), (3, 3)])
def test_shortcuts_are_taken_only_where_they_say_what_the_mask_says(T, S, window):
    visibility = visibility_of(S, T, window)
    if visibility.all_visible:
        assert visibility.mask.all()
    if visibility.plain_causal:
        assert_close(visibility.mask[0, 0], torch.ones(T, S, dtype=torch.bool).tril())
    padded = Visibility(visibility.query_positions, visibility.key_positions, window, padded=True)
    assert not padded.all_visible and not padded.plain_causal


def test_shortcuts_are_taken_where_they_help():
    assert visibility_of(9, 1, None).all_visible
    assert visibility_of(5, 5, None).plain_causal and visibility_of(5, 5, 5).plain_causal
    assert not visibility_of(5, 5, 4).plain_causal


def test_a_changed_copy_computes_its_own_mask():
    visibility = visibility_of(5, 5, None)
    assert visibility.mask is visibility.mask
    assert replace(visibility, window=1).mask.sum() == 5
