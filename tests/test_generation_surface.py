"""What `generate` offers besides ids, and its other ways to search: as in transformers, or as without them."""

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from generation_checks import padded_prompts, random_model
from mixtral_edu import MixtralForCausalLM, MixtralTokenizer, RollingKVCache
from mixtral_edu.api.lookup import guess
from mixtral_edu.api.recording import GenerationOutput
from tokenizer_samples import llama_tokenizer
from tolerances import assert_forward

OUTPUTS = ("scores", "logits", "attentions", "hidden_states", "router_logits")
ALL_OUTPUTS = {f"output_{name}": True for name in OUTPUTS}


def kept(text: str, ids: torch.Tensor) -> torch.Tensor:
    """Ids that a pattern of letters stands for, each letter an id of its own."""
    return torch.stack([ids[ord(letter) - ord("a")] for letter in text])[None]


@pytest.mark.numerics
@pytest.mark.parametrize("window", [None, 7])
def test_outputs_of_each_step_equal_transformers(make_config, transformers_twin, window):
    model = random_model(make_config(sliding_window=window, attn_implementation="eager"))
    ids, mask, _ = padded_prompts([11, 6, 1])
    options = dict(max_new_tokens=9, return_dict_in_generate=True, eos_token_id=None, repetition_penalty=1.3)
    named = {f"output_{name}": True for name in OUTPUTS if name != "router_logits"}
    theirs = transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, **named, **options)
    ours = model.generate(ids, mask, **ALL_OUTPUTS, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    real = mask.bool()
    for step in range(9):
        assert_forward(ours.scores[step], theirs.scores[step])
        assert_forward(ours.logits[step], theirs.logits[step])
        for name in ("attentions", "hidden_states"):
            pairs = list(zip(getattr(ours, name)[step], getattr(theirs, name)[step], strict=True))
            assert len(pairs) == 3 + (name == "hidden_states")
            for layer, (our, their) in enumerate(pairs):
                assert our.shape == their.shape, (name, step, layer)
                if step == 0:  # rows of padding hold what nobody reads
                    by_token = (our, their) if name == "hidden_states" else (our.transpose(1, 2), their.transpose(1, 2))
                    our, their = (tensor[real] for tensor in by_token)
                assert_forward(our, their)
        assert [tuple(logits.shape) for logits in ours.router_logits[step]] == [(3 * (11 if step == 0 else 1), 5)] * 3
    assert ours.past_key_values.get_seq_length() == theirs.cache.get_seq_length() == 11 + 8


@pytest.mark.numerics
def test_scores_are_what_ids_are_drawn_from_and_logits_what_the_model_says(make_config):
    model = random_model(make_config())
    ids = torch.randint(3, 101, (2, 5))
    out = model.generate(ids, max_new_tokens=6, eos_token_id=None, do_sample=True, top_k=3, seed=1, output_scores=True,
                         output_logits=True, return_dict_in_generate=True)  # fmt: skip
    with torch.no_grad():
        whole = model(out.sequences).logits
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert_forward(logits, whole[:, 4 + step])
        assert (scores.isfinite().sum(1) == 3).all()
        assert scores.gather(1, out.sequences[:, 5 + step, None]).isfinite().all()


def test_what_was_not_asked_for_is_none_and_asking_needs_the_output_object(make_config):
    model = random_model(make_config())
    ids = torch.randint(3, 101, (1, 5))
    out = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(out, GenerationOutput) and isinstance(out.past_key_values, RollingKVCache)
    assert list(out) == ["sequences", "cache"] and out[0] is out["sequences"] is out.sequences
    assert out[1] is out.cache is out["past_key_values"]
    assert all(getattr(out, name) is None for name in OUTPUTS)
    for name in OUTPUTS:
        with pytest.raises(ValueError, match=f"output_{name}=True needs return_dict_in_generate=True"):
            model.generate(ids, max_new_tokens=2, **{f"output_{name}": True})


@pytest.mark.parametrize("window", [None, 7])
def test_a_conversation_continues_its_cache(make_config, window):
    model = random_model(make_config(sliding_window=window))
    lengths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(args[0].shape[1]), with_kwargs=True
    )
    ids, mask, _ = padded_prompts([11, 6, 1])
    options = dict(max_new_tokens=7, eos_token_id=None, return_dict_in_generate=True)
    first = model.generate(ids, mask, **options)
    turn = torch.cat((first.sequences, torch.randint(3, 101, (3, 4))), 1)
    whole_mask = torch.cat((mask, torch.ones(3, 11, dtype=torch.long)), 1)
    fresh = model.generate(turn, whole_mask, **options)
    del lengths[:]
    second = model.generate(turn, whole_mask, cache=first.past_key_values, **options)
    assert lengths == [5] + [1] * 6  # the last id of the first answer, and the new ones
    assert torch.equal(second.sequences, fresh.sequences)
    assert second.past_key_values is first.past_key_values
    again = torch.cat((second.sequences, ids[:, -1:]), 1)
    whole_mask = torch.cat((whole_mask, torch.ones(3, 8, dtype=torch.long)), 1)
    by_other_name = model.generate(again, whole_mask, past_key_values=second.past_key_values, max_new_tokens=3)
    assert torch.equal(by_other_name, model.generate(again, whole_mask, max_new_tokens=3))


