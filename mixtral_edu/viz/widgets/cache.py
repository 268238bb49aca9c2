"""The ring with controls: feed it step by step, and see what its slots hold and which keys new queries find."""

from typing import Any

from ipywidgets import Dropdown, IntSlider, Play, jslink
from matplotlib.figure import Figure

from mixtral_edu.masks import NO_POSITION
from mixtral_edu.viz.cache import positions_held
from mixtral_edu.viz.cache_ring import MOST_SLOTS, lost_keys, named, ring_step
from mixtral_edu.viz.widgets.view import FigureView

ORDERS = {"attend, then write": False, "write first (wrong)": True}


class RingView(FigureView):
    """Feed a ring of W slots step by step, and see what its slots hold and which keys the new queries find.

    The static picture shows a token that goes to an empty slot, one that overwrites another, a chunk, and the same
    chunk written too early.

    Args:
        window: W, from 2 to 12.
        num_steps: number of steps to play.

    Raises:
        ValueError: `window` is not in 2..12, or `num_steps` is below 2.
    """

    def __init__(self, window: int = 8, num_steps: int = 20):
        if not 2 <= window <= MOST_SLOTS:
            raise ValueError(f"window={window}; it must be from 2 to {MOST_SLOTS}")
        if num_steps < 2:
            raise ValueError(f"num_steps={num_steps}; it must be at least 2")
        self.window = window
        self.play = Play(min=0, max=num_steps - 1, interval=700, description="play")
        self.step = IntSlider(value=0, min=0, max=num_steps - 1, description="step")
        self.chunk = IntSlider(value=1, min=1, max=window + 2, description="chunk")
        self.order = Dropdown(options=ORDERS, description="order")
        self.link = jslink((self.play, "value"), (self.step, "value"))  # browser side; the kernel follows the slider
        super().__init__([self.play, self.step, self.chunk, self.order])

    def state(self) -> dict[str, Any]:
        new = self.chunk.value
        return {"seen": self.step.value * new, "new": new, "write_first": self.order.value}

    def draw(self, figure: Figure, seen: int, new: int, write_first: bool) -> None:
        ring_step(self.window, seen, new, write_first, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        W, chunk = self.window, max(2, self.window // 2)
        singles = [{"seen": seen, "new": 1, "write_first": False} for seen in (W // 2, W + 1)]
        return singles + [{"seen": 3 * chunk, "new": chunk, "write_first": first} for first in (False, True)]

    def summary(self) -> str:
        """List what the slots hold after each step of the static picture, and how many query-key pairs are lost."""
        lines = [f"W = {self.window}; slots after the step, from slot 0 on; query-key pairs lost"]
        for state in self.telling_states():
            held = positions_held(state["seen"] + state["new"], self.window)
            slots = " ".join("-" if position == NO_POSITION else str(position) for position in held)
            order = "write first" if state["write_first"] else "attend first"
            needed, lost = lost_keys(self.window, **state)
            what = f"{named(state['seen'], state['new'])}, {order}:"
            lines.append(f"{what:34}{slots:28}{lost.sum()} of {needed.sum()}")
        return "\n".join(lines)
