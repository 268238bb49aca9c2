"""Byte-fallback BPE: text to ids and back with SentencePiece, chat turns included.

Three habits of Mixtral's tokenizer explain most surprises. A word carries the space before it (`▁upon`), and a text is
read as if a space stood in front of it. What the vocabulary lacks falls back to its UTF-8 bytes (`<0xF0>`), so no text
is unknown. `<s>` and `</s>` are control ids that only code may place: the characters "<s>" in a text are just text.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Self

import sentencepiece
import torch

from mixtral_edu.bpe import train_bpe
from mixtral_edu.chat import chat_turns
from mixtral_edu.data import bundled_folder
from mixtral_edu.files import find_folder, whole_file

TOKENIZER_FILE = "tokenizer.model"
FILE_PATTERNS = (TOKENIZER_FILE, "tokenizer.model.v1", "*.model*")  # what a folder is searched for, in this order


class Piece(NamedTuple):
    """One token as the vocabulary holds it: `▁` stands for a space, `<0xE2>` for one byte."""

    id: int
    piece: str
    is_byte: bool


class TokenizerOutput(dict):
    """What calling a tokenizer returns: `input_ids` and `attention_mask`, by key or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {sorted(self)}") from None

    def to(self, device: torch.device | str) -> Self:
        """Return the same with its tensors on `device`; lists stay as they are."""
        return type(self)({k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.items()})


