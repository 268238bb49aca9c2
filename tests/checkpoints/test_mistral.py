"""Raw Mistral files: told apart, read without running what a pickle asks for, and named where they are damaged."""

import json
import os
import pickle
import warnings
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from mixtral_edu.checkpoints.mistral import is_raw, raw_tensors

TENSORS = {f"layers.{i}.attention_norm.weight": torch.arange(4 * i, 4 * i + 4.0) for i in range(3)}
ZIP, BARE = {"_use_new_zipfile_serialization": True}, {"_use_new_zipfile_serialization": False}  # since and before 1.6


class Malicious:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def contents(folder: Path) -> dict[str, list]:
    return {tensor.name: tensor.read().tolist() for tensor in raw_tensors(folder)}


WANTED = {name: tensor.tolist() for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("suffix", ["pth", "pt"])
@pytest.mark.parametrize("form", [ZIP, BARE])
def test_pickles_are_read_whether_torch_can_map_them_or_not(tmp_path, suffix, form):
    for i, (name, tensor) in enumerate(TENSORS.items()):
        torch.save({name: tensor.bfloat16()}, tmp_path / f"consolidated.{i:02}.{suffix}", **form)
    assert contents(tmp_path) == WANTED
    assert {(t.shape, t.dtype, t.file.name) for t in raw_tensors(tmp_path)} == {
        ((4,), "BF16", f"consolidated.{i:02}.{suffix}") for i in range(3)}


def test_safetensors_files_are_read_with_and_without_an_index(tmp_path):
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"consolidated-{i}.safetensors")
    assert contents(tmp_path) == WANTED
    index = tmp_path / "consolidated.safetensors.index.json"
    weight_map = {name: f"consolidated-{i}.safetensors" for i, name in enumerate(TENSORS)}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert contents(tmp_path) == WANTED
    (tmp_path / "consolidated-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json names consolidated-1\.safetensors, missing"):
        raw_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {"layers.1.attention_norm.weight": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"places layers\.1.* in '\.\./x\.safetensors': .*same folder"):
        raw_tensors(tmp_path)


def test_a_folder_is_raw_if_it_has_only_raw_files_or_only_raw_settings(tmp_path):
    assert not is_raw(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    assert is_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no consolidated\.safetensors, consolidated\.\*\.pth or "):
        raw_tensors(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_raw(tmp_path)
    (tmp_path / "consolidated.00.pt").touch()  # beside the settings of the other layout: so the first release came
    assert is_raw(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert not is_raw(tmp_path)


@pytest.mark.parametrize("form", [ZIP, BARE])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_that_would_run_code_is_not_opened(tmp_path, form, nested):
    trace = tmp_path / "trace"
    content = TENSORS | {"evil": Malicious(trace)} if nested else Malicious(trace)
    torch.save(content, tmp_path / "consolidated.00.pth", **form)
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth is not opened: .*\.mkdir.* could run code"):
        raw_tensors(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # it would have
    assert trace.exists()


def test_a_mapped_file_stays_as_it_is(tmp_path):
    torch.save(TENSORS, tmp_path / "consolidated.00.pth")
    before = (tmp_path / "consolidated.00.pth").read_bytes()
    for tensor in raw_tensors(tmp_path):
        tensor.read().zero_()
    assert (tmp_path / "consolidated.00.pth").read_bytes() == before
    assert contents(tmp_path) == WANTED


def test_a_file_that_cannot_be_mapped_needs_its_size_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "consolidated.00.pth"
    torch.save(TENSORS, path, **BARE)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=path.stat().st_size - 1))
    with pytest.raises(MemoryError, match=r"consolidated\.00\.pth needs .* GB"):
        raw_tensors(tmp_path)
    torch.save(TENSORS, path, **ZIP)
    assert contents(tmp_path) == WANTED


@pytest.mark.parametrize("form", [ZIP, BARE])
def test_damaged_pickles_are_named(tmp_path, form):
    path = tmp_path / "consolidated.00.pth"
    torch.save(TENSORS, path, **form)
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:100], whole[: len(whole) // 2], b"", b"no pickle at all"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"consolidated\.00\.pth is truncated or corrupted: ."):
            raw_tensors(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        raw_tensors(tmp_path)


def test_pickles_of_other_things_are_named(tmp_path):
    wrong = {"must hold a dictionary": [torch.ones(1)], "must hold a dictionary from": {}, "holds 'model', a dict": {
        "model": TENSORS}, "holds 3, a Tensor": {3: torch.ones(1)},
        "holds 'thin' as torch.sparse_coo": {"thin": torch.eye(3).to_sparse()}}
    for message, content in wrong.items():
        torch.save(content, tmp_path / "consolidated.00.pth")
        with pytest.raises(ValueError, match=rf"consolidated\.00\.pth {message}"):
            raw_tensors(tmp_path)


def test_a_warning_while_reading_is_no_damage(tmp_path, monkeypatch):
    """Warnings are errors here, as in many test suites, and torch warns of more in each version."""
    load = torch.load

    def load_with_a_warning(*arguments, **options):
        warnings.warn("slow for large files", stacklevel=1)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", load_with_a_warning)
    torch.save(TENSORS, tmp_path / "consolidated.00.pth")
    assert contents(tmp_path) == WANTED


def test_damaged_safetensors_are_named(tmp_path):
    path = tmp_path / "consolidated.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"consolidated\.safetensors is truncated or corrupted"):
        raw_tensors(tmp_path)
