"""What heads look at, drawn and in a widget: maps, shares, one query at a time."""

import base64
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mixtral_edu import MixtralForCausalLM, MixtralTokenizer
from mixtral_edu.viz.attention_maps import experiments, favourites, head_maps, head_scores, looking
from mixtral_edu.viz.widgets import AttentionView

TEXT = "Once upon a time there was a brown bear named Anna."


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    return MixtralForCausalLM.from_pretrained("tiny", dtype="float32", attn_implementation="eager")


@pytest.fixture(scope="module")
def tokenizer():
    return MixtralTokenizer.from_pretrained("tiny")


def assert_nothing_cut_off(figure: Figure) -> None:
    drawn = figure.get_tightbbox(figure.canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, drawn


def causal_weights(*heads: int, T: int) -> np.ndarray:
    return torch.rand(*heads, T, T).tril().numpy()


def test_head_maps_show_each_head_and_whose_keys_it_uses():
    weights = causal_weights(6, T=5)
    figure = head_maps(weights, list("abcde"), num_kv_heads=2, layer=3)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:-1]]
    assert titles == [f"head {h}, keys {h // 3}" for h in range(6)]
    *maps, bar = figure.axes
    for axes, values in zip(maps, weights, strict=True):
        assert np.array_equal(axes.images[0].get_array(), values)
    assert bar.get_title() == "weight" and bar.get_ylim() == (0, 1)
    assert figure.texts[0].get_text().startswith("Layer 3: 6 heads")
    rows = {round(axes.get_position().y0, 6) for axes in maps}
    assert len(rows) == 2, "heads that share their keys stand in one row"
    for axes in maps:
        assert list(axes.get_xticks()) == [0, 1, 2, 3, 4], "key positions"
    rows_named = [label.get_text() for label in figure.axes[3].get_yticklabels()]
    assert rows_named == ["a  0", "b  1", "c  2", "d  3", "e  4"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize(
    ("shape", "num_kv_heads", "message"),
    [
        ((4, 5, 4), 2, r"\(Hq, 5, 5\)"),
        ((5, 5), 1, r"\(Hq, 5, 5\)"),
        ((4, 5, 5), 3, "divide the 4"),
        ((4, 5, 5), 0, "num_kv_heads=0"),
    ],
)
def test_head_maps_refuse_what_does_not_fit(shape, num_kv_heads, message):
    with pytest.raises(ValueError, match=message):
        head_maps(np.zeros(shape), list("abcde"), num_kv_heads)


def test_head_scores_write_every_share_in_percent():
    shares = {"before": [[0.1, 0.82], [0.3, 0.04]], "itself": [[0.0, 0.5], [1.0, 0.25]]}
    figure = head_scores(shares)
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
        ["10", "82", "30", "4"], ["0", "50", "100", "25"]
    ]  # fmt: skip
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["before", "itself"]
    assert figure.texts[0].get_text() == "Layer 1, head 0 has the largest share, 100%: itself"
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize("shares", [{}, {"a": [0.1, 0.2]}, {"a": [[0.1]], "b": [[0.1, 0.2]]}])
def test_head_scores_want_one_shape(shares):
    with pytest.raises(ValueError, match=r"one shape \(L, Hq\)"):
        head_scores(shares)


def test_head_scores_write_what_was_gained_below_zero():
    figure = head_scores({"lost": [[-0.08, -0.001, 0.5]]})
    assert [text.get_text() for text in figure.axes[0].texts] == ["−8", "0", "50"]


def test_experiments_show_means_single_measurements_and_which_are_controls():
    figure = experiments({"whole": [0.1, 0.3], "half": [-0.1, 0.1], "other": 0.05}, "bits", controls=["other"])
    (axes,) = figure.axes
    assert np.allclose([bar.get_width() for bar in axes.patches], [0.2, 0.0, 0.05])
    assert [bar.get_hatch() for bar in axes.patches] == [None, None, "///"]
    assert [list(line.get_xdata()) for line in axes.lines[:-1]] == [[0.1, 0.3], [-0.1, 0.1], [0.05]]
    assert [text.get_text() for text in axes.texts] == ["0.20", "0.00", "0.05"] and axes.get_xlabel() == "bits"
    assert figure.texts[0].get_text() == "0.20 at most: whole"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one text", "mean", "mean, control"]
    assert_nothing_cut_off(figure)


