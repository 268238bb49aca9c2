"""The attention mask with controls: set T, W and padding, choose a cell, and read why it is seen or not."""

from typing import Any

from ipywidgets import IntSlider
from matplotlib.figure import Figure

from mixtral_edu.viz.masks import REASONS, explained, left_padded, reasons, why
from mixtral_edu.viz.widgets.view import FigureView


class MaskView(FigureView):
    """Set T, W and the number of left pads; choose a cell by row and column, and read why it is seen or not.

    Args:
        longest: the largest T.
    """

    def __init__(self, longest: int = 12):
        self.length = IntSlider(value=10, min=1, max=longest, description="tokens T")
        self.window = IntSlider(value=4, min=1, max=longest, description="window W")
        self.pads = IntSlider(value=0, min=0, max=longest, description="pads")
        self.row = IntSlider(value=7, min=0, max=longest - 1, description="query row")
        self.column = IntSlider(value=3, min=0, max=longest - 1, description="key column")
        super().__init__([self.length, self.window, self.pads, self.row, self.column])

    def state(self) -> dict[str, Any]:
        last = self.length.value - 1
        return {
            "length": self.length.value,
            "window": self.window.value,
            "pads": min(self.pads.value, self.length.value),
            "chosen": (min(self.row.value, last), min(self.column.value, last)),
        }

    def draw(self, figure: Figure, length: int, window: int, pads: int, chosen: tuple[int, int]) -> None:
        explained(left_padded(length, pads), window, chosen, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        return [
            {"length": 10, "window": 10, "pads": 0, "chosen": (7, 3)},
            {"length": 10, "window": 4, "pads": 3, "chosen": (7, 3)},
        ]

    def summary(self) -> str:
        """List, for each panel of the static picture, T, W, pads, pairs by reason and the framed cell's sentence."""
        lines = ["  T   W  pads" + "".join(f"{reason:>15s}" for reason in REASONS)]
        for state in self.telling_states():
            positions = left_padded(state["length"], state["pads"])
            counts = reasons(positions, state["window"]).flatten().bincount(minlength=len(REASONS)).tolist()
            lines.append(
                f"{state['length']:3d} {state['window']:3d} {state['pads']:5d}" + "".join(f"{n:15d}" for n in counts)
            )
            row, column = state["chosen"]
            lines.append("             " + why(int(positions[row]), int(positions[column]), state["window"]))
        return "\n".join(lines)
