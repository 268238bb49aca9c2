"""Figures hold the data they are given, nothing is cut off or unreadable, and widgets redraw."""

import base64
import itertools
import re
import subprocess
import sys
from io import BytesIO
from types import SimpleNamespace

import matplotlib
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from figure_checks import assert_no_texts_overlap, assert_nothing_cut_off, texts_of
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.viz.diagram import PART_COLOURS, architecture, parameter_bars, short_count
from mixtral_edu.viz.router import MARGIN, WIDTH, coloured_tokens, expert_load, place_tokens
from mixtral_edu.viz.style import EXPERT_COLOURS, contrast_ratio, expert_colour, printable, text_colour, use_style
from mixtral_edu.viz.widgets import RouterView

matplotlib.use("Agg")

PIECES = ["<s>", "▁Once", "▁upon", "▁a", "▁ti", "me", ",", "<0x0A>", "▁▁▁▁", "x", "$", "<0xF0>", "中", "$"]
EXPERTS = np.array([[(3 * i) % 8, (3 * i + 1) % 8] for i in range(len(PIECES))])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# One simulation matrix for each kind of colour blindness (Machado, Oliveira and Fernandes 2009, full severity).
SIGHTS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def perceived(colour: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of a colour as that eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SIGHTS[sight]) @ linear, 0, 1)
    to_xyz = [[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]
    xyz = np.asarray(to_xyz) @ seen / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHTS)
def test_expert_colours_differ_for_every_eye(sight):
    seen = [perceived(colour, sight) for colour in EXPERT_COLOURS]
    assert len(seen) == 8
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12  # 2.3 is just noticeable


@pytest.mark.parametrize("colour", EXPERT_COLOURS)
def test_text_on_expert_colours_is_readable(colour):
    assert contrast_ratio(text_colour(colour), colour) >= 4.5


def test_contrast_ratio_of_known_pairs():
    assert contrast_ratio("black", "white") == pytest.approx(21)
    assert contrast_ratio("#777777", "white") == pytest.approx(4.48, abs=0.01)  # the well-known near miss of 4.5


def test_style_leaves_the_callers_settings_alone():
    before = dict(matplotlib.rcParams)
    with use_style():
        assert matplotlib.rcParams["font.size"] == 11
    assert dict(matplotlib.rcParams) == before


def test_characters_without_a_glyph_are_named():
    assert printable("añ→中😀") == "añ→U+4E2DU+1F600"


def test_coloured_tokens_draws_every_token_and_all_its_experts():
    figure = coloured_tokens(PIECES, EXPERTS, layer=2)
    drawn = [text.get_text() for text in figure.texts]
    shown = ["<s>", "Once", "upon", "a", "ti", "me", ",", "↵", "␣␣␣␣", "x", "$", "<0xF0>", "U+4E2D", "$"]
    assert drawn[0::3] == shown  # each token writes its text, its first and its second expert
    numbers = zip(drawn[1::3], drawn[2::3], strict=True)
    assert [[int(first), int(second)] for first, second in numbers] == EXPERTS.tolist()
    faces = figure.axes[0].collections[0].get_facecolor()[:, :3]
    wanted = [expert_colour(e) for first, second in EXPERTS for e in (first, first, second)]
    assert np.allclose(faces, [to_rgb(colour) for colour in wanted])
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_coloured_tokens_names_the_favourite_expert():
    experts = [[5, 1], [5, 0], [5, 2], [1, 5]]
    title = coloured_tokens(list("abcd"), experts, layer=3).axes[0].texts[0].get_text()
    assert title == "Layer 3: expert 5 is the first choice of 75% of 4 tokens"
    assert coloured_tokens(list("abcd"), experts, title="Mine").axes[0].texts[0].get_text() == "Mine"


def test_router_weights_divide_a_wide_strip():
    figure = coloured_tokens(["▁extraordinarily"], [[0, 1]], weights=[[0.9, 0.1]])
    whole, first, second = figure.axes[0].collections[0].get_paths()
    widths = [path.get_extents().width for path in (whole, first, second)]
    assert widths[1] + widths[2] == pytest.approx(widths[0])
    assert widths[1] > 3 * widths[2]


