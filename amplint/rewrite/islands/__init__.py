"""What stays in float32, and how it meets what does not."""
