"""Models and prompts for comparing generations id by id."""

import torch
from torch import nn

from mixtral_edu import MixtralConfig, MixtralForCausalLM


def random_model(config: MixtralConfig) -> MixtralForCausalLM:
    """A model in evaluation mode whose choices are far apart, so that rounding cannot change one."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def padded_prompts(lengths: list[int], vocab_size: int = 101) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    alone = [torch.randint(3, vocab_size, (length,)) for length in lengths]
    ids = torch.stack([nn.functional.pad(row, (max(lengths) - len(row), 0)) for row in alone])
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - length for length in lengths]).long()
    return ids, mask, alone
