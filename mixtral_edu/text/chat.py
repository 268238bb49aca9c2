"""Turn a chat into texts between markers, each encoded on its own, in version V1 of the format or a later one.

| version | read by                | a chat with a system message, in pieces                                     |
|---------|------------------------|-----------------------------------------------------------------------------|
| V1      | Mixtral-8x7B-Instruct  | `<s>▁[INST]▁system…first▁[/INST]▁answer</s>▁[INST]▁last▁[/INST]`            |
| V2, V3  | Mixtral-8x22B-Instruct | `<s>[INST]▁first[/INST]▁answer</s>[INST]▁system…last[/INST]`                |
| V7      | later models           | `<s>[SYSTEM_PROMPT]▁system[/SYSTEM_PROMPT][INST]▁first[/INST]▁answer</s>…`  |

In V1 the markers are plain text, with a space on their inner side. From V2 on, each marker is one control token, which
no text encodes to. No space comes before `[/INST]`, and an answer loses the spaces at its end. The `…` after a system
message stands for two line breaks. V2 and V3 differ only in how they write tool calls, which are not supported here.

No format has a marker for the beginning of an answer: `[/INST]` is the generation prompt. Each text is encoded on its
own. So the ids of a chat, of its answer and of `</s>` begin the ids of the next turn, and a KV cache can be kept from
turn to turn. The exception is a system message in V2 or V3, because it moves to the last question.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

_MARKERS = ("[INST]", "[/INST]")
_SYSTEM_MARKERS = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
_TOOLS = ("tool_calls", "tool_call_id", "tools")  # keys of messages in other chat formats


class Turn(NamedTuple):
    """One turn: a text between two control pieces, which are empty in V1. An answer ends with `</s>`."""

    begin: str
    text: str
    end: str
    is_answer: bool


def chat_version(control_pieces: Container[str]) -> str:
    """Return the version of the chat format that a vocabulary was made for: "V1", "V3" (the same as V2) or "V7".

    >>> chat_version({"<s>", "</s>"}), chat_version({"<s>", "</s>", "[INST]", "[/INST]"})
    ('V1', 'V3')

    Args:
        control_pieces: the control tokens of the vocabulary, by name.

    Raises:
        ValueError: the vocabulary has only one marker of a pair.
    """
    for begin, end in (_MARKERS, _SYSTEM_MARKERS):
        if (begin in control_pieces) != (end in control_pieces):
            raise ValueError(f"the vocabulary must have both control tokens {begin} and {end}, or neither")
    if _MARKERS[0] not in control_pieces:
        return "V1"
    return "V7" if _SYSTEM_MARKERS[0] in control_pieces else "V3"


def marked_turns(messages: Sequence[Mapping[str, str]], version: str) -> list[Turn]:
    """Return the turns of a chat in a version of the format. The errors are those of `chat_turns`.

    >>> marked_turns([{"role": "user", "content": "Hi"}], "V3")
    [Turn(begin='[INST]', text='Hi', end='[/INST]', is_answer=False)]

    Source: mistral_common's instruct tokenizers of the same names. These turns encode to the same ids.
    """
    system, texts = _checked(messages)
    turns = []
    if version == "V7" and system is not None:
        turns.append(Turn(_SYSTEM_MARKERS[0], system, _SYSTEM_MARKERS[1], False))
    with_system = {"V1": 0, "V3": (len(texts) - 1) // 2 * 2}.get(version)  # the first user turn, or the last
    for i, text in enumerate(texts):
        if i % 2:
            turns.append(Turn("", text if version == "V1" else text.rstrip(" "), "", True))
            continue
        if system and i == with_system:
            text = f"{system}\n\n{text}"
        begin, end = _MARKERS
        turns.append(Turn("", f"{begin} {text} {end}", "", False) if version == "V1" else Turn(begin, text, end, False))
    return turns


def checked_chats(
    messages: Sequence[Any], add_generation_prompt: bool = False, continue_final_message: bool = False
) -> tuple[list[Sequence[Mapping[str, str]]], bool]:
    """Return the chats that `apply_chat_template` was given, and whether that is one chat rather than a batch.

    Raises:
        TypeError, ValueError: as `chat_turns`. For a chat of a batch the message begins with its place, "chat 2: ".
        ValueError: both options are True, the first is and a chat ends with an answer, or the second is and a chat
            does not.
    """
    if add_generation_prompt and continue_final_message:
        raise ValueError(
            "add_generation_prompt=True asks for a new answer, and continue_final_message=True continues the last one: "
            "pass only one of them"
        )
    is_one = not (isinstance(messages, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in messages[:1]))
    chats = [messages] if is_one else list(messages)
    for i, chat in enumerate(chats):
        try:
            _check_end(chat, add_generation_prompt, continue_final_message)
        except (TypeError, ValueError) as error:
            if is_one:
                raise
            raise type(error)(f"chat {i}: {error}") from error
    return chats, is_one


def _check_end(chat: Sequence[Mapping[str, str]], add_generation_prompt: bool, continue_final_message: bool) -> None:
    _, texts = _checked(chat)
    ends_with_answer = len(texts) % 2 == 0
    if add_generation_prompt and ends_with_answer:
        raise ValueError(
            "add_generation_prompt=True, but the last message is an answer: it must be the user's; to let the model "
            "continue the answer, pass continue_final_message=True instead"
        )
    if continue_final_message and not ends_with_answer:
        raise ValueError("continue_final_message=True, but the last message is the user's: it must be an answer")


def chat_turns(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    """Return each turn in V1 as `(text, is_answer)`. The text is `[INST] question [/INST]`, or the answer as it is.

    >>> chat_turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    [('[INST] Be brief.\\n\\nHi [/INST]', False)]

    Args:
        messages: dicts with "role" (an optional leading "system", then "user" and "assistant" in turn) and "content".

    Raises:
        TypeError: a message's content is not a str.
        ValueError: a turn has the wrong role, is an empty answer or holds tool calls, or there is no user turn at all.

    Source: mistral_common's V1 instruct tokenizer. These turns encode to the same ids.
    """
    return [(turn.text, turn.is_answer) for turn in marked_turns(messages, "V1")]


def _checked(messages: Sequence[Mapping[str, str]]) -> tuple[str | None, list[str]]:
    """Return the system message, or None, and the texts of user and assistant in turn."""
    if not isinstance(messages, (Sequence, Mapping)) or isinstance(messages, (str, bytes)):
        kind = type(messages).__name__
        raise TypeError(f'messages is a {kind}: it must be a list of dicts with "role" and "content"')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f'messages[{i}] is {message!r}: it must be a dict with "role" and "content"')
        for key in _TOOLS:
            if message.get(key):
                raise ValueError(f"messages[{i}] has {key!r}: tools are not supported; give only role and content")
        if message.get("prefix"):
            raise ValueError(f"messages[{i}] has 'prefix': call apply_chat_template with continue_final_message=True")
        if message["role"] == "tool":
            raise ValueError(f"messages[{i}] is a turn of 'tool': the role must be 'system', 'user' or 'assistant'")
        if not isinstance(message["content"], str):
            raise TypeError(f"messages[{i}] has a content of type {type(message['content']).__name__}; it must be str")
    has_system = bool(messages) and messages[0]["role"] == "system"
    texts = []
    for i, message in enumerate(messages[has_system:]):
        role, text, wanted = message["role"], message["content"], ("user", "assistant")[i % 2]
        place = f"messages[{i + has_system}]"
        if role != wanted:
            raise ValueError(
                f"{place} is a turn of {role!r}: it must be a turn of {wanted!r}. After an optional leading system "
                "message, user and assistant alternate, and the user begins"
            )
        if role == "assistant" and not text:
            raise ValueError(f"{place} is an empty answer: leave it out to let the model write it")
        texts.append(text)
    if not texts:
        raise ValueError("messages holds no user turn: it must hold at least one")
    return messages[0]["content"] if has_system else None, texts
