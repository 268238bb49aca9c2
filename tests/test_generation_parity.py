"""Generation with Mixtral equals transformers', and a batch equals each prompt alone."""

import pytest
import torch

from generation_checks import padded_prompts, random_model
from mixtral_edu.text.tokenizer import train_tokenizer
from tokenizer_samples import TEXTS

pytestmark = pytest.mark.numerics


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("penalty", [None, 1.3])
def test_greedy_equals_transformers(make_config, transformers_twin, window, penalty):
    model = random_model(make_config(sliding_window=window))
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    ids[mask == 0] = 2
    options = dict(max_new_tokens=30, repetition_penalty=penalty)
    theirs = transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, eos_token_id=None, **options)
    ours = model.generate(ids, mask, eos_token_id=None, **options)
    assert torch.equal(ours, theirs)
    assert ours[:, ids.shape[1] :].unique().numel() > 5  # no row of one and the same id


def test_stopping_row_by_row_equals_transformers(make_config, transformers_twin):
    model = random_model(make_config())
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    free = model.generate(ids, mask, max_new_tokens=30, eos_token_id=None)[:, 19:]
    stops = [int(free[1, 4]), int(free[2, 9])]
    options = dict(max_new_tokens=30, eos_token_id=stops, pad_token_id=7)
    ours = model.generate(ids, mask, **options)
    assert torch.equal(ours, transformers_twin(model).generate(ids, attention_mask=mask, do_sample=False, **options))
    assert (ours[1, 19 + 5 :] == 7).all() and not torch.equal(ours[:, 19:], free[:, : ours.shape[1] - 19])


def test_sampling_equals_transformers_for_one_seed(make_config, transformers_twin):
    model = random_model(make_config())
    ids, mask, _ = padded_prompts([9, 9])
    options = dict(max_new_tokens=25, do_sample=True, temperature=2.5, top_k=40, top_p=0.9, min_p=0.01,
                   repetition_penalty=1.2, eos_token_id=None)  # fmt: skip
    twin = transformers_twin(model)
    torch.manual_seed(7)
    theirs = twin.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(7)
    assert torch.equal(model.generate(ids, mask, **options), theirs)


@pytest.mark.parametrize("window", [None, 7])
def test_a_batch_continues_each_prompt_as_alone(make_config, window):
    model = random_model(make_config(sliding_window=window))
    ids, mask, alone = padded_prompts([19, 12, 3, 1])
    options = dict(max_new_tokens=25, repetition_penalty=1.2, eos_token_id=[5, 17], pad_token_id=0)
    batch = model.generate(ids, mask, **options)[:, 19:]
    for row, prompt in zip(batch, alone, strict=True):
        single = model.generate(prompt[None], **options)[0, len(prompt) :]
        assert row[: len(single)].tolist() == single.tolist()
        assert (row[len(single) :] == 0).all()


def test_generation_equals_scoring_without_a_cache(make_config):
    model = random_model(make_config())
    prompt = torch.randint(3, 101, (2, 11))
    ids = model.generate(prompt, max_new_tokens=20, eos_token_id=None)
    with torch.no_grad():
        scores = model(ids[:, :-1], use_cache=False).logits
    assert torch.equal(scores[:, 10:].argmax(-1), ids[:, 11:])


def test_stream_of_a_model_is_its_text(make_config, tmp_path):
    tokenizer = train_tokenizer(TEXTS, tmp_path / "tokenizer.model", vocab_size=330)
    model = random_model(make_config(vocab_size=len(tokenizer)))
    prompt = tokenizer("the fox", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=30)[0, prompt.input_ids.shape[1] :]
    text = "".join(model.stream(**prompt, max_new_tokens=30, tokenizer=tokenizer))
    assert text == tokenizer.decode(ids, skip_special_tokens=True) and text


@pytest.mark.gpu
def test_generation_on_a_gpu_equals_the_cpu(make_config):
    model = random_model(make_config())
    ids, mask, _ = padded_prompts([19, 12, 3, 1])
    expected = model.generate(ids, mask, max_new_tokens=20, eos_token_id=[5, 17])
    on_gpu = random_model(make_config()).to("cuda")
    ids, mask = ids.to("cuda"), mask.to("cuda")
    assert torch.equal(on_gpu.generate(ids, mask, max_new_tokens=20, eos_token_id=[5, 17]).cpu(), expected)
    sampled = [on_gpu.generate(ids, mask, max_new_tokens=20, do_sample=True, top_p=0.9, seed=1) for _ in range(2)]
    assert torch.equal(*sampled)
