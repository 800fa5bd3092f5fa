"""Family 7, frameworks: what wraps a model, and who else runs the training step."""
