"""Figures with controls: a picture that is redrawn in place, and a static picture for pages without a kernel."""

from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
from ipywidgets import HBox, Image, Layout, VBox, Widget
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from mixtral_edu.viz.style import STYLE


class FigureView(VBox):
    """Controls above a picture that is redrawn, in one reused figure, whenever a control changes.

    States must be hashable: the pictures of the latest states are cached, so moving a slider back is instant.

    A subclass creates its controls, calls `super().__init__(controls)`, and defines

    * `state()`: the current settings of the controls, as keyword arguments of `draw`,
    * `draw(figure, **state)`: draws a state into `figure`,
    * `telling_states()`: the states in the static picture, one above the other,
    * `summary()`: the numbers behind those states, as text.
    """

    def __init__(self, controls: Sequence[Widget]):
        self.figure = Figure()
        self._frame = lru_cache(maxsize=64)(lambda **state: _png(self._pixels(state)))
        self.picture = Image(format="png", layout=Layout(max_width="100%"))
        super().__init__([HBox(list(controls), layout=Layout(flex_flow="row wrap")), self.picture])
        for control in controls:
            control.observe(self.redraw, names="value")
        self.redraw()

    def state(self) -> dict[str, Any]:
        raise NotImplementedError

    def draw(self, figure: Figure, **state) -> None:
        raise NotImplementedError

    def telling_states(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def summary(self) -> str:
        raise NotImplementedError

    def redraw(self, change: object = None) -> None:
        """Draw the current state and show it."""
        self.picture.value = self._frame(**self.state())

    def filmstrip(self) -> bytes:
        """Return the static picture: the telling states as one PNG, each below the one before."""
        return self._strip()[0]

    def _strip(self) -> tuple[bytes, list[str]]:
        """Return the static picture and the titles of its states, which say what each shows."""
        frames, titles = [], []
        for state in self.telling_states():
            frames.append(self._pixels(state))
            titles.append(_title_of(self.figure))
        width = max(frame.shape[1] for frame in frames)
        padded = [np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0)), constant_values=255) for f in frames]
        return _png(np.concatenate(padded)), titles

    def _pixels(self, state: dict[str, Any]) -> np.ndarray:
        self.draw(self.figure, **state)
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[:, :, :3]

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        picture, titles = self._strip()
        bundle |= {"image/png": b64encode(picture).decode("ascii"), "text/plain": self.summary()}
        return bundle, {"image/png": {"alt": f"Settings of the controls, one below the other. {'. '.join(titles)}."}}


def _title_of(figure: Figure) -> str:
    """Return the title of a figure as it is drawn: its first bold text of a title's size."""
    size = STYLE["axes.titlesize"]
    texts = (text for text in figure.findobj(Text) if text.get_weight() == "bold" and text.get_size() >= size)
    return next(text.get_text() for text in texts if text.get_text())


def _png(pixels: np.ndarray) -> bytes:
    """Encode (height, width, 3) pixels as a PNG of 128 colours, which is enough for flat figures."""
    file = BytesIO()
    PIL.Image.fromarray(pixels).quantize(128).save(file, format="png")
    return file.getvalue()
