"""Exercises of lesson 01: byte-pair merges, encoding with byte fallback, text from a stream of tokens, chat ids."""

import codecs
import random

import sentencepiece

from mixtral_edu.exercises.framework import exercise
from mixtral_edu.text.vocabulary import train_bpe


@exercise("The next merge")
def next_merge(words: dict[tuple[str, ...], int]) -> tuple[str, str] | None:
    """Find the pair of neighbouring symbols that byte-pair encoding merges next.

    Digits stay alone: a pair with a digit (0 to 9) in it is never merged. Of the others it is
    the pair with the highest count. Among equals, as in SentencePiece, the pair whose joined
    text is shorter wins, and then the one whose joined text is smaller, as < compares.

    Args:
        words: the symbols of each word, and how often the word occurs.

    Returns:
        The two symbols, or None where no pair may be merged.
    """
    counts = {}
    for symbols, times in words.items():
        for left, right in zip(symbols[:-1], symbols[1:], strict=True):
            if not any(char in "0123456789" for char in left + right):
                counts[left, right] = counts.get((left, right), 0) + times

    def order(pair: tuple[str, str]) -> tuple[int, int, str]:
        joined = "".join(pair)
        return -counts[pair], len(joined), joined

    return min(counts, key=order, default=None)


@next_merge.check("Is the pair returned as two symbols, in the order in which they stand?")
def two_symbols(answer):
    return answer({("b", "a"): 1}), ("b", "a")


@next_merge.check("Are all neighbours in a word counted, also in the middle and at its end?")
def every_place(answer):
    return answer({("▁", "t", "e", "n"): 1, ("▁", "h", "e", "n", "s"): 1}), ("e", "n")


@next_merge.check("Does a word count as often as it occurs?")
def times_of_a_word(answer):
    return answer({("d", "o", "g"): 1, ("d", "i", "g"): 1, ("a", "n"): 3, ("d", "o"): 1}), ("a", "n")


@next_merge.check("Is a pair that a word holds twice counted twice?")
def twice_in_a_word(answer):
    return answer({("b", "a", "n", "a", "n", "a"): 2, ("c", "u", "t"): 3}), ("a", "n")


@next_merge.check("Is each place counted, also where two overlap? The word a a a holds the pair a a twice.")
def overlapping_places(answer):
    return answer({("a", "a", "a"): 2, ("b", "c"): 3}), ("a", "a")


@next_merge.check("Do pairs end where the word ends? The last symbol of a word has no right neighbour.")
def only_inside_words(answer):
    words = {("x", "a"): 1, ("b", "y"): 1, ("z", "a"): 1, ("b", "v"): 1, ("w", "a"): 1, ("b", "y", "w"): 1}
    return answer(words), ("b", "y")


@next_merge.check("Among equal counts, does the pair with the shorter joined text win?")
def shorter_first(answer):
    return answer({("ab", "c"): 2, ("x", "y"): 2}), ("x", "y")


@next_merge.check("Among equal counts and lengths, does the smaller text win, wherever it stands?")
def smaller_first(answer):
    return answer({("z", "e"): 2, ("b", "e"): 2, ("c", "a"): 2}), ("b", "e")


@next_merge.check("Is a pair with a digit passed over, on whichever side the digit stands?")
def digits_stay_alone(answer):
    return answer({("1", "9"): 5, ("a", "1"): 4, ("▁", "9"): 3, ("9", "a"): 3, ("a", "b"): 1}), ("a", "b")


@next_merge.check("Do the other pairs of a word with a digit count?")
def pairs_beside_a_digit(answer):
    return answer({("▁", "t", "1"): 5, ("▁", "h"): 2}), ("▁", "t")


@next_merge.check("Is None returned where no pair may be merged?")
def nothing_left(answer):
    return answer({("▁ten",): 2, ("▁", "1", "0"): 3}), None


@exercise("Encode with byte fallback")
def bpe_encode(text: str, pieces: list[str]) -> list[str]:
    """Split a text into tokens as byte-fallback BPE does.

    1. Put a space in front of the text, and write every space as "▁" (U+2581).
    2. Begin with single characters. Look at all neighbours whose joined text is in `pieces`,
       and join the pair whose joined text comes first in `pieces`; of equal ones the leftmost.
       Again, until no such pair is left.
    3. Replace each symbol that is not in `pieces` by its UTF-8 bytes, each a token of its own
       such as "<0x0A>".

    Args:
        text: at least one character.
        pieces: of the vocabulary, without special tokens and bytes: first merged pieces in the
            order in which they were learned, then single characters.

    Returns:
        The tokens, in order.
    """
    rank = {piece: order for order, piece in enumerate(pieces)}
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [symbols[i] + symbols[i + 1] for i in range(len(symbols) - 1)]
        candidates = [(rank[both], i) for i, both in enumerate(joined) if both in rank]
        if not candidates:
            break
        _, i = min(candidates)
        symbols[i : i + 2] = [joined[i]]
    tokens = []
    for symbol in symbols:
        known = symbol in rank
        tokens += [symbol] if known else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return tokens


