"""The experts of a layer: gated feed-forward networks of one shape, with weights of their own.

    expert(x) = w2(silu(w1 x) · w3 x)

Source: SwiGLU, Shazeer 2020, arXiv 2002.05202.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import MixtralConfig
from mixtral_edu.fast.linear import Linear, lay_out_together, multiply_all
from mixtral_edu.fast.weights import FastWeights, Product, is_untouched, laid_out, may_be_bypassed


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

    def lay_out(self, fast: FastWeights) -> None:
        """Get a copy of w1 above w3, if another order than their own is read faster."""
        lay_out_together(fast, (self.w1, self.w3), if_faster=True)


class Experts(nn.ModuleList):
    """The E experts of a layer, each with weights of its own.

    `product`: see `mixtral_edu.fast.weights`; None but while a model generates with one product for all experts.
    """

    product: Product | None = None

    def layers(self) -> list[nn.Module]:
        """Each expert's w1, w3 and w2, expert by expert."""
        return [layer for expert in self for layer in (expert.w1, expert.w3, expert.w2)]

    def are_stackable(self) -> bool:
        """Whether stacked weights say all about these experts: all as this package makes them, and of equal sizes."""
        if len(self) == 0 or not all(type(expert) is Expert and is_untouched(expert) for expert in self):
            return False
        layers = self.layers()
        if not all(type(layer) is Linear and is_untouched(layer) for layer in layers):
            return False
        first = self[0]
        expected = [(layer.weight.shape, first.w1.weight.dtype) for layer in (first.w1, first.w3, first.w2)] * len(self)
        return [(layer.weight.shape, layer.weight.dtype) for layer in layers] == expected

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return all experts' weights: w1 above w3 (E, 2F, D), and w2 (E, D, F).

        The copies that `generate` made, or new ones through which gradients flow.
        """
        if self.has_copy():
            return self.product.weight
        up = torch.stack([torch.cat((expert.w1.weight, expert.w3.weight)) for expert in self])
        return up, torch.stack([expert.w2.weight for expert in self])

    def has_copy(self) -> bool:
        """Whether `stacked` costs nothing now."""
        product = self.product
        return product is not None and not torch.is_grad_enabled() and product.stands_for(*self.layers())

    def lay_out_stacked(self, fast: FastWeights) -> None:
        """Copy the weights for `stacked`; each expert multiplies with its part of them, if it is called alone."""
        if not self.are_stackable() or not fast.takes(*self.layers()):
            return
        like = self[0].w1.weight
        F_, D = like.shape
        up, down = laid_out((len(self), 2 * F_, D), like), laid_out((len(self), D, F_), like)
        for expert, up_of_expert, down_of_expert in zip(self, up, down, strict=True):
            lay_out_together(fast, (expert.w1, expert.w3), up_of_expert)
            lay_out_together(fast, (expert.w2,), down_of_expert)
        fast.add(self, self.layers(), (up, down))
