"""The V1 instruct format of Mixtral: how the turns of a chat become texts, each encoded on its own."""

from collections.abc import Mapping, Sequence


def chat_turns(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    """Return each turn as `(text, is_answer)`: `[INST] question [/INST]`, or the answer as it is.

    >>> chat_turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    [('[INST] Be brief.\\n\\nHi [/INST]', False)]

    Args:
        messages: dicts with "role" (an optional leading "system", then "user" and "assistant" in turn) and "content".

    Raises:
        TypeError: a content is no str.
        ValueError: a turn has the wrong role or is an empty answer, or there is no user turn at all.

    Source: mistral_common's V1 instruct tokenizer, whose ids these turns give.
    """
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f'messages[{i}] is {message!r}: a dict with "role" and "content" is wanted')
        if not isinstance(message["content"], str):
            raise TypeError(f"messages[{i}] has a content of type {type(message['content']).__name__}, not str")
    has_system = bool(messages) and messages[0]["role"] == "system"
    system = messages[0]["content"] if has_system else ""
    turns = []
    for i, message in enumerate(messages[has_system:]):
        role, text, wanted = message["role"], message["content"], ("user", "assistant")[i % 2]
        place = f"messages[{i + has_system}]"
        if role != wanted:
            raise ValueError(
                f"{place} is a turn of {role!r}, but {wanted!r} is due: after an optional leading system message, "
                "user and assistant take turns, and the user begins"
            )
        if role == "assistant" and not text:
            raise ValueError(f"{place} is an empty answer; leave it out for the model to write it")
        if role == "user":
            text = f"[INST] {system}\n\n{text} [/INST]" if i == 0 and system else f"[INST] {text} [/INST]"
        turns.append((text, role == "assistant"))
    if not turns:
        raise ValueError("messages holds no user turn: a chat has at least one")
    return turns
