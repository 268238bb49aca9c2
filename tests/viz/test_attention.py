"""How attention computes, drawn: numbers of one head, shared heads, folded products, sizes of caches."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from mixtral_edu import MixtralConfig, RollingKVCache
from mixtral_edu.attention import eager_attention
from mixtral_edu.masks import causal_mask
from mixtral_edu.viz.attention import cache_sizes, folding, one_head, saturation, sharing


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def assert_nothing_cut_off(figure: Figure) -> None:
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, drawn


def test_one_head_shows_scores_what_is_left_and_weights():
    scores = torch.tensor([[0.0, 2.0], [1.5, -0.5]])
    mask = causal_mask(torch.arange(2), torch.arange(2))
    weights = torch.tensor([[1.0, 0.0], [0.88, 0.12]])
    figure = one_head(scores, mask, weights, ["the", "cat"])
    cells = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert cells == [["0.0", "2.0", "1.5", "−0.5"], ["0.0", "1.5", "−0.5"], ["1.00", "0.88", "0.12"]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["the", "cat"]
    assert figure.axes[0].get_ylabel() == "query position i" and figure.axes[0].get_xlabel() == "key position j"
    assert figure.texts[0].get_text() == "“cat” gives 88% of its weight to “the”"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("name", ["scores", "mask", "weights"])
def test_one_head_names_the_grid_of_a_wrong_shape(name):
    grids = {"scores": np.zeros((2, 2)), "mask": np.ones((2, 2), bool), "weights": np.eye(2)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 3\)"):
        one_head(**grids | {name: np.zeros((2, 3))}, tokens=["a", "b"])


def test_saturation_draws_a_line_for_each_way_to_scale():
    figure = saturation((4, 16), {"divided": [0.25, 0.26], "not divided": [0.5, 0.75]}, num_keys=8)
    (axes,) = figure.axes
    first, second, chance = axes.lines
    assert list(first.get_ydata()) == [0.25, 0.26] and list(second.get_ydata()) == [0.5, 0.75]
    assert set(chance.get_ydata()) == {1 / 8}
    assert axes.get_title(loc="left") == "Largest of 8 weights at Dh = 16: 0.26 divided, 0.75 not divided"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("largest", [{}, {"divided": [0.1]}])
def test_saturation_needs_a_weight_for_each_size(largest):
    with pytest.raises(ValueError, match="largest has shapes .*2 weights"):
        saturation((4, 16), largest, num_keys=8)


@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_sharing_ties_each_query_head_to_the_one_that_attention_uses(kv_heads):
    """The lines are read off the drawing, and compared with whose value a query head of the package returns."""
    figure = sharing(8, [kv_heads])
    (axes,) = figure.axes
    left_ends = sorted(line.get_xdata()[0] for line in axes.lines)
    ends = {line.get_xdata()[0]: line.get_xdata()[1] for line in axes.lines}
    places = sorted(set(ends.values()))
    drawn = [places.index(ends[x]) for x in left_ends]
    v = torch.arange(float(kv_heads)).view(1, kv_heads, 1, 1)
    out = eager_attention(torch.ones(1, 8, 1, 1), torch.ones_like(v), v, None)[0]
    assert drawn == out.flatten().int().tolist()
    assert_nothing_cut_off(figure)


def test_sharing_names_the_three_kinds_and_leaves_out_numbers_without_room():
    figure = sharing(32, [32, 8, 1])
    assert {"multi-head (MHA): Hkv = 32, G = 1", "grouped-query (GQA): Hkv = 8, G = 4"} <= set(words(figure))
    assert "multi-query (MQA): Hkv = 1, G = 32" in words(figure) and "31" not in words(figure)
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("kv_heads", [[], [3], [8, 0]])
def test_sharing_wants_divisors(kv_heads):
    with pytest.raises(ValueError, match="divisors of num_heads=8"):
        sharing(8, kv_heads)


def test_folding_says_how_many_rows_one_product_has():
    figure = folding(group=3, tokens=5, keys=7)
    shown = words(figure)
    assert "copied: 3 products of (5 × Dh) and (Dh × 7)" in shown
    assert "folded: one product of (15 × Dh) and (Dh × 7)" in shown
    assert (shown.count("copy of the keys"), shown.count("the keys"), shown.count("head 2")) == (3, 1, 2)
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match="group=0"):
        folding(0, 5, 7)


def test_cache_sizes_draws_bytes_as_gib():
    config = MixtralConfig()
    cache = RollingKVCache(config, batch_size=1, max_length=32_768, device="meta", dtype=torch.bfloat16)
    figure = cache_sizes({"GQA": cache.num_bytes, "MQA": cache.num_bytes // 8}, weights=2 * 2**30)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [4, 0.5]
    assert {"4 GiB", "0.5 GiB", "the model's weights: 2 GiB "} <= set(words(figure))
    assert axes.get_title(loc="left") == "GQA: 4 GiB; MQA: 0.5 GiB"
    assert_nothing_cut_off(figure)
    with pytest.raises(ValueError, match="sizes is empty"):
        cache_sizes({})
