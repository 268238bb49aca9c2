"""Pictures of files, shards and rows."""

import pytest
import torch
from matplotlib import pyplot as plt

from mixtral_edu.viz.checkpoints import file_map, row_orders, shard_map
from mixtral_edu.viz.diagram import PART_COLOURS


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_a_file_is_cut_into_its_parts():
    figure = file_map({"header": 100, "experts": 700, "norms": 200}, title="Mostly experts")
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 100), (100, 700), (800, 200)]
    assert plt.matplotlib.colors.to_hex(axes.patches[1].get_facecolor()) == PART_COLOURS["experts"].lower()
    texts = [text.get_text() for text in figure.texts]
    assert "700 bytes" in texts and "70.00%" in texts
    with pytest.raises(ValueError, match="parts is empty"):
        file_map({}, title="")


def test_each_shard_shows_what_it_holds():
    figure = shard_map([{"layer 0": 3_000_000, "layer 1": 1_000_000}, {"layer 1": 2_000_000}], title="Two shards")
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 3), (3, 1), (0, 2)]
    assert axes.patches[1].get_facecolor() == axes.patches[2].get_facecolor() != axes.patches[0].get_facecolor()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shard 1", "shard 2"]
    with pytest.raises(ValueError, match="at least one shard"):
        shard_map([], title="")


def test_rows_of_a_pair_share_a_colour_in_every_order():
    pair = torch.arange(3)
    lengths = {"apart": [1, 2, 3, 4, 5, 6], "neighbours": [1, 4, 2, 5, 3, 6]}
    figure = row_orders(lengths, {"apart": pair.repeat(2), "neighbours": pair.repeat_interleave(2)}, title="Rows")
    apart, neighbours = ([bar.get_facecolor() for bar in axes.patches] for axes in figure.axes)
    assert apart[0] == apart[3] == neighbours[0] == neighbours[1] != neighbours[2]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [1, 4, 2, 5, 3, 6]
    with pytest.raises(ValueError, match="lengths names .* and pairs"):
        row_orders(lengths, {"apart": pair.repeat(2)}, title="")
    with pytest.raises(ValueError, match="two of the 6 rows"):
        row_orders({"apart": [1] * 6}, {"apart": [0, 0, 0, 1, 1, 2]}, title="")
