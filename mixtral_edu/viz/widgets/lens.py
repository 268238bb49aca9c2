"""The logit lens with controls: choose a text and a place in it, and see the guesses take shape layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ipywidgets import Dropdown, IntSlider, Text
from matplotlib.figure import Figure
from torch import Tensor

from mixtral_edu.viz.lens import depth_names, guesses_by_depth, logit_lens
from mixtral_edu.viz.trace import residual_stream
from mixtral_edu.viz.widgets.view import FigureView


class LensView(FigureView):
    """Choose a text and one of its tokens, and see the likeliest next tokens after the embedding and after each layer.

    The static picture shows a few tokens of the first text.

    Args:
        model: a `MixtralForCausalLM`.
        tokenizer: its `MixtralTokenizer`.
        texts: texts to choose from, by name; text typed into the field "own text" takes precedence.
        telling: indices of the first text's tokens that the static picture shows.
        guesses: number of next tokens shown.
        max_tokens: longer texts are cut to this number of tokens.

    Raises:
        ValueError: `texts` or `telling` is empty, or `telling` has an index outside the first text.
    """

    def __init__(
        self,
        model,
        tokenizer,
        texts: Mapping[str, str],
        telling: Sequence[int] = (1,),
        guesses: int = 5,
        max_tokens: int = 150,
    ):
        if not texts:
            raise ValueError("texts is empty: give at least one name and its text")
        self.model, self.tokenizer, self.texts = model, tokenizer, dict(texts)
        self.telling, self.guesses, self.max_tokens = list(telling), guesses, max_tokens
        self._read_text, self._read = None, None
        first = next(iter(self.texts.values()))
        last = len(self.read(first)[0]) - 1
        if not self.telling or not all(0 <= token <= last for token in self.telling):
            raise ValueError(f"telling={self.telling}; it must hold one or more indices from 0 to {last}")
        self.text = Dropdown(options=list(texts), description="text")
        self.token = IntSlider(value=self.telling[-1], min=0, max=last, description="token")
        self.own_text = Text(placeholder="type here, then Enter", description="own text", continuous_update=False)
        for control in (self.text, self.own_text):
            control.observe(self._fit_slider, names="value")
        super().__init__([self.text, self.token, self.own_text])

    def _fit_slider(self, change: object) -> None:
        self.token.max = len(self.read(self._chosen_text())[0]) - 1

    def _chosen_text(self) -> str:
        return self.own_text.value or self.texts[self.text.value]

    def state(self) -> dict[str, Any]:
        return {"text": self._chosen_text(), "token": self.token.value}

    def draw(self, figure: Figure, text: str, token: int) -> None:
        pieces, probabilities = self.read(text)
        best = probabilities[:, token].topk(self.guesses)  # (L + 1, guesses)
        following = pieces[token + 1] if token + 1 < len(pieces) else None
        named = [self._pieces(row.tolist()) for row in best.indices]
        guesses_by_depth(pieces[: token + 1], named, best.values.tolist(), following, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        text = next(iter(self.texts.values()))
        return [{"text": text, "token": token} for token in self.telling]

    def summary(self) -> str:
        """List the likeliest next token at each depth, for the tokens in the static picture."""
        name, text = next(iter(self.texts.items()))
        pieces, probabilities = self.read(text)
        lines = [f"likeliest next token in {name!r}"]
        lines.append("after token".ljust(20) + "".join(f"{depth:16s}" for depth in depth_names(len(probabilities))))
        for token in self.telling:
            best = probabilities[:, token].max(dim=-1)
            guesses = zip(self._pieces(best.indices.tolist()), best.values.tolist(), strict=True)
            place = f"{token:3d} {pieces[token]}"
            lines.append(f"{place:20s}" + "".join(f"{f'{guess} {share:.2f}':16s}" for guess, share in guesses))
        return "\n".join(line.rstrip() for line in lines)

    def read(self, text: str) -> tuple[list[str], Tensor]:
        """Return the T pieces of `text` (with `<s>`) and the next token's probabilities by depth, (L + 1, T, V)."""
        if text != self._read_text:
            ids = self.tokenizer.encode(text)[: self.max_tokens]
            stream = residual_stream(self.model, torch.tensor([ids], device=self.model.device))
            self._read = self._pieces(ids), logit_lens(self.model, stream.states).cpu()
            self._read_text = text
        return self._read

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [piece.piece for piece in self.tokenizer.pieces(ids)]
