"""The share of gradients that amplint/graph/gradients predicts FP16 to flush to zero, beside the share that it does.

    python benchmarks/gradients.py [--steps 40]

Predicted: one FP32 run of the captured graph, at each node that is half under AMP and at each of autocast's casts.
Measured, without a graph: the model itself is run twice under CUDA's autocast policy, with hooks on what every function
returns and on every cast. Once the casts are real, and gradients are float16 as autograd computes them; once they are
identities, so that all is FP32. A gradient is flushed where it is zero in float16 and not in FP32. Some are zero for
another cause, a ReLU whose operand is rounded across zero: those of at least 2^-20 once scaled are in a column of their
own. Each model is measured as it is initialised, and after some steps of training in FP32.

Of the weights, what is predicted and not measured is the bias of keys: softmax takes no notice of it, so its gradient
is zero but for rounding, which is 1e-10 in FP32 and 1e-6 in float16.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from amplint.graph import gradients, policy
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
SCALES = (0, gradients.DEFAULT)
AHEAD = 2.0**-20  # far above 2^-25: what is zero in float16 though its FP32 twin is larger was not flushed
Loss = Callable[[Any], torch.Tensor]


def fixture(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    def __init__(
        self, classes: int, width: int = 96, heads: int = 3, depth: int = 4, size: int = 32, patch: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass
class Case:
    """A model, and batches for it: (arguments of the model, loss of its output)."""

    model: nn.Module
    batch: Callable[[int], tuple[tuple[torch.Tensor, ...], Loss]]


def bert() -> Case:
    source = fixture("bert_mlm")
    vocabulary = source.vocabulary()
    texts = source.sentences(512, 24, vocabulary, seed=10).tensors[0]

    def batch(step: int) -> tuple[tuple[torch.Tensor, ...], Loss]:
        chosen = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(step))[:16]]
        ids, labels = source.mask_tokens(chosen, len(vocabulary), 0.15, torch.Generator().manual_seed(step))
        return (ids,), lambda output: F.cross_entropy(output[1].flatten(0, 1), labels.flatten(), ignore_index=-100)

    return Case(source.BertForMaskedLM(len(vocabulary), 64, 4, 4, 24, 0.0), batch)


def images(model: nn.Module) -> Case:
    data = fixture("resnet50").gratings(512, 32, 10, 0.5, seed=10)

    def batch(step: int) -> tuple[tuple[torch.Tensor, ...], Loss]:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(step))[:16]
        return (data.tensors[0][chosen],), lambda output: F.cross_entropy(output, data.tensors[1][chosen])

    return Case(model, batch)


def unet() -> Case:
    source = fixture("unet")
    data = source.Shapes(64, 32, 0.3, seed=10)
    criterion = source.BCEDiceLoss()

    def batch(step: int) -> tuple[tuple[torch.Tensor, ...], Loss]:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(step))[:8]
        return (data.images[chosen],), lambda output: criterion(output, data.masks[chosen])

    return Case(source.UNet(channels=8, depth=3), batch)


CASES: dict[str, Callable[[], Case]] = {
    "BERT, fixtures/bert_mlm.py": bert,
    "ViT, 4 blocks of 96": lambda: images(ViT(10)),
    "ResNet, fixtures/resnet50.py": lambda: images(fixture("resnet50").ResNet([1, 1, 1, 1], width=16, num_classes=10)),
    "U-Net, fixtures/unet.py": unet,
}


def tensors(value: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [one for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point()]


@dataclass
class Seen(TorchFunctionMode):
    """The gradients that arrive at what functions return and at casts, by the order of both in the forward."""

    real: bool  # casts are casts
    found: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    kinds: dict[tuple[str, int], str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def watch(self, kind: str, value: Any, weight: bool = False) -> None:
        key = (kind, self.counts.setdefault(kind, 0))
        self.counts[kind] += 1
        if isinstance(value, torch.Tensor) and value.requires_grad and not value.is_leaf:
            self.kinds[key] = "weights" if weight else "activations"
            value.register_hook(lambda gradient: self.found.update({key: gradient.detach().clone()}))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(one): (one.untyped_storage().data_ptr(), one._version) for one in tensors((args, kwargs))}
        value = func(*args, **(kwargs or {}))
        memory = {pointer for pointer, _ in given.values()}
        for one in tensors(value):
            if id(one) in given:
                new = one._version != given[id(one)][1]  # changed in place
            else:
                new = one.untyped_storage().data_ptr() not in memory  # no view
            self.watch("function", one if new else None)
        return value

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """In place of policy._cast."""
        if isinstance(value, list | tuple):
            return type(value)(self.cast(one, dtype) for one in value)
        if isinstance(value, dict):
            return {key: self.cast(one, dtype) for key, one in value.items()}
        if not policy._eligible(value):
            return value
        given = value.view_as(value) if not self.real else value.to(dtype) if value.dtype != dtype else value
        self.watch("cast", given if given is not value else None, isinstance(value, nn.Parameter))
        return given


def backward(case: Case, real: bool, scale: int) -> Seen:
    """The gradients of one step under autocast, of the loss times 2^scale."""
    args, loss = case.batch(0)
    torch.manual_seed(0)
    seen = Seen(real)
    case.model.zero_grad()
    with policy.cuda_policy(), mock.patch.object(policy, "_cast", seen.cast):
        with seen, torch.autocast("cuda", dtype=torch.float16):
            output = case.model(*args)
        (loss(torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.float, output)) * 2.0**scale).backward()
    return seen


def measured(full: Seen, half: Seen, scale: int, kind: str) -> tuple[float, float]:
    """The share that is zero in half and not in FP32; and the share that is so for another cause."""
    total = flushed = other = 0
    for key, gradient in half.found.items():
        if gradient.dtype != torch.float16 or half.kinds[key] != kind:
            continue
        true = full.found[key].float().abs()
        total += int((true != 0).sum())
        zero = (gradient == 0) & (true != 0)
        flushed += int((zero & (true * 2.0**scale < AHEAD)).sum())
        other += int((zero & (true * 2.0**scale >= AHEAD)).sum())
    return (flushed / total, other / total) if total else (0.0, 0.0)


def train(case: Case, steps: int) -> None:
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        args, loss = case.batch(step)
        optimizer.zero_grad()
        loss(case.model(*args)).backward()
        optimizer.step()


def rows(name: str, case: Case) -> Iterator[tuple[str, ...]]:
    args, loss = case.batch(0)
    torch.manual_seed(0)
    captured = capture(case.model, args, {}, Precision())
    calibration = measure(captured, loss)
    found = gradients.gradients(captured, calibration)
    assert found is not None
    full = backward(case, False, 0)
    low, high = found.window or (0, 0)
    window = f"2^{low} … 2^{high}" if found.window else "none"
    for scale in SCALES:
        half = backward(case, True, scale)
        for kind in ("activations", "weights"):
            one = getattr(found, kind)
            share, other = measured(full, half, scale, kind)
            predicted = one.flushed(torch.float16, scale)
            yield name, kind, f"2^{scale}", f"{predicted:.3%}", f"{share:.3%}", f"{other:.3%}", window
            name = window = ""


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics are those from before."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    yield
    model.load_state_dict(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of training, for the second half of the table")
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    print("| model | gradients of | loss scale | predicted | measured | zero for another cause | useful scales |")
    print("|---|---|---|---|---|---|---|")
    for name, make in CASES.items():
        torch.manual_seed(0)
        case = make()
        for when in ("at init", f"after {steps} steps"):
            if when != "at init":
                train(case, steps)
            with restored(case.model):
                for row in rows(f"{name}, {when}", case):
                    print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
