"""Pictures of attention in tiles."""

import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.viz.tiles import (
    bytes_by_length,
    bytes_by_tile,
    errors_by_way,
    in_bytes,
    loop_orders,
    running_softmax,
    seconds_by_length,
    slow_memory_use,
    tile_map,
    tile_orders,
)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_bytes_are_drawn_on_two_logarithmic_axes():
    (axes,) = bytes_by_length([512, 1024], {"scores": [2**24, 2**26], "the rest": [2**23, 2**24]}, title="More").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[2**24, 2**26], [2**23, 2**24]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {text.get_text() for text in axes.texts} == {"scores\n64 MiB", "the rest\n16 MiB"}
    with pytest.raises(ValueError, match="rows of 2 numbers"):
        bytes_by_length([512, 1024], {"scores": [1]}, title="")


def test_labels_of_nearly_equal_lines_stay_apart():
    series = {"a": [2**20, 2**28], "b": [2**20, 1.01 * 2**21], "c": [2**19, 2**21]}
    figure = bytes_by_length([512, 1024], series, title="Close", ylabel="peak bytes")
    assert figure.axes[0].get_ylabel() == "peak bytes"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_bytes_stand_beside_levels_that_no_tile_changes():
    sizes, moved = [16, 32, 64], [2**39, 2**38, 2**37]
    figure = bytes_by_tile(sizes, moved, {"all at once": 2**38, "needed": 2**30}, ["a", "b", "c"], title="Tiles")
    (axes,) = figure.axes
    line, *levels = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == (sizes, moved)
    assert [level.get_ydata()[0] for level in levels] == [2**38, 2**30]
    assert [text.get_text() for text in axes.texts[3:]] == ["all at once: 256 GiB", "needed: 1 GiB"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16\na", "32\nb", "64\nc"]
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match="2 tiles, 1 numbers and 2 notes"):
        bytes_by_tile([16, 32], [1.0], {}, ["", ""], title="")


def test_times_are_told_apart_without_colour():
    (axes,) = seconds_by_length([256, 512], {"all": [1.0, 4.0], "window": [1.0, 2.0]}, title="Twice").axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "all": [1.0, 4.0],
        "window": [1.0, 2.0],
    }
    assert len({(line.get_marker(), line.get_linestyle()) for line in axes.lines}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all", "window"]
    with pytest.raises(ValueError, match="rows of 2 numbers"):
        seconds_by_length([256, 512], {"all": [1.0]}, title="")


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


def test_both_orders_visit_the_same_tiles():
    first, second = tile_orders(4).values()
    assert first != second and sorted(first) == sorted(second) == [(a, b) for a in range(4) for b in range(a + 1)]


def test_what_is_read_and_written_is_what_the_two_versions_need():
    reads, writes = {}, {}
    for version, order in tile_orders(4).items():
        uses = [slow_memory_use(version, order, step) for step in range(len(order))]
        for count, letter in ((reads, "r"), (writes, "w")):
            count[version] = {
                name: sum(letter in what for use in uses for (block, _), what in use.items() if block == name)
                for name in ("q", "kv", "out")
            }
    assert reads["FlashAttention-1"] == {"q": 10, "kv": 4, "out": 10}
    assert reads["FlashAttention-2"] == {"q": 4, "kv": 10, "out": 0}
    assert [writes[version]["out"] for version in writes] == [10, 4]


def test_a_strip_has_a_frame_for_each_step_of_each_version():
    figure = loop_orders((0, 3, 4), title="Orders")
    assert len(figure.axes) == 6
    letters = [{text.get_text() for text in axes.texts} & {"r", "w", "rw", "h"} for axes in figure.axes]
    assert letters == [{"r", "rw"}, {"h", "r", "rw"}, {"r", "rw"}, {"r", "w"}, {"r", "h"}, {"r", "h"}]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_errors_stand_beside_the_least_one():
    figure = errors_by_way({"rough": [0.01, 0.02], "fine": [0.002]}, 0.0016, title="Errors")
    (axes,) = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[0.01, 0.02], [0.002]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rough", "fine"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.2%", "0.5%", "1%", "2%"]
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match=r"errors has \[0\] errors"):
        errors_by_way({"none": []}, 1.0, title="")


def test_bytes_are_written_in_the_largest_unit_that_fits():
    assert [in_bytes(count) for count in (0, 100, 2**40, 1.5 * 2**30)] == ["0 B", "100 B", "1 TiB", "1.5 GiB"]
