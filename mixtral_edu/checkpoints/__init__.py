"""Checkpoints: folders, tensor files, conversion between Hugging Face's and Mistral's layouts, and memory checks."""