HENS = ["he", "▁t", "hen", "▁hen", "▁the", "e", "▁", "h", "n", "t", "s"]  # of "the hen then the ten hens"


@bpe_encode.check("Is a space put in front of the text?")
def space_in_front(answer):
    return answer("sn", HENS), ["▁", "s", "n"]


@bpe_encode.check('Is each further space kept, as a "▁"?')
def every_space(answer):
    return answer("s  n ", HENS), ["▁", "s", "▁", "▁", "n", "▁"]


@bpe_encode.check("Are symbols joined again and again, until no pair is left?")
def merged_to_the_end(answer):
    return answer("hens the", HENS), ["▁hen", "s", "▁the"]


@bpe_encode.check("Is the pair joined that was learned first, and not the longest piece, or the first from the left?")
def learned_first(answer):
    return answer("then", HENS), ["▁t", "hen"]


@bpe_encode.check("Among pairs with the same joined text, is the leftmost joined first?")
def leftmost_first(answer):
    return answer("aaa", ["aa", "▁", "a"]), ["▁", "aa", "a"]


SPACES = ["▁▁", "▁t", "he", "▁", "t", "h", "e", "n", "x"]


@bpe_encode.check("Is the text encoded as a whole, and not word by word? Two spaces may be one piece.")
def as_a_whole(answer):
    return answer("x  x", SPACES), ["▁", "x", "▁▁", "x"]


@bpe_encode.check("Is a space put in front, too, where the text begins with one?")
def one_more_space(answer):
    return answer(" then", SPACES), ["▁▁", "t", "he", "n"]


@bpe_encode.check("Does a character that is not in pieces become its bytes, written as <0x7A>?")
def one_byte(answer):
    return answer("zen\n", HENS), ["▁", "<0x7A>", "e", "n", "<0x0A>"]


@bpe_encode.check("Does a character of several bytes become as many tokens?")
def several_bytes(answer):
    return answer("é🐅", HENS), ["▁", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x90>", "<0x85>"]


@bpe_encode.check("Are the tokens those of SentencePiece, on a longer text?")
def as_sentencepiece(answer):
    text = "the hen then tells the ten hens of the tenth hill, where then the other hens tell of the hen"
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_bpe([text], 259 + 16 + 40))
    pieces = processor.id_to_piece(list(range(259, processor.vocab_size())))
    other = "Then the other hen ¿fell? – on the 10th hill, hehehe"
    return answer(other, pieces), processor.encode(other, out_type=str)


@exercise("Text from a stream of bytes")
def decode_stream(tokens: list[bytes]) -> list[str]:
    """Say after each token which text has become certain.

    A character may be spread over several tokens. It is given out whole, after the token that
    completes it, and never earlier. Characters before it do not wait.

    Args:
        tokens: the bytes that each token stands for. Joined they are valid UTF-8, except that
            the last character may be unfinished: then it is never given out.

    Returns:
        One text for each token, in order; "" where nothing has become certain.
    """
    texts = []
    waiting = b""
    for token in tokens:
        waiting += token
        for end in range(len(waiting), -1, -1):  # the longest beginning that is whole
            try:
                texts.append(waiting[:end].decode())
                break
            except UnicodeDecodeError:
                continue
        waiting = waiting[end:]
    return texts


def decoded_by_python(tokens: list[bytes]) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


@decode_stream.check("Is there one text for each token, and plain letters at once?")
def letters_at_once(answer):
    return answer([b" Once", b" upon", b" a"]), [" Once", " upon", " a"]


@decode_stream.check("Does a character wait for its last byte, with an empty text for each token before?")
def wait_for_the_last_byte(answer):
    return answer([b" ", b"\xf0", b"\x9f", b"\x90", b"\x85", b"!"]), [" ", "", "", "", "🐅", "!"]


@decode_stream.check("Is what was given out forgotten, so that it is not given out again?")
def nothing_twice(answer):
    return answer([b"\xc3", b"\xa9", b"\xc3", b"\xb1", b"o"]), ["", "é", "", "ñ", "o"]


@decode_stream.check("Are whole characters given out while the one behind them waits?")
def only_the_unfinished_waits(answer):
    return answer([b"caf\xc3", b"\xa9 \xe2\x82", b"\xac"]), ["caf", "é ", "€"]


