"""A mask of one's own, (B, 1, T, S), against transformers': in every model, with a cache, and where it is refused."""

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

import mixtral_edu
from mixtral_edu import RollingKVCache
from mixtral_edu.api.visibility import GivenMask
from mixtral_edu.fast import engine
from mixtral_edu.masks import Visibility
from mixtral_edu.moe import load_balancing_loss
from tolerances import FORWARD, chain_error

pytestmark = pytest.mark.numerics

B, T, HQ, PAD = 2, 11, 4, 3
LEAST = torch.finfo(torch.float32).min
CLASSES = (
    "MixtralModel",
    "MixtralForCausalLM",
    "MixtralForSequenceClassification",
    "MixtralForTokenClassification",
    "MixtralForQuestionAnswering",
)


def random_model(make_config, name: str = "MixtralForCausalLM", with_engine: bool = True, **changes):
    """A model in evaluation mode whose layers really change their input; its window is shorter than the text."""
    options = {"pad_token_id": PAD, "num_labels": 4, "initializer_range": 0.2, "sliding_window": 5} | changes
    model = getattr(mixtral_edu, name)(make_config(**options)).eval()
    return model if with_engine else engine.remove(model)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(PAD + 1, 101, shape or (B, T))


def random_mask(*shape: int) -> Tensor:
    """Half of all pairs, also of later and of far keys; each query sees itself, at the end of the keys."""
    mask = torch.rand(shape or (B, 1, T, T)) < 0.5
    mask.diagonal(mask.shape[3] - mask.shape[2], 2, 3)[:] = True
    return mask


def added(mask: Tensor, hides: float = LEAST) -> Tensor:
    """The mask in the form that is added to scores."""
    return torch.zeros(mask.shape).masked_fill(~mask, hides)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("shape", [(B, 1, T, T), (1, 1, T, T), (B, HQ, T, T), (1, HQ, T, T)], ids=str)
def test_a_mask_replaces_the_causal_rule_and_the_window(
    make_config, transformers_twin, to_transformers, name, backend, with_engine, shape
):
    ours = random_model(make_config, name, with_engine, attn_implementation=backend)
    theirs = transformers_twin(ours)
    ids, mask = random_ids(), random_mask(*shape)
    out, expected = ours(ids, attention_mask=mask), theirs(ids, attention_mask=added(mask))
    first, first_expected = out[0], expected[0]
    assert_close(first, first_expected, **FORWARD)
    for one in out, expected:
        sum(x.square().mean() for x in one.to_tuple() if isinstance(x, Tensor)).backward()
    found = to_transformers({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in ours.named_parameters()})
    for n, p in theirs.named_parameters():
        allowed = chain_error(2000) * max(1.0, p.grad.abs().max().item())
        assert_close(found[n], p.grad, rtol=0, atol=allowed, msg=lambda text, n=n: f"{n}: {text}")
    plain = ours(ids)[0]
    assert (plain - first).abs().max() > 0.1, "it matters"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("with_engine", [True, False])
def test_booleans_and_numbers_that_are_added_say_the_same(make_config, transformers_twin, backend, with_engine):
    """transformers' eager attention adds booleans to scores as 0 and 1; its sdpa takes them as they are."""
    ours = random_model(make_config, with_engine=with_engine, attn_implementation=backend)
    ids, mask = random_ids(), random_mask()
    expected = ours(ids, mask).logits
    forms = [added(mask, hides) for hides in (-torch.inf, LEAST, -1e4, -1e9)]
    forms += [added(mask, -torch.inf).half(), added(mask, -1e4).bfloat16(), added(mask, LEAST).double()]
    for form in forms:
        assert_close(ours(ids, form).logits, expected, rtol=0, atol=0)
    theirs = transformers_twin(ours)
    assert (theirs(ids, attention_mask=mask).logits - expected).abs().max() > 0.1
    theirs.set_attn_implementation("sdpa")
    assert_close(theirs(ids, attention_mask=mask).logits, expected, **FORWARD)


