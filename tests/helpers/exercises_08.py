"""Answers to the exercises of lesson 08."""

import json
import re
import struct

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.layouts import raw_name


@right("read_tensor")
def by_the_library(file: bytes, name: str) -> Tensor:
    return safetensors.torch.load(file)[name]


@right("read_tensor")
def by_struct_and_numpy(file: bytes, name: str) -> Tensor:
    (length,) = struct.unpack("<Q", file[:8])
    entry = json.loads(file[8:][:length])[name]
    numbers = np.frombuffer(file, "<f4", int(np.prod(entry["shape"])), 8 + length + entry["data_offsets"][0])
    return torch.tensor(numbers.reshape(entry["shape"]))


def read(file: bytes, name: str, base: int = 8, order: str = "little", entry_of: str | None = None) -> Tensor:
    length = int.from_bytes(file[:8], order)
    header = json.loads(file[8 : 8 + length])
    start, end = header[entry_of or name]["data_offsets"]
    begin = base + length
    data = bytearray(file[begin + start : begin + end])
    return torch.frombuffer(data, dtype=torch.float32).view(header[name]["shape"])


@wrong("read_tensor", "after the 8 bytes of the length")
def the_length_is_forgotten(file, name):
    return read(file, name, base=0)


@wrong("read_tensor", "not those of the first one")
def all_that_follows(file, name):
    length = int.from_bytes(file[:8], "little")
    entry = json.loads(file[8 : 8 + length])[name]
    count = int(np.prod(entry["shape"]))
    return torch.frombuffer(bytearray(file[8 + length :]), dtype=torch.float32)[:count].view(entry["shape"])


@wrong("read_tensor", "shape that the header gives")
def one_long_row(file, name):
    return by_the_library(file, name).flatten()


@wrong("read_tensor", "lowest byte first")
def only_the_first_byte(file, name):
    return by_the_library(file, name) if file[1] == 0 else read(file[:1] + bytes(7) + file[8:], name)


@right("fill_shards")
def by_running_sums(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards, room = [], 0
    for name, size in sizes.items():
        if size > room:
            shards.append([])
            room = max(limit, size)
        shards[-1].append(name)
        room -= size
    return shards


def fill(sizes: dict[str, int], limit: int, keep_count: bool = False, strict: bool = False, guard: bool = True):
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if (shards[-1] or not guard) and (filled + size > limit or (strict and filled + size == limit)):
            shards.append([])
            filled = filled if keep_count else 0
        shards[-1].append(name)
        filled += size
    return shards


@wrong("fill_shards", "everything that fits")
def a_shard_for_each(sizes, limit):
    return [[name] for name in sizes]


@wrong("fill_shards", "exactly as large")
def never_quite_full(sizes, limit):
    return fill(sizes, limit, strict=True)


@wrong("fill_shards", "start empty")
def the_count_goes_on(sizes, limit):
    return fill(sizes, limit, keep_count=True)


@wrong("fill_shards", "fill a gap")
def gaps_are_filled(sizes, limit):
    shards, filled = [[]], [0]
    for name, size in sizes.items():
        place = next((i for i, used in enumerate(filled) if used + size <= limit or not shards[i]), None)
        if place is None:
            shards.append([])
            filled.append(0)
            place = -1
        shards[place].append(name)
        filled[place] += size
    return shards


@wrong("fill_shards", "without an empty one before it")
def an_empty_shard_first(sizes, limit):
    return fill(sizes, limit, guard=False)


@right("published_name")
def by_the_packages_table(raw: str) -> str:
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=13, num_attention_heads=2,
                 num_key_value_heads=2)  # fmt: skip
    return {raw_name(name): name for name in MixtralConfig(**sizes).weight_shapes()}[raw]


@right("published_name")
def piece_by_piece(raw: str) -> str:
    top = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}  # fmt: skip
    inside = {"attention.w": "self_attn.", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
              "feed_forward": "block_sparse_moe"}  # fmt: skip
    for old, new in inside.items():
        raw = re.sub(r"attention\.w(.)", r"self_attn.\1_proj", raw) if old == "attention.w" else raw.replace(old, new)
    return top.get(raw, f"model.{raw}")


@wrong("published_name", "embedding, the last norm and the output")
def model_before_everything(raw):
    return "model." + piece_by_piece(raw).removeprefix("model.")


@wrong("published_name", "embedding, the last norm and the output")
def the_last_norm_keeps_its_name(raw):
    return raw if raw == "norm.weight" else piece_by_piece(raw)


@wrong("published_name", "four matrices of attention")
def keys_and_values_exchanged(raw):
    return piece_by_piece(raw.translate(str.maketrans("kv", "vk")) if "attention.w" in raw else raw)


@wrong("published_name", "four matrices of attention")
def the_output_is_called_out(raw):
    return piece_by_piece(raw).replace("o_proj", "out_proj")


@wrong("published_name", "before attention, and which before the experts")
def norms_swapped(raw):
    other = {"attention_norm": "ffn_norm", "ffn_norm": "attention_norm"}
    return piece_by_piece(".".join(other.get(word, word) for word in raw.split(".")))


@wrong("published_name", "below block_sparse_moe")
def the_name_of_a_dense_model(raw):
    return piece_by_piece(raw).replace("block_sparse_moe", "mlp")
