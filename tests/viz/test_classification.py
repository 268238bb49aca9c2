"""Pictures of a classifier's progress and mistakes."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.classification import accuracy_bars, accuracy_curves, confusion


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_curves_have_their_numbers_and_the_line_of_guessing():
    curves = {"one": ([0, 10], [0.2, 0.8]), "other": ([0, 5, 10], [0.1, 0.3, 0.5])}
    (axes,) = accuracy_curves(curves, "texts seen", title="Up", chance=0.25).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.2, 0.8], [0.1, 0.3, 0.5], [0.25, 0.25]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "other", "guessing: 25%"]
    assert axes.get_xlabel() == "texts seen"
    with pytest.raises(ValueError, match="curves has 0 lines"):
        accuracy_curves({}, "", title="")


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
