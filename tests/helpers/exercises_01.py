"""Answers to the exercises of lesson 01."""

import codecs
from collections import Counter
from itertools import pairwise

from exercise_answers import right, wrong
from mixtral_edu.exercises.lesson_01 import bpe_encode, decode_stream, next_merge
from mixtral_edu.text.chat import chat_turns
from mixtral_edu.viz.merges import merge_history


def counts_of(words: dict, pairs_of=pairwise, digits: str = "0123456789") -> Counter:
    counts = Counter()
    for symbols, times in words.items():
        for pair in pairs_of(symbols):
            if not set("".join(pair)) & set(digits):
                counts[pair] += times
    return counts


def shortest_then_smallest(counts: Counter) -> tuple[str, str] | None:
    return min(counts, key=lambda pair: (-counts[pair], len("".join(pair)), "".join(pair)), default=None)


@right("next_merge")
def by_sorting(words):
    counts = counts_of(words)
    pairs = sorted(counts, key="".join)
    pairs.sort(key=lambda pair: len("".join(pair)))
    pairs.sort(key=counts.get, reverse=True)  # sorting keeps the order of equals
    return pairs[0] if pairs else None


@wrong("next_merge", "returned as two symbols")
def joined_text(words):
    return "".join(next_merge.reference(words))


@wrong("next_merge", "also in the middle and at its end")
def beginnings_only(words):
    return next_merge.reference({symbols[:2]: times for symbols, times in words.items()})


@wrong("next_merge", "as often as it occurs")
def each_word_once(words):
    return next_merge.reference(dict.fromkeys(words, 1))


@wrong("next_merge", "twice counted twice")
def once_in_a_word(words):
    return shortest_then_smallest(counts_of(words, lambda symbols: set(pairwise(symbols))))


@wrong("next_merge", "where two overlap")
def places_that_do_not_overlap(words):
    def pairs_of(symbols):
        i = 0
        while i < len(symbols) - 1:
            yield symbols[i : i + 2]
            i += 2 if symbols[i : i + 3] == symbols[i : i + 1] * 3 else 1

    return shortest_then_smallest(counts_of(words, pairs_of))


@wrong("next_merge", "end where the word ends")
def across_words(words):
    symbols = [symbol for word, times in words.items() for symbol in word * times]
    return next_merge.reference({tuple(symbols): 1})


@wrong("next_merge", "the shorter joined text win")
def alphabet_alone(words):
    counts = counts_of(words)
    return min(counts, key=lambda pair: (-counts[pair], "".join(pair)))


@wrong("next_merge", "the smaller text win")
def first_seen(words):
    counts = counts_of(words)
    return min(counts, key=lambda pair: (-counts[pair], len("".join(pair))))


@wrong("next_merge", "Is a pair with a digit passed over")
def digits_like_letters(words):
    return shortest_then_smallest(counts_of(words, digits=""))


@wrong("next_merge", "on whichever side")
def digits_on_the_right_pass(words):
    return shortest_then_smallest(counts_of(words, lambda s: [pair for pair in pairwise(s) if pair[1] not in "19"], ""))


@wrong("next_merge", "pairs of a word with a digit")
def words_with_a_digit_left_out(words):
    return next_merge.reference({symbols: times for symbols, times in words.items() if not set("19") & set(symbols)})


@wrong("next_merge", "Is None returned")
def empty_text_for_nothing(words):
    return next_merge.reference(words) or ("", "")


def as_bytes(symbol: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in symbol.encode()]


@right("bpe_encode")
def piece_by_piece(text, pieces):
    """Goes through the pieces, and joins each wherever it occurs: only for pieces whose halves come before them."""
    symbols = ["▁", *text.replace(" ", "▁")]
    for piece in pieces:
        merged, i = [], 0
        while i < len(symbols):
            both = i + 1 < len(symbols) and symbols[i] + symbols[i + 1] == piece
            merged.append(piece if both else symbols[i])
            i += 1 + both
        symbols = merged
    return [token for symbol in symbols for token in ([symbol] if symbol in pieces else as_bytes(symbol))]


def encoded(text: str, pieces: list[str], merged=None) -> list[str]:
    """The right way, but for the characters that it begins with, or for how they are merged."""
    rank = {piece: order for order, piece in enumerate(pieces)}
    symbols = (merged or (lambda symbols: merge_history(symbols, rank)[-1]))(list(text))
    return [token for symbol in symbols for token in ([symbol] if symbol in pieces else as_bytes(symbol))]


@right("bpe_encode")
def with_the_packages_merges(text, pieces):
    return encoded("▁" + text.replace(" ", "▁"), pieces)


@wrong("bpe_encode", "Is a space put in front")
def nothing_in_front(text, pieces):
    return encoded(text.replace(" ", "▁"), pieces)


