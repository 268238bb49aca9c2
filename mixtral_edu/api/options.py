"""What `generate` is told about choosing ids and about stopping, checked once."""

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from mixtral_edu.sampling import RULES, Sampler
from mixtral_edu.text.tokenizer import MixtralTokenizer


class _FromConfig:
    """Stands for the config's value where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "<the config's>"


FROM_CONFIG: Any = _FromConfig()

_AT_LEAST_1 = "an int of at least 1"


class GenerationOptions:
    """How the next id is chosen and when to stop; `generate` tells what each option means.

    The parameters are the options, besides the names in `sampling.RULES`.

    Raises:
        TypeError, ValueError: an option is unknown, not what it must be, or at odds with another; the message names it.
    """

    def __init__(
        self,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        *,
        do_sample: bool = False,
        repetition_penalty: float | None = None,
        eos_token_id: int | Sequence[int] | None = FROM_CONFIG,
        pad_token_id: int | None = FROM_CONFIG,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer: MixtralTokenizer | None = None,
        seed: int | None = None,
        num_return_sequences: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        prompt_lookup_num_tokens: int | None = None,
        max_matching_ngram_size: int = 2,
        use_cache: bool | None = None,
        **rules: Any,
    ):
        for name in rules.keys() - RULES:
            raise TypeError(f"unexpected keyword argument {name!r}: generation has no such option")
        if max_new_tokens is None and max_length is None:
            raise TypeError(f"max_new_tokens=None: it must be {_AT_LEAST_1}")
        if max_new_tokens is not None and max_length is not None:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} and max_length={max_length}: give one of them, better the first"
            )
        for name, value in (
            ("max_new_tokens", max_new_tokens),
            ("max_length", max_length),
            ("prompt_lookup_num_tokens", prompt_lookup_num_tokens),
        ):
            _check(name, value, Integral, lambda n: n >= 1, _AT_LEAST_1)
        for name, value in (
            ("num_return_sequences", num_return_sequences),
            ("num_beams", num_beams),
            ("max_matching_ngram_size", max_matching_ngram_size),
        ):
            _require(name, value, Integral, lambda n: n >= 1, _AT_LEAST_1)
        rules = {name: rules.get(name, rule.default) for name, rule in RULES.items()}
        for name, value in rules.items():
            _check(name, value, RULES[name].kind, RULES[name].is_fine, RULES[name].must_be)
        _check("repetition_penalty", repetition_penalty, Real, lambda r: 0 < r < float("inf"),
               "a finite number above 0, or None")  # fmt: skip
        _check("seed", seed, Integral, lambda s: -(2**63) <= s < 2**64, "an int from -2**63 to 2**64 - 1, or None")
        _require("length_penalty", length_penalty, Real, lambda p: abs(p) <= 100, "a number from -100 to 100")
        if not (isinstance(early_stopping, bool) or isinstance(early_stopping, str) and early_stopping == "never"):
            raise ValueError(f"early_stopping={early_stopping!r}: it must be True, False or 'never'")
        for name, value in (("do_sample", do_sample), ("use_cache", True if use_cache is None else use_cache)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: it must be True or False")
        given = [name for name, value in rules.items() if value not in (None, RULES[name].default)]
        given += ["seed"] * (seed is not None)
        if given and not do_sample:
            warnings.warn(f"ignored, as it matters with do_sample=True only: {', '.join(given)}", stacklevel=3)
        self.max_new_tokens, self.max_length = max_new_tokens, max_length
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        self.stop_strings, self.tokenizer = _checked_strings(stop_strings, tokenizer), tokenizer
        self.seed = None if seed is None else int(seed)  # a torch.Generator takes no integer of numpy
        self.sampler = Sampler(do_sample, rules, repetition_penalty)
        self.num_return_sequences, self.num_beams = num_return_sequences, num_beams
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        self.max_matching_ngram_size = max_matching_ngram_size
        self.use_cache = use_cache is not False
        self._check_search()

    def _check_search(self) -> None:
        """Refuse what does not go together, by name."""
        beams, drafts, several = self.num_beams, self.prompt_lookup_num_tokens, self.num_return_sequences
        for name, value, default in (
            ("length_penalty", self.length_penalty, 1.0),
            ("early_stopping", self.early_stopping, False),
        ):
            if beams == 1 and value != default:
                raise ValueError(f"{name}={value!r} has no effect with num_beams=1: give num_beams of at least 2, or "
                                 "leave it out")  # fmt: skip
        if drafts is None and self.max_matching_ngram_size != 2:
            raise ValueError(
                f"max_matching_ngram_size={self.max_matching_ngram_size} has no effect without prompt_lookup_num_tokens"
            )
        if beams > 1:
            for name, given in (
                ("do_sample=True", self.sampler.do_sample),
                ("stop_strings", self.stop_strings),
                ("prompt_lookup_num_tokens", drafts),
                ("use_cache=False", not self.use_cache),
            ):
                if given:
                    raise ValueError(f"num_beams={beams} with {name}: beam search takes the likeliest ids, stops at "
                                     "eos_token_id and uses the cache; leave one of the two out")  # fmt: skip
        if several > beams and not self.sampler.do_sample:
            raise ValueError(
                f"num_return_sequences={several}: the likeliest ids give {beams} text{'s' * (beams > 1)} per prompt; "
                "set do_sample=True, or num_beams at least as high"
            )
        if drafts is not None and not self.use_cache:
            raise ValueError("prompt_lookup_num_tokens with use_cache=False: drafts need the cache")

    def steps(self, prompt_length: int) -> int:
        """Return the maximum number of new ids after a prompt of this length.

        Raises:
            ValueError: `max_length` leaves no room for one.
        """
        if self.max_length is None:
            return self.max_new_tokens
        if self.max_length <= prompt_length:
            raise ValueError(
                f"max_length={self.max_length}: the prompt alone has {prompt_length} ids; max_new_tokens counts the "
                "new ones only"
            )
        return self.max_length - prompt_length

    def stop_and_pad_ids(self, config: Any) -> tuple[list[int], int]:
        """Return the ids that stop a row, and the one that fills it up after that.

        Raises:
            ValueError: one lies outside the vocabulary of `config`.
        """
        eos = config.eos_token_id if self.eos_token_id is FROM_CONFIG else self.eos_token_id
        pad = config.pad_token_id if self.pad_token_id is FROM_CONFIG else self.pad_token_id
        several = isinstance(eos, Sequence) and not isinstance(eos, str)
        stop_ids = [] if eos is None else list(eos) if several else [eos]
        for name, ids in (("eos_token_id", stop_ids), ("pad_token_id", [] if pad is None else [pad])):
            for i in ids:
                must_be = f"an id from 0 to vocab_size - 1 = {config.vocab_size - 1}"
                _require(name, i, Integral, lambda i: 0 <= i < config.vocab_size, must_be)
        return stop_ids, pad if pad is not None else next(iter(stop_ids), 0)


def _checked_strings(stop_strings: Any, tokenizer: Any) -> tuple[str, ...]:
    if stop_strings is None:
        return ()
    if not isinstance(stop_strings, str | Sequence):
        raise TypeError(f"stop_strings={stop_strings!r}: it must be a text, or a list of texts")
    strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if not all(isinstance(text, str) and text for text in strings):
        raise ValueError(f"stop_strings={stop_strings!r}: each must be a text of at least one character")
    if strings and not isinstance(tokenizer, MixtralTokenizer):
        raise ValueError(f"tokenizer={tokenizer!r}: stop_strings need the MixtralTokenizer that the ids belong to")
    return strings


def _check(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], must_be: str) -> None:
    if value is not None:
        _require(name, value, kind, is_fine, must_be)


def _require(name: str, value: Any, kind: type, is_fine: Callable[[Any], bool], must_be: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: it must be {must_be}")
    if not is_fine(value):
        raise ValueError(f"{name}={value!r}: it must be {must_be}")
