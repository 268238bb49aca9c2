"""Heads for fine-tuning: a label for a whole text, a label for each token, or where in a text the answer stands.

Each is one linear layer on the decoder's last hidden states, under the name that transformers gives it. A base or
causal checkpoint such as "tiny" has none: `from_pretrained` then makes a new one, warns once, and it is to be trained.

No head adds the load-balancing loss to its own, as none does in transformers; `load_balancing_loss` computes it from
the router logits of `output_router_logits=True`. Where no label of a batch counts, a loss is 0 (see
`mixtral_edu.model.mean_cross_entropy`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixtral_edu.cache import RollingKVCache
from mixtral_edu.config import MixtralConfig
from mixtral_edu.input_checks import check_answer, check_labels, check_sequence_labels, check_tokens
from mixtral_edu.model import MixtralModel, mean_cross_entropy
from mixtral_edu.pretrained import MixtralOutput, MixtralQuestionAnsweringOutput, PreTrained


class MixtralForSequenceClassification(PreTrained):
    """A label for a whole text, read off its last real token: the only one that has all the others before it.

    logits = score(x[last])        `config.num_labels` of them, named by `config.id2label`

    The last real token is, among the new ones, the last position whose mask is 1, or without a mask the last whose id
    is not `config.pad_token_id`. A row that has none gets the logits of its first position: finite, without meaning.

    transformers looks for the pad id whether there is a mask or not. That comes to the same where the mask is 0 at pad
    ids and nowhere else. It does not where a text ends in the pad id, as when the eos token serves for padding too:
    transformers then takes the token before. Nor does it for `inputs_embeds`, of which it takes the last column,
    padding or not; and without a `pad_token_id` it refuses several rows, mask or no mask.
    """

    head_keys = ("score.",)
    optional_head = True

    def __init__(self, config: MixtralConfig):
        super().__init__(config)
        self.model = MixtralModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: RollingKVCache | None = None,
        **outputs: bool | None,
    ) -> MixtralOutput:
        """Score the labels of B texts; the logits are (B, num_labels).

        Args (beyond those of `MixtralModel.forward`; `outputs` are its `output_...`):
            labels: what they have to be depends on `config.problem_type`; where that is None, one label is taken as a
                regression, whole numbers as single labels and floating-point numbers as multiple ones.
                "single_label_classification": (B,) classes; -100 is not counted.
                "multi_label_classification": (B, num_labels), from 0.0 to 1.0.
                "regression": (B, num_labels) numbers, or (B,) of them if `num_labels` is 1.

        Raises (beyond what `MixtralModel.forward` does):
            ValueError: several rows of which the ends are unknown: without a mask, and without a `pad_token_id` or ids
                to compare it with; or labels that do not fit.
        """
        config = self.config
        B, T = check_tokens(config, input_ids, inputs_embeds).shape[:2]
        ids_tell = input_ids is not None and config.pad_token_id is not None
        if attention_mask is None and not ids_tell and B > 1:
            lacking = "inputs_embeds have no ids" if input_ids is None else "config.pad_token_id is None"
            raise ValueError(
                f"attention_mask is None and {lacking}: where each of {B} rows ends is not known; give attention_mask, "
                "or input_ids with a config.pad_token_id"
            )
        if labels is not None:
            problem_type = problem_type_of(config, labels)
            check_sequence_labels(labels, problem_type, B, config.num_labels)
        out = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache=cache, **outputs
        )
        x = out.last_hidden_state  # (B, T, D)
        if attention_mask is not None:
            real = attention_mask[:, -T:].to(x.device) != 0
        elif ids_tell:
            real = input_ids != config.pad_token_id
        else:
            real = torch.ones(B, T, dtype=torch.bool, device=x.device)
        last = x[torch.arange(B, device=x.device), last_real_column(real)]  # (B, D)
        logits = self.score(last)  # (B, num_labels)
        loss = None if labels is None else sequence_loss(logits, labels, problem_type)
        return MixtralOutput(
            loss, None, logits, out.past_key_values, out.router_logits, out.hidden_states, out.attentions
        )


def last_real_column(real: Tensor) -> Tensor:
    """The last column of each row of `real` (B, T) that is True, as (B,); 0 for a row without one.

    >>> last_real_column(torch.tensor([[True, True, False], [False, True, True], [False, False, False]]))
    tensor([1, 2, 0])
    """
    return (real * torch.arange(real.shape[1], device=real.device)).amax(1)


def problem_type_of(config: MixtralConfig, labels: Tensor) -> str:
    """The config's problem type; where it is None, the one that the labels' number and dtype tell, as in transformers.

    There a model keeps the type that its first labels tell, and saves it. Here the config stays as it is.
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    several = isinstance(labels, Tensor) and labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"


