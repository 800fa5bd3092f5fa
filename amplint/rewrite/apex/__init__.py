"""apex.amp → torch.amp: a whole file at once, or not at all."""
