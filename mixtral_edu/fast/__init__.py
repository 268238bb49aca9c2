"""The engine: the same results sooner. `engine.install` puts it into a model, `engine.remove` takes it out."""
