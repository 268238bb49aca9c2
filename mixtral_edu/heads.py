"""Heads score the decoder's vectors: for the next token, a label of a text or of each token, an answer's place.

Each is one linear layer on the last hidden states, under the name that transformers gives it. It adds its scores, and
with labels its loss, to what the decoder returns. Only the language model's loss includes the load-balancing loss; for
other heads, `moe.load_balancing_loss` computes that from the router logits.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.config import Config
from mixtral_edu.model import Decoder, Output, init_module
from mixtral_edu.moe import load_balancing_loss

IGNORED_LABEL = -100  # marks a token that the loss skips, such as padding


class WithHead(nn.Module):
    """A decoder, `model`, of the class `decoder`, and a head. Subclasses implement `read`, or `forward` as a whole."""

    def __init__(self, config: Config, decoder: type[Decoder] = Decoder):
        super().__init__()
        self.config = config
        self.model = decoder(config)

    def new_head(self, outputs: int, bias: bool) -> nn.Linear:
        """Return a linear layer from D to `outputs` numbers, initialised as the decoder's layers are."""
        head = nn.Linear(self.config.hidden_size, outputs, bias=bias)
        init_module(head, self.config.initializer_range)
        return head

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Any = None, **options: Any
    ) -> Output:
        """Run the decoder, passing on `options`, on T new tokens of B texts; add the head's scores and loss."""
        out, mask = self.decode(input_ids, attention_mask, options)
        self.read(out, labels, input_ids, mask)
        return out

    def decode(self, input_ids: Any, attention_mask: Any, options: dict[str, Any]) -> tuple[Output, Tensor | None]:
        """Return a copy of the decoder's output (hooks may keep the original), and the new tokens' mask (B, T)."""
        out = replace(self.model(input_ids, attention_mask, **options))
        return out, None if attention_mask is None else attention_mask[:, -out.last_hidden_state.shape[1] :]

    def read(self, out: Output, labels: Any, input_ids: Tensor | None, mask: Tensor | None) -> None:
        """Add scores, and with labels the loss, to `out`; `mask` (B, T) covers the new tokens."""
        raise NotImplementedError


class CausalLM(WithHead):
    """The language model: for each token, a score (logit) for every possible next one; softmax gives probabilities."""

    def __init__(self, config: Config, decoder: type[Decoder] = Decoder):
        super().__init__(config, decoder)
        self.lm_head = self.new_head(config.vocab_size, bias=False)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0, **options: Any,
    ) -> Output:  # fmt: skip
        """Score the next token after each of T new tokens of B texts.

        Args (`options` are those of `Decoder.forward`):
            labels: (B, T), the input ids again, each predicted from those before it (teacher forcing); -100 is skipped.
            logits_to_keep: score only the last n tokens, or those at given indices; 0: all, which `labels` need.
        """
        out, mask = self.decode(input_ids, attention_mask, options)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        out.logits = self.lm_head(out.last_hidden_state[:, kept])  # (B, T or kept, V)
        if labels is not None:
            out.loss = next_token_loss(out.logits, labels)
        if out.router_logits is not None:
            E, K = self.config.num_local_experts, self.config.num_experts_per_tok
            out.aux_loss = load_balancing_loss(out.router_logits, E, K, mask)
            if labels is not None:
                out.loss = out.loss + self.config.router_aux_loss_coef * out.aux_loss
        return out


def mean_cross_entropy(logits: Tensor, labels: Tensor, ignored: int = IGNORED_LABEL) -> Tensor:
    """Mean cross-entropy in nats, -log softmax(logits)[label], of logits (N, C) and labels (N,); a float32 scalar.

    Labels equal to `ignored` do not count. If none counts, loss and gradient are 0, not nan, which spoils averages.
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp(min=1)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) that predict labels (B, T) one token ahead; a float32 scalar."""
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # cutting the last logits off would copy all others
    return mean_cross_entropy(logits.flatten(0, 1), wanted.flatten())


class SequenceClassifier(WithHead):
    """A label for a whole text, read from its last real token, the only one that has seen all the others.

    logits = score(x[last])        `config.num_labels` of them

    The last real token is the last of the new ones whose mask is 1 or, without a mask, whose id is not
    `config.pad_token_id`. A row that has none gets the logits of its first column: finite but meaningless.
    """

    def __init__(self, config: Config, decoder: type[Decoder] = Decoder):
        super().__init__(config, decoder)
        self.score = self.new_head(config.num_labels, bias=False)

    def read(self, out: Output, labels: Tensor | None, input_ids: Tensor | None, mask: Tensor | None) -> None:
        """Score the classes of B texts; `labels` (B,) are the right ones, -100 for a text without one."""
        x, pad = out.last_hidden_state, self.config.pad_token_id  # (B, T, D)
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask is not None:
            real = mask.to(x.device) != 0
        elif input_ids is not None and pad is not None:
            real = input_ids != pad
        last = x[torch.arange(len(x), device=x.device), last_real_column(real)]  # (B, D)
        out.logits = self.score(last)  # (B, num_labels)
        if labels is not None:
            out.loss = self.loss(out.logits, labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of logits (B, num_labels) and labels (B,); a float32 scalar."""
        return mean_cross_entropy(logits, labels)


def last_real_column(real: Tensor) -> Tensor:
    """Return the last column that is True in each row of `real` (B, T), as (B,); 0 for a row without one.

    >>> last_real_column(torch.tensor([[True, True, False], [False, True, True], [False, False, False]]))
    tensor([1, 2, 0])
    """
    return (real * torch.arange(real.shape[1], device=real.device)).amax(1)


class TokenClassifier(WithHead):
    """A label for each token, based on that token and those before it.

    logits = score(dropout(x))        `config.num_labels` per token; dropout in training only
    """

    def __init__(self, config: Config, decoder: type[Decoder] = Decoder, dropout: float = 0.1):
        super().__init__(config, decoder)
        self.dropout = nn.Dropout(dropout)
        self.score = self.new_head(config.num_labels, bias=True)

    def read(self, out: Output, labels: Tensor | None, input_ids: Tensor | None, mask: Tensor | None) -> None:
        """Score the classes of T new tokens; `labels` (B, T) are those of the same tokens, or -100 to skip one."""
        out.logits = self.score(self.dropout(out.last_hidden_state))  # (B, T, num_labels)
        if labels is not None:
            out.loss = mean_cross_entropy(out.logits.flatten(0, 1), labels.flatten())


class QuestionAnswerer(WithHead):
    """Where in a text the answer to a question starts and ends: two scores for each token.

    start_logits, end_logits = qa_outputs(x)        a softmax over the tokens gives probabilities
    """

    def __init__(self, config: Config, decoder: type[Decoder] = Decoder):
        super().__init__(config, decoder)
        self.qa_outputs = self.new_head(2, bias=True)

    def read(self, out: Output, labels: Any, input_ids: Tensor | None, mask: Tensor | None) -> None:
        """Score each new token as the answer's first and as its last; `labels` are their true columns, (B,) each."""
        out.start_logits, out.end_logits = self.qa_outputs(out.last_hidden_state).movedim(2, 0).contiguous()  # (B, T)
        if labels is not None:
            out.loss = (position_loss(out.start_logits, labels[0]) + position_loss(out.end_logits, labels[1])) / 2


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the T columns of logits (B, T), padding included; a float32 scalar.

    `positions` (B,) are the true columns. Those of T or more are skipped; negative ones count as 0.
    """
    T = logits.shape[1]
    return mean_cross_entropy(logits, positions.clamp(0, T), ignored=T)
