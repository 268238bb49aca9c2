"""Answers to the exercises of lesson 08."""

import json
import math
import re
import struct
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from exercise_answers import right, wrong
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.layouts import raw_name, to_half_split, to_interleaved


@right("read_rows")
def by_struct_and_numpy(read: Callable, name: str, start: int, stop: int) -> Tensor:
    (length,) = struct.unpack("<Q", read(0, 8))
    entry = json.loads(read(8, length))[name]
    size = 2 * entry["shape"][1]
    rows = [read(8 + length + entry["data_offsets"][0] + row * size, size) for row in range(start, stop)]
    upper_halves = np.frombuffer(b"".join(rows), "<u2").astype("<u4") << 16
    return torch.tensor(upper_halves.view("<f4").reshape(stop - start, -1))


def rows_of(read, name, start, stop, base=8, entry_of=None, bytes_each=2, all_rows=False, order="little", whole=False):
    length = int.from_bytes(read(0, 8)[: 1 if order == "first" else 8], "little" if order == "first" else order)
    header = json.loads(read(8, length))
    rows, columns = header[name]["shape"]
    begin = base + length + header[entry_of or name]["data_offsets"][0]
    size = bytes_each * columns
    count = (rows - start if whole else stop - start) * 2 * columns
    data = read(begin, rows * 2 * columns) if all_rows else read(begin + start * size, count)
    numbers = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(-1, columns).float()
    return numbers[start:stop] if all_rows else numbers[: stop - start]


@wrong("read_rows", "after the 8 bytes of the length")
def the_length_is_forgotten(read, name, start, stop):
    return rows_of(read, name, start, stop, base=0)


@wrong("read_rows", "not those of the first one")
def from_the_first_tensor_on(read, name, start, stop):
    return rows_of(read, name, start, stop, entry_of="a")


@wrong("read_rows", "two bytes each")
def four_bytes_each(read, name, start, stop):
    return rows_of(read, name, start, stop, bytes_each=4) if start else rows_of(read, name, start, stop)


@wrong("read_rows", "two bytes each")
def the_whole_matrix(read, name, start, stop):
    return rows_of(read, name, start, stop, all_rows=True)


@wrong("read_rows", "not those of rows after them")
def to_the_end_of_the_matrix(read, name, start, stop):
    return rows_of(read, name, start, stop, whole=True)


@wrong("read_rows", "all eight bytes")
def only_the_first_byte(read, name, start, stop):
    return rows_of(read, name, start, stop, order="first")


@right("find_fault")
def by_counting_bytes(file: bytes) -> str:
    if len(file) < 8 or len(file) < 8 + struct.unpack("<Q", file[:8])[0]:
        return "header"
    (length,) = struct.unpack("<Q", file[:8])
    entries = [entry for name, entry in json.loads(file[8:][:length]).items() if name != "__metadata__"]
    for entry in entries:
        need = np.prod(entry["shape"], dtype=int) * (4 if entry["dtype"] == "F32" else 2)
        if np.diff(entry["data_offsets"])[0] != need:
            return "size"
    claims = np.zeros(max(entry["data_offsets"][1] for entry in entries), dtype=int)
    for entry in entries:
        claims[slice(*entry["data_offsets"])] += 1
    if not (claims == 1).all():
        return "gap"
    return "" if len(claims) == len(file) - 8 - length else "end"


def fault(file, sort=True, last=False, check_end=True, check_size=True, dtype=True, prod=math.prod, check_gap="both",
          metadata=True, early=True, late=True):
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 + length and early:
        return "header"
    header = json.loads(file[8 : 8 + length])
    if metadata:
        header.pop("__metadata__", None)
    for entry in header.values():
        start, end = entry["data_offsets"]
        if check_size and end - start != prod(entry["shape"]) * (4 if dtype and entry["dtype"] == "F32" else 2):
            return "size"
    place, spans = 0, [entry["data_offsets"] for entry in header.values()]
    for start, end in sorted(spans) if sort else spans:
        if check_gap and start != place and (check_gap == "both" or start < place):
            return "gap"
        place = end
    room = len(file) - 8 - length
    return "end" if check_end and (room < place or late and room > place) else ""


@wrong("find_fault", "that goes on")
def only_cut_files(file):
    return fault(file, late=False)


@wrong("find_fault", "that goes on")
def the_end_is_not_looked_at(file):
    return fault(file, check_end=False)


@wrong("find_fault", "that goes on")
def nothing_is_ever_wrong(file):
    return ""


@wrong("find_fault", "may name it first")
def in_the_order_of_the_header(file):
    return fault(file, sort=False, check_gap=None)


@wrong("find_fault", "compared with its shape")
def sizes_are_believed(file):
    return fault(file, check_size=False)


@wrong("find_fault", "compared with its shape")
def two_bytes_for_all(file):
    return fault(file, dtype=False)


@wrong("find_fault", "a shape of [] one number")
def a_product_that_starts_at_nothing(file):
    return fault(file, prod=lambda shape: math.prod(shape) if shape else 0)