@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_causal_rule_given_as_a_mask_changes_nothing(make_config, backend, with_engine):
    """In a text so long that the engine cuts windowed attention into blocks, where it may."""
    ours = random_model(make_config, with_engine=with_engine, attn_implementation=backend)
    ids, columns = random_ids(B, 150), torch.arange(150)
    distance = columns[:, None] - columns
    windowed, all_before = (distance >= 0) & (distance < 5), distance >= 0
    assert_close(ours(ids, windowed[None, None]).logits, ours(ids).logits, **FORWARD)
    long = ours(ids, all_before[None, None]).logits
    ours.config.sliding_window = None
    assert_close(long, ours(ids).logits, **FORWARD)


@pytest.mark.parametrize("with_engine", [True, False])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_sees_nothing_gathers_zeros_and_is_finite(make_config, backend, dtype, with_engine):
    ours = random_model(make_config, with_engine=with_engine, attn_implementation=backend).to(dtype)
    ids, mask = random_ids(), random_mask()
    mask[0, :, 4] = mask[1] = False
    gathered = []
    for layer in ours.model.layers:
        layer.self_attn.register_forward_hook(lambda module, args, out: gathered.append(out[0]))
    for form in (mask, added(mask, -torch.inf)):
        logits = ours(ids, form).logits
        logits.square().mean().backward()
        assert logits.isfinite().all() and all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    assert len(gathered) == 6 and not any(x[0, 4].any() or x[1].any() for x in gathered)


@pytest.mark.parametrize("shape", [(B, 1, T, T), (B, HQ, T, T)], ids=str)
def test_attention_weights_are_those_of_transformers(make_config, transformers_twin, shape):
    ours = random_model(make_config, attn_implementation="eager")
    ids, mask = random_ids(), random_mask(*shape)
    found = ours(ids, mask, output_attentions=True).attentions
    expected = transformers_twin(ours)(ids, attention_mask=added(mask), output_attentions=True).attentions
    for weights, wanted in zip(found, expected, strict=True):
        assert_close(weights, wanted, rtol=0, atol=chain_error(1000))
        assert not weights[~mask.expand_as(weights)].any()


def test_positions_are_columns_unless_they_are_given(make_config, transformers_twin):
    """Branches of one beginning, say, whose tokens stand at the same places: what they may see is the mask's part."""
    ours = random_model(make_config)
    theirs = transformers_twin(ours)
    ids, mask = random_ids(1, 6), torch.ones(6, 6, dtype=torch.bool).tril()
    mask[4:, 2:4] = False  # 0 1 | 2 3 and 0 1 | 4 5
    branches = torch.tensor([[0, 1, 2, 3, 2, 3]])
    for positions in (None, torch.arange(6)[None], branches):
        call = {"input_ids": ids, "position_ids": positions}
        logits = ours(**call, attention_mask=mask[None, None]).logits
        assert_close(logits, theirs(**call, attention_mask=added(mask[None, None])).logits, **FORWARD)
    second = ids[:, [0, 1, 4, 5]]
    ours.config.sliding_window = None
    assert_close(logits[:, 4:], ours(second).logits[:, 2:], **FORWARD)


@pytest.mark.parametrize("window", [None, 11, 7])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [1, HQ])
@pytest.mark.parametrize("gradients", [True, False])
def test_with_a_cache_columns_are_all_tokens_so_far(make_config, transformers_twin, window, backend, heads, gradients):
    ours = random_model(make_config, sliding_window=window, attn_implementation=backend)
    theirs = transformers_twin(ours)
    ids, mask = random_ids(), random_mask(B, heads, T, T).tril()
    cache, cache_there, found, expected = RollingKVCache(ours.config, B), transformers.DynamicCache(), [], []
    chunks = [slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7)]
    chunks += [] if window == 7 else [slice(7, 10), slice(10, 11)]
    with torch.set_grad_enabled(gradients):
        for new in chunks:
            part = mask[:, :, new, : new.stop]
            found.append(ours(ids[:, new], part, past_key_values=cache).logits)
            expected.append(theirs(ids[:, new], added(part), None, cache_there).logits)
    assert_close(torch.cat(found, 1), torch.cat(expected, 1), **FORWARD)
    end = chunks[-1].stop
    whole = ours(ids[:, :end], mask[:, :, :end, :end], use_cache=False).logits
    assert_close(torch.cat(found, 1), whole, **FORWARD)


