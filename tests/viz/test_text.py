"""Text in figures is text: whatever a token, a name or a title holds, is drawn as it is, and can be seen."""

import importlib
import inspect
import pkgutil
import warnings
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

import mixtral_edu.viz
from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.bench.results import Result
from mixtral_edu.text.tokenizer import Piece
from mixtral_edu.viz import style
from mixtral_edu.viz.style import MONO, new_figure, printable, use_style
from mixtral_edu.viz.trace import Step
from mixtral_edu.viz.widgets import FigureView

matplotlib.use("Agg")

# A name that a legend would hide, formulas that are none, a character of another script, a combining one, controls.
TEXT = r"_$$ $\frac$ ^{%\ &<b>" + '"中é\t\0\x1b\ud800'
SHORT = "$$_\\%中\0"
SEEN, SEEN_SHORT = printable(TEXT), printable(SHORT)
OTHER = "another"
ROWS = np.array([[0.6, 0.4], [0.3, 0.7]])
TINY = MixtralConfig.tiny()
PIECE = Piece(7, TEXT, False)


def result(task: str, variant: str) -> Result:
    return Result(task, variant, (0.2, 0.3), (0.3, 0.4), against=TEXT, floor=0.1)


STEPS = [Step(name, shape) for name, shape in {
    "model.embed_tokens": (1, 3, 8), "model.layers.0": (1, 3, 8), "model.layers.0.input_layernorm": (1, 3, 8),
    "model.layers.0.self_attn.q_proj": (1, 3, 8), "model.layers.0.self_attn.k_proj": (1, 3, 4),
    "model.layers.0.self_attn.v_proj": (1, 3, 4), "model.layers.0.self_attn.o_proj": (1, 3, 8),
    "model.layers.0.post_attention_layernorm": (1, 3, 8), "model.layers.0.block_sparse_moe.gate": (3, 4),
    "model.layers.0.block_sparse_moe.experts.0.w1": (2, 6), "model.layers.0.block_sparse_moe.experts.0.w3": (2, 6),
    "model.layers.0.block_sparse_moe.experts.0.w2": (2, 8), "model.norm": (1, 3, 8), "lm_head": (1, 3, 20),
}.items()]  # fmt: skip

