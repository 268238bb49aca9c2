"""Files that hold anything at all: each reader takes them, or raises an error that names the file and the field.

Seeded mutations of every kind of value; thousands more were tried while the rules were written.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch

from mixtral_edu import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForTokenClassification,
    MixtralTokenizer,
    convert_checkpoint,
)
from mixtral_edu.__main__ import main
from mixtral_edu.data import bundled_folder
from mixtral_edu.text.vocabulary import train_bpe
from raw_checkpoints import params_of, write_checkpoint
from tokenizer_samples import TEXTS

HUGE = (2**31, 2**62, 2**63, 10**30, 10**400)
VALUES = (
    None, True, False, 0, 1, -1, 3, 7, *HUGE, -(2**31), 0.0, 0.5, 4.0, 1e-300, 1e39, 1e300,
    float("nan"), float("inf"), float("-inf"), "", "4", "٤", "²", " 7 ", "0x10", "four", "\ud800", "9" * 5000,
    [], [1], [None], ["a"], [[1]], {}, {"a": 1}, {"0": "x"}, {"0": 3}, {"5": "x", "7": "y"}, {"0": "a", "00": "b"},
    {"rope_type": ["default"], "rope_theta": "x"}, {"quant_method": "mixtral_edu", "bits": [8]},
    {"quant_method": "mixtral_edu", "bits": 4, "group_size": 10**30},
)  # fmt: skip
IDS = torch.arange(6).view(1, -1)


def run(read: Callable[[], object], *named: str) -> bool:
    """Return whether `read` succeeds; where it does not, its error must be a clear one that has all of `named`."""
    try:
        read()
    except (ValueError, FileNotFoundError, MemoryError) as error:
        assert not isinstance(error, UnicodeError | json.JSONDecodeError), error
        assert all(name in str(error) for name in named), error
        return False
    return True


def changed(values: dict, rng: random.Random) -> tuple[dict, str]:
    """Give one field another value, drop it or rename it; return the dictionary and the field."""
    values, name = json.loads(json.dumps(values)), rng.choice(sorted(values))
    how = rng.random()
    if isinstance(values[name], dict) and values[name] and how < 0.3:
        values[name][rng.choice(sorted(values[name]))] = rng.choice(VALUES)
    elif how < 0.8:
        values[name] = rng.choice(VALUES)
    else:
        value = values.pop(name)
        if how < 0.9:
            values[name.upper()] = value
    return values, name


@pytest.mark.filterwarnings("ignore:unknown config fields", "ignore:.*initialised at random")
def test_any_value_in_a_config_is_taken_or_named(tmp_path, make_config, to_transformers):
    write_checkpoint(tmp_path / "source", "published", make_config(), to_transformers)
    file = tmp_path / "source" / "config.json"
    good = json.loads(file.read_text()) | {"num_labels": 2, "quantization_config": None}
    rng, taken = random.Random(5), 0

    def use() -> None:
        model = MixtralForCausalLM.from_pretrained(file.parent)
        model(IDS, labels=IDS, output_router_logits=True, use_cache=False)
        MixtralForTokenClassification.from_pretrained(file.parent)
        convert_checkpoint(file.parent, tmp_path / "target", "mistral", overwrite=True, progress=False)

    for _ in range(120):
        values, _ = changed(good, rng)
        file.write_text(json.dumps(values))
        if run(lambda: MixtralConfig.from_pretrained(file.parent), str(file)):
            taken += run(use, str(file.parent))
        run(lambda values=values: MixtralConfig.from_dict(values))
    assert 20 < taken < 100  # both happen


@pytest.mark.filterwarnings("ignore:unknown config fields")
def test_any_value_in_params_is_taken_or_named(tmp_path, make_config, to_transformers):
    write_checkpoint(tmp_path / "source", "raw", make_config(), to_transformers)
    file, rng, taken = tmp_path / "source" / "params.json", random.Random(6), 0

    def use() -> None:
        convert_checkpoint(file.parent, tmp_path / "target", overwrite=True, progress=False)

    for _ in range(300):
        file.write_text(json.dumps(changed(params_of(make_config()), rng)[0]))
        if run(lambda: MixtralConfig.from_pretrained(file.parent), str(file)):
            taken += run(use, str(file.parent))
    assert 20 < taken < 250


SIZES = {
    "num_hidden_layers": "3 layers", "num_local_experts": "5 experts",
    "vocab_size": r"\(101, 44\)", "hidden_size": r"\(101, 44\)", "intermediate_size": r"\(", "head_dim": r"\(56, 44\)",
    "num_attention_heads": r"\(56, 44\)",
}  # fmt: skip


@pytest.mark.parametrize("size", [2**31, 2**40])
@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("layout", ["published", "fused", "raw", "stacked"])
def test_sizes_are_compared_with_the_tensors_before_anything_is_built(
    tmp_path, make_config, to_transformers, layout, field, size
):
    source = tmp_path / "source"
    write_checkpoint(source, layout, make_config(), to_transformers)
    (source / "params.json").unlink(missing_ok=True)
    (source / "config.json").write_text(json.dumps(make_config().to_dict() | {field: size}))
    named = {
        "num_attention_heads": rf"num_attention_heads \* head_dim={14 * size} ",
        "head_dim": rf"num_attention_heads \* head_dim={4 * size} ",  # either may be the wrong one
        "intermediate_size": {
            "fused": rf"2 \* intermediate_size={2 * size} ",
            "stacked": rf"num_local_experts \* intermediate_size={5 * size} ",
        }.get(layout, f"intermediate_size={size} "),
    }.get(field, f"{field}={size} ")
    with pytest.raises(ValueError, match=rf"config\.json: {named}but the files hold .*{SIZES[field]}"):
        convert_checkpoint(source, tmp_path / "target", progress=False)
    if layout == "published":
        with pytest.raises(ValueError, match=rf"config\.json: {named}but the files hold .*{SIZES[field]}"):
            MixtralForCausalLM.from_pretrained(source)


def test_fewer_layers_than_the_files_hold_are_named(tmp_path, make_config, to_transformers, capsys):
    write_checkpoint(tmp_path / "source", "raw", make_config(), to_transformers)
    (tmp_path / "source" / "params.json").write_text(json.dumps(params_of(make_config(num_hidden_layers=2))))
    with pytest.raises(SystemExit, match="1"):
        main(["convert", str(tmp_path / "source"), str(tmp_path / "target")])
    assert "params.json: num_hidden_layers=2 but the files hold 3 layers" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\ufeff{}", '{"hidden_size": ' + "1" * 5000 + "}"])
def test_json_that_python_cannot_read_is_named(tmp_path, text):
    for name in ("config.json", "params.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name} is not valid JSON"):
            MixtralConfig.from_pretrained(tmp_path)
        (tmp_path / name).unlink()


def test_what_is_no_dictionary_of_settings_is_refused():
    for values in (None, "text", [1], 5):
        with pytest.raises(TypeError, match=f"^values is a {type(values).__name__}"):
            MixtralConfig.from_dict(values)
    with pytest.raises(ValueError, match="^values has the fields .*names must be text"):
        MixtralConfig.from_dict({1: 2, "a": 3})
    with pytest.raises(ValueError, match="^hidden_size=a int too long"):
        MixtralConfig.from_dict({"hidden_size": 10**5000})


def test_a_setting_of_quantization_is_named_with_its_file(tmp_path):
    shutil.copytree(bundled_folder("tiny"), tmp_path / "tiny")
    file = tmp_path / "tiny" / "config.json"
    good = json.loads(file.read_text())
    for form in ({"quant_method": "gptq"}, {"quant_method": "mixtral_edu", "bits": "8"}, "int4", [8]):
        file.write_text(json.dumps(good | {"quantization_config": form}))
        with pytest.raises(ValueError, match=r"config\.json: quantization_config"):
            MixtralForCausalLM.from_pretrained(file.parent)


def varint(number: int) -> bytes:
    """Protocol buffers' whole number: seven bits a byte, the lowest first."""
    head, number = number & 127, number >> 7
    return bytes([head | 128]) + varint(number) if number else bytes([head])


