"""The pieces of a SentencePiece vocabulary: their ids, their names, and the text that they stand for."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch

UNLIMITED = int(1e30)  # `model_max_length` until it is set; transformers has the same number

# Attributes that cannot be set to another value than they have, and what to do instead.
_FIXED = {
    **dict.fromkeys(("unk_token", "unk_token_id", "vocab_size", "byte_values"), "the model file fixes it"),
    **dict.fromkeys(
        ("all_special_ids", "all_special_tokens"),
        "special are the control tokens of the model file; set bos_token, eos_token or pad_token to choose among them",
    ),
    **dict.fromkeys(
        ("add_bos_token", "add_eos_token"),
        "give add_special_tokens=False for ids without <s>, and append eos_token_id yourself",
    ),
    "chat_template": "the vocabulary's control tokens decide the format; encode a text in any other format yourself",
    "clean_up_tokenization_spaces": "spaces belong to the text and are never changed",
}


class Piece(NamedTuple):
    """One token as the vocabulary stores it: `▁` stands for a space, `<0xE2>` for one byte."""

    id: int
    piece: str
    is_byte: bool


def _token(name: str, settable: bool) -> property:
    """Return the property `name`, such as "pad_token": the piece whose id is the attribute `pad_token_id`."""

    def get(table: "PieceTable") -> str:
        return table._pieces[getattr(table, f"{name}_id")]

    def set_(table: "PieceTable", token: str) -> None:
        if not isinstance(token, str) or token not in table._pieces:
            raise ValueError(
                f"{name}={token!r}: it must be a token that the vocabulary has, such as {table.eos_token!r}"
            )
        setattr(table, f"{name}_id", table._pieces.index(token))

    return property(get, set_ if settable else None, doc=f"The piece whose id is `{name}_id`.")


class PieceTable:
    """The vocabulary in a SentencePiece model file, and the settings of a tokenizer that uses it.

    `MixtralTokenizer`, which adds the way from text to ids and back, describes the attributes.

    Args:
        path: a SentencePiece model file with any name.
        settings: attributes to set, such as `pad_token_id=2`.

    Raises:
        FileNotFoundError: `path` is not a file.
        TypeError: a setting is unknown or would have no effect.
        ValueError: the file does not hold a SentencePiece model with `<unk>`, `<s>` and `</s>`, or a setting has a
            value that it cannot have.
    """

    processor: sentencepiece.SentencePieceProcessor
    bos_token_id: int
    eos_token_id: int
    unk_token_id: int
    pad_token_id: int
    vocab_size: int
    byte_values: dict[int, int]
    _pieces: list[str]
    _control_ids: dict[str, int]  # by piece
    _special_ids: set[int]  # control pieces and <unk>

    padding_side = "left"
    truncation_side = "right"
    model_max_length = UNLIMITED
    add_bos_token, add_eos_token, clean_up_tokenization_spaces = True, False, False
    bos_token, eos_token, pad_token = _token("bos_token", True), _token("eos_token", True), _token("pad_token", True)
    unk_token = _token("unk_token", False)

    def __init__(self, path: str | Path, **settings: Any):
        vars(self).update(_read_model(Path(path)))  # bypasses __setattr__
        for name, value in settings.items():
            try:
                setattr(self, name, value)
            except AttributeError as error:  # to a call, it is an argument that does not exist
                raise TypeError(str(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED:
            if hasattr(self, name) and value == getattr(self, name):
                return
            raise AttributeError(f"{name}={value!r} would have no effect: {_FIXED[name]}")
        is_own_class = not type(self).__module__.startswith("mixtral_edu.")  # it may have attributes of its own
        if not hasattr(self, name) and not is_own_class:
            kind = type(self).__name__
            raise AttributeError(f"{name}={value!r} would have no effect: a {kind} has no attribute {name!r}")
        if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = whole_number(name, value, "an id", 0, self.vocab_size - 1)
        if name == "model_max_length":
            value = whole_number(name, value, "a number of tokens", 1)
        if name in ("padding_side", "truncation_side") and value not in ("left", "right"):
            raise ValueError(f'{name}={value!r}: it must be "left" or "right"')
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `<s>`, `</s>`, `<unk>`, the pad token and all other control tokens, each once."""
        named = [self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id]
        return list(dict.fromkeys(named + sorted(self._special_ids)))

    @property
    def all_special_tokens(self) -> list[str]:
        """The pieces of `all_special_ids`, in the same order."""
        return [self._pieces[i] for i in self.all_special_ids]

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every piece."""
        return {piece: i for i, piece in enumerate(self._pieces)}

    def convert_ids_to_tokens(
        self, ids: int | Sequence[int] | torch.Tensor, skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Return the piece of one id, or the list of pieces of a sequence, without the special ones if asked to.

        Raises:
            TypeError: `ids` is neither an int nor a flat sequence of ints.
            ValueError: an id is outside the vocabulary.
        """
        if isinstance(as_lists(ids), int):
            return self._pieces[self.checked_ids(ids)[0]]
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self._pieces[i] for i in self.checked_ids(ids) if i not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Return the id of one piece, or a list of ids: of what is no piece, the id of `<unk>`.

        Raises:
            TypeError: `tokens` is neither a str nor a sequence of them.
        """
        if isinstance(tokens, str):
            return self.processor.piece_to_id(tokens)
        if not isinstance(tokens, Sequence) or not all(isinstance(token, str) for token in tokens):
            raise TypeError(f"tokens={tokens!r}: it must be a str or a sequence of str")
        return [self.processor.piece_to_id(token) for token in tokens]

    def checked_ids(self, ids: int | Sequence[int] | torch.Tensor) -> list[int]:
        """Return the ids of one sequence as a list.

        Raises:
            TypeError: `ids` is not a flat sequence of ints.
            ValueError: an id is outside the vocabulary.
        """
        ids = as_lists(ids)
        ids = [ids] if isinstance(ids, int) else ids
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool):
                raise TypeError(f"ids holds {i!r}: it must be one flat sequence of ints")
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary: it must be from 0 to {self.vocab_size - 1}")
        return ids

    def without_padding(self, ids: list[int]) -> list[int]:
        """Return `ids` without the runs of `pad_token_id` at both ends.

        A text may itself hold the pad id, if that is an ordinary piece, or `<unk>` in a vocabulary without byte
        fallback. Such an id counts as padding only before `<s>` and after `</s>`.
        """
        is_pad = self.pad_token_id.__eq__
        start, stop = len(list(takewhile(is_pad, ids))), len(ids) - len(list(takewhile(is_pad, reversed(ids))))
        if self.pad_may_be_text:
            start = start if ids[start : start + 1] == [self.bos_token_id] else 0
            stop = stop if ids[:stop][-1:] == [self.eos_token_id] else len(ids)
        return ids[start:stop]

    @property
    def pad_may_be_text(self) -> bool:
        """Whether a text can encode to `pad_token_id`: never to a control token, nor to `<unk>` if all bytes exist."""
        falls_back = self.pad_token_id == self.unk_token_id and len(self.byte_values) == 256
        return not falls_back and self.pad_token_id not in self._control_ids.values()

    def decode_part(self, ids: list[int], skip_special_tokens: bool, at_start: bool) -> str:
        """Return the text of a part of a sequence, pads included. `at_start` means that no text came before it."""
        if skip_special_tokens:
            return self._join(ids, at_start)
        text = ""
        for is_special, group in groupby(ids, key=self._special_ids.__contains__):
            part = list(group)
            text += "".join(self._pieces[i] for i in part) if is_special else self._join(part, at_start)
            at_start = False
        return text

    def _join(self, ids: list[int], at_start: bool) -> str:
        if at_start:
            return self.processor.decode(ids)  # drops the leading space
        unk = self.unk_token_id  # an id in front keeps the leading space; its own text is cut off again
        return self.processor.decode([unk, *ids]).removeprefix(self.processor.decode([unk]))


def as_lists(ids: Any) -> Any:
    """Return ids in the form that Python has for them: an int, or a list. Items of a list are converted too.

    Raises:
        TypeError: `ids` is neither one id nor several.
    """
    if isinstance(ids, int):
        return ids
    if hasattr(ids, "tolist"):  # tensors and numpy arrays
        return ids.tolist()
    if not isinstance(ids, Iterable) or isinstance(ids, (str, Mapping)):
        raise TypeError(f"ids is a {type(ids).__name__}: it must be an int, or ints in a list, an array or a tensor")
    return [i.tolist() if hasattr(i, "tolist") else i for i in ids]


def whole_number(name: str, value: Any, what: str, least: int, most: int | None = None) -> int:
    """Return `value`, of Python's type also if it is numpy's."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or most is not None and value > most:
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r}: it must be {what} {bounds}")
    return int(value)


