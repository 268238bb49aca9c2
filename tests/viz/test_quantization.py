"""Pictures of rounded weights, and the view in which bits and groups are chosen."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from mixtral_edu import MixtralConfig
from mixtral_edu.quantization.model import QuantizationConfig, checkpoint_bytes
from mixtral_edu.quantization.rounding import quantize_groups
from mixtral_edu.viz.quantization import (
    along_and_across,
    cost_by_bits,
    error_and_size,
    errors_along_a_row,
    level_use,
    number_line,
    product_times,
    sizes_and_cards,
)
from mixtral_edu.viz.widgets.quantization import QuantizationView, gigabytes_of_mixtral, round_to_levels


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def row(size: int = 128) -> np.ndarray:
    return torch.randn(size).numpy()


def test_the_number_line_joins_each_weight_with_its_level():
    figure = number_line([0.1, 0.9], [0.0, 1.0], [0.0, 0.5, 1.0], title="To the nearest")
    (axes,) = figure.axes
    joins = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [tuple(ends) for ends in joins] == [(0.1, 0.0), (0.9, 1.0)]
    assert [segment[0][0] for segment in axes.collections[0].get_segments()] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="weights has shape"):
        number_line([0.1], [0.0, 1.0], [0.0], title="")


def test_errors_are_drawn_without_sign_on_one_scale():
    figure = errors_along_a_row({"a": [0.1, -0.2], "b": [0.4, 0.0]}, 1, title="Errors")
    heights = [[*axes.patches[0].get_data().values] for axes in figure.axes]
    assert heights == [[0.1, 0.2], [0.4, 0.0]]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        errors_along_a_row({"a": [0.1], "b": [0.4, 0.0]}, 1, title="")


def test_bars_and_curves_show_the_numbers():
    (axes,) = level_use([0.25, 0.75], title="Uneven").axes
    assert [bar.get_height() for bar in axes.patches] == [25, 75]
    (axes,) = sizes_and_cards({"whole": 93.4, "rounded": 26.6}, (24, 80), title="Sizes").axes
    assert [bar.get_width() for bar in axes.patches] == [93.4, 26.6]
    assert [line.get_xdata()[0] for line in axes.lines] == [24, 80]


def test_costs_have_bars_of_two_standard_errors():
    costs = {"small": {4: (0.0, 0.1), 3: (0.5, 0.2)}, "large": {4: (0.1, 0.1), 3: (1.0, 0.3)}}
    (axes,) = cost_by_bits(costs, title="Cost", draws={3: (0.3, 0.4)}).axes
    bars = [segments.get_segments() for segments in axes.collections]
    assert [[(low[1], high[1]) for low, high in line] for line in bars] == [
        [(-0.2, 0.2), (pytest.approx(0.1), 0.9)],
        [(-0.1, pytest.approx(0.3)), (pytest.approx(0.4), 1.6)],
    ]
    assert [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "x"] == [[0.3, 0.4]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["bfloat16", "random changes of the same size as small", "small", "large"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "3"]


def test_changes_stand_in_a_plane_with_circles_of_equal_error():
    changes = {"doubled": (2.0, 0.0, 0.13), "turned": (1.0, 1.0, 0.5), "small": (1.0, 0.1, -0.001)}
    (axes,) = along_and_across(changes, title="Plane", errors=(1,), sides={"small": "right"}).axes
    assert [(arc.center, arc.width) for arc in axes.patches if hasattr(arc, "theta1")] == [((1, 0), 2)]
    texts = [text.get_text() for text in axes.texts]
    assert {"doubled: +0.13", "turned: +0.50", "small: +0.00", "error 100%"} <= set(texts)
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert [(2.0, 0.0), (1.0, 1.0), (1.0, 0.1)] == points[1:]


def test_times_are_in_milliseconds_and_errors_in_percent():
    (axes,) = product_times({"bfloat16": {1: 0.001, 16: 0.002}, "int4": {1: 0.0005, 16: 0.004}}, title="Time").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 2.0], [0.5, 4.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "16"]
    (axes,) = error_and_size({4: {64: (26.6, 0.09), 16: (35.4, 0.07)}}, title="Error").axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [26.6, 35.4] and list(line.get_ydata()) == pytest.approx([9, 7])
    assert [text.get_text() for text in axes.texts] == ["64", "16"]


@pytest.mark.parametrize("group_size", [16, 64])
def test_levels_are_those_of_the_package(group_size):
    weights = torch.randn(128)
    q, scale, zero = quantize_groups(weights[None], group_size, torch.float32)
    expected = ((q.view(-1, group_size) - 8.0) * scale.view(-1, 1) + zero.view(-1, 1)).flatten()
    np.testing.assert_allclose(round_to_levels(weights, 4, group_size), expected, atol=1e-5)
    assert round_to_levels(np.full(32, 0.3), 4, 16).tolist() == [0.3] * 32


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gigabytes_are_those_of_the_package(group_size):
    expected = checkpoint_bytes(MixtralConfig.mixtral_8x7b(), QuantizationConfig(4, group_size)) / 1e9
    assert gigabytes_of_mixtral(4, group_size) == pytest.approx(expected, rel=1e-9)


def test_the_view_redraws_and_names_error_and_size():
    view = QuantizationView(row(), group_sizes=(16, 64))
    assert view.state() == {"bits": 4, "group_size": 64}
    pictures = [view.picture.value]
    view.bits.value = 2
    pictures.append(view.picture.value)
    view.group.value = 16
    pictures.append(view.picture.value)
    assert len(set(pictures)) == 3
    _, error = view.rounded(2, 16)
    title = view.figure.axes[0].get_title(loc="left")
    assert title == f"2 bits, groups of 16: error of the row {error:.1%}, Mixtral-8x7B takes 23.7 GB"
    view.bits.value = 4
    view.group.value = 64
    assert view.picture.value == pictures[0]


def test_the_view_has_a_static_face_with_numbers():
    view = QuantizationView(row(), group_sizes=(16, 64))
    bundle, _ = view._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"] == view.summary()
    assert "groups of 16" in view.summary() and "26.6 GB" in view.summary()
    error = 100 * view.rounded(4, 64)[1]
    assert f"{error:6.1f}" in view.summary()


def test_a_group_has_to_divide_the_row():
    with pytest.raises(ValueError, match="group_sizes contains 48.*128"):
        QuantizationView(row(), group_sizes=(16, 48))
