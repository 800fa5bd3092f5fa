"""Attention: logits, masks, temperatures."""

from __future__ import annotations

from typing import Any

import torch
from graph.known import Pair, normal, wide
from torch import Tensor, nn


class Heads(nn.Module):
    """What all of them share: queries, keys and values of one head."""

    size = 64
    std = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.q = wide(nn.Linear(self.size, self.size), self.std)
        self.k = wide(nn.Linear(self.size, self.size), self.std)
        self.v = nn.Linear(self.size, self.size)


# -- ultralytics/ultralytics#24990, pytorch/pytorch#119131: divided after the product ----------------------------------


class ScaledLate(Heads):
    std = 50.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.transpose(-2, -1)  # !
        return (scores / self.size**0.5).softmax(-1) @ v


class ScaledFirst(Heads):
    std = 50.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = (q * self.size**-0.5) @ k.transpose(-2, -1)
        return scores.softmax(-1) @ v


# -- NVIDIA/apex#1052, unit8co/darts#3087: a mask's constant -----------------------------------------------------------


class MaskOfBillions(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        scores = scores.masked_fill(mask, -1e9)  # !
        return scores.softmax(-1) @ self.v(x)


class MaskOfItsDtype(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1) @ self.v(x)


# -- huggingface/transformers#17306: masks that are added; here the minimum of another dtype ---------------------------


class AdditiveMask(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        hidden = mask.to(scores.dtype) * torch.finfo(torch.float32).min  # !
        return (scores + hidden).softmax(-1) @ self.v(x)


class AdditiveMaskOfItsDtype(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        hidden = mask.to(scores.dtype) * torch.finfo(scores.dtype).min
        return (scores + hidden).softmax(-1) @ self.v(x)


# -- google/flax#1527: a selection with a constant ---------------------------------------------------------------------


class WhereMask(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        scores = torch.where(mask, torch.tensor(-1e10), scores)  # !
        return scores.softmax(-1) @ self.v(x)


class WhereInfinity(Heads):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = (self.q(x) * self.size**-0.5) @ self.k(x).transpose(-2, -1)
        scores = torch.where(mask, torch.tensor(float("-inf")), scores)
        return scores.softmax(-1) @ self.v(x)


# -- mit-han-lab/efficientvit#15, idiap/fast-transformers#32: linear attention ----------------------------------------


class LinearAttention(Heads):
    std = 6.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).relu(), self.k(x).relu(), self.v(x).relu()
        context = k.transpose(-2, -1) @ v
        out = q @ context  # !
        return out / out.sum(-1, keepdim=True)


class LinearAttentionOfMeans(Heads):
    std = 6.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).relu(), self.k(x).relu(), self.v(x).relu()
        context = (k / k.shape[-2]).transpose(-2, -1) @ v
        out = q @ context
        return out / (out.sum(-1, keepdim=True) + 1e-6)


# -- a learned temperature, and features that nothing has normalised ---------------------------------------------------


class Contrast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = wide(nn.Linear(64, 128), 8.0), wide(nn.Linear(64, 128), 8.0)
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.image(x), self.text(y)
        return self.logit_scale.exp() * a @ b.t()  # !


class NormalisedContrast(Contrast):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.image(x), self.text(y)
        a, b = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        return self.logit_scale.exp() * a @ b.t()


# -- databricks/megablocks#91: a router in half, its z loss squared by hand --------------------------------------------


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = wide(nn.Linear(64, 16), 120.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        penalty = (logits * logits).mean()  # !
        return logits.softmax(-1), penalty


class RouterInFloat32(Router):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x).float()
        penalty = (logits * logits).mean()
        return logits.softmax(-1), penalty


def _masked() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(4, 32, 32, generator=generator) > 0.7
    mask[..., 0] = False
    return (torch.randn(4, 32, 64, generator=generator), mask)


def _two() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(32, 64, generator=generator), torch.randn(32, 64, generator=generator)


PAIRS = [
    Pair(
        "attention scaled late", "AMP451", ScaledLate, ScaledFirst, normal(4, 64, 64), "ultralytics/ultralytics#24990"
    ),
    Pair("mask of -1e9", "AMP451", MaskOfBillions, MaskOfItsDtype, _masked, "NVIDIA/apex#1052"),
    Pair(
        "finfo(float32).min, added",
        "AMP451",
        AdditiveMask,
        AdditiveMaskOfItsDtype,
        _masked,
        "huggingface/transformers#17306",
    ),
    Pair("where with -1e10", "AMP451", WhereMask, WhereInfinity, _masked, "google/flax#1527"),
    Pair(
        "linear attention",
        "AMP451",
        LinearAttention,
        LinearAttentionOfMeans,
        normal(1, 2048, 64),
        "mit-han-lab/efficientvit#15",
    ),
    Pair("logit scale of 100", "AMP451", Contrast, NormalisedContrast, _two, ""),
    Pair("router z loss", "AMP451", Router, RouterInFloat32, normal(64, 64), "databricks/megablocks#91"),
]
