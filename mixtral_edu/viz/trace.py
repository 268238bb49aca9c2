"""What flows through a model in one forward pass: module shapes, and the residual stream that layers add to."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mixtral_edu.viz.diagram import PART_COLOURS
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MONO, MUTED, new_figure, use_style

STREAM_COLOUR = FAINT  # the residual stream is grey; the parts of a layer are coloured
ROW_HEIGHT = 0.27  # inches
SHAPES_LEFT, BRANCH, BARS_LEFT, BARS_WIDTH = 0.2, 0.35, 4.3, 5.7  # inches


class Step(NamedTuple):
    """One module's run: its name in the model, and the shape of what it returned."""

    name: str
    shape: tuple[int, ...]


class ResidualStream(NamedTuple):
    """The residual stream of one text, and what each layer added to it.

    `states` (L + 1, T, D): the embedding, and the stream after each layer. `attention` and `experts` (L, T, D): what
    the two parts of each layer added, so that `states[l] + attention[l] + experts[l]` is `states[l + 1]`.
    """

    states: Tensor
    attention: Tensor
    experts: Tensor


def trace_shapes(model: nn.Module, input_ids: Tensor) -> list[Step]:
    """Run `model` on `input_ids` (B, T), and return the steps in the order in which modules finish.

    If a module returns several things, the first counts. Modules that return no tensor are skipped, and so is `model`
    itself.
    """
    steps: list[Step] = []

    def note(name: str):
        def hook(module: nn.Module, arguments: tuple, returned: object) -> None:
            first = returned[0] if isinstance(returned, tuple) else returned
            if isinstance(first, Tensor):
                steps.append(Step(name, tuple(first.shape)))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            model(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


@torch.no_grad()
def residual_stream(model: nn.Module, input_ids: Tensor) -> ResidualStream:
    """Run a `MixtralForCausalLM` on one text, `input_ids` (1, T), and record what is added to the residual stream.

    Raises:
        ValueError: `input_ids` does not hold exactly one text.
    """
    if len(input_ids) != 1:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; it must hold one text, (1, T)")
    states, attention, experts = [], [], []
    hooks = [model.model.embed_tokens.register_forward_hook(lambda module, given, x: states.append(x))]
    for layer in model.model.layers:
        for module, kept in ((layer.self_attn, attention), (layer.block_sparse_moe, experts)):
            hooks.append(module.register_forward_hook(lambda module, given, out, kept=kept: kept.append(out[0])))
    try:
        model(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for attended, mixed in zip(attention, experts, strict=True):
        states.append(states[-1] + attended + mixed)
    return ResidualStream(*(torch.cat(tensors) for tensors in (states, attention, experts)))


def layer_shapes(
    steps: Sequence[Step], layer: int = 0, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw a forward pass as rows: the stream in grey, and what branches off in one layer; bars are numbers per token.

    Args:
        steps: what `trace_shapes` returned for a `MixtralForCausalLM`.
        layer: the layer shown in full; the others are only mentioned.
        title: replaces the computed title, which gives the width of the stream.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `steps` does not contain the layer.
    """
    shapes = dict(steps)  # the last shape of modules that ran several times
    if f"model.layers.{layer}" not in shapes:
        layers = [name for name in shapes if name.count(".") == 2]
        raise ValueError(f"layer={layer} is not in steps; it must be one of {layers}")
    rows = _rows(shapes, layer)
    widest = shapes["lm_head"][-1]
    if title is None:
        D = shapes["model.embed_tokens"][-1]
        title = f"Between embedding and lm_head, a token is a stream of {D:,} numbers"
    height = 1.0 + ROW_HEIGHT * len(rows)
    with use_style():
        figure = new_figure(12, height, figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 12), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(SHAPES_LEFT, 0.3, title, size=13, weight="bold", va="center")
        axes.text(BARS_LEFT, 0.68, "numbers for each token", size=10, color=MUTED, va="center")
        for row, (label, shape, colour) in enumerate(rows):
            _row(axes, 0.95 + ROW_HEIGHT * row, label, shape, colour, widest)
    return figure


def contributions(
    stream: ArrayLike,
    attention: ArrayLike,
    experts: ArrayLike,
    title: str | None = None,
    figure: Figure | None = None,
) -> Figure:
    """Draw, as bars per layer, the size of the stream that enters it and of what attention and experts add to it.

    Args:
        stream: L + 1 sizes: of the embedding, and of the stream after each layer.
        attention: L sizes of what attention adds.
        experts: L sizes of what the experts add.
        title: replaces the computed title, which names the largest addition.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: the numbers of layers do not match.
    """
    stream, attention, experts = ([float(size) for size in sizes] for sizes in (stream, attention, experts))
    L = len(attention)
    if L == 0 or len(experts) != L or len(stream) != L + 1:
        raise ValueError(
            f"stream has {len(stream)} sizes, attention {L} and experts {len(experts)}; they must have L + 1, L and L, "
            "with L at least 1"
        )
    if title is None:
        part, sizes = max(("attention", attention), ("experts", experts), key=lambda each: max(each[1]))
        verb = "adds" if part == "attention" else "add"
        title = f"{part.capitalize()} of layer {sizes.index(max(sizes))} {verb} most to the stream"
    with use_style():
        figure = new_figure(9.5, 3.8, figure)
        axes = figure.add_axes((0.075, 0.155, 0.91, 0.685))
        places = [*range(L + 1)]
        axes.bar([p - 0.27 for p in places], stream, 0.26, color=STREAM_COLOUR, label="stream before")
        axes.bar(places[:-1], attention, 0.26, color=PART_COLOURS["attention"], label="attention adds")
        axes.bar([p + 0.27 for p in places[:-1]], experts, 0.26, color=PART_COLOURS["experts"], label="experts add")
        for shift, sizes in ((-0.27, stream), (0, attention), (0.27, experts)):
            for place, size in enumerate(sizes):
                axes.text(place + shift, size, f"{size:.2f}", ha="center", va="bottom", size=9.5)
        axes.set(
            xlim=(-0.55, L),
            ylim=(0, 1.15 * max(*stream, *attention, *experts)),
            xticks=[*places[:-1], L - 0.27],
            xticklabels=[*(f"layer {layer}" for layer in range(L)), "at the end"],
            ylabel="root mean square",
        )
        axes.tick_params(axis="x", length=0)
        axes.legend(loc="upper left")
        axes.set_title(title)
    return figure


def _rows(shapes: dict[str, tuple[int, ...]], layer: int) -> list[tuple[str, tuple[int, ...] | None, str]]:
    """Return label, shape and colour of each row; what branches off from the stream is indented."""
    stream = shapes["model.embed_tokens"]
    prefix = f"model.layers.{layer}."
    expert = next(name for name in shapes if name.startswith(f"{prefix}block_sparse_moe.experts."))
    expert = expert.removeprefix(prefix).rpartition(".")[0]
    branches = {
        "+ attention": [
            ("input_layernorm", "norms"),
            ("self_attn.q_proj", "attention"),
            ("self_attn.k_proj", "attention"),
            ("self_attn.v_proj", "attention"),
            ("self_attn.o_proj", "attention"),
        ],
        "+ experts": [
            ("post_attention_layernorm", "norms"),
            ("block_sparse_moe.gate", "router"),
            (f"{expert}.w1", "experts"),
            (f"{expert}.w3", "experts"),
            (f"{expert}.w2", "experts"),
        ],
    }
    last = max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers."))
    rows = [("model.embed_tokens", stream, PART_COLOURS["embedding"])]
    if layer > 0:
        rows.append((f"layers 0 to {layer - 1}" if layer > 1 else "layer 0", None, STREAM_COLOUR))
    for sum_label, branch in branches.items():
        rows += [("  " + name, shapes[prefix + name], PART_COLOURS[part]) for name, part in branch]
        rows.append((f"layer {layer}: stream {sum_label}", stream, STREAM_COLOUR))
    if layer < last:
        rows.append((f"layers {layer + 1} to {last}" if layer + 1 < last else f"layer {last}", None, STREAM_COLOUR))
    rows.append(("model.norm", shapes["model.norm"], PART_COLOURS["norms"]))
    rows.append(("lm_head", shapes["lm_head"], PART_COLOURS["lm_head"]))
    return rows


def _row(axes: Axes, y: float, label: str, shape: tuple[int, ...] | None, colour: str, widest: int) -> None:
    branch = label.startswith("  ")
    name = label.strip()
    left = SHAPES_LEFT + BRANCH * branch
    is_module = name.startswith(("model.", "lm_head")) or branch
    look = {"family": MONO, "size": 9.5} if is_module else {"size": 10.5, "weight": "bold"}
    axes.text(left, y, name, va="center", color=INK, **look)
    if shape is None:
        axes.text(BARS_LEFT, y, "⋮ the same again", va="center", size=10, color=MUTED)
        return
    width = BARS_WIDTH * shape[-1] / widest
    edge = ACCENT if colour == STREAM_COLOUR else colour
    axes.add_patch(Rectangle((BARS_LEFT, y - 0.09), width, 0.18, facecolor=colour, edgecolor=edge, linewidth=1))
    text = f"({', '.join(f'{size:,}' for size in shape)})"
    axes.text(BARS_LEFT + width + 0.1, y, text, va="center", size=9.5, family=MONO, color=INK)