# For each figure its arguments but the title, with `TEXT` wherever a caller's text can stand.
CALLS = {
    "attention.one_head": (ROWS, np.eye(2) > 0, ROWS, [TEXT, OTHER]),
    "attention.saturation": ([4, 16], {TEXT: [0.2, 0.4]}, 5),
    "attention.sharing": (4, [4, 2, 1]),
    "attention.folding": (2, 3, 4),
    "attention.cache_sizes": ({TEXT: 2**30, OTHER: 2**31},),
    "benchmark.ratios_and_floors": ([result(TEXT, TEXT)],),
    "benchmark.attention_by_length": ([Result("attention-64-64", "sdpa float32", (0.2,), floor=0.1)], "float32"),
    "bits.bits_by_depth": ({TEXT: [3.0, 2.0], OTHER: [2.0, 1.0]},),
    "bits.token_costs": ([TEXT, OTHER], [3.0, 1.0]),
    "build.loss_ladder": ({TEXT: 2.0, OTHER: 1.0},),
    "cache.slots_over_time": ([[0, -1], [0, 1]],),
    "cache.slots_with_tokens": ([0, 1], [TEXT, Piece(3, TEXT, False)]),
    "cache.weights_by_slot": ([0.3, 0.7], [1, 0]),
    "cache.padded_rows": ([[0, 1], [-1, 0]], [[0, 1], [0, -1]], [0, 1]),
    "cache_costs.tokens_computed": ({TEXT: [1, 2], OTHER: [1, 1]},),
    "cache_costs.memory": ([1, 10], {TEXT: [1e6, 1e7], OTHER: [1e6, 1e6]}),
    "cache_costs.differences_by_position": ({2: [0.1, 0.2, 0.3]}, 2),
    "cache_costs.loss_changes": ({TEXT: {OTHER: (0.1, 0.2)}, OTHER: {OTHER: (0.3, 0.1)}},),
    "cache_costs.seconds_so_far": ({TEXT: [1.0, 2.0], OTHER: [1.0, 3.0]},),
    "cache_ring.ring_step": (4, 5, 2),
    "checkpoints.file_map": ({TEXT: 10, OTHER: 20},),
    "checkpoints.shard_map": ([{TEXT: 10, OTHER: 20}],),
    "checkpoints.errors_by_distance": ([0, 1, 2], {TEXT: [0, 1, 2], OTHER: [1, 1, 1]}),
    "checkpoints.losses_by_text": ({TEXT: {OTHER: (1.0, 0.1)}, OTHER: {OTHER: (2.0, 0.1)}},),
    "choice.gate_curve": ([0.5],),
    "choice.router_choice": ([0.1, 0.5, 0.2], 2, TEXT),
    "classification.accuracy_curves": ({TEXT: ([1, 2], [0.1, 0.9])}, TEXT),
    "classification.loss_curves": ({TEXT: {TEXT: [1.0, 0.5]}, OTHER: {TEXT: [1.0, 0.2]}}, [1, 1], 1.0),
    "classification.confusion": ([[3, 1], [0, 4]], [TEXT, OTHER]),
    "classification.accuracy_bars": ({TEXT: 0.5, OTHER: [0.8, 0.9]},),
    "classification.padded_rows": ({TEXT: [[1, 0], [1, 1]]},),
    "diagram.architecture": (TINY, [TEXT, OTHER]),
    "diagram.parameter_bars": ({TEXT: TINY},),
    "experts.dispatch_order": ([[0, 1], [1, 2]],),
    "experts.dispatch_strip": ([[0, 1], [1, 2]], 4),
    "experts.errors_of_layers": ({TEXT: {TEXT: [0.2, 0.3], OTHER: [0.1]}},),
    "experts.load_table": (ROWS, [TEXT, OTHER], 0.5),
    "experts.load_over_steps": ({TEXT: ROWS},),
    "experts.experts_touched": ([1, 2], {TEXT: [2, 3]}, TINY),
    "flops.flops_by_context": ([10, 20], 5.0, {TEXT: [1, 2]}),
    "flops.byte_bars": ({TEXT: {"experts": 2e9}},),
    "generation.surprise_along_text": ([TEXT, OTHER], [1.0, 2.0], [2.0, 1.0]),
    "generation.repeats": ({TEXT: [1, 2, 1, 2, 1, 2], OTHER: [1, 2, 3, 4, 5, 6]}, 2),
    "generation.padding_sides": ([[TEXT, OTHER], [OTHER]],),
    "generation.distance_by_pads": ([0, 1], {TEXT: [0.0, 0.5]}),
    "generation.tree_of_two_steps": (TEXT, {OTHER: (1.0, {TEXT: 0.7, OTHER: 0.3})}),
    "generation.by_number_of_beams": ([1, 2], {TEXT: ([[0.1], [0.2]], {OTHER: 0.3})}),
    "generation.experts_read": ({TEXT: [2.0, 3.0], OTHER: [2.0, 3.5]}, {TEXT: {OTHER: (2.0, 1.0)}}),
    "attention_maps.head_maps": (ROWS[None], [TEXT, OTHER], 1),
    "attention_maps.head_scores": ({TEXT: ROWS},),
    "attention_maps.looking": (ROWS, [TEXT, OTHER], 1),
    "attention_maps.experiments": ({TEXT: [0.1, 0.2], OTHER: [0.3]}, TEXT, [TEXT], TEXT),
    "lens.lens_table": ([TEXT, OTHER], [[OTHER, TEXT], [TEXT, OTHER]], ROWS),
    "lens.guesses_by_depth": ([TEXT], [[TEXT, OTHER], [OTHER, TEXT]], ROWS, TEXT),
    "masks.rules": (torch.arange(4), 2),
    "masks.explained": (torch.arange(4), 2, (2, 1)),
    "merges.merge_steps": ([list(SHORT), [SHORT]], [TEXT, OTHER]),
    "merges.tokens_against_merges": ([0, 10], {TEXT: [1.0, 2.0]}),
    "norm.normalised_points": ([TEXT, OTHER], [[1, 2], [2, -1]]),
    "norm.costs": ({TEXT: (0.1, 0.01), OTHER: (0.2, 0.1)},),
    "quantization.number_line": ([0.1, 0.4], [0.0, 0.5], [0.0, 0.5]),
    "quantization.errors_along_a_row": ({TEXT: [0.1, 0.2, 0.1, 0.2]}, 2),
    "quantization.level_use": ([0.5, 0.5],),
    "quantization.cost_by_bits": ({TEXT: {4: (0.0, 0.1), 3: (0.1, 0.1)}},),
    "quantization.along_and_across": ({TEXT: (1.0, 0.5, 0.1)},),
    "quantization.product_times": ({TEXT: {1: 0.001, 4: 0.002}},),
    "quantization.sizes_and_cards": ({TEXT: 26.0}, (24, 80)),
    "quantization.error_and_size": ({4: {16: (30.0, 0.1), 64: (26.0, 0.2)}},),
    "rope.turned_pair": ((1.0, 0.5), 0.3, [0, 1]),
    "rope.score_maps": ({TEXT: ROWS},),
    "rope.wavelengths": (8, [100.0], {TEXT: 50}),
    "rope.scores_by_distance": ([1, 2], {TEXT: [0.1, 0.2], OTHER: [0.2, 0.3]}),
    "rope_mistakes.row_order": (2, 4),
    "rope_mistakes.loss_by_start": ([0, 5], {TEXT: [1.0, 2.0]}, 3.0),
    "widgets.rope.pair_scores": (8, 100.0, 0, 1, 2, 7),
    "router.coloured_tokens": ([TEXT, OTHER], [[0, 1], [1, 2]]),
    "router.expert_load": ([[0, 1], [1, 2]],),
    "routing.load_by_domain": (ROWS[None], [TEXT, OTHER], 0.5),
    "routing.repetition_and_baselines": (ROWS[:, None], ROWS[:, None], (0.1, 0.2), [TEXT, OTHER]),
    "routing.information": ([2.0], {TEXT: [1.0]}, {TEXT: [0.1]}),
    "routing.cost_of_changes": (ROWS, [TEXT, OTHER], [TEXT, OTHER]),
    "routing.cost_of_knock_outs": (ROWS, ROWS, ROWS),
    "sampling.next_tokens": ([TEXT, OTHER], [0.7, 0.3]),
    "sampling.before_and_after": ([TEXT, OTHER], {TEXT: ([0.7, 0.3], [1.0, 0.0])}),
    "sampling.tokens_left": ([0.5, 1.0], {TEXT: {TEXT: [1, 2]}}),
    "tiles.bytes_by_length": ([8, 16], {TEXT: [8.0, 16.0]}),
    "tiles.seconds_by_length": ([8, 16], {TEXT: [0.1, 0.2]}),
    "tiles.bytes_by_tile": ([8, 16], [2.0, 1.0], {TEXT: 3.0, OTHER: 1.0}, [TEXT, OTHER]),
    "tiles.errors_by_way": ({TEXT: [0.1, 0.2]}, 0.05),
    "tiles.running_softmax": ([[0.0, 0.0], [0.0]], [2.0, 3.0]),
    "tiles.tile_map": ([[1, 0], [0, 1]], [TEXT, OTHER]),
    "tokens.token_boxes": ([PIECE, Piece(8, OTHER, False)],),
    "tokens.characters_and_bytes": (SHORT, [Piece(7, "▁" + SHORT, False)]),
    "tokens.bytes_per_token": ({TEXT: {TEXT: 2.0}, OTHER: {TEXT: 1.0}},),
    "trace.layer_shapes": (STEPS,),
    "trace.contributions": ([1.0, 2.0], [0.5], [0.6]),
    "training.learning_rates": ([0.1, 0.2, 0.1], 1),
    "training.packed_rows": ([[1, 3, 2, 1, 3]], 1, 2),
    "training.gradient_norms": ([0.5, 2.0], 1.0),
    "training.cost_of_parts": ({TEXT: [1.0], OTHER: [2.0]}, [TEXT, OTHER]),
    "training.loss_by_rate": ({TEXT: {0.1: [1.0], 0.2: [2.0]}},),
    "training.noise_by_rows": ([1, 2], [0.5, 0.4]),
    "training.learning_curves": ({TEXT: ([0, 1], [3.0, 2.0])},),
    "training.bits_by_domain": ({TEXT: [0.5]}, [TEXT]),
    "window.pair_counts": (4, 20),
    "window.receptive_field": (3, 2, 8),
    "window.accuracy_by_position": ({1: [1.0, 0.9, 0.1]}, 2, 0.1),
    "window.influence_by_distance": ({1: [1.0, 0.1, 0.0]}, 2),
    "window.cost_by_window": ({4: [0.1, 0.2], 8: [0.0, 0.1]}, 8),
    "window.disagreement": ([0, 1, 2], {TEXT: [0.0, 0.1, 0.2]}, 2),
}
MORE = {  # arguments by name, where there is text too
    "bits.bits_by_depth": {"highlight": TEXT},
    "experts.load_over_steps": {"even": 0.5},
    "rope.scores_by_distance": {"ylabel": TEXT},
    "training.learning_curves": {"marks": {1: TEXT}, "levels": {TEXT: 1.5}},
    "training.cost_of_parts": {"xlabel": TEXT},
    "training.loss_by_rate": {"ylabel": TEXT},
    "classification.accuracy_curves": {"chance": {TEXT: 0.5}},
    "classification.accuracy_bars": {"chance": 0.5, "hatched": [TEXT], "meaning": TEXT},
}
NO_FIGURES = {"style.new_figure", "cache.canvas", "tokens.canvas", "alt.describe"}  # empty, or words for one
NO_FIGURES |= {"own.draw_my_mixtral", "own.draw_parts", "tiles.loop_orders"}  # of names in the package only


