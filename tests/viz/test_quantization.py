"""Pictures of rounded weights, and the view in which bits and groups are chosen."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from mixtral_edu import MixtralConfig
from mixtral_edu.quantization.model import QuantizationConfig, checkpoint_bytes
from mixtral_edu.quantization.rounding import quantize_groups
from mixtral_edu.viz.quantization import bits_curve, errors_along_a_row, level_use, number_line, sizes_and_cards
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
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert heights == [[0.1, 0.2], [0.4, 0.0]]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        errors_along_a_row({"a": [0.1], "b": [0.4, 0.0]}, 1, title="")


def test_bars_and_curves_show_the_numbers():
    (axes,) = level_use([0.25, 0.75], title="Uneven").axes
    assert [bar.get_height() for bar in axes.patches] == [25, 75]
    (axes,) = bits_curve({"small": {8: 2.0, 4: 2.5}, "large": {8: 2.1, 4: 3.0}}, 1.9, title="Cost").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.9, 1.9], [2.0, 2.5], [2.1, 3.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["16 bits", "small", "large"]
    (axes,) = sizes_and_cards({"whole": 93.4, "rounded": 26.6}, (24, 80), title="Sizes").axes
    assert [bar.get_width() for bar in axes.patches] == [93.4, 26.6]
    assert [line.get_xdata()[0] for line in axes.lines] == [24, 80]


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
    assert title == f"2 bits, groups of 16: error {error:.1%}, Mixtral-8x7B takes 23.7 GB"
    view.bits.value = 4
    view.group.value = 64
    assert view.picture.value == pictures[0]


def test_the_view_has_a_static_face_with_numbers():
    view = QuantizationView(row(), group_sizes=(16, 64))
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"] == view.summary()
    assert "groups of 16" in view.summary() and "26.6 GB" in view.summary()
    error = 100 * view.rounded(4, 64)[1]
    assert f"{error:6.1f}" in view.summary()


def test_a_group_has_to_divide_the_row():
    with pytest.raises(ValueError, match="group_sizes contains 48.*128"):
        QuantizationView(row(), group_sizes=(16, 48))
