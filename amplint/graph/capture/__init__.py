"""A model and its inputs as one torch.fx graph under the CUDA autocast policy: export, else a compile backend, else an
eager recorder."""
