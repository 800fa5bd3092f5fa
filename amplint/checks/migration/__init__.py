"""Family 6, migration: names that PyTorch deprecates, apex.amp, and what a version of torch has."""
