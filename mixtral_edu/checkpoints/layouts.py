"""Where the four checkpoint layouts store each tensor: under which name, in which part, and in which order of numbers.

| layout    | one expert's w1 in layer 0                            | found in                                         |
|-----------|-------------------------------------------------------|--------------------------------------------------|
| published | `model.layers.0.block_sparse_moe.experts.5.w1.weight` | Hugging Face checkpoints, and this package       |
| fused     | part of `model.layers.0.mlp.experts.gate_up_proj`     | models of transformers 5, in memory              |
| raw       | `layers.0.feed_forward.experts.5.w1.weight`           | Mistral's own files                              |
| stacked   | part of `layers.0.block_sparse_moe.w1`                | Mistral's own files of the first Mixtral release |

Both of Mistral's own layouts store q and k for a rotary embedding that pairs neighbouring numbers
(`to_half_split`).
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixtral_edu.config import Config

_RAW_WORDS = {  # published: raw
    "model.embed_tokens": "tok_embeddings",
    "model.layers": "layers",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe": "feed_forward",
}
# What shows a size in the files of any layout: the config's fields, which tensors, which axis, and what that must be.
_SIZES: tuple[tuple[str, str, int, Callable[[Config], int]], ...] = (
    ("vocab_size", r"(embed_tokens|tok_embeddings)\.weight", 0, lambda c: c.vocab_size),
    ("hidden_size", r"(embed_tokens|tok_embeddings)\.weight", 1, lambda c: c.hidden_size),
    ("num_local_experts", r"\.gate\.weight", 0, lambda c: c.num_local_experts),
    ("intermediate_size", r"\.experts\.\d+\.w1\.weight\w*", 0, lambda c: c.intermediate_size),
    ("2 * intermediate_size", r"\.experts\.gate_up_proj", 1, lambda c: 2 * c.intermediate_size),
    ("num_local_experts * intermediate_size", r"\.block_sparse_moe\.w1", 0,
     lambda c: c.num_local_experts * c.intermediate_size),
    ("num_attention_heads * head_dim", r"\.(q_proj|wq)\.weight\w*", 0, lambda c: c.num_attention_heads * c.head_dim),
    ("num_key_value_heads * head_dim", r"\.(k_proj|wk)\.weight\w*", 0, lambda c: c.num_key_value_heads * c.head_dim),
)  # fmt: skip
_EXPERT = re.compile(r"(.+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where to find a published tensor: `change(stored[part])`, with `name` and `shape` of the stored tensor."""

    name: str
    shape: Shape
    part: tuple[int | slice, ...] = ()
    change: Callable[[Tensor], Tensor] | None = None


