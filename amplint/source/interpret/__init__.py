"""The abstract interpreter: runs a script in its head and tells what a training step does (entries.read)."""
