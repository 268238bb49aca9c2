"""Pictures of attention in tiles."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.tiles import bytes_by_length, running_softmax, seconds_by_length, tile_map


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_bytes_are_drawn_on_two_logarithmic_axes():
    (axes,) = bytes_by_length([512, 1024], {"scores": [2**24, 2**26], "the rest": [2**23, 2**24]}, title="More").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[2**24, 2**26], [2**23, 2**24]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.texts] == ["scores\n64 MiB", "the rest\n16 MiB"]
    with pytest.raises(ValueError, match="rows of 2 numbers"):
        bytes_by_length([512, 1024], {"scores": [1]}, title="")


def test_times_stand_beside_their_floors():
    seconds, floors = {"all": [1.0, 4.0], "window": [1.0, 2.0]}, {"all": [0.5, 2.0]}
    figure = seconds_by_length([256, 512], seconds, floors, title="Twice")
    (axes,) = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"all": [1.0, 4.0], "window": [1.0, 2.0], "floor of its products": [0.5, 2.0]}
    with pytest.raises(ValueError, match="rows of 2 numbers"):
        seconds_by_length([256, 512], {"all": [1.0]}, {}, title="")
    with pytest.raises(ValueError, match="floors has the names \\['most'\\]"):
        seconds_by_length([256], {"all": [1.0]}, {"most": [1.0]}, title="")


def test_a_running_softmax_sums_to_one_after_each_block():
    figure = running_softmax([[0.0, 0.0], [0.0]], [2.0, 3.0], title="Shrinking")
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[0.5, 0.5], [pytest.approx(1 / 3)] * 3]
    assert "exp(score − largest) / sum so far" in [axes.get_ylabel() for axes in figure.axes]
    with pytest.raises(ValueError, match="2 blocks and 1 sums"):
        running_softmax([[0.0], [1.0]], [1.0], title="")


def test_tiles_are_counted_by_kind():
    figure = tile_map([[1, 0], [2, 1]], ["skipped", "cut", "whole"], title="Tiles", block=8)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["skipped: 1", "cut: 2", "whole: 1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16"]
    with pytest.raises(ValueError, match="kinds contains 2 and there are 2 names"):
        tile_map([[2]], ["a", "b"], title="")
