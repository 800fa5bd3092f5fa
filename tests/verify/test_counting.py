"""The dispatch mode that counts half operations: results, counts, and the lines that they stand at. In this process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from amplint.verify.child.counting import Counting  # noqa: E402
from amplint.verify.child.hooks import watched  # noqa: E402
from amplint.verify.child.meters import Meters  # noqa: E402
from amplint.verify.child.probe import Probe  # noqa: E402
from amplint.verify.child.records import Records  # noqa: E402


def half(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).half()


def counted(function: Any) -> tuple[Any, list[dict[str, Any]]]:
    """What a function gives, and what was counted meanwhile; casts are left out."""
    with Counting() as mode:
        result = function()
    assert not mode.mistake
    return result, [line for line in mode.told()["lines"] if line["op"] != "aten._to_copy.default"]


A, B, ROW = half(6, 9), half(9, 5, seed=1), half(5, seed=2)
PRODUCTS = [
    ("mm", lambda a, b, row: a @ b, [6, 9, 5]),
    ("addmm", lambda a, b, row: F.linear(a, b.t(), row), [6, 9, 5]),
    ("addmm", lambda a, b, row: torch.addmm(a @ b, a, b, beta=0.5, alpha=2.0), [6, 9, 5]),
    ("bmm", lambda a, b, row: torch.einsum("bij,bjk->bik", a.view(2, 3, 9), b.expand(2, 9, 5)), [2, 3, 9, 5]),
    ("baddbmm", lambda a, b, row: torch.baddbmm(row.view(1, 1, 5), a.view(2, 3, 9), b.expand(2, 9, 5)), [2, 3, 9, 5]),
    ("mv", lambda a, b, row: a @ b[:, 0], [6, 9]),
    ("convolution", lambda a, b, row: F.conv1d(a.view(1, 3, 18), b.view(5, 3, 3), row), [1, 3, 18]),
    ("_scaled_dot_product_flash_attention_for_cpu",
     lambda a, b, row: F.scaled_dot_product_attention(*(a.view(1, 2, 3, 9),) * 3), [1, 2, 3, 9]),
]  # fmt: skip


@pytest.mark.parametrize(("op", "function", "shape"), PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_rounded_once_and_counted(op, function, shape, dtype):
    """On tensor cores the sum, its bias included, is FP32; only the result is half."""
    operands = [one.to(dtype) for one in (A, B, ROW)]
    out, lines = counted(lambda: function(*operands))
    line = next(line for line in lines if line["op"].startswith(f"aten.{op}."))
    assert out.dtype == dtype and line["shapes"][0] == shape and line["elements"] == out.numel()
    assert line["counted_by"] in ("kernel", "emulation")
    if len(lines) == 1:
        exact = function(*(one.float() for one in operands))
        torch.testing.assert_close(out, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_what_is_counted():
    """90000 is inf, 1e-8 is nothing, 1e-6 is subnormal; nan is what inf - inf gives."""

    def function() -> None:
        torch.tensor([[300.0, 1e-4, 1e-3]]).t().half() @ torch.tensor([[300.0, 1e-4, 1e-3]]).half()  # 3 x 3
        bad = torch.tensor([70000.0, 1e-9]).half()
        bad - bad

    with Counting() as mode:
        function()
    found = {line["op"]: line for line in mode.told()["lines"]}
    product, cast, difference = (found[f"aten.{name}"] for name in ("mm.default", "_to_copy.default", "sub.Tensor"))
    names = ("inf", "nan", "flushed", "subnormal", "elements", "origin")
    assert [product[name] for name in names] == [1, 0, 1, 3, 9, 1] and product["absmax"] == pytest.approx(90000)
    assert [cast[name] for name in names] == [1, 0, 1, 0, 2, 1]  # on the line below the product
    assert [difference[name] for name in names] == [0, 1, 0, 0, 2, 0]
    assert mode.half_matmuls == 1 and mode.half_ops == 5


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad + grad  # line: double


def model(x: Any, weight: Any, head: Any) -> Any:
    y = torch.relu(x @ weight)  # line: body
    y = Double.apply(y)
    z = checkpoint(lambda y: torch.tanh(y @ head), y, use_reentrant=False)  # line: again
    return z.float().sum()  # line: sum


def test_backward_stands_at_the_line_of_its_forward(tmp_path):
    """A custom function's at its own; a checkpoint's forward runs twice."""
    text = Path(__file__).read_text().splitlines()
    rows = {line.partition("# line: ")[2]: row for row, line in enumerate(text, 1)}
    weight, head = (half(4, 4, seed=seed).requires_grad_() for seed in (1, 2))
    counting = Counting()
    probe = Probe(Records(str(tmp_path), {"steps": 9}), Meters(False), counting, lambda: None)
    with watched(probe), counting:
        model(half(3, 4).requires_grad_(), weight, head).backward()
    assert not counting.mistake
    told = [line | {"op": line["op"].split(".")[1]} for line in counting.told()["lines"]]
    assert {line["path"] for line in told} == {__file__}
    where = {(line["op"], line["phase"]): (line["line"], line["calls"]) for line in told}
    mm = sorted((line["phase"], line["line"], line["calls"]) for line in told if line["op"] == "mm")
    body, again = rows["body"], rows["again"]
    assert mm == [("backward", body, 2), ("backward", again, 2), ("forward", body, 1), ("forward", again, 2)]
    assert where["threshold_backward", "backward"] == (body, 1)
    assert where["tanh_backward", "backward"] == (again, 1)
    assert where["add", "backward"] == (rows["double"], 1)
    assert where["_to_copy", "backward"] == (rows["sum"], 1)


def test_what_the_cpu_lacks_is_emulated_and_what_a_gpu_lacks_is_not():
    x = half(4, 4)
    lacking = [(torch.cdist, (x, x)), (F.rrelu, (x, 0.1, 0.3, True)), (torch.lgamma, (x,))]
    for function, args in lacking:
        out, lines = counted(lambda function=function, args=args: function(*args))
        assert out.dtype == torch.float16 and lines, function
    for function in (torch.linalg.inv, torch.linalg.svdvals, torch.linalg.cholesky, torch.linalg.qr):
        with pytest.raises(RuntimeError, match=r"Half|half|Low precision"):
            counted(lambda function=function: function(x))
    with pytest.raises(RuntimeError, match="dtype"):  # a mistake of the script's
        counted(lambda: x @ x.float())


def test_mixed_layers_train():
    """Half activations, FP32 weights of norms; recurrent layers; attention; in-place operations."""
    layers = [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)]
    gru, attention = nn.GRU(4, 4, bidirectional=True).half(), nn.MultiheadAttention(4, 2).half()

    def function() -> Any:
        x = half(6, 4).requires_grad_()
        y = x
        for layer in layers:
            y = layer(y)
        y = attention(*(gru(y[:, None])[0][..., :4],) * 3)[0]
        y = F.dropout(y.clone().add_(1).relu_(), 0.5)
        y.float().sum().backward()
        return x.grad

    gradient, lines = counted(function)
    assert gradient.dtype == torch.float16 and bool(torch.isfinite(gradient).all())
    assert not any(line["inf"] or line["nan"] for line in lines)


def test_operations_of_other_threads_and_of_subclasses_pass():
    """A nested tensor computes in what it holds; sparse and meta tensors have nothing to count."""
    nested = torch.nested.nested_tensor([half(2, 4), half(3, 4)], layout=torch.jagged)
    sparse = torch.eye(4).to_sparse()

    def function() -> Any:
        thread = threading.Thread(target=lambda: half(4, 4) @ half(4, 4))
        thread.start()
        thread.join()
        (sparse @ torch.eye(4)).half()
        torch.empty(4, 4, dtype=torch.float16, device="meta") @ torch.empty(4, 4, dtype=torch.float16, device="meta")
        return nested * 2

    out, _ = counted(function)
    assert out.dtype == torch.float16


@pytest.mark.parametrize(
    ("function", "least", "most"),
    [
        (lambda x: (x * x).mean(-1) - x.mean(-1).square(), 9, 24),  # E[x²] - E[x]² of numbers near 50
        (lambda x: (x * x).float().mean(-1) - x.mean(-1).float().square(), 9, 24),  # of halves, in float32
        (lambda x: x - 2 * x, 0, 1.5),
        (lambda x: x - x, 24, 24),
    ],
)
def test_what_a_difference_loses_of_its_operands_is_counted(function, least, most):
    x = (half(64, 64) + 50).half()
    with Counting() as mode:
        function(x)
    (found,) = mode.told()["differences"]
    assert not mode.mistake and found["calls"] == 1 and least <= found["cancelled"] <= most
