"""Weights in 8 and 4 bits: how they are rounded, the layers that multiply with them, a whole model of these."""

from mixtral_edu.quantization.model import QuantizationConfig, checkpoint_bytes, quantize_model

__all__ = ["QuantizationConfig", "checkpoint_bytes", "quantize_model"]