@torch.no_grad()
def test_after_a_mask_of_ones_own_a_text_goes_on_as_any(make_config):
    """The first tokens see each other both ways, as a prefix may; what comes after them is causal."""
    ours = random_model(make_config, sliding_window=None)
    ids, mask = random_ids(), torch.ones(T, T, dtype=torch.bool).tril()
    mask[:4, :4] = True
    cache = ours(ids[:, :4], mask[None, None, :4, :4], use_cache=True).cache
    rest = [ours(ids[:, new], cache=cache).logits for new in (slice(4, 9), slice(9, 10), slice(10, T))]
    assert_close(torch.cat(rest, 1), ours(ids, mask[None, None]).logits[:, 4:], **FORWARD)


@pytest.mark.parametrize("window", [None, 5])
def test_padding_that_a_cache_holds_cannot_be_hidden_later(make_config, window):
    model = random_model(make_config, sliding_window=window)
    ids, mask = random_ids(), torch.ones(B, T, dtype=torch.long)
    mask[0, :2] = 0
    cache = model(ids[:, :-1], use_cache=True).cache
    before = cache.view()
    with pytest.raises(ValueError, match="^attention_mask shows 8 of the first 10 columns in row 0, .* holds 10"):
        model(ids[:, -1:], mask, cache=cache)
    assert cache.seen == T - 1 and torch.equal(cache.view().keys, before.keys)
    padded = model(ids[:, :-1], mask[:, :-1], use_cache=True).cache
    assert_close(model(ids[:, -1:], mask, cache=padded).logits, model(ids, mask).logits[:, -1:], **FORWARD)
    mask[0, 2:5] = 0  # more than the padding, also of what the window still holds
    padded = model(ids[:, :4], torch.tensor([[0, 0, 1, 1], [1] * 4]), use_cache=True).cache
    with pytest.raises(ValueError, match="shows 0 of the first 4 columns in row 0, .* holds 2"):
        model(ids[:, 4:5], mask[:, :5], cache=padded)


def test_a_cache_whose_keys_are_not_the_masks_columns_is_refused(make_config):
    ours = random_model(make_config)
    ids = random_ids()
    padding = torch.ones(B, T, dtype=torch.long)
    padding[0, :3] = 0
    padded_model = random_model(make_config, sliding_window=None)
    for cache, model, why in (
        (ours(ids).cache, ours, "window of 5, which is full"),
        (ours(ids[:, :5]).cache, ours, "window of 5, which is full"),
        (padded_model(ids, padding).cache, padded_model, "padding"),
    ):
        before, columns = cache.view(), cache.get_seq_length() + 1
        with pytest.raises(ValueError, match=rf"attention_mask.*cache.*{why}.* {columns} columns.*two dimensions"):
            model(ids[:, :1], random_mask(1, 1, 1, columns), past_key_values=cache)
        assert all(a.equal(b) for a, b in zip(before, cache.view(), strict=True)) and not cache.half_written


