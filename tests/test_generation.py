"""Generation: what it does with any model, told by a small stand-in, and that it equals transformers' with Mixtral."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.generation import logits_process

from mixtral_edu import MixtralForCausalLM, MixtralTokenizer, TextStreamer
from mixtral_edu.generation import (
    apply_repetition_penalty,
    apply_temperature,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token,
    stream,
)
from mixtral_edu.sampling import GenerationOptions
from mixtral_edu.tokenizer import train_tokenizer

V = 300


class HistoryModel(nn.Module):
    """A stand-in whose scores depend on all real ids so far, and that writes down how it was called.

    Its cache is a list of each row's real ids.
    """

    def __init__(self, eos_token_id=None, pad_token_id=None):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=V, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
        self.table = nn.Parameter(torch.randn(V, V, generator=torch.Generator().manual_seed(1)))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, logits_to_keep=0):
        assert use_cache is True and logits_to_keep == 1
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        assert mask.shape == input_ids.shape
        rows = [[] for _ in input_ids] if past_key_values is None else past_key_values
        rows = [row + ids[real == 1].tolist() for row, ids, real in zip(rows, input_ids, mask, strict=True)]
        logits = torch.stack([self.table[hash_of(row)] for row in rows])[:, None]
        self.calls.append(SimpleNamespace(shape=tuple(input_ids.shape), mask=attention_mask, rows=rows,
                                          training=self.training, grad=torch.is_grad_enabled()))  # fmt: skip
        return SimpleNamespace(logits=self.dropout(logits), past_key_values=rows)


def hash_of(row: list[int]) -> int:
    return sum((i + 1) * token for i, token in enumerate(row)) % V


def greedy_path(model: HistoryModel, prompt: list[int], count: int) -> list[int]:
    """The truth for one row, without any of the code under test."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(model.table[hash_of(row)].argmax()))
    return row[len(prompt) :]


PROMPTS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
ALONE = [[5, 6], [7, 8, 9, 10], [11, 12, 13]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> MixtralTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(["the fox and the hen went to the sea 🙂 " * 3], path, vocab_size=V)


# --- the functions over logits

LOGITS = torch.randn(64, 53, generator=torch.Generator().manual_seed(0)) * 3
LOGITS[0] = 1.0  # ties everywhere
LOGITS[1, :20] = LOGITS[1].max()
IDS = torch.randint(0, 53, (64, 11), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("value", [1, 2, 7, 53, 60])
def test_top_k_equals_transformers(value):
    assert torch.equal(keep_top_k(LOGITS, value), logits_process.TopKLogitsWarper(value)(IDS, LOGITS))


@pytest.mark.parametrize("value", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_equals_transformers_and_keeps_at_least_one(value):
    kept = keep_top_p(LOGITS, value)
    assert torch.equal(kept, logits_process.TopPLogitsWarper(value)(IDS, LOGITS))
    assert kept.isfinite().any(dim=1).all()


@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 1.0])
def test_min_p_equals_transformers_and_keeps_at_least_one(value):
    kept = keep_min_p(LOGITS, value)
    different = kept != logits_process.MinPLogitsWarper(value)(IDS, LOGITS)
    assert not different[1:].any()
    assert kept.isfinite().any(dim=1).all()


@pytest.mark.parametrize("value", [0.5, 1.0, 1.3])
def test_repetition_penalty_and_temperature_equal_transformers(value):
    theirs = logits_process.RepetitionPenaltyLogitsProcessor(value)(IDS, LOGITS.clone())
    assert torch.equal(apply_repetition_penalty(LOGITS, IDS, value), theirs)
    assert torch.equal(apply_temperature(LOGITS, value), logits_process.TemperatureLogitsWarper(value)(IDS, LOGITS))


def test_repetition_penalty_leaves_pads_out():
    ids, mask = torch.tensor([[3, 3, 5]]), torch.tensor([[0, 0, 1]])
    logits = torch.tensor([[1.0, -1.0, 2.0, 2.0, 2.0, 2.0]])
    assert apply_repetition_penalty(logits, ids, 2.0, mask).tolist() == [[1, -1, 2, 2, 2, 1]]
    assert apply_repetition_penalty(logits, ids, 2.0).tolist() == [[1, -1, 2, 1, 2, 1]]


def test_the_functions_leave_their_input_alone():
    before = LOGITS.clone()
    keep_top_k(LOGITS, 3), keep_top_p(LOGITS, 0.5), keep_min_p(LOGITS, 0.5), apply_temperature(LOGITS, 2.0)
    apply_repetition_penalty(LOGITS, IDS, 2.0)
    assert torch.equal(LOGITS, before)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.1, 0.2, 0.7, 0.0]).log().expand(20000, 4)
    drawn = next_token(logits, do_sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.bincount(minlength=4) / 20000, torch.tensor([0.1, 0.2, 0.7, 0.0]), atol=0.01)
    assert next_token(logits, do_sample=False)[:3].tolist() == [2, 2, 2]


