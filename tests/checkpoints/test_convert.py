"""Converting: every number arrives as it was, in every direction, and nothing half-written is left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mixtral_edu import MixtralConfig, MixtralForCausalLM, MixtralTokenizer, convert_checkpoint
from mixtral_edu.__main__ import main
from mixtral_edu.checkpoints import convert
from mixtral_edu.data import bundled_folder
from mixtral_edu.quantization.model import QuantizationConfig
from raw_checkpoints import LAYOUTS, params_of, published, raw_logits, raw_tensors, write_checkpoint

IDS = torch.arange(24).reshape(2, 12) * 4
WQ = "layers.1.attention.wq.weight"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def source(tmp_path, make_config, to_transformers):
    """A function that writes a small checkpoint in a layout, and returns its folder."""

    def write(layout: str, config: MixtralConfig | None = None, dtype: torch.dtype = torch.float32) -> Path:
        write_checkpoint(tmp_path / "source", layout, config or make_config(), to_transformers, dtype)
        return tmp_path / "source"

    return write


def converted(source: Path, to: str, target: str = "target", **options) -> Path:
    convert_checkpoint(source, source.parent / target, to=to, progress=False, **options)
    return source.parent / target


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def refused(source: Path, error: type[Exception], match: str, to: str = "hf") -> None:
    """Assert that a source is refused by reading headers alone, and that nothing of the target stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_read", lambda source, place: pytest.fail(f"{source.name} was read"))
        with pytest.raises(error, match=match):
            converted(source, to)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("to", ["hf", "mistral"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_arrives_bit_by_bit(source, make_config, layout, dtype, to):
    target = converted(source(layout, dtype=DTYPES[dtype]), to)
    expected = raw_tensors(make_config(), DTYPES[dtype])
    assert_same(stored(target), expected if to == "mistral" else published(expected, make_config()))
    config = MixtralConfig.from_pretrained(target)
    assert config == make_config(dtype=dtype if to == "hf" else None)
    assert sorted(os.listdir(target)) == (
        ["config.json", "model.safetensors"] if to == "hf" else ["consolidated.safetensors", "params.json"])


@pytest.mark.numerics
@pytest.mark.parametrize("layout", ["raw", "stacked"])
@pytest.mark.parametrize(
    "sizes", [{}, {"sliding_window": None, "rope_theta": 100.0}, {"hidden_size": 40, "head_dim": 10}])
def test_a_raw_model_and_the_converted_one_agree(source, make_config, layout, sizes):
    config = make_config(**sizes)
    target = converted(source(layout, config), "hf")
    ours = MixtralForCausalLM.from_pretrained(target)(IDS).logits
    theirs, info = transformers.MixtralForCausalLM.from_pretrained(
        target, experts_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    params, raw = params_of(config), raw_tensors(config)
    for ids, our_row, their_row in zip(IDS, ours, theirs.eval()(IDS).logits, strict=True):
        expected = raw_logits(raw, params, ids)
        torch.testing.assert_close(our_row.double(), expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(their_row.double(), expected, atol=2e-4, rtol=0)


def test_the_way_there_and_back_changes_nothing(source, make_config):
    raw = source("raw in one pickle")
    (raw / "params.json").write_text(json.dumps(params_of(make_config()) | {"training_run": "b7"}))
    with pytest.warns(UserWarning, match="unknown config fields.*training_run"):
        there = converted(raw, "hf", "there", max_shard_size="30KB")
    with pytest.warns(UserWarning, match="unknown config fields.*training_run"):
        back = converted(there, "mistral", "back")
    assert_same(stored(back), raw_tensors(make_config()))
    assert json.loads((back / "params.json").read_text()) == json.loads((raw / "params.json").read_text())


def test_the_bundled_model_survives_the_way_there_and_back(tmp_path):
    convert_checkpoint("tiny", tmp_path / "raw", to="mistral", progress=False)
    convert_checkpoint(tmp_path / "raw", tmp_path / "back", progress=False)  # "hf" unless asked
    tiny = bundled_folder("tiny")
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((tiny / "config.json").read_text())
    assert_same(stored(tmp_path / "back"), stored(tiny))
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
    assert MixtralForCausalLM.from_pretrained(tmp_path / "back").config.dtype == "bfloat16"


def test_a_hugging_face_checkpoint_is_split_anew(source, make_config):
    target = converted(source("published"), "hf", max_shard_size="40KB")
    index = json.loads((target / "model.safetensors.index.json").read_text())
    tensors = published(raw_tensors(make_config()), make_config())
    assert len(set(index["weight_map"].values())) > 3 and index["weight_map"].keys() == tensors.keys()
    assert_same(stored(target), tensors)
    assert_same(stored(converted(target, "hf", "whole")), tensors)
    with pytest.raises(ValueError, match="max_shard_size='big'"):
        converted(target, "hf", "other", max_shard_size="big")


def test_tensors_keep_types_of_their_own(source, make_config):
    folder = source("raw")
    tensors = {name: t.bfloat16() if "experts" in name else t for name, t in raw_tensors(make_config()).items()}
    save_file(tensors, folder / "consolidated.safetensors")
    there = converted(folder, "hf")
    assert json.loads((there / "config.json").read_text())["dtype"] is None
    assert_same(stored(converted(there, "mistral", "back")), tensors)


def test_a_configs_own_dtype_is_kept(source, make_config):
    folder = source("published", make_config(dtype="bfloat16"))  # stored in float32, to be loaded in bfloat16
    back = converted(converted(folder, "mistral", "raw"), "hf", "back")
    assert json.loads((back / "config.json").read_text())["dtype"] == "bfloat16"
    assert stored(back)["model.norm.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v1"])
@pytest.mark.parametrize("layout, to", [("raw", "hf"), ("published", "mistral")])
def test_the_tokenizer_goes_along_under_its_name(source, layout, to, name):
    folder = source(layout)
    shutil.copy(bundled_folder("tiny") / "tokenizer.model", folder / name)
    target = converted(folder, to)
    assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert MixtralTokenizer.from_pretrained(target).encode("to be") == MixtralTokenizer.from_pretrained("tiny").encode(
        "to be")


def test_a_checkpoint_in_the_target_is_replaced_whole(source, tmp_path):
    folder = source("raw")
    target = tmp_path / "target"
    target.mkdir()
    older = ("config.json", "model.safetensors", "params.json", "consolidated.00.pth", "consolidated.01.pth")
    for name in (*older, "README.md", "tokenizer.model"):
        (target / name).write_text("old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        converted(folder, "mistral")
    assert {path.read_text() for path in target.iterdir()} == {"old"}
    converted(folder, "mistral", overwrite=True)
    assert sorted(os.listdir(target)) == ["README.md", "consolidated.safetensors", "params.json", "tokenizer.model"]
    shutil.copy(bundled_folder("tiny") / "tokenizer.model", folder / "tokenizer.model.v1")
    converted(folder, "hf", overwrite=True)
    assert sorted(os.listdir(target)) == ["README.md", "config.json", "model.safetensors", "tokenizer.model.v1"]


def test_a_conversion_that_fails_half_way_leaves_the_target(source, tmp_path, monkeypatch):
    folder, target = source("stacked"), tmp_path / "target"
    converted(folder, "hf")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for stop in (OSError("disk full"), KeyboardInterrupt()):
        reads, read = [], convert._read

        def fail_at_the_tenth(source, place, reads=reads, read=read, stop=stop):
            reads.append(place)
            if len(reads) == 10:
                raise stop
            return read(source, place)

        with monkeypatch.context() as patch:
            patch.setattr(convert, "_read", fail_at_the_tenth)
            with pytest.raises(type(stop)):
                converted(folder, "mistral", overwrite=True)
        assert len(reads) == 10
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_conversion_that_was_killed_is_found_by_the_next_one(source, tmp_path):
    folder = source("raw")
    leftover = tmp_path / ".target.mixtral-edu-new"
    leftover.mkdir()
    (leftover / "model-00001-of-00002.safetensors").write_text("half")
    with pytest.warns(UserWarning, match=rf"interrupted save left {leftover}; this unfinished copy was deleted"):
        target = converted(folder, "hf")
    assert sorted(os.listdir(target)) == ["config.json", "model.safetensors"] and not leftover.exists()


def edit(path: Path, change) -> None:
    """Change the tensors of a safetensors file or a pickle."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
    else:
        tensors = torch.load(path)
        change(tensors)
        torch.save(tensors, path)


RAW_FILES = {"raw": "consolidated.safetensors", "raw in one pickle": "consolidated.00.pth"}


@pytest.mark.parametrize("layout", RAW_FILES)
def test_misfits_are_named_with_their_file(source, layout):
    folder = source(layout)
    path = folder / RAW_FILES[layout]
    edit(path, lambda tensors: tensors.pop(WQ))
    refused(folder, ValueError, rf"source holds no causal Mixtral in the raw layout:\n  missing \(1\): {WQ}$")
    edit(path, lambda tensors: tensors.update({WQ: torch.ones(55, 44), "layers.9.surplus": torch.ones(1)}))
    refused(folder, ValueError, rf"unexpected \(1\): layers\.9\.surplus in {path.name}\n", to="mistral")
    refused(folder, ValueError, rf"{WQ} in {path.name} is \(55, 44\) .*\(56, 44\)")
    edit(path, lambda tensors: tensors.update({WQ: torch.ones(56, 44, dtype=torch.int32)}))
    refused(folder, ValueError, rf"{WQ} in {path.name} is stored as (I32|torch\.int32) .*F64 or F32 or F16 or BF16")


@pytest.mark.parametrize("layout, name, wanted", [
    ("published", "model.layers.0.block_sparse_moe.experts.4.w2.weight", (44, 37)),
    ("fused", "model.layers.0.mlp.experts.gate_up_proj", (5, 74, 44)),
])
def test_misfits_in_hugging_face_files_are_named(source, layout, name, wanted):
    folder = source(layout)
    edit(folder / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].mT.contiguous()}))
    message = rf"in the {layout} layout:\n.*{name} in model\.safetensors is .*must be {re.escape(str(wanted))}"
    refused(folder, ValueError, message, to="mistral")
    edit(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    refused(folder, ValueError, rf"missing \(1\): {name}$")


def test_missing_and_doubled_shards_are_named(source):
    folder = source("stacked")
    shutil.copy(folder / "consolidated.02.pt", folder / "consolidated.08.pt")
    name = next(iter(torch.load(folder / "consolidated.02.pt")))
    refused(folder, ValueError, rf"doubled \(\d\): {name} in consolidated\.08\.pt and in consolidated\.02\.pt")
    (folder / "consolidated.08.pt").unlink()
    (folder / "consolidated.02.pt").unlink()
    refused(folder, ValueError, rf"in the stacked layout:\n  missing \(\d\): .*{name}")


def test_a_stacked_w2_that_stands_upright_is_refused(source):
    folder = source("stacked")

    def stand_up(tensors):
        tensors.update({name: tensor.reshape(-1, 37) for name, tensor in tensors.items() if name.endswith("w2")})

    for path in folder.glob("*.pt"):
        edit(path, stand_up)
    refused(folder, ValueError, r"layers\.\d\.block_sparse_moe\.w2 in .* is \(220, 37\) .*\(185, 44\)")


def test_damaged_files_and_settings_are_refused(source):
    folder = source("raw in shards")
    path = folder / "consolidated-00002-of-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(folder, ValueError, rf"{path.name} is truncated or corrupted")
    path.write_bytes(whole)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({name: params[name] for name in params if name != "hidden_dim"}))
    refused(folder, ValueError, r"params\.json lacks 'hidden_dim'")
    (folder / "params.json").unlink()
    refused(folder, FileNotFoundError, r"source holds neither config\.json nor params\.json")


def test_a_pickle_that_would_run_code_is_refused(source, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    folder = source("stacked")
    edit(folder / "consolidated.03.pt", lambda tensors: tensors.update(evil=Malicious()))
    refused(folder, ValueError, r"consolidated\.03\.pt is not opened: .*could run code")


def test_other_models_are_refused(source, tmp_path):
    folder = source("published")
    edit(folder / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, ValueError, r"no causal Mixtral in the published layout:\n  missing \(1\): lm_head\.weight")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refused(folder, ValueError, "model_type='llama'")


def test_quantized_weights_are_refused(source, make_config):
    folder = source("published", make_config(quantization_config=QuantizationConfig(8).to_dict()))
    refused(folder, ValueError, "source holds quantized weights: convert the checkpoint")


def test_raw_files_beside_a_config_json_are_read(source, make_config):
    folder = source("stacked")
    (folder / "params.json").unlink()
    make_config().save_pretrained(folder)
    assert_same(stored(converted(folder, "mistral")), raw_tensors(make_config()))


def test_rotary_tables_of_old_checkpoints_are_left_out(source, make_config):
    folder = source("published")
    tables = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(7) for i in range(3)}
    edit(folder / "model.safetensors", lambda tensors: tensors.update(tables))
    assert_same(stored(converted(folder, "mistral")), raw_tensors(make_config()))


def test_arguments_are_checked(source, tmp_path):
    folder = source("raw")
    with pytest.raises(ValueError, match="to='gguf'.*'hf' or 'mistral'"):
        convert_checkpoint(folder, tmp_path / "target", to="gguf")
    for target in (folder, folder / "inside", tmp_path, folder / ".." / "source"):
        with pytest.raises(ValueError, match="^target='.*source"):
            convert_checkpoint(folder, target, overwrite=True)
    with pytest.raises(FileNotFoundError, match="hf download mistralai/Mixtral-8x7B-v0.1"):
        convert_checkpoint("mistralai/Mixtral-8x7B-v0.1", tmp_path / "target")
    with pytest.raises(NotADirectoryError, match=r"params\.json' is a file"):
        convert_checkpoint(tmp_path / "source/params.json", tmp_path / "target")


def test_too_little_space_is_noticed_before_writing(source, make_config, monkeypatch):
    folder = source("raw")
    size = 4 * sum(tensor.numel() for tensor in raw_tensors(make_config()).values())
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(size - 1))
    refused(folder, OSError, rf"target needs {size / 1e9:.3g} GB.* GB are free on that disk")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(size))
    memory, needed = psutil.virtual_memory(), 2 * 4 * 101 * 44
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=needed - 1))
    refused(folder, MemoryError, "converting .*source needs")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=needed))
    converted(folder, "hf")


@pytest.mark.parametrize("layout", ["raw", "raw in one pickle", "stacked", "fused"])
def test_loading_what_has_to_be_converted_names_the_command_which_works(source, tmp_path, layout, capsys):
    folder = source(layout)
    with pytest.raises(ValueError, match="python -m mixtral_edu convert") as caught:
        MixtralForCausalLM.from_pretrained(folder)
    command = str(caught.value).splitlines()[-1].strip().removeprefix("python -m mixtral_edu ")
    assert command == f"convert {folder} TARGET --to hf"
    main(command.replace("TARGET", str(tmp_path / "target")).split())
    assert MixtralForCausalLM.from_pretrained(tmp_path / "target").config.hidden_size == 44
    assert "100%" in capsys.readouterr().err  # the bar


def test_the_command_line_tells_what_is_wrong(source, tmp_path, capsys):
    folder = source("raw")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").touch()
    with pytest.raises(SystemExit, match="1"):
        main(["convert", str(folder), str(tmp_path / "full")])
    assert "--overwrite" in capsys.readouterr().err
    main(["convert", str(folder), str(tmp_path / "full"), "--to", "hf", "--overwrite", "--max-shard-size", "50KB"])
    assert (tmp_path / "full/notes").exists() and (tmp_path / "full/model.safetensors.index.json").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(folder), str(tmp_path / "other"), "--to", "gguf"])
    assert "choose from hf, mistral" in capsys.readouterr().err.replace("'", "")


# Converts one folder after the other, and prints how much memory was taken at most while tensors were written, in MB.
MEASURE = """
import sys
import psutil
from mixtral_edu import convert_checkpoint
from mixtral_edu.checkpoints import safetensors_file

process, levels, bytes_of = psutil.Process(), [], safetensors_file._bytes_of

def measured(tensor):
    made = bytes_of(tensor)
    levels.append(process.memory_info().rss)
    return made

safetensors_file._bytes_of = measured
convert_checkpoint("tiny", "warm", progress=False)
for source, target, to in zip(sys.argv[1:], sys.argv[2:], ("hf", "mistral", "hf")):
    before, levels[:] = process.memory_info().rss, []
    convert_checkpoint(source, target, to=to, max_shard_size="50MB", progress=False)
    print((max(levels) - before) / 1e6)
"""


def test_memory_holds_one_tensor(source, tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 8, "num_hidden_layers": 3,
             "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 64}
    folder = source("stacked", MixtralConfig(**sizes), torch.bfloat16)
    size = sum(path.stat().st_size for path in folder.glob("*.pt"))
    command = [sys.executable, "-c", MEASURE, "source", "published", "raw", "again"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peaks = [float(line) for line in result.stdout.split()]
    assert size > 75e6 and len(peaks) == 3
    assert max(peaks) < 20, peaks  # tensors have 1 MB here, stacked ones 8 MB, shards 50 MB


def test_a_source_or_target_that_is_no_path_is_named(tmp_path):
    with pytest.raises(TypeError, match="^source is a NoneType"):
        convert_checkpoint(None, tmp_path / "target")
    with pytest.raises(TypeError, match="^target is a int"):
        convert_checkpoint("tiny", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="^target=.*full' has content"):
        convert_checkpoint("tiny", tmp_path / "full")


def test_weights_without_their_settings_are_named(tmp_path):
    torch.save({"norm.weight": torch.ones(3)}, tmp_path / "consolidated.00.pth")
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor params\.json beside its weights"):
        convert_checkpoint(tmp_path, tmp_path.with_name("target"))
