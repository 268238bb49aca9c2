"""Pictures of how classifiers train and compare, of their mistakes, and of padding."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.classification import accuracy_bars, accuracy_curves, confusion, loss_curves, padded_rows


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_curves_have_their_numbers_and_the_line_of_guessing():
    curves = {"one": ([0, 10], [0.2, 0.8]), "other": ([0, 5, 10], [0.1, 0.3, 0.5])}
    (axes,) = accuracy_curves(curves, "texts seen", title="Up", chance=0.25).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.2, 0.8], [0.1, 0.3, 0.5], [0.25, 0.25]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other"]
    assert [text.get_text() for text in axes.texts] == ["guessing: 25%"]
    assert axes.get_xlabel() == "texts seen" and axes.get_xticks().tolist() == [0, 5, 10]
    with pytest.raises(ValueError, match="curves has 0 lines"):
        accuracy_curves({}, "", title="")


def test_curves_have_error_bars_steps_of_doubling_and_several_levels():
    places, shares, spreads = [1, 2, 8], [0.2, 0.4, 0.6], [0.1, 0.05, 0.02]
    figure = accuracy_curves({"one": (places, shares), "other": (places, shares)}, "texts", title="", doubling=True,
                             chance={"of two": 0.5, "of six": 1 / 6}, spreads={"one": spreads})  # fmt: skip
    (axes,) = figure.axes
    (bars,) = axes.collections  # only `one` has them
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([y - e, y + e]) for y, e in zip(shares, spreads, strict=True)]
    assert [text.get_text() for text in axes.texts] == ["of two: 50%", "of six: 17%"]
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "8"]


def test_losses_share_a_scale_and_mark_the_step_that_was_chosen():
    panels = {"a": {"training": [1.8, 0.4, 0.1], "validation": [1.8, 1.0, 1.2]}, "b": {"training": [1.8, 0.2, 0.0]}}
    figure = loss_curves(panels, [1, 2], guessing=1.79, title="Stop in time")
    first, second = figure.axes
    assert [list(line.get_ydata()) for line in first.lines[:2]] == list(panels["a"].values())
    assert first.lines[2].get_ydata()[0] == 1.79 and first.lines[3].get_xdata()[0] == 1
    assert [text.get_text() for text in first.texts] == ["stop after 1", "guessing: 1.79"]
    assert [text.get_text() for text in second.texts] == ["stop after 2"]
    assert first.get_ylim() == second.get_ylim() and first.get_ylabel() == "cross-entropy (nats)"
    with pytest.raises(ValueError, match="chosen has 1 steps; it must have one per panel, 2"):
        loss_curves(panels, [1], guessing=1.79, title="")


def test_a_confusion_matrix_writes_its_counts_and_what_is_right():
    figure = confusion([[3, 1], [0, 2]], ["a", "b"], title="Mostly right")
    (axes,) = figure.axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "75% right", "100% right"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    with pytest.raises(ValueError, match=r"counts has shape \(1, 2\).*\(2, 2\)"):
        confusion([[3, 1]], ["a", "b"], title="")


def test_a_class_without_texts_divides_by_nothing():
    (axes,) = confusion([[0, 0], [0, 2]], ["a", "b"], title="").axes
    assert axes.images[0].get_array().tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_bars_are_the_shares():
    (axes,) = accuracy_bars({"right": 0.8, "wrong": 0.2}, title="Padding matters", chance=0.1).axes
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.2]
    assert [text.get_text() for text in axes.texts] == ["80%", "20%"]
    assert axes.lines[0].get_xdata()[0] == 0.1


def test_bars_of_several_runs_are_their_mean_with_a_dot_for_each():
    shares = {"right": [0.7, 0.9], "wrong": 0.2}
    figure = accuracy_bars(shares, title="", chance=0.1, hatched=["wrong"], meaning="no pre-training")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.8, 0.2])
    assert [bar.get_hatch() for bar in axes.patches] == [None, "///"]
    assert axes.lines[0].get_xdata().tolist() == [0.7, 0.9] and len(axes.lines) == 2  # the dots, and guessing
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["no pre-training"]


def test_padded_rows_mark_the_last_real_token_and_the_last_column():
    right, left = [[1, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 1]]
    figure = padded_rows({"right": right, "left": left}, title="Two sides")
    ends = [[line.get_xdata().tolist() for line in axes.lines] for axes in figure.axes]
    assert ends == [[[1.5, 0.5], [2.5, 2.5]], [[2.5, 2.5], [2.5, 2.5]]]
    assert [bool(cell.get_hatch()) for cell in figure.axes[0].patches] == [False, False, True, False, True, True]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["right", "left"]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["last real token", "last column", "real token", "padding"]
