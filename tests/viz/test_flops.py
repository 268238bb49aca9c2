"""Arithmetic against context, and bytes by part."""

import matplotlib
import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.flops import BYTE_COLOURS, byte_bars, flops_by_context

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_lines_of_flops_are_in_billions():
    figure = flops_by_context(
        [0, 10_000, 60_000], 2.5e10, {"no window": [0, 5e9, 3e10], "window": [0, 2e9, 2e9]}, "Title", limit=20_000
    )
    (axes,) = figure.axes
    curves = [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 3]
    assert curves == [[0, 5, 30], [0, 2, 2]]
    assert axes.collections[0].get_segments()[0][:, 1].tolist() == [25, 25]  # the matrices, whatever the context
    words = [text.get_text() for text in texts_of(figure)]
    assert {"attention,\nno window", "attention,\nwindow", " 20,000", "Title"} <= set(words)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(("contexts", "attention"), [([1], {"a": [1]}), ([1, 2], {}), ([1, 2], {"a": [1]})])
def test_lines_of_flops_have_to_match(contexts, attention):
    with pytest.raises(ValueError, match="contexts has length"):
        flops_by_context(contexts, 1e9, attention, "title")


def test_bars_of_bytes_add_up():
    rows = {"held": {"experts": 90e9, "attention": 3e9, "embedding": 1e9, "cache": 16e9}, "read": {"experts": 22e9}}
    figure = byte_bars(rows, "Title")
    parts = ["experts", "attention", "embedding", "cache"]
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([90, 3, 1, 16, 22, 0, 0, 0])
    assert bars[3].get_x() == pytest.approx(94)
    words = [text.get_text() for text in texts_of(figure)]
    assert {"110.0 GB", "22.0 GB", "90.0", "16.0", "held", "read", *parts} <= set(words)
    assert "3.0" not in words  # too narrow for a number
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_bytes_wear_the_colours_of_the_parameters():
    assert all(BYTE_COLOURS[part] == PART_COLOURS[part] for part in BYTE_COLOURS if part != "cache")
    assert BYTE_COLOURS["cache"] not in PART_COLOURS.values()


@pytest.mark.parametrize(
    ("rows", "unit", "complaint"),
    [({}, "GB", "rows"), ({"a": {"wheels": 4}}, "GB", "wheels"), ({"a": {"experts": 1}}, "GiB", "unit='GiB'")],
)
def test_bars_of_bytes_know_their_parts_and_units(rows, unit, complaint):
    with pytest.raises(ValueError, match=complaint):
        byte_bars(rows, "title", unit=unit)
