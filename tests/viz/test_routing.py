"""Figures of the router's measures: what is drawn, what is written, and what is refused."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.viz.routing import (
    cost_of_changes,
    cost_of_knock_outs,
    information,
    load_by_domain,
    repetition_and_baselines,
)
from mixtral_edu.viz.style import ACCENT

DOMAINS = ["english", "shakespeare", "spanish"]
LOADS = np.array([[[0.25, 0.5, 0.25], [0.4, 0.4, 0.2], [0.1, 0.0, 0.9]], [[1.0, 0.0, 0.0], [0.3, 0.3, 0.4], [0.2] * 3]])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_loads_stand_in_a_panel_for_each_layer_and_the_title_names_the_largest():
    figure = load_by_domain(LOADS, DOMAINS, even=1 / 3)
    first, second = figure.axes
    assert texts_of(first) == ["25", "50", "25", "40", "40", "20", "10", "0", "90"]
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["layer 0", "layer 1"]
    assert [label.get_text() for label in first.get_yticklabels()] == DOMAINS
    title, note = (text.get_text() for text in figure.texts)
    assert title == "Layer 1 sends 100% of english to expert 0"
    assert note == "numbers: percent of tokens; white: an even load (33%), blue: more, red: less"
    more, less = (np.array(second.patches[i].get_facecolor()[:3]) for i in (0, 1))
    assert more[2] > more[0] and less[0] > less[2]  # bluish, reddish
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_loads_of_eight_experts_and_four_layers_fit():
    figure = load_by_domain(np.random.default_rng(0).random((4, 7, 8)), ["shakespeare"] * 7, even=0.25)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_repetition_draws_measured_and_shuffled_shares_and_chance():
    measured = np.arange(2 * 4 * 3).reshape(2, 4, 3) / 30
    shuffled = measured / 2
    figure = repetition_and_baselines(measured, shuffled, (0.125, 0.464), DOMAINS, title="The title")
    for panel, axes in enumerate(figure.axes):
        kind, layer = divmod(panel, 4)
        mixed, found, chance = axes.lines
        assert found.get_color() == ACCENT
        assert list(found.get_xdata()) == list(measured[kind, layer])
        assert list(mixed.get_xdata()) == list(shuffled[kind, layer])
        assert list(chance.get_xdata()) == [(0.125, 0.464)[kind]] * 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["shuffled within the text", "in the order of the text", "even, independent choices"]
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_information_draws_a_bar_a_label_on_its_shuffled_foot_within_the_entropy():
    figure = information([2.9, 2.5], {"token": [2.8, 1.5], "domain": [0.2, 0.7]},
                         {"token": [0.5, 0.4], "domain": [0.0, 0.01]}, title="The title")  # fmt: skip
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[2.9, 2.5], [2.8, 1.5], [0.5, 0.4], [0.2, 0.7], [0.0, 0.01]]
    assert texts_of(axes) == ["2.80", "1.50", "0.20", "0.70"]
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bars in axes.containers[1:] for bar in bars]
    outlines = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.containers[0]]
    assert all(any(left <= a and b <= right for left, right in outlines) for a, b in edges)
    assert_nothing_cut_off(figure)


def test_costs_are_written_with_their_sign_and_dear_ones_are_darker():
    figure = cost_of_changes([[0.001, -0.002, 1.5], [0.0, 0.0, 0.0], [-0.12, 0.3, 0.05]],
                             ["random", "", "without expert 3"], DOMAINS, title="The title")  # fmt: skip
    (axes,) = figure.axes
    assert texts_of(axes) == ["+0.00", "+0.00", "+1.50", "-0.12", "+0.30", "+0.05"]  # nothing in the blank row
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random", "without expert 3"]
    shades = [sum(box.get_facecolor()[:3]) for box in axes.patches]
    assert np.argsort(shades)[:3].tolist() == [2, 4, 5] and shades[3] == shades[1]  # a gain is as pale as nothing
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_knock_outs_stand_in_a_panel_for_each_layer_on_one_scale_with_two_standard_errors():
    costs, errors = np.array([[0.1, 0.3, 0.2], [0.0, -0.01, 0.02]]), np.array([[0.02] * 3, [0.01] * 3])
    figure = cost_of_knock_outs(costs, errors, [[0.31, 0.5, 0.19]] * 2, title="The title")
    for axes, cost, error in zip(figure.axes, costs, errors, strict=True):
        assert [dot.get_ydata()[0] for dot in (bars[0] for bars in axes.containers)] == list(cost)
        reach = [bars[2][0].get_segments()[0][:, 1] for bars in axes.containers]
        assert np.allclose(reach, np.stack([cost - 2 * error, cost + 2 * error], axis=1))
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n31", "1\n50", "2\n19"]
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_knock_outs_of_eight_experts_and_four_layers_fit():
    costs = np.random.default_rng(0).random((4, 8))
    figure = cost_of_knock_outs(costs, costs / 10, costs, title="Layer 0 needs each of its experts, layer 2 needs none")
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: load_by_domain(LOADS, DOMAINS[:2], 0.25), r"loads has shape .*\(L, 2, E\)"),
        (lambda: load_by_domain(LOADS[0], DOMAINS, 0.25), r"loads has shape .*\(L, 3, E\)"),
        (lambda: repetition_and_baselines(LOADS, LOADS[:1], (0.1, 0.4), DOMAINS, "t"), r"and \(1, 3, 3\).*\(2, L, 3\)"),
        (lambda: repetition_and_baselines(LOADS, LOADS, (0.1, 0.4), DOMAINS[:1], "t"), r"shuffled .*\(2, L, 1\)"),
        (lambda: information([1, 2], {"token": [1, 2]}, {"domain": [1, 2]}, "t"), r"\['token'\] and .* \['domain'\]"),
        (lambda: information([1, 2], {"token": [1, 2]}, {"token": [1]}, "t"), "2 numbers each"),
        (lambda: cost_of_changes([[0.1, 0.2]], ["random"], DOMAINS, "t"), r"costs has shape .*\(1, 3\)"),
        (lambda: cost_of_knock_outs([[0.1]], [[0.1, 0.2]], [[0.1]], "t"), r"\(1, 1\), \(1, 2\).*must be \(L, E\)"),
    ],
)
def test_figures_refuse_what_does_not_fit(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_figure_can_be_drawn_into_a_given_one():
    figure = plt.figure()
    assert load_by_domain(LOADS, DOMAINS, 1 / 3, figure=figure) is figure
    assert cost_of_changes([[0.1] * 3], ["random"], DOMAINS, "t", figure=figure) is figure
    assert len(figure.axes) == 1
