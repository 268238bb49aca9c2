"""What was traced is what ran; the stream adds up; the figures hold it."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.trace import BARS_WIDTH, STREAM_COLOUR, contributions, layer_shapes, residual_stream, trace_shapes

matplotlib.use("Agg")

SIZES = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 31, "num_hidden_layers": 3}  # 8 heads of 6 numbers
IDS = torch.arange(11)[None] * 7 % 97


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def model() -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig.tiny(**SIZES)).eval()


def test_a_trace_has_each_modules_shape_in_the_order_of_the_pass(model):
    steps = trace_shapes(model, IDS)
    shapes = dict(steps)
    assert shapes["model.embed_tokens"] == shapes["model.layers.2"] == (1, 11, 48)
    assert shapes["model.layers.0.self_attn.q_proj"] == (1, 11, 48)
    assert shapes["model.layers.0.self_attn.k_proj"] == (1, 11, 12)
    assert shapes["model.layers.1.block_sparse_moe.gate"] == (11, 8)
    assert steps[-1] == ("lm_head", (1, 11, 97))
    names = [step.name for step in steps]
    order = ["input_layernorm", "self_attn", "post_attention_layernorm", "block_sparse_moe"]
    places = [names.index(f"model.layers.1.{name}") for name in order]
    assert places == sorted(places)
    tokens = sum(shape[0] for name, shape in steps if name.startswith("model.layers.0.") and name.endswith(".w2"))
    assert tokens == 2 * 11  # each token goes to two experts


def test_a_trace_leaves_no_hook_behind_also_where_the_pass_fails(model):
    with pytest.raises(ValueError, match="input_ids"):
        trace_shapes(model, torch.tensor([[97]]))
    with pytest.raises(ValueError, match="input_ids"):
        residual_stream(model, torch.tensor([[97]]))
    assert not any(module._forward_hooks for module in model.modules())


def test_the_stream_is_the_embedding_and_what_was_added(model):
    stream = residual_stream(model, IDS)
    assert stream.states.shape == (4, 11, 48) and stream.attention.shape == stream.experts.shape == (3, 11, 48)
    with torch.no_grad():
        out = model(IDS, output_hidden_states=True)
        normed = model.model.norm(stream.states[-1])
    torch.testing.assert_close(stream.states[:-1], torch.cat(out.hidden_states[:-1]))
    torch.testing.assert_close(normed, out.hidden_states[-1][0])
    torch.testing.assert_close(stream.states[1:] - stream.states[:-1], stream.attention + stream.experts)


def test_a_stream_is_of_one_text(model):
    with pytest.raises(ValueError, match=r"input_ids has shape \(2, 11\)"):
        residual_stream(model, IDS.expand(2, -1))


@pytest.mark.parametrize(
    ("layer", "others"), [(0, ["layers 1 to 2"]), (1, ["layer 0", "layer 2"]), (2, ["layers 0 to 1"])]
)
def test_the_picture_of_shapes_draws_numbers_a_token_to_scale(model, layer, others):
    figure = layer_shapes(trace_shapes(model, IDS), layer=layer)
    (axes,) = figure.axes
    words = [text.get_text() for text in texts_of(figure)]
    assert words[0] == "Between embedding and lm_head, a token is a stream of 48 numbers"
    assert [word for word in words if word.startswith("layer") and ":" not in word] == others
    widths = [bar.get_width() / BARS_WIDTH * 97 for bar in axes.patches]
    attention, experts = [48, 48, 12, 12, 48], [48, 8, 31, 31, 48]
    assert widths == pytest.approx([48, *attention, 48, *experts, 48, 48, 97])
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours[6] == colours[12] == STREAM_COLOUR.lower() and colours[-1] == PART_COLOURS["lm_head"].lower()
    assert "(1, 11, 12)" in words and "(11, 8)" in words
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_the_picture_of_shapes_needs_a_layer_that_ran(model):
    with pytest.raises(ValueError, match=r"layer=3 .*model\.layers\.2"):
        layer_shapes(trace_shapes(model, IDS), layer=3)


def test_contributions_stand_beside_the_stream_that_they_enter():
    figure = contributions(torch.tensor([0.1, 5.0, 8.0]), [1.0, 2.0], [4.0, 3.0])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0.1, 5.0, 8.0, 1.0, 2.0, 4.0, 3.0])
    assert figure.axes[0].get_title(loc="left") == "Experts of layer 0 add most to the stream"
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)
    contributions([1, 2], [9], [3], figure=figure)  # drawn again in place
    assert figure.axes[0].get_title(loc="left") == "Attention of layer 0 adds most to the stream"
    assert isinstance(figure, Figure) and len(figure.axes) == 1


@pytest.mark.parametrize("sizes", [([1.0], [], []), ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]), ([1, 2, 3], [1, 2], [1])])
def test_contributions_have_to_match(sizes):
    with pytest.raises(ValueError, match=r"L \+ 1, L and L"):
        contributions(*sizes)
