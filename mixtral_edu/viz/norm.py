"""What RMSNorm and LayerNorm do to a few vectors in the plane, and what a model loses without parts of a norm."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.viz.plane import draw_plane
from mixtral_edu.viz.style import ACCENT, FAINT, INK, new_figure, use_style


def normalised_points(
    names: Sequence[str], points: ArrayLike, eps: float = 1e-5, title: str | None = None, figure: Figure | None = None
) -> Figure:
    """Draw vectors of two numbers as they come, after RMSNorm and after LayerNorm, without weights.

    Args:
        names: N names. Points that coincide share one label.
        points: (N, 2).
        eps: the eps of both norms.
        title: replaces the computed title, which counts the different points that each norm leaves.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `points` is not (N, 2), or there are not N names.
    """
    x = torch.as_tensor(np.asarray(points, dtype=np.float64), device="cpu")
    if x.ndim != 2 or x.shape[1] != 2 or len(names) != len(x):
        raise ValueError(f"points has shape {tuple(x.shape)} with {len(names)} names; it must be (N, 2) with N names")
    rms, layer = F.rms_norm(x, (2,), eps=eps), F.layer_norm(x, (2,), eps=eps)
    kept, left = len(_grouped(names, rms)), len(_grouped(names, layer))
    reach = 1.25 * float(x.abs().max())
    with use_style():
        figure = new_figure(10.5, 4.3, figure)
        title = title or f"Of {len(x)} vectors RMSNorm leaves {kept} different ones, LayerNorm {left}"
        figure.text(0.012, 0.94, title, size=13, weight="bold", va="center")
        panels = (
            ("as they come", x, reach),
            ("RMSNorm: to one length", rms, 2.2),
            ("LayerNorm: to one length, mean 0", layer, 2.2),
        )
        for number, (heading, values, limit) in enumerate(panels):
            axes = figure.add_axes((0.055 + 0.33 * number, 0.13, 0.275, 0.275 * 10.5 / 4.3))
            draw_plane(axes, limit, 2**0.5 if number else None)
            if number == 2:
                axes.plot((-limit, limit), (limit, -limit), color=FAINT, linewidth=1.2, zorder=0)
            _arrows(axes, names, values)
            axes.set_title(heading, size=11.5, weight="normal")
            axes.set(xlabel="first number", ylabel="" if number else "second number")
    return figure


def costs(changes: Mapping[str, tuple[float, float]], title: str, figure: Figure | None = None) -> Figure:
    """Draw what each change of a model costs, with two standard errors to each side.

    Args:
        changes: by name, mean and standard error in nats per token.
        title: states the finding.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `changes` is empty.
    """
    if not changes:
        raise ValueError("changes is empty: give at least one change and its cost")
    with use_style():
        figure = new_figure(9.5, 1.3 + 0.42 * len(changes), figure)
        height = figure.get_figheight()
        axes = figure.add_axes((0.3, 0.6 / height, 0.66, 1 - 1.1 / height))
        mean, error = np.array(list(changes.values())).T
        rows = np.arange(len(changes))
        axes.axvline(0, color=INK, linewidth=1)
        axes.errorbar(mean, rows, xerr=2 * error, color=ACCENT, marker="o", linestyle="none", capsize=3)
        for row, (value, spread) in enumerate(zip(mean, error, strict=True)):
            axes.annotate(f"{value:+.2f}", (value + 2 * spread, row), (6, 0), textcoords="offset points", va="center")
        axes.set(xlabel="extra loss, nats per token (bars: two standard errors)", ylim=(len(changes) - 0.5, -0.5))
        axes.set(xlim=(min(0, (mean - 2 * error).min()) - 0.05, 1.12 * max(0.1, (mean + 2 * error).max())))
        axes.set_yticks(rows, list(changes))
        axes.tick_params(axis="y", length=0)
        figure.text(0.012, 1 - 0.25 / height, title, size=13, weight="bold", va="center")
    return figure


def _arrows(axes: Axes, names: Sequence[str], values: torch.Tensor) -> None:
    for label, (x, y) in _grouped(names, values).items():
        axes.plot((0, x), (0, y), color=ACCENT, linewidth=1.2)
        axes.plot(x, y, "o", color=ACCENT, markersize=6)
        axes.annotate(label, (x, y), (7, 6), textcoords="offset points", color=INK)


def _grouped(names: Sequence[str], values: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Group points that coincide in the picture under one label."""
    groups: dict[tuple[float, float], list[str]] = {}
    for name, point in zip(names, values.tolist(), strict=True):
        place = next((p for p in groups if np.allclose(p, point, rtol=0, atol=0.02)), tuple(point))
        groups.setdefault(place, []).append(name)
    return {", ".join(members): place for place, members in groups.items()}
