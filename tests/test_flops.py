"""What lesson 07 says a token costs is what PyTorch counts in a real pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.exercises.lesson_07 import SIZES, flops_by_parts, flops_per_token


@pytest.mark.parametrize(("window", "keys"), [(None, 1), (None, 11), (6, 4), (6, 6), (6, 50)])
def test_pytorch_counts_the_same_operations_for_a_token_behind_a_cache(window: int | None, keys: int):
    config = SIZES | {"sliding_window": window}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**config, attn_implementation="eager")).eval()
    ids = torch.randint(SIZES["vocab_size"], (1, keys))
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values if keys > 1 else None
        with FlopCounterMode(display=False) as counter:
            model(ids[:, -1:], past_key_values=cache)
    assert counter.get_total_flops() == flops_per_token.reference(config, keys)
    assert counter.get_total_flops() == flops_by_parts(config, min(keys, window or keys))  # the grader's truth
