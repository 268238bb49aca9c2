"""Checkpoints: folders, files of tensors, Hugging Face's and Mistral's layouts and the way between them, memory."""
