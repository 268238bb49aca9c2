"""The model classes: the textbook's decoder and heads, with checks of their arguments, loading and saving."""

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixtral_edu.api import embeddings, generation, surface
from mixtral_edu.api.cache import RollingKVCache
from mixtral_edu.api.inputs import (
    check_answer,
    check_backend,
    check_inputs,
    check_labels,
    check_sequence_labels,
    check_tokens,
    given_cache,
    problem_type_of,
    sequence_loss,
    with_effect,
)
from mixtral_edu.api.output import AnswerOutput, CausalOutput, MixtralOutput, SequenceOutput, TokenOutput
from mixtral_edu.api.visibility import visibility_of
from mixtral_edu.checkpoints import huggingface
from mixtral_edu.checkpoints.config import MixtralConfig
from mixtral_edu.checkpoints.huggingface import LAYERS_DRAW, WithoutDrawing
from mixtral_edu.checkpoints.memory import free_memory
from mixtral_edu.fast import checkpointing, decoding
from mixtral_edu.fast.engine import install
from mixtral_edu.heads import CausalLM, QuestionAnswerer, SequenceClassifier, TokenClassifier, WithHead
from mixtral_edu.model import Decoder, init_module


class PreTrained(nn.Module):
    """What every model class shares: a config, an initialisation, loading and saving.

    For loading: `head_keys` are the prefixes of the class's own head, and `optional_head` tells whether a checkpoint
    without them may be loaded. The engine is installed; `fast.engine.remove` takes it out.
    """

    head_keys: tuple[str, ...] = ()
    optional_head = False

    prepared: decoding.Prepared | None = None  # what `prepare_for_inference` made

    def __init__(self, config: MixtralConfig, **parts: Any):
        if not isinstance(config, MixtralConfig):
            raise TypeError(f"config is a {type(config).__name__}; it must be a MixtralConfig")
        with WithoutDrawing(*LAYERS_DRAW):  # `init_module` draws right after
            if isinstance(self, Decoder | WithHead):
                super().__init__(config, **parts)
            else:  # somebody's own model, who adds its parts afterwards
                super().__init__(**parts)
                self.config = config
        config.bind()
        install(self)
        if type(self).init_weights is not PreTrained.init_weights:
            self.init_weights()

    @property
    def config(self) -> MixtralConfig:
        """Sizes and settings. To change a setting, assign its field: all layers read this one config."""
        return self._config

    @config.setter
    def config(self, config: MixtralConfig) -> None:
        if config is not self.__dict__.setdefault("_config", config):
            name = type(self).__name__
            raise AttributeError(f"config: a model keeps the one it was built from; assign its fields, as in "
                                 f"model.config.use_cache = False, or build another model, {name}(config)")  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def init_weights(self) -> None:
        """Draw every matrix from a normal distribution of deviation `config.initializer_range`.

        Norms are ones, biases and the embedding of padding zeros.
        """
        self.apply(partial(init_module, deviation=self.config.initializer_range))

    def check_backend(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raise a ValueError unless the config's backends can run such a model and return what the config asks for."""
        check_backend(self.config, device, dtype, self.config.output_attentions, self)

    def prepare_for_inference(self, compile: bool = False, graph: bool = False) -> Self:
        """Switch to evaluation mode, get ready what `generate` can keep between texts, and return the model.

        Layers keep copies of their weights in the order that kernels read fastest, if it is another one than their own:
        4-bit ones for PyTorch's kernels, plain ones where oneDNN's order is faster here, stacked experts with
        `experts_implementation="grouped"`. They take up to as much memory as the weights; those that do not fit in half
        of the free memory are left out. Otherwise `generate` makes them for each text that repays it. Results stay the
        same to rounding.

        Args:
            compile: let `torch.compile` make one program of the step that continues a text by one token, which
                `generate` then uses. The first steps take it some ten seconds and a C++ compiler; with
                `experts_implementation="grouped"` nothing is left out of the program.
            graph: on a CUDA device, record that step for each cache and replay it, see `mixtral_edu.fast.cuda_graph`;
                with `experts_implementation="grouped"` (of at most 64 rows, unless in bfloat16 on Hopper or Blackwell)
                and another attention than FlashAttention-2.

        With either, hooks and other changes to the model are not seen by the step: call `train()`, which drops it, then
        this again.

        Raises:
            ValueError: a graph of a model that is on no CUDA device.
        """
        if graph and self.device.type != "cuda":
            raise ValueError(f"graph=True needs a model on a CUDA device, and this one is on {self.device}")
        self.eval()
        decoding.prepare(self, compile, graph, free_memory(self.device) // 2)
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, which drops what `prepare_for_inference` made, or with False to evaluation mode."""
        if mode:
            decoding.drop(self)
        return super().train(mode)

    def _apply(self, fn, recurse=True):  # moves to a device, changes the dtype
        decoding.drop(self)
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:  # of a copy
        return {name: value for name, value in self.__dict__.items() if name != "prepared"}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, whose config belongs to it
        super().__setstate__(state)
        self._config.bind()

    from_pretrained = classmethod(huggingface.load_pretrained)
    save_pretrained = huggingface.save_pretrained

    get_input_embeddings = embeddings.get_input_embeddings
    set_input_embeddings = embeddings.set_input_embeddings
    get_output_embeddings = embeddings.get_output_embeddings
    resize_token_embeddings = embeddings.resize_token_embeddings

    num_parameters = surface.num_parameters
    get_memory_footprint = surface.get_memory_footprint
    tie_weights = surface.tie_weights
    generation_config = property(surface.generation_config)
    set_attn_implementation = surface.set_attn_implementation
    set_experts_implementation = surface.set_experts_implementation

    activation_checkpointing_enable = surface.activation_checkpointing_enable
    activation_checkpointing_disable = surface.activation_checkpointing_disable
    is_activation_checkpointing = property(surface.is_activation_checkpointing)
    gradient_checkpointing_enable = surface.gradient_checkpointing_enable
    gradient_checkpointing_disable = surface.activation_checkpointing_disable
    is_gradient_checkpointing = property(surface.is_activation_checkpointing)


class MixtralModel(PreTrained, Decoder):
    """The decoder without a head: token ids in, one vector per token out."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: RollingKVCache | None = None,
        return_dict: bool | None = None,
    ) -> MixtralOutput | tuple[Any, ...]:
        """Run the decoder on T new tokens of B texts.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for real tokens and 0 for padding, anywhere; with a cache also (B, P + T) for the
                P columns that it has seen, which it remembers itself: it cannot hide more of them. None means that all
                are real.
                (B or 1, Hq or 1, T, P + T) replaces the causal rule, window and all: True, or 0.0, where a query may
                attend, and False, or -inf, where not. A query that sees no key gathers 0.
            position_ids: (B, T) or (1, T), for the rotary embedding, in place of each row's own count. Without mask and
                cache, positions that do not rise by 1 begin another text: 0 1 2 0 1 are two, packed into one row, and
                neither sees the other. Give `use_cache=False` for that. With a mask or a cache, they do not change
                which tokens may be seen.
            past_key_values: a cache to read and extend; made here if None and `use_cache`.
            inputs_embeds: (B, T, D), in place of `input_ids`.
            use_cache, output_router_logits, output_hidden_states, output_attentions: what to return; None means the
                config's value.
            cache: another name of `past_key_values`, the only one in newer releases of transformers. What is returned
                has both names too.
            return_dict: False returns `MixtralOutput.to_tuple()`.

        Raises:
            TypeError: an argument that should be a tensor, or a cache, is something else.
            ValueError: neither or both of ids and embeddings, an id outside the vocabulary, shapes that do not fit, a
                cache made for something else, or given by both names, `output_attentions` with a backend that has no
                weights to show, a backend that cannot run on the model's device or dtype, a mask of four dimensions
                that holds other numbers than 0 and -inf, or is given with a cache that holds padding or whose window is
                full, one of two dimensions that hides what a cache holds, or positions that fall, given with a mask or
                a cache.
            RuntimeError: the cache was left half-written by a pass that failed.
        """
        config, device = self.config, self.device
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        dtype = getattr(inputs_embeds, "dtype", self.dtype)
        past_key_values = given_cache(past_key_values, cache)
        check_backend(config, device, dtype, output_attentions, self)
        B, T = check_inputs(config, dtype, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        if self.embed_tokens.padding_idx != config.pad_token_id:  # the row that learns nothing
            self.embed_tokens.padding_idx = config.pad_token_id
        if past_key_values is None and use_cache is None:  # a layer computed twice in training cannot extend a cache
            use_cache = config.use_cache and not any(map(checkpointing.is_active, self.layers))
        if past_key_values is None and use_cache:
            past_key_values = RollingKVCache(config, B, device=device, dtype=dtype)
        visibility = visibility_of(attention_mask, position_ids, past_key_values, T, config.sliding_window, device)
        out = super().forward(
            input_ids,
            with_effect(attention_mask, T) if visibility is None else None,
            position_ids,
            past_key_values,
            inputs_embeds,
            config.output_router_logits if output_router_logits is None else output_router_logits,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            output_attentions,
            visibility,
        )
        return MixtralOutput(**vars(out)).as_asked(return_dict)


class _WithHead(PreTrained):
    """What the classes with a head share: their decoder is a `MixtralModel`, and they return an `output_class`."""

    output_class: type[MixtralOutput]

    def __init__(self, config: MixtralConfig, **parts: Any):
        super().__init__(config, decoder=MixtralModel, **parts)

    def decode(
        self, input_ids: Any, attention_mask: Any, options: dict[str, Any]
    ) -> tuple[MixtralOutput, Tensor | None]:
        """As in the textbook; a mask of four dimensions does not tell what is padding."""
        out, mask = super().decode(input_ids, attention_mask, options)
        return self.output_class(**vars(out)), None if mask is None or mask.ndim == 4 else mask


class MixtralForCausalLM(_WithHead, CausalLM):
    """The language model: for each token, a score for every possible next one."""

    head_keys = ("lm_head.",)
    output_class = CausalOutput

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RollingKVCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: RollingKVCache | None = None,
        return_dict: bool | None = None,
    ) -> MixtralOutput | tuple[Any, ...]:
        """Score the next token after each of T new tokens of B texts.

        Args (beyond those of `MixtralModel.forward`):
            labels: (B, T), the input ids again; each is predicted from the tokens before it, and -100 is not counted.
                Give -100 to padding, and after padding also to the first real token, which no token precedes. Where no
                label counts, the cross entropy is 0.
            logits_to_keep: compute scores for the last n tokens only, or for those at the given indices; 0: all.
        """
        if isinstance(logits_to_keep, int) and logits_to_keep < 0 or isinstance(logits_to_keep, float):
            raise ValueError(
                f"logits_to_keep={logits_to_keep}: it must be a number of tokens, 0 or more, or their indices"
            )
        if labels is not None:
            tokens = check_tokens(self.config, input_ids, inputs_embeds)
            check_labels(labels, tokens.shape[:2], self.config.vocab_size, "vocab_size")
            if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
                raise ValueError("labels are given with logits_to_keep: a loss needs all logits, logits_to_keep=0")
        out = super().forward(
            input_ids,
            attention_mask,
            labels,
            logits_to_keep,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            cache=cache,
        )
        return out.as_asked(return_dict)

    generate = generation.generate
    stream = generation.stream


class _Classifier(_WithHead):
    """What both classifiers share: a head named `score`, and a forward pass whose labels the class's `check` knows."""

    head_keys = ("score.",)
    optional_head = True

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
        return_dict: bool | None = None,
        **outputs: bool | None,
    ) -> MixtralOutput | tuple[Any, ...]:
        """Score the labels; the class says in which shape, and what `labels` have to be.

        The other arguments are those of `MixtralModel.forward`; `outputs` are its `output_...`.
        """
        self.check(check_tokens(self.config, input_ids, inputs_embeds), attention_mask, labels)
        out = super().forward(
            input_ids,
            attention_mask,
            labels,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **outputs,
        )
        return out.as_asked(return_dict)

    def check(self, tokens: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> None:
        """Raise a TypeError or ValueError that names what does not fit; `tokens` are ids (B, T) or embeddings."""
        raise NotImplementedError


class MixtralForSequenceClassification(_Classifier, SequenceClassifier):
    """A label for a whole text, read off its last real token: the only one that has all the others before it.

    logits = score(x[last])        (B, num_labels), named by `config.id2label`

    The last real token is, among the new ones, the last position whose mask is 1, or without a mask the last whose id
    is not `config.pad_token_id`. A row that has none gets the logits of its first position: finite, without meaning.
    Several rows whose ends are unknown are refused: those without a mask (B, T), and without ids or a `pad_token_id`.

    What `labels` have to be depends on `config.problem_type`. Where that is None, one label is taken as a regression,
    whole numbers as single labels and floating-point numbers as multiple ones.
    "single_label_classification": (B,) classes; -100 is not counted.
    "multi_label_classification": (B, num_labels), from 0.0 to 1.0.
    "regression": (B, num_labels) numbers, or (B,) of them if `num_labels` is 1.

    transformers looks for the pad id whether there is a mask or not. That comes to the same where the mask is 0 at pad
    ids and nowhere else. It does not where a text ends in the pad id, as when the eos token serves for padding too:
    transformers then takes the token before. Nor does it for `inputs_embeds`, of which it takes the last column,
    padding or not; and without a `pad_token_id` it refuses several rows, mask or no mask.
    """

    output_class = SequenceOutput

    def check(self, tokens: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> None:
        config, B, are_ids = self.config, len(tokens), tokens.ndim == 2
        no_padding_mask = getattr(attention_mask, "ndim", 4) == 4  # None, or one that says who sees whom
        if no_padding_mask and B > 1 and (config.pad_token_id is None or not are_ids):
            given = "is None" if attention_mask is None else "has four dimensions"
            lacking = "config.pad_token_id is None" if are_ids else "inputs_embeds have no ids"
            raise ValueError(
                f"attention_mask {given} and {lacking}: where each of {B} rows ends is not known; give an "
                f"attention_mask {tuple(tokens.shape[:2])}, or input_ids with a config.pad_token_id"
            )
        if labels is not None:
            check_sequence_labels(labels, problem_type_of(config, labels), B, config.num_labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (B, num_labels), of the config's type."""
        return sequence_loss(logits, labels, problem_type_of(self.config, labels))


class MixtralForTokenClassification(_Classifier, TokenClassifier):
    """A label for each token, from what it and the tokens before it say.

    logits = score(dropout(x))        (B, T, num_labels), named by `config.id2label`

    The dropout, in training only, has the rate 0.1, or the `classifier_dropout` that a `config.json` may hold. `labels`
    are (B, T), one class per token, at the same position; -100, to be given to padding, is not counted.
    """

    output_class = TokenOutput

    def __init__(self, config: MixtralConfig):
        dropout = config.extra.get("classifier_dropout")
        if not (dropout is None or isinstance(dropout, int | float) and 0 <= dropout < 1):
            raise ValueError(f"classifier_dropout={dropout!r}: it must be a number from 0 to below 1")
        super().__init__(config, dropout=0.1 if dropout is None else dropout)

    def check(self, tokens: Tensor, attention_mask: Tensor | None, labels: Tensor | None) -> None:
        if labels is not None:
            check_labels(labels, tokens.shape[:2], self.config.num_labels, "num_labels")


class MixtralForQuestionAnswering(_WithHead, QuestionAnswerer):
    """Where in a text the answer to a question starts and ends: two scores for each token.

    start_logits, end_logits = qa_outputs(x)        a softmax over the tokens gives probabilities
    """

    head_keys = ("qa_outputs.",)
    output_class = AnswerOutput
    optional_head = True

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
        return_dict: bool | None = None,
        **outputs: bool | None,
    ) -> MixtralOutput | tuple[Any, ...]:
        """Score each of T new tokens of B texts as the first and as the last one of the answer.

        Args (beyond those of `MixtralModel.forward`; `outputs` are its `output_...`):
            start_positions, end_positions: (B,) columns of the answer's first and last token. As in transformers, one
                beyond the text, T or more, is not counted, and a negative one counts as 0.
        """
        if start_positions is not None or end_positions is not None:
            tokens = check_tokens(self.config, input_ids, inputs_embeds)
            check_answer(start_positions, end_positions, len(tokens))
        out = super().forward(
            input_ids,
            attention_mask,
            None if start_positions is None else (start_positions, end_positions),
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **outputs,
        )
        return out.as_asked(return_dict)
