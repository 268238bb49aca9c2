"""Which model is measured, and in which forms."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixtral_edu.benchmark_tasks import Task
from mixtral_edu.config import MixtralConfig
from mixtral_edu.model import MixtralForCausalLM
from mixtral_edu.placement import dtype_name, require_memory
from mixtral_edu.quantization import checkpoint_bytes, quantize_model

_LONGEST_QUANTIZED_PREFILL = 512


def benchmark_config(quick: bool = False) -> MixtralConfig:
    """The sizes that are measured: 8 layers, 214 million parameters; 2 layers if quick."""
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
    """One form of our model: plain as loaded, packed for inference, or packed and compiled; quantized or not.

    `attention` and `experts`: implementations; None for the default.
    """

    dtype: torch.dtype
    packed: bool = False
    compiled: bool = False
    quantization: str | None = None
    attention: str | None = None
    experts: str | None = None

    @property
    def name(self) -> str:
        form = "compiled" if self.compiled else "packed" if self.packed else "plain"
        if self.quantization is not None:
            form = self.quantization if self.packed else f"plain {self.quantization}"
        return " ".join(filter(None, (form, dtype_name(self.dtype), self.attention)))

    def takes(self, task: Task) -> bool:
        """Whether this form is measured in that task."""
        if self.compiled:  # which concerns the step that adds a token
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
        """Make this form with random weights, where there is no checkpoint."""
        config = replace(
            config,
            attn_implementation=self.attention or config.attn_implementation,
            experts_implementation=self.experts or config.experts_implementation,
        )
        model = random_model(config, self.dtype, device).eval()
        if self.quantization is not None:
            quantize_model(model, self.quantization)
        return self._prepared(model)

    def _prepared(self, model: MixtralForCausalLM) -> MixtralForCausalLM:
        return model.prepare_for_inference(compile=self.compiled) if self.packed else model


def random_model(config: MixtralConfig, dtype: torch.dtype, device: torch.device) -> MixtralForCausalLM:
    """Make a model with random weights in `dtype` on the device, where each is drawn; the same ones at each call.

    Raises:
        MemoryError: the device has not so much memory free.
    """
    require_memory(checkpoint_bytes(config, dtype=dtype), device, "a model of these sizes")
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            return MixtralForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)


def variants(dtype: torch.dtype, device: torch.device, quick: bool = False) -> list[Variant]:
    """The forms to measure; on a CUDA device each with all ways to compute attention, and experts in one product.

    Quantized forms take bfloat16, and on a CPU float32 too; there a prefill has a row for the plain layout as well,
    which suits it better. Quick runs leave float32 out, and compiling.
    """
    on_card = device.type == "cuda"
    rounded = [
        Variant(kind, packed=packed, quantization=quantization)
        for quantization in ("int8", "int4")
        for kind in ((torch.bfloat16,) if quick or on_card else (torch.bfloat16, torch.float32))
        for packed in ((True,) if on_card else (False, True))
    ]
    compiled = [] if quick else [Variant(dtype, packed=True, compiled=True, experts="grouped")]
    if not on_card:
        return [Variant(dtype), Variant(dtype, packed=True), *compiled, *rounded]
    ways = [
        Variant(dtype, packed, attention=attention, experts="grouped")
        for packed in (False, True)
        for attention in ("eager", "sdpa", "flash_attention_2")
    ]
    return [*ways, *compiled, *rounded]
