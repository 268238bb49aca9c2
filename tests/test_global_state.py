"""Settings of the whole process: results do not depend on them where device and dtype are given, and they stay."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from mixtral_edu import (
    MixtralForCausalLM,
    MixtralForSequenceClassification,
    MixtralTokenizer,
    convert_checkpoint,
)
from mixtral_edu.analysis import routing
from mixtral_edu.quantization.model import quantize_model
from mixtral_edu.training.evaluation import expert_load
from mixtral_edu.training.trainer import Trainer, TrainingConfig, bits_per_byte
from mixtral_edu.viz.cache_ring import lost_keys
from mixtral_edu.viz.masks import left_padded


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def state() -> tuple:
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.get_rng_state().tolist(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(make_config, tmp_path_factory) -> Path:
    """A small random model, whose sizes 4 bits and the product of groups take."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "vocab_size": 2048, "num_labels": 3}
    folder = tmp_path_factory.mktemp("state") / "model"
    MixtralForCausalLM(make_config(**sizes)).save_pretrained(folder)
    return folder


IDS = torch.arange(3, 25).view(2, 11)
MASK = torch.ones_like(IDS).index_fill(1, torch.tensor([0]), 0)


def forward(folder: Path, tmp_path: Path) -> list:
    found = []
    for attention, experts in [("eager", "reference"), ("sdpa", "sorted"), ("sdpa", "grouped")]:
        model = MixtralForCausalLM.from_pretrained(
            folder, device="cpu", attn_implementation=attention, experts_implementation=experts
        )
        out = model(IDS, attention_mask=MASK, labels=IDS, output_router_logits=True)
        found += [out.loss, out.aux_loss, out.logits, *out.router_logits]
        with torch.no_grad():  # with gradients the ring is read in another order, so sums differ by rounding
            found.append(model(IDS[:, -1:], past_key_values=model(IDS[:, :-1]).past_key_values).logits)
    return [tensor.detach() for tensor in found]


def dense(folder: Path, tmp_path: Path) -> list:
    from mixtral_edu.fast.experts import dense_dispatch

    layer = MixtralForCausalLM.from_pretrained(folder, device="cpu").model.layers[0].block_sparse_moe
    x = torch.linspace(-1, 1, 3 * 64, dtype=torch.float32, device="cpu").view(3, 64)
    return [dense_dispatch(x, layer.gate(x), layer.experts).detach()]


def generate(folder: Path, tmp_path: Path) -> list:
    model = MixtralForCausalLM.from_pretrained(folder, device="cpu")
    greedy = model.generate(IDS, attention_mask=MASK, max_new_tokens=9, repetition_penalty=1.2)
    options = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    return [greedy, model.generate(IDS, max_new_tokens=5, do_sample=True, **options)]


def quantize(folder: Path, tmp_path: Path) -> list:
    found = []
    for form in ("int8", "int4"):
        loaded = MixtralForCausalLM.from_pretrained(folder, device="cpu", quantization=form)
        later = MixtralForCausalLM.from_pretrained(folder, device="cpu")
        quantize_model(later, form)
        found += [model(IDS).logits.detach() for model in (loaded, later)]
        found.append(loaded.generate(IDS, max_new_tokens=3))
    return found


def save_and_convert(folder: Path, tmp_path: Path) -> list:
    MixtralForCausalLM.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "saved")
    convert_checkpoint(folder, tmp_path / "raw", to="mistral")
    convert_checkpoint(tmp_path / "raw", tmp_path / "back", to="hf")
    files = ("saved/model.safetensors", "raw/consolidated.safetensors", "back/model.safetensors")
    return [(tmp_path / file).read_bytes() for file in files]


def classify(folder: Path, tmp_path: Path) -> list:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="score"):
        model = MixtralForSequenceClassification.from_pretrained(folder, device="cpu")
    out = model(IDS, attention_mask=MASK, labels=torch.tensor([0, 2], device="cpu"))
    return [out.loss.detach(), out.logits.detach()]


