"""The picture of the two norms draws what PyTorch's own norms return."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt

from figure_checks import assert_nothing_cut_off
from mixtral_edu.viz.norm import costs, normalised_points

POINTS = [(1, 7), (0.5, 3.5), (-4, 2), (6, 2), (0.003, -0.004)]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def tips(axes) -> list:
    return [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]


def test_the_panels_hold_the_vectors_and_what_each_norm_makes_of_them():
    figure = normalised_points("ABCDE", POINTS)
    as_they_come, rms, layer = figure.axes
    x = torch.tensor(POINTS, dtype=torch.float64)
    assert tips(as_they_come) == x.tolist()
    assert np.allclose(tips(rms), F.rms_norm(x, (2,), eps=1e-5)[[0, 2, 3, 4]])  # A and B fall together
    assert np.allclose(tips(layer), F.layer_norm(x, (2,), eps=1e-5)[[0, 3, 4]])  # so do A, B and C
    labels = [{text.get_text() for text in axes.texts} for axes in (rms, layer)]
    assert labels == [{"A, B", "C", "D", "E"}, {"A, B, C", "D", "E"}]
    assert figure.texts[0].get_text() == "Of 5 vectors RMSNorm leaves 4 different ones, LayerNorm 3"
    assert_nothing_cut_off(figure)


def test_a_large_eps_draws_shorter_arrows():
    _, rms, _ = normalised_points("A", [(1, 7)], eps=75.0).axes  # mean square 25, so half the length
    assert np.allclose(tips(rms), [[0.1, 0.7]])


@pytest.mark.parametrize(("names", "points"), [("A", [1, 7]), ("A", [[1, 7, 2]]), ("AB", [[1, 7]])])
def test_points_have_two_numbers_and_a_name_each(names, points):
    with pytest.raises(ValueError, match="points has shape"):
        normalised_points(names, points)


def test_each_change_has_a_row_with_its_cost_and_two_standard_errors():
    figure = costs({"one": (0.5, 0.1), "other": (-0.2, 0.05)}, title="A finding")
    (axes,) = figure.axes
    points, bars = axes.lines[1].get_xydata().tolist(), axes.collections[0].get_segments()
    assert points == [[0.5, 0], [-0.2, 1]]
    assert [bar[:, 0].round(6).tolist() for bar in bars] == [[0.3, 0.7], [-0.3, -0.1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "other"]
    assert [text.get_text() for text in axes.texts] == ["+0.50", "-0.20"]
    with pytest.raises(ValueError, match="changes is empty"):
        costs({}, title="")
