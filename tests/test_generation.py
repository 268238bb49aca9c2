"""Generation with any model, told by a small stand-in; `test_generation_parity` does it with Mixtral."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from history_model import ALONE, MASK, PROMPTS, HistoryModel, V, greedy_path, hash_of
from mixtral_edu.api.generation import generate, stream
from mixtral_edu.config import Config
from mixtral_edu.generation import new_tokens
from mixtral_edu.heads import CausalLM
from mixtral_edu.sampling import Sampler
from mixtral_edu.text.streaming import TextStreamer
from mixtral_edu.text.tokenizer import MixtralTokenizer, train_tokenizer
from tokenizer_samples import TEXTS

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> MixtralTokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=V)


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


def test_the_penalty_counts_prompt_and_new_ids_but_no_pads():
    model = HistoryModel()
    alone = generate(model, PROMPTS[2:, 1:], max_new_tokens=15, repetition_penalty=3.0)[0, 3:]
    first = int(alone[0])  # as pad id: if pads counted, it would not be chosen
    padded = torch.tensor([[first, first, *ALONE[2]]])
    mask = (torch.arange(5) >= 2).long()[None]
    assert torch.equal(generate(model, padded, mask, max_new_tokens=15, repetition_penalty=3.0)[0, 5:], alone)
    assert generate(model, padded, max_new_tokens=1, repetition_penalty=3.0)[0, 5] != first
    row = list(ALONE[2])
    for token in alone.tolist():
        scores = model.table[hash_of(row)].detach().clone()
        scores[list(set(row))] = torch.where(scores > 0, scores / 3, scores * 3)[list(set(row))]
        assert token == int(scores.argmax())
        row.append(token)


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


def test_scores_are_read_in_float32_whatever_the_dtype():
    half = HistoryModel().bfloat16()
    same = HistoryModel()
    same.table.data = half.table.data.float()
    options = dict(max_new_tokens=300, do_sample=True, temperature=3.0, top_p=0.9, seed=0)
    assert torch.equal(generate(half, PROMPTS, MASK, **options), generate(same, PROMPTS, MASK, **options))


def test_modes_and_gradients_are_left_as_they_were():
    model = HistoryModel()
    model.train()
    frozen = nn.Dropout().eval()
    model.frozen = frozen
    generate(model, PROMPTS, MASK, max_new_tokens=2)
    assert not any(call.training or call.grad for call in model.calls)
    assert not any(call.inference for call in model.calls)  # what a model keeps from it could not be trained with
    assert model.training and model.dropout.training and not frozen.training and torch.is_grad_enabled()
    model.dropout.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, MASK, max_new_tokens=2)
    assert model.training and not frozen.training and torch.is_grad_enabled()


def interrupt(*_):
    raise KeyboardInterrupt


class Recorder:
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended += 1


def test_an_interrupted_generation_leaves_the_streamer_ready_for_the_next(tokenizer):
    class Interrupted(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.values) == 3:
                raise KeyboardInterrupt

    recorder = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        generate(HistoryModel(), PROMPTS[:1], max_new_tokens=5, streamer=recorder)
    assert (len(recorder.values), recorder.ended) == (3, 1)


def test_a_streamer_gets_the_prompt_then_each_id(tokenizer):
    recorder = Recorder()
    ids = generate(HistoryModel(), PROMPTS[1:2], max_new_tokens=3, streamer=recorder)[0].tolist()
    assert recorder.values == [[ids[:4]], [ids[4]], [ids[5]], [ids[6]]] and recorder.ended == 1
    with pytest.raises(ValueError, match="3 rows: a streamer takes a batch of one"):
        generate(HistoryModel(), PROMPTS, MASK, max_new_tokens=3, streamer=recorder)
    several = dict(do_sample=True, num_return_sequences=3)
    with pytest.raises(ValueError, match="num_return_sequences=3 asks for 3 rows: a streamer takes a batch of one"):
        generate(HistoryModel(), PROMPTS[1:2], max_new_tokens=3, streamer=recorder, **several)
    with pytest.raises(TypeError, match="streamer is a bool: it must have the methods put and end"):
        generate(HistoryModel(), PROMPTS[1:2], max_new_tokens=3, streamer=True)
    with pytest.raises(ValueError, match="batch of one"):
        TextStreamer(tokenizer).put(PROMPTS)


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


def test_max_length_counts_the_prompt_too():
    model = HistoryModel()
    expected = generate(model, PROMPTS, MASK, max_new_tokens=3)
    assert torch.equal(generate(model, PROMPTS, MASK, max_length=PROMPTS.shape[1] + 3), expected)


def test_the_textbooks_own_model_generates_too():
    config = Config(vocab_size=11, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, eos_token_id=None)  # fmt: skip
    model, ids = CausalLM(config), torch.tensor([[3, 4, 5]])
    tokens = torch.stack(list(new_tokens(model, ids, None, None, 6, Sampler())), dim=1)
    assert torch.equal(generate(model, ids, max_new_tokens=6)[:, 3:], tokens)
    for t in range(6):
        seen = torch.cat((ids, tokens[:, :t]), dim=1)
        assert model(seen, logits_to_keep=1).logits.argmax() == tokens[0, t]


def test_help_lists_the_rules_and_the_package_lives_without_docstrings():
    code = """
import inspect
from mixtral_edu import MixtralForCausalLM
print(MixtralForCausalLM.generate.__doc__, "top_p" in inspect.signature(MixtralForCausalLM.generate).parameters)
"""
    assert "top_p: " in generate.__doc__ and "RULES" not in generate.__doc__
    result = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["None", "True"], result.stderr
