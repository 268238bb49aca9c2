"""Training: the trainer, the recipes and texts of the bundled models, and evaluation on held-out text."""
