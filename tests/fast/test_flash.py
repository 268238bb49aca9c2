"""FlashAttention-2: what reaches a kernel, shown by a stand-in on a CPU; the real kernels where there is a GPU."""

import inspect
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mixtral_edu import MixtralForCausalLM, RollingKVCache
from mixtral_edu.api.visibility import GivenMask, packed_rows
from mixtral_edu.attention import ATTENTION_BACKENDS, attend_sdpa, eager_attention
from mixtral_edu.checkpoints import huggingface
from mixtral_edu.checkpoints.huggingface import StoredTensor
from mixtral_edu.fast import flash
from mixtral_edu.fast.attention import FastAttention, attend
from mixtral_edu.fast.flash import (
    FlashKernel,
    attend_by_torch,
    check_flash,
    flash_kernel,
    package_kernel,
    torch_kernel,
)
from mixtral_edu.masks import NO_POSITION, Visibility
from tolerances import FORWARD, assert_attention, unit

pytestmark = pytest.mark.numerics

attend_flash = partial(attend, "flash_attention_2")
B, DH = 3, 16
HALVES = (torch.float16, torch.bfloat16)
HEADS = [(4, 4), (4, 2), (4, 1), (6, 2)]
PADDINGS = ("none", "left", "right", "a row of padding", "only padding")
CASES = [
    pytest.param(9, 9, None, id="prefill"),
    pytest.param(9, 9, 3, id="prefill, window"),
    pytest.param(9, 9, 9, id="prefill, window as long as the text"),
    pytest.param(9, 9, 50, id="prefill, window longer than the text"),
    pytest.param(100, 100, 1, id="prefill, window of one"),
    pytest.param(4, 13, None, id="chunk"),
    pytest.param(4, 10, 7, id="chunk, window"),
    pytest.param(1, 13, None, id="decode"),
    pytest.param(1, 7, 7, id="decode, window"),
    pytest.param(1, 13, 7, id="decode, keys beyond the window"),
    pytest.param(1, 1, None, id="single token"),
]


class StandIn:
    """Computes what a kernel would, by the formula, one row at a time; demands what kernels do; remembers its calls."""

    def __init__(self):
        self.calls, self.dtypes = [], HALVES

    def attend(self, q, k, v, packing, window, dropout, scale) -> Tensor:
        self.calls.append(SimpleNamespace(q=q, k=k, v=v, packing=packing, window=window, dropout=dropout))
        Hq, Hkv, Dh = q.shape[-2], k.shape[-2], q.shape[-1]
        assert q.dtype == k.dtype == v.dtype and q.dtype in self.dtypes
        assert k.shape == v.shape and k.shape[-1] == Dh and Hq % Hkv == 0
        assert Dh % 8 == 0 and Dh <= 256, "head sizes that kernels are built for"
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "numbers of a head lie side by side"
        if packing is None:
            assert q.dim() == k.dim() == 4 and len(q) == len(k)
            most, rows = q.shape[1], zip(q, k, v, strict=True)
        else:
            assert q.dim() == k.dim() == 3
            queries = self.lengths(packing.query_starts, packing.most_queries, len(q))
            keys = self.lengths(packing.key_starts, packing.most_keys, len(k))
            assert len(queries) == len(keys)
            most, rows = packing.most_queries, zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
        assert window == (-1, -1) if most == 1 else window[1] == 0 and window[0] >= -1
        outs = [self.row(*row, window, dropout, scale) for row in rows]
        return torch.stack(outs) if packing is None else torch.cat(outs)

    @staticmethod
    def lengths(starts: Tensor, most: int, total: int) -> list[int]:
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts.dim() == 1
        lengths = starts.diff().tolist()
        assert starts[0] == 0 and starts[-1] == total and max(lengths) == most and type(most) is int
        assert min(lengths) > 0, "with one query a row, kernels count on exactly one in each"
        return lengths

    @staticmethod
    def row(q, k, v, window, dropout, scale) -> Tensor:
        """q (T, Hq, Dh), k and v (S, Hkv, Dh): the last query stands at the last key."""
        T, S, G = len(q), len(k), q.shape[1] // k.shape[1]
        distance = (torch.arange(T) + S - T)[:, None] - torch.arange(S)  # (T, S)
        seen = torch.ones(T, S, dtype=torch.bool)
        if window[0] >= 0:
            seen &= distance <= window[0]
        if window[1] >= 0:
            seen &= distance >= -window[1]
        assert seen.any(1).all(), "each query sees a key"
        k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
        scores = torch.einsum("thd,shd->hts", q.double(), k.double()) * scale
        weights = F.dropout(scores.masked_fill(~seen, -torch.inf).softmax(-1), dropout)
        return torch.einsum("hts,shd->thd", weights, v.double()).to(q.dtype)


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    """In the kernel's place, with the check of device and dtype switched off."""
    stand_in = StandIn()
    monkeypatch.setattr(flash, "flash_kernel", lambda: FlashKernel("a stand-in", stand_in.attend))
    monkeypatch.setattr("mixtral_edu.api.inputs.check_flash", lambda *_: None)
    return stand_in


