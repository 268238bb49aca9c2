"""Pictures of the next token's distribution, before and after settings change it."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.sampling import before_and_after, next_tokens, tokens_left


def test_bars_show_the_probabilities_in_order_with_their_tokens():
    figure = next_tokens(["▁bear", "▁fox", "🐅"], [0.5, 0.25, 0.125])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, 0.125]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["▁bear", "▁fox", "U+1F405"]
    assert axes.yaxis_inverted()  # the most likely token on top
    assert axes.get_title(loc="left") == "'▁bear' comes next with probability 50%"
    plt.close(figure)


def test_no_text_is_clipped():
    figure = next_tokens(["▁extraordinarily"] * 8, [0.9, *[0.01] * 7])
    figure.canvas.draw()
    for text in [*figure.axes[0].texts, *figure.axes[0].get_yticklabels(), figure.axes[0].title]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()
    plt.close(figure)


@pytest.mark.parametrize(("pieces", "probabilities"), [([], []), (["a"], [0.5, 0.5])])
def test_pieces_and_probabilities_have_to_match(pieces, probabilities):
    with pytest.raises(ValueError, match="pieces has length"):
        next_tokens(pieces, probabilities)


VOCABULARY = ["a", "b", "c", "d", "e"]
BEFORE = [0.1, 0.5, 0.25, 0.05, 0.1]
AFTER = [0.0, 0.6, 0.4, 0.0, 0.0]


def test_bars_before_and_after_are_sorted_and_the_last_one_holds_all_others():
    figure = before_and_after(VOCABULARY, {"here": (BEFORE, AFTER), "there": (BEFORE, BEFORE)}, num_bars=3)
    here, there = figure.axes
    heights = [bar.get_height() for bar in here.patches]
    assert heights[:4] == pytest.approx([0.5, 0.25, 0.1, 0.15])  # before: b, c, a, and d with e
    assert heights[4:] == pytest.approx([0.6, 0.4, 0, 0])
    assert [label.get_text() for label in here.get_xticklabels()] == ["b", "c", "a", "all others"]
    assert here.get_title(loc="left") == "here: 2 of 5 tokens left"
    assert there.get_title(loc="left") == "there: 5 of 5 tokens left"
    plt.close(figure)


def test_no_bar_for_others_where_there_are_none():
    figure = before_and_after(VOCABULARY, {"here": (BEFORE, AFTER)}, num_bars=5)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["b", "c", "a", "e", "d"]
    plt.close(figure)


def test_probabilities_have_to_match_the_vocabulary():
    with pytest.raises(ValueError, match=r"'here'\] has \[5, 4\] probabilities.* 5"):
        before_and_after(VOCABULARY, {"here": (BEFORE, AFTER[1:])})
    with pytest.raises(ValueError, match="at least one panel"):
        before_and_after(VOCABULARY, {})


def test_curves_are_the_counts_and_no_label_is_clipped():
    orders = "one order", "the other order"
    counts = {
        "flat": dict(zip(orders, ([3, 4, 900], [3, 3, 3]), strict=True)),
        "peaked": dict(zip(orders, ([1, 2, 300], [2, 2, 2]), strict=True)),
    }
    figure = tokens_left([0.5, 1.0, 2.0], counts, title="The order matters")
    drawn = [[line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 3] for axes in figure.axes]
    assert drawn == [[list(curve) for curve in curves.values()] for curves in counts.values()]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert tuple(text.get_text() for text in figure.legends[0].get_texts()) == orders
    figure.canvas.draw()
    for text in [*figure.texts, *figure.legends[0].get_texts()]:
        assert text.get_window_extent().x1 <= figure.bbox.x1, text.get_text()
    plt.close(figure)


@pytest.mark.parametrize("counts", [{}, {"flat": {}}, {"flat": {"a": [1, 2]}}])
def test_each_temperature_needs_its_count(counts):
    with pytest.raises(ValueError, match="counts has curves of lengths .*length 3"):
        tokens_left([0.5, 1.0, 2.0], counts)


def test_panels_with_other_curves_are_refused():
    with pytest.raises(ValueError, match="counts has panels"):
        tokens_left([1.0], {"flat": {"one": [1]}, "peaked": {"other": [1]}})