def test_a_chat_of_the_bundled_model_keeps_its_cache():
    model = MixtralForCausalLM.from_pretrained("tiny-instruct", dtype=torch.float32)
    tokenizer = MixtralTokenizer.from_pretrained("tiny-instruct")
    messages, cache = [], RollingKVCache(model.config, 1)
    for question in ("What is 3 + 4?", "Tell me a story about a brown goat and a kite."):
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt")
        new = model.generate(ids, cache=cache, max_new_tokens=60)[0, ids.shape[1] :]
        assert torch.equal(new, model.generate(ids, max_new_tokens=60)[0, ids.shape[1] :])
        messages.append({"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)})
    shown = "".join(model.stream(ids, tokenizer=tokenizer, max_new_tokens=60))
    assert shown == messages[-1]["content"]


def test_rows_that_stopped_before_others_cannot_be_continued_together(make_config):
    model = random_model(make_config())
    ids, options = torch.randint(3, 101, (2, 5)), dict(max_new_tokens=8, return_dict_in_generate=True)
    stop = int(model.generate(ids, eos_token_id=None, **options).sequences[0, 6])
    out = model.generate(ids, eos_token_id=stop, pad_token_id=0, **options)
    with pytest.raises(
        ValueError, match="cache holds . tokens of row 0, .* 12: it is another text's, or the row had stopped"
    ):
        model.generate(torch.cat((out.sequences, ids), 1), cache=out.cache, **options)


def test_a_cache_of_inference_mode_is_continued_there_only(make_config):
    model, options = random_model(make_config()), dict(max_new_tokens=3, return_dict_in_generate=True)
    with torch.inference_mode():
        out = model.generate(torch.randint(3, 101, (1, 5)), **options)
        more = model.generate(out.sequences, cache=copy.deepcopy(out.cache), **options).sequences
    for use in (
        lambda: model.generate(out.sequences, cache=out.cache, **options),
        lambda: model(out.sequences[:, -1:], past_key_values=out.cache),
    ):
        with pytest.raises(ValueError, match=r"made in torch\.inference_mode\(\), and can be continued there only"):
            use()
    assert torch.equal(model.generate(out.sequences, **options).sequences, more)


def test_ids_beyond_the_tokenizers_vocabulary_add_no_text_to_stop_at(bundled):
    model, tokenizer = copy.deepcopy(bundled)
    model.resize_token_embeddings(len(tokenizer) + 16)
    beyond = torch.tensor([[len(tokenizer) + 3]])
    ids = torch.cat((tokenizer("Once upon a time", return_tensors="pt").input_ids, beyond), 1)
    options = dict(max_new_tokens=40, eos_token_id=None)
    free = tokenizer.decode(model.generate(ids, **options)[0, ids.shape[1] :])
    stopped = tokenizer.decode(
        model.generate(ids, stop_strings=free.split()[3], tokenizer=tokenizer, **options)[0, ids.shape[1] :]
    )
    assert free.startswith(stopped) and free.split()[3] in stopped and len(stopped) < len(free)


def test_outputs_are_rebuilt_from_their_parts(make_config):
    out = random_model(make_config()).generate(
        torch.randint(3, 101, (1, 5)), max_new_tokens=2, return_dict_in_generate=True, output_logits=True
    )
    assert type(out)(dict(out)).sequences is out.sequences
    leaves, form = pytree.tree_flatten(out)
    assert any(leaf is out.logits[1] for leaf in leaves) and pytree.tree_unflatten(leaves, form).logits == out.logits
    assert out.logits[0].untyped_storage().nbytes() == out.logits[0].nbytes  # no view that holds more


@pytest.mark.parametrize("window", [None, 7])
def test_without_a_cache_the_ids_are_the_same_and_every_step_reads_all(make_config, window):
    model = random_model(make_config(sliding_window=window))
    ids, mask, _ = padded_prompts([11, 6, 1])
    lengths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append((args[0].shape[1], kwargs["use_cache"])), with_kwargs=True
    )
    options = dict(max_new_tokens=12, eos_token_id=[5, 17], return_dict_in_generate=True)
    out = model.generate(ids, mask, use_cache=False, **options)
    assert lengths == [(11 + step, False) for step in range(12)] and out.past_key_values is None
    usual = model.generate(ids, mask, use_cache=None, **options)
    assert torch.equal(out.sequences, usual.sequences) and usual.cache is not None


def test_several_texts_per_prompt_are_neighbours(make_config, transformers_twin):
    model = random_model(make_config())
    ids, mask, _ = padded_prompts([9, 4])
    options = dict(max_new_tokens=8, do_sample=True, top_k=5, num_return_sequences=3, eos_token_id=None)
    twin = transformers_twin(model)
    torch.manual_seed(4)
    theirs = twin.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(4)
    ours = model.generate(ids, mask, **options)
    assert torch.equal(ours, theirs) and ours.shape == (6, 17)
    assert len({tuple(row) for row in ours.tolist()}) == 6


# Stop strings


@pytest.fixture(scope="module")
def bundled() -> tuple[MixtralForCausalLM, MixtralTokenizer]:
    return MixtralForCausalLM.from_pretrained("tiny", dtype=torch.float32), MixtralTokenizer.from_pretrained("tiny")


@pytest.mark.parametrize("strings", [" pig", [" play", "unlikely"], ["ra", "s"], ["SCENE I.\nI"], ["dog."]])
def test_a_row_ends_where_a_stop_string_does(bundled, strings):
    model, tokenizer = bundled
    prompts = tokenizer(["Once upon a time", "The dog"], return_tensors="pt", padding=True)
    free = model.generate(**prompts, max_new_tokens=60, eos_token_id=None)
    ids = model.generate(**prompts, max_new_tokens=60, eos_token_id=None, stop_strings=strings, tokenizer=tokenizer,
                         pad_token_id=0)  # fmt: skip
    T = prompts.input_ids.shape[1]
    wanted, ended = [strings] if isinstance(strings, str) else strings, []
    for row, free_row, mask in zip(ids, free, prompts.attention_mask, strict=True):
        start = T - int(mask.sum())
        before = tokenizer.decode(free_row[start:T])
        expected = 60
        for n in range(1, 61):  # the truth: decode anew after each id
            text = tokenizer.decode(free_row[start : T + n])
            if any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in wanted):
                expected = n
                break
            before = text
        assert torch.equal(row[T : T + expected], free_row[T : T + expected])
        assert (row[T + expected :] == 0).all()
        ended.append(expected)
    assert min(ended) < 60


