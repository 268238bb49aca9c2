"""The model that is measured, and its forms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixtral_edu.api.inputs import check_backend
from mixtral_edu.api.models import MixtralForCausalLM
from mixtral_edu.bench.tasks import Task
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.memory import dtype_name, require_memory
from mixtral_edu.model import init_module
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
    """One form of our model: plain as loaded, prepared for inference, compiled, or a CUDA graph; quantized or not.

    All but the plain form come from `prepare_for_inference`. `attention` and `experts` name implementations; None for
    the default.
    """

    dtype: torch.dtype
    prepared: bool = False
    compiled: bool = False
    graph: bool = False
    quantization: str | None = None
    attention: str | None = None
    experts: str | None = None

    @property
    def name(self) -> str:
        whole = " ".join(word for word, holds in (("compiled", self.compiled), ("graph", self.graph)) if holds)
        form = whole or ("prepared" if self.prepared else "plain")
        if self.quantization is not None:
            form = self.quantization if form == "prepared" else f"{form} {self.quantization}"
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
            return short_prefill or task.kind == "decode" and self.prepared
        return task.kind in ("prefill", "decode") or task.kind == "train" and not self.prepared

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
        if copied := self._copied_bytes(config):
            weights = checkpoint_bytes(config, QuantizationConfig.parse(self.quantization), self.dtype)
            require_memory(weights + copied, device, "a model of these sizes, with copies for its kernels,")
        return self._prepared(random_model(config, self.dtype, device, self.quantization).eval())

    def _copied_bytes(self, config: MixtralConfig) -> int:
        """Return about how many bytes of copies `prepare_for_inference` adds to the weights."""
        counts = config.parameter_counts().per_part
        if not self.prepared:
            return 0
        if self.quantization == "int4":  # in the layout of PyTorch's kernel
            return (counts["attention"] + counts["experts"]) // 2
        return counts["experts"] * self.dtype.itemsize if self.quantization is None and self.experts == "grouped" else 0

    def _prepared(self, model: MixtralForCausalLM) -> MixtralForCausalLM:
        if not self.prepared:
            return model
        return model.prepare_for_inference(compile=self.compiled, graph=self.graph)


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

    On a CUDA device the plain and the prepared form get one row per way to compute attention, with the experts in one
    product. Quantized forms run in bfloat16, on a CPU also in float32. On a CUDA device they are recorded as a graph
    too. On a CPU a prefill in 4 bits has a second row, without copies. Quick runs skip quantized forms in float32, and
    compiling.
    """
    on_card = device.type == "cuda"
    ways = ("eager", "sdpa", "flash_attention_2")
    forms = (
        [
            Variant(dtype, prepared, attention=attention, experts="grouped")
            for prepared in (False, True)
            for attention in ways
        ]
        if on_card
        else [Variant(dtype)]
    )
    programs = ((True, False), (False, True), (True, True)) if on_card else ((True, False),)
    for compiled, graph in () if quick else programs:
        forms.append(Variant(dtype, prepared=True, compiled=compiled, graph=graph, experts="grouped"))
    for quantization in ("int8", "int4"):
        form = Variant(torch.bfloat16, prepared=True, quantization=quantization)
        forms.append(form)
        if on_card:
            forms.append(replace(form, graph=True, experts="grouped"))
        elif quantization == "int4":
            forms.append(replace(form, prepared=False))
        if not on_card and not quick:
            forms.append(replace(form, dtype=torch.float32))
    return forms


def choose_forms(names: Sequence[str] | None, forms: Sequence[Variant]) -> list[Variant]:
    """Return the forms that `names` stand for, in the order of `forms`; all of them if it is None.

    A name is a form's name, or the first words of some.

    >>> forms = variants(torch.float32, torch.device("cpu"))
    >>> [form.name for form in choose_forms(["plain float32", "int4"], forms)]
    ['plain float32', 'int4 bfloat16', 'int4 float32']

    Raises:
        ValueError: a name is neither.
    """
    if names is None:
        return list(forms)
    found = {name: [form for form in forms if f"{form.name} ".startswith(f"{name} ")] for name in names}
    for name, chosen in found.items():
        if not chosen:
            known = ", ".join(form.name for form in forms)
            raise ValueError(f"forms={name!r}: it must be one of {known}, or the first words of some")
    return [form for form in forms if any(form in chosen for chosen in found.values())]
