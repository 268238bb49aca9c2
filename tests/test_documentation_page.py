"""The code examples of transformers' page on Mixtral, in this package's names and on the bundled checkpoints.

Beside import, class names and checkpoint two things differ, as the README says: a device is `model.device` where the
page has "cuda", and `quantization="int4"` stands for its BitsAndBytesConfig.
"""

import subprocess
import sys

import pytest
import torch

from mixtral_edu import (
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForQuestionAnswering,
    MixtralForSequenceClassification,
    MixtralForTokenClassification,
    MixtralModel,
    MixtralTokenizer,
    convert_checkpoint,
)
from mixtral_edu.quantization.model import QuantizationConfig, quantization_of

MESSAGES = [
    {"role": "user", "content": "Tell me a story about a brown goat and a kite."},
    {"role": "assistant", "content": "Once there was a brown goat that had a kite."},
    {"role": "user", "content": "What is 3 + 4?"},
]


def test_the_base_model():
    model = MixtralForCausalLM.from_pretrained("tiny", device_map="auto")
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    device = model.device

    prompt = "My favourite condiment is"

    model_inputs = tokenizer([prompt], return_tensors="pt").to(device)
    model.to(device)

    generated_ids = model.generate(**model_inputs, max_new_tokens=100, do_sample=True)
    text = tokenizer.batch_decode(generated_ids)[0]
    assert text.startswith("<s> My favourite condiment is") and len(text) > 40


def test_the_instruction_tuned_model():
    model = MixtralForCausalLM.from_pretrained("tiny-instruct", device_map="auto")
    tokenizer = MixtralTokenizer.from_pretrained("tiny-instruct")

    model_inputs = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt").to(model.device)

    generated_ids = model.generate(model_inputs, max_new_tokens=100, do_sample=True)
    text = tokenizer.batch_decode(generated_ids)[0]
    assert text.startswith("<s> [INST] Tell me a story") and text.count("[/INST]") == 2
    assert len(text) > len(tokenizer.apply_chat_template(MESSAGES, tokenize=False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attention_in_half_precision(dtype):
    model = MixtralForCausalLM.from_pretrained(
        "tiny", dtype=dtype, attn_implementation="flash_attention_2", device_map="auto"
    )
    tokenizer = MixtralTokenizer.from_pretrained("tiny")

    model_inputs = tokenizer(["My favourite condiment is"], return_tensors="pt").to("cuda")

    generated_ids = model.generate(**model_inputs, max_new_tokens=100, do_sample=True)
    text = tokenizer.batch_decode(generated_ids)[0]
    assert text.startswith("<s> My favourite condiment is") and len(text) > 40


def test_flash_attention_says_what_to_choose_where_it_cannot_run():
    with pytest.raises(ValueError, match="flash_attention_2.*sdpa"):
        MixtralForCausalLM.from_pretrained("tiny", dtype=torch.float16, attn_implementation="flash_attention_2")


def test_quantization_to_four_bits():
    model = MixtralForCausalLM.from_pretrained("tiny-instruct", quantization="int4", device_map="auto")
    tokenizer = MixtralTokenizer.from_pretrained("tiny-instruct")

    model_inputs = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt").to(model.device)

    generated_ids = model.generate(model_inputs, max_new_tokens=100, do_sample=True)
    assert tokenizer.batch_decode(generated_ids)[0].startswith("<s> [INST] Tell me a story")
    assert generated_ids.shape[1] > model_inputs.shape[1] and quantization_of(model) == QuantizationConfig(4)


def test_the_conversion_command(tmp_path):
    convert_checkpoint("tiny", tmp_path / "downloaded", to="mistral")
    arguments = ["convert", tmp_path / "downloaded", tmp_path / "output", "--to", "hf"]
    subprocess.run([sys.executable, "-m", "mixtral_edu", *arguments], check=True, capture_output=True)
    model = MixtralForCausalLM.from_pretrained(tmp_path / "output")
    original = MixtralForCausalLM.from_pretrained("tiny")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), original.parameters(), strict=True))
    assert len(MixtralTokenizer.from_pretrained(tmp_path / "output")) == model.config.vocab_size


def test_a_configuration_and_a_model_of_its_sizes():
    with torch.device("meta"):  # 46.7 billion random numbers would not fit here
        configuration = MixtralConfig()
        model = MixtralModel(configuration)
        configuration = model.config
    assert configuration.hidden_size == 4096
    assert model.layers[31].block_sparse_moe.experts[7].w1.weight.shape == (14336, 4096)


def test_the_example_of_the_causal_model():
    model = MixtralForCausalLM.from_pretrained("tiny")
    tokenizer = MixtralTokenizer.from_pretrained("tiny")

    prompt = "Hey, are you conscious? Can you talk to me?"
    inputs = tokenizer(prompt, return_tensors="pt")

    generate_ids = model.generate(inputs.input_ids, max_length=30)
    text = tokenizer.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    assert text.startswith(prompt) and generate_ids.shape[1] <= 30


@pytest.mark.filterwarnings("ignore:.*initialised at random")
def test_the_examples_of_the_heads():
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    T = inputs.input_ids.shape[1]

    model = MixtralForSequenceClassification.from_pretrained("tiny", num_labels=2)
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_class_id = logits.argmax().item()
    assert model.config.id2label[predicted_class_id] in ("LABEL_0", "LABEL_1")
    assert model(**inputs, labels=torch.tensor([1])).loss.isfinite()

    model = MixtralForSequenceClassification.from_pretrained(
        "tiny", num_labels=2, problem_type="multi_label_classification"
    )
    labels = torch.nn.functional.one_hot(torch.tensor([1]), num_classes=2).to(torch.float)
    assert model(**inputs, labels=labels).loss.isfinite()

    model = MixtralForTokenClassification.from_pretrained("tiny", num_labels=3)
    with torch.no_grad():
        predicted_token_class_ids = model(**inputs).logits.argmax(-1)
    assert predicted_token_class_ids.shape == (1, T)
    assert model(**inputs, labels=predicted_token_class_ids).loss.isfinite()

    model = MixtralForQuestionAnswering.from_pretrained("tiny")
    with torch.no_grad():
        outputs = model(**inputs)
    answer_start_index, answer_end_index = outputs.start_logits.argmax(), outputs.end_logits.argmax()
    assert answer_start_index < T and answer_end_index < T
    loss = model(**inputs, start_positions=torch.tensor([3]), end_positions=torch.tensor([4])).loss
    assert loss.isfinite()
