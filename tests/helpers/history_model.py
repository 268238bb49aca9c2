"""A stand-in for a language model, small enough to be predicted by hand."""

from types import SimpleNamespace

import torch
from torch import nn

V = 330
PROMPTS = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10], [0, 11, 12, 13]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
ALONE = [[5, 6], [7, 8, 9, 10], [11, 12, 13]]


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
                                          training=self.training, grad=torch.is_grad_enabled(),
                                          inference=torch.is_inference_mode_enabled()))  # fmt: skip
        return SimpleNamespace(logits=self.dropout(logits), past_key_values=rows)


def hash_of(row: list[int]) -> int:
    return sum((i + 1) * token for i, token in enumerate(row)) % V


def greedy_path(model: HistoryModel, prompt: list[int], count: int) -> list[int]:
    """The truth for one row, without any of the code under test."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(model.table[hash_of(row)].argmax()))
    return row[len(prompt) :]
