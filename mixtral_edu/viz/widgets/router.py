"""The router with controls: choose a text and a layer, and see which experts each token goes to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ipywidgets import Dropdown, IntSlider, Text
from matplotlib.figure import Figure

from mixtral_edu.viz.router import coloured_tokens
from mixtral_edu.viz.widgets.view import FigureView


class RouterView(FigureView):
    """Choose a text and a layer, and see which experts each token goes to.

    The static picture shows the beginning of the first text in every layer.

    Args:
        model: a `MixtralForCausalLM` or `MixtralModel`.
        tokenizer: its `MixtralTokenizer`.
        texts: texts to choose from, by name; text typed into the field "own text" takes precedence.
        max_tokens: longer texts are cut to this number of tokens.
        film_tokens: the same limit for the static picture.

    Raises:
        ValueError: `texts` is empty.
    """

    def __init__(self, model, tokenizer, texts: Mapping[str, str], max_tokens: int = 150, film_tokens: int = 60):
        if not texts:
            raise ValueError("texts is empty: give at least one name and its text")
        self.model, self.tokenizer, self.texts = model, tokenizer, dict(texts)
        self.max_tokens, self.film_tokens = max_tokens, film_tokens
        self.num_layers = model.config.num_hidden_layers
        self._routed_text, self._routed = None, None
        self.text = Dropdown(options=list(texts), description="text")
        self.layer = IntSlider(value=0, min=0, max=self.num_layers - 1, description="layer")
        self.own_text = Text(placeholder="type here, then Enter", description="own text", continuous_update=False)
        super().__init__([self.text, self.layer, self.own_text])

    def state(self) -> dict[str, Any]:
        text = self.own_text.value or self.texts[self.text.value]
        return {"text": text, "layer": self.layer.value, "max_tokens": self.max_tokens}

    def draw(self, figure: Figure, text: str, layer: int, max_tokens: int) -> None:
        pieces, experts, weights = self.routing(text)
        coloured_tokens(
            pieces[:max_tokens],
            experts[layer, :max_tokens],
            weights[layer, :max_tokens],
            layer=layer,
            num_experts=self.model.config.num_local_experts,
            figure=figure,
        )

    def telling_states(self) -> list[dict[str, Any]]:
        text = next(iter(self.texts.values()))
        return [{"text": text, "layer": layer, "max_tokens": self.film_tokens} for layer in range(self.num_layers)]

    def summary(self) -> str:
        """List each expert's share of first choices in every layer, for the tokens in the static picture."""
        name, text = next(iter(self.texts.items()))
        pieces, experts, _ = self.routing(text)
        pieces, experts = pieces[: self.film_tokens], experts[:, : self.film_tokens]
        num_experts = self.model.config.num_local_experts
        lines = [f"first expert of {len(pieces)} tokens of {name!r}, in percent"]
        lines.append("expert  " + "".join(f"{expert:5d}" for expert in range(num_experts)))
        for layer, chosen in enumerate(experts[:, :, 0]):
            shares = 100 * np.bincount(chosen, minlength=num_experts) / len(chosen)
            lines.append(f"layer {layer:<2d}" + "".join(f"{share:5.0f}" for share in shares))
        return "\n".join(lines)

    def routing(self, text: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return the N pieces of `text` (with `<s>`), and every layer's experts and router weights, each (L, N, K)."""
        if text != self._routed_text:
            ids = self.tokenizer.encode(text)[: self.max_tokens]
            with torch.inference_mode():
                input_ids = torch.tensor([ids], device=self.model.device)
                logits = torch.stack(self.model(input_ids, output_router_logits=True).router_logits)  # (L, N, E)
            top = logits.float().topk(self.model.config.num_experts_per_tok)
            pieces = [piece.piece for piece in self.tokenizer.pieces(ids)]
            self._routed = pieces, top.indices.cpu().numpy(), top.values.softmax(-1).cpu().numpy()  # (L, N, K) each
            self._routed_text = text
        return self._routed