def visibility_of(T: int, S: int, window: int | None, padding: str, device: str = "cpu") -> Visibility:
    """The last T of S positions look back at all S; a single one at keys in a ring's order, so not in that of time."""
    keys = torch.arange(S).repeat(B, 1)
    if padding == "left":
        keys -= torch.tensor([[0], [S // 3], [S - 1]])
    if padding == "right":  # the third row's last T columns, and maybe more: none of its queries is real
        for row, cut in ((1, S // 3), (2, max(T, S // 2))):
            keys[row, S - cut :] = NO_POSITION
    if padding == "holes":
        keys[1, 1::3] = keys[2, S // 2] = NO_POSITION
    if padding in ("a row of padding", "only padding"):
        keys[: 1 if padding == "a row of padding" else B] = NO_POSITION
    keys = keys.clamp(min=NO_POSITION)
    queries = keys[:, S - T :]
    if T == 1:
        keys = keys[:, torch.randperm(S)]
    rows = 1 if padding == "none" else B  # without padding all rows are alike
    return Visibility(queries[:rows].to(device), keys[:rows].to(device), window, padded=padding != "none")


def random_qkv(T: int, S: int, Hq: int = 4, Hkv: int = 2, Dh: int = DH, **options) -> list[Tensor]:
    shapes = (B, Hq, T, Dh), (B, Hkv, S, Dh), (B, Hkv, S, Dh)
    return [torch.randn(shape, **options).requires_grad_() for shape in shapes]


def taking_part(visibility: Visibility) -> tuple[Tensor, Tensor]:
    """By the mask: which queries see something (B, T), and which keys are seen by one (B, S)."""
    mask = visibility.mask[:, 0].expand(B, -1, -1)
    return mask.any(2), mask.any(1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("Hq", "Hkv"), HEADS)
@pytest.mark.parametrize(("T", "S", "window"), CASES)
def test_equals_eager_forward_and_backward_and_no_pad_reaches_the_kernel(stand_in, T, S, window, Hq, Hkv, padding):
    stand_in.dtypes = (torch.float32,)  # only so that the comparison is sharp
    visibility = visibility_of(T, S, window, padding)
    q, k, v = random_qkv(T, S, Hq, Hkv)
    expected, _ = eager_attention(q, k, v, visibility.mask)
    queries, keys = taking_part(visibility)
    with torch.no_grad():  # whatever takes no part would spoil the rest
        hidden = [q.masked_fill(~queries[:, None, :, None], torch.nan)]
        hidden += [x.masked_fill(~keys[:, None, :, None], torch.nan) for x in (k, v)]
        packed_only = padding != "none" or T == 1
    out = attend_flash(*(hidden if packed_only else (q, k, v)), visibility)
    assert_attention(out, expected, S)
    assert not out.transpose(1, 2)[~queries].any(), "who sees nothing gathers nothing"

    if padding == "only padding":
        assert not stand_in.calls
        return
    (call,) = stand_in.calls
    assert call.k.shape[-2] == Hkv, "no head is repeated"
    if packed_only:
        assert call.q.shape[:-2].numel() == queries.sum() and call.k.shape[:-2].numel() == keys.sum()
    assert call.window == ((-1, -1) if T == 1 else (window - 1 if window else -1, 0))
    direction = torch.randn_like(out)
    gradients = [
        torch.autograd.grad(out, (q, k, v), direction) for out in (attend_flash(q, k, v, visibility), expected)
    ]
    for flash_gradient, eager_gradient in zip(*gradients, strict=True):
        assert_close(flash_gradient, eager_gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("padding", PADDINGS[:3])
def test_half_precision_stays_what_it_is(stand_in, dtype, padding):
    visibility = visibility_of(6, 11, 4, padding)
    q, k, v = random_qkv(6, 11, dtype=dtype)
    out = attend_flash(q, k, v, visibility)
    expected, _ = eager_attention(q.float(), k.float(), v.float(), visibility.mask)
    assert out.dtype == dtype
    assert_close(out.float(), expected, rtol=unit(dtype), atol=2e-6)  # the stand-in rounds once


@pytest.mark.parametrize(("T", "S"), [(9, 9), (4, 13), (1, 13)])
@pytest.mark.parametrize("window", [None, 4, 13])
def test_convention_padding_inside_a_row_counts_for_the_window(stand_in, monkeypatch, T, S, window):
    """Packed, tokens on both sides of padding come nearer: such a batch takes another way, if a window can tell."""
    stand_in.dtypes = (torch.float32,)
    taken = []
    monkeypatch.setitem(ATTENTION_BACKENDS, "sdpa", lambda *given: taken.append(1) or attend_sdpa(*given))
    visibility = visibility_of(T, S, window, "holes")
    q, k, v = random_qkv(T, S)
    assert_attention(attend_flash(q, k, v, visibility), eager_attention(q, k, v, visibility.mask)[0], S)
    assert bool(taken) == (T > 1 and window == 4) and len(taken) + len(stand_in.calls) == 1


@pytest.mark.parametrize(("T", "S", "window"), [case for case in CASES if "beyond" not in case.id])
def test_a_mask_that_hides_nothing_costs_nothing(stand_in, T, S, window):
    stand_in.dtypes = (torch.float32,)
    plain = visibility_of(T, S, window, "none")
    rows = [p.expand(B, -1) for p in (plain.query_positions, plain.key_positions)]
    q, k, v = random_qkv(T, S)
    outs = [attend_flash(q, k, v, visibility) for visibility in (plain, Visibility(*rows, window, padded=True))]
    assert [call.packing for call in stand_in.calls] == [None, None]
    assert_close(*outs)


@pytest.mark.parametrize("Dh", [2, 14, 16, 50, 256])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_other_head_sizes_are_filled_up(stand_in, Dh, padding):
    stand_in.dtypes = (torch.float32,)
    visibility = visibility_of(5, 9, 4, padding)
    q, k, v = random_qkv(5, 9, Dh=Dh)
    out = attend_flash(q, k, v, visibility)
    assert_attention(out, eager_attention(q, k, v, visibility.mask)[0], keys=9)
    assert stand_in.calls[0].q.shape[-1] == -(-Dh // 8) * 8
    assert (stand_in.calls[0].q.data_ptr() == q.data_ptr()) == (Dh % 8 == 0 and padding == "none"), "else no copy"


@pytest.mark.parametrize("padding", ["none", "left", "holes"])
def test_dropout_acts_in_training_only(stand_in, make_config, padding):
    stand_in.dtypes = (torch.float32,)
    config = make_config(attn_implementation="flash_attention_2", attention_dropout=0.5)
    layer = FastAttention(config, layer_idx=0)
    T = 20
    inputs = torch.randn(B, T, 44), torch.ones(1, T, 14), torch.zeros(1, T, 14), visibility_of(T, T, 7, padding)
    expected = layer.eval()(*inputs)[0]
    assert_close(layer(*inputs)[0], expected)
    layer.train()
    average = torch.stack([layer(*inputs)[0] for _ in range(50)]).mean(0)
    assert not torch.allclose(average, expected)
    assert (average - expected).norm() < 0.4 * expected.norm(), "kept weights are scaled up: unbiased"
    assert [call.dropout for call in stand_in.calls] == ([] if padding == "holes" else [0.0] * 2 + [0.5] * 50)


TEXTS = [[12, 8], [20], [1, 2, 17]]  # lengths of the texts that are packed into each row


def packed_visibility(window: int | None, device: str = "cpu") -> Visibility:
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in TEXTS])
    return packed_rows(position_ids.to(device), window)


@pytest.mark.parametrize("window", [None, 1, 4, 40])
def test_packed_texts_reach_the_kernel_as_rows_of_their_own(stand_in, window):
    """With a window of one each token is such a row."""
    stand_in.dtypes = (torch.float32,)
    T, visibility = 20, packed_visibility(window)
    q, k, v = random_qkv(T, T)
    out, expected = attend_flash(q, k, v, visibility), eager_attention(q, k, v, visibility.mask)[0]
    assert_attention(out, expected, T)
    (call,) = stand_in.calls
    lengths = [1] * 60 if window == 1 else sum(TEXTS, [])
    assert call.packing.query_starts.diff().tolist() == call.packing.key_starts.diff().tolist() == lengths
    assert call.packing.most_queries == call.packing.most_keys == max(lengths)
    direction = torch.randn_like(out)
    gradients = [torch.autograd.grad(one, (q, k, v), direction) for one in (out, expected)]
    for flash_gradient, eager_gradient in zip(*gradients, strict=True):
        assert_close(flash_gradient, eager_gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("T", [1, 9])
def test_a_mask_of_ones_own_is_never_given_to_a_kernel_that_would_ignore_it(stand_in, heads, T):
    q, k, v = random_qkv(T, 9)
    mask = torch.rand(B, heads, T, 9) < 0.5
    positions = torch.arange(9)[None]
    visibility = GivenMask(positions[:, -T:], positions, given=mask)
    assert_attention(attend_flash(q, k, v, visibility), eager_attention(q, k, v, mask)[0], keys=9)
    assert not stand_in.calls


def test_models_with_such_masks_and_texts_equal_eager(stand_in, make_config):
    stand_in.dtypes = (torch.float32,)
    eager, flash_model = two_models(make_config, sliding_window=4)
    ids, mask = torch.randint(0, 101, (B, 12)), torch.rand(B, 1, 12, 12) < 0.5
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    for call in ({"attention_mask": mask}, {"position_ids": positions, "use_cache": False}):
        assert_close(flash_model(ids, **call).logits, eager(ids, **call).logits, **FORWARD)
    assert len(stand_in.calls) == 3, "one per layer, and none for the mask"


def two_models(make_config, dtype: torch.dtype = torch.float32, **changes) -> list[MixtralForCausalLM]:
    """The same weights under eager attention and FlashAttention-2."""
    models = [
        MixtralForCausalLM(make_config(initializer_range=0.2, attn_implementation=name, **changes)).to(dtype).eval()
        for name in ("eager", "flash_attention_2")
    ]
    models[1].load_state_dict(models[0].state_dict())
    return models


def mask_of(padding: str, T: int) -> Tensor | None:
    mask = torch.ones(B, T, dtype=torch.long)
    if padding == "left":
        mask[0, :3] = mask[1, :8] = 0
    if padding == "right":
        mask[0, -3:] = mask[1, 4:] = 0
    if padding == "holes":
        mask[0, 3:5] = mask[1, 7:17] = mask[2, 30] = 0
    return None if padding == "none" else mask


def in_chunks(model: MixtralForCausalLM, ids: Tensor, mask: Tensor | None, chunks: list[int]) -> Tensor:
    cache, logits, start = RollingKVCache(model.config, len(ids), device=ids.device, dtype=model.dtype), [], 0
    for size in chunks:
        new = slice(start, start + size)
        out = model(ids[:, new], None if mask is None else mask[:, new], past_key_values=cache)
        logits.append(out.logits)
        start += size
    return torch.cat(logits, 1)


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_model_in_chunks_and_on_the_ring_equals_eager(stand_in, make_config, window, padding, gradients):
    """The ring of five slots comes round more than eight times, six of them one token a step."""
    stand_in.dtypes = (torch.float32,)
    eager, flash_model = two_models(make_config, sliding_window=window)
    chunks = [9, *[1] * 30, 4, 1, 1]
    ids, mask = torch.randint(0, 101, (B, sum(chunks))), mask_of(padding, sum(chunks))
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask, use_cache=False).logits
        assert_close(flash_model(ids, attention_mask=mask, use_cache=False).logits[real], expected[real], **FORWARD)
    with nullcontext() if gradients else torch.no_grad():
        logits = in_chunks(flash_model, ids, mask, chunks)
    assert_close(logits[real], expected[real], **FORWARD)
    assert logits.isfinite().all()
    assert all(call.k.shape[-2] == 2 for call in stand_in.calls)
    if padding == "none":
        assert all(call.packing is None for call in stand_in.calls)
        assert len(stand_in.calls) == 3 * (1 + len(chunks))


@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("window", [None, 5])
def test_gradients_of_a_model_equal_eager(stand_in, make_config, window, padding):
    stand_in.dtypes = (torch.float32,)
    ids, mask = torch.randint(0, 101, (B, 40)), mask_of(padding, 40)
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    models = two_models(make_config, sliding_window=window)
    for model in models:
        model(ids, attention_mask=mask, labels=labels, output_router_logits=True).loss.backward()
    for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert_close(found.grad, expected.grad, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("window", [None, 5])
def test_generation_of_padded_rows_that_stop_one_by_one_equals_eager(stand_in, make_config, window):
    stand_in.dtypes = (torch.float32,)
    for seed in range(20):  # until one row stops early and one never
        torch.manual_seed(seed)
        eager, flash_model = two_models(make_config, sliding_window=window)
        ids, mask = torch.randint(3, 101, (B, 12)), mask_of("left", 12)
        options = {"attention_mask": mask, "max_new_tokens": 25, "pad_token_id": 0}
        free = eager.generate(ids, **options, eos_token_id=None)
        stops = [int(free[0, 12 + 4]), int(free[1, 12 + 9])]
        expected = eager.generate(ids, **options, eos_token_id=stops)
        if (expected[0, -10:] == 0).all() and (expected[2] != 0).all():
            break
    else:
        pytest.fail("no rows that stop at different times")
    assert flash_model.generate(ids, **options, eos_token_id=stops).equal(expected)
    assert any(call.packing is not None and len(call.packing.query_starts) == 2 + 1 for call in stand_in.calls)


def test_a_model_in_bfloat16_hands_the_kernel_bfloat16(stand_in, make_config):
    """With as many experts as are chosen, rounding cannot choose others."""
    eager, flash_model = two_models(make_config, torch.bfloat16, num_local_experts=2, sliding_window=5)
    ids, mask = torch.randint(0, 101, (B, 20)), mask_of("left", 20)
    with torch.no_grad():
        logits = in_chunks(flash_model, ids, mask, [12, *[1] * 8])
        rounded = eager(ids, attention_mask=mask).logits
        expected = eager.float()(ids, attention_mask=mask).logits
    real = mask.bool()
    difference, usual = ((x - expected)[real].norm() for x in (logits, rounded))
    assert {call.q.dtype for call in stand_in.calls} == {torch.bfloat16}
    roundings = 3 * 20  # layers, and results of each on a number's way, all of which might err in the same direction
    assert difference < 2 * usual and usual < roundings * 2**-9 * expected[real].norm()


GPU, CPU = torch.device("cuda"), torch.device("cpu")
REFUSED = {
    "a CPU": ((CPU, torch.bfloat16, 64), "needs a CUDA device, and the model is on cpu.*'sdpa' or device='cuda'"),
    "float32": ((GPU, torch.float32, 64), "the model is in float32.*dtype=torch.bfloat16 or .*'sdpa'"),
    "float64": ((GPU, torch.float64, 64), "the model is in float64"),
    "large heads": ((GPU, torch.float16, 264), "heads of at most 256, and head_dim=264.*'sdpa'"),
    "an old GPU": ((GPU, torch.bfloat16, 64), r"8.0 \(Ampere\) or later, and cuda has 7.5.*'sdpa'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_with_what_to_choose_instead(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if "old" in name else (9, 0))
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"attn_implementation='flash_attention_2'.*{message}"):
        check_flash(*arguments)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_can_run_is_not_refused(monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(flash, "flash_kernel", lambda: FlashKernel("a stand-in", None))
    check_flash(GPU, dtype, 256)


@pytest.mark.parametrize(
    ("device", "dtype", "attentions", "message"),
    [
        (CPU, "bfloat16", False, "needs a CUDA device, and the model is on cpu"),
        (GPU, "float32", False, "the model is in float32"),
        (GPU, None, False, "the model is in float32"),
        (GPU, "bfloat16", True, "output_attentions=True: .*'flash_attention_2'.*attn_implementation='eager'"),
    ],
)
def test_loading_refuses_before_memory_is_taken(tmp_path, monkeypatch, make_config, device, dtype, attentions, message):
    MixtralForCausalLM(make_config(output_attentions=attentions)).save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface, "choose_device", lambda *_: device)
    monkeypatch.setattr(huggingface, "require_memory", lambda *_: pytest.fail("looked for memory"))
    monkeypatch.setattr(StoredTensor, "read", lambda *_: pytest.fail("read a tensor"))
    with pytest.raises(ValueError, match=message):
        MixtralForCausalLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2", dtype=dtype)


def test_a_model_that_was_moved_refuses_before_the_cache_is_touched(make_config):
    model = MixtralForCausalLM(make_config(attn_implementation="flash_attention_2")).bfloat16()
    cache = RollingKVCache(model.config, 1, dtype=torch.bfloat16)
    ids = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="flash_attention_2.*cpu.*'sdpa'"):
        model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="output_attentions=True.*'flash_attention_2'.*'eager'"):
        model(ids, past_key_values=cache, output_attentions=True)
    assert cache.get_seq_length() == 0 and not cache.half_written and (cache.positions == NO_POSITION).all()


@pytest.fixture
def no_package(monkeypatch):
    """No flash-attn, and a PyTorch with a kernel of its own; what was found before is forgotten."""
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    flash_kernel.cache_clear()
    yield
    flash_kernel.cache_clear()


def test_without_the_package_it_is_pytorchs_own(no_package):
    assert flash_kernel().name == f"PyTorch {torch.__version__}'s own FlashAttention-2"
    assert flash_kernel() is flash_kernel()


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_package_that_does_not_import_is_passed_over_and_named(no_package, monkeypatch, tmp_path, error):
    (tmp_path / "flash_attn.py").write_text(f"raise {error}('undefined symbol: _ZN3c10')\n")
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.syspath_prepend(tmp_path)
    assert "own FlashAttention-2 (flash-attn is installed but does not import: undefined sym" in flash_kernel().name


@pytest.mark.parametrize("lack", ["no CUDA", "for AMD"])
def test_no_kernel_at_all_is_refused_with_both_reasons(no_package, monkeypatch, lack):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    if lack == "no CUDA":
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    else:
        monkeypatch.setattr(torch.version, "hip", "7.0")
    message = r"finds no kernel: flash-attn does not import .*PyTorch .* was built without.*'sdpa'"
    for asked in (flash_kernel, lambda: check_flash(GPU, torch.bfloat16, 64)):
        with pytest.raises(ValueError, match=message):
            asked()


def test_importing_this_package_does_not_import_flash_attn(tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise SystemExit('imported')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", "from mixtral_edu import MixtralForCausalLM"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


class PublishedPackage(ModuleType):
    """The two functions of flash-attn 2.8.3 with their published signatures, over the stand-in."""

    __version__ = "2.8.3"

    def __init__(self, stand_in: StandIn):
        super().__init__("flash_attn")
        self.stand_in = stand_in

    def flash_attn_func(
        self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return self.attend(q, k, v, None, window_size, causal, dropout_p, softmax_scale)

    def flash_attn_varlen_func(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        packing = SimpleNamespace(query_starts=cu_seqlens_q, key_starts=cu_seqlens_k,
                                  most_queries=max_seqlen_q, most_keys=max_seqlen_k)  # fmt: skip
        return self.attend(q, k, v, packing, window_size, causal, dropout_p, softmax_scale)

    def attend(self, q, k, v, packing, window, causal, *rest) -> Tensor:
        assert causal == (window[1] == 0), "as its examples have it"
        return self.stand_in.attend(q, k, v, packing, window, *rest)


class PublishedOperator(TorchDispatchMode):
    """PyTorch's operator, whose arguments are told apart by the names in its own schema, over the stand-in."""

    def __init__(self, stand_in: StandIn):
        super().__init__()
        self.stand_in = stand_in

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten._flash_attention_forward.default:
            return func(*args, **kwargs or {})
        names = [argument.name for argument in func._schema.arguments]
        given = SimpleNamespace(**dict(zip(names, args, strict=False)) | kwargs)
        q, k, v = given.query, given.key, given.value
        packing = None
        if given.cum_seq_q is not None:
            packing = SimpleNamespace(query_starts=given.cum_seq_q, key_starts=given.cum_seq_k,
                                      most_queries=given.max_q, most_keys=given.max_k)  # fmt: skip
        else:
            assert (given.max_q, given.max_k) == (q.shape[1], k.shape[1])
        assert not given.return_debug_mask
        window = given.window_size_left, given.window_size_right
        assert given.is_causal == (window == (-1, 0)), "as PyTorch's public functions call it"
        out = self.stand_in.attend(q, k, v, packing, window, given.dropout_p, given.scale)
        return out, *(q.new_empty(0) for _ in range(4))


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize(("T", "S", "window"), CASES)
@pytest.mark.parametrize("whose", ["flash-attn", "PyTorch"])
def test_each_kernel_is_called_as_its_signature_says(no_package, monkeypatch, whose, T, S, window, padding):
    stand_in = StandIn()
    if whose == "flash-attn":
        monkeypatch.setitem(sys.modules, "flash_attn", PublishedPackage(stand_in))
    visibility = visibility_of(T, S, window, padding)
    with torch.no_grad(), nullcontext() if whose == "flash-attn" else PublishedOperator(stand_in):
        q, k, v = random_qkv(T, S, dtype=torch.bfloat16)
        out = attend_flash(q, k, v, visibility, dropout=0.0)
        attend_flash(q, k, v, visibility, dropout=0.125)
    assert whose in flash_kernel().name
    assert [call.dropout for call in stand_in.calls] == [0.0, 0.125]
    expected, _ = eager_attention(q.float(), k.float(), v.float(), visibility.mask)
    assert_close(out.float(), expected, rtol=unit(torch.bfloat16), atol=2e-6)  # the stand-in rounds once


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (6, 0)])
def test_pytorch_takes_the_call_and_differentiates_it(packed, window):
    """On tensors without content, which need no GPU: the operator's shapes and its derivative are real."""
    queries, keys = ((7,), (12,)) if packed else ((2, 5), (2, 9))
    q = torch.empty(*queries, 4, 16, device="meta", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.empty(*keys, 2, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in "kv")
    starts = torch.empty(3, dtype=torch.int32, device="meta")
    packing = SimpleNamespace(query_starts=starts, key_starts=starts, most_queries=5, most_keys=9) if packed else None
    out = attend_by_torch(q, k, v, packing, window, 0.1, 0.25)
    assert out.shape == q.shape and out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]


# From here on the real kernels, each where it is there, against eager attention in float32.

KERNELS = {"flash-attn": package_kernel, "PyTorch": torch_kernel}
CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(params=KERNELS)
def real_kernel(request, monkeypatch) -> FlashKernel:
    try:
        kernel = KERNELS[request.param]()
    except (ImportError, OSError, ValueError) as error:
        pytest.skip(f"{request.param}: {error}")
    monkeypatch.setattr(flash, "flash_kernel", lambda: kernel)
    return kernel


def assert_as_exact_as_eager(visibility: Visibility, T: int, S: int, Hq: int, Hkv: int, Dh: int, dtype: torch.dtype):
    """Output and gradients are as near to float32 as those of eager attention in the same half precision, or nearer."""
    half = random_qkv(T, S, Hq, Hkv, Dh, device="cuda", dtype=dtype)
    full = [x.detach().float().requires_grad_() for x in half]
    direction = torch.randn(B, Hq, T, Dh, device="cuda", dtype=dtype)
    results = []
    for inputs, run in (
        (full, lambda *qkv: eager_attention(*qkv, visibility.mask)[0]),
        (half, lambda *qkv: eager_attention(*qkv, visibility.mask)[0]),
        (half, lambda *qkv: attend_flash(*qkv, visibility)),
    ):
        out = run(*inputs)
        connected = out.requires_grad
        gradients = torch.autograd.grad(out, inputs, direction.to(out.dtype)) if connected else ()
        results.append((out, *gradients))
    for name, expected, usual, found in zip(("out", "q", "k", "v"), *results, strict=False):
        assert found.dtype == dtype and found.isfinite().all()
        error, usual_error = (found.float() - expected).abs().max(), (usual.float() - expected).abs().max()
        assert error <= 3 * usual_error + CLOSE[dtype], f"{name}: {error} where eager is off by {usual_error}"
    queries, _ = taking_part(visibility)
    assert not results[2][0].transpose(1, 2)[~queries].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("T", "S", "window"),
    [*CASES, pytest.param(300, 300, 130, id="long prefill, window"), pytest.param(200, 329, 130, id="long chunk")],
)
def test_a_real_kernel_equals_eager_forward_and_backward(real_kernel, T, S, window, dtype):
    for padding in (*PADDINGS, "holes"):
        visibility = visibility_of(T, S, window, padding, "cuda")
        for Hq, Hkv in HEADS:
            assert_as_exact_as_eager(visibility, T, S, Hq, Hkv, 64, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 4, 40])
def test_a_real_kernel_keeps_packed_texts_apart(real_kernel, window):
    for Hq, Hkv in HEADS:
        assert_as_exact_as_eager(packed_visibility(window, "cuda"), 20, 20, Hq, Hkv, 64, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("Dh", [2, 8, 14, 32, 40, 64, 80, 96, 128, 160, 192, 224, 256])
def test_a_real_kernel_takes_every_head_size(real_kernel, Dh):
    for T in (40, 1):
        for padding in ("none", "left"):
            visibility = visibility_of(T, 60, 21, padding, "cuda")
            assert_as_exact_as_eager(visibility, T, 60, 4, 2, Dh, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["none", "left"])
def test_a_real_kernels_dropout_is_unbiased(real_kernel, padding):
    visibility = visibility_of(32, 32, 20, padding, "cuda")
    q, k, v = random_qkv(32, 32, device="cuda", dtype=torch.bfloat16)
    expected = attend_flash(q, k, v, visibility).float()
    dropped = [attend_flash(q, k, v, visibility, 0.5).float() for _ in range(400)]
    assert (dropped[0] - dropped[1]).norm() > 0.1 * expected.norm()
    assert (torch.stack(dropped).mean(0) - expected).norm() < 0.15 * expected.norm()
    assert all(g.isfinite().all() for g in torch.autograd.grad(dropped[0].sum(), (q, k, v)))


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["none", "left"])
def test_a_real_kernel_never_holds_the_scores(real_kernel, padding):
    T = 16_384
    visibility = visibility_of(T, T, 4096, padding, "cuda")
    with torch.no_grad():
        q, k, v = random_qkv(T, T, 8, 2, 64, device="cuda", dtype=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attend_flash(q, k, v, visibility)
        used = torch.cuda.max_memory_allocated() - before
    assert used < B * 8 * T * T * q.element_size() / 20


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("window", [None, 5, 64])
@torch.no_grad()
def test_a_model_on_a_real_kernel_equals_eager(real_kernel, make_config, window, padding):
    models = two_models(make_config, torch.bfloat16, num_local_experts=2, sliding_window=window)
    eager, flash_model = (model.cuda() for model in models)
    chunks = [9, *[1] * 30, 4, 1, 1]
    ids, mask = torch.randint(0, 101, (B, sum(chunks)), device="cuda"), mask_of(padding, sum(chunks))
    mask = torch.ones_like(ids) if mask is None else mask.cuda()
    outs = [in_chunks(flash_model, ids, mask, chunks), flash_model(ids, attention_mask=mask).logits]
    rounded = eager(ids, attention_mask=mask).logits
    expected = eager.float()(ids, attention_mask=mask).logits
    usual = (rounded - expected)[mask.bool()].abs().max()
    assert 0 < usual < 0.2 * expected.std()
    for logits in outs:
        assert (logits - expected)[mask.bool()].abs().max() < 2 * usual + 0.01


@pytest.mark.gpu
def test_greedy_generation_on_a_real_kernel_takes_what_eager_ranks_first(real_kernel, make_config):
    """To rounding: each id that it takes is within a hair of the best one in float32 for the same text."""
    models = two_models(make_config, torch.bfloat16, num_local_experts=2, sliding_window=5)
    eager, flash_model = (model.cuda() for model in models)
    ids, mask = torch.randint(3, 101, (B, 12), device="cuda"), mask_of("left", 12).cuda()
    out = flash_model.generate(ids, attention_mask=mask, max_new_tokens=60, eos_token_id=None)
    whole_mask = torch.cat((mask, torch.ones_like(out[:, 12:])), 1)
    with torch.no_grad():
        rounded = eager(out, attention_mask=whole_mask).logits[:, 11:-1]
        expected = eager.float()(out, attention_mask=whole_mask).logits[:, 11:-1]
    usual = (rounded - expected).abs().max()
    taken = expected.gather(2, out[:, 12:, None])[..., 0]
    assert (expected.amax(2) - taken).max() <= 4 * usual and 0 < usual < 0.2 * expected.std()


@pytest.mark.gpu
def test_on_a_gpu_half_precision_loads_and_float32_is_refused():
    load = MixtralForCausalLM.from_pretrained
    options = {"device": "cuda", "attn_implementation": "flash_attention_2"}
    model = load("tiny", dtype="bfloat16", **options)
    ids = torch.tensor([[1, 5, 9]], device="cuda")
    assert model.generate(ids, max_new_tokens=4, eos_token_id=None).shape == (1, 7)
    with pytest.raises(ValueError, match="float32.*dtype=torch.bfloat16"):
        load("tiny", dtype="float32", **options)
    with pytest.raises(ValueError, match="the model is in float32"):
        model.float()(ids)


@pytest.mark.gpu
def test_the_installed_packages_signature_is_the_published_one():
    flash_attn = pytest.importorskip("flash_attn", exc_type=ImportError)
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        published = list(inspect.signature(getattr(PublishedPackage, name)).parameters)[1:]
        assert list(inspect.signature(getattr(flash_attn, name)).parameters)[: len(published)] == published
