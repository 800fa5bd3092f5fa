"""Normalisation and statistics by hand."""

from __future__ import annotations

import torch
from graph.known import Pair, normal, wide
from torch import Tensor, nn

# -- pytorch/pytorch#133085: the square of an activation in half -------------------------------------------------------


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = wide(nn.Linear(64, 128), 150.0), nn.Linear(128, 16)
        self.weight = nn.Parameter(torch.ones(128))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        scale = torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6)  # !
        return self.head(h * scale * self.weight)


class RmsNormInFloat32(RmsNorm):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).float()
        scale = torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6)
        return self.head(h * scale * self.weight)


# -- tensorflow/tensorflow#47156: a normalisation by var(), which autocast leaves in half ------------------------------


class GroupNormByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Conv2d(3, 8, 3, padding=1), 400.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).unflatten(1, (2, 4))
        mean = h.mean((2, 3, 4), keepdim=True)
        var = h.var((2, 3, 4), keepdim=True)  # !
        return ((h - mean) / torch.sqrt(var + 1e-5)).flatten(1, 2)


class GroupNormOfFloat32(GroupNormByHand):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).unflatten(1, (2, 4)).float()
        mean = h.mean((2, 3, 4), keepdim=True)
        var = h.var((2, 3, 4), keepdim=True)
        return ((h - mean) / torch.sqrt(var + 1e-5)).flatten(1, 2)


# -- tenstorrent/tt-metal#45968: the variance as E[x²] - E[x]² ---------------------------------------------------------


class VarianceOfMoments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Linear(64, 64), 1.0)
        nn.init.constant_(self.body.bias, 50.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        mean = h.mean(-1, keepdim=True)
        var = (h * h).mean(-1, keepdim=True) - mean * mean  # !
        return (h - mean) * torch.rsqrt(var.clamp(min=1e-5))


class VarianceOfDifferences(VarianceOfMoments):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).float()
        mean = h.mean(-1, keepdim=True)
        var = (h - mean).square().mean(-1, keepdim=True)
        return (h - mean) * torch.rsqrt(var.clamp(min=1e-5))


# -- a sum of many terms that a loop keeps in half --------------------------------------------------------------------


class LoopSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        total = torch.zeros_like(h[:, 0])
        for step in range(h.shape[1]):
            total = total + h[:, step]  # !
        return total / h.shape[1]


class LoopSumInFloat32(LoopSum):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        total = torch.zeros_like(h[:, 0], dtype=torch.float32)
        for step in range(h.shape[1]):
            total = total + h[:, step]
        return total / h.shape[1]


# -- transmittance as a running product (NeRF): what is left is below half's range ------------------------------------


class RunningProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 1)
        nn.init.constant_(self.body.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        opacity = torch.sigmoid(self.body(x))
        left, weights = torch.ones_like(opacity[:, 0]), []
        for step in range(x.shape[1]):
            weights.append(left * opacity[:, step])
            left = left * (1 - opacity[:, step])  # !
        return torch.cat([*weights, left], 1)


class RunningProductInFloat32(RunningProduct):
    def forward(self, x: Tensor) -> Tensor:
        opacity = torch.sigmoid(self.body(x)).float()
        left, weights = torch.ones_like(opacity[:, 0]), []
        for step in range(x.shape[1]):
            weights.append(left * opacity[:, step])
            left = left * (1 - opacity[:, step])
        return torch.cat([*weights, left], 1)


PAIRS = [
    Pair("RMSNorm by hand", "AMP451", RmsNorm, RmsNormInFloat32, normal(16, 64), "pytorch/pytorch#133085"),
    Pair(
        "GroupNorm by var()",
        "AMP451",
        GroupNormByHand,
        GroupNormOfFloat32,
        normal(2, 3, 16, 16),
        "tensorflow/tensorflow#47156",
    ),
    Pair(
        "E[x²] - E[x]²",
        "AMP453",
        VarianceOfMoments,
        VarianceOfDifferences,
        normal(16, 64),
        "tenstorrent/tt-metal#45968",
    ),
    Pair("sum in a loop", "AMP453", LoopSum, LoopSumInFloat32, normal(4, 100, 16), ""),
    Pair("running product", "AMP452", RunningProduct, RunningProductInFloat32, normal(4, 24, 16, std=0.3), ""),
]
