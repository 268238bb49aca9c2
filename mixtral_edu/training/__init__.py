"""Training: the trainer, the recipes of the bundled models and their texts, figures on held-out text."""