@decode_stream.check("Is an unfinished character at the end left out, without U+FFFD and without an exception?")
def unfinished_end(answer):
    return answer([b"a", b"\xf0\x9f"]), ["a", ""]


@decode_stream.check("Is it right for texts cut anywhere, as Python's own incremental decoder is?")
def cut_anywhere(answer):
    draw = random.Random(1)
    data = "".join(draw.choices("aé€🐅 ñ中", k=40)).encode()
    cuts = [0, *sorted(draw.sample(range(1, len(data)), 30)), len(data)]
    tokens = [data[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    return answer(tokens), decoded_by_python(tokens)


@exercise("The ids of a chat")
def chat_ids(messages: list[dict], encode, bos_id: int, eos_id: int) -> list[int]:
    """Return a chat as the ids that Mixtral-Instruct reads.

    The ids begin with `bos_id`, once. Each message is encoded by itself: a question as the
    text "[INST] question [/INST]", an answer as it is. Nothing is stripped. `eos_id` follows
    each answer, and no question. A system message may come first. It has no turn of its own,
    but stands in the first question: "[INST] system message, two line breaks, question
    [/INST]".

    Args:
        messages: dicts with "role" ("system", "user" or "assistant") and "content".
        encode: the tokenizer: takes a text, returns a list of ids without control ids.
        bos_id: the id of <s>.
        eos_id: the id of </s>.

    Returns:
        All ids in one list.
    """
    ids = [bos_id]
    system = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system = content + "\n\n"
        elif role == "user":
            ids += encode(f"[INST] {system}{content} [/INST]")
            system = ""
        else:
            ids += [*encode(content), eos_id]
    return ids


def whole_texts(text: str) -> list[str]:
    """Stands in for a tokenizer: the whole text as one id, so that a message shows what was encoded."""
    return [text]


def chat(*contents: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@chat_ids.check("Is bos_id in front, as the number that was given?", compared="the first id")
def bos_in_front(answer):
    return answer(chat("Hi"), whole_texts, 7, 9)[:1], [7]


@chat_ids.check(
    "Does a question become [INST] question [/INST], with one space on each side of it?", compared="the second id"
)
def one_question(answer):
    return answer(chat("Hi"), whole_texts, 1, 2)[1:2], ["[INST] Hi [/INST]"]


@chat_ids.check("Is there nothing behind the last question? eos_id follows answers only.")
def nothing_behind_the_last_question(answer):
    return answer(chat("Hi"), whole_texts, 1, 2), [1, "[INST] Hi [/INST]"]


@chat_ids.check("Is an answer encoded by itself, as it is?", compared="the texts that were encoded")
def answer_as_it_is(answer):
    ids = answer(chat("Hi", "Hello.", "2 + 2?"), whole_texts, 1, 2)
    return [i for i in ids if isinstance(i, str)], ["[INST] Hi [/INST]", "Hello.", "[INST] 2 + 2? [/INST]"]


@chat_ids.check("Does eos_id follow the answer, and stay away from the questions?", compared="the ids but bos_id")
def eos_after_answers(answer):
    ids = answer(chat("Hi", "Hello.", "2 + 2?"), whole_texts, 1, 2)
    return [i for i in ids if i != 1], ["[INST] Hi [/INST]", "Hello.", 2, "[INST] 2 + 2? [/INST]"]


@chat_ids.check("Is bos_id there once, and not before each question?")
def bos_once(answer):
    ids = answer(chat("a", "b", "c", "d", "e"), whole_texts, 1, 2)
    return ids, [1, "[INST] a [/INST]", "b", 2, "[INST] c [/INST]", "d", 2, "[INST] e [/INST]"]


@chat_ids.check("Does a system message stand inside the first question, with two line breaks behind it?")
def system_inside(answer):
    messages = [{"role": "system", "content": "Be brief."}, *chat("Hi")]
    return answer(messages, whole_texts, 1, 2), [1, "[INST] Be brief.\n\nHi [/INST]"]


@chat_ids.check("Does the system message stand in the first question alone?")
def system_once(answer):
    messages = [{"role": "system", "content": "Be brief."}, *chat("Hi", "Hello.", "Bye")]
    expected = [1, "[INST] Be brief.\n\nHi [/INST]", "Hello.", 2, "[INST] Bye [/INST]"]
    return answer(messages, whole_texts, 1, 2), expected


@chat_ids.check("Do the texts keep the spaces and line breaks that they begin or end with?")
def not_stripped(answer):
    messages = [{"role": "system", "content": "Be brief.\n"}, *chat(" Hi", " Hello. ", "Bye ")]
    expected = [1, "[INST] Be brief.\n\n\n Hi [/INST]", " Hello. ", 2, "[INST] Bye  [/INST]"]
    return answer(messages, whole_texts, 1, 2), expected
