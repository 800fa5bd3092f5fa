"""The probe: what is written down of each training step, and which orders are named as faults. In this process."""

from __future__ import annotations

import json
import re
import textwrap
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from amplint.verify.child.counting import Counting  # noqa: E402
from amplint.verify.child.hooks import watched  # noqa: E402
from amplint.verify.child.meters import Meters  # noqa: E402
from amplint.verify.child.probe import Probe  # noqa: E402
from amplint.verify.child.records import Records  # noqa: E402

SETUP = """
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
torch.manual_seed(0)
net, other = nn.Linear(4, 2), nn.Linear(4, 2)
opt = torch.optim.SGD(net.parameters(), 0.1)
second = torch.optim.SGD(other.parameters(), 0.1)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
x = torch.ones(3, 4)
def loss(model=net):
    return model(x).square().mean()
def amp():
    return torch.autocast("cpu", dtype=torch.float16)
def again():
    raise StopIteration
"""


class Ended(Exception):
    pass


@contextmanager
def probing(folder: Any, count: bool = False, **job: Any) -> Any:
    """A probe at work in this process."""

    def finish() -> None:
        raise Ended

    records = Records(str(folder), {"steps": 1000, "warmup": 3} | job)
    counting = Counting() if count else None
    with ExitStack() as stack:
        probe = Probe(records, Meters(False), counting, finish)
        stack.enter_context(watched(probe))
        if counting is not None:
            stack.enter_context(counting)
        yield probe
    assert not records.notes


def run(folder: Any, body: str, count: bool = False, **job: Any) -> tuple[Probe, list[dict[str, Any]], str]:
    """Run a script under a probe, to its error if it has one; what was written down, and the script."""
    for word, code in WORDS.items():
        body = re.sub(rf"\b{word}\b", code, body)
    script = SETUP + textwrap.dedent(body)
    path = folder / "train.py"
    path.write_text(script)
    with probing(folder, count, **job) as probe:
        try:
            exec(compile(script, str(path), "exec"), {})
        except (RuntimeError, ValueError, AssertionError, Ended) as error:
            probe.error = error
    steps = folder / "steps.0.jsonl"
    told = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    return probe, told, script


WORDS = {
    "SCALED": "scaler.scale(loss()).backward()",
    "OTHER": "scaler.scale(loss(other)).backward()",
    "STEP": "scaler.step(opt)",
    "SECOND": "scaler.step(second)",
    "UPDATE": "scaler.update()",
    "UNSCALE": "scaler.unscale_(opt)",
    "CLIP": "clip_grad_norm_(net.parameters(), 1.0)",
    "HALF": "with amp(): a = loss()",
}
FAULTS = [
    "SCALED; CLIP  # AMP105\nSTEP; UPDATE",
    "SCALED; UNSCALE; CLIP; STEP; UPDATE",
    "SCALED\nopt.step()  # AMP102",
    "(scaler.scale(loss()) / 4).backward()\nopt.step()  # AMP102",
    "SCALED; UNSCALE; opt.step()",  # by hand, as some guards do
    "SCALED; STEP\nSCALED; STEP  # AMP110",
    "scaler.scale(loss()); loss().backward()\nSTEP  # AMP103",
    "SCALED; loss().backward()\nSTEP  # AMP104",
    "SCALED; UNSCALE\nSCALED  # AMP108\nUNSCALE  # AMP108",
    "SCALED; STEP\nUNSCALE  # AMP137",
    "SCALED; UNSCALE\nopt.zero_grad(); SCALED; UNSCALE  # AMP113",
    "SCALED; OTHER; STEP; UPDATE\nSECOND  # AMP112",
    "SCALED; OTHER; STEP; SECOND; UPDATE",
    "last = torch.amp.GradScaler('cpu'); last.scale(loss(other)).backward()\nSCALED\nlast.step(opt)  # AMP134",
    "with amp():\n    loss().backward()  # AMP202",
    "net.half(); x = x.half(); loss().backward()\nopt.step()  # AMP301",
    "net.half(); x = x.half(); SCALED\nSTEP  # AMP303",
    "net.bfloat16(); x = x.bfloat16(); loss().backward()\nopt.step()  # AMP305",
    "scaler = torch.amp.GradScaler('cpu', enabled=False); SCALED; CLIP; STEP",
    "for i in range(3):\n    for p in net.parameters(): p.grad = None\n    SCALED; STEP; UPDATE",
    "for i in range(3):\n    net.zero_grad(set_to_none=False)\n    SCALED; STEP; UPDATE",
    # a penalty's own gradient is one of inputs: it trains nothing
    "torch.autograd.grad(scaler.scale(loss()), x.requires_grad_(), create_graph=True); loss().backward(); opt.step()",
]
COUNTED = [
    "HALF\na.backward()\nopt.step()  # AMP101",
    "HALF\nscaler.scale(a).backward(); STEP; UPDATE",
    "with torch.autocast('cpu', dtype=torch.bfloat16): a = loss()\na.backward(); opt.step()",
    "HALF\n(a * 64).backward()\nfor p in net.parameters(): p.grad.div_(64)\nopt.step()",  # scaled by hand
    # one trains in half and is scaled, the other is not half
    "HALF\nscaler.scale(a).backward(); loss(other).backward(); second.step(); STEP; UPDATE",
    "net = nn.Sequential(net, nn.BatchNorm1d(2).half())\nwith amp(): net(x)  # AMP302",
]


