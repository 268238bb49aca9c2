"""The classes that users meet, shaped like transformers': the textbook's models with checks and options."""
