"""The experts of a layer: gated feed-forward networks of one shape, with weights of their own.

    expert(x) = w2(silu(w1 x) · w3 x)

Source: SwiGLU, Shazeer 2020, arXiv 2002.05202.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import MixtralConfig
from mixtral_edu.fast.linear import Linear, lay_out_together, multiply_all
from mixtral_edu.fast.weights import Product, current_copy, is_untouched, laid_out, may_be_bypassed, reads_down


@may_be_bypassed
class Expert(nn.Module):
    """One gated feed-forward network: w1 is the gate, w3 goes up, w2 comes down."""

    def __init__(self, config: MixtralConfig):
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.intermediate_size)
        self.w2 = Linear(config.intermediate_size, config.hidden_size)
        self.w3 = Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, D) to (N, D)."""
        gate, up = multiply_all(x, self.w1, self.w3)  # (N, F) each
        return self.w2(F.silu(gate) * up)

    def copy_weights(self) -> None:
        """Copy w1 above w3, and w2, if another order than their own is read faster."""
        if type(self.w1) is Linear and reads_down((2, 1), self.w1.weight):
            lay_out_together(self.w1, self.w3)
            lay_out_together(self.w2)


class Experts(nn.ModuleList):
    """The E experts of a layer, each with weights of its own.

    `product`: a copy of all weights as `stacked` returns them, if `keep_fast_weights` made one.
    """

    product: Product | None = None

    def layers(self) -> list[nn.Module]:
        """Each expert's w1, w3 and w2, expert by expert."""
        return [layer for expert in self for layer in (expert.w1, expert.w3, expert.w2)]

    def are_stackable(self) -> bool:
        """Whether stacked weights are all that these experts are: each as this package makes it, all of one size."""
        if len(self) == 0 or not all(type(expert) is Expert and is_untouched(expert) for expert in self):
            return False
        layers = self.layers()
        if not all(type(layer) is Linear and is_untouched(layer) for layer in layers):
            return False
        kinds = [(layer.weight.shape, layer.weight.dtype, layer.weight.device) for layer in layers]
        return kinds == kinds[:3] * len(self)

    def stacked_copy(self) -> tuple[Tensor, Tensor] | None:
        """Return what `stacked` would, from a copy; None if there is none or a gradient is wanted."""
        if self.product is None or torch.is_grad_enabled():
            return None
        return current_copy(self, *self.layers())

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return all experts' weights: w1 above w3 (E, 2F, D), and w2 (E, D, F); gradients flow through them."""
        up = torch.stack([torch.cat((expert.w1.weight, expert.w3.weight)) for expert in self])
        return up, torch.stack([expert.w2.weight for expert in self])

    def copy_weights(self) -> None:
        """Copy the weights for `stacked_copy`; an expert that is called alone multiplies with its part of them."""
        if not self.are_stackable() or any(layer.weight.is_inference() for layer in self.layers()):
            return
        like = self[0].w1.weight
        F_, D = like.shape
        up, down = laid_out((len(self), 2 * F_, D), like), laid_out((len(self), D, F_), like)
        for expert, up_of_expert, down_of_expert in zip(self, up, down, strict=True):
            lay_out_together(expert.w1, expert.w3, block=up_of_expert)
            lay_out_together(expert.w2, block=down_of_expert)
        self.product = Product(self.layers(), (up, down))