def modules():
    found = pkgutil.walk_packages(mixtral_edu.viz.__path__, "mixtral_edu.viz.")
    return [importlib.import_module(module.name) for module in found]


def public(kind) -> dict:
    """All functions, or classes, that the modules of viz define for others, by module and name."""
    return {
        f"{module.__name__.removeprefix('mixtral_edu.viz.')}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if kind(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


FIGURES = {n: f for n, f in public(inspect.isfunction).items() if "figure" in inspect.signature(f).parameters}


def texts_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def draw(figure: Figure) -> list[Text]:
    """Draw it, with every warning an error (of a glyph that is missing, of a label that is left out)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)).draw()
    return texts_of(figure)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_no_figure_is_forgotten():
    assert FIGURES.keys() - NO_FIGURES == CALLS.keys() >= MORE.keys()


@pytest.mark.parametrize("name", CALLS)
def test_figures_draw_the_text_that_they_are_given(name):
    function = FIGURES[name]
    parameters = inspect.signature(function).parameters
    title = {"title": TEXT} if "title" in parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = function(*CALLS[name], **title, **MORE.get(name, {}))
    texts = draw(figure)
    drawn = [text.get_text().replace("⇥", "U+0009") for text in texts]  # a token's tab has a sign of its own
    formulas = [text.get_text() for text in texts if text.get_parse_math() and "$" in text.get_text()]
    assert all("mathdefault" in formula or "(1-K/E)^B" in formula for formula in formulas), "the package's own"
    assert not any(set("\t\0\x1b\ud800中") & set(text) for text in drawn)
    if title:
        assert SEEN in drawn
    data = sum(SEEN in text or SEEN_SHORT in text or SEEN.lstrip("_") in text for text in drawn) - bool(title)
    if repr(TEXT) in repr((CALLS[name], MORE.get(name))) or repr(SHORT) in repr(CALLS[name]):
        assert data >= 1, drawn
    if title and parameters["title"].default is None:  # a computed title may name what is in the data
        draw(function(*CALLS[name], **MORE.get(name, {})))


class OnePieceTokenizer:
    """Whatever it is asked, it says `TEXT`."""

    bos_token_id, eos_token_id, unk_token_id = 1, 2, 0
    processor = SimpleNamespace(piece_to_id=lambda symbol: 5)

    def __len__(self):
        return 97

    def encode(self, text):
        return [1, *range(3, 3 + min(12, len(text)))]

    def pieces(self, ids):
        return [Piece(int(i), TEXT, False) for i in ids]


TEXTS = {TEXT: "a story", OTHER: "another story"}
VIEWS = {n: v for n, v in public(inspect.isclass).items() if issubclass(v, FigureView) and v is not FigureView}
RUNS = [{"setting": name, "seed": 0, "steps": 2, "losses": [2.0, 1.0], "held_out": 1.0} for name in ("as it is", TEXT)]
ARGUMENTS = {
    "widgets.ablation.AblationView": lambda model, tokenizer: (RUNS, [TEXT]),
    "widgets.cache.RingView": lambda model, tokenizer: (),
    "widgets.choice.ChoiceView": lambda model, tokenizer: (model, tokenizer, TEXT, 2),
    "widgets.attention.AttentionView": lambda model, tokenizer: (model, tokenizer, TEXTS, [(0, 1, 3)]),
    "widgets.lens.LensView": lambda model, tokenizer: (model, tokenizer, TEXTS),
    "widgets.masks.MaskView": lambda model, tokenizer: (),
    "widgets.merges.MergesView": lambda model, tokenizer: (tokenizer, TEXTS),
    "widgets.quantization.QuantizationView": lambda model, tokenizer: (np.linspace(-1, 1, 64), (16, 64)),
    "widgets.rope.RopeView": lambda model, tokenizer: (8, 100.0),
    "widgets.sampling.SamplingView": lambda model, tokenizer: (model, tokenizer, TEXTS),
    "widgets.router.RouterView": lambda model, tokenizer: (model, tokenizer, TEXTS),
}


def test_no_widget_is_forgotten():
    assert VIEWS.keys() == ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_widgets_draw_the_text_that_they_are_given(name):
    torch.manual_seed(0)
    config = MixtralConfig.tiny(vocab_size=97, hidden_size=32, num_hidden_layers=2, attn_implementation="eager")
    model, tokenizer = MixtralForCausalLM(config).eval(), OnePieceTokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = VIEWS[name](*ARGUMENTS[name](model, tokenizer))
        view.summary()
        if hasattr(view, "own_text"):
            view.own_text.value = r"$\frac$ _ % 中 <script>&"
    texts = draw(view.figure)
    assert not any(text.get_parse_math() and "$" in text.get_text() for text in texts)
    drawn = [text.get_text().replace("⇥", "U+0009") for text in texts]
    assert not any(set("\t\0\x1b\ud800中") & set(text) for text in drawn)
    if ARGUMENTS[name](model, tokenizer)[1:2] == (tokenizer,) or name == "widgets.merges.MergesView":
        assert any(SEEN in text for text in drawn), drawn


def test_what_a_font_lacks_is_named_and_a_line_break_stays_one():
    with use_style():
        figure = new_figure(3, 2)
        figure.text(0, 0, "中\t a\nb", family="DejaVu Sans")
        figure.text(0, 0, "é ∑ e\u0301 中", family=MONO)
    assert [text.get_text() for text in draw(figure)] == ["U+4E2DU+0009 a\nb", "é ∑ e\u0301 U+4E2D"]
    assert printable("a\nb\xa0\u200d") == "aU+000AbU+00A0U+200D"
    quoted = [style.quoted(text) for text in ("a", "it's", 'a "b"', "\\")]
    assert quoted == ["'a'", '"it\'s"', "'a \"b\"'", "'\\'"], "as repr, but for backslashes"
    assert style._drawable("_", FontProperties()) == style._drawable(style.as_label("_"), FontProperties()) == "_"