def _read_model(path: Path) -> dict[str, Any]:
    """Return the content of a model file, by the names of `PieceTable`'s attributes.

    Raises:
        ValueError: the file does not hold a SentencePiece model, or not the special tokens.
    """
    content, processor = path.read_bytes(), sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        every_id = list(range(processor.vocab_size()))
        pieces = processor.id_to_piece(every_id)
        "".join(pieces).encode()  # fails if a piece holds bytes that are not UTF-8
        control_ids = {pieces[i]: i for i in every_id if processor.is_control(i)}
        byte_values = {i: int(pieces[i][3:5], 16) for i in every_id if processor.is_byte(i)}
        unk, bos, eos, pad = processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()
        processor.decode([unk] if unk >= 0 else [])  # fails if the text that the file gives to <unk> is damaged
    except Exception as error:  # damaged bytes may hold anything and fail in any way
        is_pointer = content.startswith(b"version https://git-lfs")
        hint = ": it holds a Git LFS pointer; run `git lfs pull`" if is_pointer else ""
        raise ValueError(f"{path} is not a SentencePiece model file, or a damaged one{hint}") from error
    if min(unk, bos, eos) < 0:
        raise ValueError(f"{path} defines no <unk>, no <s> or no </s>: it must define all three")
    return {
        "processor": processor,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "unk_token_id": unk,
        "pad_token_id": pad if pad >= 0 else unk,
        "vocab_size": len(pieces),
        "byte_values": byte_values,
        "_pieces": pieces,
        "_control_ids": control_ids,
        "_special_ids": {*control_ids.values(), unk},
    }