@pytest.mark.parametrize(("values", "controls"), [({}, []), ({"a": [1.0]}, ["b"])])
def test_experiments_need_values_with_all_controls(values, controls):
    with pytest.raises(ValueError, match="with all controls"):
        experiments(values, "bits", controls=controls)


def test_favourites_come_largest_first_and_only_from_what_the_query_may_see():
    weights = np.array([0.2, 0.005, 0.5, 0.295, 0.9])
    assert favourites(weights, query=3, most=8) == [2, 3, 0]
    assert favourites(weights, query=3, most=2) == [2, 3]
    assert favourites(np.full(200, 0.005), query=199, most=3) == [0], "one at least"


def test_looking_frames_the_query_and_shows_its_keys_as_bars():
    weights = np.array([[1.0, 0, 0], [0.25, 0.75, 0], [0.6, 0.005, 0.395]])
    figure = looking(weights, ["<s>", "▁a", "🐅"], query=2)
    grid, bars = figure.axes
    frame = grid.patches[0]
    assert (frame.get_y(), frame.get_width()) == (1.5, 3), "the row of query 2, three keys long"
    assert [bar.get_width() for bar in bars.patches] == [0.6, 0.395]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["0 <s>", "2 U+1F405"]
    assert figure.texts[0].get_text() == "“U+1F405” (2) gives 60% of its weight to “<s>” (0)"
    assert_nothing_cut_off(figure)


def test_looking_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"weights has shape \(2, 2\)"):
        looking(np.eye(2), list("abc"), query=0)
    with pytest.raises(ValueError, match="query=3"):
        looking(np.eye(3), list("abc"), query=3)


def test_view_shows_the_models_own_weights(model, tokenizer):
    view = AttentionView(model, tokenizer, {"story": TEXT}, telling=[(0, 7, 5)], max_tokens=8)
    tokens, weights = view.attention(TEXT)
    ids = torch.tensor([tokenizer.encode(TEXT)[:8]])
    expected = torch.cat(model(ids, output_attentions=True).attentions)
    assert tokens[:2] == ["<s>", "▁Once"] and weights.shape == (4, 8, 8, 8)
    assert np.allclose(weights, expected.detach().numpy(), atol=1e-6)


def test_view_redraws_for_each_control(model, tokenizer):
    view = AttentionView(model, tokenizer, {"story": TEXT, "other": "The cat sat down."}, telling=[(0, 7, 5)])
    assert (view.layer.value, view.head.value, view.query.value) == (0, 7, 5)
    seen = [view.picture.value]
    moves = (view.layer, 2), (view.head, 1), (view.query, 3), (view.text, "other"), (view.own_text, "Hi")
    for control, value in moves:
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    view.query.value = view.query.max
    assert view.picture.value == seen[-1], "beyond the end of a short text: its last token"
    view.own_text.value, view.text.value, view.layer.value, view.head.value, view.query.value = "", "story", 0, 7, 5
    assert view.picture.value == seen[0]


def test_view_has_a_static_face_with_the_weights_in_words(model, tokenizer):
    view = AttentionView(model, tokenizer, {"story": TEXT}, telling=[(0, 7, 10), (2, 1, 99)])
    bundle, _ = view._repr_mimebundle_()
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    assert strip.height == 2 * PIL.Image.open(BytesIO(view.picture.value)).height
    _, own, last = bundle["text/plain"].splitlines()
    assert own.split()[:6] == ["0", "7", "10", "▁named", "10", "▁named"], "a head that looks at the token itself"
    assert last.split()[:4] == ["2", "1", "12", "."], "queries beyond the end mean the last token"
    assert 0 < int(own.split()[-1]) <= 100


@pytest.mark.parametrize(("texts", "telling"), [({}, [(0, 0, 0)]), ({"story": TEXT}, [])])
def test_view_needs_a_text_and_a_place(model, tokenizer, texts, telling):
    with pytest.raises(ValueError, match="at least one text"):
        AttentionView(model, tokenizer, texts, telling)


def test_view_says_which_backend_it_needs(tokenizer):
    fused = MixtralForCausalLM.from_pretrained("tiny")
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        AttentionView(fused, tokenizer, {"story": TEXT}, telling=[(0, 0, 0)])
