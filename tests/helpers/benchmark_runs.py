"""What the benchmark's tests run, and rows to show."""

import torch

from mixtral_edu.bench.results import Result

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "vocab_size": 96}  # what quantization can take
TINY_RUN = {"tasks": ["prefill-9", "decode-2-5", "train-2-5"], "seconds": 0.01, "threads": 1, "quick": True}
RESULTS = [
    Result("prefill-512", "plain float32", (0.2, 0.21, 0.22), (0.3, 0.31, 0.3), tokens=512, against="transformers",
           setting="sdpa, eager, float32", floor=0.1),
    Result("prefill-512", "int4 bfloat16", (0.4, 0.4, 0.5), (0.3, 0.31, 0.3), tokens=512, against="transformers",
           setting="sdpa, eager, float32", floor=0.1),
    Result("loading", "peak memory", (2e9,), (3e9,), unit="bytes", against="transformers", setting="float32"),
]  # fmt: skip