REFUSED = {
    "a bias": (torch.full((B, 1, T, T), 0.5), r"attention_mask.*holds 0\.5.*0 where.*-inf"),
    "ones and zeros": (torch.ones(B, 1, T, T), r"attention_mask.*holds 1\.0"),
    "a slope": (-torch.arange(T * T).view(1, 1, T, T).float(), r"attention_mask.*holds -1\.0"),
    "nan": (torch.full((B, 1, T, T), torch.nan), "attention_mask.*holds nan"),
    "no heads": (random_mask()[:, 0], rf"attention_mask.*\(2, 11, 11\).*\({B} or 1, {HQ} or 1, 11, 11\)"),
    "key heads": (random_mask(B, 2, T, T), rf"attention_mask.*\(2, 2, 11, 11\).*\({B} or 1, {HQ} or 1, 11, 11\)"),
    "other rows": (random_mask(3, 1, T, T), r"attention_mask.*\(3, 1, 11, 11\)"),
    "few keys": (
        torch.ones(B, 1, T, T - 1).bool(),
        r"attention_mask.*\(2, 1, 11, 10\).*11, 11\): rows, query heads",
    ),
    "few queries": (torch.ones(B, 1, T - 1, T).bool(), r"attention_mask.*\(2, 1, 10, 11\)"),
    "five dimensions": (torch.ones(1, B, 1, T, T).bool(), r"attention_mask.*\(1, 2, 1, 11, 11\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_masks_are_refused_by_name(make_config, what):
    mask, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        random_model(make_config)(random_ids(), mask)


def test_whole_numbers_are_refused_as_they_could_mean_both(make_config):
    with pytest.raises(TypeError, match="attention_mask.*torch.int64.*torch.bool.*-inf"):
        random_model(make_config)(random_ids(), torch.ones(B, 1, T, T, dtype=torch.long))


def test_a_classifier_reads_off_the_last_id_that_is_no_padding_as_without_a_mask(make_config, transformers_twin):
    ours = random_model(make_config, "MixtralForSequenceClassification")
    theirs = transformers_twin(ours)
    ids, mask = random_ids(), random_mask()
    ids[0, -3:] = ids[1, :2] = PAD
    assert_close(ours(ids, mask).logits, theirs(ids, attention_mask=added(mask)).logits, **FORWARD)
    ends_elsewhere = ids.clone()
    ends_elsewhere[0, -3:] = PAD + 1
    assert (ours(ends_elsewhere, mask).logits - ours(ids, mask).logits)[0].abs().max() > 0.1

    without = random_model(make_config, "MixtralForSequenceClassification", pad_token_id=None)
    one = without(ids[:1], mask[:1]).logits
    assert_close(one, transformers_twin(without)(ids[:1], attention_mask=added(mask[:1])).logits, **FORWARD)
    with pytest.raises(ValueError, match=r"attention_mask has four dimensions and config.pad_token_id.*\(2, 11\)"):
        without(ids, mask)
    with pytest.raises(ValueError, match="attention_mask has four dimensions and inputs_embeds"):
        ours(inputs_embeds=ours.model.embed_tokens(ids), attention_mask=mask)


def test_the_auxiliary_loss_counts_every_token_where_transformers_raises(make_config, transformers_twin):
    """Such a mask does not say which tokens are padding; transformers takes it for one that does."""
    ours = random_model(make_config)
    ids, mask = random_ids(), random_mask()
    out = ours(ids, mask, labels=ids, output_router_logits=True)
    assert_close(out.aux_loss, load_balancing_loss(out.router_logits, 5, 2))
    with pytest.raises(RuntimeError, match="size of tensor"):
        transformers_twin(ours)(ids, attention_mask=added(mask), output_router_logits=True)


def test_a_mask_is_made_for_a_call_that_gives_one_and_for_no_other(make_config):
    ours, seen = random_model(make_config), []
    ours.model.layers[0].self_attn.register_forward_pre_hook(lambda module, args: seen.append(type(args[3])))
    ids, padding = random_ids(), torch.ones(B, T, dtype=torch.long)
    padding[0, -4:] = 0
    for mask in None, padding, random_mask():
        ours(ids, mask)
    assert seen == [Visibility, Visibility, GivenMask]