# --- any model


def test_a_padded_batch_continues_each_row_as_alone():
    model = HistoryModel()
    ids = generate(model, PROMPTS, MASK, max_new_tokens=9)
    assert torch.equal(ids[:, :4], PROMPTS)
    assert ids[:, 4:].tolist() == [greedy_path(model, prompt, 9) for prompt in ALONE]


def test_the_prompt_is_read_once_and_then_one_token_a_call():
    model = HistoryModel()
    generate(model, PROMPTS, MASK, max_new_tokens=4)
    assert [call.shape for call in model.calls] == [(3, 4), (3, 1), (3, 1), (3, 1)]  # none after the last token
    assert torch.equal(model.calls[0].mask, MASK)
    assert all(call.mask is None for call in model.calls[1:])
    generate(model, PROMPTS, torch.ones_like(PROMPTS), max_new_tokens=1)
    assert model.calls[4].mask is None and len(model.calls) == 5


def test_rows_stop_one_by_one():
    model = HistoryModel()
    paths = [greedy_path(model, prompt, 20) for prompt in ALONE]
    first, second = paths[1][3], paths[0][6]  # row 1 stops after four tokens, row 0 after seven
    assert first not in paths[0][:7] + paths[2] and second not in paths[1][:4] + paths[2] + paths[0][:6]
    ids = generate(model, PROMPTS, MASK, max_new_tokens=20, eos_token_id=[first, second], pad_token_id=99)[:, 4:]
    assert ids[0].tolist() == paths[0][:7] + [99] * 13
    assert ids[1].tolist() == paths[1][:4] + [99] * 16
    assert ids[2].tolist() == paths[2]
    stored = model.calls[-1].rows  # the cache: neither fill nor stop ids
    assert stored[0] == ALONE[0] + paths[0][:6] and stored[1] == ALONE[1] + paths[1][:3]
    assert stored[2] == ALONE[2] + paths[2][:19]
    assert [None if call.mask is None else call.mask[:, 0].tolist() for call in model.calls[1:8]] == (
        [None] * 3 + [[1, 0, 1]] * 3 + [[0, 0, 1]]
    )


def test_the_call_ends_when_all_rows_have_stopped():
    model = HistoryModel()
    paths = [greedy_path(model, prompt, 20) for prompt in ALONE]
    stops = [paths[0][2], paths[1][5], paths[2][1]]
    lengths = [min(path.index(stop) for stop in stops if stop in path) + 1 for path in paths]
    ids = generate(model, PROMPTS, MASK, max_new_tokens=20, eos_token_id=tuple(stops), pad_token_id=0)
    assert ids.shape[1] - 4 == max(lengths) == len(model.calls) < 20