def train(folder: Path, tmp_path: Path) -> list:
    model = MixtralForCausalLM.from_pretrained(folder, device="cpu")
    trainer = Trainer(model, lambda step: (IDS, IDS), TrainingConfig(steps=2, warmup_steps=0))
    trainer.train(progress=False)
    trainer.save(tmp_path / "state")
    trainer.load(tmp_path / "state")
    return [*(step["loss"] for step in trainer.history), *(p.detach() for p in model.parameters())]


def analyse(folder: Path, tmp_path: Path) -> list:
    model = MixtralForCausalLM.from_pretrained(folder, device="cpu")
    tokenizer = MixtralTokenizer.from_pretrained("tiny")
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    chosen = routing.chosen_experts(model(ids, output_router_logits=True).router_logits, 2)
    first, second = chosen[0, :, 0], chosen[1, :, 0]
    found = [
        ids, chosen, routing.token_shares(chosen[0], 5), *routing.repetition(chosen[0]),
        *routing.shuffled_repetition(chosen[0]), routing.mutual_information(first, second),
        routing.shuffled_information(first, second), routing.entropy(first),
        routing.jensen_shannon(routing.token_shares(first, 5), routing.token_shares(second, 5)),
        expert_load(model, tokenizer, ["Once upon a time"]), bits_per_byte(model, tokenizer, ["Once upon a time"]),
        torch.from_numpy(lost_keys(4, 6, 3, write_first=True)[1]), left_padded(5, 2),
    ]  # fmt: skip
    for change in (routing.random_experts(0), routing.knock_out(1), routing.top_one):
        with routing.rerouted(model, change):
            found.append(model(ids).logits.detach())
    return found


WORKS = [forward, dense, generate, quantize, save_and_convert, classify, train, analyse]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_nothing_depends_on_the_settings_of_the_process(work, checkpoint: Path, tmp_path: Path):
    found = {}
    for name, setting in {"usual": nullcontext, **SETTINGS}.items():
        folder = tmp_path / name
        folder.mkdir()
        with setting():
            torch.manual_seed(0)
            before = state()
            found[name] = work(checkpoint, folder)
            if work is classify:  # draws the new head's weights
                torch.manual_seed(0)
            assert state() == before
    for name in SETTINGS:
        for one, usual in zip(found[name], found["usual"], strict=True):
            if isinstance(usual, torch.Tensor):
                assert one.dtype == usual.dtype and torch.equal(one, usual), name
            else:
                assert one == usual, name


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_what_was_loaded_in_inference_mode_can_be_trained(checkpoint: Path, quantization: str | None):
    with torch.inference_mode():
        model = MixtralForCausalLM.from_pretrained(checkpoint, quantization=quantization)
        later = MixtralForCausalLM.from_pretrained(checkpoint)
        if quantization:
            quantize_model(later, quantization)
    for each in (model, later):
        each(IDS, labels=IDS).loss.backward()
        assert each.lm_head.weight.grad.abs().sum() > 0


def test_a_new_model_follows_the_defaults(make_config):
    with torch.device("meta"), default_dtype(torch.bfloat16):
        model = MixtralForCausalLM(make_config())
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


# Of the default dtype, where none is said.
FLOATS = {"zeros", "ones", "empty", "rand", "randn", "linspace", "logspace", "eye"}
MAKERS = FLOATS | {"full", "arange", "tensor", "as_tensor", "asarray", "randint", "randperm"}


def test_whatever_makes_a_tensor_says_where_and_of_which_type(repository: Path):
    """But for parameters and buffers of new modules, and exercises, which run with usual settings."""
    silent = []
    for path in sorted((repository / "mixtral_edu").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        own = {id(argument) for call in calls if ast.unparse(call.func).endswith(("Parameter", "register_buffer"))
               for argument in call.args}  # fmt: skip
        for call in calls:
            library, _, maker = ast.unparse(call.func).rpartition(".")
            needed = {"device"} | ({"dtype"} if maker in FLOATS else set())
            missing = needed - {keyword.arg for keyword in call.keywords}
            if library == "torch" and maker in MAKERS and missing and id(call) not in own:
                silent.append(f"{path.name}:{call.lineno}: {maker} without {missing}")
    assert [place for place in silent if not place.startswith("lesson_")] == []
