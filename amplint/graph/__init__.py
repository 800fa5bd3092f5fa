"""The tracer: what the model computes, as a torch.fx graph under the CUDA autocast policy, and where it leaves the
range of half precision. Only this package and verify/ import torch, and nothing imports them at start-up.

capture/ (model + inputs → Captured) → ranges/ (→ a range for each node) → marks (→ findings) → report
"""
