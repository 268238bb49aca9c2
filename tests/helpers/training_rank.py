"""What one process of a training on several does; a module of its own, so that processes can import it."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mixtral_edu import MixtralForCausalLM


def save_gradients(rank: int, folder: str, ways: list[tuple[str, str]]) -> None:
    """Save the gradients that rank 0 has after a backward pass in which each rank had its own text.

    Args:
        rank: 0 or 1.
        folder: holds `model` and `ids.pt`, one row a rank; gets `gradients.pt`, by way.
        ways: pairs of "ddp" or "fsdp", and a form of the experts.
    """
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        ids = torch.load(Path(folder) / "ids.pt")[rank][None]
        found = {way: gradients(Path(folder) / "model", ids, *way) for way in ways}
        if rank == 0:
            torch.save(found, Path(folder) / "gradients.pt")
    finally:
        dist.destroy_process_group()


def gradients(folder: Path, ids: Tensor, way: str, experts: str) -> dict[str, Tensor]:
    model = MixtralForCausalLM.from_pretrained(folder, experts_implementation=experts).train()
    if way == "fsdp":
        for layer in model.model.layers:
            fully_shard(layer)
    wrapped = fully_shard(model) if way == "fsdp" else DistributedDataParallel(model)
    wrapped(ids, labels=ids, use_cache=False).loss.backward()
    return {name: whole(p.grad) for name, p in model.named_parameters()}  # of all ranks together


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
