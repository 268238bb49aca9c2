"""README's table "Coming from transformers": each row is made here, by a test that does it in both packages."""

import copy
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import transformers

import mixtral_edu
from generation_checks import random_model
from mixtral_edu import MixtralConfig, MixtralForCausalLM, MixtralForSequenceClassification, MixtralTokenizer
from tokenizer_samples import llama_tokenizer
from tolerances import assert_forward

README = Path(__file__).resolve().parents[1] / "README.md"
SIZES = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)  # fmt: skip
IDS = torch.arange(3, 12)[None]
DIFFERENCES: list[tuple[str, str, Callable[..., None]]] = []


def difference(there: str, here: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a row: what one writes or sees in transformers, what it is here, and the test that shows both."""

    def add(test: Callable[..., None]) -> Callable[..., None]:
        DIFFERENCES.append((there, here, test))
        return test

    return add


@pytest.fixture(scope="module")
def ours() -> MixtralForCausalLM:
    return random_model(MixtralConfig(**SIZES))


@pytest.fixture(scope="module")
def theirs(ours, transformers_twin) -> transformers.MixtralForCausalLM:
    return transformers_twin(ours)


@pytest.fixture(scope="module")
def tokenizer() -> MixtralTokenizer:
    return MixtralTokenizer.from_pretrained("tiny")


@pytest.fixture
def llama(tokenizer) -> transformers.LlamaTokenizer:
    return llama_tokenizer(tokenizer)


# The rows, in the order of the table


@difference("`AutoModelForCausalLM`, `AutoTokenizer`", "`MixtralForCausalLM`, `MixtralTokenizer`")
def test_names():
    assert not any(name.startswith("Auto") for name in mixtral_edu.__all__)
    assert {"MixtralForCausalLM", "MixtralTokenizer"} <= set(mixtral_edu.__all__)


@difference(
    "`generate(inputs=)`, `tokenizer(text=)`, `decode(token_ids=)`, `apply_chat_template(conversation=)`",
    "`input_ids=`, `texts=`, `ids=`, `messages=`",
)
def test_names_of_arguments(ours, tokenizer, llama):
    assert llama(text="a").input_ids == tokenizer(texts="a").input_ids
    assert llama.decode(token_ids=[1, 300]) == tokenizer.decode(ids=[1, 300])
    for call, name in ((ours.generate, "input_ids"), (tokenizer.apply_chat_template, "messages")):
        assert name in inspect.signature(call).parameters
    with pytest.raises(TypeError, match="'text'"):
        tokenizer(text="a")
    with pytest.raises(TypeError, match="'input_ids'"):
        ours.generate(inputs=IDS, max_new_tokens=1)


@difference(
    "many other methods, such as `compute_transition_scores`, `set_output_embeddings`, `tokenizer.add_tokens`",
    "an AttributeError",
)
def test_methods_that_are_not_there(ours, theirs, tokenizer, llama):
    names = ("compute_transition_scores", "set_output_embeddings", "add_tokens", "convert_tokens_to_string")
    for name in names:
        assert hasattr(theirs, name) or hasattr(llama, name)
        assert not hasattr(ours, name) and not hasattr(tokenizer, name)


@difference(
    "`model(…)` ignores arguments that it does not know, such as `token_type_ids`", "an error that names the argument"
)
def test_unknown_arguments_of_a_pass(ours, theirs):
    assert theirs(IDS, token_type_ids=IDS).logits.shape == (1, 9, 48)
    with pytest.raises(TypeError, match="token_type_ids"):
        ours(IDS, token_type_ids=IDS)


@difference(
    "any field of the config is an argument of `from_pretrained`, such as `id2label=`",
    "only those that its help lists; assign others afterwards, as in `model.config.id2label = …`",
)
def test_fields_of_the_config(tmp_path):
    config = MixtralConfig(**SIZES, num_labels=2)
    MixtralForSequenceClassification(config).save_pretrained(tmp_path)
    names = {0: "bad", 1: "good"}
    theirs = transformers.MixtralForSequenceClassification.from_pretrained(tmp_path, id2label=names)
    ours = MixtralForSequenceClassification.from_pretrained(tmp_path)
    ours.config.id2label = names
    assert ours.config.id2label == theirs.config.id2label == names
    with pytest.raises(TypeError, match="id2label"):
        MixtralForSequenceClassification.from_pretrained(tmp_path, id2label=names)


@difference("`quantization_config=BitsAndBytesConfig(load_in_4bit=True)`", '`quantization="int4"`')
def test_quantization():
    theirs = transformers.BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(ValueError, match='must be quantization="int4"'):
        MixtralForCausalLM.from_pretrained("tiny", quantization_config=theirs)
    assert MixtralForCausalLM.from_pretrained("tiny", quantization="int4").device.type == "cpu"


@difference(
    "`convert_mixtral_weights_to_hf.py --input_dir A --output_dir B`", "`python -m mixtral_edu convert A B --to hf`"
)
def test_conversion():
    command = [sys.executable, "-m", "mixtral_edu", "convert", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "SOURCE" in help_text and "--to" in help_text


@difference("a model's name on the hub is downloaded", "nothing is downloaded; use `hf download`")
def test_downloads():
    with pytest.raises(OSError, match="hf download"):
        MixtralForCausalLM.from_pretrained("mistralai/Mixtral-8x7B-v0.1")


@difference("scaled rotary embeddings (`rope_scaling`, `rope_type`)", "an error that says why: Mixtral has none")
def test_scaled_rotary_embeddings():
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert transformers.MixtralConfig(rope_parameters=scaled).rope_parameters["factor"] == 2.0
    with pytest.raises(ValueError, match="rope_parameters"):
        MixtralConfig(rope_parameters=scaled)


@difference(
    'experts are `"eager"`, `"batched_mm"` or `"grouped_mm"`',
    '`"reference"`, `"sorted"` or `"grouped"`; as there, `set_experts_implementation` chooses',
)
def test_forms_of_the_experts(ours, theirs):
    theirs.set_experts_implementation("eager")
    with pytest.raises(ValueError, match="experts_implementation='grouped_mm'"):
        ours.set_experts_implementation("grouped_mm")
    ours.set_experts_implementation(ours.config.experts_implementation)


@difference(
    "`resize_token_embeddings` changes the config, which other models may share",
    "the model gets a config of its own; a vocabulary that lacks the pad id or another special id is an error",
)
def test_the_config_of_a_resized_model():
    configs = transformers.MixtralConfig(**SIZES), MixtralConfig(**SIZES, pad_token_id=40)
    models = transformers.MixtralForCausalLM(configs[0]), MixtralForCausalLM(configs[1])
    for model in models:
        model.resize_token_embeddings(60, mean_resizing=False)
        assert model.config.vocab_size == 60 == len(model.get_input_embeddings().weight)
    assert [config.vocab_size for config in configs] == [60, 48]
    with pytest.raises(ValueError, match="pad_token_id=40"):
        models[1].resize_token_embeddings(30)


@difference("`ignore_mismatched_sizes=True` draws any tensor anew", "only a classifier's or an answerer's head")
def test_mismatched_sizes(ours, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    options = dict(vocab_size=50, ignore_mismatched_sizes=True)
    drawn = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "theirs", **options)
    assert len(drawn.lm_head.weight) == 50
    ours.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(ValueError, match="vocab_size|shape"):
        MixtralForCausalLM.from_pretrained(tmp_path / "ours", ignore_mismatched_sizes=True)


@difference(
    "with gradient checkpointing a cache that is asked for is dropped",
    "an error; by default none is made in training, as there",
)
def test_checkpointing_and_caches(transformers_twin):
    model = random_model(MixtralConfig(**SIZES)).train()
    twin = transformers_twin(model)
    twin.activation_checkpointing_enable()
    model.gradient_checkpointing_enable()
    assert twin(IDS, use_cache=True).cache is None and model(IDS).cache is None
    with pytest.raises(ValueError, match="use_cache=True"):
        model(IDS, use_cache=True)


@difference('`gradient_checkpointing_kwargs={"use_reentrant": True}`', "an error: only the other form, the default")
def test_reentrant_checkpointing(transformers_twin):
    model = random_model(MixtralConfig(**SIZES))
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.warns(FutureWarning):
        transformers_twin(model).gradient_checkpointing_enable(**options)
    with pytest.raises(ValueError, match="use_reentrant"):
        model.gradient_checkpointing_enable(**options)


@difference(
    "`model.generation_config` holds the options of generation", "it is the config: the ids that begin, end, pad"
)
def test_generation_config(ours, theirs):
    assert theirs.generation_config is not theirs.config and hasattr(theirs.generation_config, "temperature")
    assert ours.generation_config is ours.config


@difference('`LoraConfig(task_type="CAUSAL_LM")` of peft', "leave `task_type` out")
def test_low_rank_adapters(ours):
    peft = pytest.importorskip("peft")
    with pytest.raises(AttributeError, match="prepare_inputs_for_generation"):
        peft.get_peft_model(copy.deepcopy(ours), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted = peft.get_peft_model(copy.deepcopy(ours), peft.LoraConfig(target_modules=["q_proj"]))
    assert adapted(input_ids=IDS).logits.shape == (1, 9, 48)


@difference(
    "`generate(ids)` stops after 20 new ids, with a warning", "an error: give `max_new_tokens` (or `max_length`)"
)
def test_lengths(ours, theirs):
    ids = torch.tensor([[3, 4, 5]])
    with pytest.warns(UserWarning, match="max_new_tokens"):
        assert theirs.generate(ids, do_sample=False, eos_token_id=None).shape == (1, 23)
    with pytest.raises(TypeError, match="max_new_tokens=None"):
        ours.generate(ids)


@difference("`max_new_tokens` counts where `max_length` is given as well", "an error: give one of them")
def test_both_lengths(ours, theirs):
    options = dict(max_new_tokens=2, max_length=30)
    assert theirs.generate(IDS, do_sample=False, eos_token_id=None, **options).shape == (1, 11)
    with pytest.raises(ValueError, match="max_new_tokens=2 and max_length=30"):
        ours.generate(IDS, **options)


@difference("without an `attention_mask`, `generate` takes pad ids for padding", "for text: give the tokenizer's mask")
def test_pad_ids_without_a_mask(transformers_twin):
    ours = random_model(MixtralConfig(**SIZES, pad_token_id=7))
    theirs, options = transformers_twin(ours), dict(max_new_tokens=5, eos_token_id=None)
    ids = torch.tensor([[7, 7, 9, 10, 11]])
    alone = theirs.generate(ids, do_sample=False, **options)
    assert torch.equal(alone, theirs.generate(ids, attention_mask=(ids != 7).long(), do_sample=False, **options))
    assert torch.equal(alone, ours.generate(ids, (ids != 7).long(), **options))
    assert torch.equal(ours.generate(ids, **options), ours.generate(ids, torch.ones_like(ids), **options))
    assert not torch.equal(alone, ours.generate(ids, **options))


@difference("`top_k=0` keeps all ids", "an error: leave it out, or give `None`")
def test_no_top_k(ours, theirs):
    options = dict(max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True)
    assert theirs.generate(IDS, top_k=0, **options).scores[0].isfinite().all()
    assert ours.generate(IDS, top_k=None, **options).scores[0].isfinite().all()
    with pytest.raises(ValueError, match="top_k=0"):
        ours.generate(IDS, top_k=0, **options)


@difference(
    "`early_stopping`, `length_penalty` are ignored without beams, `max_matching_ngram_size` without prompt lookup",
    "an error",
)
def test_options_of_other_searches(ours, theirs):
    options = {"early_stopping": True, "length_penalty": 2.0, "max_matching_ngram_size": 3}
    theirs.generate(IDS, max_new_tokens=1, do_sample=False, **options)
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"{name}={value} has no effect"):
            ours.generate(IDS, max_new_tokens=1, **{name: value})


@difference(
    "a row that has ended goes on with pads, which scores and cache show",
    "its scores mean nothing, and the cache holds no pads: an error where `generate` should continue it",
)
def test_rows_that_have_ended(ours, theirs):
    ids, options = torch.tensor([[3, 4, 5], [6, 7, 8]]), dict(max_new_tokens=4, return_dict_in_generate=True)
    stop = int(ours.generate(ids, eos_token_id=None, **options).sequences[0, 3])
    options |= dict(eos_token_id=stop, pad_token_id=9)
    their, out = theirs.generate(ids, do_sample=False, **options), ours.generate(ids, **options)
    assert torch.equal(their.sequences, out.sequences) and out.sequences[0, 4:].tolist() == [9] * 3
    assert (out.cache.positions >= 0).sum(1).tolist() == [3, 6] and their.cache.get_seq_length() == 6
    with pytest.raises(ValueError, match="the row had stopped before others"):
        ours.generate(out.sequences, cache=out.cache, max_new_tokens=1)


@difference(
    "a cache is a `DynamicCache` or a `StaticCache`; with beams or `use_cache=False` one is taken too",
    "a `RollingKVCache(model.config, batch_size)`; with these two, none",
)
def test_kinds_of_caches(ours, theirs):
    theirs.generate(IDS, do_sample=False, num_beams=2, max_new_tokens=1, cache=transformers.DynamicCache())
    with pytest.raises(TypeError, match="must be a RollingKVCache, not DynamicCache"):
        ours.generate(IDS, max_new_tokens=1, cache=transformers.DynamicCache())
    cache = mixtral_edu.RollingKVCache(ours.config, 1)
    for option in ({"num_beams": 2}, {"use_cache": False}):
        with pytest.raises(ValueError, match="cache is given with"):
            ours.generate(IDS, max_new_tokens=1, cache=cache, **option)


@difference("`do_sample=True` draws from the 50 likeliest ids", "from all: give `top_k=50` for the same")
def test_what_is_drawn_from(transformers_twin):
    options = dict(max_new_tokens=1, do_sample=True, output_scores=True, return_dict_in_generate=True)
    ours = random_model(MixtralConfig(**SIZES | {"vocab_size": 60}))
    assert transformers_twin(ours).generate(IDS, **options).scores[0].isfinite().sum() == 50
    assert ours.generate(IDS, **options).scores[0].isfinite().sum() == 60
    assert ours.generate(IDS, top_k=50, **options).scores[0].isfinite().sum() == 50


@difference(
    "right-padded prompts are continued after their padding, with a warning at most",
    'an error: `generate` needs padding on the left, `padding_side="left"`',
)
def test_right_padding(ours, theirs):
    ids, mask = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 1, 1, 0]])
    assert theirs.generate(ids, attention_mask=mask, max_new_tokens=2, eos_token_id=None).shape == (1, 6)
    with pytest.raises(ValueError, match="left padding"):
        ours.generate(ids, mask, max_new_tokens=2)


@difference("`output_scores=True` without `return_dict_in_generate=True` is ignored", "an error")
def test_scores_without_their_place(ours, theirs):
    ids = torch.tensor([[3, 4, 5]])
    assert isinstance(theirs.generate(ids, max_new_tokens=1, output_scores=True), torch.Tensor)
    with pytest.raises(ValueError, match="needs return_dict_in_generate=True"):
        ours.generate(ids, max_new_tokens=1, output_scores=True)


@difference(
    "`generate(…, generation_config=)`, `logits_processor=`, `stopping_criteria=`, `assistant_model=`",
    "an error that names the argument: options are arguments of `generate` itself",
)
def test_objects_that_steer_generation(ours):
    for name in ("generation_config", "logits_processor", "stopping_criteria", "assistant_model"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            ours.generate(torch.tensor([[3]]), max_new_tokens=1, **{name: None})


@difference(
    "`generate` takes `inputs_embeds`, `position_ids`, `min_new_tokens`, `no_repeat_ngram_size` …",
    "an error that names the argument; its help lists the options there are",
)
def test_options_that_are_not_there(ours, theirs):
    options = {"min_new_tokens": 1, "no_repeat_ngram_size": 2}
    theirs.generate(IDS, max_new_tokens=1, **options)
    theirs.generate(inputs_embeds=torch.zeros(1, 2, 32), max_new_tokens=1)
    options["inputs_embeds"] = torch.zeros(1, 2, 32)
    for name, value in (options | {"position_ids": torch.tensor([[0]])}).items():
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            ours.generate(torch.tensor([[3]]), max_new_tokens=1, **{name: value})


@difference("beam search returns a cache", "none: its rows are other beams than the texts that are returned")
def test_caches_of_beams(ours, theirs):
    options = dict(num_beams=2, max_new_tokens=2, return_dict_in_generate=True)
    assert theirs.generate(IDS, do_sample=False, **options).cache is not None
    assert ours.generate(IDS, **options).cache is None


@difference(
    "`beam_indices` tell which beam each id came from", "not returned; `sequences_scores` are those of the texts"
)
def test_indices_of_beams(ours, theirs):
    options = dict(num_beams=2, max_new_tokens=2, return_dict_in_generate=True, output_scores=True)
    their, out = theirs.generate(IDS, do_sample=False, **options), ours.generate(IDS, **options)
    assert their.beam_indices is not None and not hasattr(out, "beam_indices")
    assert_forward(out.sequences_scores, their.sequences_scores)


@difference("a `pad_token_id` of 0 fills beams up with the stop id", "with the pad id, as any other")
def test_pads_of_beams(ours, theirs):
    options = dict(num_beams=3, num_return_sequences=3, max_new_tokens=6, pad_token_id=0, eos_token_id=list(range(9)))
    their, out = theirs.generate(IDS, do_sample=False, **options), ours.generate(IDS, **options)
    ended = (torch.isin(out[:, 9:], torch.arange(9)).cumsum(1) > 0)[:, :-1]  # before each column
    assert ended.any() and not out[:, 10:][ended].any()
    assert torch.equal(torch.isin(their, torch.arange(9)), torch.isin(out, torch.arange(9)))


@difference(
    "`num_beams` beyond half of the vocabulary", "an error: each beam needs a continuation that does not end it"
)
def test_more_beams_than_continuations(ours, theirs):
    options = dict(num_beams=30, max_new_tokens=2, eos_token_id=None)
    assert theirs.generate(IDS, do_sample=False, **options).shape == (1, 11)
    with pytest.raises(ValueError, match="num_beams=30: it must be at most 24, for a vocabulary of 48"):
        ours.generate(IDS, **options)


@difference("a tokenizer's `save_pretrained` keeps its settings", "it writes the vocabulary; set `pad_token` … again")
def test_saved_tokenizers(tokenizer, llama, tmp_path):
    llama.pad_token = "</s>"
    llama.save_pretrained(tmp_path / "llama")
    assert "pad_token" in (tmp_path / "llama" / "tokenizer_config.json").read_text()
    tokenizer.save_pretrained(tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["tokenizer.model"]


@difference(
    "beam search draws with `do_sample=True`, stops at `stop_strings`, does without a cache (`use_cache=False`)",
    "an error: beams are the likeliest texts, end at `eos_token_id` and use the cache",
)
def test_beams_that_draw(ours, theirs):
    ids = torch.tensor([[3, 4, 5]])
    assert theirs.generate(ids, num_beams=2, do_sample=True, use_cache=False, max_new_tokens=1).shape == (1, 4)
    strings = {"stop_strings": "a", "tokenizer": MixtralTokenizer.from_pretrained("tiny")}
    for option in ({"do_sample": True}, {"use_cache": False}, strings):
        with pytest.raises(ValueError, match="num_beams=2 with"):
            ours.generate(ids, num_beams=2, max_new_tokens=1, **option)


@difference(
    "prompt lookup after a prompt with padding is allowed", "an error: a text with drafts stands alone, without padding"
)
def test_drafts_after_padding(ours, theirs):
    ids, mask = torch.tensor([[7, 3, 4, 5, 3, 4]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    options = dict(prompt_lookup_num_tokens=2, max_new_tokens=2)
    theirs.generate(ids, attention_mask=mask, do_sample=False, **options)
    with pytest.raises(ValueError, match="takes a prompt without it"):
        ours.generate(ids, mask, **options)


@difference(
    "router logits of `generate` cannot be had",
    "`output_router_logits=True` returns them for each step",
)
def test_router_logits_of_steps(ours, theirs):
    ids, options = torch.tensor([[3, 4, 5]]), dict(max_new_tokens=2, return_dict_in_generate=True, eos_token_id=None)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        assert theirs.generate(ids, do_sample=False, output_router_logits=True, **options).router_logits
    steps = ours.generate(ids, output_router_logits=True, **options).router_logits
    assert [logits[0].shape for logits in steps] == [(3, 4), (1, 4)]


@difference("classification finds a text's end by the pad id", "by the attention mask, if there is one")
def test_pooling(transformers_twin):
    torch.manual_seed(0)
    ours = MixtralForSequenceClassification(MixtralConfig(**SIZES, num_labels=3, pad_token_id=7)).eval()
    ids, mask = torch.tensor([[3, 4, 7]]), torch.tensor([[1, 1, 1]])
    with torch.no_grad():
        their = transformers_twin(ours)(ids, attention_mask=mask).logits
        assert_forward(their, ours(ids[:, :2]).logits)  # the token before the pad id
        assert_forward(ours(ids, mask).logits, ours(torch.cat((ids, ids), 1)[:, :3], mask).logits)
        assert (ours(ids, mask).logits - their).abs().max() > 1e-4


@difference("the loss of a batch in which no label counts is nan", "it is 0; the gradient is 0 in both")
def test_loss_over_nothing(ours, theirs):
    ids, labels = torch.tensor([[3, 4, 5]]), torch.full((1, 3), -100)
    assert theirs(ids, labels=labels).loss.isnan() and ours(ids, labels=labels).loss == 0


@difference("outputs are dictionaries", "they are read like them, but are none; `return_dict=False` gives a tuple")
def test_kinds_of_output(ours, theirs):
    assert isinstance(theirs(IDS), dict)
    out = ours(IDS)
    assert isinstance(out, Mapping) and not isinstance(out, dict) and out["logits"] is out[0] is out.logits
    assert isinstance(ours(IDS, return_dict=False), tuple)


@difference("`past_key_values`, called `cache` since 5.24", "either name, as an argument and in what is returned")
def test_names_of_the_cache(ours):
    for name in ("cache", "past_key_values"):
        out = ours(IDS, **{name: mixtral_edu.RollingKVCache(ours.config, 1)})
        assert out.cache is out.past_key_values is out["cache"] is out["past_key_values"]


@difference(
    "the decoder's vectors are not part of what a model with a head returns",
    "`out.last_hidden_state` holds them, beside what `out.to_tuple()` lists",
)
def test_vectors_of_a_model_with_a_head(ours, theirs):
    out = ours(IDS)
    assert not hasattr(theirs(IDS), "last_hidden_state")
    assert "last_hidden_state" not in out and out.last_hidden_state.shape == (1, 9, 32)


@difference('`output_attentions=True` with `"sdpa"` returns no weights', 'an error: choose `"eager"`')
def test_weights_of_a_fused_kernel(ours, theirs):
    theirs.set_attn_implementation("sdpa")
    assert not theirs(IDS, output_attentions=True).attentions
    theirs.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager'"):
        ours(IDS, output_attentions=True)


@difference(
    "a boolean mask (B, 1, T, S) is added to scores as 0 and 1 by eager attention",
    "True is where a query may attend, with every backend",
)
def test_boolean_masks(ours, theirs):
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    assert (theirs(IDS, attention_mask=causal).logits - theirs(IDS).logits).abs().max() > 0.1
    assert_forward(ours(IDS, attention_mask=causal).logits, ours(IDS).logits)


@difference("a query whose mask hides all keys gives nan with -inf and eager attention", "it gathers 0")
def test_a_query_that_sees_nothing(ours, theirs):
    mask = torch.zeros(1, 1, 9, 9)
    mask[:, :, 4] = -torch.inf
    assert theirs(IDS, attention_mask=mask).logits.isnan().any()
    assert ours(IDS, attention_mask=mask).logits.isfinite().all()


@difference("other numbers in such a mask, as ALiBi's, are added to the scores", "an error")
def test_biases(ours, theirs):
    biases = -(torch.arange(9)[:, None] - torch.arange(9)).abs()[None, None] / 2
    assert theirs(IDS, attention_mask=biases).logits.isfinite().all()
    with pytest.raises(ValueError, match="holds -0.5"):
        ours(IDS, attention_mask=biases)


@difference("such a mask with `output_router_logits=True` ends in an error", "the auxiliary loss counts all tokens")
def test_own_masks_and_balance(ours, theirs):
    mask = torch.zeros(1, 1, 9, 9)
    with pytest.raises(RuntimeError):
        theirs(IDS, attention_mask=mask, output_router_logits=True)
    assert ours(IDS, attention_mask=mask, output_router_logits=True).aux_loss > 0


@difference(
    "such a mask is taken with any cache",
    "an error with a cache that has left out padding, or whose window is full: its keys are other columns",
)
def test_own_masks_and_caches(ours, theirs):
    padding, mask = torch.tensor([[0] + [1] * 8]), torch.zeros(1, 1, 1, 10)
    assert (
        theirs(IDS[:, :1], attention_mask=mask, cache=theirs(IDS, attention_mask=padding).cache).logits.isfinite().all()
    )
    with pytest.raises(ValueError, match="left out padding"):
        ours(IDS[:, :1], mask, cache=ours(IDS, padding).cache)


@difference("a mask may hide columns that a cache holds", "an error: give padding's mask from the first call on")
def test_masks_of_the_past(ours, theirs):
    mask = torch.tensor([[0] + [1] * 9])
    assert theirs(IDS[:, :1], attention_mask=mask, cache=theirs(IDS).cache).logits.isfinite().all()
    with pytest.raises(ValueError, match="shows 8 of the first 9 columns in row 0, and .* holds 9"):
        ours(IDS[:, :1], mask, cache=ours(IDS).cache)


@difference(
    "packed texts (`position_ids` that restart) see each other where a cache is made, which is the default",
    "an error: give `use_cache=False`, which keeps them apart in both",
)
def test_packed_texts(ours, theirs):
    call = {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}
    apart = theirs(**call, use_cache=False).logits
    assert (theirs(**call).logits - apart).abs().max() > 0.1
    with pytest.raises(ValueError, match="use_cache=False"):
        ours(**call)
    assert_forward(ours(**call, use_cache=False).logits, apart)


@difference(
    "`max_length` cuts texts without `truncation=True`, with a warning",
    'an error: give `truncation=True`, or `padding="max_length"`',
)
def test_max_length_alone(tokenizer, llama):
    assert len(llama("a b c", max_length=2).input_ids) == 2
    with pytest.raises(ValueError, match="truncation"):
        tokenizer("a b c", max_length=2)


@difference('`padding="max_length"` pads nothing where no limit is known', "an error: give `max_length`")
def test_padding_to_no_limit(tokenizer, llama):
    assert len(llama("a", padding="max_length").input_ids) == 2
    with pytest.raises(ValueError, match="max_length"):
        tokenizer("a", padding="max_length")


@difference('a token that is not in the vocabulary can be set: `tokenizer.pad_token = "[PAD]"`', "an error")
def test_a_pad_token_of_no_vocabulary(tokenizer, llama):
    llama.pad_token = "[PAD]"
    assert llama.pad_token_id == llama.unk_token_id
    with pytest.raises(ValueError, match="pad_token"):
        tokenizer.pad_token = "[PAD]"


@difference("there is no pad token before one is set", "it is `<unk>`, of id 0")
def test_the_pad_token_at_first(tokenizer):
    assert transformers.MixtralConfig().pad_token_id is None
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<unk>", 0)


@difference(
    "any attribute of a tokenizer can be set, misspelled or without effect",
    "an error that says what to set; so are `chat_template`, as the vocabulary decides on the format, and `unk_token`",
)
def test_attributes_of_no_effect(tokenizer, llama):
    llama.pad_tokn = "</s>"
    for name in ("pad_tokn", "chat_template", "unk_token"):
        with pytest.raises(AttributeError, match=name):
            setattr(tokenizer, name, "</s>")


@difference(
    "`<s>` in a text is the special token, in some of its tokenizers", "it is text: users cannot write specials"
)
def test_specials_in_a_text(tokenizer, llama):
    assert llama.bos_token_id in llama("<s>", add_special_tokens=False).input_ids
    assert tokenizer.bos_token_id not in tokenizer.encode("<s>", add_special_tokens=False)


@difference("a chat's text (`tokenize=False`) is encoded to the chat's ids", "its `<s>` becomes text: take the ids")
def test_the_text_of_a_chat(tokenizer, llama):
    llama.chat_template = "<s> [INST] {{ messages[0]['content'] }} [/INST]"
    chat, options = [{"role": "user", "content": "Hello"}], dict(add_special_tokens=False)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == llama.apply_chat_template(chat, tokenize=False)
    assert llama(text, **options).input_ids == llama.apply_chat_template(chat).input_ids
    ids = tokenizer.apply_chat_template(chat)
    assert ids[0] == tokenizer.bos_token_id not in tokenizer(text, **options).input_ids


@difference("`tokenizer(question, context)` encodes a pair", "an error: join texts or ids yourself")
def test_pairs(tokenizer, llama):
    assert llama("a", "b").input_ids == llama("a").input_ids + llama("b").input_ids
    with pytest.raises(TypeError, match="pairs of texts are not supported"):
        tokenizer("a", "b")


@difference("bytes that are no UTF-8 make one � each, whole ones beside them too", "only what is broken becomes �")
def test_broken_bytes(tokenizer, llama):
    ids = tokenizer.convert_tokens_to_ids(["<0xC3>", "<0xA9>", "<0xC3>"])
    assert (llama.decode(ids), tokenizer.decode(ids)) == ("\N{REPLACEMENT CHARACTER}" * 3, "é\N{REPLACEMENT CHARACTER}")


@difference("`decode` leaves out an id that is outside the vocabulary", "an error")
def test_ids_outside(tokenizer, llama):
    assert llama.decode([len(tokenizer) + 5]) == ""
    with pytest.raises(ValueError, match="from 0 to"):
        tokenizer.decode([len(tokenizer) + 5])


@difference(
    '`encode` takes a list of texts, `tokenizer(…)` also `return_tensors="np"` and `pad_to_multiple_of`',
    'an error: `encode` takes one text; lists or `return_tensors="pt"` are returned',
)
def test_kinds_of_input_and_output(tokenizer, llama):
    assert len(llama.encode(["a", "b"])) == 2 and llama("a", return_tensors="np").input_ids.shape == (1, 2)
    with pytest.raises(TypeError, match="tokenizer"):
        tokenizer.encode(["a", "b"])
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer("a", return_tensors="np")
    with pytest.raises(TypeError, match="pad_to_multiple_of"):
        tokenizer("a", pad_to_multiple_of=4)


@difference("`apply_chat_template` returns a dictionary", "ids; `return_dict=True` returns the dictionary")
def test_what_a_chat_becomes(tokenizer, llama):
    llama.chat_template = "{{ messages[0]['content'] }}"
    chat = [{"role": "user", "content": "Hello"}]
    assert "input_ids" in llama.apply_chat_template(chat)
    assert isinstance(tokenizer.apply_chat_template(chat), list)
    assert "input_ids" in tokenizer.apply_chat_template(chat, return_dict=True)


@difference("`tools=`, `documents=` become part of a chat", "an error: the bundled formats have no place for them")
def test_tools(tokenizer):
    assert "tools" in inspect.signature(transformers.LlamaTokenizer.apply_chat_template).parameters
    for name in ("tools", "documents"):
        with pytest.raises(TypeError, match=name):
            tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], **{name: []})


# What the table is made of


def rows() -> list[str]:
    return [f"| {there} | {here} |" for there, here, _ in DIFFERENCES]


def test_the_readme_shows_all_rows():
    text = README.read_text(encoding="utf-8")
    table = re.search(r"\| in transformers \| here \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    assert table is not None and table.group(1).splitlines() == rows()


def test_every_row_has_a_test_that_runs():
    here = {name for name in globals() if name.startswith("test_")}
    assert {test.__name__ for _, _, test in DIFFERENCES} <= here
    assert len({there for there, _, _ in DIFFERENCES}) == len(DIFFERENCES)