def test_words_stay_apart_and_newlines_break_rows():
    once, up, on, *rest = place_tokens(["▁Once", "▁up", "on", "<0x0A>", "<0x0A>", "x"])
    assert up.left - (once.left + once.width) > on.left - (up.left + up.width) > 0
    assert [box.row for box in rest] == [0, 0, 1]


def test_every_row_stays_in_the_picture():
    boxes = place_tokens(["▁extraordinary"] * 50)
    assert boxes[-1].row > 5
    assert max(box.left + box.width for box in boxes) <= WIDTH - MARGIN


def test_coloured_tokens_of_a_long_text_says_what_it_leaves_out():
    pieces = ["▁word"] * 500
    figure = coloured_tokens(pieces, np.zeros((500, 2), int), max_tokens=100)
    assert len(figure.texts) == 300
    assert figure.axes[0].texts[-1].get_text() == "… and 400 more tokens"
    assert_nothing_cut_off(figure)


def test_coloured_tokens_with_sixteen_experts_and_four_choices():
    experts = np.array([[15, 14, 13, 12], [10, 9, 11, 1]] * 10)
    figure = coloured_tokens(["a"] * 20, experts, num_experts=16)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pieces": ["a"], "experts": [[0, 1], [1, 2]]}, "one row for each of the 1 pieces"),
        ({"pieces": [], "experts": []}, "experts is empty"),
        ({"pieces": ["a"], "experts": [[0, 8]]}, r"0\.\.7"),
        ({"pieces": ["a"], "experts": [[0, 1]], "weights": [0.5]}, "shape"),
    ],
)
def test_coloured_tokens_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        coloured_tokens(**arguments)


def test_expert_load_bars_are_the_shares():
    experts = np.array([[0, 1], [0, 2], [3, 0], [0, 3]])
    figure = expert_load(experts, num_experts=4)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0.75, 0, 0, 0.25] + [0.25, 0.25, 0.25, 0.25])  # first choices, then second ones
    assert figure.axes[0].get_title(loc="left") == "Expert 0 sees 100% of the tokens, expert 1 sees 25%"
    assert any("50.0%" in text.get_text() for text in texts_of(figure))  # even: K / E
    assert_nothing_cut_off(figure)


