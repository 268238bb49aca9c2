"""The reader's functions in attention: rotation, mask, formula, and the bookkeeping of the cache."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.attention import GroupedQueryAttention, eager_attention
from mixtral_edu.cache import CacheStep
from mixtral_edu.exercises.own.functions import Own
from mixtral_edu.masks import NO_POSITION, Visibility
from mixtral_edu.rope import apply_rotary

NO_WINDOW = 1 << 30  # a window that reaches further than any text


class OwnAttention(GroupedQueryAttention):
    """Attention with the reader's rotation, mask and formula.

    Of the formulas, `grouped_attention` has no mask, so it serves a single new token, which sees all keys that it is
    given. `one_head` has one mask for all rows, in which each query sees a key: a prompt without padding.
    `masked_softmax` takes any mask. If one is missing, the next in this order stands in where it can.
    """

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visibility: Visibility,
        cache_step: CacheStep | None = None, output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        B, T, _ = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = cos.expand(B, -1, -1), sin.expand(B, -1, -1)
        q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        if cache_step is not None:
            k, v = cache_step.update(self.layer_idx, k, v)
        if output_attentions:
            out, weights = eager_attention(q, k, v, visibility.mask)
        else:
            out, weights = self.attend(q, k, v, visibility, self.config.attention_dropout * self.training), None
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1)), weights

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if "apply_rotary" not in self.own:
            return apply_rotary(x, cos, sin)
        return self.own("apply_rotary", x, cos, sin, like=x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout: float) -> Tensor:
        own, T = self.own, q.shape[2]
        mask_parts = {"band_mask", "padded_window_mask", "chunk_keys"} & own.keys()
        formulas = {"masked_softmax", "one_head", "grouped_attention"} & own.keys()
        rule_of_its_own = type(visibility) is not Visibility  # such as a mask that the caller gave
        if rule_of_its_own or not (mask_parts or formulas):
            return super().attend(q, k, v, visibility, dropout)
        mask = visibility.once("own mask", lambda: own_mask(own, visibility))  # (B or 1, T, S)
        if T == 1 and "grouped_attention" in own:
            return _by_rows(partial(own, "grouped_attention"), q, k, v, mask)
        if len(mask) == 1 and mask.any(-1).all() and "one_head" in own:
            heads, group = q.flatten(0, 1), q.shape[1] // k.shape[1]  # (B*Hq, T, Dh)
            k, v = (each.repeat_interleave(group, 1).flatten(0, 1) for each in (k, v))  # (B*Hq, S, Dh)
            return own("one_head", heads, k, v, mask[0], like=heads).view(q.shape)
        if "masked_softmax" not in own:
            return eager_attention(q, k, v, mask[:, None], dropout)[0]
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))  # (B, Hq, S, Dh)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B, Hq, T, S)
        return own("masked_softmax", scores, mask[:, None], like=scores) @ v


def _by_rows(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention for one query per row, which gets exactly the keys that it may see; 0 where that is none."""
    B = len(q)
    rows = [slice(0, B)] if len(mask) == 1 else [slice(row, row + 1) for row in range(B)]
    out = torch.zeros_like(q)
    for row, seen in zip(rows, mask[:, 0], strict=True):
        if seen.any():
            out[row] = attention(q[row], k[row][:, :, seen], v[row][:, :, seen], like=q[row])
    return out


def own_mask(own: Own, visibility: Visibility) -> Tensor:
    """The mask (B or 1, T, S) by the reader's functions, each where its exercise applies, or else the textbook's."""
    queries, keys, W = visibility.query_positions, visibility.key_positions, visibility.window or NO_WINDOW
    T, S = queries.shape[1], keys.shape[1]
    like = queries.new_empty(T, S, dtype=torch.bool)
    if S > T > 1 and not visibility.padded and "chunk_keys" in own:
        seen = int(queries[0, 0])
        return own("chunk_keys", seen, T, W, like=(queries.new_empty(S), like))[1][None]
    if S == T and "padded_window_mask" in own and (visibility.padded or "band_mask" not in own):
        real = (queries != NO_POSITION).long()  # (B or 1, T)
        return own("padded_window_mask", real, W, like=like.expand(len(real), T, T))
    if "band_mask" in own:
        masks = [own("band_mask", *row, W, like=like) for row in zip(queries, keys, strict=True)]
        return torch.stack(masks) & (keys != NO_POSITION)[:, None]
    return visibility.mask[:, 0]


class OwnStep(CacheStep):
    """A step through the cache with the reader's bookkeeping; positions stay the textbook's, so that mistakes show."""

    own = Own()  # while the textbook sets the step up

    def __init__(self, cache: "OwnCache", num_tokens: int, real: Tensor | None):
        super().__init__(cache, num_tokens, real)
        self.own = cache.own
        self._columns = self.visibility.query_positions.expand(len(cache.positions), -1)  # (B, T)
        W = cache.window
        if self._in_place and W and not self.padded and "slots_after" in self.own:
            held = self.own("slots_after", cache.seen + 1, W, like=[0] * W)
            held = cache.positions.new_tensor([held])  # (1, W)
            self.visibility = Visibility(self.visibility.query_positions, held, W, padded=True)
            self._readable = W
        elif not self._in_place and self._older_slots.numel() and "time_order" in self.own:
            self._older_slots = torch.stack([self._ordered(row) for row in cache.positions])

    def _ordered(self, positions: Tensor) -> Tensor:
        """The older slots of one row, as many as all rows have; empty ones fill up a shorter row."""
        held, empty = positions[positions >= 0], (positions < 0).nonzero()[:, 0]
        order = self.own("time_order", positions, like=held)
        return torch.cat((empty, order))[-self._older_slots.shape[1] :]

    def _write(self, stored: Tensor, new: Tensor) -> None:
        if "write_chunk" not in self.own:
            return super()._write(stored, new)
        ring, chunk = (each.transpose(1, 2).flatten(2) for each in (stored, new.detach().to(stored.dtype)))
        ring = self.own("write_chunk", ring, chunk, self._columns, like=ring)  # (B, W, H*Dh)
        stored.copy_(ring.unflatten(2, stored.shape[1::2]).transpose(1, 2))


class OwnCache(RollingKVCache):
    """A cache whose steps write and read with the reader's functions, where there are some."""

    def step(self, num_tokens: int, real: Tensor | None = None) -> CacheStep:
        super().step(num_tokens, real)  # checks, and makes room
        return OwnStep(self, num_tokens, real)
