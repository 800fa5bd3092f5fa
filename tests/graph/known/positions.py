"""Positions, angles and indices beyond what half counts to."""

from __future__ import annotations

import math

import torch
from graph.known import Pair, normal, wide
from torch import Tensor, nn


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 16)


# -- EleutherAI/gpt-neox#1003, huggingface/transformers#25681: rotary angles ------------------------------------------


class Rotary(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, 16, 2) / 16))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).float()
        angles = positions[:, None] @ self.inv_freq[None]  # !
        return self.body(x) * torch.cat([angles.cos(), angles.sin()], -1)


class RotaryInFloat32(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            positions = torch.arange(x.shape[1], device=x.device).float()
            angles = positions[:, None] @ self.inv_freq[None]
        return self.body(x) * torch.cat([angles.cos(), angles.sin()], -1)


# -- positions of the activations' dtype ------------------------------------------------------------------------------


class HalfPositions(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        places = torch.arange(h.shape[1], device=h.device, dtype=h.dtype)  # !
        return h * torch.exp(-0.001 * places)[:, None]


class FullPositions(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        places = torch.arange(h.shape[1], device=h.device, dtype=torch.float32)
        return h * torch.exp(-0.001 * places)[:, None]


# -- Fourier features of predicted coordinates (NeRF, Perlin-like noise) ----------------------------------------------


class Fourier(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        angles = h * (2.0**8 * math.pi)  # !
        return torch.cat([angles.sin(), angles.cos()], -1)


class FourierInFloat32(Body):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).float()
        angles = h * (2.0**8 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], -1)


# -- an index into a flat grid, computed in half ----------------------------------------------------------------------


class FlatIndex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = wide(nn.Linear(16, 2), 1.5), nn.Embedding(128 * 128, 8)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.sigmoid(self.body(x)) * 127
        flat = place[..., 0].floor() * 128 + place[..., 1].floor()
        return self.table(flat.long())  # !


class FlatIndexOfIntegers(FlatIndex):
    def forward(self, x: Tensor) -> Tensor:
        place = (torch.sigmoid(self.body(x)) * 127).long()
        return self.table(place[..., 0] * 128 + place[..., 1])


PAIRS = [
    Pair("rotary angles", "AMP453", Rotary, RotaryInFloat32, normal(1, 4100, 16), "EleutherAI/gpt-neox#1003"),
    Pair(
        "positions in half",
        "AMP453",
        HalfPositions,
        FullPositions,
        normal(1, 4100, 16),
        "huggingface/transformers#25681",
    ),
    Pair("Fourier features", "AMP453", Fourier, FourierInFloat32, normal(8, 16), ""),
    Pair("flat index", "AMP453", FlatIndex, FlatIndexOfIntegers, normal(64, 16), ""),
]
