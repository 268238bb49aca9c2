"""A row of weights, rounded as you choose bits and group size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ipywidgets import Dropdown, IntSlider
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.viz.style import ACCENT, FAINT, INK, new_figure, use_style
from mixtral_edu.viz.widgets.view import FigureView


def round_to_levels(weights: ArrayLike, bits: int, group_size: int) -> np.ndarray:
    """Round each group of neighbours to 2**bits equally spaced levels, from its smallest to its largest value.

    Args:
        weights: (D,), with D a multiple of `group_size`.
        bits: bits per weight.
        group_size: number of neighbours that share levels.
    """
    groups = np.asarray(weights, dtype=float).reshape(-1, group_size)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    step = np.where(high > low, high - low, 1) / (2**bits - 1)
    return (low + np.round((groups - low) / step) * step).reshape(-1)


def gigabytes_of_mixtral(bits: int, group_size: int) -> float:
    """Return the size of Mixtral-8x7B in gigabytes, with its large matrices rounded to `bits` bits per weight.

    Each group also stores a scale and a zero in 16 bits each; all other parameters take 16 bits.
    """
    counts = MixtralConfig.mixtral_8x7b().parameter_counts()
    large = counts.per_part["attention"] + counts.per_part["experts"]
    return (large * (bits / 8 + 4 / group_size) + 2 * (counts.total - large)) / 1e9


class QuantizationView(FigureView):
    """Choose the bits per weight and how many neighbours share levels, and see a row of weights rounded.

    Args:
        weights: (D,), a row of a matrix.
        group_sizes: group sizes to choose from, each a divisor of D.
        shown: number of weights drawn, from the start of the row.

    Raises:
        ValueError: a group size does not divide D.
    """

    def __init__(self, weights: ArrayLike, group_sizes: Sequence[int] = (16, 64, 256), shown: int = 64):
        self.weights = np.asarray(weights, dtype=float)
        for size in group_sizes:
            if len(self.weights) % size:
                raise ValueError(
                    f"group_sizes contains {size}; each size must divide the row's length, {len(self.weights)}"
                )
        self.shown = shown
        self.bits = IntSlider(value=4, min=1, max=8, description="bits")
        self.group = Dropdown(options=list(group_sizes), value=group_sizes[len(group_sizes) // 2], description="group")
        super().__init__([self.bits, self.group])

    def state(self) -> dict[str, Any]:
        return {"bits": self.bits.value, "group_size": self.group.value}

    def draw(self, figure: Figure, bits: int, group_size: int) -> None:
        rounded, error = self.rounded(bits, group_size)
        with use_style():
            new_figure(9.5, 2.9, figure)
            axes = figure.add_axes((0.09, 0.19, 0.88, 0.66))
            columns = np.arange(self.shown)
            axes.vlines(columns, self.weights[: self.shown], rounded[: self.shown], color=ACCENT, linewidth=1.2)
            axes.plot(columns, self.weights[: self.shown], ".", color=INK, markersize=5, label="before")
            axes.plot(columns, rounded[: self.shown], "_", color=ACCENT, markersize=8, mew=2, label="after")
            for border in range(group_size, self.shown, group_size):
                axes.axvline(border - 0.5, color=FAINT, linewidth=1)
            margin = 0.3 * np.ptp(self.weights[: self.shown])
            axes.set(ylim=(self.weights[: self.shown].min() - 0.1 * margin, self.weights[: self.shown].max() + margin))
            axes.set(xlim=(-1, self.shown), xlabel="column of the weight", ylabel="weight")
            axes.legend(loc="upper right", ncols=2)
            size = gigabytes_of_mixtral(bits, group_size)
            axes.set_title(
                f"{bits} {'bit' if bits == 1 else 'bits'}, groups of {group_size}: error of the row {error:.1%}, "
                f"Mixtral-8x7B takes {size:.1f} GB"
            )

    def telling_states(self) -> list[dict[str, Any]]:
        middle = self.group.options[len(self.group.options) // 2]
        return [{"bits": bits, "group_size": middle} for bits in (8, 4, 2)]

    def summary(self) -> str:
        """List the row's error and the size of Mixtral-8x7B for each number of bits and each group size."""
        sizes = self.group.options
        lines = ["error of the row, in percent, and gigabytes of Mixtral-8x7B"]
        lines.append("bits    " + "".join(f"groups of {size:<10d}" for size in sizes))
        for bits in (8, 4, 3, 2, 1):
            cells = [
                f"{100 * self.rounded(bits, size)[1]:6.1f} {gigabytes_of_mixtral(bits, size):6.1f} GB   "
                for size in sizes
            ]
            lines.append(f"{bits:4d} " + " ".join(cells).rstrip())
        return "\n".join(lines)

    def rounded(self, bits: int, group_size: int) -> tuple[np.ndarray, float]:
        """Return the rounded row, and the norm of the difference relative to the row's own norm."""
        rounded = round_to_levels(self.weights, bits, group_size)
        return rounded, float(np.linalg.norm(rounded - self.weights) / np.linalg.norm(self.weights))
