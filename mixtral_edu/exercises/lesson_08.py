"""Exercises of lesson 08: a tensor out of a file's bytes, shards, and names in two layouts."""

import json

import torch
from torch import Tensor

from mixtral_edu.exercises.framework import exercise


@exercise("A tensor out of the bytes of a file")
def read_tensor(file: bytes, name: str) -> Tensor:
    """Take the tensor called `name` out of the content of a safetensors file.

    The first 8 bytes are the length of the header, lowest byte first; the header is JSON text;
    the numbers follow. `data_offsets` count from the end of the header.

    Args:
        file: the whole content of a file whose tensors are all of dtype "F32".
        name: of a tensor in it.

    Returns:
        the tensor, in float32 and in its shape.
    """
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    start, end = header[name]["data_offsets"]
    data = file[8 + length + start : 8 + length + end]
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(header[name]["shape"])


def file_with(tensors: dict[str, Tensor], padding: int = 0, order: list[str] | None = None) -> bytes:
    """A file as the format wants it; `order` is that of the header's lines."""
    entries, data = {}, b""
    for name, tensor in tensors.items():
        numbers = tensor.numpy().astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(numbers)]
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += numbers
    header = json.dumps({name: entries[name] for name in order or entries}).encode() + b" " * padding
    return len(header).to_bytes(8, "little") + header + data


@read_tensor.check("Do the numbers begin after the 8 bytes of the length (lowest first) and the header?")
def after_the_header(answer):
    numbers = torch.tensor([1.0, 2.0, 3.0])
    return answer(file_with({"a": numbers}), "a").flatten(), numbers


@read_tensor.check("Are the offsets of this tensor used, and not those of the first one?")
def own_offsets(answer):
    tensors = {"a": torch.randn(4), "b": torch.randn(3), "c": torch.randn(5)}
    return answer(file_with(tensors, order=["c", "a", "b"]), "b").flatten(), tensors["b"]


@read_tensor.check("Does the tensor get the shape that the header gives it?")
def own_shape(answer):
    tensors = {"a": torch.randn(2), "b": torch.randn(2, 3, 5)}
    return answer(file_with(tensors), "b"), tensors["b"]


@read_tensor.check("Is the length read with its lowest byte first? Here the header has more than 255 bytes.")
def lowest_byte_first(answer):
    tensor = torch.randn(3)
    return answer(file_with({"a": tensor}, padding=300), "a"), tensor


@exercise("Fill the shards")
def fill_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Split the tensors of a model into shards, in the order in which they come.

    A shard takes tensors as long as they fit; the first that does not fit opens the next
    shard. A tensor that is larger than the limit by itself gets a shard of its own.

    Args:
        sizes: bytes of each tensor, by name, in the order of the model; at least one.
        limit: bytes that a shard may have.

    Returns:
        the names in each shard; no shard is empty.
    """
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


@fill_shards.check("Does one shard take everything that fits?")
def everything_fits(answer):
    return answer({"a": 10, "b": 20, "c": 30}, 100), [["a", "b", "c"]]


@fill_shards.check("May a shard be exactly as large as the limit?")
def exactly_full(answer):
    return answer({"a": 60, "b": 40, "c": 30}, 100), [["a", "b"], ["c"]]


@fill_shards.check("Does a new shard start empty, so that only its own tensors count?")
def starts_empty(answer):
    return answer({"a": 90, "b": 60, "c": 30, "d": 30}, 100), [["a"], ["b", "c"], ["d"]]


@fill_shards.check("Do tensors stay in their order, also where a later one would fill a gap?")
def order_stays(answer):
    return answer({"a": 70, "b": 60, "c": 20}, 100), [["a"], ["b", "c"]]


@fill_shards.check("Does a tensor above the limit get a shard, without an empty one before it?")
def too_large(answer):
    return answer({"a": 500, "b": 20, "c": 500}, 100), [["a"], ["b"], ["c"]]


@exercise("From Mistral's names to Hugging Face's")
def published_name(raw: str) -> str:
    """Translate the name of a tensor in Mistral's files into that of Hugging Face's.

    Args:
        raw: such as "layers.0.attention.wq.weight".

    Returns:
        such as "model.layers.0.self_attn.q_proj.weight".
    """
    words = {
        "tok_embeddings": "model.embed_tokens",
        "layers": "model.layers",
        "norm": "model.norm",
        "output": "lm_head",
        "attention": "self_attn",
        "wq": "q_proj",
        "wk": "k_proj",
        "wv": "v_proj",
        "wo": "o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward": "block_sparse_moe",
    }
    return ".".join(words.get(word, word) for word in raw.split("."))


@published_name.check("What are the embedding, the last norm and the output called?")
def around_the_layers(answer):
    found = [answer(name) for name in ("tok_embeddings.weight", "norm.weight", "output.weight")]
    return found, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@published_name.check("Do the four matrices of attention get their names, in the layer that they belong to?")
def attention(answer):
    found = [answer(f"layers.12.attention.w{letter}.weight") for letter in "qkvo"]
    return found, [f"model.layers.12.self_attn.{letter}_proj.weight" for letter in "qkvo"]


@published_name.check("Which norm comes before attention, and which before the experts?")
def norms(answer):
    found = [answer(f"layers.3.{norm}.weight") for norm in ("attention_norm", "ffn_norm")]
    return found, [f"model.layers.3.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]


@published_name.check("Do the router and the experts keep their own names below block_sparse_moe?")
def experts(answer):
    found = [answer(f"layers.0.feed_forward.{name}.weight") for name in ("gate", "experts.7.w1", "experts.0.w3")]
    moe = "model.layers.0.block_sparse_moe"
    return found, [f"{moe}.gate.weight", f"{moe}.experts.7.w1.weight", f"{moe}.experts.0.w3.weight"]
