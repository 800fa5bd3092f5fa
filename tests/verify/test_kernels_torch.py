"""The operators as citizens of torch: gradients, autocast, compile, export; with the kernel and with the emulation."""

from __future__ import annotations

import pytest
import torch

from amplint.verify.kernels import ops

mm, narrow, statistics = (getattr(torch.ops.amplint, name) for name in ("mm", "narrow", "statistics"))


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    ops.load("cpu")


def operands(*shape: int, grad: bool = True, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_(grad)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (mm, lambda: (operands(5, 7), operands(7, 9))),
        (mm, lambda: (operands(3, 5, 7), operands(3, 9, 7).transpose(1, 2), "float16", 3)),
        (narrow, lambda: (operands(5, 6, dtype=torch.float32), "bfloat16")),
        (statistics, lambda: (operands(5, 6, grad=False),)),
    ],
)
def test_opcheck(operator, arguments):
    found = torch.library.opcheck(operator.default, arguments())
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("batch", [(), (3,)])
def test_gradients_are_matmuls_of_the_same_kind(batch):
    a, b = operands(*batch, 4, 300), operands(*batch, 300, 5)
    out, counted = mm(a, b, "float16", 4)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert not counted.requires_grad
    assert torch.equal(a.grad, mm(grad, b.detach().transpose(-1, -2), "float16", 4)[0])
    assert torch.equal(b.grad, mm(a.detach().transpose(-1, -2), grad, "float16", 4)[0])


def test_gradients_of_gradients():
    a, b = operands(3, 4), operands(4, 2)
    (slope,) = torch.autograd.grad(mm(a, b)[0].float().pow(2).sum(), a, create_graph=True)
    (twice,) = torch.autograd.grad(slope.float().sum(), b)
    assert twice.shape == b.shape and twice.abs().sum() > 0


def test_autocast_casts_to_half():
    """Whatever its dtype is: this operator is half's."""
    a, b = operands(3, 4, dtype=torch.float32), operands(4, 5, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            out, _ = mm(a, b, accumulate="float32")
            assert torch.is_autocast_enabled("cpu")
        assert torch.equal(out, mm(a.half(), b.half())[0])
    out.float().sum().backward()
    assert a.grad.dtype == torch.float32
    with pytest.raises(RuntimeError, match="float16"):
        mm(a, b)


def layer(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, counted = mm(x, weight.t(), "float32", 0)
    return torch.relu(out).float().mean(), counted + statistics(out)


def run(function) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, weight = operands(6, 8, dtype=torch.float32), operands(10, 8, dtype=torch.float32)
    with torch.autocast("cpu"):
        loss, counted = function(x, weight)
    loss.backward()
    return [loss.detach(), counted, x.grad, weight.grad]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(backend):
    torch._dynamo.reset()
    for one, other in zip(run(torch.compile(layer, backend=backend, fullgraph=True)), run(layer), strict=True):
        torch.testing.assert_close(one, other)


def test_export_with_a_dynamic_shape():
    class Model(torch.nn.Module):
        def forward(self, a, b):
            return mm(a, b)

    a, b = operands(5, 7, grad=False), operands(7, 9, grad=False)
    program = torch.export.export(Model(), (a, b), dynamic_shapes=({0: torch.export.Dim("m")}, None))
    assert any(node.target is mm.default for node in program.graph.nodes)
    a = operands(11, 7, grad=False)
    for one, other in zip(program.module()(a, b), mm(a, b), strict=True):
        assert torch.equal(one, other)


def test_meta_tensors_have_shapes():
    out, counted = mm(torch.empty(2, 3, device="meta").half(), torch.empty(3, 4, device="meta").half())
    assert out.shape == (2, 4) and out.dtype == torch.float16 and counted.shape == (6,)
