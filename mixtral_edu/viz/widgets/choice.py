"""The router's choice with controls: choose a token, a layer and K, and see scores become weights."""

from typing import Any

import torch
from ipywidgets import IntSlider
from matplotlib.figure import Figure

from mixtral_edu.viz.choice import best_choices, router_choice
from mixtral_edu.viz.style import quoted
from mixtral_edu.viz.widgets.view import FigureView


class ChoiceView(FigureView):
    """Choose a token, a layer and K, and see the router's scores become weights.

    The static picture shows one token with K = 1, the model's own K, and E.

    Args:
        model: a `MixtralForCausalLM` or `MixtralModel`.
        tokenizer: its `MixtralTokenizer`.
        text: the text whose tokens you choose from.
        token: index of the token shown first.

    Raises:
        ValueError: `token` is not the index of a token of the text.
    """

    def __init__(self, model, tokenizer, text: str, token: int = 0):
        ids = tokenizer.encode(text)
        if not 0 <= token < len(ids):
            raise ValueError(f"token={token}; it must be one of the text's tokens, from 0 to {len(ids) - 1}")
        self.pieces = [piece.piece for piece in tokenizer.pieces(ids)]
        with torch.inference_mode():
            out = model(torch.tensor([ids], device=model.device), output_router_logits=True)
        self.scores = torch.stack(out.router_logits).float().cpu().numpy()  # (L, N, E)
        num_layers, num_tokens, num_experts = self.scores.shape
        self.first_token, self.usual_k = token, model.config.num_experts_per_tok
        self.token = IntSlider(value=token, min=0, max=num_tokens - 1, description="token")
        self.layer = IntSlider(value=0, min=0, max=num_layers - 1, description="layer")
        self.top_k = IntSlider(value=self.usual_k, min=1, max=num_experts, description="K")
        super().__init__([self.token, self.layer, self.top_k])

    def state(self) -> dict[str, Any]:
        return {"token": self.token.value, "layer": self.layer.value, "top_k": self.top_k.value}

    def draw(self, figure: Figure, token: int, layer: int, top_k: int) -> None:
        router_choice(self.scores[layer, token], top_k, f"{quoted(self.pieces[token])}, layer {layer}", figure)

    def telling_states(self) -> list[dict[str, Any]]:
        num_experts = self.scores.shape[-1]
        return [{"token": self.first_token, "layer": 0, "top_k": k} for k in sorted({1, self.usual_k, num_experts})]

    def summary(self) -> str:
        """List the experts and weights of the states in the static picture."""
        lines = [f"{self.pieces[self.first_token]!r}, layer 0: expert and weight"]
        for state in self.telling_states():
            choice = zip(*best_choices(self.scores[0, self.first_token], state["top_k"]), strict=True)
            lines.append(f"K = {state['top_k']}   " + "   ".join(f"{expert} {weight:.2f}" for expert, weight in choice))
        return "\n".join(lines)
