"""What matters only where a project runs in half precision, or resumes, is a note where nothing in it does; so is what
only tests and benchmarks run."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Severity
from amplint.source.module import Module

ATTENTION = """\
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(-2, -1)
        return scores.masked_fill(mask, -1e9).softmax(dim=-1) @ v
"""

TRAINING = """\
import torch

model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler("cuda")
for epoch in range(10):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
"""

KERNEL = """\
import torch


def test_layer(kernel, layer, x):
    layer(x).backward(x)
    assert kernel(x).grad is not None


def every_dtype(kernel, layer, x):
    with torch.autocast("cuda", dtype=torch.float16):
        test_layer(kernel, layer, x)
"""

TABLES = """\
import torch
from torch import nn


class Tables(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("rates", 10000 ** -(torch.arange(0, dim, 2) / dim))
        self.sines = None

    def forward(self, x):
        if self.sines is None or self.sines.dtype != x.dtype:
            steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
            self.sines = torch.outer(steps, self.rates.to(x.dtype)).sin()
        return x + self.sines
"""

GRID = """\
import torch
from torch import nn


class Grid(nn.Module):
    def forward(self, x):
        rows, columns = torch.arange(x.shape[2]) + 0.5, torch.arange(x.shape[3]) + 0.5
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return x + grid.to(x.dtype).sum(0)
"""

MEANS = """\
import torch


def means(states: torch.Tensor, groups: torch.Tensor, mask: torch.Tensor):
    sizes = torch.zeros_like(states[:, :, 0])
    sizes.scatter_add_(1, groups, mask.float())
    states = torch.where(sizes.unsqueeze(-1) > 0, states / sizes.unsqueeze(-1), 0)
    return states
"""

LOSS = """\
import torch
import torch.nn.functional as F
from torch import nn


class Loss(nn.Module):
    def forward(self, scores, target):
        return F.binary_cross_entropy(scores.sigmoid(), target)
"""


def asked(code: str) -> Settings:
    return Settings(codes=frozenset((code,)), notes=frozenset((code,)))


def grades(folder: Path, code: str, name: str, text: str, **others: str) -> list[Severity]:
    (folder / "setup.py").write_text("")
    for other, said in others.items():
        (folder / f"{other}.py").write_text(said)
    path = folder / name
    path.write_text(text)
    found = checks.check_module(Module.read(str(path), text.encode()), asked(code))
    assert {str(folder / f"{other}.py") for other in others} <= set(found.dependencies)
    return [one.severity for one in found.findings]


def test_a_model_of_a_project_that_never_runs_in_half(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP401", "model.py", ATTENTION, train="loss.backward()\n") == [Severity.NOTE]


def test_a_file_by_itself_is_no_project(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(ATTENTION)
    found = checks.check_module(Module.read(str(path), ATTENTION.encode()), Settings(codes=frozenset({"AMP401"})))
    assert [one.severity for one in found.findings] == [Severity.WARNING]


def test_a_model_of_a_project_that_may(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP401", "model.py", ATTENTION, train="trainer = Trainer(precision=16)\n") == [
        Severity.WARNING
    ]


RUNS = "from model import Attention\n\nmodel = Attention(8)\nloss = model(x, mask).mean()\nloss.backward()\n"
HALF = "import torch\n\nother = torch.nn.Linear(8, 8).half()\n"
BFLOAT16 = (
    "with torch.autocast('cuda', dtype=torch.bfloat16, enabled=use_amp):\n    Attention(8)(x, m).sum().backward()\n"
)
SCALER = "from torch.cuda.amp import GradScaler\n\nscaler = torch.cuda.amp.GradScaler()\n"


def test_a_model_of_a_project_that_runs_in_bfloat16(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP401", "model.py", ATTENTION, train=RUNS + BFLOAT16 + SCALER) == [Severity.NOTE]


def test_a_model_of_a_project_that_runs_in_both(tmp_path: Path) -> None:
    both = BFLOAT16 + BFLOAT16.replace("torch.bfloat16", "half")
    assert grades(tmp_path, "AMP401", "model.py", ATTENTION, train=RUNS + both) == [Severity.WARNING]


def test_a_model_that_others_of_its_project_do_not_use(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP401", "model.py", ATTENTION, train=RUNS, export=HALF) == [Severity.NOTE]


def test_a_copy_of_the_script_in_half_has_a_model_of_its_own(tmp_path: Path) -> None:
    script = ATTENTION + "\n\nfor loss in losses(Attention):\n    loss.backward()\n"
    copy = script.replace("losses(Attention)", "losses(Attention, torch.float16)")
    assert grades(tmp_path, "AMP401", "in_float32.py", script, in_half=copy) == [Severity.NOTE]


def test_a_model_that_is_used_in_half_through_another(tmp_path: Path) -> None:
    block = (
        "from model import Attention\n\n\nclass Block:\n    def __init__(self):\n        self.inner = Attention(8)\n"
    )
    train = "from block import Block\n\nmodel = Block()\nwith torch.autocast('cuda'):\n    model(x).backward()\n"
    path = tmp_path / "model.py"
    for name, text in (("setup", ""), ("model", ATTENTION), ("block", block), ("train", train), ("old", RUNS)):
        (tmp_path / f"{name}.py").write_text(text)
    found = checks.check_module(Module.read(str(path), ATTENTION.encode()), Settings(codes=frozenset({"AMP401"})))
    assert [one.severity for one in found.findings] == [Severity.WARNING]


def test_a_checkpoint_that_nothing_resumes_from(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP116", "train.py", TRAINING) == [Severity.NOTE]


def test_a_checkpoint_that_another_file_resumes_from(tmp_path: Path) -> None:
    loads = 'optimizer.load_state_dict(state["optimizer"])\n'
    assert grades(tmp_path, "AMP116", "train.py", TRAINING, loading=loads) == [Severity.WARNING]


def test_what_resumes_but_no_training(tmp_path: Path) -> None:
    log = "class Logger:\n    def __init__(self, path, resume=False):\n"
    log += "        self.file = open(path, 'a' if resume else 'w')\n"
    tracker = "wandb.init(id=run, resume='allow')\nmodel.load_state_dict(torch.load(path))\n"
    assert grades(tmp_path, "AMP116", "train.py", TRAINING, log=log, tracker=tracker) == [Severity.NOTE]


def test_a_helper_that_saves_for_a_script_that_nothing_resumes(tmp_path: Path) -> None:
    helper = "import torch\n\n\ndef save_state(model, optimizer, path):\n"
    helper += '    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)\n'
    text = TRAINING.replace("import torch\n", "import torch\nfrom helper import save_state\n", 1)
    text = text[: text.index("    torch.save")] + '    save_state(model, optimizer, "last.pt")\n'
    assert grades(tmp_path, "AMP116", "train.py", text, helper=helper) == [Severity.NOTE]


@pytest.mark.parametrize(
    ("name", "text", "grade"),
    [
        ("kernel.py", KERNEL, Severity.NOTE),
        ("kernel.py", KERNEL.replace("test_layer", "layer_step"), Severity.WARNING),
        ("bench_kernel.py", KERNEL.replace("test_layer", "layer_step"), Severity.NOTE),
    ],
)
def test_what_tests_and_benchmarks_run(tmp_path: Path, name: str, text: str, grade: Severity) -> None:
    assert grades(tmp_path, "AMP202", name, text) == [grade]


def test_an_arm_that_asks_for_apex(tmp_path: Path) -> None:
    text = "def clip(self):\n    if self.use_apex:\n        clip_grad_norm_(amp.master_params(self.optimizer), 1.0)\n"
    assert grades(tmp_path, "AMP608", "trainer.py", text) == [Severity.NOTE]
    assert grades(tmp_path, "AMP608", "trainer.py", text.replace("use_apex", "fp16")) == [Severity.ERROR]


@pytest.mark.parametrize(("code", "text"), [("AMP411", TABLES), ("AMP411", GRID), ("AMP501", MEANS), ("AMP216", LOSS)])
def test_what_only_the_project_says(tmp_path: Path, code: str, text: str) -> None:
    """Nothing where no file speaks of half precision, a note where one does; and nothing of a file by itself."""
    for name, train, told in (
        ("full", "loss.backward()\n", []),
        ("mixed", "with torch.autocast(device):\n    loss.backward()\n", [Severity.NOTE]),
    ):
        (folder := tmp_path / name).mkdir()
        assert grades(folder, code, "model.py", text, train=train) == told
    alone = checks.check_module(Module.read("model.py", text.encode()), asked(code))
    assert not alone.findings


def test_a_device_with_an_index_where_the_project_asks_for_a_torch_that_takes_it() -> None:
    module = Module.read("model.py", b'import torch\n\nwith torch.autocast(f"cuda:{rank}"):\n    model(x)\n')
    for asks, grade in (("", Severity.WARNING), ("pyproject.toml", Severity.NOTE)):
        found = checks.check_module(module, Settings(codes=frozenset({"AMP208"}), torch_from=asks)).findings
        assert [one.severity for one in found] == [grade]


FULL = """\
import torch
from nets import Net

model = Net().cuda()
optimizer = torch.optim.AdamW(model.parameters())
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    # with torch.autocast("cuda", dtype=torch.float16):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""
NETS = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(784, 10)

    def forward(self, x):
        return self.layer(x)
"""


def test_a_scaler_in_a_project_that_never_enters_autocast(tmp_path: Path) -> None:
    assert grades(tmp_path, "AMP207", "train.py", FULL, nets=NETS) == [Severity.WARNING]


@pytest.mark.parametrize(
    "forward", ['with torch.autocast("cuda"):\n            return self.layer(x)', "return self.layer.half()(x.half())"]
)
def test_the_model_of_another_file_enters_it(forward: str, tmp_path: Path) -> None:
    nets = NETS.replace("return self.layer(x)", forward)
    assert grades(tmp_path, "AMP207", "train.py", FULL, nets=nets) == []
