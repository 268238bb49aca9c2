"""Byte-fallback BPE: text to ids and back with SentencePiece, chat turns included.

Three habits of Mixtral's tokenizer explain most surprises. A word carries the space before it (`▁upon`), and a text is
read as if a space came before it. A character that the vocabulary lacks falls back to its UTF-8 bytes (`<0xF0>`), so no
text is unknown. `<s>` and `</s>` are control ids that only code can place: the characters "<s>" in a text are text.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, Self

import sentencepiece
import torch

from mixtral_edu.checkpoints.folders import TOKENIZER_FILE, TOKENIZER_PATTERNS, find_folder, whole_file
from mixtral_edu.data import bundled_folder
from mixtral_edu.text.chat import chat_version, marked_turns
from mixtral_edu.text.vocabulary import train_bpe

# Settings of transformers' tokenizers, and why they would have no effect on this one.
_WITHOUT_EFFECT = {
    "padding_side": 'rows are padded on the left, so it must be "left"',
    "truncation_side": "texts are never cut: cut the ids, or the text",
    "model_max_length": "texts are never cut: cut the ids, or the text",
    **dict.fromkeys(
        ("add_bos_token", "add_eos_token"),
        "give add_special_tokens=False for ids without <s>, and append eos_token_id yourself",
    ),
    "chat_template": "apply_chat_template follows the control tokens of the vocabulary",
    "clean_up_tokenization_spaces": "spaces belong to the text and are never changed",
    **dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), "special tokens are set by id, such as pad_token_id"
    ),
    **dict.fromkeys(("unk_token_id", "vocab_size", "byte_values"), "the model file fixes it"),
}


class Piece(NamedTuple):
    """One token as the vocabulary stores it: `▁` stands for a space, `<0xE2>` for one byte."""

    id: int
    piece: str
    is_byte: bool


class TokenizerOutput(dict):
    """The result of calling a tokenizer: `input_ids` and `attention_mask`, by key or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {sorted(self)}") from None

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with its tensors on `device`; lists stay as they are."""
        return type(self)({k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.items()})


class MixtralTokenizer:
    """A SentencePiece model with Mixtral's handling of special ids, batches and chat turns.

    Args:
        path: a SentencePiece model file with any name.
        settings: attributes to set, such as `pad_token_id=2`.

    Attributes:
        bos_token_id, eos_token_id, unk_token_id: ids of `<s>`, `</s>` and `<unk>`.
        pad_token_id: the id that pads rows: `<unk>`, which no text encodes to, unless you set another.
        padding_side: "left", always.
        vocab_size: the number of ids, V; also `len(tokenizer)`.
        byte_values: the byte that each byte piece stands for, by id.

    Setting an attribute that would have no effect here (`padding_side="right"`, `model_max_length`, a misspelled name)
    raises an error. So does setting an id outside the vocabulary.

    Raises:
        FileNotFoundError: `path` is not a file.
        ValueError: the file does not hold a SentencePiece model with `<unk>`, `<s>` and `</s>`, or a setting would have
            no effect.
    """

    processor: sentencepiece.SentencePieceProcessor
    bos_token_id: int
    eos_token_id: int
    unk_token_id: int
    pad_token_id: int
    padding_side: str
    vocab_size: int
    byte_values: dict[int, int]
    _pieces: list[str]
    _control_ids: dict[str, int]  # by piece
    _special_ids: set[int]  # control pieces and <unk>

    def __init__(self, path: str | Path, **settings: Any):
        vars(self).update(_read_model(Path(path)), padding_side="left")  # bypasses __setattr__
        for name, value in settings.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _WITHOUT_EFFECT and (name, value) != ("padding_side", "left"):
            raise ValueError(f"{name}={value!r} would have no effect: {_WITHOUT_EFFECT[name]}")
        if type(self) is MixtralTokenizer and not hasattr(self, name):
            raise AttributeError(f"{name}={value!r} would have no effect: a MixtralTokenizer has no attribute {name!r}")
        if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            is_id = isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < self.vocab_size
            if not is_id:
                raise ValueError(f"{name}={value!r}: it must be an id from 0 to {self.vocab_size - 1}")
            value = int(value)  # numpy's integers too
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **settings: Any) -> Self:
        """Load a bundled tokenizer ("tiny", "tiny-instruct"), the one in a checkpoint's folder, or a model file.

        Args:
            name_or_path: a bundled name, a folder or a file. Nothing is downloaded.
            settings: attributes to set, as in the class.

        Raises:
            FileNotFoundError: there is no tokenizer; the message lists the file names that were looked for.
        """
        path = Path(name_or_path).expanduser()
        if path.is_file() and not bundled_folder(str(name_or_path)):
            return cls(path, **settings)
        folder = find_folder(name_or_path)
        found = [file for pattern in TOKENIZER_PATTERNS for file in sorted(folder.glob(pattern)) if file.is_file()]
        if not found:
            raise FileNotFoundError(f"{str(folder)!r} holds no tokenizer: looked for {', '.join(TOKENIZER_PATTERNS)}")
        return cls(found[0], **settings)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model file, byte for byte, to `folder` as `tokenizer.model`, and return its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with whole_file(Path(folder) / TOKENIZER_FILE) as file:
            file.write_bytes(self.processor.serialized_model_proto())
        return Path(folder) / TOKENIZER_FILE

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return `<s>` and the ids of `text`; with `add_special_tokens=False`, without `<s>`.

        Special ids are never read from the text. `▁` (U+2581) is SentencePiece's sign for a space and becomes one.

        Raises:
            TypeError: `text` is not a str.
            ValueError: `text` holds a lone surrogate, which UTF-8 cannot encode.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}; for several texts call tokenizer(texts)")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text holds a lone surrogate, {text[error.start]!r}, at index {error.start}: remove or replace it"
            ) from None
        return [self.bos_token_id] * add_special_tokens + self.processor.encode(text)

    def decode(
        self,
        ids: int | Sequence[int] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Return the text of one sequence of ids.

        With `skip_special_tokens`, special ids decode as in SentencePiece: `<s>`, `</s>` and other control tokens to
        nothing, `<unk>` to " ⁇ "; padding is dropped, see `without_padding`. Otherwise all appear by name: "<s> Once
        upon", "<s>[INST] Hi". Each byte that is not valid UTF-8 becomes U+FFFD. `clean_up_tokenization_spaces` exists
        for code written for transformers. It must be False, because spaces belong to the text.

        Raises:
            TypeError: `ids` is not a flat sequence of ints.
            ValueError: an id is outside the vocabulary, or `clean_up_tokenization_spaces` is True.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True: it must be False, because spaces belong to the text")
        ids = self.checked_ids(ids)
        return self.decode_part(self.without_padding(ids) if skip_special_tokens else ids, skip_special_tokens, True)

    def batch_decode(
        self, sequences: Iterable, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> list[str]:
        """Return `decode` of each row of `sequences`: a `(B, T)` tensor or a list of id lists.

        There is no mask here, only ids. With `skip_special_tokens`, a run of pad ids at either end of a row counts as
        padding: on the left of a short prompt, on the right of a text that stopped early. So a `<unk>` within the text
        still shows. transformers skips every special id and hides that one too.
        """
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

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

    def pieces(self, text: str | Sequence[int] | torch.Tensor, add_special_tokens: bool = False) -> list[Piece]:
        """Return the tokens of a text, or of ids, as `(id, piece, is_byte)`; `add_special_tokens` puts `<s>` first."""
        ids = self.encode(text, add_special_tokens) if isinstance(text, str) else self.checked_ids(text)
        return [Piece(i, self._pieces[i], i in self.byte_values) for i in ids]

    def __call__(
        self,
        texts: str | Sequence[str],
        return_tensors: str | None = None,
        padding: bool | str = False,
        add_special_tokens: bool = True,
    ) -> TokenizerOutput:
        """Encode one text or a batch, padded on the left if `padding` is set.

        Args:
            texts: one text or B texts.
            return_tensors: "pt" for `(B, T)` int64 tensors, None for lists (a flat list for one text).
            padding: True or "longest" pads rows with `pad_token_id` on the left, with 0 in their `attention_mask`.
            add_special_tokens: put `<s>` before each text.

        Raises:
            ValueError: there are no texts, an option is not valid, or rows of different lengths cannot form one tensor.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors={return_tensors!r}: it must be "pt" or None')
        if padding not in (False, True, "longest"):
            raise ValueError(f'padding={padding!r}: it must be False, True or "longest"')
        rows = [self.encode(text, add_special_tokens) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise ValueError("texts is empty: it must hold at least one text")
        lengths = [len(row) for row in rows]
        if return_tensors == "pt" and not padding and len(set(lengths)) > 1:
            raise ValueError(f"texts have {lengths} tokens and cannot form one tensor: pass padding=True")
        if return_tensors == "pt":
            return self.pad(rows)
        mask = [[1] * length for length in lengths]
        if padding:
            rows, mask = (tensor.tolist() for tensor in self.pad(rows).values())
        if isinstance(texts, str):
            rows, mask = rows[0], mask[0]
        return TokenizerOutput(input_ids=rows, attention_mask=mask)

    def pad(self, rows: Sequence[Sequence[int]]) -> TokenizerOutput:
        """Pad rows of ids on the left to one length. Return `(B, T)` int64 tensors of ids and attention mask."""
        T = max(map(len, rows))
        ids = [[self.pad_token_id] * (T - len(row)) + list(row) for row in rows]
        mask = [[0] * (T - len(row)) + [1] * len(row) for row in rows]
        return TokenizerOutput(
            input_ids=torch.tensor(ids, dtype=torch.long, device="cpu"),
            attention_mask=torch.tensor(mask, dtype=torch.long, device="cpu"),
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], tokenize: bool = True, return_tensors: str | None = None
    ) -> list[int] | torch.Tensor | str:
        """Return a chat in the format of the model that this vocabulary belongs to.

        Mixtral-8x7B-Instruct reads `<s> [INST] question [/INST] answer</s> [INST] question [/INST]`, with the markers
        as plain text (V1). In the vocabulary of Mixtral-8x22B-Instruct, `[INST]` is a control token with one id, and
        the model reads `<s>[INST] question[/INST] answer</s>[INST] question[/INST]`. `mixtral_edu.text.chat` describes
        all versions.

        Args:
            messages: dicts with "role" (an optional "system", then "user" and "assistant" in turn) and "content".
            tokenize: False returns the text instead of ids.
            return_tensors: "pt" for a `(1, T)` int64 tensor, None for a list.

        Raises:
            ValueError: turns do not alternate, an answer is empty or a message holds tool calls; the error names the
                turn.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors={return_tensors!r}: it must be "pt" or None')
        if not tokenize:
            bos, eos = self._pieces[self.bos_token_id], self._pieces[self.eos_token_id]
            turns = marked_turns(messages, chat_version(self._control_ids))
            # A text that is encoded on its own starts with a space.
            return bos + "".join(f"{begin}{' ' * bool(text)}{text}{end}{eos * own}" for begin, text, end, own in turns)
        ids, _ = self.encode_chat(messages)
        return torch.tensor([ids], device="cpu") if return_tensors == "pt" else ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """Return a chat's ids, and for each whether it belongs to an answer (with its `</s>`), as a loss counts it."""
        ids, answer_mask = [self.bos_token_id], [False]
        for begin, text, end, is_answer in marked_turns(messages, chat_version(self._control_ids)):
            before, after = ([self._control_ids[piece]] if piece else [] for piece in (begin, end))
            turn = before + self.encode(text, add_special_tokens=False) + after + [self.eos_token_id] * is_answer
            ids += turn
            answer_mask += [is_answer] * len(turn)
        return ids, answer_mask

    def checked_ids(self, ids: int | Sequence[int] | torch.Tensor) -> list[int]:
        """Return `ids` as a list. The errors are those of `decode`."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # tensors and numpy arrays
        ids = [ids] if isinstance(ids, int) else list(ids)
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool):
                raise TypeError(f"ids holds {i!r}: it must be one flat sequence of ints; for a batch call batch_decode")
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary: it must be from 0 to {self.vocab_size - 1}")
        return ids

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


def _read_model(path: Path) -> dict[str, Any]:
    """Return the content of a model file, by the names of `MixtralTokenizer`'s attributes.

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


def train_tokenizer(texts: Iterable[str], model_path: str | Path, vocab_size: int = 2048) -> MixtralTokenizer:
    """Train a byte-fallback BPE model with `train_bpe`, write it to `model_path` and load it."""
    Path(model_path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(model_path) as file:
        file.write_bytes(train_bpe(texts, vocab_size))
    return MixtralTokenizer(model_path)
