"""RoPE as a widget: choose a key position, a distance and a pair, and see which of them the score depends on."""

from typing import Any

import numpy as np
from ipywidgets import IntSlider
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixtral_edu.rope import rotary_frequencies
from mixtral_edu.viz.plane import draw_arrow, draw_plane
from mixtral_edu.viz.style import ACCENT, FAINT, INK, MUTED, new_figure, use_style
from mixtral_edu.viz.widgets.view import FigureView


def pair_scores(
    head_dim: int, theta: float, pair: int, key: int, distance: int, longest: int, figure: Figure | None = None
) -> Figure:
    """Draw one pair of a query and a key, equal before rotation, and their score at every distance.

    Args:
        head_dim: Dh.
        theta: the model's `rope_theta`.
        pair: index of one of the Dh/2 pairs.
        key: position j of the key.
        distance: i - j, how many positions after the key the query comes.
        longest: the largest distance of the curve.
        figure: a figure to draw into instead of a new one.

    Raises:
        ValueError: `pair` is not in 0..Dh/2-1, `key` is negative, or `distance` is not in 0..`longest`.
    """
    if not 0 <= pair < head_dim // 2 or key < 0 or not 0 <= distance <= longest:
        raise ValueError(
            f"pair={pair}, key={key}, distance={distance}; pair must be from 0 to {head_dim // 2 - 1}, key at least 0, "
            f"and distance from 0 to {longest}"
        )
    frequency = float(rotary_frequencies(head_dim, theta)[pair])
    query, score = key + distance, np.cos(distance * frequency)
    distances = np.linspace(0, longest, 10 * longest + 1)
    with use_style():
        figure = new_figure(9.0, 3.4, figure)
        written = f"{score:.3f}".replace("-", "−")
        title = f"Pair {pair} turns {frequency:.4g} rad a position: {distance} apart, the score is {written}"
        figure.text(0.012, 0.94, title, size=13, weight="bold", va="center")
        left = figure.add_axes((0.085, 0.16, 0.25, 0.25 * 9.0 / 3.4))
        right = figure.add_axes((0.43, 0.16, 0.55, 0.25 * 9.0 / 3.4))
        draw_plane(left, 1.3, 1)
        turned = frequency * np.linspace(0, distance, 1001)
        radius = 0.3 + 0.6 * turned / longest  # more than one turn becomes a spiral
        angles = key * frequency + turned
        left.plot(radius * np.cos(angles), radius * np.sin(angles), color=MUTED, linewidth=1.2)
        draw_arrow(left, key * frequency, 1, INK, width=4)
        draw_arrow(left, query * frequency, 1, ACCENT, width=1.8)
        left.text(0, 1.02, f"key at {key}", color=INK, transform=left.transAxes)
        left.text(1, 1.02, f"query at {query}", color=ACCENT, ha="right", transform=left.transAxes)
        left.set(xlabel="first number of the pair", ylabel="second number")
        right.axhline(0, color=FAINT, linewidth=1)
        right.plot(distances, np.cos(distances * frequency), color=ACCENT, linewidth=1.6)
        right.plot(distance, score, "o", color=INK, markersize=8)
        ticks = [tick for tick in MaxNLocator(7).tick_values(0, longest) if tick <= longest]
        right.set(xlim=(0, longest), ylim=(-1.1, 1.1), xticks=ticks, yticks=(-1, 0, 1))
        right.set(xlabel="distance i − j", ylabel="score of the pair")
        angle = f"angle between q and k: {distance} · {frequency:.4g} = {distance * frequency:.3g} rad"
        right.set_title(angle, size=11, weight="normal")
    return figure


class RopeView(FigureView):
    """Choose a pair, the key's position and the distance to the query: the score depends only on the distance.

    Args:
        head_dim: Dh.
        theta: the model's `rope_theta`.
        longest: the largest distance, and the largest position of the key.
    """

    def __init__(self, head_dim: int, theta: float, longest: int = 127):
        self.head_dim, self.theta, self.longest = head_dim, theta, longest
        self.pair = IntSlider(value=0, min=0, max=head_dim // 2 - 1, description="pair")
        self.key = IntSlider(value=0, min=0, max=longest, description="key position j")
        self.distance = IntSlider(value=2, min=0, max=longest, description="distance i − j")
        for slider in (self.key, self.distance):
            slider.style.description_width = "initial"
        super().__init__([self.pair, self.key, self.distance])

    def state(self) -> dict[str, Any]:
        return {"pair": self.pair.value, "key": self.key.value, "distance": self.distance.value}

    def draw(self, figure: Figure, pair: int, key: int, distance: int) -> None:
        pair_scores(self.head_dim, self.theta, pair, key, distance, self.longest, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        """Return the fastest pair at two positions and one distance, then a slower pair, and the slowest far apart."""
        far = self.longest
        return [
            {"pair": 0, "key": 0, "distance": min(2, far)},
            {"pair": 0, "key": min(20, far), "distance": min(2, far)},
            {"pair": self.head_dim // 8, "key": min(20, far), "distance": min(2, far)},
            {"pair": self.head_dim // 2 - 1, "key": min(20, far), "distance": min(100, far)},
        ]

    def summary(self) -> str:
        """List pair, positions, angle between the arrows and score for each panel of the static picture."""
        frequencies = rotary_frequencies(self.head_dim, self.theta).tolist()
        lines = ["pair  key j  query i  angle between  score"]
        for state in self.telling_states():
            angle = state["distance"] * frequencies[state["pair"]]
            query = state["key"] + state["distance"]
            lines.append(f"{state['pair']:4d}{state['key']:7d}{query:9d}{angle:11.3f} rad{np.cos(angle):7.3f}")
        return "\n".join(lines)
