"""Attention with controls: choose a text, a layer, a head and a query, and see which keys it attends to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ipywidgets import Dropdown, IntSlider, Text
from matplotlib.figure import Figure

from mixtral_edu.viz.attention_maps import favourites, looking
from mixtral_edu.viz.style import printable
from mixtral_edu.viz.widgets.view import FigureView


class AttentionView(FigureView):
    """Choose a text, a layer, a head and a query, and see which keys it attends to.

    Args:
        model: a `MixtralForCausalLM` or `MixtralModel` with the backend "eager".
        tokenizer: its `MixtralTokenizer`.
        texts: texts to choose from, by name; text typed into the field "own text" takes precedence.
        telling: (layer, head, query) of each panel of the static picture, which shows the first text.
        max_tokens: longer texts are cut to this number of tokens.

    Raises:
        ValueError: `texts` or `telling` is empty, or the backend returns no attention weights.
    """

    def __init__(
        self, model, tokenizer, texts: Mapping[str, str], telling: Sequence[tuple[int, int, int]], max_tokens: int = 32
    ):
        if not texts or not telling:
            raise ValueError(
                f"texts has length {len(texts)} and telling {len(telling)}; give at least one text and one "
                "(layer, head, query)"
            )
        self.model, self.tokenizer, self.texts, self.telling = model, tokenizer, dict(texts), list(telling)
        self.max_tokens, self._seen = max_tokens, (None, None, None)
        config, (layer, head, query) = model.config, self.telling[0]
        self.text = Dropdown(options=list(texts), description="text")
        self.layer = IntSlider(value=layer, min=0, max=config.num_hidden_layers - 1, description="layer")
        self.head = IntSlider(value=head, min=0, max=config.num_attention_heads - 1, description="head")
        self.query = IntSlider(value=query, min=0, max=max_tokens - 1, description="query i")
        self.own_text = Text(placeholder="type here, then Enter", description="own text", continuous_update=False)
        super().__init__([self.text, self.layer, self.head, self.query, self.own_text])

    def state(self) -> dict[str, Any]:
        text = self.own_text.value or self.texts[self.text.value]
        return {"text": text, "layer": self.layer.value, "head": self.head.value, "query": self.query.value}

    def draw(self, figure: Figure, text: str, layer: int, head: int, query: int) -> None:
        tokens, weights = self.attention(text)
        query = min(query, len(tokens) - 1)
        key = favourites(weights[layer, head, query], query, 1)[0]
        share = weights[layer, head, query, key]
        who, whom = printable(tokens[query]), printable(tokens[key])
        title = f"Layer {layer}, head {head}: “{who}” ({query}) gives {share:.0%} of its weight to “{whom}” ({key})"
        looking(weights[layer, head], tokens, query, title=title, figure=figure)

    def telling_states(self) -> list[dict[str, Any]]:
        text = next(iter(self.texts.values()))
        return [dict(zip(("text", "layer", "head", "query"), (text, *place), strict=True)) for place in self.telling]

    def summary(self) -> str:
        """List, per panel of the static picture, the query and its three favourite keys, with weights in percent."""
        lines = ["layer head  query          looks at (percent of its weight)"]
        for state in self.telling_states():
            tokens, weights = self.attention(state["text"])
            query = min(state["query"], len(tokens) - 1)
            row = weights[state["layer"], state["head"], query]
            seen = ", ".join(f"{key} {tokens[key]} {100 * row[key]:.0f}" for key in favourites(row, query, 3))
            lines.append(f"{state['layer']:5d} {state['head']:4d}  {f'{query} {tokens[query]}':14s} {seen}")
        return "\n".join(lines)

    def attention(self, text: str) -> tuple[list[str], np.ndarray]:
        """Return the pieces of `text` (with `<s>`) and the weights of all heads, (L, Hq, T, T)."""
        if text != self._seen[0]:
            ids = self.tokenizer.encode(text)[: self.max_tokens]
            with torch.inference_mode():
                input_ids = torch.tensor([ids], device=self.model.device)
                layers = self.model(input_ids, use_cache=False, output_attentions=True).attentions
            weights = torch.cat(layers).float().cpu().numpy()  # (L, Hq, T, T)
            self._seen = text, [piece.piece for piece in self.tokenizer.pieces(ids)], weights
        return self._seen[1:]
