"""Products and sums that outgrow half: feed-forwards, Gram matrices, decoders, distances."""

from __future__ import annotations

import torch
from graph.known import Pair, normal, wide
from torch import Tensor, nn
from torch.nn import functional as F

# -- huggingface/transformers#5651, #9295: T5's and mT5's feed-forward -------------------------------------------------


class GatedFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.gate, self.up = wide(nn.Linear(64, 256, bias=False), 12.0), wide(nn.Linear(64, 256, bias=False), 12.0)
        self.down = wide(nn.Linear(256, 64, bias=False), 300.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = F.gelu(self.gate(h), approximate="tanh") * self.up(h)
        return x + self.down(h)  # !


class GatedFeedForwardInFloat32(GatedFeedForward):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = F.gelu(self.gate(h), approximate="tanh") * self.up(h)
        with torch.autocast(x.device.type, enabled=False):
            return x + self.down(h.float())


# -- NVIDIA/apex#402: the Gram matrix of a style loss, divided after the product ---------------------------------------


class Style(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = wide(nn.Conv2d(3, 16, 3, padding=1), 8.0)

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x).relu().flatten(2)
        gram = f @ f.transpose(1, 2)  # !
        return gram / (f.shape[1] * f.shape[2])


class StyleDividedFirst(Style):
    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x).relu().flatten(2)
        return (f / (f.shape[1] * f.shape[2])) @ f.transpose(1, 2)


# -- a VAE's decoder that was trained in float32: SDXL's, cumulo-autumn/StreamDiffusion#114 ----------------------------


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = wide(nn.Conv2d(4, 16, 3, padding=1), 200.0)
        self.second = wide(nn.Conv2d(16, 16, 3, padding=1), 400.0)
        self.norm, self.last = nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.first(z))
        h = self.second(F.interpolate(h, scale_factor=2.0))  # !
        return self.last(F.silu(self.norm(h)))


class DecoderInFloat32(Decoder):
    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.first(z))
        with torch.autocast(z.device.type, enabled=False):
            h = self.second(F.interpolate(h.float(), scale_factor=2.0))
        return self.last(F.silu(self.norm(h)))


# -- open-mmlab/mmdetection#11559: a long sum by einsum, here a feature's energy ---------------------------------------


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Linear(64, 4096), 6.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return torch.einsum("bd,bd->b", h, h).mean()  # !


class EnergyInFloat32(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).float().square().sum(-1).mean()


# -- an L2 penalty on activations, as one product ---------------------------------------------------------------------


class Penalty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Linear(64, 512), 4.0)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.body(x).flatten()
        return 1e-4 * torch.matmul(flat, flat)  # !


class MeanPenalty(Penalty):
    def forward(self, x: Tensor) -> Tensor:
        return 1e-4 * self.body(x).pow(2).mean()


# -- bilinear pooling: a sum over places -------------------------------------------------------------------------------


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = wide(nn.Conv2d(8, 16, 1), 12.0), wide(nn.Conv2d(8, 16, 1), 12.0)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu().flatten(2), self.b(x).relu().flatten(2)
        pooled = torch.bmm(a, b.transpose(1, 2)).flatten(1)  # !
        return F.normalize(pooled.abs().sqrt() * pooled.sign())


class BilinearOfMeans(Bilinear):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu().flatten(2), self.b(x).relu().flatten(2)
        pooled = torch.bmm(a / a.shape[-1], b.transpose(1, 2)).flatten(1)
        return F.normalize((pooled.abs() + 1e-5).sqrt() * pooled.sign())


# -- Lightning-AI/torchmetrics#1380: pairwise distances, here by |x|² + |y|² - 2xy -------------------------------------


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Linear(64, 256), 40.0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.body(x), self.body(y)
        near = a.pow(2).sum(-1)[:, None] + b.pow(2).sum(-1)[None]
        return near - 2 * a @ b.t()  # !


class DistancesByTorch(Distances):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(self.body(x), self.body(y)).square()


# -- activations that are powers: GELU's cube by hand, squared ReLU ----------------------------------------------------


class Cube(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = wide(nn.Linear(64, 128), 20.0), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        inner = 0.79788456 * (h + 0.044715 * (h * h * h))  # !
        return self.down(0.5 * h * (1 + torch.tanh(inner)))


class CubeInFloat32(Cube):
    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        inner = 0.79788456 * (h + 0.044715 * torch.pow(h, 3))
        return self.down(0.5 * h * (1 + torch.tanh(inner)))


class SquaredRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = wide(nn.Linear(64, 128), 120.0), nn.LayerNorm(128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x))
        return self.down(self.norm(h * h))  # !


class SquaredReluInFloat32(SquaredRelu):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(F.relu(self.up(x)).square()))


# -- an embedding times sqrt(d), cast by the first layer --------------------------------------------------------------


class ScaledEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.body = nn.Embedding(100, 256), nn.Linear(256, 64)
        nn.init.normal_(self.tokens.weight, std=2000.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.tokens(ids) * 16.0)  # !


class NormedEmbedding(ScaledEmbedding):
    def forward(self, ids: Tensor) -> Tensor:
        return self.body(F.layer_norm(self.tokens(ids) * 16.0, (256,)))


# -- a sum over places as a product with ones -------------------------------------------------------------------------


class SumPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Conv2d(8, 8, 1), 60.0)

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x).relu().flatten(2)
        weights = torch.ones_like(f[:, :1])
        return f @ weights.transpose(1, 2)  # !


class MeanPool(SumPool):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).relu().flatten(2).mean(-1)


def _ids() -> tuple[Tensor]:
    return (torch.randint(0, 100, (8, 32), generator=torch.Generator().manual_seed(5)),)


def _two() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(32, 64, generator=generator), torch.randn(16, 64, generator=generator)


PAIRS = [
    Pair(
        "T5 feed-forward",
        "AMP451",
        GatedFeedForward,
        GatedFeedForwardInFloat32,
        normal(4, 32, 64),
        "huggingface/transformers#5651",
    ),
    Pair("Gram matrix", "AMP451", Style, StyleDividedFirst, normal(2, 3, 64, 64), "NVIDIA/apex#402"),
    Pair("VAE decoder", "AMP451", Decoder, DecoderInFloat32, normal(2, 4, 16, 16), "cumulo-autumn/StreamDiffusion#114"),
    Pair("energy by einsum", "AMP451", Energy, EnergyInFloat32, normal(16, 64), "open-mmlab/mmdetection#11559"),
    Pair("L2 penalty", "AMP451", Penalty, MeanPenalty, normal(16, 64), ""),
    Pair("bilinear pooling", "AMP451", Bilinear, BilinearOfMeans, normal(2, 8, 48, 48), ""),
    Pair("distance matrix", "AMP451", Distances, DistancesByTorch, _two, "Lightning-AI/torchmetrics#1380"),
    Pair("cube by hand", "AMP451", Cube, CubeInFloat32, normal(32, 64), ""),
    Pair("squared ReLU", "AMP451", SquaredRelu, SquaredReluInFloat32, normal(32, 64), ""),
    Pair("embedding times sqrt(d)", "AMP451", ScaledEmbedding, NormedEmbedding, _ids, ""),
    Pair("sum pooling", "AMP451", SumPool, MeanPool, normal(2, 8, 64, 64), ""),
]
