"""Pairs of numbers as arrows in the plane, to show norms and rotations."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from mixtral_edu.viz.style import FAINT, MUTED


def draw_plane(axes: Axes, limit: float, radius: float | None = None) -> None:
    """Draw both axes through the origin, from -limit to limit, and a circle of `radius` as a reference for lengths."""
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    if radius is not None:
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor=MUTED, linestyle="--", linewidth=0.8, zorder=0))
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(-limit, limit) if abs(tick) <= limit]
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks, aspect="equal")


def draw_arrow(axes: Axes, angle: float, length: float, colour: str, alpha: float = 1, width: float = 2) -> None:
    """Draw an arrow from the origin, `angle` radians from the first axis."""
    tip = (length * np.cos(angle), length * np.sin(angle))
    look = {"arrowstyle": "-|>", "color": colour, "alpha": alpha, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", tip, (0, 0), arrowprops=look)
