"""A mask constant that the half dtype does not have is a mark, not the end of the trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amplint.graph import fills
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture


class Scores(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.query = value, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ x.transpose(-1, -2)
        return scores.masked_fill(mask, self.value).softmax(-1)


@pytest.mark.parametrize(
    ("value", "dtype", "bits"),
    [
        (-1e9, torch.float16, -13.9),
        (-1e4, torch.float16, None),
        (float("-inf"), torch.float16, None),
        (-1e9, torch.bfloat16, None),
        (torch.finfo(torch.float32).min, torch.bfloat16, -0.006),
    ],
)
@pytest.mark.parametrize("frontend", ["auto", "recorder"])
def test_a_fill_beyond_the_dtype(value, dtype, bits, frontend):
    inputs = torch.randn(2, 4, 8), torch.eye(4, dtype=torch.bool)
    with fills.bounded() as cut:
        captured = capture(Scores(value), inputs, {}, Precision("amp", dtype), frontend)
    found = fills.marks(captured, cut)
    assert len(found) == (bits is not None)
    for mark in found:
        assert (mark.code, mark.verdict) == ("AMP451", "certain")
        assert mark.headroom_bits == pytest.approx(bits, abs=0.05)
        assert mark.place.path == __file__ and mark.place.function == "forward"
        assert "masked_fill" in str(mark.node.target)
