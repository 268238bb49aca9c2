"""The exercises that have a place in the model, and how the model calls a reader's function in that place."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mixtral_edu.checkpoints.config_checks import shortened
from mixtral_edu.exercises import exercises
from mixtral_edu.exercises.comparison import form, show
from mixtral_edu.exercises.grading import LONGEST
from mixtral_edu.exercises.probe import Probe

PARTS = {  # the exercises whose function can work in the model, and where it does
    "rms_norm": "normalises the stream before attention, before the experts and at the end",
    "apply_rotary": "rotates queries and keys by their positions",
    "masked_softmax": "turns scores into weights where rows of a batch have masks of their own",
    "one_head": "computes attention for the tokens of a prompt",
    "grouped_attention": "computes attention for a single new token",
    "band_mask": "says which token may see which, from their positions",
    "padded_window_mask": "says the same for a padded batch",
    "slots_after": "says which position each slot of the cache holds when a new token reads it",
    "time_order": "takes earlier keys out of the cache in time order when a text continues with several tokens",
    "write_chunk": "stores keys and values in the cache",
    "chunk_keys": "says which earlier keys a text's next tokens may see",
    "route_tokens": "chooses two experts for each token, and their weights",
    "gated_expert": "computes one expert",
    "dispatch_tokens": "sends tokens to their experts and adds up what these return",
    "balancing_loss": "measures how evenly the experts are used",
    "decoder_layer": "joins norms, attention and experts into a layer",
    "causal_loss": "measures how well the next token is predicted",
    "temperature_softmax": "turns logits into probabilities when a token is drawn",
    "top_p_filter": "leaves out unlikely tokens before one is drawn",
    "repetition_penalty": "makes tokens less likely that the text already has",
}


class PartFailed(RuntimeError):
    """A function of the reader's raised, returned something of another form, or changed what it was given."""

    def __init__(self, what: str, called: str | None = None, line: str | None = None):
        rows = [("called", called), ("in", line)]
        super().__init__("\n".join([what, *(f"  {label:6}  {text}" for label, text in rows if text)]))


class Own(dict[str, Callable]):
    """The reader's functions by the names of their exercises; `own(name, …)` calls one and checks what it does."""

    def __call__(self, name: str, *given: Any, like: Any) -> Any:
        """Call a function as its exercise's task says. `like` has the form that its result must have.

        Raises:
            PartFailed: what is wrong, and with which call.
        """
        names = exercises()[name].signature.parameters
        arguments = dict(zip(names, given, strict=True))
        called = f"{name}({', '.join(f'{key}={_in_words(value)}' for key, value in arguments.items())})"
        tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        before = {key: _version(value) for key, value in tensors.items()}
        try:
            result = self[name](*given)
        except PartFailed:  # of another part, which this one has called
            raise
        except (Exception, SystemExit) as error:
            what = shortened(f"{type(error).__name__}: {error}".partition("\n")[0], LONGEST)
            line = Probe(exercises()[name], self[name]).line_of(error)
            raise PartFailed(f"It raised {what}", called, line) from error
        for key, value in tensors.items():
            if _version(value) != before[key]:
                raise PartFailed(f"It changes {key} in place; the model still needs {key} as it was", called)
        found, wanted = form(result), form(like)
        if found != wanted:
            found, wanted = shortened(str(found)), shortened(str(wanted))
            raise PartFailed(f"It returned {found}; the model needs {wanted}", called)
        return result


def _in_words(value: Any) -> str:
    """An argument in a message."""
    if isinstance(value, list):
        return f"[{len(value)} functions]"
    return type(value).__name__ if callable(value) else show(value)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version
