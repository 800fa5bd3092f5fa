"""A model's forward as a graph, by each front end: dtypes, lines, modules, values; and what no front end takes."""

from __future__ import annotations

import dataclasses
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

from amplint.graph.capture.captured import Captured, Precision, dtype_of, place_of  # noqa: E402
from amplint.graph.capture.ladder import CaptureError, capture  # noqa: E402
from amplint.graph.policy import cuda_policy  # noqa: E402
from amplint.graph.run import run  # noqa: E402

HALF, FULL = torch.float16, torch.float32
AMP = Precision()
ALL = ("export", "compile", "recorder")
frontends = pytest.mark.parametrize("frontend", ALL)

SOURCE = """\
import torch
from torch import nn

def scores(q, k):  # the hazard sits in a helper
    ünits = 1; s = q @ k.transpose(-1, -2)
    return s.softmax(-1)

class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return self.weight * unit(x)

def unit(x):
    return x / (x * x).mean(-1, keepdim=True).sqrt()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.norm = Norm(4)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = self.bn(self.conv(x)).relu().flatten(2).transpose(1, 2)
        with torch.autocast("cuda", enabled=False):
            island = scores(x.float(), x.float())
        x = self.blocks(x) + self.blocks(x)
        mask = torch.zeros_like(x)
        mask[:, 1:] = torch.finfo(x.dtype).min
        with torch.no_grad():
            target = self.norm(x)
        return {"island": island, "out": self.norm(x + mask) * self.scale, "target": target}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("user") / "net.py"
    path.write_text(SOURCE, encoding="utf-8")
    module = types.ModuleType("user_net")
    sys.modules["user_net"] = module
    exec(compile(SOURCE, str(path), "exec"), module.__dict__)
    module.__file__ = str(path)
    torch.manual_seed(0)
    return module


@pytest.fixture(scope="module")
def graphs(source: Any) -> dict[str, Captured]:
    net, x = source.Net(), torch.randn(2, 3, 6, 6)
    return {frontend: capture(net, (x,), {}, AMP, frontend) for frontend in ALL}


def said(node: Any) -> tuple[str, Any, str, int, str]:
    place = place_of(node)
    assert place is not None
    return str(node.target), dtype_of(node), node.meta["module"][-1][0], place.row, place.function


def test_the_front_ends_agree(graphs: dict[str, Captured]) -> None:
    """The same calls in the same dtypes, at the same lines, in the same modules, with the same state."""
    made = "aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.detach_.default"  # of a constant
    export, compiled, recorded = (
        [said(node) for node in graphs[one].nodes() if str(node.target) not in made] for one in ALL
    )
    assert export == recorded
    assert compiled == recorded
    for key in ("autocast", "grad"):
        assert (
            len({tuple(node.meta[key] for node in graphs[one].nodes() if str(node.target) not in made) for one in ALL})
            == 1
        )


def test_what_a_graph_says(graphs: dict[str, Captured], source: Any) -> None:
    captured = graphs["export"]
    lines = SOURCE.splitlines()
    nodes = {}
    for node in captured.nodes():
        nodes.setdefault((str(node.target).split(".")[1], place_of(node).row), node)  # type: ignore[union-attr]
    row = {text.strip().split("  #")[0]: index + 1 for index, text in enumerate(lines)}

    scores = nodes["matmul", row["ünits = 1; s = q @ k.transpose(-1, -2)"]]
    assert (dtype_of(scores), scores.meta["autocast"], scores.meta["grad"]) == (FULL, False, True)
    place = place_of(scores)
    assert place is not None and place.function == "scores" and place.path == source.__file__
    assert lines[place.row - 1][place.column - 1 : place.end_column - 1] == "q @ k.transpose(-1, -2)"

    square = nodes["mul", row["return x / (x * x).mean(-1, keepdim=True).sqrt()"]]
    place = place_of(square)
    assert place is not None and lines[place.row - 1][place.column - 1 : place.end_column - 1] == "x * x"
    assert dtype_of(square) == HALF and square.meta["module"] == (("", "Net"), ("norm", "Norm"))
    assert not square.meta["grad"]  # the first of the two calls

    fill = next(node for node in captured.nodes() if str(node.target).split(".")[1] in ("fill_", "copy_"))
    assert "zeros_like" in {one.name for one in fill.meta["mutates"]}
    constants = [value for name, value in captured.values.items() if captured.kinds[name] == "constant"]
    assert [value.item() for value in constants] == [torch.finfo(HALF).min]  # and not FP32's


@frontends
def test_a_run_of_the_graph_is_the_model(graphs: dict[str, Captured], source: Any, frontend: str) -> None:
    captured = graphs[frontend]
    seen = []
    with cuda_policy():
        run(captured, lambda node, value: seen.append((dtype_of(node), value)) or value, full=False)
    assert all(value.dtype == dtype for dtype, value in seen if isinstance(value, torch.Tensor))
    before = [buffer.clone() for buffer in captured.values.values()]
    output = captured.output(run(captured))
    assert list(output) == ["island", "out", "target"]
    assert {one.dtype for one in output.values()} == {FULL}
    assert output["out"].requires_grad and not output["target"].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, captured.values.values(), strict=True))  # the statistics, too
    placeholders = [node for node in captured.graph.graph.nodes if node.op == "placeholder"]
    targets = {node.meta["target"]: captured.kinds[node.name] for node in placeholders}
    assert (targets["x"], targets["norm.weight"], targets["bn.running_var"]) == ("input", "parameter", "buffer")


@frontends
def test_the_model_stays_as_it_was(source: Any, frontend: str) -> None:
    net, x = source.Net(), torch.randn(2, 3, 6, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    state = random.getstate()
    for mode in ("amp", "half"):
        captured = capture(net, (x,), {}, Precision(mode), frontend)
        assert captured.precision.mode == mode and captured.frontend == frontend
    assert torch.equal(torch.rand(1), drawn) and random.getstate() == state
    after = net.state_dict()
    assert all(torch.equal(after[name], old) and after[name].dtype == old.dtype for name, old in before.items())
    assert all(one.grad is None for one in net.parameters()) and not net._forward_hooks
    values = [value for name, value in captured.values.items() if captured.kinds[name] != "constant"]
    assert {value.dtype for value in values if value.is_floating_point()} == {FULL}
    norm = next(node for node in captured.nodes() if "batch_norm" in str(node.target))
    assert dtype_of(norm) == HALF and not norm.meta["autocast"]


@dataclasses.dataclass
class Output:
    loss: Any
    logits: Any
    cache: Any = None


class Cache:
    pass


class Rich(torch.nn.Module):
    """Lists, None and numbers go in; a dataclass with tensors and something else comes out. Tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Any, more: Any, mask: Any = None, times: int = 1, scale: float = 1.0) -> Any:
        x = self.table(ids) * scale
        for _ in range(times):
            x = torch.nn.functional.scaled_dot_product_attention(x, x, x) + more["a"] + more["b"][0]
        logits = self.head(x)
        return Output(logits.sum(), logits, Cache())