def piece(text: bytes, kind: int, score: bytes = b"\0\0\0\0") -> bytes:
    """One entry of a SentencePiece model: field 1, a message of text, score and kind."""
    entry = b"\x0a" + varint(len(text)) + text + b"\x15" + score + b"\x18" + varint(kind)
    return b"\x0a" + varint(len(entry)) + entry


def use_tokenizer(path: Path) -> None:
    tokenizer = MixtralTokenizer(path)
    for text in ("Once upon 🙂 a\n time", "", "\0a"):
        tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
    every_id = list(range(len(tokenizer)))
    tokenizer.decode(every_id), tokenizer.decode(every_id, True), tokenizer.pieces(every_id)
    tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_any_bytes_of_a_tokenizer_are_taken_or_named(tmp_path):
    good, rng, taken, path = train_bpe(TEXTS, 330), random.Random(7), 0, tmp_path / "tokenizer.model"
    bad_pieces = [piece(text, kind) for text in (b"\xff", b"\xe2\x96", b"\xed\xa0\x80", b"", b"<0xZZ>", b"a" * 5000)
                  for kind in (1, 2, 3, 4, 5, 6, 7)]  # fmt: skip
    other_files = [b"", b"{}", b"PK\x03\x04" + bytes(99), bytes(999)]
    other_files += [(bundled_folder("tiny") / "config.json").read_bytes()]
    whole_messages = [good + extra for extra in bad_pieces]  # a message may be continued
    settings = [good + b"\x12" + varint(len(body)) + body for body in (
        b"\xe2\x02\x01\xff",  # the text of <unk>, no UTF-8
        b"\xea\x02\x01x",  # <unk> has another name
        b"\xf2\x02\x01x",  # and <s>
        b"\x18\x63",  # a model type that there is not
    )]  # fmt: skip
    damaged = []
    for _ in range(300):
        content = bytearray(good)
        at, size = rng.randrange(len(good)), rng.choice([1, 1, 4, 100])
        content[at : at + size] = rng.choice([rng.randbytes(size), b"", rng.randbytes(size) * 2, good[:size]])
        damaged.append(bytes(content[: rng.choice([None, None, rng.randrange(len(good))])]))
    for content in (good, *other_files, *whole_messages, *settings, *damaged):
        path.write_bytes(content)
        taken += run(lambda: use_tokenizer(path), str(path))
    assert 10 < taken < 340


@pytest.mark.parametrize("text", [b"\xff", b"\xe2\x96", b"\xed\xa0\x80"])
def test_a_piece_that_is_no_utf8_is_named(tmp_path, text):
    (tmp_path / "bad.model").write_bytes(train_bpe(TEXTS, 330) + piece(text, 1))
    with pytest.raises(ValueError, match=r"bad\.model is not a SentencePiece model file, or a damaged one"):
        MixtralTokenizer(tmp_path / "bad.model")


def test_a_model_without_an_unknown_token_is_named(tmp_path):
    content = train_bpe(TEXTS, 330) + b"\x12\x04\xea\x02\x01x"  # its settings call <unk> something else
    assert sentencepiece.SentencePieceProcessor(model_proto=content).unk_id() == -1
    (tmp_path / "odd.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.model defines no <unk>"):
        MixtralTokenizer(tmp_path / "odd.model")