def test_stop_strings_equal_transformers(bundled, transformers_twin):
    model, tokenizer = bundled
    twin, theirs = transformers_twin(model), llama_tokenizer(tokenizer)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    for strings in (["was"], [" girl", "low"], "ra, the", "time there", ["\n"], ["liked to pl", "Vera had"]):
        options = dict(max_new_tokens=60, stop_strings=strings, eos_token_id=None)
        expected = twin.generate(ids, tokenizer=theirs, do_sample=False, **options)
        assert torch.equal(model.generate(ids, tokenizer=tokenizer, **options), expected)
        assert expected.shape[1] < ids.shape[1] + 60 or strings == "ra, the"
        text = "".join(model.stream(ids, tokenizer=tokenizer, **options))
        assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


# Prompt lookup


@pytest.mark.numerics
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 2, "top_k": 2}, {"repetition_penalty": 1.01}])
def test_guesses_do_not_change_a_text(make_config, window, options):
    model = random_model(make_config(sliding_window=window, vocab_size=7))  # few ids, which therefore repeat
    ids, read, saved = torch.randint(0, 7, (1, 30)), [], 0
    model.model.register_forward_pre_hook(lambda module, args, kwargs: read.append(args[0].shape[1]), with_kwargs=True)
    for guesses, ngram, stop in ((1, 1, None), (3, 2, None), (10, 3, None), (10, 1, 4)):
        common = dict(max_new_tokens=40, eos_token_id=stop, return_dict_in_generate=True, **options)
        expected = model.generate(ids, **common)
        del read[:]
        out = model.generate(ids, prompt_lookup_num_tokens=guesses, max_matching_ngram_size=ngram, **common)
        assert torch.equal(out.sequences, expected.sequences)
        new = out.sequences.shape[1] - 30
        assert read[0] == 30 and max(read[1:]) > 1 and max(read[1:]) <= min(guesses, (window or 99) - 1) + 1
        saved += new - len(read)
        ours, theirs = out.past_key_values, expected.past_key_values
        assert ours.get_seq_length() == theirs.get_seq_length() == 30 + new - 1
        assert torch.equal(ours.positions, theirs.positions)  # what wrong guesses wrote is gone
        held = ours.positions[0] >= 0
        for our, their in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values], strict=True):
            assert_forward(our[:, :, held], their[:, :, held])
    assert saved > 0  # forward passes