CONFIGS = {
    "mixtral_8x7b": MixtralConfig.mixtral_8x7b(),
    "tiny": MixtralConfig.tiny(),
    "16 experts top-4": MixtralConfig.tiny(num_local_experts=16, num_experts_per_tok=4, num_key_value_heads=8),
    "dense": MixtralConfig.tiny(num_local_experts=2, num_experts_per_tok=2, num_key_value_heads=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_architecture_shows_the_sizes(name):
    config = CONFIGS[name]
    figure = architecture(config)
    words = "\n".join(text.get_text() for text in texts_of(figure))
    assert f"{config.num_hidden_layers} × layer" in words
    assert f"{config.vocab_size:,} × {config.hidden_size:,}" in words
    assert f"{config.num_attention_heads} query heads share {config.num_key_value_heads} key/value heads" in words
    assert f"{config.hidden_size:,} → {config.intermediate_size:,}" in words
    assert f"{config.num_experts_per_tok} of {config.num_local_experts} experts" in words
    assert ("no window" in words) == (config.sliding_window is None)
    lit = [text for text in texts_of(figure) if text.get_text().startswith("× 0.")]
    assert len(lit) == config.num_experts_per_tok
    assert sum(float(text.get_text()[2:]) for text in lit) == pytest.approx(1, abs=0.03)
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_parameter_bars_add_up():
    figure = parameter_bars({"8x7B": CONFIGS["mixtral_8x7b"], "tiny": CONFIGS["tiny"]})
    for axes, config in zip(figure.axes, (CONFIGS["mixtral_8x7b"], CONFIGS["tiny"]), strict=True):
        counts = config.parameter_counts()
        widths = [bar.get_width() for bar in axes.patches]
        parts = len(PART_COLOURS)
        assert sum(widths[:parts]) == counts.total
        assert sum(widths[parts : 2 * parts]) == counts.active
        assert widths[2 * parts] == counts.total - counts.active
    words = [text.get_text() for text in texts_of(figure)]
    assert "46.7 B" in words and "12.9 B" in words
    assert_nothing_cut_off(figure)
    assert_no_texts_overlap(figure)


def test_short_count():
    assert [short_count(n) for n in (999, 1536, 8_012_032, 46_702_792_704)] == ["999", "1.5 k", "8.0 M", "46.7 B"]


def test_figures_can_be_drawn_again_in_place():
    figure = Figure()
    expert_load(EXPERTS, figure=figure)
    assert coloured_tokens(PIECES, EXPERTS, figure=figure) is figure
    assert len(figure.axes) == 1
    assert plt.get_fignums() == []


class CharacterTokenizer:
    """One token a character, so that a text's tokens can be read off."""

    def encode(self, text):
        return [1, *(ord(char) % 90 + 3 for char in text)]

    def pieces(self, ids):
        return [SimpleNamespace(piece="<s>" if i == 1 else f"{i}") for i in ids]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig.tiny(vocab_size=97, hidden_size=32, num_hidden_layers=3)).eval()


@pytest.fixture
def view(model):
    return RouterView(model, CharacterTokenizer(), {"fox": "The quick brown fox", "dog": "a lazy dog"}, max_tokens=30)


def test_router_view_redraws_when_a_control_changes(view):
    seen = [view.picture.value]
    for control, value in ((view.layer, 2), (view.text, "dog"), (view.own_text, "Zebras!")):
        control.value = value
        assert view.picture.value not in seen
        seen.append(view.picture.value)
    view.own_text.value, view.text.value, view.layer.value = "", "fox", 0
    assert view.picture.value == seen[0]


def test_router_view_shows_the_models_choices(view, model):
    pieces, experts, weights = view.routing("The quick")
    logits = model(torch.tensor([view.tokenizer.encode("The quick")]), output_router_logits=True).router_logits
    assert pieces[0] == "<s>" and experts.shape == weights.shape == (3, 10, 2)
    for layer, scores in enumerate(logits):
        order = scores.argsort(dim=-1, descending=True)[:, :2]
        assert (experts[layer] == order.numpy()).all()
    assert weights.sum(axis=-1) == pytest.approx(1, abs=1e-6)
    assert (weights[..., 0] >= weights[..., 1]).all()


def test_router_view_has_a_static_face(view):
    bundle, metadata = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    titles = re.findall(r"Layer \d: [^.]+ of 20 tokens", metadata["image/png"]["alt"])
    assert [title[:7] for title in titles] == ["Layer 0", "Layer 1", "Layer 2"]
    strip = PIL.Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    frame = PIL.Image.open(BytesIO(view.picture.value))
    assert strip.size == (frame.width, 3 * frame.height)  # one frame a layer
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == "first expert of 20 tokens of 'fox', in percent"
    assert [line.split()[:2] for line in lines[2:]] == [["layer", "0"], ["layer", "1"], ["layer", "2"]]
    assert all(sum(map(int, line.split()[2:])) == pytest.approx(100, abs=4) for line in lines[2:])


def test_router_view_limits_long_texts(model):
    view = RouterView(model, CharacterTokenizer(), {"long": "abc " * 1000}, max_tokens=25)
    assert len(view.routing("abc " * 1000)[0]) == 25


def test_router_view_needs_a_text(model):
    with pytest.raises(ValueError, match="texts"):
        RouterView(model, CharacterTokenizer(), {})


def test_importing_the_package_loads_no_plotting():
    code = "import sys, mixtral_edu, mixtral_edu.viz; print('matplotlib' in sys.modules, 'ipywidgets' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