def sequence_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Mean loss of logits (B, num_labels); a float32 scalar. The labels are as `problem_type` wants them.

    Squared error for "regression", cross entropy in nats over the labels for "single_label_classification", and over
    yes and no for each label of "multi_label_classification". 0 where all classes are -100.
    """
    logits = logits.float()
    if problem_type == "regression":
        return F.mse_loss(logits, labels.float().view_as(logits))
    if problem_type == "single_label_classification":
        return mean_cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float())


class MixtralForTokenClassification(PreTrained):
    """A label for each token, from what it and the tokens before it say.

    logits = score(dropout(x))        `config.num_labels` per token, named by `config.id2label`

    The dropout, in training only, has the rate 0.1, or the `classifier_dropout` that a `config.json` may hold.
    """

    head_keys = ("score.",)
    optional_head = True

    def __init__(self, config: MixtralConfig):
        super().__init__(config)
        self.model = MixtralModel(config)
        dropout = config.extra.get("classifier_dropout")
        if not (dropout is None or isinstance(dropout, int | float) and 0 <= dropout < 1):
            raise ValueError(f"classifier_dropout={dropout!r}: it must be a number from 0 to below 1")
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: RollingKVCache | None = None,
        **outputs: bool | None,
    ) -> MixtralOutput:
        """Score the labels of each of T new tokens of B texts; the logits are (B, T, num_labels).

        Args (beyond those of `MixtralModel.forward`; `outputs` are its `output_...`):
            labels: (B, T) classes of the very tokens that stand there; -100, to be given to padding, is not counted.
        """
        if labels is not None:
            tokens = check_tokens(self.config, input_ids, inputs_embeds)
            check_labels(labels, tokens.shape[:2], self.config.num_labels, "num_labels")
        out = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache=cache, **outputs
        )
        logits = self.score(self.dropout(out.last_hidden_state))  # (B, T, num_labels)
        loss = None
        if labels is not None:
            loss = mean_cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MixtralOutput(
            loss, None, logits, out.past_key_values, out.router_logits, out.hidden_states, out.attentions
        )


class MixtralForQuestionAnswering(PreTrained):
    """Where in a text the answer to a question starts and ends: two scores for each token.

    start_logits, end_logits = qa_outputs(x)        a softmax over the tokens gives probabilities
    """

    head_keys = ("qa_outputs.",)
    optional_head = True

    def __init__(self, config: MixtralConfig):
        super().__init__(config)
        self.model = MixtralModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        use_cache: bool | None = None,
        cache: RollingKVCache | None = None,
        **outputs: bool | None,
    ) -> MixtralQuestionAnsweringOutput:
        """Score each of T new tokens of B texts as the first and as the last one of the answer.

        Args (beyond those of `MixtralModel.forward`; `outputs` are its `output_...`):
            start_positions, end_positions: (B,) columns of the answer's first and last token. As in transformers, one
                beyond the text, T or more, is not counted, and a negative one counts as 0.
        """
        if start_positions is not None or end_positions is not None:
            tokens = check_tokens(self.config, input_ids, inputs_embeds)
            check_answer(start_positions, end_positions, len(tokens))
        out = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache=cache, **outputs
        )
        start_logits, end_logits = self.qa_outputs(out.last_hidden_state).movedim(2, 0).contiguous()  # (B, T) each
        loss = None
        if start_positions is not None:
            loss = (position_loss(start_logits, start_positions) + position_loss(end_logits, end_positions)) / 2
        return MixtralQuestionAnsweringOutput(
            loss, start_logits, end_logits, out.past_key_values, out.router_logits, out.hidden_states, out.attentions
        )


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean cross entropy in nats over the T columns of logits (B, T), padding included; a float32 scalar.

    `positions` (B,) of T or more are not counted, negative ones are taken as 0; where none counts, the loss is 0.
    """
    T = logits.shape[1]
    return mean_cross_entropy(logits, positions.clamp(0, T), ignored=T)
