"""The merges of byte-pair encoding with a slider: how a vocabulary of n merges splits a text."""

from collections.abc import Mapping
from typing import Any

from ipywidgets import Dropdown, SelectionSlider, Text
from matplotlib.figure import Figure

from mixtral_edu.text.tokenizer import MixtralTokenizer
from mixtral_edu.viz.merges import merged_pieces, split_with
from mixtral_edu.viz.tokens import token_boxes
from mixtral_edu.viz.widgets.view import FigureView


class MergesView(FigureView):
    """Choose how many merges the vocabulary has learned, and see how it splits a text.

    The static picture shows the beginning of the first text after 0, 30, 300 and all merges.

    Args:
        tokenizer: a `MixtralTokenizer`.
        texts: texts to choose from, by name; text typed into the field "own text" takes precedence.
        max_characters: longer texts are cut to this length.
        film_characters: the same limit for the static picture.

    Raises:
        ValueError: `texts` is empty.
    """

    def __init__(
        self,
        tokenizer: MixtralTokenizer,
        texts: Mapping[str, str],
        max_characters: int = 200,
        film_characters: int = 90,
    ):
        if not texts:
            raise ValueError("texts is empty: give at least one name and its text")
        self.tokenizer, self.texts = tokenizer, dict(texts)
        self.max_characters, self.film_characters = max_characters, film_characters
        self.num_merges = len(merged_pieces(tokenizer))
        steps = [steps for steps in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if steps < self.num_merges]
        self.text = Dropdown(options=list(texts), description="text")
        self.merges = SelectionSlider(options=[*steps, self.num_merges], description="merges")
        self.own_text = Text(placeholder="type here, then Enter", description="own text", continuous_update=False)
        super().__init__([self.text, self.merges, self.own_text])

    def state(self) -> dict[str, Any]:
        text = self.own_text.value or self.texts[self.text.value]
        return {"text": text[: self.max_characters], "num_merges": self.merges.value}

    def draw(self, figure: Figure, text: str, num_merges: int) -> None:
        pieces = split_with(self.tokenizer, text, num_merges)
        title = f"After {num_merges:,} merges: {len(text.encode())} bytes in {len(pieces)} tokens"
        token_boxes(pieces, title=title, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        text = next(iter(self.texts.values()))[: self.film_characters]
        numbers = sorted({min(number, self.num_merges) for number in (0, 30, 300, self.num_merges)})
        return [{"text": text, "num_merges": number} for number in numbers]

    def summary(self) -> str:
        """List tokens and bytes per token after each number of merges in the static picture."""
        states = self.telling_states()
        num_bytes = len(states[0]["text"].encode())
        lines = [f"the first {num_bytes} bytes of {next(iter(self.texts))!r}"]
        for state in states:
            count = len(split_with(self.tokenizer, **state))
            lines.append(f"{state['num_merges']:5d} merges {count:4d} tokens {num_bytes / count:5.2f} bytes a token")
        return "\n".join(lines)