@pytest.mark.parametrize(("body", "count"), [(one, False) for one in FAULTS] + [(one, True) for one in COUNTED])
def test_faults_are_named_at_their_line(tmp_path, body, count):
    probe, _, script = run(tmp_path, body, count)
    expected = [
        (code, row)
        for row, line in enumerate(script.splitlines(), 1)
        for code in line.partition("# ")[2].split()
        if "AMP" in code
    ]
    assert [(code, line[1]) for code, _, line in probe.records.faults] == expected


STEPS = [
    # accumulation: a loss each
    (
        "for i in range(4):\n    (loss() / 2).backward()\n    if i % 2: opt.step(); opt.zero_grad()",
        [([0.5, 0.5], 0, False)] * 2,
    ),
    # two optimizers, in the order of their first steps
    (
        "loss(other).backward(); second.step(); loss().backward(); opt.step(); second.step()",
        [([1], 0, False), ([1], 1, False), ([], 0, False)],
    ),
    # what steps inside a step is part of it
    (
        "class Wrapper(torch.optim.Optimizer):\n"
        "    def __init__(self, inner): self.inner = inner; super().__init__(net.parameters(), {})\n"
        "    def step(self, closure=None): self.inner.step()\n"
        "outer = Wrapper(opt); loss().backward(); outer.step()",
        [([1], 0, False)],
    ),
    # a closure is called within the step
    (
        "lbfgs = torch.optim.LBFGS(net.parameters(), max_iter=3)\n"
        "def closure():\n    lbfgs.zero_grad(); a = loss(); a.backward(); loss().backward(); return a\n"
        "lbfgs.step(closure)",
        [([1, 1], 0, False)],
    ),
    # the scaler skips a step; then a graph is kept, a loss is weighted, gradients are asked for
    (
        "scaler.scale(loss() * 1e38).backward(); STEP; UPDATE\n"
        "net.zero_grad(); a = scaler.scale(loss()); a.backward(retain_graph=True); a.backward(torch.tensor(2.0))\n"
        "STEP; UPDATE\n"
        "for p, d in zip(net.parameters(), torch.autograd.grad(loss(), list(net.parameters()))): p.grad = d\n"
        "opt.step()",
        [(["inf"], 0, True), ([1, 2], 0, False), ([1], 0, False)],
    ),
    # the optimizer's own kernel skips
    (
        "opt = torch.optim.Adam(net.parameters(), fused=True); scaler.scale(loss() * 1e38).backward(); STEP; UPDATE\n"
        "opt.zero_grad(); SCALED; STEP; UPDATE",
        [(["inf"], 0, True), ([1], 0, False)],
    ),
]


@pytest.mark.parametrize(("body", "expected"), STEPS)
def test_steps_and_their_losses(tmp_path, body, expected):
    """The loss is always 1, whatever it was scaled by."""
    constant = "def loss(model=net):\n    return (model(x) * 0).sum() + 1\n"
    _, told, _ = run(tmp_path, constant + body)
    assert [([one for _, one in step["losses"]], step["optimizer"], step["skipped"]) for step in told] == expected
    assert [step["step"] for step in told] == list(range(len(told)))
    assert all(place.startswith(f"{tmp_path}/train.py:") for step in told for place, _ in step["losses"])


NORM = """
for p in net.parameters():
    p.data.fill_(1.0)  # the gradient of the sum of 3 rows is 3, of each of 10 numbers
def loss(model=net):
    return model(x).sum()
"""


@pytest.mark.parametrize(
    ("body", "scale", "size"),
    [
        ("loss().backward(); opt.step()", None, 1),
        ("loss().backward(); CLIP; opt.step()", None, 1),
        ("SCALED; STEP; UPDATE", 1024, 1),
        ("SCALED; UNSCALE; CLIP; STEP", 1024, 1),
        ("SCALED; opt.step()", None, 1),  # past the scaler, by its own unit
        ("scaler.scale(loss() * 1e38).backward(); STEP; UPDATE", 1024, "inf"),
        ("table = nn.Embedding(4, 2, sparse=True); opt = torch.optim.SGD(table.parameters(), 0.1)\n"
         "table(torch.tensor([1, 1])).sum().backward(); opt.step()", None, 8**0.5 / 90**0.5),
    ],
)  # fmt: skip
def test_the_norm_is_that_of_unscaled_gradients_before_clipping(tmp_path, body, scale, size):
    _, (told,), _ = run(tmp_path, NORM + body)
    assert told["norm"] == (size if isinstance(size, str) else pytest.approx(size * 90**0.5))
    assert told["scale"] == scale and told["seconds"] > 0