class MixtralTokenizer:
    """A SentencePiece model with Mixtral's handling of special ids, batches and chat turns.

    Args:
        path: any SentencePiece model file, whatever its name.

    Attributes:
        bos_token_id, eos_token_id, unk_token_id: ids of `<s>`, `</s>` and `<unk>`.
        pad_token_id: the id that fills rows up: `<unk>`, which no text encodes to, unless you set another.
        vocab_size: number of ids, V; also `len(tokenizer)`.
        byte_values: the byte that each byte piece stands for, by id.

    Raises:
        FileNotFoundError: `path` is no file.
        ValueError: the file holds no SentencePiece model, or one without `<s>` and `</s>`.
    """

    def __init__(self, path: str | Path):
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(Path(path).read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is not a SentencePiece model file, or a damaged one") from error
        self.bos_token_id: int = self.processor.bos_id()
        self.eos_token_id: int = self.processor.eos_id()
        self.unk_token_id: int = self.processor.unk_id()
        if min(self.bos_token_id, self.eos_token_id) < 0:
            raise ValueError(f"{path} defines no <s> or no </s>; Mixtral needs both")
        self.pad_token_id: int = self.processor.pad_id() if self.processor.pad_id() >= 0 else self.unk_token_id
        self.vocab_size: int = self.processor.vocab_size()
        every_id = list(range(self.vocab_size))
        self._pieces: list[str] = self.processor.id_to_piece(every_id)
        self._special_ids = {i for i in every_id if self.processor.is_control(i)} | {self.unk_token_id}
        self.byte_values = {i: int(self._pieces[i][3:5], 16) for i in every_id if self.processor.is_byte(i)}

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Load a bundled tokenizer ("tiny", "tiny-instruct"), the one in a checkpoint's folder, or a model file.

        Raises:
            FileNotFoundError: nothing is there; the message lists what was looked for. Nothing is downloaded.
        """
        path = Path(name_or_path).expanduser()
        if path.is_file() and not bundled_folder(str(name_or_path)):
            return cls(path)
        folder = find_folder(name_or_path)
        found = [file for pattern in FILE_PATTERNS for file in sorted(folder.glob(pattern)) if file.is_file()]
        if not found:
            raise FileNotFoundError(f"no tokenizer in {str(folder)!r}: looked for {', '.join(FILE_PATTERNS)}")
        return cls(found[0])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model file, byte for byte, into `folder` as `tokenizer.model`; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with whole_file(Path(folder) / TOKENIZER_FILE) as file:
            file.write_bytes(self.processor.serialized_model_proto())
        return Path(folder) / TOKENIZER_FILE

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, after `<s>` unless `add_special_tokens=False`.

        Special ids are never read from the text. `▁` (U+2581) is SentencePiece's sign for a space and becomes one.

        Raises:
            TypeError: `text` is no str.
            ValueError: `text` holds a lone surrogate, which no UTF-8 can spell.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}; for several texts call tokenizer(texts)")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds a lone surrogate, {text[error.start]!r}, at index {error.start}") from None
        return [self.bos_token_id] * add_special_tokens + self.processor.encode(text)

    def decode(
        self,
        ids: int | Sequence[int] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Return the text of one sequence of ids.

        Skipped, special ids show as in SentencePiece: `<s>` and `</s>` as nothing, `<unk>` as " ⁇ "; pads in front of
        `<s>` are left out. Kept, they show by name: "<s> Once upon". Bytes that are no UTF-8 become U+FFFD, one each.
        `clean_up_tokenization_spaces` is there for callers of transformers; a text is given as it is.

        Raises:
            TypeError: `ids` is no flat sequence of ints.
            ValueError: an id lies outside the vocabulary, or spaces shall be cleaned up.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True: False is wanted, spaces belong to the text")
        return self.decode_part(self.checked_ids(ids), skip_special_tokens, at_start=True)

    def batch_decode(
        self, sequences: Iterable, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> list[str]:
        """Return `decode` of each row of `sequences`: a `(B, T)` tensor or a list of id lists."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def pieces(self, text: str | Sequence[int] | torch.Tensor, add_special_tokens: bool = False) -> list[Piece]:
        """Return the tokens of a text, or of ids, as `(id, piece, is_byte)`; `<s>` only if it is asked for."""
        ids = self.encode(text, add_special_tokens) if isinstance(text, str) else self.checked_ids(text)
        return [Piece(i, self._pieces[i], i in self.byte_values) for i in ids]

    def __call__(
        self,
        texts: str | Sequence[str],
        return_tensors: str | None = None,
        padding: bool | str = False,
        add_special_tokens: bool = True,
    ) -> TokenizerOutput:
        """Encode one text or a batch, filled up on the left where `padding` is true.

        Args:
            texts: one text or B texts.
            return_tensors: "pt" for `(B, T)` int64 tensors, None for lists (a flat list for one text).
            padding: True or "longest" fills rows with `pad_token_id` on the left, with 0 in their `attention_mask`.
            add_special_tokens: put `<s>` in front of each text.

        Raises:
            ValueError: there are no texts, an option is unknown, or rows of several lengths shall be one tensor.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors={return_tensors!r}: "pt" or None is wanted')
        if padding not in (False, True, "longest"):
            raise ValueError(f'padding={padding!r}: False, True or "longest" is wanted')
        rows = [self.encode(text, add_special_tokens) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise ValueError("texts is empty: at least one text is wanted")
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
        """Fill rows of ids up on the left to one length: `(B, T)` int64 tensors of ids and attention mask."""
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
        """Return a chat as Mixtral-Instruct reads it: `<s> [INST] question [/INST] answer</s> [INST] question [/INST]`.

        Args:
            messages: dicts with "role" (an optional "system", then "user" and "assistant" in turn) and "content".
            tokenize: False returns the text instead of ids.
            return_tensors: "pt" for a `(1, T)` int64 tensor, None for a list.

        Raises:
            ValueError: turns do not alternate or an answer is empty; the message names the turn.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors={return_tensors!r}: "pt" or None is wanted')
        if not tokenize:
            bos, eos = self._pieces[self.bos_token_id], self._pieces[self.eos_token_id]
            return bos + "".join(f" {text}{eos * is_answer}" for text, is_answer in chat_turns(messages))
        ids, _ = self.encode_chat(messages)
        return torch.tensor([ids], device="cpu") if return_tensors == "pt" else ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """Return a chat's ids and, for each, whether it belongs to an answer, `</s>` included: what a loss counts."""
        ids, answer_mask = [self.bos_token_id], [False]
        for text, is_answer in chat_turns(messages):  # each is encoded on its own: it starts with a space
            turn = self.encode(text, add_special_tokens=False) + [self.eos_token_id] * is_answer
            ids += turn
            answer_mask += [is_answer] * len(turn)
        return ids, answer_mask

    def checked_ids(self, ids: int | Sequence[int] | torch.Tensor) -> list[int]:
        """Return `ids` as a list, with the errors of `decode`."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # tensors and numpy arrays
        ids = [ids] if isinstance(ids, int) else list(ids)
        for i in ids:
            if not isinstance(i, int) or isinstance(i, bool):
                raise TypeError(f"ids must be one flat sequence of ints, found {i!r}; for a batch call batch_decode")
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary: 0 to {self.vocab_size - 1} exist")
        return ids

    def decode_part(self, ids: list[int], skip_special_tokens: bool, at_start: bool) -> str:
        """Return the text of a part of a sequence; `at_start` tells that no text came before it."""
        if skip_special_tokens:
            pads = len(list(takewhile(self.pad_token_id.__eq__, ids)))
            is_padded = at_start and ids[pads : pads + 1] == [self.bos_token_id]
            return self._join(ids[pads if is_padded else 0 :], at_start)
        text = ""
        for is_special, group in groupby(ids, key=self._special_ids.__contains__):
            part = list(group)
            text += "".join(self._pieces[i] for i in part) if is_special else self._join(part, at_start)
            at_start = False
        return text

    def _join(self, ids: list[int], at_start: bool) -> str:
        if at_start:
            return self.processor.decode(ids)  # drops the space in front
        unk = self.unk_token_id  # something in front keeps that space: its text is cut off again
        return self.processor.decode([unk, *ids]).removeprefix(self.processor.decode([unk]))


def train_tokenizer(texts: Iterable[str], model_path: str | Path, vocab_size: int = 2048) -> MixtralTokenizer:
    """Train a byte-fallback BPE model as `train_bpe` does, write it to `model_path` and load it."""
    Path(model_path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(model_path) as file:
        file.write_bytes(train_bpe(texts, vocab_size))
    return MixtralTokenizer(model_path)