@wrong("bpe_encode", "Is each further space kept")
def spaces_cleaned_up(text, pieces):
    return encoded("▁" + "▁".join(text.split()), pieces)


@wrong("bpe_encode", "where the text begins with one")
def one_space_is_enough(text, pieces):
    return bpe_encode.reference(text.removeprefix(" "), pieces)


@wrong("bpe_encode", "not word by word")
def word_by_word(text, pieces):
    return [token for word in text.split(" ") for token in bpe_encode.reference(word, pieces)]


@wrong("bpe_encode", "again and again")
def one_merge(text, pieces):
    rank = {piece: order for order, piece in enumerate(pieces)}
    return encoded("▁" + text.replace(" ", "▁"), pieces, lambda symbols: merge_history(symbols, rank)[:2][-1])


@wrong("bpe_encode", "learned first, and not the longest piece")
def longest_piece(text, pieces):
    text, tokens = "▁" + text.replace(" ", "▁"), []
    while text:
        fits = [piece for piece in pieces if text.startswith(piece)]
        tokens += [max(fits, key=len)] if fits else as_bytes(text[0])
        text = text[len(max(fits, key=len, default=text[0])) :]
    return tokens


@wrong("bpe_encode", "learned first, and not the longest piece")
def first_from_the_left(text, pieces):
    return encoded("▁" + text.replace(" ", "▁"), pieces, lambda s: merge_history(s, dict.fromkeys(pieces, 0))[-1])


