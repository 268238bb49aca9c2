"""The safetensors files of a folder: split as published, and trusted only as far as they agree."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mixtral_edu.checkpoints.shards import parse_size, stored_tensors, write_shards

TENSORS = {f"layers.{i}.weight": torch.arange(10 * i, 10 * i + 10.0) for i in range(5)}  # 40 bytes each
FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


@pytest.fixture
def single(tmp_path) -> Path:
    write_shards(tmp_path, TENSORS, max_shard_size=200)
    return tmp_path


@pytest.fixture
def sharded(tmp_path) -> Path:
    write_shards(tmp_path, TENSORS, max_shard_size=80)
    return tmp_path


def place(folder: Path, name: str, file) -> None:
    """Change one entry of the index."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][name] = file
    index.write_text(json.dumps(content))


def test_shards_follow_the_published_layout(sharded):
    assert sorted(os.listdir(sharded)) == [FIRST, SECOND, THIRD, "model.safetensors.index.json"]
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"] == dict(zip(TENSORS, [FIRST, FIRST, SECOND, SECOND, THIRD], strict=True))
    for file in (FIRST, SECOND, THIRD):
        assert list(load_file(sharded / file)) == [name for name in TENSORS if index["weight_map"][name] == file]


def test_what_fits_into_one_file_needs_no_index(single):
    assert os.listdir(single) == ["model.safetensors"]
    with safe_open(single / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.metadata() == {"format": "pt"}  # older versions of transformers insist


def test_a_tensor_above_the_limit_gets_its_own_shard(tmp_path):
    write_shards(tmp_path, {"small": torch.ones(1), "large": torch.ones(99), "last": torch.ones(1)}, max_shard_size=8)
    stored = [list(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert stored == [["small"], ["large"], ["last"]]


def test_headers_tell_names_shapes_and_types(tmp_path):
    write_shards(tmp_path, {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.tensor(1.5)}, max_shard_size=1)
    a, b = sorted(stored_tensors(tmp_path))
    assert (a.name, a.file.name, a.shape, a.dtype) == ("a", "model-00001-of-00002.safetensors", (2, 3), "BF16")
    assert (b.name, b.file.name, b.shape, b.dtype) == ("b", "model-00002-of-00002.safetensors", (), "F32")
    assert a.read().tolist() == [[1.0] * 3] * 2 and b.read().tolist() == 1.5


def test_what_is_read_has_memory_of_its_own_and_a_file_that_shrinks_meanwhile_is_named(tmp_path):
    write_shards(tmp_path, {"a": torch.ones(2, 3), "none": torch.ones(0, 3), "b": torch.ones(9)}, max_shard_size=1000)
    a, b, none = sorted(stored_tensors(tmp_path))
    a.read().zero_()
    assert a.read().tolist() == [[1.0] * 3] * 2 and none.read().shape == (0, 3)
    a.file.write_bytes(a.file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or corrupted: it ends within b"):
        b.read()


def test_shared_and_strided_memory_is_written_as_separate_tensors(tmp_path):
    memory = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": memory, "again": memory, "row": memory[1], "transposed": memory.T, "column": memory[:, 2]}
    write_shards(tmp_path, tensors, max_shard_size=1000)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.mark.skipif(os.name == "nt", reason="file modes of POSIX")
def test_others_may_read_what_was_written(sharded):
    (sharded / "plain").touch()
    assert len({stat.S_IMODE(path.stat().st_mode) for path in sharded.iterdir()}) == 1


def test_sizes_are_numbers_or_texts():
    sizes = {"5GB": 5 * 10**9, "1.5 MB": 1_500_000, "2KiB": 2048, "1gib": 2**30, 7: 7}
    assert {size: parse_size(size) for size in sizes} == sizes
    for wrong in ("5", "GB", "five GB", "-1GB", "0GB", 0, -3, 2.5, True, None):
        with pytest.raises(ValueError, match="max_shard_size=.*'5GB'"):
            parse_size(wrong)


def test_damaged_files_are_named(single):
    path = single / "model.safetensors"
    whole = path.read_bytes()
    damaged = {
        "truncated data": whole[:-1],
        "truncated header": whole[:100],
        "empty": b"",
        "longer than its header says": whole + b"\0",
        "header is no JSON": whole[:8] + b"}" + whole[9:],
        "header length out of range": b"\xff" * 8 + whole[8:],
        "offsets that contradict the shape": whole.replace(b'"shape":[10]', b'"shape":[11]', 1),
    }
    for damage, content in damaged.items():
        assert content != whole, damage
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupted: ."):
            stored_tensors(single)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        stored_tensors(single)


def test_damaged_and_missing_shards_are_named(sharded):
    (sharded / SECOND).write_bytes((sharded / SECOND).read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{SECOND} is truncated or corrupted"):
        stored_tensors(sharded)
    (sharded / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=rf"index\.json names {SECOND}, missing"):
        stored_tensors(sharded)


def test_an_index_stays_in_its_folder(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    write_shards(folder, TENSORS, max_shard_size=80)
    outside = tmp_path / "outside.safetensors"
    save_file({"layers.0.weight": torch.ones(10)}, outside)
    os.symlink(tmp_path, folder / "link")
    for escape in ("../outside.safetensors", str(outside), "link/outside.safetensors", "..\\outside.safetensors", "..",
                   "C:outside.safetensors", "model.bin", "", 3, None, [FIRST]):
        place(folder, "layers.0.weight", escape)
        with pytest.raises(ValueError, match=r"index\.json places layers\.0\.weight in .*same folder"):
            stored_tensors(folder)


def test_shards_may_be_links_to_a_store(sharded):
    store = sharded / "blobs"  # as in the hub's own cache
    store.mkdir()
    (sharded / FIRST).rename(store / "0123")
    os.symlink(store / "0123", sharded / FIRST)
    assert {tensor.name for tensor in stored_tensors(sharded)} == set(TENSORS)


def test_index_and_shards_agree(sharded):
    place(sharded, "layers.4.weight", FIRST)
    with pytest.raises(ValueError, match=f"places layers.4.weight in {FIRST}, which does not hold it"):
        stored_tensors(sharded)
    place(sharded, "layers.4.weight", THIRD)
    save_file({name: torch.ones(1) for name in ("layers.2.weight", "layers.3.weight", "more")}, sharded / SECOND)
    with pytest.raises(ValueError, match=f"{SECOND} holds more, which .*index.json does not place there"):
        stored_tensors(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json (is not valid JSON|has no 'weight_map')"):
        stored_tensors(sharded)


def test_one_file_and_an_index_at_once_are_refused(sharded):
    save_file(TENSORS, sharded / "model.safetensors")
    with pytest.raises(ValueError, match=r"both model\.safetensors and model\.safetensors\.index\.json"):
        stored_tensors(sharded)


def test_other_formats_are_named(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .*pytorch_model\.bin is not read"):
        stored_tensors(single)
    (single / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json$"):
        stored_tensors(single)
