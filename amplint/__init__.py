"""amplint reads PyTorch training code and finds, explains and repairs what goes wrong in mixed precision."""

__version__ = "0.1.0"
