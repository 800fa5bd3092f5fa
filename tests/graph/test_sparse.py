"""Sparse tensors are captured and run; nothing is said of their values."""

from __future__ import annotations

import torch
from torch import nn

from amplint.graph import ranges
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.marks import marks


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(adjacency, self.lift(x))


def test_a_sparse_input_is_unknown_and_no_crash() -> None:
    captured = capture(Layer(), (torch.randn(16, 8), torch.eye(16).to_sparse()), {}, Precision())
    found = ranges.analyse(captured)
    assert [one.unknown for node, one in found.items() if node.name == "adjacency"] == ["sparse_coo"]
    assert any(node.name == "linear" for node in measure(captured).forward)
    assert marks(captured, found, measure(captured)) == []
