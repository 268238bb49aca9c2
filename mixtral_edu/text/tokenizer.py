"""Byte-fallback BPE: text to ids and back with SentencePiece, chat turns included.

Three habits of Mixtral's tokenizer explain most surprises. A word carries the space before it (`▁upon`), and a text is
read as if a space came before it. A character that the vocabulary lacks falls back to its UTF-8 bytes (`<0xF0>`), so no
text is unknown. `<s>` and `</s>` are control ids that only code can place: the characters "<s>" in a text are text.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from mixtral_edu.checkpoints.folders import TOKENIZER_FILE, TOKENIZER_PATTERNS, find_folder, whole_file
from mixtral_edu.data import bundled_folder
from mixtral_edu.text.batches import TokenizerOutput, as_batch, cut_row, row_lengths
from mixtral_edu.text.chat import chat_version, checked_chats, marked_turns
from mixtral_edu.text.pieces import Piece, PieceTable, as_lists
from mixtral_edu.text.vocabulary import train_bpe


class MixtralTokenizer(PieceTable):
    """A SentencePiece model with Mixtral's handling of special ids, batches and chat turns.

    Args:
        path: a SentencePiece model file with any name.
        settings: attributes to set, such as `pad_token="</s>"`.

    Attributes:
        bos_token, eos_token, unk_token, pad_token: `<s>`, `</s>`, `<unk>`, and the token that pads rows: `<unk>`,
            which no text encodes to, unless you set another.
        bos_token_id, eos_token_id, unk_token_id, pad_token_id: their ids. Setting a token sets its id, and vice versa.
        padding_side: "left", as generation needs it, or "right".
        truncation_side: the side that loses tokens where texts are cut, "right" or "left".
        model_max_length: the length that stands for `max_length` where that is not given; no limit until you set it.
        all_special_ids, all_special_tokens: these and all other control tokens.
        vocab_size: the number of ids, V; also `len(tokenizer)`.
        byte_values: the byte that each byte piece stands for, by id.

    Setting an attribute that would have no effect here (`chat_template`, `unk_token`, a misspelled name) raises
    AttributeError. Setting one to a value that it cannot have, such as an id outside the vocabulary, raises ValueError.

    Raises:
        FileNotFoundError: `path` is not a file.
        TypeError: a setting is unknown or would have no effect.
        ValueError: the file does not hold a SentencePiece model with `<unk>`, `<s>` and `</s>`, or a setting has a
            value that it cannot have.
    """

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

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        return_tensors: str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
    ) -> list[int] | torch.Tensor:
        """Return `<s>` and the ids of `text`; with `add_special_tokens=False`, without `<s>`.

        Special ids are never read from the text. `▁` (U+2581) is SentencePiece's sign for a space and becomes one.
        `return_tensors="pt"` gives a `(1, T)` int64 tensor. `truncation` and `max_length` are those of a call.

        Raises:
            TypeError: `text` is not a str.
            ValueError: `text` holds a lone surrogate, which UTF-8 cannot encode, or an option is not valid.
        """
        cut_length, _ = row_lengths(False, truncation, max_length, self.model_max_length)
        if not isinstance(add_special_tokens, bool):
            raise TypeError(
                f"add_special_tokens={add_special_tokens!r}: it must be True or False; pairs of texts are not supported"
            )
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}; for several texts call tokenizer(texts)")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text holds a lone surrogate, {text[error.start]!r}, at index {error.start}: remove or replace it"
            ) from None
        ids = [self.bos_token_id] * add_special_tokens + self.processor.encode(text)
        ids = cut_row(ids, cut_length, self.truncation_side, kept=int(add_special_tokens))
        return ids if return_tensors is None else self._batch([ids], None, return_tensors).input_ids

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """Return the names of a text's pieces, such as `▁upon`; `add_special_tokens` puts `<s>` first."""
        return [piece.piece for piece in self.pieces(text, add_special_tokens)]

    def decode(
        self,
        ids: int | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str | list[str]:
        """Return the text of one sequence of ids, or the list of texts of a batch.

        With `skip_special_tokens`, special ids decode as in SentencePiece: `<s>`, `</s>` and other control tokens to
        nothing, `<unk>` to " ⁇ " (which transformers skips too). There is no mask here, only ids: a run of pad ids at
        either end of a row counts as padding and is dropped, see `without_padding`. Otherwise all appear by name:
        "<s> Once upon", "<s>[INST] Hi". Each byte that is not valid UTF-8 becomes U+FFFD.

        Args:
            ids: an int, or ints in a list, an array or a tensor, or a batch: a `(B, T)` tensor or a list of rows.
            skip_special_tokens: leave special tokens and padding out.
            clean_up_tokenization_spaces: exists for code written for transformers. It must not be True.

        Raises:
            TypeError: a row is not a flat sequence of ints.
            ValueError: an id is outside the vocabulary, or `clean_up_tokenization_spaces` is True.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True: it must be False, because spaces belong to the text")
        ids = as_lists(ids)
        if not isinstance(ids, int) and any(isinstance(row, (list, tuple)) for row in ids[:1]):
            return [self._decode_row(row, skip_special_tokens) for row in ids]
        return self._decode_row(ids, skip_special_tokens)

    def _decode_row(self, ids: int | Sequence[int], skip_special_tokens: bool) -> str:
        ids = self.checked_ids(ids)
        return self.decode_part(self.without_padding(ids) if skip_special_tokens else ids, skip_special_tokens, True)

    def batch_decode(
        self,
        sequences: Iterable,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Return `decode` of each row of `sequences`, a `(B, T)` tensor or a list of id lists.

        A flat sequence of ids is one row, as in transformers 5. Before, each of its ids was one.
        """
        rows = as_lists(sequences)
        if isinstance(rows, list) and not rows:
            return []
        texts = self.decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def pieces(self, text: str | Sequence[int] | torch.Tensor, add_special_tokens: bool = False) -> list[Piece]:
        """Return the tokens of a text, or of ids, as `(id, piece, is_byte)`; `add_special_tokens` puts `<s>` first."""
        ids = self.encode(text, add_special_tokens) if isinstance(text, str) else self.checked_ids(text)
        return [Piece(i, self._pieces[i], i in self.byte_values) for i in ids]

    def __call__(
        self,
        texts: str | Sequence[str],
        text_pair: None = None,
        *,
        return_tensors: str | None = None,
        padding: bool | str = False,
        add_special_tokens: bool = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_attention_mask: bool = True,
    ) -> TokenizerOutput:
        """Encode one text or a batch, cut if `truncation` is set and padded if `padding` is.

        Args:
            texts: one text or B texts.
            text_pair: must be None: there is no form for pairs of texts.
            return_tensors: "pt" for `(B, T)` int64 tensors, None for lists (a flat list for one text).
            padding: True or "longest" pads rows to the longest one, "max_length" to `max_length`. Pads are
                `pad_token_id`, stand on `padding_side`, and have 0 in `attention_mask`.
            add_special_tokens: put `<s>` before each text.
            truncation: True or "longest_first" cuts rows to `max_length` tokens, `<s>` included, which stays.
            max_length: a number of tokens; where it is None, `model_max_length`.
            return_attention_mask: False leaves `attention_mask` out.

        Raises:
            TypeError: `texts` is neither a str nor several of them, or there is a `text_pair`.
            ValueError: there are no texts, an option is not valid or would have no effect, or rows of different lengths
                cannot form one tensor.
        """
        if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
            raise TypeError(f"texts is a {type(texts).__name__}: it must be a str or a sequence of str")
        if text_pair is not None:
            raise TypeError(f"text_pair={text_pair!r}: pairs of texts are not supported; join texts or ids yourself")
        cut_length, padded_length = row_lengths(padding, truncation, max_length, self.model_max_length)
        limit = {"truncation": cut_length is not None, "max_length": cut_length}
        is_one = isinstance(texts, str)
        rows = [self.encode(text, add_special_tokens, **limit) for text in ([texts] if is_one else texts)]
        if not rows:
            raise ValueError("texts is empty: it must hold at least one text")
        output = self._batch(rows, padded_length, return_tensors, is_one)
        if not return_attention_mask:
            del output["attention_mask"]
        return output

    def _batch(
        self, rows: Sequence[Sequence[int]], padded_length: int | None, return_tensors: str | None, is_one: bool = False
    ) -> TokenizerOutput:
        output = as_batch(rows, padded_length, self.pad_token_id, self.padding_side, return_tensors)
        if is_one and return_tensors is None:
            return TokenizerOutput({name: value[0] for name, value in output.items()})
        return output

    def pad(self, rows: Sequence[Sequence[int]]) -> TokenizerOutput:
        """Pad rows of ids on `padding_side` to one length. Return `(B, T)` int64 tensors of ids and attention mask.

        Raises:
            TypeError: the rows are not lists of ids.
            ValueError: there are no rows.
        """
        is_many = isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, Mapping))
        rows = as_lists(rows) if is_many else None
        if not isinstance(rows, list) or not all(isinstance(row, (list, tuple)) for row in rows):
            raise TypeError("rows must be a list of lists of ids; of what a tokenizer returns, pass the input_ids")
        if not rows:
            raise ValueError("rows is empty: it must hold at least one list of ids")
        return self._batch(rows, 0, "pt")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        tokenize: bool = True,
        return_tensors: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_dict: bool = False,
    ) -> list[int] | list[list[int]] | torch.Tensor | TokenizerOutput | str | list[str]:
        """Return a chat, or each of a batch of chats, in the format of the model that this vocabulary belongs to.

        Mixtral-8x7B-Instruct reads `<s> [INST] question [/INST] answer</s> [INST] question [/INST]`, with the markers
        as plain text (V1). In the vocabulary of Mixtral-8x22B-Instruct, `[INST]` is a control token with one id, and
        the model reads `<s>[INST] question[/INST] answer</s>[INST] question[/INST]`. `mixtral_edu.text.chat` describes
        all versions.

        Args:
            messages: dicts with "role" (an optional "system", then "user" and "assistant" in turn) and "content"; or a
                list of B such chats.
            tokenize: False returns the text instead of ids, to look at: encoded, it gives other ids, as its `<s>` is
                read as text. Options for ids (`return_tensors`, and from `padding` on) then have no effect, as in
                transformers.
            return_tensors: "pt" for a `(B, T)` int64 tensor, B = 1 for one chat; None for lists.
            add_generation_prompt: ask for a new answer. In this format `[/INST]` does that already, so True adds
                nothing, but refuses a chat that ends with an answer.
            continue_final_message: leave the last answer open, without `</s>`, for the model to continue.
            padding, truncation, max_length: as in a call. A cut on the left takes `<s>` too.
            return_dict: return `input_ids` and `attention_mask`, as a call does, instead of the ids alone. transformers
                5 does so by default.

        Raises:
            ValueError: turns do not alternate, an answer is empty or a message holds tool calls (the error names the
                turn); the chat does not end as the two options above need it; an option is not valid.
        """
        chats, is_one = checked_chats(messages, add_generation_prompt, continue_final_message)
        if not tokenize:
            texts = [self._chat_text(chat, continue_final_message) for chat in chats]
            return texts[0] if is_one else texts
        cut_length, padded_length = row_lengths(padding, truncation, max_length, self.model_max_length)
        rows = [self.encode_chat(chat)[0] for chat in chats]
        rows = [row[:-1] if continue_final_message else row for row in rows]  # without the last </s>
        rows = [cut_row(row, cut_length, self.truncation_side, kept=0) for row in rows]
        output = self._batch(rows, padded_length, return_tensors, is_one)
        return output if return_dict else output.input_ids

    def _chat_text(self, messages: Sequence[Mapping[str, str]], is_open: bool) -> str:
        bos, eos = self.bos_token, self.eos_token
        turns = marked_turns(messages, chat_version(self._control_ids))
        # A text that is encoded on its own starts with a space.
        text = bos + "".join(f"{begin}{' ' * bool(text)}{text}{end}{eos * own}" for begin, text, end, own in turns)
        return text.removesuffix(eos) if is_open else text

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """Return a chat's ids, and for each whether it belongs to an answer (with its `</s>`), as a loss counts it."""
        ids, answer_mask = [self.bos_token_id], [False]
        for begin, text, end, is_answer in marked_turns(messages, chat_version(self._control_ids)):
            before, after = ([self._control_ids[piece]] if piece else [] for piece in (begin, end))
            turn = before + self.encode(text, add_special_tokens=False) + after + [self.eos_token_id] * is_answer
            ids += turn
            answer_mask += [is_answer] * len(turn)
        return ids, answer_mask


def train_tokenizer(texts: Iterable[str], model_path: str | Path, vocab_size: int = 2048) -> MixtralTokenizer:
    """Train a byte-fallback BPE model with `train_bpe`, write it to `model_path` and load it."""
    Path(model_path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(model_path) as file:
        file.write_bytes(train_bpe(texts, vocab_size))
    return MixtralTokenizer(model_path)