def to_half_split(matrix: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a raw Mistral q or k matrix (H*Dh, D), so that pairs lie Dh/2 apart instead of together.

    Of each head, the first partners of all pairs come first, then the second ones. Scores do not change, as q and k are
    reordered alike.

    >>> to_half_split(torch.arange(12)[:, None], num_heads=2).flatten().tolist()
    [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    """
    pairs = matrix.unflatten(0, (num_heads, -1, 2))  # (H, Dh/2, 2, D)
    return pairs.transpose(1, 2).flatten(0, 2)  # (H, Dh/2, 2, D) -> (H, 2, Dh/2, D) -> (H*Dh, D)


def to_interleaved(matrix: Tensor, num_heads: int) -> Tensor:
    """Undo `to_half_split`: reorder the rows of a Hugging Face q or k matrix (H*Dh, D), so that pairs lie together.

    >>> to_interleaved(torch.tensor([[0, 2, 4, 1, 3, 5]]).T, num_heads=1).flatten().tolist()
    [0, 1, 2, 3, 4, 5]
    """
    halves = matrix.unflatten(0, (num_heads, 2, -1))  # (H, 2, Dh/2, D)
    return halves.transpose(1, 2).flatten(0, 2)  # (H, 2, Dh/2, D) -> (H, Dh/2, 2, D) -> (H*Dh, D)


def raw_name(published: str) -> str:
    """Return the name that Mistral's own files give a tensor.

    >>> raw_name("model.layers.0.self_attn.q_proj.weight")
    'layers.0.attention.wq.weight'
    """
    for word, raw in _RAW_WORDS.items():
        published = published.replace(word, raw)
    return published


def rotated_heads(published: str, config: Config) -> int | None:
    """Return how many heads of this matrix a rotary embedding rotates: Hq for q, Hkv for k, None for any other."""
    if published.endswith("self_attn.q_proj.weight"):
        return config.num_attention_heads
    if published.endswith("self_attn.k_proj.weight"):
        return config.num_key_value_heads
    return None


def layout_of(names: Iterable[str], is_raw: bool) -> str:
    """Return the layout that these stored names belong to. `is_raw` says whether the files are Mistral's own."""
    names = list(names)
    fits = (name for name, layout in LAYOUTS.items() if layout.is_raw == is_raw and layout.shows_in(names))
    return next(fits)  # without a mark the last one does


def check_sizes(config: Config, tensors: Iterable[tuple[str, Shape]], settings: Path) -> None:
    """Compare a config with the stored tensors before anything is built: building 2**31 layers would take forever.

    If the tensors of a kind agree with one another but not with the config, the config is wrong. A single tensor that
    does not fit is left to the caller, who names it.

    Args:
        config: the config that `settings` holds.
        tensors: name and shape of all tensors in the files, in any layout.
        settings: the settings file, named in the message.

    Raises:
        ValueError: a size is not that of the files; the message names its field, or the fields whose product it is.
    """
    shapes = {name: shape for name, shape in tensors if 0 not in shape}  # empty tensors prove no size
    layers, experts = _numbers(shapes, "layers"), _numbers(shapes, "experts")
    L, E = config.num_hidden_layers, config.num_local_experts
    if L > len(layers) or L < len(layers) == max(layers) + 1:
        raise ValueError(f"{settings}: num_hidden_layers={L} but the files hold {len(layers)} layers")
    routed = [shape[0] for name, shape in shapes.items() if name.endswith(".gate.weight")]
    if E > (most := max(routed, default=len(experts))):
        raise ValueError(f"{settings}: num_local_experts={E} but the files hold {most} experts")
    for fields, pattern, axis, expected in _SIZES:
        same = {name: shape for name, shape in shapes.items() if len(shape) > axis and re.search(f"{pattern}$", name)}
        sizes = {shape[axis] for shape in same.values()}
        if len(sizes) == 1 and sizes != {expected(config)}:
            name, shape = next(iter(same.items()))
            raise ValueError(f"{settings}: {fields}={expected(config)} but the files hold {name} {shape}")


def _numbers(names: Iterable[str], word: str) -> set[int]:
    """Return the numbers that follow `word` in tensor names."""
    return {int(match[1]) for name in names if (match := re.search(rf"(?:^|\.){word}\.(\d{{1,9}})\.", name))}


def find_places(layout: str, config: Config) -> dict[str, Place]:
    """Return, by published name, where `layout` ("published", "fused", "raw", "stacked") stores each tensor.

    >>> config = Config.mixtral_8x7b()
    >>> find_places("stacked", config)["model.layers.0.block_sparse_moe.experts.1.w1.weight"]
    Place(name='layers.0.block_sparse_moe.w1', shape=(114688, 4096), part=(slice(14336, 28672, None),), change=None)
    """
    find = LAYOUTS[layout].find
    return {name: find(name, shape, config) for name, shape in config.weight_shapes().items()}


def _in_published(name: str, shape: Shape, config: Config) -> Place:
    return Place(name, shape)


def _in_fused(name: str, shape: Shape, config: Config) -> Place:
    expert = _EXPERT.fullmatch(name)
    if not expert:
        return Place(name.replace("block_sparse_moe", "mlp"), shape)
    layer, expert_idx, matrix = expert[1], int(expert[2]), expert[3]
    E, D, F = config.num_local_experts, config.hidden_size, config.intermediate_size
    if matrix == "w2":
        return Place(f"{layer}.mlp.experts.down_proj", (E, D, F), (expert_idx,))
    rows = slice(0, F) if matrix == "w1" else slice(F, 2 * F)
    return Place(f"{layer}.mlp.experts.gate_up_proj", (E, 2 * F, D), (expert_idx, rows))


def _in_raw(name: str, shape: Shape, config: Config) -> Place:
    heads = rotated_heads(name, config)
    return Place(raw_name(name), shape, change=partial(to_half_split, num_heads=heads) if heads else None)


def _in_stacked(name: str, shape: Shape, config: Config) -> Place:
    expert = _EXPERT.fullmatch(name)
    if not expert:
        place = _in_raw(name, shape, config)
        return place._replace(name=place.name.replace("feed_forward", "block_sparse_moe"))
    layer, expert_idx, matrix = raw_name(expert[1]), int(expert[2]), expert[3]
    E, D, F = config.num_local_experts, config.hidden_size, config.intermediate_size
    rows = slice(expert_idx * F, (expert_idx + 1) * F)  # also for w2, which stores each expert's matrix transposed
    return Place(f"{layer}.block_sparse_moe.{matrix}", (E * F, D), (rows,), torch.t if matrix == "w2" else None)


class Layout(NamedTuple):
    """How a layout is read and known: `find(name, shape, config)` is a published tensor's `Place`.

    `is_raw` says whether the files are Mistral's own, and `mark` matches names that only this layout has.
    """

    find: Callable[[str, Shape, Config], Place]
    is_raw: bool
    mark: str | None

    def shows_in(self, names: list[str]) -> bool:
        """Whether tensors of these names may be stored so."""
        return self.mark is None or any(re.search(self.mark, name) for name in names)


# The layouts, those with a mark first.
LAYOUTS = {
    "stacked": Layout(_in_stacked, is_raw=True, mark=r"\.block_sparse_moe\.w[123]$"),
    "fused": Layout(_in_fused, is_raw=False, mark=r"\.mlp\.experts\."),
    "raw": Layout(_in_raw, is_raw=True, mark=None),
    "published": Layout(_in_published, is_raw=False, mark=None),
}