@wrong("bpe_encode", "the leftmost joined first")
def rightmost_first(text, pieces):
    rank = {piece: order for order, piece in enumerate(pieces)}

    def merged(symbols):
        while True:
            found = [(rank[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in rank]
            if not found:
                return symbols
            i = -min(found)[1]
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]

    return encoded("▁" + text.replace(" ", "▁"), pieces, merged)


@wrong("bpe_encode", "become its bytes, written as <0x7A>")
def unknown(text, pieces):
    return [token if token in pieces else "<unk>" for token in bpe_encode.reference(text, pieces)]


@wrong("bpe_encode", "become its bytes, written as <0x7A>")
def small_letters(text, pieces):
    return [token if token in pieces else token.lower() for token in bpe_encode.reference(text, pieces)]


@wrong("bpe_encode", "as many tokens")
def code_points(text, pieces):
    symbols = encoded("▁" + text.replace(" ", "▁"), [*pieces, *text])
    return [symbol if symbol in pieces else f"<0x{ord(symbol):02X}>" for symbol in symbols]


@wrong("bpe_encode", "those of SentencePiece")
def no_more_than_five_merges(text, pieces):
    return bpe_encode.reference(text, pieces[:5] + [piece for piece in pieces if len(piece) == 1])


@right("decode_stream")
def by_the_incremental_decoder(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


@right("decode_stream")
def by_the_leading_byte(tokens):
    texts, waiting = [], b""
    for token in tokens:
        waiting += token
        whole = 0
        while whole < len(waiting):
            first = waiting[whole]
            size = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            if whole + size > len(waiting):
                break
            whole += size
        texts.append(waiting[:whole].decode())
        waiting = waiting[whole:]
    return texts


@wrong("decode_stream", "one text for each token")
def whole_text(tokens):
    return [b"".join(tokens).decode(errors="ignore")]


@wrong("decode_stream", "wait for its last byte")
def each_token_alone(tokens):
    return [token.decode(errors="replace") for token in tokens]


@wrong("decode_stream", "wait for its last byte")
def no_text_while_waiting(tokens):
    return [text for text in decode_stream.reference(tokens) if text]


@wrong("decode_stream", "not given out again")
def waiting_bytes_kept(tokens):
    texts, waiting = [], b""
    for token in tokens:
        try:
            texts.append(token.decode())
        except UnicodeDecodeError:
            waiting += token
            texts.append(waiting.decode(errors="ignore"))
    return texts


@wrong("decode_stream", "while the one behind them waits")
def all_or_nothing(tokens):
    texts, waiting = [], b""
    for token in tokens:
        waiting += token
        try:
            texts.append(waiting.decode())
            waiting = b""
        except UnicodeDecodeError:
            texts.append("")
    return texts


@wrong("decode_stream", "without U+FFFD")
def end_marked(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(token, final=i == len(tokens) - 1) for i, token in enumerate(tokens)]


@wrong("decode_stream", "cut anywhere")
def at_most_two_bytes_wait(tokens):
    texts, waiting = [], b""
    for token in tokens:
        waiting += token
        for held in range(3 if len(tokens) > 10 else 4):
            try:
                texts.append(waiting[: len(waiting) - held].decode())
                waiting = waiting[len(waiting) - held :]
                break
            except UnicodeDecodeError:
                continue
        else:
            texts.append(waiting.decode(errors="ignore"))
            waiting = b""
    return texts


@right("chat_ids")
def with_the_packages_turns(messages, encode, bos_id, eos_id):
    turns = chat_turns(messages)
    return sum((list(encode(text)) + [eos_id] * is_answer for text, is_answer in turns), [bos_id])


@right("chat_ids")
def in_pairs(messages, encode, bos_id, eos_id):
    rest = [dict(message) for message in messages]
    if rest[0]["role"] == "system":
        first = rest.pop(0)
        rest[0]["content"] = first["content"] + "\n\n" + rest[0]["content"]
    ids = [bos_id]
    for i in range(0, len(rest), 2):
        ids.extend(encode("[INST] " + rest[i]["content"] + " [/INST]"))
        for answer in rest[i + 1 : i + 2]:
            ids.extend(encode(answer["content"]))
            ids.append(eos_id)
    return ids


def ids_of(messages, encode, bos_id, eos_id, question="[INST] {} [/INST]"):
    """The right way, but for the form of a question, and with a system message that has a turn of its own."""
    ids = [bos_id]
    for message in messages:
        is_answer = message["role"] == "assistant"
        ids += encode(message["content"] if is_answer else question.format(message["content"]))
        ids += [eos_id] * is_answer
    return ids


@wrong("chat_ids", "with one space on each side")
def without_spaces(messages, encode, bos_id, eos_id):
    return ids_of(messages, encode, bos_id, eos_id, "[INST]{}[/INST]")


@wrong("chat_ids", "with one space on each side")
def all_in_one_text(messages, encode, bos_id, eos_id):
    text = "".join(message["content"] for message in messages)
    return [bos_id, *encode(f"[INST] {text}")]


@wrong("chat_ids", "Is bos_id in front")
def no_bos(messages, encode, bos_id, eos_id):
    return with_the_packages_turns(messages, encode, bos_id, eos_id)[1:]


@wrong("chat_ids", "as the number that was given")
def bos_as_text(messages, encode, bos_id, eos_id):
    return [*encode("<s>"), *with_the_packages_turns(messages, encode, bos_id, eos_id)[1:]]


@wrong("chat_ids", "nothing behind the last question")
def eos_at_the_very_end(messages, encode, bos_id, eos_id):
    ids = with_the_packages_turns(messages, encode, bos_id, eos_id)
    return ids if ids[-1] == eos_id else [*ids, eos_id]


@wrong("chat_ids", "Is an answer encoded by itself, as it is?")
def a_space_before_each_answer(messages, encode, bos_id, eos_id):
    spaced = [m | {"content": " " + m["content"]} if m["role"] == "assistant" else m for m in messages]
    return with_the_packages_turns(spaced, encode, bos_id, eos_id)


@wrong("chat_ids", "Is an answer encoded by itself, as it is?")
def the_whole_chat_in_one_text(messages, encode, bos_id, eos_id):
    return [bos_id, *encode("".join(text + "</s>" * is_answer for text, is_answer in chat_turns(messages)))]


@wrong("chat_ids", "stay away from the questions")
def eos_after_every_message(messages, encode, bos_id, eos_id):
    ids = [bos_id]
    for text, _ in chat_turns(messages):
        ids += [*encode(text), eos_id] if len(messages) > 1 else encode(text)
    return ids


@wrong("chat_ids", "stay away from the questions")
def eos_at_the_end_alone(messages, encode, bos_id, eos_id):
    ids = [bos_id, *(i for text, _ in chat_turns(messages) for i in encode(text))]
    return ids if len(messages) == 1 else [*ids, eos_id]


@wrong("chat_ids", "not before each question")
def bos_before_each_question(messages, encode, bos_id, eos_id):
    ids = []
    for text, is_answer in chat_turns(messages):
        ids += [*encode(text), eos_id] if is_answer else [bos_id, *encode(text)]
    return ids


@wrong("chat_ids", "inside the first question")
def system_as_a_turn(messages, encode, bos_id, eos_id):
    return ids_of(messages, encode, bos_id, eos_id)


@wrong("chat_ids", "inside the first question")
def system_left_out(messages, encode, bos_id, eos_id):
    return ids_of([m for m in messages if m["role"] != "system"], encode, bos_id, eos_id)


@wrong("chat_ids", "in the first question alone")
def system_in_each_question(messages, encode, bos_id, eos_id):
    if messages[0]["role"] != "system":
        return ids_of(messages, encode, bos_id, eos_id)
    question = f"[INST] {messages[0]['content']}\n\n{{}} [/INST]"
    return ids_of(messages[1:], encode, bos_id, eos_id, question)


@wrong("chat_ids", "keep the spaces and line breaks")
def texts_stripped(messages, encode, bos_id, eos_id):
    stripped = [message | {"content": message["content"].strip()} for message in messages]
    return with_the_packages_turns(stripped, encode, bos_id, eos_id)