@frontends
def test_rich_inputs_and_outputs(frontend: str) -> None:
    batch = torch.randint(7, (2, 3)), {"a": torch.ones(4), "b": [torch.ones(1), 3]}
    captured = capture(Rich(), batch, {"mask": None, "times": 2, "scale": 0.5}, AMP, frontend)
    kinds = sorted((kind, node) for node, kind in captured.kinds.items())
    assert [kind for kind, _ in kinds] == ["input"] * 3 + ["parameter"]
    assert sum("scaled_dot_product_attention" in str(node.target) for node in captured.nodes()) == 2
    output = captured.output(run(captured))
    assert isinstance(output, Output) and output.logits.shape == (2, 3, 7) and output.cache is None
    output.loss.backward()


class Branch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        x = self.a(x)
        if x.sum() * 0 == 0:
            x = self.b(x) * 2
        return x


@torch.library.custom_op("amplint_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Expert(torch.nn.Module):
    """A mixture of experts by index, an operation that no front end but a run can see through, and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = torch.nn.Linear(4, 2), torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Any) -> Any:
        chosen = self.gate(x).softmax(-1).argmax(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero()[:, 0].numpy().tolist()
            if rows:
                out[rows] = expert(x[rows]).float()
        return twice(out)


def test_control_flow_on_data_is_taken_by_the_next_front_end() -> None:
    captured = capture(Branch(), (torch.ones(2, 3),), {}, AMP)
    assert captured.frontend == "compile"
    assert captured.notes[0].startswith("not captured by export: ") and captured.notes[-1] == "1 graph break"
    assert [str(node.target) for node in captured.nodes()] == [
        "aten.linear.default",
        "aten.linear.default",
        "aten.mul.Tensor",
    ]
    assert [node.meta["module"][-1][0] for node in captured.nodes()] == ["a", "b", ""]
    assert {place_of(node).function for node in captured.nodes()} == {"forward"}  # type: ignore[union-attr]


def test_what_only_a_run_can_show() -> None:
    captured = capture(Expert(), (torch.randn(6, 4),), {}, AMP, "recorder")
    targets = [str(node.target) for node in captured.nodes()]
    assert "amplint_test.twice.default" in targets and targets.count("aten.linear.default") >= 2
    assert torch.isfinite(captured.output(run(captured))).all()


def test_symbolic() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(-1))
    captured = capture(net, (torch.ones(2, 3),), {}, AMP, "symbolic")
    assert [(str(node.target), dtype_of(node)) for node in captured.nodes()] == [
        ("aten.linear.default", HALF),
        ("aten.softmax.int", FULL),
    ]
    assert [node.meta["module"][-1][0] for node in captured.nodes()] == ["0", "1"]
    blind = capture(net, (), {}, AMP, "symbolic")
    assert "without inputs" in blind.notes[0] and list(blind.kinds.values()) == ["input"]


def test_a_half_model_keeps_its_islands() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = torch.nn.Linear(3, 3).half(), torch.nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x).float())

    captured = capture(Net(), (torch.ones(2, 3).half(),), {}, Precision("half"))
    assert [dtype_of(node) for node in captured.nodes()] == [HALF, FULL, FULL]
    assert run(captured)[0].dtype == FULL


@pytest.mark.parametrize(
    ("net", "args", "says"),
    [
        (
            torch.nn.Linear(3, 4),
            (torch.ones(2, 5),),
            "export: .*; compile: .*; recorder: RuntimeError: mat1 and mat2 shapes",
        ),
        (torch.nn.Linear(3, 4), (), "recorder: TypeError: .*missing 1 required positional argument: 'input'"),
        (torch.nn.Linear(3, 4), (torch.ones(2, 3), 1), "recorder: TypeError: .*takes 2 positional arguments but 3"),
    ],
)
def test_what_no_front_end_takes(net: Any, args: Any, says: str) -> None:
    with pytest.raises(CaptureError, match=f"^Linear could not be captured: .*{says}") as caught:
        capture(net, args, {}, AMP)
    assert "\n" not in str(caught.value)


def test_compiled_and_parallel_models_are_unwrapped() -> None:
    net = torch.nn.DataParallel(torch.compile(torch.nn.Linear(3, 3)))
    captured = capture(net, (torch.ones(2, 3),), {}, AMP)
    assert {node.meta.get("target") for node in captured.graph.graph.nodes} == {"weight", "bias", "input", None}


def test_capture_on_meta_weights() -> None:
    with torch.device("meta"):
        net = torch.nn.Sequential(torch.nn.Linear(1 << 20, 1 << 16), torch.nn.LayerNorm(1 << 16))
    captured = capture(net, (torch.empty(2, 1 << 20, device="meta"),), {}, AMP)
    assert [dtype_of(node) for node in captured.nodes()] == [HALF, FULL] and captured.frontend == "export"


def test_the_file_of_the_test_is_a_users() -> None:
    captured = capture(Branch(), (torch.ones(2, 3),), {}, AMP, "recorder")
    assert {Path(place_of(node).path) for node in captured.nodes()} == {Path(__file__)}  # type: ignore[union-attr]


class Checkpointed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(lambda y: self.inner(y).exp(), x, use_reentrant=False)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x.unsqueeze(1))[0]


class Conditional(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (self.inner(x),))


@frontends
@pytest.mark.parametrize(
    ("model", "call", "dtype"),
    [(Checkpointed, "aten.exp.default", FULL), (Recurrent, "aten.lstm.input", None), (Conditional, "cond", HALF)],
)
def test_calls_that_hold_more(model: Any, call: str, dtype: Any, frontend: str) -> None:
    captured = capture(model(), (torch.ones(2, 4),), {}, AMP, frontend)
    node = next(node for node in captured.nodes() if str(node.target) == call)
    assert dtype_of(node) == dtype
    if model is Recurrent:
        assert [value.dtype for value in node.meta["val"]] == [HALF] * 3
        with cuda_policy():
            assert run(captured, full=False)[0].dtype == HALF
    assert captured.notes == (["cond is taken as one call: what is in it is not looked at"] if call == "cond" else [])
    assert torch.isfinite(captured.output(run(captured))).all()


def test_what_nothing_sees_is_refused_or_said() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return torch.vmap(self.inner)(x) + 1

    for frontend in ("export", "compile"):
        with pytest.raises(CaptureError, match=r"a call of \w+ in the graph|not seen"):
            capture(Net(), (torch.ones(2, 4),), {}, AMP, frontend)
    assert "not seen" in capture(Net(), (torch.ones(2, 4),), {}, AMP, "recorder").notes[0]
