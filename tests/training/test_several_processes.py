"""PyTorch's own ways to train one model in several processes take ours, though each meets other experts."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mixtral_edu import MixtralForCausalLM
from training_rank import save_gradients

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def test_gradients_are_those_of_one_process(make_config, tmp_path: Path):
    """Two tokens a rank: with 5 experts at least one is idle on each, and not the same ones."""
    sizes = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2}  # multiples of 16 bytes
    model = MixtralForCausalLM(make_config(**sizes))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    ids = torch.tensor([[3, 4], [50, 61]])
    met = [[set(layer.topk(2).indices.flatten().tolist()) for layer in out.router_logits]
           for out in (model(row[None], output_router_logits=True) for row in ids)]  # fmt: skip
    assert met[0] != met[1] and all(len(experts) < 5 for layers in met for experts in layers)
    model.save_pretrained(tmp_path / "model")
    torch.save(ids, tmp_path / "ids.pt")
    ways = [(way, experts) for way in ("ddp", "fsdp") for experts in ("sorted", "grouped")]
    mp.spawn(save_gradients, (str(tmp_path), ways), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")

    losses = [model(row[None], labels=row[None]).loss for row in ids]
    (sum(losses) / 2).backward()
    ours = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    # Each is a sum of products, of numbers up to the largest, that two forms round in their own order.
    tolerance = 100 * torch.finfo(torch.float32).eps * max(gradient.abs().max() for gradient in ours.values())
    for way in ways:
        for name, wanted in ours.items():
            assert (found[way][name] - wanted).abs().max() <= tolerance, (way, name)
    experts = [gradient.abs().max() for name, gradient in ours.items() if "experts" in name and gradient.any()]
    assert min(experts) > 10 * tolerance, "or the comparison above says nothing about them"