def test_guesses_of_transformers_give_the_same_ids(make_config, transformers_twin):
    model = random_model(make_config(sliding_window=None, vocab_size=7))
    ids = torch.randint(0, 7, (1, 20))
    options = dict(max_new_tokens=30, prompt_lookup_num_tokens=4, eos_token_id=None)
    assert torch.equal(
        model.generate(ids, **options), transformers_twin(model).generate(ids, do_sample=False, **options)
    )


@pytest.mark.numerics
def test_an_abandoned_stream_with_guesses_leaves_a_cache_to_continue(bundled):
    model, tokenizer = bundled
    ids = tokenizer("one two one two one two one two one", return_tensors="pt").input_ids
    cache = RollingKVCache(model.config, 1)
    with torch.no_grad():
        texts = model.stream(ids, tokenizer=tokenizer, cache=cache, max_new_tokens=50, prompt_lookup_num_tokens=8)
        next(texts)
        del texts
        seen = cache.get_seq_length()
        whole = model.generate(ids, max_new_tokens=50, eos_token_id=None)
        assert ids.shape[1] <= seen < whole.shape[1]
        logits = model(whole[:, seen : seen + 1], cache=cache).logits
        assert_forward(logits, model(whole[:, : seen + 1]).logits[:, -1:])


def test_guesses_follow_the_longest_run_that_occurred_before():
    ids = torch.arange(26) + 50
    assert guess(kept("xabcdyabeaab", ids), 3, 1).tolist() == kept("cdy", ids).tolist()
    assert guess(kept("xabcdyabeaab", ids), 3, 3).tolist() == kept("cdy", ids).tolist()
    assert guess(kept("abcxabdyab", ids), 2, 2).tolist() == kept("cx", ids).tolist()
    assert guess(kept("abcaaxbaa", ids), 4, 2).tolist() == kept("xbaa", ids).tolist()
    assert guess(kept("abc", ids), 3, 2).shape == guess(kept("aa", ids), 0, 2).shape == (1, 0)


# Beam search


