"""Text: the byte-pair vocabulary, the tokenizer, the chat format, and streaming of generated text."""
