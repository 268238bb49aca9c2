"""The experts of a layer: gated feed-forward networks of one shape, with weights of their own.

    expert(x) = w2(silu(w1 x) · w3 x)

Source: SwiGLU, Shazeer 2020, arXiv 2002.05202.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import MixtralConfig
from mixtral_edu.linear import Linear, laid_out, multiply_all, pack_together, still_in


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


class Experts(nn.ModuleList):
    """The E experts of a layer, each with weights of its own; packed, they lie side by side in two blocks."""

    _blocks: tuple[Tensor, Tensor] | None = None

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return all experts' weights: w1 above w3 (E, 2F, D), and w2 (E, D, F).

        Views of the two blocks where they are packed and no gradient is wanted, else copies through which it flows.
        """
        if not torch.is_grad_enabled() and self._in_blocks():
            return self._blocks
        up = torch.stack([torch.cat((expert.w1.weight, expert.w3.weight)) for expert in self])
        return up, torch.stack([expert.w2.weight for expert in self])

    def pack(self) -> None:
        """Move the weights into the two blocks; each stays a parameter of its expert, as a view."""
        layers = [layer for expert in self for layer in (expert.w1, expert.w2, expert.w3)]
        if self._blocks is not None or not all(isinstance(layer, Linear) for layer in layers):
            return
        like = self[0].w1.weight
        F_, D = like.shape
        self._blocks = laid_out((len(self), 2 * F_, D), like), laid_out((len(self), D, F_), like)
        for expert, up, down in zip(self, *self._blocks, strict=True):
            pack_together((expert.w1, expert.w3), up)
            pack_together((expert.w2,), down)

    def unpack(self) -> None:
        """Forget the blocks; each weight gets memory of its own again when its layer is unpacked."""
        self._blocks = None

    def _in_blocks(self) -> bool:
        """Whether the weights still are what lies in the blocks."""
        return self._blocks is not None and all(
            still_in(up, (expert.w1, expert.w3)) and still_in(down, (expert.w2,))
            for expert, up, down in zip(self, *self._blocks, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:  # of a copy, whose weights get memory of their own
        return self.__dict__ | {"_blocks": None}

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype: each weight for itself
        self.unpack()
        return super()._apply(fn, recurse)