def test_stop_and_pad_ids_come_from_the_config_and_none_is_a_value():
    path = greedy_path(HistoryModel(), ALONE[1], 8)
    stop, short = path[2], path[:3]
    prompt, both = PROMPTS[1:2], PROMPTS[1:].flip(0)

    def new(eos, prompt=prompt, mask=None, pad=None, **options) -> list[list[int]]:
        model = HistoryModel(eos_token_id=eos, pad_token_id=pad)
        return generate(model, prompt, mask, max_new_tokens=8, **options)[:, prompt.shape[1] :].tolist()

    assert new(stop) == new([V - 1, stop]) == new(None, eos_token_id=stop) == [short]
    assert new(stop, eos_token_id=None) == new(stop, eos_token_id=[]) == new(None) == [path]
    mask = MASK[1:].flip(0)
    assert new(stop, both, mask)[1] == short + [stop] * 5  # no pad id: the stop id fills up
    assert new(stop, both, mask, pad=77)[1] == short + [77] * 5
    assert new(stop, both, mask, pad=77, pad_token_id=78)[1] == short + [78] * 5
    assert new(stop, both, mask, pad=77, pad_token_id=None)[1] == short + [stop] * 5


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state():
    model = HistoryModel()
    options = dict(max_new_tokens=12, do_sample=True)
    state = torch.get_rng_state()
    first = generate(model, PROMPTS, MASK, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generate(model, PROMPTS, MASK, seed=3, **options), first)
    assert not torch.equal(generate(model, PROMPTS, MASK, seed=4, **options), first)
    unseeded = generate(model, PROMPTS, MASK, **options)
    torch.set_rng_state(state)
    assert torch.equal(generate(model, PROMPTS, MASK, **options), unseeded)


def test_options_apply_in_their_order():
    logits, seen, mask = LOGITS[2:], IDS[2:], torch.ones_like(IDS[2:])
    settings = dict(temperature=1.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.4)
    processors = logits_process.LogitsProcessorList([
        logits_process.RepetitionPenaltyLogitsProcessor(1.4), logits_process.TemperatureLogitsWarper(1.7),
        logits_process.TopKLogitsWarper(20), logits_process.TopPLogitsWarper(0.8),
        logits_process.MinPLogitsWarper(0.05),
    ])  # fmt: skip
    probabilities = processors(seen, logits.clone()).softmax(-1)
    options = GenerationOptions(max_new_tokens=1, do_sample=True, **settings)
    for seed in range(20):
        chosen = options.choose(logits, seen, mask, torch.Generator().manual_seed(seed))
        theirs = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        assert torch.equal(chosen, theirs)


def test_modes_and_gradients_are_left_as_they_were():
    model = HistoryModel()
    model.train()
    frozen = nn.Dropout().eval()
    model.frozen = frozen
    ids = generate(model, PROMPTS, MASK, max_new_tokens=2)
    assert not any(call.training or call.grad for call in model.calls)
    assert model.training and model.dropout.training and not frozen.training and torch.is_grad_enabled()
    assert not ids.is_inference()  # such ids could not be trained on
    model.dropout.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, MASK, max_new_tokens=2)
    assert model.training and not frozen.training and torch.is_grad_enabled()


def interrupt(*_):
    raise KeyboardInterrupt


# --- streaming


class Recorder:
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_gets_the_prompt_then_each_id(tokenizer):
    recorder = Recorder()
    ids = generate(HistoryModel(), PROMPTS[1:2], max_new_tokens=3, streamer=recorder)[0].tolist()
    assert recorder.values == [[ids[:4]], [ids[4]], [ids[5]], [ids[6]]] and recorder.ended == 1
    with pytest.raises(ValueError, match="3 rows: a streamer takes a batch of one"):
        generate(HistoryModel(), PROMPTS, MASK, max_new_tokens=3, streamer=recorder)
    with pytest.raises(ValueError, match="batch of one"):
        TextStreamer(tokenizer).put(PROMPTS)


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_text_streamer_prints_what_decode_returns(tokenizer, capsys, skip_prompt, skip_special_tokens):
    streamer = TextStreamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=skip_special_tokens)
    prompt = tokenizer("the fox", return_tensors="pt").input_ids
    for _ in range(2):  # and it can be used again
        ids = generate(HistoryModel(), prompt, max_new_tokens=30, streamer=streamer)[0]
        shown = ids[prompt.shape[1] :] if skip_prompt else ids
        assert capsys.readouterr().out == tokenizer.decode(shown, skip_special_tokens) + "\n"


