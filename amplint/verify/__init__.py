"""The parent's side of `amplint verify`: workspaces, runs, comparison. Only child/ and kernels/ import torch."""
