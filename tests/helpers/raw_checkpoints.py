"""Checkpoints in each layout, and a Mixtral that runs on raw weights: code that shares nothing with the package's."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixtral_edu import MixtralConfig

LAYOUTS = ("published", "sharded", "fused", "raw", "raw in one pickle", "raw in shards", "stacked")


def params_of(config: MixtralConfig) -> dict:
    """A `params.json` in Mistral's own form."""
    return {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "head_dim": config.head_dim,
            "hidden_dim": config.intermediate_size, "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads, "norm_eps": config.rms_norm_eps, "vocab_size": config.vocab_size,
            "rope_theta": config.rope_theta, "sliding_window": config.sliding_window,
            "max_position_embeddings": config.max_position_embeddings,
            "moe": {"num_experts_per_tok": config.num_experts_per_tok, "num_experts": config.num_local_experts}}


def first_release_params_of(config: MixtralConfig) -> dict:
    """A `params.json` as the first release had it: the window as text, and no word on experts per token."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
             "num_local_experts", "rms_norm_eps", "vocab_size", "rope_theta", "head_dim", "max_position_embeddings")
    return {name: getattr(config, name) for name in names} | {"sliding_window": str(config.sliding_window)}


def raw_tensors(config: MixtralConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under Mistral's own names: the same numbers for every call."""
    D, F, V, E = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_local_experts
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = {"tok_embeddings": (V, D), "norm": (D,), "output": (V, D)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.attention.wq": (q, D), f"layers.{i}.attention.wk": (kv, D),
                   f"layers.{i}.attention.wv": (kv, D), f"layers.{i}.attention.wo": (D, q),
                   f"layers.{i}.attention_norm": (D,), f"layers.{i}.ffn_norm": (D,),
                   f"layers.{i}.feed_forward.gate": (E, D)}
        for e in range(E):
            expert = f"layers.{i}.feed_forward.experts.{e}"
            shapes |= {f"{expert}.w1": (F, D), f"{expert}.w2": (D, F), f"{expert}.w3": (F, D)}
    generator = torch.Generator().manual_seed(5)
    return {f"{name}.weight": torch.randn(shape, generator=generator).mul(0.3).to(dtype)
            for name, shape in shapes.items()}


def stacked(raw: dict[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    """The same as in the first release: a layer's experts in three tensors (E*F, D), w2 of each on its side."""
    tensors = {n.replace("feed_forward.gate", "block_sparse_moe.gate"): t for n, t in raw.items() if "experts" not in n}
    for i in range(config.num_hidden_layers):
        for w in ("w1", "w2", "w3"):
            parts = [raw[f"layers.{i}.feed_forward.experts.{e}.{w}.weight"] for e in range(config.num_local_experts)]
            tensors[f"layers.{i}.block_sparse_moe.{w}"] = torch.cat([p.T if w == "w2" else p for p in parts])
    return tensors


def published(raw: dict[str, Tensor], config: MixtralConfig) -> dict[str, Tensor]:
    """The same under Hugging Face's names, pairs of q and k Dh/2 rows apart."""
    words = {"tok_embeddings": "model.embed_tokens", "output": "lm_head", "norm.weight": "model.norm.weight"}
    parts = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
             "attention.wo": "self_attn.o_proj", "attention_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm", "feed_forward": "block_sparse_moe"}
    Dh, tensors = config.head_dim, {}
    for name, tensor in raw.items():
        if name.endswith(("wq.weight", "wk.weight")):
            starts = range(0, len(tensor), Dh)  # of heads
            tensor = tensor[[row for i in starts for first in (i, i + 1) for row in range(first, i + Dh, 2)]]
        if name.startswith("layers."):
            layer, part = name.removeprefix("layers.").split(".", 1)
            old = next(old for old in parts if part.startswith(old))
            name = f"model.layers.{layer}.{part.replace(old, parts[old])}"
        else:
            old = next(old for old in words if name.startswith(old))
            name = name.replace(old, words[old])
        tensors[name] = tensor
    return tensors


def write_checkpoint(
    folder: Path, layout: str, config: MixtralConfig, to_transformers, dtype: torch.dtype = torch.float32
) -> None:
    """Write `raw_tensors` and their settings in one of LAYOUTS."""
    folder.mkdir()
    raw = raw_tensors(config, dtype)
    if layout in ("published", "sharded", "fused"):
        tensors = published(raw, config)
        if layout == "fused":
            tensors = to_transformers(tensors)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    else:
        tensors = stacked(raw, config) if layout == "stacked" else raw
        params = first_release_params_of(config) if layout == "stacked" else params_of(config)
        (folder / "params.json").write_text(json.dumps(params))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    names, parts = list(tensors), {"sharded": 3, "raw in shards": 2, "stacked": 8}.get(layout, 1)
    shards = [{name: tensors[name] for name in names[i::parts]} for i in range(parts)]
    if layout in ("published", "fused"):
        save_file(tensors, folder / "model.safetensors")
    elif layout == "raw":
        save_file(tensors, folder / "consolidated.safetensors")
    elif layout in ("raw in one pickle", "stacked"):
        suffix = "pt" if layout == "stacked" else "pth"
        for i, shard in enumerate(shards):
            torch.save(shard, folder / f"consolidated.{i:02}.{suffix}")
    else:
        stem = "model" if layout == "sharded" else "consolidated"
        files = [f"{stem}-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, folder / file)
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def raw_logits(raw: dict[str, Tensor], params: dict, ids: Tensor) -> Tensor:
    """Mixtral on raw weights, in float64: neighbours turn as one complex number, tokens meet their experts singly.

    Takes ids (T,), returns logits (T, V).
    """
    T, Dh, group = len(ids), params["head_dim"], params["n_heads"] // params["n_kv_heads"]
    angles = torch.outer(torch.arange(T).double(), params["rope_theta"] ** (-torch.arange(0, Dh, 2).double() / Dh))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, Dh/2)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    visible = (distance >= 0) & (distance < (params["sliding_window"] or T))

    def weight(name: str) -> Tensor:
        return raw[f"{name}.weight"].double()

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weight(name)

    def turned(x: Tensor) -> Tensor:  # (T, H, Dh)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(2)

    x = weight("tok_embeddings")[ids]
    for i in range(params["n_layers"]):
        h = normed(x, f"layers.{i}.attention_norm")
        q, k, v = ((h @ weight(f"layers.{i}.attention.w{part}").T).unflatten(-1, (-1, Dh)) for part in "qkv")
        q, k, heads = turned(q), turned(k), []
        for head in range(params["n_heads"]):
            scores = (q[:, head] @ k[:, head // group].T / Dh**0.5).masked_fill(~visible, -torch.inf)
            heads.append(scores.softmax(-1) @ v[:, head // group])
        x = x + torch.cat(heads, -1) @ weight(f"layers.{i}.attention.wo").T
        h = normed(x, f"layers.{i}.ffn_norm")
        best, chosen = (h @ weight(f"layers.{i}.feed_forward.gate").T).topk(params["moe"]["num_experts_per_tok"])
        for t in range(T):
            for share, e in zip(best[t].softmax(-1), chosen[t].tolist(), strict=True):
                w1, w2, w3 = (weight(f"layers.{i}.feed_forward.experts.{e}.w{n}") for n in (1, 2, 3))
                x[t] += share * (w2 @ (nn.functional.silu(w1 @ h[t]) * (w3 @ h[t])))
    return normed(x, "norm") @ weight("output").T