@pytest.mark.numerics
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
        {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
        {"num_beams": 3, "repetition_penalty": 1.4},
    ],
)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("eos", [None, 5, [5, 17, 40, 41, 42, 43, 44, 45, 46, 47]])
def test_beams_equal_transformers(make_config, transformers_twin, options, window, eos):
    model = random_model(make_config(sliding_window=window))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)  # less certain of itself, so that beams compete
    ids, mask, _ = padded_prompts([11, 6, 3])
    ids[mask == 0] = ids[:, -1:].expand_as(ids)[mask == 0]
    options = dict(max_new_tokens=14, eos_token_id=eos, pad_token_id=9, output_scores=True,
                   return_dict_in_generate=True, **options)  # fmt: skip
    theirs = transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, **options)
    ours = model.generate(ids, mask, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert_forward(ours.sequences_scores, theirs.sequences_scores)
    assert len(ours.scores) == len(theirs.scores) and ours.cache is None
    assert [len(step) for step in ours.scores] == [3] + [3 * options["num_beams"]] * (len(ours.scores) - 1)
    greedy = model.generate(ids, mask, max_new_tokens=14, eos_token_id=eos, pad_token_id=9)
    assert eos is not None or not torch.equal(ours.sequences[:: options.get("num_return_sequences", 1)], greedy)


@pytest.mark.numerics
def test_beams_find_the_likeliest_text_that_greedy_misses(make_config):
    """With as many beams as needed the search is exhaustive: all 5**3 texts are compared by calculation."""
    model = random_model(make_config(vocab_size=30))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
        model.lm_head.weight[5:] = 0
        model.lm_head.weight[5:, :] -= 0  # 25 ids that nothing favours
    prompt = torch.tensor([[1, 4, 2]])
    texts = torch.cartesian_prod(*[torch.arange(30)] * 2)  # (900, 2)
    with torch.no_grad():
        logits = model(torch.cat((prompt.expand(900, -1), texts), 1)).logits.log_softmax(-1)
    sums = logits[:, 2].gather(1, texts[:, :1])[:, 0] + logits[:, 3].gather(1, texts[:, 1:])[:, 0]
    out = model.generate(prompt, max_new_tokens=2, num_beams=15, num_return_sequences=5, eos_token_id=None,
                         output_scores=True, return_dict_in_generate=True)  # fmt: skip
    best, order = sums.topk(5)
    assert out.sequences[:, 3:].tolist() == texts[order].tolist()
    assert_forward(out.sequences_scores, best / 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 with do_sample=True"),
        ({"num_beams": 2, "use_cache": False}, "num_beams=2 with use_cache=False"),
        ({"num_beams": 2, "prompt_lookup_num_tokens": 3}, "num_beams=2 with prompt_lookup_num_tokens"),
        ({"num_beams": 51}, "num_beams=51: it must be at most 50"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: .*1 text per prompt"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3: .*2 texts per prompt"),
        ({"early_stopping": True}, "^early_stopping=True has no effect with num_beams=1"),
        ({"length_penalty": 2.0}, "^length_penalty=2.0 has no effect"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping=1"),
        ({"num_beams": 2, "length_penalty": 1e4}, "length_penalty=10000.0"),
        ({"max_matching_ngram_size": 3}, "max_matching_ngram_size=3 has no effect"),
        ({"use_cache": "no"}, "use_cache='no'"),
        ({"do_sample": "False"}, "do_sample='False'"),
        ({"stop_strings": 5}, "stop_strings=5"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>'"),
        ({"cache": "short"}, "max_length=5, and 5 ids with 2 new ones need 6 columns"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping='soon'"),
        ({"prompt_lookup_num_tokens": 3, "use_cache": False}, "drafts need the cache"),
        ({"prompt_lookup_num_tokens": 3, "do_sample": True, "num_return_sequences": 2}, "takes a batch of one"),
        ({"prompt_lookup_num_tokens": 3, "attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}, "mask holds padding"),
        ({"stop_strings": "a"}, "tokenizer=None: stop_strings need"),
        ({"stop_strings": ["a", ""]}, "at least one character"),
        ({"cache": 3}, "must be a RollingKVCache, not int"),
        ({"cache": "seen"}, "has seen 5: input_ids must be the whole text"),
        ({"cache": "empty", "past_key_values": "empty"}, "both given"),
        ({"cache": "empty", "num_beams": 2}, "cache is given with num_beams"),
    ],
)
def test_what_does_not_go_together_is_named(make_config, changes, named):
    model = random_model(make_config(sliding_window=None))
    ids = torch.randint(3, 101, (1, 5))
    cache = RollingKVCache(model.config, 1, max_length=5 if changes.get("cache") == "short" else None)
    if changes.get("cache") == "seen":
        with torch.no_grad():
            model(ids, cache=cache)
    changes = {name: cache if value in ("seen", "empty", "short") else value for name, value in changes.items()}
    with pytest.raises((TypeError, ValueError), match=named):
        model.generate(ids, **dict(max_new_tokens=2, eos_token_id=None) | changes)


def test_streams_refuse_beams(bundled):
    model, tokenizer = bundled
    ids = torch.tensor([[1, 5]])
    with pytest.raises(ValueError, match="num_beams=2: stream"):
        model.stream(ids, tokenizer=tokenizer, max_new_tokens=2, num_beams=2)
    with pytest.raises(TypeError, match="tokenizer must be a MixtralTokenizer, not NoneType"):
        model.stream(ids, tokenizer=None, max_new_tokens=2)
