"""A file written by hand is the file that safetensors writes, and only one tensor is ever in memory for it."""

import weakref

import safetensors.torch
import torch
from safetensors import safe_open

from mixtral_edu.checkpoints.safetensors_file import LazyTensor, byte_count, write_safetensors


def test_the_bytes_are_those_that_safetensors_writes(tmp_path):
    tensors = {"a": torch.randn(3, 5).bfloat16(), "b": torch.randn(7).bfloat16(), "c": torch.tensor(1.5).bfloat16()}
    write_safetensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save(tensors, metadata={"format": "pt"})


def test_every_dtype_and_shape_comes_back(tmp_path):
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8), "half": torch.randn(5, dtype=torch.float16),
        "scalar": torch.tensor(2.5), "empty": torch.ones(0, 4), "double": torch.randn(2, 3, dtype=torch.float64),
        "turned": torch.randn(4, 6).T, "column": torch.randn(4, 6)[:, 2], "brain": torch.randn(3).bfloat16(),
        "signed": torch.tensor([-1, 1], dtype=torch.int8), "trained": torch.nn.Parameter(torch.randn(2)),
    }
    tensors["again"] = tensors["double"]  # two names for one memory
    write_safetensors(tmp_path / "file", tensors)
    found = safetensors.torch.load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "file", framework="pt") as file:
        for name in file.keys():  # mapped: no number lies across a boundary of its size
            assert file.get_tensor(name).data_ptr() % file.get_tensor(name).dtype.itemsize == 0, name


def test_lazy_tensors_are_made_one_at_a_time(tmp_path):
    made = []

    def make(value: int) -> torch.Tensor:
        assert not [alive for alive in made if alive() is not None], "another tensor is still in memory"
        tensor = torch.full((3,), float(value))
        made.append(weakref.ref(tensor))
        return tensor

    lazy = {str(i): LazyTensor((3,), torch.float32, lambda i=i: make(i)) for i in range(4)}
    assert byte_count(lazy["0"]) == byte_count(torch.ones(3)) == 12
    write_safetensors(tmp_path / "file", lazy)
    assert len(made) == 4
    found = safetensors.torch.load_file(tmp_path / "file")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {str(i): [float(i)] * 3 for i in range(4)}
