"""Text: a vocabulary of byte pairs, the tokenizer, the chat format, and text as it is generated."""