def test_the_samples_are_those_of_the_first_model_that_trains(tmp_path):
    body = """
        with torch.no_grad():
            other(x)
        net.eval()
        net(x)
        net.train()
        for rows in (2, 5):
            net(torch.ones(rows, 4)).sum().backward()
            net(torch.ones(1, 4)).sum().backward()
            opt.step()
        import copy, io
        torch.save(copy.deepcopy(net), io.BytesIO())  # nothing of the probe is on it
    """
    _, told, _ = run(tmp_path, body)
    assert [step["samples"] for step in told] == [3, 6]
    assert torch.nn.Linear.__call__ is torch.nn.Module.__call__  # as it was


def test_a_run_ends_at_its_last_step(tmp_path):
    """Of the first optimizer that steps; another one may take five times as many."""
    probe, told, _ = run(tmp_path, "for i in range(9): loss().backward(); opt.step()", steps=4)
    assert len(told) == 4 and isinstance(probe.error, Ended)
    (tmp_path / "second").mkdir()
    body = "loss().backward(); opt.step()\nfor i in range(99): loss(other).backward(); second.step()"
    _, told, _ = run(tmp_path / "second", body, steps=4)
    assert len(told) == 1 + 20


def test_a_run_off_by_a_rounding_steps_on_the_parameters_as_they_are(tmp_path):
    """Forward and backward see them off; each draw, and each step, by other numbers; no seed's numbers are used."""
    body = """
        torch.manual_seed(0)
        seen = []
        for i in range(3):
            seen.append([p.detach().clone() for p in net.parameters()])
            opt.zero_grad(); loss(lambda x: x @ torch.ones(4, 1) + 0 * net(x).sum()).backward(); opt.step()
        raise ValueError(seen, torch.rand(1).item(), [p.detach().clone() for p in net.parameters()])
    """
    found = {}
    for draw in (0, 1, 1, 2):
        folder = tmp_path / f"{len(found)}{draw}"
        folder.mkdir()
        probe, _, _ = run(folder, body, perturb=draw, dtype="float16")
        seen, drawn, _ = probe.error.args
        again = found.setdefault(draw, (seen, drawn))
        assert drawn == again[1] == found[0][1]
        for one, other in zip(seen, again[0], strict=True):
            assert all(map(torch.equal, one, other))
    exact, off, other = (found[draw][0] for draw in (0, 1, 2))
    assert torch.equal(exact[0][0], off[0][0])  # before the first step
    for at in (1, 2):
        ratio = off[at][0] / exact[at][0]
        assert 1e-4 < (ratio - 1).abs().mean() < 1e-2, ratio
        assert not torch.equal(off[at][0], other[at][0])
    assert torch.allclose(off[2][0] / off[1][0], torch.ones(2, 4), atol=1e-2)  # it does not add up
    assert not torch.equal(off[2][0], off[1][0])


def test_a_run_follows_anothers_skips_and_rates(tmp_path):
    body = """
        opt.param_groups[0]["lr"] = 0.5
        seen = []
        for i in range(3):
            before = net.weight.detach().clone()
            opt.zero_grad(); net(x).sum().backward(); opt.step()
            seen.append(float((before - net.weight.detach())[0, 0]))
        raise ValueError(seen, opt.param_groups[0]["lr"])
    """
    probe, told, _ = run(tmp_path, body, follow={"0": [[True, [0.5]], [False, [0.25]]]})
    assert probe.error.args == ([0.0, pytest.approx(0.75), pytest.approx(1.5)], 0.5)
    assert [step["skipped"] for step in told] == [True, False, False]
    assert ["parts" in step for step in told] == [False, True, False]  # the first that was made


def test_parts_are_the_gradients_that_the_first_step_is_made_on(tmp_path):
    """Unscaled and clipped; by the names of the model that trains, and of those that have a gradient."""
    body = """
        net.bias.requires_grad_(False)
        scaler.scale(net(x).sum() * float("inf")).backward(); STEP; UPDATE  # skipped
        for i in range(2):
            opt.zero_grad(); scaler.scale(net(x).sum() * 100).backward(); UNSCALE; CLIP; STEP; UPDATE
        other(x).sum().backward(); second.step()
    """
    _, told, _ = run(tmp_path, body)
    assert [step.get("parts") for step in told] == [
        None,
        {"weight": pytest.approx(1.0, rel=1e-4), "bias": None},
        None,
        {"parameter 0": pytest.approx(72**0.5), "parameter 1": pytest.approx(18**0.5)},
    ]
    assert [step["rates"] for step in told] == [[0.1]] * 4


def test_half_weights_that_the_first_step_leaves_as_they_are_are_counted(tmp_path):
    body = """
        net.half(); nn.init.ones_(net.weight); nn.init.zeros_(net.bias)
        opt = torch.optim.SGD(net.parameters(), 1e-5)
        for i in range(2):
            net(x.half()).sum().backward(); opt.step()  # a step of 3e-5, and half of ones' last bit is 4.9e-4
        other(x).sum().backward(); second.step()
    """
    _, told, _ = run(tmp_path, body)
    assert [step.get("swallowed", "-") for step in told] == [[8, 10], "-", None]