@wrong("find_fault", "claim the same bytes")
def only_overlaps(file):
    return fault(file, check_gap="overlap")


@wrong("find_fault", "ends within its header")
def the_header_is_believed(file):
    return fault(file, early=False)


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


@right("tensors_of_expert")
def by_the_parts_of_a_name(weight_map: dict[str, str], layer: int, expert: int) -> dict[str, list[str]]:
    def is_wanted(name: str) -> bool:
        parts = name.split(".")
        return parts[2] == str(layer) and parts[4:6] == ["experts", str(expert)]

    files = dict.fromkeys(file for name, file in weight_map.items() if is_wanted(name))
    return {file: [name for name in weight_map if is_wanted(name) and weight_map[name] == file] for file in files}


def search(weight_map, pattern):
    found = {}
    for name, file in weight_map.items():
        if re.search(pattern, name):
            found.setdefault(file, []).append(name)
    return found


@wrong("tensors_of_expert", "Is layer 1 told apart")
def the_layer_as_it_was(weight_map, layer, expert):
    return search(weight_map, rf"layers\.{layer}.*experts\.{expert}\.")


@wrong("tensors_of_expert", "Is expert 1 told apart")
def the_expert_as_it_was(weight_map, layer, expert):
    return search(weight_map, rf"layers\.{layer}\..*experts\.{expert}")


@wrong("tensors_of_expert", "which ends alike")
def only_the_end_of_the_number(weight_map, layer, expert):
    return search(weight_map, rf"{layer}\.block_sparse_moe\.experts\.{expert}\.")


@wrong("tensors_of_expert", "under their own shard")
def all_in_the_first_shard(weight_map, layer, expert):
    found = by_the_parts_of_a_name(weight_map, layer, expert)
    return {next(iter(found)): sum(found.values(), [])}


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


@right("what_happened")
def by_positions(loaded: Tensor, right: Tensor, num_heads: int) -> str:
    rows = len(right)

    def convert(order: list[int], heads: int) -> list[int]:
        size = rows // heads
        starts = range(0, rows, size)
        return [order[s + r] for s in starts for r in [*range(0, size, 2), *range(1, size, 2)]]

    place = convert(list(range(rows)), num_heads)  # where the rows of `right` were in Mistral's file
    stored = torch.empty_like(right)
    stored[place] = right
    candidates = {"right": right, "forgotten": stored, "twice": right[convert(list(range(rows)), num_heads)]}
    for heads in range(1, rows):
        if rows % heads == 0 and rows // heads % 2 == 0:
            candidates[f"heads {heads}"] = stored[convert(list(range(rows)), heads)]
    fitting = [name for name, candidate in candidates.items() if torch.equal(loaded, candidate)]
    return fitting[0].split()[0] if fitting else "other"


def verdict(loaded, right, num_heads, own=None, order=("right", "forgotten", "twice", "heads"), most=None, close=False):
    heads = own or num_heads
    stored, rows = to_interleaved(right, heads), len(right)
    others = [each for each in range(1, (most or rows) + 1) if rows % (2 * each) == 0]
    candidates = {"right": [right], "forgotten": [stored], "twice": [to_half_split(right, heads)],
                  "heads": [to_half_split(stored, each) for each in others]}  # fmt: skip
    same = torch.equal if not close else lambda a, b: a[:, 0].equal(b[:, 0])
    return next((name for name in order if any(same(loaded, each) for each in candidates[name])), "other")


@wrong("what_happened", "stayed interleaved")
def the_two_exchanged(loaded, right, num_heads):
    return {"right": "forgotten", "forgotten": "right"}.get(found := verdict(loaded, right, num_heads), found)


@wrong("what_happened", "stayed interleaved")
def always_right(loaded, right, num_heads):
    return "right"


@wrong("what_happened", "Is each head looked at by itself?")
def one_head_for_all(loaded, right, num_heads):
    return verdict(loaded, right, num_heads, own=1) if num_heads > 2 else verdict(loaded, right, num_heads)


@wrong("what_happened", "two times")
def nobody_does_it_twice(loaded, right, num_heads):
    return verdict(loaded, right, num_heads, order=("right", "forgotten", "heads"))


@wrong("what_happened", "more heads than there are")
def only_fewer_heads(loaded, right, num_heads):
    return verdict(loaded, right, num_heads, most=num_heads)


@wrong("what_happened", "where two are true")
def twice_before_forgotten(loaded, right, num_heads):
    return verdict(loaded, right, num_heads, order=("right", "twice", "forgotten", "heads"))


@wrong("what_happened", "in any other order")
def only_the_first_column(loaded, right, num_heads):
    return verdict(loaded, right, num_heads, close=True)


@wrong("what_happened", "in any other order")
def all_else_is_the_number_of_heads(loaded, right, num_heads):
    return "heads" if (found := verdict(loaded, right, num_heads)) == "other" else found
