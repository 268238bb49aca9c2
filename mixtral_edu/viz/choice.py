"""One token on its way through the router: the gate of an expert, the scores, the choice of K, and their weights."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, expert_colour, new_figure, use_style


def gate_curve(values: ArrayLike, title: str | None = None, figure: Figure | None = None) -> Figure:
    """Plot silu(g) = g · sigmoid(g) and relu(g), with the gates of a worked example marked.

    Args:
        values: gates g to mark, from -6 to 6.
        title: replaces the default title.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: a value is not from -6 to 6.
    """
    values = np.asarray(values, dtype=float)
    if np.abs(values).max(initial=0) > 6:
        raise ValueError(f"values={values.tolist()}; every gate must be from -6 to 6")
    g = np.linspace(-6, 6, 241)
    with use_style():
        figure = new_figure(8.5, 3.4, figure)
        axes = figure.add_axes((0.085, 0.17, 0.895, 0.69))
        relu = "max(g, 0), called relu, for comparison"
        axes.plot(g, np.maximum(g, 0), color=MUTED, linestyle="--", linewidth=1.2, label=relu)
        axes.plot(g, _silu(g), color=ACCENT, linewidth=2, label="silu(g) = g · sigmoid(g)")
        axes.plot(values, _silu(values), "o", color=INK)
        for value in values:
            axes.annotate(
                f"silu({value:g}) = {_silu(value):.3f}",
                (value, _silu(value)),
                (0, 12),
                textcoords="offset points",
                ha="right",
                size=10,
            )
        axes.set(xlim=(-6, 6), ylim=(-0.7, 6.2), yticks=(0, 2, 4, 6), xlabel="gate g", ylabel="silu(g)")
        axes.grid(True)
        axes.legend(loc="upper left")
        axes.set_title(title or "Far below zero a gate is shut, far above it lets g through")
    return figure


def router_choice(scores: ArrayLike, top_k: int, name: str = "", figure: Figure | None = None) -> Figure:
    """Draw one token's E router scores as bars, and the weights that the best K of them become.

    Chosen experts have their own colours. Dashed outlines show the softmax over all E.

    Args:
        scores: (E,) router logits.
        top_k: K.
        name: the token's name for the title, which also lists the chosen experts and their weights.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `scores` is not a vector, or `top_k` is not in 1..E.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}; it must be (E,), the scores of one token")
    if not 1 <= top_k <= len(scores):
        raise ValueError(f"top_k={top_k}; it must be from 1 to {len(scores)}")
    chosen, weights = best_choices(scores, top_k)
    colours = [expert_colour(expert) if expert in chosen else FAINT for expert in range(len(scores))]
    named = ", ".join(f"{expert} ({weight:.2f})" for expert, weight in zip(chosen[:3], weights, strict=False))
    title = f"{name + ' · ' if name else ''}the best {top_k} of {len(scores)}: expert {named}{', …' * (top_k > 3)}"
    with use_style():
        figure = new_figure(10.5, 3.5, figure)
        left, right = figure.add_axes((0.065, 0.17, 0.42, 0.60)), figure.add_axes((0.56, 0.17, 0.42, 0.60))
        left.bar(range(len(scores)), scores, color=colours, edgecolor=INK, linewidth=0.6)
        left.axhline(0, color=MUTED, linewidth=0.8)
        left.set(xlabel="expert", ylabel="score", xticks=range(len(scores)))
        left.set_title("scores x · W_g", size=11, weight="normal")
        right.bar(chosen, weights, color=[colours[expert] for expert in chosen], edgecolor=INK, linewidth=0.6)
        halo = withStroke(linewidth=2.6, foreground="white", dashes={"dash_offset": 0, "dash_list": None})  # solid
        look = {"facecolor": "none", "edgecolor": INK, "linestyle": "--", "path_effects": [halo]}
        right.bar(range(len(scores)), _softmax(scores), width=0.5, **look)
        for expert, weight in zip(chosen, weights, strict=True):
            right.text(expert, weight + 0.02, f"{weight:.2f}", ha="center", size=10)
        right.set(xlabel="expert", ylabel="weight", xticks=range(len(scores)), ylim=(0, 1.12))
        right.set_title(f"weights: softmax over the best {top_k} (dashed: over all)", size=11, weight="normal")
        figure.text(0.012, 0.92, title, size=13, weight="bold")
    return figure


def best_choices(scores: ArrayLike, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the K experts with the highest scores, best first, and the softmax over those scores."""
    scores = np.asarray(scores, dtype=float)
    chosen = np.argsort(-scores, kind="stable")[:top_k]
    return chosen, _softmax(scores[chosen])


def _silu(g: np.ndarray) -> np.ndarray:
    return g / (1 + np.exp(-g))


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
