"""Grouped-query attention: each token gathers from the tokens that it may see.

    weights = softmax(q kᵀ / √Dh) over the keys that the mask shows          out = weights v

Hq query heads share Hkv key-value heads: query heads h·G … h·G + G - 1 (G = Hq / Hkv) look at key-value head h. Keys
and values are not copied per query head; the G query heads of a group become more rows of one product instead.

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
    """Attention as its formula says, each step in the open.

    Args:
        q: (B, Hq, T, Dh).
        k, v: (B, Hkv, S, Dh).
        mask: (B or 1, 1, T, S), True where a query may attend; None if everywhere.
        dropout: share of weights that is dropped.

    Returns:
        The output (B, Hq, T, Dh) and the weights (B, Hq, T, S), zero in rows that may attend nowhere.
    """
    B, Hq, T, Dh = q.shape
    Hkv, S = k.shape[1:3]
    q = q.reshape(B, Hkv, -1, Dh) * Dh**-0.5  # (B, Hkv, G*T, Dh); scaled scores would be rounded twice in bfloat16
    scores = (q @ k.transpose(2, 3)).view(B, Hq, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # not -inf: a row without keys stays finite
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    dropped = F.dropout(weights, dropout)
    out = dropped.view(B, Hkv, -1, S) @ v  # (B, Hkv, G*T, Dh)
    return out.view(B, Hq, T, Dh), weights


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """The same through PyTorch's fused kernel, which need not hold all scores; shapes as in `eager_attention`."""
    B, Hq, T, Dh = q.shape
    if T == 1:  # the queries of a group see the same keys: rows of one query, and nothing to repeat
        out = F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, Dh), k, v, mask, dropout)
        return out.reshape(B, Hq, T, Dh)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=True)


def attend_eager(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float = 0.0) -> Tensor:
    """Backend "eager": `eager_attention` where the positions say who sees whom."""
    return eager_attention(q, k, v, None if visibility.all_visible else visibility.mask, dropout)[0]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float = 0.0) -> Tensor:
    """Backend "sdpa": `sdpa_attention`, with a mask only where one is needed."""
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
        """Let each token gather from those it may see.

        Args:
            x: (B, T, D), normalised, with rotary tables `cos`, `sin` (B or 1, T, Dh) of the tokens' positions.
            visibility: between the T queries and the S keys.
            cache_step: stores the new keys and values and brings the older ones.
            output_attentions: return the weights too, which takes the eager form.

        Returns:
            (B, T, D), and the weights (B, Hq, T, S) or None.
        """
        B, T, _ = x.shape
        Dh = self.config.head_dim
        q = self.q_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hq, T, Dh)
        k = self.k_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hkv, T, Dh)
        v = self.v_proj(x).view(B, T, -1, Dh).transpose(1, 2)  # (B, Hkv, T, Dh)
        both = apply_rotary(torch.cat((q, k), dim=1), cos, sin)  # the heads of q and k at once
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
        """Attention through the backend that the config names; shapes as in `eager_attention`."""
        return ATTENTION_BACKENDS[self.config.attn_implementation](q, k, v, visibility, dropout)