def test_text_streamer_hands_out_whole_characters_as_soon_as_they_are_there(tokenizer):
    class Collector(TextStreamer):
        parts = []

        def on_finalized_text(self, text, stream_end=False):
            self.parts.append((text, stream_end))

    streamer = Collector(tokenizer)
    for i in [1, 3 + 0xF0, 3 + 0x9F, 3 + 0x99, 3 + 0x82, 3 + 0x41]:
        streamer.put(torch.tensor([i]))
    streamer.end()
    assert [text for text, _ in streamer.parts] == ["<s>", "", "", "", "🙂", "A", ""]
    assert [end for _, end in streamer.parts] == [False] * 6 + [True]


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_stream_yields_the_text_of_generate(tokenizer, skip_prompt):
    prompt = tokenizer("the fox", return_tensors="pt").input_ids
    options = dict(max_new_tokens=40, do_sample=True, seed=5)
    ids = generate(HistoryModel(), prompt, **options)[0]
    parts = list(stream(HistoryModel(), prompt, tokenizer=tokenizer, skip_prompt=skip_prompt, **options))
    shown = ids[prompt.shape[1] :] if skip_prompt else ids
    assert "".join(parts) == tokenizer.decode(shown, skip_special_tokens=True)
    assert len(parts) > 5 and all(parts)


def test_stream_runs_as_it_is_read_and_checks_at_once(tokenizer):
    model = HistoryModel()
    model.train()
    texts = stream(model, PROMPTS[1:2], tokenizer=tokenizer, max_new_tokens=1000)
    assert not model.calls
    next(texts)
    assert 1 <= len(model.calls) < 100
    assert torch.is_grad_enabled()  # also between two parts
    del texts  # an abandoned stream gives the model back
    assert model.training
    for wrong, named in ((dict(max_new_tokens=0), "max_new_tokens"), (dict(max_new_tokens=1, top_k=0), "top_k")):
        with pytest.raises(ValueError, match=named):
            stream(model, PROMPTS[1:2], tokenizer=tokenizer, **wrong)
    with pytest.raises(ValueError, match="stream takes a batch of one"):
        stream(model, PROMPTS, MASK, tokenizer=tokenizer, max_new_tokens=3)


def test_a_progress_bar_counts_tokens_on_stderr(capsys):
    generate(HistoryModel(), PROMPTS, MASK, max_new_tokens=7, progress=True)
    out, err = capsys.readouterr()
    assert "7/7" in err and out == ""
    generate(HistoryModel(), PROMPTS, MASK, max_new_tokens=7)
    assert capsys.readouterr().err == ""


def test_tqdm_is_imported_only_when_a_bar_is_asked_for():
    code = "import sys, mixtral_edu.generation; print('tqdm.auto' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- wrong arguments


