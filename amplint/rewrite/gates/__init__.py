"""Where AMP is on: the target device, and the script's own switches."""
