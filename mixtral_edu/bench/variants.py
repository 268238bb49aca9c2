"""The model that is measured, and its forms."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixtral_edu.attention import check_backend
from mixtral_edu.bench.tasks import Task
from mixtral_edu.checkpoints.memory import dtype_name, require_memory
from mixtral_edu.config import MixtralConfig
from mixtral_edu.fast.weights import keep_fast_weights
from mixtral_edu.model import MixtralForCausalLM
from mixtral_edu.pretrained import init_module
from mixtral_edu.quantization.model import QuantizationConfig, checkpoint_bytes, install, quantized_layers

_LONGEST_QUANTIZED_PREFILL = 512


def benchmark_config(quick: bool = False) -> MixtralConfig:
    """Return the sizes of the measured model: 8 layers and 214 million parameters, or 2 layers if quick."""
    return MixtralConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=2 if quick else 8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        sliding_window=256,
    )


@dataclass(frozen=True)
class Variant:
    """One form of our model: plain as loaded, packed for inference, compiled, or a CUDA graph; quantized or not.

    `attention` and `experts` name implementations; None for the default.
    """

    dtype: torch.dtype
    packed: bool = False
    compiled: bool = False
    graph: bool = False
    quantization: str | None = None
    attention: str | None = None
    experts: str | None = None

    @property
    def name(self) -> str:
        whole = " ".join(word for word, holds in (("compiled", self.compiled), ("graph", self.graph)) if holds)
        form = whole or ("packed" if self.packed else "plain")
        if self.quantization is not None:
            form = self.quantization if form == "packed" else f"{form} {self.quantization}"
        return " ".join(filter(None, (form, dtype_name(self.dtype), self.attention)))

    @property
    def one_program(self) -> bool:
        """Whether a decoding step is one program, which must be compiled or recorded first."""
        return self.compiled or self.graph

    def takes(self, task: Task) -> bool:
        """Return whether this form is measured in a task."""
        if self.one_program:  # only the step that adds a token is one program
            return task.kind == "decode"
        if self.quantization is not None:
            short_prefill = task.kind == "prefill" and task.tokens <= _LONGEST_QUANTIZED_PREFILL
            return short_prefill or task.kind == "decode" and self.packed
        return task.kind in ("prefill", "decode") or task.kind == "train" and not self.packed

    def load(self, folder: Path, device: torch.device) -> MixtralForCausalLM:
        """Load this form from a checkpoint."""
        model = MixtralForCausalLM.from_pretrained(
            folder,
            dtype=self.dtype,
            device=device,
            quantization=self.quantization,
            attn_implementation=self.attention,
            experts_implementation=self.experts,
        )
        return self._prepared(model)

    def make(self, config: MixtralConfig, device: torch.device) -> MixtralForCausalLM:
        """Make this form with random weights, without a checkpoint."""
        config = replace(
            config,
            attn_implementation=self.attention or config.attn_implementation,
            experts_implementation=self.experts or config.experts_implementation,
        )
        check_backend(config, device, self.dtype, output_attentions=False)
        return self._prepared(random_model(config, self.dtype, device, self.quantization).eval())

    def _prepared(self, model: MixtralForCausalLM) -> MixtralForCausalLM:
        if not self.packed:
            return model
        return keep_fast_weights(model.prepare_for_inference(compile=self.compiled, graph=self.graph))


def random_model(
    config: MixtralConfig, dtype: torch.dtype, device: torch.device, quantization: str | None = None
) -> MixtralForCausalLM:
    """Make a model with random weights in `dtype`, drawn on the device, the same at each call.

    Matrices are quantized one by one, so that no more than one is held unquantized.

    Raises:
        MemoryError: the model needs more memory than the device has free.
        ValueError: the sizes cannot be quantized in this form.
    """
    form = QuantizationConfig.parse(quantization)
    require_memory(checkpoint_bytes(config, form, dtype), device, "a model of these sizes")
    config = replace(config, quantization_config=form.to_dict() if form else None)
    with torch.device("meta"):
        model = MixtralForCausalLM(config).to(dtype)
    quantized = quantized_layers(model, form, dtype) if form else {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for name in [name for name, _ in model.named_modules()]:
            module = model.get_submodule(name).to_empty(device=device, recurse=False)
            init_module(module, config.initializer_range)
            if name in quantized:
                install(model, {name: quantized.pop(name).quantize_(module.weight.detach(), dtype)})
            del module  # frees its memory before the next module is drawn
    return model


def variants(dtype: torch.dtype, device: torch.device, quick: bool = False) -> list[Variant]:
    """Return the forms to measure.

    On a CUDA device the plain and the packed form get one row per way to compute attention, with the experts in one
    product. Quantized forms run in bfloat16, on a CPU also in float32. On a CUDA device they are recorded as a graph
    too. On a CPU a prefill in 4 bits has a second row, in the plain layout. Quick runs skip quantized forms in float32,
    and compiling.
    """
    on_card, rounded = device.type == "cuda", []
    for quantization in ("int8", "int4"):
        packed = Variant(torch.bfloat16, packed=True, quantization=quantization)
        rounded.append(packed)
        if on_card:
            rounded.append(replace(packed, graph=True, experts="grouped"))
        elif quantization == "int4":
            rounded.append(replace(packed, packed=False))
        if not on_card and not quick:
            rounded.append(replace(packed, dtype=torch.float32))
    one_program = [] if quick else [
        Variant(dtype, packed=True, compiled=compiled, graph=graph, experts="grouped")
        for compiled, graph in (((True, False), (False, True), (True, True)) if on_card else ((True, False),))
    ]
    if not on_card:
        return [Variant(dtype), Variant(dtype, packed=True), *one_program, *rounded]
    ways = [
        Variant(dtype, packed, attention=attention, experts="grouped")
        for packed in (False, True)
        for attention in ("eager", "sdpa", "flash_attention_2")
    ]
    return [*ways, *one_program, *rounded]
