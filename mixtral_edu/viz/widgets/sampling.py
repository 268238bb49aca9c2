"""The next token's distribution with controls: temperature, top-k, top-p (nucleus) and min-p."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ipywidgets import Dropdown, FloatSlider, SelectionSlider, Text
from matplotlib.figure import Figure
from torch import Tensor

from mixtral_edu.sampling import Sampler
from mixtral_edu.viz.sampling import before_and_after
from mixtral_edu.viz.widgets.view import FigureView

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # with these values the controls change nothing


class SamplingView(FigureView):
    """Choose a text, set temperature, top-k, top-p and min-p, and see what is left of the next token's distribution.

    Settings are applied in the same order as in `generate`. The static picture shows the first text with three
    settings.

    Args:
        model: a `MixtralForCausalLM`.
        tokenizer: its `MixtralTokenizer`.
        texts: beginnings of texts to choose from, by name; text typed into the field "own text" takes precedence.

    Raises:
        ValueError: `texts` is empty.
    """

    def __init__(self, model, tokenizer, texts: Mapping[str, str]):
        if not texts:
            raise ValueError("texts is empty: give at least one name and its text")
        self.model, self.tokenizer, self.texts = model, tokenizer, dict(texts)
        self.vocabulary = [piece.piece for piece in tokenizer.pieces(range(len(tokenizer)))]
        self._logits: tuple[str | None, Tensor | None] = None, None
        self.text = Dropdown(options=list(texts), description="text")
        self.own_text = Text(placeholder="type here, then Enter", description="own text", continuous_update=False)
        self.temperature = FloatSlider(value=1, min=0.1, max=3, step=0.1, description="temperature")
        numbers = (50, 20, 10, 5, 3, 2, 1)
        self.top_k = SelectionSlider(options=[("off", 0), *((str(k), k) for k in numbers)], description="top-k")
        self.top_p = FloatSlider(value=1, min=0.05, max=1, step=0.05, description="top-p")
        self.min_p = FloatSlider(value=0, min=0, max=1, step=0.01, description="min-p")
        super().__init__([self.text, self.own_text, self.temperature, self.top_k, self.top_p, self.min_p])

    def state(self) -> dict[str, Any]:
        settings = {name: getattr(self, name).value for name in OFF}
        return {"text": self.own_text.value or self.texts[self.text.value], **settings}

    def draw(self, figure: Figure, text: str, **settings) -> None:
        before, after = self.distributions(text, **settings)
        title = f"{in_words(settings)}: entropy {entropy(before):.1f} → {entropy(after):.1f} bits"
        place = f"… {text[-40:]}" if len(text) > 41 else text
        before_and_after(self.vocabulary, {place: (before, after)}, num_bars=30, title=title, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        text = next(iter(self.texts.values()))
        return [{"text": text, **OFF, **settings} for settings in self.telling_settings()]

    @staticmethod
    def telling_settings() -> list[dict[str, Any]]:
        """Return the settings of the static picture and the summary: a filter alone, then two at a high temperature."""
        return [{"top_p": 0.9}, {"temperature": 2.0, "top_p": 0.9}, {"temperature": 2.0, "min_p": 0.05}]

    def summary(self) -> str:
        """List, for each text and each setting of the static picture, tokens left and probability of the likeliest."""
        lines = []
        for name, text in self.texts.items():
            lines.append(f"{name}: tokens left, and probability of the likeliest")
            for settings in self.telling_settings():
                _, after = self.distributions(text, **OFF | settings)
                likeliest = self.vocabulary[int(after.argmax())]
                lines.append(f"  {in_words(settings):27}{np.count_nonzero(after):5d}  {likeliest} {after.max():.2f}")
        return "\n".join(lines)

    def distributions(self, text: str, **settings) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities (V,) of the token after `text`, before and after `settings` are applied."""
        if text != self._logits[0]:
            ids = torch.tensor([self.tokenizer.encode(text)], device=self.model.device)
            with torch.inference_mode():
                self._logits = text, self.model(ids, logits_to_keep=1).logits[:, -1].float()  # (1, V)
        logits = self._logits[1]
        nothing = torch.zeros(1, 0, dtype=torch.long, device=logits.device)
        sampler = Sampler(do_sample=True, rules=settings | {"top_k": settings["top_k"] or None})
        both = torch.cat((logits, sampler.shape(logits, nothing, nothing))).softmax(-1)  # (2, V)
        return tuple(both.cpu().numpy())


def in_words(settings: Mapping[str, Any]) -> str:
    """Describe the settings that are not off, for a title.

    >>> in_words({"temperature": 2.0, "top_k": 0, "top_p": 0.9, "min_p": 0.0}), in_words(OFF)
    ('Temperature 2, top-p 0.9', 'Nothing changed')
    """
    changed = [f"{name.replace('_', '-')} {value:g}" for name, value in settings.items() if value != OFF[name]]
    return ", ".join(changed).capitalize() or "Nothing changed"


def entropy(probabilities: np.ndarray) -> float:
    """Return the entropy -Σ p log2 p, in bits."""
    positive = probabilities[probabilities > 0].astype(float)
    return float(-(positive * np.log2(positive)).sum()) + 0.0