def test_defaults_are_stated_once():
    shown = inspect.signature(generate).parameters
    for name, parameter in inspect.signature(GenerationOptions).parameters.items():
        assert shown[name].default == parameter.default, name
    assert repr(shown["eos_token_id"].default) == "<the config's>"  # what help(generate) shows


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids is a list"),
        ({"input_ids": torch.tensor([1, 2])}, ValueError, r"input_ids has shape \(2,\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, ValueError, r"input_ids has shape \(2, 0\)"),
        ({"input_ids": torch.zeros(0, 2, dtype=torch.long)}, ValueError, r"input_ids has shape \(0, 2\)"),
        ({"input_ids": torch.ones(1, 2)}, TypeError, "dtype torch.float32"),
        ({"input_ids": torch.tensor([[1, V]])}, ValueError, f"from 1 to {V}: ids from 0 to vocab_size - 1 = {V - 1}"),
        ({"input_ids": torch.tensor([[-1, 3]])}, ValueError, "from -1 to 3"),
        ({"attention_mask": torch.ones(3, 5)}, ValueError, r"attention_mask is \(3, 5\): a tensor of shape \(3, 4\)"),
        ({"attention_mask": [[1] * 4] * 3}, ValueError, "attention_mask is list"),
        ({"attention_mask": MASK * 2}, ValueError, "other values than 0"),
        ({"attention_mask": MASK.flip(1)}, ValueError, "left padding"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]] * 3)}, ValueError, "left padding, without holes"),
        ({"attention_mask": MASK * torch.tensor([[1], [0], [1]])}, ValueError, "all 0 in row 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0: an int of at least 1"),
        ({"max_new_tokens": None}, TypeError, "max_new_tokens=None"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens=2.0"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens=True"),
        ({"temperature": 0.0}, ValueError, r"temperature=0.0: .*\(do_sample=False"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan"),
        ({"temperature": "hot"}, TypeError, "temperature='hot'"),
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"top_p": 0}, ValueError, "top_p=0"),
        ({"top_p": 1.1}, ValueError, "top_p=1.1"),
        ({"min_p": -0.1}, ValueError, "min_p=-0.1"),
        ({"min_p": 1.1}, ValueError, "min_p=1.1"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty=0"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
        ({"eos_token_id": V}, ValueError, f"eos_token_id={V}: an id from 0"),
        ({"eos_token_id": [1, -1]}, ValueError, "eos_token_id=-1"),
        ({"eos_token_id": "2"}, TypeError, "eos_token_id='2'"),
        ({"pad_token_id": V}, ValueError, f"pad_token_id={V}"),
    ],
)
def test_wrong_arguments_are_named(changes, error, named):
    model = HistoryModel()
    arguments = dict(input_ids=PROMPTS, max_new_tokens=2, do_sample=True) | changes
    with pytest.raises(error, match=named):
        generate(model, **arguments)
    assert not model.calls


def test_a_prompt_elsewhere_is_refused():
    model = HistoryModel()
    model.device = torch.device("cpu")
    with pytest.raises(ValueError, match=r"input_ids is on meta and the model on cpu: call \.to\(model\.device\)"):
        generate(model, PROMPTS.to("meta"), max_new_tokens=1)


def test_masks_of_any_type_and_int32_ids_are_taken():
    model = HistoryModel()
    expected = generate(model, PROMPTS, MASK, max_new_tokens=3)
    for dtype in (torch.bool, torch.float32, torch.int32):
        assert torch.equal(generate(model, PROMPTS, MASK.to(dtype), max_new_tokens=3), expected)
    assert torch.equal(generate(model, PROMPTS.int(), MASK, max_new_tokens=3), expected)


def test_sampling_options_without_sampling_warn():
    model = HistoryModel()
    with pytest.warns(UserWarning, match=r"temperature, top_p only matter with do_sample=True") as caught:
        ids = generate(model, PROMPTS, MASK, max_new_tokens=3, temperature=0.5, top_p=0.5)
    assert caught[0].filename == __file__
    assert torch.equal(ids, generate(model, PROMPTS, MASK, max_new_tokens=3))


# --- Mixtral, against transformers


@pytest.fixture(scope="module")
def make_model(make_config):
    def make(**changes) -> MixtralForCausalLM:
        torch.manual_seed(0)
        model = MixtralForCausalLM(make_config(**changes)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)  # far from uniform, so that rounding cannot change a choice
        return model

    return make


