"""The names and shapes that checkpoints are expected to have are those of the model."""

import torch
from torch import nn

from mixtral_edu import MixtralConfig, MixtralForCausalLM
from mixtral_edu.checkpoints.layouts import find_places
from raw_checkpoints import published, raw_tensors, stacked


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_published_shapes_are_the_models_in_its_order(make_config):
    model: nn.Module = MixtralForCausalLM(make_config())
    assert list(make_config().weight_shapes().items()) == list(shapes_of(model.state_dict()).items())


def test_their_sizes_add_up_to_the_released_model():
    config = MixtralConfig.mixtral_8x7b()
    sizes = [torch.Size(shape).numel() for shape in config.weight_shapes().values()]
    assert sum(sizes) == config.parameter_counts().total == 46_702_792_704


def test_each_layouts_tensors_are_all_used_in_their_full_shapes(make_config, to_transformers):
    config = make_config()
    raw = raw_tensors(config)
    layouts = {"raw": raw, "stacked": stacked(raw, config), "published": published(raw, config),
               "fused": to_transformers(published(raw, config))}
    for layout, tensors in layouts.items():
        assert {p.name: p.shape for p in find_places(layout, config).values()} == shapes_of(tensors), layout
