"""The figure of several predictors' losses."""

import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off
from mixtral_edu.viz.build import loss_ladder
from mixtral_edu.viz.style import ACCENT, MUTED

LOSSES = {"uniform: every token alike": 7.62, "bigram: the token before": 2.03, "your model": 0.04}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("bold", [None, "your model"])
def test_each_loss_is_a_bar_with_its_number_and_one_may_be_emphasised(bold):
    figure = loss_ladder(LOSSES, "Each step down is something learned", bold=bold)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == list(LOSSES.values())
    colours = [MUTED, MUTED, ACCENT if bold else MUTED]
    assert all(same_color(bar.get_facecolor(), wanted) for bar, wanted in zip(axes.patches, colours, strict=True))
    assert [text.get_text() for text in axes.texts] == ["7.62", "2.03", "0.04"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LOSSES)
    assert axes.yaxis_inverted() and figure.texts[0].get_text() == "Each step down is something learned"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_a_long_name_and_a_single_bar_stay_inside():
    figure = loss_ladder({"wrong, query heads reordered to fit": 0.27}, "One bar")
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_it_draws_into_a_given_figure():
    figure = loss_ladder(LOSSES, "first")
    assert loss_ladder({"a": 1.0}, "second", figure=figure) is figure
    assert [text.get_text() for text in figure.texts] == ["second"]


@pytest.mark.parametrize(("losses", "bold"), [({}, None), (LOSSES, "mine")])
def test_losses_have_to_be_there(losses, bold):
    with pytest.raises(ValueError, match="losses has the names"):
        loss_ladder(losses, "", bold=bold)