def padded_prompts(lengths: list[int], vocab_size: int = 101) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    alone = [torch.randint(3, vocab_size, (length,)) for length in lengths]
    ids = torch.stack([nn.functional.pad(row, (max(lengths) - len(row), 0)) for row in alone])
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - length for length in lengths]).long()
    return ids, mask, alone


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("penalty", [None, 1.3])
def test_greedy_equals_transformers(make_model, transformers_twin, window, penalty):
    model = make_model(sliding_window=window)
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    ids[mask == 0] = 2 if penalty is None else ids[0, 0]  # transformers penalises the pad id; one that occurs anyway
    if penalty:
        ids, mask = ids[:1], mask[:1]
    options = dict(max_new_tokens=30, repetition_penalty=penalty)
    theirs = transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, eos_token_id=None, **options)
    ours = model.generate(ids, mask, eos_token_id=None, **options)
    assert torch.equal(ours, theirs)
    assert ours[:, ids.shape[1] :].unique().numel() > 5  # no row of one and the same id


def test_stopping_row_by_row_equals_transformers(make_model, transformers_twin):
    model = make_model()
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    free = model.generate(ids, mask, max_new_tokens=30, eos_token_id=None)[:, 19:]
    stops = [int(free[1, 4]), int(free[2, 9])]
    options = dict(max_new_tokens=30, eos_token_id=stops, pad_token_id=7)
    ours = model.generate(ids, mask, **options)
    assert torch.equal(ours, transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, **options))
    assert (ours[1, 19 + 5 :] == 7).all() and not torch.equal(ours[:, 19:], free[:, : ours.shape[1] - 19])


def test_sampling_equals_transformers_for_one_seed(make_model, transformers_twin):
    model = make_model()
    ids, mask, _ = padded_prompts([9, 9])
    options = dict(max_new_tokens=25, do_sample=True, temperature=2.5, top_k=40, top_p=0.9, min_p=0.01,
                   repetition_penalty=1.2, eos_token_id=None)  # fmt: skip
    twin = transformers_twin(model)
    torch.manual_seed(7)
    theirs = twin.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(7)
    assert torch.equal(model.generate(ids, mask, **options), theirs)


@pytest.mark.parametrize("window", [None, 7])
def test_a_batch_continues_each_prompt_as_alone(make_model, window):
    model = make_model(sliding_window=window)
    ids, mask, alone = padded_prompts([19, 12, 3, 1])
    options = dict(max_new_tokens=25, repetition_penalty=1.2, eos_token_id=[5, 17], pad_token_id=0)
    batch = model.generate(ids, mask, **options)[:, 19:]
    for row, prompt in zip(batch, alone, strict=True):
        single = model.generate(prompt[None], **options)[0, len(prompt) :]
        assert row[: len(single)].tolist() == single.tolist()
        assert (row[len(single) :] == 0).all()


def test_generation_equals_scoring_without_a_cache(make_model):
    model = make_model()
    prompt = torch.randint(3, 101, (2, 11))
    ids = model.generate(prompt, max_new_tokens=20, eos_token_id=None)
    with torch.no_grad():
        scores = model(ids[:, :-1], use_cache=False).logits
    assert torch.equal(scores[:, 10:].argmax(-1), ids[:, 11:])


def test_stream_of_a_model_is_its_text(make_model, tokenizer):
    model = make_model(vocab_size=len(tokenizer))
    prompt = tokenizer("the fox", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=30)[0, prompt.input_ids.shape[1] :]
    text = "".join(model.stream(**prompt, max_new_tokens=30, tokenizer=tokenizer))
    assert text == tokenizer.decode(ids, skip_special_tokens=True) and text


@pytest.mark.gpu
def test_generation_on_a_gpu_equals_the_cpu(make_model):
    model = make_model()
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    expected = model.generate(ids, mask, max_new_tokens=20, eos_token_id=[5, 17])
    on_gpu = make_model().to("cuda")
    ids, mask = ids.to("cuda"), mask.to("cuda")
    assert torch.equal(on_gpu.generate(ids, mask, max_new_tokens=20, eos_token_id=[5, 17]).cpu(), expected)
    sampled = [on_gpu.generate(ids, mask, max_new_tokens=20, do_sample=True, top_p=0.9, seed=1) for _ in range(2)]
    assert torch.equal(*sampled)
