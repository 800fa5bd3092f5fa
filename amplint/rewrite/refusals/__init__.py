"""What stays as it is, and why."""
