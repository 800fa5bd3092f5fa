"""The compiled FP16 matmul: the measuring instrument of `amplint verify` (see ops.py)."""
