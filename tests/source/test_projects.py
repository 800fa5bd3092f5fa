"""Events across the files of a project: how imports are found, and what crosses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from told import told

ENGINE = """
def train_one(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        with autocast("cuda", dtype=torch.float16):
            loss = model(x).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
"""
NET = """
import torch.optim
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x):
        return self.layer(x)

def build():
    net = Net()
    return net, torch.optim.SGD(net.parameters(), 0.1)
"""
STEP = (
    "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by scaler · "
    "step optimizer through scaler · update scaler"
)

CASES = {
    "a sibling": (
        """
from engine import train_one
model = nn.Linear(8, 1)
train_one(model, loader, torch.optim.SGD(model.parameters(), 0.1), GradScaler())
""",
        {"engine.py": ENGINE},
        STEP,
    ),
    "a sibling as a module": (
        """
import engine as e
model = nn.Linear(8, 1)
e.train_one(model, loader, torch.optim.SGD(model.parameters(), 0.1), GradScaler())
""",
        {"engine.py": ENGINE},
        STEP,
    ),
    "a package that imports relatively, and re-exports": (
        """
from lib import train_one, build
model, optimizer = build()
train_one(model, loader, optimizer, GradScaler())
""",
        {
            "lib/__init__.py": "from .engine import train_one\nfrom .nets.net import build\nimport torch.optim",
            "lib/engine.py": ENGINE,
            "lib/nets/__init__.py": "",
            "lib/nets/net.py": NET,
        },
        STEP,
    ),
    "the src layout": (
        """
from pack.engine import train_one
model = nn.Linear(8, 1)
train_one(model, loader, torch.optim.SGD(model.parameters(), 0.1), GradScaler())
""",
        {"src/pack/__init__.py": "", "src/pack/engine.py": ENGINE, "setup.py": "from setuptools import setup; setup()"},
        STEP,
    ),
    "a star import": (
        """
from engine import *
model = nn.Linear(8, 1)
train_one(model, loader, torch.optim.SGD(model.parameters(), 0.1), GradScaler())
""",
        {"engine.py": ENGINE},
        STEP,
    ),
    "files that import each other": (
        """
import engine
model = nn.Linear(8, 1)
def settings(): return 0.1
engine.train_one(model, loader, torch.optim.SGD(model.parameters(), settings()), GradScaler())
""",
        {
            "engine.py": "import other\n" + ENGINE,
            "other.py": "import engine\nfrom engine import train_one\nimport torch.optim",
        },
        STEP,
    ),
    "an import inside a function": (
        """
def main():
    from engine import train_one
    model = nn.Linear(8, 1)
    train_one(model, loader, torch.optim.SGD(model.parameters(), 0.1), GradScaler())

main()
""",
        {"engine.py": ENGINE},
        STEP,
    ),
    "a base class in another file": (
        """
from base import Base

class Trainer(Base):
    def compute(self, x):
        return self.model(x).mean()

trainer = Trainer(nn.Linear(8, 1))
for x in loader:
    trainer.step(x)
""",
        {
            "base.py": """
class Base:
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.SGD(model.parameters(), 0.1)

    def compute(self, x):
        raise NotImplementedError

    def step(self, x):
        self.opt.zero_grad()
        loss = self.compute(x)
        loss.backward()
        self.opt.step()
"""
        },
        "trainer.step(…): [zero gradients of self.opt · self.compute(…): [forward self.model] · backward of loss · "
        "step self.opt]",
    ),
    "globals of another file": (
        """
import shared
def setup():
    shared.scaler = GradScaler()

setup()
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x in loader:
    optimizer.zero_grad()
    with autocast("cuda", dtype=torch.float16):
        loss = model(x).mean()
    shared.scaler.scale(loss).backward()
    shared.scaler.step(optimizer)
    shared.scaler.update()
""",
        {"shared.py": "scaler = None"},
        "zero gradients of optimizer · forward model under autocast(cuda, float16) · backward of loss, scaled by "
        "shared.scaler · step optimizer through shared.scaler · update shared.scaler",
    ),
    "a file that is not there": (
        """
from missing import build
model = build()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x in loader:
    optimizer.zero_grad()
    model(x).mean().backward()
    optimizer.step()
""",
        {},
        "zero gradients of optimizer · forward model · backward · step optimizer",
    ),
    "an engine in its own project": (
        """
from accelerate import Accelerator
accelerator = Accelerator(mixed_precision="fp16")
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
model, optimizer = accelerator.prepare(model, optimizer)
for x in loader:
    accelerator.backward(model(x).mean())
    optimizer.step()
    optimizer.zero_grad()
""",
        {
            "accelerate/__init__.py": "from .accelerator import Accelerator  # its backward scales",
            "accelerate/accelerator.py": """
class Accelerator:
    def __init__(self, mixed_precision):
        self.scaler = GradScaler() if mixed_precision == "fp16" else None

    def prepare(self, *parts):
        return tuple(self.wrap(part) for part in parts)

    def backward(self, loss):
        self.scaler.scale(loss).backward()
""",
        },
        "forward model · backward, its scaling left to the library · step optimizer · zero gradients of optimizer",
    ),
}


@pytest.mark.parametrize(("script", "files", "expected"), CASES.values(), ids=CASES)
def test_projects(script: str, files: dict[str, str], expected: str, tmp_path: Path) -> None:
    assert told(script, tmp_path, files) == expected
