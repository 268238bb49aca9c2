"""Grouped-query attention: each token compares its query with the keys it may see, and mixes their values.

    weights = softmax(q kᵀ / √Dh) over the keys that the mask allows          out = weights v

Each group of G = Hq / Hkv query heads shares one key-value head, which makes the KV cache G times smaller. Query heads
h·G … h·G + G - 1 look at key-value head h. In `eager_attention` their queries become the rows of one product.

Source: Ainslie et al. 2023, arXiv 2305.13245 (grouped queries); Mistral 7B, arXiv 2310.06825 (sliding window).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.cache import CacheStep
from mixtral_edu.config import Config
from mixtral_edu.masks import Visibility
from mixtral_edu.rope import apply_rotary


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the formula step by step, with all T·S weights of a head in memory: attention's quadratic cost.

    Args:
        q: (B, Hq, T, Dh).
        k, v: (B, Hkv, S, Dh).
        mask: (B or 1, Hq or 1, T, S), True where a query may attend; None if each query may see each key.
        dropout: share of weights that is set to 0 at random; the others grow to make up for it.

    Returns:
        The output (B, Hq, T, Dh) and the weights before dropout (B, Hq, T, S). Both are 0 for a query that sees no key.
    """
    B, Hq, T, Dh = q.shape
    Hkv, S = k.shape[1:3]
    q = q.reshape(B, Hkv, -1, Dh) * Dh**-0.5  # (B, Hkv, G*T, Dh); scaling scores would round them a second time
    scores = (q @ k.transpose(2, 3)).view(B, Hq, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # not -inf: a row without keys would be nan
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)  # a row without keys had 1/S everywhere
    dropped = F.dropout(weights, dropout)
    out = dropped.view(B, Hkv, -1, S) @ v  # (B, Hkv, G*T, Dh)
    return out.view(B, Hq, T, Dh), weights


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Compute the same with PyTorch's fused kernel, which need not hold all scores; shapes as in `eager_attention`."""
    B, Hq, T, Dh = q.shape
    if T == 1 and (mask is None or mask.shape[1] == 1):  # a group's queries become G rows: no key is repeated
        out = F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, Dh), k, v, mask, dropout)
        return out.reshape(B, Hq, T, Dh)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=True)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float = 0.0) -> Tensor:
    """Backend "eager": `eager_attention`, with the mask that the positions give."""
    return eager_attention(q, k, v, None if visibility.all_visible else visibility.mask, dropout)[0]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float = 0.0) -> Tensor:
    """Backend "sdpa": `sdpa_attention`, with a mask only where one is needed, as kernels are faster without."""
    if visibility.all_visible:
        return sdpa_attention(q, k, v, None, dropout)
    if visibility.plain_causal:
        return sdpa_attention(q, k, v, None, dropout, is_causal=True)
    return sdpa_attention(q, k, v, visibility.mask, dropout)


ATTENTION_BACKENDS: dict[str, Callable[..., Tensor]] = {"eager": attend_eager, "sdpa": attend_sdpa}


class GroupedQueryAttention(nn.Module):
    """Self-attention of one layer: project, rotate, attend, project back."""

    def __init__(self, config: Config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        D, Dh = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(D, config.num_attention_heads * Dh, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * Dh, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * Dh, D, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visibility: Visibility,
        cache_step: CacheStep | None = None, output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Let each token gather information from those it may see.

        Args:
            x: (B, T, D), normalised; `cos` and `sin` (B or 1, T, Dh) are the rotary tables of the tokens' positions.
            visibility: which of the S keys each of the T queries may see.
            cache_step: stores the new keys and values and adds the older ones; None without a cache.
            output_attentions: return the weights too, which only `eager_attention` keeps.

        Returns:
            (B, T, D), and the weights (B, Hq, T, S) or None.
        """
        B, T, _ = x.shape
        Dh = self.config.head_dim
        q = self.q_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hq, T, Dh)
        k = self.k_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hkv, T, Dh)
        v = self.v_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hkv, T, Dh)
        both = apply_rotary(torch.cat((q, k), dim=1), cos, sin)  # (B, Hq + Hkv, T, Dh), in one call
        q, k = both.split((q.shape[1], k.shape[1]), dim=1)
        if cache_step is not None:
            k, v = cache_step.update(self.layer_idx, k, v)  # (B, Hkv, S, Dh)
        dropout = self.config.attention_dropout if self.training else 0.0
        if output_attentions:
            out, weights = eager_attention(q, k, v, visibility.mask, dropout)
        else:
            out, weights = self.attend(q, k, v, visibility, dropout), None
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1)), weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float) -> Tensor:
        """Run the backend that `config.attn_implementation` names; shapes as in `eager_attention`."""
        return ATTENTION_BACKENDS[self.config.attn_implementation](q, k, v, visibility, dropout)
