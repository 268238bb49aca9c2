"""The vocabulary's matrices, embedding and `lm_head`: look at them, replace them, resize them for new tokens.

New rows start close to the mean of the old ones, so a trained model hardly notices them. The logit of a new token is
then about the mean of the others, and its probability at most about the mean of theirs, as the exponential is convex.
A row drawn around 0 has a logit around 0 instead, which is the largest wherever all others are negative.

Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models".
"""

import torch
from torch import Tensor, nn

from mixtral_edu.fast import decoding
from mixtral_edu.text.pieces import whole_number

SPREAD = 1e-9  # of the old rows' covariance, what new ones have: as in transformers
_PIECE = 1024  # rows that are drawn at once, as each takes V random numbers


def get_input_embeddings(model: nn.Module) -> nn.Embedding:
    """Return the layer that gives each token id its vector."""
    return _decoder(model).embed_tokens


def set_input_embeddings(model: nn.Module, value: nn.Embedding) -> None:
    """Replace the layer that gives each token id its vector; what `prepare_for_inference` made is dropped.

    Args:
        value: with a weight (V, D). For another vocabulary call `resize_token_embeddings` first.

    Raises:
        TypeError: it is no `nn.Embedding`.
        ValueError: it has other sizes.
    """
    if not isinstance(value, nn.Embedding):
        raise TypeError(f"value is a {type(value).__name__}; it must be a torch.nn.Embedding")
    sizes = model.config.vocab_size, model.config.hidden_size
    if value.weight.shape != sizes:
        raise ValueError(
            f"value has a weight of shape {tuple(value.weight.shape)}; it must be (vocab_size, hidden_size) = {sizes}: "
            "for another number of tokens call model.resize_token_embeddings(...) first"
        )
    decoding.drop(model)
    _decoder(model).embed_tokens = value


def get_output_embeddings(model: nn.Module) -> nn.Linear | None:
    """Return `lm_head`, which scores each token of the vocabulary; None for a model without it."""
    return getattr(model, "lm_head", None)


@torch.inference_mode(False)  # a parameter made in inference mode could never be trained
@torch.no_grad()
def resize_token_embeddings(
    model: nn.Module,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> nn.Embedding:
    """Change the number of tokens in the vocabulary: in the embedding, in `lm_head` and in the config.

    Rows are added or removed at the end. Both layers stay the same modules and get new parameters: make an optimizer
    afterwards. `model.config` becomes a copy with the new `vocab_size`, so that other models built from the same config
    keep theirs. What `prepare_for_inference` made is dropped. Call it on the whole model: its decoder, `model.model`,
    knows no head.

    Args:
        model: in any form, quantized too: embedding and head are not rounded.
        new_num_tokens: V from now on; None for the V that there is.
        pad_to_multiple_of: round V up to a multiple of this.
        mean_resizing: draw new rows from a normal distribution around the mean of the old ones, with `SPREAD` of their
            covariance; with False as in a new model, around 0 with the deviation `config.initializer_range`.

    Returns:
        The embedding.

    Raises:
        TypeError: the embedding or the head has no weight of its own, as with an adapter around it.
        ValueError: an argument is not a whole number of at least 1, or the new vocabulary lacks an id that the config
            names, such as `pad_token_id`. The model is then as it was.
    """
    for name, value in (("new_num_tokens", new_num_tokens), ("pad_to_multiple_of", pad_to_multiple_of)):
        if value is not None:
            whole_number(name, value, "None or a whole number", 1)
    embedding, head = get_input_embeddings(model), get_output_embeddings(model)
    layers = [(embedding, nn.Embedding, "num_embeddings")]
    layers += [] if head is None else [(head, nn.Linear, "out_features")]
    for layer, kind, _ in layers:
        if not isinstance(layer, kind) or "weight" not in layer._parameters:
            raise TypeError(
                f"a {type(layer).__name__} cannot be resized: it must be a torch.nn.{kind.__name__} with a weight of "
                "its own; remove adapters and parametrizations first"
            )
    rows = len(embedding.weight) if new_num_tokens is None else int(new_num_tokens)
    rows += -rows % int(pad_to_multiple_of or 1)
    try:
        config = model.config.copy_for(model, vocab_size=rows)
    except ValueError as error:
        raise ValueError(f"new_num_tokens={rows} does not fit the config: {error}") from error
    decoding.drop(model)
    for layer, _, count in layers:
        setattr(layer, count, rows)
        for name, old in layer._parameters.items():
            if old is not None and len(old) != rows:
                new = _resized(old.detach(), rows, mean_resizing, config.initializer_range)
                setattr(layer, name, nn.Parameter(new, old.requires_grad))
    embedding.padding_idx = config.pad_token_id
    return embedding


def _decoder(model: nn.Module) -> nn.Module:
    return getattr(model, "model", model)


def _resized(old: Tensor, rows: int, mean_resizing: bool, deviation: float) -> Tensor:
    """Return the first of the old rows (V, ...), and new ones after them where there are too few."""
    missing = max(0, rows - len(old))
    if mean_resizing:
        wide = old.to(torch.promote_types(old.dtype, torch.float32))
        mean = wide.mean(0)
        # A sum of V centred rows, each times a random number z ~ N(0, 1), has V times their covariance.
        sizes = [min(_PIECE, missing - start) for start in range(0, missing, _PIECE)] or [0]
        z = (torch.randn(size, len(old), dtype=wide.dtype, device=old.device) for size in sizes)
        new = mean + (SPREAD / len(old)) ** 0.5 * torch.cat([some @ (wide - mean) for some in z])
    else:
        new = torch.zeros(missing, *old.shape[1:], dtype=old.dtype, device=old.device)
        if new.ndim > 1:
            new.normal_(0.0, deviation)
    return torch.cat((old[:rows], new.to(old.dtype)))
