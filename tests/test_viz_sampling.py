"""The picture of the next token's distribution."""

import pytest
from matplotlib import pyplot as plt

from mixtral_edu.viz.sampling import next_tokens


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
    with pytest.raises(ValueError, match="equally many"):
        next_tokens(pieces, probabilities)
