"""What should keep a logarithm or a divisor from zero, and does not in half."""

from __future__ import annotations

import torch
from graph.known import Pair, normal, wide
from torch import Tensor, nn
from torch.nn import functional as F


class Scores(nn.Module):
    std = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.body = wide(nn.Linear(64, 32), self.std)


class WideScores(Scores):
    std = 7.0


# -- lightonai/pylate#239: scores between their least and their largest -----------------------------------------------


class MinMax(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x)
        low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        span = high - low + 1e-8  # !
        return (s - low) / span


class MinMaxOfFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x).float()
        low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        span = high - low + 1e-8
        return (s - low) / span


# -- a learned temperature with an eps of 1e-8 ------------------------------------------------------------------------


class Temperature(Scores):
    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        heat = self.heat(x).relu() + 1e-8  # !
        return (self.body(x) / heat).softmax(-1)


class TemperatureOfSoftplus(Temperature):
    def forward(self, x: Tensor) -> Tensor:
        heat = F.softplus(self.heat(x)) + 1e-2
        return (self.body(x) / heat).softmax(-1)


# -- kornia/kornia#4021, pytorch/pytorch#32137: a cosine by hand ------------------------------------------------------


class Cosine(Scores):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.body(x), self.body(y)
        sizes = (a * a).mean(-1).sqrt() * (b * b).mean(-1).sqrt()
        return (a * b).mean(-1) / (sizes + 1e-8)  # !


class CosineByTorch(Scores):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(self.body(x), self.body(y))


# -- capsules: a vector's length with an eps of 1e-9 ------------------------------------------------------------------


class Squash(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x)
        n2 = torch.einsum("bd,bd->b", s, s)[:, None]
        return n2 / (1 + n2) * s / torch.sqrt(n2 + 1e-9)  # !


class SquashInFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x).float()
        n2 = s.square().sum(-1, keepdim=True)
        return n2 / (1 + n2) * s / torch.sqrt(n2 + 1e-9)


# -- rwightman/efficientdet-pytorch#291: an eps under a logarithm -----------------------------------------------------


class Entropy(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x)
        p = s.softmax(-1).to(s.dtype)
        return -(p * torch.log(p + 1e-12)).sum(-1)  # !


class EntropyOfLogits(Scores):
    def forward(self, x: Tensor) -> Tensor:
        logs = self.body(x).log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)


# -- pytorch/pytorch#41663, #34372: Gumbel noise by hand, from half random numbers -------------------------------------


class Gumbel(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x)
        u = torch.rand_like(s)
        noise = -torch.log(-torch.log(u + 1e-10) + 1e-10)  # !
        return (s + noise).softmax(-1)


class GumbelInFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        s = self.body(x)
        u = torch.rand_like(s, dtype=torch.float32)
        noise = -torch.log(-torch.log(u + 1e-10) + 1e-10)
        return (s + noise).softmax(-1)


# -- xingyizhou/CenterNet#121: log(sigmoid(x)) -------------------------------------------------------------------------


class LogOfSigmoid(WideScores):
    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.body(x))  # !
        return -torch.log(p).mean()


class LogSigmoid(WideScores):
    def forward(self, x: Tensor) -> Tensor:
        return -F.logsigmoid(self.body(x)).mean()


# -- open-mmlab/mmcv#1488: focal loss ----------------------------------------------------------------------------------


class Focal(Scores):
    std = 4.5

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.body(x))
        return -(p**2 * torch.log(1 - p)).mean()  # !


class FocalOfLogits(Scores):
    std = 4.5

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return -(torch.sigmoid(z) ** 2 * F.logsigmoid(-z)).mean()


# -- fastino-ai/GLiNER2#155: a bound of 1 - 1e-6 ----------------------------------------------------------------------


class Bounded(Scores):
    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.body(x)).clamp(1e-6, 1 - 1e-6)  # !
        return -torch.log(1 - p).mean()


class BoundedInFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.body(x).float()).clamp(1e-6, 1 - 1e-6)
        return -torch.log(1 - p).mean()


# -- deepspeedai/DeepSpeed#581: x * rsqrt(v + 1e-12) -------------------------------------------------------------------


class InverseRoot(Scores):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        v = (h * h).mean(-1, keepdim=True)
        return h * torch.rsqrt(v + 1e-12)  # !


class InverseRootInFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu().float()
        v = (h * h).mean(-1, keepdim=True)
        return h * torch.rsqrt(v + 1e-12)


# -- ronghuaiyang/arcface-pytorch#91: the gradient of a root at zero; here Charbonnier's loss --------------------------


class Charbonnier(Scores):
    def forward(self, x: Tensor) -> Tensor:
        d = self.body(x) - self.body(x.flip(0))
        return torch.sqrt(d * d + 1e-9).mean()  # !


class CharbonnierInFloat32(Scores):
    def forward(self, x: Tensor) -> Tensor:
        d = (self.body(x) - self.body(x.flip(0))).float()
        return torch.sqrt(d * d + 1e-9).mean()


def _two() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(32, 64, generator=generator), torch.randn(32, 64, generator=generator)


ROWS = normal(32, 64)
PAIRS = [
    Pair("min-max, eps 1e-8", "AMP452", MinMax, MinMaxOfFloat32, ROWS, "lightonai/pylate#239"),
    Pair("temperature, eps 1e-8", "AMP452", Temperature, TemperatureOfSoftplus, ROWS, ""),
    Pair("cosine, eps 1e-8", "AMP452", Cosine, CosineByTorch, _two, "kornia/kornia#4021"),
    Pair("capsule squash, eps 1e-9", "AMP452", Squash, SquashInFloat32, ROWS, ""),
    Pair("entropy, eps 1e-12", "AMP452", Entropy, EntropyOfLogits, ROWS, "rwightman/efficientdet-pytorch#291"),
    Pair("Gumbel noise, eps 1e-10", "AMP452", Gumbel, GumbelInFloat32, ROWS, "pytorch/pytorch#41663"),
    Pair("log of sigmoid", "AMP452", LogOfSigmoid, LogSigmoid, ROWS, "xingyizhou/CenterNet#121"),
    Pair("focal loss", "AMP453", Focal, FocalOfLogits, ROWS, "open-mmlab/mmcv#1488"),
    Pair("clamp to 1 - 1e-6", "AMP453", Bounded, BoundedInFloat32, ROWS, "fastino-ai/GLiNER2#155"),
    Pair("rsqrt, eps 1e-12", "AMP452", InverseRoot, InverseRootInFloat32, ROWS, "deepspeedai/DeepSpeed#581"),
    Pair("Charbonnier, eps 1e-9", "AMP452", Charbonnier, CharbonnierInFloat32, ROWS, "ronghuaiyang/arcface-pytorch#91"),
]
