"""What fix makes of several files runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rewrite import fixing
from tests.rewrite.fixing import amplint, contents, project
from tests.rewrite.test_several_files import put

pytestmark = pytest.mark.usefixtures("own_folder")


SEEDED = "import runpy, torch; torch.manual_seed(0); runpy.run_path({!r}, run_name='__main__')"


def trained(files: dict[str, str], script: str, folder: Path) -> list[tuple[str, object]]:
    """The weights that a script of a project saves."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 8, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(3)]
    torch.save(batches, folder / "batches.pt")
    environment = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", SEEDED.format(script)], cwd=folder, env=environment, check=True)
    saved = [torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt")) if path.name != "batches.pt"]
    return [(key, value.tolist()) for one in saved for key, value in (one.get("net") or one["model"]).items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_class", "checkpoint_functions", "two_scripts", "two_trainers"])
def test_without_a_gpu_it_trains_as_before(name: str, tmp_path: Path) -> None:
    before, after, _ = project(name)
    plain = trained(before, "train.py", tmp_path / "before")
    assert plain
    assert trained(after, "train.py", tmp_path / "after") == plain


def test_a_command_is_not_given_twice() -> None:
    """What was named stays named, and what naming did not help is said."""
    files = project("two_scripts")[0]
    step, script = files["engine.py"], files["train.py"]
    other = step[step.index("def run_epoch") :].replace("run_epoch", "run_other")
    put({"engine.py": f"{step}\n\n{other}", "train.py": script, "other.py": script.replace("run_epoch", "run_other")})
    two = amplint("engine.py", "train.py").stdout
    assert "amplint fix engine.py other.py train.py changes them together" in two
    Path("other.py").write_text("from engine import run_other\n\nloops = {'other': run_other}\n", encoding="utf-8")
    assert "in other.py, where amplint does not see which one; convert it by hand" in amplint(".").stdout


def test_many_imports() -> None:
    """Files that were only looked for do not keep the loop from being read."""
    before, after, _ = project("two_scripts")
    imports = "".join(f"import library_{number}\n" for number in range(60))
    names = put({**before, "train.py": imports + before["train.py"]})
    assert amplint(".").exit_code == 0
    assert contents(names) == {**after, "train.py": imports + after["train.py"]}


def test_a_step_that_is_refused_elsewhere_is_said() -> None:
    """A script is not silent because what it trains, in a file that was not named, would be refused."""
    before, _, _ = project("two_scripts")
    before["engine.py"] = before["engine.py"].replace("optimizer.step()", "optimizer.step(lambda: loss)")
    put(before)
    result = amplint("train.py")
    assert result.exit_code == 1
    assert "train.py:13: refused: its training step is in engine.py:12; amplint fix engine.py train.py" in result.stdout


def test_all_files_of_all_steps_are_named_at_once() -> None:
    before, _, _ = project("two_scripts")
    step, script = before["engine.py"], before["train.py"]
    script = script.replace("from engine import run_epoch", "from other import run_other\nfrom engine import run_epoch")
    script = script.replace(
        "        run_epoch(", "        run_other(model, batches, optimizer, device)\n        run_epoch("
    )
    put({"engine.py": step, "other.py": step.replace("run_epoch", "run_other"), "train.py": script})
    said = amplint("train.py").stdout.splitlines()
    assert [one.rpartition("; ")[2] for one in said] == [
        "amplint fix engine.py other.py train.py changes them together"
    ] * 2


FACTORY = """\
from losses import *


def build(kind):
    return eval(kind)()
"""
LOSSES = """\
from torch import nn


class Balanced(nn.Module):
    def forward(self, preds, labels):
        return nn.functional.binary_cross_entropy(preds, labels)
"""


@pytest.mark.parametrize("factory", [FACTORY, FACTORY.replace("eval(kind)", "globals()[kind]")])
def test_a_loss_that_a_factory_makes_by_its_name(factory: str) -> None:
    script = fixing.HEAD + fixing.STEP.replace("torch.nn.functional.mse_loss(", "criterion(")
    put({"losses.py": LOSSES, "factory.py": factory, "train.py": script})
    assert "converted" in amplint("train.py", "--check").stdout
    script = script.replace("for x", "criterion = build('Balanced')\nfor x")
    put({"train.py": "from factory import build\n" + script})
    assert "losses.py:6 computes binary cross entropy on probabilities" in amplint("train.py").stdout


BASE = """\
import torch


class Base:
    def __init__(self, model, criterion, device):
        self.model, self.device = model, device
        self.criterion = criterion
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
TRAINER = """\
from base import Base


class Trainer(Base):
    def run(self, loader):
        for x, y in loader:
            loss = self.criterion(self.model(x.to(self.device)), y.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
"""
SCRIPT = """\
import torch
from losses import Balanced
from trainer import Trainer

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
criterion = Balanced()
Trainer(torch.nn.Linear(4, 4).to(device), criterion, device).run(torch.load("batches.pt"))
"""


def test_a_loss_that_a_base_class_keeps() -> None:
    put({"base.py": BASE, "trainer.py": TRAINER, "train.py": SCRIPT, "losses.py": LOSSES})
    assert "losses.py:6 computes binary cross entropy on probabilities" in amplint(".").stdout
    put({"losses.py": LOSSES.replace("cross_entropy", "cross_entropy_with_logits")})
    assert "trainer.py:10: converted" in amplint(".").stdout


ATTENTION = """\
import math

import torch
from torch import nn


def attention(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    return torch.matmul(scores.softmax(-1), v)


class Attention(nn.Linear):
    def forward(self, x, mask=None):
        x = super().forward(x)
        return attention(x, x, x, mask)
"""


def test_what_a_function_of_a_model_cannot_do_in_half_precision() -> None:
    put({"layers.py": ATTENTION})
    put(
        {
            "train.py": "from layers import Attention\n"
            + (fixing.HEAD + fixing.STEP).replace("torch.nn.Linear", "Attention")
        }
    )
    assert "layers.py:10 cannot run in half precision: -1e+09 does not fit" in amplint("train.py").stdout
    assert amplint("layers.py", "train.py").exit_code == 0
    assert "torch.finfo(scores.dtype).min" in Path("layers.py").read_text(encoding="utf-8")


SCHEDULED = """\
class Scheduled:
    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0

    def advance(self):
        self.count += 1
        self.optimizer.step()

    def clear(self):
        self.optimizer.zero_grad()
"""
BUILD = """\
import torch
from scheduled import Scheduled


def build(device):
    model = torch.nn.Linear(4, 4).to(device)
    return model, Scheduled(torch.optim.SGD(model.parameters(), lr=0.1))
"""


def test_a_wrapper_that_a_third_file_makes() -> None:
    """The script that calls its method does not import its class."""
    head, _, _ = fixing.HEAD.partition("model = ")
    step = fixing.STEP.replace("optimizer.step()", "optimizer.advance()").replace("zero_grad", "clear")
    put({"scheduled.py": SCHEDULED, "build.py": BUILD})
    put({"train.py": f"from build import build\n{head}model, optimizer = build(device)\n{step}"})
    assert amplint("scheduled.py", "train.py").exit_code == 0
    assert "    optimizer.advance(scaler)\n    scaler.update()" in Path("train.py").read_text(encoding="utf-8")
    assert "        scaler.step(self.optimizer)" in Path("scheduled.py").read_text(encoding="utf-8")


def test_naming_a_file_that_is_refused_is_not_asked_for_again() -> None:
    before, _, _ = project("two_scripts")
    step = before["engine.py"].replace("import torch\n", "import torch\nfrom apex import amp\n", 1)
    put({"engine.py": step + "\n\nprint(amp)\n", "train.py": before["train.py"]})
    said = amplint("engine.py", "train.py").stdout
    assert "engine.py:" in said
    assert "refused: amp itself is passed on" in said
    assert "changes them together" not in said
